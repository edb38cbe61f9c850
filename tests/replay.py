"""What the tests of providers share: requests, a check of what every stream keeps to, and a
transport that plays recorded bytes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oxydra.threads import CancelToken
from oxydra.transport import HttpRequest, HttpStream
from oxydra.types import (
    Completed,
    Message,
    ModelRequest,
    ModelSpec,
    ReasoningDelta,
    StreamEvent,
    TextDelta,
    ToolSpec,
)

MODEL = ModelSpec("fake", "fake-1", 100_000, 4_096)
TOOL = ToolSpec("file_list", "List files.", {"type": "object", "properties": {}})


def asking(*messages: Message, **fields: Any) -> ModelRequest:
    history = messages or (Message("system", "Be brief."), Message("user", "hi"))
    return ModelRequest(**{"model": MODEL, "messages": list(history), "tools": [TOOL], **fields})


def ending(events: Sequence[StreamEvent]) -> Completed:
    """The last event, after checking what every stream keeps to."""
    *deltas, end = events
    assert isinstance(end, Completed)
    assert not any(isinstance(delta, Completed) for delta in deltas)
    text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    thoughts = "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta))
    assert (text, thoughts) == (end.message.content, end.message.reasoning)
    assert end.message.role == "assistant"
    return end


class Replay:
    """A transport that plays bytes back, cut as told."""

    def __init__(self, chunks: Sequence[bytes], headers: dict[str, str] | None = None) -> None:
        self.chunks = chunks
        self.headers = headers or {"content-type": "text/event-stream"}

    def open(self, request: HttpRequest, token: CancelToken) -> HttpStream:
        left = iter([*self.chunks, b""])
        return HttpStream(
            status=200, headers=self.headers, read=lambda: next(left), token=token,
            release=lambda complete: None, max_bytes=request.max_bytes, where="replay",
        )  # fmt: skip

    def warm(self) -> None: ...

    def close(self) -> None: ...
