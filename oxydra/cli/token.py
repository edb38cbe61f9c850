"""`token`: who may use the gateway. What is changed holds at once, whether a daemon runs or not."""

from __future__ import annotations

import argparse
import json
import sys

from oxydra.cli.target import load, workspace_of
from oxydra.errors import NoDaemonError, UsageError

NONE = "none"  # in the place of a scope


def token(options: argparse.Namespace) -> int:
    from oxydra.gateway.access import SCOPES
    from oxydra.runner.control import call
    from oxydra.runner.tokens import LOCAL, Tokens

    workspace = workspace_of(load(options))
    workspace.prepare()
    tokens = Tokens(workspace)
    if options.action == "list":
        rows = [{"name": LOCAL, "scopes": list(SCOPES), "created_at": None}, *tokens.rows()]
        rows = [{key: row[key] for key in ("name", "scopes", "created_at")} for row in rows]
        print(json.dumps(rows, indent=2) if options.json else _table(rows))
        return 0
    made = ""
    if options.action == "create":
        scopes = options.scope or ["chat"]
        if NONE in scopes and len(scopes) > 1:
            raise UsageError("`none` and a scope were both given.", remedy="Leave one out.")
        made = tokens.create(options.name, scopes)
    elif options.action == "rotate":
        made = tokens.rotate(options.name)
    else:
        tokens.revoke(options.name)
    running = True
    try:
        call(workspace.control_socket, "tokens_changed", {})
    except NoDaemonError:
        running = False
    _tell(options, made, running)
    return 0


def _tell(options: argparse.Namespace, made: str, running: bool) -> None:
    """The token alone goes to stdout, so that it can be piped to where it is needed."""
    if options.json:
        row = {"name": options.name, "running": running}
        print(json.dumps({**row, "token": made} if made else row, indent=2))
    elif options.name == "local":
        print("This machine's programs find the new value in ipc/gateway-token.")
    elif made:
        print(made, flush=True)
        print("It is shown this once: only its hash is kept.", file=sys.stderr)
    else:
        said = "; its connections were closed" if running else ""
        print(f"The token {options.name} was revoked{said}.")


def _table(rows: list[dict[str, object]]) -> str:
    from oxydra.tui.listing import local

    width = max(len(str(row["name"])) for row in rows)
    lines = []
    for row in rows:
        scopes = row["scopes"]
        named = ", ".join(scopes) if isinstance(scopes, list) else ""
        made = local(row["created_at"])
        lines.append(f"{row['name']:<{width}}  {named or 'no scope':<20}  {made}".rstrip())
    return "\n".join(lines)
