"""The chunks of what was said and noted, and the indexes of their words.

An event or a note is put on the list `to_index` by the statement that stores it, and leaves it in
the transaction that stores its chunks with their vectors: a kill loses none and doubles none.
Indexes hold no text: they are derived from `chunks`, and those from `events` and `notes`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import apsw

from oxydra.store.database import Database, Row, unindex
from oxydra.store.migrations import digest
from oxydra.types import EVERYWHERE, NOTE, RECALLED, Chunk, Marks, Scope

NEIGHBOURS = 2  # messages on each side whose words a chunk is found by as well
BATCH = 128  # events indexed in one transaction
AT_ONCE = 500  # values in one statement
MOST_OF_OUTPUT = 64 * 1024  # characters of a tool's result that are searched
# Results that repeat what is searched where it was said or noted.
UNSEARCHED = ("memory_search", "memory_save", "memory_update", "scratchpad_read")
COLUMNS = "chunk_id, session_id, sequence, turn_id, role, text, tainted, sensitive, created_at"


class Embeds(Protocol):
    """What makes vectors here: `model` names what they can be compared with."""

    @property
    def model(self) -> str: ...

    def embed(self, texts: Sequence[str], /) -> list[bytes]: ...


class MemoryTables(Database):
    """`to_index`, `chunks`, `chunk_words` and `chunk_trigrams`."""

    def to_index(self, besides: str = "") -> int:
        """How many events are still to be indexed, but for those of the session `besides`."""
        with self._reading() as db:
            sql = "SELECT count(*) FROM to_index WHERE session_id <> ?"
            return int(db.execute(sql, (besides,)).get)

    def holds_besides(self, session_id: str) -> bool:
        """Whether anything is, or will be, found but what one session said."""
        with self._reading() as db:
            return any(
                db.execute(
                    f"SELECT 1 FROM {table} WHERE session_id {side} ? LIMIT 1", (session_id,)
                ).fetchone()
                for table in ("chunks", "to_index")
                for side in ("<", ">")  # each by its index, which `<>` would not use
            )

    def index_batch(
        self,
        split: Callable[[str], list[str]],
        spaceless: Callable[[str], bool],
        embeds: Embeds | None = None,
    ) -> int:
        """Index some of what is on the list; returns how many events left it. `split` cuts a
        message into chunks; `spaceless` says of a chunk that its words are not told apart by
        spaces. `embeds` makes the vectors, before the transaction, so that nobody waits for it;
        without it the chunks are put on the list `to_embed`.
        """
        with self._reading() as db:
            rows: list[Row] = db.execute(
                "SELECT session_id, sequence FROM to_index ORDER BY 1, 2 LIMIT ?", (BATCH,)
            ).fetchall()
            texts = {} if embeds is None else _new_texts(db, rows, split, embeds.model)
        if not rows:  # a search that finds all indexed waits for no writer
            return 0
        vectors: dict[bytes, bytes] = {}
        model = "" if embeds is None else embeds.model
        if embeds is not None and texts:
            vectors = dict(zip(texts, embeds.embed(list(texts.values())), strict=True))
        with self._transaction() as db:
            touched: set[tuple[str, int]] = set()
            for session_id, sequence in rows:
                replace_chunks(db, session_id, sequence, split, model, vectors)
                reach = range(sequence - NEIGHBOURS, sequence + NEIGHBOURS + 1)
                touched |= {(session_id, one) for one in reach}
            for session_id, sequence in sorted(touched):
                index_event(db, session_id, sequence, spaceless)
            db.executemany("DELETE FROM to_index WHERE session_id = ? AND sequence = ?", rows)
        return len(rows)

    def on_listed(self, call: Callable[[], None]) -> None:
        """Have `call` called after each commit that put something on a list, on the thread that
        committed: it must only wake another one.
        """
        listed = False

        def note(*_: object) -> None:
            nonlocal listed
            listed = True

        def committed() -> None:
            nonlocal listed
            if listed:
                listed = False
                call()

        with self._transaction() as db:
            db.create_scalar_function("listed", note, 0)
            db.execute(
                "DROP TRIGGER IF EXISTS temp.listed; CREATE TEMP TRIGGER listed"
                " AFTER INSERT ON main.to_index BEGIN SELECT listed(); END"
            )
        self._after_commit = committed

    def counts(self, words: Sequence[str], most: int) -> list[int]:
        """In how many chunks each word stands, counted up to `most`."""
        with self._reading() as db:
            return [
                int(
                    db.execute(
                        "SELECT count(*) FROM"
                        " (SELECT 1 FROM chunk_words WHERE chunk_words MATCH ? LIMIT ?)",
                        (_term(word, own=True), most),
                    ).get
                )
                for word in words
            ]

    def about_chunks(self) -> int:
        """How many chunks there are, or somewhat more."""
        with self._reading() as db:
            return int(db.execute("SELECT coalesce(max(chunk_id), 0) FROM chunks").get)

    def pinned_sessions(self) -> set[str]:
        """The notes that a person pinned, as the sessions that their chunks are of."""
        with self._reading() as db:
            rows: list[Row] = db.execute("SELECT note_id FROM notes WHERE pinned").fetchall()
        return {NOTE + row[0] for row in rows}

    def find_words(
        self,
        words: Sequence[tuple[str, bool]],
        weights: tuple[float, float],
        limit: int,
        scope: Scope = EVERYWHERE,
        most: int = 1 << 40,
    ) -> list[tuple[Chunk, float]]:
        """The chunks within `scope` that hold any of `words`, best first, with their scores (above
        0, larger is better); `weights` are those of a chunk's own words and of its neighbours',
        where a word comes with False it is not looked for. Of the matches the newest `most` are
        scored.
        """
        if not words:
            return []
        within, values = within_sql(scope)
        only = _only(within, "chunk_words")
        matching = " OR ".join(_term(word, own=not nearby) for word, nearby in words)
        with self._reading() as db:
            rows: list[Row] = db.execute(
                f"SELECT {COLUMNS}, score FROM (SELECT * FROM ("
                " SELECT rowid AS found, -bm25(chunk_words, ?, ?) AS score FROM chunk_words"
                f" WHERE chunk_words MATCH ?{only} ORDER BY rowid DESC LIMIT ?)"
                " ORDER BY score DESC LIMIT ?)"
                " JOIN chunks ON chunk_id = found ORDER BY score DESC, chunk_id",
                (*weights, matching, *values, most, limit),
            ).fetchall()
        return [(chunk_of(row), float(row[-1])) for row in rows]

    def find_trigrams(
        self, trigrams: Sequence[str], limit: int, scope: Scope = EVERYWHERE
    ) -> list[tuple[Chunk, float]]:
        """As `find_words`, for text without spaces: the chunks that hold any of `trigrams`."""
        if not trigrams:
            return []
        within, values = within_sql(scope)
        only = _only(within, "chunk_trigrams")
        with self._reading() as db:
            rows: list[Row] = db.execute(
                f"SELECT {COLUMNS}, score FROM (SELECT rowid AS found, -bm25(chunk_trigrams)"
                f" AS score FROM chunk_trigrams WHERE chunk_trigrams MATCH ?{only}"
                " ORDER BY score DESC LIMIT ?)"
                " JOIN chunks ON chunk_id = found ORDER BY score DESC, chunk_id",
                (" OR ".join(map(_term, trigrams)), *values, limit),
            ).fetchall()
        return [(chunk_of(row), float(row[-1])) for row in rows]


def _new_texts(
    db: apsw.Connection, rows: Iterable[Row], split: Callable[[str], list[str]], model: str
) -> dict[bytes, str]:
    """The texts of these events by their hashes, of those that have no vector of `model`."""
    found = [content[2] for here in rows if (content := _content(db, *here)) is not None]
    texts = {digest(text): text for content in found for text in split(content)}
    known = known_hashes(db, model, list(texts))
    return {key: text for key, text in texts.items() if key not in known}


def replace_chunks(
    db: apsw.Connection,
    session_id: str,
    sequence: int,
    split: Callable[[str], list[str]],
    model: str,
    vectors: Mapping[bytes, bytes],
) -> None:
    """The chunks of an event, in the place of those it had; those that are the same stay."""
    here = (session_id, sequence)
    found = _content(db, *here)
    wanted: list[Row] = []
    if found is not None:
        turn_id, role, content, tainted, sensitive, created_at = found
        rest = (tainted, sensitive, created_at)
        wanted = [(place, turn_id, role, text, *rest) for place, text in enumerate(split(content))]
    held: list[Row] = db.execute(
        "SELECT position, turn_id, role, text, tainted, sensitive, created_at FROM chunks"
        " WHERE session_id = ? AND sequence = ? ORDER BY position",
        here,
    ).fetchall()
    if held == wanted:
        return
    where = "session_id = ? AND sequence = ?"
    unindex(db, where, here)
    db.execute(f"DELETE FROM chunks WHERE {where}", here)
    for row in wanted:
        key = digest(row[3])
        db.execute(
            "INSERT INTO chunks (session_id, sequence, position, turn_id, role, text, tainted,"
            " sensitive, created_at, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*here, *row, key),
        )
        if key in vectors:
            put_vector(db, model, key, vectors[key])
        elif key not in known_hashes(db, model, [key]):
            db.execute("INSERT OR IGNORE INTO to_embed VALUES (?, 1)", (key,))


def _content(db: apsw.Connection, session_id: str, sequence: int) -> Row | None:
    """What the chunks of an event or a note have of it; None for what is not searched."""
    if session_id.startswith(NOTE):
        return _noted(db, session_id)
    return _said(db, session_id, sequence)


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
    if role not in ("user", "assistant", "tool") or message.get("name") in UNSEARCHED:
        return None
    marks = int(bool(message.get("tainted"))), int(bool(message.get("sensitive")))
    content = message["content"][: MOST_OF_OUTPUT if role == "tool" else None]
    return turn_id, role, content, *marks, created_at


def _noted(db: apsw.Connection, name: str) -> Row | None:
    """The same of a note."""
    found: Row | None = db.execute(
        "SELECT '', 'note', content, tainted, sensitive, r.created_at FROM notes"
        " JOIN note_revisions AS r USING (note_id, revision) WHERE note_id = ?",
        (name.removeprefix(NOTE),),
    ).fetchone()
    return found


def index_event(
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
        " AND sequence <> ?2 AND role <> 'tool' ORDER BY sequence, position",
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


def _only(within: str, index: str) -> str:
    """The same for the rows of an index: asked of each match, for `rowid IN` would have the index
    asked anew for each chunk that there is.
    """
    mine = f"SELECT 1 FROM chunks WHERE chunk_id = {index}.rowid AND {within}"
    return f" AND EXISTS ({mine})" if within else ""


def _term(word: str, own: bool = False) -> str:
    """A word of an FTS5 query, in which nothing is an operator; `own`: not its neighbours'."""
    return ("text : " if own else "") + '"' + word.replace('"', '""') + '"'


