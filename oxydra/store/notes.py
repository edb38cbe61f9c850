"""Notes: what they say, what they said before, and their tags; and what sessions scratch down.

A revision is added and none is changed; the newest is the note. A note is acknowledged when its
transaction is: with it goes its place on the list of what is to be indexed.
"""

from __future__ import annotations

import datetime
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import apsw

from oxydra.errors import NotFoundError, UsageError
from oxydra.frames import compact
from oxydra.store.database import Database, Row, as_text, clean, placeholders, timestamp, unindex
from oxydra.types import NOTE, Json, Marks

KIND = "note"  # of the changes that undo takes back

_NOTE = (
    "note_id, revision, content, tags, tainted, sensitive, source, session_id, sequence, pinned,"
    " r.created_at"
)
_NOTES = f"SELECT {_NOTE} FROM notes JOIN note_revisions AS r USING (note_id, revision)"


@dataclass(frozen=True, slots=True)
class Note:
    """What was noted, as its newest revision (from 1) has it; `created_at` is when that was made,
    UTC in RFC 3339.

    `source` is who wrote it: `model`, `person` or `import`; `session_id` and `sequence` are the
    event in which a model did, or "" and 0. `pinned` by a person: it comes before others.
    """

    note_id: str
    revision: int
    content: str
    tags: tuple[str, ...]
    marks: Marks
    source: str
    session_id: str
    sequence: int
    pinned: bool
    created_at: str

    def to_json(self) -> Json:
        return {
            "note_id": self.note_id,
            "revision": self.revision,
            "content": self.content,
            "tags": list(self.tags),
            "pinned": self.pinned,
            "source": self.source,
            "session": self.session_id,
            "sequence": self.sequence,
            "time": self.created_at,
            "from_strangers": self.marks.tainted,
            "private": self.marks.sensitive,
        }


@dataclass(frozen=True, slots=True)
class Origin:
    """Who writes a note: `source` as `Note` has it, and of a model the call (of `step`, from 1)
    that does.
    """

    source: str = "person"
    session_id: str = ""
    turn_id: str = ""
    step: int = 0
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class Imported:
    """A note from a file; `at` is when it was made, "" where that is not known."""

    note_id: str
    content: str
    tags: tuple[str, ...]
    marks: Marks
    pinned: bool
    at: str


@dataclass(frozen=True, slots=True)
class Scrap:
    """A line of a session's scratchpad."""

    text: str
    marks: Marks


