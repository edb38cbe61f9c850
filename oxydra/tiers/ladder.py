"""The ladder of the process tier: how well the shell guest can be locked in here, found by trying.

    bwrap+cage   namespaces of its own (bubblewrap) and the cage inside
    cage         Landlock, seccomp and rlimits on the host's own tree
    rlimits      nothing but limits; only for `[tools.shell] allow_unsandboxed = true`

`start` takes the first rung on which the shell daemon says that it is ready. As root it gives up
root first: the daemon runs as whoever owns the workspace's folders. Its interpreter is the system's
where there is one, since ours may lie in a home that the other user can't read. No thread runs
here; the runner waits for what is started here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import oxydra.cage
import oxydra.mux
from oxydra.errors import OxydraError
from oxydra.tiers.base import ShellSpec, ending, guest_script, identities, opened
from oxydra.tiers.shell_line import STOP_SECONDS, ShellLine

log = logging.getLogger(__name__)

SCRATCH_BYTES = 64 << 20  # of /var/tmp and /dev/shm in a namespace
SYSTEM_PYTHONS = (
    *(f"/usr/bin/python3.{minor}" for minor in (13, 12, 11, 10)),
    *("/usr/bin/python3", "/usr/local/bin/python3"),
)


class NoShell(OxydraError):
    """No rung of the ladder holds here. `reasons` say what was wrong with each that was tried."""

    code = "shell_unavailable"

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__(
            f"Commands can't be sandboxed here: {'; '.join(reasons)}.",
            remedy="Install bubblewrap (apt install bubblewrap), or use Linux 5.13 or newer.",
        )
        self.reasons = tuple(reasons)


class LadderProcess(ShellLine):
    """A shell guest that is ready, seen from outside."""

    def __init__(self, child: subprocess.Popen[bytes], control: socket.socket, level: str) -> None:
        super().__init__(control, level)
        self._child = child
        self.pid = child.pid

    def wait(self) -> str:
        """Block until it has ended; says how."""
        return ending(self._child.wait())

    def stop(self) -> None:
        """End it and everything it started: by its own means, which leave nothing behind, then by
        force.
        """
        self.hang_up()
        _end(self._child)
        self.close()


def start(spec: ShellSpec) -> LadderProcess:
    """Start the shell guest as high on the ladder as it goes. Raises `NoShell`."""
    reasons: list[str] = []
    for level in spec.levels:
        why = ""
        for namespaces in _attempts(level):
            try:
                return _start(spec, level, namespaces)
            except (OSError, OxydraError) as error:
                why = str(error)
                log.info("the shell guest does not start at level %s: %s", level, why)
        reasons.append(f"{level}: {why or 'bubblewrap is not installed'}")
    raise NoShell(reasons)


def _attempts(level: str) -> list[list[str]]:
    """The beginnings of command lines by which a level can be reached, best first."""
    if level != "bwrap+cage":
        return [[]]
    bwrap = shutil.which("bwrap")
    if bwrap is None or sys.platform != "linux":
        return []
    scratch = [
        word
        for place in ("/var/tmp", "/dev/shm")
        for word in ("--size", str(SCRATCH_BYTES), "--tmpfs", place)
    ]
    if os.geteuid() == 0:
        # bwrap looks paths up by name, where only root may pass; the daemon gives root up inside
        plain = [bwrap, *NAMESPACES, "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        return [[*plain, *scratch], plain]
    plain = [bwrap, *NAMESPACES, "--unshare-user"]
    return [[*plain, "--disable-userns", *scratch], plain]  # bwrap knows the rest since 0.8


NAMESPACES = (
    *("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
    *("--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "oxydra"),
    *("--proc", "/proc", "--dev", "/dev"),
)


def _start(spec: ShellSpec, level: str, namespaces: list[str]) -> LadderProcess:
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as stack:
        stack.enter_context(theirs)
        daemon = open_source(stack, guest_script("shell-daemon"))
        servers = open_source(stack, guest_script("shell-servers"))
        cage = open_source(stack, Path(oxydra.cage.__file__))
        places, guards = stack.enter_context(opened(spec))
        kept = [theirs.fileno(), daemon, servers, cage, *places.values()]
        python, prefixes = interpreter(spec.uid)
        command = [python, "-I", "-S", f"/proc/self/fd/{daemon}"]
        command += ["--control", str(theirs.fileno()), "--cage", f"/proc/self/fd/{cage}"]
        command += ["--servers", f"/proc/self/fd/{servers}"]
        if namespaces and spec.egress is not None:
            files = (Path(oxydra.mux.__file__), guest_script("egress-forwarder"))
            forwarder = [open_source(stack, file) for file in files]
            kept += forwarder
            command += ["--egress", *(f"/proc/self/fd/{file}" for file in forwarder)]
        if namespaces:
            mounts = [(f.writable, places[f.root], f.virtual) for f in spec.folders]
            mounts += [(guard.writable, place, guard.at) for guard, place in guards.items()]
            kept += guards.values()
            command = [*namespaces, *_mounts(prefixes, mounts), "--", *command]
        drop = os.geteuid() == 0 and not namespaces
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=spec.log,
            stderr=spec.log,
            env={},  # of bwrap's too: its first process shows it to whoever is inside
            cwd="/",
            pass_fds=kept,
            start_new_session=True,
            user=spec.uid if drop else None,
            group=spec.gid if drop else None,
            extra_groups=[] if drop else None,
        )
        theirs.close()
        guest = LadderProcess(child, ours, level)
        try:
            guest.configure(
                spec,
                places,
                identities(guards),
                (spec.uid, spec.gid),
                shell=shutil.which("bash") or "/bin/bash",
                attributes=level in oxydra.cage.NAMESPACED or spec.dedicated,
                limits={
                    "data": spec.isolation.resources.max_memory_mib << 20,
                    "processes": spec.isolation.resources.max_processes,
                },
            )
        except BaseException:
            _end(child)
            ours.close()
            raise
    return guest


def _mounts(prefixes: Sequence[str], folders: Iterable[tuple[bool, int, str]]) -> list[str]:
    """What is to be seen in a namespace: the system and the folders, nothing else. Of each of
    these: whether it can be written, its descriptor, its path inside.
    """
    words = ["--ro-bind", "/usr", "/usr"]
    for name in ("/etc", "/etc/pki", "/etc/pki/tls", "/etc/ssl", "/mnt"):
        words += ["--dir", name]  # made by the way they would be root's alone
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(name):
            words += ["--symlink", os.readlink(name), name]
        else:
            words += ["--ro-bind-try", name, name]
    for name in oxydra.cage.SYSTEM:
        if name.startswith("/etc/"):
            words += ["--ro-bind-try", name, name]
    for prefix in prefixes:
        words += ["--ro-bind", prefix, prefix]
    for writable, descriptor, name in folders:
        words += [
            "--bind" if writable else "--ro-bind",
            f"/proc/self/fd/{descriptor}",
            name,
        ]
    return words


def interpreter(uid: int) -> tuple[str, tuple[str, ...]]:
    """A Python that `uid` can run, and folders outside /usr that it needs. Raises `OxydraError`."""
    if sys.platform == "linux":
        for path in SYSTEM_PYTHONS:
            if os.access(path, os.X_OK):
                return path, ()
    if uid == os.geteuid():
        return sys.executable, tuple({sys.prefix, sys.base_prefix} - {"/usr", "/usr/local"})
    raise OxydraError(
        "there is no Python that an unprivileged user can run",
        remedy="Install the system's python3.",
    )


def open_source(stack: contextlib.ExitStack, path: Path) -> int:
    """A descriptor of a copy of a file, which everybody can read wherever the file lies."""
    if not hasattr(os, "memfd_create"):
        descriptor = os.open(path, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        return descriptor
    descriptor = os.memfd_create(path.name)
    stack.callback(os.close, descriptor)
    os.write(descriptor, path.read_bytes())
    return descriptor


def _end(child: subprocess.Popen[bytes]) -> None:
    """Wait for a child that was told to end; then TERM, by which a warden takes all with it; then
    KILL.
    """
    for number in (0, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            if number:
                os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(STOP_SECONDS)
            return
