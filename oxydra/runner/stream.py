"""The runner's end of a guest's one stream: a mux, and the thread that reads it.

The thread `oxydra-<name>` runs from `start` until the stream ends or is closed.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Callable

from oxydra.frames import channel_info, compact
from oxydra.mux import Channel, Mux
from oxydra.threads import Service
from oxydra.types import Json

log = logging.getLogger(__name__)

SEND_SECONDS = 5  # a guest that does not read for so long has lost its stream

Serve = Callable[[Json, Channel], None]
"""Takes what a guest said of a channel that it opened, and the channel; must not block."""


class GuestStream:
    """Owns `sock`. `serve` gets the channels that the guest opens."""

    def __init__(self, sock: socket.socket, name: str, serve: Serve) -> None:
        # The kernel's own limit on sending: a Python timeout would also end the reader's wait.
        limit = struct.pack("ll", SEND_SECONDS, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._sock = sock
        self._mux = Mux(sock, opener=False, accept=lambda c: serve(channel_info(c.info), c))
        self._reader = Service(name, self._read, wake=self._mux.close)

    def start(self) -> None:
        self._reader.start()

    def open(self, kind: str, **said: str) -> Channel:
        """A new channel to the guest. Raises OSError."""
        return self._mux.open(compact({"kind": kind, **said}).encode())

    def hang_up(self) -> None:
        """End the stream and every channel of it; from any thread."""
        self._mux.close("the runner has hung up")

    def close(self) -> None:
        """The same, and give everything back; idempotent."""
        self.hang_up()
        self._reader.stop()
        self._sock.close()

    def _read(self, service: Service) -> None:
        self._mux.run()
        log.debug("the stream of %s ended: %s", service.name, self._mux.error)
