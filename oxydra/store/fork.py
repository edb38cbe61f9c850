"""Sessions that begin with what was said in another one: copies that people go on with, and those
that a replay goes on from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import apsw

from oxydra.errors import UsageError
from oxydra.frames import message_json
from oxydra.store.conversation import ConversationTables, insert_session, keep_session
from oxydra.store.database import Row, as_text, clean
from oxydra.types import Event, Session


class ForkTables(ConversationTables):
    """Copies between sessions; no table of its own."""

    def fork_session(self, session: Session, display_name: str, at: int | None = None) -> Session:
        """A new session of the same agent with a copy of what was said up to the event `at`, with
        its marks, and of the rules, the summary and the shortened results that belong to it. None:
        all, up to a turn that still runs.

        Turns, approvals and what could be taken back stay where they are. Raises `UsageError` where
        a step would be cut in two, naming the nearest points that do not.
        """
        source = session.session_id
        with self._transaction() as db:
            points = _points(db, source)
            if at is None:
                at = points[-1]
            elif at not in points:
                raise _no_point(at, points)
            made = insert_session(db, session.agent_name, clean(display_name), "gateway")
            values = (made.session_id, source, at)
            db.execute(
                "INSERT INTO events SELECT ?1, sequence, turn_id, message, created_at FROM events"
                " WHERE session_id = ?2 AND sequence <= ?3",
                values,
            )
            db.execute(
                "INSERT INTO summaries SELECT ?1, epoch, through, content, carries, model, tainted,"
                " sensitive, created_at FROM summaries WHERE session_id = ?2 AND through <= ?3",
                values,
            )
            db.execute(
                "INSERT INTO shortened SELECT ?1, sequence, content FROM shortened"
                " WHERE session_id = ?2 AND sequence <= ?3",
                values,
            )
            db.execute(
                "INSERT INTO pins SELECT ?1, pin_id, text, sequence, removed, created_at FROM pins"
                " WHERE session_id = ?2 AND sequence <= ?3",
                values,
            )
            db.execute(
                "UPDATE sessions SET last_sequence = ? WHERE session_id = ?", (at, made.session_id)
            )
        return made

    def copy_session(self, session: Session, events: Sequence[Event]) -> None:
        """Store a session of another database with these events, its first ones."""
        with self._transaction() as db:
            keep_session(db, session)
        self.copy_events(session.session_id, events)

    def copy_events(self, session_id: str, events: Sequence[Event]) -> None:
        """Add events of another database to a session that has those before them."""
        with self._transaction() as db:
            db.executemany(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?)",
                [
                    (
                        *(session_id, event.sequence, event.turn_id),
                        *(as_text(message_json(event.message)), event.created_at),
                    )
                    for event in events
                ],
            )
            if events:
                db.execute(
                    "UPDATE sessions SET last_sequence = ? WHERE session_id = ?",
                    (events[-1].sequence, session_id),
                )


def _points(db: apsw.Connection, session_id: str) -> list[int]:
    """After which events nothing is half done: no call without its result, no message without its
    answer, no turn that still runs. 0, before all of them, is one.
    """
    rows: list[Row] = db.execute(
        "SELECT sequence, message, turn_id IN (SELECT turn_id FROM turns WHERE session_id = ?1 AND"
        " state = 'running') FROM events WHERE session_id = ?1 ORDER BY sequence",
        (session_id,),
    ).fetchall()
    points, waiting = [0], 0
    for sequence, text, running in rows:
        if running:
            break
        message = json.loads(text)
        if message["role"] == "assistant":
            waiting = len(message.get("tool_calls", ()))
        elif message["role"] == "tool":
            waiting -= 1
        if not waiting and message["role"] != "user":
            points.append(sequence)
    return points


def _no_point(at: int, points: Sequence[int]) -> UsageError:
    before = max((point for point in points if point < at), default=None)
    after = min((point for point in points if point > at), default=None)
    near = " and ".join(str(point) for point in (before, after) if point is not None)
    return UsageError(
        f"The session can't be cut after event {at}: a step would be cut in two, or it has none"
        " there.",
        remedy=f"The nearest points are {near}.",
    )
