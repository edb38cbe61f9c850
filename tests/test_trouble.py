"""What the machine does to a user: a file system turns read-only, the clock steps back, a backup
holds the database. Nothing is lost, it is said what is wrong, and it goes on when that is over.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from oxydra import approvals
from oxydra.approvals import Rule, Rules
from oxydra.config import RuntimeConfig
from oxydra.errors import StoreBusyError, StoreFullError
from oxydra.runtime import Runtime, loop
from oxydra.store import Store, conversation, database
from oxydra.threads import SHUTDOWN, CancelToken, Service
from oxydra.tools.confine import Workspace
from oxydra.tools.gate import Gate
from oxydra.tools.registry import ToolRegistry
from oxydra.types import Folder, TurnState
from tests.conftest import eventually
from tests.scripted import MODEL, Scripted, calls
from tests.test_approvals import World as ApprovalWorld
from tests.test_daemon import SCRIPT, home  # noqa: F401
from tests.test_disk import disk  # noqa: F401


def run(*words):
    return subprocess.run(words, capture_output=True, text=True)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(loop, "FULL_DISK_WAIT", (0.01, 0.05))
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 50)


class Turns:
    """A store at `path`, and turns on it."""

    def __init__(self, path, workspace=None):
        self.store = Store(path)
        self.workspace = workspace
        self.frames = []

    def accept(self, turn_id="t1"):
        session = self.store.latest_session() or self.store.create_session()
        turn, _ = self.store.accept_turn(session.session_id, turn_id, "r", "hello")
        return turn

    def run(self, turn, *steps, token=None):
        tools = ToolRegistry(names=("file_write", "file_read"))
        Runtime(
            store=self.store,
            provider=Scripted(*steps),
            model=MODEL,
            gate=Gate(tools, {"workspace": self.workspace} if self.workspace else {}),
            tools=tools.specs,
            config=RuntimeConfig(),
        ).run_turn(turn, token or CancelToken(), lambda *frame: self.frames.append(frame))

    def retries(self):
        told = [p["progress"] for f, p in self.frames if f == "turn_progress"]
        return [row["message"] for row in told if row["kind"]["kind"] == "retry"]

    def roles(self):
        (session,) = self.store.sessions()
        return [m.role for m in self.store.messages(session.session_id)]


# ------------------------------------------------------------------------- read-only file systems


@pytest.fixture
def ext4(tmp_path):
    """A file system that can be made read-only under open files, as a failing disk's is."""
    image, folder = tmp_path / "image", tmp_path / "ext4"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(48 << 20)
    if not shutil.which("mkfs.ext4") or run("mkfs.ext4", "-q", str(image)).returncode:
        pytest.skip("no ext4 can be made here")
    if said := run("mount", "-o", "loop", str(image), str(folder)).stderr:
        pytest.skip(f"no loop device can be mounted here: {said.strip()}")
    yield image, folder
    run("umount", "-l", str(folder))


def test_a_file_system_that_becomes_read_only_under_a_turn(ext4, quick):
    image, folder = ext4
    turns = Turns(folder / "oxydra.db")
    token = CancelToken()

    def speak(_request, _token):
        if run("mount", "-o", "remount,abort", str(folder)).returncode:
            pytest.skip("this kernel can't abort an ext4")
        return ["said before it could be stored"]

    turn = turns.accept()
    service = Service("test-ro", lambda _service: turns.run(turn, speak, token=token)).start()
    eventually(lambda: len(turns.retries()) >= 2)
    assert "make the file system writable" in turns.retries()[0]
    with pytest.raises(StoreFullError):
        turns.accept("t2")
    token.cancel(SHUTDOWN)
    assert service.stop(10)
    turns.store.close()

    assert run("umount", str(folder)).returncode == 0
    run("e2fsck", "-p", str(image))
    assert run("mount", "-o", "loop", str(image), str(folder)).returncode == 0
    turns = Turns(folder / "oxydra.db")
    (turn,) = turns.store.unfinished_turns()
    turns.run(turn, "said again")
    assert turns.frames[-1][0] == "turn_completed"
    assert turns.roles() == ["user", "assistant"]
    turns.store.close()


@contextlib.contextmanager
def read_only(folder):
    assert not run("mount", "-o", "remount,ro", str(folder)).stderr
    try:
        yield
    finally:
        assert not run("mount", "-o", "remount,rw", str(folder)).stderr


def test_files_on_a_read_only_file_system(tmp_path, disk):  # noqa: F811
    """The model is told; with the file system writable, the same call works."""
    write = calls(("file_write", '{"path": "/shared/a.txt", "content": "x"}'))
    with Workspace([Folder("shared", str(disk), writable=True)]) as workspace:
        turns = Turns(tmp_path / "oxydra.db", workspace)
        with read_only(disk):
            turns.run(turns.accept("t1"), write)
        turns.run(turns.accept("t2"), write)
    (session,) = turns.store.sessions()
    results = [m for m in turns.store.messages(session.session_id) if m.role == "tool"]
    assert "read-only file system" in results[0].content and results[0].is_error
    assert not results[1].is_error and (disk / "a.txt").read_text() == "x"
    turns.store.close()


def test_a_daemon_on_a_read_only_file_system_says_so(home, disk):  # noqa: F811
    written = home.config.read_text()
    home.config.write_text(re.sub('workspace_root = ".*"', f'workspace_root = "{disk}"', written))
    home.run("start", "--detach")
    home.run("ask", "hello")
    home.run("stop")
    with read_only(disk):
        line = home.fails("start", "--detach")
    assert "read-only" in line.lower() or "Read-only" in line, line
    home.run("start", "--detach")
    assert home.status()["healthy"]
    home.run("stop")


# -------------------------------------------------------------------------------------- the clock


