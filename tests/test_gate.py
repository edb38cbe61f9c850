"""The gate: order, journal, deadlines, cancelling, caps. The journal here checks each move."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxydra.errors import StoreFullError, ToolError
from oxydra.threads import SHUTDOWN, CancelToken, Deadline
from oxydra.tools import (
    Gate,
    GateLimits,
    Outcome,
    ToolRegistry,
    TurnScope,
    Workspace,
    outputs,
    tool,
)
from oxydra.tools.base import FunctionTool
from oxydra.types import (
    CallState,
    Json,
    Marks,
    Message,
    SafetyTier,
    ToolCall,
    ToolContext,
    ToolResult,
)

Move = tuple[str, ...]


class MemoryJournal:
    """Holds every commit in order and refuses a move that the state machine does not allow."""

    def __init__(self) -> None:
        self.commits: list[tuple[list[Move], list[str]]] = []
        self.rows: list[tuple[str, CallState]] = []
        self.full = False

    def intend(self, calls: Sequence[ToolCall]) -> None:
        self.rows += [(call.id, CallState.INTENDED) for call in calls]

    def calls_running(self, running: Sequence[str]) -> None:
        self._commit([], running)

    def calls_finished(
        self,
        results: Sequence[tuple[CallState, Message]],
        running: Sequence[str] = (),
        took: Sequence[int] = (),
    ) -> None:
        self._commit(results, running)

    def marks_of(self, paths: Sequence[str]) -> Marks:
        return Marks()

    def mark_files(self, paths: Sequence[str], marks: Marks) -> None:
        raise AssertionError("nothing here is marked")

    def _commit(self, results: Sequence[tuple[CallState, Message]], running: Sequence[str]) -> None:
        if self.full:
            raise StoreFullError("full")
        for state, message in results:
            assert state in (CallState.DONE, CallState.FAILED, CallState.UNKNOWN)
            assert state is not CallState.UNKNOWN or self._is_running(message.tool_call_id)
            self._move(message.tool_call_id, state)
        for call_id in running:
            self._move(call_id, CallState.RUNNING)
        moves: list[Move] = [(m.tool_call_id, state.value) for state, m in results]
        self.commits.append((moves, list(running)))

    def _is_running(self, call_id: str) -> bool:
        return (call_id, CallState.RUNNING) in self.rows

    def _move(self, call_id: str, state: CallState) -> None:
        """The oldest open call with this id."""
        open_states = (CallState.INTENDED, CallState.RUNNING)
        at = next(
            n for n, row in enumerate(self.rows) if row[0] == call_id and row[1] in open_states
        )
        self.rows[at] = (call_id, state)


class Desk:
    """A gate with tools that note what they do, and a turn to run calls in."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        for name in ("shared", "tmp", "vault"):
            (folder / name).mkdir()
        self.folder = folder
        self.workspace = Workspace.at(folder)
        self.journal = MemoryJournal()
        self.token = CancelToken()
        self.did: list[str] = []
        self.frames: list[tuple[str, Json]] = []
        self.reason = "by hand"
        self.beaten = threading.Event()
        self.barrier = threading.Barrier(4, timeout=60)
        desk = self

        @tool(tier=SafetyTier.READ_ONLY)
        def look(what: str, together: bool = False) -> str:
            """Look at something."""
            if together:
                desk.barrier.wait()
            desk.did.append(f"look {what}")
            return f"seen {what}"

        @tool
        def act(context: ToolContext, what: str, fail: bool = False) -> ToolResult:
            """Do something."""
            assert (context.call_id, CallState.RUNNING) in desk.journal.rows
            desk.did.append(f"act {what}")
            if fail:
                raise ToolError("It did not work.")
            return ToolResult(f"did {what}", summary=f"acted on {what}")

        @tool(repeatable=True)
        def again(what: str) -> str:
            """Do something that may be done twice."""
            desk.did.append(f"again {what}")
            return ""

        @tool(tier=SafetyTier.READ_ONLY, repeatable=False)
        def fetch(context: ToolContext) -> str:
            """Read something far away, which must be known to have been asked for."""
            assert (context.call_id, CallState.RUNNING) in desk.journal.rows
            return "fetched"

        @tool
        def stop(context: ToolContext) -> str:
            """Cancel the turn that this runs in."""
            context.token.cancel(desk.reason)
            context.token.check()
            return "unreachable"

        @tool(timeout=0.02)
        def wait(context: ToolContext) -> str:
            """Wait for ever."""
            context.token.wait(context.deadline.timeout(10))
            context.deadline.check("Waiting")
            return "unreachable"

        @tool
        def talk(size: int) -> str:
            """Say much."""
            return "é" * size

        @tool(tier=SafetyTier.READ_ONLY)
        def stop_looking(context: ToolContext) -> str:
            """The same for one that may be repeated."""
            return str(stop(context))

        @tool
        def linger() -> str:
            """Run until two heartbeats told of it."""
            assert desk.beaten.wait(60)
            return "done"

        tools = [look, act, again, fetch, stop, wait, talk, stop_looking, linger]
        self.registry = ToolRegistry(extra=tools)
        services = {"workspace": self.workspace}
        self.gate = Gate(self.registry, services, GateLimits(**limits))

    def scope(self, **changes: Any) -> TurnScope:
        return TurnScope("s", "turn1", self.token, self.journal, **changes)

    def run(self, *calls: ToolCall, **changes: Any) -> list[Outcome]:
        self.journal.intend(calls)
        return self.gate.run(calls, self.scope(**changes), self.emit)

    def emit(self, frame: str, payload: Json) -> None:
        if frame == "tool_event" and payload["call"]["state"] != "started":
            shown = payload["call"]["id"]
            ended = (CallState.DONE, CallState.FAILED, CallState.UNKNOWN)
            done = {(shown, state) for state in ended} & set(self.journal.rows)
            assert done, "shown before it was stored"
        self.frames.append((frame, payload))
        if len(self.heartbeats) == 2:
            self.beaten.set()

    @property
    def heartbeats(self) -> list[Json]:
        told = [payload["progress"] for frame, payload in self.frames if frame == "turn_progress"]
        return [progress for progress in told if progress["kind"]["kind"] == "tool_heartbeat"]

    def one(self, name: str, **arguments: Any) -> Outcome:
        (outcome,) = self.run(call("one", name, **arguments))
        return outcome


