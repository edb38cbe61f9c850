"""Reading a backup: whether it is whole, and putting it back.

A backup may be a stranger's, or damaged. It is unpacked beside the place it is meant for, looked at
as a whole, and only then given its name: for each user their workspace is what it was or what the
backup says, never something between, wherever a restore is killed. What it was meant for must not
be in use, and must be empty unless it is to be replaced. No thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from oxydra.broker import audit
from oxydra.config import set_key
from oxydra.config.fields import USER
from oxydra.config.files import KEY_NAME, mark_made, private_folder, write_private
from oxydra.config.kept import LAYERS, RUNNER_FILE, may_be_kept, place, set_root
from oxydra.errors import OxydraError, UsageError
from oxydra.runner.archive import ArchiveError, Member, Reader
from oxydra.runner.backup import ABOUT, ATTACHMENT, FOLDERS, FORMAT
from oxydra.runner.tokens import FILE as TOKENS
from oxydra.runner.workspace import Workspace
from oxydra.store import copies
from oxydra.store.copies import DATABASE
from oxydra.types import Json
from oxydra.walk import Walk, opened, sync_names

MAX_ABOUT = 1 << 20
MAX_TEXT = 1 << 20  # bytes of a configuration file, a key or the tokens
HOUSEKEEPING = ("logs", "ipc", "audit")  # of these a workspace that is not used has files too
STAGED = ".restoring-"
AT_FDCWD, EXCHANGE = -100, 2  # of renameat2


@dataclass(slots=True)
class Found:
    """What is in a backup. `troubles` is what is wrong with it, though it is as it was written."""

    about: Json = field(default_factory=dict)
    files: int = 0
    size: int = 0
    schemas: dict[str, int] = field(default_factory=dict)
    configuration: dict[str, dict[str, bytes]] = field(default_factory=dict)
    keys: dict[str, bytes] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def users(self) -> list[str]:
        return list(self.about["users"])

    def to_json(self) -> Json:
        names = ("users", "files", "size", "schemas", "troubles", "left_out")
        said = {name: self.about[name] for name in ("oxydra", "created_at")}
        return {**said, **{name: getattr(self, name) for name in names}}


def verify(path: Path) -> Found:
    """Read all of a backup and look at its databases. Raises `ArchiveError` where it is not whole
    or not as it was written.
    """
    with tempfile.TemporaryDirectory(prefix="oxydra-") as folder, _opened(path) as file:
        return _Unpacking(Path(folder), databases_only=True).run(file)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}.") from None
    with file:
        yield file


class _Unpacking:
    """Puts what is in a backup below `folder`, of each user in a folder of their own."""

    def __init__(self, folder: Path, *, databases_only: bool, users: Sequence[str] = ()) -> None:
        """`users` are those that are wanted; none: all."""
        self._folder = folder
        self._databases_only = databases_only
        self._users = users
        self._links: list[tuple[Path, str]] = []
        self._folders: list[tuple[Path, Member]] = []
        self._found = Found()

    def run(self, file: BinaryIO) -> Found:
        """Raises `ArchiveError`, and OSError where there is no room."""
        reader = Reader(file, _room(self._folder) if not self._databases_only else 1 << 62)
        found = self._found
        for member in reader:
            if not found.about:
                found.about = _about(member, reader)
            else:
                self._take(member, reader)
            found.files += member.kind == "file"
            found.size += member.size
        if not found.about:
            raise ArchiveError("This is no backup of Oxydra's.")
        for path, target in self._links:  # last: nothing is ever written through one
            os.symlink(target, path)
        for path, member in reversed(self._folders):
            path.chmod(member.mode & 0o777 | 0o700)
            os.utime(path, (member.mtime, member.mtime))
        for user in found.users:
            self._examine(user)
        found.left_out = [str(row) for row in reader.about.get("left_out", ())]
        return found

    def _examine(self, user: str) -> None:
        path = self._folder / user / "internal" / DATABASE
        if path.exists():
            self._found.schemas[user], troubles = copies.examine(path)
            for ending in copies.SIDECARS[1:]:
                path.with_name(path.name + ending).unlink(missing_ok=True)
            self._found.troubles += [f"{user}'s database: {trouble}" for trouble in troubles]

    def _take(self, member: Member, reader: Reader) -> None:
        """One member, where it may be. Raises `ArchiveError`."""
        match member.path.split("/", 2):
            case ["config", layer, name] if layer in LAYERS and may_be_kept(name):
                texts = self._found.configuration.setdefault(layer, {})
                texts[name] = _text(member, reader)
            case ["keys", name] if re.fullmatch(KEY_NAME, name):
                self._found.keys[name] = _text(member, reader)
            case ["users", user, rest] if user in self._found.users and _belongs(rest, member):
                if not self._users or user in self._users:
                    self._put(self._folder / user / rest, rest, member, reader)
            case _:
                raise ArchiveError(f"{member.path[:200]!r} is no part of a backup.")

    def _put(self, path: Path, rest: str, member: Member, reader: Reader) -> None:
        if self._databases_only and rest != f"internal/{DATABASE}":
            return
        if member.size > _room(self._folder):
            raise ArchiveError(
                f"There is no room in {self._folder.parent} for {member.size >> 20} MiB.",
                remedy="Free some disk space.",
            )
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if member.kind == "folder":
            path.mkdir(mode=0o700, exist_ok=True)
            self._folders.append((path, member))
        elif member.kind == "link":
            self._links.append((path, member.target))
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(path, flags, 0o600), "wb") as file:
                for block in reader.blocks():
                    file.write(block)
                os.fchmod(file.fileno(), member.mode & 0o777 | 0o600)
            os.utime(path, (member.mtime, member.mtime))


def _room(folder: Path) -> int:
    found = os.statvfs(folder)
    return max(0, found.f_bavail * found.f_frsize - copies.ROOM)


def _about(member: Member, reader: Reader) -> Json:
    """The first member, which says what the others are. Raises `ArchiveError`."""
    try:
        if member.path != ABOUT or member.size > MAX_ABOUT:
            raise ValueError
        about = json.loads(b"".join(reader.blocks()))
        root = about["workspace_root"]
        good = isinstance(about["format"], int) and isinstance(about["users"], list)
        good = good and all(
            isinstance(value, str)
            for value in (*about["users"], *(about[k] for k in ("oxydra", "created_at", "home")))
        )
        good = good and all(re.fullmatch(USER, user) for user in about["users"])
        good = good and isinstance(root["said"], str) and root["layer"] in ("", *LAYERS)
        if not good:
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ArchiveError("This is no backup of Oxydra's.") from None
    if about["format"] > FORMAT:
        raise ArchiveError(
            f"It was written by a newer Oxydra ({about['oxydra'][:32]}).",
            remedy="Install that version.",
        )
    return dict(about)


def _belongs(rest: str, member: Member) -> bool:
    """Whether this can be in a user's part of a backup."""
    match rest.split("/", 1):
        case [top] | [top, _] if top in FOLDERS:
            return rest != top or member.kind == "folder"
        case ["internal", name]:
            inner = name.removeprefix("attachments/")
            known = name == DATABASE or (inner != name and ATTACHMENT.fullmatch(inner))
            return member.kind == "file" and bool(known)
        case ["audit", name]:
            return member.kind == "file" and name in (audit.NAME, audit.OLDER, audit.HEAD)
        case ["ipc", name]:
            return member.kind == "file" and name == TOKENS and member.size <= MAX_TEXT
    return False


