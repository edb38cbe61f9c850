"""The transport of a guest that has no network: every request goes through the runner's broker.

A request is one channel of the guest's stream. On it go a frame `request` and the body, then an
end; back come a frame `response` and the body as it arrives, then an end, or else a frame `error`
(docs/protocol.md). The broker names the credential's value, dials, and keeps connections; this side
imports neither requests nor ssl. No thread runs here: a request blocks its caller.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol
from urllib.parse import urlsplit

from oxydra.errors import FrameError, OxydraError, PolicyDenied, TransportError
from oxydra.frames import pack, read_frame
from oxydra.threads import CancelToken
from oxydra.transport.base import HttpRequest, HttpStream, origin_of
from oxydra.types import Json

FIRST_BYTES = 12 << 10  # that go out with the opening of the channel
READ_BYTES = 64 << 10
MAX_HEAD = 64 << 10
SLACK_SECONDS = 5.0  # the broker's own clocks come first
DRAIN_SECONDS = 0.05  # how long the end may take once the answer was complete


class ByteChannel(Protocol):
    """What is needed of `oxydra.mux.Channel`."""

    @property
    def ready(self) -> bool: ...

    @property
    def hung_up(self) -> bool: ...

    def recv(self, nbytes: int, /) -> bytes: ...

    def finish(self, data: bytes, /) -> None: ...

    def settimeout(self, seconds: float | None, /) -> None: ...

    def reset(self, why: str, /) -> None: ...


OpenChannel = Callable[[bytes, bytes, bool], ByteChannel]
"""`open(info, data, fin)`: a new channel to the broker, on which `data` is under way and, with
`fin`, an end behind it.
"""


class BrokeredTransport:
    """See the `Transport` Protocol. Safe to use from any number of threads."""

    def __init__(self, open_channel: OpenChannel) -> None:
        self._open_channel = open_channel

    def close(self) -> None:
        """There is nothing to close here: channels end with their streams."""

    def open(self, request: HttpRequest, token: CancelToken) -> HttpStream:
        """Send `request` and return when the headers of its response are there."""
        token.check()
        origin_of(request.url)  # a user's mistake is found before it travels
        where = urlsplit(request.url).netloc
        message = pack("request", _head(request)) + request.body
        with ExitStack() as undo:
            try:
                first, rest = message[:FIRST_BYTES], message[FIRST_BYTES:]
                channel = self._open_channel(b'{"kind":"http"}', first, not rest)
                undo.callback(channel.reset, "closed")
                undo.enter_context(token.on_cancel(lambda: channel.reset("cancelled")))
                if rest:
                    _set_clock(channel, request, request.connect_timeout)
                    channel.finish(rest)
                _set_clock(channel, request, request.connect_timeout)
                op, payload = read_frame(channel.recv, MAX_HEAD)
            except (OSError, FrameError) as error:
                token.check()
                raise _lost(error, where) from None
            token.check()
            if op != "response":
                raise _refusal(payload, where)
            held = undo.pop_all()

        def read() -> bytes:
            try:
                if not channel.ready:
                    request.on_wait()
                    _set_clock(channel, request, 0.0)
                return channel.recv(READ_BYTES)
            except OSError as error:
                token.check()
                raise _lost(error, where) from None

        def release(complete: bool) -> None:
            with held:
                if complete and not token.cancelled:
                    _drain(channel)

        return HttpStream(
            status=int(payload["status"]),
            headers={str(name): str(value) for name, value in payload["headers"].items()},
            read=read,
            release=release,
            token=token,
            max_bytes=request.max_bytes,
            where=where,
        )


def _head(request: HttpRequest) -> Json:
    left = request.deadline.remaining()
    return {
        "method": request.method,
        "url": request.url,
        "headers": dict(request.headers),
        "length": len(request.body),
        "credential": request.credential,
        "connect_timeout": request.connect_timeout,
        "idle_timeout": request.idle_timeout,
        "deadline": None if math.isinf(left) else left,
        "max_bytes": request.max_bytes,
        "guarded": request.guarded,
    }


def _set_clock(channel: ByteChannel, request: HttpRequest, more: float) -> None:
    longest = request.idle_timeout + more + SLACK_SECONDS
    channel.settimeout(min(longest, request.deadline.remaining() + SLACK_SECONDS))


def _drain(channel: ByteChannel) -> None:
    """Take the end that follows a complete answer, so that the broker can keep its connection."""
    channel.settimeout(DRAIN_SECONDS)
    try:
        for _ in range(8):
            if channel.hung_up or not channel.recv(READ_BYTES):
                break
    except OSError:
        pass  # then the broker's connection is not used again


def _refusal(payload: Json, where: str) -> OxydraError:
    """The error that the broker describes."""
    message, remedy = str(payload.get("message", "")), str(payload.get("remedy", ""))
    if payload.get("code") == PolicyDenied.code:
        return PolicyDenied(message, remedy=remedy)
    return TransportError(
        message or f"{where} could not be reached.",
        remedy=remedy,
        kind=str(payload.get("kind", "broken")),
        retryable=bool(payload.get("retryable")),
        location=str(payload.get("location", "")),
    )


def _lost(error: Exception, where: str) -> OxydraError:
    """What a channel's end means: the broker's own words, or that there is no broker."""
    if isinstance(error, ConnectionResetError):
        try:
            return _refusal(dict(json.loads(str(error))), where)
        except (ValueError, TypeError):
            pass  # not said by the broker
    if isinstance(error, TimeoutError):
        return TransportError(
            f"The broker does not answer about {where}.",
            remedy="Try again; `oxydra-runner status` shows whether the runner is well.",
            kind="idle",
            retryable=True,
        )
    return TransportError(
        f"The connection to the broker was lost while {where} was asked.",
        remedy="The runner may be restarting: try again.",
        kind="broken",
        retryable=True,
    )
