"""mux: many byte channels with flow control over one connected byte stream. Standard library only.

The same code runs at both ends; guests load this file by its path, so it imports nothing of ours.
A frame is `type u8, channel u32, length u32` in network order, then `length` bytes:

    OPEN    what the opener wants, at most 4 KiB, in the callers' own encoding
    DATA    1 to CHUNK bytes; costs its length and COST of the receiver's credit
    CREDIT  u32: so much credit more
    FIN     the sender sends no more DATA; the other direction goes on
    RESET   the channel is over both ways; the payload says why

A channel starts with WINDOW of credit each way. Whoever opened the stream uses odd channel numbers,
the other end even ones; none is used twice, and OPENs leave in rising order.

Three rules keep it free of deadlock: the thread that reads the stream (`Mux.run`, which the owner
runs on a thread of its own) never writes and never waits for a channel, since what it takes in is
bounded by credit; credit is sent by whoever consumed; frames are queued, and whoever finds nobody
writing writes all that are there, so that many small ones leave as one. A peer that breaks a rule
loses the whole stream.
"""

from __future__ import annotations

import contextlib
import io
import queue
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, Protocol

HEADER = struct.Struct("!BII")
OPEN, DATA, CREDIT, FIN, RESET = range(5)
WINDOW = 256 << 10  # credit that a channel starts with
CHUNK = 16 << 10  # largest DATA
COST = 64  # credit that a DATA takes besides its length: many tiny ones are not free to keep
MAX_INFO = 4 << 10
MAX_REASON = 2 << 10
CHANNELS = 1024  # open at once, of both ends together
READ_BYTES = 256 << 10


class MuxError(ConnectionError):
    """The peer broke the protocol, or the stream is gone."""


class Stream(Protocol):
    """What a mux runs over: a connected socket will do."""

    def recv_into(self, buffer: memoryview) -> int: ...

    def sendall(self, data: bytes) -> object: ...

    def shutdown(self, how: int) -> object: ...


