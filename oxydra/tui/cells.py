"""Text measured in terminal cells: cleaning, wrapping and clipping. Pure.

A terminal's columns are not Python's characters: CJK and emoji take two cells, combining marks
none. All of the TUI's text goes through `clean` first; after that a cluster (what a person calls a
character) is never split. Widths are those of the `wcwidth` package.
"""

from __future__ import annotations

import itertools
import re
import unicodedata

from wcwidth import iter_graphemes, wcswidth

from oxydra.scrub import printable

TAB = 4  # cells
ELLIPSIS = "…"
_JOINER = "\u200d"
_BASE = "◌"  # what a combining mark without a letter is shown on
_SPACE_RUN = re.compile(" +")


def width(text: str) -> int:
    """Cells that one line of cleaned text takes."""
    return len(text) if text.isascii() else max(0, wcswidth(text))


def clean(text: str) -> str:
    """`text` with nothing in it that could steer a terminal or that terminals measure differently.

    Only newlines are left of all control characters. A mark that combines with nothing gets a
    dotted circle to stand on; an invisible character that joins nothing goes.
    """
    text = printable(text).expandtabs(TAB)
    if text.isascii():
        return text
    return "\n".join(_anchored(line) for line in text.split("\n"))


def _anchored(line: str) -> str:
    if line.isascii():
        return line
    return "".join(_solid(cluster.rstrip(_JOINER)) for cluster in iter_graphemes(line))


def _solid(cluster: str) -> str:
    """A cluster that takes at least one cell, or nothing."""
    if cluster.isascii() or wcswidth(cluster) > 0:
        return cluster
    marks = "".join(char for char in cluster if unicodedata.category(char) != "Cf")
    return _BASE + marks if marks else ""


def clusters(text: str) -> list[str]:
    """The characters of `text` as a person counts them."""
    return list(text) if text.isascii() else list(iter_graphemes(text))


def wrap(text: str, columns: int) -> list[str]:
    """Cleaned `text` as lines of at most `columns` cells, broken between words where possible.

    Indentation is kept, the spaces at a break are not. A cluster wider than `columns` is replaced
    by an ellipsis.
    """
    lines: list[str] = []
    columns = max(1, columns)
    for line in text.split("\n"):
        line = line.rstrip(" ")
        if line.isascii():
            lines += _wrap_ascii(line, columns)
        else:
            lines += _wrap_wide(line, columns)
    return lines


def _wrap_ascii(line: str, columns: int) -> list[str]:
    lines = []
    while len(line) > columns:
        cut = line.rfind(" ", 0, columns + 1)
        if cut <= 0 or not line[:cut].strip(" "):
            cut = columns
        lines.append(line[:cut].rstrip(" "))
        line = line[cut:].lstrip(" ")
    lines.append(line)
    return lines


def _wrap_wide(line: str, columns: int) -> list[str]:
    lines: list[str] = []
    taken: list[str] = []  # the clusters of the line being filled
    used = 0  # their cells
    best = 0  # how many of them to keep if the next one does not fit; 0 breaks a word
    for cluster in iter_graphemes(line):
        cells = width(cluster)
        if cells > columns:
            cluster, cells = ELLIPSIS, 1
        while taken and used + cells > columns:
            keep = len(taken) if cluster == " " or not best else best
            lines.append("".join(taken[:keep]).rstrip(" "))
            taken = list(itertools.dropwhile(" ".__eq__, taken[keep:]))  # a space with a mark stays
            used = sum(map(width, taken))
            best = 0
        if cluster == " " and lines and not taken:
            continue
        if cells > 1 or (cluster == " " and "".join(taken).strip(" ")):
            best = len(taken)  # before a word's end or a wide character
        taken.append(cluster)
        used += cells
        if cells > 1:
            best = len(taken)
    lines.append("".join(taken))
    return [line if width(line) <= columns else clip(line, columns) for line in lines]


def hanging(text: str, columns: int) -> list[str]:
    """As `wrap`; what does not fit in a line goes on as far in as the line began."""
    lines: list[str] = []
    for line in text.split("\n"):
        indent = len(line) - len(line.lstrip(" "))
        indent = indent if 2 * indent < columns else 0
        lines += [" " * indent + piece for piece in wrap(line[indent:], columns - indent)]
    return lines


def fold(text: str, columns: int) -> list[str]:
    """Cleaned `text` as lines filled to the last of `columns` cells, wherever words end.

    The lines of a beginning of `text` are the beginning of its lines, which is what finds a cursor.
    """
    lines: list[str] = []
    for line in text.split("\n"):
        taken: list[str] = []
        used = 0
        for cluster in clusters(line):
            cells = width(cluster)
            if cells > columns:
                cluster, cells = ELLIPSIS, 1
            if used + cells > columns:
                lines.append("".join(taken))
                taken, used = [], 0
            taken.append(cluster)
            used += cells
        lines.append("".join(taken))
    return lines


def clip(text: str, columns: int) -> str:
    """One line of cleaned text in at most `columns` cells; what was cut off is an ellipsis."""
    if columns <= 0:
        return ""
    if width(text) <= columns:
        return text
    if text.isascii():
        return text[: columns - 1] + ELLIPSIS
    kept: list[str] = []
    used = 0
    for cluster in iter_graphemes(text):
        used += width(cluster)
        if used > columns - 1:
            break
        kept.append(cluster)
    while kept and width("".join(kept)) > columns - 1:
        kept.pop()
    return "".join(kept) + ELLIPSIS


def one_line(text: str) -> str:
    """`text`, cleaned, with every run of white space as one space."""
    return _SPACE_RUN.sub(" ", clean(text).replace("\n", " ")).strip(" ")
