"""A broker with a guest's transport before it, over a real mux: for tests of either."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oxydra.broker import AuditLog, Broker, Destinations, Quota, rows
from oxydra.broker.destinations import GuestName
from oxydra.config import EgressLimits
from oxydra.frames import channel_info
from oxydra.mux import Channel, Mux
from oxydra.threads import Service
from oxydra.transport import BrokeredTransport, HttpRequest, Route, Routes
from oxydra.transport.line import Resolve
from tests.conftest import eventually

UNLIMITED = EgressLimits(0, 0, 0)


class AnyRoute(Routes):
    """Lets every request of the agent's pass, for tests of what happens to it afterwards."""

    def find(self, request: HttpRequest) -> Route:
        return Route(request.credential, "", "")


@dataclass
class BrokerWorld:
    """`mux` is the guest's end of the stream, `transport` what the guest's code is given."""

    broker: Broker
    mux: Mux
    transport: BrokeredTransport
    folder: Path

    def log(self, count: int = 1) -> list[dict[str, Any]]:
        """The rows of the audit log, oldest first, once there are `count`: a row follows the end of
        its exchange.
        """
        eventually(lambda: len(list(rows(self.folder))) >= count, what=f"{count} rows")
        return list(rows(self.folder))[::-1]

    def channel(self, info: bytes, data: bytes = b"") -> Channel:
        return self.mux.open(info, data)


@contextlib.contextmanager
def broker_world(
    destinations: Destinations | None = None,
    *,
    guest: GuestName = "agent",
    limits: EgressLimits = UNLIMITED,
    secrets: Sequence[str] = (),
    resolve: Resolve | None = None,
) -> Iterator[BrokerWorld]:
    """Without `destinations` everything may be reached."""
    destinations = destinations or Destinations(AnyRoute())
    left, right = socket.socketpair()
    with tempfile.TemporaryDirectory() as folder, left, right:
        audit = AuditLog(Path(folder))
        broker = Broker(destinations, Quota(limits), audit, list(secrets), resolve=resolve)

        def accept(channel: Channel) -> None:
            broker.accept(guest, channel_info(channel.info), channel)

        inside, outside = Mux(left, opener=True), Mux(right, opener=False, accept=accept)
        services = [
            Service(name, lambda _, m=mux: m.run(), wake=mux.close).start()
            for name, mux in (("mux-inside", inside), ("mux-outside", outside))
        ]
        try:
            yield BrokerWorld(broker, inside, BrokeredTransport(inside.open), Path(folder))
        finally:
            broker.stop()
            assert all(service.stop() for service in services)
