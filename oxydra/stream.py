"""The agent guest's end of its one stream to the runner.

`oxydra-mux` reads the stream and sorts it into channels, `oxydra-relay` carries forwarded clients.
"""

from __future__ import annotations

import logging
import queue
import socket
from collections.abc import Callable
from typing import Protocol

from oxydra.errors import FrameError
from oxydra.frames import channel_info
from oxydra.mux import Channel, Mux, Stream
from oxydra.relay import Relay
from oxydra.threads import Service

logger = logging.getLogger(__name__)

CONTROL_SECONDS = 20.0  # that the runner may take to open its channel


class Wire(Stream, Protocol):
    """What leads to the runner: a socket, or the port of a machine."""

    def close(self) -> object: ...


class RunnerStream:
    """The one stream to the runner, and the channels that the runner opens on it.

    `oxydra-mux` reads it and ends with it; `oxydra-relay` carries forwarded clients.
    """

    def __init__(self, wire: Wire) -> None:
        self.on_gateway: Callable[[socket.socket, str], None] = _turn_away
        self._wire = wire
        self._mux = Mux(wire, opener=True, accept=self._accept)
        self._reader = Service("mux", lambda _: self._mux.run(), wake=self._mux.close)
        self._relay = Relay()
        self._control: queue.SimpleQueue[Channel] = queue.SimpleQueue()
        self._shells: queue.SimpleQueue[Channel] = queue.SimpleQueue()
        self._started: Channel | None = None

    def __enter__(self) -> RunnerStream:
        return self

    def __exit__(self, *_error: object) -> None:
        self._relay.stop()
        self._reader.stop()
        self._wire.close()

    def start(self) -> Channel:
        """Begin to read; the control channel. Raises `FrameError` if the runner opens none."""
        if self._started is None:
            self._reader.start()
            try:
                self._started = self._control.get(timeout=CONTROL_SECONDS)
            except queue.Empty:
                raise FrameError("The runner opened no control channel.") from None
        return self._started

    def open(self, info: bytes, data: bytes, fin: bool) -> Channel:
        """A channel to the runner's broker. Raises OSError."""
        return self._mux.open(info, data, fin)

    def shell(self) -> Channel | None:
        """A channel to the shell guest that was opened and not taken yet; the newest."""
        found = None
        while not self._shells.empty():
            found = self._shells.get()
        return found

    def _accept(self, channel: Channel) -> None:
        said = channel_info(channel.info)
        match said.get("kind"):
            case "control":
                self._control.put(channel)
            case "shell":
                self._shells.put(channel)
            case "gateway":
                ours, theirs = socket.socketpair()
                self._relay.join(ours, channel)
                self.on_gateway(theirs, str(said.get("peer")))
            case other:
                logger.error("the runner opened a channel of the kind %r", other)


def _turn_away(client: socket.socket, _peer: str) -> None:
    """A client that came before the gateway was there."""
    client.close()
