"""Many topics of a forum at once, while Telegram asks for patience again and again."""

from __future__ import annotations

import re
import threading

import pytest

from oxydra.config import GatewayConfig
from oxydra.types import Completed, Message, TextDelta, Usage
from tests.conftest import eventually
from tests.fake_telegram import refusal
from tests.telegram_kit import GROUP, chatting


class Echo:
    """Says what it was asked back, in pieces, longer than one message; in between it waits."""

    name = "scripted"

    def __init__(self):
        self.go = threading.Event()

    def stream(self, request, token):
        asked = [m.content for m in request.messages if m.role == "user"][-1]
        said = [f"Reply to {asked}. ", *(f"{asked}-{n} " + "x" * 40 + " " for n in range(60))]
        for number, piece in enumerate(said):
            if number == 30:
                with token.on_cancel(self.go.set):
                    assert self.go.wait(300)
            token.check()
            yield TextDelta(piece)
        yield Completed(Message("assistant", "".join(said)), "stop", Usage(1, 1))


@pytest.mark.parametrize("topics", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_topics_stream_at_once_with_a_refusal_at_every_tenth_call(tmp_path, topics):
    counted = 0
    lock = threading.Lock()

    def fail(method, _params):
        nonlocal counted
        if method == "getUpdates":
            return None
        with lock:
            counted += 1
            if counted % 10:
                return None
        return refusal(429, "Too Many Requests: retry after 0", retry_after=0)

    def streaming():
        return sum("▍" in said for said in w.fake.told(GROUP))

    telegram = {"respond_in_groups": "all", "max_message_length": 2048}
    gateway = GatewayConfig(max_concurrent_turns_per_user=topics)
    with chatting(tmp_path, provider=Echo(), gateway=gateway, **telegram) as w:
        w.fake.fail = fail
        for turn in range(2):
            w.fake.updates(
                *(
                    {"message": w.fake.message(f"t{topic}n{turn}", chat=GROUP, topic=topic)}
                    for topic in range(1, topics + 1)
                )
            )
        eventually(lambda: streaming() == topics, timeout=180)
        w.provider.go.set()
        w.settled()
        for topic in range(1, topics + 1):
            whole = "".join("".join(w.fake.told(GROUP, topic)).split())
            expected = ""
            for turn in range(2):
                asked = f"t{topic}n{turn}"
                pieces = "".join(f"{asked}-{n}" + "x" * 40 for n in range(60))
                expected += f"Replyto{asked}.{pieces}"
            assert whole == expected, re.sub("x+", "", whole)
        assert counted > 4 * topics and len(w.store.sessions()) == topics
