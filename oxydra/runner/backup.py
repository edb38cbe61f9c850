"""Making a backup: one file with all that a person needs to go on elsewhere.

    backup.json                 which users, when, and where everything lay
    config/<layer>/…            the configuration's files
    keys/…                      only where they were asked for
    users/<user>/internal/…     the database of one moment, and attachments
    users/<user>/shared|tmp|vault|audit/…
    users/<user>/ipc/gateway-tokens.json
    manifest.jsonl              what all of it should be

It is written beside its place, brought to the disk and only then given its name, so that a file of
that name is a whole backup. Folders are a guest's and so hostile: they are walked, never followed.
What can't be in a backup is listed in it. No thread.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import fcntl
import itertools
import json
import os
import re
import secrets
import stat
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeAlias

from oxydra.broker import audit
from oxydra.catalog import CACHE_NAME
from oxydra.config import get_key, list_keys
from oxydra.config.kept import Kept
from oxydra.errors import NotFoundError, OxydraError, UsageError
from oxydra.runner.archive import ArchiveError, Member, Writer
from oxydra.runner.audit import leads_out
from oxydra.runner.tokens import FILE as TOKENS
from oxydra.runner.workspace import Workspace, open_regular
from oxydra.store import copies
from oxydra.store.copies import DATABASE
from oxydra.store.database import explained
from oxydra.types import Json
from oxydra.version import VERSION
from oxydra.walk import Entry, Walk, opened, sync_names

FORMAT = 1
ABOUT = "backup.json"
ATTACHMENT = re.compile(r"[0-9a-f]{64}")
FOLDERS = ("shared", "tmp", "vault")
PART, SCRATCH = ".oxydra-backup.part", ".oxydra-backup.db"
NAME = re.compile(r"oxydra-(?:(?P<user>[a-z0-9][a-z0-9._-]{0,31})-)?\d{8}T\d{6}Z\.tar\.gz")
BLOCK = 1 << 20
SMALL = 4 << 20  # bytes of a file that is read as a whole, again where it changed meanwhile
ATTEMPTS = 3
LOOK_SECONDS = 0.1  # between two looks whether the copy of the database is there
LOCK_SECONDS = 20.0  # for a daemon that is just ending
CATALOG = (CACHE_NAME,)  # what of the person's own folder is kept besides the configuration

Ask: TypeAlias = Callable[..., Json]
"""A `command` of a running daemon: by name, with its arguments."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One file beside the database, or its copy."""

    name: str
    size: int
    blocks: Iterator[bytes]


Pieces: TypeAlias = Generator[Piece, None, None]


@dataclass(slots=True)
class Report:
    """What was done. `left_out` is what is not in the backup as it should not be, each with the
    reason; `troubles` what should be and is not.
    """

    path: Path
    users: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    size: int = 0
    left_out: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    def to_json(self) -> Json:
        names = ("users", "files", "bytes", "size", "left_out", "troubles")
        return {"path": str(self.path), **{name: getattr(self, name) for name in names}}


def name_for(user: str, now: datetime.datetime) -> str:
    """What a backup in a folder of backups is called; `user` is "" where it is of all."""
    return f"oxydra-{user}{'-' if user else ''}{now:%Y%m%dT%H%M%SZ}.tar.gz"


def prune(folder: Path, user: str, keep: int) -> list[Path]:
    """Remove all but the `keep` newest backups of this user, or of all; returns what went."""
    found = []
    for path in sorted(folder.iterdir(), reverse=True):
        match = NAME.fullmatch(path.name)
        if match and (match["user"] or "") == user:
            found.append(path)
    for path in found[keep:]:
        path.unlink()
    return found[keep:]


def write(
    path: Path,
    config: Sequence[Kept],
    root: Json,
    workspaces: Sequence[Workspace],
    ask: Callable[[Workspace], contextlib.AbstractContextManager[Ask | None]],
    *,
    keys: bool = False,
) -> Report:
    """Write a backup to `path`. `root` says where the workspaces are and who said so; `ask` gives
    the way to ask a user's daemon, None where none runs. Raises `OxydraError`.
    """
    report = Report(path)
    with contextlib.ExitStack() as stack:
        try:
            part = stack.enter_context(_part(path))
            backup = _Backup(Writer(part), report, path.parent / SCRATCH)
            stack.callback(copies.remove, path.parent / SCRATCH)
            backup.about(config, root, [workspace.user for workspace in workspaces])
            backup.configuration(config)
            if keys:
                backup.keys()
            for workspace in workspaces:
                backup.user(workspace, stack.enter_context(ask(workspace)))
            backup.close()
            part.flush()
            os.fsync(part.fileno())
            report.size = os.fstat(part.fileno()).st_size
            (path.parent / PART).replace(path)
            sync_names(path.parent)
        except OSError as error:
            raise OxydraError(
                f"The backup can't be written to {path}: {error.strerror}.",
                remedy="Nothing was left there. Make room, or name another place.",
            ) from error
    return report


