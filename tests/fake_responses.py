"""What a Responses server streams, as steps of a `Reply` of the fake model server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

USAGE = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 15,
}


def typed(kind: str, **fields: Any) -> bytes:
    """One typed event."""
    data = json.dumps({"type": kind, **fields}, ensure_ascii=False)
    return f"event: {kind}\ndata: {data}\n\n".encode()


def message_item(text: str, number: int = 0, **fields: Any) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [part],
        **fields,
    }


def call_item(name: str, arguments: str, number: int = 0, call_id: str = "") -> dict[str, Any]:
    return {
        "id": f"fc_{number}",
        "type": "function_call",
        "status": "completed",
        "call_id": call_id or f"call_{number}",
        "name": name,
        "arguments": arguments,
    }


def reasoning_item(sealed: str | None = "gAAA", number: int = 0, text: str = "") -> dict[str, Any]:
    summary = [{"type": "summary_text", "text": text}] if text else []
    return {
        "id": f"rs_{number}",
        "type": "reasoning",
        "encrypted_content": sealed,
        "summary": summary,
    }


def response_steps(*parts: Any, id: str = "resp_1", end: str = "completed") -> list[Any]:
    """The steps of an answer: a str is a text delta (neighbours are one message), a tuple
    `(name, arguments)` a call, a dict an item that comes whole, anything else a step as it is;
    `end=""` leaves the end out.
    """
    steps: list[Any] = [typed("response.created", response={"id": id, "status": "in_progress"})]
    items: list[Mapping[str, Any]] = []
    texts: list[str] = []

    def close_message() -> None:
        if texts:
            item = message_item("".join(texts), len(items))
            steps.append(typed("response.output_item.done", output_index=len(items), item=item))
            items.append(item)
            texts.clear()

    for part in parts:
        if isinstance(part, str):
            if not texts:
                item = message_item("", len(items), status="in_progress", content=[])
                steps.append(
                    typed("response.output_item.added", output_index=len(items), item=item)
                )
            texts.append(part)
            where = {"output_index": len(items), "content_index": 0}
            steps.append(typed("response.output_text.delta", delta=part, **where))
            continue
        close_message()
        if isinstance(part, tuple | dict):
            if isinstance(part, tuple):
                name, arguments = part
                text = arguments if isinstance(arguments, str) else json.dumps(arguments)
                part = call_item(name, text, len(items))
            done = typed("response.output_item.done", output_index=len(items), item=part)
            steps.append(done)
            items.append(part)
        else:
            steps.append(part)
    close_message()
    if end:
        response = {
            "id": id,
            "object": "response",
            "status": end,
            "output": items,
            "usage": USAGE,
        }
        steps.append(typed(f"response.{end}", response=response))
    return steps
