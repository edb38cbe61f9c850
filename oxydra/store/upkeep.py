"""What memory's indexes hold, whether that is right, and making it anew from what it is of."""

from __future__ import annotations

from collections.abc import Callable

from oxydra.errors import StoreError
from oxydra.store.database import Database, Row, unindex
from oxydra.store.memory import index_event, replace_chunks
from oxydra.store.migrations import digest
from oxydra.threads import CancelToken
from oxydra.types import NOTE, Json

REBUILT = 8  # events and notes in one transaction of a rebuild, for which saves wait
WORD_TABLES = {
    "chunk_words": "CREATE VIRTUAL TABLE chunk_words USING fts5(text, nearby, content = '',"
    " contentless_delete = 1, tokenize = 'porter unicode61 remove_diacritics 2')",
    "chunk_trigrams": "CREATE VIRTUAL TABLE chunk_trigrams USING fts5(text, content = '',"
    " contentless_delete = 1, tokenize = 'trigram')",
}
_SHOWN = 5  # of each kind of trouble
_UNINDEXED = """
    SELECT session_id || ' ' || sequence FROM events AS e
    WHERE json_extract(message, '$.role') IN ('user', 'assistant')
        AND trim(json_extract(message, '$.content'), ' ' || char(9, 10, 13)) <> ''
        AND turn_id NOT GLOB 'recall-*'
        AND NOT EXISTS (SELECT 1 FROM chunks AS c
            WHERE c.session_id = e.session_id AND c.sequence = e.sequence)
        AND NOT EXISTS (SELECT 1 FROM to_index AS l
            WHERE l.session_id = e.session_id AND l.sequence = e.sequence)
"""
_CHECKS = {
    "messages that are neither indexed nor listed": _UNINDEXED,
    "chunks that the index of words lacks": "SELECT chunk_id FROM chunks"
    " WHERE chunk_id NOT IN (SELECT id FROM chunk_words_docsize)",
    "entries of the index of words without a chunk": "SELECT id FROM chunk_words_docsize"
    " WHERE id NOT IN (SELECT chunk_id FROM chunks)",
    "entries of the index of trigrams without a chunk": "SELECT id FROM chunk_trigrams_docsize"
    " WHERE id NOT IN (SELECT chunk_id FROM chunks)",
    "chunks without a vector that are not listed": "SELECT chunk_id FROM chunks"
    " WHERE hash NOT IN (SELECT hash FROM vectors) AND hash NOT IN (SELECT hash FROM to_embed)",
    "vectors without a chunk": "SELECT vector_id FROM vectors"
    " WHERE hash NOT IN (SELECT hash FROM chunks)",
}


