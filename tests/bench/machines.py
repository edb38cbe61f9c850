"""The microVM tier: from `start` to the first answer, and what a machine's memory costs.

`python -m tests.bench.machines` prints one JSON object, an empty one where there is no QEMU. Memory
is PSS, without those pages of a machine's template that it has not written to, which are there once
for all that start from it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import proc
from tests.sandbox import missing
from tests.test_daemon import Home
from tests.test_microvm import LEVEL, in_machines

TIMES = 7
TURNS = 35
WORDS = "Some words about nothing at all, as people write them. " * 8
MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)")


def beyond_template_mb(pid: int) -> float:
    """The memory of a QEMU, without what it only reads of its template (MiB)."""
    kib, template = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if found := MAPPING.fullmatch(line):
            template = "/templates/" in found[1]
        elif line.startswith("Anonymous:" if template else "Pss:"):
            kib += int(line.split()[1])
    return kib / 1024


def main() -> int:
    if why := missing(LEVEL):
        print(f"machines: {why}", file=sys.stderr)
        print("{}")
        return 0
    with tempfile.TemporaryDirectory(prefix="oxydra-bench-") as folder:
        os.chmod(folder, 0o711)
        home = Home(Path(folder))
        home.init()
        in_machines(home)
        ready, answered = [], []
        try:
            for number in range(TIMES + 1):
                began = time.monotonic()
                home.run("start", "--detach")
                started = time.monotonic()
                home.run("ask", "hello")
                if number:  # the first makes the templates
                    ready.append(started - began)
                    answered.append(time.monotonic() - began)
                if number < TIMES:
                    home.run("stop")
            for number in range(TURNS):
                home.run("ask", f"{number}. {WORDS}")
            status = home.status()
            figures = {
                "microvm_ready_s": proc.median(ready),
                "microvm_answer_s": proc.median(answered),
                "microvm_agent_mb": beyond_template_mb(status["guest_pid"]),
                "microvm_shell_mb": beyond_template_mb(status["shell_pid"]),
            }
        finally:
            home.command("stop")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
