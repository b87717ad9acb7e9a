"""The state file: SQLite in WAL mode (docs/decisions), as blocking calls.

- After a kill at any moment, the last finished batch is complete. A batch is one write, however many services changed.
- A damaged file is set aside and logged, but not one that cannot be opened now (disk full, locked by another program).
- An unreadable row is left out; the others are read.
- The file holds no secrets. Modes are 0600 and 0700, and other users' files and links stay untouched.
- One process at a time uses a state directory.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from nacos_proxy.background.state_rows import (
    DRAIN_TABLE,
    JOURNAL_TABLE,
    REGISTRY_TABLE,
    SUBSCRIBER_TABLE,
    UNREADABLE,
    UNWRITABLE,
    DrainRow,
    SavedRegistration,
    SavedService,
    SubscriberRow,
    journal_row,
    load_drain,
    load_lasting,
    load_registration,
    load_snapshot,
    load_subscriber,
    load_waiting,
    registration_row,
    registry_row,
    service_row,
)
from nacos_proxy.catalog.drains import Drain
from nacos_proxy.catalog.journal import JournalEntry
from nacos_proxy.catalog.registrations import Registration, RegistrationKey
from nacos_proxy.catalog.udp_subscribers import MAX_SUBSCRIPTIONS, Subscription
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.private_directory import PrivateDirectory
from nacos_proxy.upstream.embedded.persistence import PersistentValue

T = TypeVar("T")
R = TypeVar("R", bound="tuple[Any, ...]")

log = logging.getLogger("nacos_proxy.disk")

VERSION = 1
FILE = "state.sqlite3"
LOCK_FILE = "lock"
_BESIDE = tuple(FILE + suffix for suffix in ("-wal", "-shm", "-journal"))
_FILES = (FILE, *_BESIDE)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS service (
    namespace TEXT, grp TEXT, name TEXT, body BLOB NOT NULL, contact REAL NOT NULL, PRIMARY KEY (namespace, grp, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS registration (
    namespace TEXT, grp TEXT, name TEXT, ip TEXT, port INTEGER, body BLOB NOT NULL, heard REAL NOT NULL,
    PRIMARY KEY (namespace, grp, name, ip, port)
) WITHOUT ROWID;
"""

_DISK_ERRORS = (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO)

# Deletes the services beyond the policy's number, beginning with the one that was confirmed longest ago.
_TRIM = """
DELETE FROM service WHERE (namespace, grp, name) IN
    (SELECT namespace, grp, name FROM service ORDER BY contact DESC LIMIT -1 OFFSET ?)
"""


class StateLocked(Exception):
    """Another process holds the state directory."""


