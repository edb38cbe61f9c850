"""One reusable connection to a peer: requests underneath, with clocks and a cancel on its socket.

A `Line` is used by one request at a time, on the thread that borrowed it; only `abort` is called
from others. What requests and urllib3 lack is added where sockets are made: a name is looked up on
a thread that can be left behind (`oxydra-resolve`, which ends when the look-up does), every socket
is known to its line before it connects, so that `abort` reaches it in each phase, and every single
receive obeys the idle time and the deadline of the request under way, the header block included.

requests' adapter is used without its session: a session would read proxies from the environment,
keep cookies, and swallow the whole body of a redirect.

Imports requests, urllib3 and ssl (0.1 s of CPU): import this module only when it is needed.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import certifi
import requests
from requests.adapters import HTTPAdapter
from urllib3 import exceptions as urllib3_errors
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from oxydra.errors import TransportError
from oxydra.threads import Deadline, Service
from oxydra.transport.base import HttpRequest

READ_BYTES = 65536
DRAIN_SECONDS = 0.05  # how long an end marker may take once the answer was complete
KEEPALIVE_IDLE = 45  # seconds of silence after which the kernel probes a kept connection

Resolve = Callable[[str, int], list[Any]]
Admit = Callable[[str, int, str], None]

# What requests and urllib3 raise; `broken` makes one of ours of it.
FAILURES = (
    requests.RequestException,
    urllib3_errors.HTTPError,
    http.client.HTTPException,
    OSError,
    UnicodeError,
)

_using = threading.local()  # .line: whose request this thread is sending, for the sockets below


class Line:
    """Keeps at most one connection alive, to one peer."""

    def __init__(
        self, where: str, context: ssl.SSLContext, resolve: Resolve, admit: Admit | None = None
    ) -> None:
        """`where` names the peer in errors; `resolve(host, port)` answers like
        `socket.getaddrinfo`; `admit(host, port, address)` raises for an address that may not be
        dialled.
        """
        self.where = where
        self._resolve = resolve
        self._admit = admit
        self._idle = 0.0
        self._deadline = self._connect_by = Deadline.after(None)
        self._lock = threading.Lock()
        self._aborted = False
        self._socket: socket.socket | None = None
        self._waiting = threading.Event()  # set when a look-up is done or was aborted
        self._response: requests.Response | None = None
        self._encoded = False
        self._on_wait: Callable[[], None] = _nothing
        self._adapter = _Adapter(context)

    # ---------------------------------------------------------------------------- the borrower's

    def send(self, request: HttpRequest, headers: Mapping[str, str]) -> requests.Response:
        """Send, and return when the headers of the response are there."""
        self._idle, self._deadline = request.idle_timeout, request.deadline
        self._on_wait = request.on_wait
        self._connect_by = Deadline.after(request.deadline.timeout(request.connect_timeout))
        prepared = requests.Request(
            request.method, request.url, headers=dict(headers), data=request.body or None
        ).prepare()
        _using.line = self
        try:
            # the timeouts only satisfy urllib3: `_Clocked` sets one before each receive
            timeout = (request.connect_timeout, request.idle_timeout)
            self._response = self._adapter.send(prepared, stream=True, timeout=timeout)
        finally:
            _using.line = None
        self._encoded = "content-encoding" in self._response.headers
        return self._response

    def dial(self, host: str, port: int, seconds: float) -> socket.socket:
        """A plain connected socket, which is the caller's from here on."""
        self._connect_by = Deadline.after(seconds)
        return socket.socket(fileno=self.connect(host, port).detach())

    def read1(self) -> bytes:
        """The next bytes of the body, b"" at its end."""
        assert self._response is not None
        return self._response.raw.read1(READ_BYTES, decode_content=self._encoded) or b""

    def finish(self, drain: bool) -> None:
        """Done with the response; a body read to its end leaves the connection open. With `drain`,
        what little is left may still be read, for a moment.
        """
        try:
            if drain:
                self._idle, self._deadline = DRAIN_SECONDS, Deadline.after(DRAIN_SECONDS)
                for _ in range(8):
                    if not self.read1():
                        break
        except (*FAILURES, TransportError):
            pass  # then it is simply not used again
        finally:
            response, self._response = self._response, None
            self._on_wait = _nothing
            if response is not None:
                response.close()

    def rearm(self) -> None:
        """Forget an `abort` that was meant for the request before."""
        with self._lock:
            self._aborted = False

    def close(self) -> None:
        self._adapter.close()

    # ------------------------------------------------------------------------------- any thread's

    def abort(self) -> None:
        """Wake the borrower, whatever it waits for; its call then fails."""
        with self._lock:
            self._aborted = True
            self._waiting.set()
            if self._socket is not None:
                # not SSLSocket.shutdown, which would hand the reader raw ciphertext; on Linux this
                # also ends a connect that is under way
                with contextlib.suppress(OSError):  # not connected yet, or not any more
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    # ------------------------------------------------------------------------------- the sockets'

    def hold(self, sock: socket.socket) -> None:
        """This is the socket that `abort` must reach from now on."""
        with self._lock:
            if self._aborted:
                raise ConnectionAbortedError("cancelled")
            self._socket = sock

    def allowance(self) -> float:
        """Seconds the next receive or send may take."""
        self._on_wait()
        left = self._deadline.remaining()
        if left <= 0:
            raise self.too_slow()
        return min(self._idle, left)

    def too_slow(self) -> TransportError:
        """The error of a receive or send that used up its allowance."""
        if self._deadline.expired:
            return TransportError(
                f"{self.where} did not finish in time.",
                remedy="Try again, or allow more time.",
                kind="deadline",
            )
        return TransportError(
            f"{self.where} was silent for {self._idle:g} seconds.",
            remedy="It may be overloaded: try again later.",
            kind="idle",
            retryable=True,
        )

    def connect(self, host: str, port: int) -> socket.socket:
        """A socket connected to the first address that accepts.

        The name is looked up once, all its addresses are checked, and only those are dialled.
        """
        failure = "it has no address"
        found = self._addresses(host, port)
        if self._admit is not None:
            for *_, address in found:
                self._admit(host, port, _numeric(address))
        for family, kind, proto, _, address in found:
            sock = _PlainSocket(family, kind, proto)
            try:
                self.hold(sock)
                _tune(sock)
                sock.settimeout(max(self._connect_by.remaining(), 0.001))
                sock.connect(address)
            except OSError as error:
                sock.close()
                failure = "it did not answer in time" if _timed_out(error) else _reason(error)
                if self._aborted or self._connect_by.expired:
                    break
            else:
                sock.line = self
                return sock
        raise self._unreachable("connect", failure)

    def handshake(self, sock: ssl.SSLSocket, shake: Callable[[], None]) -> None:
        """Do a TLS handshake within what is left of the time to connect."""
        try:
            self.hold(sock)
            sock.settimeout(max(self._connect_by.remaining(), 0.001))
            shake()
        except ssl.SSLCertVerificationError as error:
            sock.close()
            raise TransportError(
                f"{self.where} has a certificate that can't be trusted: {error.verify_message}.",
                remedy="Check the address; a private authority goes into SSL_CERT_FILE.",
                kind="tls",
            ) from None
        except OSError as error:
            sock.close()
            reason = "it did not answer in time" if _timed_out(error) else _reason(error)
            raise TransportError(
                f"No secure connection to {self.where}: {reason}.",
                remedy="Check that the address begins with the right one of http:// and https://.",
                kind="tls",
                retryable=not isinstance(error, ssl.SSLError),
            ) from None

    def _addresses(self, host: str, port: int) -> list[Any]:
        host = host.strip("[]")
        numeric = socket.AI_NUMERICHOST
        try:
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=numeric)
        except OSError:
            pass  # a name: its look-up can't be interrupted, so it gets a thread to leave behind
        found: list[Any] = []
        failure = ["its name can't be resolved"]
        with self._lock:
            done = self._waiting = threading.Event()
            if self._aborted:
                done.set()

        def look_up(_: Service) -> None:
            try:
                found.extend(self._resolve(host, port))
            except (OSError, UnicodeError) as error:
                failure.append(_reason(error))
            finally:
                done.set()

        Service("resolve", look_up).start()
        if not done.wait(self._connect_by.timeout()):
            failure.append("its name was not resolved in time")
        if self._aborted or not found:
            raise self._unreachable("resolve", failure[-1])
        return list(found)

    def _unreachable(self, kind: str, reason: str) -> TransportError:
        return TransportError(
            f"{self.where} can't be reached: {reason}.",
            remedy="Check the address, the network, and that the server is running.",
            kind=kind,
            retryable=True,
        )


