"""Keeps the last known state on disk: writes it in the background, reads it at a cold start.

A separate thread makes the rows and accesses the file, so that neither a slow disk nor 10,000 services delay a reader.
A failure to write fails no request; /status reports it. A service gets a row when the upstream confirms it, and loses
the row when the cache drops it, but never because of its age.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from nacos_proxy.background.state_file import Batch, StateFile, StateLocked
from nacos_proxy.background.state_rows import SavedRegistration, SavedService, drain_row, subscriber_row
from nacos_proxy.catalog.entries import Entry
from nacos_proxy.catalog.registrations import Registration, RegistrationKey
from nacos_proxy.catalog.udp_subscribers import Subscription, UdpSubscribers
from nacos_proxy.core.agent import Agent
from nacos_proxy.model.backoff import Backoff
from nacos_proxy.model.services import Change, ServiceKey, Snapshot
from nacos_proxy.runtime import at_most, spawn, stop
from nacos_proxy.upstream.embedded.registry import EmbeddedRegistry

T = TypeVar("T")

log = logging.getLogger("nacos_proxy.disk")

EVERY = 1.0  # seconds between writes
PATIENCE = 1.0  # seconds that an answer waits for a write; a disk that takes longer counts as failing
CONTACTS_EVERY = 30.0  # seconds between writes of the last confirmations of services and the last beats of clients
RESTORED_AT_ONCE = 20  # services, which takes about a millisecond
MAX_RESTART = 120.0  # seconds; a UDP subscription does not survive a longer restart


@dataclass(frozen=True, slots=True)
class PersistencePolicy:
    """`max_delay`: the longest time in seconds until a failing disk is tried again. `max_rows`: services on disk.

    A batch has at most `max_batch` services, because collecting them blocks the loop for some milliseconds.
    """

    max_delay: float = 60.0
    max_rows: int = 20_000
    max_batch: int = 2_000


class Persistence:
    """Follows an agent's changes. Call `restore`, then `start`, at the end `close`.

    It also keeps `udp_subscribers` and the `embedded` registry. `failing`: why writing fails now, '' if it does not.
    """

    def __init__(
        self,
        file: StateFile,
        agent: Agent,
        policy: PersistencePolicy,
        *,
        udp_subscribers: UdpSubscribers | None = None,
        embedded: EmbeddedRegistry | None = None,
    ) -> None:
        self.failing = file.trouble
        self.written = 0
        self._file = file
        self._agent = agent
        self._clock = agent.clock
        self._policy = policy
        self._backoff = Backoff(EVERY, policy.max_delay)
        self._udp_subscribers = udp_subscribers
        self._subscribers_written = (0, -math.inf)  # the number of written changes, and the time of the last write
        self._embedded = embedded
        self._dirty: set[ServiceKey] = set()
        self._rows: dict[ServiceKey, float] = {}  # services with a row, and the time of confirmation in it
        self._registrations_dirty = False
        self._urgent: set[RegistrationKey] = set()  # registrations that somebody waits for
        self._contacts_at = -math.inf
        self._reported = 0  # unreadable rows
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state-file")
        self._task: asyncio.Task[None] | None = None
        agent.on_registration.append(self.mark_registrations)
        agent.outage.persist_with(self.persist_journal)
        if embedded is not None:
            embedded.persistent_state.set_writer(self.persist_registry)

    @property
    def directory(self) -> Path:
        """The directory of the state: a subdirectory of the configured one if anybody can write to that."""
        return self._file.path.parent

    @property
    def unwritable(self) -> int:
        """The number of rows that could not be written."""
        return self._file.unwritable

    def mark(self, change: Change) -> None:
        """Write the service with the next batch."""
        if len(self._dirty) < self._policy.max_rows:
            self._dirty.add(change.key)

    def mark_registrations(self) -> None:
        self._registrations_dirty = True

    def restore(self) -> int:
        """Fill the catalog from the file, but replace no fetched state. Returns the number of services.

        A service's snapshot is made when it is needed, or with the first `flush`.
        """
        try:
            (services, registrations), journal = self._file.read(), self._file.read_journal()
            drains = self._file.read_drains(self._clock.wall() - self._clock.now())
            if self._embedded is not None:
                self._embedded.restore(self._file.read_registry())
        except sqlite3.Error as error:
            log.error("the state file could not be read: %s; starting without it", error)
            return 0
        if self.failing:
            log.error("the state cannot be written: %s; serving goes on without", self.failing)
        self._report_unreadable()
        now, wall = self._clock.now(), self._clock.wall()
        catalog = self._agent.catalog
        for service in services:
            self._rows[service.key] = -math.inf
            restore = partial(self._restore_service, service, now, wall)
            if service.empty:
                restore()
            else:
                catalog.cache.restore_later(service.key, restore)
        for registration, heard_at in registrations:
            # The file lacks the last beats before a kill, because the times of beats are written so rarely.
            unwritten = CONTACTS_EVERY + EVERY if registration.beats else 0.0
            age = max(0.0, wall - heard_at - unwritten)
            registration.last_heard = now - age
            if registration.alive(now) or (registration.check is not None and not registration.of_connection):
                if registration.check is not None:
                    registration.last_heard = now  # it beats from here, and goes on at once
                catalog.registrations.restore(registration)
                catalog.cache.set_local_registrations(
                    registration.service, catalog.registrations.count(registration.service), now
                )
        for key, waiting in journal:
            self._agent.outage.restore(key, waiting)
        for drain in drains:
            catalog.drains.add(drain, now)
        catalog.drains.changed = False
        if services:
            log.info("%d services, %d registrations read from %s", len(services), len(registrations), self._file.path)
        return len(services)

    def _restore_service(self, service: SavedService, now: float, wall: float) -> None:
        """`now` and `wall`: the times of the clocks at the restart."""
        if (snapshot := self._file.load(service)) is None:
            del self._rows[service.key]  # it stays on disk, for a version of this program that understands it
            return
        age = max(0.0, wall - service.confirmed_at)
        restore = self._agent.catalog.cache.restore  # the reader that needs the service must not see an exception
        self._agent.supervisor.call("disk", restore, snapshot, age, now, int(wall * 1000))

    async def _restore_rest(self) -> None:
        """In between, readers get their turns."""
        while self._agent.catalog.cache.restore_some(RESTORED_AT_ONCE):
            await asyncio.sleep(0)
        self._report_unreadable()

    def _report_unreadable(self) -> None:
        if self._file.unreadable > self._reported:
            self._reported = self._file.unreadable
            log.error("%d rows of the state file could not be understood and were left out", self._reported)

    def subscribers(self) -> list[Subscription]:
        """The recent UDP subscriptions. Their clients list again within 10 s, but changes may come earlier."""
        since = self._clock.wall() - CONTACTS_EVERY - MAX_RESTART
        try:
            return [s for s in self._file.read_subscribers() if s.seen >= since]
        except sqlite3.Error as error:
            log.error("the subscribers of UDP push could not be read: %s", error)
            return []

    def start(self) -> None:
        self._task = self._agent.supervisor.keep(self._run, name="disk")

    async def _run(self) -> None:
        failures = 0
        while True:
            await self._clock.sleep_until(self._clock.now() + self._backoff.delay(failures))
            await self.flush()
            failures = failures + 1 if self.failing else 0

    async def flush(self) -> None:
        """Write all changes. If that fails, `failing` says why, and the next call writes the rest.

        The first call also restores the services that nobody has needed so far.
        """
        await self._restore_rest()
        if self._agent.outage.journal.changed and not await self._write_journal():
            return
        if self._agent.catalog.drains.changed and not await self._write_drains():
            return
        if self._embedded is not None and not await self._write_registry(self._embedded):
            return
        if self._udp_subscribers is not None and not await self._write_subscribers(self._udp_subscribers):
            return
        while await self._write_batch():
            pass

    async def _write_batch(self) -> bool:
        """Writes a batch. Returns whether there is more to write."""
        now = self._clock.now()
        batch = await self._batch()
        if batch.empty and not self.failing:
            return False
        if not await self._write(self._file.write, batch, lambda: self._mark_again(batch)):
            return False
        self._rows.update((key, now) for key, *_ in (*batch.services, *batch.contacts))
        if (beyond := len(self._rows) - self._policy.max_rows) > 0:
            for key in sorted(self._rows, key=self._rows.__getitem__)[:beyond]:
                del self._rows[key]
        for key in batch.gone:
            self._rows.pop(key, None)
        return len(batch.services) == self._policy.max_batch

    async def persist_journal(self) -> None:
        """Returns when the agent's journal is on disk, after `PATIENCE`, or at once if the disk fails."""
        if not self.failing:
            await self._write_within_patience(self._write_journal())

    async def _write_journal(self) -> bool:
        journal = self._agent.outage.journal
        keys, journal.changed = journal.changed, set()
        rows = [(key, journal.get(key)) for key in keys]
        return await self._write(self._file.write_journal, rows, lambda: journal.changed.update(keys))

    async def persist_registrations(self, keys: Collection[RegistrationKey]) -> None:
        """Like `persist_journal`, for these registrations."""
        if not self.failing:
            self._urgent.update(keys)
            await self._write_within_patience(self._write_registrations())

    async def _write_registrations(self) -> bool:
        """If another call is already writing a key, the thread does that first."""
        keys, self._urgent = self._urgent, set()
        ahead, find = self._clock.wall() - self._clock.now(), self._agent.catalog.registrations.find
        rows = [(key, None if (r := find(*key)) is None else _saved(r, ahead)) for key in keys]
        return await self._write(self._file.write_registrations, rows, self.mark_registrations)

    async def persist_drains(self) -> None:
        """Like `persist_journal`, for the drains."""
        if self._agent.catalog.drains.changed and not self.failing:
            await self._write_within_patience(self._write_drains())

    async def _write_drains(self) -> bool:
        drains, ahead = self._agent.catalog.drains, self._clock.wall() - self._clock.now()
        drains.changed = False
        rows = [drain_row(drain, ahead) for drain in drains]
        return await self._write(self._file.write_drains, rows, drains.mark_changed)

    async def persist_registry(self) -> None:
        """Like `persist_journal`, for the embedded registry."""
        if self._embedded is not None and not self.failing:
            await self._write_within_patience(self._write_registry(self._embedded))

    async def _write_within_patience(self, writing: Coroutine[Any, Any, bool]) -> None:
        task = spawn(writing, name="state")
        await at_most(self._clock, PATIENCE, task)
        if not task.done():
            self._failed(f"the disk has not answered for {PATIENCE:g} s")

    async def _write_registry(self, registry: EmbeddedRegistry) -> bool:
        """The thread writes one batch at a time, as `write_changes` requires."""
        return await registry.persistent_state.write_changes(
            lambda rows: self._write(self._file.write_registry, rows, lambda: None)
        )

    async def _write_subscribers(self, udp_subscribers: UdpSubscribers) -> bool:
        now, before = self._clock.now(), self._subscribers_written
        aged = len(udp_subscribers) and now - before[1] >= CONTACTS_EVERY
        if udp_subscribers.changes == before[0] and not aged:
            return True
        self._subscribers_written = (udp_subscribers.changes, now)

        def put_back() -> None:
            self._subscribers_written = before

        rows = [subscriber_row(s, self._clock.wall() - now) for s in udp_subscribers]
        return await self._write(self._file.write_subscribers, rows, put_back)

    async def _write(self, write: Callable[[T], None], what: T, put_back: Callable[[], None]) -> bool:
        """Whether the write succeeded. If not, calls `put_back`, which marks the rows for the next write."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, write, what)
        except asyncio.CancelledError:  # the write may not have begun: `close` repeats it
            put_back()
            raise
        except Exception as error:
            put_back()
            expected = isinstance(error, sqlite3.Error | OSError | StateLocked)
            self._failed(str(error) or type(error).__name__, None if expected else error)
            return False
        self.written += 1
        if self.failing:
            log.warning("the state is written again")
            self.failing = ""
        return True

    def _failed(self, why: str, unexpected: Exception | None = None) -> None:
        if not self.failing:
            text = "the state cannot be written: %s; serving goes on without it, and writing is tried ever more rarely"
            log.error(text, why, exc_info=unexpected)
        self.failing = why

    def _mark_again(self, batch: Batch) -> None:
        self._dirty.update(key for key, *_ in batch.services)
        if batch.contacts or batch.gone:
            self._contacts_at = -math.inf
        self._registrations_dirty |= batch.registrations is not None

    async def _batch(self) -> Batch:
        """Collects references, from which the thread makes rows."""
        now, cache = self._clock.now(), self._agent.catalog.cache
        ahead = self._clock.wall() - now
        contacts = list[tuple[ServiceKey, float]]()
        registrations, gone = None, list[ServiceKey]()
        if now - self._contacts_at >= CONTACTS_EVERY:
            self._contacts_at = now
            known = {entry.key: entry for entry in cache.entries() if entry.visible is not None}
            moved = [e for e in known.values() if not e.from_disk and e.confirmed_at > self._rows.get(e.key, -math.inf)]
            contacts = [(e.key, _confirmed_at(e, ahead)) for e in moved if e.key in self._rows]
            self._dirty.update(e.key for e in moved if e.key not in self._rows)
            gone = [key for key in self._rows if key not in known]
            self._registrations_dirty |= len(self._agent.catalog.registrations) > 0
            await asyncio.sleep(0)  # the code above took some milliseconds, and so does the code below
        if self._registrations_dirty:
            self._registrations_dirty = False
            registrations = [_saved(r, ahead) for r in self._agent.catalog.registrations]
            self._urgent.clear()
        services = list[tuple[ServiceKey, Snapshot, float]]()
        while self._dirty and len(services) < self._policy.max_batch:
            if (entry := cache.get(self._dirty.pop())) is not None and entry.visible is not None:
                services.append((entry.key, entry.visible, _confirmed_at(entry, ahead)))
        return Batch(services, contacts, registrations, gone, self._policy.max_rows)

    async def close(self) -> None:
        """Write the rest, sync, and release the directory."""
        await stop(self._task)
        self._contacts_at = -math.inf
        self._subscribers_written = (self._subscribers_written[0], -math.inf)
        try:
            await self.flush()
        except Exception as error:  # the file must be closed all the same
            self._agent.supervisor.failed("disk", error)
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._file.close)
        except sqlite3.Error as error:
            log.error("the state file was not closed cleanly: %s", error)
        self._thread.shutdown()


def _saved(r: Registration, ahead: float) -> SavedRegistration:
    return SavedRegistration(r.service, r.instance, r.beats, r.check, ahead + r.last_heard)


def _confirmed_at(entry: Entry, ahead: float) -> float:
    """When a service was confirmed, since 1970; 0 for never. `ahead`: the wall clock minus the monotonic clock."""
    return ahead + entry.confirmed_at if entry.confirmed_at > -math.inf else 0.0