def lock(directory: PrivateDirectory) -> int:
    """Locks the directory until the returned descriptor is closed. Raises `StateLocked`, `OSError`."""
    try:
        descriptor = directory.open(LOCK_FILE, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        if error.errno not in _DISK_ERRORS or not (directory.path / LOCK_FILE).exists():
            raise
        descriptor = directory.open(LOCK_FILE, os.O_RDONLY)  # a read-only file can still be locked
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        text = f"the state directory {directory.path} is in use by another nacos-proxy (process {holder})"
        raise StateLocked(f"{text}; give this one its own --state-dir") from error
    with suppress(OSError):  # the disk is full, but the lock itself needs no room
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


class StateFile:
    """The file, for one thread. `trouble`: why it cannot be opened now, '' if it is open.

    `patience`: seconds to wait for another program that has locked the file. Raises `StateLocked`, and `OSError` for an
    unusable directory. If the disk is full or read-only, it sets `trouble` instead.
    """

    def __init__(self, directory: Path, *, patience: float = 5.0) -> None:
        self.path: Path = directory / FILE
        self.set_aside: Path | None = None
        self.trouble = ""
        self.unreadable = 0
        self.unwritable = 0
        self._patience = patience
        self._directory: PrivateDirectory | None = None
        self._lock: int | None = None
        self._db: sqlite3.Connection | None = None
        try:
            self._opened()
        except sqlite3.OperationalError as error:
            self.trouble = str(error)
        except OSError as error:
            if error.errno not in _DISK_ERRORS:
                raise
            self.trouble = f"{error.strerror}: {directory}"

    def _opened(self) -> sqlite3.Connection:
        """The connection, opened if necessary. On an `OperationalError` the disk is at fault, not the file."""
        if self._directory is None:
            self._directory = PrivateDirectory(self.path.parent)
            self.path = self._directory.path / FILE
        self._directory.own(*_FILES)
        if self._lock is None:
            self._lock = lock(self._directory)
        if self._db is None:
            try:
                self._db = self._open(self._directory)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                self.set_aside = self._put_aside(error)
                self._db = self._open(self._directory)
            self.trouble = ""
        return self._db

    def _open(self, directory: PrivateDirectory) -> sqlite3.Connection:
        os.close(directory.open(FILE, os.O_RDWR | os.O_CREAT))  # SQLite gives its other files the same mode
        db = sqlite3.connect(self.path, timeout=self._patience, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            version = int(db.execute("PRAGMA user_version").fetchone()[0])
            if version not in (0, VERSION):
                raise sqlite3.DatabaseError(f"its version is {version}, this proxy reads version {VERSION}")
            if db.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("its check failed")
            if not version:
                db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version={VERSION};COMMIT;")
            for table in (JOURNAL_TABLE, SUBSCRIBER_TABLE, REGISTRY_TABLE, DRAIN_TABLE):  # older files do not have them
                db.execute(table)
        except sqlite3.DatabaseError:
            db.close()
            raise
        return db

    def _put_aside(self, error: Exception) -> Path:
        number = 1
        while os.path.lexists(aside := self.path.with_name(f"{FILE}.corrupt-{number}")):
            number += 1
        self.path.rename(aside)
        for name in _BESIDE:
            self.path.with_name(name).unlink(missing_ok=True)
        log.error("the state file could not be read (%s); it was set aside as %s, starting without it", error, aside)
        return aside

    def read(self) -> tuple[list[SavedService], list[tuple[Registration, float]]]:
        """Services, the one that was confirmed longest ago first, and registrations with the time of their last beat.

        Times are in seconds since 1970.
        """
        return self._reading(self._read) or ([], [])

    def load(self, service: SavedService) -> Snapshot | None:
        """The snapshot of a service that `read` has found. None if it is unreadable, which counts."""
        with self._counted_if_unreadable():
            return load_snapshot(service.key, service.body)
        return None

    def read_journal(self) -> list[tuple[RegistrationKey, JournalEntry]]:
        """Writes that wait for the upstream, in order."""
        return self._rows_of("journal", "ORDER BY number", load_waiting)

    def read_subscribers(self) -> list[Subscription]:
        """The subscriptions of UDP push at the last write."""
        return self._rows_of("subscriber", f"LIMIT {MAX_SUBSCRIPTIONS}", load_subscriber)

    def read_drains(self, ahead: float) -> list[Drain]:
        """Drains, with the times of the clock that is `ahead` seconds behind the wall clock."""
        return self._rows_of("drain", "", lambda row: load_drain(row, ahead))

    def read_registry(self) -> list[tuple[ServiceKey, PersistentValue]]:
        """The state of the embedded registry that survives a restart."""
        return self._rows_of("registry", "", load_lasting)

    def _reading(self, read: Callable[[sqlite3.Connection], T]) -> T | None:
        if self._db is not None:
            return read(self._db)
        if not self.path.exists():
            return None
        # A read-only file can still be read. If SQLite has no room for its journal: as of the last checkpoint.
        with suppress(sqlite3.OperationalError), closing(self._readable("")) as db:
            return read(db)
        with closing(self._readable("&immutable=1")) as db:
            return read(db)

    def _readable(self, more: str) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{quote(str(self.path))}?mode=ro{more}", timeout=0, uri=True)

    def _read(self, db: sqlite3.Connection) -> tuple[list[SavedService], list[tuple[Registration, float]]]:
        services: list[SavedService] = []
        registrations: list[tuple[Registration, float]] = []
        for namespace, group, name, body, contact in db.execute("SELECT * FROM service ORDER BY contact"):
            with self._counted_if_unreadable():
                services.append(SavedService(ServiceKey(namespace, group, name), body, float(contact)))
        for namespace, group, name, _, _, body, heard in db.execute("SELECT * FROM registration"):
            with self._counted_if_unreadable():
                registrations.append((load_registration(ServiceKey(namespace, group, name), body), float(heard)))
        return services, registrations

    def _rows_of(self, table: str, order: str, load: Callable[[Any], T]) -> list[T]:
        """The rows of a table; none if an older, read-only file lacks it."""

        def read(db: sqlite3.Connection) -> list[T]:
            found: list[T] = []
            if db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
                for row in db.execute(f"SELECT * FROM {table} {order}"):
                    with self._counted_if_unreadable():
                        found.append(load(row))
            return found

        return self._reading(read) or []

    @contextmanager
    def _counted_if_unreadable(self) -> Generator[None, None, None]:
        try:
            yield
        except UNREADABLE:
            self.unreadable += 1

    def write_journal(self, rows: list[tuple[RegistrationKey, JournalEntry | None]]) -> None:
        """Replaces the row of each instance, or deletes it if no write waits."""
        with self._transaction() as cursor:
            self._put(cursor, "INSERT OR REPLACE INTO journal VALUES (?,?,?,?,?,?,?,?)", rows, journal_row)
            cursor.execute("DELETE FROM journal WHERE length(body) = 0")

    def write_registrations(self, rows: list[tuple[RegistrationKey, SavedRegistration | None]]) -> None:
        """Replaces the row of each instance, or deletes it if it is no longer registered."""
        with self._transaction() as cursor:
            known = [saved for _, saved in rows if saved is not None]
            gone = [key for key, saved in rows if saved is None]
            self._put(cursor, "INSERT OR REPLACE INTO registration VALUES (?,?,?,?,?,?,?)", known, registration_row)
            sql = "DELETE FROM registration WHERE namespace=? AND grp=? AND name=? AND ip=? AND port=?"
            self._put(cursor, sql, gone, lambda key: (*key[0], *key[1:]))

    def write_registry(self, rows: list[tuple[ServiceKey, PersistentValue | None]]) -> None:
        """Replaces the row of each service, or deletes it if nothing is left to keep."""
        with self._transaction() as cursor:
            self._put(cursor, "INSERT OR REPLACE INTO registry VALUES (?,?,?,?)", rows, registry_row)
            cursor.execute("DELETE FROM registry WHERE length(body) = 0")

    def write_subscribers(self, rows: list[SubscriberRow]) -> None:
        """Replaces all rows."""
        with self._transaction() as cursor:
            cursor.execute("DELETE FROM subscriber")
            self._put(cursor, "INSERT INTO subscriber VALUES (?,?,?,?,?,?,?,?,?)", rows, tuple)

    def write_drains(self, rows: list[DrainRow]) -> None:
        """Replaces all rows."""
        with self._transaction() as cursor:
            cursor.execute("DELETE FROM drain")
            self._put(cursor, "INSERT INTO drain VALUES (?,?,?,?,?,?)", rows, tuple)

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Cursor, None, None]:
        db = self._opened()
        with closing(db.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
                cursor.execute("COMMIT")
            except sqlite3.Error:
                if db.in_transaction:  # if the disk is full, SQLite has ended the transaction
                    cursor.execute("ROLLBACK")
                raise

    def write(self, batch: Batch) -> None:
        with self._transaction() as cursor:
            self._put(cursor, "INSERT OR REPLACE INTO service VALUES (?,?,?,?,?)", batch.services, service_row)
            sql = "UPDATE service SET contact=? WHERE namespace=? AND grp=? AND name=?"
            self._put(cursor, sql, batch.contacts, lambda row: (row[1], *row[0]))
            if batch.registrations is not None:
                cursor.execute("DELETE FROM registration")
                sql = "INSERT INTO registration VALUES (?,?,?,?,?,?,?)"
                self._put(cursor, sql, batch.registrations, registration_row)
            self._put(cursor, "DELETE FROM service WHERE namespace=? AND grp=? AND name=?", batch.gone, tuple)
            if batch.services:
                cursor.execute(_TRIM, (batch.max_rows,))

    def _put(self, cursor: sqlite3.Cursor, sql: str, rows: list[R], make: Callable[[R], tuple[Any, ...]]) -> None:
        """Writes the rows one by one, to leave out only unwritable rows."""
        for row in rows:
            try:
                cursor.execute(sql, make(row))
            except UNWRITABLE as error:
                self.unwritable += 1
                if self.unwritable == 1:
                    log.error("a row cannot be written and is left out of the state file: %s: %.300r", error, row[0])

    def close(self) -> None:
        """Checkpoints and syncs the file, then releases the directory."""
        try:
            if self._db is not None:
                with closing(self._db):
                    self._db.execute("PRAGMA synchronous=FULL")
                    self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            if self._lock is not None:
                os.close(self._lock)
            if self._directory is not None:
                self._directory.close()


@dataclass(frozen=True, slots=True)
class Batch:
    """Immutable values that the writing thread makes rows of, for one transaction.

    `services` and `contacts` come with the time of the last confirmation (since 1970; 0: never). `registrations` is
    None if they have not changed.
    """

    services: list[tuple[ServiceKey, Snapshot, float]]
    contacts: list[tuple[ServiceKey, float]]
    registrations: list[SavedRegistration] | None
    gone: list[ServiceKey]
    max_rows: int

    @property
    def empty(self) -> bool:
        return not (self.services or self.contacts or self.gone) and self.registrations is None
