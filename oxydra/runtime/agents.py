"""Agents: who answers in a session, with which model and which tools. Pure values.

A session names its agent when it begins. `default` is always there; `[agents.<name>]` adds others,
or says more of that one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from oxydra.errors import NotFoundError
from oxydra.threads import Deadline
from oxydra.tools.registry import matching
from oxydra.tools.search import STANDING
from oxydra.types import Json, ModelSpec, Provider, ToolSpec

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Agent:
    """`provider` answers with `model` first. `tools` are names or patterns, None: all that there
    are. `max_turns` model calls in one turn; `max_cost` in USD that one turn may cost.
    """

    name: str
    provider: Provider
    model: ModelSpec
    reasoning: str = ""
    tools: tuple[str, ...] | None = None
    max_turns: int = 50
    max_cost: Decimal | None = None

    def offered(
        self, tools: Sequence[ToolSpec], among: Iterable[str] | None = None
    ) -> tuple[ToolSpec, ...]:
        """Those of `tools` that it may use; of `among` only, if that is given. Not those that stand
        for others, which `oxydra.tools.search` adds where it takes others out of a request.
        """
        if not self.model.tools:
            return ()
        names = {tool.name for tool in tools} - STANDING
        if self.tools is not None:
            names = matching(self.tools, names)
        if among is not None:
            names &= set(among)
        return tuple(tool for tool in tools if tool.name in names)


@dataclass(frozen=True, slots=True)
class Terms:
    """What limits one turn besides its agent: `tools` are all that it may use (None: all that the
    agent may), `attended` says that a person may be asked, `asked_by` for whom, where work was
    delegated to it; `max_turns` model calls, None: as many as the agent may make. Without `recall`
    nothing is recalled from other conversations, and without `vault` no tool reads from there.
    """

    tools: frozenset[str] | None = None
    deadline: Deadline = field(default_factory=lambda: Deadline.after(None))
    attended: bool = True
    asked_by: str = ""
    max_turns: int | None = None
    recall: bool = True
    vault: bool = True


class Agents:
    """All agents of one user. Immutable."""

    def __init__(self, default: Agent, others: Iterable[Agent] = ()) -> None:
        """One of `others` may be named `default` and takes its place."""
        found = {DEFAULT: default} | {agent.name: agent for agent in others}
        self._agents = dict(sorted(found.items()))

    def __contains__(self, name: str) -> bool:
        return name in self._agents

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._agents)

    def get(self, name: str) -> Agent:
        """Raises `NotFoundError` that lists the known ones."""
        agent = self._agents.get(name)
        if agent is None:
            raise NotFoundError(
                f"There is no agent {name[:64]!r}.",
                remedy=f"[agents.<name>] of agent.toml makes one. There are: "
                f"{', '.join(self._agents)}.",
                code="unknown_agent",
            )
        return agent

    def report(self, tools: Sequence[ToolSpec]) -> Json:
        """What `/agents` lists; `tools` are all that there are."""
        return {
            "agents": [
                {
                    "name": agent.name,
                    "provider": agent.model.provider,
                    "model": agent.model.id,
                    "tools": [tool.name for tool in agent.offered(tools)],
                    "max_turns": agent.max_turns,
                    "max_cost": None if agent.max_cost is None else str(agent.max_cost),
                }
                for agent in self._agents.values()
            ]
        }
