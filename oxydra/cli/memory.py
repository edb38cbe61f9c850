"""`oxydra-runner memory`: what was said before, found again for its person."""

from __future__ import annotations

import argparse
import json

from oxydra.cli.target import load, locate, workspace_of
from oxydra.errors import EXIT_FAILED
from oxydra.scrub import printable
from oxydra.threads import CancelToken

LOOK_SECONDS = 0.5  # between two looks at how far a rebuild is


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


def stats(options: argparse.Namespace) -> int:
    """What is indexed, and by what it is found."""
    from oxydra.tui.answer import desk

    workspace = workspace_of(load(options))
    with desk(lambda: locate(workspace), workspace.user) as asked:
        found = asked.command("index", action="stats")
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    vectors = f"{found['vectors']:,} vectors of {found['texts']:,} texts"
    print(f"indexed   {found['chunks']:,} chunks, {vectors}")
    print(f"waiting   {found['to_index']:,} to be indexed, {found['to_embed']:,} to be embedded")
    print(printable(f"backend   {found['backend'] or 'none'}, {found['dimensions']} dimensions"))
    if found["sidecar"]:
        where = f"{found['sidecar']} has {found['sidecar_vectors']:,}"
        print(printable(f"vectors   {where}, {found['compared_vectors']:,} are compared"))
    elif "sqlite_vss" in found:
        why = "" if found["sqlite_vss"] == "loaded" else f" ({found['sqlite_vss']})"
        print(printable(f"vectors   all are compared{why}"))
    for trouble in filter(None, (found["failed"], found["trouble"])):
        print(printable(f"trouble   {trouble}"))
    if found["rebuilding"]:
        print(printable(f"rebuilding, {found['stage'] or 'about to begin'}"))
    return 0


def check(options: argparse.Namespace) -> int:
    """Whether the indexes are right."""
    from oxydra.tui.answer import desk

    workspace = workspace_of(load(options))
    with desk(lambda: locate(workspace), workspace.user) as asked:
        troubles = asked.command("index", action="check")["troubles"]
    if options.json:
        print(json.dumps({"troubles": troubles}, indent=2, ensure_ascii=False))
    for trouble in troubles if not options.json else ():
        print(printable(trouble))
    if troubles and not options.json:
        print("`oxydra-runner memory rebuild` makes memory's indexes anew.")
    elif not options.json:
        print("The database and memory's indexes are right.")
    return EXIT_FAILED if troubles else 0


def rebuild(options: argparse.Namespace) -> int:
    """Make them anew, and wait for the end of it."""
    from oxydra.tui.answer import desk

    workspace = workspace_of(load(options))
    with desk(lambda: locate(workspace), workspace.user) as asked:
        asked.command("index", action="rebuild")
        if options.background:
            print("Started; `memory stats` shows how far it is.")
            return 0
        shown = ""
        while (found := asked.command("index", action="stats"))["rebuilding"]:
            if found["stage"] != shown:
                shown = str(found["stage"])
                print(printable(shown), flush=True)
            CancelToken().wait(LOOK_SECONDS)
    if found["trouble"]:
        print(printable(f"It was not finished: {found['trouble']}"))
        return EXIT_FAILED
    print(f"Done: {found['chunks']:,} chunks, {found['vectors']:,} vectors.")
    return 0
