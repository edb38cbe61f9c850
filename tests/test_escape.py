"""What fully hostile code in the shell guest gets: nothing, of everything in `escape_kit`.

The same attempts are first made by an ordinary process of the same user, where most of them
succeed: that shows that they would, if the cage did not hold.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, eventually
from tests.sandbox import UID, missing, processes_with, sandbox

SECRET = "canary-5d41402abc4b2a76"
KIT = ROOT / "tests" / "escape_kit.py"
AS_USER = {"user": UID, "group": UID, "extra_groups": []} if os.geteuid() == 0 else {}

# Attempts that would harm an ordinary process's surroundings, or that any process may make.
NOT_UNCAGED = {"renice_everybody", "signal_everybody", "signal_the_guest", "many_processes"}
LEVELS = {
    "container+cage": {"levels": ("container+cage",)},
    "bwrap+cage": {"levels": ("bwrap+cage",)},
    "cage": {"levels": ("cage",), "dedicated": False},
    "cage, Landlock 2": {"levels": ("cage",), "dedicated": False, "newest_landlock": 2},
    "cage, Landlock 1": {"levels": ("cage",), "dedicated": False, "newest_landlock": 1},
}
VICTIM = """
import ctypes, signal, sys, time
here = ctypes.create_string_buffer(b"12345678")
def touched(number, frame):
    print("touched", number, flush=True)
