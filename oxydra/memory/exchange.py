"""Notes as text: JSON Lines and Markdown, written and read again. Pure.

In Markdown a note is a heading with its id, a list of what is known of it, and its content quoted
line by line: so nothing that a note says can begin another one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from oxydra.errors import UsageError
from oxydra.frames import compact
from oxydra.types import Json

FORMATS = ("jsonl", "markdown")
MAX_LINE = 1 << 20  # characters
_HEADING = re.compile(r"## ([0-9A-Za-z_-]{1,64})\s*")
_FACT = re.compile(r"- ([a-z_]+): (.*)")
_YES = "yes"


def write(notes: Iterable[Json], form: str) -> Iterator[str]:
    """The text of rows as `Note.to_json` has them, in pieces."""
    if form == "jsonl":
        for note in notes:
            yield compact(note) + "\n"
        return
    yield "# Notes\n"
    for note in notes:
        facts = {
            "tags": ", ".join(note["tags"]),
            "time": note["time"],
            "source": note["source"],
            "session": f"{note['session']} {note['sequence']}" if note["session"] else "",
            "pinned": _YES if note["pinned"] else "",
            "from_strangers": _YES if note["from_strangers"] else "",
            "private": _YES if note["private"] else "",
        }
        listed = "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)
        quoted = "\n".join(f"> {line}" if line else ">" for line in note["content"].split("\n"))
        yield f"\n## {note['note_id']}\n\n{listed}\n\n{quoted}\n"


def read(text: str) -> list[Json]:
    """The notes of a text in either form: rows with `content` and what else is said of it. Raises
    `UsageError` that names the line.
    """
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    first = next((line for line in text.split("\n") if line.strip()), "")
    return _lines(text) if first.lstrip().startswith("{") else _markdown(text)


def _lines(text: str) -> list[Json]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if len(line) > MAX_LINE:
            raise UsageError(f"Line {number} is longer than any note.")
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UsageError(
                f"Line {number} is no JSON.", remedy="One note a line, as `memory export` writes."
            ) from None
        if not isinstance(row, dict) or not isinstance(row.get("content"), str):
            raise UsageError(
                f"Line {number} is no note.", remedy='It needs "content", a text, at least.'
            )
        rows.append(row)
    return rows


def _markdown(text: str) -> list[Json]:
    rows: list[Json] = []
    content: list[str] = []
    for number, line in enumerate([*text.split("\n"), "## end"], 1):
        if heading := _HEADING.fullmatch(line):
            if rows:
                rows[-1]["content"] = "\n".join(content)
            rows.append({"note_id": heading[1]})
            content = []
        elif line == ">" or line.startswith("> "):
            content.append(line[2:])
        elif rows and not content and (fact := _FACT.fullmatch(line)):
            rows[-1] |= _fact(fact[1], fact[2])
        elif line.strip() and not line.startswith("# "):
            raise UsageError(
                f"Line {number} belongs to no note.",
                remedy="A note is `## ID`, its facts as a list, its content quoted with `> `.",
            )
    rows.pop()  # the end
    return rows


def _fact(name: str, value: str) -> Json:
    if name == "tags":
        return {"tags": [tag.strip() for tag in value.split(",") if tag.strip()]}
    if name in ("pinned", "from_strangers", "private"):
        return {name: value == _YES}
    return {name: value} if name == "time" else {}
