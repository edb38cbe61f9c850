"""The programs as a person runs them: init, start, ask, status, stop, and what goes wrong."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from urllib.parse import urlsplit

import pytest

from tests.conftest import ROOT, eventually
from tests.test_escape import guest_processes, memory_holds

RUNNER = str(ROOT / "bin" / "oxydra-runner")
SCRIPT = "[[script %s]]"


class Home:
    """A person's home with a configuration, and the daemons started in it."""

    patience = 60  # seconds that a command may take

    def __init__(self, path):
        self.path = path
        self.folder = path / ".oxydra"
        self.config = self.folder / "runner.toml"
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(path),
            "LANG": "C.UTF-8",
        }

    def init(self):
        """Make the configuration."""
        self.folder.mkdir(mode=0o700)
        self.run("init")

    def run(self, *arguments, code=0, program=RUNNER, **options):
        """Run a command to its end; returns what it printed on stdout."""
        done = self.command(*arguments, program=program, **options)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done.stdout

    def command(self, *arguments, program=RUNNER, **options):
        options.setdefault("stdin", subprocess.DEVNULL if "input" not in options else None)
        if options["stdin"] is None:
            del options["stdin"]
        return subprocess.run(
            [sys.executable, program, *(arguments if program != RUNNER else self.at(arguments))],
            capture_output=True,
            text=True,
            timeout=self.patience,
            cwd=self.path,
            env=self.env,
            **options,
        )

    def begin(self, *arguments):
        """Start a command; its output is for `communicate`."""
        return subprocess.Popen(
            [sys.executable, RUNNER, *self.at(arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.path,
            env=self.env,
        )

    def at(self, arguments):
        return ("--config", str(self.config), *arguments)

    def fails(self, *arguments, code=1):
        """The one line on stderr of a command that fails, without a stack trace."""
        done = self.command(*arguments)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        (line,) = done.stderr.strip().splitlines()
        return line

    def status(self):
        return json.loads(self.run("status", "--json"))

    @property
    def workspace(self):
        root = self.config.read_text().split('workspace_root = "', 1)[1].split('"', 1)[0]
        return (self.folder / os.path.expanduser(root.replace("~", str(self.path)))) / "alice"

    def add(self, file, text):
        with (self.folder / file).open("a") as out:
            out.write(text)


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path)
    home.init()
    yield home
    done = home.command("stop")
    assert done.returncode in (0, 2, 3), done.stderr


def comes_back(home, name):
    """Kill a process of the daemon's and wait until another is there and the shell answers."""
    before = home.status()[name]
    os.kill(before, signal.SIGKILL)

    def back():
        status = json.loads(home.command("status", "--json").stdout or "{}")
        startup = status.get("startup_status", {})
        return status.get(name) not in (None, 0, before) and startup.get("shell_available")

    eventually(back, timeout=90)


def all_killed(status):
    """Kill runner and agent guest at once: neither sees the other's end."""
    pids = status["guest_pid"], status["runner_pid"]
    for sign in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, sign)


@pytest.fixture
def running(home):
    home.run("start", "--detach")
    return home


def test_a_conversation_from_the_command_line(running):
    (running.workspace / "shared" / "notes.txt").write_text("hello\n")
    assert "notes.txt" in running.run("ask", "list the files in /shared")
    assert "hello" in running.run("ask", "-", input="read the file /shared/notes.txt")
    answer = running.run("ask", "what is the meaning of life?")
    assert "no model is configured" in answer.lower()
    assert answer.endswith("\n")


def test_ask_in_one_session_and_as_json(running):
    first = json.loads(running.run("ask", "list the files in /shared", "--json"))
    session = first["session"]["session_id"]
    second = json.loads(running.run("ask", "hello", "--json", "--session", session[:6]))
    assert second["session"]["session_id"] == session
    assert second["response"]["message"]["role"] == "assistant"
    line = running.fails("ask", "hello", "--session", "nothing-like-it")
    assert "no session" in line


