"""Fetch: ask the upstream for a service and commit what it lists. At most one fetch of a service is in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from nacos_proxy.core.commit import Catalog, Committer, Counts
from nacos_proxy.core.reregistration import Reregistration
from nacos_proxy.core.send import Sender
from nacos_proxy.model.calls import Fetch
from nacos_proxy.model.errors import Garbled, ProxyError, is_denied, is_loop
from nacos_proxy.model.services import ServiceKey, Source
from nacos_proxy.runtime import Clock, Supervisor, stop


@dataclass(slots=True, eq=False, repr=False)
class Fetcher:
    """`in_flight` are the fetches by service. `succeeded_at`: when one last succeeded, in seconds since 1970.

    A fetch returns the error that only concerns who waits for it (`is_loop`); all others go to the cache.

    `_strict`: see `AgentPolicy`.
    """

    _catalog: Catalog
    _sender: Sender
    _reregistration: Reregistration
    _committer: Committer
    _clock: Clock
    _supervisor: Supervisor
    _strict: bool
    in_flight: dict[ServiceKey, asyncio.Task[ProxyError | None]] = field(default_factory=lambda: {})
    on_barred: list[Callable[[ServiceKey, ProxyError], None]] = field(default_factory=lambda: [])
    succeeded_at: float | None = None

    def refresh(self, key: ServiceKey, source: Source = "poll") -> asyncio.Task[ProxyError | None]:
        """The service's fetch in flight, or a new one. It goes on if the caller is cancelled."""
        if (task := self.in_flight.get(key)) is None:
            self._catalog.breaker.call_started(self._clock.now())
            self._catalog.cache.begin_fetch(key)
            task = self.in_flight[key] = self._supervisor.once(self._fetch(key, source), name="fetch", for_request=True)
        return task

    async def _fetch(self, key: ServiceKey, source: Source) -> ProxyError | None:
        cache, counts, requested_at = self._catalog.cache, self._committer.counts, self._clock.now()
        try:
            snapshot = await self._sender.send(Fetch(key))
            suspicious = self._sender.suspicious
            missing_since = await self._reregistration.missing_from(snapshot, suspicious=suspicious)
        except ProxyError as error:
            Counts.add(counts.fetches, type(error).__name__)
            if is_loop(error):
                cache.abandon(key, self._clock.now())
                return error
            barred = self._strict and is_denied(error)
            cache.reject(key, error, self._clock.now(), forbidden=barred)
            for listener in self.on_barred if barred else ():
                self._supervisor.call("what is refused", listener, key, error)
            return None
        except Exception as error:  # a bug here must not end the polling of a service
            cache.reject(key, Garbled(f"{type(error).__name__} in the proxy"), self._clock.now())
            raise
        finally:
            self.in_flight.pop(key, None)
        self._sender.heard(snapshot.via)
        change = cache.accept(
            snapshot,
            self._clock.now(),
            source,
            requested_at=requested_at,
            suspicious=suspicious,
            missing_since=missing_since,
            now_ms=self._committer.now_ms(),
        )
        Counts.add(counts.fetches, "ok")
        self.succeeded_at = self._clock.wall()
        self._committer.commit(change)
        return None

    async def close(self) -> None:
        for task in list(self.in_flight.values()):
            await stop(task)
