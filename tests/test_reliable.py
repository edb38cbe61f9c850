"""Retries, fallback and the circuit: against servers that fail, and with a clock of the test's."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from oxydra.config import ReliabilityConfig
from oxydra.errors import Cancelled, ProviderError
from oxydra.providers import ProviderSettings, create
from oxydra.providers.reliable import (
    COOL_DOWN,
    OPEN_AFTER,
    Choice,
    Circuit,
    CircuitState,
    Reliable,
)
from oxydra.threads import CancelToken, Deadline
from oxydra.transport import DirectTransport
from oxydra.types import (
    Attachment,
    Completed,
    FellBack,
    Message,
    ModelRequest,
    ModelSpec,
    Retrying,
    StreamEvent,
    TextDelta,
)
from tests.fake_model import CUT, STALL, FakeModel
from tests.replay import asking, ending

QUICK = ReliabilityConfig(max_attempts=3, backoff_base_ms=1, backoff_max_ms=4)
AN_HOUR = ReliabilityConfig(max_attempts=3, backoff_base_ms=3_600_000, backoff_max_ms=3_600_000)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# ------------------------------------------------------------------------------------- the circuit


def failed(circuit: Circuit, times: int = 1) -> None:
    for _ in range(times):
        circuit.failed("it failed")


def test_a_circuit_opens_after_failures_in_a_row_only() -> None:
    circuit = Circuit(open_after=3, clock=Clock())
    failed(circuit, 2)
    circuit.answered()
    failed(circuit, 2)
    assert circuit.admit()
    failed(circuit)
    assert circuit.state is CircuitState.OPEN
    assert not circuit.admit()
    assert circuit.reason == "it failed"


def test_a_circuit_that_is_tripped_opens_at_once() -> None:
    circuit = Circuit(clock=Clock())
    circuit.failed("no credit", trip=True)
    assert not circuit.admit()


def test_an_open_circuit_admits_one_probe_after_its_rest() -> None:
    clock = Clock()
    circuit = Circuit(cool_down=30, clock=clock)
    circuit.failed("down", trip=True)
    clock.now += 29.9
    assert not circuit.admit()
    clock.now += 0.2
    assert circuit.admit()
    assert circuit.state is CircuitState.PROBING
    assert not circuit.admit()


@pytest.mark.parametrize("verdict", ["answered", "failed", "released"])
def test_what_a_probe_decides(verdict: str) -> None:
    clock = Clock()
    circuit = Circuit(cool_down=30, clock=clock)
    circuit.failed("down", trip=True)
    clock.now += 30
    assert circuit.admit()
    match verdict:
        case "answered":
            circuit.answered()
            circuit.released()
            assert circuit.admit()
            failed(circuit, OPEN_AFTER - 1)
            assert circuit.admit()
        case "failed":
            failed(circuit)
            circuit.released()
            assert not circuit.admit()
            clock.now += 30
            assert circuit.admit()
        case "released":
            circuit.released()
            assert circuit.state is CircuitState.OPEN
            assert circuit.admit()


def test_a_provider_may_ask_for_a_longer_rest() -> None:
    clock = Clock()
    circuit = Circuit(cool_down=30, clock=clock)
    circuit.failed("later", trip=True, rest=100)
    clock.now += 99
    assert not circuit.admit()
    clock.now += 1
    assert circuit.admit()


def test_a_released_call_leaves_a_closed_circuit_as_it_is() -> None:
    circuit = Circuit(clock=Clock())
    circuit.released()
    assert circuit.state is CircuitState.CLOSED


# -------------------------------------------------------------------------------------- the stage


class Stage:
    """Servers `a`, `b`, … and a provider made of one choice for each."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.clock = Clock()
        self.transport = DirectTransport()
        stack.callback(self.transport.close)
        self.fakes: list[FakeModel] = []
        self.provider: Reliable

    def set(
        self, count: int, config: ReliabilityConfig = QUICK, models: Sequence[Any] = (),
        spread: Callable[[], float] = lambda: 1.0,
    ) -> list[FakeModel]:  # fmt: skip
        """Start `count` servers; `models` gives fields of their models."""
        self.fakes = [self.stack.enter_context(FakeModel()) for _ in range(count)]
        choices = []
        for at, fake in enumerate(self.fakes):
            name = "abcdef"[at]
            settings = ProviderSettings(name, "openai", fake.url)
            spec = ModelSpec(name, f"{name}-1", 100_000, 4_096)
            if at < len(models):
                spec = replace(spec, **models[at])
            choices.append(Choice(create(settings, self.transport), spec))
        self.provider = Reliable(choices, config, clock=self.clock, spread=spread)
        return self.fakes

    def stream(self, request: ModelRequest | None = None) -> Iterator[StreamEvent]:
        return self.provider.stream(request or asking(), CancelToken())

    def run(self, request: ModelRequest | None = None) -> list[StreamEvent]:
        events = list(self.stream(request))
        ending(valid(events))
        return events

    def error(self, request: ModelRequest | None = None) -> ProviderError:
        with pytest.raises(ProviderError) as caught:
            list(self.stream(request))
        assert "\n" not in str(caught.value)
        assert caught.value.remedy
        return caught.value

    def asked(self) -> list[int]:
        """How many requests each server has had."""
        return [len(fake.requests) for fake in self.fakes]

    def open_first(self) -> None:
        """The first server is down until its circuit is open; the second answers."""
        self.fakes[0].error(402, "no credit")
        self.run()


