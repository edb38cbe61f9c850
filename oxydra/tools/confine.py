"""The one walker: every file a tool touches is reached through a `Workspace`.

Whoever runs commands in the workspace is hostile and runs at the same time, so nothing is checked
by name and then opened. A `Workspace` holds a descriptor of each root; a path is walked one name at
a time with `openat` and O_NOFOLLOW, what was opened is judged by `fstat`, and a file is replaced by
`renameat` inside a directory that is already open. Links, FIFOs, sockets, devices and files with
several names are refused. Host paths appear in no result and no error.

It runs on the caller's thread and may be used by any number of them at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal

from oxydra.errors import PolicyDenied, ToolError
from oxydra.policy import (
    MAX_DEPTH,
    READ_ONLY_ROOTS,
    ROOTS,
    VirtualPath,
    protected,
    visible,
)
from oxydra.types import Folder
from oxydra.walk import sync_names

MAX_WRITE_BYTES = 16 * 1024 * 1024
MAX_ENTRIES = 10_000  # read from one folder
OPEN_ATTEMPTS = 20  # a file that is being replaced is opened again

_PATH_ONLY = getattr(os, "O_PATH", os.O_RDONLY)  # macOS has none
_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_HALF_WRITTEN = re.compile(r"\.oxydra-([0-9a-f]{8})-[0-9a-f]{8}\.tmp")

Kind = Literal["file", "directory", "link", "other"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a folder. `size` is in bytes; `modified` in seconds since the epoch."""

    name: str
    kind: Kind
    size: int
    modified: float


