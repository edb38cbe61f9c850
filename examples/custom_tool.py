#!/usr/bin/env python3
"""A tool of your own: the model is told its name, its docstring and its types, and what is declared
privileged asks you first.
"""

import json
import sys
from typing import Literal

from oxydra import Agent, SafetyTier, ToolContext, tool

LIGHTS = {"kitchen": "off", "hall": "on"}


@tool(tier=SafetyTier.READ_ONLY)
def light_state(room: str) -> dict[str, str]:
    """Say whether the light of a room is on."""
    return {"room": room, "state": LIGHTS[room]}


@tool(tier=SafetyTier.PRIVILEGED, timeout=10)
def light_switch(context: ToolContext, room: str, state: Literal["on", "off"]) -> str:
    """Switch the light of a room."""
    context.token.check()  # the turn may have been stopped
    LIGHTS[room] = state
    return f"The light in the {room} is {state}."


def ask(request):
    print(f"May it run {request['tool']}?\n{request['arguments']}")
    return not sys.stdin.isatty() or input("[y/N] ").lower() == "y"


steps = [
    {"tool": "light_state", "arguments": {"room": "kitchen"}},
    {"tool": "light_switch", "arguments": {"room": "kitchen", "state": "on"}},
]
with Agent("assistant", tools=[light_state, light_switch], approve=ask) as agent:
    # what the offline model is to do; to a real one you would just say "Light in the kitchen!"
    print(agent.run(f"[[script {json.dumps(steps)}]]"))
print(LIGHTS)
