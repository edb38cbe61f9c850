"""`mcp-servers`: servers of others whose tools the agent may use, and trusting them."""

from __future__ import annotations

import argparse
import json
import sys

from oxydra.cli.target import load, locate, workspace_of
from oxydra.errors import EXIT_FAILED
from oxydra.scrub import printable
from oxydra.threads import CancelToken
from oxydra.types import Json

LOOK_SECONDS = 0.3  # between two looks at whether a server has been heard


def servers(options: argparse.Namespace) -> int:
    from oxydra.mcp import told
    from oxydra.tui.answer import Desk, desk

    workspace = workspace_of(load(options))

    def heard(asked: Desk) -> Json:
        """What the server offers now."""
        asked.command("mcp_trust", action="look", name=options.name)
        while (found := asked.command("mcp", action="show", name=options.name))["looking"]:
            CancelToken().wait(LOOK_SECONDS)
        return found

    with desk(lambda: locate(workspace), workspace.user) as asked:
        if options.action == "list":
            rows = asked.command("mcp")["servers"]
            trust = "oxydra-runner mcp-servers trust"
            _print(options, rows, "\n".join(told.servers({"servers": rows}, trust)))
        elif options.action == "logs":
            lines = asked.command("mcp", action="logs", name=options.name)["lines"]
            _print(options, lines, "\n".join(f"{row['time']}  {row['text']}" for row in lines))
        elif options.action in ("show", "trust"):
            found = heard(asked)
            _print(options, found, "\n".join(told.offered(found)))
            if found["trouble"]:
                print(printable(found["trouble"]), file=sys.stderr)
                return EXIT_FAILED
            if options.action == "trust" and not found["trusted"]:
                if not (options.yes or _agreed()):
                    print("Nothing was changed.")
                    return EXIT_FAILED
                args = {"action": "trust", "name": options.name, "digest": found["digest"]}
                asked.command("mcp_trust", **args)
                said = f"Trusted: {options.name}. A change of any of it asks you again."
                print(said, file=sys.stderr)
        else:
            asked.command("mcp_trust", action=options.action, name=options.name)
            print(f"Done: {options.action} {options.name}.")
    return 0


def _agreed() -> bool:
    """Whether the person, who has seen it, says so."""
    try:
        said = input("Is the agent to be offered these tools, described so? [y/N] ")
    except EOFError:
        return False
    return said.strip().lower() in ("y", "yes")


def _print(options: argparse.Namespace, value: object, text: str) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False) if options.json else printable(text))