class NoteTables(Database):
    """`notes`, `note_revisions`, `note_tags` and `scratchpad`."""

    _notes_at_most = 1 << 62  # notes that there are: not counted yet

    def add_note(
        self,
        content: str,
        tags: Sequence[str],
        marks: Marks,
        origin: Origin,
        *,
        most: int,
        note_id: str = "",
        at: str = "",
    ) -> Note:
        """A new note, durably, made at `at` (now, where that is empty) and under an id of its own
        where none is given. Raises `UsageError` where there are `most` already.
        """
        note_id, now = note_id or secrets.token_hex(5), at or timestamp()
        with self._transaction() as db:
            if self._may_be_full(db, most):
                raise UsageError(
                    f"There are {most:,} notes, as many as there may be.",
                    remedy="Delete some, or raise [memory] max_notes.",
                )
            db.execute("INSERT INTO notes VALUES (?, 1, 0, ?)", (note_id, now))
            _revise(db, note_id, 1, content, tags, marks, origin, now)
            return _found(db, note_id)

    def _may_be_full(self, db: apsw.Connection, most: int) -> bool:
        """Whether there are `most` notes, under the lock. They are counted only where there may be:
        none came in another way than by those that were added since, each counted, kept or not.
        """
        if self._notes_at_most < most:
            self._notes_at_most += 1
            return False
        self._notes_at_most = 1 + int(db.execute("SELECT count(*) FROM notes").get)
        return self._notes_at_most > most

    def import_notes(self, notes: Sequence[Imported], *, most: int) -> list[str]:
        """Add notes under their own ids; returns of each whether it is `added`, `kept` since it is
        there as it is, `other` where its id says something else here, or `full`.
        """
        found: list[str] = []
        with self._transaction() as db:
            for one in notes:
                there = db.execute(
                    "SELECT content FROM notes JOIN note_revisions USING (note_id, revision)"
                    " WHERE note_id = ?",
                    (one.note_id,),
                ).get
                if there is not None:
                    found.append("kept" if there == clean(one.content) else "other")
                elif self._may_be_full(db, most):
                    found.append("full")
                else:
                    at = one.at or timestamp()
                    row = (one.note_id, int(one.pinned), at)
                    db.execute("INSERT INTO notes VALUES (?, 1, ?, ?)", row)
                    origin = Origin("import")
                    _revise(db, one.note_id, 1, one.content, one.tags, one.marks, origin, at)
                    found.append("added")
        return found

    def update_note(
        self, note_id: str, content: str, tags: Sequence[str] | None, marks: Marks, origin: Origin
    ) -> Note:
        """Supersede what a note says; `tags` of None are those that it has. It keeps the marks that
        it had. Raises `NotFoundError`.
        """
        with self._transaction() as db:
            old = _found(db, note_id)
            tags = old.tags if tags is None else tags
            db.execute("UPDATE notes SET revision = revision + 1 WHERE note_id = ?", (note_id,))
            marks |= old.marks
            _revise(db, note_id, old.revision + 1, content, tags, marks, origin, timestamp())
            return _found(db, note_id)

    def withdraw_revision(self, note_id: str, revision: int) -> None:
        """Undo: take back the newest revision, and with the first one the note."""
        with self._transaction() as db:
            if _found(db, note_id).revision != revision:
                return
            if revision == 1:
                erase_note(db, note_id)
                return
            db.execute("UPDATE notes SET revision = revision - 1 WHERE note_id = ?", (note_id,))
            db.execute(
                "DELETE FROM note_revisions WHERE note_id = ? AND revision = ?", (note_id, revision)
            )
            _tag(db, note_id, _found(db, note_id).tags)

    def delete_note(self, note_id: str) -> Note:
        """A note and its history, so that no file of the database holds them any more; returns what
        it was. Raises `NotFoundError`.
        """
        with self._erasing() as db:
            found = _found(db, note_id)
            erase_note(db, note_id)
        return found

    def pin_note(self, note_id: str, pinned: bool) -> Note:
        """Have a note come before others, or no longer. Raises `NotFoundError`."""
        with self._transaction() as db:
            db.execute("UPDATE notes SET pinned = ? WHERE note_id = ?", (int(pinned), note_id))
            return _found(db, note_id)

    def note(self, note_id: str) -> Note:
        """Raises `NotFoundError`."""
        with self._reading() as db:
            return _found(db, note_id)

    def notes_named(self, note_ids: Sequence[str]) -> dict[str, Note]:
        """Those of them that there are, by id."""
        with self._reading() as db:
            rows: list[Row] = db.execute(
                f"{_NOTES} WHERE note_id IN ({placeholders(note_ids)})", note_ids
            ).fetchall()
        return {row[0]: _note(row) for row in rows}

    def notes(
        self, tags: Sequence[str] = (), *, limit: int = 1 << 40, offset: int = 0
    ) -> tuple[list[Note], int]:
        """Those with all of `tags`, pinned ones first and then the newest, and how many there are
        in all.
        """
        tagged = " AND ".join(
            ["note_id IN (SELECT note_id FROM note_tags WHERE tag = ?)"] * len(tags) or ["1"]
        )
        with self._reading() as db:
            rows: list[Row] = db.execute(
                f"{_NOTES} WHERE {tagged} ORDER BY pinned DESC, r.created_at DESC, note_id"
                " LIMIT ? OFFSET ?",
                (*tags, limit, offset),
            ).fetchall()
            total = int(db.execute(f"SELECT count(*) FROM notes WHERE {tagged}", tags).get)
        return [_note(row) for row in rows], total

    def note_history(self, note_id: str) -> list[Note]:
        """All that a note ever said, the newest first. Raises `NotFoundError`."""
        with self._reading() as db:
            _found(db, note_id)
            rows: list[Row] = db.execute(
                f"SELECT {_NOTE.replace('revision', 'r.revision')} FROM notes"
                " JOIN note_revisions AS r USING (note_id) WHERE note_id = ?"
                " ORDER BY r.revision DESC",
                (note_id,),
            ).fetchall()
        return [_note(row) for row in rows]

    def revision_of_call(self, turn_id: str, step: int, call_id: str) -> Note | None:
        """The note as one call has written it; None where the call did not, or it is gone."""
        with self._reading() as db:
            row = db.execute(
                f"SELECT {_NOTE.replace('revision', 'r.revision')} FROM notes"
                " JOIN note_revisions AS r USING (note_id)"
                " WHERE turn_id = ? AND turn_id <> '' AND step = ? AND call_id = ?",
                (turn_id, step, clean(call_id)),
            ).fetchone()
        return None if row is None else _note(row)

    # --------------------------------------------------------------------------------- scratchpad

    def scratchpad(self, session_id: str) -> list[Scrap]:
        """What a session has scratched down, in its order."""
        with self._reading() as db:
            rows: list[Row] = db.execute(
                "SELECT text, tainted, sensitive FROM scratchpad WHERE session_id = ?"
                " ORDER BY position",
                (session_id,),
            ).fetchall()
        return [Scrap(row[0], Marks(bool(row[1]), bool(row[2]))) for row in rows]

    def set_scratchpad(self, session_id: str, scraps: Sequence[Scrap]) -> None:
        """Put these in the place of what was there."""
        rows = [
            (session_id, place, clean(s.text), int(s.marks.tainted), int(s.marks.sensitive))
            for place, s in enumerate(scraps)
        ]
        with self._transaction() as db:
            db.execute("DELETE FROM scratchpad WHERE session_id = ?", (session_id,))
            db.executemany("INSERT INTO scratchpad VALUES (?, ?, ?, ?, ?)", rows)


