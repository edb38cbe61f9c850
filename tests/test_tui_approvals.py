"""Approvals in the TUI: what is shown, which keys answer, and when they do not."""

from __future__ import annotations

from typing import Any

import pytest

from oxydra.tui.approvals import DELAY
from oxydra.tui.client import Link
from oxydra.tui.keys import Key
from oxydra.tui.state import Effect, Send, Tick
from oxydra.tui.view import View
from tests.tui_kit import SESSION, World


class Desk(World):
    """A connected TUI in whose session a turn runs."""

    def __init__(self) -> None:
        super().__init__()
        self.frame("hello_ack", protocol_version=2, session=SESSION, seq=0, epoch="e")
        self.feed(Link(True))
        self.turn("turn_started", "t1")

    def request(self, approval_id: str = "p1", **changes: Any) -> None:
        payload = {
            "approval_id": approval_id,
            "tool": "shell_exec",
            "safety_tier": "privileged",
            "arguments": "command: rm -r build",
            "arguments_sha256": "0" * 64,
            "complete": True,
            "reason": "No sandbox contains it.",
            "expires_at": "2030-01-01T00:00:00+00:00",
        }
        self.turn("approval_request", "t1", **{**payload, **changes})

    def resolved(self, approval_id: str = "p1", decision: str = "allowed") -> None:
        fields = {"tool": "shell_exec", "by": "local", "decision": decision}
        self.turn("approval_resolved", "t1", approval_id=approval_id, **fields)

    def wait(self, seconds: float = DELAY) -> None:
        self.feed(Tick(self.state.now + seconds))

    def press(self, text: str) -> list[Effect]:
        return self.feed(Key("text", text))

    @property
    def screen(self) -> str:
        lines = View().render(self.state, 80, 24).lines
        return "\n".join("".join(text for _, text in line) for line in lines)


@pytest.fixture
def desk() -> Desk:
    made = Desk()
    made.request()
    made.wait()
    return made


def answers(effects: list[Effect]) -> list[tuple[str, str, str]]:
    return [
        (e.payload["approval_id"], e.payload["decision"], e.payload["scope"])
        for e in effects
        if isinstance(e, Send) and e.type == "approve"
    ]


def test_a_request_shows_tool_tier_reason_arguments_and_keys(desk: Desk) -> None:
    for part in ("shell_exec (privileged)", "No sandbox contains it.", "command: rm -r build"):
        assert part in desk.screen
    assert "shell_exec: a allows once, s for the session, d denies" in desk.screen


@pytest.mark.parametrize(
    ("key", "decision", "scope"),
    [("a", "allow", "once"), ("s", "allow", "session"), ("d", "deny", "once")],
)
def test_a_key_answers(desk: Desk, key: str, decision: str, scope: str) -> None:
    assert answers(desk.press(key)) == [("p1", decision, scope)]
    assert desk.state.editor.text == ""
    assert answers(desk.press(key)) == [], "it was answered, and now it is a letter"
    assert desk.state.editor.text == key


def test_who_is_writing_allows_nothing(desk: Desk) -> None:
    assert answers(desk.press("x")) + answers(desk.press("a")) == []
    assert desk.state.editor.text == "xa"
    assert "empty the input, then a allows" in desk.screen


def test_a_key_pressed_as_the_request_appears_is_a_letter() -> None:
    desk = Desk()
    desk.request()
    desk.wait(DELAY / 2)
    assert answers(desk.press("a")) == []
    assert desk.state.editor.text == "a"


def test_pasted_text_answers_nothing(desk: Desk) -> None:
    assert answers(desk.feed(Key("paste", "a"))) == []


def test_what_was_cut_can_only_be_denied() -> None:
    desk = Desk()
    desk.request(complete=False)
    desk.wait()
    assert "a allows" not in desk.screen
    assert answers(desk.press("a")) == [] == answers(desk.press("s"))
    assert answers(desk.press("d")) == [("p1", "deny", "once")]


def test_several_requests_are_answered_in_order(desk: Desk) -> None:
    desk.request("p2", tool="web_fetch")
    desk.wait()
    assert "shell_exec (+1)" in desk.screen
    assert answers(desk.press("a")) == [("p1", "allow", "once")]
    assert answers(desk.press("a")) == [], "the next one has its own moment to be noticed"
    desk.feed(Key("backspace"))
    desk.wait()
    assert answers(desk.press("d")) == [("p2", "deny", "once")]


def test_another_clients_answer_is_told(desk: Desk) -> None:
    desk.resolved(decision="denied")
    assert desk.state.asked == ()
    assert desk.texts[-1] == "shell_exec: denied by local"


def test_the_reply_to_ones_own_answer_is_not_told_twice(desk: Desk) -> None:
    (send,) = desk.press("a")
    fields = {"approval_id": "p1", "tool": "shell_exec", "decision": "allowed", "by": "local"}
    turn = {"turn_id": "t1", "state": "running"}
    desk.reply(send, "approval_resolved", session=SESSION, turn=turn, **fields)
    desk.resolved()
    assert [text for text in desk.texts if "allowed" in text] == ["shell_exec: allowed by local"]


def test_the_same_request_again_is_the_same(desk: Desk) -> None:
    desk.request()
    assert len(desk.state.asked) == 1
    assert len([text for text in desk.texts if "needs your approval" in text]) == 1


def test_a_turn_that_ends_takes_its_requests_along(desk: Desk) -> None:
    desk.turn("turn_cancelled", "t1", "cancelled")
    assert desk.state.asked == ()


def test_nothing_is_answered_without_a_connection(desk: Desk) -> None:
    desk.feed(Link(False, detail="gone"))
    assert answers(desk.press("a")) == []


def test_a_request_stays_in_sight_when_the_history_is_read_again(desk: Desk) -> None:
    (send,) = [e for e in desk.feed(Link(True, fresh=True)) if getattr(e, "type", "") == "history"]
    desk.reply(send, "session_history", session=SESSION, events=[], more=False)
    assert any("command: rm -r build" in text for text in desk.texts)


def test_another_sessions_request_is_not_shown(desk: Desk) -> None:
    other = {"user_id": "alice", "session_id": "s-other"}
    asked = desk.state.asked
    turn = {"turn_id": "t9", "state": "running"}
    desk.frame("approval_request", session=other, turn=turn, approval_id="p9")
    assert desk.state.asked == asked


def test_hostile_arguments_steer_nothing() -> None:
    desk = Desk()
    desk.request(arguments="command: \x1b[2J\u202e", tool="a\nb")
    desk.wait()
    assert "\x1b" not in desk.screen and "\u202e" not in desk.screen
