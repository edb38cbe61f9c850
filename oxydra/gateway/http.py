"""HTTP/1.1 as far as the gateway needs it (RFC 9112, RFC 6455 section 4). Pure: no I/O, no clock.

`RequestReader` turns bytes, however they were split, into one `Request`, and refuses what is not
plainly HTTP: each connection carries one request, so nothing is guessed, repaired or skipped, and
no two readers can understand the same bytes differently. `Response` is what goes back.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from oxydra.errors import FrameError

MAX_LINE = 8 << 10  # bytes of the request line
MAX_HEAD = 16 << 10  # bytes of the request line and all headers
MAX_HEADERS = 64
MAX_CHUNK_LINE = 1 << 10  # bytes of the line before a chunk, and of a line behind the last one

_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) (/[!-~]*) HTTP/1\.([01])")
_HEADER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t -~\x80-\xff]*)")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[\t -~\x80-\xff]*)?")
_END = b"\r\n\r\n"
# Twice one of these means that somebody hopes we and a proxy read different ones.
_ONCE = {"authorization", "content-length", "content-type", "host", "origin", "transfer-encoding"}
_ONCE |= {"sec-websocket-key", "sec-websocket-version"}
_ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked for. `headers` has lower-case names; `query` is what follows `?`, still
    encoded; `peer` is the address of the TCP peer, without its port.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    peer: str
    version: str = "1.1"
    body: bytes = b""

    @property
    def upgrades(self) -> bool:
        """Whether the client wants to leave HTTP for WebSocket."""
        return "websocket" in _tokens(self.headers.get("upgrade", "")) and "upgrade" in _tokens(
            self.headers.get("connection", "")
        )


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, after which the connection ends. `headers` are added to the usual ones."""

    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)
    known: bool = False
    """The peer showed a valid token: whatever is refused then is no failed handshake."""

    def encode(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += [
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
        ]
        return "\r\n".join(lines).encode("latin-1") + _END + self.body


def plain(status: int, text: str, **headers: str) -> Response:
    """A one-line answer; `Retry_After="3"` becomes the header `Retry-After: 3`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, f"{text}\n".encode(), headers=named)


class RefusedError(FrameError):
    """The bytes are no request we take; `response` says so to the peer, which is at `source`, if
    that is known.
    """

    def __init__(
        self, status: int, text: str, *, response: Response | None = None, source: str = ""
    ) -> None:
        super().__init__(text)
        self.response = response or plain(status, text)
        self.source = source


Admit = Callable[[Request], int]
"""Says of a request whose body is still to come how many bytes that may have, or raises
`RefusedError`: nobody's body is held before it is known who sends it."""


class RequestReader:
    """Bytes to one request. After `feed` has returned it, `rest` holds what followed it.

    `feed` raises `RefusedError` as soon as the bytes can't become a request any more. A body is
    taken up to `max_body` bytes, by its Content-Length or in chunks; `admit`, if given, says
    instead how many.
    """

    def __init__(self, peer: str, max_body: int, admit: Admit | None = None) -> None:
        self._peer = peer
        self._max_body = max_body
        self._admit = admit
        self._buffer = bytearray()
        self._head: Request | None = None
        self._length = 0
        self._chunks: ChunkReader | None = None

    def feed(self, data: bytes) -> Request | None:
        """The request, or None while it is incomplete."""
        searched = max(0, len(self._buffer) - len(_END) + 1)
        self._buffer += data
        if self._head is None:
            end = self._buffer.find(_END, searched, MAX_HEAD)
            if end < 0:
                self._check_incomplete()
                return None
            self._head = self._parse(bytes(self._buffer[:end]))
            del self._buffer[: end + len(_END)]
        if self._chunks is not None:
            if not self._chunks.take(self._buffer):
                return None
            body = bytes(self._chunks.body)
        elif len(self._buffer) < self._length:
            return None
        else:
            body = bytes(self._buffer[: self._length])
            del self._buffer[: self._length]
        head = self._head
        return Request(
            head.method, head.path, head.query, head.headers, head.peer, head.version, body
        )

    @property
    def rest(self) -> bytes:
        return bytes(self._buffer)

    def _check_incomplete(self) -> None:
        """Refuse at the first byte what can't become a request: a TLS greeting, a flood."""
        if self._buffer and not 0x41 <= self._buffer[0] <= 0x5A:
            raise RefusedError(400, "This is not HTTP.")
        if self._buffer.find(b"\r\n", 0, MAX_LINE) < 0 and len(self._buffer) >= MAX_LINE:
            raise RefusedError(414, f"The request line is over {MAX_LINE} bytes.")
        if len(self._buffer) >= MAX_HEAD:
            raise RefusedError(431, f"The headers are over {MAX_HEAD} bytes.")

    def _parse(self, head: bytes) -> Request:
        first, *lines = head.split(b"\r\n")
        match = _REQUEST_LINE.fullmatch(first)
        if match is None:
            raise RefusedError(400, "The request line is malformed.")
        if len(first) > MAX_LINE:
            raise RefusedError(414, f"The request line is over {MAX_LINE} bytes.")
        method, target, minor = (part.decode("ascii") for part in match.groups())
        path, _, query = target.partition("?")
        version = f"1.{minor}"
        headers = _parse_headers(lines)
        if "host" not in headers and version == "1.1":
            raise RefusedError(400, "The Host header is missing.")
        chunked = _is_chunked(headers, version)
        self._length = 0 if chunked else _body_length(headers)
        request = Request(method, path, query, headers, self._peer, version)
        limit = self._max_body
        if (self._length or chunked) and self._admit is not None:
            limit = self._admit(request)
        if self._length > limit or (chunked and not limit):
            raise RefusedError(413, f"The body is over {limit} bytes.")
        if chunked:
            self._chunks = ChunkReader(limit)
        return request


class ChunkReader:
    """A body in chunks (RFC 9112 section 7.1), of at most `limit` bytes in all. Extensions and
    trailers are read past. `take` raises `RefusedError`.
    """

    def __init__(self, limit: int) -> None:
        self.body = bytearray()
        self._limit = limit
        self._left = 0  # bytes of the current chunk, with the CRLF behind it
        self._trailing = False
        self._beside = 0  # bytes that were no part of the body

    def take(self, buffer: bytearray) -> bool:
        """Take what is there of it off the buffer's front; True at its end."""
        while True:
            if self._left:
                if not self._data(buffer):
                    return False
                continue
            line = self._line(buffer)
            if line is None:
                return False
            if self._trailing:
                if not line:
                    return True
                _parse_headers([line])
            elif (size := _chunk_size(line)) == 0:
                self._trailing = True
            elif len(self.body) + size > self._limit:
                raise RefusedError(413, f"The body is over {self._limit} bytes.")
            else:
                self._left = size + 2

    def _data(self, buffer: bytearray) -> bool:
        """Whether the current chunk is complete."""
        piece = bytes(buffer[: max(0, self._left - 2)])
        self.body += piece
        del buffer[: len(piece)]
        self._left -= len(piece)
        if self._left > 2 or len(buffer) < 2:
            return False
        if buffer[:2] != b"\r\n":
            raise RefusedError(400, "A chunk does not end where it says.")
        del buffer[:2]
        self._left = 0
        return True

    def _line(self, buffer: bytearray) -> bytes | None:
        end = buffer.find(b"\r\n", 0, MAX_CHUNK_LINE)
        if end < 0:
            if len(buffer) >= MAX_CHUNK_LINE:
                raise RefusedError(400, "A chunk's size is malformed.")
            return None
        line = bytes(buffer[:end])
        del buffer[: end + 2]
        if b";" in line or self._trailing:
            self._beside += len(line)
            if self._beside > MAX_HEAD:
                raise RefusedError(431, f"What stands beside the body is over {MAX_HEAD} bytes.")
        return line


def _chunk_size(line: bytes) -> int:
    match = _CHUNK.fullmatch(line)
    if match is None:
        raise RefusedError(400, "A chunk's size is malformed.")
    return int(match[1], 16)


def _parse_headers(lines: list[bytes]) -> dict[str, str]:
    if len(lines) > MAX_HEADERS:
        raise RefusedError(431, f"There are more than {MAX_HEADERS} headers.")
    headers: dict[str, str] = {}
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:  # folded lines and control characters end here too
            raise RefusedError(400, "A header is malformed.")
        name = match[1].decode("ascii").lower()
        value = match[2].decode("latin-1").rstrip(" \t")
        if name not in headers:
            headers[name] = value
        elif name in _ONCE:
            raise RefusedError(400, f"The header {name} is there twice.")
        else:
            headers[name] += f", {value}"
    return headers


def _is_chunked(headers: Mapping[str, str], version: str) -> bool:
    """Whether the body comes in chunks; nothing that two readers could understand differently."""
    coding = headers.get("transfer-encoding")
    if coding is None:
        return False
    if coding.lower() != "chunked" or version != "1.1":
        raise RefusedError(501, "The only Transfer-Encoding that is taken is chunked.")
    if "content-length" in headers:
        raise RefusedError(400, "A body has a length, or comes in chunks.")
    return True


def _body_length(headers: Mapping[str, str]) -> int:
    text = headers.get("content-length", "0")
    if not re.fullmatch("[0-9]{1,18}", text):
        raise RefusedError(400, "Content-Length is malformed.")
    return int(text)


def _tokens(value: str) -> list[str]:
    return [token.strip().lower() for token in value.split(",")]


def check_upgrade(request: Request) -> Response | None:
    """Why a request to upgrade can't be granted (RFC 6455 section 4.2.1); None if it can."""
    if request.method != "GET" or request.version != "1.1" or request.body:
        return plain(400, "A WebSocket handshake is a GET of HTTP/1.1 without a body.")
    if request.headers.get("sec-websocket-version") != "13":
        return plain(426, "WebSocket version 13 is needed.", Sec_WebSocket_Version="13")
    try:
        nonce = base64.b64decode(request.headers.get("sec-websocket-key", ""), validate=True)
    except (binascii.Error, ValueError):
        nonce = b""
    return None if len(nonce) == 16 else plain(400, "Sec-WebSocket-Key is malformed.")


def switch_protocols(request: Request) -> bytes:
    """The answer that grants the upgrade (RFC 6455 section 4.2.2)."""
    key = request.headers["sec-websocket-key"].encode("ascii")
    digest = hashlib.sha1(key + _ACCEPT_GUID, usedforsecurity=False).digest()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + _END
    )
