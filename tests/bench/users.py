"""Ten users of one host: what all their processes take together, after each has been answered.

`python -m tests.bench.users` prints one JSON object. The processes are those that descend from the
ten runners; memory is PSS, in which what several share counts once, divided among them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from tests.test_daemon import Home
from tests.test_users import add_user

USERS = 10
SETTLE_SECONDS = 15.0  # until memory has made its vectors


def pss_mb(pid: int) -> float:
    """The memory of a process, with its share of what others have too (MiB)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise KeyError("Pss")


def descendants(roots: list[int]) -> list[int]:
    """These processes, and all that descend from them."""
    children = defaultdict(list)
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path("/proc", name, "stat").read_text()
            except OSError:
                continue
            children[int(stat.rpartition(")")[2].split()[1])].append(int(name))
    found = list(roots)
    for pid in found:
        found += children[pid]
    return found


def house_of(path: Path, users: int) -> tuple[Home, list[str]]:
    """A home with so many users, and their names."""
    house = Home(path)
    house.init()
    names = ["alice", *(f"user{number}" for number in range(2, users + 1))]
    for name in names[1:]:
        add_user(house, name)
    return house, names


def memory_of(house: Home) -> tuple[float, int]:
    """MiB of all daemons that run there, and how many processes these are."""
    rows = json.loads(house.run("status", "--all", "--json"))
    found = descendants([row["runner_pid"] for row in rows])
    return sum(pss_mb(pid) for pid in found), len(found)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="oxydra-bench-") as folder:
        os.chmod(folder, 0o711)
        house, names = house_of(Path(folder), USERS)
        try:
            began = time.monotonic()
            house.run("start", "--all")
            figures = {"users_start_s": time.monotonic() - began}
            figures["users_rest_mb"] = memory_of(house)[0]
            for name in names:
                house.run("--user", name, "ask", "run `ls`")
                house.run("--user", name, "ask", "remember that the key is next door")
            time.sleep(SETTLE_SECONDS)
            figures["users_pss_mb"], figures["users_processes"] = memory_of(house)
        finally:
            house.command("stop", "--all")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
