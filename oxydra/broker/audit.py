"""The audit log: what left this machine, where to, and with which verdict; never a body.

JSON lines, each with its number and the SHA-256 of itself and of the line before it, so that a line
that was changed, removed or put in between is found (`verify`). The newest number and hash, and the
number with which the kept rows begin, also stand in a small file of their own, the head: rows that
were cut off at either end are missed by it. One file of at most `MAX_BYTES` and the one before it
are kept; the chain goes on from one to the other. It lies where no guest can write. No thread runs
here; rows may be added from any.

There is no key in it: whoever can write all three files can also write a false chain. What an
earlier `verify` said was the head, kept on another machine, shows that too.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from oxydra.frames import compact
from oxydra.types import Json

log = logging.getLogger(__name__)

NAME = "egress.jsonl"
OLDER = "egress.1.jsonl"
HEAD = "egress.head"
MAX_BYTES = 8 << 20
FIRST = "0" * 64  # what stands in the place of a hash before the first line
LOST = "audit"  # the kind of a row that says that rows before it were missing


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request or connection that has ended. `sent` and `received` are bytes of bodies;
    `status` is an HTTP status, 0 where there was none; `reason` says why it was denied or failed.
    """

    guest: str
    kind: str
    destination: str
    verdict: str  # allowed, denied, failed, cancelled
    route: str = ""
    status: int = 0
    sent: int = 0
    received: int = 0
    milliseconds: int = 0
    reason: str = ""


class Head(NamedTuple):
    """Where the chain ends, and the number of the first row that is kept (0: not known)."""

    number: int = 0
    hash: str = FIRST
    first: int = 1

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"

    def line(self) -> bytes:
        """Always of the same length: it is written over the one before."""
        return f"{self.number:020d} {self.hash} {self.first:020d}\n".encode()


class AuditLog:
    """The log in `folder`, which must exist."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._lock = threading.Lock()
        noted = _noted(folder)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(self._path, flags | os.O_APPEND, 0o600)
        self._head_file = os.open(folder / HEAD, flags, 0o600)
        self._size = os.fstat(self._file).st_size
        self._head, self._begins = Head(), 1  # of this file, the number of its first row
        lost = self._take_up(noted)
        if lost:
            log.error("the audit log is not as it was left: %s", lost)
            self.add(Exchange("runner", LOST, "", "failed", reason=lost))
        else:
            self._note()

    def add(self, exchange: Exchange) -> None:
        """Append a row. What can't be written is logged and does not stop anything."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        with self._lock:
            if self._file < 0:
                return
            values = {name: getattr(exchange, name) for name in Exchange.__slots__}
            row = {"at": now, "number": self._head.number + 1, **values}
            row["hash"] = _hash(self._head.hash, row)
            line = compact(row).encode() + b"\n"
            try:
                if self._size + len(line) > MAX_BYTES:
                    self._turn_over()
                if os.write(self._file, line) < len(line):
                    os.ftruncate(self._file, self._size)  # half a line would be no row
                    raise OSError("the disk is full")
                self._size += len(line)
                self._head = self._head._replace(number=row["number"], hash=row["hash"])
                self._note()
            except OSError as error:
                log.error("the audit log can't be written: %s", error)

    def close(self) -> None:
        """What is added later is dropped; idempotent."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                os.close(self._head_file)
            self._file = -1

    def _note(self) -> None:
        os.pwrite(self._head_file, self._head.line(), 0)

    def _turn_over(self) -> None:
        os.replace(self._path, self._path.with_name(OLDER))
        os.close(self._file)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.open(self._path, flags, 0o600)
        self._size = 0
        self._head = self._head._replace(first=self._begins)
        self._begins = self._head.number + 1

    def _take_up(self, noted: Head | None) -> str:
        """Go on where the log ends; says what is missing there."""
        data = os.pread(self._file, self._size, 0)
        self._size = data.rfind(b"\n") + 1
        os.ftruncate(self._file, self._size)  # a crash cut the last line off: it was never noted
        folder = self._path.parent
        newest = next(rows(folder), {})
        number, ends = _number(newest), str(newest.get("hash", FIRST))
        oldest = _number(_row(data.partition(b"\n")[0]))
        self._begins = oldest or number + 1
        first = noted.first if noted is not None else 0 if (folder / OLDER).exists() else 1
        self._head = Head(number, ends, first)
        if noted is None:
            return "its head is gone" if number else ""
        if noted.number > number:
            self._head = Head(noted.number, ends, first)
            return f"rows {number + 1} to {noted.number} are missing"
        if noted.number and not any(row.get("hash") == noted.hash for row in rows(folder)):
            return f"row {noted.number} is another one"
        return ""


def rows(folder: Path) -> Iterator[Json]:
    """All rows that are kept, newest first; lines that are none are passed over."""
    path = folder / NAME
    for file in (path, folder / OLDER):
        try:
            lines = file.read_bytes().splitlines()
        except OSError:
            continue
        for line in reversed(lines):
            if row := _row(line):
                yield row


def utc_day() -> str:
    """The date, by which rows are dated and ceilings begin anew."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def today(folder: Path) -> tuple[int, int]:
    """Requests, refused ones too, and bytes that crossed since midnight UTC."""
    day = utc_day()
    requests = size = 0
    for row in rows(folder):
        if not str(row.get("at", "")).startswith(day):
            break
        requests += 1
        size += int(row.get("sent", 0)) + int(row.get("received", 0))
    return requests, size


