"""The turn loop: ask the model, run the tools it calls, feed the results back, until it answers."""

from oxydra.runtime.agents import Agent, Agents, Terms
from oxydra.runtime.context import Context
from oxydra.runtime.delegation import Delegations
from oxydra.runtime.loop import MADE, Runtime, internal_error
from oxydra.runtime.prompt import SystemPrompt
from oxydra.runtime.recall import Recall
from oxydra.runtime.spending import Spending

__all__ = [
    "MADE",
    "Agent",
    "Agents",
    "Context",
    "Delegations",
    "Recall",
    "Runtime",
    "Spending",
    "SystemPrompt",
    "Terms",
    "internal_error",
]