def _nothing() -> None:
    """Nobody has anything to do before a wait."""


def broken(error: BaseException, where: str) -> TransportError:
    """What requests, urllib3 or http.client raised, as a sentence. It quotes none of their texts,
    which may hold a header's value.
    """
    causes = list(_causes(error))

    def among(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if among(http.client.LineTooLong) or any("got more than" in str(c.args) for c in causes):
        return TransportError(
            f"{where} sent more or longer headers than is sane.",
            remedy="Check the address; nothing of its answer was taken.",
            kind="headers",
        )
    if among(http.client.RemoteDisconnected):
        return TransportError(
            f"{where} closed the connection without an answer.",
            remedy="Try again; if it stays, look into the server's log.",
            kind="broken",
            retryable=True,
        )
    if among(http.client.BadStatusLine, http.client.UnknownProtocol):
        return TransportError(
            f"{where} does not speak HTTP.",
            remedy="Check the address, its port, and http:// or https:// before it.",
            kind="broken",
        )
    if among(urllib3_errors.DecodeError):
        return TransportError(
            f"{where} sent a damaged compressed answer.",
            remedy="Something between here and the server may damage it: try again.",
            kind="encoding",
            retryable=True,
        )
    if among(requests.exceptions.InvalidURL, urllib3_errors.LocationParseError):
        return TransportError(
            f"The address of {where} is not a valid URL.", remedy="Correct it.", kind="url"
        )
    if among(requests.exceptions.InvalidHeader, UnicodeError):
        return TransportError(
            f"A header configured for {where} holds what a header can't carry.",
            remedy="Look for line breaks and non-ASCII characters in extra_headers.",
            kind="url",
        )
    return TransportError(
        f"{where} broke the connection off in the middle.",
        remedy="Try again; if it stays, look at the network and the server's log.",
        kind="broken",
        retryable=True,
    )


def tls_context(ca_file: str = "") -> ssl.SSLContext:
    """Certificates are checked against `ca_file`, or else the system's and certifi's roots."""
    context = ssl.create_default_context(cafile=ca_file or None)
    if not ca_file:
        context.load_verify_locations(cafile=certifi.where())
    context.sslsocket_class = _TlsSocket
    return context


def _causes(error: BaseException) -> Iterator[BaseException]:
    """`error` and everything wrapped in it."""
    seen: set[int] = set()
    stack: list[Any] = [error]
    while stack:
        cause = stack.pop()
        if isinstance(cause, BaseException) and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            stack += [cause.__cause__, cause.__context__, getattr(cause, "reason", None)]
            stack += cause.args


def _numeric(address: Any) -> str:
    """The address of a socket address; one of IPv6 that has a zone keeps it."""
    return f"{address[0]}%{address[3]}" if len(address) > 3 and address[3] else str(address[0])


def _timed_out(error: OSError) -> bool:
    return isinstance(error, TimeoutError)


def _reason(error: Exception) -> str:
    """The system's words for an error, ready to stand after a colon."""
    text = getattr(error, "reason", None) or getattr(error, "strerror", None) or "it failed"
    words = str(text).replace("_", " ").rstrip(".")
    return words[:1].lower() + words[1:]


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)


