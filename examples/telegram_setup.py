#!/usr/bin/env python3
"""Set a Telegram bot up: checks the token with Telegram and says what to write where.

    telegram_setup.py < token.txt        the token as @BotFather gave it; it is not shown

Write to the bot first: then it can say your id, without which nobody may talk to your agent.
`--api-url` is for a Bot API server of your own.
"""

import argparse
import sys

import requests

options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
options.add_argument("--api-url", default="https://api.telegram.org")
api = options.parse_args().api_url
token = sys.stdin.readline().strip()


def ask(method, **parameters):
    try:
        answer = requests.post(f"{api}/bot{token}/{method}", json=parameters, timeout=30).json()
    except (requests.RequestException, ValueError) as error:  # its words may hold the token
        sys.exit(f"{api} does not answer as Telegram does: {type(error).__name__}.")
    if not answer["ok"]:
        sys.exit(f"Telegram says: {answer['description']}. @BotFather gives a token: /newbot.")
    return answer["result"]


me = ask("getMe")
people = [update["message"]["from"] for update in ask("getUpdates") if "message" in update]
senders = {person["id"]: person["first_name"] for person in people}
print(f"This is the token of @{me['username']}. Keep it:\n")
print("    oxydra-runner key set TELEGRAM_BOT_TOKEN\n")
if not senders:
    sys.exit(f"Nobody has written to @{me['username']} yet: do so, then run this again.")
print("and in users/<you>.toml:\n\n    [channels.telegram]\n    enabled = true")
rows = ", ".join(f'{{ platform_ids = ["{who}"] }}' for who in senders)
print(f"    senders = [{rows}]   # {', '.join(senders.values())}\n")
print("then: oxydra-runner restart")
