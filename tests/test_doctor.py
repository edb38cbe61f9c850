"""From a broken state to a sound one by what `doctor` prints: its command is taken as it stands and
run by a shell, and then `doctor` has nothing more to say.

Where a command is somebody else's program that a test can't let loose on this machine (a package
manager, systemd, an editor), a stand-in of that name does what the real one would have done.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import sqlite3
import subprocess
import sys
import threading
import zoneinfo
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from oxydra import config, doctor
from oxydra.doctor import registry
from oxydra.doctor.machine import clock_at, extra, pip
from oxydra.doctor.models import masked
from oxydra.runner import shell
from tests.doctor_kit import Patient, everything_in
from tests.fake_model import FakeModel
from tests.fake_telegram import TOKEN, FakeTelegram
from tests.mcp_web import mcp_web
from tests.sandbox import missing
from tests.test_disk import mount, unmountable

KEY = "sk-" + "0123456789abcdef" * 3
MODEL = '[selection]\nprovider = "local"\nmodel = "m"\n'
LOCAL = """
[providers.registry.local]
provider_type = "openai"
base_url = "%s"
api_key_env = "MY_KEY"
"""


class Ward(Patient):
    """A patient whose programs are this process's too."""

    def __init__(self, path, monkeypatch):
        super().__init__(path)
        self.named = self.folder  # what `--config` says
        monkeypatch.setenv("PATH", self.env["PATH"])
        monkeypatch.chdir(path)

    def find(self, *checks, **more):
        """What is not as it should be."""
        found = doctor.examine(doctor.Case(self.named, **more), checks)
        return [finding for finding in found if finding.level != "healthy"]

    def obey(self, command, said=""):
        """Run what was printed, as it stands; `said` is typed at its prompt."""
        done = subprocess.run(
            ["/bin/bash", "-c", command],
            input=said,
            text=True,
            capture_output=True,
            cwd=self.path,
            timeout=120,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)

    def treat(self, *checks, said="", rounds=3, **more):
        """Do what the first finding says until there is none; returns the commands."""
        commands = []
        while found := self.find(*checks, **more):
            assert len(commands) < rounds, (commands, found)
            assert found[0].remedy, found[0]
            commands.append(found[0].remedy)
            self.obey(found[0].remedy, said)
        assert commands, "nothing was broken"
        return commands

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(exist_ok=True, mode=0o700)
        path.write_text(text)
        path.chmod(0o600)
        return path

    def editor(self, script):
        """What a person does who is shown a file at a line: `$1` and `$2`."""
        os.environ["EDITOR"] = str(self.program("my-editor", script))


@pytest.fixture
def ward(tmp_path, monkeypatch):
    monkeypatch.setenv("EDITOR", "false")
    return Ward(tmp_path, monkeypatch)


def test_a_sound_place_needs_nothing(ward):
    checks = ("configuration", "python", "sqlite", "permissions", "leftovers", "port", "database")
    assert not ward.find(*checks)
    names = {finding.check for finding in doctor.examine(ward.case(), checks)}
    assert names == {"configuration", "python", "sqlite", "permissions", "leftovers", "port"}


def test_every_check_can_be_found():
    for checks in (registry.MACHINE, registry.USER):
        assert all(callable(check) for _, check in registry.checks(checks))


# ---------------------------------------------------------------------------- the configuration


def test_a_key_that_is_mistyped(ward):
    file = ward.write("agent.toml", "[runtime]\nmax_turs = 5\n")
    (command,) = ward.treat("configuration")
    assert command.startswith("sed -i '2s/") and file.read_text() == "[runtime]\nmax_turns = 5\n"


