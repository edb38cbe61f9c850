"""Sessions, their events, their turns, and the journal of the turns' tool calls.

History is append-only. The state machines of turns and calls (`types.TurnState`, `types.CallState`)
are asserted in the statement that moves a row: a move that is not allowed changes nothing and
raises.
"""

from __future__ import annotations

import datetime
import json
import secrets
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import apsw

from oxydra.errors import NotFoundError, StoreError, StoreFullError, UsageError
from oxydra.frames import (
    attachments_from_json,
    attachments_json,
    compact,
    message_from_json,
    message_json,
)
from oxydra.store.database import Database, Row, as_text, clean, placeholders, timestamp
from oxydra.store.files import Files
from oxydra.types import (
    ASIDE,
    DELEGATED,
    RECALLED,
    SCHEDULED,
    Attachment,
    CallState,
    Event,
    Json,
    Message,
    Session,
    ToolCall,
    Turn,
    TurnState,
)

TITLE_CHARS = 80
_ASIDES = f"[[]{ASIDE[1:]}*"  # what Oxydra said in a person's place
_TURN_MOVES = {
    TurnState.RUNNING: ("queued",),
    TurnState.COMPLETED: ("running",),
    TurnState.FAILED: ("queued", "running"),
    TurnState.CANCELLED: ("queued", "running"),
    TurnState.JOINED: ("queued",),
}
_CALL_MOVES = {
    CallState.RUNNING: ("intended", "running"),  # again where its tool says nothing was done
    CallState.DONE: ("intended", "running"),  # a repeatable call needs no mark that it started
    CallState.FAILED: ("intended", "running"),
    CallState.UNKNOWN: ("running",),
}


_NEXT = "(SELECT coalesce(max(activity), 0) + 1 FROM sessions)"  # a clock can step back


