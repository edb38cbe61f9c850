"""What every provider shares and no wire decides: settings, and a message as its stream builds it.

Pure: no thread, no I/O.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from oxydra.frames import compact
from oxydra.types import (
    Completed,
    FinishReason,
    Message,
    Native,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    Usage,
)


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """One entry of the provider registry as its provider needs it; holds no secret.

    `credential` names the key that the transport adds, "" for a server without one; `key_source` is
    where a person finds that key, for error messages (`OPENAI_API_KEY`). `base_url` is the type's
    own service if empty. Timeouts are seconds: `idle_timeout` is the longest silence,
    `total_timeout` bounds one call whatever the server does. `store` lets the service keep the
    conversation, so that less of it need be sent (Responses). `script` is for the offline provider.
    """

    name: str
    provider_type: str
    base_url: str = ""
    credential: str = ""
    key_source: str = ""
    extra_headers: Mapping[str, str] = field(default_factory=dict)
    script: Any = None
    connect_timeout: float = 10.0
    idle_timeout: float = 180.0
    total_timeout: float = 1800.0
    max_response_bytes: int = 64 << 20
    store: bool = False


@dataclass(slots=True)
class PendingCall:
    """A tool call whose fragments are still coming in."""

    index: int | None = None
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class Assembly:
    """The message that a stream builds up: fragments are kept in lists and joined once."""

    def __init__(self, *, waits_for_bytes: bool = True) -> None:
        """`waits_for_bytes`: what waits between its texts is the transport, and it says so."""
        self._more = waits_for_bytes
        self.calls: list[PendingCall] = []
        self.usage = Usage()
        self.finish: FinishReason | None = None
        self.refused = False
        self._text: list[str] = []
        self._reasoning: list[str] = []

    @property
    def empty(self) -> bool:
        return not (self._text or self._reasoning or self.calls)

    @property
    def length(self) -> int:
        """Characters of text and reasoning so far."""
        return sum(map(len, self._text)) + sum(map(len, self._reasoning))

    def text(self, piece: str) -> TextDelta:
        self._text.append(piece)
        return TextDelta(piece, self._more)

    def reasoning(self, piece: str) -> ReasoningDelta:
        self._reasoning.append(piece)
        return ReasoningDelta(piece)

    @property
    def thought(self) -> str:
        """The reasoning so far."""
        return "".join(self._reasoning)

    def completed(self, history: Sequence[Message], native: Native | None = None) -> Completed:
        """The end of the stream. Arguments stay the text the model wrote, cut or wrong as it may
        be; only a call without any means no arguments, unless it was cut there. An id that is
        missing, or that a call in `history` has already, is replaced: some servers count from 0 in
        each answer.
        """
        finish = self.finish or "stop"
        if self.refused:
            finish = "refusal"
        elif finish in ("stop", "tool_calls"):
            finish = "tool_calls" if self.calls else "stop"
        none = "" if finish == "length" else "{}"
        taken = (
            {call.id for message in history for call in message.tool_calls} if self.calls else set()
        )
        calls = []
        for call in self.calls:
            identity = call.id
            if not identity or identity in taken:
                identity = f"call_{uuid.uuid4().hex[:24]}"
            taken.add(identity)
            calls.append(ToolCall(identity, call.name, "".join(call.arguments) or none))
        message = Message(
            "assistant",
            "".join(self._text),
            tool_calls=tuple(calls),
            reasoning=self.thought,
            native=native,
        )
        return Completed(message, finish, self.usage)


def json_bytes(value: Any) -> bytes:
    """JSON as requests carry it: compact UTF-8; a lone surrogate becomes a question mark."""
    return compact(value).encode("utf-8", "replace")


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is a JSON object, or else an empty one: servers send null and worse."""
    return value if isinstance(value, dict) else {}


def count(value: Any) -> int:
    """A number of tokens, 0 for whatever else a server put there."""
    return value if isinstance(value, int) and value > 0 else 0
