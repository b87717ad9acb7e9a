"""Read: serve a service from the cache, and ask the upstream if the reader wants it fresher."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nacos_proxy.catalog.freshness import CacheControl, CacheResult, Freshness
from nacos_proxy.core.commit import Catalog, Counts
from nacos_proxy.core.fetch import Fetcher
from nacos_proxy.model.errors import NothingKnown, ProxyError, Refused, Unreachable
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.runtime import Clock, at_most

_DEFAULT = CacheControl()


@dataclass(slots=True, eq=False, repr=False)
class Reader:
    """Reads from the cache. A reader waits for the upstream at most `_cold_wait` seconds."""

    _catalog: Catalog
    _fetcher: Fetcher
    _counts: Counts
    _clock: Clock
    _cold_wait: float
    _confirm_until: float = 0.0

    def restored(self, confirm_within: float) -> None:
        """For `confirm_within` seconds, a read of a service from disk waits until the upstream has confirmed it.

        After a kill, the disk lacks the last writes.
        """
        self._confirm_until = self._clock.now() + confirm_within

    async def read(self, key: ServiceKey, cache_control: CacheControl = _DEFAULT) -> CacheResult:
        """A service as fresh as `cache_control` demands. Raises `NothingKnown`, or the upstream's refusal."""
        cache, breaker, now = self._catalog.cache, self._catalog.breaker, self._clock.now()
        cache.touch(key, now)
        result = cache.lookup(key, now)
        if result.from_disk and result.error is None and now < self._confirm_until:
            await self._wait_for_fetch(key, self._confirm_until - now)
            result = cache.lookup(key, self._clock.now())
            result = replace(result, fetched=not result.from_disk)
        if cache_control.satisfied_by(result):
            if result.stale:
                self._refresh_in_background(key, now)
            Counts.add(self._counts.reads, "stale" if result.stale else "miss" if result.fetched else "hit")
            return self._with_outage_error(result)
        if not breaker.up and result.freshness in (Freshness.FRESH, Freshness.STALE):
            # The upstream is down and there is a snapshot, so the reader does not wait.
            self._refresh_in_background(key, now)
            return self._served_or_raise(result)
        await self._wait_for_fetch(key, self._cold_wait)
        result = replace(cache.lookup(key, self._clock.now()), fetched=True)
        if result.freshness in (Freshness.MISSING, Freshness.EXPIRED):
            return self._served_or_raise(result)
        Counts.add(self._counts.reads, "stale" if result.stale else "miss")
        return result

    def confirmed(self, visible: Snapshot, now: float) -> tuple[float, float] | None:
        """From when until when this snapshot is fresh, None if it is not. If it is, this counts as a read."""
        span = self._catalog.cache.fresh_interval(visible, now)
        if span is not None:
            self._catalog.cache.touch(visible.key, now)
        return span

    def _with_outage_error(self, result: CacheResult) -> CacheResult:
        """Adds the error to a stale result if the upstream is down, even if no fetch of this service has failed."""
        breaker = self._catalog.breaker
        if breaker.up or result.error is not None or not result.stale:
            return result
        return replace(result, error=Unreachable(breaker.reason, arrived=False))

    def _served_or_raise(self, result: CacheResult) -> CacheResult:
        """Returns the result if its snapshot may be served, else raises the reason why there is none."""
        if result.freshness in (Freshness.STALE, Freshness.FRESH):
            Counts.add(self._counts.reads, "stale")
            return self._with_outage_error(result)
        Counts.add(self._counts.reads, "none")
        error = result.error
        if isinstance(error, Refused) and error.status < 500:
            raise error
        why = error or self._catalog.breaker.reason or "the upstream has not answered in time"
        raise NothingKnown(f"nothing is known of this service and the upstream cannot be asked: {why}") from error

    def _refresh_in_background(self, key: ServiceKey, now: float) -> None:
        if self._catalog.breaker.allows(now) and self._catalog.cache.may_refresh(key, now):
            self._fetcher.refresh(key)

    async def _wait_for_fetch(self, key: ServiceKey, max_wait: float) -> None:
        """Raises the error of a fetch that concerns this reader alone, so not that of a fetch for another one."""
        now, joins = self._clock.now(), key in self._fetcher.in_flight
        if not joins and not self._catalog.breaker.allows(now):
            return
        error = await self._fetch_within(key, max_wait)
        if error is not None and joins:
            error = await self._fetch_within(key, now + max_wait - self._clock.now())
        if error is not None:
            raise error

    async def _fetch_within(self, key: ServiceKey, max_wait: float) -> ProxyError | None:
        fetch = self._fetcher.refresh(key)
        await at_most(self._clock, max_wait, fetch)
        failed = not fetch.done() or fetch.cancelled() or fetch.exception() is not None
        return None if failed else fetch.result()
