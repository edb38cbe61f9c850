"""What is scheduled, and the ledger of its due times: a row for each, with what became of it.

A fire goes `due -> claimed -> ran | failed`, `claimed -> due` for another attempt, and is `skipped`
or `missed` where it does not run. The turn of an attempt has an id that follows from the fire, so
what was claimed before a crash is found again and never begun twice. Moments are Unix seconds.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from oxydra.errors import BusyError, NotFoundError
from oxydra.store.conversation import insert_session
from oxydra.store.database import Database, Row, as_text, clean, placeholders, timestamp
from oxydra.types import SCHEDULED, Json, Marks

OPEN = ("due", "claimed")
ENDED = ("ran", "failed", "skipped", "missed")


@dataclass(frozen=True, slots=True)
class Schedule:
    """`status`: `active`, `paused`, `disabled` (it failed too often) or `done`. `origin` is the
    session it was made in; `failures` counts runs in a row that failed.
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

    @property
    def session_id(self) -> str:
        return f"scheduled:{self.schedule_id}"

    def to_json(self) -> Json:
        return {name: getattr(self, name) for name in self.__slots__ if name != "anchor"}


@dataclass(frozen=True, slots=True)
class Fire:
    """`attempts` have begun; `not_before` is when the next one may; `cost` is in nano-dollars."""

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
    """Due times of one schedule that have come, with the state and reason of each, and the next
    one to come.
    """

    schedule_id: str
    fires: Sequence[tuple[int, str, str]]
    next_due: int | None
    one_waits: bool = True  # what waited before them is skipped


_SCHEDULE = ", ".join(Schedule.__slots__)
_FIRE = ", ".join(Fire.__slots__)


def new_id() -> str:
    return secrets.token_hex(6)


