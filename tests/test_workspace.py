"""A user's folders, the daemon's lock, and files opened where a guest may have prepared
something.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from oxydra.errors import ConfigError, OxydraError
from oxydra.runner.workspace import AlreadyRunning, Workspace, open_regular


@pytest.fixture
def workspace(tmp_path):
    workspace = Workspace(tmp_path / "users", "alice")
    workspace.prepare()
    return workspace


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_the_folders_are_private_and_preparing_twice_is_fine(workspace):
    workspace.prepare()
    names = {"shared", "tmp", "vault", "ipc", "logs", "internal", "audit", "skills", ".oxydra"}
    assert {p.name for p in workspace.path.iterdir()} == names
    assert (workspace.path / ".oxydra").resolve() == workspace.internal
    assert (mode(workspace.path), mode(workspace.ipc)) == (0o700, 0o700)
    workspace.ipc.chmod(0o755)
    workspace.prepare()
    assert mode(workspace.ipc) == 0o700


@pytest.mark.parametrize("user", ["", "..", "a/b", "Alice", "a b", "-x", "x" * 33, "a\n", "ä"])
def test_a_users_name_is_never_a_path(tmp_path, user):
    with pytest.raises(ConfigError, match="cannot be a user's name"):
        Workspace(tmp_path, user)


def test_a_link_in_place_of_a_folder_is_refused(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "alice").symlink_to(outside)
    with pytest.raises(OxydraError, match="is not a folder"):
        Workspace(tmp_path / "users", "alice").prepare()
    assert list(outside.iterdir()) == []


def test_a_file_in_place_of_the_root(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OxydraError, match="workspace_root"):
        Workspace(tmp_path / "file", "alice").prepare()


def test_the_lock_has_one_holder_and_ends_with_it(workspace):
    assert not workspace.locked()
    with workspace.lock():
        assert workspace.locked()
        with pytest.raises(AlreadyRunning, match="restart"), workspace.lock():
            pass
    assert not workspace.locked()


def test_a_child_that_inherited_the_lock_holds_it_after_its_parent(workspace):
    with workspace.lock() as lock:
        child = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock]
        )
    assert workspace.locked()
    child.kill()
    child.wait()
    child.stdin.close()
    assert not workspace.locked()


def test_the_token_stays_and_is_private(workspace):
    token = workspace.token()
    assert workspace.token() == token
    path = workspace.ipc / "gateway-token"
    assert mode(path) == 0o600
    path.write_text("short")
    assert workspace.token() not in ("short", token)


def test_what_makes_a_dead_daemon_look_alive_is_removed(workspace):
    workspace.write_ipc("gateway-endpoint", "ws://x")
    token = workspace.token()
    workspace.forget_ipc()
    workspace.forget_ipc()
    assert [p.name for p in workspace.ipc.iterdir()] == ["gateway-token"]
    assert workspace.token() == token


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "fifo", "directory"])
def test_a_prepared_log_is_not_written_through(workspace, tmp_path, kind):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    log = workspace.logs / "runtime.log"
    if kind == "symlink":
        log.symlink_to(victim)
    elif kind == "hardlink":
        os.link(victim, log)
    elif kind == "fifo":
        os.mkfifo(log)
    else:
        log.mkdir()
    with pytest.raises(OSError):
        os.close(workspace.open_log("runtime.log"))
    assert victim.read_text() == "precious"


def test_the_tail_of_a_log(workspace):
    assert workspace.log_tail("none.log") == ""
    (workspace.logs / "a.log").write_text("".join(f"line {n}\n" for n in range(1000)))
    assert workspace.log_tail("a.log", 2) == "line 998\nline 999"


def test_open_regular_closes_what_it_refuses(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    os.mkfifo(tmp_path / "fifo")
    for _ in range(10):
        with pytest.raises(PermissionError):
            open_regular(tmp_path / "fifo", os.O_RDONLY)
    if before:
        assert len(list(Path("/proc/self/fd").iterdir())) == before
