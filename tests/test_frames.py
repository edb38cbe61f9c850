"""frames: every wire format, fed with what honest and hostile peers send."""

from __future__ import annotations

import itertools
import json
import struct
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxydra import frames
from oxydra.errors import FrameError
from oxydra.frames import (
    CLIENT,
    MAX_DEPTH,
    SERVER,
    Envelope,
    Frame,
    Unpacker,
    decode_client,
    decode_server,
    encode,
    message_from_json,
    message_json,
    pack,
    parse,
)
from oxydra.threads import Service
from oxydra.types import (
    Event,
    Message,
    Native,
    Session,
    ToolCall,
    Usage,
)

text = st.text(st.characters(exclude_categories=["Cs"]))
any_text = st.text()  # with lone surrogates
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(text, values, max_size=4)
SAMPLES = {
    "str": "x",
    "int": 7,
    "float": 0.5,
    "bool": True,
    "object": {"a": 1},
    "list": [1],
    "any": None,
}
WRONG = {"str": 1, "int": "1", "float": "1", "bool": 1, "object": [], "list": {}}


# --------------------------------------------------------------------------------- hostile JSON


class TestParse:
    @given(values)
    def test_reads_what_we_write(self, value: Any) -> None:
        assert parse(frames.compact(value)) == value
        assert parse(json.dumps(value)) == value  # with \u escapes

    @given(any_text)
    def test_any_text_is_a_value_or_a_frame_error(self, junk: str) -> None:
        try:
            value = parse(junk)
        except FrameError:
            return
        assert value == json.loads(junk)

    @pytest.mark.parametrize("opened", ["[", '{"a":', '[{"a":', "[[], "])
    @pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 5_000, 1_000_000])
    def test_deep_nesting_is_refused_on_a_small_stack(self, opened: str, depth: int) -> None:
        # On a thread of our stack size: there, CPython 3.13's decoder overflows at some 3,000.
        refusals: list[str] = []

        def read(_service: Service) -> None:
            try:
                parse(opened * depth)
            except FrameError as error:
                refusals.append(error.message)

        assert Service("reader", read).start().stop(60)
        assert refusals == [f"The JSON is nested deeper than {MAX_DEPTH}."]

    def test_depth_is_of_brackets_outside_strings(self) -> None:
        deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
        assert parse(deepest)
        assert parse("[" + "[],{}," * 500 + "0]")
        for string in [
            "[" * 5_000,
            '\\"[{' * 500,
            "\\\\",
            '["' * 300,
            "\\u005b[" * 500,
            "\n[" * 200,
        ]:
            assert parse(json.dumps([string, string])) == [string, string]
        with pytest.raises(FrameError, match="deeper"):
            parse('["]]]]\\"",' + deepest + "]")

    @given(st.recursive(st.sampled_from(["[", "]]", '"']), lambda s: st.lists(s, max_size=40)))
    def test_depth_of_values_with_brackets_in_strings(self, value: Any) -> None:
        def depth(v: Any) -> int:
            return 1 + max(map(depth, v), default=0) if isinstance(v, list) else 0

        padded = [value, ["[" * (MAX_DEPTH + 1)]]
        assert depth(padded) <= MAX_DEPTH
        assert parse(json.dumps(padded)) == padded

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
    def test_what_is_no_finite_number_is_refused(self, number: str) -> None:
        with pytest.raises(FrameError, match="not valid JSON"):
            parse(f'{{"a":[{number}]}}')

    def test_an_integer_of_a_million_digits_is_refused(self) -> None:
        with pytest.raises(FrameError, match="not valid JSON"):
            parse("1" * 1_000_000)

    def test_a_lone_surrogate_becomes_the_replacement_character(self) -> None:
        assert parse(r'{"\ud800":"a\udfffb"}') == {"\ufffd": "a\ufffdb"}
        assert parse(r'"\ud83d\ude00"') == "\N{GRINNING FACE}"

    @given(st.lists(any_text))
    def test_the_result_can_always_be_stored_as_utf8(self, strings: list[str]) -> None:
        for string in parse(json.dumps(strings)):
            string.encode()

    @pytest.mark.parametrize(
        "junk", ["", "{", "\ufeff{}", "{'a':1}", "[1,]", "nul", "{} {}", "\x00"]
    )
    def test_not_json(self, junk: str) -> None:
        with pytest.raises(FrameError, match="not valid JSON"):
            parse(junk)


