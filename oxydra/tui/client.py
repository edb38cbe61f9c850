"""A client of the gateway: the TUI and `oxydra-runner ask` speak through it.

One thread, `oxydra-gateway-client`, reads the socket and, when the connection breaks, makes the
next one; it ends with `close`. Whoever sends does so on its own thread. The frames of a session
arrive in order and once: each carries a number, and a new connection asks for what came after the
last one seen. Where that is no longer to be had, `Link.fresh` says that the history must be read
again.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from oxydra.errors import FrameError, NoDaemonError, OxydraError, UsageError
from oxydra.frames import PROTOCOL_VERSION, Frame, decode_server, encode
from oxydra.threads import Service
from oxydra.types import Json

if TYPE_CHECKING:
    from oxydra.tui.tls import TlsSocket

log = logging.getLogger(__name__)

Locate = Callable[[], tuple[str, str]]
"""Gives the endpoint and the token as they are now; raises `OxydraError` if there is no daemon."""


class RefusedError(OxydraError):
    """The gateway answered and would not let this client in."""

    code = "unauthorized"


class UntrustedError(OxydraError):
    """Who answers at the gateway's address can't prove that it is the one."""

    code = "untrusted"


@dataclass(frozen=True, slots=True)
class Link:
    """The state of the connection.

    Connected: frames flow; `fresh` says that they do not continue what was seen before, so that
    the history must be read. Not connected: it broke, or the last attempt to make it anew failed;
    `detail` says why, and is told once until it changes; `refused`: the daemon is there, and does
    not let us in.
    """

    connected: bool
    fresh: bool = False
    detail: str = ""
    refused: bool = False


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """How patient a client is."""

    connect_timeout: float = 5.0
    """Seconds for each step of opening a connection."""
    backoff_base: float = 0.1
    """Seconds before the first new attempt; doubled with each one that fails."""
    backoff_max: float = 3.0
    """The longest pause between attempts, in seconds."""
    reconnect: bool = True
    """Whether a broken connection is made anew."""


class GatewayClient:
    """A connection to one user's gateway, followed through restarts of the daemon.

    `on_frame` and `on_link` are called on the client's thread, one call at a time; they must not
    block. `locate`, if given, is asked for the endpoint and the token before each new attempt: a
    restarted daemon may listen elsewhere.
    """

    def __init__(
        self,
        endpoint: str,
        token: str,
        user_id: str,
        *,
        on_frame: Callable[[Frame], None],
        on_link: Callable[[Link], None] = lambda link: None,
        on_death: Callable[[BaseException], None] | None = None,
        session_id: str | None = None,
        new_session: bool = False,
        agent: str = "",
        locate: Locate | None = None,
        config: ClientConfig | None = None,
    ) -> None:
        self.user_id = user_id
        self.session_id = session_id
        self.scopes: frozenset[str] = frozenset()
        """What the token may, once connected."""
        self._endpoint = endpoint
        self._token = token
        self._new_session = new_session
        self._agent = agent
        self._on_frame = on_frame
        self._on_link = on_link
        self._locate = locate
        self._config = config or ClientConfig()
        self._lock = threading.Lock()  # guards the next two
        self._ws: Any = None
        self._socket: socket.socket | TlsSocket | None = (
            None  # of the connection, also while it is made
        )
        self._hello: list[Frame] = []  # what the handshake read, for the reader to deliver
        self._epoch = ""
        self._seen: dict[str, int] = {}  # the last number of each session
        self._resuming = False  # the next numbered frame shows whether any is missing
        self._service = Service(
            "gateway-client", self._run, setup=self._open, wake=self._interrupt, on_death=on_death
        )

    def connect(self) -> None:
        """Open the connection; return when the gateway has greeted.

        Raises `NoDaemonError` if nothing answers, `RefusedError` if the gateway refuses,
        `UsageError` if the endpoint is no gateway's address.
        """
        self._service.start(timeout=4 * self._config.connect_timeout)

    @property
    def connected(self) -> bool:
        """Whether there is a connection at this moment."""
        return self._ws is not None

    def send(self, frame_type: str, payload: Json) -> str:
        """Send a frame and return its request id, which is made here if `payload` has none.

        Raises `NoDaemonError` while there is no connection; the frame is then not sent later.
        """
        import websocket

        request_id: str = payload.get("request_id") or uuid.uuid4().hex
        with self._lock:
            ws = self._ws
        if ws is None:
            raise NoDaemonError("The connection to the daemon is interrupted.")
        text = encode(frame_type, {**payload, "request_id": request_id}).decode()
        try:
            ws.send(text)
        except (websocket.WebSocketException, OSError):
            raise NoDaemonError("The connection to the daemon broke.") from None
        return request_id

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self, timeout: float = 5.0) -> bool:
        """End the connection and its thread; True if the thread ended. May be called again."""
        return self._service.stop(timeout)

    # ------------------------------------------------------------------------------- the connection

    def _open(self) -> None:
        """Connect, shake hands, say hello and read the answer."""
        if self._locate is not None:
            self._endpoint, self._token = self._locate()
        address, tls = _address(self._endpoint)
        try:
            plain = socket.create_connection(address, self._config.connect_timeout)
        except OSError as error:
            raise self._no_daemon(error.strerror or str(error)) from None
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock: socket.socket | TlsSocket = plain
        if tls:
            from oxydra.tui.tls import TlsSocket

            sock = TlsSocket(plain, address[0])
        with self._lock:
            self._socket = sock
        if self._service.stopping.is_set():  # before there was a socket to interrupt
            self._interrupt()
        try:
            if not isinstance(sock, socket.socket):
                self._secure(sock)
            ws = self._handshake(sock)
            self._say_hello(ws)
        except BaseException:
            self._drop()
            raise
        sock.settimeout(None)
        with self._lock:
            self._ws = ws

    def _secure(self, sock: TlsSocket) -> None:
        """Raises `UntrustedError` or `NoDaemonError`."""
        import ssl

        try:
            sock.handshake()
        except ssl.SSLCertVerificationError as error:
            raise UntrustedError(
                f"The certificate of {self._endpoint} is not trusted: {error.verify_message}.",
                remedy="If it is your own, name it in SSL_CERT_FILE.",
            ) from None
        except OSError:
            raise self._no_daemon("what listens there speaks no TLS") from None

    def _handshake(self, sock: socket.socket | TlsSocket) -> Any:
        import websocket

        # It would check UTF-8 a byte at a time, a second for 5 MB; `_decode` finds what is wrong.
        ws = websocket.WebSocket(enable_multithread=True, skip_utf8_validation=True)
        try:
            ws.connect(  # type: ignore[no-untyped-call]
                self._endpoint,
                socket=sock,
                header=[f"Authorization: Bearer {self._token}"],
                suppress_origin=True,
                redirect_limit=0,
            )
        except websocket.WebSocketBadStatusException as error:
            raise _refused(error.status_code) from None
        except (websocket.WebSocketException, OSError, ValueError):
            raise self._no_daemon("what listens there is no gateway") from None
        return ws

    def _say_hello(self, ws: Any) -> None:
        """Raises `RefusedError` or `NoDaemonError`."""
        import websocket

        hello: Json = {
            "request_id": uuid.uuid4().hex,
            "protocol_version": PROTOCOL_VERSION,
            "user_id": self.user_id,
        }
        if self.session_id is not None:
            hello["session_id"] = self.session_id
        elif self._new_session:
            hello["create_new_session"] = True
            if self._agent:
                hello["agent_name"] = self._agent
        last_seq = self._seen.get(self.session_id or "")
        if last_seq is not None:
            hello |= {"last_seq": last_seq, "epoch": self._epoch}
        self._hello.clear()
        try:
            ws.send(encode("hello", hello).decode())
            while not self._hello or self._hello[-1].type != "hello_ack":
                opcode, data = ws.recv_data()
                if opcode == websocket.ABNF.OPCODE_CLOSE:
                    raise self._no_daemon(_close_reason(data))
                frame = _decode(data)
                if frame is None:
                    continue
                if frame.type == "error":
                    code = frame.payload.get("code") or RefusedError.code
                    raise RefusedError(frame.payload["message"], code=code)
                self._hello.append(frame)
            self.scopes = frozenset(map(str, self._hello[-1].payload.get("scopes") or ()))
        except (websocket.WebSocketException, OSError, ValueError):
            raise self._no_daemon("it broke off before it greeted") from None

    def _no_daemon(self, why: str) -> NoDaemonError:
        return NoDaemonError(
            f"No daemon answers at {self._endpoint} ({why}).",
            remedy="Start one with `oxydra-runner start`.",
        )

    def _interrupt(self) -> None:
        """Wake the thread out of the socket call it is in."""
        with self._lock:
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _drop(self) -> None:
        with self._lock:
            sock, self._socket, self._ws = self._socket, None, None
        if sock is not None:
            sock.close()

    # ----------------------------------------------------------------------------------- the thread

    def _run(self, service: Service) -> None:
        try:
            while not service.stopping.is_set():
                self._greeted()
                why = self._read()
                self._drop()
                if service.stopping.is_set():
                    return
                self._on_link(Link(False, detail=why))
                if not self._config.reconnect or not self._reopen(service):
                    return
        finally:
            self._drop()

    def _reopen(self, service: Service) -> bool:
        """Connect again, however long it takes; False if the client was closed before."""
        pause = self._config.backoff_base
        said = ""
        while not service.stopping.wait(pause):
            try:
                self._open()
                return True
            except OxydraError as error:
                if str(error) != said and not service.stopping.is_set():
                    said = str(error)
                    refused = isinstance(error, RefusedError)
                    self._on_link(Link(False, detail=said, refused=refused))
            pause = min(2 * pause, self._config.backoff_max)
        return False

    def _greeted(self) -> None:
        """Deliver what the handshake read, and say whether it continues what was seen before."""
        ack = self._hello[-1].payload
        session_id = _session_of(self._hello[-1])
        fresh = session_id not in self._seen or ack["epoch"] != self._epoch
        fresh = fresh or ack.get("resumed") is False
        if fresh:
            self._seen = {session_id: ack["seq"]}
        self.session_id = session_id
        self._epoch = ack["epoch"]
        self._resuming = not fresh
        for frame in self._hello:
            self._on_frame(frame)
        self._on_link(Link(True, fresh=fresh))

    def _read(self) -> str:
        """Deliver frames until the connection ends; the answer says why it did."""
        import websocket

        ws = self._ws
        while True:
            try:
                opcode, data = ws.recv_data()
                if opcode == websocket.ABNF.OPCODE_CLOSE:
                    return _close_reason(data)
                frame = _decode(data)
            except (websocket.WebSocketException, OSError, ValueError):
                return "the daemon went away"
            if frame is not None:
                self._deliver(frame)

    def _deliver(self, frame: Frame) -> None:
        session_id = _session_of(frame)
        if frame.seq:
            last = self._seen.get(session_id)
            if last is not None and frame.seq <= last:
                return
            if self._resuming and session_id == self.session_id:
                self._resuming = False
                if last is not None and (frame.first_seq or frame.seq) > last + 1:
                    self._on_link(Link(True, fresh=True))
            self._seen[session_id] = frame.seq
        elif frame.type == "session_switched":
            self.session_id = session_id
            self._seen.pop(session_id, None)  # what came while away is read from the history
            self._resuming = False
        self._on_frame(frame)


def _session_of(frame: Frame) -> str:
    session = frame.payload.get("session")
    return str(session.get("session_id", "")) if isinstance(session, dict) else ""


def _decode(data: bytes) -> Frame | None:
    """A frame; None for what a newer gateway may send and this client does not know. Raises
    ValueError for text that is no UTF-8: such a connection ends (RFC 6455, section 8.1).
    """
    try:
        return decode_server(data.decode())
    except FrameError as error:
        log.debug("a frame was not understood: %s", error)
        return None


def _address(endpoint: str) -> tuple[tuple[str, int], bool]:
    """Host and port of `ws://HOST:PORT/ws` or `wss://HOST/ws`, and whether it is spoken to by TLS.
    A token is never sent to another machine without.
    """
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    tls = parts.scheme == "wss"
    port = port or (443 if tls else None)
    known = parts.scheme in ("ws", "wss") and parts.hostname and port
    if not known or not parts.hostname or not port or parts.username or parts.query:
        raise UsageError(
            "The gateway endpoint is no address of the form ws://HOST:PORT/ws or wss://HOST/ws.",
            remedy="A running daemon writes its own into ipc/gateway-endpoint in the workspace.",
        )
    if not tls and not _is_here(parts.hostname):
        raise UsageError(
            "The gateway endpoint is on another machine: ws:// would send the token in the clear.",
            remedy="Use wss:// to a reverse proxy there (docs/access.md), or an SSH tunnel.",
        )
    return (parts.hostname, port), tls


def _is_here(host: str) -> bool:
    """Whether every address of `host` is one of this machine's; True if it has none."""
    with contextlib.suppress(OSError):
        for family, _, _, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM):
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                try:
                    probe.bind(address)
                except OSError:
                    return False
    return True


