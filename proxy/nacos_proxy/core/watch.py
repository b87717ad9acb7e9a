"""Watch: give a reader a mailbox and the snapshots that it starts from, without a gap between the two."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

from nacos_proxy.catalog.cache import Cache
from nacos_proxy.catalog.entries import Watcher
from nacos_proxy.catalog.hub import Filter, Hub, Mailbox
from nacos_proxy.model.errors import ProxyError, is_denied
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.runtime import Clock, in_turns

log = logging.getLogger("nacos_proxy.agent")

MAX_READS = 50  # services of one listener that are read at once


@dataclass(slots=True, eq=False, repr=False)
class Watches:
    """`_strict`: if the upstream refuses to show a service, do not replay its history either."""

    _cache: Cache
    _hub: Hub
    _read: Callable[[ServiceKey], Awaitable[object]]
    _clock: Clock
    _strict: bool

    async def watch(
        self, interest: Filter, wake: Callable[[], None], after: str = "", client: str = ""
    ) -> tuple[Mailbox, list[Snapshot]]:
        """Returns a mailbox and the snapshots to start from. A reader that resumes needs few of them (`_unpublished`).

        A service that cannot be fetched now has no snapshot; its first change will hold the whole state. `client` is an
        address; clients at the same address share one budget of polls. Raises the refusal if the upstream refuses to
        show all services.
        """
        failed = await self._read_all(interest.keys)
        refused = [error for error in failed if self._strict and is_denied(error)]
        if refused and len(refused) == len(interest.keys) and refused[0] is not None:
            raise refused[0]
        now = self._clock.now()
        mailbox = self._hub.subscribe(interest, wake, after)
        for entry in self._cache.entries() if self._strict and after else ():
            if is_denied(entry.error):
                mailbox.drop(entry.key)
        mailbox.client = client
        watcher = _watcher(mailbox)
        for key in interest.keys:
            self._cache.watch(key, now, watcher)
        if after and not mailbox.reset:
            unpublished = self._unpublished(interest)
            for snapshot in unpublished:
                mailbox.drop(snapshot.key)
            return mailbox, unpublished
        return mailbox, self._known(interest)

    async def watch_from(
        self, revisions: Mapping[ServiceKey, str], wake: Callable[[], None], after: str, client: str
    ) -> tuple[Mailbox, list[Snapshot]]:
        """As `watch`, for a reader that says which revision it has of each service ('' for none).

        It gets the snapshots of those that have another one now. So it misses nothing, whatever it had read, and
        `after` tells only whether it was this run of the proxy: if not, the mailbox is marked `reset`.
        """
        await self._read_all(revisions.keys())
        async for entry in in_turns([self._cache.get(key) for key in revisions], 200):
            _ = entry is not None and entry.visible is not None and entry.visible.revision  # it is kept, and costs time
        mailbox = self._hub.subscribe(Filter(frozenset(revisions)), wake)  # what it missed is in the snapshots
        mailbox.client, mailbox.reset = client, bool(after) and not self._hub.is_of_this_run(after)
        now, watcher, changed = self._clock.now(), _watcher(mailbox), list[Snapshot]()
        for key, revision in revisions.items():
            self._cache.watch(key, now, watcher)
            entry = self._cache.get(key)
            if entry is not None and entry.visible is not None and entry.visible.revision != revision:
                changed.append(entry.visible)
        return mailbox, changed

    def unwatch(self, mailbox: Mailbox) -> bool:
        """End what `watch` began. False if it had ended before."""
        if not self._hub.unsubscribe(mailbox):
            return False
        watcher = _watcher(mailbox)
        for key in mailbox.filter.keys:
            self._cache.unwatch(key, self._clock.now(), watcher)
        return True

    def _unpublished(self, interest: Filter) -> list[Snapshot]:
        """Services that had no instances since their entry was made, although the reader may remember some.

        If the cache drops a service with instances and later fetches it without any, it has nothing to compare and
        publishes no change.
        """
        entries = (self._cache.get(key) for key in sorted(interest.keys))
        return [e.visible for e in entries if e is not None and e.visible is not None and not e.ever_nonempty]

    async def _read_all(self, keys: Collection[ServiceKey]) -> list[ProxyError | None]:
        """Reads `MAX_READS` at a time, because a task for each of 500 services in 40 streams would take 80 MiB."""
        waiting, outcomes = iter(keys), list[ProxyError | None]()

        async def read_some() -> None:
            for key in waiting:
                outcomes.append(await self._error_of_read(key))

        await asyncio.gather(*(read_some() for _ in range(min(MAX_READS, len(keys)))))
        return outcomes

    async def _error_of_read(self, key: ServiceKey) -> ProxyError | None:
        try:
            await self._read(key)
        except ProxyError as error:
            log.info("no first snapshot of %s: %s", key, error)
            return error
        return None

    def _known(self, interest: Filter) -> list[Snapshot]:
        if interest.everything is None:
            listed = (self._cache.get(key) for key in sorted(interest.keys))
            return [entry.visible for entry in listed if entry is not None and entry.visible is not None]
        visible = (entry.visible for entry in self._cache.entries() if interest.wants(entry.key))
        return [s for s in visible if s is not None and (s.key in interest.keys or s.instances)]


def _watcher(mailbox: Mailbox) -> Watcher:
    return mailbox.client, id(mailbox)