# ------------------------------------------------------------------------------- gateway frames


def sample(fields: tuple[frames.Field, ...], *, optional: bool) -> dict[str, Any]:
    return {f.name: SAMPLES[f.type] for f in fields if optional or f.required}


TABLES = [(table, name) for table in (CLIENT, SERVER) for name in table]


@pytest.mark.parametrize(("table", "name"), TABLES, ids=[name for _, name in TABLES])
class TestEveryFrame:
    def decode(self, table: dict[str, Any], frame: bytes | str) -> Frame:
        decode = decode_client if table is CLIENT else decode_server
        return decode(frame if isinstance(frame, str) else frame.decode())

    def test_round_trip(self, table: dict[str, Any], name: str) -> None:
        for optional in (True, False):
            payload = sample(table[name], optional=optional)
            assert self.decode(table, encode(name, payload)) == Frame(name, payload)
            assert self.decode(table, encode(name, payload, 12)) == Frame(name, payload, 12)

    def test_unknown_fields_are_ignored_and_null_is_absent(
        self, table: dict[str, Any], name: str
    ) -> None:
        payload = sample(table[name], optional=False) | {"invented_later": [1]}
        payload |= {f.name: None for f in table[name] if not f.required}
        assert self.decode(table, encode(name, payload)).payload == payload

    def test_every_missing_or_mistyped_field_is_named(
        self, table: dict[str, Any], name: str
    ) -> None:
        whole = sample(table[name], optional=True) | {"request_id": "r-1"}
        for f in table[name]:
            missing = {key: value for key, value in whole.items() if key != f.name}
            for payload in (missing, whole | {f.name: None}, whole | {f.name: WRONG[f.type]}):
                if not f.required and payload.get(f.name) is None:
                    self.decode(table, encode(name, payload))
                    continue
                with pytest.raises(FrameError, match=f"{name}: field '{f.name}'") as caught:
                    self.decode(table, encode(name, payload))
                assert caught.value.request_id == ("" if f.name == "request_id" else "r-1")


class TestGatewayFrames:
    @pytest.mark.parametrize(
        "junk",
        [
            "[]",
            "7",
            "null",
            '"hello"',
            "{}",
            '{"type":7}',
            '{"type":null,"payload":{}}',
            '{"type":"health_check","payload":[]}',
            '{"type":"health_check","payload":null}',
            '{"type":"health_check","payload":"x"}',
            '{"type":["health_check"],"payload":{}}',
            '{"type":"turn_completed","payload":{"request_id":"r"}}',  # a server's frame
            '{"type":"\\u001b[2J","payload":{}}',
        ],
    )
    def test_junk_from_a_client(self, junk: str) -> None:
        with pytest.raises(FrameError) as caught:
            decode_client(junk)
        assert caught.value.code == "bad_frame"
        assert "\x1b" not in str(caught.value)

    def test_an_unknown_type_echoes_the_request_id_and_is_not_quoted_at_length(self) -> None:
        frame = {"type": "x" * 100_000, "payload": {"request_id": "r-9"}}
        with pytest.raises(FrameError) as caught:
            decode_client(json.dumps(frame))
        assert caught.value.request_id == "r-9"
        assert len(str(caught.value)) < 200

    @pytest.mark.parametrize("number", ["true", "1.0", "1e3", str(1 << 63), "-" + "9" * 40, '"2"'])
    def test_an_int_is_an_integer_of_64_bits(self, number: str) -> None:
        with pytest.raises(FrameError, match="'limit' is not of type int"):
            history = {"request_id": "r", "session_id": "s", "limit": "LIMIT"}
            frame = json.dumps({"type": "history", "payload": history})
            decode_client(frame.replace('"LIMIT"', number))

    @pytest.mark.parametrize(
        ("written", "read"), [("3", 3), ("true", 0), ('"3"', 0), ("null", 0), ("9" * 30, 0)]
    )
    def test_seq(self, written: str, read: int) -> None:
        frame = f'{{"type":"health_check","seq":{written},"payload":{{"request_id":"r"}}}}'
        assert decode_client(frame).seq == read

    @given(st.sampled_from(sorted(CLIENT)), st.dictionaries(any_text, values | any_text))
    def test_any_payload_is_a_frame_or_a_frame_error(
        self, name: str, payload: dict[str, Any]
    ) -> None:
        try:
            frame = decode_client(json.dumps({"type": name, "payload": payload}))
        except FrameError:
            return
        encode(frame.type, frame.payload).decode()

    @given(any_text)
    def test_a_delta_of_any_text_is_valid_utf8_and_json(self, delta: str) -> None:
        payload = sample(SERVER["assistant_delta"], optional=True) | {"delta": delta}
        back = decode_server(encode("assistant_delta", payload, 1).decode("utf-8", "strict"))
        expected = delta.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        assert back.payload["delta"] == expected

    def test_every_terminal_frame_is_a_frame(self) -> None:
        assert set(frames.TERMINAL) <= set(SERVER)


