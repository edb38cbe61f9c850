"""One peer of the gateway: WebSocket frames (RFC 6455) in, a bounded queue of them out.

`frame`, `frame_text` and `FrameReader` are pure. `Connection` extends `WebSocket` of
simple-websocket-server; the base parses byte by byte, bounds nothing and knows one thread only, so
reading, queueing and closing are replaced, while its attributes (`client`, `handshaked`, `closed`,
`sendq`) and hooks (`connected`, `handle`, `handle_close`) keep their meaning.

Threads: any may call `send`, `send_frame` and `close`, which only queue. The gateway's I/O thread
alone touches the socket, calls everything else, and ends the connection.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from simple_websocket_server import BINARY, CLOSE, PING, PONG, STREAM, TEXT, WebSocket

from oxydra.errors import FrameError
from oxydra.frames import MAX_ATTACHMENT_FRAME
from oxydra.gateway.http import Request, RequestReader, Response, plain

log = logging.getLogger(__name__)

NORMAL = 1000
GOING_AWAY = 1001
PROTOCOL_ERROR = 1002
UNSUPPORTED = 1003
NO_CODE = 1005  # the peer's Close had none; never sent
ABNORMAL = 1006  # the connection broke without a Close; never sent
BAD_DATA = 1007
TOO_BIG = 1009
INTERNAL_ERROR = 1011
TRY_LATER = 1013  # a reader that is too slow

_MAX_CONTROL = 125  # bytes of a control frame's payload, RFC 6455 section 5.5
_RECV_BYTES = 64 << 10
_SEND_CHUNKS = 64  # buffers for one sendmsg; the system allows 1024
_MESSAGES_PER_TURN = 64  # then the other connections get their turn


class ProtocolError(FrameError):
    """The peer broke RFC 6455 or a limit; `close_code` is what the connection is closed with."""

    def __init__(self, close_code: int, message: str) -> None:
        super().__init__(message)
        self.close_code = close_code


# ------------------------------------------------------------------------------------------ frames


def frame(opcode: int, payload: bytes) -> bytes:
    """One whole unmasked frame, as a server sends it (RFC 6455 section 5.2)."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 1 << 16:
        return struct.pack("!BBH", 0x80 | opcode, 126, size) + payload
    return struct.pack("!BBQ", 0x80 | opcode, 127, size) + payload


def frame_text(payload: bytes) -> bytes:
    """`payload` (UTF-8) as a text frame: made once, then sent to any number of connections."""
    return frame(TEXT, payload)


def close_payload(code: int, reason: str = "") -> bytes:
    """The body of a Close frame; the reason is cut to what fits."""
    cut = reason.encode("utf-8", "replace")[: _MAX_CONTROL - 2].decode("utf-8", "ignore")
    return struct.pack("!H", code) + cut.encode()


def parse_close(payload: bytes) -> int:
    """The peer's close code, `NO_CODE` if it gave none. Raises `ProtocolError`."""
    if not payload:
        return NO_CODE
    code = int.from_bytes(payload[:2], "big") if len(payload) > 1 else 0
    if not (1000 <= code <= 1014 or 3000 <= code <= 4999) or code in (1004, NO_CODE, ABNORMAL):
        raise ProtocolError(PROTOCOL_ERROR, "The close code is not valid.")
    _utf8(payload[2:])
    return code


def _utf8(data: bytes | bytearray) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolError(BAD_DATA, "The text is not valid UTF-8.") from None


def _unmask(data: bytes, mask: bytes) -> bytes:
    """XOR with the repeated mask, as one big number: a thousand times faster than a loop."""
    size = len(data)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


