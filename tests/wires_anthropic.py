"""The Anthropic wire's side of `fake_model`: what its server answers, as steps of a `Reply`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.fake_model import CUT, STALL, Reply


def event(kind: str, **fields: Any) -> bytes:
    data = json.dumps({"type": kind, **fields}, separators=(",", ":"))
    return f"event: {kind}\ndata: {data}\n\n".encode()


def begin(**usage: int) -> bytes:
    counts = {"input_tokens": 10, "output_tokens": 1, **usage}
    return event("message_start", message={"id": "msg_1", "role": "assistant", "usage": counts})


def block(index: int, start: Mapping[str, Any], *deltas: Mapping[str, Any]) -> list[bytes]:
    """One content block with its deltas."""
    return [
        event("content_block_start", index=index, content_block=dict(start)),
        *(event("content_block_delta", index=index, delta=dict(delta)) for delta in deltas),
        event("content_block_stop", index=index),
    ]


def text(index: int, *pieces: str) -> list[bytes]:
    deltas = [{"type": "text_delta", "text": piece} for piece in pieces]
    return block(index, {"type": "text", "text": ""}, *deltas)


def call(index: int, name: str, arguments: Any, id: str = "") -> list[bytes]:
    written = arguments if isinstance(arguments, str) else json.dumps(arguments)
    start = {"type": "tool_use", "id": id or f"toolu_{index}", "name": name, "input": {}}
    return block(index, start, {"type": "input_json_delta", "partial_json": written})


def thinking(index: int, thought: str, signature: str) -> list[bytes]:
    return block(
        index,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": thought},
        {"type": "signature_delta", "signature": signature},
    )


def end(reason: str = "end_turn", output_tokens: int = 5, **fields: Any) -> list[bytes]:
    return [
        event(
            "message_delta",
            delta={"stop_reason": reason, **fields},
            usage={"output_tokens": output_tokens},
        ),
        event("message_stop"),
    ]


def answer(*parts: Any) -> Reply:
    """As `FakeModel.reply`: texts, calls as `(name, arguments)`, and STALL or CUT, which end it."""
    steps: list[Any] = [begin()]
    for index, part in enumerate(parts):
        if part is STALL or part is CUT:
            return Reply([*steps, part])
        steps += call(index, *part) if isinstance(part, tuple) else text(index, part)
    calls = any(isinstance(part, tuple) for part in parts)
    return Reply([*steps, *end("tool_use" if calls else "end_turn")])


def error(status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> Reply:
    body = json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()
    content = {"Content-Type": "application/json", **(headers or {})}
    return Reply([body], status, content, framing="length")