class ConversationTables(Database):
    """`sessions`, `events`, `files`, `blobs`, `turns` and `tool_calls`."""

    # ----------------------------------------------------------------------------------- sessions

    def create_session(
        self,
        *,
        agent_name: str = "default",
        display_name: str = "",
        channel_origin: str = "gateway",
    ) -> Session:
        with self._transaction() as db:
            return insert_session(db, agent_name, display_name, channel_origin)

    def session(self, session_id: str) -> Session:
        """Raises `NotFoundError`."""
        rows = self._sessions("WHERE session_id = ?", (session_id,))
        if not rows:
            raise _no_session(session_id)
        return rows[0]

    def find_session(self, wanted: str) -> Session:
        """The session with this id, this unique prefix of an id, or this name.

        Raises `NotFoundError` for none and `UsageError` for several.
        """
        pattern = wanted.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        found = self._sessions(
            "WHERE session_id LIKE ? ESCAPE '\\' OR display_name = ? AND channel_origin <> ?"
            " ORDER BY session_id",
            (pattern, wanted, DELEGATED),
        )
        exact = [s for s in found if wanted in (s.session_id, s.display_name)]
        matches = exact or found
        if not wanted or not matches:
            raise _no_session(wanted)
        if len(matches) > 1:
            names = ", ".join(s.session_id for s in matches[:5])
            raise UsageError(
                f"{wanted[:64]!r} means {len(matches)} sessions ({names}).",
                remedy="Give more characters of the id.",
            )
        return matches[0]

    def sessions(
        self, *, include_archived: bool = False, include_delegated: bool = False
    ) -> list[Session]:
        """All sessions, the most recently active first; those that work for another only if they
        are asked for.
        """
        where = "WHERE archived <= ? AND (? OR channel_origin <> ?) ORDER BY activity DESC"
        return self._sessions(where, (include_archived, include_delegated, DELEGATED))

    def latest_session(self) -> Session | None:
        """The one used last, of those that people see from the inside: none of another API's."""
        rows = self._sessions(
            f"WHERE {_OWN} AND channel_origin NOT LIKE 'openai:%'"
            f" AND channel_origin <> '{SCHEDULED}' ORDER BY activity DESC LIMIT 1"
        )
        return rows[0] if rows else None

    def session_of(self, channel_origin: str) -> Session | None:
        """The session that was made for this origin, the newest if there are several."""
        rows = self._sessions(
            "WHERE channel_origin = ? ORDER BY activity DESC LIMIT 1", (channel_origin,)
        )
        return rows[0] if rows else None

    def rename_session(self, session_id: str, display_name: str) -> None:
        with self._transaction() as db:
            db.execute(
                "UPDATE sessions SET display_name = ? WHERE session_id = ?",
                (clean(display_name), session_id),
            )

    def archive_session(self, session_id: str) -> None:
        """It is no longer listed, and counts no more; what was said in it stays."""
        with self._transaction() as db:
            db.execute("UPDATE sessions SET archived = 1 WHERE session_id = ?", (session_id,))

    def archive_idle(self, hours: float) -> None:
        """Archive the sessions in which nothing was said for so long and no turn is unfinished."""
        now = datetime.datetime.now(datetime.UTC)
        before = now - datetime.timedelta(hours=min(hours, _LONGEST_IDLE))
        values = (before.isoformat(timespec="milliseconds"),)
        where = f"WHERE {_OWN} AND last_active_at < ? AND session_id NOT IN"
        where += " (SELECT session_id FROM turns WHERE state IN ('queued', 'running'))"
        if self._sessions(f"{where} LIMIT 1", values):  # most often there is nothing to write
            with self._transaction() as db:
                db.execute(f"UPDATE sessions SET archived = 1 {where}", values)

    def count_sessions(self) -> int:
        """How many sessions are not archived and work for no other; those of schedules have a bound
        of their own.
        """
        where = f"{_OWN} AND channel_origin <> '{SCHEDULED}'"
        with self._reading() as db:
            return int(db.execute(f"SELECT count(*) FROM sessions WHERE {where}").get)

    def _sessions(self, clause: str, values: Sequence[Any] = ()) -> list[Session]:
        with self._reading() as db:
            rows: list[Row] = db.execute(
                "SELECT session_id, agent_name, display_name, channel_origin, created_at,"
                " last_active_at, archived, substr((SELECT message ->> 'content' FROM events"
                " WHERE events.session_id = sessions.session_id AND message ->> 'role' = 'user'"
                " AND message ->> 'content' NOT GLOB ? ORDER BY sequence LIMIT 1), 1, ?)"
                f" FROM sessions {clause}",
                (_ASIDES, TITLE_CHARS, *values),
            ).fetchall()
        return [Session(*(*row[:6], bool(row[6]), str(row[7] or ""))) for row in rows]

    # ------------------------------------------------------------------------------------- events

    def messages(self, session_id: str, *, after: int = 0) -> list[Message]:
        """The conversation in order; of its events those after the sequence `after`."""
        with self._reading() as db:
            rows: list[Row] = db.execute(
                "SELECT message FROM events WHERE session_id = ? AND sequence > ?"
                " ORDER BY sequence",
                (session_id, after),
            ).fetchall()
            load = partial(_content, db, self.files)
            return [message_from_json(json.loads(row[0]), load) for row in rows]

    def events(self, session_id: str, sequences: Sequence[int]) -> list[Event]:
        """These events of a session, in the order in which they are named."""
        with self._reading() as db:
            found = []
            for sequence in sequences:
                row = db.execute(
                    "SELECT turn_id, message, created_at FROM events"
                    " WHERE session_id = ? AND sequence = ?",
                    (session_id, sequence),
                ).fetchone()
                if row is not None:
                    message = message_from_json(
                        json.loads(row[1]), partial(_content, db, self.files)
                    )
                    found.append(Event(session_id, sequence, row[0], message, row[2]))
        return found

    def history(
        self, session_id: str, *, before_sequence: int | None = None, limit: int = 100
    ) -> tuple[list[Event], bool]:
        """The last `limit` events before `before_sequence`, oldest first, and whether older
        exist.
        """
        before = 2**62 if before_sequence is None else before_sequence
        with self._reading() as db:
            rows: list[Row] = db.execute(
                "SELECT session_id, sequence, turn_id, message, created_at FROM events"
                " WHERE session_id = ? AND sequence < ? ORDER BY sequence DESC LIMIT ?",
                (session_id, before, limit + 1),
            ).fetchall()
        events = [
            Event(row[0], row[1], row[2], message_from_json(json.loads(row[3])), row[4])
            for row in reversed(rows[:limit])
        ]
        return events, len(rows) > limit

    def _append(
        self, db: apsw.Connection, session_id: str, turn_id: str, message: Message
    ) -> Event:
        now = timestamp()
        sequence = db.execute(
            "UPDATE sessions SET last_sequence = last_sequence + 1, last_active_at = ?,"
            f" activity = {_NEXT}"
            " WHERE session_id = ? RETURNING last_sequence",
            (now, session_id),
        ).get
        db.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?)",
            (session_id, sequence, turn_id, as_text(message_json(message)), now),
        )
        _note_files(db, message.attachments)
        return Event(session_id, sequence, turn_id, message, now)

    # -------------------------------------------------------------------------------------- turns

    def accept_turn(
        self,
        session_id: str,
        turn_id: str,
        request_id: str,
        prompt: str,
        attachments: tuple[Attachment, ...] = (),
        *,
        tainted: bool = False,
        sensitive: bool = False,
        joins: str = "",
        opens: Session | None = None,
    ) -> tuple[Turn, bool]:
        """Store a person's message and its turn in one transaction: only then may it be
        acknowledged. An archived session is one in use again. `tainted` says that others wrote some
        of it (attachments count as such), `sensitive` that it holds private data. `joins` is the
        running turn that it shall join (`join_turn`); else it waits as any other. `opens` is the
        session, where this is its first message and it is stored with it.

        The same `turn_id` again returns the turn that is there, and False. Raises `UsageError` when
        that turn belongs to another session or had another prompt, `StoreFullError` when the disk
        has no room for one more.
        """
        room = self._ballast is None or self._ballast.hold()
        if room:
            self.files.check_room(attachments)
            self.files.keep(attachments)
        with self._transaction() as db:
            there = turn_of(db, turn_id, self.files)
            if there is not None:
                if (there.session_id, there.prompt) != (session_id, clean(prompt)):
                    raise UsageError(
                        f"The turn id {turn_id[:64]!r} was already used for another message.",
                        remedy="Use a fresh id for each message.",
                    )
                return there, False
            if not room:
                raise StoreFullError(
                    "The disk is full: no new message is accepted.",
                    remedy="Free some disk space; work then goes on.",
                )
            turn = Turn(
                turn_id,
                session_id,
                request_id,
                TurnState.QUEUED,
                prompt,
                attachments,
                tainted=tainted or bool(attachments),
                sensitive=sensitive,
            )
            if opens is not None:
                keep_session(db, opens)
            insert_turn(db, turn, joins)
            db.execute(
                "UPDATE sessions SET archived = 0 WHERE session_id = ? AND archived", (session_id,)
            )
            return turn, True

    def turn(self, turn_id: str) -> Turn | None:
        with self._reading() as db:
            return turn_of(db, turn_id, self.files)

    def unfinished_turns(self) -> list[Turn]:
        """Queued and running turns, in the order in which they were accepted; not those that work
        for a call, which go on with it.
        """
        with self._reading() as db:
            rows: list[Row] = db.execute(
                f"SELECT {_TURN} FROM turns WHERE state IN ('queued', 'running')"
                " AND turn_id NOT IN (SELECT turn_id FROM delegations) ORDER BY rowid"
            ).fetchall()
            return [_turn_from(db, row, self.files) for row in rows]

    def start_turn(self, turn: Turn, recalled: Message | None = None) -> Event:
        """`queued -> running`, and the person's message joins the conversation, after what was
        `recalled` for it.

        It joins here and not on acceptance, because a message that waits in the queue comes after
        the answer to the one before it.
        """
        with self._transaction() as db:
            _move_turn(db, turn.turn_id, TurnState.RUNNING)
            if recalled is not None:
                self._append(db, turn.session_id, RECALLED + turn.turn_id, recalled)
            return self._append(db, turn.session_id, turn.turn_id, _said(turn))

    def join_turn(self, turn: Turn) -> list[tuple[Turn, Event]]:
        """The messages that were to join this running turn do so, in the order in which they were
        accepted: `queued -> joined`, and each becomes the newest of the conversation.
        """
        mine = "joins = ? AND joins <> '' AND state = 'queued'"  # as the index has it
        with self._reading() as db:
            if db.execute(f"SELECT 1 FROM turns WHERE {mine}", (turn.turn_id,)).fetchone() is None:
                return []
        terminal: Json = {"type": "turn_joined", "payload": {"into": turn.turn_id}}
        with self._transaction() as db:
            rows: list[Row] = db.execute(
                f"SELECT {_TURN} FROM turns WHERE {mine} ORDER BY rowid", (turn.turn_id,)
            ).fetchall()
            joined = []
            for one in (_turn_from(db, row, self.files) for row in rows):
                _move_turn(db, one.turn_id, TurnState.JOINED, terminal)
                joined.append((one, self._append(db, one.session_id, one.turn_id, _said(one))))
        return joined

    def add_step(
        self, turn: Turn, message: Message, calls: Sequence[ToolCall] | None = None
    ) -> Event:
        """A model's message that calls tools: its event and the intent of every call at once.
        `calls` are what the journal has in the place of the message's own.
        """
        self.files.keep(message.attachments)
        with self._transaction() as db:
            event = self._append(db, turn.session_id, turn.turn_id, message)
            for position, call in enumerate(message.tool_calls if calls is None else calls):
                db.execute(
                    "INSERT INTO tool_calls (turn_id, sequence, position, call_id, name, arguments,"
                    " state, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        *(turn.turn_id, event.sequence, position, clean(call.id)),
                        *(clean(call.name), clean(call.arguments)),
                        *(CallState.INTENDED, event.created_at),
                    ),
                )
        return event

    def finish_turn(
        self, turn: Turn, state: TurnState, terminal: Json, message: Message | None = None
    ) -> None:
        """The last move of a turn, its terminal frame and, where there is one, its last message.
        Nothing works for it any more: turns of its calls that were left over are cancelled with it.
        """
        self.files.keep(message.attachments if message is not None else ())
        with self._transaction() as db:
            _move_turn(db, turn.turn_id, state, terminal)
            _end_below(db, turn.turn_id)
            if message is not None:
                self._append(db, turn.session_id, turn.turn_id, message)

    # ---------------------------------------------------------------------------- attachments

    def sweep_files(self) -> None:
        """Remove the files of messages that were never accepted."""
        with self._reading() as db:
            known = {str(row[0]) for row in db.execute("SELECT sha256 FROM files")}
        self.files.sweep(known)

    # -------------------------------------------------------------------------------- the journal

    def note_resumed(self, turn: Turn) -> None:
        """The turn goes on after a restart, from now."""
        with self._transaction() as db:
            db.execute(
                "UPDATE turns SET resumed = json_insert(resumed, '$[#]', ?) WHERE turn_id = ?",
                (timestamp(), turn.turn_id),
            )

    def steps(self, turn_id: str) -> int:
        """How many of a turn's messages called tools."""
        with self._reading() as db:
            sql = "SELECT count(DISTINCT sequence) FROM tool_calls WHERE turn_id = ?"
            return int(db.execute(sql, (turn_id,)).get)

    def open_calls(self, turn_id: str) -> list[tuple[ToolCall, CallState]]:
        """The calls of a turn that have no result, in order."""
        with self._reading() as db:
            rows: list[Row] = db.execute(
                "SELECT call_id, name, arguments, state FROM tool_calls WHERE turn_id = ?"
                " AND state IN ('intended', 'running') ORDER BY sequence, position",
                (turn_id,),
            ).fetchall()
        return [(ToolCall(*row[:3]), CallState(row[3])) for row in rows]

    def calls_running(self, turn: Turn, call_ids: Sequence[str]) -> None:
        """These calls are about to start: `intended -> running`, before anything happens."""
        with self._transaction() as db:
            for call_id in call_ids:
                _move_call(db, turn.turn_id, call_id, CallState.RUNNING)

    def calls_finished(
        self,
        turn: Turn,
        results: Sequence[tuple[CallState, Message]],
        running: Sequence[str] = (),
        took: Sequence[int] = (),
    ) -> None:
        """Results and their events, in the order given: `-> done | failed | unknown`; and the calls
        that start next. `took` are the milliseconds that the calls ran, where that is known.
        """
        self.files.keep(file for _, message in results for file in message.attachments)
        with self._transaction() as db:
            for number, (state, message) in enumerate(results):
                known = took[number] if number < len(took) else -1
                _move_call(db, turn.turn_id, message.tool_call_id, state, known)
                self._append(db, turn.session_id, turn.turn_id, message)
            for call_id in running:
                _move_call(db, turn.turn_id, call_id, CallState.RUNNING)


