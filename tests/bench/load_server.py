"""A model server that costs little and does what it is told: the load of the benchmark.

It speaks OpenAI Chat Completions, streamed, over raw HTTP/1.1 on one asyncio thread, with the
standard library only. What it answers stands in the last user message:

    [[load n=200 delay_ms=20]]                200 text deltas, 20 ms apart
    [[load n=200 delay_ms=20 stamp=1]]        the same, each delta being the time it was sent
    [[load chain=50 tool=file_list args={"path":"/shared"}]]
                                              50 calls, one in each answer, then one text delta

How far a chain has come is read from the request (results since the last user message), so any
number of sessions may run at once. `tag=NAME` names a request in the log, `fail=503` refuses it.

`GET /log` lists the requests so far, one JSON object a line; `POST /reset` forgets them. Every time
is CLOCK_MONOTONIC in nanoseconds (in a stamp: microseconds, as `[123]`), the same clock in all
processes of a machine. Run as `python -m tests.bench.load_server`; the first line of output is the
base URL.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
from dataclasses import dataclass, fields
from functools import partial
from time import monotonic_ns
from typing import Any

DIRECTIVE = re.compile(r"\[\[load (.*?)\]\]")
WORDS = ("a ", "model ", "server ", "says ", "nothing ", "of ", "any ", "weight. ")
BURST = 128  # deltas without a delay that are written before others get their turn
SEND_BUFFER = 256 << 10  # bytes that may wait for a slow reader before the deltas do


@dataclass(slots=True)
class Plan:
    """What one answer shall be."""

    n: int = 1
    delay_ms: float = 0.0
    stamp: int = 0
    chain: int = 0
    tool: str = ""
    args: str = "{}"
    tag: str = ""
    fail: int = 0


def plan_of(prompt: str) -> Plan:
    """The directive in `prompt`; one delta if there is none. Raises `ValueError`."""
    plan = Plan()
    found = DIRECTIVE.search(prompt)
    kinds = {field.name: type(getattr(plan, field.name)) for field in fields(plan)}
    for part in found.group(1).split() if found else ():
        name, _, value = part.partition("=")
        if name not in kinds:
            raise ValueError(f"a load directive knows {', '.join(kinds)}, not {name!r}")
        setattr(plan, name, kinds[name](value))
    return plan


@dataclass(slots=True)
class Asked:
    """A request as far as it matters here."""

    prompt: str = ""
    results: int = 0  # tool results since the last user message
    messages: int = 0
    tools: int = 0


def read_request(body: bytes) -> Asked:
    document = json.loads(body)
    asked = Asked(messages=len(document["messages"]), tools=len(document.get("tools") or ()))
    for message in document["messages"]:
        if message["role"] == "user":
            content = message["content"]
            asked.prompt = content if isinstance(content, str) else json.dumps(content)
            asked.results = 0
        elif message["role"] == "tool":
            asked.results += 1
    return asked


def common(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


# --------------------------------------------------------------------------------------- the wire


def event(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return sse({"choices": [choice], **more})


def sse(fields: dict[str, Any]) -> bytes:
    head = {"id": "load-1", "object": "chat.completion.chunk", "created": 1, "model": "load-1"}
    return b"data: " + json.dumps(head | fields, separators=(",", ":")).encode() + b"\n\n"


BEFORE, AFTER = event({"content": "\0"}).split(b"\\u0000")  # a text delta, but for its text
OPENING = event({"role": "assistant", "content": ""})


def call_events(number: int, plan: Plan) -> bytes:
    function = {"name": plan.tool, "arguments": ""}
    first = {"index": 0, "id": f"call_{number}", "type": "function", "function": function}
    rest = {"index": 0, "function": {"arguments": plan.args}}
    opened = event({"role": "assistant", "content": None, "tool_calls": [first]})
    return opened + event({"tool_calls": [rest]})


def ending(finish: str, deltas: int) -> bytes:
    usage = {"prompt_tokens": 100, "completion_tokens": deltas, "total_tokens": 100 + deltas}
    return event({}, finish) + sse({"choices": [], "usage": usage}) + b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# ------------------------------------------------------------------------------------- the server


class Peer(asyncio.Protocol):
    """One kept connection, one request at a time."""

    transport: asyncio.Transport

    def __init__(self, log: list[dict[str, Any]], before: dict[str, bytes]) -> None:
        """`before` is the body of the request before, whichever connection it came on."""
        self._log, self._before = log, before
        self._buffer = bytearray()
        self._in_ns = 0
        self._busy = False
        self._gone = False
        self._paused = False
        self._later: Any = None  # what goes on when the reader has caught up

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=SEND_BUFFER)
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._gone = True

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        later, self._later = self._later, None
        if later is not None:
            later()

    def data_received(self, data: bytes) -> None:
        if not self._buffer:
            self._in_ns = monotonic_ns()
        self._buffer += data
        if not self._busy:
            self._take()

    def _take(self) -> None:
        """Answer the request in the buffer, if it is complete."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines)}
        size = int(headers.get("content-length", 0))
        if len(self._buffer) < end + 4 + size:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + size])
        del self._buffer[: end + 4 + size]
        method, path, _ = first.split(" ", 2)
        self._busy = True
        if path.endswith("/chat/completions"):
            try:
                self._complete(body, end + 4)
            except (ValueError, KeyError, TypeError) as error:
                self._reply(400, json.dumps({"error": {"message": str(error)}}).encode())
        elif (method, path) == ("GET", "/log"):
            self._reply(200, b"".join(json.dumps(row).encode() + b"\n" for row in self._log))
        elif (method, path) == ("POST", "/reset"):
            self._log.clear()
            self._reply(200, b"{}")
        else:
            self._reply(404, b'{"error":{"message":"there is nothing here"}}')

    def _reply(self, status: int, body: bytes) -> None:
        head = f"HTTP/1.1 {status} Load\r\nContent-Type: application/json\r\n"
        self.transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        self._done()

    def _done(self) -> None:
        self._busy = False
        if self._buffer:
            self._take()

    def _complete(self, body: bytes, head_bytes: int) -> None:
        asked = read_request(body)
        plan = plan_of(asked.prompt)
        record = {
            "tag": plan.tag,
            "in_ns": self._in_ns,
            "out_ns": 0,
            "head_bytes": head_bytes,
            "body_bytes": len(body),
            "messages": asked.messages,
            "results": asked.results,
            "tools": asked.tools,
            "prefix_bytes": common(self._before.get("body", b""), body),
        }
        self._log.append(record)
        self._before["body"] = body
        if plan.fail:
            self._reply(plan.fail, b'{"error":{"message":"as you wish"}}')
            return
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        if plan.chain > asked.results:
            self._end(call_events(asked.results, plan), "tool_calls", 1, record)
            return
        self.transport.write(chunk(OPENING))
        self._say(plan, 0, asyncio.get_running_loop().time(), record)

    def _say(self, plan: Plan, done: int, began: float, record: dict[str, Any]) -> None:
        """Write the deltas that are due, and come back for the others."""
        loop = asyncio.get_running_loop()
        delay = plan.delay_ms / 1000
        burst = done + BURST
        while done < plan.n:
            if self._gone:
                return
            later = partial(self._say, plan, done, began, record)
            due = began + done * delay  # a timetable: a late delta delays none after it
            if self._paused:
                self._later = later
                return
            if due > loop.time():
                loop.call_at(due, later)
                return
            if done == burst:
                loop.call_soon(later)
                return
            text = f"[{monotonic_ns() // 1000}]" if plan.stamp else WORDS[done % len(WORDS)]
            self.transport.write(chunk(BEFORE + text.encode() + AFTER))
            done += 1
        self._end(b"", "stop", plan.n, record)

    def _end(self, before: bytes, finish: str, deltas: int, record: dict[str, Any]) -> None:
        self.transport.write(chunk(before + ending(finish, deltas)) + b"0\r\n\r\n")
        record["out_ns"] = monotonic_ns()
        self._done()


async def main() -> None:
    loop = asyncio.get_running_loop()
    log: list[dict[str, Any]] = []
    before: dict[str, bytes] = {}
    server = await loop.create_server(lambda: Peer(log, before), "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
