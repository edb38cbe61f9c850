"""An MCP server behind Streamable HTTP on loopback, for tests; it remembers what it was asked."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]
ADD = {
    "name": "add",
    "description": "Add two numbers.",
    "inputSchema": {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a", "b"]},
}


class McpWeb:
    """`say` has the words for one call: `say(web, handler, message)` writes the whole answer; by
    default the sum, as JSON. `log` has (method, headers, message) of every request.
    """

    def __init__(self, path: str = "/mcp") -> None:
        self.log: list[tuple[str, dict[str, str], Json]] = []
        self.session = "session-1"
        self.key = ""  # without it in its header, nobody is answered
        self.capabilities: Json = {"tools": {}}
        self.say: Callable[[McpWeb, Handler, Json], None] = plain
        self.resume: Callable[[Handler], None] | None = None  # answers every GET
        self.listening = threading.Event()
        self.told: list[Json] = []  # on the stream of its own accord
        self.over = threading.Event()
        self.open: list[socket.socket] = []  # every connection, so that none outlives the server
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.web = self  # type: ignore[attr-defined]
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}{path}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), name="mcp-web"
        )
        self._thread.start()

    def asked(self, method: str) -> list[tuple[dict[str, str], Json]]:
        return [(headers, said) for _, headers, said in self.log if said.get("method") == method]

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._thread.join(60)
        for connection in self.open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.web.open.append(self.connection)

    @property
    def web(self) -> McpWeb:
        return self.server.web  # type: ignore[attr-defined,no-any-return]

    def json(self, value: Json, status: int = 200, **headers: str) -> None:
        self.whole(json.dumps(value).encode(), "application/json", status, **headers)

    def whole(self, data: bytes, kind: str, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def stream(self) -> None:
        """Begin a stream of events, which ends with the connection."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def event(self, message: Json | str, event_id: str = "", retry: str = "") -> None:
        text = message if isinstance(message, str) else json.dumps(message)
        lines = [f"id: {event_id}"] if event_id else []
        lines += [f"retry: {retry}"] if retry else []
        self.wfile.write(("\n".join([*lines, f"data: {text}"]) + "\n\n").encode())
        self.wfile.flush()

    def note(self) -> Json:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        message = json.loads(data) if data else {}
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.web.log.append((self.command, headers, message))
        return dict(message)

    def do_POST(self) -> None:
        web, message = self.web, self.note()
        method, number = message.get("method"), message.get("id")
        if self.web.key not in self.headers.get("Authorization", ""):
            self.whole(b"who are you?", "text/plain", 401)
        elif method == "initialize":
            result = {
                "protocolVersion": message["params"]["protocolVersion"],
                "capabilities": web.capabilities,
                "serverInfo": {"name": "web", "version": "2"},
            }
            answer = {"jsonrpc": "2.0", "id": number, "result": result}
            self.json(answer, Mcp_Session_Id=web.session)
        elif self.headers.get("Mcp-Session-Id") != web.session:
            self.whole(b"no such session", "text/plain", 404)
        elif number is None or method is None:
            self.whole(b"", "text/plain", 202)
        elif method == "tools/list":
            self.json({"jsonrpc": "2.0", "id": number, "result": {"tools": [ADD]}})
        else:
            web.say(web, self, message)

    def do_GET(self) -> None:
        self.note()
        if self.web.resume is not None:
            self.web.resume(self)
            return
        if not self.web.told:
            self.whole(b"no", "text/plain", 405)
            return
        self.stream()
        for message in self.web.told:
            self.event(message)
        self.web.listening.set()
        self.web.over.wait(60)

    def do_DELETE(self) -> None:
        self.note()
        self.whole(b"", "text/plain", 200)

    def log_message(self, format: str, *args: object) -> None:
        pass


def summed(message: Json) -> Json:
    given = message["params"]["arguments"]
    content = [{"type": "text", "text": str(given["a"] + given["b"])}]
    return {"jsonrpc": "2.0", "id": message["id"], "result": {"content": content}}


def plain(_web: McpWeb, handler: Handler, message: Json) -> None:
    handler.json(summed(message))


@contextmanager
def mcp_web(path: str = "/mcp") -> Iterator[McpWeb]:
    web = McpWeb(path)
    try:
        yield web
    finally:
        web.close()