class Channel:
    """One byte stream, enough like a connected socket for http.client and urllib3.

    One thread reads and one writes at a time; `shutdown`, `reset` and `close` may come from any.
    `info` is what its opener said. `on_change`, when set, is called whenever data, credit or an end
    has arrived; it runs on the mux's own thread and must neither block nor raise.
    """

    def __init__(self, mux: Mux, number: int, info: bytes) -> None:
        self.info = info
        self.number = number
        self.on_change: Callable[[], None] | None = None
        self._mux = mux
        self._timeout: float | None = None
        self._inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()  # None: look at the end
        self._head = memoryview(b"")
        self._eaten = 0  # taken, not yet credited to the peer
        self._finished = False  # the reader has seen the end
        self._changed = threading.Condition()  # guards what follows
        self._credit = WINDOW  # what we may still send
        self._room = WINDOW  # what the peer may still send
        self._sent_fin = False
        self._got_fin = False
        self._error = ""

    # ------------------------------------------------------------------------------- reading

    @property
    def ready(self) -> bool:
        """Whether a read would return at once."""
        return bool(self._head) or self._finished or not self._inbox.empty()

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """As a socket's; 0 at the end. Raises `TimeoutError`, and `ConnectionResetError` with the
        peer's reason where the channel was reset.
        """
        view = memoryview(buffer).cast("B")
        if not self._fill(self._timeout):
            return 0
        size = min(nbytes or len(view), len(self._head))
        view[:size] = self._head[:size]
        self._consume(size)
        return size

    def recv(self, nbytes: int, flags: int = 0) -> bytes:
        """As a socket's."""
        if not self._fill(self._timeout):
            return b""
        data = bytes(self._head[:nbytes])
        self._consume(len(data))
        return data

    def take(self) -> bytes | None:
        """What has arrived, without waiting: None if nothing has, b"" at the end. Raises as
        `recv_into`.
        """
        if not self.ready:
            return None
        return self.recv(CHUNK)

    def _fill(self, timeout: float | None) -> bool:
        """Have something in `_head`; False at the end."""
        if self._head:
            return True
        if not self._finished:
            try:
                item = self._inbox.get(timeout=timeout)
            except queue.Empty:
                raise TimeoutError("timed out") from None
            if item is not None:
                self._head = memoryview(item)
                return True
            self._finished = True
        if self._error:
            raise ConnectionResetError(self._error)
        return False

    def _consume(self, size: int) -> None:
        self._head = self._head[size:]
        self._eaten += size if self._head else size + COST
        if self._eaten < WINDOW // 4 or self._got_fin:
            return
        given, self._eaten = self._eaten, 0
        with self._changed:
            self._room += given
        with contextlib.suppress(OSError):  # the reader learns of a lost stream by reading on
            self._mux.send(CREDIT, self.number, given.to_bytes(4, "big"))

    # ------------------------------------------------------------------------------- writing

    def sendall(self, data: Any, flags: int = 0) -> None:
        """As a socket's: waits while the peer takes nothing. Raises `BrokenPipeError` once the
        channel is over.
        """
        view = memoryview(data).cast("B")
        while view:
            with self._changed:
                if not self._changed.wait_for(self._may_send, self._timeout):
                    raise TimeoutError("timed out")
                size = self._reserve(len(view))
            self._mux.send(DATA, self.number, view[:size])
            view = view[size:]

    def offer(self, data: Any) -> int:
        """Send as much as there is credit for, without waiting; how much that was."""
        view = memoryview(data).cast("B")
        with self._changed:
            size = self._reserve(len(view)) if self._may_send() else 0
        if size:
            self._mux.send(DATA, self.number, view[:size])
        return size

    def finish(self, data: bytes = b"") -> None:
        """Send the last of it and the end, in one write where they fit. Raises as `sendall`."""
        with self._changed:
            fits = bool(data) and len(data) <= min(CHUNK, self._credit - COST)
            if fits:
                self._reserve(len(data))
                self._sent_fin = True
                over = self._got_fin
        if not fits:
            self.sendall(data)
            self.shutdown(socket.SHUT_WR)
            return
        if over:
            self._mux.forget(self.number)
        self._mux.send_all(_frame(DATA, self.number, data) + _frame(FIN, self.number))

    def _may_send(self) -> bool:
        return self._credit > COST or self._sent_fin

    def _reserve(self, size: int) -> int:
        """Spend credit for at most `size` bytes; with `_changed` held."""
        if self._sent_fin:
            raise BrokenPipeError(self._error or "the channel is closed")
        size = min(size, CHUNK, self._credit - COST)
        self._credit -= size + COST
        return size

    # ------------------------------------------------------------------------------- ending

    @property
    def error(self) -> str:
        """Why it was reset; empty while it was not."""
        return self._error

    @property
    def hung_up(self) -> bool:
        """Whether the peer sends no more, be it done or gone."""
        return self._got_fin

    def shutdown(self, how: int) -> None:
        """`SHUT_WR` says that no more is sent; anything else wakes our reader now and resets the
        peer's end, so that a cancellation travels at once.
        """
        if how != socket.SHUT_WR:
            self.reset("cancelled")
            return
        with self._changed:
            said, self._sent_fin = self._sent_fin, True
            over = self._got_fin
        if not said:
            if over:
                self._mux.forget(self.number)
            with contextlib.suppress(OSError):
                self._mux.send(FIN, self.number)

    def reset(self, why: str) -> None:
        """End it both ways; the peer is told why. Our own reader sees a plain end."""
        with self._changed:
            over = self._sent_fin and self._got_fin
            self._sent_fin = self._got_fin = True
            self._changed.notify_all()
        self._inbox.put(None)
        if not over and self._mux.forget(self.number):
            with contextlib.suppress(OSError):
                self._mux.send(RESET, self.number, why.encode()[:MAX_REASON])

    def close(self) -> None:
        self.reset("closed")

    # -------------------------------------------------------------------- what a socket has too

    def settimeout(self, seconds: float | None) -> None:
        self._timeout = seconds

    def gettimeout(self) -> float | None:
        return self._timeout

    def setsockopt(self, *_option: Any) -> None:
        """There is nothing to set."""

    def makefile(self, mode: str = "rb", buffering: int | None = None) -> io.BufferedReader:
        """A reader that may be closed while the channel lives on, as http.client does it."""
        return io.BufferedReader(_Raw(self), 64 << 10)

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    # -------------------------------------------------------------- the mux's own thread, below

    def _arrived(self, data: bytes) -> None:
        with self._changed:
            self._room -= len(data) + COST
            if self._room < 0:
                raise MuxError("more data than there was credit for")
            if self._got_fin:
                if self._sent_fin:
                    return  # we have reset it; the peer did not know yet
                raise MuxError("data after its end")
        self._inbox.put(data)
        self._tell()

    def _credited(self, size: int) -> None:
        with self._changed:
            self._credit += size
            if self._credit > WINDOW:
                raise MuxError("more credit than was spent")
            self._changed.notify_all()
        self._tell()

    def _ended(self, error: str | None) -> bool:
        """FIN, or a reset; whether the channel is over."""
        with self._changed:
            self._got_fin = True
            if error is not None:
                self._error = self._error or error
                self._sent_fin = True
            over = self._sent_fin
            self._changed.notify_all()
        self._inbox.put(None)
        self._tell()
        return over

    def _tell(self) -> None:
        if self.on_change is not None:
            self.on_change()


