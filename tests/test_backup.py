"""Backups: made while all goes on, put back elsewhere, and never half of either."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading

import apsw
import pytest

from oxydra.broker.audit import AuditLog, Exchange
from oxydra.errors import NotFoundError, OxydraError, UsageError
from oxydra.gateway.snapshots import DATABASE, Snapshots
from oxydra.runner import backup
from oxydra.runner.restore import Plan, restore, verify
from oxydra.runner.workspace import Workspace
from oxydra.store import Store
from oxydra.types import Attachment
from tests.conftest import eventually
from tests.test_daemon import RUNNER, Home
from tests.test_users import add_user

ROOT = {"said": "spaces", "layer": "", "was": ""}


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "old")
    home.path.mkdir()
    home.init()
    yield home
    assert home.command("stop").returncode in (0, 2, 3)


@pytest.fixture
def other(tmp_path):
    """Another person's home, on another machine."""
    other = Home(tmp_path / "new")
    other.path.mkdir()
    yield other
    if other.config.exists():
        assert other.command("stop").returncode in (0, 2, 3)


def rows(path):
    """All rows of a database, table by table."""
    db = apsw.Connection(str(path))
    try:
        names = [
            row[0]
            for row in db.execute(
                "SELECT name FROM sqlite_schema WHERE type = 'table' AND sql NOT LIKE '%VIRTUAL%'"
                " AND name NOT LIKE 'chunk_words%' AND name NOT LIKE 'chunk_trigrams%'"
            ).fetchall()
        ]
        return {name: db.execute(f"SELECT * FROM {name}").fetchall() for name in sorted(names)}
    finally:
        db.close()


