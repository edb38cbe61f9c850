"""The terminal UI as a program: one loop over the keyboard, the gateway's events and signals.

The loop runs on the caller's (main) thread; the client's thread hands it frames through a bounded
queue and a pipe that wakes `select`. Signal handlers only note the signal: Python runs them on the
main thread, and the pipe wakes the loop. At rest nothing wakes. Whatever ends the loop, the
terminal is given back first.
"""

from __future__ import annotations

import codecs
import contextlib
import logging
import os
import queue
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from oxydra.errors import NoDaemonError, OxydraError
from oxydra.tui import markdown, transcript
from oxydra.tui.attach import Paths
from oxydra.tui.client import GatewayClient, Locate
from oxydra.tui.keys import KeyDecoder
from oxydra.tui.model import reduce
from oxydra.tui.past import Past, place
from oxydra.tui.screen import TerminalScreen
from oxydra.tui.state import (
    Bell,
    Complete,
    Edited,
    Effect,
    Event,
    Exit,
    OpenEditor,
    Remember,
    Repaint,
    Resolve,
    Scroll,
    Send,
    State,
    Suspend,
    Tick,
    Told,
    Write,
)
from oxydra.tui.view import View

QUEUE = 4096  # events that may wait; then the gateway's frames wait in its own, bounded outbox
READ = 1 << 20  # bytes of input taken at once
LEAVING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
OTHERS = (signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)


