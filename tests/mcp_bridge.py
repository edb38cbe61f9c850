"""Servers of MCP on stdio, made reachable by HTTP for clients that speak nothing else (Streamable
HTTP, 2025-11-25): each session of a client has a server of its own. What a server says while a
request is open goes into that request's stream.
"""

from __future__ import annotations

import contextlib
import json
import queue
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from oxydra.threads import Service
from tests.mcp_kit import DEADLINE


class Session:
    """A server, and the open requests of its client."""

    def __init__(self, peer):
        self.peer = peer
        self.lock = threading.Lock()
        self.open = {}  # queues by id, the newest last
        self.reader = Service("mcp-bridge", self.read)
        self.reader.start()

    def read(self, _service):
        while (message := self.peer.receive()) is not None:
            with self.lock:
                if "method" in message:
                    found = next(reversed(self.open.values()), None)
                else:
                    found = self.open.pop(message.get("id"), None)
            if found is not None:
                found.put(message)

    def ask(self, body, id):
        """Every message that comes of a request, its answer the last."""
        answers = queue.SimpleQueue()
        with self.lock:
            self.open[id] = answers
            self.peer.say(body)
        while True:
            message = answers.get(timeout=DEADLINE)
            yield message
            if "method" not in message:
                return

    def tell(self, body):
        with self.lock:
            self.peer.say(body)

    def close(self):
        self.peer.hang_up()
        assert self.reader.stop(DEADLINE)
        self.peer.close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments):
        return

    def answer(self, status, data=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def session(self):
        return self.server.sessions.get(self.headers.get("Mcp-Session-Id", ""))

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        message = json.loads(body)
        body = json.dumps(message).encode()  # one line
        headers = {}
        if message.get("method") == "initialize":
            name = secrets.token_hex(8)
            headers["Mcp_Session_Id"] = name
            session = self.server.sessions[name] = Session(self.server.make())
        elif (session := self.session()) is None:
            return self.answer(404)
        if "id" not in message or "method" not in message:
            session.tell(body)
            return self.answer(202)
        said = [b"data: " + json.dumps(each).encode() for each in session.ask(body, message["id"])]
        events = b"".join(b"event: message\n" + line + b"\n\n" for line in said)
        return self.answer(200, events, Content_Type="text/event-stream", **headers)

    def do_GET(self):
        self.answer(405)

    def do_DELETE(self):
        session = self.server.sessions.pop(self.headers.get("Mcp-Session-Id", ""), None)
        if session is not None:
            session.close()
        self.answer(200)


class Bridge(ThreadingHTTPServer):
    """`make` begins a server and returns its client's end."""

    daemon_threads = False

    def __init__(self, make):
        super().__init__(("127.0.0.1", 0), Handler)
        self.make = make
        self.sessions = {}


@contextlib.contextmanager
def bridged(make):
    """The address of a bridge."""
    bridge = Bridge(make)
    service = Service("mcp-http", lambda _service: bridge.serve_forever(0.05))
    service.start()
    try:
        yield f"http://127.0.0.1:{bridge.server_address[1]}/mcp"
    finally:
        bridge.shutdown()
        assert service.stop(DEADLINE)
        bridge.server_close()
        for session in bridge.sessions.values():
            session.close()
