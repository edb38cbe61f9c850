"""The programs under test: the real daemon in a home of its own, and the load server beside it.

Nothing here reads the configuration, keys or workspace of whoever runs the benchmark. Whatever was
started is stopped on the way out, if need be by its process id.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.client import Client

ROOT = Path(__file__).resolve().parents[2]
RUNNER = [sys.executable, str(ROOT / "bin" / "oxydra-runner")]
USER = "alice"
READY_SECONDS = 60.0
FILES = 10  # in /shared, for file_list

RUNNER_TOML = """\
config_version = "1.0"
workspace_root = "{root}/workspaces"
default_tier = "{tier}"

[guest_images]
agent = "{agent}"
shell = "{shell}"

[users.{user}]
config_path = "users/{user}.toml"
"""
AGENT_TOML = """\
config_version = "1.0"

[selection]
provider = "load"
model = "load-1"

[providers.registry.load]
provider_type = "openai"
base_url = "{base_url}"

[catalog]
skip_catalog_validation = true

[runtime.loop_guard]
warn_after = 0
stop_after = 0

[runtime]
max_turns = 600

[gateway]
port = {port}
openai_api = true
max_concurrent_turns_per_user = 64
"""


@contextlib.contextmanager
def load_server() -> Iterator[LoadServer]:
    """The model server, in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.load_server"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield LoadServer(process.stdout.readline().strip(), process.pid)
        finally:
            process.terminate()


@dataclass(frozen=True, slots=True)
class LoadServer:
    base_url: str
    pid: int

    def log(self) -> list[dict[str, Any]]:
        """What was asked since the last reset."""
        return [json.loads(line) for line in self._call("GET", "/log").splitlines()]

    def reset(self) -> None:
        self._call("POST", "/reset")

    def _call(self, method: str, path: str) -> bytes:
        connection = http.client.HTTPConnection(self.base_url.removeprefix("http://"), timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path)
            return connection.getresponse().read()


class Daemon:
    """One user's daemon. `guest` and `runner` are its process ids while it runs, else 0;
    `environment` is what its commands are run with.
    """

    def __init__(self, home: Path, base_url: str, images: tuple[str, str] | None = None) -> None:
        """With `images`, the agent guest's and the shell guest's, in the container tier."""
        self.guest = self.runner = 0
        self.port = free_port()
        self.config = home / "config" / "runner.toml"
        self.workspace = home / "workspaces" / USER
        self.environment = {
            **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
            "HOME": str(home),
        }
        values = {"root": home, "user": USER, "base_url": base_url, "port": self.port}
        values["tier"] = "container" if images else "process"
        values["agent"], values["shell"] = images or ("", "")
        for name, text in {
            "runner.toml": RUNNER_TOML,
            "agent.toml": AGENT_TOML,
            f"users/{USER}.toml": 'config_version = "1.0"\n',
        }.items():
            path = self.config.parent / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_text(text.format(**values))
            path.chmod(0o600)

    def command(self, *words: str) -> list[str]:
        return [*RUNNER, "--config", str(self.config), "--user", USER, *words]

    def run(self, *words: str) -> str:
        """Run a command; raises with what it said if it fails."""
        done = subprocess.run(
            self.command(*words), env=self.environment, capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"oxydra-runner {' '.join(words)}: {done.stderr or done.stdout}")
        return done.stdout

    def start(self) -> float:
        """Start it; returns the seconds from the command to the first 200 of /readyz."""
        began = time.monotonic()
        with subprocess.Popen(
            self.command("start", "--detach"),
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            seconds = self._wait_ready(process, began)
        if process.returncode:
            raise RuntimeError("oxydra-runner start --detach failed after it was ready")
        self.guest, self.runner = self._pids()
        return seconds

    def _wait_ready(self, process: subprocess.Popen[bytes], began: float) -> float:
        """The runner binds the port before the guest runs: one request waits for the answer."""
        while time.monotonic() < began + READY_SECONDS:
            with contextlib.suppress(ConnectionError), socket.socket() as sock:
                sock.settimeout(READY_SECONDS)
                sock.connect(("127.0.0.1", self.port))
                sock.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                if b" 200 " in sock.recv(64):
                    return time.monotonic() - began
            if process.poll():
                assert process.stderr is not None
                raise RuntimeError(process.stderr.read().decode())
            time.sleep(0.002)
        raise RuntimeError(f"the daemon was not ready within {READY_SECONDS:g} s")

    def stop(self) -> None:
        self.run("stop")
        self.guest = self.runner = 0

    def _pids(self) -> tuple[int, int]:
        status = json.loads(self.run("status", "--json"))
        return status["guest_pid"], status["runner_pid"]

    def reached(self) -> dict[str, Any]:
        """Where it is, by which token, and its process id, for a client in another process."""
        ipc = self.workspace / "ipc"
        endpoint = (ipc / "gateway-endpoint").read_text().strip()
        token = (ipc / "gateway-token").read_text().strip()
        return {"endpoint": endpoint, "token": token, "user": USER, "guest": self.guest}

    def connect(self, session: str = "") -> Client:
        there = self.reached()
        return Client(there["endpoint"], there["token"], there["user"], session)

    def door(self) -> tuple[int, str]:
        """The port of the OpenAI-compatible door, and its key."""
        return self.port, (self.workspace / "ipc" / "gateway-token").read_text().strip()

    def fill_shared(self) -> None:
        """Something for `file_list` to list."""
        for number in range(FILES):
            (self.workspace / "shared" / f"notes-{number}.md").write_text("A note.\n" * 20)

    def end(self) -> None:
        """Make sure that nothing is left, whatever happened before."""
        pids = (self.runner, self.guest)
        try:
            self.stop()
        except (RuntimeError, subprocess.TimeoutExpired):
            for pid in filter(None, pids):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def new_daemon(base_url: str, images: tuple[str, str] | None = None) -> Iterator[Daemon]:
    """A daemon with a home of its own; not started yet, gone in the end."""
    home = Path(tempfile.mkdtemp(prefix="oxydra-bench-"))
    daemon = Daemon(home, base_url, images)
    try:
        yield daemon
    finally:
        daemon.end()
        shutil.rmtree(home, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
