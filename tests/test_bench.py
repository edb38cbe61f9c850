"""The benchmarks' book-keeping; what they measure is no test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import book, report

ROOT = Path(__file__).resolve().parent.parent


def test_a_part_that_is_measured_again_takes_the_place_of_what_it_said_before() -> None:
    kept = book.Book("a machine")
    kept.parts["start"] = book.Part({"ready_s": 9.0}, "2026-01-01", 3)
    kept.parts["chain"] = book.Part({"trip_cpu_ms": 3.0}, "2026-01-02", 1, 12.3, "in a storm")
    kept.parts["floor"] = book.Part({"trip_cpu_ms": 1.0}, "2026-01-03", 3, 0.2)
    page = "# Benchmarks\n\n<!-- figures, generated -->\nold\n<!-- end -->\n\nThe end.\n"
    first = book.paged(page, kept)
    assert "| start to ready | 9.00 s |  |  | < 0.6 s **missed** |" in first
    assert "| guest CPU a round trip | 3.00 ms | 1.00 ms | 3.0 | < 4 ms |" in first
    assert "| of it beyond the floor's | 2.00 ms |  |  | < 4 ms |" in first
    assert "(2026-01-01, medians of 3 runs.)" in first
    storm = "2026-01-02, one run, others at 12 % of the CPU, in a storm"
    assert f"(guest CPU a round trip: {storm}; the floor's: 2026-01-03, medians" in first
    kept.parts["start"] = book.Part({"ready_s": 0.5}, "2026-02-01", 3, 1.0)
    again = book.paged(first, kept)
    assert "| start to ready | 0.50 s |  |  | < 0.6 s |" in again
    assert "2026-01-01" not in again and "2026-01-02" in again and "9.00" not in again
    assert again.startswith("# Benchmarks\n") and again.endswith("\n\nThe end.\n")
    with pytest.raises(ValueError, match="lost the place"):
        book.paged("# Benchmarks\n", kept)


def test_every_figure_that_is_kept_has_its_row() -> None:
    kept = book.Book.read()
    rows = [row.name for group in report.GROUPS for row in group.rows]
    assert len(rows) == len(set(rows))
    assert {*kept.figures(), *kept.floor()} <= set(rows)


@pytest.mark.slow
def test_a_part_is_measured() -> None:
    command = [sys.executable, "-m", "tests.bench", "--only", "commands", "--runs", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| import, RSS | " in done.stdout and "- Commands: " in done.stdout
