"""Tools by themselves, without a daemon or a model: what the gate and a command cost.

It runs in a process of its own and prints one JSON object, which `measures` reads:
`python -m tests.bench.tools RUNS`. The store is on disk, in a temporary folder.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from oxydra.approvals import Approvals, Rules
from oxydra.scrub.guest import GuestScrubber, describe
from oxydra.store import Store
from oxydra.threads import CancelToken
from oxydra.tools import Gate, ToolRegistry, TurnScope, Workspace
from oxydra.tools.base import FunctionTool
from oxydra.types import CallState, Json, Marks, Message, SafetyTier, ToolCall, Turn
from tests.bench import proc
from tests.sandbox import missing, sandbox

CALLS = 50  # in a turn
TURNS = 6
COMMANDS = 100
LEVELS = ("bwrap+cage", "cage", "rlimits")
KEYS = ("openai", "anthropic", "gemini")
RESULT = "\n".join(f"notes-{number}.md  160 bytes" for number in range(20))
ARGUMENTS = json.dumps({"path": "/shared/notes.md", "text": "A line of text.\n" * 10})


def look(path: str, text: str = "", limit: int = 10) -> str:
    """Do nothing and say twenty lines."""
    return RESULT


class StoreJournal:
    """The journal of a turn, as the turn loop keeps it."""

    def __init__(self, store: Store, turn: Turn) -> None:
        self._store, self._turn = store, turn

    def calls_running(self, running: Sequence[str]) -> None:
        self._store.calls_running(self._turn, running)

    def calls_finished(
        self,
        results: Sequence[tuple[CallState, Message]],
        running: Sequence[str] = (),
        took: Sequence[int] = (),
    ) -> None:
        self._store.calls_finished(self._turn, results, running, took)

    def marks_of(self, paths: Sequence[str]) -> Marks:
        return self._store.marks_of(paths)

    def mark_files(self, paths: Sequence[str], marks: Marks) -> None:
        self._store.mark_files(paths, marks)


def gate_of(folder: Path, store: Store, workspace: Workspace, tier: SafetyTier) -> Gate:
    """A gate as an agent guest has it, with a tool of `tier` that does nothing."""
    again = tier is SafetyTier.READ_ONLY
    tool = FunctionTool(look, tier=tier, repeatable=again, timeout=60)
    hashes = describe([secrets.token_urlsafe(32) for _ in KEYS])
    return Gate(
        ToolRegistry(extra=[tool]),
        {"workspace": workspace},
        approve=Approvals(store, Rules(), sandboxed=True).check,
        scrubber=GuestScrubber(hashes, {str(folder): ""}),
    )


def overhead(gate: Gate, store: Store) -> list[float]:
    """CPU milliseconds of each call: the median of a turn's, for each of `TURNS` turns."""

    def emit(_type: str, _payload: Json) -> None:
        pass

    found = []
    for number in range(TURNS):
        session = store.create_session().session_id
        turn, _ = store.accept_turn(session, secrets.token_hex(8), "r", "go")
        store.start_turn(turn)
        scope = TurnScope(session, turn.turn_id, CancelToken(), StoreJournal(store, turn))
        each = []
        for call in range(CALLS):
            calls = (ToolCall(f"call_{number}_{call}", "look", ARGUMENTS),)
            message = Message("assistant", tool_calls=calls)
            before = time.thread_time()
            store.add_step(turn, message)
            gate.run(calls, scope, emit)
            each.append((time.thread_time() - before) * 1000)
        found.append(proc.median(each))
    return found


def gates(folder: Path, runs: int) -> dict[str, float]:
    found = {}
    for name in ("shared", "tmp", "vault"):
        (folder / name).mkdir()
    with contextlib.closing(Workspace.at(folder)) as workspace:
        for name, tier in {"read": SafetyTier.READ_ONLY, "act": SafetyTier.SIDE_EFFECTING}.items():
            with contextlib.closing(Store(folder / f"{name}.db")) as store:
                gate = gate_of(folder, store, workspace, tier)
                each = [ms for _ in range(runs) for ms in overhead(gate, store)]
                found[f"gate_{name}_cpu_ms"] = proc.median(each)
    return found


def shells(folder: Path, runs: int) -> dict[str, float]:
    """Milliseconds from a command's request to its result, in a session that is there already."""
    level = next(level for level in LEVELS if not missing(level))
    found = {}
    with sandbox(folder, level) as box:
        for name, command in {"builtin": "true", "ls": "ls"}.items():
            box.run(command)
            times = []
            for _ in range(runs * COMMANDS):
                before = time.monotonic()
                box.run(command)
                times.append((time.monotonic() - before) * 1000)
            found[f"shell_{name}_ms"] = proc.median(times)
    return found


def main(runs: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        return gates(Path(one), runs) | shells(Path(other), runs)


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))
