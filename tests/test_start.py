"""Both guests start beside one another where a tier says beforehand how well commands will be
caged; what comes of it when that was wrong.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import pytest

from oxydra import config
from oxydra.errors import OxydraError
from oxydra.runner.daemon import Runner
from oxydra.runner.settings import from_config
from oxydra.threads import Service
from oxydra.tiers.base import GuestSpec, ShellSpec
from oxydra.tiers.process import ProcessTier
from tests.conftest import eventually
from tests.sandbox import missing
from tests.test_daemon import Home

LEVEL = "bwrap+cage" if not missing("bwrap+cage") else "cage"
WAIT = 60.0


class Promising(ProcessTier):
    """The process tier, but that it says what it will come to. What it starts waits until the other
    is being started too.
    """

    def __init__(self, level: str, trouble: str = "") -> None:
        self.shell_level = level
        self._trouble = trouble
        self._together = threading.Barrier(2)
        self.pids: list[int] = []

    def start(self, spec: GuestSpec):
        if not self.pids:
            self._together.wait(WAIT)
        guest = super().start(spec)
        self.pids.append(guest.pid)
        return guest

    def start_shell(self, spec: ShellSpec):
        self._together.wait(WAIT)
        if self._trouble:
            raise OxydraError(self._trouble, code="shell_unavailable")
        return super().start_shell(spec)


@contextlib.contextmanager
def running(home: Home, tier: ProcessTier) -> Iterator[None]:
    runner = Runner(from_config(config.load(home.folder, None)), tier)
    ready = threading.Event()
    service = Service(
        "runner",
        lambda _service: runner.run(on_ready=lambda _endpoint: ready.set()),
        wake=lambda: runner.stop("the test ends"),
    ).start()
    try:
        assert ready.wait(2 * WAIT)
        yield
    finally:
        service.stop(WAIT)
        assert not service.alive


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path)
    home.init()
    return home


def reasons(status: dict) -> list[str]:
    return sorted(row["code"] for row in status["startup_status"]["degraded_reasons"])


def test_they_start_beside_one_another_and_status_is_as_if_they_had_not(home):
    with running(home, ProcessTier()):
        before = home.status()
    tier = Promising(before["startup_status"]["sandbox_level"])
    with running(home, tier):
        after = home.status()
        assert home.run("ask", "hello")
    assert len(tier.pids) == 1 and after["guest_restarts"] == 0
    assert before["startup_status"]["shell_available"]
    assert after["startup_status"] == before["startup_status"]


@pytest.mark.parametrize(
    ("tier", "level"),
    [
        (Promising(LEVEL, trouble="Nothing can cage it."), "none"),
        (Promising("container+cage"), LEVEL),
    ],
)
def test_an_agent_that_was_made_for_another_shell_is_made_again(home, tier, level):
    with running(home, tier):
        status = home.status()
        said = status["startup_status"]
        assert said["sandbox_level"] == level
        assert said["shell_available"] is (level != "none")
        assert ("shell_unavailable" in reasons(status)) is (level == "none")
        first, second = tier.pids
        assert status["guest_pid"] == second
        # that it was ended is no reason to start it a third time
        assert status["guest_restarts"] == 0
        assert home.run("ask", "hello")
        assert home.status()["guest_pid"] == second
    for pid in (first, second):
        eventually(lambda pid=pid: not os.path.exists(f"/proc/{pid}"))
