"""What a terminal may be shown. Pure.

A terminal, a log, `ask`, cron mail and the TUI show text from models, files and strangers only
through `printable`: no escape sequence, no control character, no bidirectional override reaches
them. Where somebody decides by what they read, as with an approval, `explicit` also shows what
would otherwise not be seen at all.
"""

from __future__ import annotations

import re
import unicodedata

# C0 and C1 controls but for tab and newline; DEL; the bidirectional embeddings, overrides and
# isolates (Unicode Standard Annex 9); the line and paragraph separators; lone surrogates, which no
# terminal can encode; tag characters, which hide text from a reader but not from a model.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_NOT_ASCII = re.compile(r"[^\x20-\x7e\n]")
# Unicode calls them letters, symbols or marks, but they are drawn as nothing or as a blank.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_UNSEEN = ("Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp", "Zs")


def _visible(match: re.Match[str]) -> str:
    char = match.group()
    if char == "\r":
        return ""
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)  # the control pictures: ␛ for escape
    return f"<U+{code:04X}>"


def printable(text: str) -> str:
    """`text` with everything that could steer a terminal or reorder a line made visible.

    Tabs and newlines stay; a carriage return is dropped; other C0 controls become their pictures.
    """
    return _UNSAFE.sub(_visible, text)


def unsteering(text: str) -> str:
    """`text` with U+FFFD for all that `printable` makes visible: for markup, where a name in angle
    brackets would be a tag.
    """
    return _UNSAFE.sub("\ufffd", text)


def _explicit(match: re.Match[str]) -> str:
    char = match.group()
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    hidden = char in _BLANK or unicodedata.category(char) in _UNSEEN
    variation = 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF
    return f"<U+{code:04X}>" if hidden or variation else char


def explicit(text: str) -> str:
    """`text` with every character shown that can't be seen, blanks but the plain space included.

    Newlines stay; tabs and carriage returns become their pictures.
    """
    return text if text.isascii() and text.isprintable() else _NOT_ASCII.sub(_explicit, text)
