"""What a caller of the transport sees: a request, its streamed response, and the Protocol.

No thread runs here and nothing here is imported that costs start-up time. An `HttpStream` belongs
to the thread that opened it; only its cancel token is touched by others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol
from urllib.parse import urlsplit

from oxydra.errors import Cancelled, TransportError
from oxydra.threads import CancelToken, Deadline

HIDDEN = "[key]"  # what a reflected key is replaced with
RETRYABLE = (408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529)  # statuses that may pass
DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Credential:
    """A key as it goes out: the whole value of one header, for one origin (`scheme://host:port`);
    or, where a service wants it there, what takes the place of `placeholder` in the URL's path.

    Its value never shows in a repr, a log line or an error.
    """

    header: str
    value: str = field(repr=False)
    origin: str
    placeholder: str = ""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One outbound request. `credential` is the NAME of a credential, which the transport adds.

    `connect_timeout` covers resolving, connecting and the TLS handshake; `idle_timeout` is the
    longest silence while sending or receiving; both are seconds. Past `deadline` the request fails
    in whatever phase it is. `max_bytes` bounds the decoded body. `guarded` says that a model or a
    page chose the URL: only a public address or an allowed local service is dialled, by the rules
    of `oxydra/policy/network.py`, and `PolicyDenied` is raised for any other. `on_wait` is called
    whenever bytes have to be waited for.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    credential: str = ""
    connect_timeout: float = 10.0
    idle_timeout: float = 180.0
    deadline: Deadline = field(default_factory=lambda: Deadline.after(None))
    max_bytes: int = 64 << 20
    guarded: bool = False
    on_wait: Callable[[], None] = lambda: None


class HttpStream:
    """A response whose headers have arrived and whose body is read as it comes.

    `headers` has lower-case names. Iterating yields non-empty chunks as soon as their bytes arrive
    and ends only at a body that ended as HTTP says it must; otherwise it raises `TransportError`,
    or `Cancelled` once the token was cancelled. Use it in a `with` block, on one thread.
    """

    def __init__(
        self,
        *,
        status: int,
        headers: Mapping[str, str],
        read: Callable[[], bytes],
        release: Callable[[bool], None],
        token: CancelToken,
        max_bytes: int,
        where: str,
        secret: str = "",
    ) -> None:
        """`read` blocks for the next bytes (b"" at the end); `release(finished)` gives the
        connection back; `where` names the peer in errors; `secret` is hidden by `scrub`.
        """
        self.status = status
        self.headers = headers
        self.bytes_read = 0
        self.finished = False
        self._read = read
        self._release: Callable[[bool], None] | None = release
        self._token = token
        self._max_bytes = max_bytes
        self._where = where
        self._secrets = _spellings(secret)

    def __enter__(self) -> HttpStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[bytes]:
        read, token = self._read, self._token
        while not token.cancelled:
            chunk = read()
            if token.cancelled:  # a cancelled read looks like the end of the body
                break
            if not chunk:
                self.finished = True
                return
            self.bytes_read += len(chunk)
            if self.bytes_read > self._max_bytes:
                raise too_large(self._where, self._max_bytes)
            yield chunk
        raise Cancelled(token.reason)

    def read(self) -> bytes:
        """The whole body."""
        return b"".join(self)

    def text(self, limit: int = 65536) -> str:
        """The beginning of the body for an error message: at most about `limit` bytes, scrubbed;
        a body that breaks off gives what had arrived.
        """
        parts: list[bytes] = []
        try:
            for chunk in self:
                parts.append(chunk)
                if self.bytes_read >= limit:
                    break
        except TransportError:
            pass  # the status is already known, and says more than the broken body
        return self.scrub(b"".join(parts)[:limit].decode("utf-8", "replace"))

    def scrub(self, text: str) -> str:
        """`text` without the key this request carried, should the peer have reflected it."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text

    def close(self, complete: bool = False) -> None:
        """Give the connection back. `complete` says that the caller has all it wanted though the
        body has not ended, so that what is left (an end marker) may be drained for reuse.
        """
        release, self._release = self._release, None
        if release is not None:
            release(complete)


class Transport(Protocol):
    """Whatever carries requests out: the direct transport, later the broker's."""

    def open(self, request: HttpRequest, token: CancelToken) -> HttpStream:
        """Send `request` and return once the response's headers have arrived, whatever their
        status; redirects are refused, never followed.

        Raises `TransportError`, or `Cancelled` within milliseconds of the token's cancellation in
        any phase.
        """
        ...

    def close(self) -> None:
        """Close the idle connections; those in use close when their streams do."""
        ...


def too_large(where: str, max_bytes: int) -> TransportError:
    """The error for a body above its request's limit."""
    return TransportError(
        f"The answer of {where} is larger than {max_bytes / (1 << 20):.3g} MB, and was cut off.",
        remedy="Ask for less, or for a part of it.",
        kind="too_large",
    )


def origin_of(url: str) -> str:
    """`scheme://host[:port]` of a URL, in lower case and without a default port; raises
    `TransportError` of kind `url` where there is none, or where the URL carries a user or password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise TransportError(
            "The address is not a complete http:// or https:// URL.",
            remedy="Write it as http://HOST:PORT or https://HOST.",
            kind="url",
        )
    if "@" in parts.netloc:
        raise TransportError(
            f"The address of {parts.hostname} carries a user name or password.",
            remedy="Take it out of the URL and configure it as a key.",
            kind="url",
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    shown = "" if port in (None, DEFAULT_PORTS[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{host}{shown}"


def _spellings(secret: str) -> tuple[str, ...]:
    """The header's value and the key within it (`Bearer KEY`), longest first."""
    key = secret.rpartition(" ")[2]
    return tuple(dict.fromkeys(part for part in (secret, key) if len(part) >= 4))
