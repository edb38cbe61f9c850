"""Styled text: spans, lines of exactly the terminal's width, and wrapping that keeps styles. Pure.

A style is words with a space between, such as `bold code`; `screen` knows what a terminal makes of
each. A link's last word is `link=` and the address.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from oxydra.tui.cells import clean, clip, fold, width, wrap

Span: TypeAlias = tuple[str, str]  # style, text
Line: TypeAlias = tuple[Span, ...]

STYLES = (
    *("dim", "bold", "italic", "strike", "rule", "code", "head", "link", "chosen"),
    *("you", "oxydra", "good", "bad", "warn"),
)


def exactly(columns: int, *spans: Span) -> Line:
    """Spans as one line of exactly `columns` cells. What is too long is cut off."""
    text = "".join(text for _, text in spans)
    used = width(text)
    kept = list(spans)
    while used > columns and kept:
        style, last = kept.pop()
        rest = "".join(text for _, text in kept)
        last = clip(last, columns - width(rest))
        if last:
            kept.append((style, last))
        used = width(rest + last)
        if last and used > columns:  # measured together, they take more than one by one
            kept.pop()
            used = width(rest)
    if used < columns:
        text, pad = "".join(text for _, text in kept), " " * (columns - used)
        while width(text + pad) < columns:  # some scripts' last letters draw a space in
            pad += " "
        kept.append(("", pad))
    return tuple(kept)


def wrapped(spans: Sequence[Span], columns: int) -> list[list[Span]]:
    """Uncleaned spans as lines of at most `columns` cells, broken between words."""
    return [line for piece in _lines(spans) for line in _styled(piece, wrap(_text(piece), columns))]


def folded(spans: Sequence[Span], columns: int) -> list[list[Span]]:
    """The same with lines filled to the last cell, as code is."""
    return [line for piece in _lines(spans) for line in _styled(piece, fold(_text(piece), columns))]


def _text(spans: Iterable[Span]) -> str:
    return "".join(text for _, text in spans)


def _lines(spans: Sequence[Span]) -> list[list[Span]]:
    """Cleaned, and cut at the newlines."""
    lines: list[list[Span]] = [[]]
    for style, text in spans:
        first, *others = clean(text).split("\n")
        lines[-1].append((style, first))
        lines += [[(style, other)] for other in others]
    return lines


def _styled(spans: Sequence[Span], lines: Sequence[str]) -> list[list[Span]]:
    """Give the pieces of a text, `lines`, the styles that they had in it.

    A piece lost nothing but spaces at its ends, and what is too wide became an ellipsis.
    """
    base = spans[0][0] if spans else ""
    if all(style == base for style, _ in spans):
        return [[(base, line)] for line in lines]
    text = _text(spans)
    styles = [style for style, part in spans for _ in part]
    out, at = [], 0
    for line in lines:
        done: list[Span] = []
        for char in line:
            while at < len(text) - 1 and text[at] != char and text[at] == " ":
                at += 1
            style = styles[at] if at < len(styles) else ""
            if done and done[-1][0] == style:
                done[-1] = (style, done[-1][1] + char)
            else:
                done.append((style, char))
            at += 1
        out.append(done)
    return out