def call(call_id: str, name: str, **arguments: Any) -> ToolCall:
    return ToolCall(call_id, name, json.dumps(arguments))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.workspace.close()


# --------------------------------------------------------------------------------- one call, many


def test_one_call(desk: Desk) -> None:
    outcome = desk.one("act", what="it")
    assert outcome.state is CallState.DONE
    assert outcome.message == Message("tool", "did it", tool_call_id="one", name="act")
    assert desk.journal.commits == [([], ["one"]), ([("one", "done")], [])]
    assert [(frame, payload.get("call")) for frame, payload in desk.frames] == [
        ("turn_progress", None),
        (
            "tool_event",
            {"id": "one", "name": "act", "state": "started", "summary": "what=it", "elapsed_ms": 0},
        ),
        (
            "tool_event",
            {
                "id": "one",
                "name": "act",
                "state": "finished",
                "summary": "acted on it",
                "elapsed_ms": outcome.elapsed_ms,
            },
        ),
    ]
    assert desk.frames[0][1]["progress"] == {
        "kind": {"kind": "tool_execution", "tool_names": ["act"]},
        "message": "Running act",
        "turn": 1,
        "max_turns": 1,
    }


def test_a_call_that_takes_long_is_told_of_until_it_ends(tmp_path: Path) -> None:
    desk = Desk(tmp_path, heartbeat=0.01)
    try:
        assert desk.one("linger").state is CallState.DONE
        first, second = desk.heartbeats[:2]
        assert first["kind"]["calls"] == [{"id": "one", "name": "linger"}]
        assert 0 < first["kind"]["elapsed_ms"] < second["kind"]["elapsed_ms"]
        assert first["message"].startswith("Running linger for 0 s")
        assert desk.frames[-1][1]["call"]["state"] == "finished"  # and no beat after it
        assert not [t for t in threading.enumerate() if "heartbeat" in t.name]
    finally:
        desk.workspace.close()


