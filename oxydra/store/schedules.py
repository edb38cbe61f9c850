"""What is scheduled, and the ledger of its due times: a row for each, with what became of it.

A fire goes `due -> claimed -> ran | failed`, `claimed -> due` for another attempt, and is `skipped`
or `missed` where it does not run. The turn of an attempt has an id that follows from the fire, so
what was claimed before a crash is found again and never begun twice. Moments are Unix seconds.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import apsw

from oxydra.errors import BusyError, NotFoundError, UsageError
from oxydra.store.conversation import insert_session
from oxydra.store.database import Database, Row, clean, placeholders, timestamp
from oxydra.store.notices import Notice, insert_notice
from oxydra.types import SCHEDULED, Json, Marks

OPEN = ("due", "claimed")
ENDED = ("ran", "failed", "skipped", "missed")
REMEMBERED = 86_400  # seconds that a due time is known to have had its row, whatever the clock does


@dataclass(frozen=True, slots=True)
class Schedule:
    """`status`: `active`, `paused`, `disabled` (it failed too often) or `done`. `origin` is the
    session it was made in, `channel` and `context` say where that is; `failures` counts runs in a
    row that failed.
    """

    schedule_id: str
    name: str
    goal: str
    cadence_type: str
    cadence_value: str
    timezone: str
    notification: str
    status: str
    reason: str
    anchor: int
    next_due: int | None
    failures: int
    tainted: bool
    sensitive: bool
    origin: str
    created_at: str
    channel: str = ""
    context: str = ""

    @property
    def session_id(self) -> str:
        return f"scheduled:{self.schedule_id}"

    def to_json(self) -> Json:
        hidden = ("anchor", "context")
        return {name: getattr(self, name) for name in self.__slots__ if name not in hidden}


@dataclass(frozen=True, slots=True)
class Fire:
    """`attempts` have begun; `not_before` is when the next one may; `cost` is in nano-dollars;
    `code` is that of the error it ended with.
    """

    fire_id: int
    schedule_id: str
    due_at: int
    state: str
    reason: str
    attempts: int
    not_before: int
    output: str
    cost: int
    turns: int
    notified: str
    code: str

    @property
    def turn_id(self) -> str:
        """Of the attempt that began last."""
        text = f"{self.schedule_id} {self.due_at} {self.attempts}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def to_json(self) -> Json:
        found = {name: getattr(self, name) for name in self.__slots__ if name != "output"}
        return {**found, "turn_id": self.turn_id if self.attempts else ""}


@dataclass(frozen=True, slots=True)
class Passed:
    """Due times of one schedule that have come, the first of which was `since`, with the state and
    reason of each, and the next one to come. What is to run begins `delay` seconds later.
    """

    schedule_id: str
    since: int | None
    fires: Sequence[tuple[int, str, str]]
    next_due: int | None
    one_waits: bool = True  # what waited before them is skipped
    delay: int = 0


@dataclass(frozen=True, slots=True)
class Ending:
    """What became of a claimed fire: `ran`, `failed` or `skipped`, what is new in its schedule, and
    what is owed to its person because of it.
    """

    state: str
    reason: str = ""
    code: str = ""
    output: str = ""
    cost: int = 0
    turns: int = 0
    changes: Json = field(default_factory=dict)
    notice: Json | None = None


_SCHEDULE = ", ".join(Schedule.__slots__)
_FIRE = ", ".join(Fire.__slots__)
_CREATED = Schedule.__slots__.index("created_at")
# closed rows that are neither among the newest ?3 of a schedule nor younger than ?2
_OLD = (
    " WHERE schedule_id = ?1 AND state NOT IN ('due', 'claimed') AND due_at <= ?2"
    " AND fire_id NOT IN (SELECT fire_id FROM fires WHERE schedule_id = ?1"
    " ORDER BY due_at DESC LIMIT ?3)"
)


def new_id() -> str:
    return secrets.token_hex(6)


class ScheduleTables(Database):
    """`schedules` and `fires`."""

    # ---------------------------------------------------------------------------------- schedules

    def add_schedule(self, wanted: Schedule, most: int) -> Schedule:
        """Keep it with a session of its own, under its id or a new one. Raises `BusyError` where
        there are `most`; those that are done do not count, and the newest `most` of them stay.
        """
        with self._transaction() as db:
            counted = "SELECT count(*) FROM schedules WHERE status <> 'done'"
            if int(db.execute(counted).get) >= most:
                raise BusyError(
                    f"There are already {most} schedules.",
                    remedy="Delete one, or raise [scheduler] max_schedules_per_user.",
                )
            schedule_id = wanted.schedule_id or new_id()
            values = [getattr(wanted, name) for name in Schedule.__slots__]
            values[0], values[_CREATED] = schedule_id, timestamp()
            values = [clean(each) if isinstance(each, str) else each for each in values]
            db.execute(
                f"INSERT INTO schedules ({_SCHEDULE}) VALUES ({placeholders(Schedule.__slots__)})",
                values,
            )
            insert_session(
                db,
                "default",
                clean(wanted.name or wanted.goal[:60]),
                SCHEDULED,
                f"scheduled:{schedule_id}",
            )
            done: list[Row] = db.execute(
                "SELECT schedule_id FROM schedules WHERE status = 'done' AND schedule_id NOT IN"
                " (SELECT schedule_id FROM fires WHERE state IN ('due', 'claimed'))"
                " ORDER BY anchor DESC, created_at DESC LIMIT -1 OFFSET ?",
                (most,),
            ).fetchall()
            for (old,) in done:
                _forget(db, old)
        return self.schedule(schedule_id)

    def restore_schedule(self, wanted: Schedule) -> None:
        """As it was, also where it was deleted; its ledger is not."""
        values = [getattr(wanted, name) for name in Schedule.__slots__]
        with self._transaction() as db:
            db.execute(
                f"INSERT OR IGNORE INTO schedules ({_SCHEDULE})"
                f" VALUES ({placeholders(Schedule.__slots__)})",
                values,
            )
            names = ", ".join(f"{name} = ?" for name in Schedule.__slots__)
            db.execute(
                f"UPDATE schedules SET {names} WHERE schedule_id = ?",
                (*values, wanted.schedule_id),
            )
            db.execute(
                "UPDATE sessions SET archived = 0 WHERE session_id = ?", (wanted.session_id,)
            )

    def schedule(self, schedule_id: str) -> Schedule:
        """Raises `NotFoundError`."""
        found = self._schedules("WHERE schedule_id = ?", (schedule_id,))
        if not found:
            raise NotFoundError(
                f"There is no schedule {schedule_id[:64]!r}.",
                remedy="`oxydra-runner schedule list` shows them.",
            )
        return found[0]

    def find_schedule(self, wanted: str) -> Schedule:
        """The schedule with this id, else this name, else this beginning of an id.

        Raises `NotFoundError` for none and `UsageError` for several.
        """
        if wanted:
            for where in ("schedule_id = ?", "name = ?", "instr(schedule_id, ?) = 1"):
                found = self._schedules(f"WHERE {where} ORDER BY schedule_id", (wanted,))
                if len(found) == 1:
                    return found[0]
                if found:
                    ids = ", ".join(one.schedule_id for one in found[:5])
                    raise UsageError(
                        f"{wanted[:64]!r} fits several schedules: {ids}.",
                        remedy="Give the id of one.",
                    )
        return self.schedule(wanted)

    def schedules(self) -> list[Schedule]:
        """All of them, those due first first."""
        return self._schedules("ORDER BY next_due IS NULL, next_due, schedule_id", ())

    def _schedules(self, where: str, values: Sequence[Any]) -> list[Schedule]:
        with self._reading() as db:
            rows: list[Row] = db.execute(
                f"SELECT {_SCHEDULE} FROM schedules {where}", values
            ).fetchall()
        return [_schedule(row) for row in rows]

    def change_schedule(self, schedule_id: str, **values: Any) -> Schedule:
        """Set columns; what waits of a schedule that is active no more is skipped."""
        with self._transaction() as db:
            _set(db, schedule_id, values)
        return self.schedule(schedule_id)

    def delete_schedule(self, schedule_id: str) -> None:
        """With its ledger; its session is put away."""
        self.schedule(schedule_id)
        with self._transaction() as db:
            _forget(db, schedule_id)

    # ------------------------------------------------------------------------------------- ledger

    def next_due(self) -> int | None:
        """When something is due next, or may be tried again. What waits for the end of a run of its
        own schedule is left out.
        """
        with self._reading() as db:
            found = db.execute(
                "SELECT min(at) FROM (SELECT min(next_due) AS at FROM schedules"
                " WHERE status = 'active' UNION ALL"
                " SELECT min(not_before) FROM fires WHERE state = 'due' AND schedule_id NOT IN"
                " (SELECT schedule_id FROM fires WHERE state = 'claimed'))"
            ).get
        return None if found is None else int(found)

    def passed_schedules(self, now: int, most: int) -> list[Schedule]:
        """Active ones with a due time that has come and has no row yet."""
        where = "WHERE status = 'active' AND next_due <= ? ORDER BY next_due LIMIT ?"
        return self._schedules(where, (now, most))

    def record_passed(self, passed: Iterable[Passed], keep: int) -> None:
        """Each due time gets its row, unless it has one; of older rows `keep` stay, as after
        `end_fire`. A schedule that was changed meanwhile is left as it is.
        """
        with self._transaction() as db:
            for one in passed:
                now = "SELECT 1 FROM schedules WHERE schedule_id = ? AND next_due = ?"
                if db.execute(now, (one.schedule_id, one.since)).get is None:
                    continue
                last = max((at for at, state, _ in one.fires if state == "due"), default=None)
                db.executemany(
                    "INSERT OR IGNORE INTO fires (schedule_id, due_at, state, reason, not_before)"
                    " VALUES (?, ?, ?, ?, ?)",
                    [
                        (one.schedule_id, at, state, why, at + one.delay)
                        for at, state, why in one.fires
                    ],
                )
                if one.one_waits and last is not None:
                    db.execute(
                        "UPDATE fires SET state = 'skipped', reason = 'It still waited to run when"
                        " the next time came.' WHERE schedule_id = ? AND state = 'due'"
                        " AND due_at < ?",
                        (one.schedule_id, last),
                    )
                db.execute(
                    "UPDATE schedules SET next_due = ?1, status = CASE WHEN ?1 IS NULL"
                    " THEN 'done' ELSE status END WHERE schedule_id = ?2",
                    (one.next_due, one.schedule_id),
                )
                if one.fires:
                    _prune(db, one.schedule_id, one.fires[-1][0], keep)

    def record_now(self, schedule_id: str, now: int) -> Fire:
        """A run that somebody asked for."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO fires (schedule_id, due_at, state, reason, not_before)"
                " VALUES (?, ?, 'due', 'Asked for.', ?)",
                (schedule_id, now, now),
            )
        return self._fires("WHERE schedule_id = ? AND due_at = ?", (schedule_id, now))[0]

    def forget_future(self, now: int) -> None:
        """The clock was put back to `now`: what was missed after it has not come yet."""
        if not self._fires("WHERE state = 'missed' AND due_at > ? LIMIT 1", (now,)):
            return  # nearly always: nothing is written
        with self._transaction() as db:
            db.execute(
                "UPDATE schedules SET next_due = missed, status = CASE status WHEN 'done'"
                " THEN 'active' ELSE status END FROM (SELECT schedule_id AS id, min(due_at) AS"
                " missed FROM fires WHERE state = 'missed' AND due_at > ? GROUP BY schedule_id)"
                " WHERE schedule_id = id",
                (now,),
            )
            db.execute("DELETE FROM fires WHERE state = 'missed' AND due_at > ?", (now,))

    def waiting_schedules(self, now: int) -> list[Schedule]:
        """Active ones that are due later."""
        return self._schedules("WHERE status = 'active' AND next_due > ?", (now,))

    def set_next(self, found: Sequence[tuple[int | None, str, int | None]]) -> None:
        """`(next_due, schedule_id, as it was)` for each, where it still is so."""
        with self._transaction() as db:
            db.executemany(
                "UPDATE schedules SET next_due = ? WHERE schedule_id = ? AND next_due = ?", found
            )

    def claim(self, now: int, most: int) -> list[Fire]:
        """`due -> claimed` for what may run now: one of a schedule at a time, the longest waiting
        first.
        """
        with self._transaction() as db:
            rows: list[Row] = db.execute(
                "SELECT fire_id, min(due_at) FROM fires WHERE state = 'due' AND not_before <= ?"
                " AND schedule_id NOT IN (SELECT schedule_id FROM fires WHERE state = 'claimed')"
                " GROUP BY schedule_id ORDER BY min(due_at) LIMIT ?",
                (now, most),
            ).fetchall()
            ids = [int(row[0]) for row in rows]
            db.executemany(
                "UPDATE fires SET state = 'claimed', reason = '', attempts = attempts + 1"
                " WHERE fire_id = ?",
                [(each,) for each in ids],
            )
        found = {fire.fire_id: fire for fire in self.claimed()}
        return [found[each] for each in ids]

    def claimed(self, schedule_id: str = "") -> list[Fire]:
        """What runs; of one schedule if it is named."""
        if schedule_id:
            return self._fires("WHERE state = 'claimed' AND schedule_id = ?", (schedule_id,))
        return self._fires("WHERE state = 'claimed' ORDER BY due_at", ())

    def end_fire(self, fire: Fire, ending: Ending, keep: int) -> Notice | None:
        """`claimed -> ran | failed | skipped`, with all that follows from it in one transaction;
        returns what is owed. Rows older than the `keep` newest lose what was said, and go once they
        are `REMEMBERED`. A fire that is not claimed stays as it is.
        """
        with self._transaction() as db:
            db.execute(
                "UPDATE fires SET state = ?, reason = ?, code = ?, output = ?, cost = cost + ?,"
                " turns = ? WHERE fire_id = ? AND state = 'claimed'",
                (
                    *(ending.state, clean(ending.reason), ending.code, clean(ending.output)),
                    *(ending.cost, ending.turns, fire.fire_id),
                ),
            )
            if not db.changes():
                return None
            if ending.changes:
                _set(db, fire.schedule_id, ending.changes)
            _prune(db, fire.schedule_id, fire.due_at, keep)
            if ending.notice is None:
                return None
            where = db.execute(
                "SELECT origin, channel, context FROM schedules WHERE schedule_id = ?",
                (fire.schedule_id,),
            ).fetchone()
            assert where is not None  # a fire has a schedule
            return insert_notice(db, fire.schedule_id, where, ending.notice)

    def try_again(self, fire: Fire, reason: str, not_before: int, cost: int) -> None:
        """`claimed -> due`, for another attempt."""
        with self._transaction() as db:
            db.execute(
                "UPDATE fires SET state = 'due', reason = ?, not_before = ?, cost = cost + ?"
                " WHERE fire_id = ? AND state = 'claimed'",
                (clean(reason), not_before, cost, fire.fire_id),
            )

    def ask_notice(self, turn_id: str, schedule_id: str, message: str) -> bool:
        """Keep what the claimed run of a schedule wants its person told; False if none runs."""
        for fire in self._fires("WHERE schedule_id = ? AND state = 'claimed'", (schedule_id,)):
            if fire.turn_id == turn_id:
                with self._transaction() as db:
                    db.execute(
                        "UPDATE fires SET notified = ? WHERE fire_id = ?",
                        (clean(message), fire.fire_id),
                    )
                return True
        return False

    def fires(self, schedule_id: str, most: int = 50) -> list[Fire]:
        """The newest first."""
        where = "WHERE schedule_id = ? ORDER BY due_at DESC LIMIT ?"
        return self._fires(where, (schedule_id, most))

    def fire(self, fire_id: int) -> Fire:
        """Raises `NotFoundError`."""
        found = self._fires("WHERE fire_id = ?", (fire_id,))
        if not found:
            raise NotFoundError(f"There is no run {fire_id}.")
        return found[0]

    def _fires(self, where: str, values: Sequence[Any]) -> list[Fire]:
        with self._reading() as db:
            rows: list[Row] = db.execute(f"SELECT {_FIRE} FROM fires {where}", values).fetchall()
        return [Fire(*row) for row in rows]

    def cost_of_turn(self, turn_id: str) -> tuple[int, int]:
        """Nano-dollars that a turn has cost, with all that was done for it, and its own calls."""
        with self._reading() as db:
            cost = db.execute(
                "SELECT amount FROM spend_totals WHERE kind = 'turn' AND name = ?", (turn_id,)
            ).get
            calls = db.execute("SELECT count(*) FROM spend WHERE turn_id = ?", (turn_id,)).get
        return int(cost or 0), int(calls)

    def calls_of_schedule(self, schedule_id: str, since: str, besides: str = "") -> int:
        """Model calls that were made for a schedule since an instant (`budget.caps.stamp`), without
        those of the turn `besides`.
        """
        with self._reading() as db:
            found = db.execute(
                "SELECT count(*) FROM spend WHERE schedule = ? AND schedule <> ''"
                " AND created_at >= ? AND state <> 'released' AND turn_id <> ?",
                (schedule_id, since, besides),
            ).get
        return int(found)


