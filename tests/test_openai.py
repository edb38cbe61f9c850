"""The OpenAI wire: recorded streams in every cut, servers that differ, and the request's bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oxydra.errors import ProviderError
from oxydra.providers import ProviderSettings, create
from oxydra.providers.openai import OpenAI, completions_url
from oxydra.threads import CancelToken
from oxydra.types import (
    Attachment,
    Completed,
    Message,
    ModelRequest,
    ModelSpec,
    Native,
    ReasoningOption,
    StreamEvent,
    ToolCall,
)
from tests.fake_model import chat_steps, event
from tests.replay import MODEL, Replay, asking, ending

FIXTURES = Path(__file__).parent / "fixtures"


# ------------------------------------------------------------------------------ recorded streams


def replay(
    chunks: Sequence[bytes], request: ModelRequest | None = None, **headers: str
) -> list[StreamEvent]:
    settings = ProviderSettings("fake", "openai", "http://replay")
    kinds = {name.replace("_", "-"): value for name, value in headers.items()}
    provider = create(settings, Replay(chunks, kinds))
    return list(provider.stream(request or asking(), CancelToken()))


def events_of(name: str) -> list[bytes]:
    data = (FIXTURES / f"{name}.sse").read_bytes()
    return [part + b"\n\n" for part in data.split(b"\n\n") if part]


RECORDED: dict[str, dict[str, Any]] = {
    "openai_text": {
        "text": "Grüße, 世界 😀\n\ndata: [DONE]\n",
        "finish": "stop",
        "usage": (21, 9, 16, 0),
    },
    "openai_tools": {
        "calls": [
            ("call_a", "file_read", '{"path":"/shared/ü.txt"}'),
            ("call_b", "file_list", "{}"),
        ],
        "finish": "tool_calls",
        "usage": (50, 31, 0, 0),
    },
    "openai_reasoning": {
        "text": "42",
        "reasoning": "First, think.",
        "finish": "stop",
        "usage": (8, 30, 0, 27),
    },
    "openai_refusal": {
        "text": "I can't help with that.",
        "finish": "refusal",
        "usage": (5, 6, 0, 0),
    },
    "openai_length": {
        "calls": [("call_a", "file_write", '{"path":"/shared/a","content":"begi')],
        "finish": "length",
        "usage": (9, 100, 0, 0),
    },
}


@pytest.mark.parametrize("size", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_stream_in_pieces_of(name: str, size: int) -> None:
    data = (FIXTURES / f"{name}.sse").read_bytes()
    chunks = [data[at : at + size] for at in range(0, len(data), size)] if size else [data]
    end = ending(replay(chunks))
    wanted = RECORDED[name]
    message, usage = end.message, end.usage
    assert message.content == wanted.get("text", "")
    assert message.reasoning == wanted.get("reasoning", "")
    assert [(c.id, c.name, c.arguments) for c in message.tool_calls] == wanted.get("calls", [])
    assert end.finish_reason == wanted["finish"]
    assert wanted["usage"] == (
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_tokens,
        usage.reasoning_tokens,
    )


@pytest.mark.parametrize("name", RECORDED)
def test_a_stream_cut_after_any_event_is_no_answer_before_its_finish(name: str) -> None:
    events = events_of(name)
    finish = next(i for i, data in enumerate(events) if b'"finish_reason":"' in data)
    for count in range(len(events)):
        if count > finish:
            assert ending(replay(events[:count])).finish_reason == RECORDED[name]["finish"]
            continue
        with pytest.raises(ProviderError) as caught:
            replay(events[:count])
        assert caught.value.retryable
        assert caught.value.model == "fake-1"


@pytest.mark.parametrize("name", RECORDED)
def test_a_stream_cut_inside_any_event_is_no_answer(name: str) -> None:
    data = (FIXTURES / f"{name}.sse").read_bytes()
    before_finish = data.index(b'"finish_reason":"')
    for at in range(0, before_finish, 3):
        with pytest.raises(ProviderError):
            replay([data[:at]])


def test_an_error_inside_the_stream() -> None:
    with pytest.raises(ProviderError, match="had an error while processing") as caught:
        replay(events_of("openai_error"))
    assert (caught.value.status, caught.value.retryable) == (500, True)


# ---------------------------------------------------------------------------- servers that differ


def of(*deltas: dict[str, Any], finish: str | None = "stop") -> Completed:
    steps = [event(delta) for delta in deltas]
    if finish:
        steps.append(event({}, finish))
    return ending(replay([*steps, b"data: [DONE]\n\n"]))


def calls_of(*fragments: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What tool calls come of fragments, one delta each."""
    end = of(*({"tool_calls": [fragment]} for fragment in fragments), finish="tool_calls")
    return [(call.id, call.name, call.arguments) for call in end.message.tool_calls]


