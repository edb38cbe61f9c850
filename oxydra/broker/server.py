"""Answers the channels that guests open: requests, and the shell's connections.

Each channel is served on a thread of its own, `oxydra-egress-<n>`, which ends with it; `stop`
resets them all. What a guest sends is one frame of JSON and a body: nothing of HTTP is parsed here
but what requests parses of the answer. A request leaves through the direct transport, which adds
the key, resolves the name itself and dials the address it has checked; the answer is passed on as
it comes, without what it may reflect of a key. Everything is counted and written to the audit log.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from oxydra.broker.audit import AuditLog, Exchange, utc_day
from oxydra.broker.destinations import GUESTS, Destinations, GuestName
from oxydra.broker.quota import Quota
from oxydra.errors import (
    Cancelled,
    FrameError,
    OxydraError,
    PolicyDenied,
    TransportError,
)
from oxydra.frames import check_fields, pack, read_frame
from oxydra.mux import Channel
from oxydra.relay import Relay
from oxydra.scrub.exact import ExactScrubber
from oxydra.threads import CancelToken, Deadline, Service
from oxydra.transport import DirectConfig, DirectTransport, HttpRequest
from oxydra.types import Json

if TYPE_CHECKING:
    from oxydra.transport.line import Resolve

log = logging.getLogger(__name__)

MAX_HEAD = 64 << 10
MAX_BODY = 64 << 20
MAX_BODIES = 256 << 20  # of all requests that are being taken in or sent
MAX_OPEN = 400  # channels of all guests at once
REQUEST_SECONDS = 60.0  # that a guest may be silent while it sends
ANSWER_SECONDS = 600.0  # that a guest may take nothing of an answer
CONNECT_SECONDS = 15.0
HIDDEN = ("connection", "content-length", "content-encoding", "set-cookie", "transfer-encoding")


class Broker:
    """The broker of one user."""

    def __init__(
        self,
        destinations: Destinations,
        quota: Quota,
        audit: AuditLog,
        secrets: list[str],
        *,
        resolve: Resolve | None = None,
    ) -> None:
        """`secrets` must neither come back in an answer nor leave in a request's body. `audit` is
        the broker's from here on. `resolve(host, port)` stands in for `socket.getaddrinfo`.
        """
        self._destinations = destinations
        self._quota = quota
        self._audit = audit
        self._scrubber = ExactScrubber(secrets)
        self._transports = {
            guest: DirectTransport(
                destinations.credentials(guest),
                DirectConfig(egress=destinations.local(guest)),
                resolve=resolve,
            )
            for guest in GUESTS
        }
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._open: set[_Exchange] = set()
        self._bodies = 0  # bytes
        self._limit_told = float("-inf")  # when a refusal by a limit was last written down
        self._stopped = False
        self._relay = Relay()

    def warm(self) -> None:
        """Do in idle time what the first request would wait for."""
        self._transports["agent"].warm()

    def used(self) -> Json:
        """Today's requests and bytes, for `status`."""
        requests, size = self._quota.used()
        return {"requests_today": requests, "bytes_today": size}

    def accept(self, guest: GuestName, info: Json, channel: Channel) -> None:
        """Serve a channel that a guest has opened; returns at once. For the mux's thread, which
        bounds how many there are.
        """
        service = Service(f"egress-{next(self._numbers)}", lambda _: self._serve(exchange))
        exchange = _Exchange(guest, info, channel, service)
        with self._lock:
            if not self._stopped:
                self._open.add(exchange)
                service.start()

    def stop(self, timeout: float = 5.0) -> None:
        """End every exchange and forget the connections; idempotent."""
        with self._lock:
            self._stopped = True
            left = list(self._open)
        for exchange in left:
            exchange.token.cancel("the broker stops")
            exchange.channel.reset("the broker stops")
        deadline = Deadline.after(timeout)
        for exchange in left:
            exchange.service.stop(deadline.remaining())
        self._relay.stop()
        for transport in self._transports.values():
            transport.close()
        self._audit.close()

    # ----------------------------------------------------------------------------- one channel

    def _serve(self, exchange: _Exchange) -> None:
        """Answer one channel to its end, whatever happens."""
        channel = exchange.channel
        channel.on_change = exchange.changed
        exchange.changed()  # it may have ended before
        serve = {"http": self._request, "connect": self._connection}.get(exchange.kind)
        try:
            self._quota.admit(time.monotonic(), utc_day())  # what is refused counts too
            if serve is None:
                raise PolicyDenied("There is no such service.")
            if len(self._open) > MAX_OPEN:
                raise TransportError("Too many requests at once.", kind="busy", retryable=True)
            serve(exchange)
            exchange.verdict = "allowed"
        except Cancelled:
            exchange.verdict = "cancelled"
            channel.reset(exchange.token.reason)
        except OxydraError as error:
            if exchange.refuse(error, self._scrubber.text):
                exchange.logged = self._told_of_limit()
        except OSError as error:  # the guest's end of the channel
            exchange.verdict, exchange.reason = "cancelled", str(error)
            channel.reset("the channel broke")
        except Exception:
            log.exception("a request of the %s guest failed", exchange.guest)
            exchange.refuse(
                TransportError("The broker failed; see runner.log.", kind="broken"), str
            )
        finally:
            with self._lock:
                self._open.discard(exchange)
                self._bodies -= exchange.length
            if exchange.logged:
                self._audit.add(exchange.row())

    def _told_of_limit(self) -> bool:
        """Whether a refusal by a limit is written down, as one a minute is: else a guest could push
        what it did out of the log by asking for more.
        """
        now = time.monotonic()
        with self._lock:
            due = now - self._limit_told >= 60
            if due:
                self._limit_told = now
        return due

    def _request(self, exchange: _Exchange) -> None:
        request = self._read_request(exchange)
        exchange.destination = f"{request.method[:16]} {_origin(request.url)}"
        if self._scrubber.holds(request.body, request.url, *request.headers.values()):
            raise PolicyDenied(
                "The request holds a key in the clear, and was not sent.",
                remedy="Look where the key came from: no conversation or file should hold it.",
            )
        request, exchange.route = self._destinations.admit(exchange.guest, request)
        self._quota.count(len(request.body))
        exchange.sent = len(request.body)
        request = replace(request, on_wait=exchange.flush)
        with self._transports[exchange.guest].open(request, exchange.token) as stream:
            exchange.status = stream.status
            exchange.channel.settimeout(ANSWER_SECONDS)
            head = {"status": stream.status, "headers": self._passed_on(stream.headers)}
            exchange.begun = True
            exchange.pending.append(pack("response", head))
            clean = self._scrubber.stream()
            for chunk in stream:
                exchange.received += len(chunk)
                self._quota.count(len(chunk))
                exchange.pending.append(clean.feed(chunk))
            exchange.pending.append(clean.close())
        exchange.flush(end=True)  # the connection is free for what the guest asks next

    def _read_request(self, exchange: _Exchange) -> HttpRequest:
        """What the guest asks for. Raises `FrameError`, `TransportError` or OSError."""
        channel = exchange.channel
        channel.settimeout(REQUEST_SECONDS)
        op, head = read_frame(channel.recv, MAX_HEAD)
        if op != "request":
            raise FrameError("A request begins with a frame `request`.")
        check_fields(op, head)
        size = int(head["length"])
        if not 0 <= size <= MAX_BODY:
            raise TransportError(
                f"The request is larger than {MAX_BODY >> 20} MB.",
                remedy="Send less: fewer or smaller attachments.",
                kind="too_large",
            )
        with self._lock:
            if self._bodies + size > MAX_BODIES:
                raise TransportError("Too much is being sent.", kind="busy", retryable=True)
            self._bodies += size
            exchange.length = size
        body = bytearray()
        while len(body) < size:
            piece = channel.recv(size - len(body))
            if not piece:
                raise FrameError("The request ended within its body.")
            body += piece
        return _http_request(head, bytes(body))

    def _connection(self, exchange: _Exchange) -> None:
        """Connect the shell to a host and leave the rest to the relay."""
        check_fields("connect", exchange.info)
        host, port = str(exchange.info["host"]), int(exchange.info["port"])
        exchange.destination = f"{host[:255]}:{port}"
        exchange.route = "shell"
        if exchange.guest != "shell":
            raise PolicyDenied("Only the shell connects; everybody else makes requests.")
        place = self._destinations.admit_connection(host, port)
        shell = self._transports["shell"]
        sock = shell.dial(place.host, place.port, CONNECT_SECONDS, exchange.token)
        exchange.channel.settimeout(ANSWER_SECONDS)
        try:
            exchange.channel.sendall(pack("response", {"status": 200, "headers": {}}))
        except BaseException:
            sock.close()
            raise
        exchange.verdict = "allowed"
        exchange.logged = False  # here; it is when the connection ends

        def closed(received: int, sent: int) -> None:
            exchange.sent, exchange.received = sent, received
            self._audit.add(exchange.row())

        self._relay.join(sock, exchange.channel, on_closed=closed, on_bytes=self._quota.count)

    def _passed_on(self, headers: Mapping[str, str]) -> dict[str, str]:
        clean = self._scrubber.text
        return {name: clean(value) for name, value in headers.items() if name not in HIDDEN}