def test_no_calls(desk: Desk) -> None:
    assert desk.run() == [] and desk.journal.commits == [] and desk.frames == []


def test_a_call_that_may_be_repeated_costs_one_commit(desk: Desk) -> None:
    desk.run(call("a", "look", what="1"))
    desk.run(call("b", "again", what="2"))
    assert desk.journal.commits == [([("a", "done")], []), ([("b", "done")], [])]


def test_calls_in_order_cost_one_commit_more_than_there_are_calls(desk: Desk) -> None:
    desk.run(*(call(str(n), "act", what=str(n)) for n in range(3)))
    assert desk.did == ["act 0", "act 1", "act 2"]
    assert desk.journal.commits == [
        ([], ["0"]),
        ([("0", "done")], ["1"]),
        ([("1", "done")], ["2"]),
        ([("2", "done")], []),
    ]


def test_neighbours_that_only_read_run_side_by_side(desk: Desk) -> None:
    """The barrier opens only when four are in it at once."""
    outcomes = desk.run(*(call(str(n), "look", what=str(n), together=True) for n in range(8)))
    assert [outcome.message.content for outcome in outcomes] == [f"seen {n}" for n in range(8)]
    assert [len(moves) for moves, _ in desk.journal.commits] == [4, 4]


def test_reading_does_not_overtake_acting(desk: Desk) -> None:
    names = ["look", "act", "look", "look", "act", "fetch", "look"]
    calls = [
        call(str(n), name, **({} if name == "fetch" else {"what": str(n)}))
        for n, name in enumerate(names)
    ]
    outcomes = desk.run(*calls)
    assert [outcome.call.id for outcome in outcomes] == [str(n) for n in range(7)]
    assert desk.did[:2] == ["look 0", "act 1"] and desk.did[4] == "act 4"
    assert set(desk.did[2:4]) == {"look 2", "look 3"}
    assert [moves for moves, _ in desk.journal.commits] == [
        [("0", "done")],
        [("1", "done")],
        [("2", "done"), ("3", "done")],
        [("4", "done")],
        [("5", "done"), ("6", "done")],
    ]
    assert [running for _, running in desk.journal.commits] == [["1"], [], ["4"], ["5"], []]


# --------------------------------------------------------------------------------------- failures


def test_failures_are_results(desk: Desk) -> None:
    outcome = desk.one("act", what="x", fail=True)
    assert outcome.state is CallState.FAILED and outcome.message.is_error
    assert outcome.message.content == "It did not work."
    assert desk.frames[-1][1]["call"]["state"] == "failed"


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("lock", "{}", "There is no tool named 'lock'. Did you mean look?"),
        ("act", '{"what": "a', "no valid JSON: Unterminated string"),
        ("act", '{"what": "a"} trailing', "no valid JSON: Extra data"),
        ("act", "[1]", "an object is expected"),
        ("act", "null", "an object is expected"),
        ("act", '{"what": "a", "what": "b"}', "a name is there twice"),
        ("talk", '{"size": NaN}', "NaN is not JSON"),
        ("talk", '{"size": 1e999}', "expected a whole number"),
        ("talk", '{"size": ' + "9" * 5000 + "}", "no valid JSON"),
        ("act", "[" * 200_000, "nested too deeply"),
        ("act", "", "what: is missing"),
        ("act", '{"waht": "a"}', "did you mean what?"),
        ("file_read", '{"path": "/etc/passwd"}', "outside the workspace"),
        ("file_write", '{"path": "/vault/x", "content": ""}', "read-only to tools"),
    ],
)
def test_a_call_that_cannot_run_is_refused_without_starting(
    desk: Desk, name: str, arguments: str, said: str
) -> None:
    (outcome,) = desk.run(ToolCall("x", name, arguments))
    assert outcome.state is CallState.FAILED and said in outcome.message.content
    assert outcome.message.tool_call_id == "x" and desk.did == []
    assert desk.journal.commits == [([("x", "failed")], [])]
    assert [payload["call"]["state"] for frame, payload in desk.frames] == ["failed"]


