"""Markdown (CommonMark with tables and strikethrough) as messages of Telegram's HTML. Pure.

The text is first laid out as blocks of pieces, each with the tags around it; then blocks are put
together to parts that fit, and each part is written by itself: what is open at its end is closed
there and opened again in the next one, a block of code too. A block that fits nowhere is cut at a
line's end, else at a space, else wherever a character ends. Nothing but white space at a cut is
lost. Telegram counts UTF-16 units of the text without its tags (Bot API, "Formatting options").

The parser is markdown-it-py, imported when the first message is formatted.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from markdown_it.token import Token

LIMIT = 4096
LONGEST = 100_000  # characters that are formatted; longer text is sent as it is
HREF = re.compile(r"(?:https?://|mailto:|tg://)[!-~]{1,2000}")
LANGUAGE = re.compile(r"[A-Za-z0-9+#._-]{1,32}")
CONTROLS = {code: "\ufffd" for code in (*range(32), *range(0x7F, 0xA0)) if code not in (9, 10)}

Tag: TypeAlias = tuple[str, str]
"""A tag's name, and where it leads or its language."""

Piece: TypeAlias = tuple[str, tuple[Tag, ...]]
"""Text, and the tags around it from the outermost on."""

_MARKS = {"strong": "b", "em": "i", "s": "s"}
_ALONE = ("code", "pre")  # may hold no other tag, nor stand within one but a quotation


@dataclass(frozen=True, slots=True)
class Part:
    """One message: as HTML, and as plain text for when that is refused."""

    html: str
    text: str


def parts(markdown: str, limit: int = LIMIT) -> list[Part]:
    """The messages that say `markdown`; none where it says nothing."""
    text = markdown.encode("utf-8", "replace").decode()
    if len(text) > LONGEST:
        return [Part(html.escape(piece, quote=False), piece) for piece in plain(text, limit)]
    return [
        Part(_written(pieces), said)
        for pieces in _packed(_Layout().blocks(_parser().parse(text)), limit)
        if (said := "".join(piece[0] for piece in pieces)).strip()
    ]


def plain(text: str, limit: int = LIMIT) -> list[str]:
    """Text as it is, in pieces that fit."""
    blocks: list[list[Piece]] = [[(text.translate(CONTROLS), ())]]
    found = ["".join(said for said, _ in pieces) for pieces in _packed(blocks, limit)]
    return [said for said in found if said.strip()]


