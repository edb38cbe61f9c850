"""Forgetting: what was said or noted is taken out of every table, and out of the database's file.

What is forgotten is a session, a note, or every text that holds some words. A session goes with all
that it has; of other messages only the text does, so that a conversation can still be sent. What a
summary covers is forgotten with the summary: the next turn makes one anew. One transaction takes
it out of tables and indexes; then the file is written anew, since a page that was split long ago
may still hold a part of what was on it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import apsw

from oxydra.frames import compact
from oxydra.store.conversation import ConversationTables
from oxydra.store.database import Row, as_text, clean, unindex
from oxydra.store.files import Files
from oxydra.store.memory import NEIGHBOURS
from oxydra.store.notes import NoteTables, erase_note
from oxydra.types import SCHEDULED, Json

GONE = "[forgotten]"
LEAST_CHARS = 12  # of a note or a message whose copies are looked for elsewhere
_STRUCTURE = frozenset({"role", "id", "type", "mime_type", "sha256", "state", "tool_call_id"})
# By session: rows in which nothing is left to keep once the session is gone. `spend` stays, or caps
# could be got round; so does the audit of what left the machine.
_OF_SESSION = (
    *("chunks", "to_index", "scratchpad", "pins", "shortened", "summaries", "approvals"),
    *("notices", "delegations", "events", "channel_sessions", "outbox"),
)


@dataclass(slots=True)
class Forgotten:
    """What was found, and is gone unless it was only looked for. `kept` are places that hold it
    and are left as they are, with the remedy; `texts` are what no file may hold any more.
    """

    sessions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    messages: int = 0
    calls: int = 0
    summaries: list[str] = field(default_factory=list)
    others: int = 0  # rows of any other kind
    touched: list[str] = field(default_factory=list)  # sessions in which something changed
    files: list[str] = field(default_factory=list)  # attachments
    outputs: list[str] = field(default_factory=list)  # names under which results were saved
    kept: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


class _LookedOnly(Exception):
    """Nothing is to be changed."""


class ForgetTables(ConversationTables, NoteTables):
    """Takes out of all tables."""

    def forget(
        self,
        *,
        session_id: str = "",
        note_id: str = "",
        words: str = "",
        dry: bool = False,
        at_rest: Callable[[list[str]], None] = lambda _touched: None,
    ) -> Forgotten:
        """Forget one of them; `dry` only says what that means. `at_rest` is told which sessions
        change before anything is durable, and may raise. Raises `NotFoundError`.
        """
        found = Forgotten()
        try:
            with self._erasing() as db:
                _Forgetting(db, found, self.files).run(session_id, note_id, words)
                if dry:
                    raise _LookedOnly
                at_rest(found.touched)
        except _LookedOnly:
            return found
        self.files.remove(found.files)
        self.rewrite()
        return found


class _Forgetting:
    """One transaction's work."""

    def __init__(self, db: apsw.Connection, found: Forgotten, files: Files) -> None:
        self._db = db
        self._files = files
        self._found = found
        self._touched: dict[str, None] = {}
        self._sessions: frozenset[str] = frozenset()
        self._notes: frozenset[str] = frozenset()
        self._holds: Callable[[str], bool] = lambda _text: False
        self._gone: set[str] = set()  # hashes of attachments

    def run(self, session_id: str, note_id: str, words: str) -> None:
        if session_id:
            self._session(session_id)
        elif note_id:
            self._note(note_id)
        else:
            self._words(words)
        for table in ("blobs", "files"):
            for sha256 in self._gone:
                self._db.execute(f"DELETE FROM {table} WHERE sha256 = ?", (sha256,))
        self._found.files = sorted(self._gone)
        self._found.touched = list(self._touched)

    def _read(self, sql: str, values: Row = ()) -> list[Row]:
        found: list[Row] = self._db.execute(sql, values).fetchall()
        return found

    # ------------------------------------------------------------------------------ what is meant

    def _session(self, session_id: str) -> None:
        """A session with those that worked for it, and the notes that were made there."""
        db, found = self._db, self._found
        rows: list[Row] = db.execute(
            "WITH RECURSIVE mine (id) AS (SELECT ?1 UNION SELECT session_id FROM delegations"
            " JOIN mine ON parent_session_id = id) SELECT id FROM mine",
            (session_id,),
        ).fetchall()
        found.sessions = [row[0] for row in rows]
        self._sessions = frozenset(found.sessions)
        told = [json.loads(row[0]) for row in self._of_sessions("message", "events")]
        messages = [message["content"] for message in told]
        found.texts = _distinct(messages)
        said = [row[0] for row in self._of_sessions("content", "summaries")]
        said += [row[0] for row in self._of_sessions("text", "pins")]
        said += [row[0] for row in self._of_sessions("text", "scratchpad")]
        said += [call["arguments"] for m in told for call in m.get("tool_calls") or []]
        texts = frozenset(_distinct([*messages, *said]))
        self._holds = lambda text: text in texts
        for (attached,) in self._of_sessions("attachments", "turns"):
            self._gone |= {row["sha256"] for row in json.loads(attached)}
        noted = self._of_sessions("DISTINCT note_id", "note_revisions")
        self._drop_notes([row[0] for row in noted])
        turns = [row[0] for row in self._of_sessions("turn_id", "turns")]
        calls = [
            row
            for turn in turns
            for row in self._read(
                "SELECT turn_id || '-' || call_id FROM tool_calls WHERE turn_id = ?", (turn,)
            )
        ]
        found.outputs = [row[0] for row in calls]
        found.messages += len(messages)
        found.calls += len(calls)
        self._redact_all()
        for one in found.sessions:
            self._drop_session(one)
        self._drop_unnamed()

    def _of_sessions(self, what: str, table: str) -> list[Row]:
        return [
            row
            for one in self._found.sessions
            for row in self._read(f"SELECT {what} FROM {table} WHERE session_id = ?", (one,))
        ]

    def _note(self, note_id: str) -> None:
        """A note, what called for it, where it was quoted, and what says all of it word for
        word.
        """
        self._drop_notes([note_id])
        long = [text for text in self._found.texts if len(text) >= LEAST_CHARS]
        short = frozenset(self._found.texts)
        self._holds = lambda text: text.strip() in short or any(one in text for one in long)
        self._redact_all()

    def _words(self, words: str) -> None:
        """Every text that holds these words in a row, in whatever case."""
        wanted = " ".join(words.casefold().split())
        self._found.texts = [words]
        self._holds = lambda text: wanted in " ".join(text.casefold().split())
        rows: list[Row] = self._read("SELECT note_id, content, tags FROM note_revisions")
        named = [row[0] for row in rows if self._holds(row[1]) or self._holds(row[2])]
        self._drop_notes(list(dict.fromkeys(named)))
        self._redact_all()

    def _drop_notes(self, note_ids: list[str]) -> None:
        self._notes = frozenset(note_ids)
        self._found.notes = note_ids
        for note_id in note_ids:
            rows: list[Row] = self._read(
                "SELECT content FROM note_revisions WHERE note_id = ?", (note_id,)
            )
            self._found.texts += [row[0] for row in rows if row[0] not in self._found.texts]
            erase_note(self._db, note_id)

    # --------------------------------------------------------------------------- a whole session

    def _drop_session(self, session_id: str) -> None:
        db = self._db
        self._touched[session_id] = None
        unindex(db, "session_id = ?", (session_id,))
        mine = "(SELECT turn_id FROM turns WHERE session_id = ?)"
        db.execute(f"DELETE FROM tool_calls WHERE turn_id IN {mine}", (session_id,))
        db.execute(f"DELETE FROM undos WHERE turn_id IN {mine}", (session_id,))
        changed = "(SELECT change_id FROM changes WHERE session_id = ?)"
        db.execute(f"DELETE FROM change_copies WHERE change_id IN {changed}", (session_id,))
        db.execute("DELETE FROM changes WHERE session_id = ?", (session_id,))
        for table in _OF_SESSION:
            db.execute(f"DELETE FROM {table} WHERE session_id = ?", (session_id,))
        db.execute("DELETE FROM turns WHERE session_id = ?", (session_id,))
        db.execute(  # a schedule goes on in its session
            "DELETE FROM sessions WHERE session_id = ? AND channel_origin <> ?",
            (session_id, SCHEDULED),
        )

    def _drop_unnamed(self) -> None:
        """Attachments that nothing has any more."""
        named = {
            row["sha256"]
            for table, column in (("turns", "attachments"), ("events", "message ->> 'attachments'"))
            for (text,) in self._read(f"SELECT {column} FROM {table}")
            for row in json.loads(text or "[]")
        }
        for table in ("blobs", "files"):
            for (sha256,) in self._read(f"SELECT sha256 FROM {table}"):
                if sha256 not in named:
                    self._gone.add(sha256)

    # ------------------------------------------------------------------------------- only the text

    def _redact_all(self) -> None:
        self._contents()
        self._events()
        self._turns()
        self._calls()
        self._names()
        self._rows()
        self._paths()

    def _events(self) -> None:
        rows = self._db.execute("SELECT session_id, sequence, message FROM events")
        changed: list[tuple[str, int, str, str]] = []
        for session_id, sequence, text in rows:
            if session_id in self._sessions:
                continue
            message = json.loads(text)
            redacted = self._message(message)
            if redacted is not None:
                where = (session_id, sequence)
                changed.append((*where, as_text(redacted), message.get("tool_call_id", "")))
        for session_id, sequence, text, call_id in changed:
            where = (session_id, sequence)
            self._db.execute(
                "UPDATE events SET message = ? WHERE session_id = ? AND sequence = ?",
                (text, *where),
            )
            if call_id:
                turn_id = self._db.execute(
                    "SELECT turn_id FROM events WHERE session_id = ? AND sequence = ?", where
                ).get
                names = (f"{turn_id}-{call_id}", f"{turn_id}-event-{sequence}")
                self._found.outputs += names
            self._reindex(session_id, sequence)
            self._drop_summaries(session_id)
        self._found.messages += len(changed)

    def _message(self, message: Json) -> Json | None:
        """A message without what is forgotten; None if it holds none of it."""
        made = dict(message)
        made["content"] = self._quoted(message["content"])
        calls = message.get("tool_calls") or []
        if calls:
            made["tool_calls"] = [
                {**call, "arguments": self._arguments(call["arguments"])} for call in calls
            ]
        if self._holds(message.get("reasoning", "")):
            made["reasoning"] = GONE
        if any(map(self._holds, _strings(message.get("native")))):
            made.pop("native")
        if kept := self._attachments(message.get("attachments") or []):
            made["attachments"] = kept
        else:
            made.pop("attachments", None)
        if made == message:
            return None
        made.pop("native", None)  # it says the same in its provider's way
        return made

    def _quoted(self, content: str) -> str:
        """A text: of what quotes memory line by line, the lines that quote what is forgotten; of
        any other all, if it holds any.
        """
        lines = content.split("\n")
        for index, line in enumerate(lines):
            if not line.startswith('{"session":'):
                continue
            try:
                row = json.loads(line)
            except ValueError:
                continue  # cut off
            mine = row.get("session") in self._sessions or row.get("note_id") in self._notes
            if mine or self._holds(str(row.get("text"))):
                lines[index] = compact({**row, "text": GONE})
        quoted = "\n".join(lines)
        return GONE if self._holds(quoted) else quoted

    def _arguments(self, arguments: str) -> str:
        """A call's: they stay JSON."""
        try:
            texts = [arguments, *_strings(json.loads(arguments))]
        except (ValueError, RecursionError):
            texts = [arguments]
        return "{}" if any(map(self._holds, texts)) else arguments

    def _attachments(self, rows: list[Json]) -> list[Json]:
        return [
            row for row in rows if row["sha256"] not in self._gone and not self._holds(row["name"])
        ]

    def _contents(self) -> None:
        """Attachments that hold it, or were the session's: they are taken off their messages."""
        for sha256, data in self._db.execute("SELECT sha256, data FROM blobs"):
            if self._holds(bytes(data).decode("utf-8", "ignore")):
                self._gone.add(sha256)
        for (sha256,) in self._read("SELECT sha256 FROM files"):
            if self._holds((self._files.data(sha256) or b"").decode("utf-8", "ignore")):
                self._gone.add(sha256)

    def _turns(self) -> None:
        for turn_id, session_id, prompt, attachments, terminal in self._read(
            "SELECT turn_id, session_id, prompt, attachments, terminal FROM turns"
        ):
            if session_id in self._sessions:
                continue
            before = (prompt, json.loads(attachments), json.loads(terminal or "null"))
            after = (
                GONE if self._holds(prompt) else prompt,
                self._attachments(before[1]),
                self._walked(before[2]),
            )
            if before == after:
                continue
            told = None if after[2] is None else as_text(after[2])
            self._db.execute(
                "UPDATE turns SET prompt = ?, attachments = ?, terminal = ? WHERE turn_id = ?",
                (after[0], clean(compact(after[1])), told, turn_id),
            )
            self._touched[session_id] = None

    def _calls(self) -> None:
        for row in self._read("SELECT turn_id, sequence, position, arguments FROM tool_calls"):
            kept = self._arguments(row[3])
            if kept != row[3]:
                self._db.execute(
                    "UPDATE tool_calls SET arguments = ?"
                    " WHERE turn_id = ? AND sequence = ? AND position = ?",
                    (kept, *row[:3]),
                )
                self._found.calls += 1

    def _names(self) -> None:
        for session_id, name in self._read("SELECT session_id, display_name FROM sessions"):
            if session_id not in self._sessions and name and self._holds(name):
                self._db.execute(
                    "UPDATE sessions SET display_name = '' WHERE session_id = ?", (session_id,)
                )
                unindex(self._db, "session_id = ?", (session_id,))  # a trigger has it indexed anew
                self._touched[session_id] = None
        for schedule_id, name, goal in self._read("SELECT schedule_id, name, goal FROM schedules"):
            if self._holds(name) or self._holds(goal):
                self._found.kept.append(
                    f"schedule {schedule_id}: oxydra-runner schedule delete {schedule_id}"
                )

    def _rows(self) -> None:
        """Rows that are dropped with what they hold, and those of which only the text is."""
        for table, keys, column in (
            ("shortened", ("session_id", "sequence"), "content"),
            ("pins", ("session_id", "pin_id"), "text"),
            ("scratchpad", ("session_id", "position"), "text"),
            ("changes", ("change_id",), "payload"),
            ("change_copies", ("change_id",), "data"),
        ):
            for where in self._holding(table, keys, column):
                self._drop(table, keys, where)
        for table, keys, column in (
            ("approvals", ("approval_id",), "arguments"),
            ("fires", ("fire_id",), "output"),
            ("fires", ("fire_id",), "reason"),
        ):
            for where in self._holding(table, keys, column):
                which = " AND ".join(f"{key} = ?" for key in keys)
                self._db.execute(f"UPDATE {table} SET {column} = ? WHERE {which}", (GONE, *where))
                self._found.others += 1
        for notice_id, payload in self._read("SELECT notice_id, payload FROM notices"):
            if any(map(self._holds, _strings(json.loads(payload)))):
                self._drop("notices", ("notice_id",), (notice_id,))
        for where in self._holding("summaries", ("session_id",), "content"):
            self._drop_summaries(str(where[0]))

    def _paths(self) -> None:
        """Marks of files whose names hold it: the folder gets them, which stands for all in it."""
        for path, *marks in self._read("SELECT path, tainted, sensitive FROM file_marks"):
            if path.count("/") == 1 or not self._holds(path):
                continue
            while path.count("/") > 1 and self._holds(path):
                path = path.rpartition("/")[0]
            self._db.execute(
                "INSERT INTO file_marks VALUES (?, ?, ?) ON CONFLICT (path) DO UPDATE SET"
                " tainted = max(tainted, excluded.tainted),"
                " sensitive = max(sensitive, excluded.sensitive)",
                (path, *marks),
            )
            self._found.others += 1
        for (path,) in self._read("SELECT path FROM file_marks"):
            if path.count("/") > 1 and self._holds(path):
                self._db.execute("DELETE FROM file_marks WHERE path = ?", (path,))

    def _holding(self, table: str, keys: Iterable[str], column: str) -> list[Row]:
        """The keys of the rows whose `column` holds it."""
        found: list[Row] = []
        for *where, value in self._db.execute(f"SELECT {', '.join(keys)}, {column} FROM {table}"):
            text = value.decode("utf-8", "ignore") if isinstance(value, bytes) else value
            if self._holds(text):
                found.append(tuple(where))
        return found

    def _drop(self, table: str, keys: Iterable[str], where: Row) -> None:
        if table == "changes":
            self._db.execute("DELETE FROM change_copies WHERE change_id = ?", where)
        which = " AND ".join(f"{key} = ?" for key in keys)
        self._db.execute(f"DELETE FROM {table} WHERE {which}", where)
        self._found.others += self._db.changes()
        if "session_id" in keys:
            self._touched[where[0]] = None

    def _walked(self, value: Any, key: str = "") -> Any:
        """JSON, with what holds it replaced."""
        if isinstance(value, str):
            if key in _STRUCTURE:
                return value
            return self._arguments(value) if key == "arguments" else self._quoted(value)
        if isinstance(value, list):
            return [self._walked(item, key) for item in value]
        if isinstance(value, dict):
            return {name: self._walked(item, name) for name, item in value.items()}
        return value

    def _drop_summaries(self, session_id: str) -> None:
        """What stood for the beginning of a session: its next turn makes it anew."""
        self._touched[session_id] = None
        self._db.execute("DELETE FROM summaries WHERE session_id = ?", (session_id,))
        if self._db.changes() and session_id not in self._found.summaries:
            self._found.summaries.append(session_id)

    # ----------------------------------------------------------------------------------- indexes

    def _reindex(self, session_id: str, sequence: int) -> None:
        """Take an event out of the chunks, and its words out of its neighbours' entries; put it on
        the list, which makes them anew.
        """
        reach = (session_id, sequence - NEIGHBOURS, sequence + NEIGHBOURS)
        unindex(self._db, "session_id = ? AND sequence BETWEEN ? AND ?", reach)
        here = (session_id, sequence)
        self._db.execute("DELETE FROM chunks WHERE session_id = ? AND sequence = ?", here)
        self._db.execute("INSERT OR IGNORE INTO to_index VALUES (?, ?)", here)


def _strings(value: Any) -> Iterator[str]:
    """Every text in JSON, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _strings(item)


def _distinct(texts: Iterable[str]) -> list[str]:
    """Those that are long enough to be nobody else's words, each once."""
    return list(dict.fromkeys(text for text in texts if len(text) >= LEAST_CHARS))