def test_no_arguments_at_all_are_none(desk: Desk) -> None:
    (outcome,) = desk.run(ToolCall("f", "fetch", "  "))
    assert outcome.message.content == "fetched"


def test_a_refused_call_does_not_stop_the_others(desk: Desk) -> None:
    outcomes = desk.run(call("a", "act", what="1"), call("b", "nope"), call("c", "act", what="2"))
    assert [outcome.state.value for outcome in outcomes] == ["done", "failed", "done"]
    assert desk.did == ["act 1", "act 2"]


def test_a_tool_that_breaks_its_contract_ends_its_call_only(desk: Desk) -> None:
    class Rude:
        spec = desk.registry.get("act").spec
        tier = SafetyTier.SIDE_EFFECTING
        repeatable = False
        egress = taints = sensitive = False
        timeout = 1.0

        def validate(self, arguments: Json) -> Json:
            return arguments

        def run(self, arguments: Json, context: ToolContext) -> ToolResult:
            raise RuntimeError("/host/path")

        def recover(self, arguments: Json, context: ToolContext) -> ToolResult | None:
            raise RuntimeError("/host/path")

    gate = Gate(ToolRegistry([], extra=[Rude()]), {})
    desk.journal.intend([call("a", "act")])
    (outcome,) = gate.run([call("a", "act")], desk.scope(), desk.emit)
    assert outcome.state is CallState.FAILED and "/host" not in outcome.message.content
    desk.journal.rows = [("b", CallState.RUNNING)]
    gate.recover([call("b", "act")], desk.scope(), desk.emit)
    assert desk.journal.rows == [("b", CallState.UNKNOWN)]


def test_nothing_starts_when_the_journal_cannot_be_written(desk: Desk) -> None:
    desk.journal.full = True
    with pytest.raises(StoreFullError):
        desk.run(call("a", "act", what="1"))
    assert desk.did == [] and desk.frames == []


def test_equal_ids_in_one_step_each_get_a_result(desk: Desk) -> None:
    outcomes = desk.run(
        call("a", "act", what="1"), call("a", "act", what="2"), call("a", "look", what="3")
    )
    assert [outcome.message.content for outcome in outcomes] == ["did 1", "did 2", "seen 3"]
    assert desk.journal.commits == [
        ([], ["a"]),
        ([("a", "done")], ["a"]),
        ([("a", "done")], []),
        ([("a", "done")], []),
    ]


# --------------------------------------------------------------------------- cancelling, deadlines


def test_cancelling_ends_the_running_call_and_starts_no_other(desk: Desk) -> None:
    outcomes = desk.run(
        call("a", "act", what="1"),
        call("b", "stop"),
        call("c", "act", what="2"),
        call("d", "look", what="3"),
    )
    assert [outcome.message.content for outcome in outcomes] == [
        "did 1",
        "stop was stopped: by hand.",
        "Not started: by hand.",
        "Not started: by hand.",
    ]
    assert desk.did == ["act 1"]
    assert desk.journal.commits[-1] == ([("c", "failed"), ("d", "failed")], [])


def test_a_shutdown_leaves_what_can_still_run(desk: Desk) -> None:
    """What was started and may not be repeated has its outcome; the rest stays for the restart."""
    desk.reason = SHUTDOWN
    outcomes = desk.run(call("a", "act", what="1"), call("b", "stop"), call("c", "act", what="2"))
    assert [outcome.call.id for outcome in outcomes] == ["a", "b"]
    assert desk.journal.rows == [
        ("a", CallState.DONE),
        ("b", CallState.FAILED),
        ("c", CallState.INTENDED),
    ]


def test_a_shutdown_leaves_a_repeatable_call_to_be_repeated(desk: Desk) -> None:
    desk.reason = SHUTDOWN
    outcomes = desk.run(
        call("a", "look", what="1"), call("b", "stop_looking"), call("c", "act", what="2")
    )
    assert [outcome.message.content for outcome in outcomes] == ["seen 1"]
    assert [state.value for _, state in desk.journal.rows] == ["done", "intended", "intended"]
    assert desk.journal.commits == [([("a", "done")], [])]


