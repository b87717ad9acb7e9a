"""Watch: a mailbox and the snapshots that it starts from, without a gap between the two."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

from nacos_proxy.catalog.cache import Cache
from nacos_proxy.catalog.entries import Watcher
from nacos_proxy.catalog.hub import Filter, Hub, Mailbox
from nacos_proxy.model.errors import ProxyError, is_denied
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.runtime import Clock

log = logging.getLogger("nacos_proxy.agent")

MAX_READS = 50  # services of one listener that are read at once


class Watches:
    """Over one cache and one hub. `read` fetches what is not known yet.

    `strict`: what the upstream refuses to show is not replayed from history either.
    """

    def __init__(
        self,
        cache: Cache,
        hub: Hub,
        read: Callable[[ServiceKey], Awaitable[object]],
        clock: Clock,
        *,
        strict: bool = False,
    ) -> None:
        self._cache = cache
        self._hub = hub
        self._read = read
        self._clock = clock
        self._strict = strict

    async def watch(
        self, interest: Filter, wake: Callable[[], None], after: str = "", client: str = ""
    ) -> tuple[Mailbox, list[Snapshot]]:
        """A mailbox and, unless it resumes without a gap, the snapshots to start from: taken without `await`.

        A service that cannot be fetched now has no snapshot; its first change will hold the whole state. A reader that
        resumes gets a snapshot where no change may have been published (`_unpublished`); it replaces all that waits for
        that service. Clients at the same address `client` share one budget of polls.

        Raises the upstream's refusal if it refuses to show any of them.
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

    def unwatch(self, mailbox: Mailbox) -> bool:
        """End what `watch` began. False, without an effect, if it has ended already."""
        if not self._hub.unsubscribe(mailbox):
            return False
        watcher = _watcher(mailbox)
        for key in mailbox.filter.keys:
            self._cache.unwatch(key, self._clock.now(), watcher)
        return True

    def _unpublished(self, interest: Filter) -> list[Snapshot]:
        """Services without instances ever since their entry was made, which may be later than what a reader knows.

        If a service had instances when the cache dropped it and has none when it is fetched again, no change is
        published, because there is nothing to compare it with.
        """
        entries = (self._cache.get(key) for key in sorted(interest.keys))
        return [
            entry.visible
            for entry in entries
            if entry is not None and entry.visible is not None and not entry.ever_nonempty
        ]

    async def _read_all(self, keys: Collection[ServiceKey]) -> list[ProxyError | None]:
        """`MAX_READS` at a time: a task for each of 500 services, of each of 40 streams, would take 80 MiB."""
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
