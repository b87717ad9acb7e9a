"""The last known state, written behind and read at a cold start. Not for: deciding what is fresh (the cache does).

One thread of its own touches the file, so that a slow disk never delays a reader. A failure to write is a degraded
state, never an error of a request. What is known is on disk: a service gets its row when the upstream has confirmed it,
changed or not, and loses it when it leaves memory; no clock decides.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import orjson

from proxy.agent import Agent
from proxy.catalog.ledger import Registration
from proxy.catalog.pushes import Pushes, Subscription
from proxy.catalog.shelf import Entry
from proxy.lock import StateLocked
from proxy.model import Change, ServiceKey
from proxy.rows import dump_instance, dump_snapshot, journal_rows, subscriber_row
from proxy.runtime import Clock, stop
from proxy.statefile import Batch, StateFile

T = TypeVar("T")

log = logging.getLogger("nacos_proxy.disk")


@dataclass(frozen=True, slots=True)
class DiskPolicy:
    """Seconds; after a `restart` that takes longer no subscription counts as alive.

    At most `most` services are kept, each until it leaves memory: no clock drops what is still known.
    """

    every: float = 1.0
    contacts_every: float = 30.0
    restart: float = 120.0
    most: int = 20_000


class Disk:
    """Follows an agent's changes and writes them behind. `restore`, then `start`, at the end `close`."""

    def __init__(self, file: StateFile, agent: Agent, clock: Clock, policy: DiskPolicy) -> None:
        self.failing = file.trouble
        self.written = 0
        self.pushes: Pushes | None = None  # whose subscriptions are kept, too
        self._subscribers = (0, -math.inf)  # the changes that are written, and when
        self._file = file
        self._agent = agent
        self._clock = clock
        self._policy = policy
        self._dirty: set[ServiceKey] = set()
        self._rows: dict[ServiceKey, float] = {}  # what has a row, and when it was confirmed as that row says
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
            self._rows[snapshot.key] = -math.inf
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

    def subscribers(self) -> list[Subscription]:
        """Who wanted UDP pushes shortly before: they list again within 10 s, and changes come before that."""
        since = self._clock.wall() - self._policy.contacts_every - self._policy.restart
        try:
            return [s for s in self._file.read_subscribers() if s.seen >= since]
        except sqlite3.Error as error:
            log.error("the subscribers of UDP push could not be read: %s", error)
            return []

    def start(self) -> None:
        self._task = self._agent.supervisor.keep(self._run, name="disk")

    async def _run(self) -> None:
        while True:
            await self._clock.sleep_until(self._clock.now() + self._policy.every)
            await self.flush()

    async def flush(self) -> None:
        """Write what is due; a failure is kept in `failing` and tried again with the next batch."""
        if self._agent.outage.journal.changed:
            await self.keep()
        if self.pushes is not None:
            await self._keep_subscribers(self.pushes)
        batch, keys = self._batch(), self._dirty
        if batch.empty and not self.failing:
            return
        self._dirty = set()
        now = self._clock.now()
        if await self._write(self._file.write, batch, lambda: self._keep(batch, keys)):
            self._rows.update((ServiceKey(*row[:3]), now) for row in batch.services)
            self._rows.update((ServiceKey(*row[1:]), now) for row in batch.contacts)
            beyond = sorted(self._rows, key=self._rows.__getitem__)[: max(0, len(self._rows) - self._policy.most)]
            for key in (*batch.gone, *beyond):
                self._rows.pop(key, None)

    async def keep(self) -> None:
        """The journal of the agent's outage is on disk when this returns, as far as it can be."""
        journal = self._agent.outage.journal
        places, journal.changed = journal.changed, set()
        rows = list(journal_rows(journal, places))
        await self._write(self._file.write_journal, rows, lambda: journal.changed.update(places))

    async def _keep_subscribers(self, pushes: Pushes) -> None:
        now, before = self._clock.now(), self._subscribers
        aged = len(pushes) and now - before[1] >= self._policy.contacts_every
        if pushes.changes == before[0] and not aged:
            return
        self._subscribers = (pushes.changes, now)

        def again() -> None:
            self._subscribers = before

        rows = [subscriber_row(s, self._clock.wall() - now) for s in pushes]
        await self._write(self._file.write_subscribers, rows, again)

    async def _write(self, write: Callable[[T], None], what: T, again: Callable[[], None]) -> bool:
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
            return False
        self.written += 1
        if self.failing:
            log.warning("the state is written again")
            self.failing = ""
        return True

    def _keep(self, batch: Batch, keys: set[ServiceKey]) -> None:
        self._dirty |= keys
        if batch.contacts or batch.gone:
            self._contacts_at = -math.inf
        self._registrations_dirty |= batch.registrations is not None

    def _batch(self) -> Batch:
        now, wall, cache = self._clock.now(), self._clock.wall(), self._agent.catalog.cache
        contacts: list[tuple[float, str, str, str]] = []
        registrations, gone = None, list[ServiceKey]()
        dirty = self._dirty
        if now - self._contacts_at >= self._policy.contacts_every:
            self._contacts_at = now
            known = {entry.key: entry for entry in cache.entries() if entry.shown is not None}
            moved = [e for e in known.values() if not e.from_disk and e.contact > self._rows.get(e.key, -math.inf)]
            contacts = [(_wall(e, now, wall), *_place(e.key)) for e in moved if e.key in self._rows]
            dirty = dirty | {e.key for e in moved if e.key not in self._rows}
            gone = [key for key in self._rows if key not in known]
            self._registrations_dirty |= len(self._agent.catalog.ledger) > 0
        if self._registrations_dirty:
            self._registrations_dirty = False
            registrations = [self._registration(r, now, wall) for r in self._agent.catalog.ledger]
        written = [e for e in map(cache.get, dirty) if e is not None]
        rows = [(*_place(e.key), dump_snapshot(e.shown), _wall(e, now, wall)) for e in written if e.shown is not None]
        return Batch(rows, contacts, registrations, gone, self._policy.most)

    @staticmethod
    def _registration(r: Registration, now: float, wall: float) -> tuple[str, str, str, str, int, bytes, float]:
        body = orjson.dumps({"instance": dump_instance(r.instance), "beaten": r.beaten, "managed": r.managed})
        key, i = r.service, r.instance
        return (key.namespace, key.group, key.name, i.ip, i.port, body, wall - (now - r.heard))

    async def close(self) -> None:
        """Write the rest, sync, let go of the directory."""
        await stop(self._task)
        self._contacts_at = -math.inf
        self._subscribers = (self._subscribers[0], -math.inf)
        await self.flush()
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._file.close)
        except sqlite3.Error as error:
            log.error("the state file was not closed cleanly: %s", error)
        self._thread.shutdown()


def _place(key: ServiceKey) -> tuple[str, str, str]:
    return (key.namespace, key.group, key.name)


def _wall(entry: Entry, now: float, wall: float) -> float:
    """When a service was confirmed, since 1970; 0 where it never was."""
    return wall - (now - entry.contact) if entry.contact > -math.inf else 0.0
