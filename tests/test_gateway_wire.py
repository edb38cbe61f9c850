"""What crosses the gateway's sockets, without a socket: requests, WebSocket frames, and the count
of failures. The frames are checked against a reference that reads all bytes at once.
"""

from __future__ import annotations

import os
import struct
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oxydra.gateway.connection import FrameReader, ProtocolError, close_payload, frame
from oxydra.gateway.http import RefusedError, Request, RequestReader
from oxydra.gateway.server import FailureLimiter, peer_network
from tests.gateway_peer import BINARY, PING, PONG, TEXT, masked

# -------------------------------------------------------------------------------- requests


def read_request(data: bytes, split: int = 0, max_body: int = 0) -> Request | None:
    reader = RequestReader("192.0.2.1", max_body)
    chunks = [data[i : i + split] for i in range(0, len(data), split)] if split else [data]
    results = [reader.feed(chunk) for chunk in chunks]
    assert not any(results[:-1])
    return results[-1]


@pytest.mark.parametrize("split", [0, 1, 2, 3, 7])
def test_request_is_read_however_it_is_split(split: int) -> None:
    data = b"GET /a/b?c=%20d HTTP/1.1\r\nHost: x\r\nX-One:  1 \r\nx-one:2\r\nEmpty:\r\n\r\n"
    request = read_request(data, split)
    assert request is not None
    assert (request.method, request.path, request.query) == ("GET", "/a/b", "c=%20d")
    assert request.headers == {"host": "x", "x-one": "1, 2", "empty": ""}
    assert request.peer == "192.0.2.1"
    assert not request.upgrades


def test_request_body_is_read_to_its_length_and_the_rest_is_kept() -> None:
    reader = RequestReader("", 10)
    assert reader.feed(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab") is None
    request = reader.feed(b"cdef")
    assert request is not None
    assert request.body == b"abcd"
    assert reader.rest == b"ef"


HOST = b"Host: x\r\n"
CHUNKED = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: Chunked\r\n\r\n"


@pytest.mark.parametrize("split", [0, 1, 2, 3, 7, 1000])
def test_a_body_in_chunks_is_one_body(split: int) -> None:
    data = CHUNKED + b"3\r\nabc\r\n0A;a=b\r\n0123456789\r\n1 ;x\r\n\n\r\n"
    data += b"0\r\nX-Trailer: read past\r\n\r\n"
    request = read_request(data, split, max_body=14)
    assert request is not None
    assert request.body == b"abc0123456789\n"


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.data())
def test_chunks_are_read_however_they_are_cut(parts: list[bytes], data: st.DataObject) -> None:
    sent = CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    sent += b"0\r\n\r\nrest"
    reader, request = RequestReader("", 10_000), None
    while sent and request is None:
        size = data.draw(st.integers(1, len(sent)))
        request = reader.feed(sent[:size])
        sent = sent[size:]
    assert request is not None
    assert request.body == b"".join(parts)
    assert reader.rest + sent == b"rest"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"b\r\n", 413),
        (b"6\r\nabcdef\r\n5\r\n", 413),
        (b"ffffffff\r\n", 413),
        (b"fffffffff\r\n", 400),
        (b"-1\r\n", 400),
        (b"+1\r\n", 400),
        (b"0x1\r\n", 400),
        (b" 1\r\n", 400),
        (b"\r\n", 400),
        (b"1\nab", 400),
        (b"1\r\nab\r\n", 400),
        (b"1\r\na\n\r0\r\n", 400),
        (b"1;\x00\r\n", 400),
        (b"1" * 2000, 400),
        (b"0\r\nno trailer\r\n", 400),
        (b"0\r\n folded: x\r\n", 400),
        (b"0\r\n" + b"A: b\r\n" * 5000, 431),
        (
            (b"1;" + b"x" * 900 + b"\r\na\r\n") * 9
            + b"0\r\n"
            + (b"X: " + b"y" * 900 + b"\r\n") * 12,
            431,
        ),
    ],
)
@pytest.mark.parametrize("split", [0, 1])
def test_what_is_no_chunk_is_refused(body: bytes, expected: int, split: int) -> None:
    with pytest.raises(RefusedError) as caught:
        read_request(CHUNKED + body + b"\r\n" * 2000, split, max_body=10)
    assert caught.value.response.status == expected