class FrameReader:
    """A client's bytes, however they were split, into messages and control frames. Pure.

    Payload is unmasked as it arrives, so that a large message is held once. After a
    `ProtocolError` the reader is useless.
    """

    def __init__(self, max_message: int) -> None:
        self._max_message = max_message
        self._buffer = bytearray()
        self._left: int | None = None  # payload bytes still to come; None: a header is next
        self._final = False
        self._opcode = 0
        self._mask = b""
        self._kind: int | None = None  # TEXT or BINARY while a message is under way
        self._message = bytearray()
        self._control = bytearray()  # control frames may stand between a message's fragments

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def messages(self) -> Iterator[tuple[int, Any]]:
        """Everything complete so far: (TEXT, str), (BINARY | PING | PONG | CLOSE, bytes).

        May be left at any point and taken up again later. Raises `ProtocolError`, after what was
        complete before it.
        """
        while self._left is not None or self._header():
            if not self._payload():
                return
            self._left = None
            if self._opcode >= CLOSE:
                control, self._control = bytes(self._control), bytearray()
                yield self._opcode, control
            elif self._final:
                kind, message = self._kind, self._message
                self._kind, self._message = None, bytearray()
                yield (TEXT, _utf8(message)) if kind == TEXT else (BINARY, bytes(message))

    def _header(self) -> bool:
        """Take the next frame's header from the buffer; False while it is incomplete."""
        buffer = self._buffer
        if len(buffer) < 2:
            return False
        first, second = buffer[0], buffer[1]
        size, start = second & 0x7F, 2
        self._check_header(first, second)
        if size >= 126:
            start = 4 if size == 126 else 10
            if len(buffer) < start:
                return False
            size = int.from_bytes(buffer[2:start], "big")
        if first & 0x0F < CLOSE and len(self._message) + size > self._max_message:
            raise ProtocolError(TOO_BIG, f"A message is at most {self._max_message} bytes.")
        if len(buffer) < start + 4:
            return False
        self._final, self._opcode = first >= 0x80, first & 0x0F
        self._mask = bytes(buffer[start : start + 4])
        self._left = size
        del buffer[: start + 4]
        if self._opcode in (TEXT, BINARY):
            self._kind = self._opcode
        return True

    def _check_header(self, first: int, second: int) -> None:
        opcode = first & 0x0F
        if first & 0x70:
            raise ProtocolError(PROTOCOL_ERROR, "A reserved bit is set.")
        if opcode not in (STREAM, TEXT, BINARY, CLOSE, PING, PONG):
            raise ProtocolError(PROTOCOL_ERROR, "The opcode is reserved.")
        if not second & 0x80:
            raise ProtocolError(PROTOCOL_ERROR, "A client must mask its frames.")
        if opcode >= CLOSE and (first < 0x80 or second & 0x7F > _MAX_CONTROL):
            raise ProtocolError(PROTOCOL_ERROR, "A control frame is fragmented or too long.")
        if opcode < CLOSE and (opcode == STREAM) != (self._kind is not None):
            raise ProtocolError(PROTOCOL_ERROR, "A message's fragments are out of order.")

    def _payload(self) -> bool:
        """Move what there is of the frame's payload; False while some is missing."""
        assert self._left is not None
        part = bytes(self._buffer[: self._left])
        del self._buffer[: len(part)]
        target = self._control if self._opcode >= CLOSE else self._message
        target += _unmask(part, self._mask)
        turned = len(part) % 4
        self._mask = self._mask[turned:] + self._mask[:turned]
        self._left -= len(part)
        return self._left == 0


# -------------------------------------------------------------------------------------- connection


class Mergeable:
    """A frame that the next one may be merged into, as long as it waits for a slow reader."""

    __slots__ = ()

    @property
    def data(self) -> bytes:
        """The whole frame."""
        return b""

    def merged(self, after: Mergeable) -> Mergeable | None:
        """Both as one; None if they can't be."""
        return None


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What one gateway grants its peers. Times are seconds, sizes bytes."""

    max_connections: int = 4096
    """All connections, in whatever state; beyond, a new one gets 503."""
    max_connections_per_peer: int = 2048
    """Those of one address; beyond, a new one gets 429. Our own clients share the loopback's."""
    max_pending: int = 1024
    """Connections that have not finished their handshake; beyond, the oldest of them goes, so that
    a flood of half-open ones keeps nobody out."""
    handshake_timeout: float = 10.0
    """From accept to the complete request."""
    ping_interval: float = 30.0
    """Silence of a peer after which it is sent a ping."""
    pong_timeout: float = 20.0
    """Silence after a ping that ends the connection."""
    beat_interval: float = 15.0
    """How often an HTTP answer that takes its time is asked to say something."""
    close_timeout: float = 3.0
    """What a peer has to take the last bytes and hang up."""
    max_message: int = MAX_ATTACHMENT_FRAME
    """One incoming message, all its fragments together."""
    max_queue: int = 8 << 20
    """A connection whose queue holds this much when more is to be queued is closed with 1013; the
    last frame taken may pass the bound. What can be merged is merged before."""
    drain_mark: int = 256 << 10
    """`Handler.on_drain` is called when a queue falls from above this to it or below."""
    max_body: int = 0
    """The body of an HTTP request, where the handler does not say."""
    failures_per_peer: int = 20
    """Failed handshakes a minute of one address (IPv6: one /64), before it gets 429."""
    failures_overall: int = 300
    """Failed handshakes a minute of all addresses together."""


