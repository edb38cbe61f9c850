"""What the OpenAI wires demand of a request, as validators: each raises `AssertionError` that says
which rule a body breaks.

From the API reference of Chat Completions and of Responses, and from what servers that speak these
wires are known to refuse. Deliberately stricter than any one server: a history that passes here can
be sent to all of them. The rules of the other wires lie beside this file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
MAX_CALL_ID = 40
MAX_CACHE_KEY = 64
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def check_openai(body: Any) -> None:
    """The rules of Chat Completions."""
    _top(body, "messages")
    assert body.get("stream_options") == {"include_usage": True}
    for tool in _tools(body):
        assert tool.keys() == {"type", "function"}, f"a tool is {tool}"
        _function(tool["function"])
    for limit in ("max_tokens", "max_completion_tokens"):
        assert body.get(limit, 1) > 0, f"{limit} is {body[limit]}"
    awaited: list[str] = []  # calls that must be answered before anything else is said
    seen: set[str] = set()
    for message in body["messages"]:
        role = message.get("role")
        if role == "tool":
            assert message["tool_call_id"] in awaited, "a result without a call before it"
            awaited.remove(message["tool_call_id"])
            _text_or_parts(message.get("content"), ("text",), may_be_empty=True)
            continue
        assert not awaited, f"calls {awaited} have no result"
        if role == "assistant":
            calls = message.get("tool_calls")
            assert calls is None or calls, "tool_calls is an empty list"
            if not calls or message.get("content") is not None:
                _text_or_parts(message.get("content"), ("text", "refusal"))
            for call in calls or ():
                assert call.keys() == {"id", "type", "function"}
                assert call["type"] == "function"
                _call(call["id"], call["function"]["name"], call["function"]["arguments"], seen)
                awaited.append(call["id"])
        else:
            assert role in ("system", "developer", "user"), f"a role is {role!r}"
            parts = ("text", "image_url", "file", "input_audio")
            _text_or_parts(message.get("content"), parts, may_be_empty=role == "system")
    assert not awaited, f"calls {awaited} have no result"


def check_responses(body: Any) -> None:
    """The rules of Responses."""
    _top(body, "input")
    assert isinstance(body.get("store"), bool), "store is not given, and would be true"
    assert isinstance(body.get("instructions", ""), str)
    assert set(body.get("include", ())) <= {"reasoning.encrypted_content"}
    assert body.get("reasoning", {}).get("effort", "low") in EFFORTS
    assert body.get("max_output_tokens", 16) > 0
    assert len(body.get("prompt_cache_key", "")) <= MAX_CACHE_KEY
    for tool in _tools(body):
        assert tool["type"] == "function"
        assert tool["strict"] is False, "strict is not given, and would be true"
        _function({name: tool[name] for name in tool.keys() - {"type", "strict"}})
    chained = "previous_response_id" in body
    assert body.get("previous_response_id", "resp") != ""
    awaited: list[str] = []
    seen: set[str] = set()
    thought = False  # the item before was a reasoning item
    for item in body["input"]:
        kind = item.get("type")
        if thought:
            made = kind in ("reasoning", "function_call") or item.get("role") == "assistant"
            assert made, "reasoning was provided without its required following item"
        thought = kind == "reasoning"
        if kind == "message":
            _item_message(item)
        elif kind == "function_call":
            assert re.match("fc", item.get("id", "fc")), "the id of a call begins with fc"
            _call(item["call_id"], item["name"], item["arguments"], seen)
            awaited.append(item["call_id"])
        elif kind == "function_call_output":
            assert chained or item["call_id"] in awaited, "an output without a call before it"
            if item["call_id"] in awaited:
                awaited.remove(item["call_id"])
            parts = ("input_text", "input_image", "input_file")
            _text_or_parts(item["output"], parts, may_be_empty=True)
        else:
            assert kind == "reasoning", f"an item is of type {kind!r}"
            _item_reasoning(item)
    assert not thought, "reasoning was provided without its required following item"
    assert not awaited, f"calls {awaited} have no output"


def _item_message(item: Mapping[str, Any]) -> None:
    content = item["content"]
    if item["role"] == "assistant" and not isinstance(content, str):
        assert re.match("msg", item["id"]), "the id of a message begins with msg"
        assert item["status"] in ("in_progress", "completed", "incomplete")
        assert all("annotations" in part for part in content if part["type"] == "output_text")
        _text_or_parts(content, ("output_text", "refusal"))
        return
    assert item["role"] in ("user", "assistant", "system", "developer")
    assert "id" not in item
    parts = ("input_text", "input_image", "input_file")
    _text_or_parts(content, parts, may_be_empty=item["role"] in ("system", "developer"))


def _item_reasoning(item: Mapping[str, Any]) -> None:
    assert re.match("rs", item["id"]), "the id of reasoning begins with rs"
    assert all(part["type"] == "summary_text" for part in item["summary"])
    assert item.get("encrypted_content") or item.get("content"), "reasoning that is not stored"


# -------------------------------------------------------------------------------------- shared


def _top(body: Any, items: str) -> None:
    _encodable(body)
    assert isinstance(body["model"], str)
    assert body["model"]
    assert body["stream"] is True
    assert isinstance(body[items], list)
    assert body[items], f"{items} is empty"


def _tools(body: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    tools = body.get("tools")
    assert tools is None or tools, "tools is an empty list"
    return tools or ()


def _function(function: Mapping[str, Any]) -> None:
    assert NAME.fullmatch(function["name"]), f"a tool is named {function['name']!r}"
    assert isinstance(function["description"], str)
    assert function["parameters"]["type"] == "object"


def _call(identity: Any, name: Any, arguments: Any, seen: set[str]) -> None:
    assert isinstance(identity, str)
    assert 0 < len(identity) <= MAX_CALL_ID, f"a call's id is {identity!r}"
    assert identity not in seen, f"two calls have the id {identity!r}"
    seen.add(identity)
    assert NAME.fullmatch(name), f"a call's name is {name!r}"
    assert isinstance(json.loads(arguments, parse_constant=_no_number), dict)


def _no_number(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def _text_or_parts(content: Any, kinds: Sequence[str], *, may_be_empty: bool = False) -> None:
    if isinstance(content, str):
        assert content or may_be_empty, "a message is empty"
        return
    assert isinstance(content, list), f"content is {content!r}"
    assert content, "a message has no parts"
    for part in content:
        kind = part["type"]
        assert kind in kinds, f"a part is of type {kind!r}"
        texts = {"text", "input_text", "output_text"}
        assert kind not in texts or part["text"], "a part is empty"
        if kind == "image_url":
            _data_url(part["image_url"]["url"], "image/")
        elif kind == "input_image":
            _data_url(part["image_url"], "image/")
        elif kind in ("file", "input_file"):
            file = part["file"] if kind == "file" else part
            assert file["filename"]
            _data_url(file["file_data"], "application/pdf")


def _data_url(url: str, kind: str) -> None:
    assert re.fullmatch(rf"data:{kind}[^;,]*;base64,[A-Za-z0-9+/]+=*", url), "no data URL"


def _encodable(value: Any) -> None:
    """Every text in it is valid Unicode: a lone surrogate cannot be sent."""
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, dict):
        _encodable(list(value.items()))
    elif isinstance(value, list | tuple):
        for item in value:
            _encodable(item)


CHECKS: dict[str, Callable[[Any], None]] = {
    "openai": check_openai,
    "openai_responses": check_responses,
}