class Workspace:
    """The folders behind `/shared`, `/tmp`, `/vault` and what is in `/mnt`.

    Every method takes a `VirtualPath`, raises `ToolError` in the path's virtual form for what is
    missing, full or broken, and `PolicyDenied` for what is forbidden.
    """

    def __init__(self, folders: Iterable[Folder], full: Callable[[], str] = str) -> None:
        """Each folder must exist and be no link. While `full` says why, nothing is written."""
        self._folders = {folder.root: folder for folder in folders}
        self._full = full
        self._roots: dict[str, int] = {}
        self._mark = secrets.token_hex(4)  # what is half written by this one
        try:
            for root, folder in self._folders.items():
                self._roots[root] = os.open(folder.at, _PATH_ONLY | _DIRECTORY)
        except OSError:
            self.close()
            raise

    @classmethod
    def at(cls, directory: Path) -> Workspace:
        """The workspace of one user: `directory` holds a folder for each root."""
        return cls(
            Folder(name, str(directory / name), name not in READ_ONLY_ROOTS) for name in ROOTS
        )

    def close(self) -> None:
        while self._roots:
            os.close(self._roots.popitem()[1])

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------- reading

    def open(self, path: VirtualPath) -> BinaryIO:
        """A regular file, for reading, as it is at this moment; the caller closes it."""
        with _explained(path), self._folder(path.parent) as folder:
            if not path.parts:
                raise _not_a_file(path, stat.S_IFDIR)
            for _ in range(OPEN_ATTEMPTS):
                seen = self._look(folder, path)
                _require_plain(path, seen)
                fd = os.open(path.name, _READ, dir_fd=folder)
                try:
                    if _same_file(os.fstat(fd), folder, path):
                        return os.fdopen(fd, "rb")
                except BaseException:
                    os.close(fd)
                    raise
                os.close(fd)
        raise ToolError(f"{path} keeps changing while it is opened.", remedy="Try again later.")

    def stat(self, path: VirtualPath) -> Entry:
        """What is at `path`, links not followed."""
        with _explained(path), self._folder(path.parent) as folder:
            found = self._look(folder, path)
        return _entry(path.name, found)

    def scan(self, path: VirtualPath) -> list[Entry]:
        """What a folder holds, by name; of more than `MAX_ENTRIES` some."""
        with _explained(path), self._folder(path) as folder:
            fd = os.open(".", os.O_RDONLY | _DIRECTORY, dir_fd=folder)
            try:
                entries = []
                with os.scandir(fd) as found:
                    for item in islice(found, MAX_ENTRIES):
                        # a name may vanish between the two calls
                        with contextlib.suppress(FileNotFoundError):
                            status = os.stat(item.name, dir_fd=fd, follow_symlinks=False)
                            entries.append(_entry(item.name, status))
            finally:
                os.close(fd)
        return sorted(entries, key=lambda entry: entry.name)

    def walk(
        self, path: VirtualPath, descend: Callable[[VirtualPath], bool]
    ) -> Iterator[tuple[VirtualPath, Entry]]:
        """Everything below a folder, each folder before what it holds; `descend` says which folders
        to enter.

        A folder that can't be read is passed over; links are shown and never entered.
        """
        pending = [iter([(path.child(entry.name), entry) for entry in self.scan(path)])]
        while pending:
            found = next(pending[-1], None)
            if found is None:
                pending.pop()
                continue
            yield found
            below, entry = found
            if entry.kind == "directory" and len(below.parts) < MAX_DEPTH and descend(below):
                with contextlib.suppress(ToolError):
                    inside = self.scan(below)
                    pending.append(iter([(below.child(item.name), item) for item in inside]))

    # ------------------------------------------------------------------------------- writing

    def write(
        self,
        path: VirtualPath,
        data: bytes,
        *,
        expect: os.stat_result | None = None,
        new: bool = False,
        mode: int | None = None,
    ) -> bool:
        """Make `data` the content of the file at `path`; True if there was none before.

        The file is replaced as a whole or not at all, survives a power cut once this returns, and
        keeps its permissions; folders on the way are made. With `expect` it must still be the file
        that this is the status of; with `new` there must be none, and it gets the permissions
        `mode` if they are given.
        """
        self._require_room(path)
        if len(data) > MAX_WRITE_BYTES:
            raise ToolError(
                f"{len(data):,} bytes are too many to write at once.",
                remedy=f"Write at most {MAX_WRITE_BYTES:,} bytes.",
            )
        with _explained(path), self._folder(path.parent, create=True) as folder:
            old: os.stat_result | None = None
            with contextlib.suppress(FileNotFoundError):
                old = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
                _require_plain(path, old)
            if new and old is not None:
                raise ToolError(f"{path} already exists.", remedy="Name another destination.")
            if expect is not None and (old is None or _version(old) != _version(expect)):
                raise ToolError(
                    f"{path} was changed by someone else meanwhile.", remedy="Read it again first."
                )
            with self._replacing(folder, path.name, old, new=new, mode=mode) as put:
                put(data)
        return old is None

    @contextlib.contextmanager
    def create(self, path: VirtualPath) -> Iterator[Callable[[bytes], None]]:
        """A file that comes a piece at a time: yields what takes the pieces. It is there, durable,
        when the block ends, and nothing of it is where that raises. There must be none at `path`;
        how large it grows is the caller's to bound.
        """
        self._require_room(path)
        with (
            _explained(path),
            self._folder(path.parent, create=True) as folder,
            self._replacing(folder, path.name, None, new=True, mode=None) as put,
        ):
            yield put

    @contextlib.contextmanager
    def _replacing(
        self, folder: int, name: str, old: os.stat_result | None, *, new: bool, mode: int | None
    ) -> Iterator[Callable[[bytes], None]]:
        """What takes the content of a file that is `name` in `folder` when the block has ended."""
        temporary = f".oxydra-{self._mark}-{secrets.token_hex(4)}.tmp"
        try:
            with _writing(folder, temporary, old, mode) as put:
                yield put
            if new:  # unlike a rename, a link never replaces what came there meanwhile
                os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
                os.unlink(temporary, dir_fd=folder)
            else:
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise
        sync_names(folder)

    def delete(self, path: VirtualPath) -> Kind:
        """Remove a file, a link (never what it points to) or an empty folder; say which it was."""
        self._require_writable(path)
        if not path.parts:
            raise PolicyDenied(f"{path} itself can't be deleted.", remedy="Name something in it.")
        with _explained(path), self._folder(path.parent) as folder:
            kind = _entry(path.name, self._look(folder, path)).kind
            if kind == "directory":
                os.rmdir(path.name, dir_fd=folder)
            else:
                os.unlink(path.name, dir_fd=folder)
            sync_names(folder)
        return kind

    def make(self, path: VirtualPath) -> None:
        """Make a folder, and those above it, where there is none."""
        self._require_writable(path)
        with _explained(path), self._folder(path, create=True):
            pass

    def sweep(self, path: VirtualPath) -> None:
        """Remove from a folder the half-written files of a process that is gone: nobody else may
        be writing there through another `Workspace`.
        """
        with contextlib.suppress(ToolError):
            for entry in self.scan(path):
                left = _HALF_WRITTEN.fullmatch(entry.name)
                if left and left[1] != self._mark and entry.kind == "file":
                    self.delete(path.child(entry.name))

    # ------------------------------------------------------------------------------- walking

    def _require_writable(self, path: VirtualPath) -> None:
        folder = self._folders.get(path.root)
        if folder is None:
            raise self._no_root(path)
        if not folder.writable:
            raise PolicyDenied(
                f"{path} may not be changed: {folder.virtual} is read-only.",
                remedy="Write to /shared or /tmp instead.",
            )
        if folder.guarded and (name := protected(path)):
            raise PolicyDenied(
                f"{path} may not be changed: programs on the person's computer act upon what is in"
                f" {visible(name)!r}.",
                remedy="Tell the person what should be in it.",
            )

    def _require_room(self, path: VirtualPath) -> None:
        self._require_writable(path)
        if full := self._full():
            raise ToolError(f"{path} can't be written: {full}.", remedy="Delete something first.")
        if not path.parts:
            raise _not_a_file(path, stat.S_IFDIR)

    def _no_root(self, path: VirtualPath) -> ToolError:
        there = ", ".join(folder.virtual for folder in self._folders.values())
        return ToolError(
            f"There is no {VirtualPath(path.root)} here.", remedy=f"There are: {there}."
        )

    @contextlib.contextmanager
    def _folder(self, path: VirtualPath, *, create: bool = False) -> Iterator[int]:
        """A descriptor of the folder at `path`, for the length of the block."""
        root = self._roots.get(path.root)
        if root is None:
            raise self._no_root(path)
        fd = os.open(".", _PATH_ONLY | _DIRECTORY, dir_fd=root)
        try:
            for depth, name in enumerate(path.parts, start=1):
                here = VirtualPath(path.root, path.parts[:depth])
                below = self._step(fd, name, here, create)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    def _step(self, folder: int, name: str, here: VirtualPath, create: bool) -> int:
        with _explained(here):
            try:
                return os.open(name, _PATH_ONLY | _DIRECTORY, dir_fd=folder)
            except FileNotFoundError:
                if not create:
                    raise _missing(folder, here) from None
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                # Only to say what it is: nothing is opened because of this answer.
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if stat.S_ISLNK(found.st_mode):
                    raise _not_a_file(here, found.st_mode) from None
                raise ToolError(f"{here} is not a folder.") from None
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=folder)
                sync_names(folder)
            fd = os.open(name, os.O_RDONLY | _DIRECTORY, dir_fd=folder)
            try:
                _give(fd, os.stat(".", dir_fd=folder))
            except BaseException:
                os.close(fd)
                raise
            return fd

    def _look(self, folder: int, path: VirtualPath) -> os.stat_result:
        name = path.name if path.parts else "."
        try:
            return os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            raise _missing(folder, path) from None


