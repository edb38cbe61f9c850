"""Many clients at once, in a process of its own that costs little beside the daemon it measures.

`python -m tests.bench.many` reads `{endpoint, token, user, guest, seconds}` from its input, `guest`
being the daemon's process id, and prints one JSON object, which `measures` reads. While answers
stream it only receives, and notes what came when; all of it is understood afterwards, when that
takes nobody's time.
"""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import socket
import sys
from collections.abc import Iterator
from time import monotonic, monotonic_ns
from typing import Any
from urllib.parse import urlsplit

from tests.bench import proc
from tests.bench.client import STAMP, TERMINAL, TIMEOUT, Client, check, cut, frame_type

IDLE = 2000  # connections that only are there
CLIENTS = 1000  # connected while others stream
SESSIONS = 40  # that stream
FOLLOWERS = 5  # clients of each of them
GAP_MS = 20  # between two deltas
BEAT = 20.0  # seconds after which each client says that it is there: it parses no ping meanwhile
PONG = b"\x8a\x80\0\0\0\0"
NUMBERS = re.compile(rb'\{"type":"\w+","seq":(\d+)(?:,"first_seq":(\d+))?,')
END = re.compile(rb'\{"type":"(?:%b)"' % "|".join(TERMINAL).encode())
DELTA = re.compile(rb'"delta":"([^"\\]*)"\}')

Chunks = list[tuple[int, bytes]]


