"""What a tier is: a way to start the guests so that they reach only what they are given."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from oxydra.config import Isolation
from oxydra.errors import OxydraError
from oxydra.frames import Envelope
from oxydra.types import Folder, Json

# how well commands are locked in, best first; the first is the microVM tier's, the second the
# container tier's, the others the process tier's
LEVELS = ("microvm+cage", "container+cage", "bwrap+cage", "cage", "rlimits")
LOG_BYTES, LOG_SECONDS = 16 << 20, 3600.0  # what a container or machine may print in which time


@dataclass(frozen=True, slots=True)
class Guard:
    """A mount inside a folder that commands can write, by which what is there stays as it is.

    `path` is below the folder `root`. One that is `writable` is a folder on the way to another,
    mounted so that it can't be renamed.
    """

    root: str
    path: str
    writable: bool = False

    @property
    def at(self) -> str:
        """Where it is in a guest."""
        return f"/{self.root}/{self.path}"


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """Everything an agent guest is started with.

    `listener` is the gateway's bound and listening socket; `lock` the descriptor of
    `internal/daemon.lock`, which a guest that can holds as long as it lives; `log` the descriptor
    its output goes to. `uid` and `gid` own the workspace: a tier that can runs the guest as them.
    `folders` are those that tools may use, where they are on the host.
    """

    workspace: Path
    folders: Sequence[Folder]
    uid: int
    gid: int
    envelope: Envelope
    listener: socket.socket
    lock: int
    log: int
    isolation: Isolation


@dataclass(frozen=True, slots=True)
class ShellSpec:
    """What a shell guest is started with.

    `workspace` is the user's folder on the host, `isolation` what its guests may have. `folders`
    are those that commands have, where they are on the host, `shared` and `tmp` first; `guards` lie
    in them, outermost first. `uid` and `gid` are whom it runs as, `dedicated` where that owns
    nothing else. `env` are variables its
    sessions get besides the usual ones. `log` is a descriptor for what the guest itself has to say.
    `levels` are the rungs that may be tried, `newest_landlock` the newest version of it to use.
    `egress` is the guest's end of a stream to the broker, for commands that may have a network;
    only a level with a network namespace of its own takes it. `servers` are programs that may be
    started and spoken to, by name: rows `{command, env}`, which may hold keys.
    """

    workspace: Path
    isolation: Isolation
    folders: Sequence[Folder]
    uid: int
    gid: int
    dedicated: bool
    env: Mapping[str, str]
    log: int
    levels: Sequence[str] = LEVELS[2:4]
    newest_landlock: int = 99
    egress: socket.socket | None = None
    guards: Sequence[Guard] = ()
    servers: Mapping[str, Json] = field(default_factory=dict, repr=False)

    def folders_at(self, level: str) -> list[Folder]:
        """The folders as commands have them at this level: where nothing can be mounted, one with
        guards in it can only be read.
        """
        guarded = {guard.root for guard in self.guards} if level == "cage" else set()
        return [
            replace(folder, writable=folder.writable and folder.root not in guarded)
            for folder in self.folders
        ]


class GuestProcess(Protocol):
    """A started agent guest, seen from outside. `stream` is the runner's end of its one stream,
    over which both run a mux (`oxydra/mux.py`); the guest counts as the one that opened it.
    """

    pid: int
    stream: socket.socket

    def wait(self) -> str:
        """Block until it has ended; says how, as in `exit 1` or `killed by SIGKILL`."""

    def kill(self) -> None:
        """End it and everything it started, at once."""


class ShellProcess(Protocol):
    """A started shell guest that is ready, seen from outside.

    `level` is how well it is caged, one of `LEVELS`; `landlock` the version of it in force, 0 for
    none.
    """

    pid: int
    level: str
    landlock: int

    def attach(self, stream: socket.socket) -> None:
        """Let whoever holds the other end of `stream` use it. Raises OSError if it has ended."""

    def wait(self) -> str:
        """Block until it has ended; says how."""

    def stop(self) -> None:
        """End it and everything it started."""


class Tier(Protocol):
    """A registry entry of `tiers/registry.py`.

    `forwards`: the runner takes the gateway's connections and forwards each over the guest's
    stream; else the guest inherits the listener. `as_owner`: the agent guest runs as the owner of
    the workspace, who must be able to use all of it; else as the runner. `shell_level`: how well
    commands are caged, one of `LEVELS`; empty where only a shell guest that has started can tell.
    """

    name: str
    forwards: bool
    as_owner: bool
    shell_level: str

    def guest_root(self, workspace: Path) -> str:
        """Where a guest of this tier finds the folders of a workspace."""

    def guest_folders(self, folders: Sequence[Folder]) -> list[Folder]:
        """Folders of the host, where a guest of this tier finds them."""

    def described(self, uid: int) -> Json:
        """What `startup_status` says of this tier besides its name, with guests of that user's.
        Raises `OxydraError` if there can be none.
        """

    def degraded(self) -> list[Json]:
        """What this tier does not protect here: rows `{code, detail}` for `startup_status`."""

    def start(self, spec: GuestSpec) -> GuestProcess:
        """Start the agent guest. Raises `OxydraError` with the remedy."""

    def start_shell(self, spec: ShellSpec) -> ShellProcess:
        """Start the shell guest, on a thread that outlives it, maybe while another starts the agent
        guest. Raises `OxydraError` with the remedy.
        """


class HostTree:
    """What a `Tier` is whose agent guest is a process on the host's own tree."""

    forwards = False
    as_owner = False
    shell_level = ""

    def guest_root(self, workspace: Path) -> str:
        return str(workspace)

    def guest_folders(self, folders: Sequence[Folder]) -> list[Folder]:
        return list(folders)

    def described(self, uid: int) -> Json:
        return {}


