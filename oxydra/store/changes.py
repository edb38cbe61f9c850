"""What turns change outside of the conversation, noted before they do; and what was taken back.

A change has a kind, which says what its payload means: `file` is `tools/changes.py`'s. A copy of
what was there before goes with it in the same transaction, as long as there is room: a quota of
bytes and a number of copies, of which the oldest go first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from oxydra.store.conversation import ConversationTables
from oxydra.store.database import Row, as_text, clean, timestamp
from oxydra.types import CallState, Change, Json, Message, ToolCall, Turn, TurnState

MAX_COPIES = 1000

_CHANGE = "change_id, session_id, turn_id, step, call_id, kind, payload"
_MINE = (  # a turn, and those that worked for it
    "WITH RECURSIVE mine (turn_id) AS (SELECT ?1 UNION ALL SELECT delegations.turn_id"
    " FROM delegations JOIN mine ON parent_turn_id = mine.turn_id)"
)


class ChangeTables(ConversationTables):
    """`changes`, `change_copies` and `undos`."""

    def add_change(
        self,
        session_id: str,
        turn_id: str,
        step: int,
        call_id: str,
        kind: str,
        payload: Json,
        copy: bytes | None = None,
        quota: int = 0,
    ) -> None:
        """A call is about to change something: nothing has been done before this returns. `copy` is
        what was there, kept among the newest `quota` bytes.
        """
        with self._transaction() as db:
            db.execute(
                "INSERT INTO changes (session_id, turn_id, step, call_id, kind, payload,"
                " created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    *(session_id, turn_id, step, clean(call_id), kind),
                    *(as_text(payload), timestamp()),
                ),
            )
            if copy is None or len(copy) > quota:
                return
            row = (db.last_insert_rowid(), len(copy), copy)
            db.execute("INSERT INTO change_copies VALUES (?, ?, ?)", row)
            db.execute(
                "DELETE FROM change_copies WHERE change_id <= (SELECT max(change_id) FROM ("
                " SELECT change_id, sum(size) OVER newest AS total, row_number() OVER newest AS"
                " place FROM change_copies WINDOW newest AS (ORDER BY change_id DESC))"
                " WHERE total > ? OR place > ?)",
                (quota, MAX_COPIES),
            )

    def changes_of_call(self, turn_id: str, step: int, call_id: str) -> list[Change]:
        """What one call was about to change, oldest first."""
        return self._changes(
            "turn_id = ? AND step = ? AND call_id = ?", (turn_id, step, clean(call_id))
        )

    def changes_of_turn(self, turn_id: str) -> list[Change]:
        """What the calls of a turn were about to change, with those of the work that it delegated;
        oldest first.
        """
        return self._changes("turn_id IN mine", (turn_id,), _MINE)

    def _changes(self, where: str, values: Sequence[object], given: str = "") -> list[Change]:
        with self._reading() as db:
            rows: list[Row] = db.execute(
                f"{given} SELECT {_CHANGE} FROM changes WHERE {where} ORDER BY change_id", values
            ).fetchall()
        return [Change(*(*row[:6], json.loads(row[6]))) for row in rows]

    def copy_of(self, change_id: int) -> bytes | None:
        """What was there before a change; None where no copy was made, or it had to go."""
        with self._reading() as db:
            found: bytes | None = db.execute(
                "SELECT data FROM change_copies WHERE change_id = ?", (change_id,)
            ).get
        return found

    # --------------------------------------------------------------------------------- taken back

    def last_turn(self, session_id: str) -> Turn | None:
        """The newest turn of a session that is no message to another one."""
        with self._reading() as db:
            found: str | None = db.execute(
                "SELECT turn_id FROM turns WHERE session_id = ? AND state <> ?"
                " ORDER BY rowid DESC LIMIT 1",
                (session_id, TurnState.JOINED),
            ).get
        return None if found is None else self.turn(found)

    def calls_of_turn(self, turn_id: str) -> list[tuple[ToolCall, CallState]]:
        """The calls that a turn made, and then those of the work that it delegated."""
        with self._reading() as db:
            rows: list[Row] = db.execute(
                f"{_MINE} SELECT call_id, name, arguments, state FROM tool_calls"
                " WHERE turn_id IN mine ORDER BY turn_id <> ?1, turn_id, sequence, position",
                (turn_id,),
            ).fetchall()
        return [(ToolCall(*row[:3]), CallState(row[3])) for row in rows]

    def undo_state(self, turn_id: str) -> str:
        """`begun` or `done` for a turn that was taken back, else empty."""
        with self._reading() as db:
            return str(
                db.execute("SELECT state FROM undos WHERE turn_id = ?", (turn_id,)).get or ""
            )

    def begin_undo(self, turn: Turn, told: Message) -> None:
        """From here on a turn counts as taken back, and the conversation says so. Once: what was
        begun before is not told again.
        """
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO undos VALUES (?, 'begun', ?)", (turn.turn_id, timestamp())
            )
            if db.changes():
                self._append(db, turn.session_id, f"undo-{turn.turn_id}", told)

    def finish_undo(self, turn: Turn) -> None:
        """`begun -> done`."""
        with self._transaction() as db:
            db.execute("UPDATE undos SET state = 'done' WHERE turn_id = ?", (turn.turn_id,))