class _Exchange:
    """One channel on its way, and what the audit log is told of it."""

    def __init__(self, guest: GuestName, info: Json, channel: Channel, service: Service) -> None:
        self.guest: GuestName = guest
        self.info = info
        self.kind = str(info.get("kind"))[:20]
        self.channel = channel
        self.service = service
        self.token = CancelToken()
        self.length = 0  # bytes that its body takes of `MAX_BODIES`
        self.begun = False  # a response is under way
        self.logged = True  # its row is written when it has been served
        self.pending: list[bytes] = []  # of the answer: what arrived together leaves together
        self.destination = self.route = self.reason = ""
        self.verdict = "failed"
        self.status = self.sent = self.received = 0
        self._since = time.monotonic()

    def changed(self) -> None:
        """The channel was reset: whoever waits for the answer is not there any more."""
        if self.channel.error:
            self.token.cancel(self.channel.error)

    def flush(self, end: bool = False) -> None:
        """Pass on what there is of the answer: whenever more has to be waited for, and at the end.
        Raises OSError.
        """
        data = b"".join(self.pending)
        self.pending.clear()
        if end:
            self.channel.finish(data)
        elif data:
            self.channel.sendall(data)

    def refuse(self, error: OxydraError, clean: Callable[[str], str]) -> bool:
        """Tell the guest, in a frame or, once the answer has begun, by the reset's reason; whether
        it was a limit before anything was done.
        """
        over_limit = isinstance(error, TransportError) and error.kind == "limit"
        self.verdict = "denied" if isinstance(error, PolicyDenied) or over_limit else "failed"
        self.reason = clean(error.message)[:300]
        said = {
            "code": error.code,
            "message": clean(error.message),
            "remedy": clean(error.remedy),
            "kind": getattr(error, "kind", "broken"),
            "retryable": getattr(error, "retryable", False),
            "location": clean(getattr(error, "location", "")),
        }
        with contextlib.suppress(OSError):
            if self.begun:
                self.flush()
                self.channel.reset(json.dumps(said))
            else:
                self.channel.finish(pack("error", said))
        return over_limit and not self.begun

    def row(self) -> Exchange:
        return Exchange(
            guest=self.guest,
            kind=self.kind,
            destination=self.destination,
            verdict=self.verdict,
            route=self.route,
            status=self.status,
            sent=self.sent,
            received=self.received,
            milliseconds=int((time.monotonic() - self._since) * 1000),
            reason=self.reason,
        )


def _http_request(head: Json, body: bytes) -> HttpRequest:
    """Raises `FrameError`."""
    headers = head["headers"]
    if not all(isinstance(value, str) for value in headers.values()) or len(headers) > 64:
        raise FrameError("The headers are not text.")
    deadline = head.get("deadline")
    return HttpRequest(
        method=head["method"],
        url=head["url"],
        headers=headers,
        body=body,
        credential=head.get("credential") or "",
        connect_timeout=min(max(head["connect_timeout"], 0.1), 120.0),
        idle_timeout=min(max(head["idle_timeout"], 0.1), 3600.0),
        deadline=Deadline.after(None if deadline is None else max(deadline, 0.0)),
        max_bytes=max(head["max_bytes"], 0),
        guarded=bool(head.get("guarded")),
    )


def _origin(url: str) -> str:
    """Scheme, host and port as they are written, which is all of a URL that is kept."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"[:300]
    except ValueError:
        return "an address that makes no sense"
