"""The state file: SQLite in WAL mode (docs/decisions), as blocking calls. Not for: what is written when (`disk`).

A kill at any moment leaves the last finished batch whole, a batch costs one write however many services changed, and
the standard library brings it. Rules of this file: a damaged file is set aside and said so, a sound one that cannot be
opened now (disk full, locked by another program) never; a row that cannot be understood costs that row alone; nothing
secret is written; modes are 0600, 0700, and nobody else's file or link is touched (`home`).
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from nacos_proxy.background.state_lock import OF_THE_DISK, lock
from nacos_proxy.background.state_rows import (
    JOURNAL_TABLE,
    REGISTRY_TABLE,
    SUBSCRIBER_TABLE,
    UNREADABLE,
    UNWRITABLE,
    Heard,
    SubscriberRow,
    journal_row,
    load_lasting,
    load_registration,
    load_snapshot,
    load_subscriber,
    load_waiting,
    registration_row,
    registry_row,
    service_row,
)
from nacos_proxy.catalog.journal import Waiting
from nacos_proxy.catalog.registrations import Registration, RegistrationKey
from nacos_proxy.catalog.udp_subscribers import MOST, Subscription
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.private_directory import Home
from nacos_proxy.upstream.embedded.persistence import PersistentValue

T = TypeVar("T")
R = TypeVar("R", bound="tuple[Any, ...]")

log = logging.getLogger("nacos_proxy.disk")

VERSION = 1
FILE = "state.sqlite3"
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

# The longest unheard of go first where there are more services than the policy allows.
_TRIM = """
DELETE FROM service WHERE (namespace, grp, name) IN
    (SELECT namespace, grp, name FROM service ORDER BY contact DESC LIMIT -1 OFFSET ?)
