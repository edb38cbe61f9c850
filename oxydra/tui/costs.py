"""What `/cost` and `oxydra-runner cost` say, from the data of the command `cost`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oxydra.scrub import printable
from oxydra.types import Json

BY = ("day", "model", "session", "schedule")
_HEADINGS = {"per_turn": "a turn", "per_session": "a session", "per_day": "a day"}
_HEADINGS |= {"per_month": "a month"}


def cost_lines(data: Mapping[str, Any]) -> list[str]:
    """What was spent, what is left of each cap, and the rows where some were asked for."""
    zone = str(data.get("time_zone") or "UTC")
    lines = [f"today         {_usd(data.get('today_usd'))}"]
    lines.append(f"this month    {_usd(data.get('month_usd'))}")
    if "session_usd" in data:
        lines.append(f"this session  {_usd(data['session_usd'])}")
    if data.get("reserved_usd"):
        lines.append(f"held          {_usd(data['reserved_usd'])} of it, by calls that still run")
    rows = [row for row in data.get("caps") or () if isinstance(row, dict)]
    lines += [_cap(row, zone) for row in rows] or ["no cap is set: [budget] in runner.toml"]
    if "rows" in data:
        lines += ["", *_table(data)]
    return [printable(line).replace("\n", " ") for line in lines]


def _cap(row: Json, zone: str) -> str:
    what = _HEADINGS.get(str(row.get("cap")), str(row.get("cap")))
    limit = f"{_usd(row.get('limit_usd'))} {what}"
    if "left_usd" not in row:
        return f"cap           {limit}"
    until = str(row.get("resets_at") or "")[:16].replace("T", " ")
    ends = f"; it resets at {until} ({zone})" if until else ""
    return f"cap           {limit}, {_usd(row['left_usd'])} left{ends}"


def _table(data: Mapping[str, Any]) -> list[str]:
    rows = [row for row in data["rows"] if isinstance(row, dict)]
    since = str(data.get("since"))[:10]
    if not rows:
        return [f"no calls since {since}"]
    named = [(_name(row), row) for row in rows]
    width = max(len(name) for name, _row in named)
    lines = [f"by {data.get('by')}, since {since}:"]
    for name, row in named:
        tokens = f"{_count(row, 'prompt_tokens')} tokens in, {_count(row, 'completion_tokens')} out"
        calls = f"{_count(row, 'calls')} call{'' if row.get('calls') == 1 else 's'}"
        line = f"{name:<{width}}  {_usd(row.get('cost_usd')):>10}  {calls}, {tokens}"
        if row.get("unpriced"):
            line += f"; the price of {_count(row, 'unpriced')} is not known"
        if row.get("guessed"):
            line += f"; {_count(row, 'guessed')} estimated"
        lines.append(line)
    return lines


def _name(row: Json) -> str:
    title = f" ({row['title']})" if row.get("title") else ""
    return f"{row.get('name')}{title}"


def _count(row: Json, name: str) -> str:
    value = row.get(name)
    return f"{value:,}" if isinstance(value, int) else "?"


def _usd(value: object) -> str:
    if not isinstance(value, int | float):
        return "?"
    return f"${value:,.{2 if not value or abs(value) >= 1 else 4}f}"