class Later:
    """An HTTP answer that is given bit by bit, from any thread, by `Connection.send_frame` (which
    takes any bytes) and `Connection.end`. Its methods are called on the I/O thread.
    """

    def begin(self, conn: Connection) -> None:
        """The request was taken; the answer may begin, its status line first."""

    def beat(self, conn: Connection) -> None:
        """`ServerLimits.beat_interval` has passed: say something, so that no proxy gives up."""

    def stop(self, conn: Connection) -> None:
        """The gateway stops: say so and end."""
        conn.end(plain(503, "The gateway is stopping.").encode())

    def gone(self, conn: Connection) -> None:
        """The connection is over: `conn.ended` says whether after the whole answer was queued."""


class Handler:
    """What a gateway does with its connections: override what is needed.

    Every method is called on the I/O thread and must not block. An exception is logged and ends
    that connection alone (1011, or HTTP 500).
    """

    def authorize(self, request: Request) -> Response | object:
        """Decide on a WebSocket handshake: a `Response` refuses, anything else becomes
        `Connection.identity`.
        """
        return plain(401, "No authorization is configured.")

    def source(self, request: Request) -> str:
        """The address of who asks; behind a proxy not that of the TCP peer."""
        return request.peer

    def methods(self, path: str) -> Sequence[str]:
        """What may be done at a path that is not the WebSocket's; anything else gets 405."""
        return ("GET",)

    def body_limit(self, head: Request) -> int | Response | None:
        """How many bytes the body of this request may have, or why it is refused before it is
        read; None: `ServerLimits.max_body`.
        """
        return None

    def handle_http(self, request: Request) -> Response | Later:
        """Answer a request that is not for the WebSocket."""
        return plain(404, "Not found.")

    def on_open(self, conn: Connection) -> None:
        """The handshake is done; frames may be sent."""

    def on_text(self, conn: Connection, text: str) -> None:
        """A text message arrived."""

    def on_binary(self, conn: Connection, data: bytes) -> None:
        """A binary message arrived."""
        conn.close(UNSUPPORTED, "Only text is understood here.")

    def on_drain(self, conn: Connection) -> None:
        """The queue, after having been above `drain_mark`, is no longer."""

    def on_close(self, conn: Connection) -> None:
        """The connection is gone; called once for each `on_open`. See `Connection.close_code`."""


