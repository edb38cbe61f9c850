#!/usr/bin/env python3
"""Memory: notes are kept, found by what they mean, and recalled in another conversation."""

from oxydra import Agent

with Agent("assistant") as agent:
    agent.command("notes", action="save", content="The spare key is with Mrs. Novak, next door.")
    agent.run("remember that the boiler is serviced in March")
    for row in agent.command("memory", query="who has the spare key?", top_k=3)["found"]:
        print(f"{row['score']:.2f}", row["text"])
    print(agent.command("recall", text="When is the boiler serviced?")["message"])
