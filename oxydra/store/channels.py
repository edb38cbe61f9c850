"""What channels keep: how far they have read, which messages of that wait to be acted on, which
chat talks to which session, and the outbox: what a chat is owed.
An item of the outbox is owed from when it is `ready`. It is sent in parts, of which `sent` have
arrived; `sending` says that one was under way when that was last written, so that whoever finds it
so after a crash can't know. `key` makes an item one of its kind. Files that an item has lie here
too until it is settled, as they were when it came to be owed, whatever becomes of the workspace.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import apsw

from oxydra.errors import ToolError
from oxydra.frames import compact
from oxydra.store.database import Database, Row, clean, timestamp
from oxydra.types import Json, SentFile

GIVEN = 2000  # items that stay of those that are settled
MAX_FILES = 64 << 20  # bytes of the files that may wait
_MOVES = {
    "ready": ("waiting",),
    "done": ("ready",),
    "dropped": ("waiting", "ready"),
}


@dataclass(frozen=True, slots=True)
class Owed:
    """One item. `topic` is 0 where the chat has none, `sender` whose message it answers, which is
    `answers`; `live` the message that shows it already (0: none does).
    """

    item_id: int
    channel: str
    chat: int
    topic: int
    kind: str
    key: str
    sender: int
    answers: int
    session_id: str
    text: str
    state: str
    live: int
    sent: int
    sending: bool


_OWED = ", ".join(Owed.__slots__)
_HELD = "SELECT coalesce(sum(length(data)), 0) FROM outbox_files"


@dataclass(frozen=True, slots=True)
class Debt:
    """What becomes an item: `waiting` for its text where `text` is None. With `files`, the text is
    what stands below them.
    """

    chat: int
    topic: int
    kind: str
    key: str
    text: str | None = None
    sender: int = 0
    answers: int = 0
    session_id: str = ""
    files: tuple[SentFile, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message of a chat, or of a topic (0: none), that was taken and is no turn yet."""

    number: int
    chat: int
    topic: int
    message: Json


