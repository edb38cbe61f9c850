"""The real terminal: its modes, its size, and drawing on it. The only file that knows blessed.

`enter` and `leave` may be called any number of times; after `leave` the terminal is as it was
found. No thread of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import termios
import tty
from collections.abc import Iterator, Mapping
from typing import Any

from oxydra.errors import UsageError
from oxydra.tui.spans import STYLES, Line
from oxydra.tui.view import Screen

# DEC private modes. Terminals that do not know one ignore it.
PASTE_ON, PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"
WRAP_OFF, WRAP_ON = "\x1b[?7l", "\x1b[?7h"
WHEEL_OFF, WHEEL_BACK = "\x1b[?1007s\x1b[?1007l", "\x1b[?1007r"  # or a wheel sends arrows
SYNC_ON, SYNC_OFF = "\x1b[?2026h", "\x1b[?2026l"

ASK_INSTEAD = 'In a script or a pipe, use `oxydra-runner ask "PROMPT"`.'
_COLORS = {  # names of blessed's; where there are 256 colours, `_SHADES` take their place
    "dim": "dim",
    "bold": "bold",
    "italic": "italic",
    "strike": "dim",
    "rule": "dim",
    "code": "cyan",
    "head": "bold_magenta",
    "link": "underline",
    "chosen": "reverse",
    "you": "bold_cyan",
    "oxydra": "bold_magenta",
    "good": "green",
    "bad": "bold_red",
    "warn": "bold_yellow",
}
_SHADES = {  # of xterm's 256, neither too dark for a black nor too light for a white background
    "code": 31,
    "head": 133,
    "you": 32,
    "oxydra": 133,
    "good": 28,
    "bad": 160,
    "warn": 166,
}
_PLAIN = {  # where NO_COLOR is set
    **{style: name for style, name in _COLORS.items() if name in ("dim", "bold", "italic")},
    "link": "underline",
    "chosen": "reverse",
    "head": "bold",
    "you": "bold",
    "oxydra": "bold",
    "bad": "bold",
    "warn": "bold",
}
LINK = "\x1b]8;;{}\x1b\\"  # OSC 8: what follows leads there; nowhere if it is empty
_LINKING = ("TERM_PROGRAM", "KITTY_WINDOW_ID", "WT_SESSION", "KONSOLE_VERSION", "VTE_VERSION")


def knows_links(environ: Mapping[str, str]) -> bool:
    """Whether the terminal is one that knows OSC 8; others might print it."""
    kind, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if program == "tmux":
        version = re.match(r"(\d+)\.(\d+)", environ.get("TERM_PROGRAM_VERSION", ""))
        return version is not None and (int(version[1]), int(version[2])) >= (3, 4)
    if program == "Apple_Terminal" or kind.startswith(("linux", "screen", "vt")):
        return False
    known = kind.startswith(("xterm-kitty", "foot", "alacritty", "xterm-ghostty", "wezterm"))
    return known or any(environ.get(name) for name in _LINKING)


class TerminalScreen:
    """The terminal on standard input and output."""

    def __init__(self) -> None:
        """Raises `UsageError` if there is no terminal that can be drawn on."""
        if not (os.isatty(0) and os.isatty(1)):
            raise UsageError("The terminal UI needs a terminal.", remedy=ASK_INSTEAD)
        import blessed

        # On a stream that is not the standard one, blessed leaves the keyboard to us and asks the
        # terminal nothing when it is made: some terminals would take a second to stay silent.
        self._stream = os.fdopen(os.dup(1), "w")
        with _without("NO_COLOR") as no_color:  # else blessed could not even move the cursor
            terminal: Any = blessed.Terminal(stream=self._stream)
        self._terminal = terminal
        kind = os.environ.get("TERM", "")
        if kind == "dumb" or not terminal.move_xy(0, 0):
            self._stream.close()
            raise UsageError(
                f"This terminal (TERM={kind}) can't be drawn on.",
                remedy=f"Set TERM to what the terminal is, such as xterm-256color. {ASK_INSTEAD}",
            )
        names = _PLAIN if no_color else _COLORS
        self._styles = {
            style: str(getattr(terminal, names[style])) if style in names else ""
            for style in STYLES
        }
        if not no_color and terminal.number_of_colors >= 256:
            for style, shade in _SHADES.items():
                weight = str(terminal.bold) if "bold" in _COLORS[style] else ""
                self._styles[style] = f"{weight}{terminal.color(shade)}"
        self._links = knows_links(os.environ)
        self._found: list[Any] | None = None  # the terminal's settings before `enter`
        self._entered = False
        self._drawn: list[Line] = []

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows; 80 by 24 where the terminal does not know."""
        try:
            size = os.get_terminal_size(1)
        except OSError:
            return 80, 24
        return size.columns or 80, size.lines or 24

    def enter(self) -> None:
        """Take the terminal: raw keys, a screen of our own."""
        if self._found is None:
            self._found = termios.tcgetattr(0)
        tty.setraw(0, termios.TCSADRAIN)
        self._entered = True
        term = self._terminal
        self._write(
            f"{term.enter_fullscreen}{WRAP_OFF}{WHEEL_OFF}{PASTE_ON}{term.normal}{term.clear}"
        )
        self.forget()

    def leave(self) -> None:
        """Give the terminal back as it was found. What was typed and not read is dropped, lest a
        shell run it.
        """
        if not self._entered:
            return
        self._entered = False
        term = self._terminal
        with contextlib.suppress(OSError):  # the terminal may be gone
            self._write(
                f"{SYNC_OFF}{term.normal}{PASTE_OFF}{WHEEL_BACK}{WRAP_ON}{term.normal_cursor}"
                f"{term.exit_fullscreen}"
            )
        if self._found is not None:
            with contextlib.suppress(OSError, termios.error):
                termios.tcsetattr(0, termios.TCSAFLUSH, self._found)

    def close(self) -> None:
        """Leave for good."""
        self.leave()
        with contextlib.suppress(OSError):
            self._stream.close()

    def forget(self) -> None:
        """Draw every line the next time."""
        self._drawn = []

    def ring(self) -> None:
        """Sound the terminal's bell."""
        self._write("\a")

    def draw(self, screen: Screen) -> None:
        """Put `screen` on the terminal; only lines that changed are written."""
        term = self._terminal
        out = [SYNC_ON, term.hide_cursor]
        if len(self._drawn) != len(screen.lines):
            out.append(term.clear)
            self._drawn = [()] * len(screen.lines)
        for row, line in enumerate(screen.lines):
            if line != self._drawn[row]:
                out.append(f"{term.move_xy(0, row)}{term.normal}{term.clear_eol}")
                out.append(self._styled(line))
        if screen.cursor is not None:
            out.append(f"{term.move_xy(*screen.cursor)}{term.normal_cursor}")
        out.append(SYNC_OFF)
        self._drawn = list(screen.lines)
        self._write("".join(out))

    def _styled(self, line: Line) -> str:
        normal = self._terminal.normal
        out = []
        for style, text in line:
            words = style.split(" ")
            on = "".join(self._styles.get(word, "") for word in words)
            if self._links and words[-1].startswith("link="):
                text = f"{LINK.format(words[-1].removeprefix('link='))}{text}{LINK.format('')}"
            out.append(f"{on}{text}{normal}" if on else text)
        return "".join(out)

    def _write(self, text: str) -> None:
        data = memoryview(text.encode("utf-8", "replace"))
        while data:
            try:
                data = data[os.write(1, data) :]
            except BlockingIOError:  # somebody shares the terminal and made it non-blocking
                select.select([], [1], [])


@contextlib.contextmanager
def _without(name: str) -> Iterator[str]:
    """Hide an environment variable inside the block; gives its value."""
    value = os.environ.pop(name, "")
    try:
        yield value
    finally:
        if value:
            os.environ[name] = value
