"""What a tier is: a way to start the agent guest so that it reaches only what it is given."""

from __future__ import annotations

import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from oxydra.frames import Envelope
from oxydra.types import Json


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """Everything a guest is started with.

    `listener` is the gateway's bound socket, `control` the guest's end of its one stream to the
    runner, `lock` the descriptor of `internal/daemon.lock`, which the guest holds as long as it
    lives, `log` the descriptor its output goes to. `credentials` are handed over on the bootstrap
    stream.
    """

    envelope: Envelope
    credentials: Mapping[str, Json] = field(repr=False)
    listener: socket.socket
    control: socket.socket
    lock: int
    log: int


class GuestProcess(Protocol):
    """A started guest, seen from outside."""

    pid: int

    def wait(self) -> str:
        """Block until it has ended; says how, as in `exit 1` or `killed by SIGKILL`."""

    def kill(self) -> None:
        """End it and everything it started, at once."""


class Tier(Protocol):
    """A registry entry of `tiers/registry.py`. `sandbox_level` is what `status` shows."""

    name: str
    sandbox_level: str

    def degraded(self) -> list[Json]:
        """What this tier does not protect here: rows `{code, detail}` for `startup_status`."""

    def start(self, spec: GuestSpec) -> GuestProcess:
        """Start the agent guest. Raises `OxydraError` with the remedy."""


def ending(status: int) -> str:
    """How a process with this `Popen.returncode` ended."""
    if status >= 0:
        return f"exit {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
