"""The turn loop: every step stored, one terminal frame, cancelled, cut off and resumed."""

from __future__ import annotations

import base64
import hashlib
import threading
from dataclasses import replace

import pytest

from oxydra.config import RuntimeConfig
from oxydra.config.schema import LoopGuardConfig
from oxydra.errors import ProviderError, StoreFullError
from oxydra.runtime import Runtime
from oxydra.store import Store
from oxydra.threads import SHUTDOWN, CancelToken
from oxydra.tools.base import tool
from oxydra.tools.gate import Gate
from oxydra.tools.registry import ToolRegistry
from oxydra.types import (
    Attachment,
    FellBack,
    Message,
    ReasoningDelta,
    Retrying,
    SafetyTier,
    TextDelta,
    ToolCall,
    ToolContext,
    TurnState,
)
from tests.scripted import MODEL, Scripted, calls


class World:
    """A store, a runtime over a script, and what a turn emitted."""

    def __init__(self, path):
        self.path = path
        self.ran = []
        self.hooks = {}
        self.frames = []
        self.store = Store(path)
        self.session = self.store.create_session()

    def tools(self):
        ran, hooks = self.ran, self.hooks

        @tool(tier=SafetyTier.SIDE_EFFECTING)
        def act(context: ToolContext, what: str) -> str:
            """Do something once."""
            ran.append(what)
            if what in hooks:
                hooks[what](context)
            return f"did {what}"

        @tool(tier=SafetyTier.READ_ONLY)
        def look(what: str) -> str:
            """Look at something."""
            ran.append(what)
            return f"saw {what}"

        return ToolRegistry(names=(), extra=(act, look))

    def runtime(self, provider, **config):
        registry = self.tools()
        return Runtime(
            store=self.store,
            provider=provider,
            model=MODEL,
            gate=Gate(registry, {}),
            tools=registry.specs,
            config=RuntimeConfig(**config),
        )

    def emit(self, frame_type, payload):
        self.frames.append((frame_type, payload))

    def turn(self, prompt="hello", turn_id="t1"):
        turn, _created = self.store.accept_turn(self.session.session_id, turn_id, "r1", prompt)
        return turn

    def reopen(self):
        self.store.close()
        self.store = Store(self.path)

    def roles(self):
        return [m.role for m in self.store.messages(self.session.session_id)]

    def terminal(self):
        ends = [f for f in self.frames if f[0] in ("turn_completed", "turn_cancelled", "error")]
        assert len(ends) == 1
        return ends[0]


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "oxydra.db")
    yield world
    world.store.close()


def test_an_answer_is_streamed_and_stored(world):
    provider = Scripted(["Hel", "lo"])
    world.runtime(provider).run_turn(world.turn(), CancelToken(), world.emit)

    deltas = "".join(p["delta"] for t, p in world.frames if t == "assistant_delta")
    kind, payload = world.terminal()
    assert (deltas, kind) == ("Hello", "turn_completed")
    assert payload["response"]["message"]["content"] == "Hello"
    assert payload["response"]["usage"]["total_tokens"] == 15
    assert world.roles() == ["user", "assistant"]
    stored = world.store.turn("t1")
    assert stored.state is TurnState.COMPLETED
    assert stored.terminal == {"type": kind, "payload": payload}


def test_tools_run_and_their_results_go_back(world):
    provider = Scripted(
        calls(("look", '{"what": "a"}'), ("act", '{"what": "b"}'), ("nothing", "{}")), "fine"
    )
    world.runtime(provider).run_turn(world.turn(), CancelToken(), world.emit)
    assert world.ran == ["a", "b"]
    sent = provider.requests[1].messages
    assert [m.role for m in sent] == ["system", "user", "assistant", "tool", "tool", "tool"]
    assert [m.content for m in sent[3:5]] == ["saw a", "did b"]
    assert sent[5].is_error
    assert world.store.messages(world.session.session_id) == [
        *sent[1:],
        Message("assistant", "fine"),
    ]