def _text(member: Member, reader: Reader) -> bytes:
    if member.kind != "file" or member.size > MAX_TEXT:
        raise ArchiveError(f"{member.path[:200]!r} is no configuration file.")
    return b"".join(reader.blocks())


# --------------------------------------------------------------------------------------- restoring


@dataclass(slots=True)
class Plan:
    """Where things go. `folder` is that of `--config`; `root` that of the workspaces, "" where the
    backup says it; `users` are those that are wanted, none: all, with the configuration.
    """

    folder: Path
    root: str = ""
    users: Sequence[str] = ()
    replace: bool = False
    dry_run: bool = False


@dataclass(slots=True)
class Restored:
    """What was done, or would be; `told` is what is left to a person."""

    found: Found
    root: Path
    users: list[str]
    files: list[Path]
    told: list[str]

    def to_json(self) -> Json:
        return {
            **self.found.to_json(),
            "users": self.users,
            "workspace_root": str(self.root),
            "configuration": [str(path) for path in self.files],
            "told": self.told,
        }


def restore(path: Path, plan: Plan) -> Restored:
    """Put a backup back. Raises `OxydraError`; nothing is changed then."""
    with _opened(path) as file:
        about = _first(file)
        users = [user for user in about["users"] if not plan.users or user in plan.users]
        if missing := set(plan.users) - set(users):
            raise UsageError(f"There is no {sorted(missing)[0]!r} in it.")
        root, said = _root(about, plan)
        with contextlib.ExitStack() as stack:
            for user in users:
                _free(Workspace(root, user), plan.replace, stack)
            staged = stack.enter_context(_staging(root, plan.dry_run))
            file.seek(0)
            found = _Unpacking(staged, databases_only=plan.dry_run, users=users).run(file)
            if found.troubles:
                raise ArchiveError(f"It is damaged: {'; '.join(found.troubles)}.")
            done = Restored(found, root, users, [], [])
            texts = {} if plan.users else _texts(found, plan, said, done)
            if not plan.dry_run:
                os.sync()  # what is given its name is on the disk
                _configure(texts, {} if plan.users else found.keys, plan.folder)
                for user in users:
                    _swap(staged / user, Workspace(root, user))
    return done