class GuestLog:
    """What a guest prints, on its way to its log: `LOG_BYTES` of it in `LOG_SECONDS`."""

    def __init__(self, log: int) -> None:
        """`log` stays the caller's."""
        self._log = os.dup(log)
        self._room = LOG_BYTES
        self._until = time.monotonic() + LOG_SECONDS

    def write(self, said: bytes) -> None:
        if (now := time.monotonic()) >= self._until:
            self._room, self._until = LOG_BYTES, now + LOG_SECONDS
        if self._room <= 0:
            return
        self._room -= len(said)
        if self._room <= 0:
            said += b"\n[what this guest prints in the rest of this hour is not kept]\n"
        with contextlib.suppress(OSError):  # a full disk must not end the guest
            os.write(self._log, said)

    def close(self) -> None:
        """Once."""
        os.close(self._log)


@contextlib.contextmanager
def opened(spec: ShellSpec) -> Iterator[tuple[dict[str, int], dict[Guard, int]]]:
    """Descriptors of the folders, by root, and of the guards in them, reached through no link.

    As long as they are open nothing else can have their inodes. Raises OSError.
    """
    with contextlib.ExitStack() as stack:

        def keep(descriptor: int) -> int:
            stack.callback(os.close, descriptor)
            return descriptor

        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        folders = {folder.root: keep(os.open(folder.at, flags)) for folder in spec.folders}
        guards: dict[Guard, int] = {}
        for guard in spec.guards:
            place = folders[guard.root]
            for name in guard.path.split("/"):
                place = keep(os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=place))
            if stat.S_ISLNK(os.fstat(place).st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), guard.at)
            guards[guard] = place
        yield folders, guards


def identities(guards: Mapping[Guard, int]) -> dict[Guard, tuple[int, int]]:
    """Device and inode of what `opened` has opened."""
    states = {guard: os.fstat(place) for guard, place in guards.items()}
    return {guard: (state.st_dev, state.st_ino) for guard, state in states.items()}


def ending(status: int) -> str:
    """How a process with this `Popen.returncode` ended."""
    if status >= 0:
        return f"exit {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def guest_script(name: str) -> Path:
    """`guest/<name>`: beside the package in a checkout, inside it in an install."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "guest", package.parent / "guest"):
        if (folder / name).is_file():
            return folder / name
    raise OxydraError(
        f"The guest program {name!r} is missing from this installation.",
        remedy="Install Oxydra again.",
    )
