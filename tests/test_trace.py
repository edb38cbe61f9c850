"""The timeline of a turn: from the store, from a daemon, without one, and after a crash."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from oxydra.errors import NotFoundError, UsageError
from oxydra.runtime.trace import trace
from oxydra.store import Store
from oxydra.store.database import timestamp
from oxydra.store.spend import Entry
from oxydra.tui.traces import trace_lines
from oxydra.types import (
    Approval,
    ApprovalState,
    CallState,
    Delegation,
    Marks,
    Message,
    ToolCall,
    Turn,
    TurnState,
    Usage,
)
from tests.conftest import ROOT, eventually
from tests.test_approvals_cli import RULES, open_requests
from tests.test_daemon import SCRIPT, Home, all_killed, home, running

__all__ = ["home", "running"]  # the fixtures
Json = dict[str, Any]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "oxydra.db")
    yield store
    store.close()


def begun(store: Store, turn_id: str = "turn-1") -> Turn:
    session = store.create_session()
    turn, _ = store.accept_turn(session.session_id, turn_id, "r1", "go")
    store.start_turn(turn)
    return turn


def reserved(store: Store, turn: Turn, model: str = "m1", purpose: str = "turn") -> int:
    scopes = [("turn", turn.turn_id), ("session", turn.session_id)]
    entry = Entry(scopes, "default", "", purpose, "p1", model, 10, True, timestamp())
    return store.reserve(entry, [], lambda _spent, _held: 1_000_000)


def called(store: Store, turn: Turn, *names: str) -> None:
    calls = tuple(ToolCall(f"c-{name}", name, "{}") for name in names)
    store.add_step(turn, Message("assistant", "", tool_calls=calls))


def said(name: str, text: str = "x") -> Message:
    return Message("tool", text, tool_call_id=f"c-{name}", name=name)


def kinds(found: Json) -> list[str]:
    return [step["kind"] for step in found["steps"]]


def only(found: Json, kind: str) -> Json:
    (step,) = [step for step in found["steps"] if step["kind"] == kind]
    return dict(step)


# --------------------------------------------------------------------------------- from the store


def test_a_turn_with_all_that_there_can_be(store: Store) -> None:
    turn = begun(store)
    store.settle_spend(reserved(store, turn), 0, Usage(5), guessed=True, ended="rate_limited")
    first = reserved(store, turn, "m2")
    used = Usage(100, 20, 60, 5)
    store.settle_spend(first, 2_000_000, used, guessed=False, first=450)
    called(store, turn, "look", "act")
    approval = Approval(
        *("a1", turn.session_id, turn.turn_id, 1, "c-act", "act", "privileged", "{}", "0" * 64),
        *(True, "why", timestamp(), "2100-01-01T00:00:00.000+00:00"),
    )
    store.add_approval(approval)
    store.settle_approval("a1", ApprovalState.ALLOWED, scope="session", decided_by="phone")
    store.calls_finished(turn, [(CallState.DONE, said("look"))], ["c-act"], [1500])
    store.calls_finished(turn, [(CallState.FAILED, said("act"))], (), [20])
    store.settle_spend(reserved(store, turn, "m2"), 1_000_000, Usage(150, 9), guessed=False)
    ending = Message("assistant", "done")
    store.finish_turn(turn, TurnState.COMPLETED, {"type": "turn_completed"}, ending)
    summary = reserved(store, turn, "m3", "summary")
    store.settle_spend(summary, 500_000, Usage(50, 5), guessed=False)
    found = trace(store, "turn-1")
    seen = Counter(kinds(found))
    assert seen == {
        "accepted": 1,
        "started": 1,
        "model": 3,
        "pause": 1,
        "tool": 2,
        "approval": 1,
        "completed": 1,
        "summary": 1,
    }
    assert kinds(found)[:1] == ["accepted"]
    assert (found["state"], found["interrupted"], found["agent"]) == ("completed", False, "default")
    assert (found["model_calls"], found["tool_calls"]) == (4, 2)
    assert (found["prompt_tokens"], found["completion_tokens"]) == (305, 34)
    assert found["cost_usd"] == pytest.approx(0.0035)
    models = [step for step in found["steps"] if step["kind"] == "model"]
    assert [step["outcome"] for step in models] == ["rate_limited", "answered", "answered"]
    assert (models[1]["first_seconds"], models[1]["cached_tokens"]) == (0.45, 60)
    assert models[0]["first_seconds"] is None and models[0]["guessed"]
    tools = {step["tool"]: step for step in found["steps"] if step["kind"] == "tool"}
    assert (tools["look"]["outcome"], tools["look"]["seconds"]) == ("done", 1.5)
    assert (tools["act"]["outcome"], tools["act"]["seconds"]) == ("failed", 0.02)
    asked = only(found, "approval")
    assert (asked["outcome"], asked["scope"], asked["decided_by"]) == (
        "allowed",
        "session",
        "phone",
    )
    assert asked["seconds"] >= 0
    lines = "\n".join(trace_lines(found))
    for text in (
        "turn turn-1 of session ",
        "4 model calls, 2 tools, 305 tokens in, 34 out, $0.0035",
        "p1/m1: rate_limited",
        "before the next try",
        "first word after 0.45 s, 100 tokens in (60 cached), 20 out (5 thinking), $0.0020",
        "look: done in 1.50 s",
        "approval of act: allowed for the session by phone after ",
        "p1/m3 (summary)",
    ):
        assert text in lines, lines


def test_what_a_crash_left(store: Store) -> None:
    turn = begun(store)
    store.settle_spend(reserved(store, turn), 1, Usage(5, 5), guessed=False)
    called(store, turn, "act", "next")
    store.calls_running(turn, ["c-act"])
    reserved(store, turn)
    found = trace(store, "last", live=False)
    assert found["interrupted"] and found["seconds"] is None
    models = [step["outcome"] for step in found["steps"] if step["kind"] == "model"]
    assert models == ["answered", "interrupted"]
    tools = [step["outcome"] for step in found["steps"] if step["kind"] == "tool"]
    assert tools == ["running, then interrupted", "intended, then interrupted"]
    assert trace_lines(found)[-1].endswith("it goes on with the next start of the daemon")
    live = trace(store, "last")  # the same rows where a daemon is at work
    assert not live["interrupted"]
    assert [step["outcome"] for step in live["steps"] if step["kind"] == "tool"] == [
        "running",
        "intended",
    ]
    store.settle_lost()
    store.note_resumed(turn)
    store.note_resumed(turn)
    results = [(CallState.UNKNOWN, said("act")), (CallState.DONE, said("next"))]
    store.calls_finished(turn, results)
    store.finish_turn(turn, TurnState.FAILED, {"type": "error", "payload": {"code": "loop"}})
    found = trace(store, "last", live=False)
    assert kinds(found).count("resumed") == 2
    assert [step["outcome"] for step in found["steps"] if step["kind"] == "model"][1] == "restart"
    assert [step["outcome"] for step in found["steps"] if step["kind"] == "tool"] == [
        "unknown",
        "done",
    ]
    assert only(found, "failed")["code"] == "loop"
    assert "failed: loop" in "\n".join(trace_lines(found))


def test_a_turn_that_waits(store: Store) -> None:
    session = store.create_session()
    store.accept_turn(session.session_id, "t9", "r", "go")
    found = trace(store, "t9")
    assert (found["state"], kinds(found), found["cost_usd"]) == ("queued", ["accepted"], 0.0)


def test_a_message_that_joined(store: Store) -> None:
    turn = begun(store)
    store.accept_turn(turn.session_id, "turn-2", "r2", "and this", joins=turn.turn_id)
    store.join_turn(turn)
    assert only(trace(store, "last"), "joined")["turn_id"] == "turn-2"
    assert trace(store, "turn-2")["state"] == "joined"


def test_what_worked_for_it_is_below(store: Store) -> None:
    turn = begun(store)
    called(store, turn, "delegate")
    wanted = Delegation(
        *("", "", turn.session_id, turn.turn_id, 1, "c-delegate", "d", "helper", 1),
        *(frozenset(), True, Decimal(1)),
    )
    made, child = store.begin_delegation(wanted, "do it", Marks(), name="x", most=5)
    store.start_turn(child)
    store.settle_spend(reserved(store, child), 3_000_000, Usage(7, 1), guessed=False)
    found = trace(store, "last")  # never the child's
    (below,) = found["children"]
    assert (below["turn_id"], below["agent"]) == (made.turn_id, "helper")
    assert found["cost_usd"] == below["cost_usd"] == pytest.approx(0.003)
    assert f"    turn {made.turn_id} of session" in "\n".join(trace_lines(found))


def test_which_turn(store: Store) -> None:
    one, two = begun(store, "abc-1"), begun(store, "abd-2")
    assert store.find_turn("abc") == one.turn_id
    assert store.find_turn("last") == two.turn_id
    assert store.find_turn("last", one.session_id) == one.turn_id
    with pytest.raises(UsageError, match="several turns"):
        store.find_turn("ab")
    for nothing in ("", "%", "_bc", "abc-1' OR 1=1", "zz"):
        with pytest.raises(NotFoundError, match="no turn"):
            store.find_turn(nothing)
    with pytest.raises(NotFoundError):
        trace(store, "last", "no-such-session")
    with pytest.raises(UsageError):
        trace(store, 3)


def test_a_name_that_a_model_chose_does_nothing_to_a_terminal(store: Store) -> None:
    turn = begun(store)
    called(store, turn, "x\x1b[2J\u202e\n+1.000  forged")
    lines = trace_lines(trace(store, "last"))
    assert not set("".join(lines)) & set("\x1b\u202e\n")


@pytest.mark.parametrize("data", [{}, {"accepted_at": 3}, {"accepted_at": "x"}, {"steps": [1]}])
def test_what_is_no_trace_is_told(data: Json) -> None:
    assert "no trace" in trace_lines(data)[0]


def test_a_clock_that_stepped_back_makes_no_negative_times(store: Store) -> None:
    turn = begun(store)
    store.finish_turn(turn, TurnState.COMPLETED, {"type": "turn_completed", "payload": {}})
    with store._transaction() as db:
        db.execute("UPDATE turns SET updated_at = '2020-01-01T00:00:00.000+00:00'")
    found = trace(store, "last")
    assert found["seconds"] == 0.0
    assert "completed in 0.00 s" in "\n".join(trace_lines(found))


# ------------------------------------------------------------------------------------ the command


def test_of_a_daemon_that_runs_and_of_one_that_is_stopped(running: Home) -> None:
    steps = [
        {"tool": "file_list", "arguments": {"path": "/shared"}},
        {"text": "Done."},
    ]
    answer = json.loads(running.run("ask", SCRIPT % json.dumps(steps), "--json"))
    turn, session = answer["turn"]["turn_id"], answer["session"]["session_id"]
    found = json.loads(running.run("trace", turn[: len(turn) - 2], "--json"))
    assert (found["turn_id"], found["session_id"], found["state"]) == (turn, session, "completed")
    models = [step for step in found["steps"] if step["kind"] == "model"]
    assert [step["outcome"] for step in models][-2:] == ["answered", "answered"]
    assert models[-1]["first_seconds"] is not None
    assert only(found, "tool")["outcome"] == "done"
    shown = running.run("trace", "last", "--of", session)
    assert "file_list: done in " in shown and "first word after" in shown
    assert "no turn" in running.fails("trace", "no-such-turn")
    running.run("stop")
    assert json.loads(running.run("trace", "last", "--json")) == found
    assert running.run("trace", turn) == shown


def test_a_daemon_that_is_killed_while_a_turn_waits_for_a_person(home: Home) -> None:
    home.add("runner.toml", RULES)
    home.run("start", "--detach")
    write = {"path": "/shared/x.txt", "content": "x"}
    script = SCRIPT % json.dumps([{"tool": "file_write", "arguments": write}])
    words = [sys.executable, str(ROOT / "bin" / "oxydra-runner"), *home.at(("ask", script))]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(words, stdout=quiet, stderr=quiet, env=home.env) as person:
        try:
            eventually(lambda: open_requests(home))
        finally:
            person.kill()
    assert only(json.loads(home.run("trace", "last", "--json")), "approval")["outcome"] == "pending"
    all_killed(home.status())
    found = json.loads(home.run("trace", "last", "--json"))
    assert found["interrupted"]
    assert only(found, "tool")["outcome"] == "intended, then interrupted"
    assert "interrupted: it goes on with the next start" in home.run("trace", "last")
    home.run("start", "--detach")
    eventually(lambda: open_requests(home))
    home.run("approvals", "allow", open_requests(home)[0]["approval_id"])

    def over() -> bool:
        return bool(json.loads(home.run("trace", "last", "--json"))["state"] == "completed")

    eventually(over)
    found = json.loads(home.run("trace", "last", "--json"))
    assert kinds(found).count("resumed") == 1
    assert only(found, "tool")["outcome"] == "done"
    allowed = [step for step in found["steps"] if step["kind"] == "approval"][-1]
    assert (allowed["outcome"], allowed["decided_by"]) == ("allowed", "local")