def erase_note(db: apsw.Connection, note_id: str) -> None:
    """A note, all that it ever said, and its chunks with their entries in the indexes."""
    for table in ("note_tags", "note_revisions", "notes"):
        db.execute(f"DELETE FROM {table} WHERE note_id = ?", (note_id,))
    unindex(db, "session_id = ?", (NOTE + note_id,))
    db.execute("DELETE FROM chunks WHERE session_id = ?", (NOTE + note_id,))
    # the trigger has put it on the list: whatever else is derived from chunks learns of it there


def moment(text: str) -> str:
    """A time of RFC 3339, or a date, as the store writes it; without a zone it is UTC. Raises
    `UsageError`.
    """
    try:
        at = datetime.datetime.fromisoformat(text.strip())
        at = at if at.tzinfo is not None else at.replace(tzinfo=datetime.UTC)
        return at.astimezone(datetime.UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError):
        raise UsageError(
            f"{text[:40]!r} is no time.", remedy="Write it as 2026-03-31 or 2026-03-31T18:00:00Z."
        ) from None


def _revise(
    db: apsw.Connection,
    note_id: str,
    revision: int,
    content: str,
    tags: Sequence[str],
    marks: Marks,
    origin: Origin,
    now: str,
) -> None:
    call = (origin.turn_id, clean(origin.call_id))
    sequence = db.execute(
        "SELECT max(sequence) FROM tool_calls WHERE turn_id = ? AND call_id = ?", call
    ).get
    db.execute(
        "INSERT INTO note_revisions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(note_id, revision, clean(content), clean(compact(list(tags)))),
            *(int(marks.tainted), int(marks.sensitive), origin.source, origin.session_id),
            *(sequence or 0, origin.turn_id, origin.step, clean(origin.call_id), now),
        ),
    )
    _tag(db, note_id, tags)
    if origin.turn_id:
        payload = {"note_id": note_id, "revision": revision}
        db.execute(
            "INSERT INTO changes (session_id, turn_id, step, call_id, kind, payload, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (origin.session_id, *call[:1], origin.step, call[1], KIND, as_text(payload), now),
        )


def _tag(db: apsw.Connection, note_id: str, tags: Sequence[str]) -> None:
    db.execute("DELETE FROM note_tags WHERE note_id = ?", (note_id,))
    db.executemany(
        "INSERT OR IGNORE INTO note_tags VALUES (?, ?)", [(clean(tag), note_id) for tag in tags]
    )


def _found(db: apsw.Connection, note_id: str) -> Note:
    row = db.execute(f"{_NOTES} WHERE note_id = ?", (note_id,)).fetchone()
    if row is None:
        raise NotFoundError(
            f"There is no note {note_id[:64]!r}.", remedy="`memory list` and a search show ids."
        )
    return _note(row)


def _note(row: Row) -> Note:
    note_id, revision, content, tags, tainted, sensitive, source, session_id, sequence = row[:9]
    marks = Marks(bool(tainted), bool(sensitive))
    return Note(
        *(note_id, revision, content, tuple(json.loads(tags)), marks, source, session_id),
        *(sequence, bool(row[9]), row[10]),
    )
