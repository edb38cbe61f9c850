"""The Gemini wire's side of `fake_model`: what its server answers, as steps of a `Reply`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.fake_model import CUT, STALL, Reply


def event(data: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(data, separators=(',', ':'))}\r\n\r\n".encode()


def chunk(*parts: Mapping[str, Any], finish: str = "", **fields: Any) -> bytes:
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    return event({"candidates": [candidate], **fields})


def call(name: str, args: Any, signature: str = "", id: str = "") -> dict[str, Any]:
    function = {"name": name, "args": args, **({"id": id} if id else {})}
    part: dict[str, Any] = {"functionCall": function}
    return {**part, "thoughtSignature": signature} if signature else part


def end(finish: str = "STOP") -> bytes:
    usage = {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15}
    return chunk(finish=finish, usageMetadata=usage)


def answer(*parts: Any) -> Reply:
    """As `FakeModel.reply`: texts, calls as `(name, arguments)`, and STALL or CUT, which end it."""
    steps: list[Any] = []
    for part in parts:
        if part is STALL or part is CUT:
            return Reply([*steps, part])
        steps.append(chunk(call(*part) if isinstance(part, tuple) else {"text": part}))
    return Reply([*steps, end()])


def error(status: int, kind: str, message: str, details: Sequence[Mapping[str, Any]] = ()) -> Reply:
    told = {"code": status, "message": message, "status": kind, "details": list(details)}
    body = json.dumps({"error": told}).encode()
    return Reply([body], status, {"Content-Type": "application/json"}, framing="length")
