"""One user's folders on the host, and the small files by which a daemon is found.

    <workspace_root>/<user>/          0700
        shared/ tmp/ vault/           the paths a model sees as /shared, /tmp, /vault, where
                                      `[mounts]` names no others
        internal/                     the database, and `daemon.lock`; `.oxydra` is a link to it
        audit/                        0700, the runner's own: what left this machine
        logs/                         runtime.log (the agent guest), runner.log (the runner)
        skills/                       the runner's own: files of trusted skills, /mnt/skills
        ipc/                          0700, written by the runner only: gateway-endpoint,
                                      gateway-token, gateway-tokens.json,
                                      runner-control.sock, audit.json

`internal`, `logs`, `shared` and `tmp` can be written by a guest and so are hostile: files in them
are opened without following links, and only if they are regular files with one name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from oxydra.config import Mounts
from oxydra.config.fields import USER
from oxydra.errors import ConfigError, OxydraError
from oxydra.skills import ROOT as SKILLS
from oxydra.tiers import door
from oxydra.types import Folder

FOLDERS = ("shared", "tmp", "vault", "ipc", "logs", "internal", "audit", "skills")
TOKEN = re.compile(r"[A-Za-z0-9_-]{32,128}")


class AlreadyRunning(OxydraError):
    """Another daemon holds this user's lock."""

    code = "already_running"


class Workspace:
    """The folders of `user` below `root`. Nothing is made before `prepare`.

    `mounts` are folders of the user's own in the place of `shared`, `tmp` and `vault`, and besides
    them; without it the workspace's are meant. With `skills` guests have their folder too.
    """

    def __init__(
        self, root: Path, user: str, mounts: Mounts | None = None, *, skills: bool = False
    ) -> None:
        if not re.fullmatch(USER, user):
            raise ConfigError(
                f"{user[:64]!r} cannot be a user's name.",
                remedy="Use up to 32 of a-z, 0-9, '.', '_', '-'; start with a letter or digit.",
            )
        self.user = user
        self.path = root.absolute() / user
        self.mounts = mounts or Mounts.of(self.path)
        self.skills = self.path / "skills"
        self.folders = tuple(self.mounts.folders(self.path))
        if skills:
            self.folders += (Folder(SKILLS, str(self.skills), False),)
        self.shared, self.tmp = self.mounts.shared, self.mounts.tmp
        # What max_workspace_mib is about: the user's own folders are not Oxydra's to count.
        self.counted = tuple(f for f in (self.shared, self.tmp) if self.owns(f))
        self.ipc = self.path / "ipc"
        self.logs = self.path / "logs"
        self.audit = self.path / "audit"
        self.internal = self.path / "internal"
        self.database = self.internal / "oxydra.db"
        self.control_socket = self.ipc / "runner-control.sock"

    def owns(self, folder: Path) -> bool:
        """Whether a folder is the workspace's own, not one of the user's that is mounted."""
        return folder.parent == self.path

    def prepare(self) -> None:
        """Make what is missing. Raises `OxydraError` if a folder is a link, a file or another's."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self.path, *(self.path / name for name in FOLDERS)):
                with contextlib.suppress(FileExistsError):
                    folder.mkdir(mode=0o700)
                self._check(folder)
            with contextlib.suppress(FileExistsError):
                (self.path / ".oxydra").symlink_to(self.internal.name)
        except OSError as error:
            raise OxydraError(
                f"The workspace {self.path} cannot be made: {error.strerror}.",
                remedy="Set workspace_root in runner.toml to a folder that you can write.",
            ) from error

    def _check(self, folder: Path) -> None:
        state = folder.lstat()
        if not stat.S_ISDIR(state.st_mode):
            raise OxydraError(
                f"{folder} is not a folder.", remedy="Move it away; Oxydra makes a folder there."
            )
        if state.st_uid != os.geteuid() and os.geteuid() != 0:
            raise OxydraError(
                f"{folder} belongs to another user (uid {state.st_uid}).",
                remedy="Run Oxydra as that user, or set another workspace_root.",
            )
        if stat.S_IMODE(state.st_mode) & 0o077 and folder in (self.path, self.ipc, self.audit):
            folder.chmod(0o700)

    # --------------------------------------------------------------------------------- the lock

    @contextlib.contextmanager
    def lock(self, wait: float = 0.0) -> Iterator[int]:
        """Hold `internal/daemon.lock`; yields its descriptor, which a guest inherits.

        The lock is free again when the last process that holds the descriptor is gone, so nobody
        opens the database beside a guest that outlives its runner. Waits up to `wait` seconds.
        Raises `AlreadyRunning`.
        """
        lock = open_regular(self.internal / "daemon.lock", os.O_RDWR | os.O_CREAT)
        try:
            end = time.monotonic() + wait
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise AlreadyRunning(
                            f"Oxydra is already running for {self.user}.",
                            remedy="`oxydra-runner status` shows it; `oxydra-runner restart` starts"
                            " it anew.",
                        ) from None
                    threading.Event().wait(0.02)  # flock has no deadline of its own
            yield lock
        finally:
            os.close(lock)

    def locked(self) -> bool:
        """Whether a daemon, or what is left of one, holds the lock."""
        try:
            with self.lock():
                return False
        except AlreadyRunning:
            return True
        except OSError:
            return False

    # ---------------------------------------------------------------------------- ipc and logs

    def token(self) -> str:
        """The local client's gateway token: the one that is there, else a new one."""
        path = self.ipc / "gateway-token"
        with contextlib.suppress(OSError, UnicodeDecodeError):
            there = read_small(path).strip()
            if TOKEN.fullmatch(there):
                return there
        token = new_token()
        self.write_ipc("gateway-token", token + "\n")
        return token

    def write_ipc(self, name: str, text: str) -> None:
        """Write a file of `ipc/` in one step, mode 0600."""
        temporary = self.ipc / f".{name}.{secrets.token_hex(4)}"
        out = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(out, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.replace(self.ipc / name)

    def forget_ipc(self) -> None:
        """Remove what would make a dead daemon look alive, and what it was about to hand over."""
        for name in ("gateway-endpoint", "runner-control.sock"):
            with contextlib.suppress(FileNotFoundError):
                (self.ipc / name).unlink()
        door.clear(self.ipc)

    def open_log(self, name: str) -> int:
        """A descriptor that appends to `logs/<name>`, which may be cut at any time (`logfiles`)."""
        return open_regular(self.logs / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def log_tail(self, name: str, lines: int = 5) -> str:
        """The last lines of a log, for an error message."""
        try:
            file = os.fdopen(open_regular(self.logs / name, os.O_RDONLY), "rb")
        except OSError:
            return ""
        with file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            text = file.read().decode("utf-8", "replace")
        return "\n".join(text.splitlines()[-lines:])


def new_token() -> str:
    """256 random bits, and what tells people and scrubbers that it is a token of ours."""
    return f"oxydra_{secrets.token_urlsafe(32)}"


def open_regular(path: Path, flags: int) -> int:
    """Open a regular file with one name, never through a link at its last component.

    Raises OSError; what else is found there is refused with `PermissionError`.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode) or state.st_nlink > 1:
        os.close(descriptor)
        raise PermissionError(1, "not a regular file with one name", str(path))
    return descriptor


def read_small(path: Path, limit: int = 4096) -> str:
    """The text of a small file of ours. Raises OSError."""
    with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
        return file.read(limit).decode("utf-8")