def tree(folder):
    """What is below a folder: contents of files, targets of links, modes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        what = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        state = None if path.is_symlink() else path.stat()
        facts = (state.st_mode & 0o777, int(state.st_mtime)) if state else ()
        found[path.relative_to(folder).as_posix()] = (what, *facts)
    return found


def fill(shared):
    (shared / "a" / "empty").mkdir(parents=True)
    (shared / "a" / "é name").write_text("hello\n")
    (shared / "a" / "program").write_text("#!/bin/sh\n")
    (shared / "a" / "program").chmod(0o755)
    (shared / "a" / "large").write_bytes(random.Random(1).randbytes(6 << 20))
    (shared / "link").symlink_to("a/program")
    os.link(shared / "a" / "program", shared / "hard")
    os.utime(shared / "a" / "program", (1_000_000, 1_000_000))


def test_all_of_it_is_there_on_another_machine(home, other, tmp_path):
    """While turns run and files change; the other machine has another home."""
    file = tmp_path / "x.tar.gz"
    home.run("start", "--detach")
    fill(home.workspace / "shared")
    (home.workspace / "vault" / "passport").write_text("secret")
    home.run("token", "create", "phone")
    image = home.path / "x.png"
    image.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    home.run("ask", "look at this", "--attach", str(image), code=1)  # the offline model can't
    stop = threading.Event()
    growing = (home.workspace / "shared" / "growing").open("a")

    def work():
        while not stop.is_set():
            home.run("ask", "hello")
            growing.write("more\n" * 1000)
            growing.flush()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        told = json.loads(home.run("backup", str(file), "--json"))
    finally:
        stop.set()
        worker.join()
        growing.close()
    assert told["users"] == ["alice"] and told["troubles"] == []
    assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old", "x.tar.gz"]
    assert "schema" in home.run("backup", "--verify", str(file))
    home.run("stop")

    done = json.loads(other.run("restore", str(file), "--json"))
    assert done["users"] == ["alice"] and done["told"] == []
    assert other.workspace.is_relative_to(other.path)
    before, after = (one.workspace / "shared" for one in (home, other))
    found, there = tree(after), tree(before)
    grown = found.pop("growing")[0]
    assert there.pop("growing")[0].startswith(grown)
    assert found == there and (other.workspace / "vault" / "passport").read_text() == "secret"
    assert tree(other.workspace / "internal" / "attachments")
    was, now = (rows(one.workspace / "internal" / "oxydra.db") for one in (home, other))
    for table in ("sessions", "events", "turns"):  # what was stored by then
        assert now[table] and len(now[table]) <= len(was[table]), table
        keys = {row[:2] for row in was[table]}
        assert {row[:2] for row in now[table]} <= keys, table
    other.run("start", "--detach")
    assert "look at this" in other.run("session", "list")
    assert "phone" in other.run("token", "list")
    assert other.run("ask", "hello")
    for name in ("agent.toml", "runner.toml", "users/alice.toml"):
        assert (other.folder / name).read_bytes() == (home.folder / name).read_bytes()


def test_what_is_there_is_not_replaced_by_chance(home, tmp_path):
    file = tmp_path / "x.tar.gz"
    kept = home.workspace / "shared" / "kept"
    kept.write_text("before")
    home.run("backup", str(file))
    kept.write_text("after")
    home.run("start", "--detach")
    assert "already running" in home.fails("restore", str(file), "--replace")
    home.run("stop")
    assert "not empty" in home.fails("restore", str(file), code=2)
    assert "Would be restored: alice" in home.run("restore", str(file), "--dry-run", "--replace")
    assert kept.read_text() == "after"
    home.run("restore", str(file), "--replace")
    assert kept.read_text() == "before"
    home.add("runner.toml", "# changed\n")
    kept.unlink()
    assert "says something else" in home.fails("restore", str(file), code=2)
    home.run("--user", "alice", "restore", str(file), "--replace")
    assert kept.read_text() == "before" and "# changed" in home.config.read_text()
    assert [p.name for p in home.workspace.parent.iterdir()] == ["alice"]


def test_users_keys_and_a_place_of_ones_own(home, other, tmp_path):
    add_user(home, "bob")
    home.run("key", "set", "OPENAI_API_KEY", input="sk-secret-1234567890")
    for user in ("alice", "bob"):
        shared = home.workspace.parent / user / "shared"
        shared.mkdir(parents=True, exist_ok=True)
        (shared / user).write_text(user)
    place = other.path / "elsewhere"
    for keys in ([], ["--with-keys"]):
        file = tmp_path / f"x{len(keys)}.tar.gz"
        assert "alice, bob" in home.run("backup", str(file), *keys)
        other.run("restore", str(file), "--workspace-root", str(place), "--replace")
        assert ("OPENAI_API_KEY" in other.run("key", "list")) is bool(keys)
    for user in ("alice", "bob"):
        assert (place / user / "shared" / user).read_text() == user
    told = json.loads(other.run("config", "explain", "--json"))
    assert [row["value"] for row in told if row["key"] == "workspace_root"] == [str(place)]
    one = tmp_path / "bob.tar.gz"
    assert "bob;" in home.run("--user", "bob", "backup", str(one))
    assert "no 'alice' in it" in other.fails("--user", "alice", "restore", str(one), code=2)


def test_the_newest_are_kept(home, tmp_path):
    folder = tmp_path / "backups"
    folder.mkdir()
    names = [f"oxydra-2026010{n}T000000Z.tar.gz" for n in range(1, 5)]
    others = ["oxydra-alice-20250101T000000Z.tar.gz", "oxydra.tar.gz", "notes"]
    for name in names + others:
        (folder / name).touch()
    home.run("backup", str(folder), "--keep", "3")
    left = {path.name for path in folder.iterdir()}
    assert left > {*names[2:], *others} and len(left - {*names[2:], *others}) == 1
    assert "needs a folder" in home.fails("backup", str(tmp_path / "x"), "--keep", "3", code=2)
    inside = home.workspace / "shared"
    assert "in the workspace" in home.fails("backup", str(inside), code=2)
    assert "can't be written" in home.fails("backup", str(tmp_path / "no" / "x"))


def test_the_configuration_is_restored_only_to_where_it_may_be(home, other, tmp_path):
    file = tmp_path / "x.tar.gz"
    home.config.write_text(
        home.config.read_text().replace('"workspaces"', f'"{tmp_path}/elsewhere"')
    )
    home.run("backup", str(file))
    assert "--workspace-root" in other.fails("restore", str(file), code=2)
    assert not (tmp_path / "elsewhere").exists() and not other.config.exists()
    home.config.write_text(home.config.read_text().replace(f"{tmp_path}/else", f"{home.path}/else"))
    home.run("backup", str(file))
    other.run("restore", str(file))  # below the home, so below this one's
    assert (other.path / "elsewhere" / "alice" / "shared").is_dir()
    assert f'"{other.path}/elsewhere"' in other.config.read_text()


# ------------------------------------------------------------------------------------ a workspace


@contextlib.contextmanager
def nobody(_workspace):
    """No daemon runs."""
    yield None


@pytest.fixture
def workspace(tmp_path):
    workspace = Workspace(tmp_path / "spaces", "alice")
    workspace.prepare()
    Store(workspace.database).close()
    return workspace


def made(workspace, path):
    return backup.write(path, [], ROOT, [workspace], nobody)


def put_back(path, folder, **more):
    return restore(path, Plan(folder=folder, root=str(folder), **more))


def test_from_a_stop_nothing_is_lost(workspace, tmp_path):
    store = Store(workspace.database)
    for n in range(200):
        store.create_session(display_name=f"{n}" * 1000)
    image = Attachment("image/png", hashlib.sha256(b"x").hexdigest(), b"x")
    store.files.keep([image])
    store.close()
    fill(workspace.shared)
    made(workspace, tmp_path / "x.tar.gz")
    put_back(tmp_path / "x.tar.gz", tmp_path / "new")
    other = Workspace(tmp_path / "new", "alice")
    for name in ("shared", "tmp", "vault"):
        assert tree(other.path / name) == tree(workspace.path / name)
    assert rows(other.database) == rows(workspace.database)
    again = Store(other.database)
    assert again.files.data(image.sha256) == b"x"
    again.close()


def test_what_is_no_file_is_named(workspace, tmp_path):
    shared = workspace.shared
    os.mkfifo(shared / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(shared / "socket"))
    (shared / "out").symlink_to("/etc/passwd")
    (shared / "up").symlink_to("../vault")
    (shared / "inside").symlink_to("file")
    (shared / "file").write_text("x")
    (tmp_path / "outside").write_text("not the model's")
    os.link(tmp_path / "outside", shared / "stolen")
    report = made(workspace, tmp_path / "x.tar.gz")
    said = {line.split("/")[3].split(":")[0]: line for line in report.left_out}
    assert set(said) == {"fifo", "socket", "out", "up", "stolen"}
    put_back(tmp_path / "x.tar.gz", tmp_path / "new")
    found = {path.name for path in (tmp_path / "new" / "alice" / "shared").iterdir()}
    assert found == {"inside", "file"}
    assert verify(tmp_path / "x.tar.gz").left_out == report.left_out


def test_folders_of_the_users_own_are_left_to_the_user(workspace, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "x").write_text("x")
    mounts = type(workspace.mounts)(own, workspace.tmp, workspace.mounts.vault)
    report = made(Workspace(workspace.path.parent, "alice", mounts), tmp_path / "x.tar.gz")
    assert report.left_out == [f"{own}: it is your own, mounted as /shared"]


def test_the_egress_log_goes_on_after_it(workspace, tmp_path):
    log = AuditLog(workspace.audit)
    log.add(Exchange("agent", "request", "https://x", "allowed"))
    made(workspace, tmp_path / "x.tar.gz")
    log.close()
    put_back(tmp_path / "x.tar.gz", tmp_path / "new")
    again = AuditLog(tmp_path / "new" / "alice" / "audit")
    again.add(Exchange("agent", "request", "https://y", "allowed"))
    again.close()
    from oxydra.broker.audit import verify as chain

    assert chain(tmp_path / "new" / "alice" / "audit")[:2] == (2, "")


def test_a_failure_leaves_no_file(workspace, tmp_path):
    workspace.database.unlink()
    workspace.database.write_text("no database")
    with pytest.raises(OxydraError, match="damaged"):
        made(workspace, tmp_path / "x.tar.gz")
    assert {path.name for path in tmp_path.iterdir()} == {"spaces"}


def test_two_at_a_time_do_not_mix(workspace, tmp_path):
    with backup._part(tmp_path / "x.tar.gz"), pytest.raises(UsageError, match="Another backup"):
        made(workspace, tmp_path / "y.tar.gz")
    made(workspace, tmp_path / "x.tar.gz")


def test_a_daemon_can_not_start_while_its_database_is_read(workspace, tmp_path):
    pieces = backup.offline(workspace, tmp_path / "scratch")
    assert next(pieces).name == backup.DATABASE
    assert workspace.locked()
    pieces.close()
    assert not workspace.locked()


# ------------------------------------------------------------------- what a running daemon gives


def copied(snapshots):
    key = snapshots.command({"action": "begin"})["key"]
    eventually(lambda: snapshots.command({"action": "state", "key": key})["done"])
    return key


def test_a_snapshot_is_given_in_parts(store, tmp_path):
    data = random.Random(2).randbytes(5 << 20)
    store.files.keep([Attachment("image/png", hashlib.sha256(data).hexdigest(), data)])
    snapshots = Snapshots(store)

    def ask(command, /, **args):
        assert command == "backup"
        return snapshots.command(args)

    found = {piece.name: b"".join(piece.blocks) for piece in backup.online(ask)}
    assert next(iter(found)) == DATABASE and data in found.values()
    (tmp_path / "copy.db").write_bytes(found[DATABASE])
    assert rows(tmp_path / "copy.db") == rows(store.path)
    assert not store.snapshot.exists()


def test_a_snapshot_ends_with_the_next_with_an_erasure_and_with_the_guest(store):
    snapshots = Snapshots(store)
    first = copied(snapshots)
    second = copied(snapshots)
    with pytest.raises(NotFoundError, match="Another backup"):
        snapshots.command({"action": "read", "key": first, "name": DATABASE})
    with store._erasing():
        pass
    with pytest.raises(NotFoundError, match="was removed"):
        snapshots.command({"action": "read", "key": second, "name": DATABASE})
    copied(snapshots)
    assert store.snapshot.exists()
    Snapshots(store)  # the guest was killed, and is started again
    assert not store.snapshot.exists()


@pytest.mark.parametrize("name", ["../oxydra.db", "daemon.lock", "a" * 64, "/etc/passwd"])
def test_nothing_else_is_read(store, name):
    snapshots = Snapshots(store)
    key = copied(snapshots)
    with pytest.raises(NotFoundError):
        snapshots.command({"action": "read", "key": key, "name": name})
    with pytest.raises(UsageError):
        snapshots.command({"action": "write", "key": key})
    snapshots.stop()


# ------------------------------------------------------------------------------------------ kills


def killed_at(arguments, home, seconds):
    """Run a command, kill it after so many seconds; whether it had ended by itself."""
    child = subprocess.Popen(
        [sys.executable, RUNNER, *home.at(arguments)],
        cwd=home.path,
        env=home.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        child.wait(timeout=seconds)
        return True
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
        child.wait()
        return False


@pytest.mark.parametrize("count", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_a_kill_at_any_instant_leaves_no_half(home, tmp_path, count):
    """Neither of a backup nor of what a backup is put in the place of."""
    shared = home.workspace / "shared"
    random_ = random.Random(count)
    (shared / "large").write_bytes(random_.randbytes(4 << 20))
    (shared / "state").write_text("in the backup")
    file = tmp_path / "x.tar.gz"
    home.run("backup", str(file))
    whole = file.read_bytes()
    states = {"in the backup": tree(shared)}
    for path in (shared / "large", shared / "state"):
        path.write_text("since then")
    states["since then"] = tree(shared)
    for _ in range(count // 2):
        killed_at(("backup", str(file)), home, random_.uniform(0.1, 0.6))
        assert verify(file).troubles == []
        file.write_bytes(whole)
        killed_at(("restore", str(file), "--replace"), home, random_.uniform(0.1, 0.6))
        found = tree(shared)
        assert found == states[(shared / "state").read_text()]
        home.run("session", "list", code=3)  # the configuration is whole
    home.run("restore", str(file), "--replace")
    assert tree(shared) == states["in the backup"]
    home.run("backup", str(file))
    assert {p.name for p in tmp_path.iterdir()} == {"old", "x.tar.gz"}
    assert [p.name for p in home.workspace.parent.iterdir()] == ["alice"]


def test_forgetting_names_the_backups_that_hold_it(home, tmp_path):
    folder = tmp_path / "backups"
    folder.mkdir()
    home.run("start", "--detach")
    home.run("ask", "the word is xylophone")
    home.run("backup", str(folder / "holds.tar.gz"))
    (folder / "damaged.tar.gz").write_bytes((folder / "holds.tar.gz").read_bytes()[:500])
    where = ("--look-in", str(folder))
    told = json.loads(
        home.run("memory", "forget", "--matching", "xylophone", "--yes", "--json", *where)
    )
    assert told["held_by"] == [str(folder / "holds.tar.gz")]
    home.run("backup", str(folder / "after.tar.gz"))
    assert not [
        path
        for path in folder.iterdir()
        if "after" in path.name and b"xylophone" in gzip.decompress(path.read_bytes())
    ]
