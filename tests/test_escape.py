"""What fully hostile code in the shell guest gets: nothing, of everything in
`guest/escape-attempts`.

The same attempts are first made by an ordinary process of the same user, where most of them
succeed: that shows that they would, if the cage did not hold.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from oxydra.doctor.outside import Outside, as_user, escaped, results_of
from tests.conftest import ROOT, eventually
from tests.sandbox import IN_MACHINE, UID, missing, processes_with, sandbox

KIT = ROOT / "guest" / "escape-attempts"

# Attempts that would harm an ordinary process's surroundings, or that any process may make.
NOT_UNCAGED = {"renice_everybody", "signal_everybody", "signal_the_guest", "many_processes"}
LEVELS = {
    "container+cage": {"levels": ("container+cage",)},
    "bwrap+cage": {"levels": ("bwrap+cage",)},
    "cage": {"levels": ("cage",), "dedicated": False},
    "cage, Landlock 2": {"levels": ("cage",), "dedicated": False, "newest_landlock": 2},
    "cage, Landlock 1": {"levels": ("cage",), "dedicated": False, "newest_landlock": 1},
}


@pytest.fixture
def outside(tmp_path):
    there = Outside(tmp_path, UID)
    yield there
    there.close.close()


@pytest.mark.parametrize("case", [*LEVELS, IN_MACHINE])
def test_nothing_gets_out(tmp_path, outside, case):
    options = LEVELS.get(case, {"levels": (case,)})
    level = options["levels"][0]
    if missing(level):
        pytest.skip(missing(level))
    with sandbox(tmp_path, level, **options) as box:
        shutil.copy(KIT, tmp_path / "shared")
        guest = guest_processes(box.process.pid)
        parameters = outside.parameters(guest=guest, isolated=level != "cage")
        (tmp_path / "shared" / "parameters.json").write_text(json.dumps(parameters))
        ran = box.run("python3 -I -S escape-attempts parameters.json", seconds=120)
        assert ran.exit_code == 0, ran
        results = results_of(ran.output.decode())
        assert len(results) >= 60
        assert not escaped(results)
        assert box.text("echo still here") == "still here\n"
    assert not outside.damage()


def test_the_attempts_would_succeed(tmp_path, outside):
    """Without a cage most of them do, or they would prove nothing."""
    shutil.copy(KIT, tmp_path)
    code = (tmp_path / "escape-attempts").read_text()
    names = [
        line.partition("=lambda")[0].strip() for line in code.splitlines() if "=lambda" in line
    ]
    names += [line[4:].partition("(")[0] for line in code.split("@attempt\n")[1:]]
    wanted = sorted(set(names) - NOT_UNCAGED)
    parameters = outside.parameters(guest=[], isolated=False, attempts=wanted)
    folder = outside.folder / "work"
    folder.mkdir()
    os.chown(folder, UID, -1)
    (folder / "kit.py").write_text(code)
    (folder / "parameters.json").write_text(json.dumps(parameters))
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", "kit.py", "parameters.json"],
        cwd=folder,
        capture_output=True,
        timeout=120,
        env={"PATH": os.environ["PATH"]},
        **as_user(UID),
    )
    assert done.returncode == 0, done.stderr
    got = escaped(results_of(done.stdout.decode()))
    assert len(got) >= 40, got
    assert len(outside.damage()) > 8


def guest_processes(root: int) -> list[int]:
    """The processes of a guest, as the host counts them."""
    from oxydra.cage import descendants

    return [root, *descendants(root)]


@pytest.mark.parametrize("level", ["container+cage", "bwrap+cage", "cage"])
def test_no_daemon_outlives_its_session(tmp_path, level):
    if missing(level):
        pytest.skip(missing(level))
    mark = f"86400.{os.getpid() % 1000:03d}7"
    daemons = (
        f"(setsid sleep {mark} &) ; (nohup setsid sleep {mark} >/dev/null 2>&1 &) ;"
        f" python3 -c 'import os, time\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n"
        f'  os.execvp("sleep", ["sleep", "{mark}"])\n\' ; sleep {mark} & disown; true'
    )
    with sandbox(tmp_path, level) as box:
        box.run(daemons)
        eventually(lambda: len(processes_with(f"sleep {mark}")) == 4)
        box.run("sleep 0.05; echo other", conversation="other")
        box.run("exit 3")
        eventually(lambda: not processes_with(f"sleep {mark}"))
        assert box.text("echo here", conversation="other") == "here\n"
        box.run(daemons)
        eventually(lambda: len(processes_with(f"sleep {mark}")) == 4)
    assert not processes_with(f"sleep {mark}")


@pytest.mark.parametrize("level", ["container+cage", "bwrap+cage", "cage"])
def test_a_killed_guest_leaves_nothing(tmp_path, level):
    """Killed from outside, at its root: what ran in it goes as well."""
    if missing(level):
        pytest.skip(missing(level))
    mark = f"86400.{os.getpid() % 1000:03d}8"
    with sandbox(tmp_path, level) as box:
        box.run(f"(setsid sleep {mark} &); true")
        eventually(lambda: len(processes_with(f"sleep {mark}")) == 1)
        number = signal.SIGTERM if level == "cage" else signal.SIGKILL
        os.kill(box.process.pid, number)
        eventually(lambda: not processes_with(f"sleep {mark}"))


@pytest.mark.parametrize("level", ["container+cage", "bwrap+cage", "cage"])
def test_a_fork_bomb_ends_with_its_time(tmp_path, level):
    if missing(level):
        pytest.skip(missing(level))
    with sandbox(tmp_path, level) as box:
        ran = box.run("bomb() { bomb | bomb & }; bomb; while :; do :; done", seconds=1)
        assert ran.timed_out
        eventually(lambda: len(guest_processes(box.process.pid)) < 20)
        assert box.text("echo fine; ls >/dev/null && echo too") == "fine\ntoo\n"


@pytest.mark.parametrize("level", ["container+cage", "bwrap+cage", "cage"])
def test_no_key_is_in_the_guest(tmp_path, level, monkeypatch):
    """Neither in the environment nor in the memory of any of its processes."""
    if missing(level):
        pytest.skip(missing(level))
    key = "sk-" + "canary".join(["7f3a", "91bc", "e2d4"])
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with sandbox(tmp_path, level) as box:
        assert key not in box.text("printenv; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'")
        seen = 0
        for pid in guest_processes(box.process.pid):
            assert key.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
            seen += memory_holds(pid, b"sk-7f3acanary")
        assert seen == 0
    assert memory_holds(os.getpid(), key.encode())  # the search finds what is there


def memory_holds(pid: int, needle: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
            for line in maps:
                area, rights, *_ = line.split()
                start, end = (int(number, 16) for number in area.split("-"))
                if "r" not in rights or end - start > 1 << 30:
                    continue
                with contextlib.suppress(OSError, OverflowError, ValueError):
                    memory.seek(start)
                    if needle in memory.read(end - start):
                        return True
    except PermissionError:
        pytest.skip("another user's memory can only be read by root")
    return False