@pytest.fixture
def stage() -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        yield Stage(stack)


def valid(events: Sequence[StreamEvent]) -> list[StreamEvent]:
    """What is left of a stream when each retry and fallback has voided what was before it."""
    voids = [at for at, event in enumerate(events) if isinstance(event, Retrying | FellBack)]
    return list(events[voids[-1] + 1 if voids else 0 :])


def announced(events: Sequence[StreamEvent]) -> list[str]:
    """`r2` for a second attempt, `b` for a fallback to that provider."""
    return [
        f"r{event.attempt}" if isinstance(event, Retrying) else event.provider
        for event in events
        if isinstance(event, Retrying | FellBack)
    ]


def text(events: Sequence[StreamEvent]) -> str:
    end = events[-1]
    assert isinstance(end, Completed)
    return end.message.content


# ---------------------------------------------------------------------------------------- retries


def test_nothing_is_added_to_an_answer(stage: Stage) -> None:
    (a,) = stage.set(1)
    a.reply("Hel", "lo")
    assert stage.run()[:2] == [TextDelta("Hel"), TextDelta("lo")]
    assert stage.provider.name == "a"


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_tried_again(stage: Stage, status: int) -> None:
    (a,) = stage.set(1)
    a.error(status, "not now")
    a.error(status, "not now")
    a.reply("at last")
    events = stage.run()
    assert announced(events) == ["r2", "r3"]
    assert isinstance(events[0], Retrying)
    assert "not now" in events[0].reason
    assert text(events) == "at last"


def test_a_stream_that_breaks_off_begins_anew(stage: Stage) -> None:
    (a,) = stage.set(1)
    a.reply("The ans", CUT)
    a.reply("The ", {"error": {"type": "overloaded_error", "message": "busy"}})
    a.reply("The answer")
    events = stage.run()
    shown = [TextDelta("The ans"), "r2", TextDelta("The "), "r3", TextDelta("The answer")]
    told = [e if isinstance(e, TextDelta) else f"r{e.attempt}" for e in events[:-1]]  # type: ignore[union-attr]
    assert told == shown
    assert text(events) == "The answer"


def test_the_attempts_are_counted(stage: Stage) -> None:
    (a,) = stage.set(1)
    for _ in range(4):
        a.error(503, "down")
    error = stage.error()
    assert stage.asked() == [3]
    assert (error.status, error.provider, error.model) == (503, "a", "a-1")


