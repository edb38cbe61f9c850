"""What is to be done now: due times into the ledger, claims out of it, ends back into it.

No thread and no clock: `step(now)` does what is due and says when to come again. What it decides is
in the database before anything runs, so a crash at any instant leaves rows that the next start goes
on from: a fire that was claimed is begun again under the same turn id, which begins it at most
once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from oxydra import cadence
from oxydra.config import SchedulerConfig
from oxydra.errors import NotFoundError
from oxydra.store import Store
from oxydra.store.schedules import Fire, Passed, Schedule

log = logging.getLogger(__name__)

CHUNK = 1000  # due times of one schedule recorded at once
BATCH = 200  # schedules looked at together
CATCH_UP = 20  # times that `catch_up = "all"` runs at most
GRACE = 60  # seconds after which a due time counts as one that passed while nothing ran
RETRIES = (60, 300)  # seconds before another attempt, where a provider did not answer
OUTPUT = 64 * 1024  # characters kept of what a run answered
DOWN = "Nothing ran when it was due."


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended. `again`: it may go well another time. `cost` in nano-dollars, `turns`
    counts model calls.
    """

    ok: bool
    output: str = ""
    reason: str = ""
    again: bool = False
    cost: int = 0
    turns: int = 0


class Engine:
    """Of one user. `step` and `ended` are called by one thread."""

    def __init__(
        self,
        store: Store,
        config: SchedulerConfig,
        begin: Callable[[Schedule, Fire], None],
        tell: Callable[[Schedule, str], None] = lambda _schedule, _message: None,
    ) -> None:
        """`begin` starts an attempt, or joins it if it was begun before; `tell` says something to
        whoever made a schedule. Neither waits.
        """
        self._store = store
        self._config = config
        self._begin = begin
        self._tell = tell
        self._last: int | None = None  # the clock at the last step
        self._running: set[int] = set()

    @property
    def running(self) -> int:
        return len(self._running)

    def step(self, now: int) -> int | None:
        """Do what is due; the moment of what is due next, None if nothing is."""
        if self._last is None or now < self._last:
            self._rewind(now)
        self._last = now
        while passed := self._store.passed_schedules(now, BATCH):
            self._store.record_passed([self._passed(schedule, now) for schedule in passed])
        for fire in self._store.claimed():  # by a process that is no more
            self._run(fire)
        if (room := self._config.max_concurrent - self.running) > 0:
            for fire in self._store.claim(now, room):
                self._run(fire)
        return self._store.next_due()

    def ended(self, fire: Fire, outcome: Outcome, now: int) -> None:
        """An attempt is over. `claimed -> ran | failed | due`"""
        self._running.discard(fire.fire_id)
        try:
            schedule = self._store.schedule(fire.schedule_id)
        except NotFoundError:
            return
        retry = fire.attempts - 1
        active = schedule.status in ("active", "done")
        if not outcome.ok and outcome.again and retry < len(RETRIES) and active:
            self._store.try_again(fire, outcome.reason, now + RETRIES[retry], outcome.cost)
            return
        schedule = self._store.end_fire(
            fire,
            "ran" if outcome.ok else "failed",
            outcome.reason,
            outcome.output[:OUTPUT],
            outcome.cost,
            outcome.turns,
            self._config.max_run_history,
        )
        if outcome.ok:
            self._say(schedule, self._store.fire(fire.fire_id), outcome.output)
        else:
            self._count_failure(schedule, outcome)

    def _say(self, schedule: Schedule, fire: Fire, output: str) -> None:
        match schedule.notification:
            case "always":
                self._tell(schedule, fire.notified or output)
            case "conditional" if fire.notified:
                self._tell(schedule, fire.notified)
            case "conditional" if output.startswith("[NOTIFY]"):
                self._tell(schedule, output.removeprefix("[NOTIFY]").strip())

    def _count_failure(self, schedule: Schedule, outcome: Outcome) -> None:
        config, count = self._config, schedule.failures
        off = config.auto_disable_after_failures
        if off and count >= off and schedule.status == "active":
            reason = f"It failed {count} times in a row. {outcome.reason}"
            self._store.change_schedule(schedule.schedule_id, status="disabled", reason=reason)
            self._tell(schedule, f"Switched off. {reason}")
        elif config.notify_after_failures and count == config.notify_after_failures:
            self._tell(schedule, f"It failed {count} times in a row. {outcome.reason}")

    def _run(self, fire: Fire) -> None:
        if fire.fire_id not in self._running:
            self._running.add(fire.fire_id)
            self._begin(self._store.schedule(fire.schedule_id), fire)

    def _rewind(self, now: int) -> None:
        """At a start, and when the clock was put back: find each next due time from here. What ran
        has its row, and does not run again when its time comes once more.
        """
        schedules = self._store.forget_future(now)
        found = [(self.cadence(one).after(now), one.schedule_id) for one in schedules]
        known = {one.schedule_id: one.next_due for one in schedules}
        self._store.set_next([each for each in found if known[each[1]] != each[0]])

    def cadence(self, schedule: Schedule) -> cadence.Cadence:
        """Its limits were checked when it was made."""
        kind, value = schedule.cadence_type, schedule.cadence_value
        return cadence.parse(kind, value, schedule.timezone, schedule.anchor)

    def _passed(self, schedule: Schedule, now: int) -> Passed:
        """The due times up to `now`, by the catch-up policy."""
        found: list[int] = []
        at = schedule.next_due
        when = self.cadence(schedule)
        while at is not None and at <= now and len(found) < CHUNK:
            found.append(at)
            at = when.after(at)
        if at is not None and at <= now:  # there are more: the last of these may still run
            kept = found[: CHUNK - CATCH_UP]
            rows = [(each, "missed", DOWN) for each in kept]
            return Passed(schedule.schedule_id, rows, found[len(kept)])
        policy = self._config.catch_up
        if policy == "all":
            runs = set(found[-CATCH_UP:])
        elif policy == "last":
            runs = set(found[-1:])
        else:
            runs = {each for each in found[-1:] if now - each <= GRACE}
        rows = [(at_, "due", "") if at_ in runs else (at_, "missed", DOWN) for at_ in found]
        return Passed(schedule.schedule_id, rows, at, policy != "all")