def _refused(status: int) -> OxydraError:
    if status == 401:
        return RefusedError(
            "The daemon refused the token: it is wrong, or it was replaced since.",
            remedy="The current one is in ipc/gateway-token in the workspace.",
        )
    if status == 403:
        return RefusedError(
            "The daemon refused this client's address.",
            remedy="Connect by a loopback address, or list the host under [gateway].",
            code="forbidden",
        )
    return RefusedError(f"The daemon refused the connection (HTTP {status}).", code="refused")


def _close_reason(data: bytes) -> str:
    """Why a peer closed: the code and the reason of a close frame (RFC 6455, section 5.5.1)."""
    if len(data) < 2:
        return "the daemon closed the connection"
    (code,) = struct.unpack_from("!H", data)
    reason = data[2:].decode("utf-8", "replace")
    known = {1001: "the daemon is going away", 1013: "this client read too slowly"}
    return reason or known.get(code, f"the daemon closed the connection with code {code}")


def into(
    events: Callable[[Frame | Link], None], locate: Locate, user_id: str, **how: Any
) -> GatewayClient:
    """A client to be entered, for whose caller frames and links are one stream of `events`; `how`
    is the rest of what it takes.
    """
    endpoint, token = locate()
    return GatewayClient(
        endpoint, token, user_id, on_frame=events, on_link=events, locate=locate, **how
    )
