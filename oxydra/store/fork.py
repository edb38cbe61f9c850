"""A session that goes on from any point of another one."""

from __future__ import annotations

import json
import secrets

import apsw

from oxydra.errors import UsageError
from oxydra.store.conversation import ConversationTables
from oxydra.store.database import Row, clean, timestamp
from oxydra.types import Session


class ForkTables(ConversationTables):
    """Copies between sessions; no table of its own."""

    def fork_session(self, session_id: str, at: int, display_name: str = "") -> Session:
        """A new session with the events of another one up to `at`, with their numbers and marks.

        Turns, approvals and what could be taken back stay where they are. Raises `NotFoundError`,
        and `UsageError` where a step would be cut in two, naming the nearest valid points.
        """
        source = self.session(session_id)  # raises
        with self._transaction() as db:
            points = _points(db, session_id)
            if at not in points:
                raise _no_point(at, points)
            forked, now = secrets.token_hex(8), timestamp()
            db.execute(
                "INSERT INTO sessions (session_id, agent_name, display_name, channel_origin,"
                " created_at, last_active_at, activity, last_sequence) SELECT ?, agent_name, ?,"
                " channel_origin, ?, ?, (SELECT max(activity) + 1 FROM sessions), ?"
                " FROM sessions WHERE session_id = ?",
                (forked, clean(display_name), now, now, at, session_id),
            )
            db.execute(
                "INSERT INTO events (session_id, sequence, turn_id, message, created_at)"
                " SELECT ?, sequence, turn_id, message, created_at FROM events"
                " WHERE session_id = ? AND sequence <= ?",
                (forked, session_id, at),
            )
        return Session(
            forked, source.agent_name, display_name, source.channel_origin, now, now, False
        )


def _points(db: apsw.Connection, session_id: str) -> list[int]:
    """After which events nothing is half done: no call without its result, no message without its
    answer.
    """
    rows: list[Row] = db.execute(
        "SELECT sequence, message FROM events WHERE session_id = ? ORDER BY sequence",
        (session_id,),
    ).fetchall()
    points, waiting = [], 0
    for sequence, text in rows:
        message = json.loads(text)
        if message["role"] == "assistant":
            waiting = len(message.get("tool_calls", ()))
        elif message["role"] == "tool":
            waiting -= 1
        if not waiting and message["role"] != "user":
            points.append(sequence)
    return points


def _no_point(at: int, points: list[int]) -> UsageError:
    before = max((point for point in points if point < at), default=None)
    after = min((point for point in points if point > at), default=None)
    near = " and ".join(str(point) for point in (before, after) if point is not None)
    if not near:
        return UsageError("There is no complete step in this session to fork it at.")
    return UsageError(
        f"The session can't be cut after event {at}: a step would be cut in two, or it has none"
        " there.",
        remedy=f"The nearest points are {near}.",
    )
