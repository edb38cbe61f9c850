"""Markdown (CommonMark with tables and strikethrough) as styled lines. Pure.

The parser is markdown-it-py, imported when the first message is formatted. It parses what the model
wrote as it is; every piece of text is cleaned after that, since an entity such as `&#27;` is a
control character only then. Nothing is fetched, HTML is shown as it was written, and a link shows
where it leads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from oxydra.tui.cells import clip, one_line, width
from oxydra.tui.spans import Span, folded, wrapped

if TYPE_CHECKING:
    from markdown_it.token import Token

LONGEST = 50_000  # characters that are formatted; longer text is shown as it is
ROOM = 12  # columns that nesting leaves at least
CELL = 4  # columns that a table's cell needs at least
ADDRESS = 80  # cells shown of where a link leads

_ADDRESS = re.compile(r"(?:https?://|mailto:)[!-~]{1,2000}")
_BARE = re.compile(r"https?://[^\s<>\"'`\\^{|}\x00-\x1f\x7f-\U0010ffff]+")
_TRAILING = ".,:;!?)]*_~"
_MARKS = {"strong": "bold", "em": "italic", "s": "strike"}


def formatted(text: str, columns: int) -> list[list[Span]]:
    """`text` as lines of at most `columns` cells."""
    text = text.encode("utf-8", "replace").decode()
    renderer = _Renderer(max(1, columns))
    renderer.blocks(_parser().parse(text))
    return renderer.lines or [[("", "")]]


@cache
def _parser() -> Any:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable(["table", "strikethrough"])


def warm_up() -> None:
    """Do what takes time at the first message now."""
    _parser()


class _Prefix:
    """What stands before the lines of a list's item or of a quotation."""

    def __init__(self, style: str, first: str, rest: str) -> None:
        self.style, self.first, self.rest = style, first, rest
        self.used = False

    def take(self) -> Span:
        text = self.rest if self.used else self.first
        self.used = True
        return (self.style, text)


