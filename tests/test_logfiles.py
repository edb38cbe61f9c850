"""Logs that are turned over while they are written."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oxydra.runner.logfiles import LogFiles, older
from oxydra.runner.workspace import Workspace
from tests.conftest import ROOT, eventually

WRITER = """
import os, select
number = 0
while not select.select([0], [], [], 0)[0]:
    os.write(1, b"line %d %s\\n" % (number, b"x" * 80))
    number += 1
"""
WHOLE = re.compile(r"line (\d+) x{80}")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path / "users", "alice")
    made.prepare()
    return made


def kept(log: Path, count: int = 9) -> Iterator[Path]:
    """The files of a log that there are, the oldest first."""
    yield from (path for n in range(count, 0, -1) if (path := older(log, n)).exists())
    yield log


def test_it_is_turned_over_under_who_writes(workspace: Workspace) -> None:
    """A year's writer, through one descriptor, until the log was turned over five times."""
    log = workspace.logs / "runtime.log"
    files = LogFiles(workspace.logs, most=20_000, older=2)
    output = workspace.open_log("runtime.log")
    command = [sys.executable, "-c", WRITER]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output)
    os.close(output)
    turned = [0]  # the inodes of the newest older file; one that is gone may come again

    def often() -> bool:
        files.look()
        if older(log, 1).exists():
            inode = older(log, 1).stat().st_ino
            turned.extend([inode] if inode != turned[-1] else [])
        assert all(path.stat().st_size <= 40_000 for path in kept(log) if path != log)
        return len(turned) > 5

    try:
        eventually(often)
    finally:
        writer.communicate(b"stop", timeout=120)
    assert writer.returncode == 0
    files.look()
    assert [path.name for path in kept(log)][-3:] == ["runtime.log.2", "runtime.log.1", log.name]
    assert not older(log, 3).exists()
    logs = [path.read_text().splitlines() for path in kept(log)]
    for lines in logs:  # where much came at once one is cut at the beginning or the end
        assert all(WHOLE.fullmatch(line) for line in lines[1:-1])
    found = [WHOLE.fullmatch(line) for lines in logs for line in lines]
    numbers = [int(match[1]) for match in found if match is not None]
    assert len(numbers) > 200 and numbers == sorted(set(numbers))
    assert sum(path.stat().st_size for path in kept(log)) <= 3 * 40_000
    assert not [path for path in workspace.logs.iterdir() if path.name.startswith(".")]


def test_nothing_is_lost_between_looks(workspace: Workspace) -> None:
    log = workspace.logs / "shell.log"
    files = LogFiles(workspace.logs, most=100, older=5)
    output = workspace.open_log("shell.log")
    for number in range(40):
        os.write(output, f"line {number}\n".encode())
        files.look()
    os.close(output)
    text = "".join(path.read_text() for path in kept(log))
    assert text == "".join(f"line {number}\n" for number in range(40))


def test_a_small_one_is_left_alone(workspace: Workspace) -> None:
    log = workspace.logs / "runner.log"
    log.write_text("x" * 100)
    LogFiles(workspace.logs, most=100).look()
    assert list(kept(log)) == [log]


def test_of_a_flood_the_end_is_kept(workspace: Workspace) -> None:
    log = workspace.logs / "runtime.log"
    log.write_bytes(b"".join(b"%09d\n" % number for number in range(10_000)))
    LogFiles(workspace.logs, most=1000).look()
    assert older(log, 1).stat().st_size == 2000
    assert older(log, 1).read_bytes().endswith(b"000009999\n")
    assert log.stat().st_size == 0


@pytest.mark.parametrize("trick", ["link", "hard link", "fifo", "folder"])
def test_what_a_guest_puts_there_is_not_written_to(
    workspace: Workspace, tmp_path: Path, trick: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious" * 100)
    log = workspace.logs / "runtime.log"
    for place in (log, older(log, 1)):
        if trick == "link":
            place.symlink_to(victim)
        elif trick == "hard link":
            os.link(victim, place)
        elif trick == "fifo":
            os.mkfifo(place)
        else:
            place.mkdir()
    files = LogFiles(workspace.logs, most=30)
    files.look()
    assert victim.read_text() == "precious" * 100
    if trick != "folder":
        log.unlink()
        log.write_text("y" * 50)
        files.look()
        assert older(log, 1).read_text() == "y" * 50
        assert victim.read_text() == "precious" * 100


def test_on_a_full_disk_the_log_goes_before_the_database(workspace: Workspace) -> None:
    """A child's files may grow to 1,000 bytes: the older file can't be written."""
    log = workspace.logs / "runtime.log"
    log.write_text("x" * 5000)
    code = (
        "import sys; from pathlib import Path; from oxydra.runner.logfiles import LogFiles;"
        "LogFiles(Path(sys.argv[1]), most=2000).look()"
    )

    def small() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    command = [sys.executable, "-c", code, str(workspace.logs)]
    done = subprocess.run(
        command, cwd=ROOT, preexec_fn=small, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "what was in runtime.log is not kept" in done.stderr
    assert log.stat().st_size == 0
    assert [path.name for path in workspace.logs.iterdir()] == ["runtime.log"]