def fragment(
    arguments: Any = None, name: str | None = None, id: str | None = None, index: Any = None
) -> dict[str, Any]:
    found: dict[str, Any] = {"function": {"name": name, "arguments": arguments}}
    if id is not None:
        found["id"] = id
    if index is not None:
        found["index"] = index
    return found


def test_calls_without_an_index() -> None:
    assert calls_of(fragment('{"a"', "one", "x"), fragment(": 1}"), fragment("{}", "two", "y")) == [
        ("x", "one", '{"a": 1}'),
        ("y", "two", "{}"),
    ]


def test_calls_that_are_all_numbered_0() -> None:
    assert calls_of(
        fragment("{}", "one", "x", 0), fragment('{"b"', "one", "y", 0), fragment(":2}", index=0)
    ) == [("x", "one", "{}"), ("y", "one", '{"b":2}')]


def test_calls_without_ids() -> None:
    found = calls_of(fragment('{"a":1}', "one"), fragment("{}", "one"), fragment(None, "two"))
    assert [call[1:] for call in found] == [("one", '{"a":1}'), ("one", "{}"), ("two", "{}")]
    assert len({call[0] for call in found}) == 3
    assert all(call[0].startswith("call_") for call in found)


def test_names_and_ids_that_are_repeated() -> None:
    assert calls_of(
        fragment("", "one", "x", 0), fragment('{"a"', "one", "x", 0), fragment(":1}", "one", "x", 0)
    ) == [("x", "one", '{"a":1}')]


def test_an_id_made_up_for_each_fragment() -> None:
    assert calls_of(
        fragment('{"a"', "one", "x1", 0), fragment(":1", None, "x2", 0), fragment("}", "", "x3", 0)
    ) == [("x1", "one", '{"a":1}')]


def test_arguments_as_an_object_or_none() -> None:
    assert calls_of(fragment({"ä": 1}, "one", "x", 0), fragment(None, "two", "y", 1)) == [
        ("x", "one", '{"ä": 1}'),
        ("y", "two", "{}"),
    ]


def test_an_id_of_an_earlier_call_is_replaced() -> None:
    history = [
        Message("user", "hi"),
        Message("assistant", tool_calls=(ToolCall("call_0", "file_list", "{}"),)),
        Message("tool", "x", tool_call_id="call_0", name="file_list"),
    ]
    steps = chat_steps((("file_list", "{}"),))
    end = ending(replay(steps, asking(*history)))
    assert end.message.tool_calls[0].id not in ("", "call_0")


def test_calls_in_a_final_message_and_a_finish_reason_that_does_not_fit() -> None:
    end = of({"content": None, "tool_calls": [fragment("{}", "one", "x", 0)]}, finish="stop")
    assert end.finish_reason == "tool_calls"
    assert of({"content": "x"}, finish="tool_calls").finish_reason == "stop"


@pytest.mark.parametrize(
    ("reason", "mapped"),
    [
        ("content_filter", "content_filter"),
        ("max_tokens", "length"),
        ("function_call", "stop"),
        ("eos", "stop"),
        (None, "stop"),
    ],
)
def test_finish_reasons(reason: str | None, mapped: str) -> None:
    assert of({"content": "x"}, finish=reason).finish_reason == mapped


def test_content_in_parts() -> None:
    end = of(
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
        {"content": [{"type": "text", "text": "yes"}, {"type": "image"}, 5]},
    )
    assert (end.message.reasoning, end.message.content) == ("hm", "yes")


def test_reasoning_under_both_names_is_taken_once() -> None:
    assert of({"reasoning": "a", "reasoning_content": "a"}).message.reasoning == "a"
    assert of({"reasoning": "b"}).message.reasoning == "b"


def test_a_whole_answer_though_a_stream_was_asked_for() -> None:
    message = {"role": "assistant", "content": "whole", "tool_calls": [fragment("{}", "one", "x")]}
    body = json.dumps(
        {
            "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 4},
        }
    ).encode()
    end = ending(replay([body], content_type="application/json; charset=utf-8"))
    assert end.message.content == "whole"
    assert end.message.tool_calls == (ToolCall("x", "one", "{}"),)
    assert end.usage.total_tokens == 7


