"""The Autobahn test suite's cases against the gateway's I/O: 1 to 7, 9 and 10, those that apply.

(8 does not exist, 12 and 13 are about compression, which is not offered.) The suite itself needs
Python 2; `kosoku` runs its case files. Skipped where that can't be installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest

from oxydra.gateway.connection import ServerLimits, frame
from tests.gateway_peer import BINARY, Gate, Recorder

pytestmark = pytest.mark.slow

RUNNER = "kosoku==0.1.0"
CASES = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*")
PASSED = {"OK", "NON-STRICT", "INFORMATIONAL"}


class Echo(Recorder):
    """Lets everybody in, and sends back what comes."""

    def authorize(self, request):
        return "anybody"

    def on_open(self, conn):
        pass

    def on_text(self, conn, text):
        conn.send(text.encode())

    def on_binary(self, conn, data):
        conn.send_frame(frame(BINARY, data))

    def on_close(self, conn):
        pass


@pytest.fixture
def runner(tmp_path, real_environment):
    """The program that runs the cases."""
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    done = subprocess.run(
        [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", RUNNER],
        capture_output=True,
        text=True,
        timeout=900,
        env=real_environment,
    )
    if done.returncode:
        pytest.skip(f"{RUNNER} can't be installed: {done.stderr.strip()[-300:]}")
    return folder / "bin" / "kosoku"


def test_no_case_fails(runner, tmp_path):
    gate = Gate(ServerLimits(max_queue=64 << 20), Echo())
    try:
        chosen = [word for case in CASES for word in ("-i", case)]
        out = tmp_path / "out"
        done = subprocess.run(
            [str(runner), *chosen, "-o", str(out), f"ws://127.0.0.1:{gate.port}/ws"],
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert (out / "index.json").exists(), (done.stdout, done.stderr)
        ((_agent, cases),) = json.loads((out / "index.json").read_text()).items()
        bad = {
            name: result
            for name, result in cases.items()
            if not {result["behavior"], result["behaviorClose"]} <= PASSED
        }
        assert not bad
        assert len(cases) > 290
        assert Counter(result["behavior"] for result in cases.values())["OK"] > 280
    finally:
        gate.stop()
