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
import mimetypes
import resource
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from oxydra import config, log
from oxydra.approvals import Approvals, Rules
from oxydra.config import GuestConfig
from oxydra.disk import Ballast, shortage
from oxydra.errors import FrameError, OxydraError, ToolError
from oxydra.frames import Envelope, Unpacker, pack, usage_json
from oxydra.gateway.frontend import Gateway
from oxydra.gateway.hub import Hub
from oxydra.policy import VirtualPath
from oxydra.policy.network import Egress
from oxydra.providers import registry
from oxydra.providers.reliable import Choice, Reliable
from oxydra.runtime import Runtime
from oxydra.scrub.guest import GuestScrubber
from oxydra.store import Store
from oxydra.threads import Service, install_hooks
from oxydra.tools.confine import Workspace
from oxydra.tools.gate import Gate
from oxydra.tools.registry import ToolRegistry
from oxydra.tools.shell import ShellTool
from oxydra.tools.shell_client import ShellClient
from oxydra.tools.web import Web
from oxydra.transport import Credential, DirectConfig, DirectTransport
from oxydra.types import Attachment, Json, ModelSpec, Tool
from oxydra.worker import Workers

logger = logging.getLogger(__name__)

STOP_SECONDS = 8.0
UNSANDBOXED = (None, "none", "rlimits")  # levels at which nothing contains a privileged call


class AgentGuest:
    """Everything that serves one user. `start` returns when clients are answered."""

    def __init__(
        self, envelope: Envelope, credentials: Mapping[str, Json], listener: socket.socket
    ) -> None:
        settings = config.from_effective(envelope.config)
        self._envelope = envelope
        self._model = settings.model
        egress = Egress.parse(envelope.runtime_policy.get("egress_allowlist", ()))
        self._transport = DirectTransport(
            {name: Credential(**row) for name, row in credentials.items()},
            DirectConfig(egress=egress),
        )
        self._workers = Workers()
        root = Path(envelope.workspace_root)
        internal = root / "internal"
        self._short = partial(shortage, internal, root / "shared", root / "tmp")
        self._store = Store(internal / "oxydra.db", Ballast(internal / "ballast"))
        self._workspace = Workspace.at(root)
        self._approvals = Approvals(
            self._store,
            Rules.from_json(envelope.runtime_policy.get("approvals")),
            sandboxed=envelope.startup_status.get("sandbox_level") not in UNSANDBOXED,
        )
        self._shell = ShellClient(self._short)
        tools = ToolRegistry(extra=self._shell_tools(settings))
        self._runtime = Runtime(
            store=self._store,
            provider=self._provider(settings, credentials),
            model=settings.model,
            gate=Gate(
                tools,
                {
                    "workspace": self._workspace,
                    "shell": self._shell,
                    "workers": self._workers,
                    "web": Web(self._transport, self._workers, egress, settings.tools.web_search),
                },
                approve=self._approvals.check,
                scrubber=scrubber_of(envelope),
            ),
            tools=tools.specs,
            config=settings.runtime,
            reasoning=settings.selection.reasoning,
            keep=self._keep,
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
            approvals=self._approvals,
        )
        self._warm_up = Service("warm-up", lambda _service: self._transport.warm())

    def _keep(self, attachment: Attachment) -> str:
        """Put a file that a model made into the workspace; returns where, or why it is nowhere."""
        ending = mimetypes.guess_extension(attachment.mime_type) or ""
        path = VirtualPath("shared", ("made", f"{attachment.sha256[:16]}{ending}"))
        try:
            self._workspace.write(path, attachment.data)
        except ToolError as error:
            return f"could not be saved: {error}"
        return str(path)

    def _shell_tools(self, settings: GuestConfig) -> list[Tool]:
        """`shell_exec`, where the runner has a shell guest."""
        said = self._envelope.startup_status
        if not said["shell_available"]:
            return []
        named = str(said["sandbox_level"]).startswith("bwrap")
        return [ShellTool(settings.tools.shell, named_paths=named)]

    def attach_shell(self, stream: socket.socket) -> None:
        """Take the stream to a shell guest that was started, again or for the first time."""
        self._shell.connect(stream)

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
        self._shell.close()
        self._warm_up.stop(STOP_SECONDS / 4)
        self._workers.stop()
        self._transport.close()
        self._store.close()
        self._workspace.close()

    def health(self) -> Json:
        """What `health_status` reports."""
        return {
            "healthy": True,
            "startup_status": self._startup_status(),
            "model": {"provider": self._model.provider, "model": self._model.id},
            "usage": usage_json(self._runtime.used()),
            **self._hub.counts(),
        }

    def _startup_status(self) -> Json:
        """What the runner said, whether the shell still answers, how tool workers are held, and
        whether the disk has room.
        """
        said = self._envelope.startup_status
        reasons = [*said.get("degraded_reasons", ()), *self._workers.degraded()]
        if short := self._short():
            detail = f"Commands are paused: {short}. They run again when there is room."
            reasons.append({"code": "low_disk", "detail": detail})
        return {
            **said,
            "shell_available": bool(said["shell_available"]) and self._shell.alive,
            "worker_level": self._workers.level,
            "degraded_reasons": reasons,
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
            log.setup("oxydra-vm", sys.stderr, scrub=scrubber_of(envelope).logged)
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


def scrubber_of(envelope: Envelope) -> GuestScrubber:
    """What removes this user's secrets from results and logs."""
    return GuestScrubber(envelope.secret_hashes, envelope.workspace_root)


def serve(control: socket.socket, guest: AgentGuest) -> None:
    """Answer the runner until it says `shutdown` or its end of the stream is closed."""
    unpacker = Unpacker()
    streams: list[int] = []  # handed over and not yet taken
    with contextlib.suppress(ConnectionError):
        while True:
            data, passed, _flags, _address = socket.recv_fds(control, 65536, 4)
            streams += passed
            if not data:
                break
            for op, payload in unpacker.feed(data):
                if op == "shutdown":
                    return
                if op == "shell" and streams:
                    guest.attach_shell(socket.socket(fileno=streams.pop(0)))
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
