"""Requests to allow tool calls and their answers, and the marks on files that decide about some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oxydra.errors import NotFoundError
from oxydra.store.database import Database, Row, clean, placeholders, timestamp
from oxydra.types import Approval, ApprovalState, Marks


class ApprovalTables(Database):
    """`approvals` and `file_marks`."""

    # ---------------------------------------------------------------------------------- approvals

    def add_approval(self, approval: Approval) -> None:
        """A new request: it can be answered once this returns."""
        values = [getattr(approval, name) for name in Approval.__slots__]
        values = [clean(value) if isinstance(value, str) else value for value in values]
        with self._transaction() as db:
            db.execute(
                f"INSERT INTO approvals ({', '.join(Approval.__slots__)})"
                f" VALUES ({placeholders(Approval.__slots__)})",
                values,
            )

    def approval(self, approval_id: str) -> Approval:
        """Raises `NotFoundError`."""
        found = self._approvals("WHERE approval_id = ?", (approval_id,))
        if not found:
            raise NotFoundError(f"There is no request {approval_id[:64]!r} for an approval.")
        return found[0]

    def approval_of_call(
        self, turn_id: str, step: int, call_id: str, tool: str, arguments_sha256: str
    ) -> Approval | None:
        """The newest request about exactly this call."""
        found = self._approvals(
            "WHERE turn_id = ? AND step = ? AND call_id = ? AND tool = ? AND arguments_sha256 = ?"
            " ORDER BY rowid DESC LIMIT 1",
            (turn_id, step, clean(call_id), tool, arguments_sha256),
        )
        return found[0] if found else None

    def allowed_call(self, turn_id: str, step: int, call_id: str) -> bool:
        """Whether a person allowed this call."""
        where = "WHERE turn_id = ? AND step = ? AND call_id = ? AND state = 'allowed' LIMIT 1"
        return bool(self._approvals(where, (turn_id, step, clean(call_id))))

    def approved_for_session(self, session_id: str, tool: str, arguments_sha256: str) -> bool:
        """Whether these arguments were allowed for the whole session."""
        where = (
            "WHERE session_id = ? AND tool = ? AND arguments_sha256 = ?"
            " AND state = 'allowed' AND scope = 'session' LIMIT 1"
        )
        return bool(self._approvals(where, (session_id, tool, arguments_sha256)))

    def pending_approvals(self, session_id: str = "") -> list[Approval]:
        """Open requests, oldest first; if a session is named, its own and those of the sessions
        that work for it.
        """
        if not session_id:
            return self._approvals("WHERE state = 'pending' ORDER BY rowid", ())
        below = (
            "WITH RECURSIVE below (id) AS (SELECT ? UNION SELECT session_id FROM delegations"
            " JOIN below ON parent_session_id = id) SELECT id FROM below"
        )
        where = f"WHERE state = 'pending' AND session_id IN ({below}) ORDER BY rowid"
        return self._approvals(where, (session_id,))

    def settle_approval(
        self, approval_id: str, state: ApprovalState, *, scope: str = "", decided_by: str = ""
    ) -> Approval:
        """`pending -> allowed | denied | expired`; returns the request as it is then, which is as
        it was if it had been settled before: the first answer holds.
        """
        with self._transaction() as db:
            db.execute(
                "UPDATE approvals SET state = ?, scope = ?, decided_by = ?, decided_at = ?"
                " WHERE approval_id = ? AND state = 'pending'",
                (state, scope, clean(decided_by), timestamp(), approval_id),
            )
        return self.approval(approval_id)

    def _approvals(self, clause: str, values: Sequence[Any]) -> list[Approval]:
        with self._reading() as db:
            rows: list[Row] = db.execute(
                f"SELECT {', '.join(Approval.__slots__)} FROM approvals {clause}", values
            ).fetchall()
        named = (dict(zip(Approval.__slots__, row, strict=True)) for row in rows)
        return [
            Approval(
                **row | {"complete": bool(row["complete"]), "state": ApprovalState(row["state"])}
            )
            for row in named
        ]

    # --------------------------------------------------------------------------- marks on files

    def mark_files(self, paths: Sequence[str], marks: Marks) -> None:
        """Add marks to files, or to all that is in a folder; they stay until the database goes."""
        with self._transaction() as db:
            for path in paths:
                db.execute(
                    "INSERT INTO file_marks VALUES (?, ?, ?) ON CONFLICT (path) DO UPDATE SET"
                    " tainted = max(tainted, excluded.tainted),"
                    " sensitive = max(sensitive, excluded.sensitive)",
                    (path, int(marks.tainted), int(marks.sensitive)),
                )

    def marks_of(self, paths: Sequence[str]) -> Marks:
        """The marks of these files, of the folders they are in, and of what is in them."""
        found = Marks()
        with self._reading() as db:
            for path in paths:
                tainted, sensitive = db.execute(
                    "SELECT coalesce(max(tainted), 0), coalesce(max(sensitive), 0) FROM file_marks"
                    " WHERE path = ?1 OR substr(path, 1, length(?1) + 1) = ?1 || '/'"
                    " OR substr(?1, 1, length(path) + 1) = path || '/'",
                    (path,),
                ).get
                found |= Marks(bool(tainted), bool(sensitive))
        return found