_LONGEST_IDLE = 24.0 * 365 * 100  # hours; dates go no further back than the year 1
_OWN = f"archived = 0 AND channel_origin <> '{DELEGATED}'"
_TURN = "turn_id, session_id, request_id, state, prompt, attachments, terminal, tainted, sensitive"


def insert_session(
    db: apsw.Connection,
    agent_name: str,
    display_name: str,
    channel_origin: str,
    session_id: str = "",
) -> Session:
    """A new one, under an id of its own where none is given."""
    session = new_session(agent_name, display_name, channel_origin)
    if session_id:
        session = replace(session, session_id=session_id)
    keep_session(db, session)
    return session


def new_session(agent_name: str, display_name: str, channel_origin: str) -> Session:
    """One that is not stored yet: `accept_turn` does it with its first message."""
    session_id, now = secrets.token_hex(8), timestamp()
    return Session(session_id, agent_name, display_name, channel_origin, now, now, False)


def keep_session(db: apsw.Connection, session: Session) -> None:
    db.execute(
        "INSERT INTO sessions (session_id, agent_name, display_name, channel_origin,"
        f" created_at, last_active_at, activity) VALUES (?, ?, ?, ?, ?, ?, {_NEXT})",
        (
            *(session.session_id, session.agent_name, clean(session.display_name)),
            *(session.channel_origin, session.created_at, session.last_active_at),
        ),
    )


