"""What tools, commands and the command line ask of the schedules: make, find, change, delete them,
and read what their runs said. Nothing runs here.

A model's limits hold here too: a run changes no schedule. While words of strangers are in the
conversation, what a person was not asked about is not deleted, paused or resumed, and what is made
or changed is paused until its person resumes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from oxydra import cadence
from oxydra.arguments import number_arg, text_arg
from oxydra.budget import usd
from oxydra.errors import NotFoundError, PolicyDenied, UsageError
from oxydra.runtime.undo import Piece
from oxydra.scheduler.service import PREFIX, Scheduler
from oxydra.store.schedules import Fire, Schedule, new_id
from oxydra.types import SCHEDULED, Change, Json, Marks, ToolContext

NOTIFICATIONS = ("always", "conditional", "never")
STATUSES = ("active", "paused", "disabled", "done")
MAX_GOAL = 16 * 1024  # characters
MAX_NAME = 100
MAX_SEEN = 1000
LOOKED_AT = 1000  # due times that are not too close; minutes are the same every day
KIND = "schedule"  # of the changes that undo takes back
DEFINITION = ("name", "goal", "cadence_type", "cadence_value", "timezone", "notification")
HELD = (
    "It was made or changed while the conversation held what strangers wrote. Its person may"
    " resume it: oxydra-runner schedule resume"
)


OFF = "Nothing that is scheduled runs: [scheduler] enabled is false."
NO_MARKS = Marks()


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: a person, or the model in `session_id` with what its conversation holds; `allowed`
    where a person was shown this very call and allowed it; `run`: it is a scheduled one. `note` is
    told what a schedule is before it is changed, and what it will be; None: not there.
    """

    session_id: str = ""
    marks: Marks = NO_MARKS
    person: bool = False
    allowed: bool = False
    run: bool = False
    note: Callable[[Schedule | None, Schedule | None], None] = lambda _before, _after: None


PERSON = Asker(person=True)
STRANGER = Asker(marks=Marks(tainted=True))
OF_STRANGERS = ("create", "list", "show", "runs", "output")


