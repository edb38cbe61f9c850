"""A Telegram bot in a process that a test kills: `python -m tests.telegram_process FOLDER URL`.

It imports everything once; for each line that it reads it forks a bot on the database in `FOLDER`,
before the fake Bot API at `URL`, says its process id, and, once that has ended, how.
"""

from __future__ import annotations

import os
import random
import re
import sys
import threading
from pathlib import Path

from oxydra.channels import bot
from oxydra.config import GatewayConfig
from oxydra.types import Completed, Message, TextDelta, Usage
from tests.telegram_kit import Chatting


def answer_to(number: int) -> list[str]:
    """The paragraphs that answer the question `number`: always the same, of some length."""
    seed = random.Random(number)
    size = seed.choice((1, 3, 60))
    return [f"{number}-{part} {'word ' * seed.randint(1, 30)}".strip() for part in range(size)]


class Answering:
    """Answers `ask N`, slowly enough that it can be killed in the middle."""

    name = "scripted"

    def stream(self, request, token):
        asked = [m.content for m in request.messages if m.role == "user"][-1]
        found = re.search(r"ask (\d+)", asked)
        assert found is not None, asked
        said = "\n\n".join(answer_to(int(found[1])))
        size = len(said) // 4 + 1
        for begin in range(0, len(said), size):
            token.wait(0.01)
            token.check()
            yield TextDelta(said[begin : begin + size])
        yield Completed(Message("assistant", said), "stop", Usage(1, 1))


class Fake:
    """Where the fake is that runs elsewhere."""

    def __init__(self, url: str) -> None:
        self.url = url


def main(folder: str, url: str) -> None:
    bot._apihelper()  # imported once, for all
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            Chatting(
                Path(folder) / "db",
                Fake(url),
                Answering(),
                respond_in_groups="all",
                max_message_length=1024,
                gateway=GatewayConfig(max_concurrent_turns_per_user=5),
            )
            threading.Event().wait()
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
