"""What is to be done now: due times into the ledger, claims out of it, ends back into it.

No thread and no clock: `step(now)` does what is due and says when to come again. What it decides is
in the database before anything runs, so a crash at any instant leaves rows that the next start goes
on from: a fire that was claimed is begun again under the same turn id, which begins it at most
once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from oxydra import cadence
from oxydra.config import SchedulerConfig
from oxydra.errors import NotFoundError
from oxydra.store import Store
from oxydra.store.notices import Notice
from oxydra.store.schedules import Ending, Fire, Passed, Schedule
from oxydra.types import Json

CHUNK = 1000  # due times of one schedule recorded at once
BATCH = 200  # schedules looked at together
CATCH_UP = 20  # times that `catch_up = "all"` runs at most
GRACE = 60  # seconds after which a due time counts as one that passed while nothing ran
RETRIES = (60, 300)  # seconds before another attempt, where a provider did not answer
OUTPUT = 64 * 1024  # characters kept of what a run answered
MAX_NOTICE = 4000  # characters
GOAL = 60  # characters of it stand for a name
DOWN = "Nothing ran when it was due."
CANCELLED = "cancelled"  # codes of ends that are no fault of the schedule
CAPPED = "budget"
NOTIFY = "[NOTIFY]"  # begins an answer that is to be told, where a model has no tools


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended. `code` is that of its error; `again`: it may go well another time.
    `cost` in nano-dollars, `turns` counts model calls. `tainted`: what strangers wrote was read.
    """

    ok: bool
    output: str = ""
    reason: str = ""
    code: str = ""
    again: bool = False
    cost: int = 0
    turns: int = 0
    tainted: bool = False


