"""Work that one turn gave to another agent: which call of which turn a session was made for.

A call has at most one such session, whatever is killed when: the session, its one turn and the link
to the call are one transaction, and who asks again finds them.
"""

from __future__ import annotations

import json
import secrets
from decimal import Decimal
from typing import Any

from oxydra.errors import ToolError
from oxydra.store.conversation import insert_session, insert_turn, turn_of
from oxydra.store.database import Database, Row, clean, placeholders
from oxydra.types import DELEGATED, Delegation, Marks, Turn, TurnState

_COLUMNS = Delegation.__slots__
_ROOT = (
    "WITH RECURSIVE above (turn_id) AS (SELECT ?1 UNION ALL SELECT parent_turn_id FROM delegations"
    " JOIN above USING (turn_id)) SELECT turn_id FROM above"
)
_BELOW = (
    "WITH RECURSIVE below (turn_id) AS (SELECT turn_id FROM delegations WHERE parent_turn_id = ?1"
    " UNION ALL SELECT delegations.turn_id FROM delegations JOIN below"
    " ON parent_turn_id = below.turn_id) SELECT count(*) FROM below"
)


class DelegationTables(Database):
    """`delegations`."""

    def begin_delegation(
        self, wanted: Delegation, prompt: str, marks: Marks, *, name: str, most: int
    ) -> tuple[Delegation, Turn]:
        """The session and turn of this call: as they are, or new, with `prompt` and its marks.

        `wanted` says all but `session_id` and `turn_id`. Raises `ToolError` where the person's
        turn, with all that work for it, has delegated `most` times already.
        """
        key = (wanted.parent_turn_id, wanted.step, clean(wanted.call_id), wanted.digest)
        with self._transaction() as db:
            row = db.execute(
                f"SELECT {', '.join(_COLUMNS)} FROM delegations WHERE parent_turn_id = ?"
                " AND step = ? AND call_id = ? AND digest = ?",
                key,
            ).fetchone()
            if row is not None:
                found = _delegation(row)
                turn = turn_of(db, found.turn_id, self.files)
                assert turn is not None  # the row refers to it
                return found, turn
            above: list[Row] = db.execute(_ROOT, key[:1]).fetchall()
            made = int(db.execute(_BELOW, (above[-1][0],)).get)
            if made >= most:
                raise ToolError(
                    f"This turn has delegated {made} times, and may not again.",
                    remedy="Do the rest yourself, or say what is left to do.",
                    code="delegation_limit",
                )
            session = insert_session(db, wanted.agent, clean(name), DELEGATED)
            turn = Turn(
                secrets.token_hex(16),
                session.session_id,
                DELEGATED,
                TurnState.QUEUED,
                clean(prompt),
                tainted=marks.tainted,
                sensitive=marks.sensitive,
            )
            insert_turn(db, turn)
            parts = {name: getattr(wanted, name) for name in _COLUMNS}
            parts |= {"session_id": session.session_id, "turn_id": turn.turn_id}
            found = Delegation(**parts)
            db.execute(
                f"INSERT INTO delegations ({', '.join(_COLUMNS)})"
                f" VALUES ({placeholders(_COLUMNS)})",
                _values(found),
            )
        return found, turn

    def depth_of(self, turn_id: str) -> int:
        """How many turns stand above this one."""
        with self._reading() as db:
            return len(db.execute(_ROOT, (turn_id,)).fetchall()) - 1

    def root_turn(self, turn_id: str) -> str:
        """The turn, sent by a person, for which this one works; its own id if it is one."""
        with self._reading() as db:
            rows: list[Row] = db.execute(_ROOT, (turn_id,)).fetchall()
        root: str = rows[-1][0]
        return root

    def session_marks(self, session_id: str) -> Marks:
        """What all messages of a session hold together."""
        with self._reading() as db:
            tainted, sensitive = db.execute(
                "SELECT coalesce(max(message ->> 'tainted'), 0),"
                " coalesce(max(message ->> 'sensitive'), 0) FROM events WHERE session_id = ?",
                (session_id,),
            ).get
        return Marks(bool(tainted), bool(sensitive))


def _values(found: Delegation) -> list[Any]:
    parts = {name: getattr(found, name) for name in _COLUMNS}
    parts |= {"tools": json.dumps(sorted(found.tools)), "call_id": clean(found.call_id)}
    parts["max_cost"] = "" if found.max_cost is None else str(found.max_cost)
    return list(parts.values())


def _delegation(row: Row) -> Delegation:
    parts = dict(zip(_COLUMNS, row, strict=True))
    parts |= {"tools": frozenset(json.loads(parts["tools"])), "attended": bool(parts["attended"])}
    parts["max_cost"] = Decimal(parts["max_cost"]) if parts["max_cost"] else None
    return Delegation(**parts)