def test_a_section_that_is_mistyped(ward):
    file = ward.write("agent.toml", "[runtme]\nmax_turns = 5\n")
    ward.treat("configuration")
    assert file.read_text() == "[runtime]\nmax_turns = 5\n"


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ('[runtime]\nmax_turns = "many"\n', 's/"many"/5/'),
        ("[runtime]\nmax_turns = = 5\n", "s/= =/=/"),
        ('[scheduler]\ndefault_timezone = "Mars/Olympus"\n', "s/Mars.Olympus/UTC/"),
        ("[gateway]\nmax_turns = 5\n", "s/max_turns = 5//"),
        ('[selection]\nprovider = "ollama"\nxyzzy_q = 1\n', "s/xyzzy_q = 1//"),
    ],
    ids=[
        "a value of another type",
        "no TOML",
        "a zone that there is not",
        "a key of elsewhere",
        "a key of nothing",
    ],
)
def test_a_line_that_a_person_has_to_correct(ward, text, mend):
    """The command opens the file at the line, whatever the person does there."""
    ward.write("agent.toml", text)
    line = 3 if "xyzzy" in text else 2
    ward.editor(f'[ "$1" = +{line} ] && sed -i \'{line}{mend}\' "$2"')
    (command,) = ward.treat("configuration")
    assert command.startswith("${EDITOR:-vi} +")


def test_a_file_that_others_can_write(ward):
    (ward.folder / "runner.toml").chmod(0o666)
    (command,) = ward.treat("configuration")
    assert command.startswith("chmod go-w ")


def test_a_folder_that_was_found_and_not_made_here(ward, monkeypatch):
    ward.named = None
    monkeypatch.setenv("XDG_CONFIG_HOME", str(ward.path / "another"))  # of another person
    (command,) = ward.treat("configuration")
    assert command.startswith("oxydra-runner trust ")


def test_no_configuration_at_all(ward):
    for name in ("runner.toml", "agent.toml", "users/alice.toml"):
        (ward.folder / name).unlink()
    (command,) = ward.treat("configuration")
    assert command.endswith("init")


def test_nobody_is_configured(ward):
    ward.write("runner.toml", 'workspace_root = "workspaces"\n')
    (command,) = ward.treat("configuration")
    assert command.startswith("mkdir -p ")
    assert [case.user for case in ward.case().users()] == ["alice"]


def test_a_limit_in_a_folder_that_came_with_a_clone(ward, monkeypatch):
    """Named, so it is used, and not trusted with limits until its person says so."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(ward.path / "another"))
    (ward.path / ".git").mkdir()
    ward.write("users/alice.toml", "[budget]\nper_day = 5\n")
    (command,) = ward.treat("configuration")
    assert command == f"oxydra-runner trust {ward.folder}"


def test_a_users_file_that_is_gone(ward):
    (ward.folder / "users" / "alice.toml").unlink()
    (command,) = ward.treat("configuration")
    assert command.startswith("touch ")


# ------------------------------------------------------------------------------ models and keys


def test_no_key(ward, monkeypatch):
    monkeypatch.setenv("OXYDRA__SELECTION__PROVIDER", "openai")
    (command,) = ward.treat("model", said=KEY)
    assert command == "oxydra-runner key set OPENAI_API_KEY"
    found = list(doctor.examine(ward.case(), ["keys"]))
    assert "…cdef, from key set OPENAI_API_KEY" in found[0].detail
    assert KEY not in str(found)


def test_a_short_key_is_not_shown_at_all():
    assert masked(config.Credential(provider="p", source="s", value="short-key")) == "…"


def test_no_model_is_a_finding(ward):
    ward.write("agent.toml", "")
    (finding,) = ward.find("model")
    assert finding.level == "degraded" and "key set OPENAI_API_KEY" in finding.remedy


def test_a_key_that_was_revoked(ward):
    with FakeModel() as fake:
        ward.write("providers.toml", LOCAL % fake.url)
        ward.write("agent.toml", MODEL)
        ward.obey("oxydra-runner key set MY_KEY", "sk-old-key-of-the-person")
        assert not ward.find("canary"), "nobody is called who was not to be"
        assert not fake.requests
        fake.error(401, "invalid api key")
        (command,) = ward.treat("canary", said=KEY, canary=True)
        assert command.endswith("key set MY_KEY")
        assert fake.requests[-1].headers["authorization"] == f"Bearer {KEY}"
        assert fake.requests[-1].body["max_tokens"] == 1


def test_a_model_that_there_is_not(ward, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    ward.write("agent.toml", '[selection]\nprovider = "openai"\nmodel = "gpt-5-minii"\n')
    ward.editor("sed -i 's/minii/mini/' \"$2\"")
    (command,) = ward.treat("model")
    assert "+3 " in command


def test_a_model_that_its_server_does_not_know(ward):
    with FakeModel() as fake:
        ward.write("providers.toml", LOCAL % fake.url)
        ward.write("agent.toml", MODEL)
        ward.obey("oxydra-runner key set MY_KEY", KEY)
        fake.error(404, "model not found")
        ward.editor('sed -i \'s/"m"/"n"/\' "$2"')
        ward.treat("canary", canary=True)
        assert fake.requests[-1].body["model"] == "n"


class Clocked:
    """A server whose clock is wrong as long as a file is there."""

    def __init__(self, wrong: Path) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def date_time_string(self, timestamp: float | None = None) -> str:
                if wrong.exists():
                    return "Mon, 01 Jan 2024 00:00:00 GMT"
                return super().date_time_string(timestamp)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self) -> Clocked:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def test_a_clock_that_is_off(ward):
    """Theirs is put back where ours can't be."""
    wrong = ward.path / "wrong"
    wrong.touch()
    ward.program("timedatectl", f'[ "$*" = "set-ntp true" ] && rm {wrong}')
    with Clocked(wrong) as server:
        ward.write("providers.toml", LOCAL % server.url)
        ward.write("agent.toml", MODEL)
        (finding,) = ward.find("reach")
        assert finding.check == "clock" and "ahead of" in finding.detail
        (command,) = ward.treat("reach")
    assert command == "timedatectl set-ntp true"


