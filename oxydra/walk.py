"""The one walker over folders that a guest can write: by descriptors, never through a link.

`Walk` yields what lies below a folder, each folder after what is in it. Whoever writes there may
change names while it looks: an entry is what `lstat` said of it, and `Entry.open` opens exactly
that or nothing. Depth and number of entries are bounded, and it stays on the folder's own file
system; what it left out it says. `measure` adds up what folders take. No thread.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_DEPTH = 100  # folders below the first; each is an open descriptor while it is walked
MAX_ENTRIES = 1_000_000
MAX_SKIPPED = 100  # told of those that could not be looked into
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
ENTRY_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Entry:
    """One name. `path` is relative to the walked folder, `folder` the descriptor of the folder that
    holds it, open only until the next entry is asked for.
    """

    path: str
    state: os.stat_result
    folder: int

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.state.st_mode)

    @property
    def is_plain(self) -> bool:
        """A regular file with this one name."""
        return stat.S_ISREG(self.state.st_mode) and self.state.st_nlink == 1

    def open(self) -> int:
        """A descriptor for reading what was seen under this name. Raises OSError, also if
        something else is there by now; only for files and folders.
        """
        descriptor = os.open(self.name, ENTRY_FLAGS, dir_fd=self.folder)
        now = os.fstat(descriptor)
        same = os.path.samestat(now, self.state) and (
            self.is_folder or now.st_nlink == self.state.st_nlink
        )
        if not same:
            os.close(descriptor)
            raise FileNotFoundError(2, "replaced while it was looked at", self.path)
        return descriptor


class Walk:
    """What is below the folder that `top` is a descriptor of. To be iterated once.

    Afterwards `complete` says whether everything was seen, and `skipped` holds paths that were not
    looked into, each with the reason, the first `MAX_SKIPPED` of them.
    """

    def __init__(self, top: int, *, depth: int = MAX_DEPTH, entries: int = MAX_ENTRIES) -> None:
        self._top = top
        self._depth = depth
        self._left = entries
        self._device = os.fstat(top).st_dev
        self.complete = True
        self.skipped: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[Entry]:
        return self._below(self._top, "", self._depth)

    def _below(self, folder: int, path: str, depth: int) -> Iterator[Entry]:
        with os.scandir(folder) as names:
            for found in names:
                if self._left <= 0:
                    self._skip(path or ".", "there are too many entries")
                    return
                self._left -= 1
                here = f"{path}/{found.name}" if path else found.name
                try:
                    state = os.stat(found.name, dir_fd=folder, follow_symlinks=False)
                except FileNotFoundError:
                    continue  # removed since it was listed
                if state.st_dev != self._device:
                    self._skip(here, "another file system is mounted here")
                    continue
                entry = Entry(here, state, folder)
                if entry.is_folder:
                    yield from self._inside(entry, depth)
                yield entry

    def _inside(self, entry: Entry, depth: int) -> Iterator[Entry]:
        if depth <= 0:
            self._skip(entry.path, "it is too deep")
            return
        try:
            descriptor = entry.open()
        except FileNotFoundError:
            return
        except OSError as error:
            self._skip(entry.path, error.strerror or "can't be opened")
            return
        try:
            yield from self._below(descriptor, entry.path, depth - 1)
        finally:
            os.close(descriptor)

    def _skip(self, path: str, why: str) -> None:
        self.complete = False
        if len(self.skipped) < MAX_SKIPPED:
            self.skipped.append((path, why))


def is_repository(folder: int) -> bool:
    """Whether git takes this folder for a repository, wherever it lies and whatever its name is."""
    try:
        for name in ("HEAD", "objects", "refs"):
            os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def opened(folder: Path, below: int | None = None) -> Iterator[int]:
    """A descriptor of a folder, relative to `below`, not reached through a link at its last
    component. Raises OSError.
    """
    descriptor = os.open(folder, FOLDER_FLAGS, dir_fd=below)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync_names(folder: Path | int) -> None:
    """Bring the names in a folder to the disk. Given by a descriptor, it may be one of O_PATH,
    which can't be synced itself. Raises OSError.
    """
    where = (folder,) if isinstance(folder, Path) else (Path("."), folder)
    with opened(*where) as descriptor:
        os.fsync(descriptor)


def measure(folders: Iterable[Path], limit: int) -> int:
    """The bytes that folders take on their disks, counted until there are more than `limit`.

    A file with several names counts once. Where not all can be seen, because a tree is too deep,
    too large or closed to the runner, that is `limit` + 1 at least: nothing hides from the limit.
    A folder that is not there takes nothing. Raises OSError.
    """
    total = 0
    several: set[tuple[int, int]] = set()  # files with more than one name
    for folder in folders:
        try:
            with opened(folder) as top:
                walk = Walk(top)
                for entry in walk:
                    state = entry.state
                    if state.st_nlink > 1 and not entry.is_folder:
                        if (state.st_dev, state.st_ino) in several:
                            continue
                        several.add((state.st_dev, state.st_ino))
                    total += state.st_blocks * 512
                    if total > limit:
                        return total
        except FileNotFoundError:
            continue
        if not walk.complete:
            return max(total, limit + 1)
    return total
