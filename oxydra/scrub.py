"""What may be shown: `printable` for people's terminals. Pure.

A terminal, a log, `ask`, cron mail and the TUI show text from models, files and strangers only
through `printable`: no escape sequence, no control character, no bidirectional override reaches
them.
"""

from __future__ import annotations

import re

# C0 and C1 controls but for tab and newline; DEL; the bidirectional embeddings, overrides and
# isolates (Unicode Standard Annex 9); the line and paragraph separators; lone surrogates, which no
# terminal can encode; tag characters, which hide text from a reader but not from a model.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


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