"""


class StateFile:
    """The file, as blocking calls. Used by one thread. `trouble` says why it cannot be opened now, '' if it is open.

    `patience`: seconds to wait for another program that holds the file. Raises `StateLocked`, and `OSError` for a
    directory that is a mistake; a disk that is full or read-only is trouble.
    """

    def __init__(self, directory: Path, *, patience: float = 5.0) -> None:
        self.path: Path = directory / FILE
        self.set_aside: Path | None = None
        self.trouble = ""
        self.unreadable = 0
        self.unwritable = 0
        self._patience = patience
        self._home: Home | None = None
        self._lock: int | None = None
        self._db: sqlite3.Connection | None = None
        try:
            self._opened()
        except sqlite3.OperationalError as error:
            self.trouble = str(error)
        except OSError as error:
            if error.errno not in OF_THE_DISK:
                raise
            self.trouble = f"{error.strerror}: {directory}"

    def _opened(self) -> sqlite3.Connection:
        """The connection, made where there is none. An `OperationalError` is the disk's fault, not the file's."""
        if self._home is None:
            self._home = Home(self.path.parent)
            self.path = self._home.path / FILE
        self._home.own(*_FILES)
        if self._lock is None:
            self._lock = lock(self._home)
        if self._db is None:
            try:
                self._db = self._open(self._home)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                self.set_aside = self._put_aside(error)
                self._db = self._open(self._home)
            self.trouble = ""
        return self._db

    def _open(self, home: Home) -> sqlite3.Connection:
        os.close(home.open(FILE, os.O_RDWR | os.O_CREAT))  # SQLite gives the files beside it the same mode
        db = sqlite3.connect(self.path, self._patience, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            version = int(db.execute("PRAGMA user_version").fetchone()[0])
            if version not in (0, VERSION):
                raise sqlite3.DatabaseError(f"it is of version {version}, this proxy reads {VERSION}")
            if db.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("its check failed")
            if not version:
                db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version={VERSION};COMMIT;")
            for table in (JOURNAL_TABLE, SUBSCRIBER_TABLE, REGISTRY_TABLE):  # files of before have none
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

    def read(self) -> tuple[list[tuple[Snapshot, float]], list[tuple[Registration, float]]]:
        """Snapshots with the wall time of their last confirmation, registrations with that of their last beat."""
        return self._reading(self._read) or ([], [])

    def read_journal(self) -> list[tuple[RegistrationKey, Waiting]]:
        """Writes that the upstream has not heard of, in order."""
        return self._reading(self._read_journal) or []

    def read_subscribers(self) -> list[Subscription]:
        """Who wanted UDP pushes when that was last written."""
        return self._reading(self._read_subscribers) or []

    def read_registry(self) -> list[tuple[ServiceKey, PersistentValue]]:
        """What lasts of the embedded registry."""
        return self._reading(lambda db: self._rows_of(db, "registry", "", load_lasting)) or []

    def _reading(self, read: Callable[[sqlite3.Connection], T]) -> T | None:
        if self._db is not None:
            return read(self._db)
        if not self.path.exists():
            return None
        # What cannot be written can still be read, without room for its journal as the last checkpoint left it.
        with suppress(sqlite3.OperationalError), closing(self._readable("")) as db:
            return read(db)
        with closing(self._readable("&immutable=1")) as db:
            return read(db)

    def _readable(self, more: str) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{quote(str(self.path))}?mode=ro{more}", 0, uri=True)

    def _read(self, db: sqlite3.Connection) -> tuple[list[tuple[Snapshot, float]], list[tuple[Registration, float]]]:
        services: list[tuple[Snapshot, float]] = []
        registrations: list[tuple[Registration, float]] = []
        for namespace, group, name, body, contact in db.execute("SELECT * FROM service ORDER BY contact"):
            with self._row():
                services.append((load_snapshot(ServiceKey(namespace, group, name), body), float(contact)))
        for namespace, group, name, _, _, body, heard in db.execute("SELECT * FROM registration"):
            with self._row():
                registrations.append((load_registration(ServiceKey(namespace, group, name), body), float(heard)))
        return services, registrations

    def _read_journal(self, db: sqlite3.Connection) -> list[tuple[RegistrationKey, Waiting]]:
        return self._rows_of(db, "journal", "ORDER BY number", load_waiting)

    def _read_subscribers(self, db: sqlite3.Connection) -> list[Subscription]:
        return self._rows_of(db, "subscriber", f"LIMIT {MOST}", load_subscriber)

    def _rows_of(self, db: sqlite3.Connection, table: str, order: str, load: Callable[[Any], T]) -> list[T]:
        """Of a table that a file of before has not, and cannot get where it cannot be written."""
        found: list[T] = []
        if db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
            for row in db.execute(f"SELECT * FROM {table} {order}"):
                with self._row():
                    found.append(load(row))
        return found

    @contextmanager
    def _row(self) -> Generator[None, None, None]:
        try:
            yield
        except UNREADABLE:
            self.unreadable += 1

    def write_journal(self, rows: list[tuple[RegistrationKey, Waiting | None]]) -> None:
        """Each in place of the one of its place; where nothing waits any more, that one goes."""
        with self._transaction() as cursor:
            self._put(cursor, "INSERT OR REPLACE INTO journal VALUES (?,?,?,?,?,?,?,?)", rows, journal_row)
            cursor.execute("DELETE FROM journal WHERE length(body) = 0")

    def write_registry(self, rows: list[tuple[ServiceKey, PersistentValue | None]]) -> None:
        """Each in place of the one before; one of which nothing lasts goes."""
        with self._transaction() as cursor:
            self._put(cursor, "INSERT OR REPLACE INTO registry VALUES (?,?,?,?)", rows, registry_row)
            cursor.execute("DELETE FROM registry WHERE length(body) = 0")

    def write_subscribers(self, rows: list[SubscriberRow]) -> None:
        """All that there are."""
        with self._transaction() as cursor:
            cursor.execute("DELETE FROM subscriber")
            self._put(cursor, "INSERT INTO subscriber VALUES (?,?,?,?,?,?,?,?,?)", rows, tuple)

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Cursor, None, None]:
        db = self._opened()
        with closing(db.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
                cursor.execute("COMMIT")
            except sqlite3.Error:
                if db.in_transaction:  # SQLite has ended it by itself after a full disk
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
                cursor.execute(_TRIM, (batch.most,))

    def _put(self, cursor: sqlite3.Cursor, sql: str, rows: list[R], make: Callable[[R], tuple[Any, ...]]) -> None:
        """One by one: a row that cannot be written is left out, and the others are not."""
        for row in rows:
            try:
                cursor.execute(sql, make(row))
            except UNWRITABLE as error:
                self.unwritable += 1
                if self.unwritable == 1:
                    log.error("what cannot be written is left out of the state file: %s: %.300r", error, row[0])

    def close(self) -> None:
        """Checkpoints and syncs the file, then lets go of the directory."""
        try:
            if self._db is not None:
                with closing(self._db):
                    self._db.execute("PRAGMA synchronous=FULL")
                    self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            if self._lock is not None:
                os.close(self._lock)
            if self._home is not None:
                self._home.close()


@dataclass(frozen=True, slots=True)
class Batch:
    """What to write at once, made into rows by the thread that writes. All of it is immutable.

    `services` and `contacts` have the moment of the last confirmation (since 1970; 0: never); `registrations` None
    means that they are as they were.
    """

    services: list[tuple[ServiceKey, Snapshot, float]]
    contacts: list[tuple[ServiceKey, float]]
    registrations: list[Heard] | None
    gone: list[ServiceKey]
    most: int

    @property
    def empty(self) -> bool:
        return not (self.services or self.contacts or self.gone) and self.registrations is None