class ChannelTables(Database):
    """`channel_offsets`, `channel_sessions`, `channel_inbox`, `outbox` and `outbox_files`."""

    # ------------------------------------------------------------------------------- how far

    def channel_offset(self, channel: str) -> int:
        """The number of the first update that was not taken yet."""
        with self._reading() as db:
            found = db.execute("SELECT next FROM channel_offsets WHERE channel = ?", (channel,)).get
        return int(found or 0)

    def channel_took(
        self,
        channel: str,
        following: int,
        debts: Sequence[Debt] = (),
        waiting: Waiting | None = None,
    ) -> None:
        """What came before `following` was taken; this is owed for it, and this of it waits."""
        with self._transaction() as db:
            if waiting is not None:
                db.execute(
                    "INSERT OR IGNORE INTO channel_inbox VALUES (?, ?, ?, ?, ?)",
                    (
                        *(channel, waiting.number, waiting.chat, waiting.topic),
                        clean(compact(waiting.message)),
                    ),
                )
            db.execute(
                "INSERT INTO channel_offsets VALUES (?, ?)"
                " ON CONFLICT (channel) DO UPDATE SET next = excluded.next",
                (channel, following),
            )
            for debt in debts:
                _insert(db, channel, debt)

    # --------------------------------------------------------------------------------- inbox

    def waiting(self, channel: str) -> list[Waiting]:
        """The messages that wait, in the order in which they came."""
        with self._reading() as db:
            rows: list[Row] = db.execute(
                "SELECT number, chat, topic, message FROM channel_inbox WHERE channel = ?"
                " ORDER BY number",
                (channel,),
            ).fetchall()
        return [Waiting(row[0], row[1], row[2], json.loads(row[3])) for row in rows]

    def waits(self, channel: str, chat: int, topic: int) -> bool:
        """Whether a message of this chat waits."""
        with self._reading() as db:
            found = db.execute(
                "SELECT 1 FROM channel_inbox WHERE channel = ? AND chat = ? AND topic = ? LIMIT 1",
                (channel, chat, topic),
            ).get
        return found is not None

    def waited(self, channel: str, numbers: Sequence[int], debts: Sequence[Debt] = ()) -> int:
        """These wait no more, and this is owed for them. Returns how many of them had waited."""
        gone = 0
        with self._transaction() as db:
            for number in numbers:
                db.execute(
                    "DELETE FROM channel_inbox WHERE channel = ? AND number = ?", (channel, number)
                )
                gone += db.changes()
            for debt in debts:
                _insert(db, channel, debt)
        return gone

    # ------------------------------------------------------------------------------ sessions

    def channel_session(self, channel: str, chat: int, topic: int) -> str:
        """The session that a chat talks to; "" if there is none yet."""
        with self._reading() as db:
            found = db.execute(
                "SELECT session_id FROM channel_sessions"
                " WHERE channel = ? AND chat = ? AND topic = ?",
                (channel, chat, topic),
            ).get
        return str(found or "")

    def bind_session(self, channel: str, chat: int, topic: int, session_id: str) -> None:
        """From now on a chat talks to this session."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO channel_sessions VALUES (?, ?, ?, ?)"
                " ON CONFLICT (channel, chat, topic)"
                " DO UPDATE SET session_id = excluded.session_id",
                (channel, chat, topic, session_id),
            )

    def chat_moved(self, channel: str, old: int, new: int) -> None:
        """A chat has another id from now on: its sessions and what it is owed go with it."""
        with self._transaction() as db:
            db.execute(
                "UPDATE OR IGNORE channel_sessions SET chat = ? WHERE channel = ? AND chat = ?",
                (new, channel, old),
            )
            db.execute(
                "UPDATE channel_inbox SET chat = ? WHERE channel = ? AND chat = ?",
                (new, channel, old),
            )
            db.execute(
                "UPDATE outbox SET chat = ?, live = 0 WHERE channel = ? AND chat = ?"
                " AND state IN ('waiting', 'ready')",
                (new, channel, old),
            )

    # -------------------------------------------------------------------------------- outbox

    def owe(self, channel: str, debt: Debt) -> None:
        """Owe it; one with its kind and key is not owed again. Raises `ToolError` where more files
        would wait than may.
        """
        with self._transaction() as db:
            _insert(db, channel, debt)

    def owed(self, channel: str, *states: str) -> list[Owed]:
        """The items in these states, oldest first."""
        marks = ", ".join("?" * len(states))
        return self._owed(
            f"channel = ? AND state IN ({marks}) ORDER BY item_id", (channel, *states)
        )

    def owed_item(self, channel: str, kind: str, key: str) -> Owed | None:
        found = self._owed("channel = ? AND kind = ? AND key = ?", (channel, kind, key))
        return found[0] if found else None

    def overdue(self) -> Json:
        """How many items could have left, and for how many seconds the oldest of them is owed."""
        with self._reading() as db:
            rows: list[Row] = db.execute(
                "SELECT count(*), CAST(86400 * (julianday('now') - min(julianday(created_at)))"
                " AS INTEGER) FROM outbox WHERE state = 'ready'"
            ).fetchall()
        return {"owed": rows[0][0], "oldest_seconds": max(0, rows[0][1] or 0)}

    def owed_files(self, item_id: int) -> list[SentFile]:
        """The files of an item that is not settled."""
        with self._reading() as db:
            rows: list[Row] = db.execute(
                "SELECT kind, name, data FROM outbox_files WHERE item_id = ? ORDER BY position",
                (item_id,),
            ).fetchall()
        return [SentFile(*row) for row in rows]

    def owed_ready(self, item_id: int, text: str) -> None:
        """`waiting -> ready`: this is what it says."""
        with self._transaction() as db:
            _move(db, item_id, "ready", "text = ?", clean(text))

    def owed_sending(self, item_id: int) -> None:
        """A message of it is about to be sent."""
        self._set(item_id, "sending = 1")

    def owed_shown(self, item_id: int, live: int) -> None:
        """This message shows it, 0: none does; nothing of it is under way."""
        self._set(item_id, "live = ?, sending = 0", live)

    def owed_sent(self, item_id: int, sent: int, live: int) -> None:
        """So many parts have arrived, the last one as the message `live`."""
        self._set(item_id, "sent = ?, live = ?, sending = 0", sent, live)

    def owed_unsent(self, item_id: int) -> None:
        """What was under way has certainly not arrived."""
        self._set(item_id, "sending = 0")

    def owed_settled(self, item_id: int, *, dropped: bool = False) -> None:
        """`-> done`, or `-> dropped` where it can't arrive; what it said is not kept."""
        with self._transaction() as db:
            _move(db, item_id, "dropped" if dropped else "done", "text = '', sending = 0")
            db.execute("DELETE FROM outbox_files WHERE item_id = ?", (item_id,))
            db.execute(
                "DELETE FROM outbox WHERE state IN ('done', 'dropped')"
                " AND item_id <= (SELECT max(item_id) FROM outbox) - ?",
                (GIVEN,),
            )

    def _set(self, item_id: int, change: str, *values: Any) -> None:
        with self._transaction() as db:
            db.execute(f"UPDATE outbox SET {change} WHERE item_id = ?", (*values, item_id))

    def _owed(self, where: str, values: Sequence[Any]) -> list[Owed]:
        with self._reading() as db:
            rows: list[Row] = db.execute(
                f"SELECT {_OWED} FROM outbox WHERE {where}", values
            ).fetchall()
        named = (dict(zip(Owed.__slots__, row, strict=True)) for row in rows)
        return [Owed(**row | {"sending": bool(row["sending"])}) for row in named]


def _move(db: apsw.Connection, item_id: int, state: str, change: str, *values: Any) -> None:
    sources = ", ".join(f"'{source}'" for source in _MOVES[state])
    db.execute(
        f"UPDATE outbox SET state = ?, {change} WHERE item_id = ? AND state IN ({sources})",
        (state, *values, item_id),
    )


def _insert(db: apsw.Connection, channel: str, debt: Debt) -> None:
    state = "waiting" if debt.text is None else "ready"
    db.execute(
        "INSERT OR IGNORE INTO outbox (channel, chat, topic, kind, key, sender, answers,"
        " session_id, text, state, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(channel, debt.chat, debt.topic, debt.kind, debt.key, debt.sender, debt.answers),
            *(debt.session_id, clean(debt.text or ""), state, timestamp()),
        ),
    )
    if not debt.files or not db.changes():
        return
    item_id, held = db.last_insert_rowid(), db.execute(_HELD).get
    if held + sum(len(file.data) for file in debt.files) > MAX_FILES:
        raise ToolError(
            "Too many files wait to be sent.", remedy="Try again when some have arrived."
        )
    for position, file in enumerate(debt.files):
        row = (item_id, position, file.kind, clean(file.name), file.data)
        db.execute("INSERT INTO outbox_files VALUES (?, ?, ?, ?, ?)", row)