@pytest.mark.parametrize(
    ("spread", "pauses"),
    [(1.0, [1, 2, 4, 4]), (0.0, [0.5, 1, 2, 2])],
)
def test_pauses_grow_to_their_limit_and_are_spread(
    stage: Stage, spread: float, pauses: list[float]
) -> None:
    config = replace(QUICK, max_attempts=5)
    (a,) = stage.set(1, config, spread=lambda: spread)
    for _ in range(4):
        a.error(503)
    waits = [event.wait_seconds for event in stage.run() if isinstance(event, Retrying)]
    assert [wait * 1000 for wait in waits] == pytest.approx(pauses)


def test_pauses_without_jitter(stage: Stage) -> None:
    (a,) = stage.set(1, replace(QUICK, jitter=False), spread=lambda: 0.0)
    a.error(503)
    (retrying,) = (event for event in stage.run() if isinstance(event, Retrying))
    assert retrying.wait_seconds == pytest.approx(0.001)


def test_a_server_that_says_when_is_heeded(stage: Stage) -> None:
    (a,) = stage.set(1, replace(QUICK, backoff_max_ms=100))
    a.error(429, headers={"retry-after-ms": "50"})
    a.error(429, headers={"retry-after": "0"})
    waits = [event.wait_seconds for event in stage.run() if isinstance(event, Retrying)]
    assert waits == pytest.approx([0.05, 0.002])


@pytest.mark.parametrize(("wait", "words"), [("90", "90 seconds"), ("7200", "2 hours")])
def test_a_server_that_says_much_later_is_not_waited_for(
    stage: Stage, wait: str, words: str
) -> None:
    (a,) = stage.set(1)
    a.error(503, headers={"retry-after": wait})
    error = stage.error()
    assert stage.asked() == [1]
    assert error.retry_after == float(wait)
    assert words in error.remedy


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422])
def test_what_cannot_pass_is_raised_at_once(stage: Stage, status: int) -> None:
    (a,) = stage.set(1)
    a.error(status, "no")
    assert stage.error().status == status
    assert stage.asked() == [1]


def test_a_call_that_was_cancelled_is_not_repeated(stage: Stage) -> None:
    (a,) = stage.set(1)
    a.reply("begin", STALL)
    token = CancelToken()
    events = stage.provider.stream(asking(), token)
    assert next(events) == TextDelta("begin")
    token.cancel("enough")
    with pytest.raises(Cancelled, match="enough"):
        next(events)
    assert stage.asked() == [1]


def test_a_pause_ends_when_the_token_is_cancelled(stage: Stage) -> None:
    (a,) = stage.set(1, AN_HOUR)
    a.error(503)
    token = CancelToken()
    pausing = threading.Event()
    raised: list[BaseException] = []

    def work() -> None:
        try:
            for event in stage.provider.stream(asking(), token):
                if isinstance(event, Retrying):
                    pausing.set()
        except Cancelled as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert pausing.wait(60)
    token.cancel("enough")
    thread.join(60)
    assert [str(error) for error in raised] == ["enough"]
    assert stage.asked() == [1]


def test_a_pause_past_the_deadline_is_not_begun(stage: Stage) -> None:
    (a,) = stage.set(1, AN_HOUR)
    a.error(503, "down")
    error = stage.error(asking(deadline=Deadline.after(60)))
    assert "down" in error.message


def test_past_the_deadline_nobody_is_asked(stage: Stage) -> None:
    a, _ = stage.set(2)
    a.reply("begin", STALL)
    error = stage.error(asking(deadline=Deadline.after(0.2)))
    assert error.code == "timeout"
    assert stage.asked()[1] == 0


def test_a_stream_that_is_left_releases_its_connection(stage: Stage) -> None:
    (a,) = stage.set(1)
    a.reply("begin", STALL)
    events = stage.stream()
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert a.requests[0].closed.wait(60)


# --------------------------------------------------------------------------------------- fallback


