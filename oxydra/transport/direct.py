"""The transport that dials out by itself, adding credentials it was given by name.

It takes no proxy, netrc entry or cookie from the environment, and follows no redirect: a key goes
to the origin it was configured for, or nowhere. Connections stay open between requests, each in the
hands of one request at a time, whichever thread makes it. No thread of its own runs here; a look-up
of a name runs on `oxydra-resolve` (see `line`).
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from oxydra.errors import TransportError
from oxydra.policy.network import Egress
from oxydra.threads import CancelToken
from oxydra.transport.base import (
    Credential,
    HttpRequest,
    HttpStream,
    origin_of,
    too_large,
)
from oxydra.version import VERSION

if TYPE_CHECKING:
    from oxydra.transport.line import Line, Resolve

REDIRECTS = (301, 302, 303, 307, 308)

Peer: TypeAlias = tuple[str, bool]
"""An origin, and whether the connection was dialled guarded: one that was not is no way around."""


@dataclass(frozen=True, slots=True)
class DirectConfig:
    """How the direct transport dials.

    `ca_file` replaces the trusted roots; `keep` is how many idle connections stay open to each
    origin and `keep_seconds` for how long one may lie idle and still be used again. `egress` is
    what guarded requests may reach besides public addresses.
    """

    ca_file: str = ""
    keep: int = 8
    keep_seconds: float = 240.0
    egress: Egress = field(default_factory=Egress)


class DirectTransport:
    """See the `Transport` Protocol. Safe to use from any number of threads."""

    def __init__(
        self,
        credentials: Mapping[str, Credential] | None = None,
        config: DirectConfig | None = None,
        *,
        resolve: Resolve | None = None,
    ) -> None:
        """`credentials` is looked at for each request, so keys may change under it.
        `resolve(host, port)` stands in for `socket.getaddrinfo`.
        """
        self._credentials = {} if credentials is None else credentials
        self._config = config or DirectConfig()
        self._resolve = resolve or _look_up
        self._lock = threading.Lock()
        self._warming = threading.Lock()
        self._context: Any = None
        self._idle: dict[Peer, list[tuple[float, Line]]] = {}
        self._closed = False

    def warm(self) -> None:
        """Import requests and load the trusted roots: about 0.15 s of CPU."""
        with self._warming:
            if self._context is None:
                from oxydra.transport.line import tls_context

                self._context = tls_context(self._config.ca_file)

    def open(self, request: HttpRequest, token: CancelToken) -> HttpStream:
        """Send `request` and return when the headers of its response are there."""
        token.check()
        origin = origin_of(request.url)
        headers, secret = self._headers(request, origin)
        request = self._addressed(request)
        self.warm()
        from oxydra.transport.line import FAILURES, broken

        peer = (origin, request.guarded)
        line = self._borrow(peer)
        with contextlib.ExitStack() as undo:
            undo.callback(self._give_back, peer, line)
            undo.callback(line.finish, drain=False)
            undo.enter_context(token.on_cancel(line.abort))
            try:
                response = line.send(request, headers)
            except TransportError:
                token.check()
                raise
            except FAILURES as error:
                token.check()
                raise broken(error, line.where) from None
            token.check()
            answer = {name.lower(): value for name, value in response.headers.items()}
            _refuse(response.status_code, answer, request, line.where)
            held = undo.pop_all()

        def read() -> bytes:
            try:
                return line.read1()
            except TransportError:
                token.check()
                raise
            except FAILURES as error:
                token.check()
                raise broken(error, line.where) from None

        def release(complete: bool) -> None:
            with held:
                if complete and not token.cancelled:
                    line.finish(drain=True)

        return HttpStream(
            status=response.status_code,
            headers=answer,
            read=read,
            release=release,
            token=token,
            max_bytes=request.max_bytes,
            where=line.where,
            secret=secret,
        )

    def dial(self, host: str, port: int, seconds: float, token: CancelToken) -> socket.socket:
        """A guarded connection for whoever speaks another protocol than HTTP over it; the caller
        closes it. Raises `PolicyDenied`, `TransportError` or `Cancelled`.
        """
        token.check()
        self.warm()
        from oxydra.transport.line import Line

        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        line = Line(where, self._context, self._resolve, self._config.egress.check)
        with token.on_cancel(line.abort):
            try:
                return line.dial(host, port, seconds)
            except TransportError:
                token.check()
                raise

    def close(self) -> None:
        """Close the idle connections; those in use close when their streams do."""
        with self._lock:
            self._closed = True
            lines = [line for kept in self._idle.values() for _, line in kept]
            self._idle.clear()
        for line in lines:
            line.close()

    def _headers(self, request: HttpRequest, origin: str) -> tuple[dict[str, str], str]:
        """The headers to send, and the secret among them."""
        headers = {"User-Agent": f"oxydra/{VERSION}", "Accept": "*/*", **request.headers}
        name = request.credential
        if not name:
            return headers, ""
        credential = self._credentials.get(name)
        if credential is None:
            raise TransportError(
                f"There is no key named {name}.",
                remedy=f"Give it one with `oxydra-runner key set {name}`.",
                kind="credential",
            )
        if credential.origin != origin:
            raise TransportError(
                f"The key {name} belongs to {credential.origin} and was not sent to {origin}.",
                remedy="Configure the key together with this address, if you trust it.",
                kind="credential",
            )
        if not credential.value.isascii() or not credential.value.isprintable():
            raise TransportError(
                f"The key {name} holds characters that no key has.",
                remedy="Look for a line break or a typographic quote that was pasted with it.",
                kind="credential",
            )
        if not credential.placeholder:
            headers[credential.header] = credential.value
        return headers, credential.value

    def _addressed(self, request: HttpRequest) -> HttpRequest:
        """The request with its key in the URL, for services that take it there."""
        credential = self._credentials.get(request.credential)
        if credential is None or not credential.placeholder:
            return request
        parts = urlsplit(request.url)
        path = parts.path.replace(credential.placeholder, credential.value, 1)
        return replace(request, url=parts._replace(path=path).geturl())

    def _borrow(self, peer: Peer) -> Line:
        oldest = time.monotonic() - self._config.keep_seconds
        stale: list[Line] = []
        found: Line | None = None
        with self._lock:
            kept = self._idle.get(peer, [])
            while kept and found is None:
                since, line = kept.pop()  # the one used last: the others may grow stale
                if since >= oldest:
                    found = line
                else:
                    stale.append(line)
        for line in stale:
            line.close()
        if found is not None:
            found.rearm()
            return found
        from oxydra.transport.line import Line

        origin, guarded = peer
        admit = self._config.egress.check if guarded else None
        return Line(urlsplit(origin).netloc, self._context, self._resolve, admit)

    def _give_back(self, peer: Peer, line: Line) -> None:
        with self._lock:
            kept = self._idle.setdefault(peer, [])
            if not self._closed and len(kept) < self._config.keep:
                kept.append((time.monotonic(), line))
                return
        line.close()


def _refuse(status: int, headers: Mapping[str, str], request: HttpRequest, where: str) -> None:
    """Raise for an answer that is refused by its headers alone."""
    location = headers.get("location", "")
    if status in REDIRECTS and location:
        try:
            target = origin_of(location) if "://" in location else "another path of its own"
        except TransportError:
            target = "an address that makes no sense"
        raise TransportError(
            f"{where} redirects to {target}; redirects are not followed, so no key went there.",
            remedy="If you trust the new address, configure it instead.",
            kind="redirect",
            location=location,
        )
    length = headers.get("content-length", "")
    if length.isdigit() and int(length) > request.max_bytes:
        raise too_large(where, request.max_bytes)


def _look_up(host: str, port: int) -> list[Any]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
