"""The Anthropic wire: recorded streams in every cut, what goes back, and the request's bytes."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from oxydra.errors import ProviderError
from oxydra.frames import message_from_json, message_json
from oxydra.providers import ProviderSettings
from oxydra.providers.anthropic import Anthropic, messages_url
from oxydra.threads import CancelToken
from oxydra.transport import Credential, DirectTransport
from oxydra.types import (
    Completed,
    Message,
    ModelRequest,
    ModelSpec,
    Native,
    ReasoningOption,
    StreamEvent,
    ToolCall,
    ToolSpec,
)
from tests import wires_anthropic as wire
from tests.fake_model import CUT, FakeModel, Reply
from tests.histories import PNG, attached, messages, unmarked, working
from tests.replay import MODEL, Replay, asking, ending
from tests.wire_rules_anthropic import check_anthropic

FIXTURES = Path(__file__).parent / "fixtures"
KEY = "sk-ant-secret-0123456789"
SEEING = replace(MODEL, images=True, pdfs=True)
EFFORT = ReasoningOption("effort", ("low", "medium", "high", "xhigh", "max"))
BUDGET = ReasoningOption("budget_tokens", minimum=1024)
OLDER = replace(MODEL, reasoning=True, reasoning_options=(BUDGET,), max_output_tokens=32_000)


def provider(chunks: Sequence[bytes] = ()) -> Anthropic:
    return Anthropic(ProviderSettings("fake", "anthropic", "http://replay"), Replay(chunks))


def replay(chunks: Sequence[bytes], request: ModelRequest | None = None) -> list[StreamEvent]:
    return list(provider(chunks).stream(request or asking(), CancelToken()))


def body_of(request: ModelRequest) -> Any:
    """The request's body, which keeps the wire's rules."""
    body = json.loads(provider()._post(request).body)
    check_anthropic(body)
    return body


def recorded(name: str) -> bytes:
    return (FIXTURES / f"anthropic_{name}.sse").read_bytes()


def events_of(name: str) -> list[bytes]:
    return [part + b"\n\n" for part in recorded(name).split(b"\n\n") if part]


# ------------------------------------------------------------------------------ recorded streams

RECORDED: dict[str, dict[str, Any]] = {
    "text": {
        "text": "Grüße, 世界 😀\n\nevent: message_stop\n",
        "finish": "stop",
        "usage": (25, 9, 16, 4),
    },
    "tools": {
        "text": "Let me see.",
        "calls": [
            ("toolu_a", "file_read", '{"path": "/shared/ü.txt"}'),
            ("toolu_b", "file_list", "{}"),
        ],
        "finish": "tool_calls",
        "usage": (50, 31, 0, 0),
    },
    "thinking": {
        "text": "I will look.",
        "reasoning": "First, think “ü”.",
        "calls": [("toolu_c", "file_list", '{"path":"/shared"}')],
        "finish": "tool_calls",
        "usage": (8, 60, 0, 0),
    },
    "length": {
        "calls": [("toolu_a", "file_write", '{"path":"/shared/a","content":"begi')],
        "finish": "length",
        "usage": (9, 100, 0, 0),
    },
    "refusal": {"text": "I can't", "finish": "refusal", "usage": (5, 6, 0, 0)},
}


@pytest.mark.parametrize("size", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_stream_in_pieces_of(name: str, size: int) -> None:
    data = recorded(name)
    chunks = [data[at : at + size] for at in range(0, len(data), size)] if size else [data]
    end = ending(replay(chunks))
    wanted, message, usage = RECORDED[name], end.message, end.usage
    assert message.content == wanted.get("text", "")
    assert message.reasoning == wanted.get("reasoning", "")
    assert [(c.id, c.name, c.arguments) for c in message.tool_calls] == wanted.get("calls", [])
    assert end.finish_reason == wanted["finish"]
    assert wanted["usage"] == (
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_tokens,
        usage.cache_write_tokens,
    )


@pytest.mark.parametrize("name", RECORDED)
def test_a_stream_cut_after_or_inside_any_event_is_no_answer(name: str) -> None:
    events = events_of(name)
    data = b"".join(events)
    whole = data.rindex(b'"message_stop"}') + len(b'"message_stop"}')
    cuts = {len(b"".join(events[:count])) for count in range(len(events))}
    for at in sorted(cuts | set(range(0, whole, 5))):
        with pytest.raises(ProviderError) as caught:
            replay([data[:at]])
        assert caught.value.retryable
        assert caught.value.model == "fake-1"


def test_an_error_inside_the_stream() -> None:
    with pytest.raises(ProviderError, match="Overloaded") as caught:
        replay(events_of("error"))
    assert (caught.value.status, caught.value.retryable) == (529, True)


def stream_of(*steps: Any, reason: str = "end_turn", **fields: Any) -> Completed:
    events = [step for part in steps for step in part]
    return ending(replay([wire.begin(), *events, *wire.end(reason, **fields)]))


@pytest.mark.parametrize(
    ("reason", "mapped"),
    [
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "length"),
        ("tool_use", "stop"),
        ("something_new", "stop"),
    ],
)
def test_stop_reasons(reason: str, mapped: str) -> None:
    assert stream_of(wire.text(0, "x"), reason=reason).finish_reason == mapped


def test_a_refusal_before_any_word_says_why() -> None:
    end = stream_of(reason="refusal", stop_details={"explanation": "It would do harm."})
    assert (end.finish_reason, end.message.content) == ("refusal", "It would do harm.")


def test_usage_that_comes_late_and_thoughts_in_it() -> None:
    usage = {"input_tokens": 7, "output_tokens": 9, "cache_read_input_tokens": None}
    late = wire.event(
        "message_delta",
        delta={"stop_reason": "end_turn"},
        usage={**usage, "output_tokens_details": {"thinking_tokens": 4}},
    )
    first = wire.begin(input_tokens=0)
    end = ending(replay([first, *wire.text(0, "x"), late, wire.event("message_stop")]))
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (7, 9)
    assert end.usage.reasoning_tokens == 4


def test_a_call_that_comes_whole_and_one_without_an_id() -> None:
    whole = {"type": "tool_use", "id": "", "name": "file_list", "input": {"a": "ü"}}
    (call,) = stream_of(wire.block(0, whole), reason="tool_use").message.tool_calls
    assert (call.name, call.arguments) == ("file_list", '{"a":"ü"}')
    assert call.id


@pytest.mark.parametrize(
    "data",
    [
        b"data: null\n\n",
        b"data: {\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
        b'data: {"type": "message_start", "message": []}\n\n',
        b'data: {"type":"content_block_start","index":[1],"content_block":{"type":"text"}}\n\n',
        b'data: {"type":"content_block_start","content_block":{"type":"tool_use","id":5}}\n\n',
        b'data: {"type": "content_block_start", "content_block": {"type": "new"}}\n\n',
        b'data: {"type": "content_block_delta", "index": 7, "delta": {"type": "text_delta"}}\n\n',
        b'data: {"type": "content_block_delta", "delta": []}\n\n',
        b'data: {"type": "message_delta", "delta": 5, "usage": {"output_tokens": "x"}}\n\n',
        b'data: {"type": "ping"}\n\n',
        b'data: {"type": "what_comes_next"}\n\n',
        b"event: error\ndata: {}\n\n",
        b"<html>",
        b"",
    ],
)
def test_nonsense_never_breaks_us(data: bytes) -> None:
    with contextlib.suppress(ProviderError):
        ending(replay([data]))
    with contextlib.suppress(ProviderError):
        ending(replay([data, *wire.text(1, "x"), *wire.end()]))


def test_no_answer_is_an_error_that_may_be_tried_again() -> None:
    with pytest.raises(ProviderError) as caught:
        replay([wire.begin(), wire.event("message_stop")])
    assert caught.value.retryable


# ----------------------------------------------------------------------- what the model gets back


def thought() -> Message:
    """What the recorded stream with thinking became, and went through the store."""
    message = ending(replay(events_of("thinking"))).message
    return message_from_json(json.loads(json.dumps(message_json(message))))


def with_result(message: Message, *, ask: str = "hi") -> list[Message]:
    results = [Message("tool", "x", tool_call_id=c.id, name=c.name) for c in message.tool_calls]
    return [Message("system", "s"), Message("user", ask), message, *results]


def test_thinking_goes_back_unchanged_and_in_order() -> None:
    body = body_of(asking(*with_result(thought())))
    assert body["messages"][1]["content"] == [
        {
            "type": "thinking",
            "thinking": "First, think “ü”.",
            "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3h+/==",
        },
        {
            "type": "redacted_thinking",
            "data": "EmwKAhgBEgy3va3pzix/LafPsn4aDFIT2Xlxh0L5L8rLVyIwxtE3rAFBa8cr3qpPkNRj2YfWXGmK"
            "DxH4mPnZ5sQ7vB",
        },
        {"type": "text", "text": "I will look."},
        {"type": "thinking", "thinking": "", "signature": "c2lnbmVkIGJ1dCBvbWl0dGVk"},
        {
            "type": "tool_use",
            "id": "toolu_c",
            "name": "file_list",
            "input": {"path": "/shared"},
        },
    ]


@pytest.mark.parametrize("other", ["model", "provider", "wire"])
def test_another_model_or_provider_gets_none_of_it(other: str) -> None:
    message = thought()
    assert message.native is not None
    request = asking(*with_result(message))
    assert "redacted_thinking" in json.dumps(body_of(request))
    if other == "model":
        request = replace(request, model=replace(MODEL, id="fake-2"))
    elif other == "provider":
        message = replace(message, native=replace(message.native, provider="other"), wire={})
    else:
        message = replace(
            message, native=Native("fake", MODEL.id, {"gemini": [{"text": 3}]}), wire={}
        )
    request = replace(request, messages=with_result(message))
    content = body_of(request)["messages"][1]["content"]
    assert [block["type"] for block in content] == ["text", "tool_use"]


def test_a_message_that_was_changed_since_keeps_its_thoughts() -> None:
    message = replace(thought(), content="I will look. (cut)")
    content = body_of(asking(*with_result(message)))["messages"][1]["content"]
    kinds = [block["type"] for block in content]
    assert kinds == ["thinking", "redacted_thinking", "thinking", "text", "tool_use"]
    message = replace(message, tool_calls=(), wire={})
    content = body_of(asking(Message("user", "u"), message, Message("user", "on")))["messages"][1]
    assert content["content"][-1]["type"] == "text"


def test_thinking_that_was_cut_has_no_signature_and_stays_here() -> None:
    cut = {"type": "thinking", "thinking": "", "signature": ""}
    end = stream_of(
        wire.thinking(0, "whole", "sig"),
        wire.text(1, "so"),
        wire.block(2, cut, {"type": "thinking_delta", "thinking": "cu"}),
        reason="max_tokens",
    )
    assert end.message.reasoning == "wholecu"
    body = body_of(asking(Message("user", "u"), end.message, Message("user", "on")))
    kinds = [block["type"] for block in body["messages"][1]["content"]]
    assert kinds == ["thinking", "text"]


def test_a_signature_that_is_refused_does_not_brick_the_session(fake: FakeModel) -> None:
    here, request = direct(fake), asking(*with_result(thought()))
    fake.send(wire.error(400, "invalid_request_error", "messages.1: Invalid `signature` in ..."))
    for _ in range(2):
        fake.send(wire.answer("fine"))
        assert ending(list(here.stream(request, CancelToken()))).message.content == "fine"
    signed = [b"signature" in seen.raw for seen in fake.requests]
    assert signed == [True, False, False]  # made again without, and so is the next one
    fake.send(wire.error(400, "invalid_request_error", "Invalid `signature` in ..."))
    with pytest.raises(ProviderError):
        list(here.stream(request, CancelToken()))
    assert len(fake.requests) == 4


# ------------------------------------------------------------------------------------ the request


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("https://api.anthropic.com", "https://api.anthropic.com/v1/messages"),
        ("https://api.anthropic.com/v1/", "https://api.anthropic.com/v1/messages"),
        ("https://x.org/v1/messages", "https://x.org/v1/messages"),
        ("https://api.x.org/api/v4/anthropic ", "https://api.x.org/api/v4/anthropic/v1/messages"),
        ("https://x.org/anthropic?beta=1", "https://x.org/anthropic/v1/messages?beta=1"),
    ],
)
def test_addresses(base_url: str, url: str) -> None:
    assert messages_url(base_url) == url


def test_the_body() -> None:
    calls = (ToolCall("c1", "file_list", '{"path":"/ü"}'), ToolCall("c2", "file_list", "{}"))
    body = body_of(
        asking(
            Message("system", "Be brief."),
            Message("user", "list 😀"),
            Message("assistant", "Well.", tool_calls=calls, reasoning="hidden"),
            Message("tool", "a.txt", tool_call_id="c1", name="file_list"),
            Message("tool", "", tool_call_id="c2", name="file_list", is_error=True),
            Message("user", "and?"),
        )
    )
    mark = {"cache_control": {"type": "ephemeral"}}
    assert body == {
        "model": "fake-1",
        "max_tokens": 4096,
        "stream": True,
        "tools": [
            {
                "name": "file_list",
                "description": "List files.",
                "input_schema": {"type": "object", "properties": {}},
                **mark,
            }
        ],
        "system": [{"type": "text", "text": "Be brief.", **mark}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "list 😀", **mark}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "Well."},
                    {
                        "type": "tool_use",
                        "id": "c1",
                        "name": "file_list",
                        "input": {"path": "/ü"},
                    },
                    {"type": "tool_use", "id": "c2", "name": "file_list", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": "a.txt"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "c2",
                        "content": "(blank)",
                        "is_error": True,
                    },
                    {"type": "text", "text": "and?", **mark},
                ],
            },
        ],
    }


def test_a_model_without_a_known_limit_and_one_without_tools() -> None:
    unknown = ModelSpec("x", "m", 1000, 0)
    assert body_of(asking(model=unknown, tools=()))["max_tokens"] == 4096
    call = ToolCall("c1", "file_list", "{}")
    history = [Message("user", "u"), Message("assistant", tool_calls=(call,)), Message("user", "v")]
    body = body_of(asking(*history, tools=()))
    assert body["tools"] == [{"name": "file_list", "input_schema": {"type": "object"}}]
    assert body["tool_choice"] == {"type": "none"}


def test_files() -> None:
    pdf = attached("application/pdf", b"%PDF-1.7", "a.pdf")
    call = ToolCall("c1", "screenshot", "{}")
    body = body_of(
        asking(
            Message("user", "look", attachments=(attached(), pdf)),
            Message("assistant", "", tool_calls=(call,)),
            Message("tool", "", tool_call_id="c1", name=call.name, attachments=(attached(),)),
            Message("assistant", "A dot.", attachments=(attached(),)),
            Message("user", "", attachments=(attached(),)),
            model=SEEING,
        )
    )
    image, document, text = body["messages"][0]["content"]
    assert image["source"]["media_type"] == "image/png"
    assert document["source"]["data"] == "JVBERi0xLjc="
    assert (document["title"], text["text"]) == ("a.pdf", "look")
    assert body["messages"][2]["content"][0]["content"] == [image]
    said = [block["text"] for block in body["messages"][3]["content"]]
    assert said == ["A dot.", f"[A file was made here: dot.png (image/png, {len(PNG)} bytes)]"]
    assert body["messages"][4]["content"][0]["type"] == "image"


@pytest.mark.parametrize(
    ("model", "file", "words"),
    [
        (MODEL, attached(), "takes no images"),
        (MODEL, attached("application/pdf"), "takes no PDFs"),
        (SEEING, attached("image/tiff"), "API takes no such files"),
        (SEEING, attached("audio/wav", name=""), "A file (audio/wav)"),
        (SEEING, attached(data=b""), "is empty"),
    ],
)
def test_a_file_that_cannot_be_sent(model: ModelSpec, file: Any, words: str) -> None:
    with pytest.raises(ProviderError) as caught:
        replay([], asking(Message("user", "look", attachments=(file,)), model=model))
    assert words in caught.value.message
    assert caught.value.code == "unsupported"
    assert not caught.value.retryable
    assert caught.value.remedy


def test_names_that_the_wire_does_not_take_come_back_as_they_are() -> None:
    tool = ToolSpec("my.tool", "x", {"type": "object"})
    request = asking(tools=[tool])
    assert body_of(request)["tools"][0]["name"] == "my_tool"
    steps = [wire.begin(), *wire.call(0, "my_tool", {}), *wire.end("tool_use")]
    message = ending(replay(steps, request)).message
    assert message.tool_calls[0].name == "my.tool"
    body = body_of(asking(*with_result(message), tools=[tool]))
    assert body["messages"][1]["content"][0]["name"] == "my_tool"


@pytest.mark.parametrize(
    ("options", "level", "wanted"),
    [
        ((EFFORT,), "", {}),
        ((EFFORT,), "high", "high"),
        ((EFFORT,), "minimal", "low"),
        ((ReasoningOption("effort", ("low", "high", "max")), BUDGET), "xhigh", "high"),
        ((EFFORT,), "off", {}),
        ((ReasoningOption("toggle"), EFFORT), "off", {"thinking": {"type": "disabled"}}),
        ((BUDGET,), "off", {}),
        ((BUDGET,), "low", 4096),
        ((ReasoningOption("effort", ("low", "high")), BUDGET), "medium", 8192),
        ((BUDGET,), "max", 24_000),
        ((), "high", {}),
    ],
)
def test_reasoning(options: tuple[ReasoningOption, ...], level: str, wanted: Any) -> None:
    model = replace(OLDER, reasoning_options=options)
    body = body_of(asking(model=model, reasoning=level))
    found = {key: body[key] for key in ("thinking", "output_config") if key in body}
    if isinstance(wanted, str):
        thinking = {"type": "adaptive", "display": "summarized"}
        wanted = {"thinking": thinking, "output_config": {"effort": wanted}}
    elif isinstance(wanted, int):
        wanted = {"thinking": {"type": "enabled", "budget_tokens": wanted}}
    assert found == wanted


def test_reasoning_where_there_is_none_and_a_level_that_there_is_not() -> None:
    assert "thinking" not in body_of(asking(model=MODEL, reasoning="high"))
    small = replace(OLDER, max_output_tokens=1200)
    assert "thinking" not in body_of(asking(model=small, reasoning="high"))
    with pytest.raises(ProviderError, match="no reasoning level 'hgih'") as caught:
        replay([], asking(model=OLDER, reasoning="hgih"))
    assert "minimal, low, medium, high" in caught.value.remedy


def test_a_run_of_calls_begun_by_another_model_goes_on_without_a_budget() -> None:
    message = thought()
    mine = asking(*with_result(message), model=replace(OLDER, id=MODEL.id), reasoning="high")
    assert "thinking" in body_of(mine)
    foreign = replace(mine, messages=with_result(replace(message, native=None)))
    assert "thinking" not in body_of(foreign)
    done = [*foreign.messages, Message("assistant", "done"), Message("user", "next")]
    assert "thinking" in body_of(replace(foreign, messages=done))
    interrupted = [*foreign.messages, Message("user", "wait")]
    assert "thinking" not in body_of(replace(foreign, messages=interrupted))


# --------------------------------------------------------------------------------- prompt caching


def test_breakpoints_and_a_prefix_that_stays() -> None:
    encoded: list[Message] = []

    class Counting(Anthropic):
        def encode_message(self, message: Message) -> bytes:
            encoded.append(message)
            return super().encode_message(message)

    here = Counting(ProviderSettings("fake", "anthropic", "http://x"), Replay([]))
    history = [Message("system", "s")]
    before: Any = None
    for added in working(30):
        # the last step's answer and what follows it came since the last request
        history += added[:1]
        raw = here._post(asking(*history)).body
        body = json.loads(raw)
        check_anthropic(body)
        assert raw.count(b"cache_control") == min(4, 2 + raw.count(b'{"role":"user"'))
        marked = [
            index
            for index, message in enumerate(body["messages"])
            if "cache_control" in json.dumps(message)
        ]
        users = [i for i, message in enumerate(body["messages"]) if message["role"] == "user"]
        assert marked == users[-2:]
        plain = unmarked(body)
        if before is not None:
            assert plain["messages"][: len(before["messages"])] == before["messages"]
            assert {**plain, "messages": 0} == {**before, "messages": 0}
        before = plain
        history += added[1:]
    assert len(encoded) == len(set(map(id, encoded)))


def test_only_the_markers_move() -> None:
    history = [Message("system", "s"), Message("user", "a")]
    bodies = []
    for number in range(4):
        bodies.append(provider()._post(asking(*history)).body.replace(b',"cache_control":', b"!"))
        history += [Message("assistant", f"{number}"), Message("user", "more")]
    plain = [body.replace(b'!{"type":"ephemeral"}', b"") for body in bodies]
    for before, after in itertools.pairwise(plain):
        assert after.startswith(before.removesuffix(b"]}"))


# ------------------------------------------------------------------------- any history can be sent

NATIVES = [
    None,
    Native("fake", "fake-1", {"anthropic": [{"type": "redacted_thinking", "data": "x"}]}),
    Native("fake", "fake-1", {"anthropic": [{"text": 2}, {"call": 0}]}),
    Native("fake", "fake-2", {"anthropic": [{"type": "thinking", "signature": "s"}]}),
    Native("gem", "g", {"gemini": [{"call": 0, "signature": "x"}]}),
]


@settings(deadline=None, max_examples=300)
@given(messages(NATIVES))
def test_any_history_is_a_valid_request(history: list[Message]) -> None:
    body_of(asking(Message("system", "s"), *history, model=SEEING))
    budgeted = replace(SEEING, reasoning=True, reasoning_options=(BUDGET,))
    body_of(asking(*history, Message("user", "go on"), model=budgeted, reasoning="low"))


# ---------------------------------------------------------------------------------- over a socket


@pytest.fixture
def fake() -> Iterator[FakeModel]:
    with FakeModel() as server:
        yield server


def direct(fake: FakeModel) -> Anthropic:
    """A provider with a key; connections are closed by the server when the test ends."""
    transport = DirectTransport({"mine": Credential("x-api-key", KEY, fake.origin)})
    made = ProviderSettings("fake", "anthropic", fake.origin, "mine", "MY_KEY")
    return Anthropic(made, transport)


def test_what_is_sent(fake: FakeModel) -> None:
    fake.send(wire.answer("fine"))
    assert ending(list(direct(fake).stream(asking(), CancelToken()))).message.content == "fine"
    (seen,) = fake.requests
    assert seen.path == "/v1/messages"
    assert seen.headers["anthropic-version"] == "2023-06-01"
    assert seen.headers["x-api-key"] == KEY
    assert "authorization" not in seen.headers
    check_anthropic(seen.body)


@pytest.mark.parametrize(
    ("status", "kind", "message", "code", "retryable"),
    [
        (400, "invalid_request_error", "prompt is too long: 9 > 8", "context_overflow", False),
        (400, "invalid_request_error", "tools: bad", "bad_request", False),
        (400, "invalid_request_error", "Your credit balance is too low to …", "quota", False),
        (401, "authentication_error", f"invalid x-api-key {KEY}", "provider_auth", False),
        (403, "permission_error", "no", "provider_auth", False),
        (404, "not_found_error", "model: x", "model_not_found", False),
        (413, "request_too_large", "too large", "context_overflow", False),
        (429, "rate_limit_error", "slow down", "rate_limited", True),
        (500, "api_error", "oops", "provider_unavailable", True),
        (529, "overloaded_error", "Overloaded", "provider_unavailable", True),
    ],
)
def test_errors(
    fake: FakeModel, status: int, kind: str, message: str, code: str, retryable: bool
) -> None:
    fake.send(wire.error(status, kind, message, {"retry-after": "3"}))
    with pytest.raises(ProviderError) as caught:
        list(direct(fake).stream(asking(), CancelToken()))
    error = caught.value
    assert (error.code, error.retryable) == (code, retryable)
    assert error.status == (402 if code == "quota" else status)
    assert error.retry_after == 3.0
    assert KEY not in str(error)
    assert "fake (fake-1)" in error.message


def test_a_rate_limit_that_says_when_it_ends(fake: FakeModel) -> None:
    name = "anthropic-ratelimit-input-tokens"
    for remaining, reset, wanted in (
        ("0", "2026-01-01T00:00:00Z", 0.0),
        ("5", "2026-01-01T00:00:00Z", None),
        ("0", "soon", None),
    ):
        headers = {f"{name}-remaining": remaining, f"{name}-reset": reset}
        fake.send(wire.error(429, "rate_limit_error", "slow down", headers))
        with pytest.raises(ProviderError) as caught:
            list(direct(fake).stream(asking(), CancelToken()))
        assert caught.value.retry_after == wanted


def test_a_web_page_and_a_break(fake: FakeModel) -> None:
    fake.html(403)
    with pytest.raises(ProviderError, match="web page"):
        list(direct(fake).stream(asking(), CancelToken()))
    fake.send(wire.answer("begin", CUT))
    with pytest.raises(ProviderError) as caught:
        list(direct(fake).stream(asking(), CancelToken()))
    assert caught.value.retryable
    fake.send(Reply([wire.begin(), *wire.text(0, "x"), wire.end()[0]]))
    with pytest.raises(ProviderError, match="broke its answer off"):
        list(direct(fake).stream(asking(), CancelToken()))