def test_status_and_stop_and_restart(running):
    status = running.status()
    assert (status["running"], status["healthy"], status["user_id"]) == (True, True, "alice")
    assert status["startup_status"]["sandbox_tier"] == "process"
    codes = [row["code"] for row in status["startup_status"]["degraded_reasons"]]
    assert "no_model" in codes
    assert status["startup_status"]["agent_level"] == "cage" or "keys_exposed" in codes
    running.run("restart")
    assert running.status()["guest_pid"] != status["guest_pid"]
    running.run("stop")
    assert json.loads(running.run("status", "--json", code=3)) == {
        "user_id": "alice",
        "running": False,
    }
    for command in (("status",), ("stop",), ("ask", "hi"), ("--tui",)):
        assert "oxydra-runner start" in running.fails(*command, code=3)


def test_health_for_cron(home):
    health = str(ROOT / "bin" / "oxydra-health")
    at = ("--config", str(home.config))
    assert "alice daemon: down" in home.run(*at, program=health, code=2)
    home.run("start", "--detach")
    assert "alice gateway: healthy" in home.run(*at, program=health)
    assert home.run(*at, "--quiet", program=health) == ""
    rows = json.loads(home.run(*at, "--json", program=health))
    assert {row["level"] for row in rows} == {"healthy"}
    assert "alice gateway: healthy" in home.run("doctor", "daemon")
    found = json.loads(home.run("doctor", "daemon", "--json"))
    assert [row["check"] for row in found] == [row["check"] for row in rows]


def test_the_ipc_folder_is_private(running):
    ipc = running.workspace / "ipc"
    assert ipc.stat().st_mode & 0o777 == 0o700
    for path in ipc.iterdir():
        assert path.stat().st_mode & 0o077 == 0


def test_no_secret_in_argv_environment_or_envelope(home):
    home.env["OPENAI_API_KEY"] = "sk-canary-0123456789abcdef"
    home.add(
        "providers.toml",
        '[providers.registry.local]\nprovider_type = "openai"\n'
        'base_url = "http://127.0.0.1:9/v1"\napi_key_env = "OPENAI_API_KEY"\n',
    )
    (home.folder / "providers.toml").chmod(0o600)
    home.env["OXYDRA__SELECTION__PROVIDER"] = "local"
    home.env["OXYDRA__SELECTION__MODEL"] = "m"
    home.run("start", "--detach")
    status = home.status()
    token = (home.workspace / "ipc" / "gateway-token").read_text().strip()
    guest = f"/proc/{status['guest_pid']}"
    if not os.path.exists(guest):
        pytest.skip("no /proc here")
    with open(f"{guest}/cmdline", "rb") as argv, open(f"{guest}/environ", "rb") as environ:
        seen = argv.read() + environ.read()
    with open(f"/proc/{status['runner_pid']}/cmdline", "rb") as argv:
        seen += argv.read()
    logs = b"".join(p.read_bytes() for p in (home.workspace / "logs").iterdir())
    for secret in (b"sk-canary", token.encode()):
        assert secret not in seen
        assert secret not in logs
    line = home.fails("ask", "hello")
    assert "127.0.0.1:9" in line and "sk-canary" not in line


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may search another process's memory")
def test_no_key_is_in_the_memory_or_the_files_of_a_guest(home):
    """The request that carries it is the broker's."""
    canary = "".join(["5d1e", "88a7", "c3f0", "219b"])
    home.env["OPENAI_API_KEY"] = f"sk-{canary}"
    home.run("start", "--detach")
    home.command("ask", "hello")
    status = home.status()
    assert status["model"]["provider"] == "openai"
    for pid in (*guest_processes(status["guest_pid"]), *guest_processes(status["shell_pid"])):
        assert not memory_holds(pid, canary.encode())
    assert memory_holds(status["runner_pid"], canary.encode())  # the search finds what is there
    for path in home.workspace.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert canary.encode() not in path.read_bytes(), path


