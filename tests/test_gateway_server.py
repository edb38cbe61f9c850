"""The gateway's I/O layer: handshakes, messages, limits, closing; over real sockets."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from oxydra.gateway.connection import Connection, Handler, ServerLimits, frame_text
from oxydra.gateway.server import GatewayServer
from oxydra.threads import parallel
from tests.conftest import ROOT, eventually
from tests.gateway_peer import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    WAIT,
    CountingServer,
    Gate,
    Peer,
    masked,
    read_all,
    status,
    upgrade,
)
from tests.test_gateway_wire import cuts, reference, split_at, streams

Start = Callable[..., Gate]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a gateway with the given limits; stops it at the end."""
    gates: list[Gate] = []

    def start_one(**limits: Any) -> Gate:
        gates.append(Gate(ServerLimits(**limits)))
        return gates[-1]

    yield start_one
    for one in gates:
        one.stop()


@pytest.fixture
def gate(start: Start) -> Gate:
    return start(failures_per_peer=1000)


# --------------------------------------------------------------------------- handshake and HTTP


def test_independent_client_talks_and_closes(gate: Gate) -> None:
    ws = gate.client()
    for text in ("", "hello", "ü€😀" * 1000, "x" * 200_000):
        ws.send(text)
        assert ws.recv() == text
    conn = gate.handler.opened[0]
    assert conn.identity == "user of /ws"
    assert conn.peer == "127.0.0.1"
    ws.send_binary(b"\x00\xff")
    assert ws.recv() == "binary"
    assert gate.handler.received[-1] == (conn, b"\x00\xff")
    ws.close(status=3001)
    gate.handler.wait_for(lambda: gate.handler.closed == [conn])
    assert conn.close_code == 3001
    assert not conn.send(b"too late")


