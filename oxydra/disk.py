"""How much room a disk has, and the ballast that is given up last. No thread.

What stops as a disk fills, in this order: commands, while `shortage` has something to say; new
turns, once the ballast is gone; a running turn, which then waits until there is room. The database
is written to the last byte, and everything goes on by itself when there is room again.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

LOW_BYTES = 200 << 20  # free, under which a disk is short of room
LOW_INODES = 2_000
LOW_SHARE = 20  # of a small disk its twentieth is enough
BALLAST_BYTES = 8 << 20


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
