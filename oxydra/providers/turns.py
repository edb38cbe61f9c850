"""A repaired history for the wires on which two roles take turns (Anthropic, Gemini). Pure.

The system's words stand apart there, and what a tool answers is said by the user. `turns` brings a
history into that shape; the rest is what both wires make of a message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from oxydra.providers.repair import MAX_NAME
from oxydra.types import Attachment, Message, ToolSpec

BLANK = "(blank)"  # stands for a user's text of nothing but spaces, which wires refuse
BEGIN = Message("user", "(What was said before is left out.)")
GO_ON = Message("user", "Go on.")
_FOREIGN = re.compile(r"[^a-zA-Z0-9_-]")


@dataclass(slots=True)
class Turn:
    """Neighbours in a history that speak with one voice; a tool's result is the user's."""

    role: Literal["user", "assistant"]
    messages: list[Message] = field(default_factory=list)


def turns(history: Sequence[Message]) -> list[Turn]:
    """The turns of a repaired history without its system messages. The user has the first and the
    last: where the history says otherwise, a few words are put in their mouth.
    """
    found: list[Turn] = []
    for message in history:
        if message.role == "system":
            continue
        role: Literal["user", "assistant"] = "assistant" if message.role == "assistant" else "user"
        if not _says_something(message):
            continue
        if not found or found[-1].role != role:
            if not found and role == "assistant":
                found.append(Turn("user", [BEGIN]))
            found.append(Turn(role))
        found[-1].messages.append(message)
    if not found or found[-1].role == "assistant":
        found.append(Turn("user", [GO_ON]))
    return found


def _says_something(message: Message) -> bool:
    return message.role != "assistant" or bool(
        message.content.strip() or message.tool_calls or message.attachments
    )


def system_messages(history: Sequence[Message]) -> list[Message]:
    """The system's messages that say something."""
    return [m for m in history if m.role == "system" and m.content.strip()]


def wire_name(name: str) -> str:
    """The name of a tool as wires take it, and as `repair` writes it in a history."""
    return _FOREIGN.sub("_", name)[:MAX_NAME] or "unnamed"


def real_names(
    tools: Sequence[ToolSpec], rename: Callable[[str], str] = wire_name
) -> dict[str, str]:
    """The tools' own names by those they have on the wire, where they differ."""
    return {rename(tool.name): tool.name for tool in tools if rename(tool.name) != tool.name}


def said_of(attachment: Attachment) -> str:
    """In words, what a wire cannot carry of an assistant's message."""
    name = f" {attachment.name}" if attachment.name else ""
    return f"[A file was made here:{name} ({attachment.mime_type}, {attachment.size} bytes)]"


def text_of(value: Any) -> str:
    """`value` if it is a text, or else none: servers send null and worse."""
    return value if isinstance(value, str) else ""