# --------------------------------------------------------------------------------------- judging


def _require_plain(path: VirtualPath, found: os.stat_result) -> None:
    """A regular file with one name. Another name may lie outside the workspace."""
    if not stat.S_ISREG(found.st_mode):
        raise _not_a_file(path, found.st_mode)
    if found.st_nlink > 1:
        raise PolicyDenied(
            f"{path} has {found.st_nlink} names (hard links); such files are not touched.",
            remedy="Copy it with a command and use the copy.",
        )


def _same_file(opened: os.stat_result, folder: int, path: VirtualPath) -> bool:
    """Whether what was opened is, under its name here and under no other, a regular file.

    The name is looked up once more because a second name of a file outside may have been removed
    between `open` and `fstat`: one name is left then, but it is not ours. False: try again.
    """
    _require_plain(path, opened)
    try:
        named = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return named.st_nlink == 1 and (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def _version(found: os.stat_result) -> tuple[int, int, int, int]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _entry(name: str, found: os.stat_result) -> Entry:
    kind: Kind = "other"
    if stat.S_ISREG(found.st_mode):
        kind = "file"
    elif stat.S_ISDIR(found.st_mode):
        kind = "directory"
    elif stat.S_ISLNK(found.st_mode):
        kind = "link"
    return Entry(name, kind, found.st_size, found.st_mtime)


# --------------------------------------------------------------------------------------- writing


@contextlib.contextmanager
def _writing(
    folder: int, name: str, old: os.stat_result | None, mode: int | None
) -> Iterator[Callable[[bytes], None]]:
    """A new file, on the disk when the block ends, with the owner and permissions that it needs."""
    fd = os.open(name, _CREATE, 0o666, dir_fd=folder)

    def put(data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]

    try:
        yield put
        if old is not None:
            _give(fd, old)
            os.fchmod(fd, old.st_mode & 0o777)  # without setuid and setgid
        else:
            _give(fd, os.stat(".", dir_fd=folder))
            if mode is not None:
                os.fchmod(fd, mode & 0o777)
        os.fsync(fd)
    finally:
        os.close(fd)


def _give(fd: int, like: os.stat_result) -> None:
    """As root, hand what was just made to the owner of what it replaces or lies in: commands in the
    workspace run as that owner.
    """
    if os.geteuid() != 0:
        return
    made = os.fstat(fd)
    if made.st_uid == 0 and (like.st_uid, like.st_gid) != (made.st_uid, made.st_gid):
        # a root without the right to give files away is as good as an ordinary user
        with contextlib.suppress(PermissionError):
            os.fchown(fd, like.st_uid, like.st_gid)


# ---------------------------------------------------------------------------------------- errors

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REASONS = {
    errno.ENOENT: "does not exist",
    errno.EACCES: "may not be accessed: its permissions forbid it",
    errno.EPERM: "may not be accessed: its permissions forbid it",
    errno.EROFS: "may not be changed: it is on a read-only file system",
    errno.EEXIST: "already exists",
    errno.EISDIR: "is a folder",
    errno.ENOTDIR: "is not a folder",
    errno.ENOTEMPTY: "is not empty",
    errno.EBUSY: "is in use",
    errno.ENAMETOOLONG: "has too long a name for this file system",
    errno.EILSEQ: "has a name that this file system can't hold",
    errno.EMFILE: "can't be opened: too many files are open",
    errno.ENFILE: "can't be opened: too many files are open",
}


@contextlib.contextmanager
def _explained(path: VirtualPath) -> Iterator[None]:
    """The system's errors as sentences about the virtual path; the host's never gets out."""
    try:
        yield
    except OSError as error:
        code = error.errno or 0
        if code == errno.ELOOP:
            raise _not_a_file(path, stat.S_IFLNK) from error
        if code in _FULL:
            raise ToolError(
                f"{path} was not written: no space is left. Nothing was changed.",
                remedy="Delete what is not needed, then try again.",
                code="disk_full",
            ) from error
        reason = _REASONS.get(code) or f"can't be used: {os.strerror(code)}"
        raise ToolError(f"{path} {reason}.") from error


def _not_a_file(path: VirtualPath, mode: int) -> ToolError:
    if stat.S_ISDIR(mode):
        return ToolError(f"{path} is a folder.", remedy="file_list shows what is in it.")
    if stat.S_ISLNK(mode):
        return PolicyDenied(
            f"{path} is a symbolic link; links are not followed.",
            remedy="Name the file itself.",
        )
    return PolicyDenied(f"{path} is no regular file (a pipe, socket or device).")


def _missing(folder: int, path: VirtualPath) -> ToolError:
    """`path` does not exist; what is there instead that is spelled nearly so."""
    import difflib

    near: list[str] = []
    with contextlib.suppress(OSError):
        fd = os.open(".", os.O_RDONLY | _DIRECTORY, dir_fd=folder)
        try:
            with os.scandir(fd) as found:
                names = [entry.name for entry in islice(found, 200)]
        finally:
            os.close(fd)
        # short names only: matching long ones that a stranger chose could take seconds
        near = difflib.get_close_matches(path.name[:64], [n for n in names if len(n) <= 64], n=1)
    remedy = f"Did you mean {path.parent.child(near[0])}?" if near else ""
    return ToolError(f"{path} does not exist.", remedy=remedy, code="not_found")
