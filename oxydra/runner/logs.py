"""The logs of one user's daemon, read back: the runner's, the agent guest's, the shell guest's.

The files can be written by a guest and so are hostile: they are opened as regular files with one
name, and what one answer may hold is bounded. The runner answers `logs` with this, without one the
command reads the files itself. No thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from oxydra.errors import UsageError
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
"""By role, the inode and offset up to which a file was read."""


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
            data, start, inode, size = _data(workspace, name, (after or {}).get(name), after)
        except FileNotFoundError:
            continue
        except OSError as error:
            if after is None:
                text = f"{FILES[name]} is not read: {error.strerror}."
                lines.append(LogLine(name, "", "ERROR", text))
            continue
        rows, used = _split(data, whole=after is None)
        cursor[name] = [inode, start + used]
        more = more or (after is not None and start + used < size and used > 0)
        lines += _records(name, rows)
    lines = [line for line in lines if line.time >= since]
    lines.sort(key=lambda line: line.time)
    return Answer(lines if after is not None else lines[max(0, len(lines) - tail) :], cursor, more)


def _data(
    workspace: Workspace, name: str, seen: Sequence[int] | None, after: Cursor | None
) -> tuple[bytes, int, int, int]:
    """Bytes of a file, the offset and inode they are from, and the file's size."""
    descriptor = open_regular(workspace.logs / FILES[name], os.O_RDONLY)
    with open(descriptor, "rb") as file:
        state = os.fstat(descriptor)
        if after is None:
            start = max(0, state.st_size - MAX_READ)
        elif seen is not None and seen[0] == state.st_ino and 0 <= seen[1] <= state.st_size:
            start = seen[1]
        else:
            start = 0  # a new file: the old one was set aside
        file.seek(start)
        data = file.read(MAX_READ)
        if after is None and start:
            cut = data.find(b"\n") + 1  # the middle of a line
            start, data = start + cut, data[cut:]
    return data, start, state.st_ino, state.st_size


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


def _records(role: str, rows: list[bytes]) -> Iterator[LogLine]:
    time, level = "", ""
    for row in rows:
        text = row.decode("utf-8", "replace")
        if len(text) > MAX_LINE:
            text = f"{text[:MAX_LINE]} … ({len(text) - MAX_LINE} more characters)"
        if match := RECORD.match(text):
            time, level = match.groups()
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
            isinstance(at, list) and len(at) == 2 and all(isinstance(n, int) for n in at)
            for at in (after.values() if isinstance(after, dict) else ())
        )
    if not good:
        raise UsageError("A request for logs is {role?, tail?, since?, after?}.")
    return role, tail, since, after