class Connection(WebSocket):  # type: ignore[misc]  # the base has no types
    """A peer, from accept to the end.

    `identity` is what `authorize` returned, `peer` the peer's address, `request` its handshake;
    `close_code` says how it ended (RFC 6455 section 7.1.5). `closed` means that a last frame or
    response is queued: nothing more is sent, and what arrives is thrown away.
    """

    client: socket.socket
    handshaked: bool
    closed: bool
    sendq: deque[bytes | memoryview | Mergeable]
    opcode: int
    data: Any

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        *,
        handler: Handler,
        limits: ServerLimits,
        notify: Callable[[Connection], None],
        now: float,
    ) -> None:
        super().__init__(None, sock, peer)
        self.peer = peer
        self.identity: Any = None
        self.close_code = ABNORMAL
        self.request_reader: RequestReader | None = RequestReader(peer, limits.max_body)
        self.later: Later | None = None
        self.ended = False
        self.handler = handler
        self.limits = limits
        self._notify = notify
        self._reader = FrameReader(limits.max_message)
        # Shared by all threads, under the lock:
        self._lock = threading.Lock()
        self._queued = 0
        self._sending = 0  # of the queue, how much is being sent, and can't be changed
        self._notified = False
        self._above_mark = False
        self._overflowed = False
        # Of the I/O thread:
        self.opened_at = self.seen_at = now
        self.pinged_at: float | None = None  # an unanswered ping
        self.closing_at: float | None = None
        self.timer, self.timer_key = float("inf"), 0  # when the loop looks at it again
        self.dead = False
        self.blocked = False  # the socket's buffer is full
        self.eof = False
        self.backlog = False  # complete messages are waiting for their turn
        self._sent_end = False

    # ---- any thread

    @property
    def queued_bytes(self) -> int:
        """Bytes waiting for the peer. If this is above `drain_mark`, `on_drain` or `on_close` is
        sure to be called afterwards.
        """
        return self._queued

    def send(self, payload: bytes) -> bool:
        """Queue a text message (UTF-8). False if the connection is closing: the peer won't get
        it.
        """
        return self.send_frame(frame(TEXT, payload))

    def send_frame(self, data: bytes | Mergeable) -> bool:
        """Queue a frame made by `frame_text`. Messages of one thread keep their order. What can be
        merged is merged with what the peer has not yet read of it.
        """
        with self._lock:
            if self.closed:
                return False
            fits = self._queued < self.limits.max_queue
            if fits:
                self._enqueue(data)
            else:
                self.closed = self._overflowed = True
            notify, self._notified = not self._notified, True
        if notify:
            self._notify(self)
        return fits

    def close(self, status: int = NORMAL, reason: str = "") -> None:
        """Queue a Close frame behind what is queued already; then the connection ends, at the
        latest after `close_timeout`. Does nothing if it is closing already.
        """
        if self._finish(frame(CLOSE, close_payload(status, reason))):
            self.close_code = status

    def end(self, last: bytes = b"") -> bool:
        """Queue the last bytes of an HTTP answer, after which the connection ends."""
        self.ended = self._finish(last)
        return self.ended

    def _finish(self, last: bytes) -> bool:
        with self._lock:
            if self.closed:
                return False
            self._enqueue(last)
            self.closed = True
            notify, self._notified = not self._notified, True
        if notify:
            self._notify(self)
        return True

    def _enqueue(self, data: bytes | memoryview | Mergeable) -> None:
        if isinstance(data, Mergeable):
            if self.blocked and len(self.sendq) > self._sending:
                last = self.sendq[-1]
                merged = last.merged(data) if isinstance(last, Mergeable) else None
                if merged is not None:
                    data, self._queued = merged, self._queued - _length(self.sendq.pop())
        elif not data:
            return
        self.sendq.append(data)
        self._queued += _length(data)
        if self._queued > self.limits.drain_mark:
            self._above_mark = True

    # ---- the I/O thread: output

    def respond(self, response: Response) -> None:
        """Answer in HTTP and end."""
        self.request_reader = None
        self._finish(response.encode())

    def postpone(self, later: Later, now: float) -> None:
        """Have the request answered by `later`."""
        self.request_reader, self.later, self.seen_at = None, later, now
        self._guard(later.begin)

    def beat(self, now: float) -> None:
        self.seen_at = now
        if self.later is not None:
            self._guard(self.later.beat)

    def interrupt(self) -> None:
        """The gateway stops."""
        if self.later is not None and not self.closed:
            self._guard(self.later.stop)

    def upgrade(self, request: Request, grant: bytes, rest: bytes) -> None:
        """Leave HTTP: `grant` is the 101 response, `rest` what the peer sent behind its request."""
        self.request, self.request_reader = request, None
        self.send_frame(grant)
        self.handshaked = True
        self._reader.feed(rest)
        self.backlog = bool(rest)
        self.connected()

    def ping(self, now: float) -> None:
        self.pinged_at = now
        self.send_frame(frame(PING, b""))

    def flush(self) -> None:
        """Send what the socket takes at once; raises `OSError` if the peer is gone.

        One system call, so that a fast reader with a long queue keeps nobody waiting.
        """
        with self._lock:
            self._notified = False
            if self._overflowed:
                self._drop_queue()
            chunks = [
                chunk.data if isinstance(chunk, Mergeable) else chunk
                for chunk in islice(self.sendq, _SEND_CHUNKS)
            ]
            self._sending = len(chunks)
        try:
            sent = self.client.sendmsg(chunks) if chunks else 0
        except BlockingIOError:
            sent = 0
        with self._lock:
            self._sending = 0
            self._forget(sent)
            self.blocked = bool(self.sendq)
            ended = self.closed and not (self.sendq or self._overflowed)
            drained = self._above_mark and self._queued <= self.limits.drain_mark
            if drained:
                self._above_mark = False
        if ended and not self._sent_end:
            # Not close(): unread input would make that a reset, which can overtake the last bytes.
            self._sent_end = True
            self.client.shutdown(socket.SHUT_WR)
        if drained and self.handshaked:
            self._guard(self.handler.on_drain)

    def _forget(self, sent: int) -> None:
        """Take `sent` bytes off the front of the queue."""
        self._queued -= sent
        while sent:
            chunk = self.sendq[0]
            if isinstance(chunk, Mergeable):
                chunk = chunk.data
            if sent < len(chunk):
                self.sendq[0] = memoryview(chunk)[sent:]
                return
            self.sendq.popleft()
            sent -= len(chunk)

    def _drop_queue(self) -> None:
        """Replace the queue of a slow reader by Close 1013; a frame already begun is kept whole."""
        self._overflowed = False
        if self.later is not None:  # in HTTP there is nothing to say any more
            raise ConnectionAbortedError("the peer reads too slowly")
        kept = [chunk for chunk in islice(self.sendq, 1) if isinstance(chunk, memoryview)]
        last = frame(CLOSE, close_payload(TRY_LATER, "You read too slowly."))
        self.close_code = TRY_LATER
        self.sendq.clear()
        self._queued = 0
        for begun in kept:
            self._enqueue(begun)
        self._enqueue(last)

    @property
    def finished(self) -> bool:
        """Whether nothing remains to be said or heard."""
        return self.eof and not (self.closed and self.sendq)

    # ---- the I/O thread: input

    def receive(self, now: float) -> bytes:
        """What the socket has, b"" if nothing; sets `eof`. Raises `OSError` if the peer is gone."""
        try:
            data: bytes = self.client.recv(_RECV_BYTES)
        except BlockingIOError:
            return b""
        self.eof = not data
        self.seen_at, self.pinged_at = now, None
        return data

    def _handle_data(self, data: bytes = b"") -> None:
        """Deal with frames: those in `data` and those left from the last turn."""
        self._reader.feed(data)
        self.backlog = False
        try:
            for count, (opcode, data) in enumerate(self._reader.messages(), 1):
                self.opcode, self.data = opcode, data
                self._handle_packet()
                if self.closed:
                    return
                if count == _MESSAGES_PER_TURN:
                    self.backlog = True
                    return
        except ProtocolError as error:
            self.close(error.close_code, error.message)

    def _handle_packet(self) -> None:
        if self.opcode in (TEXT, BINARY):
            self.handle()
        elif self.opcode == PING:
            self.send_frame(frame(PONG, self.data))
        elif self.opcode == CLOSE:
            code = parse_close(self.data)
            if self._finish(frame(CLOSE, self.data[:2])):
                self.close_code = code

    def connected(self) -> None:
        self._guard(self.handler.on_open)

    def handle(self) -> None:
        data, self.data = self.data, b""  # it may be large, and the next message may be far
        handler = self.handler
        self._guard(handler.on_text if self.opcode == TEXT else handler.on_binary, data)

    def handle_close(self) -> None:
        self._guard(self.handler.on_close)

    def handle_gone(self) -> None:
        """As `handle_close`, for one that never was a WebSocket."""
        if self.later is not None:
            self._guard(self.later.gone)

    def _guard(self, callback: Callable[..., None], *arguments: Any) -> None:
        try:
            callback(self, *arguments)
        except Exception:
            log.exception("%s failed; closing the connection of %s", callback, self.peer)
            if self.later is not None:
                self.end()
            else:
                self.close(INTERNAL_ERROR, "Internal error.")

    def dispose(self) -> None:
        """The connection is gone: nothing is queued any more, and the queue is freed."""
        with self._lock:
            self.closed = True
            self.sendq.clear()
            self._queued = 0


def _length(chunk: bytes | memoryview | Mergeable) -> int:
    return len(chunk.data if isinstance(chunk, Mergeable) else chunk)