def insert_turn(db: apsw.Connection, turn: Turn, joins: str = "") -> None:
    """A turn that waits, with the data of its attachments."""
    now = timestamp()
    db.execute(
        "INSERT INTO turns (turn_id, session_id, request_id, state, prompt, attachments,"
        " created_at, updated_at, tainted, sensitive, joins)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(turn.turn_id, turn.session_id, turn.request_id, turn.state, clean(turn.prompt)),
            *(compact(attachments_json(turn.attachments)), now, now),
            *(turn.tainted, turn.sensitive, joins),
        ),
    )
    _note_files(db, turn.attachments)


def _said(turn: Turn) -> Message:
    """What the person said, as the model reads it."""
    return Message(
        "user",
        turn.prompt,
        attachments=turn.attachments,
        tainted=turn.tainted,
        sensitive=turn.sensitive,
    )


def turn_of(db: apsw.Connection, turn_id: str, files: Files) -> Turn | None:
    row = db.execute(f"SELECT {_TURN} FROM turns WHERE turn_id = ?", (turn_id,)).fetchone()
    return None if row is None else _turn_from(db, row, files)


def _turn_from(db: apsw.Connection, row: Row, files: Files) -> Turn:
    attachments = attachments_from_json(json.loads(row[5]), partial(_content, db, files))
    terminal = json.loads(row[6]) if row[6] else None
    state = TurnState(row[3])
    turn_id, session_id, request_id, _, prompt = row[:5]
    marks = bool(row[7]), bool(row[8])
    return Turn(turn_id, session_id, request_id, state, prompt, attachments, terminal, *marks)


