"""The gateway's port where no guest can inherit it: clients are forwarded over the guest's stream.

`oxydra-forward` accepts, opens a channel to the guest for each client, which says the client's
address, and leaves the rest to the relay; shutting the listener down ends it. While there is no
guest, clients are turned away.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import Callable

from oxydra.mux import Channel
from oxydra.relay import Relay
from oxydra.threads import Service

log = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0  # without accepting after running out of descriptors


class Forwarder:
    """Forwards what connects to `listener`; `open_channel(peer)` raises OSError without a guest."""

    def __init__(
        self, listener: socket.socket, open_channel: Callable[[str], Channel], relay: Relay
    ) -> None:
        self._listener = listener
        self._open_channel = open_channel
        self._relay = relay
        self._service = Service("forward", self._accept, wake=self._wake)

    def start(self) -> None:
        self._service.start()

    def stop(self, timeout: float = 5.0) -> bool:
        return self._service.stop(timeout)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    def _accept(self, service: Service) -> None:
        while not service.stopping.is_set():
            try:
                client, address = self._listener.accept()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    if not service.stopping.is_set():
                        log.error("the gateway's port failed: %s", error)
                    return
                log.error("no connections are taken for now: %s", error)
                service.stopping.wait(PAUSE_SECONDS)
                continue
            try:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._relay.join(client, self._open_channel(str(address[0])))
            except OSError as error:
                log.debug("a client was turned away: %s", error)
                client.close()
