"""A disk that fills: commands stop first, a running turn comes to its end, then all goes on; and a
workspace that holds more than it may.

The disks are small ones of their own (tmpfs), filled for real.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from oxydra.config import RuntimeConfig
from oxydra.disk import Ballast, Quota, shortage
from oxydra.doctor import health
from oxydra.errors import StoreFullError, ToolError
from oxydra.runtime import Runtime
from oxydra.store import Store
from oxydra.threads import CancelToken
from oxydra.tools.gate import Gate
from oxydra.tools.registry import ToolRegistry
from oxydra.tools.shell import result
from oxydra.types import TurnState
from tests.conftest import eventually
from tests.doctor_kit import Patient, only
from tests.sandbox import sandbox
from tests.scripted import MODEL, Scripted
from tests.test_daemon import SCRIPT, home  # noqa: F401
from tests.test_shell import ask_shell, best, sandboxed, until

MIB = 1 << 20


def mount(folder, options):
    """Make a disk there; returns why not, empty if it is there."""
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    return (done.stderr.strip() or "mount failed") if done.returncode else ""


@cache
def unmountable():
    """Why no disk can be made here, found by trying; empty if one can."""
    with TemporaryDirectory() as folder:
        try:
            said = mount(folder, "size=1m")
        except OSError as error:
            return f"no mount: {error}"
        if not said:
            subprocess.run(["umount", folder], check=True)
        return f"no tmpfs can be mounted: {said}" if said else ""


@pytest.fixture
def disk(tmp_path, request):
    """A disk of 64 MiB, or as the parameter says."""
    if unmountable():
        pytest.skip(unmountable())
    folder = tmp_path / "disk"
    folder.mkdir()
    assert not mount(folder, getattr(request, "param", "size=64m"))
    folder.chmod(0o755)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def free(folder):
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def fill(folder, left):
    """Write until `left` bytes are free; returns the file that takes them up."""
    filler = folder / "filler"
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        while (size := free(folder) - left) > 0:
            file.write(bytes(min(size, MIB)))
    assert free(folder) <= left
    return filler


# ------------------------------------------------------------------------------------ what is short


def test_bytes_run_short_and_are_there_again(disk):
    assert shortage(disk) == ""
    filler = fill(disk, 2 * MIB)  # less than a twentieth of it
    assert shortage(disk.parent, disk) == "only 2 MB are free on the workspace's disk"
    filler.unlink()
    assert shortage(disk) == ""
    assert shortage(disk / "nothing") == ""


@pytest.mark.parametrize("disk", ["size=64m,nr_inodes=200"], indirect=True)
def test_inodes_run_short(disk):
    assert shortage(disk) == ""
    while os.statvfs(disk).f_favail >= 5:
        (disk / str(os.statvfs(disk).f_favail)).touch()
    assert "only 4 more files fit" in shortage(disk)


def test_health_says_it(disk, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("OXYDRA__WORKSPACE_ROOT", str(disk))
    patient = Patient(tmp_path_factory.mktemp("patient"))
    assert only(health(patient.case()), "disk").level == "healthy"
    fill(disk, MIB)
    found = only(health(patient.case()), "disk")
    assert found.level == "degraded" and "Make room" in found.detail


# ------------------------------------------------------------------------------------------ ballast


def test_ballast_takes_room_and_gives_it_back(disk):
    ballast = Ballast(disk / "ballast", 8 * MIB)
    before = free(disk)
    assert ballast.hold() and ballast.hold()
    assert before - free(disk) == 8 * MIB
    filler = fill(disk, 0)
    assert ballast.hold(), "it is there already"
    assert ballast.release() and free(disk) >= 8 * MIB
    assert not ballast.hold(), "nothing would be left beside it"
    assert not ballast.release()
    filler.unlink()
    assert ballast.hold()


def test_half_a_ballast_is_made_whole(disk):
    (disk / "ballast").write_bytes(b"x")
    ballast = Ballast(disk / "ballast", 8 * MIB)
    assert ballast.hold()
    assert (disk / "ballast").stat().st_blocks * 512 == 8 * MIB


def test_a_link_in_its_place_is_not_followed(disk):
    target = disk / "target"
    target.write_text("somebody's")
    (disk / "ballast").symlink_to(target)
    assert Ballast(disk / "ballast", MIB).hold()
    assert target.read_text() == "somebody's" and not (disk / "ballast").is_symlink()


# ----------------------------------------------------------------------------------------- the turn


def test_a_turn_comes_to_its_end_on_a_full_disk(disk):
    """The last byte is taken while the model speaks. Its answer is stored all the same, nothing new
    is begun, and with room everything is as before.
    """
    store = Store(disk / "oxydra.db", Ballast(disk / "ballast"))
    session = store.create_session().session_id
    registry = ToolRegistry(names=())

    def run(turn, step):
        frames = []
        Runtime(
            store=store,
            provider=Scripted(step),
            model=MODEL,
            gate=Gate(registry, {}),
            tools=registry.specs,
            config=RuntimeConfig(),
        ).run_turn(turn, CancelToken(), lambda *frame: frames.append(frame))
        return frames

    def speak(_request, _token):
        fill(disk, 0)
        return ["y" * 500_000]

    turn, _ = store.accept_turn(session, "t1", "r", "hello")
    frames = run(turn, speak)
    kinds = [p["progress"]["kind"]["kind"] for f, p in frames if f == "turn_progress"]
    assert kinds == ["provider_call", "retry"], "the ballast was not needed"
    assert frames[-1][0] == "turn_completed"
    assert store.turn("t1").state is TurnState.COMPLETED
    assert store.messages(session)[-1].content == "y" * 500_000
    assert not (disk / "ballast").exists()

    fill(disk, 4 * MIB)
    with pytest.raises(StoreFullError, match="Free some disk space"):
        store.accept_turn(session, "t2", "r", "more")
    again, created = store.accept_turn(session, "t1", "r", "hello")
    assert (again.state, created) == (TurnState.COMPLETED, False), "what was accepted is known"
    (disk / "filler").unlink()
    turn, _ = store.accept_turn(session, "t2", "r", "more")
    assert (disk / "ballast").exists()
    assert run(turn, "fine")[-1][0] == "turn_completed"
    store.close()


# ---------------------------------------------------------------------------------------- the shell


@pytest.fixture
def box(disk):
    with sandbox(disk, best()) as box:
        box.client._paused = partial(shortage, disk)
        yield box


def test_commands_are_refused_while_the_database_is_written(disk, box):
    store = Store(disk / "oxydra.db")
    assert box.text("echo here") == "here\n"
    filler = fill(disk, 2 * MIB)
    with pytest.raises(ToolError, match=r"only 2 MB are free .* file_delete") as refused:
        box.run("echo here; touch made")
    assert refused.value.code == "low_disk"
    assert not (disk / "shared" / "made").exists()
    assert store.create_session(display_name="x" * 10_000).session_id
    filler.unlink()
    assert box.text("echo here") == "here\n"
    store.close()


def test_a_command_that_fills_the_disk_is_ended(disk, box):
    """It stays under its own limits, and there is room left for the database."""
    ran = box.run(f"head -c 63M /dev/zero > big; {until('never')}", seconds=60)
    assert ran.killed and "MB are free" in ran.why
    assert "it was killed, since only" in result("x", ran).content
    (disk / "shared" / "big").unlink()
    assert box.text("echo here") == "here\n"


def test_a_command_that_ended_by_itself_says_nothing_of_it(disk, box):
    filler = Path(disk / "filler")
    with filler.open("wb") as file:
        file.write(bytes(30 * MIB))
    ran = box.run("sleep 0.6; echo over")
    assert (ran.output, ran.why) == (b"over\n", "")


def test_the_daemon_says_it(disk, home):  # noqa: F811
    sandboxed()
    written = home.config.read_text()
    home.config.write_text(re.sub('workspace_root = ".*"', f'workspace_root = "{disk}"', written))
    home.run("start", "--detach")

    def paused():
        rows = home.status()["startup_status"]["degraded_reasons"]
        return [row["detail"] for row in rows if row["code"] == "low_disk"]

    assert paused() == [] and (disk / "alice" / "internal" / "ballast").exists()
    filler = fill(disk, 2 * MIB)
    assert "only 2 MB are free" in paused()[0]
    assert "was not run: only" in ask_shell(home, "echo here")
    filler.unlink()
    assert paused() == []
    assert "here" in ask_shell(home, "echo here")


# ----------------------------------------------------------------------------- a workspace's quota


def wait_for(quota, full):
    eventually(lambda: bool(quota.over()) is full)


def test_a_quota_is_noticed_and_so_is_room(tmp_path):
    quota = Quota([tmp_path, tmp_path / "missing"], 4 * MIB)
    assert quota.over() == ""
    (tmp_path / "deep").mkdir()
    big = tmp_path / "deep" / "big"
    big.write_bytes(bytes(5 * MIB))
    wait_for(quota, True)
    assert "more than its 4 MiB" in quota.over()
    big.unlink()
    wait_for(quota, False)
    quota.stop()


def test_what_cant_be_seen_counts_as_too_much(tmp_path):
    place = tmp_path
    for _ in range(150):  # deeper than anybody looks
        place /= "d"
        place.mkdir()
    quota = Quota([tmp_path], 4 * MIB)
    quota.over()
    wait_for(quota, True)
    quota.stop()


def test_one_look_at_a_time_and_none_unasked(tmp_path):
    before = threading.active_count()
    quota = Quota([tmp_path], MIB)
    assert threading.active_count() == before
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: quota.over(), range(200))) == {""}
    quota.stop()
    assert [t.name for t in threading.enumerate() if "measure" in t.name] == []


def test_a_full_workspace_pauses_commands_and_tools(home):  # noqa: F811
    sandboxed()
    user = home.folder / "users" / "alice.toml"
    limit = "[resources]\nmax_workspace_mib = 16"
    user.write_text(user.read_text().replace("[resources]", limit))
    home.env["OXYDRA__TOOLS__SHELL__ALLOW"] = "*"
    home.run("start", "--detach")

    def full():
        rows = home.status()["startup_status"]["degraded_reasons"]
        return [row["detail"] for row in rows if row["code"] == "workspace_full"]

    assert full() == []
    said = ask_shell(home, "head -c 32M /dev/zero > big; sleep 60")
    assert "it was killed, since the workspace holds more than its 16 MiB" in said
    assert "more than its 16 MiB" in full()[0]
    assert "was not run: the workspace holds more" in ask_shell(home, "echo here")
    write = [{"tool": "file_write", "arguments": {"path": "small", "content": "x"}}]
    assert "can't be written: the workspace holds more" in home.run(
        "ask", SCRIPT % json.dumps(write)
    )
    delete = [{"tool": "file_delete", "arguments": {"path": "big"}}]
    home.run("ask", SCRIPT % json.dumps(delete))
    eventually(lambda: full() == [])
    assert "here" in ask_shell(home, "echo here")
