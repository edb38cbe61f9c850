"""`oxydra-health`: what it says of a daemon, that it always answers, that it leaves no trace."""

from __future__ import annotations

import compileall
import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from oxydra.doctor import health, within, worst
from oxydra.store import Checkup, Store
from oxydra.store.channels import Debt
from oxydra.tiers import machine_images, templates
from oxydra.tiers.door import address
from tests.conftest import ROOT, eventually
from tests.doctor_kit import Patient, everything_in, only
from tests.test_daemon import Home

CAP = {"cap": "per_day", "limit_usd": 5.0, "resets_at": "2026-12-01T00:00:00+01:00"}


@pytest.fixture
def patient(tmp_path):
    return Patient(tmp_path)


# ------------------------------------------------------------------------------- what it says


def test_all_is_well(patient):
    with patient.daemon(store={"checked_at": "2026-11-26T01:00:00Z"}, scheduler={}, outbox={}):
        found = list(health(patient.case()))
    assert worst(found) == 0
    names = [finding.check for finding in found]
    assert names == ["disk", "daemon", "gateway", "store", "scheduler", "outbox", "images"]
    assert {finding.user for finding in found} == {"alice"}


@pytest.mark.parametrize(
    ("check", "said", "level", "words"),
    [
        ("daemon", {"healthy": False, "message": "The agent is busy."}, "down", "is busy"),
        ("gateway", {"gateway_endpoint": "ws://127.0.0.1:1/ws"}, "down", "does not answer"),
        ("store", {"store": {"trouble": "row 5 is missing"}}, "down", "row 5"),
        ("store", {"store": {"checked_at": "T", "age_seconds": 200_000}}, "degraded", "since T"),
        ("store", {"store": {"checked_at": "", "age_seconds": 5}}, "healthy", "not checked yet"),
        ("scheduler", {"scheduler": {"stalled": True}}, "degraded", "Nothing that is due runs"),
        ("scheduler", {"scheduler": {"late_seconds": 700}}, "degraded", "700 s ago"),
        ("scheduler", {"scheduler": {"late_seconds": 500}}, "healthy", "500 s late"),
        ("outbox", {"outbox": {"owed": 3, "oldest_seconds": 601}}, "degraded", "3 messages"),
        ("outbox", {"outbox": {"owed": 3, "oldest_seconds": 599}}, "healthy", "3 messages"),
        ("telegram", {"telegram": {"state": "stopped", "detail": "No."}}, "degraded", "No."),
        ("telegram", {"telegram": {"state": "waiting", "detail": "Wait."}}, "degraded", "Wait."),
        ("telegram", {"telegram": {"state": "running", "bot": "b"}}, "healthy", "@b"),
        ("spend", {"spending": {"caps": [{**CAP, "left_usd": 0.0}]}}, "degraded", "$5.00 of $5.00"),
        ("spend", {"spending": {"caps": [{**CAP, "left_usd": 0.4}]}}, "degraded", "$4.60"),
        ("spend", {"spending": {"caps": [{**CAP, "left_usd": 0.6}]}}, "healthy", ""),
        ("restarts", {"guest_restarts": 2, "guest_up_secs": 60}, "degraded", "2 times"),
    ],
)
def test_what_it_says_of(patient, check, said, level, words):
    with patient.daemon(**said):
        finding = only(health(patient.case()), check)
    assert finding.level == level and words in finding.detail
    assert bool(finding.remedy) == (level != "healthy")


def test_a_restart_of_long_ago_is_no_news(patient):
    with patient.daemon(guest_restarts=2, guest_up_secs=4000):
        assert "restarts" not in {finding.check for finding in health(patient.case())}


def test_what_may_wait_is_the_callers_to_say(patient):
    said = {"outbox": {"owed": 1, "oldest_seconds": 90}, "scheduler": {"late_seconds": 90}}
    with patient.daemon(**said):
        assert worst(health(patient.case(), max_age=60)) == 1
        assert worst(health(patient.case(), max_age=120)) == 0


