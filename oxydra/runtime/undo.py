"""Taking back what the last turn of a session did through tools that keep note of it.

`Undo` works on the caller's thread, with the daemon or without it; no turn may run in the session
meanwhile. What each file held before the turn is put back if it still holds what the turn made of
it; where somebody changed it since, nothing is done unless that file may be left out. The
conversation is told before the first file is touched, so that no model believes in changes that are
gone; an undo that was interrupted is simply run again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from oxydra.errors import ToolError, UsageError
from oxydra.policy import VirtualPath
from oxydra.store import Store
from oxydra.store.notes import KIND as NOTE_KIND
from oxydra.store.notes import Note
from oxydra.tools.changes import KIND, NOTING, Found, look
from oxydra.tools.confine import Workspace
from oxydra.tools.delegate import NAME as DELEGATE
from oxydra.tools.memory import NOTING as MEMORY_NOTING
from oxydra.tools.memory import READING
from oxydra.tools.registry import TOOLS, load
from oxydra.tools.schedule import CHANGING
from oxydra.types import ASIDE, CallState, Change, Json, Message, SafetyTier, ToolCall, Turn

SHOWN_CHARS = 200  # of a prompt, and of a call's arguments
LISTED = 20  # files that a message names

Fate = Literal["restore", "remove", "as before", "changed since", "no copy"]


@dataclass(slots=True)
class Piece:
    """One file, or whatever a kind of changes is about: `name` for people, what is to become of
    it, and how that is done.
    """

    name: str
    fate: Fate
    do: Callable[[], None] = lambda: None


@dataclass(slots=True)
class Plan:
    """What taking back a turn means. `beyond` are the calls that can't be taken back."""

    turn: Turn | None
    state: str = ""
    pieces: list[Piece] = field(default_factory=list)
    beyond: list[tuple[ToolCall, CallState]] = field(default_factory=list)

    def named(self, *fates: Fate) -> list[str]:
        return [piece.name for piece in self.pieces if piece.fate in fates]

    def to_json(self) -> Json:
        """For the gateway and for scripts."""
        turn = self.turn
        return {
            "turn_id": None if turn is None else turn.turn_id,
            "prompt": "" if turn is None else turn.prompt[:SHOWN_CHARS],
            "state": self.state,
            "restored": self.named("restore", "as before"),
            "removed": self.named("remove"),
            "changed_since": self.named("changed since"),
            "no_copy": self.named("no copy"),
            "beyond": [
                {
                    "tool": call.name,
                    "arguments": call.arguments[:SHOWN_CHARS],
                    "state": state.value,
                }
                for call, state in self.beyond
            ],
        }

    def text(self, *, dry: bool = False) -> str:
        """For a person; `dry`: nothing was done."""
        if self.turn is None:
            return "There is no turn in this session."
        about = " ".join(self.turn.prompt[:SHOWN_CHARS].split())
        shown = [f"The last turn: {about[:80]}{'…' if len(about) > 80 else ''}"]
        if self.state == "already":
            return "\n".join([*shown, "It was taken back already."])
        if self.state == "nothing":
            shown.append("It changed nothing that can be taken back.")
        will = "would be " if dry else ""
        told: dict[Fate, str] = {
            "restore": f"{will}as before it",
            "as before": f"{will}as before it",
            "remove": f"{will}removed: new in that turn",
            "changed since": "left as it is: it was changed since",
            "no copy": "left as it is: no copy of what it held was kept",
        }
        shown += [f"  {piece.name}  {told[piece.fate]}" for piece in self.pieces]
        for call, state in self.beyond:
            arguments = call.arguments[:SHOWN_CHARS]
            shown.append(f"  not taken back: {call.name} {arguments} ({state.value})")
        return "\n".join(shown)


