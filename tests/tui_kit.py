"""What the tests of the terminal UI share: a model that is fed by hand, and a terminal (tmux) in
which a person uses the program. A test file takes the fixtures it needs by name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from oxydra.frames import Frame
from oxydra.tui.client import Link
from oxydra.tui.keys import Key
from oxydra.tui.model import reduce
from oxydra.tui.state import Effect, Event, Remember, Send, State
from oxydra.types import Json
from tests.conftest import ROOT, eventually
from tests.fake_gateway import DEADLINE, FakeGateway

SESSION = {"user_id": "alice", "session_id": "s-main"}


class World:
    """A state and what was asked for on the way to it."""

    def __init__(self) -> None:
        self.state = State("alice", "n")
        self.effects: list[Effect] = []
        self.remembered: list[str] = []

    def feed(self, *events: Event) -> list[Effect]:
        """The effects of these events, keeping what was sent aside."""
        new: list[Effect] = []
        for event in events:
            self.state, effects = reduce(self.state, event)
            new += [e for e in effects if not isinstance(e, Remember)]
            self.remembered += [e.text for e in effects if isinstance(e, Remember)]
        self.effects += new
        return new

    def frame(self, frame_type: str, **payload: Any) -> list[Effect]:
        return self.feed(Frame(frame_type, {"request_id": "", **payload}))

    def turn(self, frame_type: str, turn_id: str, state: str = "running", **more: Any) -> None:
        ref = {"turn_id": turn_id, "state": state}
        self.frame(frame_type, session=SESSION, turn=ref, **more)

    def type(self, text: str) -> list[Effect]:
        """Type `text` and press Enter."""
        return self.feed(Key("text", text), Key("enter"))

    def send(self, text: str) -> str:
        """Send a message; the answer is its turn id."""
        (send,) = self.type(text)
        assert isinstance(send, Send) and send.type == "send_turn"
        turn_id: str = send.payload["turn_id"]
        return turn_id

    def reply(self, send: Effect, frame_type: str, **payload: Any) -> list[Effect]:
        assert isinstance(send, Send)
        return self.frame(frame_type, request_id=send.payload["request_id"], **payload)

    @property
    def shown(self) -> list[tuple[str, str, str]]:
        return [(entry.kind, entry.text, entry.state) for entry in self.state.entries]

    @property
    def texts(self) -> list[str]:
        return [entry.text for entry in self.state.entries]


def sent(effects: Iterable[Effect]) -> list[str]:
    return [effect.type for effect in effects if isinstance(effect, Send)]


def greet(world: World, **more: Any) -> None:
    ack = {"protocol_version": 2, "session": SESSION, "seq": 0, "epoch": "e", **more}
    world.frame("hello_ack", **ack)


def stored(sequence: int, turn_id: str, role: str, content: str, **more: Any) -> Json:
    message = {"role": role, "content": content, **more}
    return {"sequence": sequence, "turn_id": turn_id, "message": message, "created_at": "x"}


def completed(content: str, **usage: Any) -> Json:
    return {"message": {"role": "assistant", "content": content}, "usage": usage or None}


def tool(name: str, state: str, call_id: str = "c1", summary: str = "") -> Json:
    return {"id": call_id, "name": name, "state": state, "summary": summary, "elapsed_ms": 7}


def progress(kind: str, message: str, **more: Any) -> Json:
    return {"kind": {"kind": kind, **more}, "message": message, "turn": 1, "max_turns": 25}


@pytest.fixture
def world() -> World:
    """Connected, in an empty session."""
    world = World()
    greet(world)
    history, health, names = world.feed(Link(True, fresh=True))
    world.reply(history, "session_history", session=SESSION, events=[], more=False)
    world.reply(health, "health_status", healthy=True)
    world.reply(names, "session_list", sessions=[])
    return world


# ------------------------------------------------------------------------------------ the terminal


needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")

PROGRAM = """
import sys
from pathlib import Path
{before}
from oxydra.tui.app import main
sys.exit(main({endpoint!r}, "alice", Path({token!r}).read_text(), {session!r}))
"""


class Tmux:
    """A terminal with a shell in it, and the UI started from that shell."""

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="oxtui-"))  # short: a socket's path is limited
        environment = {k: v for k, v in os.environ.items() if k not in ("TMUX", "NO_COLOR")}
        self.environment = {
            **environment,
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "PS1": "$ ",
            "ENV": "",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        size = ("-x", str(columns), "-y", str(rows))
        self.tmux("new-session", "-d", *size, "sh", "-i")
        self.tmux("set-option", "-g", "remain-on-exit", "on")

    def tmux(self, *words: str) -> str:
        command = ["tmux", "-u", "-S", str(self.folder / "socket"), "-f", "/dev/null", *words]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=DEADLINE
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def close(self) -> None:
        self.tmux("kill-server")
        shutil.rmtree(self.folder)

    # --------------------------------------------------------------------------- what a person does

    def start(self, gateway: FakeGateway, *, before: str = "", session: str | None = None) -> None:
        """Run the UI from the shell; `before` is Python to run first."""
        (self.folder / "token").write_text(gateway.token)
        program = PROGRAM.format(
            before=before,
            endpoint=gateway.endpoint,
            token=str(self.folder / "token"),
            session=session,
        )
        (self.folder / "program").write_text(program)
        run = f'echo $$ >pid; exec {sys.executable} -c "$(cat program)"'
        (self.folder / "run").write_text(run)
        self.type(f"cd {self.folder}; stty -g >before; sh run; echo EXIT=$?; stty -g >after")
        self.keys("Enter")

    def type(self, text: str) -> None:
        self.tmux("send-keys", "-l", text)

    def keys(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def say(self, text: str) -> None:
        self.type(text)
        self.keys("Enter")

    def resize(self, columns: int, rows: int) -> None:
        self.tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def kill(self, number: int) -> None:
        os.kill(int((self.folder / "pid").read_text()), number)

    # --------------------------------------------------------------------------- what a person sees

    @property
    def screen(self) -> str:
        return self.tmux("capture-pane", "-p")

    @property
    def lines(self) -> list[str]:
        return self.screen.splitlines()

    def mode(self, name: str) -> str:
        return self.tmux("display-message", "-p", f"#{{{name}}}").strip()

    def sees(self, wanted: str | Callable[[str], object]) -> str:
        """Wait for a text, or for a screen that `wanted` likes; the answer is that screen."""
        seen = ""

        def there() -> bool:
            nonlocal seen
            seen = self.screen
            return wanted in seen if isinstance(wanted, str) else bool(wanted(seen))

        try:
            eventually(there, DEADLINE)
        except BaseException:
            print(f"waited for {wanted!r}; the screen:\n{self.screen}")
            raise
        return seen

    def gone(self, exit_code: int) -> None:
        """The UI has ended so, and the terminal is as it was."""
        self.sees(f"EXIT={exit_code}\n")
        eventually((self.folder / "after").exists, what="stty's answer")
        eventually(lambda: (self.folder / "after").read_text(), what="stty's answer")
        settings = [(self.folder / name).read_text() for name in ("before", "after")]
        assert settings[0] == settings[1]
        modes = [self.mode(m) for m in ("alternate_on", "cursor_flag", "wrap_flag")]
        assert modes == ["0", "1", "1"]


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway() as gateway:
        yield gateway


@pytest.fixture
def terminal() -> Iterator[Tmux]:
    terminal = Tmux()
    yield terminal
    terminal.close()
