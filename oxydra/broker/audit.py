"""The audit log: what left this machine, where to, and with which verdict; never a body.

JSON lines, each with the SHA-256 of itself and of the line before it, so that a line that was
changed, removed or put in between is found (`verify`). One file of at most `MAX_BYTES` and the one
before it are kept; the chain goes on from one to the other. It lies where no guest can write. No
thread runs here; rows may be added from any.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from oxydra.frames import compact
from oxydra.types import Json

log = logging.getLogger(__name__)

NAME = "egress.jsonl"
OLDER = "egress.1.jsonl"
MAX_BYTES = 8 << 20
FIRST = "0" * 64  # what stands in the place of a hash before the first line


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


class AuditLog:
    """The log in `folder`, which must exist."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._lock = threading.Lock()
        self._file = os.open(
            self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        self._size = os.fstat(self._file).st_size
        self._last = self._last_hash()

    def add(self, exchange: Exchange) -> None:
        """Append a row. What can't be written is logged and does not stop anything."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        row = {"at": now, **{name: getattr(exchange, name) for name in Exchange.__slots__}}
        with self._lock:
            if self._file < 0:
                return
            row["hash"] = _hash(self._last, row)
            line = compact(row).encode() + b"\n"
            try:
                if self._size + len(line) > MAX_BYTES:
                    self._turn_over()
                os.write(self._file, line)
            except OSError as error:
                log.error("the audit log can't be written: %s", error)
                return
            self._size += len(line)
            self._last = row["hash"]

    def close(self) -> None:
        """What is added later is dropped; idempotent."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1

    def _turn_over(self) -> None:
        os.replace(self._path, self._path.with_name(OLDER))
        os.close(self._file)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.open(self._path, flags, 0o600)
        self._size = 0

    def _last_hash(self) -> str:
        if self._size and os.pread(self._file, 1, self._size - 1) != b"\n":
            self._size += os.write(self._file, b"\n")  # a crash cut the last line off
        newest = next(rows(self._path.parent), {})
        return str(newest.get("hash", FIRST))


def rows(folder: Path) -> Iterator[Json]:
    """All rows that are kept, newest first; lines that are none are passed over."""
    path = folder / NAME
    for file in (path, folder / OLDER):
        try:
            lines = file.read_bytes().splitlines()
        except OSError:
            continue
        for line in reversed(lines):
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict):
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


def verify(folder: Path) -> tuple[int, str]:
    """How many rows are as they were written, and what is wrong with the next; "" if nothing is.

    Where older files were dropped, the oldest row is taken at its word.
    """
    count = 0
    path = folder / NAME
    older = folder / OLDER
    last = "" if older.exists() else FIRST
    for file in (older, path):
        if not file.exists():
            continue
        for number, line in enumerate(file.read_bytes().splitlines(), 1):
            where = f"line {number} of {file.name}"
            try:
                row = dict(json.loads(line))
                given = str(row.pop("hash"))
            except (ValueError, KeyError, TypeError):
                return count, f"{where} is no row of the log"
            if last and given != _hash(last, row):
                return count, f"{where} was changed, or a line before it is missing"
            last = given
            count += 1
    return count, ""


def _hash(before: str, row: Json) -> str:
    return hashlib.sha256(f"{before}\n{compact(row)}".encode()).hexdigest()
