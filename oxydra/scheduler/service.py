"""The thread that does what is due, and the runs as ordinary turns.

`oxydra-scheduler` sleeps until something is due, a run ends or a schedule changes; it ends when
`stop` closes its inbox. It alone steps the engine. A run is a turn in the schedule's own session,
begun through `Turns` (the gateway's hub), under the operator's limits and with nobody to ask.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from oxydra.budget import Account
from oxydra.cadence import upcoming
from oxydra.config import SchedulerConfig
from oxydra.errors import NotFoundError, OxydraError
from oxydra.runtime import Terms
from oxydra.scheduler.engine import Engine, Outcome
from oxydra.store import Store
from oxydra.store.schedules import Fire, Schedule, marks_of
from oxydra.threads import Inbox, InboxClosed, Service
from oxydra.types import SCHEDULED, Json, Turn, TurnState

log = logging.getLogger(__name__)

PREFIX = "scheduled:"
MAX_NOTICE = 4000  # characters
STALLED = 300.0  # seconds behind its time after which the scheduler counts as stalled
TRANSIENT = ("provider_unavailable", "unreachable")  # codes of errors that may pass
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
        self._engine = Engine(store, config, self._begin, self._tell)
        self._inbox: Inbox[Callable[[], None] | None] = Inbox(4096)
        self._service = Service("scheduler", self._work, wake=self._inbox.close, on_death=on_death)
        self._due: int | None = None

    def start(self) -> None:
        if self.config.enabled:
            self._service.start()

    def stop(self, timeout: float) -> bool:
        """Runs that go on are left to whoever runs turns; they are found at the next start."""
        return self._service.stop(timeout)

    def wake(self) -> None:
        """Something changed: look again."""
        self._inbox.put(None)

    def state(self) -> Json:
        """Whether due times are kept, for a look at its health."""
        due = self._due
        waits = due is None or self._engine.running > 0  # it may wait for the end of a run
        late = 0.0 if waits or due is None else max(0.0, self.clock() - due)
        stalled = self.config.enabled and (not self._service.alive or late > STALLED)
        return {
            "enabled": self.config.enabled,
            "stalled": stalled,
            "late_seconds": round(late),
            "running": self._engine.running,
            "next_due": due,
        }

    def terms_of(self, turn: Turn) -> tuple[Account | None, Terms | None]:
        """Who pays for a turn of a schedule, and what limits it."""
        if not turn.session_id.startswith(PREFIX) or turn.request_id != SCHEDULED:
            return None, None
        account = Account(
            turn.turn_id,
            turn.session_id,
            schedule=turn.session_id.removeprefix(PREFIX),
            max_cost=self.config.max_cost,
        )
        return account, Terms(attended=False, max_turns=self.config.max_turns)

    # --------------------------------------------------------------------------------- the thread

    def _work(self, service: Service) -> None:
        while not service.stopping.is_set():
            now = int(self.clock())
            try:
                self._due = self._engine.step(now)
            except OxydraError as error:  # a full disk, a locked database: it is tried again
                log.error("the scheduler waits: %s", error)
                self._due = now + 1
            try:
                job = self._inbox.get(self._patience(now))
            except TimeoutError:
                continue
            except InboxClosed:
                return
            if job is not None:
                try:
                    job()
                except OxydraError as error:  # its fire stays claimed, and is looked at again
                    log.error("the scheduler could not note an end: %s", error)

    def _patience(self, now: int) -> float | None:
        """Seconds to sleep: for ever where nothing will be due. Not longer than the configured
        bound otherwise, because a clock may be put forward and a machine may be suspended.
        """
        if self._due is None:
            return None
        if self._due <= now:  # all places are taken: the end of a run wakes us
            return self.config.poll_interval_secs
        return min(self.config.poll_interval_secs, max(0.0, self._due - self.clock()))

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
            outcome = Outcome(False, reason=str(error), again=True)
            self._inbox.put(partial(self._end, fire, outcome))
            return
        if turn.state.terminal:  # it ended before this process began
            ear.hear(str((turn.terminal or {}).get("type")), {"turn": {"turn_id": turn.turn_id}})

    def _tell(self, schedule: Schedule, message: str) -> None:
        """Owed from now on; given as soon as somebody follows the session it was made in."""
        payload = {
            "schedule_id": schedule.schedule_id,
            "schedule_name": schedule.name,
            "message": message[:MAX_NOTICE],
        }
        self.store.owe_notice(schedule.origin, payload)
        self._give(schedule.origin)

    def followed(self, session_id: str) -> None:
        """A client follows this session: it gets what is owed."""
        self._inbox.put(partial(self._give, session_id))

    def _give(self, session_id: str) -> None:
        owed = self.store.owed_notices(session_id) if session_id else []
        for notice_id, payload in owed:
            live = self._turns.live(session_id)
            if not live.watched:
                return
            live.publish("scheduled_notification", payload)
            self.store.notice_given(notice_id)

    def _heard(self, fire: Fire, live: Any, ear: _Ear) -> None:
        self._inbox.put(partial(self._collect, fire, live, ear))

    def _collect(self, fire: Fire, live: Any, ear: _Ear) -> None:
        live.unlisten(ear)
        turn = self.store.turn(fire.turn_id)
        cost, calls = self.store.cost_of_turn(fire.turn_id)
        if turn is None or not turn.state.terminal:  # it could not be brought to its end
            outcome = Outcome(False, reason="The run broke off.", cost=cost)
        else:
            payload = (turn.terminal or {}).get("payload") or {}
            outcome = _outcome(turn.state, payload, cost, calls)
        self._end(fire, outcome)

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


def _outcome(state: TurnState, payload: Json, cost: int, calls: int) -> Outcome:
    if state is TurnState.COMPLETED:
        message = (payload.get("response") or {}).get("message") or {}
        return Outcome(True, output=str(message.get("content") or ""), cost=cost, turns=calls)
    if state is TurnState.CANCELLED:
        return Outcome(False, reason="It was cancelled.", cost=cost, turns=calls)
    again = payload.get("code") in TRANSIENT
    reason = str(payload.get("message") or "It failed.")
    return Outcome(False, reason=reason, again=again, cost=cost, turns=calls)
