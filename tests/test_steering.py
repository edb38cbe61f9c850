"""Steering: a message that joins the running turn, once, in order, and is never lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest

from oxydra.errors import StoreError
from oxydra.store import Store
from oxydra.threads import CancelToken, Service
from oxydra.tools.base import tool
from oxydra.types import SafetyTier, TextDelta, TurnState
from tests.conftest import ROOT, eventually
from tests.scripted import Scripted, calls
from tests.test_daemon import SCRIPT, comes_back, home  # noqa: F401
from tests.test_gateway import Held, Running
from tests.test_resume import asking  # noqa: F401
from tests.test_runtime import Dies, world  # noqa: F401

ACT = ("act", '{"what": "a"}')


def steer(world, turn_id, prompt, into="t1", **options):  # noqa: F811
    session = world.session.session_id
    return world.store.accept_turn(session, turn_id, "r9", prompt, joins=into, **options)[0]


def test_it_joins_before_the_next_call_in_order_and_once(world):  # noqa: F811
    def hook(_context):
        steer(world, "s1", "not so fast")
        steer(world, "s2", "and quietly", tainted=True)
        world.store.accept_turn(world.session.session_id, "t2", "r2", "later")

    world.hooks["a"] = hook
    provider = Scripted(calls(ACT), calls(("look", '{"what": "b"}')), "fine")
    world.runtime(provider).run_turn(world.turn(), CancelToken(), world.emit)
    said = [(m.role, m.content, m.tainted) for m in provider.requests[1].messages[3:]]
    assert said == [
        ("tool", "did a", False),
        ("user", "not so fast", False),
        ("user", "and quietly", True),
    ]
    assert [m.role for m in provider.requests[2].messages].count("user") == 3
    joined = [p for t, p in world.frames if t == "turn_joined"]
    assert [(p["turn"]["turn_id"], p["into"], p["request_id"]) for p in joined] == [
        ("s1", "t1", "r9"),
        ("s2", "t1", "r9"),
    ]
    assert world.store.turn("s1").state is TurnState.JOINED
    assert [t.turn_id for t in world.store.unfinished_turns()] == ["t2"]
    assert world.store.messages(world.session.session_id) == [
        *provider.requests[2].messages[1:],
        world.store.messages(world.session.session_id)[-1],
    ]


def test_after_the_last_call_it_is_a_message_like_any_other(world):  # noqa: F811
    def late(_request, _token):
        steer(world, "s1", "too late")
        return "done"

    world.runtime(Scripted(late)).run_turn(world.turn(), CancelToken(), world.emit)
    (left,) = world.store.unfinished_turns()
    assert (left.turn_id, left.state) == ("s1", TurnState.QUEUED)
    world.frames.clear()
    world.runtime(Scripted("yes")).run_turn(left, CancelToken(), world.emit)
    assert world.terminal()[0] == "turn_completed"
    assert world.roles() == ["user", "assistant", "user", "assistant"]


def test_a_crash_before_the_next_call_loses_nothing_and_repeats_nothing(world):  # noqa: F811
    def die(_context):
        steer(world, "s1", "not so fast")
        raise Dies

    world.hooks["a"] = die
    with pytest.raises(Dies):
        world.runtime(Scripted(calls(ACT))).run_turn(world.turn(), CancelToken(), world.emit)
    world.reopen()
    turn = world.store.turn("t1")
    provider = Scripted(calls(("look", '{"what": "b"}')), Dies())
    with pytest.raises(Dies):
        world.runtime(provider).run_turn(turn, CancelToken(), world.emit)
    world.reopen()
    again = Scripted("fine")
    world.runtime(again, max_turns=3).run_turn(turn_of(world), CancelToken(), world.emit)
    contents = [m.content for m in again.requests[0].messages if m.role == "user"]
    assert contents == ["hello", "not so fast"]
    assert world.terminal()[0] == "turn_completed"  # the third call: what joined began no new count
    assert world.store.unfinished_turns() == []


def turn_of(world):  # noqa: F811
    (turn,) = world.store.unfinished_turns()
    return turn


def test_what_was_taken_out_does_not_join_and_what_joined_is_not_taken_out(world):  # noqa: F811
    def hook(_context):
        taken = steer(world, "s1", "never mind")
        world.store.finish_turn(taken, TurnState.CANCELLED, {"type": "turn_cancelled"})
        steer(world, "s2", "do mind")

    world.hooks["a"] = hook
    provider = Scripted(calls(ACT), "fine")
    world.runtime(provider).run_turn(world.turn(), CancelToken(), world.emit)
    assert provider.requests[1].messages[-1].content == "do mind"
    with pytest.raises(StoreError):
        terminal = {"type": "turn_cancelled"}
        world.store.finish_turn(world.store.turn("s2"), TurnState.CANCELLED, terminal)


# ----------------------------------------------------------------------------------- the gateway


class Acting(Held):
    """Calls a tool that waits until released, then answers with what it was told since."""

    def stream(self, request, token):
        self.requests.append(request)
        last = request.messages[-1]
        if last.role == "user" and last.content == "go":
            yield from Scripted(calls(("hold", "{}"))).stream(request, token)
        else:
            yield TextDelta(last.content)
            yield from Scripted([f"heard {last.content}"]).stream(request, token)


@pytest.fixture
def acting(tmp_path):
    provider = Acting()

    @tool(tier=SafetyTier.SIDE_EFFECTING)
    def hold() -> str:
        """Wait."""
        provider.asked.release()
        assert provider.release.wait(60)
        return "held"

    gateway = Running(tmp_path / "oxydra.db", provider, tools=(hold,))
    yield gateway
    provider.release.set()
    gateway.stop()


def test_over_the_gateway(acting):
    with acting.client() as client:
        client.turn("go")
        assert acting.provider.asked.acquire(timeout=90)
        client.turn("later", turn_id="t2")
        where = {
            "session_id": client.session,
            "turn_id": "s1",
            "prompt": "stop",
            "steer": True,
        }
        client.send("send_turn", **where)
        while client.until("turn_started")["payload"]["turn"] != {
            "turn_id": "s1",
            "state": "queued",
        }:
            pass
        assert acting.hub.counts()["queued_turns"] == 2
        acting.provider.release.set()
        joined = client.until("turn_joined")["payload"]
        assert joined["turn"] == {"turn_id": "s1", "state": "joined"} and joined["into"] == "t1"
        end = client.until("turn_completed")["payload"]
        assert end["turn"]["turn_id"] == "t1"
        assert end["response"]["message"]["content"] == "heard stop"
        end = client.until("turn_completed")["payload"]
        assert end["turn"]["turn_id"] == "t2"
        assert acting.hub.counts() == {"running_turns": 0, "queued_turns": 0}
        # sent again, by a client that missed all of it
        again = client.send("send_turn", **where)
        told = [client.receive() for _ in range(3)]
        assert [f["type"] for f in told] == [
            "turn_started",
            "turn_joined",
            "turn_completed",
        ]
        assert {f["payload"]["request_id"] for f in told} == {again}
        assert told[2]["payload"]["turn"]["turn_id"] == "t1"
        reply = client.ask("cancel_active_turn", session_id=client.session, turn_id="s1")
        assert reply["payload"]["code"] == "not_found"
        events = client.ask("history", session_id=client.session)["payload"]["events"]
        said = [(e["turn_id"], e["message"]["content"]) for e in events]
        assert said[3] == ("s1", "stop") and len(said) == 7


def test_where_nothing_runs_it_is_a_message(acting):
    with acting.client() as client:
        client.send(
            "send_turn",
            session_id=client.session,
            turn_id="s1",
            prompt="hi",
            steer=True,
        )
        end = client.until("turn_completed", "turn_joined")
        assert end["type"] == "turn_completed"


def test_one_that_joins_while_it_is_still_being_accepted_runs_once(acting):
    """The turn's thread may see it stored before the gateway's has queued it."""
    joined = threading.Event()
    accept = acting.store.accept_turn

    class Slow(Store):
        def __init__(self):
            self.__dict__ = acting.store.__dict__

        def accept_turn(self, *args, **options):
            answer = accept(*args, **options)
            if options.get("joins"):
                acting.provider.release.set()
                assert joined.wait(60)
            return answer

    class Watch:
        def deliver(self, frame):
            if isinstance(frame, bytes) and b"turn_joined" in frame:  # not streamed text
                joined.set()

    acting.hub.store = Slow()
    with acting.client() as client:
        acting.hub.live(client.session).subscribe(Watch())
        client.turn("go")
        assert acting.provider.asked.acquire(timeout=90)
        client.send(
            "send_turn",
            session_id=client.session,
            turn_id="s1",
            prompt="stop",
            steer=True,
        )
        end = client.until("turn_completed", "error")
        assert end["payload"]["turn"]["turn_id"] == "t1"
        assert end["payload"]["response"]["message"]["content"] == "heard stop"
        eventually(lambda: acting.hub.counts() == {"running_turns": 0, "queued_turns": 0})
        assert client.ask("health_check")["payload"]["active_turn"] is None
    assert [m.role for m in acting.store.messages(client.session)].count("user") == 2


def test_many_at_once_all_arrive(acting):
    with acting.client() as client:
        client.turn("go")
        assert acting.provider.asked.acquire(timeout=90)

        def push(_service):
            for n in range(10):
                acting.hub.submit(client.session, f"s{n}", "r", f"m{n}", steer=True)

        services = [Service("test-steer", push).start()]
        acting.provider.release.set()
        assert all(service.stop(20) for service in services)
        eventually(lambda: acting.hub.counts() == {"running_turns": 0, "queued_turns": 0})
        said = [m.content for m in acting.store.messages(client.session) if m.role == "user"]
        assert sorted(said) == ["go", *(f"m{n}" for n in range(10))]
        assert acting.store.unfinished_turns() == []
        ends = [acting.store.turn(f"s{n}").terminal for n in range(10)]
        into = [end["payload"].get("into", "") for end in ends]
        for turn_id in {"t1", *into} - {""}:
            joined = [f"m{n}" for n in range(10) if into[n] == turn_id]
            assert [text for text in said if text in joined] == joined


# ------------------------------------------------------------------------------- the whole daemon


def test_an_acknowledged_word_survives_kill_9_of_the_guest(asking):  # noqa: F811
    home, person = asking  # noqa: F811
    (session,) = Store(home.workspace / "internal" / "oxydra.db").sessions()
    script = SCRIPT % json.dumps([{"text": "I was told."}])
    arguments = ("ask", script, "--session", session.session_id, "--steer")
    words = [sys.executable, str(ROOT / "bin" / "oxydra-runner"), *home.at(arguments)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=home.env, text=True) as steering:
        store = Store(home.workspace / "internal" / "oxydra.db")
        eventually(lambda: len(store.unfinished_turns()) == 2, timeout=90)
        store.close()
        comes_back(home, "guest_pid")
        (home.workspace / "shared" / "go").touch()
        told, _ = steering.communicate(timeout=60)
    answer, _ = person.communicate(timeout=60)
    assert steering.returncode == 0 == person.returncode
    assert "I was told." in told and "I was told." in answer
    store = Store(home.workspace / "internal" / "oxydra.db")
    roles = [m.role for m in store.messages(session.session_id)]
    store.close()
    assert roles == ["user", "assistant", "tool", "user", "assistant"]
    assert (home.workspace / "shared" / "count").read_text() == "x\n"
    assert os.path.exists(home.workspace / "shared" / "go")


def test_ask_steer_needs_a_session(home):  # noqa: F811
    home.run("start", "--detach")
    assert "--session" in home.fails("ask", "x", "--steer", code=2)
