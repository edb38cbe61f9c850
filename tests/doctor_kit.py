"""A person's configuration in a temporary folder, and daemons for it that say what a test wants."""

from __future__ import annotations

import contextlib
import http.server
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oxydra import config
from oxydra.doctor import Case, Finding
from oxydra.runner.control import ControlServer
from tests.conftest import ROOT

WELL: dict[str, Any] = {"healthy": True, "uptime_secs": 5, "guest_restarts": 0}


class Patient:
    """`folder` holds the configuration, as `oxydra-runner init` has written it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path / ".oxydra"
        config.write_default(self.folder, "alice")
        self.workspace = self.case().workspace
        self.workspace.prepare()
        self.programs = path / "programs"
        self.programs.mkdir()
        runner = [sys.executable, str(ROOT / "bin" / "oxydra-runner")]
        self.program("oxydra-runner", f'exec {shlex.join(runner)} "$@"')
        self.env = {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "HOME": os.environ["HOME"],
            "XDG_CONFIG_HOME": os.environ["XDG_CONFIG_HOME"],
            "LANG": "C.UTF-8",
        }

    def program(self, name: str, script: str) -> Path:
        """A program of this machine's, found before all others."""
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def case(self, **more: Any) -> Case:
        return Case(self.folder, "alice", **more)

    def health(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`oxydra-health` with these arguments."""
        program = [sys.executable, str(ROOT / "bin" / "oxydra-health")]
        return subprocess.run(
            [*program, "--config", str(self.folder), *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.path,
            env=self.env,
            stdin=subprocess.DEVNULL,
        )

    @contextlib.contextmanager
    def daemon(self, **said: Any) -> Iterator[None]:
        """One that answers `health_check`, and whose gateway is ready."""

        class Ready(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if self.path == "/readyz" else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ready) as gateway:
            serving = threading.Thread(target=gateway.serve_forever)
            serving.start()
            endpoint = f"ws://127.0.0.1:{gateway.server_address[1]}/ws"
            status = {**WELL, "gateway_endpoint": endpoint, **said}
            control = ControlServer(
                self.workspace.control_socket, {"health_check": lambda _: ("status", status)}
            )
            control.start()
            try:
                yield
            finally:
                control.stop()
                self.workspace.control_socket.unlink()
                gateway.shutdown()
                serving.join()


def only(found: Iterator[Finding] | list[Finding], check: str) -> Finding:
    """The one finding of a check."""
    (one,) = [finding for finding in found if finding.check == check]
    return one


def everything_in(*folders: Path) -> dict[str, tuple[Any, ...]]:
    """What is in these folders, so that any change to it can be seen."""
    found: dict[str, tuple[Any, ...]] = {}
    for folder in folders:
        for path in (folder, *sorted(folder.rglob("*"))):
            state = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            found[str(path)] = (state.st_ino, state.st_mode, state.st_mtime_ns, content)
    return found
