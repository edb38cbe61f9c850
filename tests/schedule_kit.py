"""What tests of schedules stand on: a ledger whose clock and runs are the test's, and a gateway
whose hub runs schedules.
"""

from dataclasses import replace

import pytest

from oxydra import cadence
from oxydra.config import SchedulerConfig
from oxydra.scheduler import Desk as Counter
from oxydra.scheduler import Engine, ModelDesk, Outcome, Scheduler
from oxydra.store import Store
from oxydra.store.schedules import Schedule
from oxydra.tools.schedule import schedule_tools
from tests.scripted import Scripted
from tests.test_gateway import Running

NOW = 1_770_000_000


class Desk:
    """A store with an engine over it, whose runs end when they are told to."""

    def __init__(self, path, **config):
        self.path, self.config = path, SchedulerConfig(**config)
        self.begun, self.told, self.store = [], [], Store(path)
        self.refusal = ""
        self.restart()

    def restart(self):
        self.store.close()
        self.store = Store(self.path)
        self.begun.clear()
        self.engine = Engine(
            self.store,
            self.config,
            lambda schedule, fire: self.begun.append((schedule, fire)),
            lambda notice: self.told.append(
                (notice.payload["schedule_name"], notice.payload["message"])
            ),
            lambda schedule: self.refusal,
        )

    def add(self, value="600", kind="interval", zone="UTC", now=NOW, most=100_000, **more):
        when = cadence.parse(kind, value, zone, now)
        usual = Schedule(
            schedule_id="",
            name="n",
            goal="g",
            cadence_type=kind,
            cadence_value=value,
            timezone=zone,
            notification="never",
            status="active",
            reason="",
            anchor=now,
            next_due=when.after(now),
            failures=0,
            tainted=False,
            sensitive=False,
            origin="s",
            created_at="",
        )
        return self.store.add_schedule(replace(usual, **more), most)

    def end_all(self, now, **outcome):
        begun, self.begun[:] = list(self.begun), []
        for _, fire in begun:
            self.engine.ended(fire, Outcome(**{"ok": True, **outcome}), now)

    def states(self, schedule):
        fires = reversed(self.store.fires(schedule.schedule_id, 10_000))
        return [(fire.due_at, fire.state) for fire in fires]


class House(Running):
    """A gateway whose hub runs schedules, with the tools for them."""

    def __init__(self, path, provider, **scheduler):
        self.scheduler_config = SchedulerConfig(**scheduler)
        self.now = float(NOW)
        super().__init__(path, provider, tools=schedule_tools())

    def start(self, port=0):
        self.schedules = ModelDesk()
        super().start(port)
        self.scheduler = Scheduler(
            self.store, self.scheduler_config, self.hub, clock=lambda: self.now
        )
        self.hub.terms_of = self.scheduler.terms_of
        self.hub.unattended = self.scheduler.runs
        self.hub.on_follow = self.scheduler.followed
        runtime = self.hub._runtime
        self.schedules.attach(self.scheduler, lambda turn: runtime.run_of(turn).marks())
        runtime.gate._services["schedules"] = self.schedules
        self.counter = Counter(self.scheduler)
        self.scheduler.start()

    def stop(self):
        assert self.scheduler.stop(10)
        super().stop()

    def create(self, goal="Say hello.", **args):
        usual = {"cadence_type": "interval", "cadence_value": "600"}
        return self.counter.command({"action": "create", "goal": goal, **usual, **args})


def notices(client):
    frame = client.until("scheduled_notification")
    return frame["payload"]["message"]


@pytest.fixture
def desk(tmp_path):
    found = []

    def make(**config):
        found.append(Desk(tmp_path / "db", **config))
        return found[-1]

    yield make
    for each in found:
        each.store.close()


@pytest.fixture
def house(tmp_path):
    made = []

    def make(*answers, **scheduler):
        made.append(House(tmp_path / "db", Scripted(*answers), **scheduler))
        return made[-1]

    yield make
    for each in made:
        each.stop()
