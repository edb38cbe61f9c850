"""`deterministic`: parts of words, hashed. No package, no model; spelling, not meaning.

Each three and four characters in a row of a word count for one of the vector's numbers, so that
words which share a stem or a misspelling come close.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence

from oxydra.embed.base import packed
from oxydra.threads import CancelToken

DIMENSIONS = 256
LENGTHS = (3, 4)
_WORD = re.compile(r"\w+")


class Deterministic:
    """See the `Embedder` Protocol."""

    model = f"deterministic-{DIMENSIONS}"
    dimensions = DIMENSIONS
    scanned = DIMENSIONS
    trust = 0.25  # by measurement: more of it finds less
    metered = False
    ready = True

    def embed(self, texts: Sequence[str], token: CancelToken | None = None) -> list[bytes]:
        return [_vector((word, 1.0) for word in _WORD.findall(text.lower())) for text in texts]

    def query(
        self, text: str, words: Sequence[tuple[str, float]], token: CancelToken | None = None
    ) -> bytes:
        return _vector(words)


def _vector(words: Iterable[tuple[str, float]]) -> bytes:
    numbers = [0.0] * DIMENSIONS
    for word, weight in words:
        spelled = f"<{word}>"
        for length in LENGTHS:
            for at in range(len(spelled) - length + 1):
                digest = zlib.crc32(spelled[at : at + length].encode("utf-8", "replace"))
                numbers[digest % DIMENSIONS] += weight if digest >> 31 else -weight
    return packed(numbers)
