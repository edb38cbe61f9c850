"""What commands of the daemon answered, as people read it: times by their own clock. Pure, but for
the time zone of this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from oxydra.scrub import printable
from oxydra.tui.cells import clip, one_line

PASSAGE = 300  # cells shown of a passage


def local(moment: object) -> str:
    """An RFC 3339 time as `YYYY-MM-DD HH:MM` of the local clock; what is no time, as it is."""
    try:
        at = datetime.fromisoformat(str(moment)).astimezone()
    except (ValueError, OverflowError, OSError):
        return one_line(str(moment or ""))
    return at.strftime("%Y-%m-%d %H:%M")


def passages(data: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """What `memory` found, the best first; `names` are those of sessions by their ids."""
    rows = [row for row in data.get("found") or () if isinstance(row, dict)]
    lines = []
    for number, row in enumerate(rows, 1):
        session = str(row.get("session") or "")
        place = names.get(session) or session[:8]
        facts = [local(row.get("time")), str(row.get("role") or "note"), place]
        tags = row.get("tags")
        if isinstance(tags, list) and tags:
            facts.append(" ".join(f"#{tag}" for tag in tags))
        if row.get("note_id"):
            facts.append(f"note {row['note_id']}")
        if row.get("from_strangers"):
            facts.append("from strangers")
        lines.append(f"{number}. {one_line(' · '.join(filter(None, facts)))}")
        lines.append(f"   {clip(one_line(str(row.get('text') or '')), PASSAGE)}")
    return [printable(line) for line in lines] or ["Nothing was found."]


def notes(data: Mapping[str, Any]) -> list[str]:
    """What `notes` lists: two lines each."""
    rows = [row for row in data.get("notes") or () if isinstance(row, dict)]
    lines = []
    for row in rows:
        facts = [str(row.get("note_id") or ""), local(row.get("time"))]
        tags = row.get("tags")
        facts += [f"#{tag}" for tag in (tags if isinstance(tags, list) else ())]
        facts += ["pinned"] * bool(row.get("pinned"))
        facts += ["from strangers"] * bool(row.get("from_strangers"))
        lines.append(one_line(" · ".join(filter(None, facts))))
        lines.append(f"   {clip(one_line(str(row.get('content') or '')), PASSAGE)}")
    total = data.get("total")
    if isinstance(total, int) and total > len(rows):
        lines.append(f"… and {total - len(rows):,} more: oxydra-runner memory list")
    return [printable(line) for line in lines] or ["There is no note."]


def schedules(data: Mapping[str, Any]) -> list[str]:
    """What `schedules` lists: a line each, and when it runs next, by its own time zone."""
    rows = [row for row in data.get("schedules") or () if isinstance(row, dict)]
    lines = []
    for row in rows:
        cadence = f"{row.get('cadence_type')} {row.get('cadence_value')}"
        zone = row.get("timezone") or "UTC"
        facts = [str(row.get("schedule_id")), str(row.get("status")), f"{cadence} ({zone})"]
        lines.append(one_line(" · ".join(facts)))
        lines.append(f"   {clip(one_line(str(row.get('name') or row.get('goal'))), PASSAGE)}")
        following = [str(at) for at in row.get("next_runs") or ()]
        if following:
            lines.append(f"   next: {one_line(', '.join(following))}")
        if row.get("reason"):
            lines.append(f"   ! {one_line(str(row['reason']))}")
    total = data.get("total")
    if isinstance(total, int) and total > len(rows):
        lines.append(f"… and {total - len(rows):,} more: oxydra-runner schedule list")
    return [printable(line) for line in lines] or ["Nothing is scheduled."]
