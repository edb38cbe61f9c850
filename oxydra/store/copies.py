"""Copies of a database: made while it is written to, looked at by strangers, tried migrations on.

A copy is made by SQLite's backup API from one moment's state: writers go on, and the file itself is
never read raw. Nothing here trusts what is in a copy: it may come from a guest. No thread.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import apsw

from oxydra.errors import StoreError, StoreFullError
from oxydra.store.migrations import MIGRATIONS

DATABASE = "oxydra.db"  # what a user's database is called, in a workspace and in a backup
PAGES = 2048  # copied between two looks whether to stop
ROOM = 64 << 20  # bytes that a copy leaves free on its disk
SHOWN = 5  # of what is wrong with a copy
SIDECARS = ("", "-wal", "-shm", "-journal")

Migration: TypeAlias = Callable[[apsw.Connection], None]


def copy(source: apsw.Connection, path: Path, stopped: Callable[[], bool] = bool) -> None:
    """Write what `source` is at this moment to `path`, a new file of mode 0600.

    Raises `StoreFullError` where the disk has no room for it, `StoreError` once `stopped()`, and
    whatever SQLite does; no part of a copy is then left.
    """
    remove(path)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    try:
        with _closing(apsw.Connection(str(path))) as target:
            target.execute("PRAGMA synchronous = OFF")  # who needs it to last writes it elsewhere
            source.execute("BEGIN")  # one moment for all the steps: no writer makes it begin anew
            try:
                size = int(source.pragma("page_count")) * int(source.pragma("page_size"))
                check_room(path.parent, size)
                with target.backup("main", source, "main") as backup:
                    while not backup.done:
                        if stopped():
                            raise StoreError("The copy was not finished.")
                        backup.step(PAGES)
            finally:
                source.execute("ROLLBACK")
    except BaseException:
        remove(path)
        raise


def copy_file(database: Path, path: Path) -> None:
    """`copy` of a database that no process has open; the caller holds the lock that says so."""
    with _closing(apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READWRITE)) as source:
        distrust(source)
        copy(source, path)


def check_room(folder: Path, size: int) -> None:
    """Raises `StoreFullError` where a file of `size` bytes would fill the disk of `folder`."""
    found = os.statvfs(folder)
    if found.f_bavail * found.f_frsize < size + ROOM:
        raise StoreFullError(
            f"There is no room in {folder} for a copy of the database ({size >> 20} MiB).",
            remedy=f"Free {(size + ROOM) >> 20} MiB on that disk, and do it again.",
        )


def remove(path: Path) -> None:
    """Remove a copy and what SQLite put beside it; nothing is done where there is none."""
    for ending in SIDECARS:
        path.with_name(path.name + ending).unlink(missing_ok=True)


def examine(path: Path) -> tuple[int, list[str]]:
    """The schema of a copy, and what is wrong with it: damage, rows that lead nowhere, a schema
    that this version does not know.
    """
    try:
        with _closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)) as db:
            distrust(db)
            schema = int(db.pragma("user_version"))
            troubles = _troubles(db)
    except (apsw.Error, UnicodeDecodeError) as error:
        return 0, [f"it is no sound database ({error})"]
    if schema > len(MIGRATIONS):
        troubles.append(f"it was written by a newer Oxydra (schema {schema})")
    elif not schema:
        troubles.append("it is no database of Oxydra's")
    return schema, troubles


def rehearse(source: apsw.Connection, path: Path, migrations: Sequence[Migration]) -> None:
    """Run all migrations that `source` lacks on a copy of it at `path`, and look whether the copy
    is sound then. `source` is not changed. Raises `StoreError`, and whatever a migration does.
    """
    try:
        copy(source, path)
        with _closing(apsw.Connection(str(path))) as db:
            db.execute("PRAGMA synchronous = OFF")
            db.execute("PRAGMA foreign_keys = ON")
            migrate(db, migrations)
            if troubles := _troubles(db):
                raise StoreError(f"The database would not be sound then: {'; '.join(troubles)}.")
    finally:
        remove(path)


def migrate(db: apsw.Connection, migrations: Sequence[Migration]) -> None:
    """Bring `db` to the newest of `migrations`, in one transaction: all of it or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        for migration in migrations[int(db.pragma("user_version")) :]:
            migration(db)
        db.pragma("user_version", len(migrations))
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def distrust(db: apsw.Connection) -> None:
    """What a file says can't have this connection do anything but read and write rows."""
    db.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    db.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    db.execute("PRAGMA cell_size_check = ON")


def _troubles(db: apsw.Connection) -> list[str]:
    rows = [str(row[0]) for row in db.execute(f"PRAGMA integrity_check({SHOWN})")]
    found = [row for row in rows if row != "ok"]
    lost = itertools.islice(db.execute("PRAGMA foreign_key_check"), SHOWN)
    return found + [f"a row of {row[0]} names one of {row[2]} that is not there" for row in lost]


@contextlib.contextmanager
def _closing(db: apsw.Connection) -> Iterator[apsw.Connection]:
    try:
        yield db
    finally:
        db.close()