def units(text: str) -> int:
    """UTF-16 units."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


@cache
def _parser() -> Any:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable(["table", "strikethrough"])


# --------------------------------------------------------------------------------------- layout


class _Layout:
    """Walks over the parser's tokens once."""

    def __init__(self) -> None:
        self._blocks: list[list[Piece]] = []
        self._lists: list[int | None] = []  # the next number of each list around, None: bullets
        self._mark = ""  # what stands before the next line: a list item's bullet
        self._quoted = 0
        self._bold = False
        self._table: list[list[str]] = []
        self._tight = False  # the next block stands on the line below, with no empty one between

    def blocks(self, tokens: Sequence[Token]) -> list[list[Piece]]:
        for token in tokens:
            match token.type:
                case "heading_open" | "heading_close":
                    self._bold = token.nesting > 0
                case "inline" if self._table:
                    said = "".join(text for text, _ in _inline(token.children or [], ()))
                    self._table[-1].append(" ".join(said.translate(CONTROLS).split()))
                case "inline":
                    around = (*self._around, *([("b", "")] if self._bold else []))
                    self._add(_inline(token.children or [], around))
                case "fence" | "code_block":
                    self._code(token.content, token.info)
                case "html_block":
                    self._add([(token.content.rstrip("\n"), self._around)])
                case "paragraph_close":
                    self._tight = self._tight or token.hidden
                case "hr":
                    self._add([("—" * 8, self._around)])
                case "blockquote_open" | "blockquote_close":
                    self._quoted += token.nesting
                case "bullet_list_open":
                    self._lists.append(None)
                case "ordered_list_open":
                    self._lists.append(int(token.attrs.get("start", 1)))
                case "bullet_list_close" | "ordered_list_close":
                    self._lists.pop()
                    self._tight = bool(self._lists)
                case "list_item_open":
                    self._item()
                case "list_item_close":
                    self._end_item()
                case "tr_open":
                    self._table.append([])
                case "table_close":
                    rows, self._table = self._table, []
                    self._code(_drawn(rows), "")
        return self._blocks

    @property
    def _around(self) -> tuple[Tag, ...]:
        return (("blockquote", ""),) if self._quoted else ()

    def _item(self) -> None:
        number = self._lists[-1]
        if self._mark:  # of an item around that begins with this list
            self._add([("", ())])
        self._mark = "  " * (len(self._lists) - 1) + ("• " if number is None else f"{number}. ")
        if number is not None:
            self._lists[-1] = number + 1

    def _end_item(self) -> None:
        if self._mark:
            self._add([("", ())])
        self._tight = True

    def _code(self, text: str, info: str) -> None:
        words = info.split()
        language = words[0] if words and LANGUAGE.fullmatch(words[0]) else ""
        told = [] if language or not info.strip() else [(f"{info.strip()}\n", self._around)]
        self._add([*told, (text.removesuffix("\n"), (*self._around, ("pre", language)))])

    def _add(self, pieces: Sequence[Piece]) -> None:
        marked = [(self._mark, self._around), *pieces] if self._mark else list(pieces)
        between = "\n" if self._tight and self._lists else "\n\n"
        self._mark, self._tight = "", False
        cleaned = [(text.translate(CONTROLS), tags) for text, tags in marked if text]
        if not cleaned:
            return
        if self._blocks:
            quoted = self._blocks[-1][-1][1][:1] == cleaned[0][1][:1] == (("blockquote", ""),)
            cleaned.insert(0, (between, self._around if quoted else ()))
        self._blocks.append(cleaned)


def _inline(tokens: Sequence[Token], around: tuple[Tag, ...]) -> list[Piece]:
    """What stands in a paragraph. A model's own line breaks are kept."""
    pieces: list[Piece] = []
    marks: list[Tag] = []
    address = ""
    for token in tokens:
        kind, _, _edge = token.type.rpartition("_")
        tags = (*around, *marks)
        match token.type:
            case "softbreak" | "hardbreak":
                pieces.append(("\n", tags))
            case "code_inline":
                linked = [tag for tag in marks if tag[0] == "a"]
                pieces.append((token.content, (*around[:1], *(linked or [("code", "")]))))
            case "link_open":
                address = str(token.attrs.get("href", ""))
                if HREF.fullmatch(address):
                    marks.append(("a", address))
            case "link_close":
                marks = [tag for tag in marks if tag[0] != "a"]
                if not HREF.fullmatch(address) and address:
                    pieces.append((f" ({address})", (*around, *marks)))
            case "image":
                source = str(token.attrs.get("src", ""))
                words = _described(token.children or [])
                said = f"[image: {words}]" if words else "[image]"
                led = [("a", source)] if HREF.fullmatch(source) else []
                outside = [tag for tag in marks if tag[0] != "a"]
                pieces.append((said, (*around, *(outside if led else marks), *led)))
                if not led and source:
                    pieces.append((f" ({source})", tags))
            case _ if kind in _MARKS:
                tag = (_MARKS[kind], "")
                if token.nesting > 0:
                    marks.append(tag)
                elif tag in marks:
                    del marks[len(marks) - 1 - marks[::-1].index(tag)]
            case _:
                pieces.append((token.content, tags))
    return [(text, _once(tags)) for text, tags in pieces if text]


def _described(tokens: Sequence[Token]) -> str:
    """What describes an image: its words without their marks (CommonMark, "Images")."""
    words = (
        _described(token.children or [])
        if token.type == "image"
        else {"softbreak": " ", "hardbreak": " "}.get(token.type, token.content)
        for token in tokens
    )
    return " ".join("".join(words).translate(CONTROLS).split())