def tool_results(home, session_id):
    """What the tools of a session's last turn said, from the database."""
    with contextlib.closing(sqlite3.connect(home.workspace / "internal" / "oxydra.db")) as db:
        rows = db.execute(
            "SELECT message FROM events WHERE session_id = ? ORDER BY sequence", (session_id,)
        )
        messages = [json.loads(row[0]) for row in rows]
    return [message["content"] for message in messages if message["role"] == "tool"]


def test_a_folder_of_ones_own_is_the_same_for_files_and_commands(home):
    for name in ("files", "scratch", "private"):
        (home.path / name).mkdir()
    (home.path / "private" / "note").write_text("from the vault")
    user = home.folder / "users" / "alice.toml"
    mounts = '[mounts]\nshared = "~/files"\ntmp = "~/scratch"\nvault = "~/private"'
    user.write_text(user.read_text().replace("[mounts]", mounts))
    home.run("start", "--detach")
    steps = [
        {"tool": "file_write", "arguments": {"path": "/shared/a.txt", "content": "by a tool"}},
        {"tool": "file_read", "arguments": {"path": "/vault/note"}},
        {"tool": "shell_exec", "arguments": {"command": "cat a.txt; echo; ls /vault"}},
        {"text": "done"},
    ]
    session = json.loads(home.run("ask", SCRIPT % json.dumps(steps), "--json"))["session"]
    assert (home.path / "files" / "a.txt").read_text() == "by a tool"
    results = tool_results(home, session["session_id"])
    assert "from the vault" in results[1]
    if home.status()["startup_status"]["sandbox_level"] == "bwrap+cage":
        assert results[2].startswith("by a tool\n")
        assert "from the vault" not in results[2]
    assert not (home.workspace / "shared" / "a.txt").exists()


def test_a_guest_can_make_no_socket_and_read_nothing_of_the_persons(home):
    """What the agent guest itself gave up before it read anything."""
    home.run("start", "--detach")
    status = home.status()
    if status["startup_status"]["agent_level"] != "cage":
        pytest.skip("this kernel has no cage")
    with open(f"/proc/{status['guest_pid']}/status") as file:
        facts = dict(line.split(":\t", 1) for line in file if ":\t" in line)
    assert facts["NoNewPrivs"].strip() == "1"
    assert facts["Seccomp"].strip() == "2"
    if os.geteuid() == 0:  # chown, dac_override, fowner, kill, setgid, setuid
        assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0b11101011


def approvals(home):
    """The requests that wait."""
    return json.loads(home.run("approvals", "list", "--json"))


