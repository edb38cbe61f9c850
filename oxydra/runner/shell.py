"""The runner's side of the shell guest: as whom it runs, what it gets, and that it is running.

As root, commands run as the workspace's owner; where that is root too, as a uid that owns nothing
else, to which `shared` and `tmp` are given once, when they are new. One thread,
`oxydra-shell-wait`, starts the guest, waits for its end and reports it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from oxydra.cage import NAMESPACED, SIGNALS_HELD
from oxydra.config import Isolation
from oxydra.config.schema import VARIABLES, ShellConfig
from oxydra.errors import ConfigError, OxydraError
from oxydra.runner.guards import Unguardable, guards
from oxydra.runner.stream import GuestStream, Serve
from oxydra.runner.workspace import Workspace
from oxydra.threads import Service
from oxydra.tiers.base import Guard, ShellProcess, ShellSpec, Tier
from oxydra.types import Folder, Json
from oxydra.walk import Walk, opened

DEDICATED = range(61184, 65520)  # what systemd keeps for dynamic users: no package takes one

UNCAPPED = {
    "code": "totals_uncapped",
    "detail": "Nothing caps the memory and processor time that all commands take together: each "
    "process is limited, their sum is not. A container or a cgroup with limits would.",
}
OLD_KERNEL = {
    "code": "signals_limited",
    "detail": "This kernel can't tell whom a command may signal (Landlock before version 6), so "
    "commands can signal their own process group only.",
}
NO_LANDLOCK = {
    "code": "no_landlock",
    "detail": "This kernel has no Landlock: commands are held by namespaces and seccomp alone.",
}
NO_EGRESS = {
    "code": "no_shell_egress",
    "detail": "Commands have no network, though [egress] allows one: only a sandbox with a network "
    "of its own can offer it. Install bubblewrap, or use the container tier.",
}
CONTAINED = ("microvm+cage", "container+cage")  # levels that limit what all commands take
UNMOUNTABLE = (
    "holds what programs on this machine act upon, which only a sandbox with mounts of its own can "
    "protect; install bubblewrap, or use the container tier"
)
UNSANDBOXED = {
    "code": "shell_unsandboxed",
    "detail": "WARNING: THE SHELL IS NOT SANDBOXED. Commands that the model chooses run as your "
    "user and can read, change and send whatever you can: your files, your keys, your network. "
    "[tools.shell] allow_unsandboxed = true allows it.",
}


class EgressLine:
    """The stream by which commands reach the broker; `theirs` is the guest's end.

    `oxydra-shell-mux` reads ours, from `start` until it ends or is closed.
    """

    def __init__(self, serve: Serve) -> None:
        ours, self.theirs = socket.socketpair()
        self._stream = GuestStream(ours, "shell-mux", serve)

    def start(self) -> None:
        self.theirs.close()  # the guest has its own copy; ours would hide its end
        self._stream.start()

    def close(self) -> None:
        """Idempotent."""
        self._stream.close()
        self.theirs.close()


class ShellGuest:
    """A shell guest. Its own thread starts it, which outlives it: what the thread of a parent has
    started ends with that thread. `on_exit(how)` is called there, once, unless it was stopped.
    """

    def __init__(
        self,
        tier: Tier,
        spec: ShellSpec,
        on_exit: Callable[[str], None],
        egress: EgressLine | None = None,
        rows: Sequence[Json] = (),
    ) -> None:
        """`egress` is for commands that may have a network; what can't have one does without.
        `rows` say what else commands do not have. The log of `spec` is closed here.
        """
        self._tier = tier
        self._spec = spec
        self._egress = egress
        self._rows = rows
        self._offline = False
        self._started = threading.Event()
        self._process: ShellProcess | None = None
        self._failure: BaseException | None = None
        self.used = False  # whether an agent guest has had a stream to it
        self._on_exit = on_exit
        self._waiter = Service("shell-wait", self._live)
        self._waiter.start()

    def await_start(self) -> None:
        """Return when it is ready. Raises `OxydraError` with the remedy if it can't be."""
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    @property
    def _running(self) -> ShellProcess:
        if self._process is None:
            raise ConnectionError("the shell guest has not started")
        return self._process

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def level(self) -> str:
        return self._running.level

    @property
    def networked(self) -> bool:
        """Whether its commands have a way to the broker."""
        return self._egress is not None and not self._offline

    def stream(self) -> socket.socket:
        """A new stream to it, to be handed on. Raises OSError if it has ended."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._running.attach(theirs)
            except BaseException:
                ours.close()
                raise
        self.used = True
        return ours

    def stop(self) -> None:
        """End it and everything that runs in it, once it has started."""
        self._waiter.stopping.set()
        self._started.wait()
        if self._process is not None:
            self._process.stop()
        self._waiter.stop()
        if self._egress is not None:
            self._egress.close()

    def degraded(self) -> list[Json]:
        """What it does not protect here."""
        contained = self.level in CONTAINED  # what an engine can't limit, the tier says
        rows = [*self._rows, *([] if contained or memory_is_capped() else [UNCAPPED])]
        less = [f for f in self._spec.folders_at(self.level) if f not in self._spec.folders]
        rows += [read_only(folder, UNMOUNTABLE) for folder in less]
        if self._offline:
            rows.append(NO_EGRESS)
        if self.level == "rlimits":
            return [UNSANDBOXED, *rows]
        if self._running.landlock == 0:
            rows.append(NO_LANDLOCK)
        elif self._running.landlock < 6 and self.level in SIGNALS_HELD:
            rows.append(OLD_KERNEL)
        return rows

    def _live(self, service: Service) -> None:
        process: ShellProcess | None = None
        try:
            process = self._tier.start_shell(self._spec)
            self._offline = self._egress is not None and process.level not in NAMESPACED
            if self._egress is not None:
                (self._egress.close if self._offline else self._egress.start)()
        except BaseException as error:
            self._failure = unavailable(error) if isinstance(error, OSError) else error
            if process is not None:
                process.stop()
            if self._egress is not None:
                self._egress.close()
            return
        finally:
            os.close(self._spec.log)
            self._process = process
            self._started.set()
        how = process.wait()
        if not service.stopping.is_set():
            process.stop()  # its end of the streams
            self._on_exit(how)


def begin(
    tier: Tier,
    workspace: Workspace,
    config: ShellConfig,
    isolation: Isolation,
    secrets: Sequence[str],
    on_exit: Callable[[str], None],
    levels: tuple[str, ...] = (),
    serve: Serve | None = None,
    servers: Mapping[str, Json] | None = None,
) -> ShellGuest:
    """Let the shell guest start as well caged as it can be here, or at one of `levels`.

    Raises `ConfigError` if `env_keys` would give a key away. `secrets` are the keys that are
    configured; `serve` takes the channels that commands open to the broker, where `[egress]` lets
    them; `servers` are programs that may be started there by name, rows `{command, env}`.
    """
    env = environment(config, secrets)
    uid, gid = owner(workspace)
    with contextlib.ExitStack() as undo:
        try:
            output = workspace.open_log("shell.log")
            undo.callback(os.close, output)
            for own in (workspace.shared, workspace.tmp):
                if workspace.owns(own):
                    give(own, uid, gid)
            folders, found, rows = for_commands(workspace.folders, uid, gid)
            egress: EgressLine | None = None
            if serve is not None and isolation.egress.shell != "none":
                egress = EgressLine(serve)
                undo.callback(egress.close)
        except OSError as error:
            raise unavailable(error) from error
        spec = ShellSpec(
            workspace=workspace.path,
            isolation=isolation,
            folders=folders,
            guards=found,
            uid=uid,
            gid=gid,
            dedicated=os.geteuid() == 0 and uid in DEDICATED,
            env=env,
            log=output,
            levels=levels or allowed_levels(config),
            egress=None if egress is None else egress.theirs,
            servers=servers or {},
        )
        guest = ShellGuest(tier, spec, on_exit, egress, rows)
        undo.pop_all()
    return guest


def unavailable(error: OSError) -> OxydraError:
    return OxydraError(
        f"The shell guest cannot be started: {error.strerror}.",
        remedy="logs/shell.log in the workspace may say more.",
        code="shell_unavailable",
    )


def for_commands(
    folders: Iterable[Folder], uid: int, gid: int
) -> tuple[list[Folder], list[Guard], list[Json]]:
    """Which folders commands have, what in them stays as it is, and what they can only read though
    the person has asked for more.
    """
    given: list[Folder] = []
    found: list[Guard] = []
    rows: list[Json] = []
    for folder in folders:
        if folder.root == "vault":
            continue
        if folder.writable and folder.guarded:
            try:
                if not allowed(folder, 3, uid, gid):
                    raise Unguardable("belongs to somebody else, whom commands do not run as")
                found += guards(folder)
            except Unguardable as error:
                folder = replace(folder, writable=False)
                rows.append(read_only(folder, str(error)))
        if not allowed(folder, 5, uid, gid):
            detail = f"Commands can't read {folder.virtual}: it belongs to somebody else."
            rows.append({"code": "folder_closed", "detail": detail})
        given.append(folder)
    return given, found, rows


def read_only(folder: Folder, why: str) -> Json:
    """What status says of a folder that commands can only read."""
    return {
        "code": "folder_read_only",
        "detail": f"Commands can only read {folder.virtual}: it {why}. File tools can still write.",
    }


def allowed(folder: Folder, bits: int, uid: int, gid: int) -> bool:
    """Whether a folder's mode gives a user these of `rwx`."""
    state = os.stat(folder.at)
    mode = state.st_mode >> (6 if state.st_uid == uid else 3 if state.st_gid == gid else 0)
    return uid == 0 or mode & bits == bits


