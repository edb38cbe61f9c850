"""How long a shell guest takes to start, at each level of the process tier that there is here, and
an agent in a program. `python -m tests.bench.sandbox` prints one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from oxydra import Agent
from tests.bench import proc
from tests.sandbox import missing, sandbox

TIMES = 7
LEVELS = {"bwrap+cage": "sandbox_bwrap_ms", "cage": "sandbox_cage_ms"}


def main() -> int:
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="oxydra-bench-") as folder:
        os.chmod(folder, 0o711)
        for number, (level, name) in enumerate(LEVELS.items()):
            if missing(level):
                continue
            place = Path(folder, str(number))
            place.mkdir()
            found = []
            for _ in range(TIMES):
                began = time.monotonic()
                with sandbox(place, level) as box:
                    box.text("true")
                    found.append((time.monotonic() - began) * 1000)
            figures[name] = proc.median(found)
        found = []
        for _ in range(TIMES):
            began = time.monotonic()
            with Agent(Path(folder, "agent")):
                found.append((time.monotonic() - began) * 1000)
        figures["library_open_ms"] = proc.median(found)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
