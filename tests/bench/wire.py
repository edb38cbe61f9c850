"""A provider by itself, without a daemon around it: what a delta costs, and how fast it stops.

It runs in a process of its own and prints one JSON object, which `measures` reads:
`python -m tests.bench.wire BASE_URL RUNS`.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from oxydra.config import ReliabilityConfig
from oxydra.errors import Cancelled, ProviderError
from oxydra.providers import ProviderSettings, create
from oxydra.providers.reliable import Choice, Reliable
from oxydra.threads import CancelToken
from oxydra.transport import DirectTransport
from oxydra.types import Message, ModelRequest, ModelSpec, Provider, Retrying, TextDelta
from tests.bench import proc

DELTAS = 10_000
ANSWERS = 60
STAMP = re.compile(r"\[(\d+)\]")
MODEL = ModelSpec("load", "load-1", 100_000, 4_096)


def asking(prompt: str) -> ModelRequest:
    return ModelRequest(MODEL, [Message("user", prompt)])


def burst(provider: Provider) -> float:
    """Seconds of CPU for `DELTAS` deltas as fast as they go."""
    before = time.process_time()
    for _ in provider.stream(asking(f"[[load n={DELTAS}]]"), CancelToken()):
        pass
    return time.process_time() - before


def first_delta(provider: Provider) -> float:
    """Milliseconds from the sending of the first delta to its being yielded."""
    for event in provider.stream(asking("[[load n=1 stamp=1]]"), CancelToken()):
        if isinstance(event, TextDelta) and (sent := STAMP.match(event.text)):
            return time.monotonic_ns() / 1e6 - int(sent[1]) / 1000
    raise AssertionError("there was no delta")


def stopped(provider: Provider, prompt: str, ready: Callable[[object], bool] | None) -> float:
    """Milliseconds from the cancel to the stream's end. Without `ready`, which looks at an event,
    the cancel comes 50 ms after the stream was begun.
    """
    token = CancelToken()
    at = [0.0]

    def cancel() -> None:
        at[0] = time.monotonic()
        token.cancel()

    timer = threading.Timer(0.05, cancel)
    if ready is None:
        timer.start()
    try:
        for event in provider.stream(asking(prompt), token):
            if ready is not None and ready(event):
                ready = None
                timer.start()
    except Cancelled:
        return (time.monotonic() - at[0]) * 1000
    finally:
        timer.cancel()
    raise AssertionError("it was not cancelled")


class Failing:
    """A provider that is overloaded for ever."""

    name = "failing"

    def stream(self, request: ModelRequest, token: CancelToken) -> Iterator[TextDelta]:
        raise ProviderError("busy", retryable=True, code="provider_unavailable")
        yield TextDelta("")  # pragma: no cover - makes this a generator


@contextmanager
def silent(accepting: bool) -> Iterator[str]:
    """A server that never answers; without `accepting` it does not even finish a handshake."""
    with socket.create_server(("127.0.0.1", 0), backlog=8 if accepting else 0) as server:
        fill = [socket.socket() for _ in range(0 if accepting else 4)]
        for client in fill:
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for client in fill:
            client.close()


def cancels(base_url: str, times: int) -> dict[str, list[float]]:
    """By phase, the milliseconds of each try."""
    found: dict[str, list[float]] = {}

    def provider(url: str, transport: DirectTransport) -> Provider:
        return create(ProviderSettings("load", "openai", url), transport)

    def measure(phase: str, one: Callable[[], float]) -> None:
        found[phase] = [one() for _ in range(times)]

    released = threading.Event()

    def never(host: str, port: int) -> list[object]:
        released.wait(20)
        return []

    direct, blocked = DirectTransport(), DirectTransport(resolve=never)
    direct.warm()
    blocked.warm()
    with silent(accepting=False) as deaf, silent(accepting=True) as mute:
        measure("resolve", lambda: stopped(provider("http://x.example", blocked), "", None))
        measure("connect", lambda: stopped(provider(deaf, direct), "", None))
        measure("headers", lambda: stopped(provider(mute, direct), "", None))
    slow = provider(base_url, direct)
    speaks = "[[load n=1000 delay_ms=20]]"
    measure("stream", lambda: stopped(slow, speaks, lambda e: isinstance(e, TextDelta)))
    config = ReliabilityConfig(backoff_base_ms=10_000)
    waits = Reliable([Choice(Failing(), MODEL)], config)
    measure("retry", lambda: stopped(waits, "", lambda e: isinstance(e, Retrying)))
    released.set()
    direct.close()
    blocked.close()
    return found


def main(base_url: str, runs: int) -> dict[str, float]:
    transport = DirectTransport()
    provider = create(ProviderSettings("load", "openai", base_url), transport)
    burst(provider)
    figures = {
        "wire_burst_cpu_s": proc.median([burst(provider) for _ in range(runs)]),
        "wire_first_ms": proc.median([first_delta(provider) for _ in range(ANSWERS)]),
    }
    transport.close()
    for phase, tries in cancels(base_url, 5).items():
        figures[f"cancel_{phase}_ms"] = max(tries)
    return figures


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