def _content(db: apsw.Connection, files: Files, sha256: str) -> bytes:
    """What is in an attachment, empty if it is lost; old ones lie in the database."""
    data = files.data(sha256)
    if data is None:
        data = db.execute("SELECT data FROM blobs WHERE sha256 = ?", (sha256,)).get
    return data or b""


def _end_below(db: apsw.Connection, turn_id: str) -> None:
    """Cancel what is unfinished of the turns that work for this one."""
    rows: list[Row] = db.execute(
        "WITH RECURSIVE below (id) AS (SELECT turn_id FROM delegations WHERE parent_turn_id = ?"
        " UNION SELECT turn_id FROM delegations JOIN below ON parent_turn_id = id)"
        " SELECT turn_id FROM turns JOIN below ON turn_id = id"
        " WHERE state IN ('queued', 'running')",
        (turn_id,),
    ).fetchall()
    for (left,) in rows:
        _move_turn(db, left, TurnState.CANCELLED, {"type": "turn_cancelled", "payload": {}})


def _note_files(db: apsw.Connection, attachments: Sequence[Attachment]) -> None:
    """From now on these files are spoken of."""
    for attachment in attachments:
        row = (attachment.sha256, attachment.size)
        db.execute("INSERT OR IGNORE INTO files VALUES (?, ?)", row)


