"""How much room there is: on a disk, with the ballast that is given up last, and in a workspace.

What stops as a disk fills, in this order: commands, while `shortage` has something to say; new
turns, once the ballast is gone; a running turn, which then waits until there is room. The database
is written to the last byte, and everything goes on by itself when there is room again. What is
over its `Quota` is written to by neither commands nor tools; it has a thread, see there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from oxydra.threads import Service
from oxydra.walk import measure

LOW_BYTES = 200 << 20  # free, under which a disk is short of room
LOW_INODES = 2_000
LOW_SHARE = 20  # of a small disk its twentieth is enough
BALLAST_BYTES = 8 << 20
LOOK_SECONDS = (0.5, 2.0)  # between two looks at what a workspace holds: over its quota, and not
LONGEST_LOOK = 600.0
LOOK_SHARE = 20  # times as long as a look took, at least, until the next


def shortage(*folders: Path) -> str:
    """What is running out on the disks of these folders, in words; empty if nothing is.

    What cannot be looked at is not short: whoever uses it says what is wrong with it.
    """
    for folder in folders:
        with contextlib.suppress(OSError):
            found = os.statvfs(folder)
            free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
            if free < min(LOW_BYTES, total // LOW_SHARE):
                return f"only {free >> 20} MB are free on the workspace's disk"
            # a file system without a number of inodes says 0
            if found.f_favail < min(LOW_INODES, found.f_files // LOW_SHARE):
                return f"only {found.f_favail} more files fit on the workspace's disk"
    return ""


class Ballast:
    """A file of `size` bytes that takes up room until that is needed."""

    def __init__(self, path: Path, size: int = BALLAST_BYTES) -> None:
        self._path = path
        self._size = size

    def hold(self) -> bool:
        """Have it, made anew if that leaves as much free again; False where there is no room."""
        with contextlib.suppress(OSError):
            if self._path.lstat().st_size == self._size:
                return True
        try:
            found = os.statvfs(self._path.parent)
            if found.f_bavail * found.f_frsize < 2 * self._size:
                return False
            self._make()
            return True
        except OSError as error:
            self.release()
            return error.errno not in (errno.ENOSPC, errno.EDQUOT)  # else it is not about room

    def release(self) -> bool:
        """Give its room back; whether there was any."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True

    def _make(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()  # part of one
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, self._size)
            else:  # macOS
                for _ in range(self._size >> 20):
                    os.write(descriptor, bytes(1 << 20))
        finally:
            os.close(descriptor)


class Quota:
    """Whether folders hold more than `limit` bytes. Any thread may ask; nothing is done unasked.

    A look takes its time where there are many files: it is taken on the thread `oxydra-measure`,
    which ends with it, and an answer is as old as the last one. While there is too much, whoever
    asks takes the look, so that room is noticed at once.
    """

    def __init__(self, folders: Sequence[Path], limit: int) -> None:
        self._folders = folders
        self._limit = limit
        self._over = False
        self._due = 0.0  # on the monotonic clock
        self._lock = threading.Lock()
        self._looking: Service | None = None

    def over(self) -> str:
        """Why nothing more may be written, empty if something may."""
        with self._lock:
            if time.monotonic() >= self._due:
                if self._over:
                    self._look()
                else:
                    self._due = time.monotonic() + LONGEST_LOOK
                    with contextlib.suppress(RuntimeError):  # there is no thread to be had
                        self._looking = Service("measure", lambda _service: self._look()).start()
            if not self._over:
                return ""
        return (
            f"the workspace holds more than its {self._limit >> 20} MiB, or something in it can't "
            "be looked into"
        )

    def stop(self) -> None:
        """Wait for a look that is under way; idempotent."""
        if self._looking is not None:
            self._looking.stop()

    def _look(self) -> None:
        begun = time.monotonic()
        try:
            self._over = measure(self._folders, self._limit) > self._limit
        except OSError:
            self._over = True
        took = time.monotonic() - begun
        pause = LOOK_SECONDS[0 if self._over else 1]
        self._due = time.monotonic() + max(pause, LOOK_SHARE * took)
