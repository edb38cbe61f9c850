"""Server-sent events from bytes, however they were cut."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from oxydra.errors import TransportError
from oxydra.transport import sse


def events(*chunks: bytes, **limits: int) -> list[tuple[str, str]]:
    return [(event.event, event.data) for event in sse(chunks, **limits)]


STREAM = (
    b": a comment\n\n"
    b"data: one\n\n"
    b"event: named\ndata: two\ndata:  lines\n\n"
    b"data: caf\xc3\xa9 \xf0\x9f\x98\x80\r\n\r\n"
    b"data: cr\r\r"
    b"id: 7\nretry: 5\ndata:[DONE]\n\n"
)
EVENTS = [
    ("message", "one"),
    ("named", "two\n lines"),
    ("message", "café 😀"),
    ("message", "cr"),
    ("message", "[DONE]"),
]


def test_events_however_their_bytes_are_cut() -> None:
    assert events(STREAM) == EVENTS
    for size in (1, 2, 3, 7, 64):
        cut = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
        assert events(*cut) == EVENTS
    for at in range(len(STREAM)):
        assert events(STREAM[:at], STREAM[at:]) == EVENTS


def test_an_event_is_there_with_its_last_byte() -> None:
    fed: list[int] = []

    def feed() -> Iterator[bytes]:
        for number, chunk in enumerate((b"data: a\n", b"\n", b"data: b\n\nda", b"ta: c\n\n")):
            fed.append(number)
            yield chunk

    stream = sse(feed())
    assert (next(stream).data, fed) == ("a", [0, 1])
    assert (next(stream).data, fed) == ("b", [0, 1, 2])
    assert (next(stream).data, fed) == ("c", [0, 1, 2, 3])


def test_a_byte_order_mark_is_taken_off() -> None:
    data = b"\xef\xbb\xbfdata: one\n\n"
    assert events(data) == [("message", "one")]
    assert events(*(data[i : i + 1] for i in range(len(data)))) == [("message", "one")]


def test_an_event_without_its_end_is_still_seen() -> None:
    assert events(b"data: one\n\ndata: [DONE]") == [("message", "one"), ("message", "[DONE]")]


def test_bad_utf8() -> None:
    with pytest.raises(TransportError, match="UTF-8") as caught:
        events(b"data: fine\n\ndata: \xff\xfe\n\n")
    assert caught.value.kind == "encoding"


def test_an_event_above_the_limit() -> None:
    piece = b"x" * 1000
    stream = sse([b"data: ", *[piece] * 100, b"\n\n"], max_event=50_000)
    with pytest.raises(TransportError) as caught:
        next(stream)
    assert caught.value.kind == "too_large"
    large = b"data: " + b"x" * (7 << 20) + b"\n\n"
    (event,) = sse(large[at : at + 65536] for at in range(0, len(large), 65536))
    assert len(event.data) == 7 << 20