class Verified(NamedTuple):
    """How many rows are as they were written, what is wrong with the next (or "") and where the
    chain ends.
    """

    rows: int
    problem: str
    head: str


def verify(folder: Path, expected: str = "") -> Verified:
    """`expected` is a head that an earlier call gave: its row must still be the same.

    Where older files were dropped, the oldest row is taken at its word.
    """
    for _ in range(3):
        noted, older = _noted(folder), _inode(folder / OLDER)
        found = _verify(folder, noted, expected)
        if not found.problem or older == _inode(folder / OLDER):
            break  # else a file was turned over while it was read
    return found


def _verify(folder: Path, noted: Head | None, expected: str) -> Verified:
    count, before = 0, Head(0, "", 0)
    if not (folder / OLDER).exists():
        before = Head()
    hashes: dict[int, str] = {}

    def found(problem: str) -> Verified:
        return Verified(count, problem, str(before))

    for file in (folder / OLDER, folder / NAME):
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            continue
        for index, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
            where = f"line {index} of {file.name}"
            row = _row(line)
            given, number = str(row.pop("hash", "")), _number(row)
            if not given:
                return found(f"{where} is no row of the log")
            if before.hash and given != _hash(before.hash, row):
                return found(f"{where} was changed, or a line before it is missing")
            if row.get("kind") == LOST:
                said = f"when a daemon started at {row.get('at')}: {row.get('reason')}"
                return found(f"{where} says that the log was not as it had been left {said}")
            if before.number and number != before.number + 1:
                return found(f"{where} has the number {number} after {before.number}")
            if not count and noted is not None and noted.first and number > noted.first:
                return found(f"rows {noted.first} to {number - 1} are missing before {where}")
            before, count = Head(number, given, 0), count + 1
            hashes[number] = given
    return found(_at_the_end(before, noted, hashes) or _expected(expected, hashes))


def _at_the_end(last: Head, noted: Head | None, hashes: dict[int, str]) -> str:
    if noted is None:
        return f"{HEAD} is missing, which says where the log ends" if last.number else ""
    if noted.number > last.number:
        return f"rows {last.number + 1} to {noted.number} are missing at the end"
    if noted.number and hashes.get(noted.number) != noted.hash:
        return f"row {noted.number} is not the one that {HEAD} names: the files were replaced"
    return ""


def _expected(expected: str, hashes: dict[int, str]) -> str:
    number, _, wanted = expected.partition(":")
    if not wanted or hashes.get(int(number)) == wanted:
        return ""
    if hashes and int(number) < min(hashes):
        return f"row {number} is no longer kept: the rows begin with {min(hashes)}"
    known = int(number) in hashes
    return f"row {number} is {'another one' if known else 'missing'}: the files were replaced"


def _noted(folder: Path) -> Head | None:
    """What the head says; None where there is none."""
    try:
        text = (folder / HEAD).read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return None
    match = re.fullmatch(r"([0-9]{20}) ([0-9a-f]{64}) ([0-9]{20})\n", text)
    return Head(int(match[1]), match[2], int(match[3])) if match else None


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _row(line: bytes) -> Json:
    """A line that is none is empty."""
    with contextlib.suppress(ValueError):
        row = json.loads(line)
        if isinstance(row, dict):
            return row
    return {}


def _number(row: Json) -> int:
    """0 in rows of before there were numbers."""
    number = row.get("number")
    return number if isinstance(number, int) and not isinstance(number, bool) else 0


def _hash(before: str, row: Json) -> str:
    return hashlib.sha256(f"{before}\n{compact(row)}".encode()).hexdigest()