class Desk:
    """Every method takes the arguments of a command or a call and raises `OxydraError`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._store = scheduler.store
        self._config = scheduler.config
        self._actions: dict[str, Callable[[Json, Asker], Json]] = {
            "create": self.create,
            "list": self.search,
            "show": self.show,
            "edit": self.edit,
            "pause": self.pause,
            "resume": self.resume,
            "run-now": self.run_now,
            "delete": self.delete,
            "runs": self.runs,
            "output": self.output,
            "seen": self.seen,
        }

    def command(self, args: Json) -> Json:
        """A person's: `action` and what it needs; without one, the list."""
        return self.act(str(args.get("action") or "list"), args, PERSON)

    def stranger(self, args: Json) -> Json:
        """A program's that does not speak for its person: it reads, and what it makes is paused
        until that person resumes it.
        """
        action = str(args.get("action") or "list")
        if action in self._actions and action not in OF_STRANGERS:
            raise PolicyDenied(
                "Only its person may do that.", remedy="They can: oxydra-runner schedule"
            )
        return self.act(action, args, STRANGER)

    def act(self, action: str, args: Json, asker: Asker) -> Json:
        if action not in self._actions:
            raise UsageError(
                f"There is no action {action[:32]!r}.",
                remedy=f"There are: {', '.join(self._actions)}.",
            )
        return self._actions[action](args, asker)

    def _check_enabled(self) -> None:
        """Nothing is promised that will not be done."""
        if not self._config.enabled:
            raise UsageError(OFF, remedy="Set it in agent.toml, and restart the daemon.")

    def create(self, args: Json, asker: Asker) -> Json:
        _check_changes(asker)
        self._check_enabled()
        now = int(self._scheduler.clock())
        zone = text_arg(args, "timezone", 64, self._config.default_timezone)
        kind, value = text_arg(args, "cadence_type", 16), text_arg(args, "cadence_value", 200)
        held = asker.marks.tainted and not asker.allowed
        origin = asker.session_id or str(args.get("session_id") or "")
        channel, _, place = (
            self._store.session(origin).channel_origin.partition(":") if origin else ("", "", "")
        )
        wanted = Schedule(
            schedule_id=new_id(),
            name=" ".join(text_arg(args, "name", MAX_NAME, "").split()),
            goal=text_arg(args, "goal", MAX_GOAL),
            cadence_type=kind,
            cadence_value=value,
            timezone=zone,
            notification=_one_of(args.get("notification") or "conditional", NOTIFICATIONS),
            status="paused" if held else "active",
            reason=HELD if held else "",
            anchor=now,
            next_due=self._first(kind, value, zone, now),
            failures=0,
            tainted=asker.marks.tainted,
            sensitive=asker.marks.sensitive,
            origin=origin,
            created_at="",
            channel=channel,
            context=place,
        )
        asker.note(None, wanted)
        made = self._store.add_schedule(wanted, self._config.max_schedules_per_user)
        self._scheduler.wake()
        return self._told(made)

    def search(self, args: Json, _asker: Asker) -> Json:
        found = self._store.schedules()
        for key in ("status", "cadence_type", "notification"):
            if args.get(key):
                found = [one for one in found if getattr(one, key) == args[key]]
        if args.get("name"):
            part = str(args["name"]).casefold()
            found = [one for one in found if part in one.name.casefold()]
        offset, limit = number_arg(args, "offset", 0), number_arg(args, "limit", 50, least=1)
        page = found[offset : offset + limit]
        told = {"schedules": [self._told(one) for one in page], "total": len(found)}
        return told if self._config.enabled else {**told, "warning": OFF}

    def show(self, args: Json, _asker: Asker) -> Json:
        return self._told(self._find(args))

    def edit(self, args: Json, asker: Asker) -> Json:
        _check_changes(asker)
        found = self._find(args)
        kind = text_arg(args, "cadence_type", 16, found.cadence_type)
        value = text_arg(args, "cadence_value", 200, found.cadence_value)
        zone = text_arg(args, "timezone", 64, found.timezone)
        changes: Json = {
            "goal": text_arg(args, "goal", MAX_GOAL, found.goal),
            "name": " ".join(text_arg(args, "name", MAX_NAME, found.name).split()),
            "notification": _one_of(args.get("notification") or found.notification, NOTIFICATIONS),
        }
        if (kind, value, zone) != (found.cadence_type, found.cadence_value, found.timezone):
            now = int(self._scheduler.clock())
            changes |= {"cadence_type": kind, "cadence_value": value, "timezone": zone}
            changes |= {"anchor": now, "next_due": self._first(kind, value, zone, now)}
            if found.status == "done":
                changes["status"] = "active"
        if asker.marks.tainted:
            changes["tainted"] = True
        if asker.marks.tainted and not asker.allowed:
            changes |= {"status": "paused", "reason": HELD}
        if asker.marks.sensitive:
            changes["sensitive"] = True
        return self._change(found, changes, asker)

    def pause(self, args: Json, asker: Asker) -> Json:
        _check_changes(asker)
        _check_words(asker)
        changes = {"status": "paused", "reason": "Paused."}
        return self._change(self._find(args), changes, asker)

    def resume(self, args: Json, asker: Asker) -> Json:
        """From now on; what was due meanwhile is not made up for."""
        _check_changes(asker)
        self._check_enabled()
        found = self._find(args)
        if found.tainted and not (asker.person or asker.allowed):
            raise PolicyDenied("Only its person may resume this schedule.", remedy=found.reason)
        _check_words(asker)
        following = self._scheduler.following(found)
        if following is None:
            raise UsageError("Its time has passed.", remedy="Give it another one.")
        changes = {"status": "active", "reason": "", "failures": 0, "next_due": following}
        return self._change(found, changes, asker)

    def run_now(self, args: Json, asker: Asker) -> Json:
        if not asker.person:
            raise PolicyDenied("Only a person may do that.")
        self._check_enabled()
        found = self._find(args)
        return self._run(self._scheduler.asked_for(found.schedule_id), found)

    def delete(self, args: Json, asker: Asker) -> Json:
        """What runs of it is cancelled."""
        _check_changes(asker)
        _check_words(asker)
        found = self._find(args)
        asker.note(found, None)
        self._scheduler.stop_run(found.schedule_id)
        self._store.delete_schedule(found.schedule_id)
        self._scheduler.wake()
        return {"deleted": found.schedule_id}

    def runs(self, args: Json, _asker: Asker) -> Json:
        found = self._find(args)
        limit = min(number_arg(args, "limit", 20, least=1), self._config.max_run_history)
        fires = self._store.fires(found.schedule_id, limit)
        rows = [self._run(fire, found) for fire in fires]
        times = {"next_runs": self._next(found)}
        return {"schedule_id": found.schedule_id, "runs": rows, **times}

    def output(self, args: Json, _asker: Asker) -> Json:
        fire = self._store.fire(number_arg(args, "run_id", 0))
        kept = self._store.fires(fire.schedule_id, self._config.max_run_history)
        if fire.fire_id not in [one.fire_id for one in kept]:
            raise NotFoundError(
                f"What the run {fire.fire_id} said is not kept any more.",
                remedy="[scheduler] max_run_history says how many are.",
            )
        offset, most = number_arg(args, "offset", 0), number_arg(args, "max_chars", 8000, least=1)
        part = fire.output[offset : offset + most]
        schedule = self._store.schedule(fire.schedule_id)
        whole = {"output": part, "total_chars": len(fire.output)}
        return {**self._run(fire, schedule), **whole, "next_runs": self._next(schedule)}

    def seen(self, args: Json, asker: Asker) -> Json:
        """A client has shown notices: they are owed no more."""
        if not asker.person:
            raise PolicyDenied("Only a person's client may do that.")
        ids = args.get("notice_ids")
        if not isinstance(ids, list) or not all(type(each) is int for each in ids[:MAX_SEEN]):
            raise UsageError("'notice_ids' is a list of the numbers that notices have.")
        self._store.notices_seen(ids[:MAX_SEEN])
        return {"seen": len(ids[:MAX_SEEN])}

    def _first(self, kind: str, value: str, zone: str, now: int) -> int:
        cadence.zone_of(zone)
        when = cadence.parse(kind, value, zone, now, self._config.min_interval_secs)
        first = when.after(now)
        if first is None:
            raise UsageError("That time has passed.", remedy="Name one that is to come.")
        # on clocks that nobody changes: what is moved into an hour once a year may be closer
        plain = cadence.parse(kind, value, "UTC", now)
        apart = [late - early for early, late in pairwise(cadence.upcoming(plain, now, LOOKED_AT))]
        if apart and min(apart) < self._config.min_interval_secs:
            raise UsageError(
                f"It would run after {min(apart)} seconds again.",
                remedy=f"[scheduler] min_interval_secs is {self._config.min_interval_secs}.",
            )
        return first

    def _find(self, args: Json) -> Schedule:
        return self._store.find_schedule(text_arg(args, "schedule_id", MAX_NAME))

    def _change(self, found: Schedule, changes: Json, asker: Asker) -> Json:
        asker.note(found, replace(found, **changes))
        changed = self._store.change_schedule(found.schedule_id, **changes)
        self._scheduler.wake()
        return self._told(changed)

    # ------------------------------------------------------------------------------- taken back

    def pieces(self, changes: Sequence[Change]) -> list[Piece]:
        """What is to become of schedules whose `changes` are taken back, oldest first."""
        chains: dict[str, list[Change]] = {}
        for change in changes:
            if change.kind == KIND:
                chains.setdefault(change.payload["schedule_id"], []).append(change)
        return [self._piece(schedule_id, chain) for schedule_id, chain in chains.items()]

    def _piece(self, schedule_id: str, chain: Sequence[Change]) -> Piece:
        before: Json | None = chain[0].payload["before"]
        afters = [change.payload["after"] for change in chain]
        label = next(row["name"] for row in (before, *afters) if row is not None)
        name = f"schedule {schedule_id}" + (f" ({label})" if label else "")
        try:
            now: Json | None = _row(self._store.schedule(schedule_id))
        except NotFoundError:
            now = None
        if _said(now, "status") == _said(before, "status"):
            return Piece(name, "as before")
        if _said(now) not in map(_said, afters):
            return Piece(name, "changed since")
        if before is None:
            return Piece(name, "remove", lambda: self._store.delete_schedule(schedule_id))
        whole = Schedule(**before)
        return Piece(name, "restore", lambda: self._restore(whole))

    def _restore(self, schedule: Schedule) -> None:
        """From now on; what was due meanwhile is not made up for."""
        if schedule.status == "active":
            schedule = replace(schedule, next_due=self._scheduler.following(schedule))
        self._store.restore_schedule(schedule)
        self._scheduler.wake()

    def _told(self, schedule: Schedule) -> Json:
        """With its next three times, on the clocks of its zone."""
        return {**schedule.to_json(), "next_runs": self._next(schedule)}

    def _next(self, schedule: Schedule) -> list[str]:
        if schedule.status != "active" or not self._config.enabled:
            return []
        zone = cadence.zone_of(schedule.timezone)
        return [cadence.local(at, zone) for at in self._scheduler.upcoming(schedule)]

    def _run(self, fire: Fire, schedule: Schedule) -> Json:
        found = fire.to_json()
        due = cadence.local(fire.due_at, cadence.zone_of(schedule.timezone))
        found["cost_usd"] = float(usd(found.pop("cost")))
        return {"run_id": found.pop("fire_id"), **found, "due": due}