def _once(tags: tuple[Tag, ...]) -> tuple[Tag, ...]:
    """No tag within another of its kind; code alone, but for a quotation."""
    found = {name: (name, value) for name, value in tags}
    alone = [tag for tag in found.values() if tag[0] in _ALONE]
    if alone:
        return tuple(tag for tag in found.values() if tag[0] == "blockquote" or tag in alone)
    return tuple(found.values())


def _drawn(rows: list[list[str]]) -> str:
    """A table as text of one width."""
    count = max(map(len, rows))
    rows = [[*row, *[""] * (count - len(row))] for row in rows]
    sizes = [max(len(row[i]) for row in rows) for i in range(count)]
    lines = [
        " │ ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "─┼─".join("─" * size for size in sizes), *lines[1:]])


# ------------------------------------------------------------------------------------- to parts


def _packed(blocks: Sequence[Sequence[Piece]], limit: int) -> Iterator[list[Piece]]:
    """Blocks together, as long as they fit; those that do not alone, cut."""
    current: list[Piece] = []
    used = 0
    for block in blocks:
        size = sum(units(text) for text, _ in block)
        if current and used + size > limit:
            yield current
            current, used = [], 0
        if not current:  # what divides it from the block before has nothing to divide
            block = _without_edge(block, 0)
            size = sum(units(text) for text, _ in block)
        while size > limit:
            first, block = _cut(block, limit)
            yield first
            size = sum(units(text) for text, _ in block)
        current += block
        used += size
    if current:
        yield current


def _without_edge(block: Sequence[Piece], at: int) -> list[Piece]:
    """A block without line breaks at its beginning (0) or spaces at its end (-1)."""
    pieces = list(block)
    while pieces:
        text, tags = pieces[at]
        text = text.lstrip("\n") if at == 0 else text.rstrip()
        if text:
            pieces[at] = (text, tags)
            break
        del pieces[at]
    return pieces


def _cut(block: Sequence[Piece], limit: int) -> tuple[list[Piece], list[Piece]]:
    """What fits of a block that does not, and the rest."""
    text = "".join(said for said, _ in block)
    end = _longest(text, limit)
    window = text[:end]
    at = max(window.rfind("\n", len(window) // 3), -1)
    if at <= 0:
        at = window.rfind(" ", len(window) // 2)
    cut, after = (at, at + 1) if at > 0 else (end, end)
    return _without_edge(_slice(block, 0, cut), -1), _without_edge(_slice(block, after, None), 0)


def _longest(text: str, limit: int) -> int:
    """How many characters of `text` have no more than `limit` UTF-16 units."""
    window = text[:limit]
    while (over := units(window) - limit) > 0:
        window = window[: -max(1, over // 2)]
    return len(window)


def _slice(block: Sequence[Piece], begin: int, end: int | None) -> list[Piece]:
    found: list[Piece] = []
    position = 0
    for text, tags in block:
        size = len(text)
        low = max(0, begin - position)
        high = size if end is None else min(size, end - position)
        if low < high:
            found.append((text[low:high], tags))
        position += size
    return found


def _written(pieces: Sequence[Piece]) -> str:
    """A part as HTML: tags are kept open as long as pieces share them."""
    out: list[str] = []
    tags: list[Tag] = []
    for text, wanted in pieces:
        same = 0
        while same < min(len(tags), len(wanted)) and tags[same] == wanted[same]:
            same += 1
        while len(tags) > same:
            out.append(_closing(tags.pop()))
        for tag in wanted[same:]:
            out.append(_opening(tag))
            tags.append(tag)
        out.append(html.escape(text, quote=False))
    while tags:
        out.append(_closing(tags.pop()))
    return "".join(out)


def _opening(tag: Tag) -> str:
    name, value = tag
    if name == "a":
        return f'<a href="{html.escape(value)}">'
    if name == "pre" and value:
        return f'<pre><code class="language-{value}">'
    return f"<{name}>"


def _closing(tag: Tag) -> str:
    name, value = tag
    return "</code></pre>" if name == "pre" and value else f"</{name}>"