def test_commands_of_before_an_agent_guest_began_anew_are_still_reckoned_with(home):
    """One with a network could send off what comes to lie where it reads."""
    runner = home.config.read_text()
    home.config.write_text(runner.replace("[egress]", '[egress]\nshell = "open"', 1))
    home.run("start", "--detach")
    if not home.status()["startup_status"]["sandbox_level"].startswith("bwrap"):
        pytest.skip("commands have no network of their own here")
    (home.workspace / "vault" / "secret.txt").write_text("secret")
    copy = SCRIPT % json.dumps(
        [
            {
                "tool": "vault_copyto",
                "arguments": {"path": "/vault/secret.txt", "destination": "/shared/copy.txt"},
            }
        ]
    )
    home.run("ask", SCRIPT % json.dumps([{"tool": "shell_exec", "arguments": {"command": "ls"}}]))
    comes_back(home, "guest_pid")
    asking = subprocess.Popen(
        [sys.executable, RUNNER, *home.at(("ask", copy))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=home.path,
        env=home.env,
    )
    try:
        requests = []
        eventually(lambda: requests.extend(approvals(home)) or requests)
        assert "still running" in requests[0]["reason"]
        home.run("approvals", "deny", requests[0]["approval_id"])
    finally:
        asking.wait(60)
    assert not (home.workspace / "shared" / "copy.txt").exists()


ESCAPES = """
import os, socket, sys
from pathlib import Path
from oxydra import vm
from oxydra.types import Folder
root, secret, victim = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
inherited = socket.socket(fileno=int(sys.argv[4]))
folders = [Folder(name, str(root / name), name != "vault") for name in ("shared", "tmp", "vault")]
assert vm.lock_in(root / "internal", folders, "") == "cage"
def connect():
    socket.socket().connect(("127.0.0.1", 1))
def unbind():  # a listener that is turned into a client
    inherited.connect(("127.0.0.1", 1))
tries = {
    "tcp": lambda: socket.socket(), "udp": lambda: socket.socket(type=socket.SOCK_DGRAM),
    "unix": lambda: socket.socket(socket.AF_UNIX), "vsock": lambda: socket.socket(40),
    "netlink": lambda: socket.socket(16, socket.SOCK_RAW), "unbind": unbind,
    "read": lambda: open(secret).read(), "list": lambda: os.listdir(os.path.dirname(secret)),
    "link": lambda: (os.symlink(secret, root / "tmp/l"), open(root / "tmp/l").read()),
    "hard link": lambda: os.link(secret, root / "tmp/h"),
    "write": lambda: open(secret, "w"), "chmod": lambda: os.chmod(secret, 0o777),
    "chown": lambda: os.chown(secret, 1, 1), "remove": lambda: os.remove(secret),
    "rename": lambda: os.rename(secret, root / "tmp/x"), "truncate": lambda: os.truncate(secret, 0),
    "vault": lambda: open(root / "vault/new", "w"), "ipc": lambda: os.listdir(root / "ipc"),
    "audit": lambda: open(root / "audit/egress.jsonl", "a"),
    "kill": lambda: os.kill(victim, 0), "environ": lambda: open(f"/proc/{victim}/environ").read(),
    "memory": lambda: open(f"/proc/{victim}/mem", "rb"), "root": lambda: os.chroot("/"),
    "namespace": lambda: os.unshare(0x10000000) if hasattr(os, "unshare") else 1 / 0,
    "device": lambda: os.mknod(root / "tmp/d", 0o60600, os.makedev(8, 0)),
}
for name, attempt in tries.items():
    try:
        attempt()
    except (OSError, ZeroDivisionError):
        continue
    print(name)
(root / "shared/file").write_text("what it may do")
assert (root / "shared/file").read_text()
"""


def test_what_the_agent_guest_gives_up(tmp_path):
    """By its own code, in a process of its own: hostile afterwards, and as the same user."""
    for name in ("shared", "tmp", "vault", "internal", "ipc", "audit"):
        (tmp_path / "w" / name).mkdir(parents=True)
    secret = tmp_path / "home" / "secret"
    secret.parent.mkdir()
    secret.write_text("private")
    victim = subprocess.Popen(["sleep", "60"])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = subprocess.run(
            [sys.executable, "-c", ESCAPES, str(tmp_path / "w"), str(secret), str(victim.pid),
             str(listener.fileno())],
            capture_output=True, text=True, timeout=60, cwd=ROOT, pass_fds=(listener.fileno(),),
        )  # fmt: skip
    victim.kill()
    victim.wait()
    if "AssertionError" in done.stderr and "cage" in done.stderr:
        pytest.skip("this kernel has no cage")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert secret.read_text() == "private"


def test_a_killed_guest_is_started_again_and_nothing_is_lost(running):
    session = json.loads(running.run("ask", "hello", "--json"))["session"]["session_id"]
    for _ in range(3):
        before = running.status()
        os.kill(before["guest_pid"], signal.SIGKILL)
        eventually(
            lambda pid=before["guest_pid"]: (
                running.command("status", "--json").returncode == 0
                and running.status()["guest_pid"] not in (0, pid)
            ),
            timeout=90,
        )
    status = running.status()
    assert status["guest_restarts"] == 3
    assert "SIGKILL" in status["last_guest_end"]
    again = json.loads(running.run("ask", "hello", "--json", "--session", session))
    assert again["session"]["session_id"] == session


def test_a_turn_survives_kill_9_of_everything(running):
    """The turn edits a file, which must happen once, and then speaks; all is killed meanwhile."""
    edit = {"path": "/shared/one.txt", "old": "a", "new": "aa"}
    steps = [
        {"tool": "file_edit", "arguments": edit},
        {"text": "thinking ", "delay_ms": 1500},
    ]
    one = running.workspace / "shared" / "one.txt"
    one.write_text("a")
    status = running.status()
    asking = subprocess.Popen(
        [sys.executable, RUNNER, *running.at(("ask", SCRIPT % json.dumps(steps), "--json"))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=running.env,
        text=True,
    )
    eventually(lambda: one.read_text() == "aa", timeout=90)
    all_killed(status)
    running.run("start", "--detach")
    out, err = asking.communicate(timeout=60)
    assert asking.returncode == 0, (out, err)
    assert "thinking" in json.loads(out)["response"]["message"]["content"]
    assert one.read_text() == "aa"


def test_a_killed_runner_takes_its_guest_along(running):
    status = running.status()
    os.kill(status["runner_pid"], signal.SIGKILL)

    def gone():
        try:
            with open(f"/proc/{status['guest_pid']}/stat") as stat:
                return stat.read().rsplit(")", 1)[1].split()[0] == "Z"
        except FileNotFoundError:
            return True

    eventually(gone, timeout=90)
    running.run("start", "--detach")
    assert running.status()["healthy"]


def test_two_daemons_for_one_user(running):
    before = running.status()
    line = running.fails("start", "--detach")
    assert "already running for alice" in line
    line = running.fails("start")
    assert "already running for alice" in line
    assert running.status()["guest_pid"] == before["guest_pid"]


def test_an_occupied_port(home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        home.env["OXYDRA__GATEWAY__PORT"] = str(port)
        line = home.fails("start", "--detach")
        assert str(port) in line and "[gateway] port" in line
    home.run("start", "--detach")
    endpoint = (home.workspace / "ipc" / "gateway-endpoint").read_text().strip()
    assert endpoint == f"ws://127.0.0.1:{port}/ws"


def test_what_a_dead_daemon_left_behind_is_no_obstacle(home):
    home.run("start", "--detach")
    home.run("stop")
    ipc = home.workspace / "ipc"
    dead = socket.socket(socket.AF_UNIX)
    os.chdir(ipc)  # the name fits a socket address only relatively
    dead.bind("runner-control.sock")
    os.chdir("/")
    dead.close()
    (ipc / "gateway-endpoint").write_text("ws://127.0.0.1:9/ws\n")
    assert "oxydra-runner start" in home.fails("status", code=3)
    assert "127.0.0.1:9" in home.fails("ask", "hi", code=3)
    home.run("start", "--detach")
    assert home.status()["healthy"]


@pytest.mark.parametrize(
    ("file", "text", "what"),
    [
        ("agent.toml", "[selectoin]\nmodel = 1\n", "selection"),
        ("agent.toml", "broken = \n", "agent.toml:"),
        ("runner.toml", "[users.bob]\nconfig_pth = 'x'\n", "config_path"),
        ("users/alice.toml", "[credential_refs]\nopenai = 'sk-abc'\n", "credential_refs"),
    ],
)
def test_a_broken_configuration_starts_nothing(home, file, text, what):
    home.add(file, "\n" + text)
    line = home.fails("start", "--detach", code=2)
    assert what in line and file in line
    assert home.fails("restart", code=2) == line


def test_a_broken_variable_starts_nothing(home):
    home.env["OXYDRA__RUNTIME__MAX_TURNS"] = "many"
    line = home.fails("start", "--detach", code=2)
    assert "OXYDRA__RUNTIME__MAX_TURNS" in line


def test_a_missing_configuration(home):
    home.config = home.folder / "nothing.toml"
    assert "oxydra-runner init" in home.fails("start", code=2)


def test_a_damaged_database_says_so_and_is_left_alone(home):
    home.run("start", "--detach")
    home.run("stop")
    database = home.workspace / "internal" / "oxydra.db"
    for extra in ("-wal", "-shm"):
        (database.parent / (database.name + extra)).unlink(missing_ok=True)
    database.write_bytes(b"garbage" * 1000)
    line = home.fails("start", "--detach")
    assert "damaged" in line
    assert database.read_bytes() == b"garbage" * 1000


def test_in_the_foreground_until_a_signal(home):
    process = subprocess.Popen(
        [sys.executable, RUNNER, *home.at(("start",))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=home.env,
        text=True,
    )
    assert "ready at ws://127.0.0.1:" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    assert "Traceback" not in err


def test_the_pages_answer_without_a_token(running):
    address = urlsplit(running.status()["gateway_endpoint"])
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    connection.request("GET", "/readyz")
    assert connection.getresponse().status == 200
    connection.close()


def test_keys_are_kept_privately(home):
    assert "kept in" in home.run("key", "set", "OPENAI_API_KEY", input="sk-test-123456\n")
    assert home.run("key", "list").split() == ["OPENAI_API_KEY"]
    kept = home.path / ".config" / "oxydra" / "keys" / "OPENAI_API_KEY"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert "sk-test" not in home.run("config", "explain")
    home.run("key", "remove", "OPENAI_API_KEY")
    assert home.run("key", "list") == ""


def test_config_explain_and_catalog_show(home):
    assert "selection.provider" in home.run("config", "explain")
    rows = json.loads(home.run("config", "explain", "--json"))
    assert any(row["key"] == "runtime.max_turns" for row in rows)
    models = json.loads(home.run("catalog", "show", "--provider", "openai", "--json"))
    assert all(model["provider"] == "openai" for model in models)
    assert "context" in home.run("catalog", "show")


def test_many_askers_at_once(running):
    answers = []

    def one(number):
        answers.append(running.command("ask", f"hello {number}"))

    askers = [threading.Thread(target=one, args=(n,)) for n in range(6)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert [a.returncode for a in answers] == [0] * 6


def test_usage_errors(home):
    done = home.command("ask")
    assert done.returncode == 2
    done = home.command("no-such-command")
    assert done.returncode == 2
    assert "empty" in home.fails("ask", "  ", code=2)


def test_the_catalog_is_fetched_and_verified(home):
    model = {
        "id": "new-1",
        "attachment": False,
        "reasoning": False,
        "tool_call": True,
        "modalities": {"input": ["text"], "output": ["text"]},
        "limit": {"context": 1000, "output": 100},
        "cost": {"input": 1.5, "output": 3},
    }
    source = home.path / "api.json"
    source.write_text(json.dumps({"openai": {"models": {"new-1": model}}}))
    assert "1 models" in home.run("catalog", "fetch", "--from", str(source))
    models = json.loads(home.run("catalog", "show", "--provider", "openai", "--json"))
    assert [m["price_input"] for m in models if m["id"] == "new-1"] == ["1.5"]
    assert "sound" in home.run("catalog", "verify")
    source.write_text("<html>")
    assert "Nothing was changed" in home.fails("catalog", "fetch", "--from", str(source))
    assert "127.0.0.1:9" in home.fails("catalog", "fetch", "--from", "http://127.0.0.1:9/x")
    assert "sound" in home.run("catalog", "verify")
    cache = home.path / ".config" / "oxydra" / "model_catalog.json"
    cache.write_text('{"schema": 99}')
    assert "schema 99" in home.fails("catalog", "verify", code=2)


def test_attachments_from_the_command_line(running):
    image = running.path / "dot.png"
    image.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    assert "takes no images" in running.fails("ask", "look", "--attach", str(image))
    (running.path / "notes.txt").write_text("hello")
    for path, what in (("notes.txt", "cannot be attached"), ("none.png", "cannot be read")):
        assert what in running.fails("ask", "x", "--attach", str(running.path / path), code=2)