@contextlib.contextmanager
def _part(path: Path) -> Iterator[BinaryIO]:
    """The file that becomes the backup; removed unless it was renamed. Raises OSError."""
    part = path.parent / PART
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"Another backup is being written in {path.parent}.", remedy="Wait for its end."
            ) from None
        try:
            os.ftruncate(descriptor, 0)  # of one that was killed
            os.fchmod(descriptor, 0o600)
            yield file
        finally:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.lstat(part)):
                    part.unlink()


class _Backup:
    """One that is being written."""

    def __init__(self, out: Writer, report: Report, scratch: Path) -> None:
        self._out = out
        self._report = report
        self._scratch = scratch
        self._now = datetime.datetime.now(datetime.UTC)

    def about(self, config: Sequence[Kept], root: Json, users: list[str]) -> None:
        self._report.users = users
        said = {
            "format": FORMAT,
            "oxydra": VERSION,
            "id": secrets.token_hex(16),
            "created_at": self._now.isoformat(timespec="seconds"),
            "users": users,
            "home": str(Path.home()),
            "layers": {kept.name: str(kept.folder) for kept in config},
            "workspace_root": root,
        }
        self._data(ABOUT, json.dumps(said, indent=1).encode() + b"\n")

    def configuration(self, config: Sequence[Kept]) -> None:
        for kept in config:
            for name, path in kept.files.items():
                self._data(f"config/{kept.name}/{name}", path.read_bytes())
            self._report.troubles += [
                f"{path}: the configuration names it, and it lies elsewhere"
                for path in kept.elsewhere
            ]

    def keys(self) -> None:
        for name in list_keys():
            self._data(f"keys/{name}", get_key(name).encode() + b"\n")

    def user(self, workspace: Workspace, ask: Ask | None) -> None:
        top = f"users/{workspace.user}"
        if ask is None:
            self._pieces(top, offline(workspace, self._scratch))
        else:
            self._pieces(top, online(ask))
        for name in FOLDERS:
            folder: Path = getattr(workspace.mounts, name)
            if workspace.owns(folder):
                self._tree(f"{top}/{name}", folder)
            else:
                self._report.left_out.append(f"{folder}: it is your own, mounted as /{name}")
        self._report.left_out += [
            f"{mount.path}: it is your own, mounted as /mnt/{mount.name}"
            for mount in workspace.mounts.extra
        ]
        for name, data in _egress_log(workspace.audit):
            self._data(f"{top}/audit/{name}", data)
        with contextlib.suppress(FileNotFoundError):
            self._data(f"{top}/ipc/{TOKENS}", _content(workspace.ipc / TOKENS)[0])

    def close(self) -> None:
        self._out.close({"left_out": self._report.left_out, "troubles": self._report.troubles})
        self._report.files, self._report.bytes = self._out.files, self._out.bytes

    def _data(self, path: str, data: bytes) -> None:
        self._out.add(self._made(path, len(data)), [data])

    def _made(self, path: str, size: int) -> Member:
        """A file that is made for the backup."""
        return Member(path, size=size, mtime=int(self._now.timestamp()))

    def _pieces(self, top: str, pieces: Pieces) -> None:
        with contextlib.closing(pieces):
            for piece in pieces:
                name = piece.name if piece.name == DATABASE else f"attachments/{piece.name}"
                self._out.add(self._made(f"{top}/internal/{name}", piece.size), piece.blocks)

    # ------------------------------------------------------------------------- a guest's folders

    def _tree(self, prefix: str, folder: Path) -> None:
        """Everything below a folder that can be in a backup."""
        try:
            whole = _whole(folder)
            with opened(folder) as top:
                walk = Walk(top)
                for entry in walk:
                    self._entry(f"{prefix}/{entry.path}", entry, whole)
                self._folder(prefix, os.fstat(top))
        except FileNotFoundError:
            return  # a workspace that was never started
        self._report.troubles += [f"{prefix}/{path}: {why}" for path, why in walk.skipped]

    def _entry(self, path: str, entry: Entry, whole: set[tuple[int, int]]) -> None:
        try:
            if entry.is_folder:
                self._folder(path, entry.state)
            elif stat.S_ISLNK(entry.state.st_mode):
                target = os.readlink(entry.name, dir_fd=entry.folder)
                if leads_out(entry.path, target):
                    self._report.left_out.append(f"{path}: it is a link that may lead out")
                else:
                    self._out.add(Member(path, "link", mode=0o777, target=target))
            elif not stat.S_ISREG(entry.state.st_mode):
                self._report.left_out.append(f"{path}: it is no file, folder or link")
            elif entry.is_plain or (entry.state.st_dev, entry.state.st_ino) in whole:
                self._file(path, entry)
            else:
                self._report.left_out.append(f"{path}: it has another name outside this folder")
        except FileNotFoundError:
            return  # removed meanwhile
        except PermissionError as error:
            self._report.troubles.append(f"{path}: {error.strerror}")
        except ArchiveError as error:
            self._report.troubles.append(f"{path}: {error.message}")

    def _folder(self, path: str, state: os.stat_result) -> None:
        mode = stat.S_IMODE(state.st_mode) & 0o777
        self._out.add(Member(path, "folder", mode=mode, mtime=int(state.st_mtime)))

    def _file(self, path: str, entry: Entry) -> None:
        for _ in range(ATTEMPTS):
            with open(entry.open(), "rb", buffering=0) as file:
                before = os.fstat(file.fileno())
                size = before.st_size
                mode = stat.S_IMODE(before.st_mode) & 0o777
                member = Member(path, size=size, mode=mode, mtime=int(before.st_mtime))
                if size > SMALL:
                    self._out.add(member, _blocks(file))
                    if _changed(before, os.fstat(file.fileno())):
                        self._report.left_out.append(f"{path}: it was changed while it was read")
                    return
                data = b"".join(_blocks(file, size + 1))
                if len(data) == size and not _changed(before, os.fstat(file.fileno())):
                    break
        else:
            self._report.left_out.append(f"{path}: it was changed while it was read")
        self._out.add(member, [data])


