"""Every byte that the terminal UI writes, on a pseudo-terminal: no control is a model's choice."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.fake_gateway import DEADLINE, FakeGateway, Turn
from tests.test_tui_markdown import ATTACKS

PROGRAM = (
    "import sys; from oxydra.tui.app import main; "
    "sys.exit(main(sys.argv[1], 'alice', open(sys.argv[2]).read()))"
)
OURS = re.compile(
    r"\x1b\[[0-9;]*m"  # styles
    r"|\x1b\[[0-9;]*[HJK]"  # where to write, and clearing
    r"|\x1b\[\?(?:1049|2004|2026|1007|1|12|25|7)[hlsr](?:\x1b\[22;0;0t|\x1b\[23;0;0t)?"  # modes
    r"|\x1b\[2[23];0;0t"  # the title, kept and put back by the terminal itself
    r"|\x1b\([B0]"  # the character set
    r"|\x1b\]8;;(?:https?://[!-~]*)?\x1b\\"  # links
    r"|\x1b[=>]"
)


class Pty:
    """The program on a pseudo-terminal of 80 by 24, and all that it wrote."""

    def __init__(self, gateway: FakeGateway, folder: Path, **environment: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        (folder / "token").write_text(gateway.token)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, gateway.endpoint, str(folder / "token")],
            stdin=slave,
            stdout=slave,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm-256color", **environment},
        )
        os.close(slave)
        self.written = b""

    def until(self, wanted: bytes, since: int = 0) -> None:
        while wanted not in self.written[since:]:
            assert select.select([self.master], [], [], DEADLINE)[0], self.written[-500:]
            self.written += os.read(self.master, 1 << 16)

    def press(self, keys: bytes, wanted: bytes) -> None:
        """Press keys and read until what they brought is there."""
        since = len(self.written)
        os.write(self.master, keys)
        self.until(wanted, since)

    def end(self) -> str:
        """Leave, and return all that was written."""
        os.write(self.master, b"/quit\r")
        try:
            while select.select([self.master], [], [], DEADLINE)[0]:
                data = os.read(self.master, 1 << 16)
                if not data:
                    break
                self.written += data
        except OSError:  # the terminal's other end is closed
            pass
        assert self.process.wait(DEADLINE) == 0
        os.close(self.master)
        return self.written.decode()


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"VTE_VERSION": "7600"}])
def test_no_attack_becomes_a_control_sequence(tmp_path: Path, environment: dict[str, str]) -> None:
    evil = "\n\n".join(ATTACKS)
    number = 0

    def talk(turn: Turn) -> None:
        nonlocal number
        number += 1
        turn.progress("provider_call", evil)
        turn.emit("reasoning_delta", {"delta": evil})
        turn.tool(evil[:200], evil, "failed", f"c{number}")
        for attack in ATTACKS:
            turn.delta(attack)
        if number == 1:
            turn.complete(f"{evil}\n\nEND{number}")
        else:
            turn.fail(f"{evil}\n\nEND{number}", "internal")

    with FakeGateway() as gateway:
        gateway.on_turn = talk
        gateway.status["degraded_reasons"] = [{"code": "x", "detail": evil}]
        gateway.rooms["s-main"].name = evil
        screen = Pty(gateway, tmp_path, **environment)
        screen.until("●".encode())
        screen.press(b"go\r", b"END1")
        screen.press(b"\x1b[5~", b"reading back")
        screen.press(b"\x0f\x0c", b"reading back")
        screen.press(b"\x1b", b"END1")
        screen.press(b"again\r", b"END2")
        screen.press(b"/sessions\r", b"s-main")
        written = screen.end()
    left = OURS.sub("", written)
    strange = re.findall(r"[^\n]{0,20}[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e][^\n]{0,20}", left)
    assert not [one for one in strange if one.strip("\r")], strange[:5]
    links = re.findall(r"\x1b\]8;;([^\x1b]+)\x1b\\", written)
    assert bool(links) is ("VTE_VERSION" in environment)
    assert all(re.fullmatch(r"https?://[!-~]+", link) for link in links)
