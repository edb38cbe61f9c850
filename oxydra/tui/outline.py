"""What a command of the daemon answered, as lines, whichever command it was. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from oxydra.tui.cells import clip, one_line
from oxydra.types import Json

LINES = 200
CELLS = 400  # of a value


def outlined(name: str, data: Json) -> str:
    """`data["text"]` if there is one, else its fields, a list's items a line each."""
    text = data.get("text")
    if isinstance(text, str) and text.strip():
        return text
    lines = list(_fields(data))
    if len(lines) > LINES:
        lines[LINES:] = [f"… {len(lines) - LINES:,} more lines"]
    return "\n".join(lines) or f"/{name}: done."


def _fields(data: Json) -> Iterator[str]:
    for key, value in data.items():
        label = key.replace("_", " ")
        if isinstance(value, list):
            yield f"{label}: none" if not value else f"{label}:"
            for item in value:
                yield f"  {_row(item)}"
        elif value not in (None, "", {}):
            yield f"{label}: {_row(value)}"


def _row(value: Any) -> str:
    if isinstance(value, dict):
        parts = [
            f"{k.replace('_', ' ')} {_row(v)}" for k, v in value.items() if v not in (None, "")
        ]
        return " · ".join(parts)
    if isinstance(value, list):
        return ", ".join(map(_row, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return clip(one_line(str(value)), CELLS)
