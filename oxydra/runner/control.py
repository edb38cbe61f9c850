"""The runner's control socket: `ipc/runner-control.sock`, length-prefixed JSON (docs/protocol.md).

`ControlServer` owns one thread that accepts and one for each of at most eight connections; closing
the listener and the connections ends them. `call` is the client. Only the same uid, or root, is
heard.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from oxydra.errors import FrameError, NoDaemonError, OxydraError
from oxydra.frames import Unpacker, pack
from oxydra.threads import Service
from oxydra.tiers.door import address, peer_uid
from oxydra.types import Json

log = logging.getLogger(__name__)

CONNECTIONS = 8
IDLE_SECONDS = 30.0

Handler = Callable[[Json], tuple[str, Json]]
"""Takes a request's payload, returns the response's op and payload."""


def call(path: Path, op: str, payload: Json, *, timeout: float = 5.0) -> Json:
    """Ask a running runner. Raises `NoDaemonError` if none answers, `OxydraError` for a refusal."""
    try:
        with socket.socket(socket.AF_UNIX) as client, address(path) as place:
            client.settimeout(timeout)
            client.connect(place)
            client.sendall(pack(op, payload))
            unpacker = Unpacker()
            while data := client.recv(65536):
                for answer, body in unpacker.feed(data):
                    if answer == "error":
                        raise OxydraError(str(body.get("message")), code=str(body.get("code")))
                    return body
    except OSError as error:
        raise NoDaemonError(
            "No daemon answers for this user.", remedy="Start one with `oxydra-runner start`."
        ) from error
    raise NoDaemonError("The daemon ended before it answered.", remedy="Start it again.")


class ControlServer:
    """Serves `handlers` by op at `path`, which must not exist."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._listener = socket.socket(socket.AF_UNIX)
        with address(path) as place:
            old = os.umask(0o177)
            try:
                self._listener.bind(place)
            finally:
                os.umask(old)
        self._listener.listen(CONNECTIONS)
        self._connections: dict[socket.socket, Service] = {}
        self._service = Service("control", self._accept, wake=self._wake)

    def start(self) -> None:
        self._service.start()

    def stop(self, timeout: float = 5.0) -> bool:
        ended = self._service.stop(timeout)
        for connection, service in list(self._connections.items()):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            ended = service.stop(timeout) and ended
        self._listener.close()
        return ended

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    def _accept(self, service: Service) -> None:
        while not service.stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if not service.stopping.is_set():
                    log.error("the control socket failed: %s", error)
                return
            self._connections = {c: s for c, s in self._connections.items() if s.alive}
            if len(self._connections) >= CONNECTIONS or not _trusted(connection):
                connection.close()
                continue
            body = Service("control-peer", partial(self._serve, connection))
            self._connections[connection] = body
            body.start()

    def _serve(self, connection: socket.socket, _service: Service) -> None:
        connection.settimeout(IDLE_SECONDS)
        unpacker = Unpacker()
        with connection:
            try:
                while data := connection.recv(65536):
                    for op, payload in unpacker.feed(data):
                        connection.sendall(pack(*self._answer(op, payload)))
            except FrameError as error:
                with contextlib.suppress(OSError):
                    connection.sendall(pack("error", {"code": error.code, "message": str(error)}))
            except OSError as error:
                log.debug("a control connection ended: %s", error)

    def _answer(self, op: str, payload: Json) -> tuple[str, Json]:
        handler = self._handlers.get(op)
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            return "error", {"code": "unknown_op", "message": f"Unknown request. Known: {known}."}
        try:
            return handler(payload)
        except OxydraError as error:
            return "error", {"code": error.code, "message": str(error)}
        except Exception:
            log.exception("control request %s failed", op)
            return "error", {"code": "internal", "message": "The request failed; see runner.log."}


def _trusted(connection: socket.socket) -> bool:
    """Whether the peer runs as the same user, or as root."""
    # where the system can't tell, the socket's mode and its folder's stand alone
    return peer_uid(connection) in (None, os.geteuid(), 0)