class ScheduleTables(Database):
    """`schedules`, `fires` and `notices`."""

    # ---------------------------------------------------------------------------------- schedules

    def add_schedule(self, wanted: Schedule, most: int) -> Schedule:
        """Keep it with a session of its own, under its id or a new one. Raises `BusyError` where
        there are `most`.
        """
        with self._transaction() as db:
            if int(db.execute("SELECT count(*) FROM schedules").get) >= most:
                raise BusyError(
                    f"There are already {most} schedules.",
                    remedy="Delete one, or raise [scheduler] max_schedules_per_user.",
                )
            schedule_id = wanted.schedule_id or new_id()
            values = [getattr(wanted, name) for name in Schedule.__slots__]
            values[0], values[-1] = schedule_id, timestamp()
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
        names = ", ".join(f"{name} = ?" for name in values)
        fixed = [clean(each) if isinstance(each, str) else each for each in values.values()]
        with self._transaction() as db:
            db.execute(f"UPDATE schedules SET {names} WHERE schedule_id = ?", (*fixed, schedule_id))
            if values.get("status") in ("paused", "disabled"):
                db.execute(
                    "UPDATE fires SET state = 'skipped', reason = ?"
                    " WHERE schedule_id = ? AND state = 'due'",
                    (f"The schedule was {values['status']}.", schedule_id),
                )
        return self.schedule(schedule_id)

    def delete_schedule(self, schedule_id: str) -> None:
        """With its ledger; its session is put away."""
        session = self.schedule(schedule_id).session_id
        with self._transaction() as db:
            db.execute("DELETE FROM fires WHERE schedule_id = ?", (schedule_id,))
            db.execute("DELETE FROM schedules WHERE schedule_id = ?", (schedule_id,))
            db.execute("UPDATE sessions SET archived = 1 WHERE session_id = ?", (session,))

    # ------------------------------------------------------------------------------------- ledger

    def next_due(self) -> int | None:
        """When something is due next, or may be tried again."""
        with self._reading() as db:
            found = db.execute(
                "SELECT min(at) FROM (SELECT min(next_due) AS at FROM schedules"
                " WHERE status = 'active' UNION ALL"
                " SELECT min(not_before) FROM fires WHERE state = 'due')"
            ).get
        return None if found is None else int(found)

    def passed_schedules(self, now: int, most: int) -> list[Schedule]:
        """Active ones with a due time that has come and has no row yet."""
        where = "WHERE status = 'active' AND next_due <= ? ORDER BY next_due LIMIT ?"
        return self._schedules(where, (now, most))

    def record_passed(self, passed: Iterable[Passed]) -> None:
        """Each due time gets its row, unless it has one."""
        with self._transaction() as db:
            for one in passed:
                last = max((at for at, state, _ in one.fires if state == "due"), default=None)
                db.executemany(
                    "INSERT OR IGNORE INTO fires (schedule_id, due_at, state, reason, not_before)"
                    " VALUES (?, ?, ?, ?, ?)",
                    [(one.schedule_id, at, state, why, at) for at, state, why in one.fires],
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

    def record_now(self, schedule_id: str, now: int) -> Fire:
        """A run that somebody asked for."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO fires (schedule_id, due_at, state, reason, not_before)"
                " VALUES (?, ?, 'due', 'Asked for.', ?)",
                (schedule_id, now, now),
            )
        return self._fires("WHERE schedule_id = ? AND due_at = ?", (schedule_id, now))[0]

    def forget_future(self, now: int) -> list[Schedule]:
        """The clock was put back to `now`: what was missed after it has not come yet. Returns the
        schedules whose next due time is to be found again.
        """
        with self._transaction() as db:
            db.execute(
                "UPDATE schedules SET status = 'active' WHERE status = 'done' AND schedule_id IN"
                " (SELECT schedule_id FROM fires WHERE state = 'missed' AND due_at > ?)",
                (now,),
            )
            db.execute("DELETE FROM fires WHERE state = 'missed' AND due_at > ?", (now,))
        return self._schedules(
            "WHERE status = 'active' AND (next_due IS NULL OR next_due > ?)", (now,)
        )

    def set_next(self, found: Sequence[tuple[int | None, str]]) -> None:
        """`(next_due, schedule_id)` for each."""
        with self._transaction() as db:
            db.executemany("UPDATE schedules SET next_due = ? WHERE schedule_id = ?", found)

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

    def claimed(self) -> list[Fire]:
        return self._fires("WHERE state = 'claimed' ORDER BY due_at", ())

    def end_fire(
        self, fire: Fire, state: str, reason: str, output: str, cost: int, turns: int, keep: int
    ) -> Schedule:
        """`claimed -> ran | failed`; older rows than the `keep` newest of the schedule go."""
        failed = state == "failed"
        with self._transaction() as db:
            db.execute(
                "UPDATE fires SET state = ?, reason = ?, output = ?, cost = cost + ?, turns = ?"
                " WHERE fire_id = ? AND state = 'claimed'",
                (state, clean(reason), clean(output), cost, turns, fire.fire_id),
            )
            db.execute(
                "UPDATE schedules SET failures = CASE WHEN ? THEN failures + 1 ELSE 0 END"
                " WHERE schedule_id = ?",
                (failed, fire.schedule_id),
            )
            db.execute(
                "DELETE FROM fires WHERE schedule_id = ?1 AND state NOT IN ('due', 'claimed')"
                " AND due_at <= ?2 AND fire_id NOT IN (SELECT fire_id FROM fires"
                " WHERE schedule_id = ?1 ORDER BY due_at DESC LIMIT ?3)",
                (fire.schedule_id, fire.due_at, keep),
            )
        return self.schedule(fire.schedule_id)

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

    def owe_notice(self, session_id: str, payload: Json) -> None:
        """Keep what the people of a session are to be told."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO notices (session_id, payload) VALUES (?, ?)",
                (session_id, as_text(payload)),
            )

    def owed_notices(self, session_id: str) -> list[tuple[int, Json]]:
        with self._reading() as db:
            rows: list[Row] = db.execute(
                "SELECT notice_id, payload FROM notices WHERE session_id = ? AND delivered = 0"
                " ORDER BY notice_id",
                (session_id,),
            ).fetchall()
        return [(int(row[0]), json.loads(row[1])) for row in rows]

    def notice_given(self, notice_id: int) -> None:
        with self._transaction() as db:
            db.execute("UPDATE notices SET delivered = 1 WHERE notice_id = ?", (notice_id,))

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
        """Nano-dollars that a turn's calls have cost, and how many they were."""
        with self._reading() as db:
            row = db.execute(
                "SELECT coalesce(sum(cost), 0), count(*) FROM spend WHERE turn_id = ?", (turn_id,)
            ).get
        return int(row[0]), int(row[1])


def marks_of(schedule: Schedule) -> Marks:
    return Marks(schedule.tainted, schedule.sensitive)


def _schedule(row: Row) -> Schedule:
    parts = dict(zip(Schedule.__slots__, row, strict=True))
    parts |= {name: bool(parts[name]) for name in ("tainted", "sensitive")}
    return Schedule(**parts)
