"""The runner: one for each user's daemon, on the host, outside every guest.

It reads the configuration and the keys, binds the gateway's port, writes `ipc/`, serves the control
socket and keeps the agent guest and the shell guest alive. Its main thread waits for events (a
signal, a request to stop, a guest's end); the control server's and the guests' threads report to it
through one queue.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import queue
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

from oxydra.broker import AuditLog, Broker, Quota, today
from oxydra.config import from_effective
from oxydra.config.schema import ShellConfig
from oxydra.errors import ConfigError, OxydraError
from oxydra.frames import Envelope
from oxydra.mux import Channel
from oxydra.relay import Relay
from oxydra.runner import logs, shell
from oxydra.runner.control import ControlServer
from oxydra.runner.forward import Forwarder
from oxydra.runner.guest import Guest
from oxydra.runner.logfiles import LOOK_SECONDS, LogFiles
from oxydra.runner.settings import RunnerSettings
from oxydra.runner.tokens import Tokens
from oxydra.scrub.exact import ExactScrubber
from oxydra.scrub.guest import describe
from oxydra.threads import Service
from oxydra.tiers import registry
from oxydra.tiers.base import GuestSpec, Tier
from oxydra.types import Json

log = logging.getLogger(__name__)

STOP_SECONDS = 10.0  # a guest may take this long to end by itself
HEALTH_SECONDS = 2.0
BACKOFF_SECONDS = (0.2, 30.0)  # first and longest pause before a guest that died is started again
STEADY_SECONDS = 60.0  # a guest that lived this long starts again without a pause
BACKLOG = 1024
ROOTS_OWN = ("vault", "internal")  # where root may put files that the guest must be able to read

Event = tuple[Literal["stop", "guest_ended", "shell_ended", "due"], str]


class Restarts:
    """When a guest that died is started again: after a pause that doubles while it keeps dying."""

    def __init__(self) -> None:
        self.count = 0
        self.due: float | None = None  # on the monotonic clock
        self._pause, self._longest = BACKOFF_SECONDS
        self._since = time.monotonic()

    def died(self) -> None:
        now = time.monotonic()
        if now - self._since > STEADY_SECONDS:
            self._pause = BACKOFF_SECONDS[0]
        self.due = now + self._pause
        self._pause = min(2 * self._pause, self._longest)

    def up(self) -> float:
        """Seconds since it was last started."""
        return round(time.monotonic() - self._since, 1)

    def take(self) -> bool:
        """Whether it is to be started now."""
        if self.due is None or time.monotonic() < self.due:
            return False
        self.due = None
        self.count += 1
        self._since = time.monotonic()
        return True


class Runner:
    """One daemon. `run` blocks until it is stopped. `tier` starts its guests, where that is not
    the configured one.
    """

    def __init__(self, settings: RunnerSettings, tier: Tier | None = None) -> None:
        self._settings = settings
        self._workspace = settings.workspace
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._guest: Guest | None = None
        self._restarts = Restarts()
        self._shell: shell.ShellGuest | None = None
        self._shell_coming: shell.ShellGuest | None = None  # the first, while it starts
        self._shell_restarts = Restarts()
        self._shell_level = "none"  # decided when it first starts
        self._shell_network = False
        self._shell_rows: list[Json] = []
        self._told: list[Json] = []  # what the agent guest knows to be degraded
        self._last_end = ""
        self._started_at = time.time()
        self._endpoint = ""
        self._tier = tier
        self._broker: Broker | None = None
        self._relay = Relay()  # between clients, the shell guest and the agent guest
        self._lock = -1
        self._log_files = LogFiles(self._workspace.logs)
        self._tokens = Tokens(self._workspace)
        self._tokens_read = 0  # how often they were to be read anew

    def run(self, on_ready: Callable[[str], None]) -> None:
        """Start everything, call `on_ready(endpoint)`, and serve until SIGTERM, SIGINT or a
        request.

        Raises `OxydraError` with the remedy if it cannot start; then nothing is left behind.
        """
        if self._tier is None:
            self._tier = registry.create(self._settings.tier)
        self._workspace.prepare()
        with contextlib.ExitStack() as stack:
            self._lock = stack.enter_context(self._workspace.lock(wait=1.0))
            self._put_skills()
            self._workspace.forget_ipc()  # a dead daemon's
            stack.callback(self._workspace.forget_ipc)
            listener = stack.enter_context(listen(self._settings.port, self._settings.listen))
            self._endpoint = endpoint(listener)
            control = ControlServer(
                self._workspace.control_socket,
                {
                    "health_check": self._health,
                    "shutdown_user": self._shutdown,
                    "logs": self._logs,
                    "tokens_changed": self._tokens_changed,
                },
            )
            control.start()
            stack.callback(control.stop)
            stack.callback(self._start_broker().stop)
            stack.callback(self._relay.stop)
            stack.callback(self._stop_shell)
            stack.callback(self._stop_guest)
            self._start_both(self._tier, listener)
            if self._tier.forwards:
                forwarder = Forwarder(listener, self._open_gateway, self._relay)
                forwarder.start()
                stack.callback(forwarder.stop)
            self._workspace.write_ipc("gateway-endpoint", self._endpoint + "\n")
            on_ready(self._endpoint)
            log.info("ready at %s", self._endpoint)
            self._broker_warm_up(stack)
            self._serve(listener)

    def _put_skills(self) -> None:
        """What guests have of them is what was read when they were looked at."""
        folder = self._workspace.skills
        try:
            self._settings.shelf.put(folder)
        except OSError as error:
            raise OxydraError(
                f"The skills can't be put into {folder}: {error.strerror}.",
                remedy="Make room there, or remove that folder.",
            ) from None

    def stop(self, why: str) -> None:
        """Ask `run` to return; from any thread."""
        self._events.put(("stop", why))

    # ----------------------------------------------------------------------------------- the guests

    def _start_both(self, tier: Tier, listener: socket.socket) -> None:
        """Start the guests, beside one another where it is known beforehand how well commands will
        be caged: the agent guest is made for that. Raises `OxydraError`.
        """
        if self._settings.isolation.shell_enabled:
            try:
                self._shell_coming = self._beginning_shell(tier)
            except ConfigError:
                raise
            except OxydraError as error:
                self._do_without_shell(error)
        if self._shell_coming is not None and tier.shell_level:
            self._shell_level = tier.shell_level
            self._shell_network = self._shell_coming.networked
        else:
            self._await_shell()
        promised = self._shell_level, self._shell_network
        self._start_guest(listener)
        if self._shell_coming is None:
            return
        self._await_shell()
        if (self._shell_level, self._shell_network) == promised:
            self._hand_over_shell()
            self._tell_status()
        elif self._guest is not None:
            self._guest.stop(STOP_SECONDS)
            self._start_guest(listener)

    def _start_broker(self) -> Broker:
        settings, folder = self._settings, self._workspace.audit
        quota = Quota(settings.isolation.egress.limits, *today(folder))
        self._broker = Broker(settings.destinations(), quota, AuditLog(folder), settings.secrets())
        return self._broker

    def _broker_warm_up(self, stack: contextlib.ExitStack) -> None:
        """Do in idle time what the first request would wait for."""
        if self._broker is not None:
            broker = self._broker
            warming = Service("warm-up", lambda _service: broker.warm()).start()
            stack.callback(warming.stop)

    def _start_guest(self, listener: socket.socket) -> None:
        if self._tier is None or self._broker is None:
            raise RuntimeError("run() was not called")
        guest = Guest(
            serve=partial(self._broker.accept, "agent"),
            on_exit=lambda how: self._events.put(("guest_ended", how)),
        )
        uid, gid = shell.owner(self._workspace)
        if self._tier.as_owner:
            mounts = self._workspace.mounts
            for folder in (mounts.shared, mounts.tmp, mounts.vault, self._workspace.internal):
                if self._workspace.owns(folder):
                    shell.give(folder, uid, gid, again=folder.name in ROOTS_OWN)
        output = self._workspace.open_log("runtime.log")
        read = self._tokens_read
        try:
            spec = GuestSpec(
                workspace=self._workspace.path,
                folders=self._workspace.folders,
                uid=uid,
                gid=gid,
                envelope=self._envelope(self._tier, uid),
                listener=listener,
                lock=self._lock,
                log=output,
                isolation=self._settings.isolation,
            )
            guest.start(self._tier, spec)
        finally:
            os.close(output)
        self._guest = guest
        if self._tokens_read != read:  # they changed after the envelope was written
            self._tell_tokens(guest)
        self._hand_over_shell()
        self._tell_status()

    def _open_gateway(self, peer: str) -> Channel:
        """A channel to the gateway for a client at `peer`. Raises OSError."""
        if self._guest is None:
            raise ConnectionError("the agent guest is being started again")
        return self._guest.open("gateway", peer=peer)

    def _envelope(self, tier: Tier, uid: int) -> Envelope:
        status = {
            **tier.described(uid),
            "sandbox_tier": tier.name,
            "sandbox_level": self._shell_level,
            "sidecar_available": self._shell_level != "none",
            "shell_available": self._shell_level != "none",
            "shell_network": self._shell_network,
            "browser_available": False,
            "degraded_reasons": self._degraded(tier),
        }
        self._told = status["degraded_reasons"]
        return Envelope(
            user_id=self._workspace.user,
            sandbox_tier=tier.name,
            workspace_root=tier.guest_root(self._workspace.path),
            folders=tuple(tier.guest_folders(self._workspace.folders)),
            config=self._settings.config,
            startup_status=status,
            gateway_token_hashes=self._tokens.all_rows(),
            runtime_policy=self._settings.policy,
            secret_hashes=describe([*self._settings.secrets(), self._workspace.token()]),
        )

    def _degraded(self, tier: Tier) -> list[Json]:
        return [*self._shell_rows, *tier.degraded(), *self._settings.notices]

    def _tell_status(self) -> None:
        """What was not known yet when the agent guest's envelope was written."""
        if self._tier is None or self._guest is None:
            return
        rows = self._degraded(self._tier)
        if rows != self._told:
            try:
                self._guest.request("status", {"degraded_reasons": rows}, HEALTH_SECONDS)
                self._told = rows
            except OxydraError as error:  # who is dead is started again, and told anew
                log.warning("the agent guest was not told what is degraded: %s", error)

    def _stop_guest(self) -> None:
        if self._guest is not None:
            self._guest.stop(STOP_SECONDS)

    # ----------------------------------------------------------------------------------- the shell

    @property
    def _shell_config(self) -> ShellConfig:
        return from_effective(self._settings.config).tools.shell

    def _await_shell(self) -> None:
        """Wait for the shell guest, if one comes, and note how well it is caged."""
        if self._shell_coming is None:
            return
        coming = self._shell_coming
        try:
            coming.await_start()
        except OxydraError as error:
            self._do_without_shell(error)
            return
        finally:
            self._shell_coming = None
        self._shell = coming
        self._shell_level = coming.level
        self._shell_network = coming.networked
        self._shell_rows = coming.degraded()
        log.info("the shell guest runs at level %s", self._shell_level)
        for row in self._shell_rows:
            log.warning("%s", row["detail"])

    def _do_without_shell(self, error: OxydraError) -> None:
        log.warning("%s", error)
        self._shell_level, self._shell_network = "none", False
        self._shell_rows = [{"code": error.code, "detail": f"There is no shell. {error}"}]

    def _beginning_shell(self, tier: Tier, levels: tuple[str, ...] = ()) -> shell.ShellGuest:
        return shell.begin(
            tier,
            self._workspace,
            self._shell_config,
            self._settings.isolation,
            self._settings.secrets(),
            on_exit=lambda how: self._events.put(("shell_ended", how)),
            levels=levels,
            serve=None if self._broker is None else partial(self._broker.accept, "shell"),
            servers=self._settings.servers,
        )

    def _restart_shell(self) -> None:
        """Start it again at the level that was promised, never at a lower one."""
        if self._tier is None:
            raise RuntimeError("run() was not called")
        try:
            again = self._beginning_shell(self._tier, (self._shell_level,))
            again.await_start()
            self._shell = again
            self._hand_over_shell()
            log.info("the shell guest was started again")
        except OxydraError as error:
            log.error("%s", error)
            self._shell_restarts.died()

    def _hand_over_shell(self) -> None:
        """Give the agent guest a stream to the shell guest. Who is dead is started again anyway."""
        if self._shell is None or self._guest is None:
            return
        used = self._shell.used
        try:
            stream = self._shell.stream()
            try:
                channel = self._guest.open("shell")
            except BaseException:
                stream.close()
                raise
            self._relay.join(stream, channel)
            self._guest.tell("shell", {"used": used})
        except OSError as error:
            log.warning("the shell's stream could not be handed over: %s", error)

    def _stop_shell(self) -> None:
        for guest in (self._shell_coming, self._shell):
            if guest is not None:
                guest.stop()

    # ------------------------------------------------------------------------------------- serving

    def _serve(self, listener: socket.socket) -> None:
        look = 0.0  # when the logs' sizes are looked at
        while True:
            if time.monotonic() >= look:
                self._log_files.look()
                look = time.monotonic() + LOOK_SECONDS
            due = [r.due for r in (self._restarts, self._shell_restarts) if r.due is not None]
            timeout = max(0.0, min([look, *due]) - time.monotonic())
            try:
                event, why = self._events.get(timeout=timeout)
            except queue.Empty:
                event, why = "due", ""
            if event == "stop":
                log.info("stopping: %s", why)
                return
            if event == "guest_ended":
                self._last_end = why
                log.error("the agent guest ended unexpectedly: %s", why)
                if self._guest is not None:
                    self._guest.kill()
                    self._guest = None
                self._restarts.died()
            elif event == "shell_ended":
                log.error("the shell guest ended unexpectedly: %s", why)
                if self._shell is not None:
                    self._shell.stop()
                    self._shell = None
                self._shell_restarts.died()
            if self._shell_restarts.take():
                self._restart_shell()
            if self._restarts.take():
                self._restart_guest(listener)

    def _restart_guest(self, listener: socket.socket) -> None:
        try:
            self._start_guest(listener)
            log.info("the agent guest was started again")
        except OxydraError as error:
            log.error("%s", error)
            self._events.put(("guest_ended", str(error)))

    # ------------------------------------------------------------------------- control requests

    def _health(self, _payload: Json) -> tuple[str, Json]:
        """`health_status`: the runner's own state, and the guest's if it answers."""
        guest = self._guest
        answer: Json = {
            "healthy": False,
            "user_id": self._workspace.user,
            "runner_pid": os.getpid(),
            "guest_pid": 0 if guest is None else guest.pid,
            "gateway_endpoint": self._endpoint,
            "uptime_secs": round(time.time() - self._started_at, 1),
            "guest_restarts": self._restarts.count,
            "guest_up_secs": self._restarts.up(),
            "shell_pid": 0 if self._shell is None else self._shell.pid,
            "shell_restarts": self._shell_restarts.count,
        }
        if self._broker is not None:
            answer["egress"] = self._broker.used()
        if self._last_end:
            answer["last_guest_end"] = self._last_end
        try:
            if guest is None:
                raise OxydraError("The agent guest is being started again.")
            answer.update(guest.request("health_check", {}, HEALTH_SECONDS), healthy=True)
            answer.pop("request_id", None)
        except OxydraError as error:
            answer["message"] = str(error)
        return "health_status", answer

    def _shutdown(self, payload: Json) -> tuple[str, Json]:
        if payload.get("user_id") != self._workspace.user:
            raise OxydraError("This daemon belongs to another user.", code="wrong_user")
        self.stop("requested over the control socket")
        return "shutdown_status", {"user_id": self._workspace.user, "state": "stopping"}

    def _tokens_changed(self, _payload: Json) -> tuple[str, Json]:
        """Returns when the agent guest knows; one that is starting is told by who starts it."""
        self._tokens_read += 1
        guest = self._guest
        if guest is not None:
            self._tell_tokens(guest)
        return "tokens_status", {"user_id": self._workspace.user}

    def _tell_tokens(self, guest: Guest) -> None:
        rows = self._tokens.all_rows()
        try:
            guest.request("tokens", {"tokens": rows}, HEALTH_SECONDS)
        except OxydraError as error:
            raise OxydraError(
                "The change is kept, but the agent guest does not answer: clients may still be "
                "connected with the old tokens.",
                remedy="`oxydra-runner restart` sends them away.",
            ) from error
        log.info("the gateway's tokens were changed: there are %d", len(rows))

    def _logs(self, payload: Json) -> tuple[str, Json]:
        role, tail, since, after = logs.request(payload)
        answer = logs.read(self._workspace, role, tail=tail, since=since, after=after)
        return "logs", answer.to_json(ExactScrubber(self._settings.secrets()).text)


