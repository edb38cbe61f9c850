"""What people are owed a word of: kept until a client says that it was shown, or a channel that it
took it. `notice_id` is never used again, so that whoever was given one twice can tell.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import apsw

from oxydra.store.database import Database, Row, as_text, clean
from oxydra.types import Json

KEPT = 50  # of one schedule that nobody has seen; the ledger has what older ones said
AT_ONCE = 100  # that a client gets when it comes; the others when it comes again
GIVEN = 1000  # rows that stay of those that were seen
RETRY = (30, 3600)  # seconds before a channel is tried again, first and longest


@dataclass(frozen=True, slots=True)
class Notice:
    """`session_id` is where its schedule was made, "" for the command line; `channel` and `context`
    are that session's: `telegram` and what that calls the chat. `not_before` is in Unix seconds.
    """

    notice_id: int
    schedule_id: str
    session_id: str
    channel: str
    context: str
    payload: Json
    attempts: int
    not_before: int


_NOTICE = ", ".join(Notice.__slots__)


class NoticeTables(Database):
    """`notices`."""

    def owed_notices(self, besides: Collection[str] = (), most: int = AT_ONCE) -> list[Notice]:
        """Those that nobody has seen, the newest `most` of them, oldest first; without those of the
        channels `besides`.
        """
        where = (
            "AND channel NOT IN (SELECT value FROM json_each(?)) ORDER BY notice_id DESC LIMIT ?"
        )
        return self._notices(where, (_list(besides), most))[::-1]

    def due_notices(self, channels: Collection[str], now: int) -> list[Notice]:
        """Those that these channels may be given now, oldest first."""
        where = (
            "AND channel IN (SELECT value FROM json_each(?)) AND not_before <= ? ORDER BY notice_id"
        )
        return self._notices(where, (_list(channels), now))

    def next_notice(self, channels: Collection[str]) -> int | None:
        """When one of these channels may be tried next."""
        with self._reading() as db:
            found = db.execute(
                "SELECT min(not_before) FROM notices WHERE delivered = 0"
                " AND channel IN (SELECT value FROM json_each(?))",
                (_list(channels),),
            ).get
        return None if found is None else int(found)

    def notices_seen(self, notice_ids: Sequence[int]) -> None:
        """They arrived: nothing is owed any more."""
        with self._transaction() as db:
            db.executemany(
                "UPDATE notices SET delivered = 1 WHERE notice_id = ?",
                [(each,) for each in notice_ids],
            )
            db.execute(
                "DELETE FROM notices WHERE delivered = 1"
                " AND notice_id <= (SELECT max(notice_id) FROM notices) - ?",
                (GIVEN,),
            )

    def notice_failed(self, notice_id: int, now: int) -> None:
        """Its channel did not take it: it is tried again, later each time."""
        first, longest = RETRY
        with self._transaction() as db:
            db.execute(
                "UPDATE notices SET attempts = attempts + 1,"
                " not_before = ? + min(?, ? << min(attempts, 20)) WHERE notice_id = ?",
                (now, longest, first, notice_id),
            )

    def _notices(self, where: str, values: Sequence[Any]) -> list[Notice]:
        with self._reading() as db:
            rows: list[Row] = db.execute(
                f"SELECT {_NOTICE} FROM notices WHERE delivered = 0 {where}", values
            ).fetchall()
        return [_notice(row) for row in rows]


def insert_notice(
    db: apsw.Connection, schedule_id: str, where: tuple[str, str, str], payload: Json
) -> Notice:
    """Owe one, inside of a transaction; `where`: session, channel, context."""
    db.execute(
        "INSERT INTO notices (schedule_id, session_id, channel, context, payload)"
        " VALUES (?, ?, ?, ?, ?)",
        (schedule_id, *map(clean, where), as_text(payload)),
    )
    notice_id = db.last_insert_rowid()
    db.execute(
        "UPDATE notices SET delivered = 1 WHERE schedule_id = ?1 AND delivered = 0 AND notice_id <="
        " (SELECT notice_id FROM notices WHERE schedule_id = ?1 AND delivered = 0"
        " ORDER BY notice_id DESC LIMIT 1 OFFSET ?2)",
        (schedule_id, KEPT),
    )
    row = db.execute(f"SELECT {_NOTICE} FROM notices WHERE notice_id = ?", (notice_id,)).fetchone()
    assert row is not None
    return _notice(row)


def _list(names: Collection[str]) -> str:
    return json.dumps(sorted(names))


def _notice(row: Row) -> Notice:
    parts = dict(zip(Notice.__slots__, row, strict=True))
    payload = {**json.loads(parts["payload"]), "notice_id": parts["notice_id"]}
    return Notice(**{**parts, "payload": payload})
