"""What stands for the beginning of a conversation, and what of it is never left out.

The events themselves stay as they are: a summary says how far it reaches, and a result that was
shortened is only sent so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from oxydra.frames import compact
from oxydra.store.database import Database, Row, clean, timestamp
from oxydra.types import Marks, Pin, Summary


class SummaryTables(Database):
    """`summaries`, `shortened` and `pins`."""

    # ---------------------------------------------------------------------------------- summaries

    def summary(self, session_id: str) -> Summary | None:
        """The newest summary of a session."""
        with self._reading() as db:
            row = db.execute(
                "SELECT epoch, through, content, carries, model, tainted, sensitive FROM summaries"
                " WHERE session_id = ? ORDER BY epoch DESC LIMIT 1",
                (session_id,),
            ).fetchone()
        if row is None:
            return None
        epoch, through, content, carries, model, tainted, sensitive = row
        marks = Marks(bool(tainted), bool(sensitive))
        return Summary(
            session_id, epoch, through, content, tuple(json.loads(carries)), model, marks
        )

    def add_summary(self, summary: Summary) -> bool:
        """Keep a summary, unless another one of its epoch or a later one is there: a slower summary
        never takes the place of a newer one. Whether it was kept.
        """
        with self._transaction() as db:
            db.execute(
                "INSERT INTO summaries SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9 WHERE ?2 = 1 +"
                " (SELECT coalesce(max(epoch), 0) FROM summaries WHERE session_id = ?1)",
                (
                    *(summary.session_id, summary.epoch, summary.through, clean(summary.content)),
                    *(compact(summary.carries), summary.model),
                    *(int(summary.marks.tainted), int(summary.marks.sensitive), timestamp()),
                ),
            )
            return bool(db.changes())

    # ---------------------------------------------------------------------------------- shortened

    def shortened(self, session_id: str, *, after: int = 0) -> dict[int, str]:
        """What is sent of results that were shortened, by sequence."""
        with self._reading() as db:
            rows: list[Row] = db.execute(
                "SELECT sequence, content FROM shortened WHERE session_id = ? AND sequence > ?",
                (session_id, after),
            ).fetchall()
        return dict(rows)

    def shorten(self, session_id: str, contents: Mapping[int, str]) -> None:
        """From now on, this is sent of these results."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO shortened VALUES (?, ?, ?)",
                [(session_id, sequence, clean(text)) for sequence, text in contents.items()],
            )

    # --------------------------------------------------------------------------------------- pins

    def pins(self, session_id: str) -> list[Pin]:
        """The rules in force, oldest first."""
        with self._reading() as db:
            rows: list[Row] = db.execute(
                "SELECT pin_id, text, sequence FROM pins WHERE session_id = ? AND removed = 0"
                " ORDER BY pin_id",
                (session_id,),
            ).fetchall()
        return [Pin(*row) for row in rows]

    def add_pins(self, session_id: str, texts: Sequence[str], sequence: int = 0) -> list[Pin]:
        """Add rules, those said in the event `sequence` at most once each: one that was removed
        stays so. A text that is in force already is not added again. What a tool call has told
        another agent holds no rules: there a model has written the person's part. Returns what was
        added.
        """
        added: list[Pin] = []
        with self._transaction() as db:
            delegated = db.execute(
                "SELECT 1 FROM events JOIN delegations USING (turn_id)"
                " WHERE events.session_id = ? AND sequence = ?",
                (session_id, sequence),
            ).fetchone()
            if delegated is not None:
                return added
            for text in map(clean, texts):
                known = db.execute(
                    "SELECT 1 FROM pins WHERE session_id = ? AND text = ?"
                    " AND (removed = 0 OR (sequence = ? AND sequence <> 0))",
                    (session_id, text, sequence),
                ).fetchone()
                if known is not None:
                    continue
                pin_id = db.execute(
                    "INSERT INTO pins SELECT ?1, 1 + coalesce(max(pin_id), 0), ?2, ?3, 0, ?4"
                    " FROM pins WHERE session_id = ?1 RETURNING pin_id",
                    (session_id, text, sequence, timestamp()),
                ).get
                added.append(Pin(pin_id, text, sequence))
        return added

    def remove_pin(self, session_id: str, pin_id: int) -> bool:
        """Take a rule out of force; whether it was in force."""
        with self._transaction() as db:
            db.execute(
                "UPDATE pins SET removed = 1 WHERE session_id = ? AND pin_id = ? AND removed = 0",
                (session_id, pin_id),
            )
            return bool(db.changes())
