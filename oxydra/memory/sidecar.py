"""`Sidecar`: a copy of the vectors in a file of their own, searched by sqlite-vss.

It is derived and disposable: it holds the vectors up to a watermark as they were when it was built,
and another one replaces it in one step; deleted, it costs the time to build it. The Faiss index is
written into the extension's own table in one pass, in the format in which Faiss writes it, which
is compared with what the extension makes before it is trusted; where it differs, rows are inserted.
No thread runs here. One connection with one copy of the index is behind a lock; after the extension
has been loaded the process must not fork without exec.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import apsw

from oxydra.embed.base import FLOAT_BYTES, numpy, numpy_installed, packed, single_threaded, unpacked
from oxydra.threads import CancelToken

log = logging.getLogger(__name__)

FORMAT = 1
VECTOR = b"v\x01"  # before the numbers of a bound vector, which is else taken for JSON at times
INSERTED = 1000  # rows in one transaction, where they are inserted
_L2 = 1
_META = "format, model, width, count, watermark, hash"


@dataclass(frozen=True, slots=True)
class Covered:
    """What a sidecar holds: `count` vectors of `model`, each its first `width` numbers at length 1,
    up to the id `watermark`, whose text has that `hash`.
    """

    model: str
    width: int
    count: int
    watermark: int
    hash: bytes


@cache
def vss_problem() -> str:
    """Why sqlite-vss cannot be used here; "" where it can."""
    if importlib.util.find_spec("sqlite_vss") is None:
        return "the package sqlite-vss is not installed"
    try:
        with closing(_connect(":memory:")):
            return ""
    except (apsw.Error, OSError, ImportError, AttributeError) as error:
        return f"sqlite-vss cannot be loaded ({error})"


@cache
def writes_as_faiss() -> bool:
    """Whether our bytes of an index are those that the extension makes of the same vectors."""
    rows = [(n, packed([1.0, n, 0.0, -n])) for n in (1, 2, 5)]
    with closing(_connect(":memory:")) as db:
        db.execute("CREATE VIRTUAL TABLE near USING vss0(v(4))")
        with db:
            for key, vector in rows:
                db.execute("INSERT INTO near (rowid, v) VALUES (?, ?)", (key, VECTOR + vector))
        made = db.execute("SELECT idx FROM near_index WHERE rowid = 0").get
    ours = b"".join([_head(4, 3), *(v for _, v in rows), _tail_head(3), _ids(k for k, _ in rows)])
    return bool(made == ours)


class Sidecar:
    """The file at `path`, opened; `nearest` may be called from any thread."""

    def __init__(self, path: Path) -> None:
        """Raises `apsw.Error` or `ValueError` for a file that is none or is not whole."""
        self.path = path
        self._lock = threading.Lock()
        self._db = _connect(str(path), apsw.SQLITE_OPEN_READONLY)
        try:
            self.covered = _covered(self._db)
        except BaseException:
            self._db.close()
            raise

    def nearest(self, query: bytes, most: int) -> list[tuple[int, float]]:
        """The ids of the nearest vectors and the squares of their distances, nearest first."""
        wanted = shortened(query, self.covered.width)
        if not self.covered.count:
            return []
        with self._lock:
            rows: list[tuple[Any, ...]] = self._db.execute(
                "SELECT rowid, distance FROM near WHERE vss_search(v, vss_search_params(?, ?))",
                (VECTOR + wanted, min(most, self.covered.count)),
            ).fetchall()
        return [(int(row[0]), float(row[1])) for row in rows if int(row[0]) > 0]

    def close(self) -> None:
        with self._lock:
            self._db.close()


def build(
    path: Path,
    covered: Covered,
    vectors: Iterable[Sequence[tuple[int, bytes]]],
    token: CancelToken | None = None,
) -> None:
    """Write a sidecar of `vectors`, which come in the order of their ids, and put it at `path` in
    one step. Raises `Cancelled`, `apsw.Error`, `OSError`.
    """
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    try:
        with closing(_connect(str(new))) as db:
            db.execute("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")
            db.execute(
                f"CREATE VIRTUAL TABLE near USING vss0(v({covered.width}));"
                f" CREATE TABLE meta ({_META})"
            )
            if writes_as_faiss():
                _write(db, covered, vectors, token)
            else:
                _insert(db, covered, vectors, token)
            db.execute(
                "INSERT INTO meta VALUES (?, ?, ?, ?, ?, ?)",
                (
                    *(FORMAT, covered.model, covered.width, covered.count),
                    *(covered.watermark, covered.hash),
                ),
            )
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def all_shortened(vectors: Sequence[bytes], width: int) -> list[bytes]:
    """As `shortened`, many at once."""
    size = width * FLOAT_BYTES
    if not numpy_installed() or all(len(vector) == size for vector in vectors):
        return [shortened(vector, width) for vector in vectors]
    np = numpy()
    whole = np.stack([np.frombuffer(vector, "<f4", width) for vector in vectors])
    lengths = np.maximum(np.linalg.norm(whole, axis=1, keepdims=True), 1e-9)
    return [row.tobytes() for row in (whole / lengths).astype("<f4")]


def shortened(vector: bytes, width: int) -> bytes:
    """The first `width` numbers of a vector, at length 1."""
    if len(vector) == width * FLOAT_BYTES:
        return vector
    return packed(unpacked(vector[: width * FLOAT_BYTES]))


def _connect(path: str, flags: int | None = None) -> apsw.Connection:
    single_threaded()
    vss = importlib.import_module("sqlite_vss")
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE if flags is None else flags
    db = apsw.Connection(path, flags=flags)
    try:
        db.enable_load_extension(True)
        db.load_extension(vss.vector_loadable_path())
        db.load_extension(vss.vss_loadable_path())
        db.enable_load_extension(False)
    except BaseException:
        db.close()
        raise
    return db


def _covered(db: apsw.Connection) -> Covered:
    row = db.execute(f"SELECT {_META} FROM meta").fetchone()
    if row is None or row[0] != FORMAT:
        raise ValueError("it is not whole, or of another version")
    return Covered(str(row[1]), int(row[2]), int(row[3]), int(row[4]), bytes(row[5]))


# ----------------------------------------------------------------------------------- Faiss's format
# An IndexIDMap2 around an IndexFlatL2, as Faiss 1.7 writes them: numbers in little-endian order.


def _described(width: int, count: int) -> bytes:
    return struct.pack("<iqqq?i", width, count, 1 << 20, 1 << 20, True, _L2)


def _head(width: int, count: int) -> bytes:
    """What comes before the numbers of the vectors."""
    described = _described(width, count)
    return b"IxM2" + described + b"IxF2" + described + struct.pack("<Q", count * width)


def _tail_head(count: int) -> bytes:
    return struct.pack("<Q", count)


def _ids(ids: Iterable[int]) -> bytes:
    found = list(ids)
    return struct.pack(f"<{len(found)}q", *found)


def _write(
    db: apsw.Connection,
    covered: Covered,
    vectors: Iterable[Sequence[tuple[int, bytes]]],
    token: CancelToken | None,
) -> None:
    """The index as one blob, written piece by piece: no copy of it is held."""
    head, tail = _head(covered.width, covered.count), _tail_head(covered.count)
    row_bytes = covered.width * FLOAT_BYTES
    size = len(head) + covered.count * (row_bytes + 8) + len(tail)
    with db:
        db.execute("UPDATE near_index SET idx = zeroblob(?) WHERE rowid = 0", (size,))
        ids: list[int] = []
        with db.blob_open("main", "near_index", "idx", 0, True) as blob:
            blob.write(head)
            for rows in _checked(vectors, covered, token):
                blob.write(b"".join(vector for _, vector in rows))
                ids += [key for key, _ in rows]
            if len(ids) != covered.count:
                raise ValueError(f"{len(ids)} vectors came of {covered.count}")
            blob.write(tail)
            blob.write(_ids(ids))
        db.executemany("INSERT INTO near_data (rowid) VALUES (?)", ((key,) for key in ids))


def _insert(
    db: apsw.Connection,
    covered: Covered,
    vectors: Iterable[Sequence[tuple[int, bytes]]],
    token: CancelToken | None,
) -> None:
    for rows in _checked(vectors, covered, token):
        for start in range(0, len(rows), INSERTED):
            with db:
                db.executemany(
                    "INSERT INTO near (rowid, v) VALUES (?, ?)",
                    ((key, VECTOR + vector) for key, vector in rows[start : start + INSERTED]),
                )


def _checked(
    vectors: Iterable[Sequence[tuple[int, bytes]]], covered: Covered, token: CancelToken | None
) -> Iterator[list[tuple[int, bytes]]]:
    """Vectors of the right length only: the extension reads beyond a shorter one."""
    size = covered.width * FLOAT_BYTES
    for rows in vectors:
        if token is not None:
            token.check()
        if any(len(vector) < size for _, vector in rows):
            raise ValueError("a vector has another length")
        vectors_of_rows = all_shortened([vector for _, vector in rows], covered.width)
        yield list(zip([key for key, _ in rows], vectors_of_rows, strict=True))