def test_handshake_a_byte_at_a_time_and_with_frames_behind_it(gate: Gate) -> None:
    sock = gate.connect()
    request = upgrade()
    for i in range(len(request) - 1):
        sock.sendall(request[i : i + 1])
    peer = Peer(sock, request[-1:] + masked(TEXT, b"at once") + masked(TEXT, b"again"))
    assert peer.recv() == (TEXT, b"at once")
    assert peer.recv() == (TEXT, b"again")


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (upgrade(drop="Authorization"), 401),
        (upgrade("Host: twice"), 400),
        (upgrade("Authorization: Bearer other"), 400),
        (upgrade(path="/other"), 404),
        (upgrade(path="/ws/"), 404),
        (upgrade(drop="Upgrade"), 426),
        (upgrade(drop="Connection"), 426),
        (upgrade(drop="Sec-WebSocket-Version"), 426),
        (upgrade("Sec-WebSocket-Version: 8", drop="Sec-WebSocket-Version"), 426),
        (upgrade(drop="Sec-WebSocket-Key"), 400),
        (upgrade("Sec-WebSocket-Key: AAAA", drop="Sec-WebSocket-Key"), 400),
        (upgrade("Sec-WebSocket-Key: \u00e9", drop="Sec-WebSocket-Key"), 400),
        (upgrade().replace(b"GET", b"POST"), 400),
        (upgrade().replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
        (upgrade("Content-Length: 1"), 413),
        (b"\x16\x03\x01", 400),
        (b"GET /" + b"a" * 100_000, 414),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 10_000, 431),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        (b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /error HTTP/1.1\r\nHost: x\r\n\r\n", 500),
        (b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"POST /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    ],
)
def test_answers_before_the_upgrade(gate: Gate, request_bytes: bytes, expected: int) -> None:
    assert status(gate.ask(request_bytes)) == expected
    assert not gate.handler.opened


def test_http_answers_whole_even_to_a_client_that_ends_its_side(gate: Gate) -> None:
    with gate.connect(receive_buffer=4096) as sock:
        sock.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        settled_turns(gate.server)  # an end of file that can't be acted on yet is no reason to spin
        answer = read_all(sock)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Length: 5000000" in head
    assert len(body) == 5_000_000


def test_http_says_what_was_asked(start: Start) -> None:
    gate = start(max_body=10)
    answer = gate.ask(b"GET /healthz?full=1 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.endswith(b"\r\n\r\nGET full=1 127.0.0.1\n")
    answer = gate.ask(b"GET /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcdef")
    assert answer.endswith(b"\r\n\r\nabc")
    assert b"Allow: GET" in gate.ask(b"PUT / HTTP/1.1\r\nHost: x\r\n\r\n")


def test_failed_handshakes_are_limited_on_loopback_too(start: Start) -> None:
    gate = start(failures_per_peer=3)
    for _ in range(3):
        assert status(gate.ask(upgrade(drop="Authorization"))) == 401
    answer = gate.ask(upgrade())  # with the right token
    assert status(answer) == 429
    assert b"Retry-After: " in answer
    assert status(gate.ask(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")) == 200
    guess = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer guess\r\n\r\n"
    assert status(gate.ask(guess)) == 429


def test_a_handshake_that_is_not_finished_in_time_is_cut(start: Start) -> None:
    gate = start(handshake_timeout=0.05)
    assert status(gate.ask(upgrade()[:-2])) == 408
    assert status(gate.ask(b"")) == 408
    peer = gate.open()  # the deadline does not outlive the handshake
    assert status(gate.ask(b"GET")) == 408
    peer.send(masked(TEXT, b"alive"))
    assert peer.recv() == (TEXT, b"alive")


def test_half_open_handshakes_keep_nobody_out(start: Start) -> None:
    gate = start(max_pending=3)
    silent = [gate.connect() for _ in range(6)]
    peer = gate.open()
    peer.send(masked(TEXT, b"in"))
    assert peer.recv() == (TEXT, b"in")
    assert [status(read_all(sock)) for sock in silent[:4]] == [429] * 4
    more = [gate.open() for _ in range(5)]  # who is in counts no more
    for one in (peer, *more):
        one.send(masked(TEXT, b"still in"))
        assert one.recv() == (TEXT, b"still in")


def test_a_full_house_answers(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    gate = start(max_connections=3)
    peers = [gate.open() for _ in range(3)]
    for _ in range(2):
        assert status(read_all(gate.connect())) == 503
    assert caplog.text.count("connections are in use") == 1
    peers[0].sock.close()
    gate.handler.wait_for(lambda: gate.handler.closed)
    gate.open()


def test_one_address_has_its_own_cap(start: Start) -> None:
    gate = start(max_connections_per_peer=2)
    gate.open()
    gate.open().sock.close()
    gate.handler.wait_for(lambda: gate.handler.closed)
    gate.open()
    assert status(read_all(gate.connect())) == 429


# --------------------------------------------------------------------------------------- messages


def test_control_frames_between_fragments(gate: Gate) -> None:
    peer = gate.open()
    text = "über".encode()
    data = masked(TEXT, text[:1], fin=False) + masked(PING, b"p1") + masked(0, b"", fin=False)
    data += masked(PONG, b"unasked") + masked(0, text[1:])
    for i in range(len(data)):
        peer.send(data[i : i + 1])
    assert peer.recv() == (PONG, b"p1")
    assert peer.recv() == (TEXT, text)


@settings(max_examples=40)
@given(data=streams, cuts=cuts)
def test_live_server_behaves_as_the_reference(
    fuzz_gate: Gate, data: bytes, cuts: list[int]
) -> None:
    found, error = reference(data, 250)
    expected: list[tuple[int, bytes]] = []
    for opcode, payload in found:
        if opcode == CLOSE:
            break
        if opcode == TEXT:
            expected.append((TEXT, payload.encode()))
        elif opcode == BINARY:
            expected.append((TEXT, b"binary"))
        elif opcode == PING:
            expected.append((PONG, payload))
    closing = error or any(opcode == CLOSE for opcode, _ in found)
    peer = fuzz_gate.open()
    for chunk in split_at(data, cuts):
        with contextlib.suppress(OSError):  # it may have closed already
            peer.send(chunk)
    assert [peer.recv() for _ in expected] == expected
    if closing:
        assert peer.recv()[0] == CLOSE
        with pytest.raises(EOFError):
            peer.recv()
    peer.sock.close()


@pytest.fixture(scope="module")
def fuzz_gate() -> Iterator[Gate]:
    """One server for all examples."""
    gate = Gate(ServerLimits(max_message=250))
    yield gate
    gate.stop()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (masked(3), 1002),
        (masked(TEXT, b"a", fin=False) + masked(TEXT, b"b"), 1002),
        (masked(0, b"a"), 1002),
        (masked(PING, b"a" * 126), 1002),
        (b"\x81\x01a", 1002),  # not masked
        (b"\xc1\x80\0\0\0\0", 1002),  # compressed
        (masked(TEXT, b"\xff"), 1007),
        (masked(TEXT, "ü".encode()[:1], fin=False) + masked(0, b"x"), 1007),
        (masked(TEXT, b"\xed\xa0\x80"), 1007),  # a surrogate
        (masked(TEXT, b"x" * 2001), 1009),
        (masked(BINARY, b"x" * 1500, fin=False) + masked(0, b"x" * 501), 1009),
        (masked(CLOSE, struct.pack("!H", 1000)), 1000),
        (masked(CLOSE, struct.pack("!H", 4999) + b"bye"), 4999),
        (masked(CLOSE), 0),
        (masked(CLOSE, b"\x03"), 1002),
        (masked(CLOSE, struct.pack("!H", 999)), 1002),
        (masked(CLOSE, struct.pack("!H", 1005)), 1002),
        (masked(CLOSE, struct.pack("!H", 1006)), 1002),
        (masked(CLOSE, struct.pack("!H", 2999)), 1002),
        (masked(CLOSE, struct.pack("!H", 1000) + b"\xff"), 1007),
    ],
)
def test_close_codes(start: Start, data: bytes, code: int) -> None:
    gate = start(max_message=2000)
    peer = gate.open()
    peer.send(masked(TEXT, b"before"), data, masked(TEXT, b"never heard"))
    assert peer.recv() == (TEXT, b"before")
    assert peer.recv_close() == code
    peer.sock.close()
    gate.handler.wait_for(lambda: gate.handler.closed)
    assert gate.handler.closed[0].close_code == (code or 1005)
    assert [text for _, text in gate.handler.received] == ["before"]


def test_server_closes_and_is_not_confused_by_what_still_arrives(gate: Gate) -> None:
    peer = gate.open()
    gate.handler.wait_for(lambda: gate.handler.opened)
    conn = gate.handler.opened[0]
    conn.send(b"last words")
    conn.close(4401, "revoked")
    conn.close(1000)
    assert not conn.send(b"never")
    peer.send(*[masked(TEXT, b"x" * 1000)] * 100)
    assert peer.recv() == (TEXT, b"last words")
    assert peer.recv() == (CLOSE, struct.pack("!H", 4401) + b"revoked")
    peer.send(masked(CLOSE, struct.pack("!H", 4401)))
    peer.sock.close()
    gate.handler.wait_for(lambda: gate.handler.closed)
    assert conn.close_code == 4401
    assert not gate.handler.received


def test_a_peer_that_ignores_close_is_cut(start: Start) -> None:
    gate = start(close_timeout=0.05)
    gate.open()
    gate.handler.wait_for(lambda: gate.handler.opened)
    gate.handler.opened[0].close()
    gate.handler.wait_for(lambda: gate.handler.closed)


def test_a_broken_connection_is_abnormal(gate: Gate) -> None:
    sock = gate.open(receive_buffer=4096).sock
    gate.handler.wait_for(lambda: gate.handler.opened)
    assert gate.handler.opened[0].send(b"x" * 5_000_000)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()  # a reset
    gate.open().sock.close()
    gate.handler.wait_for(lambda: len(gate.handler.closed) == 2)
    assert [conn.close_code for conn in gate.handler.closed] == [1006, 1006]
    assert [conn.queued_bytes for conn in gate.handler.closed] == [0, 0]
    assert not gate.server.connections
    assert not gate.server._peers


def test_a_failing_handler_ends_its_connection_alone(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(conn: Connection, text: str) -> None:
        if text == "fail":
            raise ValueError("on purpose")
        conn.send(text.encode())

    gate.handler.on_message = fail
    victim, other = gate.open(), gate.open()
    victim.send(masked(TEXT, b"fail"))
    assert victim.recv_close() == 1011
    assert "on purpose" in caplog.text
    other.send(masked(TEXT, b"fine"))
    assert other.recv() == (TEXT, b"fine")


# ----------------------------------------------------------------------------- sending and limits


def test_two_hundred_connections_get_the_same_bytes(gate: Gate) -> None:
    peers = [gate.open() for _ in range(200)]
    gate.handler.wait_for(lambda: len(gate.handler.opened) == 200)
    shared = frame_text("für alle".encode())
    for conn in gate.handler.opened:
        assert conn.send_frame(shared)
    for number, peer in enumerate(peers):
        peer.send(masked(TEXT, f"{number}".encode()))
    for number, peer in enumerate(peers):
        assert peer.recv() == (TEXT, "für alle".encode())
        assert peer.recv() == (TEXT, f"{number}".encode())


def test_messages_of_each_thread_keep_their_order(gate: Gate) -> None:
    ws = gate.client()
    gate.handler.wait_for(lambda: gate.handler.opened)
    conn = gate.handler.opened[0]

    def send(sender: int) -> list[str]:
        for number in range(500):
            assert conn.send(f"{sender} {number}".encode())
        return []

    jobs: list[Callable[[], list[str]]] = [lambda: [ws.recv() for _ in range(4000)]]
    jobs += [lambda sender=sender: send(sender) for sender in range(8)]  # type: ignore[misc]
    received = parallel("test", jobs)[0]
    for sender in range(8):
        mine = [text for text in received if text.startswith(f"{sender} ")]
        assert mine == [f"{sender} {number}" for number in range(500)]
    ws.close()


def test_slow_reader_is_closed_and_nobody_else_notices(start: Start) -> None:
    gate = start(max_queue=256 << 10)
    slow = gate.open(receive_buffer=4096)
    gate.handler.wait_for(lambda: len(gate.handler.opened) == 1)
    good = gate.open()
    gate.handler.wait_for(lambda: len(gate.handler.opened) == 2)
    slow_conn, good_conn = gate.handler.opened
    text = b"0123456789abcdef" * 4096
    sent = 0
    while slow_conn.send(text):
        sent += 1
        assert sent < 1000, "64 MB fit into the system's buffers?"
        assert slow_conn.queued_bytes <= (256 << 10) + len(frame_text(text))
        assert good_conn.send(text)
        assert good.recv() == (TEXT, text)
    received = 0
    while (got := slow.recv())[0] == TEXT:
        received += 1
        assert got[1] == text  # no frame is cut
    assert got[0] == CLOSE
    assert int.from_bytes(got[1][:2], "big") == 1013
    assert received < sent
    slow.sock.close()
    gate.handler.wait_for(lambda: gate.handler.closed == [slow_conn])
    assert slow_conn.close_code == 1013
    assert slow_conn.queued_bytes == 0
    assert good_conn.send(b"still here")
    assert good.recv() == (TEXT, b"still here")


def test_one_frame_may_pass_the_bound_of_the_queue(start: Start) -> None:
    gate = start(max_queue=1000)
    peer = gate.open()
    gate.handler.wait_for(lambda: gate.handler.opened)
    assert gate.handler.opened[0].send(b"x" * 5_000_000)
    assert peer.recv() == (TEXT, b"x" * 5_000_000)


def test_drain_is_told_once_the_queue_is_below_the_mark(start: Start) -> None:
    gate = start(drain_mark=64 << 10)
    peer = gate.open(receive_buffer=4096)
    gate.handler.wait_for(lambda: gate.handler.opened)
    conn = gate.handler.opened[0]
    conn.send(b"small")
    assert peer.recv() == (TEXT, b"small")
    sent = 0
    while conn.queued_bytes <= 1 << 20:
        assert conn.send(b"x" * 10_000)
        sent += 1
    assert not gate.handler.drained
    for _ in range(sent):
        peer.recv()
    gate.handler.wait_for(lambda: gate.handler.drained)
    assert gate.handler.drained == [conn]
    eventually(lambda: conn.queued_bytes == 0)


def test_a_flood_of_messages_lets_others_have_their_turn(gate: Gate) -> None:
    flooded, other_sent = threading.Event(), threading.Event()

    def first_waits(conn: Connection, text: str) -> None:
        if text == "0":
            flooded.set()
            assert other_sent.wait(WAIT)
        conn.send(text.encode())

    gate.handler.on_message = first_waits
    flood, other = gate.open(), gate.open()
    flood.send(*[masked(TEXT, f"{number}".encode()) for number in range(2000)])
    assert flooded.wait(WAIT)
    other.send(masked(TEXT, b"other"))
    other_sent.set()
    assert other.recv() == (TEXT, b"other")
    assert [flood.recv()[1] for _ in range(2000)] == [b"%d" % number for number in range(2000)]
    order = [text for _, text in gate.handler.received]
    assert order.index("other") < order.index("1999")


def test_pings_keep_a_silent_client_that_answers(start: Start) -> None:
    gate = start(ping_interval=0.02, pong_timeout=WAIT)
    peer = gate.open()
    for _ in range(4):
        assert peer.recv() == (PING, b"")
        peer.send(masked(PONG))
    peer.send(masked(TEXT, b"alive"))
    while (got := peer.recv())[0] == PING:
        peer.send(masked(PONG))
    assert got == (TEXT, b"alive")


def test_a_peer_that_answers_no_ping_is_closed(start: Start) -> None:
    gate = start(ping_interval=0.02, pong_timeout=0.02, close_timeout=0.02)
    peer = gate.open()
    assert peer.recv() == (PING, b"")
    assert peer.recv_close() == 1011
    gate.handler.wait_for(lambda: gate.handler.closed)
    assert gate.handler.closed[0].close_code == 1011


# -------------------------------------------------------------------------- rest, hunger, the end


def settled_turns(server: CountingServer) -> int:
    """The loop's turns, once they have stopped rising; fails if they don't."""
    last = [-1]

    def settled() -> bool:
        before, last[0] = last[0], server.turns
        threading.Event().wait(0.05)
        return before == server.turns

    eventually(settled, what="the loop comes to rest")
    return server.turns


def test_rest_costs_no_wakeups(start: Start) -> None:
    gate = start()
    before = settled_turns(gate.server)
    threading.Event().wait(0.3)  # not to synchronize: the time that is watched
    assert gate.server.turns == before
    peer = gate.open()
    peer.send(masked(TEXT, b"x"))
    assert peer.recv() == (TEXT, b"x")
    gate.ask(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    before = settled_turns(gate.server)
    threading.Event().wait(0.3)
    assert gate.server.turns == before
    peer.sock.close()
    gate.handler.wait_for(lambda: gate.handler.closed)
    settled_turns(gate.server)
    assert gate.server._timeout() is None  # nothing is ever due without connections


def test_stop_delivers_what_is_owed(start: Start) -> None:
    gate = start()
    peer = gate.open(receive_buffer=4096)
    half_open = gate.connect()
    eventually(lambda: len(gate.server.connections) == 2)
    gate.handler.wait_for(lambda: gate.handler.opened)
    conn = gate.handler.opened[0]
    for number in range(300):
        assert conn.send(b"%d " % number + b"x" * 20_000)

    def read() -> bool:
        assert read_all(half_open) == b""  # is not waited for
        for number in range(300):
            assert peer.recv()[1].startswith(b"%d " % number)
        assert peer.recv_close() == 1012
        peer.sock.close()
        return True

    assert parallel("test", [lambda: gate.server.stop(WAIT, code=1012), read]) == [True, True]
    assert gate.handler.closed == [conn]
    with pytest.raises(ConnectionRefusedError):
        gate.connect()
    assert gate.server.stop(1.0)
    assert not conn.send(b"too late")


def test_stop_does_not_wait_for_ever(start: Start) -> None:
    gate = start(close_timeout=60.0)
    gate.open()
    gate.handler.wait_for(lambda: gate.handler.opened)
    assert gate.server.stop(0.3)
    assert len(gate.handler.closed) == 1


def test_stop_before_start_gives_the_listener_back() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    assert GatewayServer(listener, Handler()).stop(1.0)
    assert listener.fileno() == -1


def test_start_reports_a_listener_that_is_none() -> None:
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server = GatewayServer(listener, Handler())
    with pytest.raises(OSError, match="not supported"):
        server.start()
    assert listener.fileno() == -1
    assert server.stop(1.0)


def test_the_default_handler_lets_nobody_in() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    server = GatewayServer(listener, Handler())
    server.start()
    try:
        for data, expected in ((upgrade(), 401), (upgrade().replace(b"/ws", b"/"), 404)):
            with socket.create_connection(address, timeout=WAIT) as sock:
                sock.sendall(data)
                assert status(read_all(sock)) == expected
    finally:
        assert server.stop(WAIT)


STARVING = """
import logging, resource, socket, sys
from oxydra.gateway.connection import Handler
from oxydra.gateway.server import GatewayServer
logging.basicConfig(stream=sys.stdout, format="LOG %(message)s", level=logging.INFO)
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
turns = [0]
class Server(GatewayServer):
    def handle_request(self):
        turns[0] += 1
        super().handle_request()
server = Server(socket.create_server(("127.0.0.1", 0)), Handler())
print(server.serversocket.getsockname()[1], flush=True)
server.start()
for line in sys.stdin:
    print("TURNS", turns[0], flush=True)
print("STOPPED", server.stop(5.0), flush=True)
"""


def test_running_out_of_descriptors_pauses_and_recovers(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", STARVING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert child.stdin and child.stdout
    try:
        address = ("127.0.0.1", int(child.stdout.readline()))
        clients = [socket.create_connection(address, timeout=WAIT) for _ in range(60)]
        assert "no connections are accepted for now" in child.stdout.readline()
        turns = []
        for _ in range(2):
            threading.Event().wait(0.5)  # the time that is watched
            child.stdin.write("?\n")
            child.stdin.flush()
            turns.append(int(child.stdout.readline().split()[1]))
        assert turns[1] - turns[0] < 20, "a busy loop"
        for sock in clients:
            sock.close()
        with socket.create_connection(address, timeout=WAIT) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert status(read_all(sock)) == 404
        child.stdin.close()
        rest = child.stdout.read()
        assert "STOPPED True" in rest
        assert "no connections are accepted" not in rest
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_listener_is_taken_over_as_an_inherited_descriptor() -> None:
    bound = socket.create_server(("127.0.0.1", 0))
    address = bound.getsockname()
    inherited = socket.socket(fileno=os.dup(bound.fileno()))
    bound.close()
    server = GatewayServer(inherited, Handler())
    server.start()
    try:
        with socket.create_connection(address, timeout=WAIT) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert status(read_all(sock)) == 404
    finally:
        assert server.stop(WAIT)


def test_the_thread_is_named_and_a_dying_loop_tells_its_owner(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(GatewayServer):
        def handle_request(self) -> None:
            raise RuntimeError("on purpose")

    told: list[BaseException] = []
    died = threading.Event()

    def on_death(error: BaseException) -> None:
        told.append(error)
        died.set()

    listener = socket.create_server(("127.0.0.1", 0))
    with caplog.at_level(logging.ERROR):
        server = Broken(listener, Handler(), on_death=on_death)
        server.start()
        assert died.wait(WAIT)
    assert str(told[0]) == "on purpose"
    assert "thread gateway died" in caplog.text
    assert server.stop(WAIT)
    assert listener.fileno() == -1