def test_no_usage_and_strange_usage() -> None:
    steps = [
        event({"content": "x"}, "stop"),
        b'data: {"choices":[],"usage":{"prompt_tokens":"a"}}\n\n',
    ]
    assert ending(replay([*steps, b"data: [DONE]\n\n"])).usage.total_tokens == 0


@pytest.mark.parametrize(
    "data",
    [
        b"data: null\n\n",
        b"data: []\n\n",
        b"data: {\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
        b'data: {"choices": [null]}\n\n',
        b'data: {"choices": {"a": 1}}\n\n',
        b'data: {"choices": [{"delta": "x"}]}\n\n',
        b'data: {"choices": [{"delta": {"tool_calls": "x"}}]}\n\n',
        b'data: {"choices": [{"delta": {"tool_calls": [null, {"function": 5, "index": {}}]}}]}\n\n',
        b'data: {"choices": [{"delta": {"content": 5, "reasoning": {}, "refusal": []}}]}\n\n',
        b'data: {"usage": 7}\n\n',
        b'data: {"choices": [{"finish_reason": {}, "delta": {"content": [{"thinking": 5}]}}]}\n\n',
        b"",
        b"<html>",
        b"data: [DONE]\n\n",
    ],
)
def test_nonsense_never_breaks_us(data: bytes) -> None:
    with contextlib.suppress(ProviderError):
        ending(replay([data]))


def test_no_answer_is_an_error_that_may_be_tried_again() -> None:
    for chunks in ([], [b"data: [DONE]\n\n"], [event({"role": "assistant"}), b"data: [DONE]\n\n"]):
        with pytest.raises(ProviderError) as caught:
            replay(chunks)
        assert caught.value.retryable


# ------------------------------------------------------------------------------------ the request


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("http://localhost:11434", "http://localhost:11434/v1/chat/completions"),
        ("http://localhost:11434/", "http://localhost:11434/v1/chat/completions"),
        ("http://localhost:11434/v1", "http://localhost:11434/v1/chat/completions"),
        ("http://localhost:11434/v1/ ", "http://localhost:11434/v1/chat/completions"),
        ("https://api.groq.com/openai", "https://api.groq.com/openai/v1/chat/completions"),
        ("https://x.org/api/paas/v4", "https://x.org/api/paas/v4/chat/completions"),
        ("https://x.org/v1beta/openai/", "https://x.org/v1beta/openai/chat/completions"),
        ("https://x.org/v1/chat/completions", "https://x.org/v1/chat/completions"),
        ("https://x.org/openai/v1?api=2", "https://x.org/openai/v1/chat/completions?api=2"),
    ],
)
def test_addresses(base_url: str, url: str) -> None:
    assert completions_url(base_url) == url


def body_of(request: ModelRequest, base_url: str = "http://x") -> bytes:
    provider = OpenAI(ProviderSettings("fake", "openai", base_url), Replay([]))
    return provider._post(request).body


def test_the_body() -> None:
    call = ToolCall("c1", "file_list", '{"path":"/ü"}')
    body = json.loads(
        body_of(
            asking(
                Message("system", "Be brief."),
                Message("user", "list 😀"),
                Message("assistant", tool_calls=(call,), reasoning="hidden"),
                Message("tool", "a.txt", tool_call_id="c1", name="file_list"),
            )
        )
    )
    assert body == {
        "model": "fake-1",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 4096,
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "file_list",
                    "description": "List files.",
                    "parameters": {"type": "object", "properties": {}},
                },
            }
        ],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "list 😀"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "file_list", "arguments": '{"path":"/ü"}'},
                    }
                ],
            },
            {"role": "tool", "content": "a.txt", "tool_call_id": "c1"},
        ],
    }


def test_the_name_of_the_limit() -> None:
    official = "https://api.openai.com/v1"
    assert json.loads(body_of(asking(), official))["max_completion_tokens"] == 4096
    assert "max_tokens" not in json.loads(body_of(asking(), official))
    assert "max_tokens" in json.loads(body_of(asking(), "https://api.openai.com.evil.org/v1"))
    unknown = ModelSpec("x", "m", 1000, 0)
    assert not {"max_tokens", "max_completion_tokens"} & set(
        json.loads(body_of(asking(model=unknown)))
    )


def test_no_tools_means_no_list_of_them() -> None:
    assert "tools" not in json.loads(body_of(asking(tools=[])))


