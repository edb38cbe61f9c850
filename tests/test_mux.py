"""The mux: many channels over one stream, real socketpairs at both ends of every test."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import queue
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from oxydra import mux
from oxydra.mux import CHUNK, COST, WINDOW, Channel, Mux, MuxError
from oxydra.threads import Service


@dataclass
class Ends:
    """Both ends of one stream: `guest` opened it. `opened` has the channels the guest opened."""

    guest: Mux
    host: Mux
    guest_socket: socket.socket
    host_socket: socket.socket
    opened: queue.SimpleQueue[Channel]

    def channel(self, info: bytes = b"", **also: object) -> tuple[Channel, Channel]:
        """A channel that the guest opens, seen from both ends."""
        ours = self.guest.open(info, **also)  # type: ignore[arg-type]
        return ours, self.opened.get(timeout=60)


@contextlib.contextmanager
def stream() -> Iterator[Ends]:
    left, right = socket.socketpair()
    opened: queue.SimpleQueue[Channel] = queue.SimpleQueue()
    guest, host = Mux(left, opener=True), Mux(right, opener=False, accept=opened.put)
    services = [Service(f"mux-{i}", lambda _, m=m: m.run()) for i, m in enumerate((guest, host))]
    for service in services:
        service.start()
    try:
        yield Ends(guest, host, left, right, opened)
    finally:
        guest.close()
        host.close()
        assert all(service.stop() for service in services)
        left.close()
        right.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    with stream() as both:
        yield both


@contextlib.contextmanager
def beside(work: Callable[[], object]) -> Iterator[Service]:
    service = Service("beside", lambda _: work()).start()
    yield service
    assert service.stop(10)


def read_all(channel: Channel) -> bytes:
    parts = []
    while data := channel.recv(100_000):
        parts.append(data)
    return b"".join(parts)


def test_bytes_go_both_ways_and_end(ends: Ends) -> None:
    ours, theirs = ends.channel(b"hello")
    assert theirs.info == b"hello"
    ours.sendall(b"question")
    assert theirs.recv(100) == b"question"
    theirs.sendall(b"answer")
    assert ours.recv(3) == b"ans"
    assert ours.recv(100) == b"wer"
    ours.shutdown(socket.SHUT_WR)
    assert theirs.recv(10) == b""
    theirs.sendall(b"more, after its half was closed")
    theirs.shutdown(socket.SHUT_WR)
    assert read_all(ours) == b"more, after its half was closed"
    with pytest.raises(BrokenPipeError):
        ours.sendall(b"no")


def test_an_open_carries_data_and_an_end(ends: Ends) -> None:
    ours, theirs = ends.channel(b"x", data=b"all of it", fin=True)
    assert read_all(theirs) == b"all of it"
    assert theirs.hung_up
    theirs.sendall(b"answer")
    theirs.close()
    with pytest.raises(ConnectionResetError, match="closed"):
        read_all(ours)


@pytest.mark.parametrize("size", [0, 10, CHUNK, CHUNK + 1, 2 * WINDOW])
def test_the_last_data_brings_the_end_along(ends: Ends, size: int) -> None:
    ours, theirs = ends.channel(fin=True)
    with beside(lambda: theirs.finish(b"x" * size)):
        assert read_all(ours) == b"x" * size
    assert read_all(theirs) == b""
    with pytest.raises(BrokenPipeError):
        theirs.finish(b"more")
    assert not ends.host._channels


def test_both_ends_open_channels() -> None:
    left, right = socket.socketpair()
    seen: queue.SimpleQueue[Channel] = queue.SimpleQueue()
    with left, right:
        one = Mux(left, opener=True, accept=seen.put)
        two = Mux(right, opener=False, accept=seen.put)
        services = [
            Service(f"m{i}", lambda _, m=m: m.run()).start() for i, m in enumerate((one, two))
        ]
        numbers = [m.open(b"").number for m in (one, two, one, two)]
        assert numbers == [1, 2, 3, 4]
        assert sorted(seen.get(timeout=60).number for _ in range(4)) == [1, 2, 3, 4]
        one.close()
        two.close()
        assert all(service.stop() for service in services)


def test_much_data_arrives_whole(ends: Ends) -> None:
    ours, theirs = ends.channel()
    data = random.Random(1).randbytes(5 << 20)

    def send() -> None:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)

    with beside(send):
        assert hashlib.sha256(read_all(theirs)).digest() == hashlib.sha256(data).digest()


def test_a_stalled_channel_blocks_no_other(ends: Ends) -> None:
    stalled = [ends.channel() for _ in range(8)]
    for ours, _theirs in stalled:
        ours.settimeout(0.01)
        with pytest.raises(TimeoutError):
            ours.sendall(bytes(2 * WINDOW))
    ours, theirs = ends.channel()
    for _ in range(100):
        ours.sendall(b"ping")
        assert theirs.recv(10) == b"ping"
    assert stalled[0][1].recv(10) == bytes(10)


def test_what_is_taken_in_is_bounded(ends: Ends) -> None:
    """Tiny frames too: each costs more than its byte."""
    ours, _theirs = ends.channel()
    sent = 0
    while ours.offer(b"x"):
        sent += 1
    assert sent == WINDOW // (COST + 1)


def test_credit_comes_back_for_tiny_frames(ends: Ends) -> None:
    ours, theirs = ends.channel()
    with beside(lambda: [ours.sendall(b"x") for _ in range(20_000)]):
        got = 0
        while got < 20_000:
            got += len(theirs.recv(100))


def test_a_reset_wakes_the_reader_and_tells_the_peer(ends: Ends) -> None:
    ours, theirs = ends.channel()
    result: queue.SimpleQueue[object] = queue.SimpleQueue()
    with beside(lambda: result.put(ours.recv(10))):
        ours.shutdown(socket.SHUT_RDWR)
        assert result.get(timeout=60) == b""  # our own cancellation reads as an end
    with pytest.raises(ConnectionResetError, match="cancelled"):
        theirs.recv(10)
    with pytest.raises(BrokenPipeError, match="cancelled"):
        theirs.sendall(b"x")


def test_a_reset_wakes_a_blocked_writer(ends: Ends) -> None:
    ours, theirs = ends.channel()
    failure: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def send() -> None:
        try:
            ours.sendall(bytes(2 * WINDOW))
        except OSError as error:
            failure.put(error)

    with beside(send):
        theirs.reset("not today")
        assert "not today" in str(failure.get(timeout=60))


def test_what_came_before_a_reset_is_read_first(ends: Ends) -> None:
    ours, theirs = ends.channel()
    theirs.sendall(b"half")
    theirs.reset("broken off")
    assert ours.recv(10) == b"half"
    with pytest.raises(ConnectionResetError, match="broken off"):
        ours.recv(10)


def test_a_change_is_told(ends: Ends) -> None:
    ours, theirs = ends.channel()
    changes: queue.SimpleQueue[bool] = queue.SimpleQueue()
    theirs.on_change = lambda: changes.put(theirs.hung_up)
    assert theirs.take() is None
    ours.sendall(b"data")
    assert changes.get(timeout=60) is False
    assert theirs.take() == b"data"
    ours.close()
    assert changes.get(timeout=60) is True


def test_a_lost_stream_ends_every_channel(ends: Ends) -> None:
    pairs = [ends.channel() for _ in range(3)]
    ends.guest_socket.shutdown(socket.SHUT_RDWR)
    for ours, theirs in pairs:
        for channel in (ours, theirs):
            with pytest.raises(ConnectionResetError):
                channel.recv(1)
            with pytest.raises(BrokenPipeError):
                channel.sendall(b"x")
    with pytest.raises(MuxError):
        ends.guest.open(b"")


def test_a_peer_that_does_not_read_loses_the_stream() -> None:
    left, right = socket.socketpair()
    with left, right:
        left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 50_000))
        ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        ours = Mux(left, opener=True, on_end=ended.put)
        with beside(ours.run), pytest.raises(OSError, match="does not read"):
            for _ in range(mux.CHANNELS):
                ours.open(b"", data=bytes(CHUNK))
        assert "does not read" in ended.get(timeout=60)


HOSTILE = {
    "an unknown frame": mux._frame(9, 1),
    "a large frame": mux.HEADER.pack(mux.DATA, 1, CHUNK + 1),
    "our own numbers": mux._frame(mux.OPEN, 2),
    "a number twice": mux._frame(mux.OPEN, 3) * 2,
    "a smaller number": mux._frame(mux.OPEN, 5) + mux._frame(mux.OPEN, 3),
    "too much data": mux._frame(mux.OPEN, 1) + mux._frame(mux.DATA, 1, bytes(CHUNK)) * 20,
    "too many tiny frames": mux._frame(mux.OPEN, 1) + mux._frame(mux.DATA, 1, b"x") * 5000,
    "an empty DATA": mux._frame(mux.OPEN, 1) + mux._frame(mux.DATA, 1),
    "data after the end": mux._frame(mux.OPEN, 1)
    + mux._frame(mux.FIN, 1)
    + mux._frame(mux.DATA, 1, b"x"),
    "credit for nothing": mux._frame(mux.OPEN, 1) + mux._frame(mux.CREDIT, 1, b"\0\0\1\0"),
    "a short credit": mux._frame(mux.OPEN, 1) + mux._frame(mux.CREDIT, 1, b"\0"),
    "too many channels": b"".join(mux._frame(mux.OPEN, 2 * n + 1) for n in range(mux.CHANNELS + 1)),
    "a large OPEN": mux._frame(mux.OPEN, 1, bytes(mux.MAX_INFO + 1)),
    "a long reason": mux._frame(mux.OPEN, 1) + mux._frame(mux.RESET, 1, bytes(mux.MAX_REASON + 1)),
    "a FIN with a payload": mux._frame(mux.OPEN, 1) + mux._frame(mux.FIN, 1, b"x"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_peer_that_breaks_a_rule_loses_the_stream(what: str) -> None:
    left, right = socket.socketpair()
    with left, right:
        host = Mux(right, opener=False, accept=lambda _channel: None)
        with beside(host.run):
            with contextlib.suppress(OSError):
                left.sendall(HOSTILE[what])
            left.settimeout(60)
            with contextlib.suppress(ConnectionResetError):
                assert left.recv(1) == b""
        assert host.error


@given(st.binary(max_size=2000), st.lists(st.integers(1, 500), max_size=20))
def test_any_bytes_end_in_an_error_or_wait(garbage: bytes, cuts: list[int]) -> None:
    left, right = socket.socketpair()
    with left, right:
        host = Mux(right, opener=False, accept=lambda _channel: None)
        with beside(host.run):
            with contextlib.suppress(OSError):
                rest = garbage
                for cut in cuts:
                    left.sendall(rest[:cut])
                    rest = rest[cut:]
                left.sendall(rest)
            left.shutdown(socket.SHUT_WR)
        assert host.error


def test_nothing_may_be_opened_where_nobody_accepts() -> None:
    left, right = socket.socketpair()
    with left, right:
        host = Mux(right, opener=False)
        with beside(host.run):
            left.sendall(mux._frame(mux.OPEN, 1))
            assert left.recv(1) == b""


def test_racing_threads_lose_nothing(ends: Ends) -> None:
    """Many threads open, write, half-close and reset; each byte arrives where it belongs."""
    echoing: list[Service] = []
    stop = threading.Event()

    def echo(channel: Channel) -> None:
        with contextlib.suppress(OSError), channel:
            while data := channel.recv(4096):
                channel.sendall(data)
            channel.shutdown(socket.SHUT_WR)

    def accept() -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Empty):
                channel = ends.opened.get(timeout=0.05)
                echoing.append(Service("echo", lambda _, c=channel: echo(c)).start())

    failures: list[str] = []

    def client(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(12):
            data = rng.randbytes(rng.choice((1, 100, 20_000, 400_000)))
            channel = ends.guest.open(b"")
            if rng.random() < 0.2:
                channel.sendall(data[:50_000])
                channel.reset("enough")
                continue
            writer = Service(
                "writer",
                lambda _, c=channel, d=data: (c.sendall(d), c.shutdown(socket.SHUT_WR)),
            ).start()
            got = read_all(channel)
            writer.stop()
            if got != data:
                failures.append(f"{seed}: {len(got)} of {len(data)} bytes")

    with beside(accept):
        clients = [Service(f"client-{i}", lambda _, i=i: client(i)).start() for i in range(8)]
        assert all(service.stop(60) for service in clients)
        stop.set()
    assert all(service.stop() for service in echoing)
    assert not failures
    assert not ends.guest._channels
    assert not ends.host._channels


# ------------------------------------------------------------------------------ as urllib3's socket


class _Pages(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = b"%d bytes from %s" % (len(body), self.path.encode())
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in (answer[:5], answer[5:]):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_args: object) -> None:
        pass


def test_a_channel_is_the_socket_of_urllib3(ends: Ends) -> None:
    """Kept open over requests, with uploads and chunked answers."""
    opened: list[Channel] = []

    class Connection(HTTPConnection):
        def _new_conn(self) -> Channel:  # type: ignore[override]
            opened.append(ends.guest.open(b"http"))
            return opened[-1]

        @property
        def is_connected(self) -> bool:  # what urllib3 asks of a descriptor
            return self.sock is not None and not self.sock.ready

    class Pool(HTTPConnectionPool):
        ConnectionCls = Connection

    def serve() -> None:
        channel = ends.opened.get(timeout=60)
        with contextlib.suppress(ConnectionResetError):
            _Handler(channel, ("guest", 0), None)

    class _Handler(_Pages):
        def setup(self) -> None:
            self.connection = self.request
            self.rfile = self.request.makefile("rb")
            self.wfile = _Writer(self.request)

    class _Writer:
        def __init__(self, channel: Channel) -> None:
            self.write = channel.sendall

        def flush(self) -> None:
            pass

        closed = False

        def close(self) -> None:
            pass

    with beside(serve):
        pool = Pool("a.name.that.nobody.resolves", retries=False)
        for number in range(3):
            body = bytes(300_000 if number == 1 else 10)
            answer = pool.urlopen("POST", f"/{number}", body=body)
            assert answer.data == b"%d bytes from /%d" % (len(body), number)
        assert len(opened) == 1
        pool.close()
