"""The people of the benchmark: clients of the gateway that cost little beside it.

`Client` is one connection that sends one turn after another. `crowd` lets many send at once and
reads all their sockets on one thread, cutting frames by hand: it shares the machine with the daemon
it measures.
"""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic_ns
from typing import Any

import websocket

TIMEOUT = 120.0  # seconds of silence after which a measurement is given up
TYPE = re.compile(rb'\{"type":"(\w+)"')
STAMP = re.compile(rb"\[(\d+)\]")
TERMINAL = ("turn_completed", "turn_cancelled", "error")


@dataclass(slots=True)
class Answer:
    """One turn as its client saw it; times are CLOCK_MONOTONIC in nanoseconds."""

    sent_ns: int
    done_ns: int = 0
    deltas: int = 0
    terminal: dict[str, Any] = field(default_factory=dict)


class Client:
    """A connection of its own with a session of its own, or with one that is there."""

    def __init__(
        self, endpoint: str, token: str, user: str, session: str = "", receive_buffer: int = 0
    ) -> None:
        """`receive_buffer` bytes of the system's, 0: as it likes."""
        option = (socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket = websocket.create_connection(
            endpoint,
            timeout=TIMEOUT,
            header=[f"Authorization: Bearer {token}"],
            suppress_origin=True,
            skip_utf8_validation=True,
            sockopt=[option] if receive_buffer else [],
        )
        chosen = {"session_id": session} if session else {"create_new_session": True}
        self._send("hello", protocol_version=2, user_id=user, request_id="hello", **chosen)
        greeting = json.loads(self.socket.recv())
        if greeting["type"] != "hello_ack":
            raise RuntimeError(f"the gateway said {greeting}")
        self.session_id = greeting["payload"]["session"]["session_id"]

    def _send(self, frame_type: str, **payload: Any) -> None:
        self.socket.send(json.dumps({"type": frame_type, "payload": payload}))

    def send_turn(self, prompt: str) -> str:
        """Send a message; returns the id of its turn."""
        turn = uuid.uuid4().hex
        self._send(
            "send_turn",
            request_id=turn,
            session_id=self.session_id,
            turn_id=turn,
            prompt=prompt,
        )
        return turn

    def cancelled(self, prompt: str, when: str) -> float:
        """Send a message, cancel its turn as soon as a frame comes that holds `when`, and return
        the milliseconds from the cancel to the frame which ends the turn.
        """
        turn = self.send_turn(prompt)
        began = 0
        while True:
            frame = self.socket.recv_data()[1]
            kind = frame_type(frame)
            if kind in TERMINAL:
                done = monotonic_ns()
                if kind != "turn_cancelled":
                    raise RuntimeError(f"a turn that was cancelled ended as {frame[:500]!r}")
                return (done - began) / 1e6
            if not began and when.encode() in frame:
                began = monotonic_ns()
                self._send(
                    "cancel_active_turn",
                    request_id=f"cancel-{turn}",
                    session_id=self.session_id,
                    turn_id=turn,
                )

    def turn(self, prompt: str) -> Answer:
        """Send a message and wait for the end of its turn, which must be a good one."""
        answer = Answer(monotonic_ns())
        self.send_turn(prompt)
        while True:
            frame = self.socket.recv_data()[1]
            kind = frame_type(frame)
            answer.deltas += kind == "assistant_delta"
            if kind in TERMINAL:
                answer.done_ns = monotonic_ns()
                answer.terminal = json.loads(frame)
                check(kind, frame)
                return answer

    def close(self) -> None:
        self.socket.close()


def frame_type(frame: bytes) -> str:
    found = TYPE.match(frame)
    return found.group(1).decode() if found else ""


def check(kind: str, frame: bytes) -> None:
    if kind != "turn_completed":
        raise RuntimeError(f"a turn of the benchmark ended badly: {frame[:500]!r}")


@dataclass(slots=True)
class Crowd:
    """What became of many turns at once: seconds from the first message to the last answer, and
    milliseconds from a delta's stamp to its client, all of them.
    """

    seconds: float
    lags: list[float]


def crowd(clients: Sequence[Client], prompt: str) -> Crowd:
    """Let every client send `prompt` at once and read until all are answered."""
    lags: list[float] = []
    left = len(clients)
    with selectors.DefaultSelector() as selector:
        for client in clients:
            assert client.socket.sock is not None
            selector.register(client.socket.sock, selectors.EVENT_READ, bytearray())
        began = monotonic_ns()
        for client in clients:
            client.send_turn(prompt)
        while left:
            ready = selector.select(TIMEOUT)
            if not ready:
                raise RuntimeError(f"{left} turns of the crowd were never answered")
            for key, _ in ready:
                data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                now = monotonic_ns() / 1000
                if not data:
                    raise RuntimeError("the gateway hung up on one of the crowd")
                key.data.extend(data)
                for frame in cut(key.data):
                    kind = frame_type(frame)
                    if kind == "assistant_delta":
                        lags += [(now - int(stamp)) / 1000 for stamp in STAMP.findall(frame)]
                    elif kind in TERMINAL:
                        check(kind, frame)
                        left -= 1
        return Crowd((monotonic_ns() - began) / 1e9, lags)


def door_crowd(port: int, token: str, users: Sequence[str], prompt: str) -> Crowd:
    """The same over the OpenAI-compatible door: a connection and a session for each of `users`."""
    lags: list[float] = []
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        waiting = []
        for user in users:
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), TIMEOUT))
            selector.register(sock, selectors.EVENT_READ, bytearray())
            waiting.append((sock, _completion(token, user, prompt)))
        began = monotonic_ns()
        for sock, request in waiting:
            sock.sendall(request)
        left = len(users)
        while left:
            ready = selector.select(TIMEOUT)
            if not ready:
                raise RuntimeError(f"{left} requests at the door were never answered")
            for key, _ in ready:
                data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                now = monotonic_ns() / 1000
                if not data:
                    raise RuntimeError(f"the door hung up: {bytes(key.data[-500:])!r}")
                key.data.extend(data)
                done = key.data.rfind(b"\n\n") + 2 if b"\n\n" in key.data else 0
                lags += [(now - int(stamp)) / 1000 for stamp in STAMP.findall(key.data[:done])]
                if b"data: [DONE]" in key.data:
                    selector.unregister(key.fileobj)
                    left -= 1
                del key.data[:done]
        return Crowd((monotonic_ns() - began) / 1e9, lags)


def _completion(token: str, user: str, prompt: str) -> bytes:
    messages = [{"role": "user", "content": prompt}]
    asked = {"model": "oxydra", "user": user, "stream": True, "messages": messages}
    body = json.dumps(asked)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Authorization: Bearer {token}\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + body).encode()


def cut(buffer: bytearray) -> list[bytes]:
    """Take the complete frames of a server out of `buffer` (RFC 6455 section 5.2, unmasked)."""
    frames, at = [], 0
    while len(buffer) >= at + 2:
        size, start = buffer[at + 1], at + 2
        if size >= 126:
            start = at + (4 if size == 126 else 10)
            if len(buffer) < start:
                break
            size = int.from_bytes(buffer[at + 2 : start], "big")
        if len(buffer) < start + size:
            break
        frames.append(bytes(buffer[start : start + size]))
        at = start + size
    del buffer[:at]
    return frames