def _first(file: BinaryIO) -> Json:
    reader = Reader(file, 1 << 30)
    for member in reader:
        return _about(member, reader)
    raise ArchiveError("This is no backup of Oxydra's.")


def _root(about: Json, plan: Plan) -> tuple[Path, str]:
    """Where the workspaces go, and what runner.toml has to say of it; "" where it says it already.

    A place that only the backup names must be below this home or the configuration's folder.
    """
    said, layer = about["workspace_root"]["said"], about["workspace_root"]["layer"]
    if plan.root:
        path = Path(plan.root).expanduser().absolute()
        return path, str(path)
    base = place(layer, plan.folder) if layer else Path.home()
    home, before = str(Path.home()), about["home"]
    moved = said == before or said.startswith(before.rstrip("/") + "/")
    if moved and before != home:
        said = home + said[len(before.rstrip("/")) :]
    path = Path(os.path.normpath(base.absolute() / os.path.expanduser(said)))
    if not any(path.is_relative_to(top) for top in (Path.home(), plan.folder.absolute())):
        raise UsageError(
            f"The workspaces were in {said}, which is neither in your home nor beside the"
            " configuration.",
            remedy="Say where they should be with --workspace-root.",
        )
    return path, said if moved and before != home else ""


def _free(workspace: Workspace, replace: bool, stack: contextlib.ExitStack) -> None:
    """Hold a user's lock where there is a workspace, and see that it may be replaced."""
    if not workspace.path.exists():
        return
    if workspace.path.is_symlink() or not workspace.path.is_dir():
        raise UsageError(f"{workspace.path} is no folder.", remedy="Move it away.")
    if workspace.internal.is_dir():
        stack.enter_context(workspace.lock())
    if not replace and _holds_something(workspace):
        raise UsageError(
            f"{workspace.path} is not empty.",
            remedy="--replace puts the backup in its place, and what is there is gone for good.",
        )


def _holds_something(workspace: Workspace) -> bool:
    with opened(workspace.path) as top:
        for entry in Walk(top):
            kept = entry.path.partition("/")[0] not in HOUSEKEEPING
            if not entry.is_folder and kept and entry.path != "internal/daemon.lock":
                return True
    return False