class Undo:
    """Takes back turns of one user."""

    def __init__(
        self,
        store: Store,
        workspace: Workspace,
        others: Callable[[Sequence[Change]], list[Piece]] = lambda _changes: [],
    ) -> None:
        """`others` gives the pieces of changes that are not of files, oldest first."""
        self._store = store
        self._workspace = workspace
        self._others = others

    def plan(self, session_id: str) -> Plan:
        """What would be done. Raises `NotFoundError`, or `UsageError` while a turn is under way."""
        self._store.session(session_id)
        if any(turn.session_id == session_id for turn in self._store.unfinished_turns()):
            raise UsageError(
                "A turn of this session is not over yet.", remedy="Cancel it, or let it finish."
            )
        turn = self._store.last_turn(session_id)
        if turn is None:
            return Plan(None, "nothing")
        if self._store.undo_state(turn.turn_id) == "done":
            return Plan(turn, "already")
        changes = self._store.changes_of_turn(turn.turn_id)
        pieces = self._files([change for change in changes if change.kind == KIND])
        pieces += self._notes([change for change in changes if change.kind == NOTE_KIND])
        pieces += self._others([c for c in changes if c.kind not in (KIND, NOTE_KIND)])
        beyond = [row for row in self._store.calls_of_turn(turn.turn_id) if _lasting(row[0].name)]
        return Plan(turn, "planned" if pieces else "nothing", pieces, beyond)

    def run(self, session_id: str, *, keep_changed: bool = False) -> Plan:
        """Take the last turn back. `keep_changed` leaves files alone that others changed since.

        Raises as `plan`; `UsageError` too where such files are in the way, `ToolError` for a file
        that could not be written: the rest is done with the next attempt.
        """
        plan = self.plan(session_id)
        changed = plan.named("changed since")
        if plan.turn is None or plan.state != "planned":
            return plan
        if changed and not keep_changed:
            raise UsageError(
                f"Nothing was taken back: {_listed(changed)} changed since that turn.",
                remedy="Leave them as they are and take back the rest with --keep-changed.",
            )
        self._store.begin_undo(plan.turn, self._told(plan))
        for piece in plan.pieces:
            piece.do()
        self._store.finish_undo(plan.turn)
        plan.state = "done"
        return plan

    # --------------------------------------------------------------------------------------- files

    def _files(self, changes: Sequence[Change]) -> list[Piece]:
        """What becomes of each file, the one that was changed last first."""
        chains: dict[tuple[str, ...], list[Change]] = {}
        for change in reversed(changes):
            chains.setdefault(tuple(change.payload["path"]), []).insert(0, change)
        return [self._file(VirtualPath(path[0], path[1:]), chain) for path, chain in chains.items()]

    def _file(self, path: VirtualPath, chain: Sequence[Change]) -> Piece:
        """`chain`: what the turn did to it, oldest first."""
        first, name = chain[0], str(path)
        before = first.payload["before"]
        try:
            now = look(self._workspace, path)
        except ToolError:
            return Piece(name, "changed since")
        if now.holds(before):
            return Piece(name, "as before")
        if not any(now.holds(change.payload["after"]) for change in chain):
            return Piece(name, "changed since")
        if before["kind"] == "none":
            return Piece(name, "remove", lambda: self._remove(path, first.payload["folders"]))
        if before["kind"] == "directory":
            return Piece(name, "restore", lambda: self._workspace.make(path))
        data = self._store.copy_of(first.change_id) if before["kind"] == "file" else None
        if data is None:
            return Piece(name, "no copy")
        kept, mode = data, int(before["mode"])
        return Piece(name, "restore", lambda: self._restore(path, kept, now, mode))

    def _restore(self, path: VirtualPath, data: bytes, now: Found, mode: int) -> None:
        self._workspace.sweep(path.parent)
        if now.status is None:
            self._workspace.write(path, data, new=True, mode=mode)
        else:
            self._workspace.write(path, data, expect=now.status)

    def _remove(self, path: VirtualPath, folders: int) -> None:
        """The file, and the folders that were made for it as far as they are empty."""
        self._workspace.sweep(path.parent)
        self._workspace.delete(path)
        with contextlib.suppress(ToolError):
            for _ in range(folders):
                path = path.parent
                self._workspace.delete(path)

    # --------------------------------------------------------------------------------------- notes

    def _notes(self, changes: Sequence[Change]) -> list[Piece]:
        """What becomes of each note: the revisions that the turn has made are withdrawn."""
        made: dict[str, list[int]] = {}
        for change in changes:
            made.setdefault(change.payload["note_id"], []).append(change.payload["revision"])
        known = self._store.notes_named(list(made))
        return [self._note(note_id, revisions, known) for note_id, revisions in made.items()]

    def _note(self, note_id: str, made: Sequence[int], known: Mapping[str, Note]) -> Piece:
        name, first = f"note {note_id}", min(made)
        now = known.get(note_id)
        if now is None:
            return Piece(name, "as before" if first == 1 else "no copy")
        if now.revision < first:
            return Piece(name, "as before")
        if now.revision > max(made):
            return Piece(name, "changed since")

        def withdraw() -> None:
            for revision in range(now.revision, first - 1, -1):
                self._store.withdraw_revision(note_id, revision)

        return Piece(name, "remove" if first == 1 else "restore", withdraw)

    # ------------------------------------------------------------------------------------ the rest

    def _told(self, plan: Plan) -> Message:
        """What the model reads before the person's next message. Names are quoted: a model chose
        them, and the person did not say them.
        """
        said = [f"{ASIDE}the person had the changes of your last turn taken back.]"]
        for what, names in (
            ("As before that turn, or gone if they were new:", ("restore", "remove", "as before")),
            ("Left as they are:", ("changed since", "no copy")),
        ):
            if found := plan.named(*names):
                said += [what, *(f"> {name}" for name in found[:LISTED])]
                said += [f"> and {len(found) - LISTED} more"] * (len(found) > LISTED)
        said.append("Look again before you rely on any of it.")
        assert plan.turn is not None  # or there would be nothing to tell
        marks = self._store.session_marks(plan.turn.session_id)
        return Message("user", "\n".join(said), tainted=marks.tainted, sensitive=marks.sensitive)


def _lasting(name: str) -> bool:
    """Whether a tool may do what no note is kept of. What is not known may do anything; of what was
    delegated its own calls count.
    """
    if name in NOTING or name in CHANGING or name in MEMORY_NOTING or name == DELEGATE:
        return False
    if name in READING:
        return False
    if name not in TOOLS:
        return True
    tool = load(name)
    return tool.tier is not SafetyTier.READ_ONLY or tool.egress


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
