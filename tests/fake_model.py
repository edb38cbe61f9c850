"""A fake model server for tests and benchmarks: OpenAI Chat Completions on loopback.

In a test:

    with FakeModel() as fake:
        fake.reply("Hel", "lo")                                   # two text deltas, then the end
        fake.reply("Looking. ", ("file_list", {"path": "/shared"}))   # text and a tool call
        fake.error(429, "slow down", headers={"Retry-After": "2"})
        ...                                                        # point a provider at fake.url
        assert fake.requests[0].messages[-1]["content"] == "hi"

Replies are used in the order they were queued, whichever connection asks. A request that finds none
gets what its last user message directs (`[[fake mode=chain k=3 tool=file_list]]`, see `SCENARIO`),
or else a short text. `Event`s among the parts of a reply hold it there until they are set, `STALL`
falls silent until the client hangs up, `CUT` breaks the connection off.

As a load server: `python tests/fake_model.py --port 0` prints its port and serves until SIGTERM.

Threads: one accepts, one serves each connection; `close` ends and joins them all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import signal
import socket
import ssl
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STALL = object()  # say no more, and wait for the client to hang up
CUT = object()  # close the connection in the middle of the body

Part = Any  # str | tuple[str, dict | str] | dict | bytes | threading.Event | float | STALL | CUT

SCENARIO: dict[str, Any] = {
    "mode": "text",  # text: n deltas; chain: k tool calls one after another, then a text
    "n": 20,  # text deltas of a text reply
    "delay_ms": 0.0,  # between two deltas
    "k": 1,  # tool calls in a chain
    "final_n": 5,  # text deltas of the reply that ends a chain
    "tool": "",  # the tool to call, the first one offered if empty
    "args": "{}",  # its arguments, JSON without spaces; {i} becomes the call's number
    "parallel": 1,  # tool calls in each reply of a chain
}
_DIRECTIVE = re.compile(r"\[\[fake ([^\]]*)\]\]")
_WORDS = ("alpha ", "beta ", "gamma ", "delta ", "epsilon ", "zeta ", "eta ", "theta ")


@dataclass
class FakeRequest:
    """A request as it came in. `connection` counts the connections; `closed` is set when the client
    hung up on a `STALL`.
    """

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    raw: bytes
    connection: int
    closed: threading.Event = field(default_factory=threading.Event)

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.raw)

    @property
    def messages(self) -> list[dict[str, Any]]:
        return self.body["messages"]


@dataclass
class Reply:
    """`steps`: bytes to send (one HTTP chunk each), and Events, seconds, STALL, CUT between them.

    `framing` is `chunked`, `length` (with a Content-Length), `close` (the end of the connection is
    the end of the body) or `raw` (the steps are the whole response, status line included).
    """

    steps: list[Any]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    framing: str = "chunked"


class FakeModel:
    """A server on 127.0.0.1; see the module's docstring."""

    def __init__(self, port: int = 0, *, tls: ssl.SSLContext | None = None, log: bool = True):
        self._tls = tls
        self._log = log
        self._listener = socket.create_server(("127.0.0.1", port), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        scheme = "https" if tls else "http"
        host = "localhost" if tls else "127.0.0.1"
        self.origin = f"{scheme}://{host}:{self.port}"
        self.url = f"{self.origin}/v1"
        self.requests: list[FakeRequest] = []
        self._changed = threading.Condition()
        self._replies: deque[Reply] = deque()
        self._gates: list[threading.Event] = []
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._count = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._accept, name="fake-model", daemon=True)
        self._thread.start()

    def __enter__(self) -> FakeModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        with self._changed:
            for gate in self._gates:
                gate.set()
            connections = dict(self._connections)
        for sock, thread in connections.items():
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            thread.join(5)

    # ------------------------------------------------------------------------- what to answer next

    def reply(
        self,
        *parts: Part,
        finish: str | None = None,
        usage: Mapping[str, Any] | None = None,
        split: int = 0,
        chop: int = 0,
        done: bool = True,
        framing: str = "chunked",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Queue a streamed answer.

        A str is a text delta, a tuple `(name, arguments)` a tool call (arguments a dict or raw
        text), a dict an event as it is, bytes go out as they are. `split` cuts the calls' arguments
        into deltas of so many characters, `chop` the whole body into HTTP chunks of so many bytes.
        `finish` is worked out unless given; "" sends none. `done=False` leaves `[DONE]` out.
        """
        steps = chat_steps(parts, finish, usage, split, done)
        if chop:
            body = b"".join(steps)
            steps = [body[at : at + chop] for at in range(0, len(body), chop)]
        self.send(Reply(steps, headers=headers or {}, framing=framing))

    def error(
        self,
        status: int,
        message: str = "it failed",
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Queue an error as the OpenAI API words it."""
        error = {"message": message, "type": "fake_error", "param": None, "code": code}
        body = json.dumps({"error": error}).encode()
        content = {"Content-Type": "application/json", **(headers or {})}
        self.send(Reply([body], status, content, framing="length"))

    def html(self, status: int = 200) -> None:
        """Queue what a login portal answers."""
        page = (
            b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Sign in</body></html>"
        )
        self.send(Reply([page], status, {"Content-Type": "text/html"}, framing="length"))

    def redirect(self, location: str, status: int = 307) -> None:
        self.send(Reply([], status, {"Location": location}, framing="length"))

    def send(self, reply: Reply) -> None:
        """Queue any reply."""
        gates = [step for step in reply.steps if isinstance(step, threading.Event)]
        with self._changed:
            self._gates += gates
            self._replies.append(reply)

    def wait_requests(self, count: int, timeout: float = 60.0) -> list[FakeRequest]:
        """The requests so far, once there are at least `count`."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.requests) >= count, timeout):
                raise AssertionError(f"{len(self.requests)} of {count} requests after {timeout} s")
            return list(self.requests)

    # -------------------------------------------------------------------------------- the server

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._count += 1
            thread = threading.Thread(
                target=self._serve, args=(sock, self._count), name="fake-model-conn", daemon=True
            )
            with self._changed:
                self._connections[sock] = thread
            thread.start()

    def _serve(self, sock: socket.socket, connection: int) -> None:
        raw = sock
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls:
                sock = self._tls.wrap_socket(sock, server_side=True)
                with self._changed:
                    self._connections[sock] = self._connections.pop(raw)
            with sock.makefile("rb") as reader:
                while not self._stopping.is_set():
                    request = _read_request(reader, connection)
                    if request is None or not self._answer(sock, request):
                        return
        except (OSError, ValueError):
            pass  # the client hung up, or we are being closed
        finally:
            sock.close()
            with self._changed:
                self._connections.pop(sock, None)

    def _answer(self, sock: socket.socket, request: FakeRequest) -> bool:
        """True if the connection may be used again."""
        with self._changed:
            if self._log:
                self.requests.append(request)
                self._changed.notify_all()
            reply = self._replies.popleft() if self._replies else None
        if reply is None:
            reply = Reply(directed_steps(request.body))
        out = bytearray(_head(reply))
        for step in reply.steps:
            if isinstance(step, bytes):
                chunked = reply.framing == "chunked"
                out += b"%x\r\n%s\r\n" % (len(step), step) if chunked else step
                if len(out) < 65536:
                    continue
            sock.sendall(out)
            out.clear()
            if isinstance(step, threading.Event):
                step.wait(30)
            elif isinstance(step, float):
                self._stopping.wait(step)
            elif step is STALL:
                with contextlib.suppress(OSError):
                    while sock.recv(4096):
                        pass
                request.closed.set()
                return False
            elif step is CUT:
                return False
        if reply.framing == "chunked":
            out += b"0\r\n\r\n"
        sock.sendall(out)
        return reply.framing in ("chunked", "length")


def _read_request(reader: Any, connection: int) -> FakeRequest | None:
    line = reader.readline(65536).split()
    if len(line) != 3:
        return None
    headers: dict[str, str] = {}
    while (header := reader.readline(65536).rstrip(b"\r\n")) != b"":
        name, _, value = header.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    raw = reader.read(int(headers.get("content-length", 0)))
    return FakeRequest(line[0].decode(), line[1].decode(), headers, raw, connection)


def _head(reply: Reply) -> bytes:
    if reply.framing == "raw":
        return b""
    headers = {"Content-Type": "text/event-stream", **reply.headers}
    if reply.framing == "chunked":
        headers["Transfer-Encoding"] = "chunked"
    elif reply.framing == "length":
        headers["Content-Length"] = str(sum(len(s) for s in reply.steps if isinstance(s, bytes)))
    else:
        headers["Connection"] = "close"
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {reply.status} Fake\r\n{lines}\r\n".encode("latin-1")


# ----------------------------------------------------------------------------- Chat Completions


def event(delta: Mapping[str, Any], finish: str | None = None, **extra: Any) -> bytes:
    """One `chat.completion.chunk` as a server-sent event."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {
        "id": "chatcmpl-fake",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "fake",
    }
    return sse_event({**chunk, "choices": [choice], **extra})


