"""Whose turn is next: places, fair order, and people before what nobody waits for."""

from __future__ import annotations

import random
import threading

import pytest

from oxydra.config import GatewayConfig, RuntimeConfig
from oxydra.gateway.hub import Hub
from oxydra.runtime import Runtime
from oxydra.store import Store
from oxydra.threads import parallel
from oxydra.tools.gate import Gate
from oxydra.tools.registry import ToolRegistry
from oxydra.types import SCHEDULED, TurnState
from tests.conftest import eventually
from tests.scripted import MODEL, Scripted

WAIT = 60.0


class Places(Scripted):
    """Answers when it is let, and knows who was answered at the same time."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()
        self.now, self.most = {}, {}
        self.order = []
        self.begun = threading.Semaphore(0)
        self.open = threading.Event()

    def stream(self, request, token):
        kind, _, _ = request.messages[-1].content.partition(" ")
        with self.lock:
            self.order.append(request.messages[-1].content)
            for name in (kind, "all"):
                self.now[name] = self.now.get(name, 0) + 1
                self.most[name] = max(self.most.get(name, 0), self.now[name])
        self.begun.release()
        try:
            if kind != "person":
                with token.on_cancel(self.open.set):
                    assert self.open.wait(WAIT)
            yield from Scripted(["fine"]).stream(request, token)
        finally:
            with self.lock:
                for name in (kind, "all"):
                    self.now[name] -= 1


class House:
    """A hub with some places."""

    def __init__(self, path, places):
        self.provider = Places()
        self.store = Store(path)
        registry = ToolRegistry(names=())
        runtime = Runtime(
            store=self.store,
            provider=self.provider,
            model=MODEL,
            gate=Gate(registry, {}),
            tools=registry.specs,
            config=RuntimeConfig(),
        )
        config = GatewayConfig(max_concurrent_turns_per_user=places, max_sessions_per_user=1000)
        self.hub = Hub(self.store, runtime, config, "alice")
        self.hub.unattended = lambda turn: turn.request_id == SCHEDULED
        self.hub.start()
        self.number = 0
        self.lock = threading.Lock()

    def say(self, kind, session=None):
        """A message of a person's, or of a schedule's, in a session of its own; its turn."""
        session = session or self.hub.create_session().session_id
        with self.lock:
            self.number += 1
            turn_id = f"t{self.number}"
        request_id = SCHEDULED if kind == "schedule" else "q"
        self.hub.submit(session, turn_id, request_id, f"{kind} {turn_id}")
        return turn_id

    def ended(self, turn_id):
        turn = self.store.turn(turn_id)
        return turn is not None and turn.state is TurnState.COMPLETED

    def all_ended(self):
        return self.hub.counts() == {"running_turns": 0, "queued_turns": 0}

    def stop(self):
        self.provider.open.set()
        assert self.hub.stop(WAIT)
        self.store.close()


@pytest.fixture
def house(tmp_path):
    made = []

    def build(places):
        made.append(House(tmp_path / "oxydra.db", places))
        return made[-1]

    yield build
    for one in made:
        one.stop()


def test_a_place_always_stays_for_people(house):
    """However many runs are due, a message that comes then is answered while all of them go on."""
    at = house(4)
    runs = [at.say("schedule") for _ in range(20)]
    for _ in range(3):
        assert at.provider.begun.acquire(timeout=WAIT)
    for _ in range(10):
        mine = at.say("person")
        eventually(lambda turn_id=mine: at.ended(turn_id))
    assert at.provider.most["schedule"] == 3
    assert not any(at.ended(run) for run in runs)
    at.provider.open.set()
    eventually(lambda: all(at.ended(run) for run in runs))
    assert at.provider.most["schedule"] == 3


def test_people_who_wait_come_before_runs_that_waited_longer(house):
    at = house(2)
    first = at.say("holding")
    assert at.provider.begun.acquire(timeout=WAIT)
    run = at.say("schedule")  # takes not the last place, and waits
    held = at.say("holding")
    assert at.provider.begun.acquire(timeout=WAIT)
    late = at.say("person")
    assert at.hub.counts() == {"running_turns": 2, "queued_turns": 2}
    at.provider.open.set()
    eventually(at.all_ended)
    order = [said.split()[1] for said in at.provider.order]
    assert order.index(late) < order.index(run)
    assert {first, held, late, run} == set(order)


def test_a_single_place_is_not_kept_free(house):
    at = house(1)
    runs = [at.say("schedule") for _ in range(2)]
    assert at.provider.begun.acquire(timeout=WAIT)
    mine = at.say("person")
    at.provider.open.set()
    eventually(at.all_ended)
    order = [said.split()[1] for said in at.provider.order]
    assert order == [runs[0], mine, runs[1]]


def test_who_waits_longest_is_next_and_no_session_takes_two_places(house):
    """Somebody floods one session; each of the others is answered after one of those at most."""
    at = house(1)
    greedy = at.hub.create_session().session_id
    at.say("holding", greedy)
    assert at.provider.begun.acquire(timeout=WAIT)
    flood = [at.say("person", greedy) for _ in range(5)]
    others = [at.say("person") for _ in range(3)]
    at.provider.open.set()
    eventually(at.all_ended)
    order = [said.split()[1] for said in at.provider.order[1:]]
    assert [turn for turn in order if turn in others] == others
    assert [turn for turn in order if turn in flood] == flood
    assert set(order[:4]) == {*others, flood[0]} and order.index(others[0]) == 0


def test_races_of_people_and_runs_keep_the_limits_and_lose_nobody(house):
    at = house(3)
    at.provider.open.set()
    seed = random.Random(5)
    kinds = [[seed.choice(("person", "schedule")) for _ in range(25)] for _ in range(6)]
    said = parallel("test", [lambda mine=mine: [at.say(k) for k in mine] for mine in kinds])
    eventually(at.all_ended)
    assert all(at.ended(turn_id) for mine in said for turn_id in mine)
    assert at.provider.most["schedule"] <= 2
    assert at.provider.most["all"] <= 3
    assert len(at.provider.order) == 150


def test_a_run_that_is_cancelled_while_it_waits_holds_nobody_up(house):
    at = house(2)
    at.say("schedule")
    assert at.provider.begun.acquire(timeout=WAIT)
    session = at.hub.create_session().session_id
    waiting = at.say("schedule", session)
    behind = at.say("person", session)  # waits behind it, in the same session
    at.hub.cancel(session, waiting)
    eventually(lambda: at.ended(behind))
    assert at.store.turn(waiting).state is TurnState.CANCELLED
