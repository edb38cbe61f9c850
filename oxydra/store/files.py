"""The contents of attachments: files beside the database, named by the SHA-256 of what is in them.

Each content is there once, whoever attached it and however often. A file is written, and on the
disk, before the transaction that speaks of it, and never changed afterwards; `sweep` removes those
of which no transaction ever spoke. No thread.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from oxydra.errors import StoreError, StoreFullError, UsageError
from oxydra.types import Attachment
from oxydra.walk import sync_names

log = logging.getLogger(__name__)

MAX_BYTES = 4 << 30  # of all of them, unless it is said otherwise
ABANDONED = 3600.0  # seconds after which a file of which nobody spoke is nobody's
_NAME = re.compile(r"[0-9a-f]{64}")
_NEW = "new-"  # what a file is called until it is whole
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Files:
    """Those in `folder`, which is made with the first of them. Any thread may call any method."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def keep(self, attachments: Iterable[Attachment]) -> None:
        """Have what is in these, for ever and in spite of a power cut.

        Raises `StoreFullError` where the disk has no room, `StoreError` where it can't be.
        """
        new = {a.sha256: a for a in attachments if a.data and not self._has(a)}
        if not new:
            return
        with self._explained():
            self.folder.mkdir(mode=0o700, exist_ok=True)
            for attachment in new.values():
                self._write(attachment)
            sync_names(self.folder)

    def check_room(self, attachments: Iterable[Attachment]) -> None:
        """Raises `UsageError` where these would be more than all may have."""
        new = {a.sha256: a.size for a in attachments if not self._has(a)}
        if new and sum(new.values()) + self.size() > self.max_bytes:
            raise UsageError(
                f"Attachments may take {self.max_bytes >> 20} MiB in all, and do.",
                remedy="Raise [gateway] max_attachments_mib.",
                code="too_large",
            )

    def data(self, sha256: str) -> bytes | None:
        """What is in one; None if it is not there, or no longer what it was."""
        if not _NAME.fullmatch(sha256):
            return None
        try:
            descriptor = os.open(self.folder / sha256, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.error("the attachment %s can't be read: %s", sha256, error)
            return None
        if hashlib.sha256(data).hexdigest() != sha256:
            log.error("the attachment %s is damaged", sha256)
            return None
        return data

    def names(self) -> list[str]:
        """The SHA-256s of all that are there."""
        return [name for name, _ in self._entries() if _NAME.fullmatch(name)]

    def path(self, sha256: str) -> Path:
        """Where one is, or would be. Raises `FileNotFoundError` for what can't be one's name."""
        if not _NAME.fullmatch(sha256):
            raise FileNotFoundError(2, "no attachment", sha256)
        return self.folder / sha256

    def size(self) -> int:
        """Bytes of all of them."""
        return sum(state.st_size for _, state in self._entries())

    def sweep(self, known: Collection[str]) -> None:
        """Remove what is not among `known` and was not put there just now."""
        before = time.time() - ABANDONED
        for name, state in list(self._entries()):
            if name not in known and state.st_mtime < before:
                with contextlib.suppress(OSError):
                    (self.folder / name).unlink()

    def remove(self, names: Iterable[str]) -> None:
        """Remove contents of which nothing speaks any more."""
        for name in names:
            if _NAME.fullmatch(name):
                (self.folder / name).unlink(missing_ok=True)

    def _entries(self) -> Iterator[tuple[str, os.stat_result]]:
        with contextlib.suppress(OSError), os.scandir(self.folder) as found:
            for entry in found:
                with contextlib.suppress(OSError):  # it has another name by now
                    if entry.is_file(follow_symlinks=False):
                        yield entry.name, entry.stat(follow_symlinks=False)

    def _has(self, attachment: Attachment) -> bool:
        try:
            state = os.lstat(self.folder / attachment.sha256)
        except OSError:
            return False
        return state.st_size == attachment.size

    def _write(self, attachment: Attachment) -> None:
        if not _NAME.fullmatch(attachment.sha256):
            raise StoreError("An attachment's SHA-256 is none.")
        path = self.folder / f"{_NEW}{secrets.token_hex(8)}"
        try:
            with open(os.open(path, _WRITE, 0o600), "wb") as file:
                file.write(attachment.data)
                file.flush()
                os.fsync(file.fileno())
            path.rename(self.folder / attachment.sha256)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise StoreFullError(
                    f"The disk has no room for attachments ({error.strerror}).",
                    remedy="Free some disk space; work then goes on.",
                ) from error
            raise StoreError(
                f"Attachments can't be kept in {self.folder} ({error.strerror}).",
                remedy="Check that the folder belongs to you.",
            ) from error