def _changed(before: os.stat_result, after: os.stat_result) -> bool:
    return (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)


def _blocks(file: BinaryIO, most: int = 1 << 62) -> Iterator[bytes]:
    while most > 0 and (block := file.read(min(BLOCK, most))):
        most -= len(block)
        yield block


def _whole(folder: Path) -> set[tuple[int, int]]:
    """Files with several names, all of which are below this folder."""
    seen: Counter[tuple[int, int]] = Counter()
    links: dict[tuple[int, int], int] = {}
    with opened(folder) as top:
        for entry in Walk(top):
            state = entry.state
            if stat.S_ISREG(state.st_mode) and state.st_nlink > 1:
                key = state.st_dev, state.st_ino
                seen[key] += 1
                links[key] = state.st_nlink
    return {key for key, count in seen.items() if count == links[key]}


def _egress_log(folder: Path) -> list[tuple[str, bytes]]:
    """The broker's log, its files as of one moment: a running broker may just turn it over. The
    head is read first: rows that come after it are missed by nobody.
    """
    names = (audit.HEAD, audit.NAME, audit.OLDER)
    for _ in range(ATTEMPTS):
        found, inodes = {}, []
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found[name], inode = _content(folder / name)
                inodes.append(inode)
        if inodes == [(folder / name).stat().st_ino for name in found]:
            break
    return list(found.items())


def _content(path: Path) -> tuple[bytes, int]:
    """What is in a file of the runner's, and its inode. Raises OSError."""
    with open(open_regular(path, os.O_RDONLY), "rb") as file:
        return file.read(), os.fstat(file.fileno()).st_ino


# ------------------------------------------------------------------- the database and attachments


def online(ask: Ask) -> Pieces:
    """From a running daemon, which has a copy made; raises `OxydraError` where that is gone."""
    key = ask("backup", action="begin")["key"]

    def part(name: str, offset: int) -> bytes:
        data = ask("backup", action="read", key=key, name=name, offset=offset)["data"]
        return base64.b64decode(data)

    def rest(name: str, offset: int, size: int) -> Iterator[bytes]:
        while offset < size:
            block = part(name, offset)
            if not block:
                raise ArchiveError(f"{name} became shorter while it was read.", remedy=AGAIN)
            offset += len(block)
            yield block

    try:
        while not ask("backup", action="state", key=key)["done"]:
            threading.Event().wait(LOOK_SECONDS)
        after, more = "", True
        while more:
            page = ask("backup", action="list", key=key, after=after)
            for row in page["files"]:
                name, size = str(row["name"]), int(row["size"])
                after = name
                try:
                    first = part(name, 0)
                except OxydraError as error:
                    if name != DATABASE and error.code == NotFoundError.code:
                        continue  # forgotten meanwhile
                    raise
                yield Piece(name, size, itertools.chain([first], rest(name, len(first), size)))
            more = bool(page["more"])
    finally:
        with contextlib.suppress(OxydraError):
            ask("backup", action="end", key=key)


AGAIN = "Something was forgotten meanwhile, or the daemon was restarted: make the backup again."


def offline(workspace: Workspace, scratch: Path) -> Pieces:
    """From a workspace of which no daemon runs; none can be started until all was read."""
    if not workspace.internal.is_dir():
        return
    with workspace.lock(wait=LOCK_SECONDS):
        with contextlib.suppress(FileNotFoundError):
            os.close(open_regular(workspace.database, os.O_RDONLY))  # no link, and one name
            with explained(workspace.database):
                copies.copy_file(workspace.database, scratch)
            with scratch.open("rb") as file:
                yield Piece(DATABASE, os.fstat(file.fileno()).st_size, _blocks(file))
            copies.remove(scratch)
        folder = workspace.internal / "attachments"
        if not folder.is_dir():
            return
        with opened(folder) as top:
            for entry in Walk(top, depth=0):
                if entry.is_plain and ATTACHMENT.fullmatch(entry.path):
                    with open(entry.open(), "rb", buffering=0) as file:
                        yield Piece(entry.path, os.fstat(file.fileno()).st_size, _blocks(file))
