"""The Telegram bot where something lasts: it stops at once in whatever it waits for, and an hour
without a network costs nothing but that hour.
"""

from __future__ import annotations

import threading

import pytest

from oxydra.channels import mail, telegram
from oxydra.channels.bot import BotError
from tests.conftest import eventually
from tests.fake_telegram import refusal
from tests.telegram_kit import GROUP, chatting
from tests.test_gateway import Held

HOUR = 3600


class Waiting:
    """Ways to keep the bot waiting: each returns when it does. `go` ends the ones of the fake."""

    def __init__(self, w):
        self.w = w
        self.go = threading.Event()
        self.there = threading.Event()

    def long_poll(self):
        eventually(lambda: self.w.fake.polls)

    def turn(self):
        self.w.fake.says("Hi")
        self.w.fake.wait_told("thinking")

    def download(self):
        def write(out):
            out(b"some")
            self.there.set()
            self.go.wait(300)

        self.w.fake.slow["a.bin"] = write
        self.w.fake.says("Look", document={"file_id": "a.bin", "file_name": "a.bin"})
        assert self.there.wait(60)

    def patience_before_sending(self):
        self.refuse("sendMessage", refusal(429, "Too Many Requests", retry_after=HOUR))
        self.w.fake.says("/help")
        assert self.there.wait(60)

    def patience_before_polling(self):
        self.refuse("getUpdates", refusal(429, "Too Many Requests", retry_after=HOUR))
        assert self.there.wait(60)

    def other_poller(self):
        self.refuse("getUpdates", refusal(409, "Conflict: terminated by other getUpdates request"))
        eventually(lambda: "Another program" in self.w.bot.state()["detail"])

    def no_network(self):
        self.refuse("", (502, {}))
        eventually(lambda: self.w.bot.state()["state"] == "waiting")

    def refuse(self, only, answer):
        def fail(method, _params):
            if only not in ("", method):
                return None
            self.there.set()
            return answer

        self.w.fake.fail = fail


WAYS = [name for name in vars(Waiting) if name[0] != "_" and name != "refuse"]


@pytest.mark.parametrize("way", WAYS)
def test_it_stops_in_whatever_it_waits_for(tmp_path, way, monkeypatch):
    for module in (telegram, mail):
        monkeypatch.setattr(module, "BACKOFF", (HOUR, HOUR))
    monkeypatch.setattr(telegram, "CONFLICT_SECONDS", (HOUR, HOUR))
    with chatting(tmp_path, provider=Held("thinking"), polling_timeout_secs=50) as w:
        waiting = Waiting(w)
        getattr(waiting, way)()
        assert w.bot.stop(120)
        waiting.go.set()


def test_an_hour_without_a_network_is_asked_about_once_a_minute(tmp_path):
    with chatting(tmp_path) as w:
        wait = passed = 0.0
        waits = []
        while passed < HOUR:
            wait = w.bot._patience(wait, BotError(502, "bad gateway"))
            waits.append(wait)
            passed += wait
        assert waits[:7] == [1, 2, 4, 8, 16, 32, 60] and {*waits[6:]} == {60}
        assert w.bot._patience(wait, BotError(429, "later", 7.0)) == 7


@pytest.mark.parametrize("how", ["refused", "broken"])
def test_a_network_that_comes_back_after_an_hour_finds_everything(tmp_path, monkeypatch, how):
    """An hour at 1 to 60 s is some 70 attempts, which are made without its waits."""
    for module in (telegram, mail):
        monkeypatch.setattr(module, "BACKOFF", (0.001, 0.005))
    down, failed = threading.Event(), []

    def fail(method, _params):
        if not down.is_set():
            return None
        failed.append(method)
        if how == "broken":
            raise ConnectionError("the connection ends without an answer")
        return 502, {"bad": "gateway"}

    held = Held("before it")
    with chatting(tmp_path, provider=held, respond_in_groups="all") as w:
        w.fake.fail = fail
        w.fake.says("first")
        w.fake.wait_told("before it")
        down.set()
        held.release.set()  # the answer is owed while nothing gets through
        for number in range(5):
            w.fake.says(f"more {number}", chat=GROUP if number % 2 else 0)
        eventually(lambda: failed.count("getUpdates") > 70, timeout=300)
        eventually(lambda: len(failed) - failed.count("getUpdates") > 70, timeout=300)
        down.clear()
        w.settled()
        assert len(held.requests) >= 6 and {"first", "more 4"} <= {*w.prompts()}
        told = [said.removeprefix(mail.AGAIN) for said in w.fake.told()]
        assert len([said for said in told if said == "before it"]) >= 4
        assert w.fake.told(GROUP).count("before it") == 2
        eventually(lambda: w.bot.state()["state"] == "running")
