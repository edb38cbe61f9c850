"""What MCP clients are offered of the agent, over a real gateway: tools by scope, questions and
their progress, cancelling, approvals, a gateway that is restarted meanwhile.
"""

from __future__ import annotations

import contextlib

import pytest

from oxydra.approvals import Approvals, Rules
from oxydra.cli.mcp_tools import server
from oxydra.config import RuntimeConfig
from oxydra.errors import NoDaemonError, ProviderError
from oxydra.runtime import Runtime
from oxydra.tools.base import tool
from oxydra.tools.gate import Gate
from oxydra.tools.registry import ToolRegistry
from oxydra.tui import follow
from oxydra.types import SafetyTier, TurnState
from tests.conftest import eventually
from tests.mcp_kit import DEADLINE, hosted
from tests.scripted import MODEL, Scripted, calls
from tests.test_access import ROWS, token_of
from tests.test_gateway import TOKEN, Client, Held, Running

READING = ["session_list", "session_read"]
ASKING = ["ask", "ask_wait", "ask_cancel", *READING, "session_new", "memory_search"]
PROPOSING = ["schedule_list", "schedule_create", "schedule_runs", "schedule_output"]
CHANGING = ["schedule_pause", "schedule_resume", "schedule_delete"]


@tool(tier=SafetyTier.PRIVILEGED)
def launch() -> str:
    """Does what needs a person's word."""
    return "launched"


class Guarded(Running):
    """A gateway whose model has a tool that its person is asked about."""

    def runtime(self, store):
        asks = Approvals(store, Rules(), sandboxed=False)
        self.approvals = lambda: asks
        self.scopes = ["approve"]
        registry = ToolRegistry(names=(), extra=[launch])
        return Runtime(
            store=store,
            provider=self.provider,
            model=MODEL,
            gate=Gate(registry, {}, approve=asks.check),
            tools=registry.specs,
            config=RuntimeConfig(),
        )


class Place:
    """A gateway and its MCP clients."""

    def __init__(self, path, kind=Running):
        self.path, self.kind = path, kind
        self.gateway = None

    def begin(self, provider):
        self.gateway = self.kind(self.path / "oxydra.db", provider)
        self.gateway.gateway.set_tokens(ROWS)
        return self

    def where(self, token):
        if self.gateway is None:
            raise NoDaemonError("No daemon runs for alice.", remedy="Start one.")
        return f"ws://127.0.0.1:{self.gateway.port}/ws", token

    @contextlib.contextmanager
    def client(self, *scopes, version="2025-11-25"):
        token = token_of(scopes or ("ask",))
        with hosted(server(lambda: self.where(token), "alice"), version) as peer:
            yield peer

    def restart(self):
        self.gateway.stop()
        self.gateway.start(self.gateway.port)
        self.gateway.gateway.set_tokens(ROWS)

    def said(self, session_id):
        return [(m.role, m.content) for m in self.gateway.store.messages(session_id)]


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    yield place
    if place.gateway is not None:
        place.gateway.stop()


# ------------------------------------------------------------------------------------ who may what


@pytest.mark.parametrize(
    ("scopes", "offered"),
    [
        (("ask",), ASKING + PROPOSING),
        (("chat",), ASKING + PROPOSING + CHANGING),
        (("approve",), READING),
        (("admin",), READING),
    ],
    ids=lambda value: "+".join(value)[:20],
)
def test_a_token_is_offered_what_it_may(place, scopes, offered):
    place.begin(Scripted()).gateway.hub.create_session()
    with place.client(*scopes) as peer:
        assert [one["name"] for one in peer.ask("tools/list")["tools"]] == offered
        assert peer.call("session_list")["sessions"][0]["origin"] == "gateway"
        if "ask" not in offered:  # whatever it calls, the gateway refuses
            for name, arguments in (("ask", {"prompt": "x"}), ("session_new", {})):
                text = peer.fails(name, **arguments)
                assert "may not do that" in text and "`ask` or `chat`" in text
            assert peer.refused("resources/read", {"uri": "oxydra://session/x"})[0] == -32603


