"""`VectorIndex`: which of a user's vectors are nearest to one.

The truth is the table `vectors`; what is held here is derived from it. Up to some thousands all of
them are compared, in memory. Beyond that a sidecar file has those up to a watermark and only the
tail behind it is compared; where sqlite-vss cannot be loaded, all are, with the same answer. What
came is caught up with before each answer, so that nothing that is stored is missed; what the truth
no longer has is dropped by whoever looks the answer up in it. No thread runs here; any may ask.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence
from heapq import nlargest
from pathlib import Path
from typing import Any

import apsw

from oxydra.embed import Embedder
from oxydra.embed.base import FLOAT_BYTES, numpy, numpy_installed, unpacked
from oxydra.memory import sidecar
from oxydra.memory.sidecar import Covered, Sidecar
from oxydra.store import Store
from oxydra.threads import CancelToken
from oxydra.types import Json

log = logging.getLogger(__name__)

STEP = 20_000  # vectors read at once
GROWTH = 1.5
FEW = 4000  # vectors that are compared one by one
SHARE = 0.1  # of the sidecar's that may come after it, or be gone from it, before it is built anew

Near = list[tuple[int, float]]


class VectorIndex:
    """The nearest among the vectors of `embedder` in `store`."""

    def __init__(self, store: Store, embedder: Embedder) -> None:
        self._store = store
        self._embedder = embedder
        self._lock = threading.Lock()  # of the five below
        self._scan: Matrix | Signs | None = None  # made when first needed: numpy is not light
        self._through = 0  # the last vector that `_scan` or the sidecar has
        self._sidecar: Sidecar | None = None
        self._looked = False  # whether there is a sidecar on disk
        self._erased = 0  # how often something was erased: a copy made before that is not used
        self._building = threading.Lock()

    def nearest(self, query: bytes, most: int) -> list[int]:
        """The ids of the `most` nearest vectors or fewer, some of which may be gone."""
        side = self._opened()
        self._catch_up()
        found: Near = []
        if side is not None:
            try:
                found += [(key, 1 - apart / 2) for key, apart in side.nearest(query, most)]
            except apsw.Error as error:
                log.warning("the vector index is damaged (%s): vectors are compared", error)
                self._drop(side)
                return self.nearest(query, most)
        with self._lock:
            if self._scan is not None:
                found += self._scan.nearest(query, most)
        found.sort(key=lambda one: (-one[1], one[0]))
        return [key for key, _ in found[:most]]

    def due(self) -> bool:
        """Whether a sidecar is worth building: too much lies behind it, or is gone from it."""
        side = self._opened()
        model = self._embedder.model
        total = self._store.vector_count(model)
        if side is None:
            return total > FEW and not sidecar.vss_problem()
        covered = side.covered
        held = self._store.vectors_through(model, covered.watermark)
        gone = covered.count - held
        return total - held > max(FEW, SHARE * covered.count) or gone > SHARE * covered.count

    def rebuild(self, token: CancelToken | None = None) -> bool:
        """Build a sidecar beside the one that is used and put it in its place; False where there is
        no use for one. Raises `Cancelled`; what fails is logged and leaves all vectors compared.
        """
        if sidecar.vss_problem():
            return False
        model, width = self._embedder.model, self._embedder.scanned
        with self._building:
            path, erased = self._named(self._store.sidecars()), self._erased
            with self._store.vector_snapshot(model) as (now, vectors):
                covered = Covered(model, width, now.count, now.last, now.hash)
                if now.count <= FEW:
                    self._take(None)
                    return False
                try:
                    sidecar.build(path, covered, vectors, token)
                    side = Sidecar(path)
                except (apsw.Error, OSError, ValueError) as error:
                    log.warning("no vector index could be built: %s", error)
                    return False
            return self._take(side, erased)

    def forget(self) -> None:
        """Hold nothing any more: something was erased from the truth."""
        with self._lock:
            self._erased += 1
        self._take(None)

    def report(self) -> Json:
        """What is held, for people."""
        side = self._opened()
        return {
            "sidecar": None if side is None else side.path.name,
            "sidecar_vectors": 0 if side is None else side.covered.count,
            "compared_vectors": 0 if self._scan is None else len(self._scan),
            "sqlite_vss": sidecar.vss_problem() or "loaded",
        }

    def check(self) -> list[str]:
        """What is wrong with the sidecar."""
        side = self._opened()
        if side is None:
            return []
        known = dict(self._store.vectors_after(self._embedder.model, 0))
        found = []
        for key in [*known][:: max(1, len(known) // 50)]:
            near = side.nearest(known[key], 5) if key <= side.covered.watermark else []
            if near and near[0][1] > 1e-3:
                found.append(f"the vector {key} is not in {side.path.name}")
        return found

    def _named(self, old: Sequence[Path]) -> Path:
        numbers = [int(path.name.rpartition("-")[2]) for path in old if path.name[-1:].isdigit()]
        base = self._store.path
        return base.with_name(f"{base.stem}.vectors-{max(numbers, default=0) + 1}")

    def _opened(self) -> Sidecar | None:
        """The sidecar that is used, found on disk when first asked for."""
        with self._lock:
            if self._looked:
                return self._sidecar
        side = None
        for path in reversed(self._store.sidecars()):
            if side is None and not sidecar.vss_problem() and not path.name.endswith(".new"):
                side = self._usable(path)
            if side is None or side.path != path:
                path.unlink(missing_ok=True)
        with self._lock:
            if not self._looked:
                self._looked = True
                self._sidecar = side
                if side is not None and side.covered.watermark > self._through:
                    self._scan, self._through = None, side.covered.watermark
            return self._sidecar

    def _usable(self, path: Path) -> Sidecar | None:
        """The sidecar at `path`, if it is whole and its vectors are those of the truth."""
        try:
            side = Sidecar(path)
        except (apsw.Error, ValueError, OSError) as error:
            log.info("the vector index %s is not used: %s", path.name, error)
            return None
        covered, embedder = side.covered, self._embedder
        same = (covered.model, covered.width) == (embedder.model, embedder.scanned)
        if same and self._store.vector_hash(covered.watermark, embedder.model) == covered.hash:
            return side
        side.close()
        return None

    def _take(self, side: Sidecar | None, erased: int = 0) -> bool:
        """Use `side` from now on, and delete every other file; False for one that was copied when
        less had been `erased`, which is deleted.
        """
        with self._lock:
            if side is not None and erased != self._erased:
                side.close()
                side.path.unlink(missing_ok=True)
                return False
            old, self._sidecar, self._looked = self._sidecar, side, True
            self._scan = None
            self._through = 0 if side is None else side.covered.watermark
        if old is not None:
            old.close()
        for path in self._store.sidecars():
            if side is None or path != side.path:
                path.unlink(missing_ok=True)
        return True

    def _drop(self, side: Sidecar) -> None:
        with self._lock:
            if self._sidecar is not side:
                return
        self._take(None)

    def _catch_up(self) -> None:
        while True:
            after = self._through
            rows = self._store.vectors_after(self._embedder.model, after, STEP)
            with self._lock:
                if self._through < after:
                    continue  # all was forgotten meanwhile
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

    def nearest(self, query: bytes, most: int) -> Near:
        """The nearest with their cosines."""
        np, held = self._np, len(self._ids)
        if not held:
            return []
        wanted = np.frombuffer(sidecar.shortened(query, self._width), "<f4")
        near = self._rows[:held] @ wanted
        most = min(most, held)
        best = np.argpartition(near, held - most)[held - most :]
        return [(self._ids[at], float(near[at])) for at in best[np.argsort(-near[best])]]


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

    def nearest(self, query: bytes, most: int) -> Near:
        """The nearest with what their cosines are likely to be."""
        wanted, numbers = _signs(query), len(query) // FLOAT_BYTES
        apart = [(signs ^ wanted).bit_count() for signs in self._signs]
        best = nlargest(most, range(len(apart)), key=lambda at: -apart[at])
        return [(self._ids[at], math.cos(math.pi * apart[at] / numbers)) for at in best]


def scan(width: int) -> Matrix | Signs:
    """What compares vectors here: exactly where numpy is installed."""
    return Matrix(width) if numpy_installed() else Signs()


def _signs(vector: bytes) -> int:
    bits = bytearray(number < 0 for number in unpacked(vector))
    return int(bits.translate(_DIGITS) or b"0", 2)


_DIGITS = bytes([48, 49, *range(2, 256)])  # 0 and 1 as digits