def _forget(db: apsw.Connection, schedule_id: str) -> None:
    session = f"scheduled:{schedule_id}"
    db.execute("DELETE FROM fires WHERE schedule_id = ?", (schedule_id,))
    db.execute("DELETE FROM schedules WHERE schedule_id = ?", (schedule_id,))
    db.execute("UPDATE sessions SET archived = 1 WHERE session_id = ?", (session,))


def _set(db: apsw.Connection, schedule_id: str, values: Json) -> None:
    names = ", ".join(f"{name} = ?" for name in values)
    fixed = [clean(each) if isinstance(each, str) else each for each in values.values()]
    db.execute(f"UPDATE schedules SET {names} WHERE schedule_id = ?", (*fixed, schedule_id))
    if values.get("status") in ("paused", "disabled"):
        db.execute(
            "UPDATE fires SET state = 'skipped', reason = ? WHERE schedule_id = ?"
            " AND state = 'due'",
            (f"The schedule was {values['status']}.", schedule_id),
        )


def _prune(db: apsw.Connection, schedule_id: str, latest: int, keep: int) -> None:
    """Bound what is kept of a schedule; `latest` is its newest due time."""
    db.execute("DELETE FROM fires" + _OLD, (schedule_id, latest - REMEMBERED, keep))
    db.execute(
        "UPDATE fires SET output = '', notified = ''" + _OLD + " AND output || notified <> ''",
        (schedule_id, latest, keep),
    )


def marks_of(schedule: Schedule) -> Marks:
    return Marks(schedule.tainted, schedule.sensitive)


def _schedule(row: Row) -> Schedule:
    parts = dict(zip(Schedule.__slots__, row, strict=True))
    parts |= {name: bool(parts[name]) for name in ("tainted", "sensitive")}
    return Schedule(**parts)
