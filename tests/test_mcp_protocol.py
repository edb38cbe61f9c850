"""mcp.protocol: messages of honest and hostile peers, lines and versions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxydra.errors import FrameError
from oxydra.mcp import protocol
from oxydra.mcp.protocol import Lines, Notification, Reply, Request, RpcError, decode

WORDS = st.text(max_size=20)
PARAMS = st.dictionaries(WORDS, st.none() | st.booleans() | st.integers() | WORDS, max_size=4)
IDS = st.integers(-(1 << 62), 1 << 62) | st.text(max_size=30)


@given(IDS, WORDS, PARAMS)
def test_what_is_written_is_read(id: Any, method: str, params: dict[str, Any]) -> None:
    assert decode(protocol.request(id, method, params)) == Request(id, method, params)
    assert decode(protocol.notification(method, params)) == Notification(method, params)
    assert decode(protocol.reply(id, params)) == Reply(id, params)


def test_a_message_is_one_line() -> None:
    said = protocol.notification("x", {"text": "a\nb\r\u2028c\ud800"})
    assert b"\n" not in said and b"\r" not in said
    assert isinstance(message := decode(said), Notification)
    assert message.params == {"text": "a\nb\r\u2028c?"}


def test_a_refusal_is_read_as_it_was_raised() -> None:
    answer = decode(protocol.refusal(RpcError(protocol.INVALID_PARAMS, "No.", id=7, data=[1])))
    assert isinstance(answer, Reply) and answer.error is not None
    assert (answer.id, answer.error.number, answer.error.message) == (7, -32602, "No.")
    assert answer.error.data == [1]
    unread = decode(protocol.refusal(RpcError(protocol.PARSE_ERROR, "What?")))
    assert isinstance(unread, Reply) and unread.id is None


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("", protocol.PARSE_ERROR),
        ("{", protocol.PARSE_ERROR),
        ("[" * 5000 + "]" * 5000, protocol.PARSE_ERROR),
        ('{"a":' * 200000, protocol.PARSE_ERROR),
        (b"\xff\xfe", protocol.PARSE_ERROR),
        ('{"jsonrpc":"2.0","id":NaN,"result":{}}', protocol.PARSE_ERROR),
        ("1", protocol.INVALID_REQUEST),
        ('[{"jsonrpc":"2.0","id":1,"method":"ping"}]', protocol.INVALID_REQUEST),
        ('{"id":1,"method":"ping"}', protocol.INVALID_REQUEST),
        ('{"jsonrpc":"1.0","id":1,"method":"ping"}', protocol.INVALID_REQUEST),
        ('{"jsonrpc":"2.0","id":1}', protocol.INVALID_REQUEST),
        ('{"jsonrpc":"2.0","id":1,"result":3}', protocol.INVALID_REQUEST),
        ('{"jsonrpc":"2.0","id":null,"method":"ping"}', protocol.INVALID_REQUEST),
        ('{"jsonrpc":"2.0","id":true,"method":"ping"}', protocol.INVALID_REQUEST),
        ('{"jsonrpc":"2.0","id":[1],"method":"ping"}', protocol.INVALID_REQUEST),
        ('{"jsonrpc":"2.0","id":1.5,"method":"ping"}', protocol.INVALID_REQUEST),
        ('{"jsonrpc":"2.0","id":1,"method":["ping"]}', protocol.INVALID_REQUEST),
        ('{"jsonrpc":"2.0","id":1,"method":"ping","params":[1]}', protocol.INVALID_PARAMS),
        ('{"jsonrpc":"2.0","id":"%s","method":"ping"}' % ("x" * 300), protocol.INVALID_REQUEST),
    ],
)
def test_what_is_no_message_is_refused(said: str | bytes, number: int) -> None:
    with pytest.raises(RpcError) as caught:
        decode(said)
    assert caught.value.number == number


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_else(data: bytes) -> None:
    try:
        decode(data)
    except RpcError as error:
        assert error.number in (protocol.PARSE_ERROR, protocol.INVALID_REQUEST)


@pytest.mark.parametrize("error", [None, 3, {}, {"code": "x", "message": 7}, {"message": ""}])
def test_an_error_that_says_nothing_is_one(error: object) -> None:
    answer = decode(json.dumps({"jsonrpc": "2.0", "id": 1, "error": error}))
    assert isinstance(answer, Reply) and answer.error is not None
    assert answer.error.number == protocol.INTERNAL_ERROR
    assert answer.error.message == "The peer gave no reason."


@given(st.lists(st.binary(max_size=30), max_size=6), st.integers(1, 7))
def test_lines_come_whole_however_they_are_cut(lines: list[bytes], size: int) -> None:
    lines = [line.replace(b"\n", b"") for line in lines]
    data = b"".join(line + b"\n" for line in lines)
    reader = Lines()
    found = [line for n in range(0, len(data), size) for line in reader.feed(data[n : n + size])]
    assert found == [line for line in lines if line.strip()]


def test_a_line_without_end_is_not_awaited() -> None:
    reader = Lines(1000)
    reader.feed(b"x" * 1000)
    with pytest.raises(FrameError):
        reader.feed(b"x")
    with pytest.raises(FrameError):
        Lines(1000).feed(b"x" * 1001 + b"\n")


def test_versions() -> None:
    assert protocol.chosen_version("2025-06-18") == "2025-06-18"
    assert protocol.chosen_version("1999-01-01") == protocol.chosen_version(None) == "2025-11-25"
    assert protocol.agreed_version("2025-06-18") == "2025-06-18"
    for other in ("2024-11-05", "", None, 3):
        with pytest.raises(RpcError):
            protocol.agreed_version(other)
