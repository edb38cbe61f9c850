"""Memory with 1,000, 10,000 and 100,000 chunks, alone: prints the figures as JSON.

Each size is a database of its own with messages of 8 to 40 words, drawn from 30,000 made-up ones by
Zipf's law, in sessions of 500. What is asked is eight such words. Each size is searched by a
process of its own, so that memory is that of the one.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from oxydra import embed
from oxydra.errors import Cancelled
from oxydra.memory import Retrieval
from oxydra.store import Store
from oxydra.store.notes import Origin
from oxydra.threads import CancelToken, Service
from oxydra.types import Marks
from tests.bench import proc

SIZES = {"1k": 1_000, "10k": 10_000, "100k": 100_000}
SEARCHES = 60
SAVES = 60
SESSION = 500
VOCABULARY = 30_000
WORDS = (8, 40)
NOW = "2026-01-01T00:00:00.000+00:00"


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(searched(Path(sys.argv[1]))))
        return
    figures: dict[str, float] = {}
    for name, size in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "oxydra.db"
            made = fill(path, size)
            command = [sys.executable, "-m", "tests.bench.search", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            figures |= {f"{key}_{name}": value for key, value in json.loads(done.stdout).items()}
            if size == max(SIZES.values()):
                figures |= made | saves(path)
    print(json.dumps(figures))


class Speech:
    """Words as people use them: a few often and most hardly ever."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        syllables = [a + b for a in "bcdfghklmnprstvz" for b in "aeiou"]
        words = (
            "".join(parts) for n in range(1, 5) for parts in itertools.product(syllables, repeat=n)
        )
        self.words = list(itertools.islice(words, VOCABULARY))
        random.Random(1).shuffle(self.words)
        self.until = list(itertools.accumulate(1 / (n + 3) for n in range(VOCABULARY)))

    def say(self, count: int) -> str:
        places = (self.chance.random() * self.until[-1] for _ in range(count))
        return " ".join(self.words[bisect.bisect(self.until, place)] for place in places)


def fill(path: Path, size: int) -> dict[str, float]:
    """A database of so many messages; how many chunks a second were indexed and embedded."""
    speech = Speech(size)
    store = Store(path)
    for start in range(0, size, SESSION):
        session = store.create_session(display_name=f"session {start}")
        with store._transaction() as db:
            for number in range(start, min(start + SESSION, size)):
                said = {"role": "user", "content": speech.say(speech.chance.randint(*WORDS))}
                row = (session.session_id, number - start + 1, f"t{number}", json.dumps(said), NOW)
                db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?)", row)
    began = time.perf_counter()
    Retrieval(store).catch_up()
    indexed = time.perf_counter()
    memory = Retrieval(store, embed.create("auto"))
    memory.embed_rest()
    embedded = time.perf_counter()
    memory.tend()
    store.close()
    return {
        "index_per_s": size / (indexed - began),
        "embed_per_s": size / (embedded - indexed),
    }


def searched(path: Path) -> dict[str, float]:
    """What opening and searching a database takes."""
    speech = Speech(7)
    before = proc.rss_mb(os.getpid())
    began = time.perf_counter()
    store = Store(path)
    opened = time.perf_counter()
    memory = Retrieval(store, embed.create("auto"))
    memory.search(speech.say(8), 8)
    first = time.perf_counter()
    times, cpu = [], []
    for _ in range(SEARCHES):
        asked = speech.say(8)
        start, used = time.perf_counter(), time.thread_time()
        memory.search(asked, 8)
        cpu.append(1000 * (time.thread_time() - used))
        times.append(1000 * (time.perf_counter() - start))
    store.close()
    return {
        "open_ms": 1000 * (opened - began),
        "first_search_ms": 1000 * (first - opened),
        "search_ms": proc.median(times),
        "search_cpu_ms": proc.median(cpu),
        "search_rss_mb": proc.rss_mb(os.getpid()) - before,
    }


def saves(path: Path) -> dict[str, float]:
    """How long a note takes to be acknowledged while everything is made anew."""
    store = Store(path)
    memory = Retrieval(store, embed.create("auto"))
    under_way = threading.Event()
    token = CancelToken()

    def rebuild(_service: Service) -> None:
        with contextlib.suppress(Cancelled):
            memory.rebuild(token, lambda *_: under_way.set())

    service = Service("bench-rebuild", rebuild, wake=token.cancel).start()
    under_way.wait()
    times = []
    for number in range(SAVES):
        began = time.perf_counter()
        store.add_note(f"note {number}", (), Marks(), Origin(), most=1 << 30)
        times.append(1000 * (time.perf_counter() - began))
        time.sleep(0.02)
    service.stop(60)
    store.close()
    return {"save_ms": proc.median(times)}


if __name__ == "__main__":
    main()
