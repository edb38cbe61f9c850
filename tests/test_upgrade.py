"""From every earlier schema to this one: what was stored then is there, and can be worked with."""

from __future__ import annotations

import json
import threading

import apsw
import pytest

from oxydra.errors import StoreError, StoreFullError
from oxydra.store import Store, copies
from oxydra.store.migrations import MIGRATIONS

NOW = "2026-01-01T00:00:00.000+00:00"
ROWS = 3  # in each table
LISTS = ("to_index", "to_embed")  # of work: a new schema may put more on them
SAID = "The fox sleeps under oak number %d."
# What a column holds where just anything would mean nothing to whoever reads it.
VALUES = {
    "message": lambda n: json.dumps({"role": "user", "content": SAID % n}),
    "attachments": lambda n: "[]",
    "scopes": lambda n: "[]",
    "carries": lambda n: "[]",
    "tags": lambda n: "[]",
    "tools": lambda n: "[]",
    "payload": lambda n: "{}",
    "arguments": lambda n: "{}",
    "prompt": lambda n: SAID % n,
    "created_at": lambda n: NOW,
    "updated_at": lambda n: NOW,
    "last_active_at": lambda n: NOW,
    "expires_at": lambda n: NOW,
    "max_cost": lambda n: "1",
    "last_sequence": lambda n: 1,
    "sequence": lambda n: 1,
    "revision": lambda n: 1,
    "archived": lambda n: 0,
    "state": lambda n: "done",
}


def tables(db):
    """The tables that hold what was stored, each after those that its rows name."""
    found = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT GLOB 'sqlite_*'"
    found += " AND name NOT GLOB 'chunk_words*' AND name NOT GLOB 'chunk_trigrams*' ORDER BY rowid"
    return [row[0] for row in db.execute(found).fetchall()]


def fill(db):
    """Rows in every table, each with every column set; rows with the same number belong together,
    as far as columns with the same names do.
    """
    for table in tables(db):
        columns = db.execute(f"PRAGMA table_info({table})").fetchall()
        for n in range(1, ROWS + 1):
            values = []
            for _, name, kind, *_ in columns:
                made = VALUES.get(name, lambda n, name=name, kind=kind: anything(name, kind, n))
                values.append(made(n))
            marks = ", ".join("?" * len(columns))
            db.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", values)


def anything(name, kind, n):
    if kind == "BLOB":
        return bytes([n]) * 16
    if kind == "INTEGER":
        return n
    key = {"parent_turn_id": "turn_id", "parent_session_id": "session_id"}.get(name, name)
    return f"{key}-{n}"


def rows(db, wanted):
    """What is in these columns of these tables."""
    return {
        table: sorted(db.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall(), key=repr)
        for table, columns in wanted.items()
    }


def at_schema(path, number):
    """A database as the version with so many migrations left it; returns its rows."""
    db = apsw.Connection(str(path))
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA journal_mode = WAL").fetchall()
    copies.migrate(db, MIGRATIONS[:number])
    fill(db)
    columns = {
        table: [row[1] for row in db.execute(f"PRAGMA table_info({table})").fetchall()]
        for table in tables(db)
    }
    found = rows(db, columns)
    db.close()
    return columns, found


@pytest.mark.parametrize("number", range(1, len(MIGRATIONS)))
def test_everything_is_there_after_the_upgrade(tmp_path, number):
    path = tmp_path / "oxydra.db"
    columns, before = at_schema(path, number)
    assert all(len(found) >= ROWS for found in before.values()), "an empty table shows nothing"
    store = Store(path)
    with store._reading() as db:
        after = rows(db, columns)
        assert int(db.pragma("user_version")) == len(MIGRATIONS)
    for table, found in before.items():
        if table in LISTS:
            assert set(found) <= set(after[table]), table
        else:
            assert after[table] == found, table
    assert [path.name for path in tmp_path.glob("rehearsal*")] == []
    assert store.find_session("session_id-2").session_id == "session_id-2"
    events, _ = store.history("session_id-1")
    assert [event.message.content for event in events] == [SAID % 1]
    session = store.create_session()
    assert store.session(session.session_id) == session
    store.copy()
    assert copies.examine(store.snapshot) == (len(MIGRATIONS), [])
    store.close()


def broken_at_the_end(db):
    db.execute("CREATE TABLE added (x)")
    db.execute("DELETE FROM events")
    db.execute("INSERT INTO nowhere VALUES (1)")


