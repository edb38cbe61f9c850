"""The thread that does what is due, and the runs as ordinary turns.

`oxydra-scheduler` sleeps until something is due, a run ends or a schedule changes; it ends when
`stop` closes its inbox. It alone steps the engine. A run is a turn in the schedule's own session,
begun through `Turns` (the gateway's hub), under the operator's limits and with nobody to ask.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from oxydra.budget import Account, Limit, Periods, dollars, usd
from oxydra.budget.caps import stamp
from oxydra.cadence import upcoming
from oxydra.config import SchedulerConfig
from oxydra.errors import NotFoundError, OxydraError
from oxydra.runtime import Terms
from oxydra.scheduler.engine import CANCELLED, Engine, Outcome
from oxydra.scheduler.post import Client, Post
from oxydra.store import Store
from oxydra.store.schedules import Fire, Schedule, marks_of
from oxydra.threads import Deadline, Inbox, InboxClosed, Service
from oxydra.types import SCHEDULED, Json, Turn, TurnState

log = logging.getLogger(__name__)

PREFIX = "scheduled:"
ROOM = 4096  # jobs that may wait for the thread
STALLED = 300.0  # seconds behind its time after which the scheduler counts as stalled
# codes of errors that may pass
TRANSIENT = ("provider_unavailable", "unreachable", "rate_limited")
NOTE = (
    "This is a scheduled run; nobody reads along. Do the task. If its person should be told"
    " something, call notify, or begin the answer with [NOTIFY].\n\n"
)


class Turns(Protocol):
    """What begins turns: the hub."""

    def submit(
        self,
        session_id: str,
        turn_id: str,
        request_id: str,
        prompt: str,
        *,
        tainted: bool,
        sensitive: bool,
    ) -> tuple[Turn, bool]: ...

    def live(self, session_id: str) -> Any: ...

    def cancel(self, session_id: str, turn_id: str) -> None: ...

    def followers(self, session_id: str = "") -> Sequence[Client]: ...


class Scheduler:
    """Of one user. Every method may be called from any thread."""

    def __init__(
        self,
        store: Store,
        config: SchedulerConfig,
        turns: Turns,
        clock: Callable[[], float] = time.time,
        on_death: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.store = store
        self.config = config
        self.clock = clock
        self._turns = turns
        self.post = Post(store, turns.followers, self._do, clock)
        self._engine = Engine(store, config, self._begin, self.post.tell, self._refuse)
        self._inbox: Inbox[Callable[[], None] | None] = Inbox(ROOM)
        self._service = Service("scheduler", self._work, wake=self._inbox.close, on_death=on_death)
        self._due: int | None = None
        self._round = Deadline.after(None)  # when the thread should have come around again

    def start(self) -> None:
        if self.config.enabled:
            self._service.start()

    def stop(self, timeout: float) -> bool:
        """Runs that go on are left to whoever runs turns; they are found at the next start."""
        return self._service.stop(timeout)

    def wake(self) -> None:
        """Something changed: look again."""
        if not len(self._inbox):  # else it looks again anyway
            self._inbox.put(None)

    def followed(self, client: Client) -> None:
        """A client has come: it gets what it is owed. However many come, there is room for the ends
        of runs.
        """
        if self.config.enabled and len(self._inbox) < ROOM // 4:
            self.post.followed(client)

    def _do(self, job: Callable[[], None]) -> None:
        """Let the thread do something."""
        self._inbox.put(job)

    def state(self) -> Json:
        """Whether due times are kept, for a look at its health."""
        due = self._due
        waits = due is None or self._engine.room <= 0  # for the end of a run
        late = 0.0 if waits or due is None else max(0.0, self.clock() - due)
        stuck = not self._service.alive or self._round.expired
        return {
            "enabled": self.config.enabled,
            "stalled": self.config.enabled and (stuck or late > STALLED),
            "late_seconds": round(late),
            "running": self._engine.running,
            "next_due": due,
        }

    @staticmethod
    def runs(turn: Turn) -> bool:
        """Whether a turn is a schedule's, and not a message that a person sent to its session."""
        return turn.session_id.startswith(PREFIX) and turn.request_id == SCHEDULED

    def terms_of(self, turn: Turn) -> tuple[Account | None, Terms | None]:
        """Who pays for a turn of a schedule, and what limits it."""
        if not self.runs(turn):
            return None, None
        config, schedule_id = self.config, turn.session_id.removeprefix(PREFIX)
        account = self._account(schedule_id, turn)
        fires = self.store.claimed(schedule_id)
        if fires and account.max_cost is not None:  # what earlier attempts cost counts
            left = max(usd(0), account.max_cost - usd(fires[0].cost))
            account = replace(account, max_cost=left)
        calls = config.max_turns
        if config.max_turns_per_day:
            made = self.store.calls_of_schedule(schedule_id, account.schedule_day, turn.turn_id)
            calls = max(1, min(calls, config.max_turns_per_day - made))
        until = Deadline.after(config.timeout_secs)
        return account, Terms(attended=False, max_turns=calls, deadline=until, recall=False)

    def _account(self, schedule_id: str, turn: Turn | None = None) -> Account:
        now = datetime.fromtimestamp(self.clock(), UTC)
        return Account(
            "" if turn is None else turn.turn_id,
            "" if turn is None else turn.session_id,
            schedule=schedule_id,
            max_cost=self.config.max_cost,
            schedule_day=stamp(Periods.around(now, self.config.default_timezone).day),
            max_cost_per_day=self.config.max_cost_per_day,
        )

    def _refuse(self, schedule: Schedule) -> str:
        """Why it may not begin a run for now: it has had what it may have in a day."""
        config, account = self.config, self._account(schedule.schedule_id)
        most, cap = config.max_turns_per_day, config.max_cost_per_day
        if most:
            made = self.store.calls_of_schedule(schedule.schedule_id, account.schedule_day)
            if made >= most:
                return f"Its {most} model calls of today are made: [scheduler] max_turns_per_day."
        if cap is not None:
            (cost,) = self.store.spent([Limit("schedule", account.day_of_schedule, None, "", "")])
            if usd(cost) >= cap:
                said = f"It has cost {dollars(cost)} today"
                return f"{said}: [scheduler] max_cost_per_day is {cap}."
        return ""

    # --------------------------------------------------------------------------------- the thread

    def _work(self, service: Service) -> None:
        while not service.stopping.is_set():
            now = int(self.clock())
            self._round = Deadline.after(STALLED)
            try:
                self._due = self._engine.step(now)
                self.post.carry(now)
            except OxydraError as error:  # a full disk, a locked database: it is tried again
                log.error("the scheduler waits: %s", error)
                self._due = now + 1
            patience = self._patience(now)
            self._round = Deadline.after(None if patience is None else patience + STALLED)
            try:
                job = self._inbox.get(patience)
            except TimeoutError:
                continue
            except InboxClosed:
                return
            if job is not None:
                self._round = Deadline.after(STALLED)
                try:
                    job()
                except OxydraError as error:  # its fire stays claimed, and is looked at again
                    log.error("the scheduler could not note an end: %s", error)

    def _patience(self, now: int) -> float | None:
        """Seconds to sleep: for ever where nothing will be due. Not longer than the configured
        bound otherwise, because a clock may be put forward and a machine may be suspended.
        """
        due = [each for each in (self._due, self.post.next()) if each is not None]
        if not due:
            return None
        if min(due) <= now:  # all places are taken: the end of a run wakes us
            return self.config.poll_interval_secs
        return min(self.config.poll_interval_secs, max(0.0, min(due) - self.clock()))

    def _begin(self, schedule: Schedule, fire: Fire) -> None:
        live = self._turns.live(schedule.session_id)
        ear = _Ear(fire.turn_id, partial(self._heard, fire, live))
        live.listen(ear)
        marks = marks_of(schedule)
        try:
            turn, _ = self._turns.submit(
                schedule.session_id,
                fire.turn_id,
                SCHEDULED,
                NOTE + schedule.goal,
                tainted=marks.tainted,
                sensitive=marks.sensitive,
            )
        except OxydraError as error:
            live.unlisten(ear)
            outcome = Outcome(False, reason=str(error), code=error.code, again=True)
            self._do(partial(self._end, fire, outcome))
            return
        if turn.state.terminal:  # it ended before this process began
            ear.hear(str((turn.terminal or {}).get("type")), {"turn": {"turn_id": turn.turn_id}})

    def _heard(self, fire: Fire, live: Any, ear: _Ear) -> None:
        self._do(partial(self._collect, fire, live, ear))

    def _collect(self, fire: Fire, live: Any, ear: _Ear) -> None:
        live.unlisten(ear)
        turn = self.store.turn(fire.turn_id)
        cost, calls = self.store.cost_of_turn(fire.turn_id)
        if turn is None or not turn.state.terminal:  # it could not be brought to its end
            outcome = Outcome(False, reason="It broke off. It goes on with the next start.")
        else:
            payload = (turn.terminal or {}).get("payload") or {}
            outcome = self._outcome(turn.state, payload)
        tainted = turn is not None and self.store.session_marks(turn.session_id).tainted
        self._end(fire, replace(outcome, cost=cost, turns=calls, tainted=tainted))

    def _outcome(self, state: TurnState, payload: Json) -> Outcome:
        if state is TurnState.COMPLETED:
            message = (payload.get("response") or {}).get("message") or {}
            return Outcome(True, output=str(message.get("content") or ""))
        if state is TurnState.CANCELLED:
            return Outcome(False, reason="It was cancelled.", code=CANCELLED)
        code = str(payload.get("code") or "")
        reason = str(payload.get("message") or "It failed.")
        if code == "max_turns":
            reason = "It was stopped: it had made the model calls that [scheduler] allows."
        elif code == "timeout":
            reason = f"{reason} A run has {self.config.timeout_secs:g} s: [scheduler] timeout_secs."
        return Outcome(False, reason=reason, code=code, again=code in TRANSIENT)

    def _end(self, fire: Fire, outcome: Outcome) -> None:
        self._engine.ended(fire, outcome, int(self.clock()))

    def following(self, schedule: Schedule) -> int | None:
        """When it is due next, from now on."""
        return self._engine.cadence(schedule).after(int(self.clock()))

    def upcoming(self, schedule: Schedule) -> list[int]:
        """The next three due times."""
        if schedule.next_due is None:
            return []
        return upcoming(self._engine.cadence(schedule), schedule.next_due - 1)

    def asked_for(self, schedule_id: str) -> Fire:
        """Run it now."""
        self.store.schedule(schedule_id)
        fire = self.store.record_now(schedule_id, int(self.clock()))
        self.wake()
        return fire

    def stop_run(self, schedule_id: str) -> None:
        """Cancel what runs of a schedule."""
        for fire in self.store.claimed(schedule_id):
            try:
                self._turns.cancel(PREFIX + schedule_id, fire.turn_id)
            except NotFoundError:
                log.debug("the run %d ended by itself", fire.fire_id)

    def notify(self, session_id: str, turn_id: str, message: str) -> None:
        """What a run wants its person told. Raises `NotFoundError` outside of one."""
        schedule_id = session_id.removeprefix(PREFIX)
        if not self.store.ask_notice(turn_id, schedule_id, message):
            raise NotFoundError("Only a scheduled run can notify; here, just answer.")


class _Ear:
    """Hears the end of one turn, once."""

    def __init__(self, turn_id: str, ended: Callable[[_Ear], None]) -> None:
        self._turn_id = turn_id
        self._ended: Callable[[_Ear], None] | None = ended

    def hear(self, frame_type: str, payload: Json) -> None:
        if frame_type not in ("turn_completed", "turn_cancelled", "error"):
            return
        if (payload.get("turn") or {}).get("turn_id") != self._turn_id:
            return
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self)
