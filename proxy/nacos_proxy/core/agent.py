"""The agent: one object over this package, for frontends and background work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from nacos_proxy.core.commit import Catalog, Committer, Follower, Written
from nacos_proxy.core.fetch import Fetcher
from nacos_proxy.core.outage import Outage
from nacos_proxy.core.patch import Patches
from nacos_proxy.core.pushed import PushedLists
from nacos_proxy.core.queries import Queries
from nacos_proxy.core.read import Reader
from nacos_proxy.core.reregistration import Reregistration
from nacos_proxy.core.send import Sender
from nacos_proxy.core.traffic import Traffic
from nacos_proxy.core.watch import Watches
from nacos_proxy.core.write import Writer
from nacos_proxy.model.calls import Update, Write
from nacos_proxy.model.services import ServiceKey, Snapshot, Via
from nacos_proxy.runtime import Clock, Supervisor
from nacos_proxy.upstream.contract import Registry

R = TypeVar("R")

__all__ = ["Agent", "AgentPolicy", "Catalog", "Follower", "Written"]


@dataclass(frozen=True, slots=True)
class AgentPolicy:
    """A read waits at most `cold_wait` seconds: legacy clients give up after 3 (nacos-http.md 10.1).

    `strict`: if the upstream refuses to show a service for lack of rights, forget the service and call `on_barred`.
    `outage_writes`: while the upstream is away, accept writes about ephemeral instances here. `below_proxy`: the
    upstream is another proxy.
    """

    cold_wait: float = 2.5
    strict: bool = False
    outage_writes: bool = False
    below_proxy: bool = False


class Agent:
    """Reads, writes and watches on behalf of clients. `checks()`: whether Nacos's parameter check applies now.

    Most attributes are methods of the objects that do the work, so that a call costs nothing extra.
    """

    def __init__(
        self,
        registry: Registry,
        catalog: Catalog,
        clock: Clock,
        policy: AgentPolicy,
        supervisor: Supervisor | None = None,
        checks: Callable[[], bool] = lambda: True,
    ) -> None:
        supervisor = supervisor or Supervisor(clock)
        committer = Committer(catalog, clock, supervisor)
        sender = Sender(registry, catalog, clock, supervisor)
        reregistration = Reregistration(
            catalog.registrations, catalog.drains, sender, committer, clock, supervisor, policy.below_proxy
        )
        fetcher = Fetcher(catalog, sender, reregistration, committer, clock, supervisor, policy.strict)
        pushed_lists = PushedLists(catalog, sender, reregistration, committer, clock)
        reader = Reader(catalog, fetcher, committer.counts, clock, policy.cold_wait)
        queries = Queries(catalog, reader, sender, clock)
        outage = Outage(catalog, sender, committer, clock, policy.outage_writes, checks)
        writer = Writer(
            catalog, sender, queries, outage, reregistration, committer, clock, supervisor, policy.cold_wait
        )
        patches = Patches(catalog.registrations, reader, queries, writer, committer)
        traffic = Traffic(catalog.drains, catalog.registrations, sender, writer, committer, clock)
        watches = Watches(catalog.cache, catalog.hub, reader.read, clock, policy.strict)

        self.registry = registry
        self.catalog = catalog
        self.clock = clock
        self.supervisor = supervisor
        self.outage = outage
        self.traffic = traffic
        self.counts = committer.counts
        self._sender = sender
        self._fetcher = fetcher
        self._reader = reader
        self._writer = writer
        self._patches = patches
        self._reregistration = reregistration

        self.read = reader.read
        self.confirmed = reader.confirmed
        self.instance = queries.instance
        self.ask = queries.ask
        self.watch = watches.watch
        self.watch_from = watches.watch_from
        self.unwatch = watches.unwatch
        self.modify = patches.modify
        self.renew = reregistration.renew
        self.send = sender.send
        self.durations = sender.durations
        self.suspect = sender.suspect
        self.doubt = sender.doubt
        self.on_recovery = sender.on_recovery
        self.refresh = fetcher.refresh
        self.accept_pushed = pushed_lists.accept
        self.fetching = fetcher.in_flight
        self.on_barred = fetcher.on_barred
        self.follow = committer.follow
        self.registrations_changed = committer.registrations_changed
        self.on_registration = committer.on_registration

    def write(self, call: Write[R]) -> Coroutine[Any, Any, Written[R]]:
        """Send a write; see `Writer.write`. An update that names only what it changes is completed first.

        Writes about an instance that is drained go through `Traffic.intercept`.
        """
        if (intercepted := self.traffic.intercept(call)) is not None:
            return cast("Any", intercepted)
        if isinstance(call, Update) and call.partial:
            return cast("Any", self._patches.patch(call))
        return self._writer.write(cast("Write[R]", call))

    def begin(self, call: Write[R]) -> asyncio.Future[Written[R]] | None:
        """As `write`, without waiting. None if the write takes more steps than to send it: then only `write` does it.

        Cancelling the future does not stop the write.
        """
        if (isinstance(call, Update) and call.partial) or self.traffic.drain_of(call) is not None:
            return None
        return self._writer.begin(cast("Write[R]", call))

    def confirm(self, lists: Mapping[ServiceKey, Snapshot], via: Via) -> None:
        """The upstream says that these lists still hold, as `Cache.confirm`."""
        self.catalog.cache.confirm(lists, via, self.clock.now())

    @property
    def fetched_at(self) -> float | None:
        """When a fetch last succeeded, in seconds since 1970."""
        return self._fetcher.succeeded_at

    @property
    def suspicious(self) -> bool:
        """Whether lists that shrink a lot are quarantined."""
        return self._sender.suspicious

    def restored(self, confirm_within: float) -> None:
        """The cache was filled from disk: for `confirm_within` seconds, reads wait for the upstream to confirm it."""
        self.suspect()
        self._reader.restored(confirm_within)

    def stood_still(self, gap: float) -> None:
        """This process did not run for `gap` seconds, so it may have missed beats, and the upstream got none."""
        self.catalog.registrations.shift(gap, self.clock.now())
        self.suspect()

    async def close(self) -> None:
        """End all work in progress, and close the registry."""
        await self._writer.close()
        await self._reregistration.close()
        await self._fetcher.close()
        await self.registry.close()