def test_without_a_daemon_all_is_offered_and_calls_say_what_to_do(place):
    with place.client() as peer:
        names = [one["name"] for one in peer.ask("tools/list")["tools"]]
        assert sorted(names) == sorted(ASKING + PROPOSING + CHANGING)
        for name, arguments in (("ask", {"prompt": "x"}), ("session_list", {})):
            assert peer.fails(name, **arguments) == "No daemon runs for alice. Start one."
        assert peer.refused("resources/list")[1] == "No daemon runs for alice. Start one."
        place.begin(Scripted("Here."))
        assert peer.call("ask", prompt="x")["answer"] == "Here."


def test_a_token_that_was_revoked_is_good_for_nothing(place):
    place.begin(Scripted())
    with place.client() as peer:
        assert peer.ask("tools/list")["tools"]
        place.gateway.gateway.set_tokens(ROWS[:1])
        code, text = peer.refused("tools/list")
        assert code == -32603 and "token create NAME --scope ask" in text
        assert "token create NAME --scope ask" in peer.fails("ask", prompt="x")
        assert token_of(("ask",)) not in str(peer.seen)


# ---------------------------------------------------------------------------------------- asking


def test_a_question_and_the_next_one(place):
    place.begin(Scripted(["It is ", "nine.\x1b[31m"], "Yes."))
    with place.client() as peer:
        asked = peer.begin("ask", token="t", prompt="What time is it?")
        found = peer.answer(asked)["result"]
        first = found["structuredContent"]
        assert first["state"] == "completed" and first["answer"] == "It is nine.␛[31m"
        assert found["content"][0]["text"] == first["answer"]
        assert first["session_id"] in found["content"][1]["text"]
        told = peer.progress("t")
        assert [one["progress"] for one in told] == list(range(1, len(told) + 1))
        text = "".join(one["message"] for one in told)
        assert "It is " in text and "nine." in text
        # the session remembers, and what was asked is not its person's word
        second = peer.call("ask", prompt="Sure?", session_id=first["session_id"])
        assert (second["answer"], second["session_id"]) == ("Yes.", first["session_id"])
        contents = [m.content for m in place.gateway.provider.requests[1].messages]
        assert contents[-3:] == ["What time is it?", "It is nine.\x1b[31m", "Sure?"]
        marks = place.gateway.store.session_marks(first["session_id"])
        assert marks.tainted
        wrong = peer.fails("ask", prompt="x", session_id=first["session_id"], agent="default")
        assert "keeps its agent" in wrong
        assert "no session" in peer.fails("ask", prompt="x", session_id="nowhere").lower()
        assert "agent" in peer.fails("ask", prompt="x", agent="nobody").lower()


def test_a_turn_that_fails_says_why(place):
    def fail(_request, _token):
        raise ProviderError("The model is down.", code="provider_unavailable")

    place.begin(Scripted(fail))
    with place.client() as peer:
        assert "The model is down." in peer.fails("ask", prompt="x")
        (session,) = peer.call("session_list")["sessions"]
        assert session["name"] == "x"


def test_what_takes_longer_is_fetched_later(place):
    provider = Held("At last.")
    place.begin(provider)
    with place.client() as peer:
        found = peer.ask(
            "tools/call", {"name": "ask", "arguments": {"prompt": "x", "wait_seconds": 0}}
        )
        first = found["structuredContent"]
        assert (first["state"], first["answer"], first["waits_for"]) == ("running", "", [])
        assert "ask_wait" in found["content"][0]["text"]
        turn_id = first["turn_id"]
        assert provider.asked.acquire(timeout=DEADLINE)
        again = peer.call("ask_wait", turn_id=turn_id, wait_seconds=0)
        assert again["state"] == "running"
        waiting = peer.begin("ask_wait", turn_id=turn_id, wait_seconds=600)
        assert peer.ask("ping") == {}
        provider.release.set()
        end = peer.answer(waiting)["result"]["structuredContent"]
        assert (end["state"], end["answer"], end["turn_id"]) == ("completed", "At last.", turn_id)
        assert peer.call("ask_wait", turn_id=turn_id)["answer"] == "At last."
        assert "session_read" in peer.fails("ask_wait", turn_id="t-of-nobody")
        assert place.said(first["session_id"]) == [("user", "x"), ("assistant", "At last.")]