def listen(port: int, address: str = "127.0.0.1") -> socket.socket:
    """A listening socket. Raises `OxydraError` if the port is taken or the address not ours."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise OxydraError(
            f"The gateway cannot listen on {address}, port {port}: {error.strerror}.",
            remedy="Stop what uses that port, or set [gateway] port to another (0 takes any).",
        ) from error
    return listener


def endpoint(listener: socket.socket) -> str:
    """How clients on this machine reach it."""
    address, port = listener.getsockname()[:2]
    if ipaddress.ip_address(address).is_unspecified:
        address = "::1" if ":" in address else "127.0.0.1"
    host = f"[{address}]" if ":" in address else address
    return f"ws://{host}:{port}/ws"


@contextlib.contextmanager
def handle_signals(runner: Runner) -> Iterator[None]:
    """SIGTERM, SIGINT and SIGHUP stop the runner, for as long as the block lasts.

    A signal may reach any thread, and Python runs its handler on the main one only when that wakes.
    So the number is written to a socket, which the thread `oxydra-signals` reads.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def listen(_service: Service) -> None:
        while number := ours.recv(1):
            runner.stop(signal.Signals(number[0]).name)

    def wake() -> None:
        ours.shutdown(socket.SHUT_RDWR)

    service = Service("signals", listen, wake=wake).start()
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: None)
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        service.stop()
        ours.close()
        theirs.close()