def test_a_fallback_takes_over_after_the_last_attempt(stage: Stage) -> None:
    a, b = stage.set(2)
    for _ in range(2):
        a.error(503, "down")
    a.reply("no more th", CUT)
    b.reply("from b")
    events = stage.run()
    assert announced(events) == ["r2", "r3", "b"]
    (fell,) = (event for event in events if isinstance(event, FellBack))
    assert fell.model.id == "b-1"
    assert "a (a-1): " in fell.reason
    assert text(events) == "from b"
    assert b.requests[0].body["model"] == "b-1"
    assert a.requests[0].body["model"] == "a-1"


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, None), (402, None), (403, None), (404, None), (429, "insufficient_quota")],
)
def test_a_fallback_takes_over_at_once(stage: Stage, status: int, code: str | None) -> None:
    a, b = stage.set(2)
    a.error(status, "no", code=code)
    b.reply("from b")
    events = stage.run()
    assert announced(events) == ["b"]
    assert stage.asked() == [1, 1]


def test_a_fallback_takes_over_from_a_web_page_and_from_a_long_wait(stage: Stage) -> None:
    a, _, c = stage.set(3)
    a.html()
    stage.fakes[1].error(429, "slow down", headers={"retry-after": "100"})
    c.reply("from c")
    events = stage.run()
    assert announced(events) == ["b", "c"]
    assert [event.reason for event in events if isinstance(event, FellBack)][1].count(".") >= 2


@pytest.mark.parametrize(("status", "code"), [(400, None), (400, "context_length_exceeded")])
def test_a_bad_request_is_not_carried_from_door_to_door(
    stage: Stage, status: int, code: str | None
) -> None:
    a, _ = stage.set(2)
    a.error(status, "no", code=code)
    assert stage.error().status == status
    assert stage.asked() == [1, 0]


def test_when_all_fail_all_are_named(stage: Stage) -> None:
    a, b = stage.set(2)
    a.error(401, "wrong key")
    b.error(402, "no money")
    error = stage.error()
    assert "wrong key" in error.message
    assert "no money" in error.message
    assert (error.provider, error.code, error.status) == ("a", "provider_auth", 401)


def test_when_all_fail_the_shortest_wait_is_named(stage: Stage) -> None:
    a, b = stage.set(2)
    a.error(503, "down", headers={"retry-after": "300"})
    b.error(429, "slow", headers={"retry-after": "100"})
    error = stage.error()
    assert error.retry_after == 100
    assert "100 seconds" in error.remedy


def test_a_request_that_a_fallback_refuses(stage: Stage) -> None:
    a, b = stage.set(2)
    a.error(401, "wrong key")
    b.error(400, "not like this")
    error = stage.error()
    assert (error.provider, error.code) == ("b", "bad_request")
    assert "wrong key" in error.message


def picture(kind: str = "image/png") -> Message:
    return Message("user", "look", attachments=(Attachment(kind, "0" * 64, b"x"),))


@pytest.mark.parametrize(
    ("lacking", "request_", "words"),
    [
        ({"tools": False}, asking(), "can't call tools"),
        ({"images": False}, asking(picture()), "can't see images"),
        ({"pdfs": False}, asking(picture("application/pdf")), "can't read PDFs"),
    ],
)
def test_a_fallback_that_lacks_what_is_needed_is_passed_over(
    stage: Stage, lacking: dict[str, bool], request_: ModelRequest, words: str
) -> None:
    able = {"tools": True, "images": True, "pdfs": True}
    a, _, _ = stage.set(3, models=[able, {**able, **lacking}, able])
    a.error(402, "no credit")
    events = stage.run(request_)
    assert announced(events) == ["c"]
    (fell,) = (event for event in events if isinstance(event, FellBack))
    assert f"b (b-1) was not asked: it {words}." in fell.reason
    assert stage.asked() == [1, 0, 1]


def test_what_a_model_made_is_no_reason_to_pass_another_over(stage: Stage) -> None:
    a, _ = stage.set(2)
    a.error(402, "no credit")
    made = replace(picture(), role="assistant")
    assert announced(stage.run(asking(Message("user", "paint"), made))) == ["b"]


# ------------------------------------------------------------------------- the circuit in its place


def test_a_provider_that_is_down_is_left_alone(stage: Stage) -> None:
    a, _ = stage.set(2)
    for _ in range(OPEN_AFTER):
        a.error(503, "down")
    assert announced(stage.run()) == ["r2", "r3", "b"]
    assert announced(stage.run()) == ["r2", "b"]  # the fifth failure opens the circuit
    events = stage.run()
    assert isinstance(events[0], FellBack)
    assert "down" in events[0].reason
    assert stage.asked() == [5, 3]


