"""`session`: the conversations of a running daemon, listed, named, copied and written out."""

from __future__ import annotations

import argparse
import json
import sys

from oxydra.cli.target import load, locate, workspace_of
from oxydra.scrub import printable


def session(options: argparse.Namespace) -> int:
    from oxydra.tui.answer import desk
    from oxydra.tui.commands import pins_text

    workspace = workspace_of(load(options))
    with desk(lambda: locate(workspace), workspace.user) as asked:
        match options.action:
            case "list":
                rows = asked.sessions(archived=options.all)
                print(json.dumps(rows, indent=2) if options.json else _table(rows))
                return 0
            case "rename":
                found = asked.command("rename", session_id=options.id, name=options.name)
            case "fork":
                named = {"name": options.name} if options.name else {}
                found = asked.command("fork", session_id=options.id, **named)
            case "pins":
                found = asked.command("pins", session_id=options.id)
            case "pin":
                found = asked.command("pin", session_id=options.id, text=options.text)
            case "unpin":
                found = asked.command("unpin", session_id=options.id, number=options.number)
            case _:
                found = asked.command("export", session_id=options.id, format=options.format)
                sys.stdout.write(found["text"] if options.raw else printable(found["text"]))
                return 0
    if options.json:
        print(json.dumps(found, indent=2))
    elif "pins" in found:
        print(printable(pins_text(found["pins"])))
    else:
        print(printable(f"{found['session_id']}  {found['display_name'] or ''}".rstrip()))
    return 0


def _table(rows: list[dict[str, object]]) -> str:
    lines = []
    for row in rows:
        when = str(row["last_active_at"])[:16].replace("T", " ")
        archived = "  (archived)" if row["archived"] else ""
        name = row["display_name"] or "(no name)"
        lines.append(f"{row['session_id']}  {when}  {name} · {row['agent_name']}{archived}")
    return printable("\n".join(lines) or "There is no session.")
