"""A year of schedules with an injected clock: suspends, restarts, steps of the clock and crashes at
commits, at random. Each due time has one row, runs under one turn for each attempt, and says what
it has to say once.
"""

import contextlib
import random
from collections import Counter

import pytest

from oxydra import cadence
from oxydra.config import SchedulerConfig
from oxydra.scheduler import Engine, Outcome
from oxydra.store import Store
from oxydra.store.schedules import Schedule
from tests.test_cadence import ZONES

BEGIN = 1_767_225_600  # 2026-01-01
YEAR = 365 * 86_400
BACK = 12 * 3600  # seconds that a clock is put back at most


class Crash(BaseException):
    """The process is no more."""


class Crashing(Store):
    """A store whose process ends at a commit: just before, or just after."""

    until = 0  # commits to the next crash; 0: none

    def _open(self):
        db = super()._open()
        db.execute("PRAGMA synchronous = OFF")  # no power cut is simulated
        return db

    @contextlib.contextmanager
    def _transaction(self, **how):
        self.until -= 1
        crash = self.until == 0
        before = crash and self.rng.random() < 0.5
        with super()._transaction(**how) as db:
            yield db
            if before:
                raise Crash
        if crash:
            raise Crash


class World:
    """What is there besides the scheduler: turns that go on, and clients that read notices."""

    def __init__(self, path, rng, **config):
        self.path, self.rng = path, rng
        self.commits = 10  # among the first of which crashes are
        usual = {"max_concurrent": 64, "max_run_history": 100_000}
        self.config = SchedulerConfig(auto_disable_after_failures=0, **usual | config)
        self.turns = {}  # what became of each, None while it goes on
        self.begun = Counter()  # fires by schedule, time and attempt: turns that were begun anew
        self.said = {}  # by notice
        self.crashes = 0
        self.calm = False
        self.store = None
        self.start()

    def start(self):
        if self.store is not None:
            self.store.close()
        self.store = Crashing(self.path)
        self.store.rng = self.rng
        self.running = []
        self.engine = Engine(self.store, self.config, self._begin)

    def _begin(self, _schedule, fire):
        if fire.turn_id not in self.turns:
            self.turns[fire.turn_id] = None
            self.begun[fire.schedule_id, fire.due_at, fire.attempts] += 1
        self.running.append(fire)

    def step(self, now, crash):
        """Everything that happens at one moment, with a crash on the way or without one."""
        self.store.until = self.rng.randrange(1, self.commits) if crash else 0
        try:
            for _ in range(1 + len(ZONES)):  # as long as places are taken
                self.engine.step(now)
                for fire in list(self.running):
                    if self.rng.random() < 0.9:
                        self.end(fire, now)
            self.read()
        except Crash:
            self.crashes += 1
            self.start()
        self.store.until = 0

    def end(self, fire, now):
        outcome = self.turns[fire.turn_id]
        if outcome is None:
            kind = 0 if self.calm else self.rng.random()
            said = f"{fire.schedule_id} {fire.due_at}"
            outcome = Outcome(kind < 0.85, said, "It failed.", again=kind < 0.95)
            self.turns[fire.turn_id] = outcome
        self.engine.ended(fire, outcome, now)
        self.running.remove(fire)

    def read(self):
        owed = self.store.owed_notices(most=100_000)
        for notice in owed:
            self.said[notice.notice_id] = notice.payload["message"]
        self.store.notices_seen([notice.notice_id for notice in owed])


