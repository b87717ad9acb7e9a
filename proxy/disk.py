"""The last known state, written behind and read at a cold start. Not for: deciding what is fresh (the cache does).

SQLite in WAL mode (docs/decisions): a kill at any moment leaves the last finished batch whole, a batch costs one
write however many services changed, and the standard library brings it. One thread of its own touches the file, so
that a slow disk never delays a reader. Rules of this file: a failure to write is a degraded state, never an error of
a request; a file that cannot be read is set aside and said so; nothing secret is written; modes are 0600 and 0700.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import math
import os
import sqlite3
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from proxy.agent import Agent
from proxy.catalog.ledger import Registration
from proxy.model import EMPTY, Change, Instance, ServiceKey, Snapshot
from proxy.runtime import Clock, spawn, stop

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


class StateLocked(Exception):
    """Another process holds the state directory."""


@dataclass(frozen=True, slots=True)
class DiskPolicy:
    """Seconds between batches and between updates of the contact times; services beyond `most` are not written."""

    every: float = 1.0
    contacts_every: float = 30.0
    most: int = 20_000
    keep_for: float = 7 * 86_400.0


def dump_instance(i: Instance) -> dict[str, Any]:
    """An instance as JSON of our own, short and complete."""
    return {
        "ip": i.ip,
        "port": i.port,
        "cluster": i.cluster,
        "weight": i.weight,
        "healthy": i.healthy,
        "enabled": i.enabled,
        "ephemeral": i.ephemeral,
        "metadata": dict(i.metadata),
        "instance_id": i.instance_id,
        "extra": dict(i.extra),
    }


def load_instance(row: Mapping[str, Any]) -> Instance:
    fields: dict[str, Any] = {**row, "metadata": row["metadata"] or EMPTY, "extra": row["extra"] or EMPTY}
    return Instance(**fields)


def dump_snapshot(snapshot: Snapshot) -> bytes:
    fields = {
        "threshold": snapshot.threshold,
        "masking": snapshot.masking,
        "cache_millis": snapshot.cache_millis,
        "extra": dict(snapshot.extra),
        "last_ref_time": snapshot.last_ref_time,
    }
    return orjson.dumps({"instances": [dump_instance(i) for i in snapshot.instances], **fields})


def load_snapshot(key: ServiceKey, body: bytes) -> Snapshot:
    row: dict[str, Any] = orjson.loads(body)
    return Snapshot.of(key, [load_instance(i) for i in row.pop("instances")], **row)


class StateFile:
    """The file, as blocking calls. Used by one thread."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = directory / FILE
        self.set_aside: Path | None = None
        self._lock = _lock(directory)
        try:
            self._db = self._open()
        except sqlite3.DatabaseError as error:
            self.set_aside = self._put_aside(error)
            self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            version = int(db.execute("PRAGMA user_version").fetchone()[0])
            if version not in (0, VERSION):
                raise sqlite3.DatabaseError(f"it is of version {version}, this proxy reads {VERSION}")
            if db.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("its check failed")
            db.executescript(_SCHEMA)
            db.execute(f"PRAGMA user_version={VERSION}")
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
        services: list[tuple[Snapshot, float]] = []
        for namespace, group, name, body, contact in self._db.execute("SELECT * FROM service"):
            services.append((load_snapshot(ServiceKey(namespace, group, name), body), contact))
        registrations: list[tuple[Registration, float]] = []
        for namespace, group, name, _, _, body, heard in self._db.execute("SELECT * FROM registration"):
            row: dict[str, Any] = orjson.loads(body)
            key = ServiceKey(namespace, group, name)
            known = Registration(key, load_instance(row["instance"]), 0.0, row["beaten"], row["managed"])
            registrations.append((known, heard))
        return services, registrations

    def write(self, batch: Batch) -> None:
        with closing(self._db.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            try:
                cursor.executemany("INSERT OR REPLACE INTO service VALUES (?,?,?,?,?)", batch.services)
                cursor.executemany(
                    "UPDATE service SET contact=? WHERE namespace=? AND grp=? AND name=?", batch.contacts
                )
                if batch.registrations is not None:
                    cursor.execute("DELETE FROM registration")
                    cursor.executemany("INSERT INTO registration VALUES (?,?,?,?,?,?,?)", batch.registrations)
                cursor.execute("DELETE FROM service WHERE contact < ?", (batch.forget_before,))
                cursor.execute("COMMIT")
            except sqlite3.Error:
                cursor.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Checkpoints and syncs the file, then lets go of the directory."""
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()
        os.close(self._lock)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to write at once; `registrations` None means that they are as they were."""

    services: list[tuple[str, str, str, bytes, float]]
    contacts: list[tuple[float, str, str, str]]
    registrations: list[tuple[str, str, str, str, int, bytes, float]] | None
    forget_before: float

    @property
    def empty(self) -> bool:
        return not self.services and not self.contacts and self.registrations is None


def _lock(directory: Path) -> int:
    path = directory / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        text = f"the state directory {directory} is in use by another nacos-proxy (process {holder})"
        raise StateLocked(f"{text}; give this one its own --state-dir") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


class Disk:
    """Follows an agent's changes and writes them behind. `restore`, then `start`, at the end `close`."""

    def __init__(self, file: StateFile, agent: Agent, clock: Clock, policy: DiskPolicy) -> None:
        self.failing = ""
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

    def mark(self, change: Change) -> None:
        """A follower of the agent: the service is to be written with the next batch."""
        if len(self._dirty) < self._policy.most:
            self._dirty.add(change.key)

    def mark_registrations(self) -> None:
        self._registrations_dirty = True

    def restore(self) -> int:
        """Fill the catalog with what the file knows; the number of services. Nothing fetched since is replaced."""
        try:
            services, registrations = self._file.read()
        except (sqlite3.Error, orjson.JSONDecodeError, KeyError, TypeError) as error:
            log.error("the state file could not be read: %s; starting without it", error)
            return 0
        now, wall = self._clock.now(), self._clock.wall()
        catalog = self._agent.catalog
        for snapshot, contact in services:
            catalog.cache.restore(snapshot, max(0.0, wall - contact), now)
        for registration, heard in registrations:
            registration.heard = now if registration.managed else now - max(0.0, wall - heard)
            if registration.alive(now):
                catalog.ledger.restore(registration)
                catalog.cache.own(registration.service, catalog.ledger.count(registration.service), now)
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
        batch, keys = self._batch(), self._dirty
        if batch.empty:
            return
        self._dirty = set()
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._file.write, batch)
        except (sqlite3.Error, OSError) as error:
            self._dirty |= keys
            self._registrations_dirty |= batch.registrations is not None
            if not self.failing:
                log.error("the state cannot be written: %s; serving goes on without", error)
            self.failing = str(error) or type(error).__name__
            return
        self.written += 1
        if self.failing:
            log.warning("the state is written again")
            self.failing = ""

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
        return Batch(rows, contacts, registrations, wall - self._policy.keep_for)

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