class UpkeepTables(Database):
    """All of memory's tables."""

    def index_sizes(self) -> Json:
        """How many of each there are."""
        with self._reading() as db:
            counts = {
                table: int(db.execute(f"SELECT count(*) FROM {table}").get)
                for table in ("chunks", "vectors", "to_index", "to_embed")
            }
            texts = int(db.execute("SELECT count(DISTINCT hash) FROM chunks").get)
            models: list[Row] = db.execute(
                "SELECT model, count(*) FROM vectors GROUP BY model ORDER BY 2 DESC"
            ).fetchall()
        return {**counts, "texts": texts, "vectors_by_model": dict(models)}

    def index_troubles(self) -> list[str]:
        """What is wrong with the database and memory's indexes in it; empty where nothing is."""
        found = self._damages()
        with self._reading() as db:
            for what, query in _CHECKS.items():
                rows = [str(row[0]) for row in db.execute(query)]
                if rows:
                    found.append(f"{len(rows):,} {what}: {', '.join(rows[:_SHOWN])}")
            wrong = [
                str(key)
                for key, text, kept in db.execute("SELECT chunk_id, text, hash FROM chunks")
                if digest(text) != kept
            ]
        if wrong:
            found.append(f"{len(wrong):,} chunks with the hash of another text: {wrong[:_SHOWN]}")
        return found

    def _damages(self, table: str = "") -> list[str]:
        """What SQLite finds wrong with a table, or all: a reader, whom no writer waits for."""
        limit = table or str(_SHOWN)
        try:
            with self._reading() as db:
                rows = [str(row[0]) for row in db.execute(f"PRAGMA integrity_check({limit})")]
        except StoreError as error:
            rows = [str(error)]
        return [f"the database is damaged: {row}" for row in rows if row != "ok"]

    def quick_check(self, token: CancelToken) -> str:
        """What SQLite finds wrong with the file without reading every index; empty if nothing is,
        or the check was cancelled.
        """
        try:
            with self._reading() as db, token.on_cancel(db.interrupt):
                said = [str(row[0]) for row in db.execute(f"PRAGMA quick_check({_SHOWN})")]
        except StoreError as error:
            return "" if token.cancelled else str(error)
        wrong = [row for row in said if row != "ok"]
        return f"The database {self.path} is damaged: {'; '.join(wrong)}" if wrong else ""

    def mend_word_indexes(self) -> bool:
        """Make indexes of words that are damaged anew, empty, with everything on the list of what
        is to be indexed; whether one was.
        """
        if not any(map(self._damages, WORD_TABLES)):
            return False
        with self._transaction() as db:
            for index, made in WORD_TABLES.items():
                db.execute(f"DROP TABLE {index}")
                db.execute(made)
            db.execute("INSERT OR IGNORE INTO to_index SELECT session_id, sequence FROM events")
            db.execute("INSERT OR IGNORE INTO to_index SELECT 'note:' || note_id, 0 FROM notes")
        return True

    def reindex_batch(
        self,
        after: tuple[str, int],
        split: Callable[[str], list[str]],
        spaceless: Callable[[str], bool],
    ) -> tuple[str, int] | None:
        """Make the chunks and the entries of the events and notes next to `after` anew; returns the
        last of them, None where there are no more. What is there stays searchable all the while.
        """
        note = after[0].removeprefix(NOTE) if after[0].startswith(NOTE) else ""
        if not note and after[0] > NOTE:
            note = "\U0010ffff"  # all notes come before it
        with self._transaction() as db:
            rows: list[Row] = db.execute(
                "SELECT * FROM (SELECT session_id, sequence FROM events"
                " WHERE (session_id, sequence) > (?1, ?2) ORDER BY session_id, sequence LIMIT ?4)"
                " UNION ALL SELECT * FROM (SELECT 'note:' || note_id, 0 FROM notes"
                " WHERE note_id > ?3 ORDER BY note_id LIMIT ?4) ORDER BY 1, 2 LIMIT ?4",
                (*after, note, REBUILT),
            ).fetchall()
            for session_id, sequence in rows:
                replace_chunks(db, session_id, sequence, split, "", {})
            for session_id, sequence in rows:
                index_event(db, session_id, sequence, spaceless)
        return (rows[-1][0], rows[-1][1]) if rows else None

    def drop_orphans(self, model: str, dimensions: int) -> None:
        """Delete what no event, note or chunk stands behind, and the vectors of `model` that have
        not so many `dimensions`.
        """
        gone = "session_id NOT GLOB 'note:*' AND NOT EXISTS (SELECT 1 FROM events AS e"
        gone += " WHERE e.session_id = chunks.session_id AND e.sequence = chunks.sequence)"
        lost = f"SELECT 1 FROM chunks WHERE {gone}"
        unlike = "SELECT 1 FROM vectors WHERE model = ? AND length(vector) <> ?"
        with self._reading() as db:  # nobody waits to write while there is nothing to do
            db.create_scalar_function("digest_of", lambda *one: digest(one[0]), 1)
            hashes = "SELECT 1 FROM chunks WHERE hash <> digest_of(text)"
            queries = [lost, hashes, *list(_CHECKS.values())[1:]]
            wrong = any(db.execute(query).fetchone() is not None for query in queries)
            wrong = wrong or db.execute(unlike, (model, 4 * dimensions)).fetchone() is not None
        if not wrong:
            return
        with self._transaction() as db:
            db.create_scalar_function("digest_of", lambda *one: digest(one[0]), 1)
            unindex(db, gone)
            db.execute(f"DELETE FROM chunks WHERE {gone}")
            for index in WORD_TABLES:
                db.execute(
                    f"DELETE FROM {index} WHERE rowid IN (SELECT id FROM {index}_docsize"
                    " WHERE id NOT IN (SELECT chunk_id FROM chunks))"
                )
            db.execute("UPDATE chunks SET hash = digest_of(text) WHERE hash <> digest_of(text)")
            db.execute(
                "DELETE FROM vectors WHERE model = ? AND length(vector) <> ?",
                (model, 4 * dimensions),
            )
            db.execute("DELETE FROM vectors WHERE hash NOT IN (SELECT hash FROM chunks)")
            db.execute(
                "INSERT OR IGNORE INTO to_embed SELECT hash, 0 FROM chunks"
                " WHERE hash NOT IN (SELECT hash FROM vectors)"
            )
