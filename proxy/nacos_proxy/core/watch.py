"""Mailboxes and the snapshots that they start from, without a gap between the two.

Not for: how a mailbox collapses and resumes (`catalog.hub`), streams and polls (`api.events`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

from nacos_proxy.catalog.cache import Cache
from nacos_proxy.catalog.entries import Watcher
from nacos_proxy.catalog.hub import Filter, Hub, Mailbox
from nacos_proxy.model.errors import ProxyError, no_right
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.runtime import Clock

log = logging.getLogger("nacos_proxy.agent")

AT_ONCE = 50  # services of one listener that are asked for at once


class Watches:
    """Over one cache and one hub; `read` fetches what is not known yet."""

    def __init__(
        self,
        cache: Cache,
        hub: Hub,
        read: Callable[[ServiceKey], Awaitable[object]],
        clock: Clock,
        *,
        strict: bool = False,
    ) -> None:
        """`strict`: what the upstream refuses to show is not told from history either."""
        self._strict = strict
        self._cache = cache
        self._hub = hub
        self._read = read
        self._clock = clock

    async def watch(
        self, interest: Filter, wake: Callable[[], None], after: str, client: str = ""
    ) -> tuple[Mailbox, list[Snapshot]]:
        """A mailbox and, unless it resumes without a gap, the snapshots to start from: taken in one stretch.

        A service that cannot be fetched now has no snapshot; its first change will hold the whole state. Who resumes
        gets a snapshot of what no change may have told of (`_untold`); it stands for all that waits of that service.
        `client` is the address that shares the budget of polls with others.
        Raises what the upstream says where it refuses to show any of them.
        """
        failed = await self._warm_all(interest.keys)
        refused = [error for error in failed if self._strict and no_right(error)]
        if refused and len(refused) == len(interest.keys) and refused[0] is not None:
            raise refused[0]
        now = self._clock.now()
        mailbox = self._hub.subscribe(interest, wake, after)
        for entry in self._cache.entries() if self._strict and after else ():
            if no_right(entry.error):
                mailbox.drop(entry.key)
        mailbox.client = client
        watcher = _watcher(mailbox)
        for key in interest.keys:
            self._cache.watch(key, now, watcher)
        if after and not mailbox.reset:
            untold = self._untold(interest)
            for snapshot in untold:
                mailbox.drop(snapshot.key)
            return mailbox, untold
        return mailbox, self._known(interest)

    def unwatch(self, mailbox: Mailbox) -> bool:
        """Ends what `watch` began; harmless when done before. Whether it was not."""
        if not self._hub.unsubscribe(mailbox):
            return False
        watcher = _watcher(mailbox)
        for key in mailbox.filter.keys:
            self._cache.unwatch(key, self._clock.now(), watcher)
        return True

    def _untold(self, interest: Filter) -> list[Snapshot]:
        """Services that never had an instance while we knew them: their entry may be younger than what a reader heard.

        Pushed out of the cache with instances and fetched anew without any, a service is no change to anybody here.
        """
        entries = (self._cache.get(key) for key in sorted(interest.keys))
        return [
            entry.visible
            for entry in entries
            if entry is not None and entry.visible is not None and not entry.ever_nonempty
        ]

    async def _warm_all(self, keys: Collection[ServiceKey]) -> list[ProxyError | None]:
        """A few at once: a task for each of 500 services, of each of 40 streams, would take 80 MiB."""
        waiting, outcomes = iter(keys), list[ProxyError | None]()

        async def warm_some() -> None:
            for key in waiting:
                outcomes.append(await self._warm(key))

        await asyncio.gather(*(warm_some() for _ in range(min(AT_ONCE, len(keys)))))
        return outcomes

    async def _warm(self, key: ServiceKey) -> ProxyError | None:
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
        shown = (entry.visible for entry in self._cache.entries() if interest.wants(entry.key))
        return [s for s in shown if s is not None and (s.key in interest.keys or s.instances)]


def _watcher(mailbox: Mailbox) -> Watcher:
    return mailbox.client, id(mailbox)