def sse_event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def chat_steps(
    parts: tuple[Part, ...],
    finish: str | None = None,
    usage: Mapping[str, Any] | None = None,
    split: int = 0,
    done: bool = True,
) -> list[Any]:
    """The steps of a streamed answer made of `parts` (see `FakeModel.reply`)."""
    steps: list[Any] = [event({"role": "assistant", "content": ""})]
    calls = 0
    for part in parts:
        if isinstance(part, str):
            steps.append(event({"content": part}))
        elif isinstance(part, dict):
            steps.append(sse_event(part))
        elif isinstance(part, tuple):
            steps += call_events(calls, part[0], part[1], split)
            calls += 1
        else:
            steps.append(part)
    if any(part is STALL or part is CUT for part in parts):
        return steps
    if finish is None:
        finish = "tool_calls" if calls else "stop"
    if finish:
        steps.append(event({}, finish))
    totals = usage or {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    chunk = {
        "id": "chatcmpl-fake",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "fake",
    }
    steps.append(sse_event({**chunk, "choices": [], "usage": dict(totals)}))
    if done:
        steps.append(b"data: [DONE]\n\n")
    return steps


def call_events(index: int, name: str, arguments: Any, split: int = 0) -> list[bytes]:
    """The events of one tool call."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    pieces = [text[at : at + split] for at in range(0, len(text), split)] if split else [text]
    function = {"name": name, "arguments": ""}
    first = {"index": index, "id": f"call_{index}", "type": "function", "function": function}
    return [
        event({"tool_calls": [first]}),
        *(
            event({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
            for piece in pieces
        ),
    ]


# ---------------------------------------------------------------------------------- scenarios


def directed_steps(body: Mapping[str, Any]) -> list[Any]:
    """The answer that the last user message of a request directs."""
    messages = body.get("messages") or []
    results, user = 0, ""
    for message in reversed(messages):
        if message["role"] == "user":
            user = _text(message.get("content"))
            break
        results += message["role"] == "tool"
    scene = dict(SCENARIO)
    if match := _DIRECTIVE.search(user):
        for word in match.group(1).split():
            key, _, value = word.partition("=")
            if key in scene:
                scene[key] = type(SCENARIO[key])(value)
    tools = [tool["function"]["name"] for tool in body.get("tools") or ()]
    if scene["mode"] == "chain" and results < scene["k"] and (scene["tool"] or tools):
        steps: list[Any] = [event({"role": "assistant", "content": None})]
        for index in range(min(scene["parallel"], scene["k"] - results)):
            arguments = scene["args"].replace("{i}", str(results + index))
            steps += call_events(index, scene["tool"] or tools[0], arguments)
            # one id for each call of the chain, as real servers do
            steps[-2] = steps[-2].replace(b'"call_%d"' % index, b'"call_%d"' % (results + index))
        return [*steps, event({}, "tool_calls"), *_ending(len(steps))]
    count = scene["final_n"] if scene["mode"] == "chain" else scene["n"]
    deltas: list[Any] = []
    for index in range(count):
        if scene["delay_ms"] and index:
            deltas.append(scene["delay_ms"] / 1000)
        deltas.append(event({"content": _WORDS[index % len(_WORDS)]}))
    return [
        event({"role": "assistant", "content": ""}),
        *deltas,
        event({}, "stop"),
        *_ending(count),
    ]


def _ending(tokens: int) -> list[bytes]:
    usage = {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens}
    return [
        sse_event({"object": "chat.completion.chunk", "choices": [], "usage": usage}),
        b"data: [DONE]\n\n",
    ]


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def main() -> None:
    parser = argparse.ArgumentParser(description="A fake OpenAI-compatible server on loopback.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    arguments = parser.parse_args()
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # before there are threads to take them
    with FakeModel(arguments.port, log=False) as fake:
        print(fake.port, flush=True)
        signal.sigwait(ends)


if __name__ == "__main__":
    main()
