"""A world for commands to break out into, and what has happened to it: all of it would be open to
the user that they run as, if the sandbox did not hold.

Beside a scratch workspace it has files, sockets, a terminal, shared memory and a process that waits
to be touched; `guest/escape-attempts` is what tries. It listens on loopback and in a folder of its
own, and is gone with `close`. No thread.
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
from typing import Any

from oxydra.tiers.ladder import interpreter

SECRET = "canary-5d41402abc4b2a76"
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

    def __init__(self, workspace: Path, uid: int, owner: int | None = None) -> None:
        """Commands run as `uid`; what lies outside is `owner`'s, by default theirs."""
        self.uid = uid
        self.owner = uid if owner is None else owner
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
        os.chown(self.terminal, self.uid, -1)
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
        for path in (*self.folder.iterdir(), self.folder):
            os.chown(path, self.owner, -1)
        for path in (*self.workspace.rglob("*"), *self.other.rglob("*"), self.other):
            os.chown(path, self.uid, -1)
        self.folder.chmod(0o755)

    def _make_sockets(self) -> None:
        def bound(family: int, kind: int, address: Any) -> socket.socket:
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
            [interpreter(self.uid)[0], "-I", "-S", "-c", VICTIM, SECRET],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"KEY": SECRET},
            cwd=self.folder,
            start_new_session=True,
            **as_user(self.uid),
        )
        self.close.callback(self._end_victim)
        assert self.victim.stdout is not None
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


def as_user(uid: int) -> dict[str, Any]:
    """What `Popen` takes to start a process of this user's."""
    return {"user": uid, "group": uid, "extra_groups": []} if os.geteuid() == 0 else {}


def results_of(text: str) -> dict[str, str]:
    """What the attempts say became of each."""
    found: dict[str, str] = json.loads(text[text.index("{") :])
    return found


def escaped(results: dict[str, str]) -> list[str]:
    """Those that got what they wanted."""
    return [f"{name} {said}" for name, said in results.items() if said.startswith("escaped")]
