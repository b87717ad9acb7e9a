"""The last known state, written behind and read at a cold start. Not for: deciding what is fresh (the cache does).

SQLite in WAL mode (docs/decisions): a kill at any moment leaves the last finished batch whole, a batch costs one
write however many services changed, and the standard library brings it. One thread of its own touches the file, so
that a slow disk never delays a reader. Rules of this file: a failure to write is a degraded state, never an error of
a request; a damaged file is set aside and said so, a sound one that cannot be opened now (disk full, locked by another
program) never; a row that cannot be understood costs that row alone; nothing secret is written; modes are 0600, 0700.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sqlite3
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import orjson

from proxy.agent import Agent
from proxy.catalog.journal import Waiting
from proxy.catalog.ledger import Place, Registration
from proxy.lock import OF_THE_DISK, StateLocked, lock
from proxy.model import Change, ServiceKey, Snapshot
from proxy.rows import (
    JOURNAL_TABLE,
    UNREADABLE,
    JournalRow,
    dump_instance,
    dump_snapshot,
    journal_rows,
    load_registration,
    load_snapshot,
    load_waiting,
)  # fmt: skip
from proxy.runtime import Clock, spawn, stop

T = TypeVar("T")

log = logging.getLogger("nacos_proxy.disk")

VERSION = 1
FILE = "state.sqlite3"

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


@dataclass(frozen=True, slots=True)
class DiskPolicy:
    """Seconds. At most `most` services are kept, each for `keep_for` after its last confirmation."""

    every: float = 1.0
    contacts_every: float = 30.0
    most: int = 20_000
    keep_for: float = 7 * 86_400.0


class StateFile:
    """The file, as blocking calls. Used by one thread. `trouble` says why it cannot be opened now, '' if it is open.

    `patience`: seconds to wait for another program that holds the file. Raises `StateLocked`, and `OSError` for a
    directory that is a mistake; a disk that is full or read-only is trouble.
    """

    def __init__(self, directory: Path, *, patience: float = 5.0) -> None:
        self.path = directory / FILE
        self.set_aside: Path | None = None
        self.trouble = ""
        self.unreadable = 0
        self._patience = patience
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
        if self._lock is None:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = lock(self.path.parent)
        if self._db is None:
            try:
                self._db = self._open()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                self.set_aside = self._put_aside(error)
                self._db = self._open()
            self.trouble = ""
        return self._db

    def _open(self) -> sqlite3.Connection:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        os.fchmod(descriptor, 0o600)
        os.close(descriptor)
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
            db.execute(JOURNAL_TABLE)  # files of before have none
        except sqlite3.DatabaseError:
            db.close()
            raise
        return db

    def _put_aside(self, error: Exception) -> Path:
        number = 1
        while (aside := self.path.with_name(f"{FILE}.corrupt-{number}")).exists():
            number += 1
        self.path.rename(aside)
        for suffix in ("-wal", "-shm"):
            self.path.with_name(FILE + suffix).unlink(missing_ok=True)
        log.error("the state file could not be read (%s); it was set aside as %s, starting without it", error, aside)
        return aside

    def read(self) -> tuple[list[tuple[Snapshot, float]], list[tuple[Registration, float]]]:
        """Snapshots with the wall time of their last confirmation, registrations with that of their last beat."""
        return self._reading(self._read) or ([], [])

    def read_journal(self) -> list[tuple[Place, Waiting]]:
        """Writes that the upstream has not heard of, in order."""
        return self._reading(self._read_journal) or []

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

    def _read_journal(self, db: sqlite3.Connection) -> list[tuple[Place, Waiting]]:
        waiting: list[tuple[Place, Waiting]] = []
        with suppress(sqlite3.OperationalError):  # a file of before that cannot be written
            for row in db.execute("SELECT * FROM journal ORDER BY number"):
                with self._row():
                    waiting.append(load_waiting(row))
        return waiting

    @contextmanager
    def _row(self) -> Generator[None, None, None]:
        try:
            yield
        except UNREADABLE:
            self.unreadable += 1

    def write_journal(self, rows: list[JournalRow]) -> None:
        """Each in place of the one of its place; one without a body goes."""
        with self._transaction() as cursor:
            cursor.executemany("INSERT OR REPLACE INTO journal VALUES (?,?,?,?,?,?,?,?)", rows)
            cursor.execute("DELETE FROM journal WHERE length(body) = 0")

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
            cursor.executemany("INSERT OR REPLACE INTO service VALUES (?,?,?,?,?)", batch.services)
            cursor.executemany("UPDATE service SET contact=? WHERE namespace=? AND grp=? AND name=?", batch.contacts)
            if batch.registrations is not None:
                cursor.execute("DELETE FROM registration")
                cursor.executemany("INSERT INTO registration VALUES (?,?,?,?,?,?,?)", batch.registrations)
            cursor.execute("DELETE FROM service WHERE contact < ?", (batch.forget_before,))
            if batch.contacts:
                cursor.execute(_TRIM, (batch.most,))

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


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to write at once; `registrations` None means that they are as they were."""

    services: list[tuple[str, str, str, bytes, float]]
    contacts: list[tuple[float, str, str, str]]
    registrations: list[tuple[str, str, str, str, int, bytes, float]] | None
    forget_before: float
    most: int

    @property
    def empty(self) -> bool:
        return not self.services and not self.contacts and self.registrations is None


