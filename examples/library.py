#!/usr/bin/env python3
"""An agent in a program, without a daemon: one question, and a second one in the same conversation.

It takes the first provider whose key it finds, or a local Ollama; without either an offline model
plays along. What it makes is in ./assistant.
"""

from oxydra import Agent

with Agent("assistant") as agent:
    (agent.workspace / "shared" / "notes.txt").write_text("Milk, bread, and a new bell.\n")
    for piece in agent.stream("list the files in /shared"):
        print(piece, end="", flush=True)
    print()
    print(agent.run("read notes.txt"))
