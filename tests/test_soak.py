"""Two minutes of `make soak`, and one in containers, where the engine is killed too: see
tests/soak.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docker_engine import Engine
from tests.soak import soak


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tmp_path.parent.chmod(0o711)  # commands run as another user, where this is root's
    tmp_path.chmod(0o711)
    return tmp_path


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_grows_while_everything_is_killed(place: Path) -> None:
    well, report = soak(place, minutes=2)
    print(report)
    assert well, report


@pytest.mark.slow
@pytest.mark.docker
def test_nothing_is_lost_when_the_container_engine_is_killed_as_well(place: Path) -> None:
    with Engine() as engine:
        well, report = soak(place, minutes=1, engine=engine)
    print(report)
    assert well, report
