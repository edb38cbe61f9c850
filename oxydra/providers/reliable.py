"""Keeps a model answering: repeats what may succeed later, and falls back to other models.

`Reliable` is a `Provider` made of others. An attempt that fails in a way that may pass is repeated
after a growing, randomly spread pause; when the attempts are used up, or at once where repeating is
pointless (a refused key, an empty account, an unknown model, a server that says "come back in an
hour"), the next choice takes over. What was already streamed is void then, and an event says so. A
`Circuit` for each provider remembers between calls that it is down, so that it is left alone and
later tried again with one call.

No thread of its own; safe to use from any number of threads. Pauses end at once when the token is
cancelled.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace

from oxydra.config import ReliabilityConfig
from oxydra.errors import ProviderError
from oxydra.threads import CancelToken
from oxydra.types import (
    Completed,
    FellBack,
    ModelRequest,
    ModelSpec,
    Provider,
    Retrying,
    StreamEvent,
)

log = logging.getLogger(__name__)

OPEN_AFTER = 5  # failures in a row
COOL_DOWN = 30.0  # seconds
LONGEST_REST = 3600.0  # seconds that a provider is left alone at its own request

# What another provider may do better, by `ProviderError.code`; anything else is the request's fault
# or a decision of the model's, and is not carried from door to door.
PASSED_ON = (
    "provider_auth",
    "provider_unavailable",
    "quota",
    "rate_limited",
    "model_not_found",
    "timeout",
)


# ------------------------------------------------------------------------------------- the circuit


class CircuitState(enum.Enum):
    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


class Circuit:
    """Whether a provider is worth asking; `closed` means yes.

    closed -> open       after `open_after` failures in a row, or one that trips it
    open -> probing      with the first call admitted once it has rested
    probing -> closed    that call was answered
    probing -> open      it failed, or was given up before its end
    """

    def __init__(
        self,
        *,
        open_after: int = OPEN_AFTER,
        cool_down: float = COOL_DOWN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`cool_down` is in the seconds of `clock`."""
        self.state = CircuitState.CLOSED
        self.reason = ""  # what the last failure said
        self._open_after = open_after
        self._cool_down = cool_down
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._rests_until = 0.0

    def admit(self) -> bool:
        """Whether a call may be made now; in an open circuit that has rested, only one may."""
        with self._lock:
            if self.state is CircuitState.OPEN and self._clock() >= self._rests_until:
                self.state = CircuitState.PROBING  # open -> probing
                return True
            return self.state is CircuitState.CLOSED

    def answered(self) -> None:
        """The provider does its work."""
        with self._lock:
            self.state = CircuitState.CLOSED  # any -> closed
            self._failures = 0

    def failed(self, reason: str, *, trip: bool = False, rest: float = 0.0) -> None:
        """It doesn't. `trip` opens the circuit whatever came before; `rest` seconds are waited if
        they are more than the cool-down.
        """
        with self._lock:
            self.reason = reason
            self._failures += 1
            if trip or self._failures >= self._open_after or self.state is CircuitState.PROBING:
                self.state = CircuitState.OPEN  # any -> open
                self._rests_until = self._clock() + max(self._cool_down, rest)

    def released(self) -> None:
        """The call is over; a probe that came to no verdict leaves its place to the next."""
        with self._lock:
            if self.state is CircuitState.PROBING:
                self.state = CircuitState.OPEN  # probing -> open


# ------------------------------------------------------------------------------------ the provider


@dataclass(frozen=True, slots=True)
class Choice:
    """A provider and the model to ask of it."""

    provider: Provider
    model: ModelSpec

    def __str__(self) -> str:
        return f"{self.provider.name} ({self.model.id})"


