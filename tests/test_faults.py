"""The agent guest of a real daemon is killed: at every commit of a turn with side effects, and at
any instant. The turn completes, nothing is done twice, nothing is lost.
"""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.faulty import Place, Work
from tests.test_shell import sandboxed

KILLS = 200  # at random instants, in the slow suite
DAEMONS = 2  # at once


class Measured(Place):
    """One of which is known how long a turn takes and how many commits it has."""

    def __init__(self, path, stack):
        super().__init__(path, stack, OXYDRA__TOOLS__SHELL__ALLOW="*")
        self.run(0)  # the first turn of a conversation has other commits than those after it
        self.daemon.arm(1_000_000, "never")
        began = time.monotonic()
        self.run(0)
        self.seconds = time.monotonic() - began
        self.commits = self.daemon.commits()

    def run(self, kills, meanwhile=lambda: None):
        self.number += 1
        work = Work(self.daemon, f"w{self.number}")
        turn_id, frames = self.person.turn(work.prompt, meanwhile)
        work.check(turn_id, frames, kills)

    def killed_at(self, commit, when):
        before = self.daemon.health()["guest_restarts"]
        self.daemon.arm(commit, when)
        self.run(1)
        assert self.daemon.health()["guest_restarts"] == before + 1

    def killed_at_random(self, rng, times):
        """`times` kills while one turn runs, some of them while it resumes."""
        killer = None

        def kill():
            for _ in range(times):
                time.sleep(rng.uniform(0, self.seconds))
                self.daemon.kill()

        def begin():
            nonlocal killer
            killer = threading.Thread(target=kill)
            killer.start()

        try:
            self.run(times, begin)
        finally:
            if killer is not None:
                killer.join()
        return times


@pytest.fixture
def places(tmp_path, request):
    sandboxed()
    with ExitStack() as stack:
        yield [Measured(tmp_path / f"p{n}", stack) for n in range(getattr(request, "param", 1))]


def test_killed_at_some_commits_and_instants(places):
    (place,) = places
    for commit, when in ((1, "before"), (1, "after"), (5, "before"), (place.commits, "after")):
        place.killed_at(commit, when)
    place.killed_at_random(random.Random(7), 3)


@pytest.mark.slow
@pytest.mark.parametrize("places", [DAEMONS], indirect=True)
def test_killed_at_every_commit(places):
    boundaries = [(n, w) for n in range(1, places[0].commits + 1) for w in ("before", "after")]

    def some(index):
        for commit, when in boundaries[index::DAEMONS]:
            places[index].killed_at(commit, when)

    with ThreadPoolExecutor(DAEMONS) as pool:
        list(pool.map(some, range(DAEMONS)))


@pytest.mark.slow
@pytest.mark.parametrize("places", [DAEMONS], indirect=True)
def test_killed_at_random_instants(places):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")

    def some(index):
        rng = random.Random(seed + index)
        while places[index].daemon.kills < KILLS / DAEMONS:
            places[index].killed_at_random(rng, rng.randint(1, 3))

    with ThreadPoolExecutor(DAEMONS) as pool:
        list(pool.map(some, range(DAEMONS)))
    assert sum(place.daemon.kills for place in places) >= KILLS
