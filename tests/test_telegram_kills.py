"""A bot that is killed at random instants, in the middle of its requests too: every message is
answered whole and in its order, and what comes twice says so.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys

import pytest

from oxydra.channels.live import CURSOR
from oxydra.channels.mail import AGAIN
from tests.conftest import ROOT, eventually
from tests.fake_telegram import FakeTelegram
from tests.telegram_kit import GROUP
from tests.telegram_process import answer_to

PLACES = [(42, 0), (43, 0), (GROUP, 1), (GROUP, 2), (GROUP, 3)]


class Bot:
    """One that is started again and again."""

    def __init__(self, folder, url):
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.telegram_process", str(folder), url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.pid = 0

    def start(self):
        print("start", file=self._parent.stdin, flush=True)
        self.pid = int(self._parent.stdout.readline())

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

    def ended(self):
        """Wait until it has, by a kill and by nothing else."""
        assert int(self._parent.stdout.readline()) == -signal.SIGKILL

    def close(self):
        self.kill()
        self.ended()
        self._parent.stdin.close()
        self._parent.stdout.close()
        assert self._parent.wait(60) == 0


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_kills_at_random_instants_lose_nothing(tmp_path, kills):
    seed = random.Random(11)
    asked: dict[tuple[int, int], list[int]] = {place: [] for place in PLACES}
    with FakeTelegram() as fake, contextlib.closing(Bot(tmp_path, fake.url)) as bot:
        fake.files["a.bin"] = b"anything" * 10_000
        bot.start()
        for _ in range(kills):
            for _ in range(3):
                number = 1 + sum(map(len, asked.values()))
                chat, topic = seed.choice(PLACES)
                asked[chat, topic].append(number)
                file = {"document": {"file_id": "a.bin", "file_name": "a.bin"}}
                more = file if seed.random() < 0.2 else {}
                fake.says(
                    f"ask {number}", who=chat if chat > 0 else 42, chat=chat, topic=topic, **more
                )
            kill_at(
                *(fake, bot, seed.randint(0, 15), lambda: not outstanding(fake, asked)),
                within=seed.random() < 0.7,
            )
            bot.ended()
            bot.start()
            # what waits in one session is bounded: more would be refused, and said so
            eventually(lambda: outstanding(fake, asked) < 12, timeout=300)
        eventually(lambda: outstanding(fake, asked) == 0, timeout=300)
        eventually(lambda: fake.confirmed, timeout=300)
        eventually(lambda: not unfinished(fake, asked), timeout=300)
    for place, numbers in asked.items():
        told = whole(fake, place)
        assert list(dict.fromkeys(n for said in told for n in answered(said))) == numbers
        once = " ".join(said for said in told if not said.startswith(AGAIN)).split()
        for number in numbers:
            for part in (paragraph.split()[0] for paragraph in answer_to(number)):
                assert once.count(part) <= 1, part


def kill_at(fake, bot, calls, idle, *, within):
    """Kill it when it has made so many more requests, or has nothing more to do; `within` the last
    of them, which arrives even so.
    """
    left, killed = calls, False

    def count(_method, _params):
        nonlocal left, killed
        left -= 1
        if left == 0 and within:
            killed = True
            bot.kill()

    fake.fail = count
    eventually(lambda: left <= 0 or idle(), timeout=300)
    with fake.still():  # no request is being counted
        fake.fail = lambda _method, _params: None
    if not killed:
        bot.kill()


def whole(fake, place):
    """What is not the beginning of an answer that was broken off, and says so."""
    return [said for said in fake.told(*place) if not said.endswith(CURSOR)]


def answered(said):
    return [int(found) for found in re.findall(r"\b(\d+)-\d+\b", said)]


def outstanding(fake, asked):
    """How many messages have no answer yet."""
    return sum(
        len({*numbers} - {n for said in whole(fake, place) for n in answered(said)})
        for place, numbers in asked.items()
    )


def unfinished(fake, asked):
    """What is missing of the answers."""
    missing = []
    for place, numbers in asked.items():
        there = {word for said in whole(fake, place) for word in said.split()}
        wanted = {p.split()[0] for number in numbers for p in answer_to(number)}
        missing += wanted - there
    return missing
