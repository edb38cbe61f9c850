"""Secrets in a guest, which does not know their values. Pure.

What a guest may look for: labels, known formats, and the runner's configured secrets by keyed hash.
`describe` is the runner's part: for each secret of at least `SHORTEST_HASHED` characters it gives
the length and a keyed BLAKE2b hash (RFC 7693) of each form that is written without a break. The
guest hashes every stretch of such a length that begins and ends where a word does. The hash of a
long random key tells nothing about it; that of a short one could be guessed, so that it is never
sent.

Not recognised in a guest: a secret with spaces or other than ASCII, one that stands in the middle
of a longer word, and forms that depend on what surrounds them (base64 within other base64). The
runner and the broker, which know the values, find those too: `oxydra/scrub/exact.py`.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets as random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from oxydra.scrub.exact import MARKER, Span, merged
from oxydra.scrub.patterns import formats, labelled, random_looking

SHORTEST_HASHED = 16  # characters; a shorter one could be guessed from its hash
LONGEST_HASHED = 512
DIGEST = 16  # bytes
PASSES = 8  # at most; text with a finding usually takes two

# A key is almost always made of the first kind of characters: then only runs of these are hashed,
# which keeps text full of quotes and braces fast.
_KINDS = {"word": r"[A-Za-z0-9_.+/=%~-]", "any": r"[!-~]"}


def describe(values: Iterable[str]) -> dict[str, Any]:
    """`Envelope.secret_hashes` for these secrets: `{key, secrets: [{length, kind, digest}, …]}`."""
    key = random.token_bytes(32)
    rows: dict[str, dict[str, Any]] = {}
    for value in values:
        for form in _forms(value) if SHORTEST_HASHED <= len(value) <= LONGEST_HASHED else ():
            kinds = (name for name, kind in _KINDS.items() if re.fullmatch(f"{kind}+", form))
            if kind := next(kinds, ""):
                digest = _digest(key, form)
                rows[digest] = {"length": len(form), "kind": kind, "digest": digest}
    return {"key": key.hex(), "secrets": [rows[digest] for digest in sorted(rows)]}


def introduces_marker(before: str, after: str) -> bool:
    """Whether a change would write a redaction where the secret itself stood, or never did."""
    return after.count(MARKER) > before.count(MARKER)


class GuestScrubber:
    """What a guest shows and logs, without secrets and without the host's paths. Immutable; any
    thread may use it.

    `hashes` is what `describe` returned, `places` are folders of this host, each with what a model
    calls it: a path below one is shown as the model knows it (`/shared/x`). Each method leaves text
    without a finding as it is and changes nothing that it returned before.
    """

    def __init__(
        self, hashes: dict[str, Any] | None = None, places: Mapping[str, str] | None = None
    ) -> None:
        hashes = hashes or {}
        self._key = bytes.fromhex(str(hashes.get("key", "")))
        rows = hashes.get("secrets", [])
        self._digests = frozenset(str(row["digest"]) for row in rows)
        self._looks: list[tuple[re.Pattern[str], list[int]]] = []
        for name, kind in _KINDS.items():
            lengths = sorted({int(row["length"]) for row in rows if row["kind"] == name})
            if lengths:
                self._looks.append((re.compile(rf"{kind}{{{lengths[0]},}}+"), lengths))
        named = {at.rstrip("/"): name for at, name in (places or {}).items()}
        self._places = {at: name for at, name in named.items() if at != name}
        either = "|".join(map(re.escape, sorted(self._places, key=len, reverse=True)))
        self._host = (
            re.compile(rf"(?<![\w.-])(?:({either}))++(?![\w-]|\.\w)") if self._places else None
        )

    def shown(self, text: str) -> str:
        """For people, and for a model where it is no file's content."""
        return self._virtual(self._without(text, labelled, formats, self.configured))

    def contents(self, text: str) -> str:
        """For a model that reads a file which it may write back: as it is, but for configured
        secrets.
        """
        return self._without(text, self.configured)

    def logged(self, text: str) -> str:
        """For logs: also without what merely looks random."""
        finders = (labelled, formats, self.configured, random_looking)
        return self._virtual(self._without(text, *finders))

    def configured(self, text: str) -> Iterator[Span]:
        """Where configured secrets are."""
        for runs, lengths in self._looks:
            for run in runs.finditer(text):
                yield from self._hashed(text, *run.span(), lengths)

    def _hashed(self, text: str, start: int, end: int, lengths: Sequence[int]) -> Iterator[Span]:
        for at in range(start, end - lengths[0] + 1):
            if _inside_a_word(text, at):
                continue
            for length in lengths:
                stop = at + length
                if stop > end:
                    break
                if _inside_a_word(text, stop):
                    continue
                if _digest(self._key, text[at:stop]) in self._digests:
                    yield at, stop

    def _without(self, text: str, *finders: Callable[[str], Iterable[Span]]) -> str:
        """`text` without what the finders find, also once what stood beside it is gone."""
        for _ in range(PASSES):
            spans = [span for find in finders for span in find(text)]
            parts: list[str] = []
            done = 0
            for start, end in merged(spans):
                parts += (text[done:start], MARKER)
                done = end
            scrubbed = "".join((*parts, text[done:])) if parts else text
            if scrubbed == text:
                break
            text = scrubbed
        return text

    def _virtual(self, text: str) -> str:
        """Host paths as a model knows them."""
        if self._host is None or not any(at in text for at in self._places):
            return text

        def virtual(match: re.Match[str]) -> str:
            inside = text[match.end() : match.end() + 1] == "/"
            return self._places[match[1]] or ("" if inside else "/")

        return self._host.sub(virtual, text)


def _digest(key: bytes, form: str) -> str:
    return hashlib.blake2b(form.encode(), digest_size=DIGEST, key=key).hexdigest()


def _inside_a_word(text: str, at: int) -> bool:
    return 0 < at < len(text) and text[at - 1].isalnum() and text[at].isalnum()


def _forms(value: str) -> set[str]:
    """How a secret is often written; each is found where it stands by itself."""
    data = value.encode("utf-8", "surrogatepass")
    forms = {value, quote(value, safe="", errors="replace"), data.hex()}
    for encoded in (base64.b64encode(data), base64.urlsafe_b64encode(data)):
        forms.add(encoded.rstrip(b"=").decode())
    return forms
