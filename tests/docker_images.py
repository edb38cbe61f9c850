"""The guests' images for tests marked `docker`: built once for the same inputs, then found again.

`agent_image()` and `shell_image()` return a reference; the first call may take a minute. They carry
the tag `tests` beside the one of their inputs, so that a person's own images are left alone.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import REAL_ENVIRONMENT, ROOT

LOCKED_DOWN = [
    *("--rm", "--network", "none", "--read-only", "--cap-drop", "ALL", "--user", "12345:12345"),
    *("--security-opt", "no-new-privileges"),
]


def agent_image() -> str:
    """The image of the agent guest, as this checkout makes it."""
    return _image("agent")


def shell_image() -> str:
    """The image of the shell guest, as this checkout makes it."""
    return _image("shell")


@cache
def _image(role: str) -> str:
    if shutil.which("docker") is None:
        pytest.skip("there is no command `docker`")
    with (Path(tempfile.gettempdir()) / "oxydra-test-images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once would build the same
        done = build_images("--only", role, "tests")
    if "is here." in done.stderr:
        pytest.skip(done.stderr.strip())  # no mmdebstrap and no debootstrap
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r" = (\S+),", done.stdout)
    assert found is not None, done.stdout
    return found[1]


def build_images(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run guest/build-images as a user would."""
    return subprocess.run(
        [sys.executable, str(ROOT / "guest" / "build-images"), *arguments],
        env=REAL_ENVIRONMENT | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1800,
    )


def run(
    image: str, *command: str, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a program in that image with as few rights as a guest has."""
    given = ["docker", "run", *LOCKED_DOWN, *options, "--entrypoint", command[0], image]
    return subprocess.run(
        [*given, *command[1:]],
        env=REAL_ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
