"""The schema, as the steps that led to it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import apsw


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


def m005_steering(db: apsw.Connection) -> None:
    """The running turn that a message is meant to join, and is free to miss."""
    db.execute(
        """
        ALTER TABLE turns ADD COLUMN joins TEXT NOT NULL DEFAULT '';
        CREATE INDEX turns_joining ON turns (joins) WHERE joins <> '' AND state = 'queued';
        """
    )


def m006_session_order(db: apsw.Connection) -> None:
    """The order in which sessions were used, which no clock that steps back can change."""
    db.execute(
        """
        ALTER TABLE sessions ADD COLUMN activity INTEGER NOT NULL DEFAULT 0;
        UPDATE sessions SET activity = ranked.place FROM (
            SELECT session_id AS id, row_number() OVER (ORDER BY last_active_at) AS place
            FROM sessions
        ) AS ranked WHERE session_id = ranked.id;
        DROP INDEX sessions_by_activity;
        CREATE INDEX sessions_by_activity ON sessions (activity);
        """
    )


def m007_spend(db: apsw.Connection) -> None:
    """What model calls may cost and have cost, in nano-dollars, with running totals."""
    db.execute(
        """
        CREATE TABLE spend (
            spend_id INTEGER PRIMARY KEY,
            turn_id TEXT NOT NULL,
            session_id TEXT NOT NULL,
            scopes TEXT NOT NULL,
            agent TEXT NOT NULL,
            schedule TEXT NOT NULL,
            purpose TEXT NOT NULL,
            provider TEXT NOT NULL,
            model TEXT NOT NULL,
            state TEXT NOT NULL,
            reserved INTEGER NOT NULL,
            cost INTEGER NOT NULL,
            priced INTEGER NOT NULL,
            guessed INTEGER NOT NULL DEFAULT 0,
            estimated INTEGER NOT NULL,
            prompt_tokens INTEGER NOT NULL DEFAULT 0,
            completion_tokens INTEGER NOT NULL DEFAULT 0,
            cached_tokens INTEGER NOT NULL DEFAULT 0,
            cache_write_tokens INTEGER NOT NULL DEFAULT 0,
            reasoning_tokens INTEGER NOT NULL DEFAULT 0,
            created_at TEXT NOT NULL,
            settled_at TEXT NOT NULL DEFAULT ''
        ) STRICT;
        CREATE INDEX spend_by_time ON spend (created_at, cost);
        CREATE INDEX spend_by_turn ON spend (turn_id);
        CREATE INDEX spend_held ON spend (state, cost) WHERE state = 'reserved';

        CREATE TABLE spend_totals (
            kind TEXT NOT NULL,
            name TEXT NOT NULL,
            amount INTEGER NOT NULL,
            PRIMARY KEY (kind, name)
        ) STRICT, WITHOUT ROWID;
        """
    )


def m008_delegations(db: apsw.Connection) -> None:
    """Sessions that work for a tool call of another one."""
    db.execute(
        """
        ALTER TABLE turns ADD COLUMN sensitive INTEGER NOT NULL DEFAULT 0;
        CREATE TABLE delegations (
            turn_id TEXT PRIMARY KEY REFERENCES turns,
            session_id TEXT NOT NULL UNIQUE REFERENCES sessions,
            parent_turn_id TEXT NOT NULL REFERENCES turns,
            parent_session_id TEXT NOT NULL REFERENCES sessions,
            step INTEGER NOT NULL,
            call_id TEXT NOT NULL,
            digest TEXT NOT NULL,
            agent TEXT NOT NULL,
            depth INTEGER NOT NULL,
            tools TEXT NOT NULL,
            attended INTEGER NOT NULL,
            max_cost TEXT NOT NULL,
            UNIQUE (parent_turn_id, step, call_id, digest)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX delegations_by_session ON delegations (parent_session_id);
        """
    )


def m009_summaries(db: apsw.Connection) -> None:
    """What stands for old events, results that were shortened, and rules that are never cut."""
    db.execute(
        """
        CREATE TABLE summaries (
            session_id TEXT NOT NULL REFERENCES sessions,
            epoch INTEGER NOT NULL,
            through INTEGER NOT NULL,
            content TEXT NOT NULL,
            carries TEXT NOT NULL,
            model TEXT NOT NULL,
            tainted INTEGER NOT NULL,
            sensitive INTEGER NOT NULL,
            created_at TEXT NOT NULL,
            PRIMARY KEY (session_id, epoch)
        ) STRICT, WITHOUT ROWID;

        CREATE TABLE shortened (
            session_id TEXT NOT NULL REFERENCES sessions,
            sequence INTEGER NOT NULL,
            content TEXT NOT NULL,
            PRIMARY KEY (session_id, sequence)
        ) STRICT, WITHOUT ROWID;

        CREATE TABLE pins (
            session_id TEXT NOT NULL REFERENCES sessions,
            pin_id INTEGER NOT NULL,
            text TEXT NOT NULL,
            sequence INTEGER NOT NULL,
            removed INTEGER NOT NULL DEFAULT 0,
            created_at TEXT NOT NULL,
            PRIMARY KEY (session_id, pin_id)
        ) STRICT, WITHOUT ROWID;
        """
    )


def m010_schedules(db: apsw.Connection) -> None:
    """What is scheduled, and a row for each due time. Moments are Unix seconds."""
    db.execute(
        """
        CREATE TABLE schedules (
            schedule_id TEXT PRIMARY KEY,
            name TEXT NOT NULL,
            goal TEXT NOT NULL,
            cadence_type TEXT NOT NULL,
            cadence_value TEXT NOT NULL,
            timezone TEXT NOT NULL,
            notification TEXT NOT NULL,
            status TEXT NOT NULL,
            reason TEXT NOT NULL,
            anchor INTEGER NOT NULL,
            next_due INTEGER,
            failures INTEGER NOT NULL,
            tainted INTEGER NOT NULL,
            sensitive INTEGER NOT NULL,
            origin TEXT NOT NULL,
            created_at TEXT NOT NULL
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX schedules_due ON schedules (next_due) WHERE status = 'active';

        CREATE TABLE fires (
            fire_id INTEGER PRIMARY KEY,
            schedule_id TEXT NOT NULL REFERENCES schedules,
            due_at INTEGER NOT NULL,
            state TEXT NOT NULL,
            reason TEXT NOT NULL,
            attempts INTEGER NOT NULL DEFAULT 0,
            not_before INTEGER NOT NULL,
            output TEXT NOT NULL DEFAULT '',
            cost INTEGER NOT NULL DEFAULT 0,
            turns INTEGER NOT NULL DEFAULT 0,
            notified TEXT NOT NULL DEFAULT '',
            UNIQUE (schedule_id, due_at)
        ) STRICT;
        CREATE INDEX fires_due ON fires (not_before) WHERE state = 'due';
        CREATE INDEX fires_claimed ON fires (schedule_id) WHERE state = 'claimed';
        CREATE INDEX fires_missed ON fires (due_at) WHERE state = 'missed';

        CREATE TABLE notices (
            notice_id INTEGER PRIMARY KEY,
            session_id TEXT NOT NULL,
            payload TEXT NOT NULL,
            delivered INTEGER NOT NULL DEFAULT 0
        ) STRICT;
        CREATE INDEX notices_owed ON notices (session_id) WHERE delivered = 0;
        """
    )


def m011_changes(db: apsw.Connection) -> None:
    """What calls are about to change, what was there before, and what was taken back."""
    db.execute(
        """
        CREATE TABLE changes (
            change_id INTEGER PRIMARY KEY,
            session_id TEXT NOT NULL REFERENCES sessions,
            turn_id TEXT NOT NULL REFERENCES turns,
            step INTEGER NOT NULL,
            call_id TEXT NOT NULL,
            kind TEXT NOT NULL,
            payload TEXT NOT NULL,
            created_at TEXT NOT NULL
        ) STRICT;
        CREATE INDEX changes_by_call ON changes (turn_id, step, call_id);

        CREATE TABLE change_copies (
            change_id INTEGER PRIMARY KEY REFERENCES changes,
            size INTEGER NOT NULL,
            data BLOB NOT NULL
        ) STRICT;

        CREATE TABLE undos (
            turn_id TEXT PRIMARY KEY REFERENCES turns,
            state TEXT NOT NULL,
            created_at TEXT NOT NULL
        ) STRICT, WITHOUT ROWID;

        CREATE INDEX turns_by_session ON turns (session_id);
        """
    )


def m012_memory(db: apsw.Connection) -> None:
    """What is still to be indexed, the chunks that are, and the indexes of their words."""
    db.execute(
        """
        CREATE TABLE to_index (
            session_id TEXT NOT NULL,
            sequence INTEGER NOT NULL,
            PRIMARY KEY (session_id, sequence)
        ) STRICT, WITHOUT ROWID;
        INSERT INTO to_index SELECT session_id, sequence FROM events;
        CREATE TRIGGER events_to_index AFTER INSERT ON events BEGIN
            INSERT OR IGNORE INTO to_index VALUES (new.session_id, new.sequence);
        END;
        CREATE TRIGGER names_to_index AFTER UPDATE OF display_name ON sessions BEGIN
            INSERT OR IGNORE INTO to_index
            SELECT session_id, sequence FROM events WHERE session_id = new.session_id;
        END;

        CREATE TABLE chunks (
            chunk_id INTEGER PRIMARY KEY,
            session_id TEXT NOT NULL,
            sequence INTEGER NOT NULL,
            position INTEGER NOT NULL,
            turn_id TEXT NOT NULL,
            role TEXT NOT NULL,
            text TEXT NOT NULL,
            tainted INTEGER NOT NULL,
            sensitive INTEGER NOT NULL,
            created_at TEXT NOT NULL,
            UNIQUE (session_id, sequence, position)
        ) STRICT;
        CREATE VIRTUAL TABLE chunk_words USING fts5(
            text, nearby, content = '', contentless_delete = 1,
            tokenize = 'porter unicode61 remove_diacritics 2'
        );
        CREATE VIRTUAL TABLE chunk_trigrams USING fts5(
            text, content = '', contentless_delete = 1, tokenize = 'trigram'
        );
        """
    )


def m013_notes(db: apsw.Connection) -> None:
    """Notes with all that they ever said, their tags, and what a session has scratched down.

    A note is indexed as the event 0 of a session `note:` and its id, which no session can be.
    """
    db.execute(
        """
        CREATE TABLE notes (
            note_id TEXT PRIMARY KEY,
            revision INTEGER NOT NULL,
            pinned INTEGER NOT NULL DEFAULT 0,
            created_at TEXT NOT NULL
        ) STRICT, WITHOUT ROWID;

        CREATE TABLE note_revisions (
            note_id TEXT NOT NULL,
            revision INTEGER NOT NULL,
            content TEXT NOT NULL,
            tags TEXT NOT NULL,
            tainted INTEGER NOT NULL,
            sensitive INTEGER NOT NULL,
            source TEXT NOT NULL,
            session_id TEXT NOT NULL,
            sequence INTEGER NOT NULL,
            turn_id TEXT NOT NULL,
            step INTEGER NOT NULL,
            call_id TEXT NOT NULL,
            created_at TEXT NOT NULL,
            PRIMARY KEY (note_id, revision)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX note_revisions_by_call ON note_revisions (turn_id, step, call_id)
            WHERE turn_id <> '';

        CREATE TABLE note_tags (
            tag TEXT NOT NULL,
            note_id TEXT NOT NULL,
            PRIMARY KEY (tag, note_id)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX note_tags_by_note ON note_tags (note_id);

        CREATE TRIGGER notes_to_index AFTER INSERT ON notes BEGIN
            INSERT OR IGNORE INTO to_index VALUES ('note:' || new.note_id, 0);
        END;
        CREATE TRIGGER changed_notes_to_index AFTER UPDATE OF revision ON notes BEGIN
            INSERT OR IGNORE INTO to_index VALUES ('note:' || new.note_id, 0);
        END;
        CREATE TRIGGER deleted_notes_to_index AFTER DELETE ON notes BEGIN
            INSERT OR IGNORE INTO to_index VALUES ('note:' || old.note_id, 0);
        END;

        CREATE TABLE scratchpad (
            session_id TEXT NOT NULL REFERENCES sessions,
            position INTEGER NOT NULL,
            text TEXT NOT NULL,
            tainted INTEGER NOT NULL,
            sensitive INTEGER NOT NULL,
            PRIMARY KEY (session_id, position)
        ) STRICT, WITHOUT ROWID;
        """
    )


def m014_notices(db: apsw.Connection) -> None:
    """Where notices go and when they are tried again; why runs ended, and what they cost a day."""
    db.execute(
        """
        ALTER TABLE notices ADD COLUMN schedule_id TEXT NOT NULL DEFAULT '';
        ALTER TABLE notices ADD COLUMN channel TEXT NOT NULL DEFAULT '';
        ALTER TABLE notices ADD COLUMN context TEXT NOT NULL DEFAULT '';
        ALTER TABLE notices ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE notices ADD COLUMN not_before INTEGER NOT NULL DEFAULT 0;
        DROP INDEX notices_owed;
        CREATE INDEX notices_owed ON notices (schedule_id, notice_id) WHERE delivered = 0;

        ALTER TABLE schedules ADD COLUMN channel TEXT NOT NULL DEFAULT '';
        ALTER TABLE schedules ADD COLUMN context TEXT NOT NULL DEFAULT '';
        ALTER TABLE fires ADD COLUMN code TEXT NOT NULL DEFAULT '';
        CREATE INDEX spend_by_schedule ON spend (schedule, created_at) WHERE schedule <> '';
        """
    )


def m015_vectors(db: apsw.Connection) -> None:
    """The vectors of chunks, one for each text however often it was said, and which are still to be
    made. An id is never used again, so that a copy of the vectors up to one is known to be that.
    """
    db.create_scalar_function("digest_of", lambda *one: digest(one[0]), 1)
    db.execute(
        """
        ALTER TABLE chunks ADD COLUMN hash BLOB NOT NULL DEFAULT x'';
        UPDATE chunks SET hash = digest_of(text);
        CREATE INDEX chunks_by_hash ON chunks (hash);

        CREATE TABLE vectors (
            vector_id INTEGER PRIMARY KEY AUTOINCREMENT,
            hash BLOB NOT NULL UNIQUE,
            model TEXT NOT NULL,
            vector BLOB NOT NULL
        ) STRICT;
        CREATE INDEX vectors_by_model ON vectors (model);
        CREATE TABLE to_embed (hash BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
        INSERT OR IGNORE INTO to_embed SELECT hash FROM chunks;
        CREATE TRIGGER chunks_gone AFTER DELETE ON chunks
        WHEN NOT EXISTS (SELECT 1 FROM chunks WHERE hash = old.hash) BEGIN
            DELETE FROM vectors WHERE hash = old.hash;
            DELETE FROM to_embed WHERE hash = old.hash;
        END;
        INSERT OR IGNORE INTO to_index SELECT session_id, sequence FROM events
        WHERE json_extract(message, '$.role') = 'tool';
        """
    )
    db.create_scalar_function("digest_of", None, 1)


def m017_fresh_texts(db: apsw.Connection) -> None:
    """Whether a text without a vector is new, or waits since another backend was chosen."""
    db.execute("ALTER TABLE to_embed ADD COLUMN fresh INTEGER NOT NULL DEFAULT 0")


def digest(text: object) -> bytes:
    """What a chunk's text is known by: never changed, since it is stored."""
    return hashlib.blake2b(str(text).encode("utf-8", "replace"), digest_size=16).digest()


def m016_files(db: apsw.Connection) -> None:
    """Which attachments lie in files; those in `blobs` stay there, and are read from there."""
    db.execute(
        "CREATE TABLE files (sha256 TEXT PRIMARY KEY, size INTEGER NOT NULL) STRICT, WITHOUT ROWID"
    )


def m018_channels(db: apsw.Connection) -> None:
    """How far channels have read, which chat talks to which session, and what chats are owed."""
    db.execute(
        """
        CREATE TABLE channel_offsets (
            channel TEXT PRIMARY KEY,
            next INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID;

        CREATE TABLE channel_sessions (
            channel TEXT NOT NULL,
            chat INTEGER NOT NULL,
            topic INTEGER NOT NULL,
            session_id TEXT NOT NULL,
            PRIMARY KEY (channel, chat, topic)
        ) STRICT, WITHOUT ROWID;

        CREATE TABLE outbox (
            item_id INTEGER PRIMARY KEY,
            channel TEXT NOT NULL,
            chat INTEGER NOT NULL,
            topic INTEGER NOT NULL,
            kind TEXT NOT NULL,
            key TEXT NOT NULL,
            sender INTEGER NOT NULL,
            answers INTEGER NOT NULL,
            session_id TEXT NOT NULL,
            text TEXT NOT NULL,
            state TEXT NOT NULL,
            live INTEGER NOT NULL DEFAULT 0,
            sent INTEGER NOT NULL DEFAULT 0,
            sending INTEGER NOT NULL DEFAULT 0,
            created_at TEXT NOT NULL,
            UNIQUE (channel, kind, key)
        ) STRICT;
        CREATE INDEX outbox_open ON outbox (channel, item_id)
            WHERE state IN ('waiting', 'ready');
        """
    )


def m019_mcp(db: apsw.Connection) -> None:
    """What servers of others say of their tools, and what of it the person trusted."""
    db.execute(
        """
        CREATE TABLE mcp_servers (
            name TEXT PRIMARY KEY,
            said TEXT NOT NULL,
            trusted TEXT NOT NULL
        ) STRICT, WITHOUT ROWID;
        """
    )


def m020_outgoing_files(db: apsw.Connection) -> None:
    """The files that items of the outbox have, until they have arrived."""
    db.execute(
        """
        CREATE TABLE outbox_files (
            item_id INTEGER NOT NULL REFERENCES outbox ON DELETE CASCADE,
            position INTEGER NOT NULL,
            kind TEXT NOT NULL,
            name TEXT NOT NULL,
            data BLOB NOT NULL,
            PRIMARY KEY (item_id, position)
        ) STRICT
        """
    )


def m021_channel_inbox(db: apsw.Connection) -> None:
    """Messages that were taken from a channel and wait: for their files, or for one before them."""
    db.execute(
        """
        CREATE TABLE channel_inbox (
            channel TEXT NOT NULL,
            number INTEGER NOT NULL,
            chat INTEGER NOT NULL,
            topic INTEGER NOT NULL,
            message TEXT NOT NULL,
            PRIMARY KEY (channel, number)
        ) STRICT
        """
    )


def m022_times(db: apsw.Connection) -> None:
    """When things happened within a turn, and how model calls ended: what a trace is made of."""
    db.execute(
        """
        ALTER TABLE turns ADD COLUMN resumed TEXT NOT NULL DEFAULT '[]';
        ALTER TABLE tool_calls ADD COLUMN running_at TEXT NOT NULL DEFAULT '';
        ALTER TABLE tool_calls ADD COLUMN took_ms INTEGER NOT NULL DEFAULT -1;
        ALTER TABLE approvals ADD COLUMN decided_at TEXT NOT NULL DEFAULT '';
        ALTER TABLE spend ADD COLUMN first_ms INTEGER NOT NULL DEFAULT -1;
        ALTER TABLE spend ADD COLUMN ended TEXT NOT NULL DEFAULT '';
        CREATE INDEX turns_by_joins ON turns (joins) WHERE joins <> '';
        """
    )


MIGRATIONS: tuple[Callable[[apsw.Connection], None], ...] = (
    m001_conversation,
    m002_approvals,
    m003_file_marks,
    m004_foreign_prompts,
    m005_steering,
    m006_session_order,
    m007_spend,
    m008_delegations,
    m009_summaries,
    m010_schedules,
    m011_changes,
    m012_memory,
    m013_notes,
    m014_notices,
    m015_vectors,
    m016_files,
    m017_fresh_texts,
    m018_channels,
    m019_mcp,
    m020_outgoing_files,
    m021_channel_inbox,
    m022_times,
)
"""In order, append-only: a migration that was released is never changed."""
