"""`VectorIndex`: which of a user's vectors are nearest to one.

The truth is the table `vectors`; what is held here is derived from it, and caught up with before
each answer, so that nothing that is stored is missed. What the truth no longer has is dropped by
whoever looks the answer up in it. No thread runs here; any thread may ask.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from heapq import nlargest
from typing import Any

from oxydra.embed import Embedder
from oxydra.embed.base import FLOAT_BYTES, numpy, numpy_installed, unpacked
from oxydra.store import Store

STEP = 20_000  # vectors read at once
GROWTH = 1.5


class VectorIndex:
    """The nearest among the vectors of `embedder` in `store`."""

    def __init__(self, store: Store, embedder: Embedder) -> None:
        self._store = store
        self._embedder = embedder
        self._lock = threading.Lock()
        self._scan: Matrix | Signs | None = None  # made when first needed: numpy is not light
        self._through = 0  # the last vector that `_scan` has

    def __len__(self) -> int:
        """How many vectors are held in memory."""
        return 0 if self._scan is None else len(self._scan)

    def nearest(self, query: bytes, most: int) -> list[int]:
        """The ids of the `most` nearest vectors or fewer, some of which may be gone."""
        self._catch_up()
        with self._lock:
            return [] if self._scan is None else self._scan.nearest(query, most)

    def _catch_up(self) -> None:
        while True:
            rows = self._store.vectors_after(self._embedder.model, self._through, STEP)
            with self._lock:
                new = [row for row in rows if row[0] > self._through]
                if new:
                    if self._scan is None:
                        self._scan = scan(self._embedder.scanned)
                    self._scan.add(new)
                    self._through = new[-1][0]
            if len(rows) < STEP:
                return


class Matrix:
    """Vectors as rows of a numpy matrix, of each the first `width` numbers: compared exactly."""

    def __init__(self, width: int) -> None:
        self._np = numpy()
        self._width = width
        self._ids: list[int] = []
        self._rows: Any = self._np.empty((0, width), "f4")

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, rows: Sequence[tuple[int, bytes]]) -> None:
        np, width = self._np, self._width
        kept = [(key, v) for key, v in rows if len(v) >= width * FLOAT_BYTES]
        if not kept:
            return
        whole = np.stack([np.frombuffer(v, "<f4", width) for _, v in kept])
        lengths = np.maximum(np.linalg.norm(whole, axis=1, keepdims=True), 1e-9)
        held, needed = len(self._ids), len(self._ids) + len(kept)
        if needed > len(self._rows):
            grown = np.empty((max(needed, int(held * GROWTH)), width), "f4")
            grown[:held] = self._rows[:held]
            self._rows = grown
        self._rows[held:needed] = whole / lengths
        self._ids += [key for key, _ in kept]

    def nearest(self, query: bytes, most: int) -> list[int]:
        np, held = self._np, len(self._ids)
        if not held:
            return []
        near = self._rows[:held] @ np.frombuffer(query, "<f4", self._width)
        most = min(most, held)
        best = np.argpartition(near, held - most)[held - most :]
        return [self._ids[at] for at in best[np.argsort(-near[best])]]


class Signs:
    """Vectors as the signs of their numbers, where there is no numpy: those with the most signs in
    common are near, which is not exact, and good enough for candidates.
    """

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._signs: list[int] = []

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, rows: Sequence[tuple[int, bytes]]) -> None:
        self._ids += [key for key, _ in rows]
        self._signs += [_signs(vector) for _, vector in rows]

    def nearest(self, query: bytes, most: int) -> list[int]:
        wanted = _signs(query)
        apart = [(signs ^ wanted).bit_count() for signs in self._signs]
        best = nlargest(most, range(len(apart)), key=lambda at: -apart[at])
        return [self._ids[at] for at in best]


def scan(width: int) -> Matrix | Signs:
    """What compares vectors here: exactly where numpy is installed."""
    return Matrix(width) if numpy_installed() else Signs()


def _signs(vector: bytes) -> int:
    bits = bytearray(number < 0 for number in unpacked(vector))
    return int(bits.translate(_DIGITS) or b"0", 2)


_DIGITS = bytes([48, 49, *range(2, 256)])  # 0 and 1 as digits
