"""`python -m tests.bench`, which is `make bench`: measure, and print the table."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable

from tests.bench import measures, report, turns
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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="of each measurement (default: 3)")
    parser.add_argument(
        "--only", action="append", choices=["start", "floor", *PARTS], help="may be repeated"
    )
    options = parser.parse_args()
    wanted = options.only or ["start", "floor", *PARTS]
    if not sys.platform.startswith("linux"):
        parser.error("it reads /proc, so it needs Linux")
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} cores, load average before "
        f"{os.getloadavg()[0]:.2f}; medians of {options.runs} runs.\n",
        flush=True,
    )
    ours: Figures = {}
    floor: Figures = {}
    with load_server() as server, new_daemon(server.base_url) as daemon:
        started = measures.start(daemon, options.runs if "start" in wanted else 0)
        if "start" in wanted:
            ours |= started
        for name, part in PARTS.items():
            if name in wanted:
                print(f"measuring: {name}", file=sys.stderr, flush=True)
                ours |= part(daemon, server, options.runs)
        daemon.stop()
        if "floor" in wanted:
            print("measuring: floor", file=sys.stderr, flush=True)
            floor = measures.floor(server, options.runs)
    for name in ("trip", "long"):
        if f"{name}_cpu_ms" in ours and floor:
            ours[f"{name}_beyond_ms"] = ours[f"{name}_cpu_ms"] - floor[f"{name}_cpu_ms"]
    print(report.table(ours, floor))
    print(f"\nHow:\n{report.methods(ours)}")
    print(f"\nLoad average after: {os.getloadavg()[0]:.2f}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
