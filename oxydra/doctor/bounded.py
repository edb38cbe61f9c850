"""`oxydra-health`'s deadline: findings come from a child process, and who is late is left behind.

A thread can't be abandoned where a disk hangs: its process ends only when the disk answers. So the
child holds nothing of the caller's, not even its output, and is killed and not waited for. In it
`oxydra-health-N` looks after one user each, and ends when that user's checks have.
"""

from __future__ import annotations

import json
import os
import select
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from oxydra.doctor.base import Case, Finding
from oxydra.doctor.daemon import MAX_AGE, health
from oxydra.errors import OxydraError, UsageError
from oxydra.threads import Deadline, parallel
from oxydra.types import Json


def within(
    seconds: float, path: Path | None, user: str | None, max_age: float = MAX_AGE
) -> list[Finding]:
    """`health` for each user, or one, in at most `seconds`: what took longer is a finding too."""
    deadline = Deadline.after(seconds)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(writer, path, user, max_age)
    os.close(writer)
    found: list[Finding] = []
    owed = {""}  # who is still looked at; "" until it is known who there is
    with os.fdopen(reader, "rb", 0) as pipe:
        for row in _rows(pipe.fileno(), deadline):
            if "users" in row:
                owed = set(row["users"])
            elif "done" in row:
                owed.discard(row["done"])
            else:
                found.append(Finding(**row))
    detail = "What looks at it has failed itself."
    if owed:
        os.kill(child, signal.SIGKILL)  # it has ended or hangs, and then is not waited for
    os.waitpid(child, os.WNOHANG if owed else 0)
    if deadline.expired:
        detail = f"Not all was looked at within {seconds:g} s: a disk or a socket hangs."
    found += [Finding("deadline", "down", detail, user=name) for name in sorted(owed)]
    return sorted(found, key=lambda finding: finding.user)


def _rows(pipe: int, deadline: Deadline) -> Iterator[Json]:
    """What the child writes, a line each, until it ends or the deadline passes."""
    rest = b""
    while select.select([pipe], [], [], deadline.remaining())[0]:
        data = os.read(pipe, 65536)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from map(json.loads, lines)


def _child(pipe: int, path: Path | None, user: str | None, max_age: float) -> None:
    """Does not return."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        _look(pipe, path, user, max_age)
    finally:
        os._exit(0)


def _look(pipe: int, path: Path | None, user: str | None, max_age: float) -> None:
    case = Case(path, user)
    cases = case.users()
    if not cases:
        none = UsageError("No user is configured.", remedy="Run `oxydra-runner init`.")
        _tell(pipe, _finding(_trouble(case.broken or none)), {"done": ""})
        return
    _tell(pipe, {"users": [one.user for one in cases]})
    mutex = threading.Lock()  # around writes

    def look(one: Case) -> None:
        try:
            for finding in health(one, max_age):
                with mutex:
                    _tell(pipe, _finding(finding))
        except OxydraError as error:
            with mutex:
                _tell(pipe, _finding(one.of(_trouble(error))))
        except Exception as error:  # its output is nobody's: say here what would be a stack trace
            failed = Finding("health", "down", f"The check failed: {error!r}")
            with mutex:
                _tell(pipe, _finding(one.of(failed)))
        with mutex:
            _tell(pipe, {"done": one.user})

    parallel("health", [lambda one=one: look(one) for one in cases])  # type: ignore[misc]


def _trouble(error: OxydraError) -> Finding:
    return Finding("configuration", "down", str(error), error.command)


def _finding(finding: Finding) -> Json:
    names = ("check", "level", "detail", "remedy", "user")
    return {name: getattr(finding, name) for name in names}


def _tell(pipe: int, *rows: Json) -> None:
    for row in rows:
        data = json.dumps(row).encode() + b"\n"
        while data:
            data = data[os.write(pipe, data) :]
