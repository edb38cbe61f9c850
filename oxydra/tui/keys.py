"""What a terminal sends, as keys. Pure.

`KeyDecoder` is fed whatever was read, however it was cut, and answers with keys. It knows the
sequences of xterm and its kin (ECMA-48 control sequences, with xterm's modifier parameter), the
`CSI u` form for modified keys, and the markers of bracketed paste. Anything unknown is swallowed,
so that no answer of a terminal ends up in somebody's message.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PASTE_START = "\x1b[200~"
PASTE_END = "\x1b[201~"
ESCAPE_DELAY = 0.05  # seconds after which a lone escape is the key of that name
PASTE_DELAY = 2.0  # seconds after which a paste whose end never came is taken as it is

_LETTERS = {
    "A": "up",
    "B": "down",
    "C": "right",
    "D": "left",
    "F": "end",
    "H": "home",
    "Z": "shift-tab",
}
_NUMBERS = {
    "1": "home",
    "2": "insert",
    "3": "delete",
    "4": "end",
    "5": "pageup",
    "6": "pagedown",
    "7": "home",
    "8": "end",
}
_CODES = {9: "tab", 13: "enter", 27: "escape", 127: "backspace"}
_CONTROLS = {"\r": "enter", "\n": "ctrl-j", "\t": "tab", "\x7f": "backspace", "\x08": "backspace"}
_MODIFIERS = ((4, "ctrl-"), (2, "alt-"), (1, "shift-"))  # bits of xterm's parameter less one

_CSI = re.compile(r"\x1b\[([0-?]*)([ -/]*)([@-~])")
_CSI_BEGUN = re.compile(r"\x1b\[[0-?]*[ -/]*\Z")
_STRING = re.compile(r"\x1b[]P_^X].*?(?:\x07|\x1b\\)", re.DOTALL)  # OSC, DCS, APC, PM, SOS
_PLAIN = re.compile(r"[^\x00-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class Key:
    """A key press: `name` is `text`, `paste`, or a key with its modifiers, such as `alt-enter`.

    `text` is what was typed or pasted; pasted line ends are newlines.
    """

    name: str
    text: str = ""


class KeyDecoder:
    """Turns input, cut anywhere, into keys."""

    def __init__(self) -> None:
        self._pending = ""

    @property
    def patience(self) -> float | None:
        """Seconds to wait for the rest of what is pending before `flush`; None if nothing is."""
        if not self._pending:
            return None
        return PASTE_DELAY if self._pending.startswith(PASTE_START) else ESCAPE_DELAY

    def feed(self, text: str) -> list[Key]:
        """The keys that are complete.

        Some terminals do not mark what is pasted: an Enter with more text right behind it in the
        same input is a new line, not the wish to send.
        """
        keys: list[Key] = []
        text = self._pending + text
        at = 0
        while at < len(text):
            end, key = self._next(text, at)
            if end == at:
                break
            if key is not None:
                keys.append(key)
            at = end
        self._pending = text[at:]
        for i in range(len(keys) - 1):
            if keys[i].name == "enter" and keys[i + 1].name in ("text", "enter"):
                keys[i] = Key("newline")
        return keys

    def flush(self) -> list[Key]:
        """What is pending as it is: nothing more came within `patience`."""
        pending, self._pending = self._pending, ""
        if pending.startswith(PASTE_START):
            return [_pasted(pending[len(PASTE_START) :])]
        return [Key("escape")] if pending == "\x1b" else []

    def _next(self, text: str, at: int) -> tuple[int, Key | None]:
        """The key that begins at `at` and where it ends; `at` itself if it is not complete."""
        plain = _PLAIN.match(text, at)
        if plain:
            return plain.end(), Key("text", plain.group())
        char = text[at]
        if char != "\x1b":
            return at + 1, _control(char)
        if text.startswith(PASTE_START, at):
            end = text.find(PASTE_END, at)
            if end < 0:
                return at, None
            return end + len(PASTE_END), _pasted(text[at + len(PASTE_START) : end])
        rest = text[at + 1 : at + 2]
        if rest == "":
            return at, None
        if rest == "[":
            return _csi(text, at)
        if rest == "O":
            if at + 2 >= len(text):
                return at, None
            name = _LETTERS.get(text[at + 2])
            return at + 3, Key(name) if name else None
        if rest in "]P_^X":
            string = _STRING.match(text, at)
            return (string.end(), None) if string else (at, None)
        if rest == "\x1b":
            return at + 1, Key("escape")
        if _PLAIN.match(rest):
            return at + 2, Key(f"alt-{rest}")
        control = _control(rest)
        return at + 2, Key(f"alt-{control.name}") if control else None


def _csi(text: str, at: int) -> tuple[int, Key | None]:
    if text.startswith("\x1b[[", at):  # a function key of the Linux console
        return (at + 4, None) if at + 3 < len(text) else (at, None)
    sequence = _CSI.match(text, at)
    if sequence is None:
        # Incomplete, or no control sequence at all: then only its first two characters go.
        return (at, None) if _CSI_BEGUN.match(text, at) else (at + 2, None)
    numbers = sequence.group(1).split(";")
    final = sequence.group(3)
    modifier = numbers[1] if len(numbers) > 1 else ""
    if final in _LETTERS:
        name = _LETTERS[final]
    elif final == "~" and numbers[0] == "27" and len(numbers) == 3:
        name = _code(numbers[2])
    elif final == "~":
        name = _NUMBERS.get(numbers[0], "")
    elif final == "u":
        name = _code(numbers[0])
    else:
        name = ""
    return sequence.end(), Key(_modified(name, modifier)) if name else None


def _code(number: str) -> str:
    """The key of a Unicode code point in decimal."""
    code = int(number) if number.isdigit() else 0
    if code in _CODES:
        return _CODES[code]
    return chr(code) if 0x20 < code < 0x7F else ""


def _modified(name: str, parameter: str) -> str:
    bits = int(parameter.partition(":")[0] or 1) - 1 if parameter[:1].isdigit() else 0
    return "".join(prefix for bit, prefix in _MODIFIERS if bits & bit) + name


def _control(char: str) -> Key | None:
    name = _CONTROLS.get(char)
    if name is None and "\x01" <= char <= "\x1a":
        name = "ctrl-" + chr(ord(char) + 0x60)
    return Key(name) if name else None


def _pasted(text: str) -> Key:
    return Key("paste", text.replace("\r\n", "\n").replace("\r", "\n"))
