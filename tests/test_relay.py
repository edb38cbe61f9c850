"""The relay: sockets and channels that become one connection, over a real mux and real sockets."""

from __future__ import annotations

import contextlib
import queue
import random
import socket
from collections.abc import Iterator

import pytest

from oxydra.mux import Channel, Mux
from oxydra.relay import Relay
from oxydra.threads import Service
from tests.conftest import eventually


@pytest.fixture
def world() -> Iterator[World]:
    left, right = socket.socketpair()
    opened: queue.SimpleQueue[Channel] = queue.SimpleQueue()
    guest, host = Mux(left, opener=True), Mux(right, opener=False, accept=opened.put)
    services = [
        Service(f"mux-{i}", lambda _, m=m: m.run()).start() for i, m in enumerate((guest, host))
    ]
    relay = Relay()
    with left, right:
        yield World(guest, opened, relay)
        assert relay.stop()
        guest.close()
        host.close()
        assert all(service.stop() for service in services)


class World:
    def __init__(self, guest: Mux, opened: queue.SimpleQueue[Channel], relay: Relay) -> None:
        self.guest = guest
        self.relay = relay
        self.counts: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        self._opened = opened

    def connection(self) -> tuple[socket.socket, Channel]:
        """A socket and a channel, joined by the relay."""
        ours, theirs = socket.socketpair()
        ours.settimeout(60)
        channel = self.guest.open(b"")
        self.relay.join(
            theirs, self._opened.get(timeout=60), on_closed=lambda *c: self.counts.put(c)
        )
        channel.settimeout(60)
        return ours, channel


def test_bytes_and_ends_cross(world: World) -> None:
    sock, channel = world.connection()
    with sock:
        sock.sendall(b"hello")
        assert channel.recv(10) == b"hello"
        channel.sendall(b"welcome")
        assert sock.recv(10) == b"welcome"
        sock.shutdown(socket.SHUT_WR)
        assert channel.recv(10) == b""
        channel.sendall(b"late")  # the other half is still open
        assert sock.recv(10) == b"late"
        channel.shutdown(socket.SHUT_WR)
        assert sock.recv(10) == b""
    assert world.counts.get(timeout=60) == (5, 11)


def test_a_reset_closes_the_socket(world: World) -> None:
    sock, channel = world.connection()
    with sock:
        channel.reset("enough")
        assert sock.recv(10) == b""


def test_a_lost_socket_resets_the_channel(world: World) -> None:
    sock, channel = world.connection()
    channel.sendall(bytes(1000))
    assert len(sock.recv(2000)) > 0
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()
    with pytest.raises(OSError):  # an end first, then a pipe that is broken
        for _ in range(1000):
            channel.sendall(bytes(1000))
            if channel.hung_up:
                channel.sendall(b"x")


def test_much_crosses_whole_and_nobody_is_blocked_by_who_reads_not(world: World) -> None:
    stalled = [world.connection() for _ in range(4)]
    for sock, channel in stalled:  # one that is not read, in both directions
        sock.settimeout(0.05)
        channel.settimeout(0.05)
        with contextlib.suppress(TimeoutError):
            sock.sendall(bytes(2 << 20))
        with contextlib.suppress(TimeoutError):
            channel.sendall(bytes(2 << 20))
    data = random.Random(7).randbytes(3 << 20)
    sock, channel = world.connection()
    echo = Service("echo", lambda _: _echo(channel)).start()
    writer = Service(
        "writer", lambda _: (sock.sendall(data), sock.shutdown(socket.SHUT_WR))
    ).start()
    got = bytearray()
    while piece := sock.recv(1 << 20):
        got += piece
    assert bytes(got) == data
    assert writer.stop()
    assert echo.stop()
    for each, _channel in [*stalled, (sock, channel)]:
        each.close()


def _echo(channel: Channel) -> None:
    while data := channel.recv(1 << 16):
        channel.sendall(data)
    channel.shutdown(socket.SHUT_WR)


def test_what_comes_after_the_stop_is_closed(world: World) -> None:
    world.relay.stop()
    sock, channel = world.connection()
    with sock:
        assert sock.recv(1) == b""
    with pytest.raises(ConnectionResetError):
        channel.recv(1)


def test_a_stop_closes_what_is_open(world: World) -> None:
    connections = [world.connection() for _ in range(20)]
    for sock, channel in connections:
        sock.sendall(b"x")
        assert channel.recv(1) == b"x"
    world.relay.stop()
    for sock, channel in connections:
        with sock:
            assert sock.recv(1) == b""
        with pytest.raises(ConnectionResetError):
            channel.recv(1)
    eventually(lambda: world.counts.qsize() == 20)
