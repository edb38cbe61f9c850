"""What is known of one turn's times, from all tables that have some."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import apsw

from oxydra.errors import NotFoundError, UsageError
from oxydra.store.database import Database, Row
from oxydra.types import DELEGATED, Json


@dataclass(frozen=True, slots=True)
class Traced:
    """Rows of one turn, in the order of their times. Times are UTC in RFC 3339, empty if not known.

    `turn` has session_id, agent_name, state, terminal, created_at, updated_at; `started_at` is when
    it left the queue; `resumed` are its restarts; `calls`, `models`, `approvals` and `joined` are
    rows of the tables `tool_calls`, `spend`, `approvals` and `turns`; `children` the turns that
    work for it.
    """

    turn: Json
    started_at: str
    resumed: list[str]
    calls: list[Json]
    models: list[Json]
    approvals: list[Json]
    joined: list[Json]
    children: list[str]


class TraceTables(Database):
    """Reads only; each method is one look."""

    def find_turn(self, wanted: str, session_id: str = "") -> str:
        """The turn with this id or this unique prefix of one, or the `last` one, of a session if it
        is named; `last` is none that works for another. Raises `NotFoundError` and `UsageError`.
        """
        pattern = wanted.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        with self._reading() as db:
            if wanted == "last":
                sql = (
                    "SELECT turn_id FROM turns JOIN sessions USING (session_id)"
                    " WHERE (session_id = ?1 OR ?1 = '' AND channel_origin <> ?2)"
                    " AND state <> 'joined' ORDER BY turns.rowid DESC LIMIT 1"
                )
                rows: list[Row] = db.execute(sql, (session_id, DELEGATED)).fetchall()
            else:
                sql = "SELECT turn_id FROM turns WHERE turn_id LIKE ? ESCAPE '\\' LIMIT 6"
                rows = db.execute(sql, (pattern,)).fetchall() if wanted else []
        found = [str(row[0]) for row in rows]
        if wanted in found:
            return wanted
        if not found:
            raise NotFoundError(
                f"There is no turn {wanted[:64]!r}.",
                remedy="`oxydra-runner trace last` shows the newest; records of the log and events"
                " of an export name theirs.",
            )
        if len(found) > 1:
            raise UsageError(
                f"{wanted[:64]!r} means several turns ({', '.join(found[:5])}).",
                remedy="Give more characters of the id.",
            )
        return found[0]

    def traced(self, turn_id: str) -> Traced:
        """Raises `NotFoundError`."""
        with self._reading() as db:
            found = _rows(
                db,
                "session_id, agent_name, state, terminal, turns.created_at, updated_at, resumed",
                "turns JOIN sessions USING (session_id) WHERE turn_id = ?",
                turn_id,
            )
            if not found:
                raise NotFoundError(f"There is no turn {turn_id[:64]!r}.")
            turn = found[0]
            turn["terminal"] = json.loads(turn["terminal"] or "{}")
            started = db.execute(
                "SELECT min(created_at) FROM events WHERE session_id = ? AND turn_id = ?",
                (turn["session_id"], turn_id),
            ).get
            return Traced(
                turn=turn,
                started_at=started or "",
                resumed=json.loads(turn.pop("resumed")),
                calls=_rows(
                    db,
                    "call_id, name, state, events.created_at, running_at, took_ms, updated_at",
                    "tool_calls JOIN events ON events.session_id = ?2"
                    " AND events.sequence = tool_calls.sequence WHERE tool_calls.turn_id = ?1"
                    " ORDER BY tool_calls.sequence, position",
                    turn_id,
                    turn["session_id"],
                ),
                models=_rows(
                    db,
                    "purpose, provider, model, state, cost, priced, guessed, prompt_tokens,"
                    " completion_tokens, cached_tokens, reasoning_tokens, created_at, settled_at,"
                    " first_ms, ended",
                    "spend WHERE turn_id = ? ORDER BY spend_id",
                    turn_id,
                ),
                approvals=_rows(
                    db,
                    "call_id, tool, state, scope, decided_by, created_at, decided_at",
                    "approvals WHERE turn_id = ? ORDER BY rowid",
                    turn_id,
                ),
                joined=_rows(
                    db,
                    "turn_id, updated_at",
                    "turns WHERE joins = ? AND joins <> '' AND state = 'joined' ORDER BY rowid",
                    turn_id,
                ),
                children=[
                    str(row["turn_id"])
                    for row in _rows(
                        db,
                        "turn_id",
                        "delegations WHERE parent_turn_id = ? ORDER BY step, call_id",
                        turn_id,
                    )
                ],
            )


def _rows(db: apsw.Connection, columns: str, rest: str, *values: Any) -> list[Json]:
    names = [name.rpartition(".")[2] for name in columns.split(", ")]
    rows: list[Row] = db.execute(f"SELECT {columns} FROM {rest}", values).fetchall()
    return [dict(zip(names, row, strict=True)) for row in rows]