class Connections:
    """Clients, all of which are closed in the end."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._given = given
        self.clients: list[Client] = []

    def add(self, session: str = "", receive_buffer: int = 0) -> Client:
        given = (self._given[name] for name in ("endpoint", "token", "user"))
        self.clients.append(Client(*given, session, receive_buffer))
        return self.clients[-1]

    def close(self) -> None:
        for client in self.clients:
            client.socket.shutdown()
        self.clients.clear()


@contextlib.contextmanager
def connections(given: dict[str, Any]) -> Iterator[Connections]:
    made = Connections(given)
    try:
        yield made
    finally:
        made.close()


def idle(given: dict[str, Any]) -> dict[str, float]:
    """What the guest holds for connections that do nothing."""
    with connections(given) as crowd:
        session = crowd.add().session_id
        before = proc.rss_mb(given["guest"])
        for _ in range(IDLE):
            crowd.add(session)
        return {"idle_rss_mb": proc.rss_mb(given["guest"]) - before}


class Bad:
    """Three clients that should disturb nobody: one follows a session that streams and reads
    nothing, one is silent, also when it is pinged, and one sends a byte a second.
    """

    def __init__(self, crowd: Connections, given: dict[str, Any], session: str, rest: str) -> None:
        self.stalled = crowd.add(session, receive_buffer=4096)
        self.silent = crowd.add(rest)
        url = urlsplit(given["endpoint"])
        self._socket = socket.create_connection((url.hostname, url.port), TIMEOUT)
        self._said = iter(b"GET /ws HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"x" * 1000)

    def tick(self) -> None:
        with contextlib.suppress(OSError):  # it was cut off, as it must be
            self._socket.send(bytes((next(self._said),)))

    def read(self) -> Chunks:
        """What the first one missed, once it reads again."""
        chunks: Chunks = []
        while not ended(chunks):
            data = self.stalled.socket.sock.recv(1 << 16)
            chunks.append((monotonic_ns(), data))
            if not data:
                raise RuntimeError("the client that did not read was sent away")
        self._socket.close()
        return chunks


def streaming(given: dict[str, Any]) -> dict[str, float]:
    """`CLIENTS` connections, of which `FOLLOWERS` follow each of `SESSIONS` that stream."""
    deltas = int(given["seconds"] * 1000 / GAP_MS)
    with connections(given) as crowd:
        speakers = [crowd.add() for _ in range(SESSIONS)]
        readers, rest = list(speakers), crowd.add().session_id
        for speaker in speakers:
            readers += [crowd.add(speaker.session_id) for _ in range(FOLLOWERS - 1)]
        while len(crowd.clients) < CLIENTS:
            crowd.add(rest)
        before = proc.cpu_ms(given["guest"])
        bad = Bad(crowd, given, speakers[0].session_id, rest)
        received, most = listen(given["guest"], crowd.clients, readers, speakers, deltas, bad)
        cpu = proc.cpu_ms(given["guest"]) - before
        understand(bad.read(), deltas, [])
    lags: list[float] = []
    frames = 0
    for chunks in received:
        frames += understand(chunks, deltas, lags)
    return {
        "many_deltas": len(lags),
        "many_frames": frames,
        "many_lag_p50_ms": proc.percentile(lags, 0.5),
        "many_lag_p99_ms": proc.percentile(lags, 0.99),
        "many_lag_max_ms": max(lags),
        "many_rss_mb": most,
        "many_cpu_share": cpu / given["seconds"] / 10,
    }


def listen(
    guest: int,
    clients: list[Client],
    readers: list[Client],
    speakers: list[Client],
    deltas: int,
    bad: Bad,
) -> tuple[list[Chunks], float]:
    """Let every speaker send its message and receive until every reader has its answer; returns
    what each of them got, and the most resident memory that the guest had.
    """
    received: list[Chunks] = []
    most, left = 0.0, len(readers)
    with selectors.DefaultSelector() as selector:
        for reader in readers:
            chunks: Chunks = []
            received.append(chunks)
            selector.register(reader.socket.sock, selectors.EVENT_READ, chunks)
        for speaker in speakers:
            speaker.send_turn(f"Talk. [[load n={deltas} delay_ms={GAP_MS} stamp=1]]")
        last_beat = looked = heard = monotonic()
        while left:
            ready = selector.select(1.0)
            now = monotonic()
            if now > looked + 1.0:
                looked, most = now, max(most, proc.rss_mb(guest))
                bad.tick()
            if now > last_beat + BEAT:
                last_beat = now
                for client in clients:
                    if client is not bad.silent:
                        client.socket.sock.sendall(PONG)
            if not ready and now > heard + TIMEOUT:
                raise RuntimeError(f"{left} clients never saw the end of a turn")
            for key, _ in ready:
                data = key.fileobj.recv(1 << 16)
                heard = now
                key.data.append((monotonic_ns(), data))
                if not data:
                    raise RuntimeError("the gateway hung up on one of the crowd")
                if ended(key.data):
                    selector.unregister(key.fileobj)
                    left -= 1
    return received, most


def ended(chunks: Chunks) -> bool:
    """Whether the end of a turn is in it, whole."""
    if not END.search(b"".join(data for _, data in chunks[-16:])):  # most often
        return False
    frames = cut(bytearray(b"".join(data for _, data in chunks)))
    return bool(frames) and frame_type(frames[-1]) in TERMINAL


def understand(chunks: Chunks, deltas: int, lags: list[float]) -> int:
    """Check that everything came, once and in order, and add the lag of each delta; returns the
    number of frames.
    """
    buffer, texts = bytearray(), []
    expected, frames = 0, 0
    for at, data in chunks:
        buffer.extend(data)
        for frame in cut(buffer):
            numbers = NUMBERS.match(frame)
            if numbers is None:
                continue
            frames += 1
            last, first = int(numbers[1]), int(numbers[2] or numbers[1])
            if expected and first != expected:
                raise RuntimeError(f"frame {first} came where {expected} should have")
            expected = last + 1
            kind = frame_type(frame)
            if kind == "assistant_delta":
                text = DELTA.search(frame)
                if text is None:
                    raise RuntimeError(f"a delta is not as expected: {frame[:500]!r}")
                texts.append(text[1])
                lags += [(at / 1000 - int(stamp)) / 1000 for stamp in STAMP.findall(text[1])]
            elif kind in TERMINAL:
                check(kind, frame)
                said = json.loads(frame)["payload"]["response"]["message"]["content"]
                whole = b"".join(texts).decode()
                if whole != said or len(STAMP.findall(b"".join(texts))) != deltas:
                    raise RuntimeError("what was streamed is not what was answered")
                return frames
    raise RuntimeError("the end of a turn is missing")


if __name__ == "__main__":
    asked = json.loads(sys.stdin.read())
    print(json.dumps({**idle(asked), **streaming(asked)}))