def allowed_levels(config: ShellConfig) -> tuple[str, ...]:
    """The rungs of the ladder that the configuration allows."""
    sandboxed = ("bwrap+cage", "cage")
    return (*sandboxed, "rlimits") if config.allow_unsandboxed else sandboxed


def environment(config: ShellConfig, secrets: Sequence[str]) -> dict[str, str]:
    """The variables that `env_keys` names. Raises `ConfigError` if one holds a provider's key."""
    env = {name: os.environ[name] for name in config.env_keys if name in os.environ}
    for name in config.env_keys:
        if name in VARIABLES.values() or (env.get(name, "") in secrets and len(env[name]) > 8):
            raise ConfigError(
                f"{name} holds a provider's key, which no command may see.",
                remedy="Take it out of env_keys.",
                key="tools.shell.env_keys",
            )
    return env


# ------------------------------------------------------------------------------------------ as whom


def owner(workspace: Workspace) -> tuple[int, int]:
    """The uid and gid that commands run as: the owner of the workspace, or of a `shared` of the
    user's own.
    """
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    for folder in (workspace.path, workspace.shared):
        state = folder.lstat()
        if state.st_uid != 0:
            return state.st_uid, state.st_gid
    taken = set()
    for other in workspace.path.parent.iterdir():
        with contextlib.suppress(OSError):
            taken.add((other / "shared").lstat().st_uid)
    first = zlib.crc32(workspace.user.encode()) % len(DEDICATED)
    for step in range(len(DEDICATED)):
        uid = DEDICATED[(first + step) % len(DEDICATED)]
        if uid not in taken and not _is_known(uid):
            return uid, uid
    raise OxydraError("There is no free uid left for commands.", code="shell_unavailable")