# ------------------------------------------------------------------------ length-prefixed frames


@st.composite
def split_streams(draw: st.DrawFn) -> tuple[list[tuple[str, Any]], list[bytes]]:
    sent = draw(st.lists(st.tuples(text, objects), max_size=5))
    stream = b"".join(pack(op, payload) for op, payload in sent)
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    edges = [0, *cuts, len(stream)]
    return sent, [stream[a:b] for a, b in itertools.pairwise(edges)]


class TestUnpacker:
    @given(split_streams())
    def test_any_split_gives_the_same_frames(
        self, case: tuple[list[tuple[str, Any]], list[bytes]]
    ) -> None:
        sent, pieces = case
        unpacker = Unpacker()
        assert [frame for piece in pieces for frame in unpacker.feed(piece)] == sent
        assert unpacker.empty

    def test_a_byte_at_a_time(self) -> None:
        unpacker = Unpacker()
        stream = pack("health_check", {}) + pack("logs", {"tail": 5})
        got = []
        for index in range(len(stream)):
            got += unpacker.feed(stream[index : index + 1])
            assert unpacker.empty == (index + 1 in (len(pack("health_check", {})), len(stream)))
        assert got == [("health_check", {}), ("logs", {"tail": 5})]

    def test_a_frame_over_the_limit_is_refused_before_its_body(self) -> None:
        with pytest.raises(FrameError) as caught:
            Unpacker(limit=100).feed(struct.pack("!I", 101))
        assert caught.value.code == "too_large"
        assert Unpacker(limit=100).feed(struct.pack("!I", 100)) == []
        with pytest.raises(FrameError):
            Unpacker().feed(b"\xff\xff\xff\xff")

    def test_pack_refuses_what_the_other_end_would(self) -> None:
        largest = frames.MAX_PACKED - len(pack("x", {"a": ""})) + 4
        assert len(pack("x", {"a": "b" * largest})) == frames.MAX_PACKED + 4
        with pytest.raises(FrameError) as caught:
            pack("x", {"a": "b" * (largest + 1)})
        assert caught.value.code == "too_large"

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[]",
            b"{}",
            b'{"op":1}',
            b'{"op":"x","payload":[]}',
            b'{"op":"x","payload":null}',
            b'{"op":"\xff"}',
            b'{"op":"\xed\xa0\x80"}',  # a surrogate in UTF-8's clothes
            '{"op":"x"}'.encode("utf-16"),
            b'\xef\xbb\xbf{"op":"x"}',
            b'{"op":' + b"[" * 100_000,
        ],
    )
    def test_hostile_bodies(self, body: bytes) -> None:
        with pytest.raises(FrameError) as caught:
            Unpacker().feed(struct.pack("!I", len(body)) + body)
        assert caught.value.code == "bad_frame"

    def test_payload_may_be_left_out(self) -> None:
        body = b'{"op":"health_check"}'
        assert Unpacker().feed(struct.pack("!I", len(body)) + body) == [("health_check", {})]

    @given(st.binary())
    def test_any_bytes_are_frames_or_a_frame_error(self, junk: bytes) -> None:
        unpacker = Unpacker(limit=1 << 16)
        try:
            unpacker.feed(junk)
            unpacker.feed(junk)
        except FrameError:
            pass


