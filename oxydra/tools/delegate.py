"""`delegate_to_agent`: a piece of work for another agent, in a conversation of its own.

The tool checks what is wanted and hands it to the service `delegator`. A call is known by its turn,
step and id, and the delegator makes one conversation for it, however often it is started: so it is
repeatable, and after a crash it simply starts again and finds what was done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Annotated

from oxydra.config import AgentConfig
from oxydra.errors import ToolError
from oxydra.tools.base import FunctionTool
from oxydra.tools.schema import Bounds
from oxydra.types import Delegator, Errand, SafetyTier, Tool, ToolContext, ToolResult

NAME = "delegate_to_agent"
MAX_CHARS = 32 * 1024  # of each text
MAX_FACTS = 50


def delegate_to_agent(
    context: ToolContext,
    agent: Annotated[str, Bounds(1, 64)],
    goal: Annotated[str, Bounds(1, MAX_CHARS)],
    key_facts: Annotated[list[Annotated[str, Bounds(0, MAX_CHARS)]], Bounds(0, MAX_FACTS)]
    | None = None,
    expected_output: Annotated[str, Bounds(0, MAX_CHARS)] = "",
) -> ToolResult:
    """Give a piece of work to another agent, which answers when it is done."""
    delegator = context.services.get("delegator")
    if delegator is None:
        raise ToolError("Nothing can be delegated here.", code="delegation_unavailable")
    errand = Errand(agent, goal, tuple(key_facts or ()), expected_output)
    found: Delegator = delegator
    return found.delegate(errand, context)


def delegate_tools(config: AgentConfig) -> list[Tool]:
    """`delegate_to_agent`, once there is an agent to delegate to."""
    limits = config.runtime.delegation
    if not config.agents or not limits.max_depth:
        return []
    return [DelegateTool({"default", *config.agents}, limits.timeout_secs)]


class DelegateTool(FunctionTool):
    """`delegate_to_agent` for these agents; a call has `timeout` seconds."""

    def __init__(self, agents: Iterable[str], timeout: float) -> None:
        super().__init__(
            delegate_to_agent,
            tier=SafetyTier.SIDE_EFFECTING,
            repeatable=True,
            timeout=timeout,
            beside=True,
        )
        description = (
            "Give a piece of work to another agent and get its answer. It sees nothing of this"
            " conversation: goal and key_facts must say all that it needs. Several calls in one"
            f" reply run at the same time. Agents: {', '.join(sorted(agents))}."
        )
        self.spec = dataclasses.replace(self.spec, description=description)