class Engine:
    """Of one user. `step` and `ended` are called by one thread."""

    def __init__(
        self,
        store: Store,
        config: SchedulerConfig,
        begin: Callable[[Schedule, Fire], None],
        tell: Callable[[Notice], None] = lambda _notice: None,
        refuse: Callable[[Schedule], str] = lambda _schedule: "",
    ) -> None:
        """`begin` starts an attempt, or joins it if it was begun before; `tell` gives what is owed
        to whoever made a schedule; `refuse` says why it may not run for now. None of them waits.
        """
        self._store = store
        self._config = config
        self._begin = begin
        self._tell = tell
        self._refuse = refuse
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
        keep = self._config.max_run_history
        while passed := self._store.passed_schedules(now, BATCH):
            self._store.record_passed([self._passed(schedule, now) for schedule in passed], keep)
        for fire in self._store.claimed():  # by a process that is no more
            self._run(fire)
        while (room := self.room) > 0 and (claimed := self._store.claim(now, room)):
            for fire in claimed:
                self._run(fire, claimed=True)
        return self._store.next_due()

    @property
    def room(self) -> int:
        """How many runs more may begin."""
        return self._config.max_concurrent - self.running

    def ended(self, fire: Fire, outcome: Outcome, now: int) -> None:
        """An attempt is over. `claimed -> ran | failed | due`"""
        self._running.discard(fire.fire_id)
        try:
            schedule = self._store.schedule(fire.schedule_id)
            fire = self._store.fire(fire.fire_id)  # with what it wants told
        except NotFoundError:
            return
        retry = fire.attempts - 1
        active = schedule.status in ("active", "done")
        if not outcome.ok and outcome.again and retry < len(RETRIES) and active:
            self._store.try_again(fire, outcome.reason, now + RETRIES[retry], outcome.cost)
            return
        ending = Ending(
            "ran" if outcome.ok else "failed",
            outcome.reason,
            outcome.code,
            outcome.output[:OUTPUT],
            outcome.cost,
            outcome.turns,
        )
        changes: Json = {}
        if outcome.ok:
            changes, message = {"failures": 0}, _said(schedule, fire, outcome.output)
        elif outcome.code == CAPPED:
            message = self._first_time(fire, outcome.reason)
        elif outcome.code == CANCELLED:
            message = ""
        else:
            changes, message = self._failure(schedule, outcome)
        self._end(schedule, fire, replace(ending, changes=changes), message, outcome.tainted)

    def _end(
        self, schedule: Schedule, fire: Fire, ending: Ending, message: str, tainted: bool = False
    ) -> None:
        if message:
            payload: Json = {
                "schedule_id": schedule.schedule_id,
                "schedule_name": schedule.name or " ".join(schedule.goal.split())[:GOAL],
                "due": cadence.local(fire.due_at, cadence.zone_of(schedule.timezone)),
                "message": message[:MAX_NOTICE],
                "tainted": tainted or schedule.tainted,
            }
            ending = replace(ending, notice=payload)
        notice = self._store.end_fire(fire, ending, self._config.max_run_history)
        if notice is not None:
            self._tell(notice)

    def _first_time(self, fire: Fire, reason: str) -> str:
        """What is said of a budget that is used up: nothing where the run before met it too."""
        before = [one for one in self._store.fires(fire.schedule_id, 8) if one.due_at < fire.due_at]
        return "" if before and before[0].code == CAPPED else f"It did not run. {reason}"

    def _failure(self, schedule: Schedule, outcome: Outcome) -> tuple[Json, str]:
        """What is new in a schedule after a failure, and what to say of it."""
        config, count = self._config, schedule.failures + 1
        changes: Json = {"failures": count}
        reason = f"It failed {count} times in a row. {outcome.reason}"
        off = config.auto_disable_after_failures
        if off and count >= off and schedule.status == "active":
            return {**changes, "status": "disabled", "reason": reason}, f"Switched off. {reason}"
        told = count == config.notify_after_failures
        return changes, reason if told else ""

    def _run(self, fire: Fire, *, claimed: bool = False) -> None:
        """`claimed`: just now, so that nothing of it was begun."""
        if fire.fire_id in self._running:
            return
        try:
            schedule = self._store.schedule(fire.schedule_id)
        except NotFoundError:  # deleted just now
            return
        if claimed and (reason := self._refuse(schedule)):
            ending = Ending("skipped", reason, CAPPED)
            self._end(schedule, fire, ending, self._first_time(fire, reason))
            return
        self._running.add(fire.fire_id)
        self._begin(schedule, fire)

    def _rewind(self, now: int) -> None:
        """At a start, and when the clock was put back: find each next due time from here; the rules
        of its zone may be others now. What ran has its row, and does not run again when its time
        comes once more.
        """
        self._store.forget_future(now)
        schedules = self._store.waiting_schedules(now)
        found = [(self.cadence(one).after(now), one.schedule_id, one.next_due) for one in schedules]
        if changed := [each for each in found if each[0] != each[2]]:
            self._store.set_next(changed)

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
            return Passed(schedule.schedule_id, schedule.next_due, rows, found[len(kept)])
        delay = self._delay(schedule)
        policy = self._config.catch_up
        if policy == "all":
            runs = set(found[-CATCH_UP:])
        elif policy == "last":
            runs = set(found[-1:])
        else:
            runs = {each for each in found[-1:] if now - each <= GRACE}
        rows = [(at_, "due", "") if at_ in runs else (at_, "missed", DOWN) for at_ in found]
        found_by = (schedule.schedule_id, schedule.next_due, rows, at)
        return Passed(*found_by, one_waits=policy != "all", delay=delay)

    def _delay(self, schedule: Schedule) -> int:
        """Seconds by which it begins late, so that not all begin at once: its own, always the same,
        so that none come closer to each other. A single moment is kept.
        """
        if schedule.cadence_type == "once":
            return 0
        digest = hashlib.sha256(schedule.schedule_id.encode()).digest()
        return int.from_bytes(digest[:8], "big") % (self._config.jitter_secs + 1)


def _said(schedule: Schedule, fire: Fire, output: str) -> str:
    """What a run that went well has to say."""
    match schedule.notification:
        case "always":
            return fire.notified or output or "It ran, and said nothing."
        case "conditional" if fire.notified:
            return fire.notified
        case "conditional" if output.startswith(NOTIFY):
            return output.removeprefix(NOTIFY).strip()
    return ""