# ------------------------------------------------------------- what requests and urllib3 are given


class _Clocked(socket.socket):
    """A socket whose every receive and send takes its time limit from the request under way."""

    line: Line

    def recv_into(self, *args: Any) -> int:
        self._set_clock()
        try:
            return super().recv_into(*args)
        except TimeoutError:
            raise self.line.too_slow() from None

    def sendall(self, *args: Any) -> None:
        self._set_clock()
        try:
            super().sendall(*args)
        except TimeoutError:
            raise self.line.too_slow() from None

    def _set_clock(self) -> None:
        allowance = self.line.allowance()
        if allowance != self.gettimeout():  # setting it is a system call, and this is once a delta
            self.settimeout(allowance)


class _PlainSocket(_Clocked):
    pass


class _TlsSocket(_Clocked, ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        self.line = _using.line
        self.line.handshake(self, lambda: super(_TlsSocket, self).do_handshake(block))


class _PlainConnection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        line: Line = _using.line
        return line.connect(self._dns_host, self.port)


class _TlsConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        line: Line = _using.line
        return line.connect(self._dns_host, self.port or 443)


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _Adapter(HTTPAdapter):
    """requests' adapter with one connection, our sockets and our one TLS context."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__(pool_connections=1, pool_maxsize=1)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _PlainPool, "https": _TlsPool}

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """The context has its roots already; requests would read them again for each connection."""
        conn.cert_reqs = "CERT_REQUIRED"
