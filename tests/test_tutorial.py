"""docs/tutorial.md: every command, as it stands and in its order, by a real shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, eventually

BLOCKS = re.findall(
    r"^```sh\n(.*?)^```", (ROOT / "docs" / "tutorial.md").read_text(), flags=re.M | re.S
)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


@pytest.fixture
def shell(tmp_path: Path):
    """Runs a line in a new folder, with the programs of this checkout in PATH."""
    programs = tmp_path / "programs"
    programs.mkdir()
    runner = programs / "oxydra-runner"
    runner.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/bin/oxydra-runner "$@"\n')
    runner.chmod(0o755)
    here = tmp_path / "assistant"
    here.mkdir(mode=0o711)
    if os.geteuid() == 0:  # commands run as another user
        tmp_path.chmod(0o711)
    env = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(tmp_path), "LANG": "C.UTF-8"}

    def run(line: str) -> str:
        done = subprocess.run(
            ["/bin/sh", "-c", line],
            cwd=here,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        return done.stdout

    run.here = here
    yield run
    subprocess.run([runner, "stop"], cwd=here, env=env, capture_output=True, timeout=300)


def test_every_command_of_the_tutorial(shell) -> None:
    said = {}
    for line in COMMANDS:
        said[line] = shell(line)
        if line == "oxydra-runner schedule run-now report":
            report = shell.here / ".oxydra" / "workspaces" / "alice" / "shared" / "report.txt"
            eventually(report.exists, timeout=300, what="the report")
            assert report.read_text() == "The bell was hung."
    assert "louder than the old one" in said['oxydra-runner ask "read notes.txt"']
    assert "reports are short" in said['oxydra-runner memory search "how long is a report?"']
    assert "17:00" in said["oxydra-runner schedule show report"]
    assert len(COMMANDS) > 12