class Reliable:
    """See the `Provider` Protocol. The first of `choices` answers while it can, the others in their
    order while it can't; each is asked for its own model, whatever the request names.
    """

    def __init__(
        self,
        choices: Sequence[Choice],
        config: ReliabilityConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        spread: Callable[[], float] = random.random,
    ) -> None:
        """`clock` is the circuits'; `spread` gives numbers from 0 to 1 for the jitter."""
        self.choices = tuple(choices)
        self.name = self.choices[0].provider.name
        self.circuits = {choice.provider.name: Circuit(clock=clock) for choice in self.choices}
        self._attempts = config.max_attempts
        self._base = config.backoff_base_ms / 1000
        self._longest = config.backoff_max_ms / 1000
        self._spread: Callable[[], float] = spread if config.jitter else lambda: 1.0

    def stream(self, request: ModelRequest, token: CancelToken) -> Iterator[StreamEvent]:
        """Between the deltas there may be `Retrying` and `FellBack`: what came before them is void.

        Raises `ProviderError` when every choice has failed, or one in a way that concerns them all.
        """
        failures: list[ProviderError] = []
        story: list[str] = []  # why each choice so far does not answer
        asked = self.choices[0]
        for choice in self._in_turn(request, story):
            try:
                if choice is not asked:
                    asked = choice
                    log.warning("%s takes over: %s", choice, _told(story))
                    yield FellBack(choice.provider.name, choice.model, _told(story))
                error = yield from self._ask(choice, request, token)
            finally:
                self.circuits[choice.provider.name].released()
            if error is None:
                return
            failures.append(error)
            story.append(error.message)
            unable = error.code == "unsupported" and choice is not self.choices[0]
            if request.deadline.expired or not (unable or error.code in PASSED_ON):
                break
        raise _outcome(failures, story)

    def _in_turn(self, request: ModelRequest, story: list[str]) -> Iterator[Choice]:
        """The choices to ask, one after another: those whose circuits admit a call, and at last
        those that were left alone, since someone is waiting and nothing else is left.
        """
        resting: list[Choice] = []
        for choice in self.choices:
            if choice is not self.choices[0] and (lack := _lack(choice.model, request)):
                story.append(f"{choice} was not asked: it {lack}.")
            elif len(self.choices) == 1 or self.circuits[choice.provider.name].admit():
                yield choice
            else:
                resting.append(choice)
                story.append(self.circuits[choice.provider.name].reason)
        yield from resting

    def _ask(
        self, choice: Choice, request: ModelRequest, token: CancelToken
    ) -> Generator[StreamEvent, None, ProviderError | None]:
        """Stream the answer of one choice; returns the error if none of the attempts had one."""
        request = replace(request, model=_bounded(choice.model, request.answer_tokens))
        circuit = self.circuits[choice.provider.name]
        attempt = 0
        while True:
            attempt += 1
            error = yield from self._attempt(choice, circuit, request, token)
            if error is None:
                return None
            pause = self._pause(error, attempt, circuit)
            if pause is None or pause >= request.deadline.remaining():
                return error
            log.warning("attempt %d failed, the next in %.1f s: %s", attempt, pause, error)
            yield Retrying(attempt + 1, error.message, pause)
            if token.wait(pause):
                token.check()

    def _attempt(
        self, choice: Choice, circuit: Circuit, request: ModelRequest, token: CancelToken
    ) -> Generator[StreamEvent, None, ProviderError | None]:
        try:
            with contextlib.ExitStack() as stack:
                events = choice.provider.stream(request, token)
                if isinstance(events, Generator):
                    stack.callback(events.close)
                for event in events:
                    if isinstance(event, Completed):
                        circuit.answered()
                    yield event
            return None
        except ProviderError as error:
            if error.code in PASSED_ON and error.code != "model_not_found":
                rest = min(error.retry_after or 0.0, LONGEST_REST)
                trip = error.code in ("provider_auth", "quota") or rest > self._longest
                circuit.failed(error.message, trip=trip, rest=rest)
            elif error.status:
                circuit.answered()  # it refused, but that was its answer
            return error

    def _pause(self, error: ProviderError, attempt: int, circuit: Circuit) -> float | None:
        """Seconds to wait before the attempt after `attempt`, None if there should be none."""
        if not error.retryable or attempt >= self._attempts:
            return None
        if len(self.choices) > 1 and circuit.state is not CircuitState.CLOSED:
            return None
        asked = error.retry_after or 0.0
        if asked > self._longest:
            return None
        backoff = min(self._base * 2.0 ** (attempt - 1), self._longest)
        return max(asked, backoff * (0.5 + self._spread() / 2))


def _bounded(model: ModelSpec, answer: int) -> ModelSpec:
    """`model` whose answers have at most `answer` tokens; 0: no other bound than its own."""
    if not answer or 0 < model.max_output_tokens <= answer:
        return model
    return replace(model, max_output_tokens=answer)


def _lack(model: ModelSpec, request: ModelRequest) -> str:
    """What `model` can't do of what `request` needs, to stand after "it"; "" if it can."""
    if request.tools and not model.tools:
        return "can't call tools"
    kinds = {
        attachment.mime_type
        for message in request.messages
        if message.role == "user"  # what tools gave is left out for a model that can't see it
        for attachment in message.attachments
    }
    if not model.pdfs and "application/pdf" in kinds:
        return "can't read PDFs"
    if not model.images and any(kind.startswith("image/") for kind in kinds):
        return "can't see images"
    return ""


def _outcome(failures: Sequence[ProviderError], story: Sequence[str]) -> ProviderError:
    """What to raise after `failures`: what all said, with the first one's remedy and code; a
    failure that ended the matter comes last and gives both.
    """
    decisive = failures[-1].code not in (*PASSED_ON, "unsupported")
    told = failures[-1] if decisive else failures[0]
    waits = [error.retry_after for error in failures if error.retry_after is not None]
    if len(story) == 1 and not waits:
        return told
    return ProviderError(
        _told(story),
        remedy=f"Try again in {_span(min(waits))}." if waits else told.remedy,
        provider=told.provider,
        model=told.model,
        status=told.status,
        retryable=told.retryable,
        retry_after=min(waits, default=None),
        code=told.code,
    )


def _told(story: Sequence[str]) -> str:
    return " ".join(dict.fromkeys(story))


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{max(seconds, 1):.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.0f} hours"
