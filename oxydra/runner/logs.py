"""The logs of one user's daemon, read back: the runner's, the agent guest's, the shell guest's.

The files can be written by a guest and so are hostile: they are opened as regular files with one
name, and what one answer may hold is bounded. The runner answers `logs` with this, without one the
command reads the files itself. No thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from oxydra.errors import UsageError
from oxydra.runner.logfiles import older
from oxydra.runner.workspace import Workspace, open_regular
from oxydra.types import Json

FILES = {"runtime": "runtime.log", "shell": "shell.log", "runner": "runner.log"}
ROLES = (*FILES, "all")
MAX_READ = 400 << 10  # bytes of one file in one answer: escaped and with the rest it fits a frame
MAX_LINES = 2000  # of one file in one answer
MAX_LINE = 8 << 10  # characters
RECORD = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) ([A-Z]+) ")


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a file. What begins no record, like a stack trace, has the time and level of the
    record before it; `time` is UTC as ISO 8601, empty if there is none.
    """

    role: str
    time: str
    level: str
    text: str


Cursor = dict[str, list[int]]
"""By role, the inode and offset up to which a file was read, and the inode of the one before it:
another one says that the file was turned over since.
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """Lines in the order of their times; `after` is where to go on, `more` that there is more."""

    lines: list[LogLine]
    after: Cursor
    more: bool = False

    def to_json(self, clean: Callable[[str], str] = str) -> Json:
        """`clean` is applied to every text."""
        rows = [{**asdict(line), "text": clean(line.text)} for line in self.lines]
        return {"lines": rows, "after": self.after, "more": self.more}

    @classmethod
    def from_json(cls, payload: Json) -> Answer:
        lines = [LogLine(**row) for row in payload["lines"]]
        return cls(lines, payload["after"], payload["more"])


def read(
    workspace: Workspace,
    role: str = "all",
    *,
    tail: int = MAX_LINES,
    since: str = "",
    after: Cursor | None = None,
) -> Answer:
    """The last `tail` lines not older than `since`, or with `after` what came behind it.

    Raises `UsageError` for a role that there is none of.
    """
    if role not in ROLES:
        raise UsageError(f"There is no log {role[:32]!r}.", remedy=f"Known: {', '.join(ROLES)}.")
    lines: list[LogLine] = []
    cursor: Cursor = {}
    more = False
    for name in FILES if role == "all" else (role,):
        try:
            found = _data(workspace, name, (after or {}).get(name), after)
            data, start, inodes, size, before = found
        except FileNotFoundError:
            continue
        except OSError as error:
            if after is None:
                text = f"{FILES[name]} is not read: {error.strerror}."
                lines.append(LogLine(name, "", "ERROR", text))
            continue
        if before:
            rows, used = _split(before + data, whole=True)[0], len(data)
        else:
            rows, used = _split(data, whole=after is None)
        cursor[name] = [inodes[0], start + used, inodes[1]]
        left = after is not None and start + used < size
        more = more or (left and (used > 0 or bool(before)))
        lines += _records(name, rows)
    lines = [line for line in lines if line.time >= since]
    lines.sort(key=lambda line: line.time)
    return Answer(lines if after is not None else lines[max(0, len(lines) - tail) :], cursor, more)


def _data(
    workspace: Workspace, name: str, seen: Sequence[int] | None, after: Cursor | None
) -> tuple[bytes, int, tuple[int, int], int, bytes]:
    """Bytes of a file, the offset they are from, the inodes of the file and of the older one, the
    file's size, and what came before the bytes that is in the older file now.
    """
    before, last = b"", 0
    path = workspace.logs / FILES[name]
    with contextlib.suppress(OSError):
        last = older(path, 1).lstat().st_ino
    descriptor = open_regular(path, os.O_RDONLY)
    with open(descriptor, "rb") as file:
        state = os.fstat(descriptor)
        inodes = state.st_ino, last
        same = seen is not None and seen[0] == state.st_ino
        if after is None:
            start = max(0, state.st_size - MAX_READ)
        elif seen is not None and same and seen[2] == last and 0 <= seen[1] <= state.st_size:
            start = seen[1]
        else:
            start = 0  # a new file, or it was turned over since
            if seen is not None and same and seen[1] >= 0:
                before = _older(path, seen[1], MAX_READ)
        if before:
            return b"", 0, inodes, state.st_size, before
        file.seek(start)
        data = file.read(MAX_READ)
        if after is None and start:
            cut = data.find(b"\n") + 1  # the middle of a line
            start, data = start + cut, data[cut:]
        elif after is None:
            before = _older(path, 0, MAX_READ - len(data))
    return data, start, inodes, state.st_size, before


def _older(path: Path, since: int, most: int) -> bytes:
    """What the older file has from the offset `since` on, the last `most` bytes of it in lines."""
    try:
        descriptor = open_regular(older(path, 1), os.O_RDONLY)
    except OSError:
        return b""
    with open(descriptor, "rb") as file:
        start = max(since, os.fstat(descriptor).st_size - most)
        file.seek(start)
        data = file.read(most)
    return data if start == since else data[data.find(b"\n") + 1 :]


def _split(data: bytes, whole: bool) -> tuple[list[bytes], int]:
    """Lines, and how many bytes they are: with `whole` the last ones and one that is not ended,
    else the first ones that are ended.
    """
    rows = data.split(b"\n")
    rest = rows.pop()
    if whole:
        return [*rows, *([rest] if rest else [])][-MAX_LINES:], len(data)
    if not rows and len(data) >= MAX_READ:
        return [rest], len(data)
    rows = rows[:MAX_LINES]
    return rows, sum(len(row) + 1 for row in rows)


def record(text: str) -> Json | None:
    """The record that a line is, where they are written as JSON."""
    if not text.startswith('{"time": "'):
        return None
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    good = isinstance(row, dict) and isinstance(row.get("level"), str)
    return row if good and RECORD.match(f"{row.get('time')} {row['level']} ") else None


def _records(role: str, rows: list[bytes]) -> Iterator[LogLine]:
    time, level = "", ""
    for row in rows:
        text = row.decode("utf-8", "replace")
        if len(text) > MAX_LINE:
            text = f"{text[:MAX_LINE]} … ({len(text) - MAX_LINE} more characters)"
        if match := RECORD.match(text):
            time, level = match.groups()
        elif (found := record(text)) is not None:
            time, level = found["time"], found["level"]
        yield LogLine(role, time, level, text)


def request(payload: Json) -> tuple[str, int, str, Cursor | None]:
    """Role, tail, since and after of a `logs` request. Raises `UsageError`."""
    role, tail = payload.get("role", "all"), payload.get("tail", MAX_LINES)
    since, after = payload.get("since", ""), payload.get("after")
    good = isinstance(role, str) and isinstance(since, str)
    good = good and isinstance(tail, int) and not isinstance(tail, bool) and tail >= 0
    if after is not None:
        good = good and isinstance(after, dict)
        good = good and all(
            isinstance(at, list) and len(at) == 3 and all(isinstance(n, int) for n in at)
            for at in (after.values() if isinstance(after, dict) else ())
        )
    if not good:
        raise UsageError("A request for logs is {role?, tail?, since?, after?}.")
    return role, tail, since, after