def test_a_body_in_chunks_is_not_taken_where_none_is() -> None:
    with pytest.raises(RefusedError) as caught:
        read_request(CHUNKED + b"0\r\n\r\n")
    assert caught.value.response.status == 413


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # a TLS greeting
        (b"\x00", 400),
        (b"\r\n", 400),
        (b"get / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 400),
        (b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET http://x/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /\x80 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /\r\n" + HOST + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\n" + HOST * 2 + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Authorization: a\r\nauthorization: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Origin: a\r\nOrigin: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A : b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\nC: d\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: \x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b": b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 11\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n", 501),
        (b"GET /" + b"a" * 9000, 414),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 65 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * 17000, 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"b" * 17000 + b"\r\n\r\n", 431),
    ],
)
@pytest.mark.parametrize("split", [0, 1])
def test_what_is_not_plainly_http_is_refused(data: bytes, expected: int, split: int) -> None:
    with pytest.raises(RefusedError) as caught:
        read_request(data, split, max_body=10)
    assert caught.value.response.status == expected


def test_failures_leak_away_at_the_limit_per_minute() -> None:
    limiter = FailureLimiter(per_peer=2, overall=5)
    limiter.failed("192.0.2.1", 0.0)
    assert limiter.retry_after("192.0.2.1", 0.0) == 0
    limiter.failed("192.0.2.1", 0.0)
    assert limiter.retry_after("192.0.2.1", 0.0) == 30
    assert limiter.retry_after("192.0.2.2", 0.0) == 0
    assert limiter.retry_after("192.0.2.1", 29.0) == pytest.approx(1.0)
    assert limiter.retry_after("192.0.2.1", 30.0) == 0
    for number in range(5):
        limiter.failed(f"198.51.100.{number}", 100.0)
    assert limiter.retry_after("192.0.2.99", 100.0) == pytest.approx(12.0)


def test_failures_are_counted_for_whoever_controls_the_address() -> None:
    assert peer_network("2001:db8:1:2:3::4") == peer_network("2001:db8:1:2:ffff::1%eth0")
    assert peer_network("2001:db8:1:2::") != peer_network("2001:db8:1:3::")
    assert peer_network("::ffff:192.0.2.1") == peer_network("192.0.2.1") == "192.0.2.1"
    limiter = FailureLimiter(per_peer=1, overall=100_000)
    for number in range(10_000):
        limiter.failed(f"{number}", 0.0)
    assert len(limiter._levels) <= 4096
    assert limiter.retry_after("9999", 0.0) > 0


# ---------------------------------------------------------------------------------- frames


def read_frames(
    chunks: list[bytes], max_message: int = 1 << 20
) -> tuple[list[tuple[int, Any]], int]:
    """What a FrameReader makes of the chunks: messages, and the close code of an error or 0."""
    reader = FrameReader(max_message)
    found: list[tuple[int, Any]] = []
    try:
        for chunk in chunks:
            reader.feed(chunk)
            found.extend(reader.messages())
    except ProtocolError as error:
        return found, error.close_code
    return found, 0


