"""The chunks of what was said and noted, and the indexes of their words.

An event or a note is put on the list `to_index` by the statement that stores it, and leaves it in
the transaction that stores its chunks: a kill loses none and doubles none. Indexes hold no text:
they are derived from `chunks`, and those from `events` and `notes`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence

import apsw

from oxydra.store.database import Database, Row
from oxydra.types import EVERYWHERE, NOTE, RECALLED, Chunk, Marks, Scope

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
        self,
        words: Sequence[str],
        weights: tuple[float, float],
        limit: int,
        scope: Scope = EVERYWHERE,
    ) -> list[tuple[Chunk, float]]:
        """The chunks within `scope` that hold any of `words`, best first, with their scores (above
        0, larger is better); `weights` are those of a chunk's own words and of its neighbours'.
        """
        if not words:
            return []
        within, values = within_sql(scope)
        with self._reading() as db:
            rows: list[Row] = db.execute(
                f"SELECT {_COLUMNS}, score FROM (SELECT rowid AS found, -bm25(chunk_words, ?, ?)"
                f" AS score FROM chunk_words WHERE chunk_words MATCH ?{_only(within)}"
                " ORDER BY score DESC LIMIT ?)"
                " JOIN chunks ON chunk_id = found ORDER BY score DESC, chunk_id",
                (*weights, _any_of(words), *values, limit),
            ).fetchall()
        return [(_chunk(row), float(row[-1])) for row in rows]

    def find_trigrams(
        self, trigrams: Sequence[str], limit: int, scope: Scope = EVERYWHERE
    ) -> list[tuple[Chunk, float]]:
        """As `find_words`, for text without spaces: the chunks that hold any of `trigrams`."""
        if not trigrams:
            return []
        within, values = within_sql(scope)
        with self._reading() as db:
            rows: list[Row] = db.execute(
                f"SELECT {_COLUMNS}, score FROM (SELECT rowid AS found, -bm25(chunk_trigrams)"
                f" AS score FROM chunk_trigrams WHERE chunk_trigrams MATCH ?{_only(within)}"
                " ORDER BY score DESC LIMIT ?)"
                " JOIN chunks ON chunk_id = found ORDER BY score DESC, chunk_id",
                (_any_of(trigrams), *values, limit),
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
    found = _noted(db, session_id) if session_id.startswith(NOTE) else _said(db, *here)
    if found is None:
        return
    turn_id, role, content, tainted, sensitive, created_at = found
    db.executemany(
        "INSERT INTO chunks (session_id, sequence, position, turn_id, role, text, tainted,"
        " sensitive, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (*here, position, turn_id, role, text, tainted, sensitive, created_at)
            for position, text in enumerate(split(content))
        ],
    )


def _said(db: apsw.Connection, session_id: str, sequence: int) -> Row | None:
    """What a chunk has of a message, the whole text included; None for what is not searched. What
    was recalled is there already, in its own place.
    """
    row = db.execute(
        "SELECT message, turn_id, created_at FROM events WHERE session_id = ? AND sequence = ?",
        (session_id, sequence),
    ).fetchone()
    if row is None or row[1].startswith(RECALLED):
        return None
    message, turn_id, created_at = json.loads(row[0]), row[1], row[2]
    role = message["role"]
    if role not in ("user", "assistant"):
        return None
    marks = int(bool(message.get("tainted"))), int(bool(message.get("sensitive")))
    return turn_id, role, message["content"], *marks, created_at


def _noted(db: apsw.Connection, name: str) -> Row | None:
    """The same of a note."""
    found: Row | None = db.execute(
        "SELECT '', 'note', content, tainted, sensitive, r.created_at FROM notes"
        " JOIN note_revisions AS r USING (note_id, revision) WHERE note_id = ?",
        (name.removeprefix(NOTE),),
    ).fetchone()
    return found


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
        "SELECT display_name FROM sessions WHERE session_id = ?1"
        " UNION ALL SELECT tag FROM note_tags WHERE ?1 = 'note:' || note_id AND note_id = ?2",
        (session_id, session_id.removeprefix(NOTE)),
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


def within_sql(scope: Scope) -> tuple[str, list[object]]:
    """Which rows of `chunks` are within `scope`: a condition, "" for all of them, and its values.
    Tags are values and no part of the SQL.
    """
    found: list[tuple[str, tuple[object, ...]]] = []
    if scope.tags or not scope.conversations:
        found.append(("session_id >= 'note:' AND session_id < 'note;'", ()))
    for tag in scope.tags:
        tagged = "SELECT 'note:' || note_id FROM note_tags WHERE tag = ?"
        found.append((f"session_id IN ({tagged})", (tag,)))
    if scope.since:
        found.append(("created_at >= ?", (scope.since,)))
    if scope.until:
        found.append(("created_at < ?", (scope.until,)))
    if scope.without:
        found.append(("turn_id <> ?", (scope.without,)))
    if scope.unless_of:
        found.append(("(session_id <> ? OR sequence <= ?)", (scope.unless_of, scope.after)))
    return " AND ".join(sql for sql, _ in found), [value for _, more in found for value in more]


def _only(within: str) -> str:
    return f" AND rowid IN (SELECT chunk_id FROM chunks WHERE {within})" if within else ""


def _any_of(terms: Iterable[str]) -> str:
    """An FTS5 query in which nothing of the terms is an operator."""
    return " OR ".join('"' + term.replace('"', '""') + '"' for term in terms)


def _chunk(row: Row) -> Chunk:
    chunk_id, session_id, sequence, turn_id, role, text, tainted, sensitive, created_at = row[:9]
    marks = Marks(bool(tainted), bool(sensitive))
    return Chunk(chunk_id, session_id, sequence, turn_id, role, text, marks, created_at)