signal.signal(signal.SIGWINCH, touched)
print(ctypes.addressof(here), flush=True)
sys.stdin.read()
print("alive", flush=True)
"""


class Outside:
    """A world to break out into: all of it would be open to the user that commands run as."""

    def __init__(self, workspace: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
        self.workspace = workspace
        self.other = workspace.parent / f"{workspace.name}-bob"
        self.close = contextlib.ExitStack()
        self.close.callback(shutil.rmtree, self.folder)
        self._make_files()
        self._make_sockets()
        self._make_victim()
        self.shm_file = Path("/dev/shm") / self.folder.name
        self.shm_file.write_text(SECRET)
        self.close.callback(self.shm_file.unlink)
        master, slave = os.openpty()
        self.terminal, self.master = os.ttyname(slave), master
        os.chown(self.terminal, UID, -1)
        self.close.callback(os.close, master)
        self.close.callback(os.close, slave)
        self._make_shared_memory()

    def _make_files(self) -> None:
        files = {
            "outside": (SECRET, 0o644),
            "writable": ("untouched", 0o666),
            "movable": ("untouched", 0o666),
            "deletable": ("untouched", 0o666),
            "program": (f"#!/bin/sh\necho {SECRET}\n", 0o755),
        }
        for name, (text, mode) in files.items():
            path = self.folder / name
            path.write_text(text)
            path.chmod(mode)
        for name, text in (
            ("vault/secret.txt", SECRET),
            ("internal/oxydra.db", SECRET),
            ("ipc/gateway-token", SECRET),
            ("ipc/gateway-endpoint", "ws://127.0.0.1:1/ws"),
            (f"{self.other}/vault/secret.txt", SECRET),
            (f"{self.other}/ipc/gateway-token", SECRET),
        ):
            path = self.workspace / name
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(text)
        mine = (*self.workspace.rglob("*"), *self.other.rglob("*"), self.other)
        for path in (*self.folder.iterdir(), self.folder, *mine):
            os.chown(path, UID, -1)
        self.folder.chmod(0o755)

    def _make_sockets(self) -> None:
        def bound(family, kind, address):
            sock = self.close.enter_context(socket.socket(family, kind))
            sock.bind(address)
            if kind == socket.SOCK_STREAM:
                sock.listen(64)
            if isinstance(address, str) and not address.startswith("\0"):
                os.chmod(address, 0o777)
            return sock

        self.abstract = f"oxydra-{self.folder.name}"
        stream, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
        self.listeners = {
            "tcp": bound(socket.AF_INET, stream, ("127.0.0.1", 0)),
            "control": bound(socket.AF_UNIX, stream, f"{self.folder}/control.sock"),
            "docker": bound(socket.AF_UNIX, stream, f"{self.folder}/docker.sock"),
            "abstract": bound(socket.AF_UNIX, stream, f"\0{self.abstract}"),
        }
        with contextlib.suppress(OSError):  # where an engine has made its bridge
            self.listeners["bridge"] = bound(socket.AF_INET, stream, ("172.17.0.1", 0))
        self.inboxes = {
            "udp": bound(socket.AF_INET, datagram, ("127.0.0.1", 0)),
            "datagram": bound(socket.AF_UNIX, datagram, f"{self.folder}/datagram.sock"),
        }

    def _make_victim(self) -> None:
        self.victim = subprocess.Popen(
            ["/usr/bin/python3", "-I", "-S", "-c", VICTIM, SECRET],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"KEY": SECRET},
            cwd=self.folder,
            start_new_session=True,
            **AS_USER,
        )
        self.close.callback(self._end_victim)
        self.address = int(self.victim.stdout.readline())

    def _end_victim(self) -> None:
        self.victim.kill()
        self.victim.communicate()

    def _make_shared_memory(self) -> None:
        libc = ctypes.CDLL(None)
        self.shm_id = libc.shmget(0, 4096, 0o1666)
        self.close.callback(libc.shmctl, self.shm_id, 0, None)  # IPC_RMID

    def parameters(self, **more: object) -> dict[str, object]:
        return {
            "secret": SECRET,
            "folder": str(self.folder),
            "workspace": str(self.workspace),
            **{n: str(self.folder / n) for n in ("outside", "writable", "program")},
            "control": f"{self.folder}/control.sock",
            "docker": f"{self.folder}/docker.sock",
            "datagram": f"{self.folder}/datagram.sock",
            "abstract": self.abstract,
            "tcp_port": self.listeners["tcp"].getsockname()[1],
            "bridge_port": self.listeners.get("bridge", self.listeners["tcp"]).getsockname()[1],
            "other": str(self.other),
            "udp_port": self.inboxes["udp"].getsockname()[1],
            "victim": self.victim.pid,
            "address": self.address,
            "terminal": self.terminal,
            "shm_file": self.shm_file.name,
            "shm_id": self.shm_id,
            **more,
        }

    def damage(self) -> list[str]:
        """What has happened out here."""
        found = []
        untouched = {"writable", "movable", "deletable"}
        names = {path.name for path in self.folder.iterdir()}
        expected = {"outside", "program", "control.sock", "docker.sock", "datagram.sock"}
        found += [f"{name} is there or gone" for name in names ^ (expected | untouched)]
        for name in untouched & names:
            path = self.folder / name
            state = path.stat()
            if path.read_text() != "untouched" or state.st_mode & 0o777 != 0o666:
                found.append(f"{name} was changed")
            if state.st_mtime < 10:
                found.append(f"the time of {name} was changed")
        if (self.workspace / "ipc" / "gateway-endpoint").read_text() != "ws://127.0.0.1:1/ws":
            found.append("the endpoint was changed")
        for name, listener in self.listeners.items():
            listener.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                listener.accept()[0].close()
                found.append(f"{name} was connected to")
        for name, inbox in self.inboxes.items():
            inbox.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                inbox.recv(100)
                found.append(f"{name} got something")
        os.set_blocking(self.master, False)
        with contextlib.suppress(BlockingIOError):
            found.append(f"the terminal shows {os.read(self.master, 100)!r}")
        self.victim.send_signal(signal.SIGCONT)  # being traced has stopped it
        said = self.victim.communicate(timeout=60)[0]
        if said != b"alive\n":
            found.append(f"the other process says {said!r}")
        return found


@pytest.fixture
def outside(tmp_path):
    there = Outside(tmp_path)
    yield there
    there.close.close()


def results_of(text: str) -> dict[str, str]:
    return json.loads(text[text.index("{") :])


def escaped(results: dict[str, str]) -> list[str]:
    return [f"{name} {said}" for name, said in results.items() if said.startswith("escaped")]


@pytest.mark.parametrize("case", LEVELS)
def test_nothing_gets_out(tmp_path, outside, case):
    options = LEVELS[case]
    level = options["levels"][0]
    if missing(level):
        pytest.skip(missing(level))
    with sandbox(tmp_path, level, **options) as box:
        shutil.copy(KIT, tmp_path / "shared")
        guest = guest_processes(box.process.pid)
        parameters = outside.parameters(guest=guest, isolated=level != "cage")
        (tmp_path / "shared" / "parameters.json").write_text(json.dumps(parameters))
        ran = box.run("python3 -I -S escape_kit.py parameters.json", seconds=120)
        assert ran.exit_code == 0, ran
        results = results_of(ran.output.decode())
        assert len(results) >= 60
        assert not escaped(results)
        assert box.text("echo still here") == "still here\n"
    assert not outside.damage()


def test_the_attempts_would_succeed(tmp_path, outside):
    """Without a cage most of them do, or they would prove nothing."""
    shutil.copy(KIT, tmp_path)
    code = (tmp_path / "escape_kit.py").read_text()
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
        **AS_USER,
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
