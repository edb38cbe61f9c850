"""The agent guest: one user's gateway, turn loop and store, assembled from a bootstrap envelope.

`main` is the program `oxydra-vm`. Its main thread answers the runner on the control stream and ends
when that stream does; the other threads are the gateway's two, one per running turn, and
`oxydra-warm-up`, which imports what the first turn would otherwise wait for and ends. When the
runner says so or is gone, running turns are left as they are in the store and resume with the next
start.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import resource
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from oxydra import config, log
from oxydra.config import GuestConfig
from oxydra.errors import FrameError, OxydraError
from oxydra.frames import Envelope, Unpacker, pack, usage_json
from oxydra.gateway.frontend import Gateway
from oxydra.gateway.hub import Hub
from oxydra.providers import registry
from oxydra.providers.reliable import Choice, Reliable
from oxydra.runtime import Runtime
from oxydra.store import Store
from oxydra.threads import Service, install_hooks
from oxydra.tools.confine import Workspace
from oxydra.tools.gate import Gate
from oxydra.tools.registry import ToolRegistry
from oxydra.transport import Credential, DirectTransport
from oxydra.types import Json, ModelSpec

logger = logging.getLogger(__name__)

STOP_SECONDS = 8.0


class AgentGuest:
    """Everything that serves one user. `start` returns when clients are answered."""

    def __init__(
        self, envelope: Envelope, credentials: Mapping[str, Json], listener: socket.socket
    ) -> None:
        settings = config.from_effective(envelope.config)
        self._envelope = envelope
        self._model = settings.model
        self._transport = DirectTransport(
            {name: Credential(**row) for name, row in credentials.items()}
        )
        root = Path(envelope.workspace_root)
        self._store = Store(root / "internal" / "oxydra.db")
        self._workspace = Workspace.at(root)
        tools = ToolRegistry()
        self._runtime = Runtime(
            store=self._store,
            provider=self._provider(settings, credentials),
            model=settings.model,
            gate=Gate(tools, {"workspace": self._workspace}),
            tools=tools.specs,
            config=settings.runtime,
            reasoning=settings.selection.reasoning,
        )
        self._hub = Hub(self._store, self._runtime, settings.gateway, envelope.user_id)
        self._gateway = Gateway(
            listener=listener,
            hub=self._hub,
            store=self._store,
            config=settings.gateway,
            tokens=envelope.gateway_token_hashes,
            health=self.health,
            on_death=_die,
        )
        self._warm_up = Service("warm-up", lambda _service: self._transport.warm())

    def _provider(self, settings: GuestConfig, credentials: Mapping[str, Json]) -> Reliable:
        """The first choice and its fallbacks, as one provider."""

        def choice(spec: ModelSpec) -> Choice:
            name = spec.provider
            entry = settings.providers.registry[name]
            key = name if name in credentials else ""
            provider = registry.settings(name, entry, credential=key)
            return Choice(registry.create(provider, self._transport), spec)

        return Reliable([choice(spec) for spec in settings.models], settings.reliability)

    def start(self) -> None:
        self._hub.start()
        self._gateway.start()

    def warm_up(self) -> None:
        """Do in idle time what the first turn needs."""
        self._warm_up.start()

    def stop(self) -> None:
        """Stop intake, leave running turns to be resumed, close the store."""
        self._gateway.stop(STOP_SECONDS / 4)
        self._hub.stop(STOP_SECONDS / 2)
        self._warm_up.stop(STOP_SECONDS / 4)
        self._transport.close()
        self._store.close()
        self._workspace.close()

    def health(self) -> Json:
        """What `health_status` reports."""
        return {
            "healthy": True,
            "startup_status": self._envelope.startup_status,
            "model": {"provider": self._model.provider, "model": self._model.id},
            "usage": usage_json(self._runtime.used()),
            **self._hub.counts(),
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the guest until the runner ends it; the exit code is 0 then."""
    parser = argparse.ArgumentParser(prog="oxydra-vm", description="The agent guest of Oxydra.")
    parser.add_argument("--bootstrap-stdin", action="store_true", required=True)
    parser.add_argument("--listen-fd", type=int, required=True, help="the gateway's listener")
    parser.add_argument("--control-fd", type=int, required=True, help="the stream to the runner")
    options = parser.parse_args(argv)
    install_hooks()
    log.setup("oxydra-vm", sys.stderr)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a descriptor for each client
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the runner decides, not a Ctrl+C in its terminal
    listener = socket.socket(fileno=options.listen_fd)
    control = socket.socket(fileno=options.control_fd)
    for inherited in (listener, control):
        inherited.set_inheritable(False)
    with control:
        try:
            envelope, credentials = read_bootstrap(sys.stdin.buffer)
            guest = AgentGuest(envelope, credentials, listener)
            guest.start()
        except OxydraError as error:
            logger.error("%s", error)
            control.sendall(pack("failed", {"message": error.message, "remedy": error.remedy}))
            return error.exit_code
        control.sendall(pack("ready", {}))
        guest.warm_up()
        try:
            serve(control, guest)
        finally:
            guest.stop()
    return 0


def serve(control: socket.socket, guest: AgentGuest) -> None:
    """Answer the runner until it says `shutdown` or its end of the stream is closed."""
    unpacker = Unpacker()
    with contextlib.suppress(ConnectionError):
        while data := control.recv(65536):
            for op, payload in unpacker.feed(data):
                if op == "shutdown":
                    return
                if op == "health_check":
                    reply = {"request_id": payload.get("request_id"), **guest.health()}
                    control.sendall(pack("health_status", reply))
    logger.warning("the runner is gone: the agent guest ends too")


def read_bootstrap(stream: BinaryIO) -> tuple[Envelope, Mapping[str, Json]]:
    """The envelope, and the credentials by name. Raises `FrameError`."""
    unpacker = Unpacker()
    frames = dict(unpacker.feed(stream.read()))
    if "bootstrap" not in frames or not unpacker.empty:
        raise FrameError("The bootstrap stream ended before the envelope was complete.")
    return Envelope.from_json(frames["bootstrap"]), frames.get("credentials", {})


def _die(error: BaseException) -> None:
    """A thread without which nobody is served has died: end, so that the runner starts us again."""
    logger.critical("the gateway failed (%s): the agent guest ends", error)
    signal.raise_signal(signal.SIGTERM)