def test_cancelling_and_hanging_up_cancel_the_turn(place):
    provider = Held()
    place.begin(provider)

    def cancelled():
        turns = place.gateway.store
        rows = [turns.session(s.session_id) for s in turns.sessions()]
        return rows and not turns.unfinished_turns() and place.gateway.hub.counts() == NOTHING

    with place.client() as peer:
        asked = peer.begin("ask", token="t", prompt="x")
        assert provider.asked.acquire(timeout=DEADLINE)
        peer.tell("notifications/cancelled", {"requestId": asked})
        eventually(cancelled)
        assert provider.release.is_set()
        provider.release.clear()
        first = peer.call("ask", prompt="y", wait_seconds=0)
        assert provider.asked.acquire(timeout=DEADLINE)
        assert peer.call("ask_cancel", turn_id=first["turn_id"])["state"] == "cancelled"
        assert place.gateway.store.turn(first["turn_id"]).state is TurnState.CANCELLED
        provider.release.clear()
        peer.begin("ask", token="t", prompt="z")
        assert provider.asked.acquire(timeout=DEADLINE)
        peer.hang_up()
        eventually(cancelled)
        assert not [m for m in peer.seen if m.get("id") == asked]


def test_a_token_that_is_revoked_during_a_call_is_said_to_be(place, monkeypatch):
    monkeypatch.setattr(follow, "REFUSED_SECONDS", 0.1)
    provider = Held("half")
    place.begin(provider)
    with place.client() as peer:
        asked = peer.begin("ask", token="t", prompt="x", wait_seconds=600)
        assert provider.asked.acquire(timeout=DEADLINE)
        place.gateway.gateway.set_tokens(ROWS[:1])
        found = peer.answer(asked)["result"]
        assert found["isError"] and "token create NAME --scope ask" in found["content"][0]["text"]
    provider.release.set()


def test_a_token_cancels_only_what_came_with_it(place):
    provider = Held()
    place.begin(provider)
    persons = place.gateway.client()
    with persons as person, place.client() as peer:
        person.turn("mine", "p1")
        assert provider.asked.acquire(timeout=DEADLINE)
        with contextlib.closing(place.gateway.connect(token=token_of(("ask",)))) as ws:
            stranger = Client(ws)
            stranger.ask("hello", protocol_version=2, user_id="alice", session_id=person.session)
            where = {"session_id": person.session}
            refused = stranger.ask("cancel_active_turn", turn_id="p1", **where)
            assert "not one of yours" in refused["payload"]["message"]
            assert place.gateway.hub.counts()["running_turns"] == 1
            assert not provider.release.is_set()
        provider.release.set()
        person.until("turn_completed")
        provider.release.clear()
        mine = peer.call("ask", prompt="y", wait_seconds=0)
        assert peer.call("ask_cancel", turn_id=mine["turn_id"])["state"] == "cancelled"


NOTHING = {"running_turns": 0, "queued_turns": 0}


def test_a_gateway_that_comes_back_is_asked_again(place):
    provider = Held("half")
    place.begin(provider)
    with place.client() as peer:
        asked = peer.begin("ask", token="t", prompt="x", wait_seconds=600)
        assert provider.asked.acquire(timeout=DEADLINE)
        place.restart()
        assert provider.release.is_set()  # it was interrupted; the next attempt is not held
        end = peer.answer(asked)["result"]["structuredContent"]
        assert (end["state"], end["answer"]) == ("completed", "half")
        assert place.said(end["session_id"]) == [("user", "x"), ("assistant", "half")]


# ------------------------------------------------------------------------------------- approvals


@pytest.mark.parametrize("decision", ["allow", "deny"])
def test_what_needs_a_persons_word_waits_for_it(tmp_path, decision):
    place = Place(tmp_path, Guarded).begin(Scripted(calls(("launch", "{}")), "Done."))
    with place.client() as peer:
        asked = peer.begin("ask", token="t", prompt="go", wait_seconds=600)
        peer.until(lambda m: "approval" in str(m.get("params", {}).get("message")))
        person = Client(place.gateway.connect(TOKEN))
        person.ask("hello", protocol_version=2, user_id="alice")
        (request,) = person.ask("command", name="approvals")["payload"]["data"]["requests"]
        person.ask("approve", approval_id=request["approval_id"], decision=decision)
        person.ws.close()
        end = peer.answer(asked)["result"]["structuredContent"]
        assert end["answer"] == "Done."
        told = " ".join(one["message"] for one in peer.progress("t"))
        assert "oxydra-runner approvals list" in told
        (result,) = [text for role, text in place.said(end["session_id"]) if role == "tool"]
        assert ("launched" in result) is (decision == "allow")
    place.gateway.stop()