def _move_turn(
    db: apsw.Connection, turn_id: str, state: TurnState, terminal: Json | None = None
) -> None:
    sources = _TURN_MOVES[state]
    db.execute(
        "UPDATE turns SET state = ?, terminal = ?, updated_at = ? WHERE turn_id = ?"
        f" AND state IN ({placeholders(sources)})",
        (state, None if terminal is None else as_text(terminal), timestamp(), turn_id, *sources),
    )
    if db.changes() != 1:
        raise StoreError(f"Turn {turn_id!r} cannot become {state} from where it is.")


def _move_call(
    db: apsw.Connection, turn_id: str, call_id: str, state: CallState, took: int = -1
) -> None:
    """Move the oldest open call with this id: a model may use an id again in a later step."""
    sources = _CALL_MOVES[state]
    call_id, now = clean(call_id), timestamp()
    begins = state is CallState.RUNNING
    column, value = ("running_at", now) if begins else ("took_ms", took)
    db.execute(
        f"UPDATE tool_calls SET state = ?, updated_at = ?, {column} = ?"
        " WHERE turn_id = ? AND call_id = ?"
        f" AND state IN ({placeholders(sources)}) AND (sequence, position) = ("
        " SELECT sequence, position FROM tool_calls INDEXED BY tool_calls_open"
        " WHERE turn_id = ? AND call_id = ?"
        " AND state IN ('intended', 'running') ORDER BY sequence, position LIMIT 1)",
        (state, now, value, turn_id, call_id, *sources, turn_id, call_id),
    )
    if db.changes() != 1:
        raise StoreError(f"Call {call_id!r} of turn {turn_id!r} cannot become {state}.")


def _no_session(wanted: str) -> NotFoundError:
    return NotFoundError(f"There is no session {wanted[:64]!r}.", remedy="`/sessions` lists them.")
