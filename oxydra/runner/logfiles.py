"""The log files of one user's daemon: opened, and turned over while it runs.

Two processes hold each file: who writes it (a guest, whose descriptor nobody can exchange) and the
runner. So a file that has grown too large is not renamed but copied to `<name>.1` and cut to
nothing; whoever appends goes on at its beginning. What is written between the last look at its end
and the cut, some microseconds, is not kept. The files can be written by a guest and so are hostile:
each is opened as a regular file with one name, and what stands in the place of an older one is
replaced, never written to. No thread: the runner calls `look` every `LOOK_SECONDS`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from oxydra.runner.workspace import open_regular

log = logging.getLogger(__name__)

NAMES = ("runtime.log", "shell.log", "runner.log")
MOST_BYTES = 8 << 20  # a log that is larger is turned over
OLDER_FILES = 3  # of each log: .1 is the newest
LOOK_SECONDS = 10.0
BLOCK = 1 << 20


class LogFiles:
    """Those in `folder`. At a look a log has `most` bytes and what came since the last one; no
    older file has more than twice that.
    """

    def __init__(
        self,
        folder: Path,
        *,
        most: int = MOST_BYTES,
        older: int = OLDER_FILES,
        names: Iterable[str] = NAMES,
    ) -> None:
        self._folder = folder
        self._most = most
        self._older = older
        self._names = tuple(names)

    def look(self) -> None:
        """Turn over what is too large. What can't be is told, and tried again at the next look."""
        for name in self._names:
            path = self._folder / name
            try:
                if path.lstat().st_size > self._most:
                    self._turn_over(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                log.warning("%s is not turned over: %s", name, error.strerror)

    def _turn_over(self, path: Path) -> None:
        source = open_regular(path, os.O_RDWR)
        try:
            for number in range(self._older - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    older(path, number).replace(older(path, number + 1))
            try:
                self._copy(source, path)
            except OSError as error:  # the room is for the database: what was logged goes first
                log.warning("what was in %s is not kept: %s", path.name, error.strerror)
            os.ftruncate(source, 0)
        finally:
            os.close(source)

    def _copy(self, source: int, path: Path) -> None:
        """The end of the log, up to twice `most` of it, becomes the newest older file."""
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(temporary, flags, 0o600)
        try:
            at = begin = max(0, os.fstat(source).st_size - 2 * self._most)
            while at - begin < 2 * self._most:
                data = os.pread(source, min(BLOCK, 2 * self._most - (at - begin)), at)
                if not data:
                    break
                at += len(data)
                while data:
                    data = data[os.write(target, data) :]
            temporary.replace(older(path, 1))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(target)


def older(path: Path, number: int) -> Path:
    """Where what was in a log before is kept."""
    return path.with_name(f"{path.name}.{number}")
