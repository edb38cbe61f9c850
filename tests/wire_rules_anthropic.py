"""What the Anthropic wire demands of a request, as a validator; see `wire_rules`.

From the API reference ("Messages", "Tool use", "Extended thinking", "Prompt caching") and from what
the API is known to refuse.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any

NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
BLOCKS = {
    "user": {"text", "image", "document", "tool_result"},
    "assistant": {"text", "thinking", "redacted_thinking", "tool_use"},
}
TOP = {
    "model", "max_tokens", "stream", "thinking", "output_config", "tools", "tool_choice", "system",
    "messages",
}  # fmt: skip
EFFORTS = ("low", "medium", "high", "xhigh", "max")
IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")


def check_anthropic(body: Any) -> None:
    """Raise `AssertionError` that says which rule `body` breaks."""
    assert body.keys() <= TOP, f"unknown fields {body.keys() - TOP}"
    assert isinstance(body["model"], str)
    assert body["model"]
    assert body["stream"] is True
    assert isinstance(body["max_tokens"], int)
    assert body["max_tokens"] > 0
    _thinking(body)
    names = [tool["name"] for tool in body.get("tools", ())]
    assert len(names) == len(set(names)), "tool names must be unique"
    for tool in body.get("tools", ()):
        assert NAME.fullmatch(tool["name"]), f"tool name {tool['name']!r}"
        assert tool["input_schema"]["type"] == "object"
    for block in body.get("system", ()):
        _text(block)
    assert body.get("system", [1]), "system is an empty list"
    _messages(body)
    marks = json.dumps(body).count('"cache_control": {"type": "ephemeral"}')
    assert marks <= 4, f"{marks} breakpoints"


def _thinking(body: Any) -> None:
    thinking = body.get("thinking", {"type": "disabled"})
    if thinking["type"] == "enabled":
        assert 1024 <= thinking["budget_tokens"] < body["max_tokens"]
        # a run of calls must begin with thinking
        first = last = len(body["messages"]) - 1
        while any(block["type"] == "tool_result" for block in body["messages"][first]["content"]):
            first -= 2
        if first != last:
            begins = body["messages"][first + 1]["content"][0]["type"]
            assert begins in ("thinking", "redacted_thinking"), f"expected thinking, found {begins}"
    else:
        assert thinking["type"] in ("adaptive", "disabled")
    assert body.get("output_config", {}).get("effort", "low") in EFFORTS


def _messages(body: Any) -> None:
    messages = body["messages"]
    assert messages, "at least one message is required"
    assert messages[0]["role"] == "user", "the first message must be the user's"
    assert messages[-1]["role"] == "user", "prefill is not supported"
    calls: list[str] = []
    ids: set[str] = set()
    for index, message in enumerate(messages):
        role, blocks = message["role"], message["content"]
        assert not index or role != messages[index - 1]["role"], "roles must take turns"
        assert isinstance(blocks, list)
        assert blocks, "a message has no content"
        results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        assert sorted(results) == sorted(calls), f"calls {calls} were answered by {results}"
        kinds = [block["type"] for block in blocks]
        assert set(kinds[: len(results)]) <= {"tool_result"}, "results must come first"
        calls = []
        for block in blocks:
            assert block["type"] in BLOCKS[role], f"{block['type']} said by {role}"
            _block(block)
            if block["type"] == "tool_use":
                assert block["id"] not in ids, "tool_use ids must be unique"
                ids.add(block["id"])
                calls.append(block["id"])
        if role == "assistant":
            assert kinds[-1] not in ("thinking", "redacted_thinking"), "thinking comes last"
    if ids:
        assert body.get("tools"), "requests with tool_use blocks must define tools"


def _block(block: Any) -> None:
    match block["type"]:
        case "text":
            _text(block)
        case "thinking":
            assert isinstance(block["thinking"], str)
            assert block["signature"], "thinking without a signature"
            assert "cache_control" not in block, "thinking cannot be marked"
        case "redacted_thinking":
            assert block["data"]
        case "tool_use":
            assert NAME.fullmatch(block["id"]), f"id {block['id']!r}"
            assert NAME.fullmatch(block["name"]), f"name {block['name']!r}"
            assert isinstance(block["input"], dict), "input must be an object"
        case "tool_result":
            content = block.get("content", "")
            if block.get("is_error"):
                assert content, "content cannot be empty if is_error is true"
            for part in content if isinstance(content, list) else ():
                assert part["type"] in ("text", "image", "document")
                _block(part)
        case "image" | "document":
            source = block["source"]
            kinds = IMAGES if block["type"] == "image" else ("application/pdf",)
            assert source["type"] == "base64"
            assert source["media_type"] in kinds
            assert base64.b64decode(source["data"], validate=True)


def _text(block: Any) -> None:
    assert block["type"] == "text"
    assert block["text"].strip(), "text must contain something besides spaces"
    block["text"].encode()
