"""Tools: plain functions that a model may call, and the one gate through which it does."""

from oxydra.tools.base import FunctionTool, tool
from oxydra.tools.confine import Workspace
from oxydra.tools.gate import Gate, GateLimits, Journal, Outcome, TurnScope
from oxydra.tools.registry import TOOLS, ToolRegistry
from oxydra.tools.schema import Bounds, Parse

__all__ = [
    "TOOLS",
    "Bounds",
    "FunctionTool",
    "Gate",
    "GateLimits",
    "Journal",
    "Outcome",
    "Parse",
    "ToolRegistry",
    "TurnScope",
    "Workspace",
    "tool",
]
