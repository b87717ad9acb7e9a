"""A mailbox and the snapshots that it starts from are taken in one stretch; see `test_agent` for all of `watch`."""

from __future__ import annotations

import itertools

from proxy.catalog.cache import Cache, CachePolicy
from proxy.catalog.hub import Filter, Hub, HubPolicy
from proxy.catalog.overlay import OverlayPolicy
from proxy.errors import NothingKnown
from proxy.model import ServiceKey
from proxy.watching import Watching
from tests.helpers.build import KEY, instance, key, snapshot
from tests.helpers.clock import FakeClock

A = instance()


class World:
    def __init__(self) -> None:
        self.cache = Cache(CachePolicy(), OverlayPolicy(), itertools.repeat(0.5).__next__)
        self.hub = Hub(HubPolicy(), "e")
        self.watching = Watching(self.cache, self.hub, self.read, FakeClock())
        self.known = {KEY: snapshot(A)}

    async def read(self, service: ServiceKey) -> None:
        if service not in self.known:
            raise NothingKnown("nobody to ask")
        self.cache.accept(self.known[service], 0, "poll", asked=0)


async def test_what_cannot_be_fetched_has_no_snapshot_and_is_watched_all_the_same() -> None:
    world = World()
    other = key("other")
    mailbox, start = await world.watching.watch(Filter(frozenset({KEY, other})), lambda: None, "")
    assert [s.instances for s in start] == [(A,)]
    assert world.cache.watched(other, 0)
    assert world.watching.unwatch(mailbox) is True
    assert world.watching.unwatch(mailbox) is False
    assert not world.cache.watched(other, 0)
