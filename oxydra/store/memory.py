"""The chunks of what was said, and the indexes of their words.

An event is put on the list `to_index` by the statement that stores it, and leaves it in the
transaction that stores its chunks: a kill loses none and doubles none. Indexes hold no text: they
are derived from `chunks`, and those from `events`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence

import apsw

from oxydra.store.database import Database, Row
from oxydra.types import Chunk, Marks

NEIGHBOURS = 2  # messages on each side whose words a chunk is found by as well
BATCH = 256  # events indexed in one transaction
_COLUMNS = "chunk_id, session_id, sequence, turn_id, role, text, tainted, sensitive, created_at"


class MemoryTables(Database):
    """`to_index`, `chunks`, `chunk_words` and `chunk_trigrams`."""

    def to_index(self) -> int:
        """How many events are still to be indexed."""
        with self._reading() as db:
            return int(db.execute("SELECT count(*) FROM to_index").get)

    def index_batch(
        self, split: Callable[[str], list[str]], spaceless: Callable[[str], bool]
    ) -> int:
        """Index some of what is on the list; returns how many events left it. `split` cuts a
        message into chunks; `spaceless` says of a chunk that its words are not told apart by
        spaces.
        """
        with self._transaction() as db:
            rows: list[Row] = db.execute(
                "SELECT session_id, sequence FROM to_index ORDER BY 1, 2 LIMIT ?", (BATCH,)
            ).fetchall()
            touched: set[tuple[str, int]] = set()
            for session_id, sequence in rows:
                _replace(db, session_id, sequence, split)
                reach = range(sequence - NEIGHBOURS, sequence + NEIGHBOURS + 1)
                touched |= {(session_id, one) for one in reach}
            for session_id, sequence in sorted(touched):
                _index(db, session_id, sequence, spaceless)
            db.executemany("DELETE FROM to_index WHERE session_id = ? AND sequence = ?", rows)
        return len(rows)

    def find_words(
        self, words: Sequence[str], weights: tuple[float, float], limit: int
    ) -> list[tuple[Chunk, float]]:
        """The chunks that hold any of `words`, best first, with their scores (above 0, larger is
        better); `weights` are those of a chunk's own words and of its neighbours'.
        """
        if not words:
            return []
        with self._reading() as db:
            rows: list[Row] = db.execute(
                f"SELECT {_COLUMNS}, score FROM (SELECT rowid AS found, -bm25(chunk_words, ?, ?)"
                " AS score FROM chunk_words WHERE chunk_words MATCH ? ORDER BY score DESC LIMIT ?)"
                " JOIN chunks ON chunk_id = found ORDER BY score DESC, chunk_id",
                (*weights, _any_of(words), limit),
            ).fetchall()
        return [(_chunk(row), float(row[-1])) for row in rows]

    def find_trigrams(self, trigrams: Sequence[str], limit: int) -> list[tuple[Chunk, float]]:
        """As `find_words`, for text without spaces: the chunks that hold any of `trigrams`."""
        if not trigrams:
            return []
        with self._reading() as db:
            rows: list[Row] = db.execute(
                f"SELECT {_COLUMNS}, score FROM (SELECT rowid AS found, -bm25(chunk_trigrams)"
                " AS score FROM chunk_trigrams WHERE chunk_trigrams MATCH ?"
                " ORDER BY score DESC LIMIT ?)"
                " JOIN chunks ON chunk_id = found ORDER BY score DESC, chunk_id",
                (_any_of(trigrams), limit),
            ).fetchall()
        return [(_chunk(row), float(row[-1])) for row in rows]


def _replace(
    db: apsw.Connection, session_id: str, sequence: int, split: Callable[[str], list[str]]
) -> None:
    """The chunks of an event, in the place of those it had."""
    here = (session_id, sequence)
    where = "session_id = ? AND sequence = ?"
    old = f"(SELECT chunk_id FROM chunks WHERE {where})"
    db.execute(f"DELETE FROM chunk_words WHERE rowid IN {old}", here)
    db.execute(f"DELETE FROM chunk_trigrams WHERE rowid IN {old}", here)
    db.execute(f"DELETE FROM chunks WHERE {where}", here)
    row = db.execute(
        f"SELECT message, turn_id, created_at FROM events WHERE {where}", here
    ).fetchone()
    if row is None:
        return
    message, turn_id, created_at = json.loads(row[0]), row[1], row[2]
    if message["role"] not in ("user", "assistant"):
        return
    marks = bool(message.get("tainted")), bool(message.get("sensitive"))
    db.executemany(
        "INSERT INTO chunks (session_id, sequence, position, turn_id, role, text, tainted,"
        " sensitive, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (*here, position, turn_id, message["role"], text, *map(int, marks), created_at)
            for position, text in enumerate(split(message["content"]))
        ],
    )


def _index(
    db: apsw.Connection, session_id: str, sequence: int, spaceless: Callable[[str], bool]
) -> None:
    """The entries of an event's chunks, with what now stands around it."""
    rows: list[Row] = db.execute(
        "SELECT chunk_id, text FROM chunks WHERE session_id = ? AND sequence = ?",
        (session_id, sequence),
    ).fetchall()
    if not rows:
        return
    around: list[Row] = db.execute(
        "SELECT text FROM chunks WHERE session_id = ?1 AND sequence BETWEEN ?2 - ?3 AND ?2 + ?3"
        " AND sequence <> ?2 ORDER BY sequence, position",
        (session_id, sequence, NEIGHBOURS),
    ).fetchall()
    named: list[Row] = db.execute(
        "SELECT display_name FROM sessions WHERE session_id = ?", (session_id,)
    ).fetchall()
    nearby = "\n".join(text for (text,) in (*named, *around))
    for chunk_id, text in rows:
        db.execute("DELETE FROM chunk_words WHERE rowid = ?", (chunk_id,))
        db.execute(
            "INSERT INTO chunk_words (rowid, text, nearby) VALUES (?, ?, ?)",
            (chunk_id, text, nearby),
        )
        if spaceless(text):
            db.execute("DELETE FROM chunk_trigrams WHERE rowid = ?", (chunk_id,))
            db.execute("INSERT INTO chunk_trigrams (rowid, text) VALUES (?, ?)", (chunk_id, text))


def _any_of(terms: Iterable[str]) -> str:
    """An FTS5 query in which nothing of the terms is an operator."""
    return " OR ".join('"' + term.replace('"', '""') + '"' for term in terms)


def _chunk(row: Row) -> Chunk:
    chunk_id, session_id, sequence, turn_id, role, text, tainted, sensitive, created_at = row[:9]
    marks = Marks(bool(tainted), bool(sensitive))
    return Chunk(chunk_id, session_id, sequence, turn_id, role, text, marks, created_at)
