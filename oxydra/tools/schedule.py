"""`schedule_*` and `notify`: tasks that run at their time, and a word to their person.

The tools hand what is wanted to the service `schedules`, which knows the limits and whose
conversation it is. What runs said may hold what strangers wrote, and has the marks of their
session; a schedule has those of the conversation in which it was made.
"""

from __future__ import annotations

from typing import Annotated, Literal

from oxydra.errors import ToolError
from oxydra.frames import compact
from oxydra.tools.base import tool
from oxydra.tools.schema import Bounds
from oxydra.types import Json, SafetyTier, Schedules, Tool, ToolContext, ToolResult

Cadences = Literal["cron", "interval", "once"]
Notification = Literal["always", "conditional", "never"]


CHANGING = frozenset({"schedule_create", "schedule_edit", "schedule_delete"})  # noted beforehand


def _ask(context: ToolContext, action: str, args: Json) -> ToolResult:
    schedules: Schedules | None = context.services.get("schedules")
    if schedules is None:
        raise ToolError("Nothing can be scheduled here.", code="schedules_unavailable")
    given = {name: value for name, value in args.items() if value is not None}
    found, marks = schedules.ask(action, given, context)
    return ToolResult(compact(found), marks=marks)


@tool(tier=SafetyTier.SIDE_EFFECTING)
def schedule_create(
    context: ToolContext,
    goal: Annotated[str, Bounds(1, 16384)],
    cadence_type: Cadences,
    cadence_value: Annotated[str, Bounds(1, 200)],
    name: Annotated[str, Bounds(0, 100)] | None = None,
    timezone: Annotated[str, Bounds(0, 64)] | None = None,
    notification: Notification | None = None,
) -> ToolResult:
    """Run a goal later: at cron times, every so many seconds, or once at an RFC 3339 time."""
    args = {"goal": goal, "cadence_type": cadence_type, "cadence_value": cadence_value}
    more = {"name": name, "timezone": timezone, "notification": notification}
    return _ask(context, "create", {**args, **more})


@tool(tier=SafetyTier.READ_ONLY)
def schedule_search(
    context: ToolContext,
    name: str | None = None,
    status: Literal["active", "paused", "disabled", "done"] | None = None,
    cadence_type: Cadences | None = None,
    notification: Notification | None = None,
    limit: Annotated[int, Bounds(1, 50)] = 20,
    offset: Annotated[int, Bounds(0, 100000)] = 0,
) -> ToolResult:
    """Find schedules."""
    args = {"name": name, "status": status, "cadence_type": cadence_type}
    more = {"notification": notification, "limit": limit, "offset": offset}
    return _ask(context, "list", {**args, **more})


@tool(tier=SafetyTier.SIDE_EFFECTING)
def schedule_edit(
    context: ToolContext,
    schedule_id: str,
    action: Literal["patch", "pause", "resume"] = "patch",
    goal: Annotated[str, Bounds(0, 16384)] | None = None,
    cadence_type: Cadences | None = None,
    cadence_value: Annotated[str, Bounds(0, 200)] | None = None,
    name: Annotated[str, Bounds(0, 100)] | None = None,
    timezone: Annotated[str, Bounds(0, 64)] | None = None,
    notification: Notification | None = None,
) -> ToolResult:
    """Change, pause or resume a schedule."""
    args = {"schedule_id": schedule_id, "goal": goal, "cadence_type": cadence_type}
    args |= {"cadence_value": cadence_value, "name": name, "timezone": timezone}
    args |= {"notification": notification}
    return _ask(context, "edit" if action == "patch" else action, args)


@tool(tier=SafetyTier.SIDE_EFFECTING)
def schedule_delete(context: ToolContext, schedule_id: str) -> ToolResult:
    """Delete a schedule and the record of its runs."""
    return _ask(context, "delete", {"schedule_id": schedule_id})


@tool(tier=SafetyTier.READ_ONLY, taints=True)
def schedule_runs(
    context: ToolContext, schedule_id: str, limit: Annotated[int, Bounds(1, 50)] = 10
) -> ToolResult:
    """What became of a schedule's due times, the newest first."""
    return _ask(context, "runs", {"schedule_id": schedule_id, "limit": limit})


@tool(tier=SafetyTier.READ_ONLY, taints=True)
def schedule_run_output(
    context: ToolContext,
    run_id: Annotated[int, Bounds(0, 1 << 53)],
    offset: Annotated[int, Bounds(0, 1 << 20)] = 0,
    max_chars: Annotated[int, Bounds(1, 32768)] = 8000,
) -> ToolResult:
    """What a run answered."""
    args = {"run_id": run_id, "offset": offset, "max_chars": max_chars}
    return _ask(context, "output", args)


@tool(tier=SafetyTier.SIDE_EFFECTING, repeatable=True)
def notify(context: ToolContext, message: Annotated[str, Bounds(1, 4000)]) -> ToolResult:
    """In a scheduled run: tell its person something."""
    return _ask(context, "notify", {"message": message})


def schedule_tools() -> list[Tool]:
    """All of them, for a guest that has a scheduler."""
    return [
        *(schedule_create, schedule_search, schedule_edit, schedule_delete),
        *(schedule_runs, schedule_run_output, notify),
    ]