class _Raw(io.RawIOBase):
    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._channel.recv_into(buffer)


class Mux:
    """One end of a stream. The owner runs `run` on a thread until the stream ends.

    `opener`: whether this end opened the stream. `accept(channel)` is called, on that thread, for
    each channel that the peer opens; it must not block, and nothing may be opened where it is None.
    `on_end(reason)` is called once, when the stream is over.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        opener: bool,
        accept: Callable[[Channel], None] | None = None,
        on_end: Callable[[str], None] | None = None,
    ) -> None:
        self._stream = stream
        self._accept = accept
        self._on_end = on_end
        self._next = 1 if opener else 2
        self._highest = 0  # number that the peer has opened
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # guards the two below
        self._queued: list[bytes] = []  # what credit allows of each channel, at most
        self._busy = False  # somebody is writing
        self._channels: dict[int, Channel] = {}
        self._error = ""

    @property
    def error(self) -> str:
        """Why the stream is over; empty while it is not."""
        return self._error

    def open(self, info: bytes, data: bytes = b"", fin: bool = False) -> Channel:
        """A new channel; `data`, up to CHUNK bytes, and an end go along in the same write. Raises
        `MuxError`.
        """
        if len(info) > MAX_INFO or len(data) > CHUNK:
            raise ValueError("too much for one OPEN")
        with self._lock:  # numbers have to leave in rising order
            if self._error:
                raise MuxError(self._error)
            if len(self._channels) >= CHANNELS // 2:
                raise MuxError("too many channels are open")
            channel = self._channels[self._next] = Channel(self, self._next, info)
            self._next += 2
            frames = [_frame(OPEN, channel.number, info)]
            if data:
                channel._credit -= len(data) + COST
                frames.append(_frame(DATA, channel.number, data))
            if fin:
                channel._sent_fin = True
                frames.append(_frame(FIN, channel.number))
            mine = self._queue(b"".join(frames))
        if mine:
            self._write()
        return channel

    def close(self, why: str = "the stream was closed") -> None:
        """End the stream; `run` returns. May be called from any thread, any number of times."""
        self._fail(why)

    def run(self) -> None:
        """Read the stream until it ends, for whatever reason; see `error`."""
        buffer = bytearray(READ_BYTES)
        view = memoryview(buffer)
        start = end = 0
        why = "the stream has ended"
        try:
            while got := self._stream.recv_into(view[end:]):
                end += got
                start = self._frames(view, start, end)
                if start == end:
                    start = end = 0
                elif len(buffer) - end < CHUNK + HEADER.size:
                    left = bytes(view[start:end])
                    view[: len(left)] = left
                    start, end = 0, len(left)
        except (OSError, ValueError, struct.error) as error:
            why = str(error) or "the stream broke"
        finally:
            self._fail(why)

    # ------------------------------------------------------------------- the channels', above

    def send(self, kind: int, number: int, payload: Any = b"") -> None:
        """Queue a frame, and write unless somebody does. Raises `BrokenPipeError`."""
        self.send_all(_frame(kind, number, payload))

    def send_all(self, frames: bytes) -> None:
        if self._queue(frames):
            self._write()

    def forget(self, number: int) -> Channel | None:
        with self._lock:
            return self._channels.pop(number, None)

    def _queue(self, frames: bytes) -> bool:
        """Whether it is for the caller to write."""
        with self._writing:
            if self._error:
                raise BrokenPipeError(self._error)
            self._queued.append(frames)
            mine, self._busy = not self._busy, True
        return mine

    def _write(self) -> None:
        """Write what is queued until nothing is."""
        while True:
            with self._writing:
                frames, self._queued = self._queued, []
                if not frames:
                    self._busy = False
                    return
            try:
                self._stream.sendall(frames[0] if len(frames) == 1 else b"".join(frames))
            except OSError as error:
                # half a frame may be out: nothing can follow it
                self._fail(f"the peer does not read ({error.strerror or error})")
                raise BrokenPipeError(self._error) from error

    # ------------------------------------------------------------------------------- its thread

    def _frames(self, view: memoryview, start: int, end: int) -> int:
        """Take the whole frames in `view[start:end]`; where the rest begins."""
        while end - start >= HEADER.size:
            kind, number, size = HEADER.unpack_from(view, start)
            if size > CHUNK:
                raise MuxError("a frame is too large")
            stop = start + HEADER.size + size
            if stop > end:
                break
            self._take(kind, number, bytes(view[start + HEADER.size : stop]))
            start = stop
        return start

    def _take(self, kind: int, number: int, payload: bytes) -> None:
        if kind == OPEN:
            self._opened(number, payload)
            return
        channel = self._channels.get(number)
        if kind == DATA and payload:
            if channel is not None:  # else it was forgotten here while this was under way
                channel._arrived(payload)
        elif kind == CREDIT and len(payload) == 4:
            if channel is not None:
                channel._credited(int.from_bytes(payload, "big"))
        elif (kind == FIN and not payload) or (kind == RESET and len(payload) <= MAX_REASON):
            error = payload.decode("utf-8", "replace") or "reset" if kind == RESET else None
            if channel is not None and channel._ended(error):
                self.forget(number)
        else:
            raise MuxError("a frame makes no sense")

    def _opened(self, number: int, info: bytes) -> None:
        if self._accept is None or number % 2 == self._next % 2 or number <= self._highest:
            raise MuxError("a channel was opened that may not be")
        if len(info) > MAX_INFO:
            raise MuxError("an OPEN is too large")
        with self._lock:
            if self._error:
                return
            if len(self._channels) >= CHANNELS:
                raise MuxError("too many channels are open")
            self._highest = number
            channel = self._channels[number] = Channel(self, number, info)
        self._accept(channel)

    def _fail(self, why: str) -> None:
        with self._lock:
            if self._error:
                return
            self._error = why
            channels, self._channels = list(self._channels.values()), {}
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)
        for channel in channels:
            channel._ended(why)
        if self._on_end is not None:
            self._on_end(why)


def _frame(kind: int, number: int, payload: Any = b"") -> bytes:
    return b"".join((HEADER.pack(kind, number, len(payload)), payload))
