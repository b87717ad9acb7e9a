"""The last known state, written behind and read at a cold start. Not for: deciding what is fresh (the cache does).

One thread of its own makes the rows and touches the file: neither a slow disk nor a state of 10,000 services delays a
reader. A failure to write is a degraded state, never an error of a request. What is known is on disk: a service gets
its row when the upstream has confirmed it, changed or not, and loses it when it leaves memory; no clock decides.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nacos_proxy.background.state_file import Batch, StateFile
from nacos_proxy.background.state_lock import StateLocked
from nacos_proxy.background.state_rows import Heard, subscriber_row
from nacos_proxy.catalog.entries import Entry
from nacos_proxy.catalog.udp_subscribers import Pushes, Subscription
from nacos_proxy.core.agent import Agent
from nacos_proxy.model.services import Change, ServiceKey, Snapshot
from nacos_proxy.runtime import (
    Clock,
    at_most,
    spawn,
    stop,
)
from nacos_proxy.upstream.embedded.persistence import Keeping
from nacos_proxy.upstream.embedded.registry import EmbeddedRegistry

T = TypeVar("T")

log = logging.getLogger("nacos_proxy.disk")


@dataclass(frozen=True, slots=True)
class DiskPolicy:
    """Seconds; after a `restart` that takes longer no subscription counts as alive.

    A disk that fails is tried again after `every`, then ever later, up to `longest`; one that has kept a write waiting
    for `patience` counts as failing. At most `most` services are kept, each until it leaves memory: no clock drops what
    is still known. A batch has at most `at_once` of them: to collect them holds the loop for some milliseconds.
    """

    every: float = 1.0
    max_delay: float = 60.0
    patience: float = 1.0
    contacts_every: float = 30.0
    restart: float = 120.0
    max_rows: int = 20_000
    at_once: int = 2_000


class Disk:
    """Follows an agent's changes and writes them behind. `restore`, then `start`, at the end `close`."""

    def __init__(
        self, file: StateFile, agent: Agent, clock: Clock, policy: DiskPolicy, pushes: Pushes | None = None
    ) -> None:
        self.failing = file.trouble
        self.written = 0
        self.pushes = pushes  # whose subscriptions are kept, too
        self._registry: EmbeddedRegistry | None = None
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

    def follow(self, registry: EmbeddedRegistry) -> None:
        """What lasts of it is written before a write is answered, and read by `restore`."""
        self._registry = registry
        registry.keeping.write = self.keep_registry

    @property
    def directory(self) -> Path:
        """Where the state is: below the directory of the settings where anybody could write to that."""
        return self._file.path.parent

    @property
    def unwritable(self) -> int:
        """How often a row was left out because it cannot be written."""
        return self._file.unwritable

    def mark(self, change: Change) -> None:
        """A follower of the agent: the service is to be written with the next batch."""
        if len(self._dirty) < self._policy.max_rows:
            self._dirty.add(change.key)

    def mark_registrations(self) -> None:
        self._registrations_dirty = True

    def restore(self) -> int:
        """Fill the catalog with what the file knows; the number of services. Nothing fetched since is replaced."""
        try:
            (services, registrations), journal = self._file.read(), self._file.read_journal()
            if self._registry is not None:
                self._registry.restore(self._file.read_registry())
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
                catalog.registrations.restore(registration)
                catalog.cache.set_local_registrations(
                    registration.service, catalog.registrations.count(registration.service), now
                )
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
        pause = self._policy.every
        while True:
            await self._clock.sleep_until(self._clock.now() + pause)
            await self.flush()
            pause = min(2 * pause, self._policy.max_delay) if self.failing else self._policy.every

    async def flush(self) -> None:
        """Write what is due; a failure is kept in `failing`, and what was not written for the next time."""
        if self._agent.outage.journal.changed and not await self._keep_journal():
            return
        if self._registry is not None and not await self._keep_registry(self._registry.keeping):
            return
        if self.pushes is not None and not await self._keep_subscribers(self.pushes):
            return
        while await self._write_some():
            pass

    async def _write_some(self) -> bool:
        """Whether it is written, and there is more."""
        now = self._clock.now()
        batch = await self._batch()
        if batch.empty and not self.failing:
            return False
        if not await self._write(self._file.write, batch, lambda: self._keep(batch)):
            return False
        self._rows.update((key, now) for key, *_ in (*batch.services, *batch.contacts))
        if (beyond := len(self._rows) - self._policy.max_rows) > 0:
            for key in sorted(self._rows, key=self._rows.__getitem__)[:beyond]:
                del self._rows[key]
        for key in batch.gone:
            self._rows.pop(key, None)
        return len(batch.services) == self._policy.at_once

    async def keep(self) -> None:
        """The journal of the agent's outage is on disk when this returns. Nobody waits for a disk that fails."""
        if not self.failing:
            await self._soon(self._keep_journal())

    async def _keep_journal(self) -> bool:
        journal = self._agent.outage.journal
        places, journal.changed = journal.changed, set()
        rows = [(place, journal.get(place)) for place in places]
        return await self._write(self._file.write_journal, rows, lambda: journal.changed.update(places))

    async def keep_registry(self) -> None:
        """As `keep`, of what lasts of the embedded registry."""
        if self._registry is not None and not self.failing:
            await self._soon(self._keep_registry(self._registry.keeping))

    async def _soon(self, writing: Coroutine[Any, Any, bool]) -> None:
        """Who is to be answered waits for a write, and not for a disk that hangs."""
        task = spawn(writing, name="state")
        await at_most(self._clock, self._policy.patience, task)
        if not task.done():
            self._fails(f"the disk has not answered for {self._policy.patience:g} s")

    async def _keep_registry(self, keeping: Keeping) -> bool:
        """Where nothing is left to write, what another call has taken is: the thread does one after the other."""
        if not keeping.unwritten and not keeping.writing:
            return True
        taken, keeping.unwritten = keeping.unwritten, {}

        def again() -> None:
            keeping.unwritten = {**taken, **keeping.unwritten}

        keeping.writing += 1
        try:
            return await self._write(self._file.write_registry, list(taken.items()), again)
        finally:
            keeping.writing -= 1

    async def _keep_subscribers(self, pushes: Pushes) -> bool:
        now, before = self._clock.now(), self._subscribers
        aged = len(pushes) and now - before[1] >= self._policy.contacts_every
        if pushes.changes == before[0] and not aged:
            return True
        self._subscribers = (pushes.changes, now)

        def again() -> None:
            self._subscribers = before

        rows = [subscriber_row(s, self._clock.wall() - now) for s in pushes]
        return await self._write(self._file.write_subscribers, rows, again)

    async def _write(self, write: Callable[[T], None], what: T, again: Callable[[], None]) -> bool:
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, write, what)
        except asyncio.CancelledError:  # it may not have begun: `close` writes it again
            again()
            raise
        except Exception as error:  # whatever it dies of, it is not written
            again()
            foreseen = isinstance(error, sqlite3.Error | OSError | StateLocked)
            self._fails(str(error) or type(error).__name__, None if foreseen else error)
            return False
        self.written += 1
        if self.failing:
            log.warning("the state is written again")
            self.failing = ""
        return True

    def _fails(self, why: str, unforeseen: Exception | None = None) -> None:
        if not self.failing:
            text = "the state cannot be written: %s; serving goes on without, tries come ever later"
            log.error(text, why, exc_info=unforeseen)
        self.failing = why

    def _keep(self, batch: Batch) -> None:
        self._dirty.update(key for key, *_ in batch.services)
        if batch.contacts or batch.gone:
            self._contacts_at = -math.inf
        self._registrations_dirty |= batch.registrations is not None

    async def _batch(self) -> Batch:
        """References only: the thread makes rows of them."""
        now, wall, cache = self._clock.now(), self._clock.wall(), self._agent.catalog.cache
        ahead = wall - now
        contacts = list[tuple[ServiceKey, float]]()
        registrations, gone = None, list[ServiceKey]()
        if now - self._contacts_at >= self._policy.contacts_every:
            self._contacts_at = now
            known = {entry.key: entry for entry in cache.entries() if entry.visible is not None}
            moved = [e for e in known.values() if not e.from_disk and e.confirmed_at > self._rows.get(e.key, -math.inf)]
            contacts = [(e.key, _wall(e, ahead)) for e in moved if e.key in self._rows]
            self._dirty.update(e.key for e in moved if e.key not in self._rows)
            gone = [key for key in self._rows if key not in known]
            self._registrations_dirty |= len(self._agent.catalog.registrations) > 0
            await asyncio.sleep(0)  # that was some milliseconds, and so is what follows
        if self._registrations_dirty:
            self._registrations_dirty = False
            ledger = self._agent.catalog.registrations
            registrations = [Heard(r.service, r.instance, r.beaten, r.managed, ahead + r.heard) for r in ledger]
        services = list[tuple[ServiceKey, Snapshot, float]]()
        while self._dirty and len(services) < self._policy.at_once:
            if (entry := cache.get(self._dirty.pop())) is not None and entry.visible is not None:
                services.append((entry.key, entry.visible, _wall(entry, ahead)))
        return Batch(services, contacts, registrations, gone, self._policy.max_rows)

    async def close(self) -> None:
        """Write the rest, sync, let go of the directory."""
        await stop(self._task)
        self._contacts_at = -math.inf
        self._subscribers = (self._subscribers[0], -math.inf)
        try:
            await self.flush()
        except Exception as error:  # what is not written must not keep the rest from ending
            self._agent.supervisor.failed("disk", error)
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._file.close)
        except sqlite3.Error as error:
            log.error("the state file was not closed cleanly: %s", error)
        self._thread.shutdown()


def _wall(entry: Entry, ahead: float) -> float:
    """When a service was confirmed, since 1970; 0 where it never was. `ahead`: of our clock."""
    return ahead + entry.confirmed_at if entry.confirmed_at > -math.inf else 0.0
