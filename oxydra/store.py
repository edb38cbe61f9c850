"""The SQLite database of one user (APSW, WAL): sessions, events, turns and the journal of tool
calls.

The agent guest alone opens it while it runs. One writer connection stands behind a lock, every
write is one IMMEDIATE transaction with `synchronous = FULL`, because what a commit acknowledges
must survive a power cut as well; readers take a connection from a small pool. No thread is started
here.

History is append-only. The state machines of turns and calls (`types.TurnState`, `types.CallState`)
are asserted in the statement that moves a row: a move that is not allowed changes nothing and
raises.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import apsw

from oxydra.disk import Ballast
from oxydra.errors import NotFoundError, StoreError, StoreFullError, UsageError
from oxydra.frames import (
    attachments_from_json,
    attachments_json,
    compact,
    message_from_json,
    message_json,
)
from oxydra.types import (
    Approval,
    ApprovalState,
    Attachment,
    CallState,
    Event,
    Json,
    Marks,
    Message,
    Session,
    ToolCall,
    Turn,
    TurnState,
)

BUSY_TIMEOUT_MS = 10_000
POOL = 4  # idle read connections kept

Row: TypeAlias = tuple[Any, ...]


# ------------------------------------------------------------------------------------- migrations


def m001_conversation(db: apsw.Connection) -> None:
    """Sessions, events, turns and the journal."""
    db.execute(
        """
        CREATE TABLE sessions (
            session_id TEXT PRIMARY KEY,
            agent_name TEXT NOT NULL,
            display_name TEXT NOT NULL,
            channel_origin TEXT NOT NULL,
            created_at TEXT NOT NULL,
            last_active_at TEXT NOT NULL,
            archived INTEGER NOT NULL DEFAULT 0,
            last_sequence INTEGER NOT NULL DEFAULT 0
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX sessions_by_activity ON sessions (archived, last_active_at);

        CREATE TABLE turns (
            turn_id TEXT PRIMARY KEY,
            session_id TEXT NOT NULL REFERENCES sessions,
            request_id TEXT NOT NULL,
            state TEXT NOT NULL,
            prompt TEXT NOT NULL,
            attachments TEXT NOT NULL,
            terminal TEXT,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL
        ) STRICT;
        CREATE INDEX turns_unfinished ON turns (state) WHERE state IN ('queued', 'running');

        CREATE TABLE events (
            session_id TEXT NOT NULL REFERENCES sessions,
            sequence INTEGER NOT NULL,
            turn_id TEXT NOT NULL,
            message TEXT NOT NULL,
            created_at TEXT NOT NULL,
            PRIMARY KEY (session_id, sequence)
        ) STRICT, WITHOUT ROWID;

        CREATE TABLE blobs (
            sha256 TEXT PRIMARY KEY,
            data BLOB NOT NULL
        ) STRICT;

        CREATE TABLE tool_calls (
            turn_id TEXT NOT NULL REFERENCES turns,
            sequence INTEGER NOT NULL,
            position INTEGER NOT NULL,
            call_id TEXT NOT NULL,
            name TEXT NOT NULL,
            arguments TEXT NOT NULL,
            state TEXT NOT NULL,
            updated_at TEXT NOT NULL,
            PRIMARY KEY (turn_id, sequence, position)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX tool_calls_open ON tool_calls (turn_id) WHERE state IN ('intended', 'running');
        """
    )


def m002_approvals(db: apsw.Connection) -> None:
    """Requests to allow tool calls, and their answers."""
    db.execute(
        """
        CREATE TABLE approvals (
            approval_id TEXT PRIMARY KEY,
            session_id TEXT NOT NULL REFERENCES sessions,
            turn_id TEXT NOT NULL REFERENCES turns,
            step INTEGER NOT NULL,
            call_id TEXT NOT NULL,
            tool TEXT NOT NULL,
            tier TEXT NOT NULL,
            arguments TEXT NOT NULL,
            arguments_sha256 TEXT NOT NULL,
            complete INTEGER NOT NULL,
            reason TEXT NOT NULL,
            created_at TEXT NOT NULL,
            expires_at TEXT NOT NULL,
            state TEXT NOT NULL,
            scope TEXT NOT NULL,
            decided_by TEXT NOT NULL
        ) STRICT;
        CREATE INDEX approvals_by_call ON approvals (turn_id, step, call_id);
        CREATE INDEX approvals_by_arguments ON approvals (session_id, tool, arguments_sha256);
        CREATE INDEX approvals_pending ON approvals (session_id) WHERE state = 'pending';
        """
    )


def m003_file_marks(db: apsw.Connection) -> None:
    """Which files hold what strangers wrote, or private data; a folder stands for all in it."""
    db.execute(
        """
        CREATE TABLE file_marks (
            path TEXT PRIMARY KEY,
            tainted INTEGER NOT NULL,
            sensitive INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID;
        """
    )


def m004_foreign_prompts(db: apsw.Connection) -> None:
    """Whether a message holds what others wrote: forwarded, quoted, or from a third person."""
    db.execute("ALTER TABLE turns ADD COLUMN tainted INTEGER NOT NULL DEFAULT 0")


MIGRATIONS: tuple[Callable[[apsw.Connection], None], ...] = (
    m001_conversation,
    m002_approvals,
    m003_file_marks,
    m004_foreign_prompts,
)
"""In order, append-only: a migration that was released is never changed."""

_TURN_MOVES = {
    TurnState.RUNNING: ("queued",),
    TurnState.COMPLETED: ("running",),
    TurnState.FAILED: ("queued", "running"),
    TurnState.CANCELLED: ("queued", "running"),
}
_CALL_MOVES = {
    CallState.RUNNING: ("intended",),
    CallState.DONE: ("intended", "running"),  # a repeatable call needs no mark that it started
    CallState.FAILED: ("intended", "running"),
    CallState.UNKNOWN: ("running",),
}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


class Store:
    """Opens (or makes) the database at `path` and brings it to this version's schema.

    Every method may be called from any thread. Methods raise `StoreFullError` when the disk is full
    or read-only, `StoreError` for anything else that the database refuses; nothing is then half
    written.
    """

    def __init__(self, path: Path, ballast: Ballast | None = None) -> None:
        """`ballast` keeps room for what has begun: no turn is accepted that finds none."""
        self.path = path
        self._ballast = ballast
        self._write_lock = threading.Lock()
        self._pool: list[apsw.Connection] = []
        self._pool_lock = threading.Lock()
        self._closed = False
        with _errors(path):
            self._writer = self._open()
            self._migrate()
        if ballast is not None:
            ballast.hold()

    def _open(self) -> apsw.Connection:
        db = apsw.Connection(str(self.path))
        db.set_busy_timeout(BUSY_TIMEOUT_MS)
        db.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON")
        return db

    def _migrate(self) -> None:
        db = self._writer
        done = int(db.pragma("user_version"))
        if done > len(MIGRATIONS):
            raise StoreError(
                f"The database {self.path} was written by a newer Oxydra (schema {done}).",
                remedy="Install that version again; this one will not touch it.",
            )
        for number, migration in enumerate(MIGRATIONS[done:], start=done + 1):
            with self._transaction():
                migration(db)
                db.pragma("user_version", number)

    def release_ballast(self) -> bool:
        """Give the ballast up, so that the end of a turn can be written to a full disk; whether
        there was any.
        """
        return self._ballast is not None and self._ballast.release()

    def close(self) -> None:
        """Close every connection; safe to call twice."""
        with self._write_lock, self._pool_lock:
            self._closed = True
            self._writer.close()
            for db in self._pool:
                db.close()
            self._pool.clear()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[apsw.Connection]:
        """One durable write: all of the block or nothing of it."""
        with self._write_lock, _errors(self.path):
            if self._closed:
                raise StoreError("The database is closed.", remedy="Start the daemon again.")
            db = self._writer
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _reading(self) -> Iterator[apsw.Connection]:
        with self._pool_lock:
            db = self._pool.pop() if self._pool else None
        with _errors(self.path):
            if db is None:
                db = self._open()
            try:
                yield db
            except BaseException:
                db.close()
                raise
        with self._pool_lock:
            if not self._closed and len(self._pool) < POOL:
                self._pool.append(db)
                return
        db.close()

    # ----------------------------------------------------------------------------------- sessions

    def create_session(
        self,
        *,
        agent_name: str = "default",
        display_name: str = "",
        channel_origin: str = "gateway",
    ) -> Session:
        session_id = secrets.token_hex(8)
        now = _now()
        with self._transaction() as db:
            db.execute(
                "INSERT INTO sessions (session_id, agent_name, display_name, channel_origin,"
                " created_at, last_active_at) VALUES (?, ?, ?, ?, ?, ?)",
                (session_id, agent_name, display_name, channel_origin, now, now),
            )
        return Session(session_id, agent_name, display_name, channel_origin, now, now, False)

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
            "WHERE session_id LIKE ? ESCAPE '\\' OR display_name = ? ORDER BY session_id",
            (pattern, wanted),
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

    def sessions(self, *, include_archived: bool = False) -> list[Session]:
        """All sessions, the most recently active first."""
        where = "" if include_archived else "WHERE archived = 0"
        return self._sessions(f"{where} ORDER BY last_active_at DESC, session_id")

    def latest_session(self) -> Session | None:
        rows = self._sessions("WHERE archived = 0 ORDER BY last_active_at DESC LIMIT 1")
        return rows[0] if rows else None

    def count_sessions(self) -> int:
        """How many sessions are not archived."""
        with self._reading() as db:
            return int(db.execute("SELECT count(*) FROM sessions WHERE archived = 0").get)

    def _sessions(self, clause: str, values: Sequence[Any] = ()) -> list[Session]:
        with self._reading() as db:
            rows: list[Row] = db.execute(
                "SELECT session_id, agent_name, display_name, channel_origin, created_at,"
                f" last_active_at, archived FROM sessions {clause}",
                values,
            ).fetchall()
        return [Session(*(*row[:6], bool(row[6]))) for row in rows]

    # ------------------------------------------------------------------------------------- events

    def messages(self, session_id: str) -> list[Message]:
        """The whole conversation in order."""
        with self._reading() as db:
            rows: list[Row] = db.execute(
                "SELECT message FROM events WHERE session_id = ? ORDER BY sequence", (session_id,)
            ).fetchall()
            return [message_from_json(json.loads(row[0]), partial(_blob, db)) for row in rows]

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
        now = _now()
        sequence = db.execute(
            "UPDATE sessions SET last_sequence = last_sequence + 1, last_active_at = ?"
            " WHERE session_id = ? RETURNING last_sequence",
            (now, session_id),
        ).get
        db.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?)",
            (session_id, sequence, turn_id, _json(message_json(message)), now),
        )
        _keep_blobs(db, message.attachments)
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
    ) -> tuple[Turn, bool]:
        """Store a person's message and its turn in one transaction: only then may it be
        acknowledged. `tainted` says that others wrote some of it; attachments count as such.

        The same `turn_id` again returns the turn that is there, and False. Raises `UsageError` when
        that turn belongs to another session or had another prompt, `StoreFullError` when the disk
        has no room for one more.
        """
        room = self._ballast is None or self._ballast.hold()
        with self._transaction() as db:
            there = _turn(db, turn_id)
            if there is not None:
                if (there.session_id, there.prompt) != (session_id, _clean(prompt)):
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
            )
            now = _now()
            db.execute(
                "INSERT INTO turns VALUES (?, ?, ?, ?, ?, ?, NULL, ?, ?, ?)",
                (
                    *(turn_id, session_id, request_id, turn.state, _clean(prompt)),
                    *(compact(attachments_json(attachments)), now, now, turn.tainted),
                ),
            )
            _keep_blobs(db, attachments)
            return turn, True

    def turn(self, turn_id: str) -> Turn | None:
        with self._reading() as db:
            return _turn(db, turn_id)

    def unfinished_turns(self) -> list[Turn]:
        """Queued and running turns, in the order in which they were accepted."""
        with self._reading() as db:
            rows: list[Row] = db.execute(
                f"SELECT {_TURN} FROM turns WHERE state IN ('queued', 'running') ORDER BY rowid"
            ).fetchall()
            return [_turn_from(db, row) for row in rows]

    def start_turn(self, turn: Turn) -> Event:
        """`queued -> running`, and the person's message joins the conversation.

        It joins here and not on acceptance, because a message that waits in the queue comes after
        the answer to the one before it.
        """
        with self._transaction() as db:
            _move_turn(db, turn.turn_id, TurnState.RUNNING)
            message = Message(
                "user", turn.prompt, attachments=turn.attachments, tainted=turn.tainted
            )
            return self._append(db, turn.session_id, turn.turn_id, message)

    def add_step(self, turn: Turn, message: Message) -> Event:
        """A model's message that calls tools: its event and the intent of every call at once."""
        with self._transaction() as db:
            event = self._append(db, turn.session_id, turn.turn_id, message)
            for position, call in enumerate(message.tool_calls):
                db.execute(
                    "INSERT INTO tool_calls VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        *(turn.turn_id, event.sequence, position, _clean(call.id)),
                        *(_clean(call.name), _clean(call.arguments)),
                        *(CallState.INTENDED, event.created_at),
                    ),
                )
        return event

    def finish_turn(
        self, turn: Turn, state: TurnState, terminal: Json, message: Message | None = None
    ) -> None:
        """The last move of a turn, its terminal frame and, where there is one, its last message."""
        with self._transaction() as db:
            _move_turn(db, turn.turn_id, state, terminal)
            if message is not None:
                self._append(db, turn.session_id, turn.turn_id, message)

    # -------------------------------------------------------------------------------- the journal

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
    ) -> None:
        """Results and their events, in the order given: `-> done | failed | unknown`; and the calls
        that start next.
        """
        with self._transaction() as db:
            for state, message in results:
                _move_call(db, turn.turn_id, message.tool_call_id, state)
                self._append(db, turn.session_id, turn.turn_id, message)
            for call_id in running:
                _move_call(db, turn.turn_id, call_id, CallState.RUNNING)

    # ---------------------------------------------------------------------------------- approvals

    def add_approval(self, approval: Approval) -> None:
        """A new request: it can be answered once this returns."""
        values = [getattr(approval, name) for name in Approval.__slots__]
        values = [_clean(value) if isinstance(value, str) else value for value in values]
        with self._transaction() as db:
            db.execute(
                f"INSERT INTO approvals ({', '.join(Approval.__slots__)})"
                f" VALUES ({_marks(Approval.__slots__)})",
                values,
            )

    def approval(self, approval_id: str) -> Approval:
        """Raises `NotFoundError`."""
        found = self._approvals("WHERE approval_id = ?", (approval_id,))
        if not found:
            raise NotFoundError(f"There is no request {approval_id[:64]!r} for an approval.")
        return found[0]

    def approval_of_call(
        self, turn_id: str, step: int, call_id: str, tool: str, arguments_sha256: str
    ) -> Approval | None:
        """The newest request about exactly this call."""
        found = self._approvals(
            "WHERE turn_id = ? AND step = ? AND call_id = ? AND tool = ? AND arguments_sha256 = ?"
            " ORDER BY rowid DESC LIMIT 1",
            (turn_id, step, _clean(call_id), tool, arguments_sha256),
        )
        return found[0] if found else None

    def approved_for_session(self, session_id: str, tool: str, arguments_sha256: str) -> bool:
        """Whether these arguments were allowed for the whole session."""
        where = (
            "WHERE session_id = ? AND tool = ? AND arguments_sha256 = ?"
            " AND state = 'allowed' AND scope = 'session' LIMIT 1"
        )
        return bool(self._approvals(where, (session_id, tool, arguments_sha256)))

    def pending_approvals(self, session_id: str = "") -> list[Approval]:
        """Open requests, oldest first; of one session if it is named."""
        where = "WHERE state = 'pending'" + (" AND session_id = ?" if session_id else "")
        return self._approvals(f"{where} ORDER BY rowid", (session_id,) if session_id else ())

    def settle_approval(
        self, approval_id: str, state: ApprovalState, *, scope: str = "", decided_by: str = ""
    ) -> Approval:
        """`pending -> allowed | denied | expired`; returns the request as it is then, which is as
        it was if it had been settled before: the first answer holds.
        """
        with self._transaction() as db:
            db.execute(
                "UPDATE approvals SET state = ?, scope = ?, decided_by = ?"
                " WHERE approval_id = ? AND state = 'pending'",
                (state, scope, _clean(decided_by), approval_id),
            )
        return self.approval(approval_id)

    def _approvals(self, clause: str, values: Sequence[Any]) -> list[Approval]:
        with self._reading() as db:
            rows: list[Row] = db.execute(
                f"SELECT {', '.join(Approval.__slots__)} FROM approvals {clause}", values
            ).fetchall()
        named = (dict(zip(Approval.__slots__, row, strict=True)) for row in rows)
        return [
            Approval(
                **row | {"complete": bool(row["complete"]), "state": ApprovalState(row["state"])}
            )
            for row in named
        ]

    # --------------------------------------------------------------------------- marks on files

    def mark_files(self, paths: Sequence[str], marks: Marks) -> None:
        """Add marks to files, or to all that is in a folder; they stay until the database goes."""
        with self._transaction() as db:
            for path in paths:
                db.execute(
                    "INSERT INTO file_marks VALUES (?, ?, ?) ON CONFLICT (path) DO UPDATE SET"
                    " tainted = max(tainted, excluded.tainted),"
                    " sensitive = max(sensitive, excluded.sensitive)",
                    (path, int(marks.tainted), int(marks.sensitive)),
                )

    def marks_of(self, paths: Sequence[str]) -> Marks:
        """The marks of these files, of the folders they are in, and of what is in them."""
        found = Marks()
        with self._reading() as db:
            for path in paths:
                tainted, sensitive = db.execute(
                    "SELECT coalesce(max(tainted), 0), coalesce(max(sensitive), 0) FROM file_marks"
                    " WHERE path = ?1 OR substr(path, 1, length(?1) + 1) = ?1 || '/'"
                    " OR substr(?1, 1, length(path) + 1) = path || '/'",
                    (path,),
                ).get
                found |= Marks(bool(tainted), bool(sensitive))
        return found


_TURN = "turn_id, session_id, request_id, state, prompt, attachments, terminal, tainted"


def _turn(db: apsw.Connection, turn_id: str) -> Turn | None:
    row = db.execute(f"SELECT {_TURN} FROM turns WHERE turn_id = ?", (turn_id,)).fetchone()
    return None if row is None else _turn_from(db, row)


def _turn_from(db: apsw.Connection, row: Row) -> Turn:
    attachments = attachments_from_json(json.loads(row[5]), partial(_blob, db))
    terminal = json.loads(row[6]) if row[6] else None
    state = TurnState(row[3])
    turn_id, session_id, request_id, _, prompt = row[:5]
    tainted = bool(row[7])
    return Turn(turn_id, session_id, request_id, state, prompt, attachments, terminal, tainted)


def _keep_blobs(db: apsw.Connection, attachments: Sequence[Attachment]) -> None:
    """Store the data of attachments, each content once."""
    for attachment in attachments:
        row = (attachment.sha256, attachment.data)
        db.execute("INSERT OR IGNORE INTO blobs VALUES (?, ?)", row)


def _blob(db: apsw.Connection, sha256: str) -> bytes:
    data: bytes = db.execute("SELECT data FROM blobs WHERE sha256 = ?", (sha256,)).get
    return data


def _move_turn(
    db: apsw.Connection, turn_id: str, state: TurnState, terminal: Json | None = None
) -> None:
    sources = _TURN_MOVES[state]
    db.execute(
        "UPDATE turns SET state = ?, terminal = ?, updated_at = ? WHERE turn_id = ?"
        f" AND state IN ({_marks(sources)})",
        (state, None if terminal is None else _json(terminal), _now(), turn_id, *sources),
    )
    if db.changes() != 1:
        raise StoreError(f"Turn {turn_id!r} cannot become {state} from where it is.")


def _move_call(db: apsw.Connection, turn_id: str, call_id: str, state: CallState) -> None:
    """Move the oldest open call with this id: a model may use an id again in a later step."""
    sources = _CALL_MOVES[state]
    call_id = _clean(call_id)
    db.execute(
        "UPDATE tool_calls SET state = ?, updated_at = ? WHERE turn_id = ? AND call_id = ?"
        f" AND state IN ({_marks(sources)}) AND (sequence, position) = ("
        " SELECT sequence, position FROM tool_calls INDEXED BY tool_calls_open"
        " WHERE turn_id = ? AND call_id = ?"
        " AND state IN ('intended', 'running') ORDER BY sequence, position LIMIT 1)",
        (state, _now(), turn_id, call_id, *sources, turn_id, call_id),
    )
    if db.changes() != 1:
        raise StoreError(f"Call {call_id!r} of turn {turn_id!r} cannot become {state}.")


def _no_session(wanted: str) -> NotFoundError:
    return NotFoundError(f"There is no session {wanted[:64]!r}.", remedy="`/sessions` lists them.")


def _marks(values: Sequence[str]) -> str:
    return ", ".join("?" * len(values))


def _json(value: Json) -> str:
    return _clean(compact(value))


def _clean(text: str) -> str:
    """`text` as SQLite can store it: a lone surrogate, which JSON can smuggle in, becomes
    U+FFFD.
    """
    return text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    """The database's errors as ours."""
    try:
        yield
    except (apsw.FullError, apsw.ReadOnlyError, apsw.IOError) as error:
        raise StoreFullError(
            f"The database {path} cannot be written ({error}).",
            remedy="Free some disk space or make the file system writable; work then goes on.",
        ) from error
    except (apsw.NotADBError, apsw.CorruptError) as error:
        raise StoreError(
            f"The database {path} is damaged ({error}).",
            remedy="Move it aside and restore a backup.",
        ) from error
    except apsw.CantOpenError as error:
        raise StoreError(
            f"The database {path} cannot be opened ({error}).",
            remedy="Check that its folder exists and belongs to you.",
        ) from error
    except apsw.Error as error:
        raise StoreError(f"The database {path} refused: {error}.") from error