def test_a_cancelled_turn_starts_nothing(desk: Desk) -> None:
    desk.token.cancel("too late")
    (outcome,) = desk.run(call("a", "act", what="1"))
    assert outcome.message.content == "Not started: too late." and desk.did == []
    assert desk.journal.commits == [([("a", "failed")], [])]


def test_a_turn_out_of_time_starts_nothing(desk: Desk) -> None:
    (outcome,) = desk.run(call("a", "act", what="1"), deadline=Deadline.after(0))
    assert outcome.message.content == "Not started: the turn's time is up."


def test_a_tool_has_its_own_deadline(desk: Desk) -> None:
    outcome = desk.one("wait")
    assert outcome.state is CallState.FAILED
    assert outcome.message.content == "Waiting did not finish in time."
    assert desk.one("act", what="after").state is CallState.DONE


# ------------------------------------------------------------------------------------------- caps


def test_long_output_is_cut_and_kept(desk: Desk) -> None:
    outcome = desk.one("talk", size=50_000)
    content = outcome.message.content
    assert len(content.encode()) < 17_000 and content.startswith("éé") and content.endswith("éé")
    assert (
        "of 100,000 bytes are left out here; the whole is in /tmp/outputs/turn1-one.txt" in content
    )
    assert (desk.folder / "tmp/outputs/turn1-one.txt").read_text() == "é" * 50_000
    read = desk.run(call("r", "file_read", path="/tmp/outputs/turn1-one.txt"))
    assert read[0].message.content.startswith("éé")


def test_short_output_stays_as_it_is(desk: Desk) -> None:
    assert desk.one("talk", size=8192).message.content == "é" * 8192
    assert desk.one("again", what="x").message.content == "(no output)"
    assert not (desk.folder / "tmp" / "outputs").exists()


@pytest.mark.parametrize("call_id", ["../../x", "a/b", "", "\ud800", "x" * 300, "a\0b", "."])
def test_call_ids_never_become_paths(desk: Desk, call_id: str) -> None:
    desk.run(call(call_id, "talk", size=50_000))
    (saved,) = (desk.folder / "tmp" / "outputs").iterdir()
    assert saved.parent == desk.folder / "tmp" / "outputs" and saved.name.endswith(".txt")
    assert len(saved.read_text()) == 50_000


def test_an_output_that_cannot_be_saved_is_said_so(desk: Desk) -> None:
    (desk.folder / "tmp" / "outputs").symlink_to(desk.folder / "vault")
    content = desk.one("talk", size=50_000).message.content
    assert "they could not be saved: /tmp/outputs is a symbolic link" in content
    assert not list((desk.folder / "vault").iterdir())


def test_saved_outputs_have_a_quota(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "MAX_TOTAL_BYTES", 250_000)
    for n in range(5):
        desk.run(call(str(n), "talk", size=50_000))
    kept = sorted(path.name for path in (desk.folder / "tmp" / "outputs").iterdir())
    assert kept == ["turn1-3.txt", "turn1-4.txt"]


@given(st.text(st.characters(codec=None), max_size=300), st.integers(20, 200))
def test_the_cap_keeps_head_and_tail_of_any_text(text: str, limit: int) -> None:
    capped = outputs.cap(text, limit, "n", None)
    clean = text.encode("utf-8", "replace").decode()
    if len(clean.encode()) <= limit:
        assert capped == clean
        return
    head, _, rest = capped.partition("\n\n[… ")
    assert clean.startswith(head) and clean.endswith(rest.partition(" …]\n\n")[2])
    assert len(capped.encode()) <= limit + 120


# ----------------------------------------------------------------------------------------- resume


def test_what_may_run_again_after_a_crash(desk: Desk) -> None:
    may = {name for name in ("look", "act", "again", "fetch", "nope") if desk.gate.may_repeat(name)}
    assert may == {"look", "again"}
    assert not desk.gate.may_repeat("file_write") and desk.gate.may_repeat("file_read")
    assert not desk.gate.may_repeat("file_edit") and not desk.gate.may_repeat("file_delete")