def test_a_clock_that_was_never_set():
    assert clock_at(1.0, 1_790_000_000.0).level == "degraded"
    assert clock_at(1_790_000_000.0, 1_790_000_000.0).level == "healthy"


def test_a_server_that_is_not_reached(ward):
    ward.write("providers.toml", LOCAL % "http://127.0.0.1:1/v1")
    ward.write("agent.toml", MODEL)
    (finding,) = ward.find("reach")
    assert finding.level == "degraded" and "curl" in finding.remedy


def telegram(ward, fake):
    lines = f'enabled = true\napi_url = "{fake.url}"\nsenders = [{{platform_ids = ["42"]}}]\n'
    ward.write("users/alice.toml", f"[channels.telegram]\n{lines}")


def test_a_token_of_telegrams_that_was_revoked(ward):
    with FakeTelegram() as fake:
        telegram(ward, fake)
        old = TOKEN.replace("AA", "BB")
        ward.obey("oxydra-runner key set TELEGRAM_BOT_TOKEN", old)
        (finding,) = ward.find("telegram")
        assert finding.level == "down" and old not in str(finding)
        ward.treat("telegram", said=TOKEN)
        (well,) = doctor.examine(ward.case(), ["telegram"])
    assert well.detail == "@oxydra_bot"


def test_no_token_for_telegram(ward):
    with FakeTelegram() as fake:
        telegram(ward, fake)
        (command,) = ward.treat("telegram", said=TOKEN)
    assert command.endswith("key set TELEGRAM_BOT_TOKEN")


# ------------------------------------------------------------------------------- MCP servers


def test_an_mcp_program_that_is_not_there(ward):
    ward.write("agent.toml", '[mcp.servers.it]\ncommand = "no-such-program"\n')
    ward.editor("sed -i s/no-such-program/python3/ $2")
    (finding,) = ward.find("mcp")
    assert "'no-such-program'" in finding.detail
    ward.treat("mcp")


def test_an_mcp_program_of_the_workspace(ward):
    ward.write("agent.toml", '[mcp.servers.it]\ncommand = "bin/it"\n')
    assert len(ward.find("mcp")) == 1
    program = ward.workspace.shared / "bin" / "it"
    program.parent.mkdir()
    program.touch()
    assert not ward.find("mcp")


@pytest.mark.parametrize(
    "lines",
    [
        'url = "https://mcp.example.org/mcp"\nheaders = { Authorization = "Bearer env:THE_KEY" }',
        'command = "python3"\nenv = { KEY = "env:THE_KEY" }',
    ],
)
def test_an_mcp_server_without_its_key(ward, lines):
    ward.write("agent.toml", f"[mcp.servers.it]\n{lines}\n")
    (command,) = ward.treat("mcp", said=KEY)
    assert "key set THE_KEY" in command


