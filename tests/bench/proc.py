"""What the kernel says of a process (Linux, proc(5)), and the median of what was measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_ms(pid: int) -> float:
    """CPU time of a process and of its threads, also those that have ended; in steps of 10 ms."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) * 1000 / TICKS


def rss_mb(pid: int) -> float:
    """Resident memory, what it shares with other processes included (MiB)."""
    return status(pid, "VmRSS") / 1024


def wakeups(pid: int) -> int:
    """How often the threads it has now were put to sleep: 0 more means that nothing ran."""
    tasks = [f"{pid}/task/{task.name}" for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(status(task, "voluntary_ctxt_switches") for task in tasks)


def status(task: int | str, name: str) -> int:
    """A number of /proc/<task>/status."""
    for line in Path(f"/proc/{task}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise KeyError(name)


def median(values: Sequence[float]) -> float:
    """Without `statistics`, whose import would be a good part of the floor's."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of `values` lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
