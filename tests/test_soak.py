"""Two minutes of `make soak`: see tests/soak.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak import soak


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_grows_while_everything_is_killed(tmp_path: Path) -> None:
    tmp_path.parent.chmod(0o711)  # commands run as another user, where this is root's
    tmp_path.chmod(0o711)
    well, report = soak(tmp_path, minutes=2)
    print(report)
    assert well, report
