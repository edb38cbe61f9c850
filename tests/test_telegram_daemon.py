"""The Telegram bot in real daemons, caged and behind the broker, that are killed: every message is
answered, in its order, and the token is nowhere but where the broker puts it.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal

import pytest

from oxydra.gateway.hub import QUEUE
from tests.conftest import eventually
from tests.fake_telegram import TOKEN, FakeTelegram
from tests.telegram_kit import GROUP
from tests.test_daemon import SCRIPT, all_killed, home  # noqa: F401


@pytest.fixture
def fake():
    with FakeTelegram() as server:
        yield server


@pytest.fixture
def bot(home, fake):  # noqa: F811
    """A home whose daemon has a bot."""
    home.env["TELEGRAM_BOT_TOKEN"] = TOKEN
    configure(
        home,
        f'enabled = true\napi_url = "{fake.url}"\npolling_timeout_secs = 5\n'
        f'groups = ["{GROUP}"]\nsenders = [{{platform_ids = ["42"]}}]\n',
    )
    home.run("start", "--detach")
    return home


def configure(home, lines):  # noqa: F811
    path = home.folder / "users" / "alice.toml"
    head = "[channels.telegram]\n"
    path.write_text(path.read_text().replace(head, head + lines))


def script(*steps):
    return SCRIPT % json.dumps(list(steps))


def test_a_person_talks_to_the_caged_agent(bot, fake):
    (bot.workspace / "shared" / "notes.txt").write_text("hello from the notes\n")
    (bot.workspace / "vault" / "secret.txt").write_text("hidden\n")
    fake.says("read the file /shared/notes.txt")
    fake.wait_told("hello from the notes")
    fake.files["a.bin"] = b"anything"
    listed = {"tool": "file_list", "arguments": {"path": "/shared/received"}}
    fake.says(script(listed), document={"file_id": "a.bin", "file_name": "a.bin"})
    fake.wait_told("-a.bin")
    (kept,) = (bot.workspace / "shared" / "received").iterdir()
    assert kept.read_bytes() == b"anything" and kept.name.endswith("-a.bin")
    read = {"tool": "file_read", "arguments": {"path": "/vault/secret.txt"}}
    fake.says("/status@oxydra_bot", chat=GROUP)
    fake.wait_told("Running: 0", GROUP)
    fake.says("@oxydra_bot " + script(read), chat=GROUP, entities=MENTION)
    fake.wait_told("private conversations only", GROUP)
    assert "hidden" not in "".join(fake.told(GROUP))
    fake.says(script(read))
    fake.wait_told("hidden")
    status = bot.status()
    assert status["telegram"] == {"state": "running", "detail": "", "bot": "oxydra_bot"}
    bot.run("stop")
    for path in bot.workspace.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path


MENTION = [{"type": "mention", "offset": 0, "length": 11}]


def test_a_revoked_token_is_said_by_status(bot, fake):
    eventually(lambda: fake.polls)
    fake.token = "1:another"
    fake.says("Hi")

    def told():
        rows = bot.status()["startup_status"]["degraded_reasons"]
        return [row for row in rows if row["code"] == "telegram" and "not valid" in row["detail"]]

    eventually(told)


def test_without_a_token_the_daemon_says_what_is_missing(home):  # noqa: F811
    configure(home, "enabled = true\n")
    line = home.fails("start", "--detach", code=2)
    assert "TELEGRAM_BOT_TOKEN holds no token" in line and "key set" in line


@pytest.mark.slow
def test_a_file_whose_way_a_kill_cuts_short_comes_again_and_says_so(bot, fake):
    (bot.workspace / "shared" / "a.txt").write_text("as it was")
    guest, killed = bot.status()["guest_pid"], []

    def kill_once(method, _params):
        if method == "sendDocument" and not killed:
            killed.append(guest)
            os.kill(guest, signal.SIGKILL)  # it arrives, and nobody is there to hear that

    fake.fail = kill_once
    send = {"tool": "send_media", "arguments": {"path": "/shared/a.txt", "caption": "Here"}}
    fake.says(script(send, {"text": "Sent."}))
    fake.wait_told("[document a.txt] (This may be a repetition.)")
    kept = [message["file"] for message in fake.messages[42].values() if "file" in message]
    assert killed and kept == [("a.txt", b"as it was")] * 2
    fake.wait_told("Sent.")


@pytest.mark.slow
def test_kills_at_random_instants_lose_no_answer(bot, fake):
    seed = random.Random(7)
    asked = 0
    for number in range(8):
        # what waits in one session is bounded: more would be refused, and said so
        eventually(lambda: asked - len(set(order(fake))) < QUEUE - 3, timeout=240)  # noqa: B023
        for _ in range(3):
            asked += 1
            text = f"Answer {asked}.\n\n" + "word " * seed.choice((3, 300, 2000))
            fake.says(script({"text": text, "delay_ms": 1}))
        before = len(fake.calls)
        wanted = before + seed.randint(0, 8)
        eventually(lambda: len(fake.calls) >= wanted, timeout=120)  # noqa: B023
        if number % 2:
            os.kill(bot.status()["guest_pid"], signal.SIGKILL)
            eventually(lambda: healthy(bot), timeout=120)
        else:
            all_killed(bot.status())
            bot.run("start", "--detach")
    eventually(lambda: order(fake)[-1:] == [asked], timeout=240)
    eventually(lambda: fake.confirmed, timeout=120)
    found = order(fake)
    assert list(dict.fromkeys(found)) == list(range(1, asked + 1))  # none lost, in their order
    whole = [said for said in fake.told() if not said.endswith("▍")]
    assert not any("already wait" in said for said in whole)
    for one in range(1, asked + 1):
        again = [said for said in whole if f"Answer {one}." in said]
        assert sum(not said.startswith("(This may be a repetition.)") for said in again) <= 1


def healthy(bot):
    return json.loads(bot.command("status", "--json").stdout or "{}").get("healthy")


def order(fake):
    """Which answers have come, as their numbers, in the order of the messages."""
    told = [said for said in fake.told() if not said.endswith("▍")]
    return [int(found[1]) for said in told if (found := re.search(r"Answer (\d+)\.", said))]