ROW = {"name": "it", "state": "idle", "trusted": True, "tools": ["a"], "differences": {}}


@pytest.mark.parametrize(
    ("row", "action"),
    [
        ({"trusted": False, "tools": []}, "trust"),
        ({"differences": {"changed": ["a\x1b"]}}, "trust"),
        ({"state": "failed", "detail": "It ended with 3.\x1b[2J"}, "restart"),
    ],
)
def test_what_a_daemon_says_of_an_mcp_server(ward, row, action):
    ward.write("agent.toml", '[mcp.servers.it]\ncommand = "python3"\n')
    assert not ward.find("mcp")
    with ward.daemon(mcp=[ROW]):
        (well,) = doctor.examine(ward.case(), ["mcp"])
        assert (well.level, well.detail) == ("healthy", "it: idle, 1 tools")
    with ward.daemon(mcp=[{**ROW, "detail": "", **row}]):
        (finding,) = ward.find("mcp")
    assert finding.remedy.endswith(f"mcp-servers {action} it") and "\x1b" not in finding.detail


def test_an_mcp_server_that_is_greeted(ward):
    with mcp_web() as web:
        line = 'headers = { Authorization = "Bearer env:THE_KEY" }'
        ward.write("agent.toml", f'[mcp.servers.it]\nurl = "{web.url}"\n{line}\n')
        ward.obey("oxydra-runner key set THE_KEY", KEY)
        assert not ward.find("mcp") and not web.log  # nobody is asked without --canary
        assert not ward.find("mcp", canary=True)
        ((headers, _),) = web.asked("initialize")
        assert headers["authorization"] == f"Bearer {KEY}"
        web.key = "another"
        (finding,) = ward.find("mcp", canary=True)
        assert "key set THE_KEY" in finding.remedy and KEY not in str(finding)
        address = web.url
    (gone,) = ward.find("mcp", canary=True)
    assert gone.remedy == f"curl -sS -o /dev/null {address}"


# ------------------------------------------------------------------------------------ the place


def test_a_key_that_others_can_read(ward):
    path = config.set_key("MY_KEY", KEY)
    path.chmod(0o644)
    (command,) = ward.treat("permissions")
    assert command == f"chmod go-rwx {path}"


def test_a_workspace_that_others_can_read(ward):
    ward.workspace.ipc.chmod(0o755)
    ward.workspace.path.chmod(0o755)
    assert len(ward.treat("permissions")) == 2


def test_a_workspace_that_is_gone(ward):
    ward.workspace.logs.rmdir()
    (command,) = ward.treat("permissions")
    assert command.endswith("init")


def test_a_file_where_a_folder_should_be(ward):
    folder = ward.workspace.path / "audit"
    folder.rmdir()
    folder.write_text("")
    commands = ward.treat("permissions")
    assert commands[0].startswith("mv ") and commands[1].endswith("init")


@contextlib.contextmanager
def disk(folder, options):
    if os.geteuid() != 0 or unmountable():
        pytest.skip(unmountable() or "only root mounts a disk")
    said = mount(folder, options)
    assert not said, said
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_workspace_that_cannot_be_written(ward):
    with disk(ward.workspace.path, "size=64m"):
        ward.workspace.prepare()
        subprocess.run(["mount", "-o", "remount,ro", ward.workspace.path], check=True)
        commands = ward.treat("permissions")
    assert commands == [f"mount -o remount,rw {ward.workspace.path}"]


def test_a_disk_that_is_full(ward):
    with disk(ward.workspace.path, "size=64m"):
        ward.workspace.prepare()
        with contextlib.suppress(OSError), (ward.workspace.tmp / "big").open("wb") as out:
            while True:
                out.write(bytes(1 << 20))
        finding, *_ = ward.find("daemon")
        assert finding.check == "disk"
        ward.obey(finding.remedy)
        assert "disk" not in {found.check for found in ward.find("daemon")}


def test_a_port_that_is_in_use(ward):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        file = ward.write("agent.toml", f"[gateway]\nport = {number}\n")
        (command,) = ward.treat("port")
    assert command.startswith("sed -i '2s/") and "port = 0" in file.read_text()


