#!/usr/bin/env python3
"""Delegation: an agent gives work to another one, with fewer tools and its own conversation."""

import json

from oxydra import Agent

AGENTS = {
    "agents.reader.system_prompt": "You look things up and quote them.",
    "agents.reader.tools": ["file_list", "file_read"],
}
with Agent("assistant", settings=AGENTS) as agent:
    (agent.workspace / "shared" / "minutes.txt").write_text("The bell is bought on Friday.\n")
    # what the offline models are to do; real ones are told in words
    read = [{"tool": "file_read", "arguments": {"path": "/shared/minutes.txt"}}]
    goal = f"What do the minutes say? [[script {json.dumps(read)}]]"
    steps = [{"tool": "delegate_to_agent", "arguments": {"agent": "reader", "goal": goal}}]
    for event in agent.send(f"[[script {json.dumps(steps)}]]"):
        progress = event.payload.get("progress", {}).get("kind", {})
        if progress.get("kind") == "delegation":
            print(f"{progress['agent']}: {progress['of']}")
        elif event.type == "turn_completed":
            print(event.payload["response"]["message"]["content"])