def test_the_summary_of_arguments_is_one_short_line(desk: Desk) -> None:
    desk.one("act", what="line\nline\t" + "x" * 1000)
    summary = desk.frames[1][1]["call"]["summary"]
    assert summary.startswith("what=line line xxx") and len(summary) == 120


# --------------------------------------------------------------------------- after a crash


class Probed(FunctionTool):
    """A tool that knows what became of its calls: what `knows` says of a call's `what`."""

    def __init__(self, knows: dict[str, Any]) -> None:
        def act(what: str) -> str:
            """Do something that can be asked after."""
            raise AssertionError(f"{what} was started")

        options: dict[str, Any] = {"tier": SafetyTier.SIDE_EFFECTING, "repeatable": False}
        super().__init__(act, timeout=5, **options)
        self.knows = knows

    def recover(self, arguments: Json, context: ToolContext) -> ToolResult | None:
        found = self.knows.get(arguments["what"])
        return cast(ToolResult | None, found(context) if callable(found) else found)


def recovered(desk: Desk, knows: dict[str, Any], *calls: ToolCall, **limits: int) -> Gate:
    gate = Gate(
        ToolRegistry([], extra=[Probed(knows)]),
        {"workspace": desk.workspace},
        GateLimits(**limits),
    )
    desk.journal.rows = [(one.id, CallState.RUNNING) for one in calls]
    gate.recover(calls, desk.scope(), desk.emit)
    return gate


def test_a_tool_says_what_became_of_a_call(desk: Desk) -> None:
    knows = {"well": ToolResult("it went well"), "badly": ToolResult("no", is_error=True)}
    asked = [call(what, "act", what=what) for what in ("well", "badly", "nobody-knows")]
    recovered(desk, knows, *asked, call("wrong", "act", nothing=1), call("gone", "no_such_tool"))
    assert [state for _id, state in desk.journal.rows] == [
        *(CallState.DONE, CallState.FAILED),
        *(CallState.UNKNOWN, CallState.UNKNOWN, CallState.UNKNOWN),
    ]
    shown = [payload["call"] for frame, payload in desk.frames if frame == "tool_event"]
    assert [row["state"] for row in shown[:6]] == [
        *("started", "finished", "started", "failed", "started", "failed")
    ]
    assert shown[5]["summary"] == "its outcome is unknown"


def test_a_recovered_result_is_scrubbed_and_capped(desk: Desk) -> None:
    stored: list[Message] = []
    finished = desk.journal.calls_finished

    def keep(results: Sequence[tuple[CallState, Message]], running: Sequence[str] = ()) -> None:
        stored.extend(message for _state, message in results)
        finished(results, running)

    desk.journal.calls_finished = keep  # type: ignore[method-assign]
    secret = "password=" + "hunter2hunter2"
    said = ToolResult(f"{secret}\n" + "x" * 5000)
    recovered(desk, {"it": said}, call("a", "act", what="it"), output_bytes=300)
    (message,) = stored
    assert "hunter2" not in message.content and "/tmp/outputs/turn1-a.txt" in message.content
    saved = (desk.folder / "tmp" / "outputs" / "turn1-a.txt").read_text()
    assert "hunter2" not in saved and len(saved) > 5000


def test_cancelled_while_a_call_is_asked_after(desk: Desk) -> None:
    def wait(context: ToolContext) -> ToolResult:
        context.token.cancel("by hand")
        context.token.check()
        raise AssertionError("unreachable")

    recovered(desk, {"it": wait}, call("a", "act", what="it"))
    assert desk.journal.rows == [("a", CallState.FAILED)]


def test_a_shutdown_leaves_what_was_not_asked_after(desk: Desk) -> None:
    desk.token.cancel(SHUTDOWN)
    recovered(desk, {"it": ToolResult("done")}, call("a", "act", what="it"))
    assert desk.journal.rows == [("a", CallState.RUNNING)] and desk.frames == []
