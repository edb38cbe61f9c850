"""What `/metrics` and `/readyz` say, in the format that Prometheus reads."""

from __future__ import annotations

import contextlib
import http.client
import re
import sqlite3
import threading
from dataclasses import replace

import pytest

from oxydra.gateway.metrics import BUCKETS, Histogram, Metrics
from oxydra.tools import tool
from oxydra.types import SafetyTier, Turn, TurnState
from tests.scripted import Scripted, calls
from tests.test_gateway import TOKEN, Running

SAMPLE = re.compile(r'(\w+)(\{(?:\w+="[^"\\\n]*",?)+\})? (\S+)')
TURN = Turn("t1", "s1", "r1", TurnState.RUNNING, "hi")


def parse(text: str) -> dict[str, float]:
    """The samples; what is no line of the format fails."""
    found: dict[str, float] = {}
    typed: dict[str, str] = {}
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in typed and kind in ("counter", "gauge", "histogram")
            typed[name] = kind
        elif not line.startswith("# HELP "):
            match = SAMPLE.fullmatch(line)
            assert match, line
            name = re.sub(r"_(bucket|sum|count)$", "", match[1])
            assert match[1] in typed or typed[name] == "histogram"
            assert match[1] + (match[2] or "") not in found
            found[match[1] + (match[2] or "")] = float(match[3])
    return found


def test_what_turns_did_is_counted() -> None:
    metrics = Metrics(["shell_exec"])
    for number, end in enumerate(("turn_completed", "turn_completed", "turn_cancelled", "error")):
        turn = replace(TURN, turn_id=f"t{number}")
        metrics.observe(turn, "turn_progress", {})
        metrics.observe(turn, "assistant_delta", {"delta": "x"})
        metrics.observe(turn, "assistant_delta", {"delta": "y"})
        for name, state in (
            ("shell_exec", "started"),
            ("shell_exec", "finished"),
            ("a\n", "failed"),
        ):
            call = {"name": name, "state": state, "elapsed_ms": 250}
            metrics.observe(turn, "tool_event", {"call": call})
        metrics.observe(turn, end, {})
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "cost_usd": 0.25}
    found = parse(metrics.text({"usage": usage, "running_turns": 1, "queued_turns": 2}, {}))
    assert found['oxydra_turns_total{state="completed"}'] == 2
    assert found['oxydra_turns_total{state="cancelled"}'] == 1
    assert found['oxydra_turns_total{state="failed"}'] == 1
    assert found['oxydra_turns{state="queued"}'] == 2
    assert found['oxydra_tool_runs_total{tool="shell_exec",state="finished"}'] == 4
    assert found['oxydra_tool_runs_total{tool="unknown",state="failed"}'] == 4
    assert found['oxydra_tool_seconds_total{tool="shell_exec"}'] == 1
    assert found['oxydra_tokens_total{kind="prompt"}'] == 7
    assert found["oxydra_cost_usd_total"] == 0.25
    assert found["oxydra_turn_seconds_count"] == found["oxydra_first_delta_seconds_count"] == 4


def test_tools_that_come_later_are_told_apart() -> None:
    tools = ["shell_exec"]
    metrics = Metrics(tools)
    for _ in range(2):
        call = {"name": "mcp__hub__add", "state": "finished", "elapsed_ms": 0}
        metrics.observe(TURN, "tool_event", {"call": call})
        tools.append("mcp__hub__add")
    found = parse(metrics.text({}, {}))
    assert found['oxydra_tool_runs_total{tool="unknown",state="finished"}'] == 1
    assert found['oxydra_tool_runs_total{tool="mcp__hub__add",state="finished"}'] == 1


def test_what_a_model_chose_is_no_label() -> None:
    metrics = Metrics(["shell_exec"])
    for number in range(1000):
        call = {"name": f"made_up_{number}", "state": "failed", "elapsed_ms": 0}
        metrics.observe(TURN, "tool_event", {"call": call})
    assert metrics.text({}, {}).count("made_up") == 0
    assert len(metrics.text({}, {})) < 10_000


def test_a_histogram_adds_up() -> None:
    histogram = Histogram()
    for seconds in (0.05, 0.051, 3, 10_000):
        histogram.add(seconds)
    rows = dict(line.rsplit(" ", 1) for line in histogram.lines("h"))
    assert rows['h_bucket{le="0.05"}'] == "1" and rows['h_bucket{le="0.1"}'] == "2"
    assert rows['h_bucket{le="900"}'] == "3" and rows['h_bucket{le="+Inf"}'] == "4"
    assert rows["h_count"] == "4" and list(BUCKETS) == sorted(BUCKETS)


@tool(tier=SafetyTier.READ_ONLY)
def look() -> str:
    """Look."""
    return "seen"


def page(gateway: Running, path: str, token: str = TOKEN) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


@pytest.fixture
def gateway(tmp_path):
    running = Running(
        tmp_path / "oxydra.db", Scripted(calls(("look", "{}")), ["Hel", "lo"]), tools=(look,)
    )
    yield running
    running.stop()


def test_the_page_of_a_gateway_that_worked(gateway: Running) -> None:
    with gateway.client() as client:
        client.turn("hi", "t1")
        client.until("turn_completed")
        status, text = page(gateway, "/metrics")
        found = parse(text)
    assert status == 200
    assert found['oxydra_turns_total{state="completed"}'] == 1
    assert found["oxydra_clients"] == 1 and found["oxydra_connections"] == 2
    assert found["oxydra_turn_seconds_count"] == 1
    assert found['oxydra_tool_runs_total{tool="unknown",state="finished"}'] == 1
    assert page(gateway, "/metrics", "")[0] == 401


def test_readiness_is_that_of_the_thread_that_acts_and_of_the_database(gateway: Running) -> None:
    assert page(gateway, "/readyz", "")[0] == 200
    busy = threading.Event()
    held = threading.Event()

    def hold() -> None:
        busy.set()
        assert held.wait(60)

    assert gateway.gateway._inbox.put(hold)
    assert busy.wait(60)
    got: list[tuple[int, str]] = []
    asks = threading.Thread(target=lambda: got.append(page(gateway, "/readyz", "")), daemon=True)
    asks.start()
    assert page(gateway, "/healthz", "")[0] == 200  # the process lives
    assert not got
    held.set()
    asks.join(60)
    assert got[0][0] == 200
    with contextlib.closing(sqlite3.connect(gateway.path)) as database:
        database.execute("ALTER TABLE sessions RENAME TO lost")
    assert page(gateway, "/readyz", "")[0] == 503
