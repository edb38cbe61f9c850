"""The images of the microVM tier for tests marked `microvm`: built once for the same inputs.

They are kept, with the templates that are made of them, in a cache of the tests' own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import REAL_ENVIRONMENT, ROOT

CACHE = Path(tempfile.gettempdir()) / f"oxydra-test-microvm-{os.geteuid()}"


@cache
def machine_cache() -> Path:
    """Where they are, as XDG_CACHE_HOME; the first call may take a minute."""
    CACHE.mkdir(mode=0o700, exist_ok=True)
    assert CACHE.stat().st_uid == os.geteuid()
    done = build_microvm()
    if "There is no " in done.stderr:
        pytest.skip(done.stderr.strip())  # no mmdebstrap or no squashfs-tools
    assert done.returncode == 0, done.stdout + done.stderr
    return CACHE


@contextmanager
def with_machines() -> Iterator[None]:
    """Have this process find them."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(machine_cache())
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


def build_microvm(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run guest/build-microvm as a user would."""
    return subprocess.run(
        [sys.executable, str(ROOT / "guest" / "build-microvm"), *arguments],
        env=REAL_ENVIRONMENT | {"XDG_CACHE_HOME": str(CACHE)} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1800,
    )
