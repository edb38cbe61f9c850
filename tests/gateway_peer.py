"""A gateway server with a recording handler, and raw clients that may break every rule."""

from __future__ import annotations

import base64
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest
import websocket

from oxydra.gateway.connection import Connection, Handler, ServerLimits
from oxydra.gateway.http import Request, Response, plain
from oxydra.gateway.server import GatewayServer

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
GOOD = "Bearer good"
WAIT = 60.0  # seconds before a test gives up


class Recorder(Handler):
    """Echoes text, keeps what happened, and lets a test wait for it."""

    def __init__(self) -> None:
        self.opened: list[Connection] = []
        self.closed: list[Connection] = []
        self.drained: list[Connection] = []
        self.received: list[tuple[Connection, str | bytes]] = []
        self.on_message: Callable[[Connection, str], None] = self.echo
        self._changed = threading.Condition()

    def wait_for(self, predicate: Callable[[], object]) -> None:
        with self._changed:
            assert self._changed.wait_for(predicate, WAIT)

    def _record(self, items: list[Any], item: Any) -> None:
        with self._changed:
            items.append(item)
            self._changed.notify_all()

    @staticmethod
    def echo(conn: Connection, text: str) -> None:
        conn.send(text.encode())

    def authorize(self, request: Request) -> Response | object:
        if request.headers.get("authorization") != GOOD:
            return plain(401, "No.")
        return f"user of {request.path}"

    def handle_http(self, request: Request) -> Response:
        if request.path == "/big":
            return Response(200, b"x" * 5_000_000)
        if request.path == "/error":
            raise ValueError("on purpose")
        if request.path == "/echo":
            return Response(200, request.body)
        if request.path != "/healthz":
            return plain(404, "Not found.")
        return plain(200, f"{request.method} {request.query} {request.peer}")

    def on_open(self, conn: Connection) -> None:
        self._record(self.opened, conn)

    def on_text(self, conn: Connection, text: str) -> None:
        self._record(self.received, (conn, text))
        self.on_message(conn, text)

    def on_binary(self, conn: Connection, data: bytes) -> None:
        self._record(self.received, (conn, data))
        conn.send(b"binary")

    def on_drain(self, conn: Connection) -> None:
        self._record(self.drained, conn)

    def on_close(self, conn: Connection) -> None:
        self._record(self.closed, conn)


class CountingServer(GatewayServer):
    """Counts the turns of its loop."""

    turns = 0

    def handle_request(self) -> None:
        self.turns += 1
        super().handle_request()


class Gate:
    """A running server with its recorder, and raw clients that are closed with it."""

    def __init__(self, limits: ServerLimits, handler: Recorder | None = None) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.handler = handler or Recorder()
        self.server = CountingServer(listener, self.handler, limits)
        self.clients: list[socket.socket] = []
        self.server.start()

    def connect(self, receive_buffer: int = 0) -> socket.socket:
        sock = socket.socket()
        self.clients.append(sock)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(WAIT)
        sock.connect(("127.0.0.1", self.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def open(self, receive_buffer: int = 0) -> Peer:
        return Peer(self.connect(receive_buffer))

    def client(self) -> websocket.WebSocket:
        """A connection of an independent implementation."""
        return websocket.create_connection(
            f"ws://127.0.0.1:{self.port}/ws", timeout=WAIT, header=[f"Authorization: {GOOD}"]
        )

    def ask(self, data: bytes) -> bytes:
        """All that the server answers to these bytes, to the end of the connection."""
        with self.connect() as sock:
            with contextlib.suppress(OSError):
                sock.sendall(data)
            return read_all(sock)

    def stop(self) -> None:
        for sock in self.clients:
            sock.close()
        assert self.server.stop(WAIT)


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while part := sock.recv(1 << 16):
        data += part
    return data


def status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer
    return int(answer[9:12])


def upgrade(*extra: str, path: str = "/ws", drop: str = "") -> bytes:
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: keep-alive, Upgrade",
        "Sec-WebSocket-Key: " + base64.b64encode(b"0123456789abcdef").decode(),
        "Sec-WebSocket-Version: 13",
        f"Authorization: {GOOD}",
    ]
    kept = [line for line in lines if not drop or not line.startswith(drop)]
    return "\r\n".join([*kept, *extra, "", ""]).encode()


def masked(
    opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bytes = b"\x01\x80\xfe\x33"
) -> bytes:
    """A client's frame, masked byte by byte."""
    size = len(payload)
    if size < 126:
        head = bytes((fin << 7 | opcode, 0x80 | size))
    elif size < 1 << 16:
        head = struct.pack("!BBH", fin << 7 | opcode, 0xFE, size)
    else:
        head = struct.pack("!BBQ", fin << 7 | opcode, 0xFF, size)
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


class Peer:
    """A raw WebSocket client: sends any bytes, and checks what it gets."""

    def __init__(self, sock: socket.socket, request: bytes = b"") -> None:
        self.sock = sock
        self._buffer = b""
        sock.sendall(request or upgrade())
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        assert status(head) == 101

    def _more(self) -> None:
        part = self.sock.recv(1 << 16)
        if not part:
            raise EOFError
        self._buffer += part

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def send(self, *frames: bytes) -> None:
        self.sock.sendall(b"".join(frames))

    def recv(self) -> tuple[int, bytes]:
        """The server's next frame; raises EOFError at the end."""
        first, size = self._take(2)
        assert first & 0x80 and size < 0x80, "a server sends whole, unmasked frames"
        if size == 126:
            size = int.from_bytes(self._take(2), "big")
        elif size == 127:
            size = int.from_bytes(self._take(8), "big")
        return first & 0x0F, self._take(size)

    def recv_close(self) -> int:
        """Skip to the Close frame, see that the connection then ends, return the code."""
        opcode, payload = self.recv()
        while opcode != CLOSE:
            opcode, payload = self.recv()
        with pytest.raises(EOFError):
            self.recv()
        return int.from_bytes(payload[:2], "big")
