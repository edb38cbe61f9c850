"""Oxydra: a self-hosted AI agent orchestrator. `docs/guidebook/` explains how it is made.

What a program may use is named here, and imported when it is first used: see docs/library.md.
"""

from typing import TYPE_CHECKING

from oxydra.version import VERSION as __version__

if TYPE_CHECKING:
    from oxydra.agent import Agent, Answer, Event, Reply
    from oxydra.errors import OxydraError, TurnFailed
    from oxydra.tools.base import tool
    from oxydra.types import (
        Completed,
        Message,
        ModelRequest,
        ModelSpec,
        Provider,
        SafetyTier,
        TextDelta,
        ToolCall,
        ToolContext,
        ToolResult,
        Usage,
    )

__all__ = [
    "Agent",
    "Answer",
    "Completed",
    "Event",
    "Message",
    "ModelRequest",
    "ModelSpec",
    "OxydraError",
    "Provider",
    "Reply",
    "SafetyTier",
    "TextDelta",
    "ToolCall",
    "ToolContext",
    "ToolResult",
    "TurnFailed",
    "Usage",
    "__version__",
    "tool",
]

_FROM = {
    "agent": ("Agent", "Answer", "Event", "Reply"),
    "errors": ("OxydraError", "TurnFailed"),
    "tools.base": ("tool",),
    "types": (
        *("Completed", "Message", "ModelRequest", "ModelSpec", "Provider", "SafetyTier"),
        *("TextDelta", "ToolCall", "ToolContext", "ToolResult", "Usage"),
    ),
}


def __getattr__(name: str) -> object:
    """Import what is used for the first time."""
    import importlib

    for module, names in _FROM.items():
        if name in names:
            found: object = getattr(importlib.import_module(f"oxydra.{module}"), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module 'oxydra' has no attribute {name!r}")