def test_a_lone_surrogate_can_be_sent() -> None:
    body = json.loads(body_of(asking(Message("user", "a\ud800b"))))
    assert body["messages"][0]["content"] == "a?b"


def test_each_message_is_encoded_once_and_the_prefix_stays() -> None:
    provider = OpenAI(ProviderSettings("x", "openai", "http://x"), Replay([]))
    encoded: list[Message] = []
    encode = provider.encode_message

    class Counting(OpenAI):
        def encode_message(self, message: Message) -> bytes:
            encoded.append(message)
            return encode(message)

    provider = Counting(ProviderSettings("x", "openai", "http://x"), Replay([]))
    messages = [Message("system", "s"), Message("user", "u")]
    before = provider._post(asking(*messages)).body
    for turn in range(30):
        call = ToolCall(f"c{turn}", "file_list", "{}")
        messages += [
            Message("assistant", "", tool_calls=(call,)),
            Message("tool", "x" * 1000, tool_call_id=call.id, name=call.name),
        ]
        body = provider._post(asking(*messages)).body
        assert body.startswith(before.removesuffix(b"]}"))
        before = body
    assert len(encoded) == len(messages)


# ----------------------------------------------------- what a model is shown, told and given back


def sent(request: ModelRequest, base_url: str = "http://x") -> dict[str, Any]:
    """The body that a request would have, decoded."""
    return dict(json.loads(body_of(request, base_url)))


def attached(mime_type: str) -> Message:
    data = b"\x00\x01\xfe"
    file = Attachment(mime_type, hashlib.sha256(data).hexdigest(), data, "it")
    return Message("user", "look", attachments=(file,))


SEES = replace(MODEL, images=True, pdfs=True)


def test_images_and_pdfs_go_along() -> None:
    picture = sent(asking(attached("image/png"), model=SEES))
    url = {"url": "data:image/png;base64,AAH+"}
    assert picture["messages"][0]["content"] == [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": url},
    ]
    paper = sent(asking(attached("application/pdf"), model=SEES))
    file = {"filename": "it", "file_data": "data:application/pdf;base64,AAH+"}
    assert paper["messages"][0]["content"][1] == {"type": "file", "file": file}


@pytest.mark.parametrize("kind", ["image/png", "application/pdf"])
def test_what_a_model_cannot_take_is_refused_and_not_dropped(kind: str) -> None:
    with pytest.raises(ProviderError) as refused:
        sent(asking(attached(kind)))
    assert refused.value.code == "unsupported"


def test_an_image_that_another_model_made_is_said_in_words() -> None:
    made = replace(attached("image/png"), role="assistant", content="here")
    told = sent(asking(Message("user", "draw"), made, Message("user", "more")))
    assert told["messages"][1]["content"].startswith("here\n[A file was made here: it (image/png")


@pytest.mark.parametrize(
    ("level", "values", "word"),
    [
        ("", ("low", "high"), None),
        ("medium", ("low", "high"), "low"),
        ("high", ("low", "high"), "high"),
        ("off", ("none", "low"), "none"),
        ("off", ("low", "high"), "low"),
    ],
)
def test_reasoning_effort(level: str, values: tuple[str, ...], word: str | None) -> None:
    options = (ReasoningOption("effort", values),)
    model = replace(MODEL, reasoning=True, reasoning_options=options)
    assert sent(asking(model=model, reasoning=level)).get("reasoning_effort") == word


def test_the_prompt_cache_is_keyed_by_session_on_the_official_host_only() -> None:
    request = asking(session_id="s1")
    assert sent(request, "https://api.openai.com/v1")["prompt_cache_key"] == "s1"
    assert "prompt_cache_key" not in sent(request, "http://127.0.0.1:9/v1")


def test_reasoning_goes_back_to_the_model_that_wants_it_and_to_no_other() -> None:
    model = replace(MODEL, reasoning=True, reasoning_field="reasoning_content")
    chunks = events_of("openai_reasoning")
    end = ending(replay(chunks, asking(model=model)))
    assert end.message.native == Native("fake", "fake-1", {"reasoning_content": "First, think."})
    history = (Message("user", "x"), end.message, Message("user", "y"))
    again = sent(asking(*history, model=model))["messages"][1]
    assert again["reasoning_content"] == "First, think."
    other = sent(asking(*history, model=replace(model, id="other")))["messages"][1]
    assert "reasoning_content" not in other
