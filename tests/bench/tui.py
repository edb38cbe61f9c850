"""`python -m tests.bench.tui`: the terminal UI on a pseudo-terminal, as a person would meet it.

The program is a process of its own; its gateway is the scripted one of the tests, in this process.
A figure in milliseconds ends when the bytes that show it have come out of the terminal.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path

from tests.bench import proc
from tests.conftest import ROOT
from tests.fake_gateway import FakeGateway, Turn

MESSAGES = 5000
KEYS = 150  # typed while text streams
PAUSE = 0.04  # seconds between them
DELTAS = 200  # a second
REST_SECONDS = 5.0
COLUMNS, ROWS = 100, 40
PATIENCE = 20.0
DRAW = b"\x1b[?2026h"  # begins each draw
PROGRAM = (
    "import sys; from oxydra.tui.app import main; "
    "sys.exit(main(sys.argv[1], 'alice', open(sys.argv[2]).read()))"
)
ANSWER = "Answer **{}** with `code`, and\n\n- one thing\n- [another](https://x.example/{})\n"


class Terminal:
    """The program and the pseudo-terminal that it runs on."""

    def __init__(self, gateway: FakeGateway, home: Path) -> None:
        self.master, slave = pty.openpty()
        size = struct.pack("HHHH", ROWS, COLUMNS, 0, 0)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
        token = home / "token"
        token.write_text(gateway.token)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, gateway.endpoint, str(token)],
            stdin=slave,
            stdout=slave,
            cwd=ROOT,
            env={**os.environ, "HOME": str(home), "TERM": "xterm-256color"},
        )
        os.close(slave)
        self.draws: list[float] = []

    def press(self, data: bytes) -> float:
        os.write(self.master, data)
        return time.monotonic()

    def until(self, wanted: bytes) -> float:
        """Read until `wanted` has come; when that was."""
        seen = b""
        end = time.monotonic() + PATIENCE
        while wanted not in seen:
            if not select.select([self.master], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"{wanted!r} did not come; last: {seen[-300:]!r}")
            seen = seen[-4000:] + self._read()
        return time.monotonic()

    def drain(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self.master], [], [], left)[0]:
                self._read()

    def _read(self) -> bytes:
        try:
            data = os.read(self.master, 1 << 16)
        except OSError:  # the program has ended
            return b""
        self.draws += [time.monotonic()] * data.count(DRAW)
        return data

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.drain(0.5)
        self.process.wait(PATIENCE)
        os.close(self.master)


def main() -> None:
    stop = threading.Event()

    def stream(turn: Turn) -> None:
        began, number = time.monotonic(), 0
        while not stop.wait(max(0.0, began + number / DELTAS - time.monotonic())):
            number += 1
            turn.delta(f"word{number} ")
        turn.complete("The end.")

    with tempfile.TemporaryDirectory() as home, FakeGateway() as gateway:
        gateway.on_turn = stream
        big = gateway._new_room("big")
        for number in range(MESSAGES // 2):
            turn = f"b{number}"
            gateway.record(big, {"role": "user", "content": f"question {number}"}, turn)
            said = ANSWER.format(number, number)
            gateway.record(big, {"role": "assistant", "content": said}, turn)
        terminal = Terminal(gateway, Path(home))
        try:
            print(json.dumps(measured(terminal)))
        finally:
            stop.set()
            terminal.close()


def measured(terminal: Terminal) -> dict[str, float]:
    figures: dict[str, float] = {}
    terminal.until(b"ready")
    terminal.drain(1.0)
    terminal.press(b"/switch big")
    terminal.drain(0.5)
    opened = terminal.press(b"\r")
    figures["tui_open_ms"] = 1000 * (terminal.until(b"question 2499") - opened)

    pid = terminal.process.pid
    terminal.drain(2.0)
    cpu, slept = proc.cpu_ms(pid), proc.wakeups(pid)
    time.sleep(REST_SECONDS)
    figures["tui_rest_cpu_ms"] = proc.cpu_ms(pid) - cpu
    figures["tui_rest_wakeups"] = proc.wakeups(pid) - slept

    pages: list[float] = []
    while len(pages) < 1000:  # to the first message of all
        pressed = terminal.press(b"\x1b[5~")
        drawn = len(terminal.draws)
        while len(terminal.draws) == drawn:
            terminal.until(DRAW)
        pages.append(1000 * (time.monotonic() - pressed))
        if len(pages) % 50 == 0 and at_the_top(terminal):
            break
    figures["tui_page_ms"] = proc.percentile(pages, 0.95)
    terminal.press(b"\x1b")
    terminal.until(b"question 2499")
    figures["tui_rss_mb"] = proc.rss_mb(pid)

    terminal.press(b"go\r")
    terminal.until(b"word100 ")
    terminal.draws.clear()
    cpu, began = proc.cpu_ms(pid), time.monotonic()
    keys: list[float] = []
    typed = b""
    for number in range(KEYS):
        key = b"abcdefghij"[number % 10 : number % 10 + 1]
        if len(typed) == 60:
            terminal.press(b"\x15")
            terminal.drain(0.3)
            typed = b""
        typed += key
        pressed = terminal.press(key)
        keys.append(1000 * (terminal.until(b"[m" + typed + b" ") - pressed))
        terminal.drain(PAUSE)
    figures["tui_key_p50_ms"] = proc.median(keys)
    figures["tui_key_p95_ms"] = proc.percentile(keys, 0.95)
    figures["tui_stream_cpu"] = (proc.cpu_ms(pid) - cpu) / (10 * (time.monotonic() - began))
    figures["tui_draws"] = float(most_in_a_second(terminal.draws))
    return figures


def at_the_top(terminal: Terminal) -> bool:
    """Whether the oldest message is in sight; everything is drawn again for it."""
    terminal.press(b"\x0c")
    seen = b""
    while select.select([terminal.master], [], [], 0.2)[0]:
        seen += terminal._read()
    return b"question 0 " in seen


def most_in_a_second(times: list[float]) -> int:
    first = most = 0
    for last, when in enumerate(times):
        while times[first] <= when - 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most


if __name__ == "__main__":
    main()
