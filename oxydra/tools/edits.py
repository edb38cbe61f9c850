"""Replacing text in a text: where it is, what comes out, and the difference. Pure.

All of it takes time linear in the text, whatever a stranger wrote into it; a general diff does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from oxydra.errors import ToolError

CONTEXT = 3  # unchanged lines around a change
MAX_DIFF_LINES = 80
HINT_LINES = 1000  # searched for something similar
HINT_WIDTH = 80


@dataclass(frozen=True, slots=True)
class Edit:
    """A text after replacing, the unified diff, and how many places it was."""

    text: str
    diff: str
    count: int


def replace(text: str, old: str, new: str, everywhere: bool, name: str) -> Edit:
    """`text` with `old` replaced: at its only place, or everywhere.

    In a text whose lines all end in CR LF, those of `old` and `new` do too. Raises `ToolError`
    where `old` is missing, where there are several and `everywhere` is False, and where nothing
    would change. `name` is the text's, for messages.
    """
    line_ends = text.count("\n")
    if line_ends and line_ends == text.count("\r\n"):
        old, new = (part.replace("\r\n", "\n").replace("\n", "\r\n") for part in (old, new))
    if old == new:
        raise ToolError("old and new are the same: nothing to change.")
    # overlapping places count as well: replacing one of them is a guess
    places = _places(text, old, len(old) if everywhere else 1)
    if not places:
        raise ToolError(f"old was not found in {name}.", remedy=_hint(text, old))
    if len(places) > 1 and not everywhere:
        lines = [str(_line(text, place)) for place in places[:10]]
        more = ", …" if len(places) > 10 else ""
        raise ToolError(
            f"old is in {name} {len(places)} times, on lines {', '.join(lines)}{more}.",
            remedy="Add surrounding lines until it is unique, or set replace_all.",
        )
    return Edit(text.replace(old, new), _diff(text, places, len(old), new, name), len(places))


def _places(text: str, old: str, step: int) -> list[int]:
    places = []
    place = text.find(old)
    while place >= 0:
        places.append(place)
        place = text.find(old, place + step)
    return places


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _hint(text: str, old: str) -> str:
    """What in `text` comes nearest to the first line of `old`."""
    import difflib

    wanted = next((line.strip() for line in old.splitlines() if line.strip()), "")
    if not wanted:
        return "Read the file first."
    lines = [line.strip() for line in text.split("\n")]
    if wanted in lines:
        number = lines.index(wanted) + 1
        return (
            f"Line {number} reads like its first line: compare the indentation and the lines after."
        )
    short = [line[:HINT_WIDTH] for line in lines[:HINT_LINES]]
    near = difflib.get_close_matches(wanted[:HINT_WIDTH], short, n=1)
    if near:
        return f"The nearest is line {short.index(near[0]) + 1}: {near[0]!r}."
    return "Nothing in it is similar: read the file first."


# ------------------------------------------------------------------------------------------ diff


@dataclass(frozen=True, slots=True)
class _Change:
    """From line `at` on (counted from 0) the lines `gone` became `come`."""

    at: int
    gone: list[str]
    come: list[str]

    @property
    def end(self) -> int:
        return self.at + len(self.gone)


def _diff(text: str, places: list[int], length: int, new: str, name: str) -> str:
    """The unified diff of replacing `length` characters at each of `places` by `new`."""
    lines = text.split("\n")
    out = [f"--- {name}", f"+++ {name}"]
    shift = 0  # how many lines further down the new text is
    hunk: list[_Change] = []
    for change in (*_changes(text, places, length, new), None):
        if hunk and (change is None or change.at - hunk[-1].end > 2 * CONTEXT):
            out += _hunk(lines, hunk, shift)
            shift += sum(len(part.come) - len(part.gone) for part in hunk)
            hunk = []
            if len(out) > MAX_DIFF_LINES:
                break
        if change is not None:
            hunk.append(change)
    if len(out) > MAX_DIFF_LINES:
        out[MAX_DIFF_LINES:] = ["… (the rest of the changes is not shown)"]
    return "\n".join(line.removesuffix("\r") for line in out)


def _changes(text: str, places: list[int], length: int, new: str) -> Iterator[_Change]:
    """Which whole lines change. Places in the same line are one change."""
    index = 0  # of the next place
    number, counted = 0, 0  # the line that starts at `counted`
    while index < len(places):
        start = text.rfind("\n", 0, places[index]) + 1
        number += text.count("\n", counted, start)
        counted = start
        after = [text[start : places[index]]]
        while True:
            behind = places[index] + length
            end = text.find("\n", behind)
            end = len(text) if end < 0 else end
            after.append(new)
            index += 1
            if index == len(places) or places[index] > end:
                break
            after.append(text[behind : places[index]])
        after.append(text[behind:end])
        yield _trimmed(number, text[start:end].split("\n"), "".join(after).split("\n"))


def _trimmed(at: int, gone: list[str], come: list[str]) -> _Change:
    """The change without the lines that are the same at its start and end."""
    short = min(len(gone), len(come))
    same = 0
    while same < short and gone[same] == come[same]:
        same += 1
    tail = 0
    while tail < short - same and gone[-1 - tail] == come[-1 - tail]:
        tail += 1
    return _Change(at + same, gone[same : len(gone) - tail], come[same : len(come) - tail])


def _hunk(lines: list[str], changes: list[_Change], shift: int) -> list[str]:
    """Changes near to each other, with the lines around and between them."""
    first = max(0, changes[0].at - CONTEXT)
    last = changes[-1].end
    # what follows the last line end is no line
    last = max(last, min(last + CONTEXT, len(lines) - (not lines[-1])))
    body: list[str] = []
    shown = first
    for change in changes:
        body += [f" {line}" for line in lines[shown : change.at]]
        body += [f"-{line}" for line in change.gone]
        body += [f"+{line}" for line in change.come]
        shown = change.end
    body += [f" {line}" for line in lines[shown:last]]
    grown = sum(len(change.come) - len(change.gone) for change in changes)
    before = last - first
    return [f"@@ -{first + 1},{before} +{first + 1 + shift},{before + grown} @@", *body]