class Disk:
    """Follows an agent's changes and writes them behind. `restore`, then `start`, at the end `close`."""

    def __init__(self, file: StateFile, agent: Agent, clock: Clock, policy: DiskPolicy) -> None:
        self.failing = file.trouble
        self.written = 0
        self._file = file
        self._agent = agent
        self._clock = clock
        self._policy = policy
        self._dirty: set[ServiceKey] = set()
        self._registrations_dirty = False
        self._contacts_at = -math.inf
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state-file")
        self._task: asyncio.Task[None] | None = None
        agent.on_registration.append(self.mark_registrations)
        agent.outage.kept = self.keep

    def mark(self, change: Change) -> None:
        """A follower of the agent: the service is to be written with the next batch."""
        if len(self._dirty) < self._policy.most:
            self._dirty.add(change.key)

    def mark_registrations(self) -> None:
        self._registrations_dirty = True

    def restore(self) -> int:
        """Fill the catalog with what the file knows; the number of services. Nothing fetched since is replaced."""
        try:
            (services, registrations), journal = self._file.read(), self._file.read_journal()
        except sqlite3.Error as error:
            log.error("the state file could not be read: %s; starting without it", error)
            return 0
        if self.failing:
            log.error("the state cannot be written: %s; serving goes on without", self.failing)
        if self._file.unreadable:
            log.error("%d rows of the state file could not be understood and were left out", self._file.unreadable)
        now, wall = self._clock.now(), self._clock.wall()
        catalog = self._agent.catalog
        for snapshot, contact in services:
            catalog.cache.restore(snapshot, max(0.0, wall - contact), now)
        # Beats are written down so seldom that the last ones before a kill are not in the file.
        unwritten = self._policy.contacts_every + self._policy.every
        for registration, heard in registrations:
            age = max(0.0, wall - heard - (unwritten if registration.beaten else 0.0))
            registration.heard = now if registration.managed else now - age
            if registration.alive(now):
                catalog.ledger.restore(registration)
                catalog.cache.own(registration.service, catalog.ledger.count(registration.service), now)
        for place, waiting in journal:
            self._agent.outage.restore(place, waiting)
        if services:
            log.info("%d services, %d registrations read from %s", len(services), len(registrations), self._file.path)
        return len(services)

    def start(self) -> None:
        self._task = spawn(self._run(), name="disk")

    async def _run(self) -> None:
        while True:
            await self._clock.sleep_until(self._clock.now() + self._policy.every)
            await self.flush()

    async def flush(self) -> None:
        """Write what is due; a failure is kept in `failing` and tried again with the next batch."""
        if self._agent.outage.journal.changed:
            await self.keep()
        batch, keys = self._batch(), self._dirty
        if batch.empty and not self.failing:
            return
        self._dirty = set()
        await self._write(self._file.write, batch, lambda: self._keep(batch, keys))

    async def keep(self) -> None:
        """The journal of the agent's outage is on disk when this returns, as far as it can be."""
        journal = self._agent.outage.journal
        places, journal.changed = journal.changed, set()
        rows = list(journal_rows(journal, places))
        await self._write(self._file.write_journal, rows, lambda: journal.changed.update(places))

    async def _write(self, write: Callable[[T], None], what: T, again: Callable[[], None]) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, write, what)
        except asyncio.CancelledError:  # it may not have begun: `close` writes it again
            again()
            raise
        except (sqlite3.Error, OSError, StateLocked) as error:
            again()
            if not self.failing:
                log.error("the state cannot be written: %s; serving goes on without", error)
            self.failing = str(error) or type(error).__name__
            return
        self.written += 1
        if self.failing:
            log.warning("the state is written again")
            self.failing = ""

    def _keep(self, batch: Batch, keys: set[ServiceKey]) -> None:
        self._dirty |= keys
        self._registrations_dirty |= batch.registrations is not None

    def _batch(self) -> Batch:
        now, wall = self._clock.now(), self._clock.wall()
        rows: list[tuple[str, str, str, bytes, float]] = []
        for key in self._dirty:
            entry = self._agent.catalog.cache.get(key)
            if entry is not None and entry.shown is not None:
                contact = wall - (now - entry.contact) if entry.contact > -math.inf else 0.0
                rows.append((key.namespace, key.group, key.name, dump_snapshot(entry.shown), contact))
        contacts: list[tuple[float, str, str, str]] = []
        registrations = None
        if now - self._contacts_at >= self._policy.contacts_every:
            self._contacts_at = now
            contacts = list(self._contacts(now, wall))
            self._registrations_dirty |= len(self._agent.catalog.ledger) > 0
        if self._registrations_dirty:
            self._registrations_dirty = False
            registrations = [self._registration(r, now, wall) for r in self._agent.catalog.ledger]
        return Batch(rows, contacts, registrations, wall - self._policy.keep_for, self._policy.most)

    def _contacts(self, now: float, wall: float) -> Iterable[tuple[float, str, str, str]]:
        for entry in self._agent.catalog.cache.entries():
            if entry.contact > now - 2 * self._policy.contacts_every and not entry.from_disk:
                yield (wall - (now - entry.contact), entry.key.namespace, entry.key.group, entry.key.name)

    @staticmethod
    def _registration(r: Registration, now: float, wall: float) -> tuple[str, str, str, str, int, bytes, float]:
        body = orjson.dumps({"instance": dump_instance(r.instance), "beaten": r.beaten, "managed": r.managed})
        key, i = r.service, r.instance
        return (key.namespace, key.group, key.name, i.ip, i.port, body, wall - (now - r.heard))

    async def close(self) -> None:
        """Write the rest, sync, let go of the directory."""
        await stop(self._task)
        self._contacts_at = -math.inf
        await self.flush()
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._file.close)
        except sqlite3.Error as error:
            log.error("the state file was not closed cleanly: %s", error)
        self._thread.shutdown()
