"""`oxydra-runner memory`: what was said before, found again for its person."""

from __future__ import annotations

import argparse
import json

from oxydra.cli.target import load, locate, workspace_of
from oxydra.scrub import printable


def search(options: argparse.Namespace) -> int:
    from oxydra.tui.answer import desk

    workspace = workspace_of(load(options))
    with desk(lambda: locate(workspace), workspace.user) as asked:
        args: dict[str, object] = {"query": options.query, "top_k": options.top}
        args |= {"include_conversation": not options.notes, "tags": options.tag or []}
        args |= {"since": options.since, "until": options.until}
        found = asked.command("memory", **args)["found"]
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    for row in found:
        when = str(row["time"])[:16].replace("T", " ")
        text = " ".join(str(row["text"]).split())
        print(printable(f"{row['session']} {row['sequence']}  {when}  {row['role']}: {text}"))
    if not found:
        print("Nothing was found.")
    return 0
