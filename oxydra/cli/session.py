"""`session`: the conversations of a running daemon, listed, named, copied, run again."""

from __future__ import annotations

import argparse
import json

from oxydra.cli.target import load, locate, workspace_of
from oxydra.errors import EXIT_FAILED
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
                wanted = {"name": options.name, "at": options.at}
                given = {name: value for name, value in wanted.items() if value is not None}
                found = asked.command("fork", session_id=options.id, **given)
            case "pins":
                found = asked.command("pins", session_id=options.id)
            case "pin":
                found = asked.command("pin", session_id=options.id, text=options.text)
            case _:
                found = asked.command("unpin", session_id=options.id, number=options.number)
    if options.json:
        print(json.dumps(found, indent=2))
    elif "pins" in found:
        print(printable(pins_text(found["pins"])))
    else:
        print(printable(f"{found['session_id']}  {found['display_name'] or ''}".rstrip()))
    return 0


def undo(options: argparse.Namespace) -> int:
    """Take the last turn of a session back, or say what that would mean."""
    from oxydra.tui.answer import desk

    workspace = workspace_of(load(options))
    with desk(lambda: locate(workspace), workspace.user) as asked:
        found = asked.command(
            "undo",
            session_id=options.id,
            dry_run=options.dry_run,
            keep_changed=options.keep_changed,
        )
    text = found.pop("text")
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print(printable(text))
    return 0


def replay(options: argparse.Namespace) -> int:
    """Run a session again on what was recorded of it; exit code 1 at a difference."""
    from oxydra.tui.answer import desk

    workspace = workspace_of(load(options))
    first, most = (1, None) if options.turn is None else (options.turn, 1)
    done = 0
    with desk(lambda: locate(workspace), workspace.user) as asked:
        while True:
            found = asked.command("replay", session_id=options.id, first=first, most=most)
            done += found["replayed"]
            if found["difference"] is not None or found["next"] is None or options.turn is not None:
                break
            first = found["next"]
    differs = found["difference"]
    if options.json:
        told = {"session_id": found["session_id"], "turns": found["turns"], "replayed": done}
        print(json.dumps({**told, "difference": differs}, indent=2))
    elif differs is None:
        print(f"{done} of {found['turns']} turns replayed: as they were recorded.")
    else:
        where = f"event {differs['sequence']}: " if differs["sequence"] is not None else ""
        print(
            printable(
                f"Turn {differs['turn']} ({differs['turn_id']}) differs in {where}"
                f"{differs['what']}.\n  recorded: {differs['recorded']}\n"
                f"  replayed: {differs['replayed']}"
            )
        )
    return 0 if differs is None else EXIT_FAILED


def _table(rows: list[dict[str, object]]) -> str:
    from oxydra.tui.listing import local

    lines = []
    for row in rows:
        when = local(row["last_active_at"])
        archived = "  (archived)" if row["archived"] else ""
        name = row["display_name"] or " ".join(str(row.get("title")).split()) or "(no name)"
        lines.append(f"{row['session_id']}  {when}  {name} · {row['agent_name']}{archived}")
    return printable("\n".join(lines) or "There is no session.")
