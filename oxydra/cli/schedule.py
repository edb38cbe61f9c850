"""`schedule`: tasks of a running daemon that run at their time."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from oxydra.cli.target import load, locate, workspace_of
from oxydra.errors import UsageError
from oxydra.scrub import printable
from oxydra.types import Json

MAX_FILE = 64 * 1024  # bytes of a goal's file, and characters of what a run said
MAX_RUNS = 10_000


def schedule(options: argparse.Namespace) -> int:
    from oxydra.tui.answer import desk

    args = _args(options)
    workspace = workspace_of(load(options))
    with desk(lambda: locate(workspace), workspace.user) as asked:
        found = asked.command("schedules", **args)
        while len(found.get("schedules", ())) < found.get("total", 0):
            more = asked.command("schedules", **args, offset=len(found["schedules"]))
            if not more["schedules"]:  # deleted meanwhile
                break
            found["schedules"] += more["schedules"]
    print(json.dumps(found, indent=2, ensure_ascii=False) if options.json else _text(found))
    return 0


def _args(options: argparse.Namespace) -> dict[str, Any]:
    args: Json = {"action": options.action}
    if options.action in ("create", "edit"):
        args |= {"goal": _goal(options.goal), "name": options.name, "timezone": options.tz}
        args["notification"] = options.notify
        kinds = (("interval", options.every), ("cron", options.cron), ("once", options.at))
        for kind, value in kinds:
            if value is not None:
                args |= {"cadence_type": kind, "cadence_value": value}
    if options.action == "output":
        args |= {"run_id": options.run_id, "max_chars": MAX_FILE}
    elif options.action not in ("create", "list"):
        args["schedule_id"] = options.id
    if options.action == "runs":
        args["limit"] = MAX_RUNS
    return {name: value for name, value in args.items() if value is not None}


def _goal(text: str | None) -> str | None:
    """The goal, or what is in the file that `@file` names."""
    if text is None or not text.startswith("@"):
        return text
    path = Path(text[1:])
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise UsageError(
            f"The goal's file {path} can't be read: {reason}.",
            remedy="Name a text file, or give the goal itself.",
        ) from None


def _text(found: Json) -> str:
    if "schedules" in found:
        rows = [_line(row) for row in found["schedules"]] or ["Nothing is scheduled."]
        rows += [found["warning"]] if "warning" in found else []
    elif "runs" in found:
        rows = [_run(row) for row in found["runs"]] or ["It was not due yet."]
    elif "deleted" in found:
        rows = [f"{found['deleted']} was deleted."]
    elif "output" in found:
        rows = [_run(found), found["output"] or "It said nothing."]
    elif "run_id" in found:
        rows = [_run(found)]
    else:
        rows = [_line(found), f"  {found['goal']}"]
        rows += [f"  {found['reason']}"] if found["reason"] else []
        rows += [f"  next: {at}" for at in found["next_runs"]]
    return printable("\n".join(rows))


def _line(row: Json) -> str:
    following = row["next_runs"][0] if row["next_runs"] else "-"
    when = f"{row['cadence_type']} {row['cadence_value']} ({row['timezone']})"
    name = row["name"] or " ".join(row["goal"].split())[:60]
    return f"{row['schedule_id']}  {row['status']:8}  next {following}  {when}  {name}"


def _run(row: Json) -> str:
    reason = f"  {row['reason']}" if row["reason"] else ""
    cost = f"{row['cost_usd']:.4f}"
    return f"{row['run_id']}  {row['due']}  {row['state']:7}  ${cost}{reason}"