def test_a_request_repeats_the_same_message_objects(world):
    """So that each is encoded once, however long the history is."""
    provider = Scripted(*[calls(("look", '{"what": "x"}')) for _ in range(3)])
    world.runtime(provider).run_turn(world.turn(), CancelToken(), world.emit)
    first, last = provider.requests[0].messages, provider.requests[-1].messages
    assert all(a is b for a, b in zip(first, last, strict=False))


def test_the_loop_ends_at_its_limit(world):
    provider = Scripted(*[calls(("look", '{"what": "x"}')) for _ in range(9)])
    world.runtime(provider, max_turns=3).run_turn(world.turn(), CancelToken(), world.emit)
    kind, payload = world.terminal()
    assert (kind, payload["code"], len(world.ran)) == ("error", "max_turns", 3)
    world.frames.clear()  # and the session goes on
    world.runtime(Scripted("ok")).run_turn(world.turn(turn_id="t2"), CancelToken(), world.emit)
    assert world.terminal()[0] == "turn_completed"


def test_a_providers_failure_is_the_turns_and_keeps_what_was_shown(world):
    def cut(_request, _token):
        world.emit("assistant_delta", {"delta": "half"})
        raise AssertionError

    class Cut(Scripted):
        def stream(self, request, token):
            yield TextDelta("half an ans")
            raise ProviderError("The stream broke.", remedy="Try again.", provider="p")

    world.runtime(Cut()).run_turn(world.turn(), CancelToken(), world.emit)
    kind, payload = world.terminal()
    assert (kind, payload["message"]) == ("error", "The stream broke. Try again.")
    last = world.store.messages(world.session.session_id)[-1]
    assert (last.role, last.content) == ("assistant", "half an ans\n\n[cut off]")


def test_a_defect_in_a_provider_is_no_lost_turn(world):
    world.runtime(Scripted(RuntimeError("secret"))).run_turn(
        world.turn(), CancelToken(), world.emit
    )
    kind, payload = world.terminal()
    assert kind == "error"
    assert "secret" not in payload["message"]


def test_cancelled_while_the_model_speaks(world):
    token = CancelToken()

    class Endless(Scripted):
        def stream(self, request, token_):
            yield TextDelta("one ")
            yield TextDelta("two")
            token.cancel()
            token_.check()

    world.runtime(Endless()).run_turn(world.turn(), token, world.emit)
    assert world.terminal()[0] == "turn_cancelled"
    assert world.store.messages(world.session.session_id)[-1].content == "one two\n\n[cancelled]"


def test_cancelled_while_a_tool_runs(world):
    token = CancelToken()
    world.hooks["b"] = lambda context: token.cancel()
    provider = Scripted(calls(*[("act", f'{{"what": "{w}"}}') for w in "abc"]))
    world.runtime(provider).run_turn(world.turn(), token, world.emit)
    assert world.ran == ["a", "b"]
    assert world.terminal()[0] == "turn_cancelled"
    assert world.store.open_calls("t1") == []
    assert world.roles() == ["user", "assistant", "tool", "tool", "tool"]


class Dies(BaseException):
    """Stands for the process's end: nothing after it runs."""


def test_a_killed_turn_goes_on_past_what_was_done(world):
    """`a` was done, `b` had started, `c` had not: a and b never run again, c does."""

    def die(_context):
        raise Dies

    world.hooks["b"] = die
    steps = calls(*[("act", f'{{"what": "{w}"}}') for w in "abc"])
    with pytest.raises(Dies):
        world.runtime(Scripted(steps)).run_turn(world.turn(), CancelToken(), world.emit)
    world.hooks.clear()
    world.frames.clear()
    world.reopen()
    (turn,) = world.store.unfinished_turns()
    assert turn.state is TurnState.RUNNING

    provider = Scripted("all done")
    world.runtime(provider).run_turn(turn, CancelToken(), world.emit)
    assert world.ran == ["a", "b", "c"]
    results = {m.tool_call_id: m for m in provider.requests[0].messages if m.role == "tool"}
    assert results["call-0"].content == "did a"
    assert "outcome of this call is unknown" in results["call-1"].content
    assert results["call-2"].content == "did c"
    assert world.terminal()[0] == "turn_completed"
    assert world.frames[0][1]["progress"]["kind"]["kind"] == "resumed"


