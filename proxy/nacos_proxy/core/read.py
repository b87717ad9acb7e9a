"""Read: a service from the cache, as fresh as the reader asks for; the upstream is asked where that is needed."""

from __future__ import annotations

from dataclasses import replace

from nacos_proxy.catalog.freshness import CacheControl, CacheResult, Freshness
from nacos_proxy.core.commit import Catalog, Counts
from nacos_proxy.core.fetch import Fetcher
from nacos_proxy.model.errors import NothingKnown, Refused, Unreachable
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.runtime import Clock, at_most


class Reader:
    """Reads of one cache. A reader waits for the upstream at most `cold_wait` seconds."""

    def __init__(self, catalog: Catalog, fetcher: Fetcher, counts: Counts, clock: Clock, cold_wait: float) -> None:
        self._catalog = catalog
        self._fetcher = fetcher
        self._counts = counts
        self._clock = clock
        self._cold_wait = cold_wait
        self._confirm_until = 0.0

    def restored(self, confirm_within: float) -> None:
        """The cache was filled from disk, without the last writes before a kill.

        For `confirm_within` seconds, a read of a service from disk waits until the upstream has confirmed it.
        """
        self._confirm_until = self._clock.now() + confirm_within

    async def read(
        self,
        key: ServiceKey,
        cache_control: CacheControl = CacheControl(),  # noqa: B008 - a frozen value
    ) -> CacheResult:
        """What is known of a service, as fresh as `cache_control` asks.

        Raises `NothingKnown`, or the upstream's refusal.
        """
        cache, breaker, now = self._catalog.cache, self._catalog.breaker, self._clock.now()
        cache.touch(key, now)
        result = cache.lookup(key, now)
        if result.from_disk and result.error is None and now < self._confirm_until:
            await self._wait_for_fetch(key, self._confirm_until - now)
            result = cache.lookup(key, self._clock.now())
            result = replace(result, fetched=not result.from_disk)
        if cache_control.satisfied_by(result):
            if result.stale:
                self._refresh_behind(key, now)
            Counts.add(self._counts.reads, "stale" if result.stale else "miss" if result.fetched else "hit")
            return self._explained(result)
        if not breaker.up and result.freshness in (Freshness.FRESH, Freshness.STALE):
            # Where there is a snapshot, nobody waits for an upstream that is down.
            self._refresh_behind(key, now)
            return self._settle_for(result)
        await self._wait_for_fetch(key, self._cold_wait)
        result = replace(cache.lookup(key, self._clock.now()), fetched=True)
        if result.freshness in (Freshness.MISSING, Freshness.EXPIRED):
            return self._settle_for(result)
        Counts.add(self._counts.reads, "stale" if result.stale else "miss")
        return result

    def confirmed(self, visible: Snapshot, now: float) -> tuple[float, float] | None:
        """Since when and until when this snapshot is fresh, None where it is not. A fresh one counts as read."""
        span = self._catalog.cache.fresh_interval(visible, now)
        if span is not None:
            self._catalog.cache.touch(visible.key, now)
        return span

    def _explained(self, result: CacheResult) -> CacheResult:
        """A stale result says that the upstream is down even if it was not asked for this very service."""
        breaker = self._catalog.breaker
        if breaker.up or result.error is not None or not result.stale:
            return result
        return replace(result, error=Unreachable(breaker.reason, arrived=False))

    def _settle_for(self, result: CacheResult) -> CacheResult:
        """The result, if it has a snapshot that may be served. Otherwise raises the reason why there is none."""
        if result.freshness in (Freshness.STALE, Freshness.FRESH):
            Counts.add(self._counts.reads, "stale")
            return self._explained(result)
        Counts.add(self._counts.reads, "none")
        error = result.error
        if isinstance(error, Refused) and error.status < 500:
            raise error
        why = error or self._catalog.breaker.reason or "the upstream has not answered in time"
        raise NothingKnown(f"nothing is known of this service and the upstream cannot be asked: {why}") from error

    def _refresh_behind(self, key: ServiceKey, now: float) -> None:
        if self._catalog.breaker.allows(now) and self._catalog.cache.may_refresh(key, now):
            self._fetcher.refresh(key)

    async def _wait_for_fetch(self, key: ServiceKey, max_wait: float) -> None:
        if key in self._fetcher.in_flight or self._catalog.breaker.allows(self._clock.now()):
            await at_most(self._clock, max_wait, self._fetcher.refresh(key))
