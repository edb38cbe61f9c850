"""The gateway's I/O: HTTP requests and WebSocket connections on one listening socket.

One thread, `oxydra-gateway`, owns every socket. It sleeps in the selector until a socket is ready,
a deadline of a connection comes, or another thread queued something and wrote to the wake pipe;
without connections it never wakes. `Handler` says what is done with requests and messages; nothing
here knows tokens, sessions or frame types. `stop` ends the thread: the listener is closed, each
connection gets a Close frame behind what it is owed, and who does not take that in time is cut.

`GatewayServer` extends `WebSocketServer` of simple-websocket-server, whose loop (`select`, a tick
of 100 ms, blind to other threads, without limits) is replaced: `handle_request` is one turn of the
loop, `serve_forever` the thread's body, `close` gives everything back, as in the base. There is no
TLS here: beyond loopback that is a reverse proxy's work.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import selectors
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from simple_websocket_server import WebSocketServer

from oxydra.gateway.connection import (
    GOING_AWAY,
    INTERNAL_ERROR,
    Connection,
    Handler,
    Later,
    ServerLimits,
)
from oxydra.gateway.http import (
    RefusedError,
    Request,
    RequestReader,
    Response,
    check_upgrade,
    plain,
    switch_protocols,
)
from oxydra.threads import Service

log = logging.getLogger(__name__)

WEBSOCKET_PATH = "/ws"
_FAILED = frozenset((400, 401, 403, 408, 413, 414, 431))  # answers that count as failed handshakes
_ACCEPTS_PER_TURN = 64  # then those who are in get their turn
_ACCEPT_PAUSE = 1.0  # seconds without accepting after running out of file descriptors


class FailureLimiter:
    """How many handshakes may still fail: leaky buckets, one per address and one for all. Pure.

    A bucket holds `limit` failures and leaks as many a minute. While it is full, nobody from
    there may try a credential, not even the right one: an answer would tell a guesser which it was.
    """

    def __init__(self, per_peer: int, overall: int) -> None:
        self._limits = {"": overall}  # "" is everybody
        self._per_peer = per_peer
        self._levels: dict[str, tuple[float, float]] = {}  # level and when, oldest first

    def retry_after(self, peer: str, now: float) -> float:
        """Seconds until `peer` may try again; 0.0 if it may now."""
        return max(self._wait("", now), self._wait(peer_network(peer), now))

    def failed(self, peer: str, now: float) -> None:
        for key in ("", peer_network(peer)):
            level = self._level(key, now) + 1
            self._levels.pop(key, None)
            self._levels[key] = (min(level, self._limit(key)), now)
        while len(self._levels) > 4096:  # somebody with that many addresses fills "" anyway
            del self._levels[next(iter(self._levels))]

    def _limit(self, key: str) -> int:
        return self._limits.get(key, self._per_peer)

    def _level(self, key: str, now: float) -> float:
        level, then = self._levels.get(key, (0.0, now))
        return max(0.0, level - (now - then) * self._limit(key) / 60)

    def _wait(self, key: str, now: float) -> float:
        excess = self._level(key, now) - (self._limit(key) - 1)
        return max(0.0, excess * 60 / self._limit(key))


def peer_network(peer: str) -> str:
    """What one party controls: an IPv4 address, or the /64 of an IPv6 address."""
    if ":" not in peer:
        return peer
    raw = socket.inet_pton(socket.AF_INET6, peer.partition("%")[0])
    mapped = raw[:12] == bytes(10) + b"\xff\xff"
    return socket.inet_ntop(socket.AF_INET, raw[12:]) if mapped else raw[:8].hex()


class GatewayServer(WebSocketServer):  # type: ignore[misc]  # the base has no types
    """Serves `handler` on `listener`, a bound TCP socket, which it owns from here on, and for what
    it is given by `adopt`; without a listener for that alone.
    """

    request_queue_size = 1024

    def __init__(
        self,
        listener: socket.socket | None,
        handler: Handler,
        limits: ServerLimits | None = None,
        *,
        on_death: Callable[[BaseException], None] | None = None,
    ) -> None:
        # Not the base's __init__: it would bind a socket of its own.
        self.serversocket = listener
        self.connections: dict[int, Connection] = {}  # by file descriptor
        self.limits = limits or ServerLimits()
        self.handler = handler
        self._failures = FailureLimiter(self.limits.failures_per_peer, self.limits.failures_overall)
        self._pending: dict[Connection, None] = {}  # handshake not finished, oldest first
        self._peers: Counter[str] = Counter()
        self._timers: list[tuple[float, int]] = []  # a heap of moments and keys of:
        self._timed: dict[int, Connection] = {}
        self._next_timer = itertools.count(1)
        self._adopted: deque[tuple[socket.socket, str]] = deque()  # by whatever thread
        self._acts: deque[Callable[[], None]] = deque()  # to be done here, by whatever thread
        self._dirty: deque[Connection] = deque()  # something was queued, by whatever thread
        self._backlog: deque[Connection] = deque()  # complete messages wait for their turn
        self._full = self._starved = False  # so that each is logged once
        self._accept_at: float | None = None  # accepting is paused until then
        self._drain: tuple[int, float] = (GOING_AWAY, self.limits.close_timeout)
        self._until: float | None = None  # the end of the drain
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._woken = False
        self._ident: int | None = None
        self._service = Service(
            "gateway", self.serve_forever, setup=self._listen, wake=self._wake, on_death=on_death
        )

    def start(self) -> None:
        """Begin to serve; returns when connections are accepted."""
        try:
            self._service.start()
        except BaseException:
            self.close()
            raise

    def stop(self, timeout: float = 5.0, code: int = GOING_AWAY) -> bool:
        """Take no more connections, close the open ones with `code` behind what they are owed, and
        end within `timeout` seconds; True if the thread has ended.
        """
        self._drain = (code, timeout * 0.8)  # the rest is for cutting those that did not listen
        ended = self._service.stop(timeout)
        if self._service.ident is None:
            self.close()  # it was never started
        return ended

    def notify(self, conn: Connection) -> None:
        """Something was queued for `conn`; any thread."""
        self._dirty.append(conn)
        if threading.get_ident() != self._ident:
            self._wake()

    def adopt(self, sock: socket.socket, peer: str) -> None:
        """Serve a client that was accepted elsewhere; `peer` is its address. From any thread."""
        self._adopted.append((sock, peer))
        self._wake()

    def soon(self, act: Callable[[], None]) -> None:
        """Have something done on the loop's thread, in its next turn; any thread."""
        self._acts.append(act)
        self._wake()

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            # Full means that a wake-up is under way; closed, that nobody is there to wake.
            with contextlib.suppress(OSError):
                self._wake_out.send(b"\0")

    # ---- the loop

    def _listen(self) -> None:
        self._selector.register(self._wake_in, selectors.EVENT_READ)
        if self.serversocket is None:
            return
        self.serversocket.setblocking(False)
        # an inherited one listens already, and a cage refuses to say it again
        if not self.serversocket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self.serversocket.listen(self.request_queue_size)
        self._selector.register(self.serversocket, selectors.EVENT_READ)

    def serve_forever(self, service: Service) -> None:
        self._ident = threading.get_ident()
        try:
            while not service.stopping.is_set():
                self.handle_request()
            self._retire()
            while self.connections and time.monotonic() < (self._until or 0):
                self.handle_request()
        finally:
            self.close()

    def handle_request(self) -> None:
        """One turn of the loop: wait for something to do, and do all of it once."""
        for key, events in self._selector.select(self._timeout()):
            if key.fileobj is self.serversocket:
                self._accept()
            elif key.fileobj is self._wake_in:
                self._awake()
            else:
                self._ready(key.data, events)
        for _ in range(len(self._acts)):
            self._act(self._acts.popleft())
        for _ in range(len(self._adopted)):
            self._take_in(*self._adopted.popleft())
        for _ in range(len(self._backlog)):
            conn = self._backlog.popleft()
            if not conn.dead:
                self._read_frames(conn)
        for _ in range(len(self._dirty)):
            conn = self._dirty.popleft()
            if not conn.dead:
                self._flush(conn)
        self._run_timers()

    def _timeout(self) -> float | None:
        """Seconds the selector may sleep; None: until something happens."""
        if self._dirty or self._backlog or self._acts:
            return 0
        while self._timers and self._timers[0][1] not in self._timed:
            heapq.heappop(self._timers)
        moments = [self._timers[0][0]] if self._timers else []
        moments += [at for at in (self._accept_at, self._until) if at is not None]
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _awake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake_in.recv(4096):
                pass
        self._woken = False  # before the queues are looked at: nothing queued later is overlooked

    @staticmethod
    def _act(act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:
            log.exception("%s failed", act)

    # ---- accepting

    def _accept(self) -> None:
        assert self.serversocket is not None
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, address = self.serversocket.accept()
            except BlockingIOError:
                self._starved = False  # everybody who waited is in
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:  # no descriptors or no memory: trying again at once is a spin
                self._pause_accepting(error)
                return
            self._take_in(sock, str(address[0]))

    def _take_in(self, sock: socket.socket, peer: str) -> None:
        try:
            self._admit(sock, peer)
        except OSError:  # the peer is gone already
            sock.close()

    def _pause_accepting(self, error: OSError) -> None:
        if not self._starved:
            self._starved = True
            log.error("no connections are accepted for now: %s", error)
        assert self.serversocket is not None
        self._selector.unregister(self.serversocket)
        self._accept_at = time.monotonic() + _ACCEPT_PAUSE

    def _resume_accepting(self) -> None:
        if self._accept_at is not None and self.serversocket is not None:
            self._accept_at = None
            self._selector.register(self.serversocket, selectors.EVENT_READ)

    def _admit(self, sock: socket.socket, peer: str) -> None:
        limits, network = self.limits, peer_network(peer)
        if len(self.connections) >= limits.max_connections:
            if not self._full:
                self._full = True
                log.warning("all %d connections are in use: refusing more", limits.max_connections)
            return _turn_away(sock, plain(503, "Too many connections.", Retry_After="5"))
        if len(self.connections) < limits.max_connections * 0.9:
            self._full = False
        if self._peers[network] >= limits.max_connections_per_peer:
            return _turn_away(sock, plain(429, "Too many connections of yours.", Retry_After="5"))
        if len(self._pending) >= limits.max_pending:
            self._cut_pending(next(iter(self._pending)), 429, "Too many unfinished handshakes.")
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:  # one that was forwarded
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        conn = self._construct_websocket(sock, peer)
        conn.request_reader = RequestReader(peer, limits.max_body, self._body_limit)
        self._selector.register(sock, selectors.EVENT_READ, conn)
        self.connections[sock.fileno()] = conn
        self._pending[conn] = None
        self._peers[network] += 1
        self._set_timer(conn)
        return None

    def _construct_websocket(self, sock: socket.socket, address: str) -> Connection:
        return Connection(
            sock,
            address,
            handler=self.handler,
            limits=self.limits,
            notify=self.notify,
            now=time.monotonic(),
        )

    # ---- one connection

    def _ready(self, conn: Connection, events: int) -> None:
        if conn.dead:  # by what an earlier event of this turn did
            return
        if events & selectors.EVENT_WRITE:
            self._flush(conn)
        if events & selectors.EVENT_READ and not conn.dead and not conn.backlog:
            self._read(conn)

    def _read(self, conn: Connection) -> None:
        pinged = conn.pinged_at is not None
        try:
            data = conn.receive(time.monotonic())
        except OSError:
            return self._drop(conn)
        if conn.eof:
            return self._drop(conn) if conn.finished else self._flush(conn)
        if pinged:
            self._set_timer(conn)
        if data and not conn.closed:
            if conn.handshaked:
                self._read_frames(conn, data)
            elif conn.request_reader is not None:  # what follows a request is no second one
                self._read_request(conn, data)
        return None

    def _read_frames(self, conn: Connection, data: bytes = b"") -> None:
        conn._handle_data(data)
        if conn.backlog and not conn.closed:
            self._backlog.append(conn)

    def _flush(self, conn: Connection) -> None:
        try:
            conn.flush()
        except OSError:
            return self._drop(conn)
        if conn.closed and conn.closing_at is None:
            conn.closing_at = time.monotonic()
            self._pending.pop(conn, None)
            self._set_timer(conn)
        if conn.finished:
            self._drop(conn)
        else:
            self._watch(conn)
        return None

    def _watch(self, conn: Connection) -> None:
        """Let the selector wait for what the connection waits for."""
        wanted = 0 if conn.eof else selectors.EVENT_READ
        wanted |= selectors.EVENT_WRITE if conn.blocked else 0
        if wanted != self._selector.get_key(conn.client).events:
            self._selector.modify(conn.client, wanted, conn)

    def _drop(self, conn: Connection) -> None:
        """The end of a connection, whatever came before."""
        conn.dead = True
        self._selector.unregister(conn.client)
        del self.connections[conn.client.fileno()]
        self._pending.pop(conn, None)
        self._timed.pop(conn.timer_key, None)
        network = peer_network(conn.peer)
        self._peers[network] -= 1
        if not self._peers[network]:
            del self._peers[network]
        conn.dispose()
        self._handle_close(conn)  # the base's: closes the socket, then calls handle_close
        conn.handle_gone()
        self._resume_accepting()

    # ---- HTTP

    def _read_request(self, conn: Connection, data: bytes) -> None:
        reader = conn.request_reader
        assert reader is not None
        try:
            request = reader.feed(data)
        except RefusedError as error:
            return self._respond(conn, error.response, error.source or conn.peer)
        if request is None:
            return None
        answer = self._route(request)
        if isinstance(answer, Response):
            return self._respond(conn, answer, self.handler.source(request))
        self._pending.pop(conn, None)
        if isinstance(answer, Later):
            conn.postpone(answer, time.monotonic())
            return self._set_timer(conn)
        conn.identity = answer
        conn.upgrade(request, switch_protocols(request), reader.rest)
        self._set_timer(conn)
        if conn.backlog:
            self._backlog.append(conn)
        return None

    def _body_limit(self, head: Request) -> int:
        """Raises `RefusedError`, as it does for whoever has failed too often."""
        response = self._barred(head)
        limit: int | Response | None = response
        if response is None:
            try:
                limit = self.handler.body_limit(head)
            except Exception:
                log.exception("looking at %s %s failed", head.method, head.path)
                limit = plain(500, "Internal error.")
        if isinstance(limit, Response):
            source = self.handler.source(head)
            raise RefusedError(limit.status, "It is not read.", response=limit, source=source)
        return self.limits.max_body if limit is None else limit

    def _barred(self, request: Request) -> Response | None:
        """The answer to who may not try a credential for now."""
        wait = self._failures.retry_after(self.handler.source(request), time.monotonic())
        if not wait or not (request.path == WEBSOCKET_PATH or "authorization" in request.headers):
            return None
        return plain(429, "Too many failed attempts.", Retry_After=str(int(wait) + 1))

    def _route(self, request: Request) -> Response | Any:
        """A `Response`, what will give one, or the identity of whom the WebSocket is granted to."""
        websocket = request.path == WEBSOCKET_PATH
        if (barred := self._barred(request)) is not None:
            return barred
        try:
            if not websocket:
                return self._plain_http(request)
            if not request.upgrades:
                return plain(
                    426, "This is a WebSocket.", Upgrade="websocket", Sec_WebSocket_Version="13"
                )
            return check_upgrade(request) or self.handler.authorize(request)
        except Exception:
            log.exception("handling %s %s failed", request.method, request.path)
            return plain(500, "Internal error.")

    def _plain_http(self, request: Request) -> Response | Later:
        if request.upgrades:
            return plain(404, "Not found.")
        methods = self.handler.methods(request.path)
        if request.method not in methods:
            allowed = ", ".join(methods)
            return plain(405, f"Only {allowed} is served here.", Allow=allowed)
        return self.handler.handle_http(request)

    def _respond(self, conn: Connection, response: Response, source: str) -> None:
        if response.status in _FAILED and not response.known:
            self._failures.failed(source, time.monotonic())
        conn.respond(response)

    def _cut_pending(self, conn: Connection, status: int, text: str) -> None:
        """Answer somebody who never finished the request, at once and without lingering."""
        with contextlib.suppress(OSError):
            conn.client.send(plain(status, text).encode())
        self._drop(conn)

    # ---- deadlines

    def _due(self, conn: Connection) -> float:
        limits = self.limits
        if conn.closing_at is not None:
            return conn.closing_at + limits.close_timeout
        if conn.later is not None:  # as long as the answer takes, which has deadlines of its own
            return conn.seen_at + limits.beat_interval
        if not conn.handshaked:
            return conn.opened_at + limits.handshake_timeout
        if conn.pinged_at is not None:
            return conn.pinged_at + limits.pong_timeout
        return conn.seen_at + limits.ping_interval

    def _set_timer(self, conn: Connection) -> None:
        """Have the connection looked at when it is due. A due time that moves on, as with every
        byte received, is noticed when the timer comes up; only one that comes nearer sets it anew.
        """
        due = self._due(conn)
        if due < conn.timer:
            self._timed.pop(conn.timer_key, None)
            conn.timer, conn.timer_key = due, next(self._next_timer)
            self._timed[conn.timer_key] = conn
            heapq.heappush(self._timers, (due, conn.timer_key))

    def _run_timers(self) -> None:
        now = time.monotonic()
        if self._accept_at is not None and self._accept_at <= now:
            self._resume_accepting()
        while self._timers and self._timers[0][0] <= now:
            conn = self._timed.get(heapq.heappop(self._timers)[1])
            if conn is None:
                continue
            conn.timer = float("inf")
            if self._due(conn) <= now:
                self._overdue(conn, now)
            if not conn.dead:
                self._set_timer(conn)

    def _overdue(self, conn: Connection, now: float) -> None:
        if conn.closing_at is not None:
            self._drop(conn)
        elif conn.later is not None:
            conn.beat(now)
        elif not conn.handshaked:
            self._cut_pending(conn, 408, "The request did not come in time.")
        elif conn.pinged_at is None:
            conn.ping(now)
        else:
            conn.close(INTERNAL_ERROR, "No answer to a ping.")
            self._flush(conn)

    # ---- the end

    def _retire(self) -> None:
        """Take nobody in any more; ask everybody to leave."""
        code, grace = self._drain
        self._until = time.monotonic() + grace
        if self.serversocket is not None:
            if self._accept_at is None:
                self._selector.unregister(self.serversocket)
            self.serversocket.close()
        self._accept_at = None
        for conn in list(self.connections.values()):
            if conn.handshaked:
                conn.close(code, "The gateway is stopping.")
            elif conn.later is not None:
                conn.interrupt()
            elif not conn.closed:
                self._drop(conn)

    def close(self) -> None:
        """Cut what is left and give everything back; on the loop's thread, or if there is none."""
        self._accept_at = None
        for conn in list(self.connections.values()):
            self._drop(conn)
        self._selector.close()
        while self._adopted:
            self._adopted.popleft()[0].close()
        for sock in (self.serversocket, self._wake_in, self._wake_out):
            if sock is not None:
                sock.close()


def _turn_away(sock: socket.socket, response: Response) -> None:
    """Refuse at the door: as much of an answer as the socket takes at once."""
    with contextlib.suppress(OSError):
        sock.setblocking(False)
        sock.send(response.encode())
    sock.close()