def test_a_read_only_call_simply_runs_again(world):
    steps = calls(("look", '{"what": "x"}'))
    turn = world.turn()
    world.store.start_turn(turn)
    world.store.add_step(turn, steps)
    world.store.calls_running(turn, ["call-0"])
    world.reopen()
    provider = Scripted("ok")
    world.runtime(provider).run_turn(world.store.turn("t1"), CancelToken(), world.emit)
    assert world.ran == ["x"]
    assert provider.requests[0].messages[-1].content == "saw x"


def test_a_shutdown_leaves_the_turn_to_be_resumed(world):
    token = CancelToken()

    class Stops(Scripted):
        def stream(self, request, token_):
            yield TextDelta("half")
            token.cancel(SHUTDOWN)
            token_.check()

    world.runtime(Stops()).run_turn(world.turn(), token, world.emit)
    assert [t for t, _p in world.frames if t in ("turn_cancelled", "error")] == []
    (turn,) = world.store.unfinished_turns()
    world.frames.clear()
    world.runtime(Scripted("whole")).run_turn(turn, CancelToken(), world.emit)
    assert world.terminal()[1]["response"]["message"]["content"] == "whole"
    assert world.roles() == ["user", "assistant"]


def test_a_shutdown_between_calls_leaves_the_rest_for_later(world):
    token = CancelToken()
    world.hooks["a"] = lambda context: token.cancel(SHUTDOWN)
    steps = calls(*[("act", f'{{"what": "{w}"}}') for w in "ab"])
    world.runtime(Scripted(steps)).run_turn(world.turn(), token, world.emit)
    assert world.ran == ["a"]
    (turn,) = world.store.unfinished_turns()
    world.runtime(Scripted("ok")).run_turn(turn, CancelToken(), world.emit)
    assert world.ran == ["a", "b"]


def test_a_full_disk_pauses_the_turn_and_loses_nothing(world, monkeypatch):
    from oxydra.runtime import loop

    monkeypatch.setattr(loop, "FULL_DISK_WAIT", (0.01, 0.05))
    said = threading.Event()
    turn = world.turn()

    def emit(frame_type, payload):
        world.emit(frame_type, payload)
        if frame_type == "turn_progress" and payload["progress"]["kind"]["kind"] == "retry":
            world.store._writer.pragma("max_page_count", 2**30)  # somebody made room
            said.set()

    def fill(_request, _token):
        pages = world.store._writer.pragma("page_count")
        world.store._writer.pragma("max_page_count", pages)
        with pytest.raises(StoreFullError):
            world.store.create_session(display_name="x" * 100_000)
        return ["y" * 100_000]

    world.runtime(Scripted(fill)).run_turn(turn, CancelToken(), emit)
    assert said.is_set()
    assert world.terminal()[0] == "turn_completed"
    assert world.store.messages(turn.session_id)[-1].content == "y" * 100_000


def test_a_call_id_that_comes_twice_in_one_step(world):
    message = Message(
        "assistant",
        tool_calls=(
            ToolCall("same", "act", '{"what": "a"}'),
            ToolCall("same", "act", '{"what": "b"}'),
        ),
    )
    world.runtime(Scripted(message, "ok")).run_turn(world.turn(), CancelToken(), world.emit)
    assert world.ran == ["a", "b"]
    assert world.terminal()[0] == "turn_completed"


def test_what_is_void_after_a_retry_is_not_kept(world):
    class Wavers(Scripted):
        def stream(self, request, token):
            yield TextDelta("first try")
            yield Retrying(2, "The stream broke.", 0.5)
            yield TextDelta("second try")
            yield FellBack("other", replace(MODEL, id="other"), "It does not answer.")
            yield TextDelta("third")
            raise ProviderError("It broke again.")

    world.runtime(Wavers()).run_turn(world.turn(), CancelToken(), world.emit)
    kinds = [p["progress"]["kind"]["kind"] for t, p in world.frames if t == "turn_progress"]
    assert kinds == ["provider_call", "retry", "fallback"]
    assert world.store.messages(world.session.session_id)[-1].content == "third\n\n[cut off]"


