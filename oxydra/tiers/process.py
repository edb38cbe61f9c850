"""The process tier: the guests are children of the runner, on the host's own tree.

The agent guest runs with the runner's uid and cages itself before it does anything else: it keeps
the inherited listener, one stream and the workspace, and can neither make a socket nor read
anything of the user's. Its environment holds no secret; the envelope comes over its standard input.
The shell guest is caged from outside: see `ladder`. No thread runs here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys

from oxydra.errors import OxydraError
from oxydra.frames import pack
from oxydra.tiers import ladder
from oxydra.tiers.base import GuestSpec, HostTree, ShellSpec, ending, guest_script
from oxydra.types import Json


class ProcessGuest:
    """The child and its process group."""

    def __init__(self, child: subprocess.Popen[bytes], stream: socket.socket) -> None:
        self._child = child
        self.pid = child.pid
        self.stream = stream

    def wait(self) -> str:
        return ending(self._child.wait())

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


class ProcessTier(HostTree):
    """Starts `guest/oxydra-vm` with this interpreter."""

    name = "process"

    def degraded(self) -> list[Json]:
        return []  # the guests say how well they are caged

    def start(self, spec: GuestSpec) -> ProcessGuest:
        ours, theirs = socket.socketpair()
        listener = spec.listener.fileno()
        command = [sys.executable, str(guest_script("oxydra-vm")), "--bootstrap-stdin"]
        command += ["--listen-fd", str(listener), "--stream-fd", str(theirs.fileno())]
        with theirs:
            try:
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=spec.log,
                    stderr=spec.log,
                    env=_environment(),
                    cwd="/",
                    pass_fds=(listener, theirs.fileno(), spec.lock),
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise OxydraError(
                    f"The agent guest could not be started: {error}.",
                    remedy="Check that the installation is complete.",
                ) from error
        if child.stdin is None:
            raise OxydraError("The agent guest has no bootstrap stream.")
        with contextlib.suppress(BrokenPipeError), child.stdin as bootstrap:
            bootstrap.write(pack("bootstrap", spec.envelope.to_json()))
        return ProcessGuest(child, ours)

    def start_shell(self, spec: ShellSpec) -> ladder.LadderProcess:
        return ladder.start(spec)


def _environment() -> dict[str, str]:
    """What a guest needs to run Python, and nothing that could be a secret."""
    kept = ("PATH", "LANG", "LC_ALL", "TZ")
    return {name: os.environ[name] for name in kept if name in os.environ}
