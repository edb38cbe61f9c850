"""The broker's audit log: what `verify` finds, and what a log goes on after."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from oxydra.broker import AuditLog, audit, verify
from oxydra.broker.audit import HEAD, NAME, OLDER, Exchange


def exchange(number: int) -> Exchange:
    return Exchange("agent", "http", f"https://host-{number}", "allowed", sent=1, received=2)


def write(folder: Path, *numbers: int) -> None:
    log = AuditLog(folder)
    for number in numbers:
        log.add(exchange(number))
    log.close()


def replaced(folder: Path) -> None:
    """Another chain, sound in itself; the head is left as it is."""
    head = (folder / HEAD).read_bytes()
    (folder / NAME).unlink()
    (folder / HEAD).unlink()
    write(folder, 10, 11, 12, 13, 14)
    (folder / HEAD).write_bytes(head)


def on_lines(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path], None]:
    def attack(folder: Path) -> None:
        path = folder / NAME
        path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))

    return attack


ATTACKS: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "a line removed": (on_lines(lambda rows: rows[:2] + rows[3:]), 2, "line 3 .* was changed, or"),
    "the first removed": (on_lines(lambda rows: rows[1:]), 0, "line 1 .* was changed, or"),
    "a field changed": (
        on_lines(lambda rows: [row.replace(b"host-2", b"host-7") for row in rows]),
        2,
        "line 3 .* was changed, or",
    ),
    "two swapped": (
        on_lines(lambda rows: [*rows[:2], rows[3], rows[2], rows[4]]),
        2,
        "line 3 .* was changed, or",
    ),
    "one doubled": (on_lines(lambda rows: [*rows[:2], *rows[1:]]), 2, "line 3 .* was changed"),
    "no row put in": (on_lines(lambda rows: [rows[0], b"[]\n", *rows[1:]]), 1, "line 2 .* no row"),
    "the end cut off": (on_lines(lambda rows: rows[:3]), 3, "rows 4 to 5 are missing at the end"),
    "within a line": (
        on_lines(lambda rows: [*rows[:4], rows[4][:20]]),
        4,
        "rows 5 to 5 are missing at the end",
    ),
    "all cut off": (on_lines(lambda rows: []), 0, "rows 1 to 5 are missing at the end"),
    "the file removed": (lambda folder: (folder / NAME).unlink(), 0, "rows 1 to 5 are missing"),
    "the head removed": (lambda folder: (folder / HEAD).unlink(), 5, "egress.head is missing"),
    "the head overwritten": (
        lambda folder: (folder / HEAD).write_text("00 ff 00\n"),
        5,
        "egress.head is missing",
    ),
    "the file replaced": (replaced, 5, "row 5 is not the one that egress.head names"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_was_done_to_it_is_found(name: str, tmp_path: Path) -> None:
    write(tmp_path, *range(5))
    found = verify(tmp_path)
    assert found[:2] == (5, "")
    assert audit.today(tmp_path) == (5, 15)
    attack, rows, problem = ATTACKS[name]
    attack(tmp_path)
    told = verify(tmp_path)
    assert told.rows == rows
    assert re.search(problem, told.problem), told.problem


@pytest.mark.parametrize("name", ["the end cut off", "the head removed", "the file replaced"])
def test_a_daemon_that_starts_after_it_does_not_cover_it_up(name: str, tmp_path: Path) -> None:
    write(tmp_path, *range(5))
    ATTACKS[name][0](tmp_path)
    write(tmp_path, 5, 6)
    write(tmp_path, 7)
    found = verify(tmp_path)
    assert "was not as it had been left" in found.problem
    assert next(audit.rows(tmp_path))["destination"] == "https://host-7"


def test_a_head_that_is_kept_elsewhere_shows_a_log_that_was_replaced(tmp_path: Path) -> None:
    write(tmp_path, *range(5))
    head = verify(tmp_path).head
    assert re.fullmatch("5:[0-9a-f]{64}", head)
    write(tmp_path, 5)
    assert verify(tmp_path, head)[:2] == (6, "")
    for path in tmp_path.iterdir():
        path.unlink()
    write(tmp_path, *range(10, 19))  # other rows: the same ones may fall into the same millisecond
    assert verify(tmp_path)[:2] == (9, "")  # a whole chain, and its head
    assert "row 5 is another one" in verify(tmp_path, head).problem
    assert "row 99 is missing" in verify(tmp_path, "99" + head[1:]).problem


def test_the_chain_goes_on_over_restarts_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MAX_BYTES", 4000)
    write(tmp_path, *range(5))
    first = verify(tmp_path).head
    for start in range(1, 6):
        write(tmp_path, *range(start * 5, start * 5 + 5))
        assert not verify(tmp_path).problem
    assert (tmp_path / OLDER).exists()
    assert next(audit.rows(tmp_path))["destination"] == "https://host-29"
    assert "row 5 is no longer kept" in verify(tmp_path, first).problem
    assert (tmp_path / NAME).stat().st_size <= 4000
    whole = {name: (tmp_path / name).read_bytes() for name in (NAME, OLDER)}
    (tmp_path / OLDER).write_bytes(b"".join(whole[OLDER].splitlines(keepends=True)[2:]))
    assert re.search(r"rows \d+ to \d+ are missing before line 1", verify(tmp_path).problem)
    (tmp_path / OLDER).unlink()
    assert "a line before it is missing" in verify(tmp_path).problem
    (tmp_path / OLDER).write_bytes(whole[OLDER])
    assert not verify(tmp_path).problem


def test_a_line_that_a_crash_cut_off_is_taken_away(tmp_path: Path) -> None:
    write(tmp_path, *range(5))
    with (tmp_path / NAME).open("ab") as file:
        file.write(b'{"at":"2026-')
    assert verify(tmp_path)[:2] == (5, "")
    write(tmp_path, 5)
    assert verify(tmp_path)[:2] == (6, "")


def test_a_row_that_was_written_before_its_head_is_no_loss(tmp_path: Path) -> None:
    write(tmp_path, *range(5))
    head = (tmp_path / HEAD).read_bytes()
    write(tmp_path, 5)
    (tmp_path / HEAD).write_bytes(head)  # killed between the two
    assert verify(tmp_path)[:2] == (6, "")
    write(tmp_path, 6)
    assert verify(tmp_path)[:2] == (7, "")


def test_a_log_from_before_there_were_numbers_goes_on(tmp_path: Path) -> None:
    last, lines = audit.FIRST, []
    for number in range(3):
        row = {"at": "2026-11-01T00:00:00.000+00:00", "destination": f"https://old-{number}"}
        last = audit._hash(last, row)
        lines.append(audit.compact({**row, "hash": last}) + "\n")
    (tmp_path / NAME).write_text("".join(lines))
    assert verify(tmp_path)[:2] == (3, "")
    write(tmp_path, 0, 1)
    assert verify(tmp_path)[:2] == (5, "")
    on_lines(lambda rows: rows[:-1])(tmp_path)
    assert "rows 2 to 2 are missing at the end" in verify(tmp_path).problem


def test_what_does_not_fit_on_the_disk_leaves_no_half_row(tmp_path: Path) -> None:
    """A child's files may grow to 1,000 bytes: the next write is cut short or fails."""
    code = (
        "import sys; from pathlib import Path; from tests.test_audit_log import write;"
        "write(Path(sys.argv[1]), *range(20))"
    )

    def small() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    command = [sys.executable, "-c", code, str(tmp_path)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        command, cwd=root, preexec_fn=small, capture_output=True, text=True, timeout=120
    )
    assert "the audit log can't be written" in done.stderr
    found = verify(tmp_path)
    assert 0 < found.rows < 20
    assert not found.problem
    assert os.path.getsize(tmp_path / NAME) <= 1000


def test_a_copy_is_as_good(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    write(tmp_path / "one", *range(5))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    write(tmp_path / "two", 5)
    assert verify(tmp_path / "two", verify(tmp_path / "one").head)[:2] == (6, "")