def test_it_returns_to_the_first_choice_when_that_recovers(stage: Stage) -> None:
    a, _ = stage.set(2)
    stage.open_first()
    stage.clock.now += COOL_DOWN
    a.reply("I am back")
    events = stage.run()
    assert (announced(events), text(events)) == ([], "I am back")
    assert announced(stage.run()) == []


def test_a_probe_that_fails_costs_one_attempt(stage: Stage) -> None:
    a, _ = stage.set(2)
    stage.open_first()
    stage.clock.now += COOL_DOWN
    a.error(503, "still down")
    assert announced(stage.run()) == ["b"]
    assert announced(stage.run()) == ["b"]
    assert stage.asked() == [2, 3]


def test_a_long_wait_is_kept_between_calls(stage: Stage) -> None:
    a, _ = stage.set(2)
    a.error(429, "slow down", headers={"retry-after": "1000"})
    stage.run()
    stage.clock.now += 999
    assert announced(stage.run()) == ["b"]
    stage.clock.now += 1
    assert announced(stage.run()) == []


def test_only_one_call_probes(stage: Stage) -> None:
    a, _ = stage.set(2)
    stage.open_first()
    stage.clock.now += COOL_DOWN
    go = threading.Event()
    a.reply("slowly", go, " back")
    probe = stage.stream()
    assert next(probe) == TextDelta("slowly")
    assert announced(stage.run()) == ["b"]
    go.set()
    assert text(list(probe)) == "slowly back"
    assert announced(stage.run()) == []


@pytest.mark.parametrize("how", ["left", "cancelled"])
def test_a_probe_that_is_given_up_leaves_its_place(stage: Stage, how: str) -> None:
    a, _ = stage.set(2)
    stage.open_first()
    stage.clock.now += COOL_DOWN
    a.reply("slowly", STALL)
    token = CancelToken()
    probe = stage.provider.stream(asking(), token)
    next(probe)
    if how == "left":
        probe.close()  # type: ignore[attr-defined]
    else:
        token.cancel()
        with pytest.raises(Cancelled):
            next(probe)
    assert announced(stage.run()) == []


def test_a_probe_that_is_given_up_before_it_began(stage: Stage) -> None:
    a, b = stage.set(2)
    for _ in range(2):
        a.error(402, "no credit")
        b.error(402, "no credit either")
    stage.error()
    stage.clock.now += COOL_DOWN
    events = stage.stream()
    assert isinstance(next(events), FellBack)
    events.close()  # type: ignore[attr-defined]
    assert stage.provider.circuits["b"].admit()


def test_when_nothing_else_is_left_a_resting_provider_is_asked(stage: Stage) -> None:
    a, b = stage.set(2)
    stage.open_first()
    b.reply("no m", CUT)
    b.error(401, "and b has no key")
    a.reply("for once")
    events = stage.run()
    assert announced(events) == ["b", "r2", "a"]
    assert text(events) == "for once"


def test_one_provider_alone_is_always_asked(stage: Stage) -> None:
    (a,) = stage.set(1)
    for _ in range(2 * OPEN_AFTER):
        a.error(503, "down")
    for _ in range(3):
        stage.error()
    assert stage.asked() == [9]


def test_a_refusal_is_an_answer(stage: Stage) -> None:
    a, _ = stage.set(2)
    for _ in range(2):
        for _ in range(3):
            a.error(503, "down")
        stage.run()
        a.error(400, "no")
        with contextlib.suppress(ProviderError):
            stage.run()
    assert stage.provider.circuits["a"].admit()


def test_it_serves_several_threads(stage: Stage) -> None:
    a, _ = stage.set(2)
    for _ in range(4):
        a.error(503, "down")
        a.reply("x", CUT)
    said: list[str] = []
    threads = [threading.Thread(target=lambda: said.append(text(stage.run()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(said) == 8
