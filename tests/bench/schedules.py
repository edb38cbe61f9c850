"""Ten thousand schedules by themselves, without a daemon: how the next due time is found, what a
look costs that finds nothing, a start, and a rest. `python -m tests.bench.schedules` prints one
JSON object, which `measures` reads. The store is on disk, in a temporary folder.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from oxydra import cadence
from oxydra.config import SchedulerConfig
from oxydra.scheduler import Engine, Scheduler
from oxydra.store import Store
from oxydra.store.schedules import Schedule
from tests.bench import proc

MANY = 10_000
LOOKS = 200
REST_SECONDS = 5.0
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe")


class Nobody:
    """A hub without clients, in which nothing runs."""

    def followers(self, _session_id: str = "") -> Sequence[Any]:
        return ()

    def submit(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("nothing is due")

    live = cancel = submit


def fill(store: Store, now: int) -> None:
    """Daily ones, none of which is due within an hour."""
    rng = random.Random(1)
    for number in range(MANY):
        zone = ZONES[number % len(ZONES)]
        value = f"{rng.randrange(60)} {rng.randrange(24)} * * *"
        when = cadence.parse("cron", value, zone)
        due = when.after(now)
        while due is not None and due < now + 3600:
            due = when.after(due)
        texts = ("", f"n{number}", "goal", "cron", value, zone, "never", "active", "")
        store.add_schedule(Schedule(*texts, now, due, 0, False, False, "", ""), MANY)


def milliseconds(job: Callable[[], object], times: int) -> float:
    """The median of what it takes."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        job()
        found.append((time.perf_counter() - began) * 1000)
    return proc.median(found)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        now = int(time.time())
        path = Path(folder) / "db"
        store = Store(path)
        fill(store, now)
        config = SchedulerConfig(max_schedules_per_user=MANY)
        engine = Engine(store, config, lambda _schedule, _fire: None)
        began = time.process_time()
        engine.step(now)
        figures = {"schedules_start_ms": (time.process_time() - began) * 1000}
        figures["schedules_next_ms"] = milliseconds(store.next_due, LOOKS)
        figures["schedules_look_ms"] = milliseconds(lambda: engine.step(now), LOOKS)
        scheduler = Scheduler(store, config, Nobody())
        scheduler.start()
        time.sleep(1.0)
        wakeups = proc.wakeups(os.getpid())
        cpu = time.process_time()
        time.sleep(REST_SECONDS)
        figures["schedules_rest_cpu_ms"] = (time.process_time() - cpu) * 1000
        # the sleep of the thread that measures is one of them
        figures["schedules_rest_wakeups"] = proc.wakeups(os.getpid()) - wakeups - 1
        scheduler.stop(10)
        store.close()
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