class ModelDesk:
    """The desk for a model's calls: the service `schedules`. `marks_of` says what a turn's
    conversation holds.
    """

    _scheduler: Scheduler
    _marks_of: Callable[[str], Marks]

    def attach(self, scheduler: Scheduler, marks_of: Callable[[str], Marks]) -> None:
        """Say whose it is: the scheduler has a hub, which has tools, which have this."""
        self._scheduler = scheduler
        self._marks_of = marks_of

    def ask(self, action: str, args: Json, context: ToolContext) -> tuple[Json, Marks]:
        if action == "notify":
            turn_id = context.turn_id
            self._scheduler.notify(context.session_id, turn_id, str(args["message"]))
            return {"noted": True}, NO_MARKS
        store = self._scheduler.store
        root = store.turn(store.root_turn(context.turn_id))  # delegated work is its sender's
        session_id = root.session_id if root is not None else context.session_id

        def note(before: Schedule | None, after: Schedule | None) -> None:
            one = before or after
            assert one is not None
            rows = {"before": before and _row(before), "after": after and _row(after)}
            payload = {"schedule_id": one.schedule_id, **rows}
            where = (context.session_id, context.turn_id, context.step, context.call_id)
            store.add_change(*where, KIND, payload)

        call = (context.turn_id, context.step, context.call_id)
        allowed = store.allowed_call(*call)
        run = root is None or root.request_id == SCHEDULED  # not what people say in its session
        marks = self._marks_of(context.turn_id)
        asker = Asker(session_id, marks, allowed=allowed, run=run, note=note)
        found = Desk(self._scheduler).act(action, args, asker)
        return found, self._held(found)

    def _held(self, found: Json) -> Marks:
        """What an answer holds: a goal what the conversation held in which it was written, a run
        what its session holds; why one was switched off, what somebody's server said.
        """
        marks = NO_MARKS
        for row in found.get("schedules") or [found]:
            marks |= Marks(bool(row.get("tainted")), bool(row.get("sensitive")))
            marks |= Marks(tainted=row.get("status") == "disabled")
        if "runs" in found or "output" in found:
            marks |= self._scheduler.store.session_marks(PREFIX + found["schedule_id"])
        return marks


def _row(schedule: Schedule) -> Json:
    """All of it."""
    return {name: getattr(schedule, name) for name in Schedule.__slots__}


def _said(row: Json | None, *more: str) -> list[object]:
    """What people and models say of a schedule; the rest is the scheduler's."""
    return [] if row is None else [row[name] for name in (*DEFINITION, *more)]


def _check_changes(asker: Asker) -> None:
    if asker.run:
        raise PolicyDenied("A scheduled run changes no schedules.")


def _check_words(asker: Asker) -> None:
    """What strangers wrote takes nothing away."""
    if asker.marks.tainted and not asker.allowed:
        raise PolicyDenied(
            "The conversation holds what strangers wrote, and its person was not asked.",
            remedy="Its person can do it: oxydra-runner schedule",
        )


def _one_of(value: object, known: tuple[str, ...]) -> str:
    if value not in known:
        raise UsageError(f"There is no {str(value)[:32]!r}.", remedy=f"One of {', '.join(known)}.")
    return str(value)
