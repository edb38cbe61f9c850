"""Secrets whose values are known: the runner and the broker remove them from what they log, answer
and pass on. Pure.

A secret is recognised as it is, percent-encoded, JSON-escaped (these two also mixed, partly applied
and nested), in base64 at any alignment, in either alphabet, and in hexadecimal. Not recognised:
base64 broken into lines, compressed or encrypted text, and values under `SHORTEST` bytes, which
would be found in the middle of ordinary words.
"""

from __future__ import annotations

import base64
import bisect
import re
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache

MARKER = "[REDACTED]"
SHORTEST = 8  # bytes of a value that is looked for
LEVELS = 3  # escapes inside of escapes that are followed
HEAD = 6  # bytes of a form by which most text is seen to hold none
HOLD = 64 * 1024  # bytes that a stream keeps back, at most

Span = tuple[int, int]

_MARKER = MARKER.encode()
_HIGH, _LOW = rb"u[dD][89abAB][0-9a-fA-F]{2}", rb"u[dD][c-fC-F][0-9a-fA-F]{2}"  # surrogates
_ESCAPE = re.compile(
    rb"(%%[0-9a-fA-F]{2}|\\(?:%b\\%b|u[0-9a-fA-F]{4}|[\"\\/bfnrt]))" % (_HIGH, _LOW)
)
_PARTIAL_ESCAPE = re.compile(rb"(?:\\%b)?(?:%%[0-9a-fA-F]?|\\(?:u[0-9a-fA-F]{0,3})?)?\Z" % _HIGH)
_SHORT = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}


class ExactScrubber:
    """Replaces each of `values` by `MARKER`, in every form. Immutable; any thread may use it.

    Text is looked through once for each form and once more where it holds escapes: the time is
    linear in its length.
    """

    def __init__(self, values: Iterable[str]) -> None:
        secrets = {value.encode("utf-8", "surrogatepass") for value in values}
        useful = {s for s in secrets if len(s) >= SHORTEST and s not in _MARKER}
        self._plain = sorted(useful | {s.replace(b" ", b"+") for s in useful})  # as in a query
        self._forms = sorted({form for secret in useful for form in _forms(secret)})
        self._heads = sorted({form[:HEAD] for form in self._forms})
        self._beginnings = {head[:size] for head in self._heads for size in range(1, HEAD)}

    def text(self, text: str) -> str:
        data = text.encode("utf-8", "surrogatepass")
        scrubbed = self.data(data)
        return text if scrubbed is data else scrubbed.decode("utf-8", "surrogatepass")

    def data(self, data: bytes) -> bytes:
        """The same for bytes; what holds no secret is returned as the same object."""
        spans = self.spans(data)
        return replace(data, spans, _MARKER) if spans else data

    def holds(self, *texts: bytes | str) -> bool:
        """Whether a secret stands in any of these without escapes; fast, for large texts."""
        found = (t.encode("utf-8", "surrogatepass") if isinstance(t, str) else t for t in texts)
        return any(form in data for data in found for form in self._forms)

    def spans(self, data: bytes) -> list[Span]:
        """Where secrets are: sorted, apart from each other."""
        return merged(_found(self._forms, data) + self._escaped(data, LEVELS))

    def stream(self) -> ScrubbedStream:
        return ScrubbedStream(self)

    def _clean(self, data: bytes) -> bool:
        """Whether no secret is in `data` nor begins at its end, told without looking closely."""
        if b"%" in data or b"\\" in data or any(head in data for head in self._heads):
            return False
        return not any(data[-size:] in self._beginnings for size in range(1, HEAD))

    def _escaped(self, data: bytes, levels: int) -> list[Span]:
        if not levels or not self._plain or (b"%" not in data and b"\\" not in data):
            return []
        view = _Unescaped(data)
        if not view.changed:
            return []
        spans = _found(self._plain, view.data) + self._escaped(view.data, levels - 1)
        return [view.original(start, end) for start, end in spans]

    def _open(self, data: bytes, forms: Sequence[bytes], levels: int = LEVELS) -> int:
        """Where the end of `data` begins that may be the beginning of a secret."""
        at = min((_beginning(form, data) for form in forms), default=len(data))
        if levels and (b"%" in data or b"\\" in data):
            partial = _PARTIAL_ESCAPE.search(data)
            whole = data[: partial.start()] if partial else data
            view = _Unescaped(whole)
            inner = self._open(view.data, self._plain, levels - 1)
            at = min(at, len(whole), view.original(inner, inner)[0])
        return at


