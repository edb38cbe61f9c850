"""The process tier: the guests are children of the runner, on the host's own tree.

The agent guest runs with the runner's uid. It gets an environment without secrets, the inherited
listener and one stream; its configuration and the credentials come over its standard input. Nothing
separates it from the user's other processes yet, and `degraded` says so. The shell guest is caged:
see `ladder`. No thread runs here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

from oxydra.errors import OxydraError
from oxydra.frames import pack
from oxydra.tiers import ladder
from oxydra.tiers.base import GuestSpec, ShellSpec, ending, guest_script
from oxydra.types import Json


class ProcessGuest:
    """The child and its process group."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self.pid = child.pid

    def wait(self) -> str:
        return ending(self._child.wait())

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


class ProcessTier:
    """Starts `guest/oxydra-vm` with this interpreter."""

    name = "process"

    def degraded(self) -> list[Json]:
        return [
            {
                "code": "keys_exposed",
                "detail": "Keys exposed, users not separated: in the process tier the agent runs "
                "as your own user, uncaged.",
            },
        ]

    def start(self, spec: GuestSpec) -> ProcessGuest:
        listener, control = spec.listener.fileno(), spec.control.fileno()
        command = [sys.executable, str(guest_script("oxydra-vm")), "--bootstrap-stdin"]
        command += ["--listen-fd", str(listener), "--control-fd", str(control)]
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=spec.log,
                stderr=spec.log,
                env=_environment(),
                cwd="/",
                pass_fds=(listener, control, spec.lock),
                start_new_session=True,
            )
        except OSError as error:
            raise OxydraError(
                f"The agent guest could not be started: {error}.",
                remedy="Check that the installation is complete.",
            ) from error
        if child.stdin is None:
            raise OxydraError("The agent guest has no bootstrap stream.")
        with contextlib.suppress(BrokenPipeError), child.stdin as bootstrap:
            bootstrap.write(pack("bootstrap", spec.envelope.to_json()))
            bootstrap.write(pack("credentials", dict(spec.credentials)))
        return ProcessGuest(child)

    def start_shell(self, spec: ShellSpec) -> ladder.LadderProcess:
        return ladder.start(spec)


def _environment() -> dict[str, str]:
    """What a guest needs to run Python, and nothing that could be a secret."""
    kept = ("PATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
    return {name: os.environ[name] for name in kept if name in os.environ}
