"""Rules that a person has stated: how they are found, and how they are told to the model. Pure.

A rule is a sentence of the person's own that begins with one of a few words (`BEGINNINGS`). It is
found by its words alone: nothing that a model, a file or a stranger says can become one, for only
messages without a mark are looked at, and of these neither quotations nor code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from oxydra.errors import UsageError
from oxydra.types import Message, Pin

MAX_CHARS = 1000  # of one rule
MAX_PINS = 50  # in a session
MAX_FOUND = 20  # of them, those that were found
MAX_TOTAL = 8000  # characters of all rules in force
FOUND_CHARS = (8, 300)  # of a sentence that is taken for a rule
BEGINNINGS = (
    *("never", "always", "do not", "don't", "don’t", "must not", "from now on"),
    *("under no circumstances", "nie", "niemals", "immer", "auf keinen fall", "ab jetzt"),
    *("ne jamais", "jamais", "toujours", "nunca", "siempre", "no debes"),
)
_LEAD = r"(?:(?:please|bitte|and|but|also|you (?:must|should)|du (?:sollst|darfst))[ ,]+)*"
_RULE = re.compile(rf"{_LEAD}(?:{'|'.join(map(re.escape, BEGINNINGS))})\b", re.IGNORECASE)
_NO_RULE = re.compile(
    r"(?:never|do not|don['’]t) (?:mind|worry|bother|forget)\b|never ?mind\b", re.IGNORECASE
)
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_SENTENCES = re.compile(r"(?<=[.!?])\s+|\n+")
_HEAD = "Rules that I have stated; they hold for the whole conversation:"


def stated(message: Message) -> list[str]:
    """The rules in a message of the person's, word for word."""
    if message.role != "user" or message.tainted or message.sensitive:
        return []
    least, most = FOUND_CHARS
    found = []
    text = _CODE.sub("\n", message.content)
    for line in text.split("\n"):
        if line.lstrip().startswith(">"):
            continue
        for sentence in _SENTENCES.split(line):
            sentence = sentence.strip().lstrip("-*• ").strip()
            if not least <= len(sentence) <= most or sentence.endswith("?"):
                continue
            if _RULE.match(sentence) and not _NO_RULE.match(sentence):
                found.append(sentence)
    return found


def told(pins: Sequence[Pin]) -> Message | None:
    """The message that carries rules, byte for byte; None without any."""
    if not pins:
        return None
    return Message("user", "\n".join([_HEAD, *(f"- {pin.text}" for pin in pins)]))


def missing(pins: Sequence[Pin], sent: Sequence[Message]) -> list[Pin]:
    """The rules that are not in what is sent, byte for byte, in the person's own messages."""
    return [p for p in pins if not any(m.role == "user" and p.text in m.content for m in sent)]


def check(text: str, there: Sequence[Pin]) -> str:
    """A rule that is pinned by hand, beside those that are `there`. Raises `UsageError`."""
    text = " ".join(text.split())
    if not text:
        raise UsageError("There is nothing to pin.", remedy="Say which rule: /pin TEXT.")
    if len(text) > MAX_CHARS:
        raise UsageError(f"A rule has at most {MAX_CHARS} characters.", remedy="Shorten it.")
    total = len(text) + sum(len(pin.text) for pin in there)
    if len(there) >= MAX_PINS or total > MAX_TOTAL:
        raise UsageError(
            f"A session has at most {MAX_PINS} rules with {MAX_TOTAL:,} characters.",
            remedy="Take one out: /pins lists them, /unpin NUMBER.",
        )
    return text


def affordable(texts: Sequence[str], there: Sequence[Pin]) -> list[str]:
    """Of rules that were found, those for which there is still room beside those that are there."""
    found = sum(1 for pin in there if pin.sequence)
    total = sum(len(pin.text) for pin in there)
    kept: list[str] = []
    for text in texts:
        total += len(text)
        few = found + len(kept) < MAX_FOUND and len(there) + len(kept) < MAX_PINS
        if few and total <= MAX_TOTAL:
            kept.append(text)
    return kept