def main(
    endpoint: str,
    user_id: str,
    token: str,
    session_id: str | None = None,
    *,
    new_session: bool = False,
    locate: Locate | None = None,
    shared: Path | None = None,
) -> int:
    """Run the terminal UI until the person leaves; the answer is the exit code.

    Without `session_id` the gateway gives the user's most recent session, or with `new_session` a
    new one. `locate` is asked for endpoint and token when the connection has to be made again.
    `shared` is the workspace's folder for the model, where it is on this machine. What keeps the UI
    from starting is said on standard error.
    """
    try:
        app = App(endpoint, user_id, token, session_id, new_session, locate, shared)
    except OxydraError as error:
        print(f"oxydra-tui: {error}", file=sys.stderr)
        return error.exit_code
    try:
        return app.run()
    except OxydraError as error:
        print(f"oxydra-tui: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # before the loop took the signals over
        return 128 + signal.SIGINT
    finally:
        app.close()


class Pace:
    """When to draw: never more than 30 times in a second, and what a key did without delay.

    Streamed text is drawn at most every `STREAM` seconds, which leaves room for keys.
    """

    RATE = 28.0  # draws a second in the long run
    BURST = 2.0  # draws saved up
    STREAM = 0.05

    def __init__(self) -> None:
        self._saved = self.BURST
        self._at = self._last = float("-inf")

    def wait(self, now: float, urgent: bool) -> float:
        """Seconds until a draw is due."""
        budget = (1.0 - self._budget(now)) / self.RATE
        return max(0.0, budget, 0.0 if urgent else self._last + self.STREAM - now)

    def drew(self, now: float) -> None:
        self._saved = self._budget(now) - 1.0
        self._at = self._last = now

    def _budget(self, now: float) -> float:
        return min(self.BURST, self._saved + (now - self._at) * self.RATE)


class App:
    """Wires terminal, client, model and view together."""

    def __init__(
        self,
        endpoint: str,
        user_id: str,
        token: str,
        session_id: str | None,
        new_session: bool = False,
        locate: Locate | None = None,
        shared: Path | None = None,
    ) -> None:
        """Raises `UsageError` if there is no terminal."""
        self.screen = TerminalScreen()
        self.state = State(user_id, uuid.uuid4().hex[:16])
        self._paths = Paths(shared)
        self._past = Past(place(user_id))
        self.view = View()
        self.pace = Pace()
        self._keys = KeyDecoder()
        self._text = codecs.getincrementaldecoder("utf-8")("replace")
        self._typed_at = 0.0  # when input that is not a whole key came
        self._events: queue.Queue[Event | BaseException] = queue.Queue(QUEUE)
        self._signals: deque[int] = deque()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._dirty = True  # something is to be drawn
        self._urgent = True  # and a person waits for it
        self._told: set[str] = set()  # what went wrong and was said
        self._exit: int | None = None
        self._closing = False
        self.client = GatewayClient(
            endpoint,
            token,
            user_id,
            on_frame=self._hand_over,
            on_link=self._hand_over,
            on_death=self._hand_over,
            session_id=session_id,
            new_session=new_session,
            locate=locate,
        )

    def run(self) -> int:
        """Raises what keeps the client from connecting."""
        self.client.connect()
        with self._telling("What you sent before can't be read"):
            editor = replace(self.state.editor, history=self._past.load())
            self.state = replace(self.state, editor=editor, seen=self._past.seen())
        with _held_logs(), self._handling_signals():
            try:
                self.screen.enter()
                while self._exit is None:
                    self._step()
            finally:
                self.screen.leave()
        with contextlib.suppress(OSError):  # said when it was read, or nothing was to be kept
            self._past.saw(transcript.seen(self.state))
        return self._exit

    def close(self) -> None:
        """Give everything back. May be called again."""
        self.screen.close()
        if self._closing:
            return
        self._closing = True
        with contextlib.suppress(queue.Empty):
            while True:  # so that a client which waits for room gets on and ends
                self._events.get_nowait()
        if self.client.close():
            os.close(self._wake_read)
            os.close(self._wake_write)

    # ------------------------------------------------------------------------------------- the loop

    def _step(self) -> None:
        """Wait for something to happen, take it in, and draw."""
        now = time.monotonic()
        ready, _, _ = select.select([0, self._wake_read], [], [], self._patience(now))
        now = time.monotonic()
        self._dispatch(Tick(now))
        if self._wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
        self._take_signals()
        self._take_events()
        if 0 in ready:
            self._take_input(now)
        elif self._keys.patience is not None and now - self._typed_at >= self._keys.patience:
            for key in self._keys.flush():
                self._dispatch(key, urgent=True)
        now = time.monotonic()
        if self._exit is None and self._dirty and not self.pace.wait(now, self._urgent):
            self.screen.draw(self.view.render(self.state, *self.screen.size))
            self.pace.drew(now)
            self._dirty = self._urgent = False
            markdown.warm_up()  # the screen is there, and no answer yet

    def _patience(self, now: float) -> float | None:
        """Seconds until something is due by itself; None at rest."""
        due = []
        if not self._events.empty() or self._signals:
            due.append(0.0)
        if self._dirty:
            due.append(self.pace.wait(now, self._urgent))
        if self._keys.patience is not None:
            due.append(max(0.0, self._typed_at + self._keys.patience - now))
        if self.state.active is not None:  # its clock shows seconds
            due.append(1.0 - (now - self.state.active.since) % 1.0)
        return min(due, default=None)

    def _dispatch(self, event: Event, *, urgent: bool = False) -> None:
        before = self.state
        self.state, effects = reduce(self.state, event)
        if isinstance(event, Tick):
            since = before.active.since if before.active else None
            if since is None or int(before.now - since) == int(event.now - since):
                return
        self._dirty = True
        self._urgent = self._urgent or urgent
        for effect in effects:
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Send(frame_type, payload):
                with contextlib.suppress(NoDaemonError):  # the client says so by itself
                    self.client.send(frame_type, payload)
            case Scroll(pages):
                columns, rows = self.screen.size
                self._dispatch(self.view.scroll(self.state, columns, rows, pages))
            case Exit(code):
                self._exit = code
            case Suspend():
                self._suspend(whole_group=True)
            case Repaint():
                self.screen.forget()
            case Remember(text):
                with self._telling("What you send can't be kept for the next time"):
                    self._past.add(text)
            case Complete(word):
                self._dispatch(self._paths.complete(word))
            case Resolve(text):
                self._dispatch(self._paths.resolve(text))
            case OpenEditor(text):
                self._edit(text)
            case Write(path, text):
                with self._telling(f"{path} can't be written"):
                    self._write(Path(path).expanduser(), text)
            case Bell():
                self.screen.ring()

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """Say an `OSError` of the block to the person, once for each reason."""
        try:
            yield
        except OSError as error:
            said = f"{what}: {error.strerror or error}."
            if said not in self._told:
                self._told.add(said)
                self._dispatch(Told("warning", said))

    def _write(self, path: Path, text: str) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
        self._dispatch(Told("notice", f"Written to {path.absolute()}."))

    def _edit(self, text: str) -> None:
        """Run the person's own editor on `text`, with the terminal given back meanwhile."""
        self.screen.leave()
        noting = signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # nobody would continue us
        try:
            words = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
            with tempfile.TemporaryDirectory(prefix="oxydra-") as folder:
                file = Path(folder) / "message.md"
                file.write_text(text, encoding="utf-8", errors="replace")
                ended = subprocess.run([*words, str(file)], check=False).returncode
                if ended:
                    said = f"{words[0]} ended with {ended}: the message stays as it was."
                    self._dispatch(Told("warning", said))
                else:
                    written = file.read_text(encoding="utf-8", errors="replace")
                    self._dispatch(Edited(written.rstrip("\n")))
        except (OSError, IndexError, ValueError) as error:
            said = f"The editor can't be used: {error}. Set EDITOR to one that there is."
            self._dispatch(Told("warning", said))
        finally:
            signal.signal(signal.SIGTSTP, noting)
            while signal.SIGINT in self._signals:  # it was meant for the editor
                self._signals.remove(signal.SIGINT)
            self.screen.enter()
            self._dirty = self._urgent = True

    # ----------------------------------------------------------------------------------- what comes

    def _hand_over(self, event: Event | BaseException) -> None:
        """On the client's thread: give the loop an event."""
        if self._closing:
            return
        self._events.put(event)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes just as well
            os.write(self._wake_write, b"x")

    def _take_events(self) -> None:
        for _ in range(self._events.qsize()):
            event = self._events.get_nowait()
            if isinstance(event, BaseException):
                raise event
            self._dispatch(event)

    def _take_input(self, now: float) -> None:
        data = b""
        try:
            while len(data) < READ:
                chunk = os.read(0, 1 << 16)
                data += chunk
                if not chunk or not select.select([0], [], [], 0)[0]:
                    break
        except OSError:
            chunk = b""
        self._typed_at = now
        for key in self._keys.feed(self._text.decode(data)):
            self._dispatch(key, urgent=True)
        if not chunk:  # the terminal is gone
            self._exit = 128 + signal.SIGHUP

    # -------------------------------------------------------------------------------------- signals

    @contextlib.contextmanager
    def _handling_signals(self) -> Iterator[None]:
        def note(number: int, _frame: FrameType | None) -> None:
            self._signals.append(number)

        before: dict[int, Any] = {}
        # A signal may reach the client's thread, which would leave `select` asleep: only the
        # interpreter's own write to the pipe wakes it for certain.
        woken = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        try:
            for caught in (*LEAVING, *OTHERS):
                before[caught] = signal.signal(caught, note)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(woken)

    def _take_signals(self) -> None:
        while self._signals:
            number = self._signals.popleft()
            if number in LEAVING:
                self._exit = 128 + number
            elif number == signal.SIGTSTP:
                self._suspend(whole_group=False)
            elif number == signal.SIGWINCH:
                self.screen.forget()  # terminals rearrange what they show
            elif number == signal.SIGCONT:
                self.screen.enter()  # whoever had the terminal may have changed its settings
            self._dirty = self._urgent = True

    def _suspend(self, *, whole_group: bool) -> None:
        """Stop, as Ctrl+Z stops any program: with everybody in its job, the terminal given back.
        Returns when the job is continued.
        """
        self.screen.leave()
        noting = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        try:
            os.kill(0 if whole_group else os.getpid(), signal.SIGTSTP)
        finally:
            signal.signal(signal.SIGTSTP, noting)
        self.screen.enter()
        self._dirty = self._urgent = True


class _Held(logging.Handler):
    """Keeps records until the screen is free for them."""

    def __init__(self) -> None:
        super().__init__()
        self.records: deque[logging.LogRecord] = deque(maxlen=200)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextlib.contextmanager
def _held_logs() -> Iterator[None]:
    """What is logged inside the block is written after it: it would spoil the screen."""
    root, held = logging.getLogger(), _Held()
    before = root.handlers[:]
    root.handlers[:] = [held]
    try:
        yield
    finally:
        root.handlers[:] = before
        for record in held.records:
            root.handle(record)