def test_a_database_that_is_damaged(ward):
    path = ward.workspace.database
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t (x)")
        db.commit()
    assert not ward.find("database")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)
    commands = ward.treat("database")
    assert len(commands) == 1 and path.with_name("oxydra.db.damaged").exists()


def test_what_a_dead_daemon_left(ward):
    ipc = ward.workspace.ipc
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind("s.sock")
        Path("s.sock").replace(ipc / "runner-control.sock")
    for name in ("gateway-endpoint", ".gateway-token.0badcafe", ".bootstrap-0badcafe"):
        (ipc / name).write_text("")
    (ipc / "gateway-token").write_text("kept")
    (command,) = ward.treat("leftovers")
    assert command.startswith("rm -f ") and os.listdir(ipc) == ["gateway-token"]


HOLDS = """
import fcntl, sys
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_guest_that_outlives_its_runner(ward):
    lock = ward.workspace.internal / "daemon.lock"
    guest = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert guest.stdout.readline() == "held\n"
        found = ward.find("leftovers")
        assert [f.remedy for f in found] == [f"kill -KILL {guest.pid}"]
        ward.obey(found[0].remedy)
        assert guest.wait(60) == -9
        assert not ward.find("leftovers")
    finally:
        guest.kill()
        guest.communicate()


# ---------------------------------------------------------------------------------- the machine


def test_no_bubblewrap(ward, monkeypatch):
    monkeypatch.setenv("PATH", str(ward.programs))
    bwrap = ward.programs / "bwrap"
    wanted = "install -y bubblewrap"
    script = f'[ "$*" = "{wanted}" ] && : > {bwrap} && /bin/chmod +x {bwrap}'
    ward.program("apt-get", script)
    ward.program("sudo", '"$@"')
    commands = ward.treat("bubblewrap")
    assert commands[0].endswith(f"apt-get {wanted}")


def test_libraries_of_sqlite_vss_that_are_missing(ward):
    """Seen by a process of its own, whose package can't find what it was linked with."""
    fake = ward.path / "packages" / "sqlite_vss"
    fake.mkdir(parents=True)
    broken = 'def __getattr__(name):\n    raise ImportError("libgomp.so.1: no such file")\n'
    (fake / "__init__.py").write_text(broken)
    env = {**os.environ, "PYTHONPATH": str(fake.parent)}

    def look():
        command = ["oxydra-runner", "--config", ward.folder, "doctor", "sqlite-vss", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
        (row,) = json.loads(done.stdout)
        return row

    row = look()
    if "not offered" in row["detail"]:
        pytest.skip(row["detail"])
    assert row["level"] == "degraded" and "libgomp.so.1" in row["detail"]
    ward.program("apt-get", f'[ "$*" = "install -y libgomp1 libblas3 liblapack3" ] && rm -r {fake}')
    ward.program("sudo", '"$@"')
    ward.obey(row["remedy"])
    assert "libgomp" not in look()["detail"]


def test_no_time_zones(ward, monkeypatch):
    monkeypatch.setitem(sys.modules, "tzdata", None)  # nor as a package
    folder = ward.path / "zoneinfo"
    ward.program("apt-get", f'[ "$*" = "install -y tzdata" ] && ln -s /usr/share/zoneinfo {folder}')
    ward.program("sudo", '"$@"')
    zoneinfo.reset_tzpath([str(folder)])
    try:
        (finding,) = ward.find("time-zones")
        ward.obey(finding.remedy)
        assert not ward.find("time-zones")
    finally:
        zoneinfo.reset_tzpath()


def test_an_engine_that_is_stopped(ward, monkeypatch):
    """What it has no image of is another finding."""
    path = ward.path / "engine.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    ward.write("users/alice.toml", '[behavior]\nsandbox_tier = "container"\n')
    (finding,) = [f for f in ward.find("tiers") if f.check == "tier container"]
    assert finding.level == "down" and "is not running" in finding.detail
    started = ward.path / "started"
    ward.program("systemctl", f'[ "$*" = "start docker" ] && : > {started}')
    ward.program("sudo", '"$@"')
    ward.obey(finding.remedy)
    assert started.exists()


def test_commands_that_are_not_held(ward, monkeypatch):
    """The attempts to break out are seen to succeed where nothing holds them."""
    monkeypatch.setattr(shell, "allowed_levels", lambda _config: ("rlimits",))
    ward.write("agent.toml", "[tools.shell]\nallow_unsandboxed = true\n")
    found = {f.check: f for f in ward.find("tiers")}
    assert found["tier process"].level == "degraded"
    assert "attempts got out: read_directly escaped" in found["escape process"].detail
    assert found["escape process"].remedy.endswith("install -y bubblewrap")


def test_the_sandbox_that_holds(ward):
    if missing("bwrap+cage"):
        pytest.skip(missing("bwrap+cage"))
    found = {f.check: f for f in doctor.examine(ward.case(), ["tiers"])}
    assert "0 of " in found["escape process"].detail


def test_a_schedule_fires(ward):
    (finding,) = doctor.examine(ward.case(), ["schedule"])
    assert finding.level == "healthy" and "after it was due" in finding.detail


# ---------------------------------------------------------------------------------- the program


def run(ward, *arguments):
    return subprocess.run(
        ["oxydra-runner", "--config", ward.folder, "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_fix_ends_what_it_can_and_nothing_else(ward):
    key = config.set_key("MY_KEY", KEY)
    key.chmod(0o644)
    (ward.workspace.ipc / "gateway-endpoint").write_text("ws://127.0.0.1:1/ws\n")
    ward.workspace.logs.rmdir()
    file = ward.write("agent.toml", "[runtime]\nmax_turns = 5\n")
    file.chmod(0o622)
    checks = ("configuration", "permissions", "leftovers")
    refused = run(ward, *checks, "--fix")
    assert refused.returncode == 2 and "chmod go-w" in refused.stdout
    assert file.stat().st_mode & 0o777 == 0o622, "who else wrote it is for the person to say"
    file.chmod(0o600)
    mended = run(ward, *checks, "--fix")
    assert mended.returncode == 0, mended.stdout
    assert mended.stdout.count("Mended: ") == 3
    assert key.stat().st_mode & 0o777 == 0o600
    assert "Mended" not in run(ward, *checks).stdout


def test_what_it_prints_can_be_copied(ward):
    ward.write("agent.toml", "[runtime]\nmax_turs = 5\n")
    done = run(ward, "configuration")
    assert done.returncode == 2 and done.stderr == ""
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("    run: ")]
    ward.obey(line.removeprefix("    run: "))
    assert run(ward, "configuration").returncode == 0


def test_a_check_that_there_is_not(ward):
    done = run(ward, "configuratoin")
    assert done.returncode == 2 and "There are: configuration, python" in done.stderr


@pytest.mark.slow
def test_no_daemon(ward):
    ward.write("agent.toml", "")
    finding = next(f for f in ward.find("daemon") if f.check == "daemon")
    ward.obey(finding.remedy)
    try:
        assert not ward.find("daemon", "port", "database", "leftovers")
    finally:
        ward.obey(f"oxydra-runner --config {ward.folder} stop")


@pytest.mark.slow
def test_all_of_it_leaves_nothing(ward):
    before = everything_in(ward.folder, ward.workspace.path)
    there = set(os.listdir("/var/tmp"))
    rows = json.loads(run(ward, "--json").stdout)
    expected = {"configuration", "python", "sqlite", "sqlite-vss", "embedding", "time-zones"}
    expected |= {"model", "permissions", "leftovers", "port", "disk", "daemon", "schedule"}
    assert expected <= {row["check"] for row in rows}
    assert all(row["remedy"] for row in rows if row["level"] != "healthy")
    assert before == everything_in(ward.folder, ward.workspace.path)
    assert not [n for n in set(os.listdir("/var/tmp")) - there if n.startswith("oxydra-doctor")]


def test_an_extra_is_what_pip_can_install_here():
    """In a checkout there is no package of Oxydra's that pip knows."""
    named = extra("embeddings")
    assert named and not any("oxydra" in one for one in named)
    assert {Requirement(one).name for one in named} >= {"wordllama", "sqlite-vss"}
    assert shlex.split(pip(*named))[4:] == named
