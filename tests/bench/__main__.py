"""`python -m tests.bench`, which is `make bench`: measure, and print the table."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable
from functools import partial

from tests.bench import book, measures, turns
from tests.bench.daemon import Daemon, LoadServer, load_server, new_daemon
from tests.bench.measures import Figures

PARTS: dict[str, Callable[[Daemon, LoadServer, int], Figures]] = {
    "commands": lambda daemon, server, runs: measures.commands(daemon, runs),
    "rest": lambda daemon, server, runs: measures.rest(daemon),
    "request": lambda daemon, server, runs: measures.first_request(daemon, server),
    "turns": measures.turns,
    "chain": measures.chain,
    "long": turns.long_chain,
    "resume": turns.resume,
    "cancel": lambda daemon, server, runs: turns.cancels(server, runs),
    "tools": measures.tools,
    "deltas": lambda daemon, server, runs: measures.deltas(daemon, runs),
    "wire": lambda daemon, server, runs: measures.wire(server, runs),
    "container": lambda daemon, server, runs: measures.container(server, runs),
    "machines": lambda daemon, server, runs: measures.alone("tests.bench.machines"),
    "egress": lambda daemon, server, runs: measures.egress(server),
    "tui": lambda daemon, server, runs: measures.alone("tests.bench.tui"),
    "schedules": lambda daemon, server, runs: measures.alone("tests.bench.schedules"),
    "search": lambda daemon, server, runs: measures.alone("tests.bench.search"),
    "sandbox": lambda daemon, server, runs: measures.alone("tests.bench.sandbox"),
    "users": lambda daemon, server, runs: measures.alone("tests.bench.users"),
    "crowd": lambda daemon, server, runs: measures.crowd(daemon, runs),
    "door": lambda daemon, server, runs: measures.door(daemon, runs),
    "many": lambda daemon, server, runs: measures.many(server, runs),
}


QUIET = 5.0  # percent of the CPU that others may use


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="of each measurement (default: 3)")
    parser.add_argument(
        "--only", action="append", choices=["start", "floor", *PARTS], help="may be repeated"
    )
    parser.add_argument(
        "--write", action="store_true", help="keep the figures, and put them into the page"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=0,
        metavar="MINUTES",
        help=f"before each part, for others to use less than {QUIET:g} % of the CPU (default: 0)",
    )
    options = parser.parse_args()
    wanted = options.only or ["start", "floor", *PARTS]
    if not sys.platform.startswith("linux"):
        parser.error("it reads /proc, so it needs Linux")
    found = book.Book(book.this_machine())
    kept = book.Book.read() if options.write else found
    failed = []

    def note(name: str, measure: Callable[[], Figures]) -> None:
        """Measure a part. One that fails leaves the others alone."""
        before = book.wait_for_quiet(QUIET, options.wait)
        print(f"measuring: {name} (others: {before:.0f} %)", file=sys.stderr, flush=True)
        try:
            figures = measure()
        except Exception as error:
            failed.append(name)
            print(f"{name} failed: {error!r}", file=sys.stderr, flush=True)
            return
        if figures:
            others = round(max(before, book.others_now()), 1)
            day = datetime.date.today().isoformat()
            part = book.Part(figures, day, options.runs, others)
            found.parts[name] = kept.parts[name] = part
        if options.write:
            kept.machine = found.machine
            kept.write()

    with load_server() as server, new_daemon(server.base_url) as daemon:
        if "start" in wanted:
            note("start", lambda: measures.start(daemon, options.runs))
        else:
            measures.start(daemon, 0)
        for name, part in PARTS.items():
            if name in wanted:
                note(name, partial(part, daemon, server, options.runs))
        daemon.stop()
        if "floor" in wanted:
            note("floor", lambda: measures.floor(server, options.runs))
    print(found.shown())
    if failed:
        print(f"\nNot measured: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