@contextlib.contextmanager
def _staging(root: Path, dry_run: bool) -> Iterator[Path]:
    """A new folder beside the workspaces, gone at the end; what a killed one left goes first."""
    if dry_run:
        with tempfile.TemporaryDirectory(prefix="oxydra-") as folder:
            yield Path(folder)
        return
    try:
        private_folder(root)
        with opened(root) as alone:
            fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in root.glob(f"{STAGED}*"):
                _remove(left)
            staged = Path(tempfile.mkdtemp(prefix=STAGED, dir=root))
            try:
                yield staged
            finally:
                _remove(staged)
    except BlockingIOError:
        raise UsageError(
            f"Another backup is being restored in {root}.", remedy="Wait for its end."
        ) from None
    except OSError as error:
        raise OxydraError(
            f"Nothing can be put into {root}: {error.strerror}.",
            remedy="Make room there, or name another --workspace-root.",
        ) from error


def _swap(staged: Path, workspace: Workspace) -> None:
    """Give a user's folder its name; what was there goes."""
    staged.mkdir(mode=0o700, exist_ok=True)  # of a user who had nothing
    staged.chmod(0o700)
    for name in ("internal", "ipc", "audit", *FOLDERS):
        (staged / name).mkdir(mode=0o700, exist_ok=True)
    if not workspace.path.exists():
        staged.rename(workspace.path)
    else:
        state = workspace.path.lstat()
        if os.geteuid() == 0:  # who owns it is who commands run as
            os.chown(staged, state.st_uid, state.st_gid)
        _exchange(staged, workspace.path)  # what was there goes with the staging folder
    sync_names(workspace.path.parent)


def _exchange(one: Path, other: Path) -> None:
    """Let two folders swap names in one step (renameat2, RENAME_EXCHANGE); where the system can't,
    in two, the first of which puts what was there aside. Raises OSError.
    """
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if swap is not None and swap(AT_FDCWD, bytes(one), AT_FDCWD, bytes(other), EXCHANGE) == 0:
        return
    aside = other.with_name(f".replaced-{other.name}")
    other.rename(aside)
    one.rename(other)
    _remove(aside)


def _remove(folder: Path) -> None:
    """Remove a folder of ours with all that is in it, never following a link."""
    if folder.is_symlink() or not stat.S_ISDIR(folder.lstat().st_mode):
        folder.unlink()
        return

    for top, _, _ in os.walk(folder):  # what a folder of the model's forbids its owner
        os.chmod(top, 0o700)
    shutil.rmtree(folder)


# ------------------------------------------------------------------------------- the configuration


def _configure(texts: dict[Path, bytes], keys: dict[str, bytes], folder: Path) -> None:
    """Write the configuration: each file in one step, runner.toml last."""
    if any(path.is_relative_to(folder) for path in texts):
        private_folder(folder)
        mark_made(folder)
    for path, data in texts.items():
        write_private(path, data)
    for name, data in keys.items():
        set_key(name, data.decode("utf-8", "replace"))


def _texts(found: Found, plan: Plan, said: str, done: Restored) -> dict[Path, bytes]:
    """What is to be written where. Raises `UsageError` where something else is there and is not to
    be replaced.
    """
    layers = found.configuration
    if said:
        layer = found.about["workspace_root"]["layer"] or (
            "folder" if "folder" in layers else "home"
        )
        texts = layers.setdefault(layer, {})
        texts[RUNNER_FILE] = set_root(
            texts.get(RUNNER_FILE, b"").decode("utf-8-sig", "replace"), said
        ).encode()
    wanted: dict[Path, bytes] = {}
    for layer, texts in layers.items():
        folder = place(layer, plan.folder)  # type: ignore[arg-type]
        if layer == "system" and os.geteuid() != 0:
            done.told.append(
                f"{folder} can only be written by root: {', '.join(texts)} is left out"
            )
            continue
        for name, data in sorted(texts.items(), key=lambda item: item[0] == RUNNER_FILE):
            wanted[folder / name] = data
    for path, data in list(wanted.items()):
        with contextlib.suppress(FileNotFoundError):
            if path.read_bytes() == data:
                del wanted[path]
            elif not plan.replace:
                raise UsageError(
                    f"{path} is there and says something else.",
                    remedy="--replace puts the backup's in its place; another --config puts it"
                    " elsewhere.",
                )
    done.files = list(wanted)
    return wanted