class _Renderer:
    """Walks over the parser's tokens once."""

    def __init__(self, columns: int) -> None:
        self.lines: list[list[Span]] = []
        self._columns = columns
        self._prefixes: list[_Prefix] = []
        self._lists: list[int | None] = []  # the next number of each list around, None: bullets
        self._gap = False  # an empty line is due before the next one
        self._table: list[list[list[Span]]] = []

    # --------------------------------------------------------------------------------------- blocks

    def blocks(self, tokens: Sequence[Token]) -> None:
        style = ""
        for token in tokens:
            match token.type:
                case "heading_open":
                    style = "head"
                case "heading_close":
                    style = ""
                    self._gap = True
                case "inline":
                    spans = _inline(token.children or [], style)
                    if self._table:
                        self._table[-1].append(spans)
                    else:
                        self._emit(wrapped(spans, self._room))
                case "paragraph_close":
                    self._gap = self._gap if token.hidden else True
                case "fence" | "code_block":
                    self._code(token)
                case "html_block":
                    self._emit(wrapped([("", token.content.rstrip("\n"))], self._room))
                    self._gap = True
                case "hr":
                    self._emit([[("rule", "─" * self._room)]])
                    self._gap = True
                case "blockquote_open":
                    self._push("rule", "│ ", "│ ")
                case "blockquote_close":
                    self._pop()
                    self._gap = True
                case "bullet_list_open":
                    self._lists.append(None)
                case "ordered_list_open":
                    self._lists.append(int(token.attrs.get("start", 1)))
                case "bullet_list_close" | "ordered_list_close":
                    self._lists.pop()
                    self._gap = not self._lists
                case "list_item_open":
                    self._item()
                case "list_item_close":
                    self._pop()
                case "tr_open":
                    self._table.append([])
                case "table_close":
                    rows, self._table = self._table, []
                    self._emit(_table(rows, self._room))
                    self._gap = True

    @property
    def _room(self) -> int:
        return self._columns - sum(width(prefix.rest) for prefix in self._prefixes)

    def _push(self, style: str, first: str, rest: str) -> None:
        if self._room - width(rest) < min(ROOM, self._columns // 2):  # nested too deep for this
            first = rest = ""
        self._prefixes.append(_Prefix(style, first, rest))

    def _pop(self) -> None:
        if self._prefixes[-1].first and not self._prefixes[-1].used:  # an empty item
            self._emit([[]])
        self._prefixes.pop()

    def _item(self) -> None:
        number = self._lists[-1]
        if number is None:
            self._push("dim", "• ", "  ")
            return
        self._lists[-1] = number + 1
        mark = f"{number}. "
        self._push("dim", mark, " " * len(mark))

    def _code(self, token: Token) -> None:
        language = clip(one_line(token.info), 20)
        self._push("", "  ", "  ")
        if language:
            self._emit([[("dim", language)]])
        self._emit(folded([("code", token.content.rstrip("\n"))], self._room))
        self._pop()
        self._gap = True

    def _emit(self, lines: Sequence[Sequence[Span]]) -> None:
        if self._gap and self.lines:
            quotes = [(p.style, p.rest) for p in self._prefixes if p.used and p.rest.strip()]
            self.lines.append(list(quotes))
        self._gap = False
        for line in lines:
            self.lines.append([*(prefix.take() for prefix in self._prefixes), *line])


# ------------------------------------------------------------------------------------------- inline


def _inline(tokens: Sequence[Token], base: str) -> list[Span]:
    """What stands in a paragraph. A model's own line breaks are kept."""
    spans: list[Span] = []
    marks = [base] if base else []
    address, begun = "", 0  # of the link around, and where in `spans` it begins
    for token in tokens:
        style = " ".join(dict.fromkeys(marks))
        kind, _, edge = token.type.rpartition("_")
        match token.type:
            case "softbreak" | "hardbreak":
                spans.append(("", "\n"))
            case "code_inline":
                spans.append((f"{style} code".strip(), token.content))
            case "link_open":
                address, begun = str(token.attrs.get("href", "")), len(spans)
            case "link_close":
                spans[begun:] = _link(spans[begun:], address)
            case "image":
                said = one_line(token.content) or "without a description"
                source = one_line(str(token.attrs.get("src", "")))
                spans.append((style, f"[image: {said}] ({clip(source, ADDRESS)})"))
            case "text" | "html_inline":
                spans += _text(token.content, style)
            case _ if edge == "open" and kind in _MARKS:
                marks.append(_MARKS[kind])
            case _ if edge == "close" and kind in _MARKS and _MARKS[kind] in marks:
                marks.remove(_MARKS[kind])
            case _:
                spans.append((style, token.content))
    return spans


def _text(text: str, style: str) -> list[Span]:
    """Text, with the addresses in it as links."""
    spans: list[Span] = []
    at = 0
    for found in _BARE.finditer(text):
        address = found.group().rstrip(_TRAILING)
        if len(address) > len("https://") and _ADDRESS.fullmatch(address):
            spans.append((style, text[at : found.start()]))
            spans.append((f"{style} link link={address}".strip(), address))
            at = found.start() + len(address)
    spans.append((style, text[at:]))
    return spans


def _link(spans: list[Span], address: str) -> list[Span]:
    """A link's text, and where it leads if that is not what the text says."""
    said = "".join(text for _, text in spans).strip()
    target = f"link link={address}" if _ADDRESS.fullmatch(address) else "link"
    plain = [(" ".join(w for w in style.split(" ") if "link" not in w), t) for style, t in spans]
    linked = [(f"{style} {target}".strip(), text) for style, text in plain]
    if said in (address, address.removeprefix("mailto:")):
        return linked
    return [*linked, ("dim", f" ({clip(one_line(address), ADDRESS)})")]


# -------------------------------------------------------------------------------------------- table


def _table(rows: list[list[list[Span]]], columns: int) -> list[list[Span]]:
    """Rows of cells, the first of them the heading, as lines. What is too wide is wrapped in its
    cell; where even that finds no room, each row becomes a list of its cells.
    """
    count = max(map(len, rows))
    rows = [[*row, *[[("", "")]] * (count - len(row))] for row in rows]
    room = columns - 3 * (count - 1)
    if room < CELL * count:
        return _listed(rows, columns)
    lines: list[list[Span]] = []
    sizes = _sizes([[_natural(row[i]) for row in rows] for i in range(count)], room)
    for number, row in enumerate(rows):
        if number == 1:
            lines.append([("rule", "─┼─".join("─" * size for size in sizes))])
        style = "bold " if number == 0 else ""
        cells = [
            wrapped([(f"{style}{s}".strip(), t) for s, t in cell], size)
            for cell, size in zip(row, sizes, strict=True)
        ]
        for i in range(max(map(len, cells))):
            line: list[Span] = []
            for place, (cell, size) in enumerate(zip(cells, sizes, strict=True)):
                spans = cell[i] if i < len(cell) else []
                used = width("".join(text for _, text in spans))
                line += [*spans, ("", " " * (size - used))]
                if place < count - 1:
                    line.append(("rule", " │ "))
            lines.append(line)
    return lines


def _natural(cell: list[Span]) -> int:
    """The columns of a cell in one line."""
    return max(1, width(one_line("".join(text for _, text in cell))))


def _sizes(natural: list[list[int]], room: int) -> list[int]:
    """The columns of each column of a table: what it needs, else a fair share of `room`."""
    sizes = [max(column) for column in natural]
    while sum(sizes) > room:
        over = sum(sizes) - room
        widest = max(sizes)
        second = max((size for size in sizes if size < widest), default=1)
        at = [i for i, size in enumerate(sizes) if size == widest]
        cut = max(1, min(widest - second, over // len(at)))
        for i in at[: max(1, over)] if cut == 1 else at:
            sizes[i] -= cut
    return sizes


def _listed(rows: list[list[list[Span]]], columns: int) -> list[list[Span]]:
    """A table that is too wide, as its rows one below the other."""
    heads, *others = rows
    lines: list[list[Span]] = []
    for row in others or [heads]:
        if lines:
            lines.append([])
        for head, cell in zip(heads, row, strict=True):
            named = [("bold", f"{one_line(''.join(text for _, text in head))}: ")]
            lines += wrapped([*(named if others else []), *cell], columns)
    return lines