def that_loses_what_others_name(db):
    db.execute("PRAGMA defer_foreign_keys = ON")
    db.execute("DROP TABLE shortened")
    db.execute("CREATE TABLE lost (x REFERENCES sessions); INSERT INTO lost VALUES ('nobody')")


@pytest.mark.parametrize("last", [broken_at_the_end, that_loses_what_others_name])
def test_a_migration_that_fails_changes_nothing(tmp_path, last):
    path = tmp_path / "oxydra.db"
    number = len(MIGRATIONS) - 2
    columns, before = at_schema(path, number)
    with pytest.raises(StoreError, match="can't be brought from schema") as caught:
        Store(path, migrations=(*MIGRATIONS, last))
    assert "can still be used" in caught.value.remedy
    assert {p.name.partition("-")[0] for p in tmp_path.iterdir()} == {"oxydra.db"}
    db = apsw.Connection(str(path))
    assert int(db.pragma("user_version")) == number
    assert rows(db, columns) == before and set(tables(db)) == set(columns)
    db.close()
    Store(path).close()  # the version without that migration goes on


def test_a_rehearsal_that_was_killed_leaves_nothing_in_the_way(tmp_path):
    path = tmp_path / "oxydra.db"
    at_schema(path, 5)
    (tmp_path / "rehearsal.db").write_text("half of a copy")
    Store(path).close()
    assert not (tmp_path / "rehearsal.db").exists()


def test_a_new_database_is_not_rehearsed(tmp_path):
    (tmp_path / "rehearsal.db").mkdir()  # else it would be in the way
    Store(tmp_path / "oxydra.db").close()


def test_without_room_for_the_rehearsal_nothing_is_touched(tmp_path):
    path = tmp_path / "oxydra.db"
    at_schema(path, 5)
    with pytest.raises(StoreFullError, match="no room"):
        copies.check_room(tmp_path, 1 << 60)


# ------------------------------------------------------------------------------------------ copies


def test_a_copy_is_of_one_moment_while_others_write(tmp_path):
    store = Store(tmp_path / "oxydra.db")
    for n in range(200):
        store.create_session(display_name=f"{n}" + "x" * 60_000)
    stop, wrote, written, looked = threading.Event(), threading.Event(), [], []

    def write():
        while not stop.is_set():
            written.append(store.create_session().session_id)
            wrote.set()

    def stopped():
        """At least one session is stored between two steps."""
        looked.append(len(written))
        wrote.clear()
        assert wrote.wait(60)
        return False

    writer = threading.Thread(target=write)
    writer.start()
    try:
        store.copy(stopped)
    finally:
        stop.set()
        writer.join()
    assert len(looked) > 1, "it was copied in one step"
    assert copies.examine(store.snapshot) == (len(MIGRATIONS), [])
    db = apsw.Connection(str(store.snapshot))
    kept = db.execute("SELECT count(*) FROM sessions").get
    assert 200 <= kept <= 200 + looked[0] + 1 < 200 + len(written)
    db.close()
    store.close()


def test_a_copy_that_is_stopped_or_erased_is_gone(store):
    with pytest.raises(StoreError, match="not finished"):
        store.copy(lambda: True)
    assert not store.snapshot.exists()
    store.copy()
    assert store.snapshot.stat().st_mode & 0o777 == 0o600
    with store._erasing():
        pass
    assert not store.snapshot.exists(), "it would hold what was forgotten"


@pytest.mark.parametrize("data", [b"", b"no database", b"SQLite format 3\0" + bytes(4080)])
def test_what_is_no_database_is_told(tmp_path, data):
    path = tmp_path / "oxydra.db"
    path.write_bytes(data)
    _, troubles = copies.examine(path)
    assert troubles


def test_damage_is_told(tmp_path):
    store = Store(tmp_path / "oxydra.db")
    for _ in range(200):
        store.create_session(display_name="x" * 2000)
    store.copy()
    data = bytearray(store.snapshot.read_bytes())
    for at in range(len(data) // 2, len(data), 4096):
        data[at : at + 200] = b"\xff" * 200
    store.snapshot.write_bytes(data)
    assert copies.examine(store.snapshot)[1]
    store.close()


def test_a_newer_schema_is_told(store):
    store.copy()
    db = apsw.Connection(str(store.snapshot))
    db.pragma("user_version", 999)
    db.close()
    schema, troubles = copies.examine(store.snapshot)
    assert schema == 999 and "newer" in troubles[0]
