"""Text cut into chunks, and queries into words. Pure."""

from __future__ import annotations

import re

CHUNK_CHARS = 640
OVERLAP_CHARS = 80
MAX_TERMS = 48  # of a query: what comes after them is not looked for

_BREAKS = ("\n\n", "\n", ". ", "。", " ")
_WORD = re.compile(r"\w+")
# Scripts that are written without spaces: Thai to Khmer, kana, Han and its extensions.
_SPACELESS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]+")
_COMMON = frozenset(
    re.findall(
        r"\w+",
        "a about also an and any are as at be been but by can could did do does for from had has"
        " have he her his how i if in is it its me my of on or our she so some than that the their"
        " them there they this to us was we were what when where which who whom whose why will"
        " with would you your s t",
    )
)


def split(text: str) -> list[str]:
    """`text` in pieces of at most `CHUNK_CHARS`, cut at paragraphs, lines, sentences or words where
    there are any, each beginning with the end of the one before it.
    """
    text = text.replace("\0", " ").strip()
    pieces = []
    start = 0
    while len(text) - start > CHUNK_CHARS:
        end = _cut(text, start)
        pieces.append(text[start:end].strip())
        start = end - OVERLAP_CHARS
    pieces.append(text[start:].strip())
    return [piece for piece in pieces if piece]


def _cut(text: str, start: int) -> int:
    """Where the piece that begins at `start` ends: in its second half."""
    least, most = start + CHUNK_CHARS // 2, start + CHUNK_CHARS
    for mark in _BREAKS:
        found = text.rfind(mark, least, most)
        if found >= 0:
            return found + len(mark)
    return most


def words(query: str) -> list[str]:
    """The words to look for, each once: all but the most common ones, or those where there are no
    others.
    """
    found = list(dict.fromkeys(_WORD.findall(query.lower())))
    return ([word for word in found if word not in _COMMON] or found)[:MAX_TERMS]


def spaceless(text: str) -> bool:
    """Whether some of `text` is in a script that is written without spaces."""
    return _SPACELESS.search(text) is not None


def trigrams(query: str) -> list[str]:
    """What to look for in such a script: each three characters in a row, once."""
    runs = _SPACELESS.findall(query)
    found = [run[at : at + 3] for run in runs for at in range(len(run) - 2)]
    return list(dict.fromkeys(found))[:MAX_TERMS]
