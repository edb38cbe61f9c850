"""A door: a socket file that takes exactly one connection, by which a guest reaches the runner.

A container gets that one file, never the folder it lies in. Once somebody is inside, the file is
gone and nobody else can follow. No thread runs here; `accept` blocks the caller's, until `wake` or
its deadline.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def address(path: Path) -> Iterator[str]:
    """A name for `path` that fits into a socket address, whose limit is about 100 bytes."""
    if len(os.fsencode(path)) < 100 or not sys.platform.startswith("linux"):
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def peer_uid(connection: socket.socket) -> int | None:
    """The uid of the process that connected, as this process counts; None where the system can't
    say.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", raw)[1])


class Door:
    """One socket file in `folder`, for a process of `uid`'s. Raises OSError."""

    def __init__(self, folder: Path, name: str, uid: int, gid: int) -> None:
        self.path = folder / f".{name}-{secrets.token_hex(8)}.sock"
        self._uid = uid
        self._listener = socket.socket(socket.AF_UNIX)
        self._woken, self._waker = socket.socketpair()
        try:
            with address(self.path) as place:
                old = os.umask(0o177)
                try:
                    self._listener.bind(place)
                finally:
                    os.umask(old)
            if os.geteuid() == 0:
                os.chown(self.path, uid, gid, follow_symlinks=False)
            self._listener.listen(1)
        except BaseException:
            self.close()
            raise

    def accept(self, seconds: float) -> socket.socket:
        """The one connection; the door is closed behind it. Raises OSError, `TimeoutError` after
        `seconds`.
        """
        try:
            # shutting the listener down would wake it too, but leave `accept` to spin
            with selectors.DefaultSelector() as selector:
                for each in (self._listener, self._woken):
                    selector.register(each, selectors.EVENT_READ)
                ready = {key.fileobj for key, _events in selector.select(seconds)}
            if not ready:
                raise TimeoutError("nobody came in time")
            if self._listener not in ready:
                raise ConnectionAbortedError("nobody will come")
            stream, _ = self._listener.accept()
        finally:
            self.close()
        who = peer_uid(stream)
        if who not in (None, self._uid):
            stream.close()
            raise PermissionError(1, f"a process of uid {who} came in its place")
        stream.settimeout(None)
        return stream

    def wake(self) -> None:
        """Make a blocked `accept` fail; from any thread."""
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    def close(self) -> None:
        for each in (self._listener, self._woken, self._waker):
            each.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


def clear(folder: Path) -> None:
    """Remove the doors, and what is read behind them, that a killed runner has left in `folder`."""
    for path in (*folder.glob(".*-*.sock"), *folder.glob(".bootstrap-*")):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