def some_schedule(rng, number):
    """One of every kind."""
    zone = ZONES[number % len(ZONES)]
    minute, hour = rng.randrange(60), rng.randrange(24)
    kind, value = rng.choice(
        [
            ("cron", f"{minute} {hour} * * {rng.randrange(7)}"),
            ("cron", f"{minute} {rng.randrange(4)} * * *"),  # clocks are changed in these hours
            ("cron", f"*/{rng.choice((20, 30))} {hour} {rng.randint(1, 28)} * *"),
            ("cron", f"0 */{rng.randint(6, 12)} * {rng.choice(('*', 'mar-apr', 'oct'))} 1-5"),
            ("interval", str(rng.randrange(6 * 3600, 9 * 86_400))),
            ("once", cadence.local(BEGIN + rng.randrange(YEAR), cadence.zone_of(zone))),
        ]
    )
    when = cadence.parse(kind, value, zone, BEGIN)
    told = rng.choice(("always", "never", "conditional"))
    texts = ("", f"n{number}", "goal", kind, value, zone, told, "active", "")
    return Schedule(*texts, BEGIN, when.after(BEGIN), 0, False, False, "", "")


def live_through(world, rng, schedules, steps):
    """Returns the schedules, and when it ends."""
    made = [world.store.add_schedule(some_schedule(rng, n), schedules) for n in range(schedules)]
    world.commits = 10 + schedules // 2
    now = latest = BEGIN
    while latest < BEGIN + YEAR:
        kind = rng.random()
        if kind < 0.15:
            now = max(BEGIN, now - rng.randrange(1, BACK))  # somebody puts the clock back
        elif kind < 0.4:
            now += rng.randrange(1, 3600)
        else:  # it sleeps, is suspended, or the clock is put forward
            now += rng.randrange(1, 3 * YEAR // steps)
        latest = max(latest, now)
        if rng.random() < 0.15:
            world.start()
        world.step(now, crash=rng.random() < 0.3)
    world.calm = True
    world.start()
    now = latest
    while True:
        now += 301  # what is tried again
        world.engine.step(now)
        while world.running:
            for fire in list(world.running):
                world.end(fire, now)
            world.engine.step(now)
        if not any(open_fires(world, one) for one in made):
            break
    world.read()
    return made, now


def open_fires(world, schedule):
    fires = world.store.fires(schedule.schedule_id, 3)
    return [fire for fire in fires if fire.state in ("due", "claimed")]


def check(world, made, now):
    said = Counter(world.said.values())
    for one in made:
        when = cadence.parse(one.cadence_type, one.cadence_value, one.timezone, one.anchor)
        expected = []
        at = when.after(BEGIN)
        while at is not None and at <= now:
            expected.append(at)
            at = when.after(at)
        fires = world.store.fires(one.schedule_id, 100_000)[::-1]
        assert [fire.due_at for fire in fires] == expected
        for fire in fires:
            attempts = [
                world.begun[one.schedule_id, fire.due_at, n] for n in range(1, fire.attempts + 1)
            ]
            assert fire.state in ("ran", "failed", "skipped", "missed"), fire
            assert attempts == [1] * fire.attempts, fire  # each attempt is one turn
            assert bool(attempts) == (fire.state in ("ran", "failed")) or fire.state == "skipped"
            if fire.state != "failed":
                told = one.notification == "always" and fire.state == "ran"
                assert said[f"{one.schedule_id} {fire.due_at}"] == told, fire


def simulate(path, seed, schedules, steps, **config):
    rng = random.Random(seed)
    world = World(path, rng, **config)
    try:
        made, now = live_through(world, rng, schedules, steps)
        check(world, made, now)
        states = Counter(f.state for one in made for f in world.store.fires(one.schedule_id, 9999))
        assert world.crashes > steps // 10
        assert "ran" in states or world.config.catch_up == "skip"
        return world, states
    finally:
        world.store.close()


@pytest.mark.parametrize("policy", ["last", "all", "skip"])
def test_some_schedules_are_accounted_for_through_a_year(tmp_path, policy):
    simulate(tmp_path / "db", 1, len(ZONES), 100, catch_up=policy)


@pytest.mark.slow
def test_a_thousand_schedules_are_accounted_for_through_a_year(tmp_path):
    world, states = simulate(tmp_path / "db", 2, 1000, 40)
    print(f"{sum(states.values())} due times, {world.crashes} crashes, {dict(states)}")