def chunk_of(row: Row) -> Chunk:
    chunk_id, session_id, sequence, turn_id, role, text, tainted, sensitive, created_at = row[:9]
    marks = _MARKS[2 * tainted + sensitive]
    return Chunk(chunk_id, session_id, sequence, turn_id, role, text, marks, created_at)


_MARKS = [Marks(), Marks(sensitive=True), Marks(tainted=True), Marks(True, True)]


def known_hashes(db: apsw.Connection, model: str, keys: Sequence[bytes]) -> set[bytes]:
    """Those of `keys` that have a vector of `model`."""
    found: set[bytes] = set()
    for start in range(0, len(keys), AT_ONCE):
        some = keys[start : start + AT_ONCE]
        rows: list[Row] = db.execute(
            f"SELECT hash FROM vectors WHERE model = ? AND hash IN ({', '.join('?' * len(some))})",
            (model, *some),
        ).fetchall()
        found.update(row[0] for row in rows)
    return found


def put_vector(db: apsw.Connection, model: str, key: bytes, vector: bytes) -> None:
    """Store a text's vector in the place of the one it had, where a chunk has that text."""
    db.execute("DELETE FROM to_embed WHERE hash = ?", (key,))
    db.execute(
        "INSERT OR REPLACE INTO vectors (hash, model, vector) SELECT ?1, ?2, ?3"
        " WHERE EXISTS (SELECT 1 FROM chunks WHERE hash = ?1)",
        (key, model, vector),
    )
