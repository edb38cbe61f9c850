"""What `/metrics` says: counters of what turns did, in the text format of Prometheus.

Turn threads count, `oxydra-requests` writes the page; one lock is over the counters. Labels hold
nothing that a model or a client chose: a tool that there is not counts as `unknown`.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Container, Iterator, Mapping

from oxydra.types import Json, Turn

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)  # seconds

_ENDS = {"turn_completed": "completed", "turn_cancelled": "cancelled", "error": "failed"}
_OUTCOMES = ("finished", "failed")


class Histogram:
    """Seconds by bucket."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(BUCKETS, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str) -> Iterator[str]:
        total = 0
        for bound, count in zip((*BUCKETS, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {total}"


class Metrics:
    """`tools` are the names that are told apart: those there are, whenever one is counted."""

    def __init__(self, tools: Container[str] = ()) -> None:
        self._tools = tools
        self._lock = threading.Lock()
        self._turns: Counter[str] = Counter()
        self._runs: Counter[tuple[str, str]] = Counter()
        self._run_seconds: Counter[str] = Counter()
        self._begun: dict[str, float] = {}  # running turns, when they were first heard of
        self._silent: set[str] = set()  # those of them that have said nothing yet
        self._took, self._first = Histogram(), Histogram()

    def observe(self, turn: Turn, frame_type: str, payload: Json) -> None:
        """A turn emitted something."""
        now = time.monotonic()
        with self._lock:
            if turn.turn_id not in self._begun:
                self._begun[turn.turn_id] = now
                self._silent.add(turn.turn_id)
            if frame_type == "assistant_delta":
                if turn.turn_id in self._silent:
                    self._silent.discard(turn.turn_id)
                    self._first.add(now - self._begun[turn.turn_id])
            elif frame_type == "tool_event":
                self._count_run(payload["call"])
            elif frame_type in _ENDS:
                self._turns[_ENDS[frame_type]] += 1
                self._silent.discard(turn.turn_id)
                self._took.add(now - self._begun.pop(turn.turn_id))

    def _count_run(self, call: Json) -> None:
        if call["state"] in _OUTCOMES:
            tool = call["name"] if call["name"] in self._tools else "unknown"
            self._runs[tool, call["state"]] += 1
            self._run_seconds[tool] += call["elapsed_ms"] / 1000

    def text(self, health: Json, gauges: Mapping[str, float]) -> str:
        """The page: what was counted, what `health_status` says, and `gauges` of the gateway."""
        with self._lock:
            return "\n".join(self._lines(health, gauges)) + "\n"

    def _lines(self, health: Json, gauges: Mapping[str, float]) -> Iterator[str]:
        yield from _head("turns_total", "counter", "Turns that ended, by how they did.")
        for state in _ENDS.values():
            yield f'oxydra_turns_total{{state="{state}"}} {self._turns[state]}'
        yield from _head("turns", "gauge", "Turns that run, and that wait for their turn.")
        for state in ("running", "queued"):
            yield f'oxydra_turns{{state="{state}"}} {health.get(f"{state}_turns", 0)}'
        usage = health.get("usage") or {}
        yield from _head("tokens_total", "counter", "Tokens of model calls since the start.")
        for kind in ("prompt", "completion", "cached", "reasoning"):
            yield f'oxydra_tokens_total{{kind="{kind}"}} {usage.get(f"{kind}_tokens", 0)}'
        yield from _head("cost_usd_total", "counter", "What they cost by catalog prices.")
        yield f"oxydra_cost_usd_total {usage.get('cost_usd', 0)}"
        yield from _head("tool_runs_total", "counter", "Calls of tools that ended.")
        for (tool, state), count in sorted(self._runs.items()):
            yield f'oxydra_tool_runs_total{{tool="{tool}",state="{state}"}} {count}'
        yield from _head("tool_seconds_total", "counter", "Seconds that they took.")
        for tool, seconds in sorted(self._run_seconds.items()):
            yield f'oxydra_tool_seconds_total{{tool="{tool}"}} {seconds:.3f}'
        yield from _head("turn_seconds", "histogram", "From a turn's beginning to its end.")
        yield from self._took.lines("oxydra_turn_seconds")
        yield from _head("first_delta_seconds", "histogram", "To the first text of its answer.")
        yield from self._first.lines("oxydra_first_delta_seconds")
        for name, value in gauges.items():
            yield from _head(name, "gauge", _GAUGES[name])
            yield f"oxydra_{name} {value}"


_GAUGES = {
    "connections": "Open connections, in whatever state.",
    "clients": "WebSocket clients.",
    "requests_waiting": "Frames and requests that wait to be acted on.",
    "outbox_bytes": "Bytes that wait for clients to read them.",
    "approvals_waiting": "Requests for approval that nobody has answered.",
    "memory_chunks": "Passages that memory holds, about.",
}


def _head(name: str, kind: str, meaning: str) -> tuple[str, str]:
    return f"# HELP oxydra_{name} {meaning}", f"# TYPE oxydra_{name} {kind}"
