"""The vectors of chunks, and the list of those that are still to be made.

A vector belongs to a text, however many chunks have it, and goes with the last of them. Where the
backend is at hand it is stored in the transaction that stores its chunk; else the text is put on
the list `to_embed` by that transaction, so that a kill loses none.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from oxydra.store.database import Database, Row
from oxydra.store.memory import COLUMNS, chunk_of, put_vector, within_sql
from oxydra.types import EVERYWHERE, Chunk, Scope

PORTION = 4096  # vectors read at once


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How many vectors there are, the id of the newest, and the hash of its text."""

    count: int
    last: int
    hash: bytes


class VectorTables(Database):
    """`vectors` and `to_embed`."""

    def to_embed(self) -> int:
        """How many texts have no vector that can be compared."""
        with self._reading() as db:
            return int(db.execute("SELECT count(*) FROM to_embed").get)

    def embed_later(self, model: str) -> int:
        """Put on the list what has a vector of another model than `model`; returns how many texts
        are on it.
        """
        with self._reading() as db:
            other = db.execute(
                "SELECT EXISTS (SELECT 1 FROM vectors WHERE model < ?1 OR model > ?1)", (model,)
            ).get
        if other:
            with self._transaction() as db:
                db.execute(
                    "INSERT OR IGNORE INTO to_embed SELECT hash, 0 FROM vectors WHERE model <> ?",
                    (model,),
                )
        return self.to_embed()

    def unembedded(self, limit: int, *, fresh: bool = False) -> list[tuple[bytes, str]]:
        """Some texts of the list, by their hashes; `fresh`: only those that are new."""
        with self._reading() as db:
            rows: list[Row] = db.execute(
                "SELECT hash, (SELECT text FROM chunks WHERE chunks.hash = to_embed.hash)"
                " FROM to_embed WHERE fresh >= ? LIMIT ?",
                (int(fresh), limit),
            ).fetchall()
        return [(row[0], row[1]) for row in rows]

    def set_vectors(self, model: str, vectors: Sequence[tuple[bytes, bytes]]) -> None:
        """Store the vectors of texts by their hashes, and take those off the list. A text that is
        gone by now gets none.
        """
        with self._transaction() as db:
            for key, vector in vectors:
                put_vector(db, model, key, vector)

    def vectors_after(
        self, model: str, vector_id: int, limit: int = 1 << 40
    ) -> list[tuple[int, bytes]]:
        """The vectors of `model` that are newer than one, in their order."""
        with self._reading() as db:
            rows: list[Row] = db.execute(
                "SELECT vector_id, vector FROM vectors WHERE vector_id > ? AND model = ?"
                " ORDER BY vector_id LIMIT ?",
                (vector_id, model, limit),
            ).fetchall()
        return [(row[0], row[1]) for row in rows]

    @contextlib.contextmanager
    def vector_snapshot(self, model: str) -> Iterator[tuple[Snapshot, Iterator[list[Row]]]]:
        """What there is of `model` at this moment, and its ids with their vectors, in their order
        and in portions. It keeps nobody from writing.
        """
        with self._reading() as db:
            db.execute("BEGIN")
            try:
                count, last = db.execute(
                    "SELECT count(*), coalesce(max(vector_id), 0) FROM vectors WHERE model = ?",
                    (model,),
                ).fetchone() or (0, 0)
                key = db.execute("SELECT hash FROM vectors WHERE vector_id = ?", (last,)).get
                rows = db.execute(
                    "SELECT vector_id, vector FROM vectors WHERE model = ? ORDER BY vector_id",
                    (model,),
                )
                taken = iter(lambda: list(itertools.islice(rows, PORTION)), [])
                try:
                    yield Snapshot(int(count), int(last), bytes(key or b"")), taken
                finally:
                    rows.close(True)
            finally:
                db.execute("ROLLBACK")

    def vector_hash(self, vector_id: int, model: str) -> bytes:
        """Of which text a vector of `model` is; b"" where there is none."""
        with self._reading() as db:
            return bytes(
                db.execute(
                    "SELECT hash FROM vectors WHERE vector_id = ? AND model = ?", (vector_id, model)
                ).get
                or b""
            )

    def vectors_through(self, model: str, vector_id: int) -> int:
        """How many vectors of `model` there are up to one."""
        with self._reading() as db:
            return int(
                db.execute(
                    "SELECT count(*) FROM vectors WHERE model = ? AND vector_id <= ?",
                    (model, vector_id),
                ).get
            )

    def vector_troubles(self, model: str, dimensions: int) -> list[str]:
        """What is wrong with the vectors of `model`, which have so many `dimensions`."""
        with self._reading() as db:
            count = db.execute(
                "SELECT count(*) FROM vectors WHERE model = ? AND length(vector) <> ?",
                (model, 4 * dimensions),
            ).get
        return [f"{count:,} vectors of another length"] if count else []

    def vector_count(self, model: str) -> int:
        with self._reading() as db:
            return int(db.execute("SELECT count(*) FROM vectors WHERE model = ?", (model,)).get)

    def chunks_of_vectors(
        self, ids: Sequence[int], model: str, scope: Scope = EVERYWHERE
    ) -> list[tuple[Chunk, bytes]]:
        """The chunks within `scope` that have these vectors, with them; those of `model` only."""
        within, values = within_sql(scope)
        named = ", ".join(map(str, ids))
        return self._with_vectors(
            f"vector_id IN ({named}) AND +model = ?" + (f" AND {within}" if within else ""),
            [model, *values],
        )

    def vectors_of_chunks(self, ids: Sequence[int], model: str) -> dict[int, bytes]:
        """The vectors of chunks by `chunk_id`, of those that have one of `model`."""
        with self._reading() as db:
            rows: list[Row] = db.execute(
                "SELECT chunk_id, vector FROM chunks CROSS JOIN vectors USING (hash)"
                f" WHERE chunk_id IN ({', '.join(map(str, ids))}) AND +model = ?",
                (model,),
            ).fetchall()
        return dict(rows)

    def vectors_within(
        self, scope: Scope, model: str, limit: int
    ) -> list[tuple[Chunk, bytes]] | None:
        """All chunks within `scope` with their vectors; None where there are more than `limit`."""
        within, values = within_sql(scope)
        with self._reading() as db:
            more = db.execute(
                f"SELECT 1 FROM chunks WHERE {within or '1'} LIMIT 1 OFFSET ?", (*values, limit)
            ).fetchone()
        if more is not None:
            return None
        return self._with_vectors(f"+model = ? AND {within or '1'}", [model, *values])

    def _with_vectors(self, where: str, values: Sequence[object]) -> list[tuple[Chunk, bytes]]:
        columns = COLUMNS.replace("chunk_id", "chunks.chunk_id")
        with self._reading() as db:
            rows: list[Row] = db.execute(
                f"SELECT {columns}, vector FROM chunks JOIN vectors USING (hash) WHERE {where}",
                values,
            ).fetchall()
        return [(chunk_of(row), row[-1]) for row in rows]
