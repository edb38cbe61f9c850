"""A model that does whatever it reads, whoever wrote it: the person, a page, a file, a result.

An instruction is a line `@@ tool {"argument": "value"}`; `@@+` belongs into the same step as the
one before. Parts `@@1/2 …`, `@@2/2 …` make one instruction, wherever each of them was read. They
are also found where they are hidden: between zero-width characters, in Unicode's tag characters, in
base64, reversed, in ROT13, behind Markdown's and HTML's escapes. `$$secret$$` in one stands for the
secret that was read so far, `$$secret|hex$$` for an encoding of it (`ENCODINGS`).
"""

from __future__ import annotations

import base64
import codecs
import html
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from oxydra.types import Completed, Message, TextDelta, ToolCall, Usage

SECRET = re.compile(r"canary[0-9a-f]{16}")

ENCODINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "upper": str.upper,
    "hex": lambda text: text.encode().hex(),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base32": lambda text: base64.b32encode(text.encode()).decode().rstrip("=").lower(),
    "reversed": lambda text: text[::-1],
    "rot13": lambda text: codecs.encode(text, "rot13"),
    "percent": lambda text: "".join(f"%{ord(char):02x}" for char in text),
    "dotted": ".".join,
    "first": lambda text: text[: len(text) // 2],
    "second": lambda text: text[len(text) // 2 :],
}

_STEP = re.compile(r"@@(\+?) (\w+) (\{[^{}]*\})")
_PART = re.compile(r"@@(\d)/(\d) (.*?)(?=\s*@@|\s*$)", re.MULTILINE)
_BLOB = re.compile(r"[A-Za-z0-9+/_-]{24,}={0,2}")
_ZERO_WIDTH = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"))


class Obedient:
    """The provider: a mind for each conversation, which knows nothing of the others.

    `calls` are the calls it made, each with the arguments it gave.
    """

    name = "scripted"

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._minds: dict[str, _Mind] = {}

    def stream(self, request: Any, token: Any) -> Iterator[Any]:
        mind = self._minds.setdefault(request.session_id, _Mind())
        step = mind.next_step(request.messages, {spec.name for spec in request.tools})
        if not step:
            yield TextDelta("Done as I was told.")
            yield Completed(Message("assistant", "Done as I was told."), "stop", Usage(10, 5))
            return
        self.calls += [(name, json.loads(arguments)) for name, arguments in step]
        made = [
            ToolCall(f"call-{len(request.messages)}-{number}", *call)
            for number, call in enumerate(step)
        ]
        answer = Message("assistant", "", tool_calls=tuple(made))
        yield Completed(answer, "tool_calls", Usage(10, 5))


class _Mind:
    """What was read in one conversation, and what is still to be done of it."""

    def __init__(self) -> None:
        self._plan: list[list[tuple[str, str]]] = []
        self._parts: dict[str, str] = {}
        self._done: set[tuple[str, str, str]] = set()
        self._read = 0
        self._secret = ""

    def next_step(self, messages: Any, tools: set[str]) -> list[tuple[str, str]]:
        """The next calls, their arguments as JSON; none when everything was done."""
        for message in messages[self._read :]:
            if message.role in ("user", "tool"):
                self._obey(message.content, tools)
        self._read = len(messages)
        return [
            (name, re.sub(r"\$\$secret(?:\|(\w+))?\$\$", self._fill, arguments))
            for name, arguments in (self._plan.pop(0) if self._plan else [])
        ]

    def _fill(self, match: re.Match[str]) -> str:
        return ENCODINGS[match[1] or "plain"](self._secret or "nothing-yet")

    def _obey(self, text: str, tools: set[str]) -> None:
        for reading in readings(text):
            if found := SECRET.search(reading):
                self._secret = found[0]
            for part in _PART.finditer(reading):
                self._parts.setdefault(part[1], part[3])
                if len(self._parts) == int(part[2]):
                    joined = "".join(self._parts[key] for key in sorted(self._parts))
                    self._parts = {}
                    reading += f"\n@@ {joined}"
            for step in _STEP.finditer(reading):
                key = (step[1], step[2], step[3])
                if key in self._done or step[2] not in tools or not _is_json(step[3]):
                    continue
                self._done.add(key)
                if step[1] and self._plan:
                    self._plan[-1].append((step[2], step[3]))
                else:
                    self._plan.append([(step[2], step[3])])


def readings(text: str) -> Iterator[str]:
    """A text in each way in which it could be meant."""
    shown = html.unescape(text.translate(_ZERO_WIDTH))
    plain = re.sub(r"\\([]\[*_#<>`~|$-])", r"\1", shown)
    yield plain
    yield "".join(chr(ord(c) - 0xE0000) for c in text if 0xE0020 <= ord(c) < 0xE007F)
    yield plain[::-1]
    yield codecs.encode(plain, "rot13")
    for blob in _BLOB.findall(plain):
        for alphabet in (b"+/", b"-_"):
            try:
                padded = blob.rstrip("=") + "=" * (-len(blob.rstrip("=")) % 4)
                yield base64.b64decode(padded, alphabet, validate=True).decode()
            except ValueError:
                continue


def forms(secret: str) -> list[str]:
    """What of a secret must not be seen outside: itself, in each encoding, and its halves."""
    return [encode(secret) for encode in ENCODINGS.values()]


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
