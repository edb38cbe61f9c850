"""What was measured last, part by part: kept in `figures.json` and put into docs/benchmarks.md.

A part that is measured again takes the place of what it said before; the others keep theirs, with
the day on which, and beside how much else, they were measured.
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.bench import report
from tests.bench.daemon import ROOT

FIGURES = Path(__file__).with_name("figures.json")
PAGE = ROOT / "docs" / "benchmarks.md"
LOOK_SECONDS = 3.0
BLOCK = re.compile(r"(<!-- figures, generated -->\n).*?(<!-- end -->)", re.S)


@dataclass(frozen=True, slots=True)
class Part:
    """One part's figures. `others` is the share of all cores, in percent, that other processes took
    just before and after it, whichever was more; None where that was not looked at.
    """

    figures: Mapping[str, float]
    day: str
    runs: int
    others: float | None = None
    note: str = ""

    def said(self) -> str:
        """When and how it was measured."""
        runs = "one run" if self.runs == 1 else f"medians of {self.runs} runs"
        beside = "" if self.others is None else f", others at {self.others:.0f} % of the CPU"
        return f"{self.day}, {runs}{beside}{', ' if self.note else ''}{self.note}"


@dataclass(slots=True)
class Book:
    """All parts by their names, "floor" among them, and the machine that they were measured on."""

    machine: str = ""
    parts: dict[str, Part] = field(default_factory=dict)

    @classmethod
    def read(cls) -> Book:
        found = json.loads(FIGURES.read_text())
        parts = {name: Part(**part) for name, part in found["parts"].items()}
        return cls(found["machine"], parts)

    def write(self) -> None:
        """Keep it, and write the page anew."""
        whole = {
            "machine": self.machine,
            "parts": {name: asdict(part) for name, part in sorted(self.parts.items())},
        }
        FIGURES.write_text(json.dumps(whole, indent=1) + "\n")
        PAGE.write_text(paged(PAGE.read_text(), self))

    def figures(self) -> dict[str, float]:
        """Everything but the floor's, with what is taken together from two parts."""
        ours = {
            name: value
            for part, measured in self.parts.items()
            if part != "floor"
            for name, value in measured.figures.items()
        }
        floor = self.floor()
        for name in ("trip", "long"):
            if f"{name}_cpu_ms" in ours and f"{name}_cpu_ms" in floor:
                ours[f"{name}_beyond_ms"] = ours[f"{name}_cpu_ms"] - floor[f"{name}_cpu_ms"]
        return ours

    def floor(self) -> Mapping[str, float]:
        return self.parts["floor"].figures if "floor" in self.parts else {}

    def shown(self) -> str:
        """The table and the method of each of its groups, with the day."""
        ours = self.figures()
        how = [
            f"- {group.title}: {group.method}. {self._when(group)}"
            for group in report.GROUPS
            if any(row.name in ours for row in group.rows)
        ]
        table = report.table(ours, self.floor())
        return "\n".join([f"On {self.machine}.\n", table, "", *how])

    def _when(self, group: report.Group) -> str:
        """When a group's figures were measured; of which, where that was not at one time."""
        found: dict[str, list[str]] = {}
        for name, part in self.parts.items():
            labels = [row.label for row in group.rows if row.name in part.figures]
            if labels:
                of = ["the floor's"] if name == "floor" else labels
                found.setdefault(part.said(), []).extend(of)
        if len(found) == 1:
            return f"({next(iter(found))}.)"
        told = [f"{', '.join(labels)}: {said}" for said, labels in found.items()]
        return f"({'; '.join(told)}.)"


def paged(page: str, book: Book) -> str:
    """The page with these figures."""
    written, count = BLOCK.subn(lambda found: f"{found[1]}{book.shown()}\n{found[2]}", page)
    if count != 1:
        raise ValueError("docs/benchmarks.md has lost the place of its figures")
    return written


def this_machine() -> str:
    """What figures depend on, in words."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{os.cpu_count()} cores ({cpu[1] if cpu else platform.machine()}), {memory:.0f} GB, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )


def others_now() -> float:
    """How much of all cores is used in some seconds in which nothing of ours runs (percent)."""
    before = _used()
    time.sleep(LOOK_SECONDS)
    after = _used()
    whole = sum(after) - sum(before)
    return 100 * (after[0] - before[0]) / whole if whole else 0.0


def _used() -> tuple[int, int]:
    """Ticks of all cores: of work, and of rest (proc(5): idle and iowait)."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    rest = ticks[3] + ticks[4]
    return sum(ticks) - rest, rest


def wait_for_quiet(percent: float, minutes: float) -> float:
    """Wait until others use less than that, or for so long; what they used at last."""
    end = time.monotonic() + 60 * minutes
    while (found := others_now()) >= percent and time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
    return found
