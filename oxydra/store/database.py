"""The connections to one user's database, and what every table of it needs.

One writer connection stands behind a lock, every write is one IMMEDIATE transaction with
`synchronous = FULL`, because what a commit acknowledges must survive a power cut as well; readers
take a connection from a small pool. No thread is started here.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import apsw

from oxydra.disk import Ballast
from oxydra.errors import StoreBusyError, StoreError, StoreFullError
from oxydra.frames import compact
from oxydra.store import copies
from oxydra.store.files import Files
from oxydra.store.migrations import MIGRATIONS
from oxydra.types import Json

log = logging.getLogger(__name__)

BUSY_TIMEOUT_MS = 10_000
WORD_INDEXES = ("chunk_words", "chunk_trigrams")
SOON_MS = 200
POOL = 16  # idle read connections kept

Row: TypeAlias = tuple[Any, ...]


class Database:
    """Opens (or makes) the database at `path` and brings it to this version's schema.

    Every method may be called from any thread. Methods raise `StoreFullError` when the disk is full
    or read-only, `StoreBusyError` when another program holds the database, `StoreError` for
    anything else that it refuses; nothing is then half written.
    """

    def __init__(
        self,
        path: Path,
        ballast: Ballast | None = None,
        files: Files | None = None,
        migrations: Sequence[copies.Migration] = MIGRATIONS,
    ) -> None:
        """`ballast` keeps room for what has begun: no turn is accepted that finds none. `files` are
        where attachments lie; unless given, in `attachments` beside the database.
        """
        self.path = path
        self.snapshot = path.with_name("snapshot.db")  # a copy that a backup reads
        self.files = files or Files(path.parent / "attachments")
        self._ballast = ballast
        self._write_lock = threading.Lock()
        self._pool: list[apsw.Connection] = []
        self._pool_lock = threading.Lock()
        self._closed = False
        self._log_owed = False  # what was erased is still in the log of writes
        self._after_commit: Callable[[], None] = lambda: None
        self._after_erasing: Callable[[], None] = lambda: None
        with explained(path):
            self._writer = self._open()
            self._writer.execute("PRAGMA secure_delete = FAST")  # where that costs no more writing
            self._migrate(migrations)
            self._empty_log(0)  # a process that was killed has left one
        if ballast is not None:
            ballast.hold()

    def _open(self) -> apsw.Connection:
        db = apsw.Connection(str(self.path))
        db.set_busy_timeout(BUSY_TIMEOUT_MS)
        for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            db.execute(f"PRAGMA {setting}").fetchall()  # of several in one, only the first is run
        return db

    def _migrate(self, migrations: Sequence[copies.Migration]) -> None:
        """Tried on a copy first, where anything is in it: what fails there changes nothing here."""
        db = self._writer
        done = int(db.pragma("user_version"))
        if done > len(migrations):
            raise StoreError(
                f"The database {self.path} was written by a newer Oxydra (schema {done}).",
                remedy="Install that version again; this one will not touch it.",
            )
        if done == len(migrations):
            return
        try:
            if done:
                copies.rehearse(db, self.path.with_name("rehearsal.db"), migrations)
            copies.migrate(db, migrations)
        except (apsw.FullError, StoreFullError):
            raise  # that is about room
        except (apsw.Error, StoreError) as error:
            raise StoreError(
                f"The database {self.path} can't be brought from schema {done} to"
                f" {len(migrations)}: {error}",
                remedy="Nothing in it was changed: the Oxydra that wrote it can still be used.",
            ) from error

    def copy(self, stopped: Callable[[], bool] = bool) -> None:
        """Make `snapshot` what the database is at this moment, while others write to it. Raises
        `StoreFullError`, and `StoreError` once `stopped()`.
        """
        with self._reading() as db:
            copies.copy(db, self.snapshot, stopped)

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
    def _transaction(self, *, erasing: bool = False) -> Iterator[apsw.Connection]:
        """One durable write: all of the block or nothing of it. `erasing`: what it frees in the
        database is overwritten.
        """
        with self._write_lock, explained(self.path):
            if self._closed:
                raise StoreError("The database is closed.", remedy="Start the daemon again.")
            db = self._writer
            if erasing:
                db.execute("PRAGMA secure_delete = ON")
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            finally:
                if erasing:
                    db.execute("PRAGMA secure_delete = FAST")
            if self._log_owed:
                self._empty_log(0)
        self._after_commit()

    @contextlib.contextmanager
    def _erasing(self) -> Iterator[apsw.Connection]:
        """A durable write after which the database's files hold nothing of what it deleted: freed
        space is overwritten, indexes of words are written anew without what was taken out, and the
        log of writes is emptied.
        """
        with self._transaction(erasing=True) as db:
            yield db
            for index in WORD_INDEXES:
                db.execute(f"INSERT INTO {index} ({index}) VALUES ('optimize')")
        with self._write_lock, explained(self.path):
            self._empty_log(SOON_MS)  # else with one of the next writes
        for path in self.sidecars():
            path.unlink(missing_ok=True)
        copies.remove(self.snapshot)
        self._after_erasing()

    def sidecars(self) -> list[Path]:
        """The files in which copies of its vectors are, oldest first."""
        found = self.path.parent.glob(f"{self.path.stem}.vectors-*")
        return sorted(found, key=lambda path: (len(path.name), path.name))

    def on_erased(self, call: Callable[[], None]) -> None:
        """Have `call` called when something was erased from the files: what is derived from them
        and held elsewhere must forget it.
        """
        self._after_erasing = call

    def rewrite(self) -> None:
        """Write the whole file anew, so that no page holds what was on it before; takes as much
        memory as the database has bytes. Raises `StoreError` where there is no room.
        """
        with self._write_lock, explained(self.path):
            self._writer.execute("PRAGMA temp_store = MEMORY")
            self._writer.execute("VACUUM")
        self.empty_log()

    def empty_log(self) -> bool:
        """Move what the log of writes holds into the database and cut the log to nothing; whether
        no reader was in the way for long.
        """
        with self._write_lock, explained(self.path):
            return self._empty_log(BUSY_TIMEOUT_MS)

    def _empty_log(self, patience_ms: int) -> bool:
        """Under the lock. What could not be done, since somebody reads or the disk is full, is
        owed.
        """
        db = self._writer
        db.set_busy_timeout(patience_ms)
        try:
            self._log_owed = bool(db.execute("PRAGMA wal_checkpoint(TRUNCATE)").get[0])
        except apsw.Error as error:  # what is committed stays so
            log.info("the log of writes is emptied later: %s", error)
            self._log_owed = True
        finally:
            db.set_busy_timeout(BUSY_TIMEOUT_MS)
        return not self._log_owed

    @contextlib.contextmanager
    def _reading(self) -> Iterator[apsw.Connection]:
        with self._pool_lock:
            db = self._pool.pop() if self._pool else None
        with explained(self.path):
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


def timestamp() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def placeholders(values: Sequence[str]) -> str:
    return ", ".join("?" * len(values))


def as_text(value: Json) -> str:
    return clean(compact(value))


def clean(text: str) -> str:
    """`text` as SQLite can store it: a lone surrogate, which JSON can smuggle in, becomes
    U+FFFD.
    """
    return text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text


def unindex(db: apsw.Connection, where: str, values: Row = ()) -> None:
    """Take the words of these rows of `chunks` out of the indexes; before the rows go."""
    for index in WORD_INDEXES:
        db.execute(
            f"DELETE FROM {index} WHERE rowid IN (SELECT chunk_id FROM chunks WHERE {where})",
            values,
        )


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """The database's errors as ours."""
    try:
        yield
    except (apsw.FullError, apsw.ReadOnlyError, apsw.IOError) as error:
        raise StoreFullError(
            f"The database {path} cannot be written ({error}).",
            remedy="Free some disk space or make the file system writable; work then goes on.",
        ) from error
    except (apsw.BusyError, apsw.LockedError) as error:
        raise StoreBusyError(
            f"The database {path} is held by another program ({error}).",
            remedy="A backup that locks it, perhaps: work goes on when that is done.",
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
