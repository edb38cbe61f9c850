"""How many tokens a text, a message or a request is, by estimate. Pure: no thread, no I/O.

An estimate comes in two steps. First the text alone is counted by what its characters are, which is
one pass in C and near the truth for prose, code and data alike. Then `Calibration` corrects it by
what the provider has reported of earlier requests to the same model, and knows its own error. The
first step never changes for the same text, so that it is kept with each message.
"""

from __future__ import annotations

import functools
import math
import re
import string
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from oxydra.types import Attachment, Message, ModelRequest, ModelSpec, ToolSpec

Family = Literal["openai", "anthropic", "gemini", "other"]

# By a model's id, the first that is found in it: a gateway serves the models of many.
_FAMILIES: tuple[tuple[str, Family], ...] = (
    (r"claude", "anthropic"),
    (r"gemini|gemma", "gemini"),
    (r"gpt|codex|(^|/)o\d", "openai"),
)
# What a family's tokenizer makes of the same text, compared with OpenAI's o200k.
_SCALE: dict[Family, float] = {"openai": 1.0, "anthropic": 1.2, "gemini": 1.0, "other": 1.1}

_WIRE = {of: f"tokens {of}" for of in _SCALE}  # where a message keeps its estimate

# Tokens of a character, by kind. Words are cheap; a capital mostly begins a token of its own;
# digits go by threes at best, and runs of punctuation are short.
_WORD, _CAPITAL, _DIGIT, _MARK = 1 / 4.6, 1 / 1.8, 1 / 1.9, 1 / 1.65
_LONGEST_WORD = 12
_NO_WORD = 0.5  # besides, each character of what is too long for words: base64, hashes
_FOREIGN = 0.25  # a character beyond ASCII
_WIDE_BYTE = 0.3  # each byte that it takes in UTF-8 beyond its first
_CAPITALS = string.ascii_uppercase.encode()
_DIGITS = string.digits.encode()
_WORDS = (string.ascii_lowercase + " \n\t\r").encode()

MESSAGE_TOKENS = 4  # role and separators
CALL_TOKENS = 12  # id, type and name of a call
TOOL_TOKENS = 16  # a declaration's frame
REQUEST_TOKENS = 8
_IMAGE: dict[Family, int] = {"openai": 1500, "anthropic": 1600, "gemini": 1300, "other": 1600}
_PAGE: dict[Family, int] = {"openai": 1500, "anthropic": 2500, "gemini": 560, "other": 2000}
_PAGE_BYTES = 40_000  # of a PDF, where its pages cannot be counted
_OTHER_BYTES = 3  # bytes for each token of any other file


def family(model: ModelSpec) -> Family:
    """Whose tokenizer counts for `model`."""
    return _family(model.id)


@functools.lru_cache(maxsize=256)
def _family(model_id: str) -> Family:
    name = model_id.lower()
    return next((found for words, found in _FAMILIES if re.search(words, name)), "other")


def estimate_text(text: str, of: Family = "other") -> int:
    """Tokens of `text`, 0 for an empty one; costs some 6 ns for each character."""
    if not text:
        return 0
    data = text.encode("utf-8", "replace")
    plain = data if text.isascii() else text.encode("ascii", "ignore")
    size = len(plain)
    words = size - len(plain.translate(None, _WORDS))
    capitals = size - len(plain.translate(None, _CAPITALS))
    digits = size - len(plain.translate(None, _DIGITS))
    marks = size - words - capitals - digits
    gaps = 1 + marks + plain.count(b" ") + plain.count(b"\n")
    foreign = len(text) - size
    tokens = (
        words * _WORD
        + capitals * _CAPITAL
        + digits * _DIGIT
        + marks * _MARK
        + max(0, size - gaps * _LONGEST_WORD) * _NO_WORD
        + foreign * _FOREIGN
        + (len(data) - len(text)) * _WIDE_BYTE
    )
    return max(1, math.ceil(tokens * _SCALE[of]))