def test_images_that_are_missing(patient, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{patient.path}/none.sock")
    monkeypatch.setenv("OXYDRA__BEHAVIOR__SANDBOX_TIER", "container")
    with patient.daemon():
        finding = only(health(patient.case()), "images")
    assert finding.level == "degraded" and "none.sock" in finding.detail


def test_templates_that_are_missing(patient, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(patient.path / "cache"))
    monkeypatch.setenv("OXYDRA__BEHAVIOR__SANDBOX_TIER", "micro_vm")
    with patient.daemon():
        assert "images of the microVM tier" in only(health(patient.case()), "images").detail
        machine_images.folder().mkdir(parents=True)
        manifest = machine_images.folder() / machine_images.MANIFEST
        manifest.write_text('{"extra_packages": []}')
        assert "No template" in only(health(patient.case()), "images").detail
        (templates.folder() / "a").mkdir(parents=True)
        (templates.folder() / "a" / "about.json").write_text("{}")
        assert only(health(patient.case()), "images").level == "healthy"


# ------------------------------------------------------------------------------ the program


def test_lines_and_exit_codes(patient):
    down = patient.health()
    assert down.returncode == 2 and "alice daemon: down No daemon answers" in down.stdout
    with patient.daemon(outbox={"owed": 1, "oldest_seconds": 90}):
        well = patient.health()
        assert (well.returncode, well.stderr) == (0, "")
        assert all(line.startswith("alice ") for line in well.stdout.splitlines())
        quiet = patient.health("--quiet")
        assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
        late = patient.health("--quiet", "--json", "--max-age", "1m")
        (row,) = json.loads(late.stdout)
    assert late.returncode == 1
    assert (row["user"], row["check"], row["level"]) == ("alice", "outbox", "degraded")
    assert row["remedy"].endswith("restart")


def test_a_configuration_that_cannot_be_read_is_a_finding(patient):
    with (patient.folder / "runner.toml").open("a") as out:
        out.write("\nnonsense = 1\n")
    found = patient.health("--json")
    (row,) = json.loads(found.stdout)
    assert found.returncode == 2
    assert row["check"] == "configuration" and "nonsense" in row["detail"]


def test_nobody_is_configured(patient):
    (patient.folder / "runner.toml").write_text("")
    found = patient.health()
    assert found.returncode == 2 and "No user is configured" in found.stdout


def test_every_user_has_a_line(patient):
    with (patient.folder / "runner.toml").open("a") as out:
        out.write('\n[users.bob]\nconfig_path = "users/alice.toml"\n')
    with patient.daemon():
        rows = json.loads(patient.health("--json").stdout)
    assert {row["user"] for row in rows if row["check"] == "daemon"} == {"alice", "bob"}
    levels = {(row["user"], row["level"]) for row in rows if row["check"] == "daemon"}
    assert levels == {("alice", "healthy"), ("bob", "down")}


def test_it_leaves_no_trace(patient):
    def look():
        return everything_in(patient.path, Path(patient.env["HOME"]), ROOT / "oxydra" / "doctor")

    compileall.compile_dir(ROOT / "oxydra", quiet=1)  # or Python leaves that behind
    before = look()
    assert patient.health().returncode == 2
    assert look() == before
    with patient.daemon(store={}, outbox={}):
        before = look()
        assert patient.health().returncode == 0
        assert look() == before


# ------------------------------------------------------------------------- it always answers


@contextlib.contextmanager
def silence(path):
    """A control socket that takes connections and says nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        with address(path) as place:
            listener.bind(place)
        listener.listen()
        yield
    path.unlink()


def test_a_socket_that_says_nothing(patient, monkeypatch):
    monkeypatch.setattr("oxydra.doctor.base.TIMEOUT", 0.2)
    with silence(patient.workspace.control_socket):
        found = within(60, patient.folder, None)
    assert [(each.check, each.level) for each in found] == [("disk", "healthy"), ("daemon", "down")]


def test_the_deadline_holds_whatever_hangs(patient, monkeypatch):
    monkeypatch.setattr("oxydra.doctor.daemon.TIMEOUT", 3600)
    with silence(patient.workspace.control_socket):
        found = within(1, patient.folder, None)
    assert [finding.check for finding in found] == ["disk", "deadline"]
    assert found[1].level == "down" and "within 1 s" in found[1].detail


HUNG_DISK = """
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x00020000) or libc.mount(b"none", b"/", None, 0x44000, None):
    sys.exit(77)