def test_a_call_that_waits_is_told_of_when_the_time_is_up(tmp_path):
    place = Place(tmp_path, Guarded).begin(Scripted(calls(("launch", "{}")), "Done."))
    with place.client() as peer:
        first = peer.call("ask", prompt="go", wait_seconds=0)
        waits = eventually_waits(peer, first["turn_id"])
        assert waits["waits_for"][0]["tool"] == "launch" and waits["waits_for"][0]["reason"]
        assert peer.call("ask_cancel", turn_id=first["turn_id"])["state"] == "cancelled"
    place.gateway.stop()


def eventually_waits(peer, turn_id):
    """The answer of `ask_wait` once it names a request."""
    found = []

    def asked():
        found.append(peer.call("ask_wait", turn_id=turn_id, wait_seconds=0.2))
        return found[-1]["waits_for"]

    eventually(asked)
    return found[-1]


# ---------------------------------------------------------------------------------------- reading


def test_sessions_are_read_page_by_page(place):
    place.begin(Scripted("First.", "x" * 10_000))
    with place.client() as peer:
        made = peer.call("session_new", name="Plans")
        session_id = made["session_id"]
        assert made["agent"] == "default"
        peer.call("ask", prompt="one", session_id=session_id)
        peer.call("ask", prompt="two", session_id=session_id)
        (row,) = [s for s in peer.call("session_list")["sessions"] if s["session_id"] == session_id]
        assert row["name"] == "Plans" and row["archived"] is False
        last = peer.call("session_read", session_id=session_id, limit=1)
        (message,) = last["messages"]
        assert (message["role"], len(message["text"]), message["cut"]) == ("assistant", 8000, True)
        assert last["more"]
        rest = peer.call("session_read", session_id=session_id, before=message["number"])
        assert [(m["role"], m["text"]) for m in rest["messages"]] == [
            ("user", "one"),
            ("assistant", "First."),
            ("user", "two"),
        ]
        assert rest["messages"][0]["from_strangers"] and not rest["more"]
        assert "no session" in peer.fails("session_read", session_id="nowhere").lower()


def test_sessions_are_resources(place, monkeypatch):
    from oxydra.cli import mcp_tools

    monkeypatch.setattr(mcp_tools, "PAGE", 2)
    place.begin(Scripted("Hello."))
    with place.client() as peer:
        session_id = peer.call("ask", prompt="Hi there")["session_id"]
        for name in ("b", "c"):
            peer.call("session_new", name=name)
        first = peer.ask("resources/list")
        rest = peer.ask("resources/list", {"cursor": first["nextCursor"]})
        listed = first["resources"] + rest["resources"]
        assert (len(first["resources"]), len(listed)) == (2, 3) and "nextCursor" not in rest
        uri = f"oxydra://session/{session_id}"
        (row,) = [one for one in listed if one["uri"] == uri]
        assert (row["title"], row["mimeType"]) == ("Hi there", "text/markdown")
        (content,) = peer.ask("resources/read", {"uri": uri})["contents"]
        assert content["uri"] == uri and "Hi there" in content["text"]
        assert "Hello." in content["text"]
        (template,) = peer.ask("resources/templates/list")["resourceTemplates"]
        assert template["uriTemplate"] == "oxydra://session/{session_id}"
        for wrong in ("oxydra://session/", "oxydra://session/nowhere", "file:///etc/passwd", ""):
            assert peer.refused("resources/read", {"uri": wrong})[0] == -32002, wrong
        assert peer.refused("resources/read")[0] == -32602
        for cursor in ("x", "-1", 7):
            assert peer.refused("resources/list", {"cursor": cursor})[0] == -32602