def estimate_attachment(attachment: Attachment, of: Family = "other") -> int:
    """Tokens of a file: an image counts at the most that its size can cost, a PDF by its pages."""
    if attachment.mime_type.startswith("image/"):
        return _IMAGE[of]
    if attachment.mime_type == "application/pdf":
        data = attachment.data
        seen = data.count(b"/Type /Page") + data.count(b"/Type/Page")
        pages = max(1, seen, attachment.size // _PAGE_BYTES)
        return pages * _PAGE[of]
    return max(1, attachment.size // _OTHER_BYTES)


def estimate_message(message: Message, model: ModelSpec) -> int:
    """Tokens of one message as `model` is sent it; counted once, since a message never changes."""
    of = family(model)
    name = _WIRE[of]
    kept = message.wire.get(name)
    if kept is not None:
        return int(kept)
    tokens = MESSAGE_TOKENS + estimate_text(message.content, of)
    for call in message.tool_calls:
        tokens += CALL_TOKENS + estimate_text(call.name + call.arguments, of)
    if message.native is not None:  # what the model thought goes back to it
        tokens += estimate_text(message.reasoning, of)
    if message.role != "assistant":  # what a model made is sent as its name only
        tokens += sum(estimate_attachment(file, of) for file in message.attachments)
    message.wire[name] = b"%d" % tokens
    return tokens


def estimate_messages(messages: Iterable[Message], model: ModelSpec) -> int:
    """The sum; for messages that were counted before some 0.1 µs each."""
    name, tokens = _WIRE[family(model)], 0
    for message in messages:
        kept = message.wire.get(name)
        tokens += estimate_message(message, model) if kept is None else int(kept)
    return tokens


def estimate_tools(tools: Sequence[ToolSpec], model: ModelSpec) -> int:
    """Tokens of the tools' declarations. Not kept anywhere: count them once for each set."""
    of = family(model)
    return sum(
        TOOL_TOKENS + estimate_text(f"{tool.name} {tool.description} {tool.parameters}", of)
        for tool in tools
    )


def estimate_request(request: ModelRequest, tools: int | None = None) -> int:
    """Tokens of a whole request, before calibration; `tools` is what its tools were counted as."""
    counted = estimate_tools(request.tools, request.model) if tools is None else tools
    return REQUEST_TOKENS + counted + estimate_messages(request.messages, request.model)


# ------------------------------------------------------------------------------------- calibration

LEAST_RATIO, MOST_RATIO = 0.25, 4.0  # what a report may say of an estimate and be believed
FIRST_ERROR = 0.15
_WEIGHT = 0.2  # of the newest report
_SURE = 2.0  # errors added where an estimate must not be too low


@dataclass(frozen=True, slots=True)
class Calibration:
    """What reports have taught about estimates for one model: `ratio` is reported by estimated,
    `error` the share by which a corrected estimate is off, `reports` how many were counted.
    """

    ratio: float = 1.0
    error: float = FIRST_ERROR
    reports: int = 0

    def likely(self, estimated: int) -> int:
        """The corrected estimate."""
        return math.ceil(estimated * self.ratio)

    def worst(self, estimated: int) -> int:
        """What it will hardly exceed."""
        return math.ceil(estimated * self.ratio * (1 + _SURE * self.error))

    def observed(self, estimated: int, reported: int) -> Calibration:
        """As it is after one more report. One that makes no sense teaches nothing, a wild one
        no more than the bounds.
        """
        if estimated <= 0 or reported <= 0:
            return self
        seen = min(max(reported / estimated, LEAST_RATIO), MOST_RATIO)
        off = min(abs(seen - self.ratio) / seen, 1.0)
        if not self.reports:
            return Calibration(seen, FIRST_ERROR, 1)
        return Calibration(
            self.ratio + _WEIGHT * (seen - self.ratio),
            self.error + _WEIGHT * (off - self.error),
            self.reports + 1,
        )


class Calibrations:
    """A `Calibration` for each model, by its provider and id. Safe to use from any thread."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Calibration] = {}
        self._lock = threading.Lock()

    def of(self, model: ModelSpec) -> Calibration:
        with self._lock:
            return self._known.get((model.provider, model.id), Calibration())

    def observe(self, model: ModelSpec, estimated: int, reported: int) -> Calibration:
        """Learn from one request: what was estimated (before correction) and then reported."""
        with self._lock:
            key = (model.provider, model.id)
            found = self._known.get(key, Calibration()).observed(estimated, reported)
            self._known[key] = found
            return found

    def all(self) -> dict[tuple[str, str], Calibration]:
        """For `status`: what is known so far, by provider and model."""
        with self._lock:
            return dict(self._known)