fuse = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
if libc.mount(b"hung", sys.argv[1].encode(), b"fuse", 0, options):
    sys.exit(77)
done = subprocess.run(sys.argv[2:], stdout=subprocess.PIPE, timeout=120)
sys.stdout.buffer.write(done.stdout)
sys.stdout.flush()
os._exit(done.returncode)
"""


def test_a_disk_that_hangs(patient):
    """A file system whose server never answers, in a namespace of its own."""
    command = [sys.executable, str(ROOT / "bin" / "oxydra-health"), "--config", str(patient.folder)]
    done = subprocess.run(
        [sys.executable, "-c", HUNG_DISK, str(patient.workspace.path), *command, "--timeout", "2s"],
        capture_output=True,
        text=True,
        timeout=120,
        env=patient.env,
    )
    if done.returncode == 77 or "/dev/fuse" in done.stderr:
        pytest.skip("no FUSE file system can be mounted here")
    assert done.returncode == 2, done
    assert "deadline: down Not all was looked at within 2 s" in done.stdout


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path)
    home.init()
    home.run("start", "--detach")
    yield home
    assert home.command("stop").returncode in (0, 3)


@pytest.mark.slow
def test_daemons_that_are_stopped_and_databases_that_are_locked(home):
    program = str(ROOT / "bin" / "oxydra-health")
    at = ("--config", str(home.config), "--timeout", "30s")
    status = home.status()
    before = everything_in(home.folder, home.workspace / "ipc", home.workspace / "shared")
    assert "alice store: healthy" in home.run(*at, program=program)
    with contextlib.closing(sqlite3.connect(home.workspace / "internal" / "oxydra.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert "alice daemon: " in home.command(*at, program=program).stdout
        other.rollback()
    for name, words in (("guest_pid", "agent guest does not answer"), ("runner_pid", "No daemon")):
        os.kill(status[name], signal.SIGSTOP)
        try:
            assert words in home.run(*at, program=program, code=2)
        finally:
            os.kill(status[name], signal.SIGCONT)
    eventually(lambda: home.command(*at, program=program).returncode == 0)
    assert before == everything_in(home.folder, home.workspace / "ipc", home.workspace / "shared")


# --------------------------------------------------------------------- the look at the database


def test_the_daily_look_at_a_database(store):
    checkup = Checkup(store, first=0.01, every=3600)
    assert checkup.state() == {"checked_at": "", "age_seconds": 0, "trouble": ""}
    checkup.start()
    try:
        eventually(lambda: checkup.state()["checked_at"])
        assert checkup.state()["trouble"] == ""
    finally:
        assert checkup.stop(60)


def test_it_finds_a_database_that_is_damaged(tmp_path):
    store = Store(tmp_path / "oxydra.db")
    for number in range(200):
        store.owe("telegram", Debt(1, 0, "notice", str(number), text="x" * 400))
    store.close()
    path = tmp_path / "oxydra.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        root, size = (
            db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'outbox'").fetchone()[0],
            db.execute("PRAGMA page_size").fetchone()[0],
        )
    with path.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)
    store = Store(path)
    try:
        checkup = Checkup(store)
        checkup.look()
        assert "is damaged" in checkup.state()["trouble"]
    finally:
        store.close()


def test_a_stop_ends_it(store):
    checkup = Checkup(store, first=3600)
    checkup.start()
    assert checkup.stop(60)
    assert checkup.state()["checked_at"] == ""


def test_the_age_of_what_is_owed(store):
    assert store.overdue() == {"owed": 0, "oldest_seconds": 0}
    store.owe("telegram", Debt(1, 0, "notice", "a", text="x"))
    assert store.overdue()["owed"] == 1
    with store._transaction() as db:
        db.execute("UPDATE outbox SET created_at = '2020-01-01T00:00:00.000+00:00'")
    assert store.overdue()["oldest_seconds"] > 86400 * 365
