"""A web server on loopback that answers what a test told it to, and remembers what it was asked."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from urllib.parse import parse_qs, urlsplit


@dataclass
class Asked:
    """One request: `path` without its query, which `query` holds; header names in lower case."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]


@dataclass
class Page:
    """What is answered. `length` stands in the place of the true Content-Length."""

    body: bytes = b""
    kind: str = "text/html; charset=utf-8"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None


class _Recorded:
    """A connection's stream, whose bytes are kept when they are read."""

    def __init__(self, stream: BufferedIOBase, received: list[bytes]) -> None:
        self._stream = stream
        self._received = received

    def readline(self, size: int = -1) -> bytes:
        return self._kept(self._stream.readline(size))

    def read(self, size: int = -1) -> bytes:
        return self._kept(self._stream.read(size))

    def _kept(self, data: bytes) -> bytes:
        self._received.append(data)
        return data

    def close(self) -> None:
        self._stream.close()


Route = Page | Callable[[Asked], Page]


class FakeWeb:
    """`pages` by path; anything else is 404. `received` has every byte that came."""

    def __init__(self) -> None:
        self.pages: dict[str, Route] = {}
        self.asked: list[Asked] = []
        self.received: list[bytes] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                self.rfile = _Recorded(self.rfile, web.received)  # type: ignore[assignment]

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = Asked(parts.path, query, headers)
                web.asked.append(asked)
                route = web.pages.get(parts.path, Page(b"nothing here", "text/plain", 404))
                page = route(asked) if callable(route) else route
                self.send_response(page.status)
                if page.kind:
                    self.send_header("Content-Type", page.kind)
                for name, value in page.headers.items():
                    self.send_header(name, value)
                length = len(page.body) if page.length is None else page.length
                self.send_header("Content-Length", str(length))
                self.end_headers()
                try:
                    self.wfile.write(page.body)
                except ConnectionError:
                    self.close_connection = True

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.do_GET()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def add(self, path: str, body: bytes | str = b"", kind: str = "", **more: object) -> str:
        """Answer at `path`, and return its URL."""
        data = body.encode() if isinstance(body, str) else body
        page = Page(data, kind or "text/html; charset=utf-8", **more)  # type: ignore[arg-type]
        self.pages[path] = page
        return self.url + path

    def redirect(self, path: str, to: str, status: int = 302) -> str:
        return self.add(path, status=status, headers={"Location": to})

    @property
    def server(self) -> socketserver.BaseServer:
        return self._server


@contextmanager
def serving() -> Iterator[FakeWeb]:
    """A server, for the length of the block; whoever keeps connections open closes them before."""
    web = FakeWeb()
    thread = threading.Thread(target=web.server.serve_forever, args=(0.01,), name="fake-web")
    thread.start()
    try:
        yield web
    finally:
        web.server.shutdown()
        thread.join(10)
        web.server.server_close()