def test_a_clock_that_steps_back_changes_no_order(tmp_path, monkeypatch):
    turns = Turns(tmp_path / "oxydra.db")
    first, second = turns.store.create_session(), turns.store.create_session()
    assert turns.store.latest_session().session_id == second.session_id
    monkeypatch.setattr(conversation, "timestamp", lambda: "2001-01-01T00:00:00.000+00:00")
    turn, _ = turns.store.accept_turn(first.session_id, "t1", "r", "hello")
    turns.run(turn, "an answer")
    assert turns.frames[-1][0] == "turn_completed"
    assert turns.store.latest_session().session_id == first.session_id
    third = turns.store.create_session()
    assert [s.session_id for s in turns.store.sessions()] == [
        third.session_id,
        first.session_id,
        second.session_id,
    ]
    events, _more = turns.store.history(first.session_id)
    assert [event.sequence for event in events] == [1, 2]
    turns.store.close()


class Clock:
    """The wall clock as `approvals` sees it, which can be set."""

    def __init__(self, monkeypatch):
        self.step = datetime.timedelta()
        clock = self

        class Moment(datetime.datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.datetime.now(tz) + clock.step

        place = SimpleNamespace(datetime=Moment, UTC=datetime.UTC, timedelta=datetime.timedelta)
        monkeypatch.setattr(approvals, "datetime", place)

    def set(self, **by):
        self.step = datetime.timedelta(**by)


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_request_stays_open_as_long_as_it_was_said(tmp_path, monkeypatch, hours):
    clock = Clock(monkeypatch)
    world = ApprovalWorld(tmp_path / "db", Rules(((Rule("ask"),), ()), expiry_secs=600))
    with world.running("x"):
        (request,) = world.wait_for("approval_request")
        clock.set(hours=hours)
        assert [a.approval_id for a in world.approvals.pending()] == [request["approval_id"]]
        world.approvals.answer(request["approval_id"], allow=True, by="local")
    assert world.ran == ["x"]
    world.store.close()


def test_a_request_expires_though_the_clock_stepped_back(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    world = ApprovalWorld(tmp_path / "db", Rules(((Rule("ask"),), ()), expiry_secs=0.3))
    with world.running("x") as results:
        world.wait_for("approval_request")
        clock.set(days=-30)
    assert "nobody answered" in results[0] and world.ran == []
    world.store.close()


# ------------------------------------------------------------------------- a database that is held


HOLD = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def held(path):
    """Another process locks the database, as a careless backup does, until the block ends."""
    words = [sys.executable, "-c", HOLD, str(path)]
    holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        yield
    finally:
        holder.communicate(timeout=60)


def test_a_locked_database_pauses_a_turn_and_loses_nothing(tmp_path, quick):
    path = tmp_path / "oxydra.db"
    turns = Turns(path)
    turn = turns.accept()
    with contextlib.ExitStack() as lock:

        def speak(_request, _token):
            lock.enter_context(held(path))
            return ["an answer"]

        service = Service("test-held", lambda _service: turns.run(turn, speak)).start()
        eventually(lambda: len(turns.retries()) >= 2)
        assert "held by another program" in turns.retries()[0]
        with pytest.raises(StoreBusyError, match="work goes on"):
            turns.accept("t2")
        assert turns.store.turn("t1").state is TurnState.RUNNING, "it can be read meanwhile"
    assert service.stop(10)
    assert turns.frames[-1][0] == "turn_completed"
    assert turns.roles() == ["user", "assistant"]
    assert turns.store.turn("t2") is None
    turns.run(turns.accept("t2"), "more")
    assert turns.roles() == ["user", "assistant"] * 2
    turns.store.close()


def backup(path, to):
    """As a person does it: with the `sqlite3` program, where it is installed."""
    if shutil.which("sqlite3"):
        done = run("sqlite3", str(path), f".backup {to}")
        assert not done.returncode, done.stderr
        return
    with (
        contextlib.closing(sqlite3.connect(path)) as source,
        contextlib.closing(sqlite3.connect(to)) as target,
    ):
        source.backup(target)


def test_backups_beside_running_turns(tmp_path):
    """None disturbs a turn, and each is whole."""
    path, copy = tmp_path / "oxydra.db", tmp_path / "copy.db"
    turns = Turns(path)
    going = threading.Event()

    def work(_service):
        number = 0
        while not going.is_set() or number < 20:
            number += 1
            turns.run(turns.accept(f"t{number}"), "x" * 5000)

    service = Service("test-backup", work).start()
    for _ in range(5):
        backup(path, copy)
        with contextlib.closing(sqlite3.connect(copy)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        copy.unlink()
    going.set()
    assert service.stop(30)
    assert turns.retries() == []
    assert {f for f, _ in turns.frames if f in ("error", "turn_completed")} == {"turn_completed"}
    turns.store.close()


@pytest.mark.slow
def test_a_daemon_whose_database_is_locked_for_long(home):  # noqa: F811
    """A lock of 15 s, longer than the database is waited for."""
    home.run("start", "--detach")
    session = json.loads(home.run("ask", "hello", "--json"))["session"]["session_id"]
    path = home.workspace / "internal" / "oxydra.db"
    steps = [{"text": "one two ", "delay_ms": 1500}]
    answers = []

    def person():
        answers.append(home.command("ask", SCRIPT % json.dumps(steps), "--session", session))

    asking = threading.Thread(target=person)
    asking.start()
    eventually(lambda: home.status()["running_turns"] == 1)
    with held(path):
        line = home.fails("ask", "hello", "--session", session)
        assert "held by another program" in line
        threading.Event().wait(5)
    asking.join(60)
    assert answers[0].returncode == 0 and "one two" in answers[0].stdout
    assert "no model is configured" in home.run("ask", "hello", "--session", session).lower()