# --------------------------------------------------------------------------------- values in frames


messages = st.one_of(
    st.builds(Message, role=st.sampled_from(["system", "user"]), content=text),
    st.builds(
        Message,
        role=st.just("assistant"),
        content=text,
        tool_calls=st.lists(st.builds(ToolCall, text, text, text), max_size=3).map(tuple),
        reasoning=text,
        native=st.none() | st.builds(Native, text, text, objects),
    ),
    st.builds(
        Message,
        role=st.just("tool"),
        content=text,
        tool_call_id=text,
        name=text,
        is_error=st.booleans(),
    ),
)


class TestValues:
    @given(messages)
    def test_message_round_trip(self, message: Message) -> None:
        assert message_from_json(parse(frames.compact(message_json(message)))) == message

    def test_a_plain_message_has_no_empty_fields(self) -> None:
        assert message_json(Message("user", "hi")) == {"role": "user", "content": "hi"}

    def test_the_encoded_form_does_not_travel(self) -> None:
        message = Message("user", "hi", wire={"openai": b"{}"})
        assert "wire" not in message_json(message)

    def test_usage(self) -> None:
        assert frames.usage_json(Usage(3, 4)) == {
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "total_tokens": 7,
        }
        whole = frames.usage_json(Usage(3, 4, 2, 1, Decimal("0.25")))
        assert whole["cached_tokens"] == 2 and whole["reasoning_tokens"] == 1
        assert whole["cost_usd"] == 0.25

    def test_session_event_and_turn(self) -> None:
        session = Session("s-1", "default", "", "tui", "2026-01-01T00:00:00Z", "2026-01-02", False)
        row = frames.session_json(session)
        assert row["display_name"] is None and row["session_id"] == "s-1"
        event = Event("s-1", 3, "t-1", Message("user", "hi"), "2026-01-01T00:00:00Z")
        assert frames.event_json(event)["message"] == {"role": "user", "content": "hi"}
        assert frames.session_ref("alice", "s-1") == {"user_id": "alice", "session_id": "s-1"}


# --------------------------------------------------------------------------- bootstrap envelope

ENVELOPE = Envelope(
    user_id="alice",
    sandbox_tier="process",
    workspace_root="/srv/alice",
    config={"runtime": {"max_turns": 8}},
    startup_status={"sandbox_tier": "process"},
    gateway_token_hashes=[{"name": "local", "sha256": "00", "scopes": ["chat"]}],
    secret_hashes={"key": "aa"},
)


class TestEnvelope:
    def test_round_trip_over_the_wire(self) -> None:
        ((op, payload),) = Unpacker().feed(pack("bootstrap", ENVELOPE.to_json()))
        assert op == "bootstrap"
        assert Envelope.from_json(payload) == ENVELOPE

    def test_unknown_fields_are_ignored_and_optional_ones_may_be_absent_or_null(self) -> None:
        payload = ENVELOPE.to_json() | {"from_a_newer_runner": 1, "runtime_policy": None}
        del payload["channels"]
        assert Envelope.from_json(payload) == ENVELOPE

    @pytest.mark.parametrize("name", Envelope.__slots__)
    def test_every_field_is_checked(self, name: str) -> None:
        with pytest.raises(FrameError, match=f"bootstrap: field '{name}'"):
            Envelope.from_json(ENVELOPE.to_json() | {name: 7})

    @pytest.mark.parametrize(
        "name", ["user_id", "sandbox_tier", "workspace_root", "config", "gateway_token_hashes"]
    )
    def test_what_is_required_is_missed(self, name: str) -> None:
        payload = ENVELOPE.to_json()
        del payload[name]
        with pytest.raises(FrameError, match=f"field '{name}' is missing"):
            Envelope.from_json(payload)
