"""A client of MCP on two descriptors, for the tests of the server: it sends what it is told to,
right or wrong, and reads what comes.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time

from oxydra.threads import Service

DEADLINE = 180.0  # seconds that anything may take, on a machine with much else to do
HELLO = {"capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}


class Peer:
    """The client's end. `write` and `read` are descriptors; `seen` is all that came."""

    def __init__(self, write, read):
        self.write, self.read = write, read
        self.number = 0
        self.rest = b""
        self.seen = []

    def say(self, text):
        data = text if isinstance(text, bytes) else text.encode()
        view = memoryview(data + b"\n")
        while view:
            view = view[os.write(self.write, view) :]

    def send(self, method, params=None, **more):
        """A request; returns its id."""
        self.number += 1
        asked = {"jsonrpc": "2.0", "id": self.number, "method": method, **more}
        self.say(json.dumps(asked | ({} if params is None else {"params": params})))
        return self.number

    def tell(self, method, params=None):
        """A notification."""
        self.say(json.dumps({"jsonrpc": "2.0", "method": method, "params": params or {}}))

    def receive(self):
        """The next message; None at the end."""
        deadline = time.monotonic() + DEADLINE
        while b"\n" not in self.rest:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self.read], [], [], left)[0], "nothing came"
            data = os.read(self.read, 1 << 16)
            if not data:
                assert not self.rest, f"cut off: {self.rest[:200]!r}"
                return None
            self.rest += data
        line, self.rest = self.rest.split(b"\n", 1)
        self.seen.append(json.loads(line))
        assert self.seen[-1]["jsonrpc"] == "2.0"
        return self.seen[-1]

    def until(self, found):
        """The first message for which this is true."""
        while True:
            message = self.receive()
            assert message is not None, "it ended before that"
            if found(message):
                return message

    def answer(self, number):
        return self.until(lambda m: m.get("id") == number and "method" not in m)

    def ask(self, method, params=None):
        """The result."""
        answer = self.answer(self.send(method, params))
        assert "result" in answer, answer
        return answer["result"]

    def refused(self, method, params=None):
        """The code and text of the error."""
        error = self.answer(self.send(method, params))["error"]
        return error["code"], error["message"]

    def hello(self, version="2025-11-25"):
        found = self.ask("initialize", {"protocolVersion": version, **HELLO})
        self.tell("notifications/initialized")
        return found

    def call(self, name, /, **arguments):
        """The structured content of a tool's result, which must be one."""
        found = self.ask("tools/call", {"name": name, "arguments": arguments})
        assert not found.get("isError"), found
        return found["structuredContent"]

    def begin(self, name, /, token=None, **arguments):
        """Call a tool and do not wait for it; its progress is told where there is a token."""
        meta = {} if token is None else {"_meta": {"progressToken": token}}
        return self.send("tools/call", {"name": name, "arguments": arguments, **meta})

    def fails(self, name, /, **arguments):
        """The text of a tool's failure."""
        found = self.ask("tools/call", {"name": name, "arguments": arguments})
        assert found["isError"] and "structuredContent" not in found, found
        return found["content"][0]["text"]

    def progress(self, token):
        """What was told so far of a call."""
        told = [m["params"] for m in self.seen if m.get("method") == "notifications/progress"]
        return [one for one in told if one["progressToken"] == token]


class Hosted(Peer):
    """A server on a thread of this process, and its client."""

    def __init__(self, server):
        source, write = os.pipe()
        read, sink = os.pipe()
        super().__init__(write, read)
        self.stopped, self.stopper = socket.socketpair()
        self.service = Service("mcp-test", lambda _service: self._serve(server, source, sink))
        self.service.start()

    def _serve(self, server, source, sink):
        try:
            server.serve(source, sink, self.stopped.fileno())
        finally:
            os.close(source)
            os.close(sink)

    def hang_up(self):
        """Close our end, and wait for the end of it."""
        if self.write >= 0:
            os.close(self.write)
            self.write = -1

    def ended(self):
        assert self.service.stop(DEADLINE)

    def close(self):
        self.hang_up()
        self.ended()
        os.close(self.read)
        self.stopped.close()
        self.stopper.close()


@contextlib.contextmanager
def hosted(server, version="2025-11-25"):
    """A client that has said hello, unless `version` is empty."""
    peer = Hosted(server)
    try:
        if version:
            peer.hello(version)
        yield peer
    finally:
        peer.close()
