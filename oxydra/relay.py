"""The relay: carries bytes between sockets and mux channels, any number of pairs on one thread.

`Relay.join(sock, channel)` makes the two one connection: bytes, ends and resets cross in both
directions, and no more is kept of either than one read. The thread `oxydra-relay` sleeps in its
selector until a socket is ready or a channel has changed; `stop` wakes it, and every pair it still
has is closed.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from oxydra.errors import OxydraError
from oxydra.mux import Channel
from oxydra.threads import Service

READ_BYTES = 64 << 10
CHUNKS_PER_TURN = 16  # of one channel, then others have their turn


class Relay:
    """Both ends of a pair belong to the relay from `join` on. Its thread starts with the first."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._changed: deque[_Pair] = deque()  # appended to by any thread
        self._pairs: set[_Pair] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._woken = False
        self._service = Service("relay", self._run, wake=self._wake)

    def stop(self, timeout: float = 5.0) -> bool:
        """Close every pair and end the thread; idempotent."""
        ended = self._service.stop(timeout)
        with self._lock:
            self._closed = True
            left = list(self._changed)
        for pair in [*self._pairs, *left]:
            pair.close()
        if self._service.ident is None:
            self._release()
        return ended

    def join(
        self,
        sock: socket.socket,
        channel: Channel,
        *,
        on_closed: Callable[[int, int], None] | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        """From any thread. `on_bytes(n)` is called for what has crossed, and closes the pair by
        raising `OxydraError`; `on_closed(from_socket, to_socket)` is told, at the end, how many
        went each way. Both run on the relay's thread.
        """
        sock.setblocking(False)
        pair = _Pair(sock, channel, on_closed, on_bytes)
        with self._lock:
            if self._closed:
                pair.close()
                return
            if self._service.ident is None:
                self._service.start()
            channel.on_change = partial(self._notify, pair)
            self._changed.append(pair)
        self._wake()

    def _notify(self, pair: _Pair) -> None:
        self._changed.append(pair)
        self._wake()

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            with contextlib.suppress(OSError):  # full: it is being woken; closed: nobody is there
                self._wake_out.send(b"\0")

    def _run(self, service: Service) -> None:
        self._selector.register(self._wake_in, selectors.EVENT_READ)
        try:
            while not service.stopping.is_set():
                for key, events in self._selector.select():
                    if key.data is None:
                        with contextlib.suppress(BlockingIOError):
                            while self._wake_in.recv(4096):
                                pass
                        self._woken = False  # before the queue is looked at
                    else:
                        self._move(key.data, events)
                for _ in range(len(self._changed)):
                    self._move(self._changed.popleft(), 0)
        finally:
            self._release()

    def _move(self, pair: _Pair, events: int) -> None:
        if pair.over:
            return
        try:
            pair.move(events)
        except (OSError, OxydraError):  # one of the two is gone, and the other goes with it
            pair.end = True
        if pair.end:
            self._watch(pair, 0)
            self._pairs.discard(pair)
            pair.close()
            return
        self._pairs.add(pair)
        self._watch(pair, pair.waits_for)
        if pair.more:
            self._notify(pair)

    def _watch(self, pair: _Pair, events: int) -> None:
        if events == pair.watched:
            return
        if not pair.watched:
            self._selector.register(pair.sock, events, pair)
        elif events:
            self._selector.modify(pair.sock, events, pair)
        else:
            self._selector.unregister(pair.sock)
        pair.watched = events

    def _release(self) -> None:
        for pair in list(self._pairs):
            pair.close()
        self._pairs.clear()
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()


class _Pair:
    """One connection. Used by the relay's thread alone."""

    def __init__(
        self,
        sock: socket.socket,
        channel: Channel,
        on_closed: Callable[[int, int], None] | None,
        on_bytes: Callable[[int], None] | None,
    ) -> None:
        self.sock = sock
        self.watched = 0  # what the selector was told to wait for
        self.more = False  # the channel has more, after others had their turn
        self.end = self.over = False
        self._channel = channel
        self._on_closed = on_closed
        self._on_bytes = on_bytes
        self._outward = b""  # read from the socket, waits for credit
        self._inward = b""  # taken from the channel, waits for the socket
        self._sock_ended = self._channel_ended = False
        self._counts = [0, 0]

    @property
    def waits_for(self) -> int:
        """What to wait for on the socket."""
        reading = selectors.EVENT_READ if not self._outward and not self._sock_ended else 0
        return (selectors.EVENT_WRITE if self._inward else 0) | reading

    def move(self, events: int) -> None:
        """Carry what can be carried now. Raises OSError, and what `on_bytes` raises."""
        self._out(bool(events & selectors.EVENT_READ))
        self._in()
        self.end = self._sock_ended and self._channel_ended and not self._outward

    def _out(self, readable: bool) -> None:
        if readable and not self._outward and not self._sock_ended:
            with contextlib.suppress(BlockingIOError):
                self._outward = self.sock.recv(READ_BYTES)
                self._sock_ended = not self._outward
                if self._sock_ended:
                    self._channel.shutdown(socket.SHUT_WR)
        while self._outward and (sent := self._channel.offer(self._outward)):
            self._outward = self._outward[sent:]
            self._count(0, sent)

    def _in(self) -> None:
        self.more = False
        for _ in range(CHUNKS_PER_TURN):
            if not self._inward:
                data = None if self._channel_ended else self._channel.take()
                if data is None:
                    return
                if not data:
                    self._channel_ended = True
                    with contextlib.suppress(OSError):  # the peer may have gone
                        self.sock.shutdown(socket.SHUT_WR)
                    return
                self._inward = data
            try:
                sent = self.sock.send(self._inward)
            except BlockingIOError:
                return
            self._inward = self._inward[sent:]
            self._count(1, sent)
        self.more = True

    def _count(self, direction: int, size: int) -> None:
        self._counts[direction] += size
        if self._on_bytes is not None:
            self._on_bytes(size)

    def close(self) -> None:
        if self.over:
            return
        self.over = True
        self._channel.on_change = None
        if not (self._sock_ended and self._channel_ended):
            self._channel.reset("the connection was lost")
        self.sock.close()
        if self._on_closed is not None:
            self._on_closed(*self._counts)