def reference(data: bytes, max_message: int) -> tuple[list[tuple[int, Any]], int]:
    """RFC 6455 section 5 once more, over all bytes at once and byte by byte."""
    found: list[tuple[int, Any]] = []
    kind, message, at = 0, b"", 0
    while len(data) - at >= 2:
        fin, rsv, opcode = data[at] >> 7, data[at] >> 4 & 7, data[at] & 15
        has_mask, size = data[at + 1] >> 7, data[at + 1] & 127
        control = opcode >= 8
        if rsv or not has_mask or opcode not in (0, 1, 2, 8, 9, 10):
            return found, 1002
        if control and (not fin or size > 125):
            return found, 1002
        if not control and (opcode == 0) != (kind != 0):
            return found, 1002
        at += 2
        extra = {126: 2, 127: 8}.get(size, 0)
        if len(data) - at < extra:
            break
        if extra:
            size = int.from_bytes(data[at : at + extra], "big")
            at += extra
        if not control and len(message) + size > max_message:
            return found, 1009
        if len(data) - at < 4 + size:
            break
        mask, payload = data[at : at + 4], data[at + 4 : at + 4 + size]
        payload = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        at += 4 + size
        if control:
            found.append((opcode, payload))
            continue
        kind, message = opcode or kind, message + payload
        if fin:
            try:
                found.append((kind, message.decode() if kind == TEXT else message))
            except UnicodeDecodeError:
                return found, 1007
            kind, message = 0, b""
    return found, 0


def split_at(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


masks = st.binary(min_size=4, max_size=4)
texts = st.text(max_size=60).map(str.encode)
payloads = st.one_of(texts, st.binary(max_size=200), st.just("\u20ac".encode() * 90))


@st.composite
def good_message(draw: st.DrawFn) -> bytes:
    """A message in fragments cut anywhere, control frames between them."""
    parts = split_at(draw(payloads), draw(st.lists(st.integers(0, 200), max_size=4)))
    opcode = draw(st.sampled_from((TEXT, BINARY)))
    out = b""
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        out += masked(0 if number else opcode, part, fin=last, mask=draw(masks))
        if draw(st.booleans()):
            control = draw(st.sampled_from((PING, PONG)))
            out += masked(control, draw(st.binary(max_size=125)), mask=draw(masks))
    return out


@st.composite
def any_frame(draw: st.DrawFn) -> bytes:
    """One frame with any header: reserved bits, opcodes, unmasked, fragmented control, cut off."""
    whole = masked(draw(st.integers(0, 15)), draw(payloads), fin=draw(st.booleans()))
    data = bytearray(whole)
    data[0] |= draw(st.sampled_from((0, 0, 0, 0x10, 0x40)))
    if draw(st.integers(0, 5)) == 0:
        data[1] &= 0x7F
    return bytes(data[: draw(st.sampled_from((len(data), len(data), draw(st.integers(1, 300)))))])


streams = st.lists(st.one_of(good_message(), good_message(), any_frame()), max_size=6).map(b"".join)
cuts = st.lists(st.integers(0, 5000), max_size=20)


@settings(max_examples=300)
@given(data=streams, cuts=cuts, max_message=st.sampled_from((50, 250, 1 << 20)))
def test_frames_are_read_as_the_reference_reads_them(
    data: bytes, cuts: list[int], max_message: int
) -> None:
    expected = reference(data, max_message)
    assert read_frames(split_at(data, cuts), max_message) == expected
    assert read_frames([data[i : i + 1] for i in range(len(data))], max_message) == expected


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70_001])
def test_every_length_encoding_is_read_and_written(size: int) -> None:
    payload = os.urandom(size)
    stream = masked(BINARY, payload) + masked(BINARY, b"next")
    assert read_frames([stream]) == ([(BINARY, payload), (BINARY, b"next")], 0)
    sent = frame(BINARY, payload)
    assert sent[-size:] == payload or not size
    assert len(sent) == size + (2 if size < 126 else 4 if size < 65536 else 10)


def test_an_oversized_message_is_refused_by_its_header_alone() -> None:
    header = struct.pack("!BBQ", 0x82, 0xFF, 1 << 62)
    assert read_frames([header]) == ([], 1009)
    fragments = masked(BINARY, b"x" * 60, fin=False) + masked(0, b"y" * 41)[:2]
    assert read_frames([fragments], max_message=100) == ([], 1009)


def test_a_close_reason_is_cut_between_characters() -> None:
    payload = close_payload(1011, "€" * 100)
    assert len(payload) <= 125
    assert payload[2:].decode() == "€" * 41
