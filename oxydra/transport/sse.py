"""Server-sent events from a stream of bytes (WHATWG HTML, section "Server-sent events").

sseclient-py parses the events; this file feeds it whole events, so that an event that came in many
pieces is not copied once for each, and adds what it lacks: a size limit, a byte-order mark taken
off, and an error where the text is not UTF-8. Pure: any iterable of bytes will do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from oxydra.errors import TransportError

MAX_EVENT = 8 << 20  # bytes of one event
BOM = b"\xef\xbb\xbf"
_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")


class SseEvent(Protocol):
    """One dispatched event: `event` is its name, `message` if the server gave none; `id` and
    `retry` (milliseconds) are what it said of them.
    """

    id: str | None
    event: str
    data: str
    retry: str | None


def sse(chunks: Iterable[bytes], *, max_event: int = MAX_EVENT) -> Iterator[SseEvent]:
    """The events of `chunks`, each as soon as its last byte is there.

    An event that the end of the body left without its blank line is still yielded: whoever needs
    the whole answer must demand its end marker. Raises `TransportError` of kind `too_large` for an
    event above `max_event` bytes (give or take one chunk) and of kind `encoding` for bad UTF-8.
    """
    from sseclient import SSEClient

    try:
        yield from SSEClient(_whole_events(chunks, max_event)).events()
    except UnicodeDecodeError:
        raise TransportError(
            "The answer's text is not valid UTF-8.",
            remedy="Something between here and the server may damage it: try again.",
            kind="encoding",
            retryable=True,
        ) from None


def _whole_events(chunks: Iterable[bytes], max_event: int) -> Iterator[bytes]:
    """`chunks` cut anew, so that each ends where an event ends; the last may not."""
    pending = bytearray()
    first = True
    for chunk in chunks:
        if not pending and not first and chunk.endswith(_ENDS):
            yield chunk
            continue
        scan_from = max(0, len(pending) - 3)
        pending += chunk
        if end := _end_of_events(pending, scan_from):
            whole = bytes(pending[:end])
            del pending[:end]
            yield whole.removeprefix(BOM) if first else whole
            first = False
        if len(pending) > max_event:
            raise TransportError(
                f"The answer holds an event of more than {max_event / (1 << 20):.3g} MB.",
                remedy="That is no stream a model writes: check the address.",
                kind="too_large",
            )
    if pending:
        yield bytes(pending).removeprefix(BOM) if first else bytes(pending)


def _end_of_events(data: bytearray, scan_from: int) -> int:
    """Where the last whole event in `data` ends, 0 if none does."""
    if data.endswith(_ENDS):
        return len(data)
    found = 0
    for end in _ENDS:
        at = data.rfind(end, scan_from)
        if at >= 0:
            found = max(found, at + len(end))
    return found
