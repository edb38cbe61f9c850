"""A Docker engine of a test's own, which it may kill: the images are those of the usual engine."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.conftest import REAL_ENVIRONMENT
from tests.docker_images import agent_image, shell_image

PATIENCE = 300.0
TRY = ("run", "--rm", "--network", "none", "--entrypoint", "/bin/true")


class Engine:
    """A context manager: the engine runs, and holds the images of this checkout. Its files lie in a
    temporary folder, which is removed at the end. Skips the test where none can be started.
    """

    def __init__(self) -> None:
        self._folder = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Engine:
        if os.geteuid() != 0 or shutil.which("dockerd") is None:
            pytest.skip("only root can start a Docker engine, and there must be one")
        images = [agent_image(), shell_image()]
        self._folder = Path(tempfile.mkdtemp(prefix="oxydra-engine-"))
        self.url = f"unix://{self._folder}/docker.sock"
        try:
            self.start()
            self._load(images)
            tried = self._docker(*TRY, images[1])
            if tried.returncode:
                pytest.skip(f"a Docker engine of its own runs nothing: {tried.stderr.strip()}")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Returns when it answers."""
        command = [
            *("dockerd", "--host", self.url, "--data-root", f"{self._folder}/data"),
            *("--exec-root", f"{self._folder}/exec", "--pidfile", f"{self._folder}/pid"),
            *("--bridge", "none", "--iptables=false", "--ip6tables=false"),
        ]
        (self._folder / "pid").unlink(missing_ok=True)  # of one that was killed
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=REAL_ENVIRONMENT
            )
        end = time.monotonic() + PATIENCE
        while self._docker("version").returncode:
            if self._process.poll() is not None or time.monotonic() > end:
                told = (self._folder / "log").read_text().splitlines()[-3:]
                pytest.skip(f"no Docker engine of its own can be started: {told}")
            time.sleep(0.2)

    def kill(self) -> None:
        """With SIGKILL. What it runs goes on, and ends when it is started again."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """End it, with every container that it has."""
        if self._process is None:
            return
        if self._process.poll() is not None:
            self.start()
        for container in self._docker("ps", "-aq").stdout.split():
            self._docker("rm", "-f", container)
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(60)
        self.kill()
        for line in Path("/proc/mounts").read_text().splitlines():
            if str(self._folder) in (at := line.split()[1]):
                subprocess.run(["umount", "-l", at], capture_output=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _load(self, images: list[str]) -> None:
        saved = subprocess.Popen(
            ["docker", "save", *images], stdout=subprocess.PIPE, env=REAL_ENVIRONMENT
        )
        loaded = subprocess.run(
            ["docker", "load"], stdin=saved.stdout, capture_output=True, env=self._environment()
        )
        assert saved.wait() == 0 and loaded.returncode == 0, loaded.stderr

    def _environment(self) -> dict[str, str]:
        return REAL_ENVIRONMENT | {"DOCKER_HOST": self.url}

    def _docker(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", *words], capture_output=True, text=True, env=self._environment()
        )