def _is_known(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def give(folder: Path, uid: int, gid: int, *, again: bool = False) -> None:
    """Make a folder of root's, and what root owns in it, another's.

    By descriptors and without following links; of files only regular ones with one name: another
    name may lie anywhere. A folder that is not root's was given before and is left as it is, unless
    `again`: then what root has made in it since is given too. Raises OSError.
    """
    with opened(folder) as top:
        fresh = os.fstat(top).st_uid == 0
        if uid == 0 or os.geteuid() != 0 or not (fresh or again):
            return
        for entry in Walk(top):
            if entry.state.st_uid == 0 and (entry.is_folder or entry.is_plain):
                with contextlib.suppress(FileNotFoundError):
                    descriptor = entry.open()
                    try:
                        os.fchown(descriptor, uid, gid)
                    finally:
                        os.close(descriptor)
        if fresh:
            os.fchown(top, uid, gid)  # last: an interrupted walk is begun again


def memory_is_capped() -> bool:
    """Whether a cgroup limits the memory of this process and all that it starts."""
    try:
        rows = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return False
    for _number, controllers, path in rows:
        folder, name = "/sys/fs/cgroup", "memory.max"
        if controllers:
            if "memory" not in controllers.split(","):
                continue
            folder, name = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
        for place in (Path(folder + path), *Path(folder + path).parents):
            with contextlib.suppress(OSError, ValueError):
                if int((place / name).read_text()) < 1 << 50:
                    return True
    return False
