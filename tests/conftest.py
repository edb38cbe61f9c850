"""What every test stands on: a home of its own, a clean environment, no leaked thread.

Fixtures and helpers for all tests; those of one component stay in its test file. Markers: `slow`
runs with SLOW=1, `docker` where an engine answers, `microvm` where QEMU is installed; what is
skipped says why.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from oxydra.store import Store

ROOT = Path(__file__).resolve().parent.parent
REAL_ENVIRONMENT = dict(os.environ)
HOMES = itertools.count()

settings.register_profile("oxydra", deadline=None, max_examples=60)
settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "oxydra")


# ------------------------------------------------------------------------------------------ markers


def docker_missing() -> str:
    """Why no Docker engine can be used; empty if one answers."""
    path = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(path)
            sock.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return "" if b" 200 " in sock.recv(64) else f"the engine at {path} does not answer"
    except OSError as error:
        return f"no Docker engine at {path}: {error}"


def microvm_missing() -> str:
    """Why no microVM can be tried; empty if QEMU is installed."""
    return "" if shutil.which("qemu-system-x86_64") else "qemu-system-x86_64 is not in PATH"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = "" if os.environ.get("SLOW") == "1" else "slow: set SLOW=1 (make test SLOW=1)"
    probes: dict[str, Callable[[], str]] = {
        "slow": lambda: slow,
        "docker": docker_missing,
        "microvm": microvm_missing,
    }
    verdicts: dict[str, str] = {}
    for item in items:
        for name, probe in probes.items():
            if item.get_closest_marker(name) is None:
                continue
            if name not in verdicts:
                verdicts[name] = probe()
            if verdicts[name]:
                item.add_marker(pytest.mark.skip(reason=verdicts[name]))


# ----------------------------------------------------------------------------------------- fixtures


@pytest.fixture(autouse=True)
def no_leaked_threads() -> Iterator[None]:
    """Fail a test that leaves a thread behind; one that is just ending is waited for."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 60.0
    leaked = []
    for thread in set(threading.enumerate()) - before:
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            leaked.append(thread.name)
    if leaked:
        pytest.fail(f"the test leaked threads: {', '.join(sorted(leaked))}")


@pytest.fixture(autouse=True)
def clean_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A new, empty home; no key, no Oxydra setting and no proxy of the machine's reaches a test."""
    # counted here: `mktemp` looks at all folders there are, which takes a minute of a whole run
    home = tmp_path_factory.getbasetemp() / "homes" / str(next(HOMES))
    home.mkdir(mode=0o700, parents=True)
    for name in os.environ:
        if name.startswith(("OXYDRA_", "XDG_")) or name.upper().endswith(("API_KEY", "_PROXY")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    return home


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty database."""
    store = Store(tmp_path / "oxydra.db")
    yield store
    store.close()


@pytest.fixture
def real_environment() -> dict[str, str]:
    """The environment pytest was started in, for tests that call pip."""
    return dict(REAL_ENVIRONMENT)


# ------------------------------------------------------------------------------------------ helpers


def eventually(predicate: Callable[[], object], timeout: float = 60.0, what: str = "") -> None:
    """Wait until `predicate()` is true; fail the test after `timeout` seconds.

    For what cannot be waited on directly: another process's file, a thread's end.
    """
    deadline = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > deadline:
            pytest.fail(f"not true within {timeout:g} s: {what or predicate}")
        time.sleep(0.005)