class ScrubbedStream:
    """Chunks of one stream: a secret that was cut by their borders is found as well.

    What could be the beginning of a secret is kept back until the next chunk or `close`; anything
    else passes at once. Used by one thread.
    """

    def __init__(self, scrubber: ExactScrubber) -> None:
        self._scrubber = scrubber
        self._kept = b""

    def feed(self, chunk: bytes) -> bytes:
        """What can be passed on now."""
        data = self._kept + chunk
        if self._scrubber._clean(data):
            self._kept = b""
            return data
        spans = self._scrubber.spans(data)
        cut = self._scrubber._open(data, self._scrubber._forms)
        for start, end in spans:
            if start < cut < end:  # its end may begin another: the two are replaced as one
                cut = start
        if len(data) - cut > HOLD:
            cut = len(data)
        self._kept = data[cut:]
        return replace(data[:cut], [span for span in spans if span[1] <= cut], _MARKER)

    def close(self) -> bytes:
        """The rest."""
        rest, self._kept = self._kept, b""
        return self._scrubber.data(rest)


class _Unescaped:
    """`data` with its escapes resolved, one level deep, and the way back to the original."""

    def __init__(self, data: bytes) -> None:
        self._pieces = _ESCAPE.split(data)  # text and escapes by turns
        resolved = self._pieces.copy()
        resolved[1::2] = map(_resolve, self._pieces[1::2])
        self.data = b"".join(resolved)
        self.changed = len(self._pieces) > 1

    @cached_property
    def _places(self) -> tuple[list[int], list[int]]:
        """Where each piece begins: here, and in the original."""
        here, there = [0], [0]
        for index, piece in enumerate(self._pieces):
            size = len(_resolve(piece)) if index % 2 else len(piece)
            here.append(here[-1] + size)
            there.append(there[-1] + len(piece))
        return here, there

    def original(self, start: int, end: int) -> Span:
        """Where the part from `start` to `end` came from; an escape counts as a whole."""
        here, there = self._places
        first = min(bisect.bisect_right(here, start), len(here) - 1) - 1
        last = max(bisect.bisect_left(here, end), 1) - 1
        source = there[first] if first % 2 else there[first] + start - here[first]
        return source, there[last + 1] if last % 2 else there[last] + end - here[last]


@lru_cache(4096)
def _resolve(escape: bytes) -> bytes:
    if escape[:1] == b"%":
        return bytes.fromhex(escape[1:].decode())
    if escape[1:2] != b"u":
        return _SHORT.get(escape[1:], escape[1:])
    units = b"".join(bytes.fromhex(unit.decode()) for unit in escape.split(b"\\u")[1:])
    return units.decode("utf-16-be", "surrogatepass").encode("utf-8", "surrogatepass")


def _forms(secret: bytes) -> set[bytes]:
    """How a secret can be written as a whole."""
    forms = {secret, secret.replace(b" ", b"+")}
    forms |= {secret.hex().encode(), secret.hex().upper().encode()}
    for before in range(3):
        standard = _base64_core(secret, before)
        forms |= {standard, standard.replace(b"+", b"-").replace(b"/", b"_")}
    return forms


def _base64_core(secret: bytes, before: int) -> bytes:
    """The characters of base64 that depend on `secret` alone when `before` bytes (modulo 3) stand
    before it, whatever they are and whatever follows.
    """
    encoded = base64.b64encode(b"\0" * before + secret).rstrip(b"=")
    core = encoded[(0, 2, 3)[before] :]
    return core[:-1] if (before + len(secret)) % 3 else core


def _found(needles: Sequence[bytes], data: bytes) -> list[Span]:
    """Every place of every needle, those that overlap included."""
    spans = []
    for needle in needles:
        at = data.find(needle)
        while at >= 0:
            spans.append((at, at + len(needle)))
            at = data.find(needle, at + 1)
    return spans


def _beginning(form: bytes, data: bytes) -> int:
    """Where the end of `data` begins that `form` begins with, its length if there is none."""
    first = form[:1]
    at = data.find(first, max(0, len(data) - len(form) + 1))
    while at >= 0:
        if form.startswith(data[at:]):
            return at
        at = data.find(first, at + 1)
    return len(data)


def merged(spans: Iterable[Span]) -> list[Span]:
    """Spans in order, those that overlap as one."""
    result: list[Span] = []
    for start, end in sorted(spans):
        if result and start < result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def replace(data: bytes, spans: Sequence[Span], marker: bytes) -> bytes:
    """`data` with `marker` in the place of each span."""
    parts: list[bytes] = []
    done = 0
    for start, end in spans:
        parts += (data[done:start], marker)
        done = end
    return b"".join((*parts, data[done:]))