def test_deltas_that_arrived_together_are_one_frame_and_none_waits(world):
    class Bursts(Scripted):
        def stream(self, request, token):
            yield TextDelta("a", more=True)
            yield TextDelta("b", more=True)
            request.on_wait()
            assert world.frames[-1] == ("assistant_delta", {"delta": "ab"})
            yield TextDelta("c", more=True)
            yield ReasoningDelta("hm")
            yield TextDelta("d")
            yield TextDelta("e", more=True)
            raise ProviderError("It broke.")

    world.runtime(Bursts()).run_turn(world.turn(), CancelToken(), world.emit)
    shown = [next(iter(p.values())) for t, p in world.frames if t.endswith("_delta")]
    assert shown == ["ab", "c", "hm", "d", "e"]
    assert world.store.messages(world.session.session_id)[-1].content == "abcde\n\n[cut off]"


def test_a_model_that_repeats_itself_is_warned_and_then_stopped(world):
    provider = Scripted(*[calls(("look", '{"what": "x"}')) for _ in range(20)])
    world.runtime(provider).run_turn(world.turn(), CancelToken(), world.emit)
    kind, payload = world.terminal()
    assert (kind, payload["code"], len(world.ran)) == ("error", "loop", 5)
    results = [m for m in world.store.messages(world.session.session_id) if m.role == "tool"]
    assert ["this same result" in m.content for m in results] == [False, False, True, True, True]


def test_the_same_call_with_another_result_is_no_loop(world):
    steps = [calls(("act", f'{{"what": "{n}"}}'), ("look", f'{{"what": "{n}"}}')) for n in range(9)]
    world.runtime(Scripted(*steps)).run_turn(world.turn(), CancelToken(), world.emit)
    assert world.terminal()[0] == "turn_completed"


def test_the_loop_guard_can_be_switched_off(world):
    provider = Scripted(*[calls(("look", '{"what": "x"}')) for _ in range(9)])
    guard = LoopGuardConfig(warn_after=0, stop_after=0)
    world.runtime(provider, loop_guard=guard).run_turn(world.turn(), CancelToken(), world.emit)
    assert (world.terminal()[0], len(world.ran)) == ("turn_completed", 9)


def test_a_file_that_a_model_made_is_kept_and_named(world):
    made = Attachment("image/png", hashlib.sha256(b"png").hexdigest(), b"png")
    kept = []

    def keep(attachment):
        kept.append(attachment)
        return "/shared/made/it.png"

    runtime = world.runtime(Scripted(Message("assistant", "Here.", attachments=(made,))))
    runtime.keep = keep
    runtime.run_turn(world.turn(), CancelToken(), world.emit)
    assert kept == [made]
    text = "Here.\n\n[image/png: /shared/made/it.png]"
    assert world.terminal()[1]["response"]["message"]["content"] == text
    stored = world.store.messages(world.session.session_id)[-1]
    assert (stored.content, stored.attachments) == (text, (made,))
    (frame,) = [payload for kind, payload in world.frames if kind == "media_attachment"]
    assert frame["attachment"] == {
        "file_path": "/shared/made/it.png",
        "media_type": "photo",
        "data": base64.b64encode(b"png").decode(),
        "file_name": "it.png",
    }


def test_a_file_that_could_not_be_kept_is_not_sent(world):
    made = Attachment("application/pdf", hashlib.sha256(b"%PDF").hexdigest(), b"%PDF")
    runtime = world.runtime(Scripted(Message("assistant", "Here.", attachments=(made,))))
    runtime.keep = lambda _attachment: "could not be saved: no room"
    runtime.run_turn(world.turn(), CancelToken(), world.emit)
    assert "no room" in world.terminal()[1]["response"]["message"]["content"]
    assert not [kind for kind, _ in world.frames if kind == "media_attachment"]
