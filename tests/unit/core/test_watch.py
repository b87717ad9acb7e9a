"""A mailbox and the snapshots that it starts from are taken in one stretch; see `test_agent` for all of `watch`."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from nacos_proxy.catalog.cache import Cache, CachePolicy
from nacos_proxy.catalog.hub import Filter, Hub, HubPolicy
from nacos_proxy.catalog.pending_writes import PendingPolicy
from nacos_proxy.core.watch import MAX_READS, Watches
from nacos_proxy.model.errors import NothingKnown, Reason, Refused
from nacos_proxy.model.services import ServiceKey
from tests.helpers.build import KEY, instance, key, snapshot
from tests.helpers.clock import FakeClock, settle

A = instance()


class World:
    def __init__(self, strict: bool = False) -> None:
        self.cache = Cache(CachePolicy(), PendingPolicy(), itertools.repeat(0.5).__next__)
        self.hub = Hub(HubPolicy(), "e")
        self.watching = Watches(self.cache, self.hub, self.read, FakeClock(), strict=strict)
        self.known: dict[ServiceKey, Any] = {KEY: snapshot(A)}

    async def read(self, service: ServiceKey) -> None:
        if service not in self.known:
            raise NothingKnown("nobody to ask")
        if isinstance(self.known[service], Refused):
            raise self.known[service]
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


REFUSED = Refused(Reason.NO_RIGHT, "authorization failed!", status=403)


async def test_a_start_that_shows_nothing_but_refusals_is_refused_where_rights_are_the_clients() -> None:
    for strict in (True, False):
        world = World(strict)
        world.known[KEY] = REFUSED
        if strict:
            with pytest.raises(Refused):
                await world.watching.watch(Filter(frozenset({KEY})), lambda: None, "")
        else:
            assert (await world.watching.watch(Filter(frozenset({KEY})), lambda: None, ""))[1] == []
        assert world.hub.readers == (0 if strict else 1)


async def test_who_resumes_is_not_told_from_history_of_what_is_refused_now() -> None:
    world, other = World(strict=True), key("other")
    world.known[other] = snapshot(A, service=other)
    after = world.hub.last_id
    for service in (KEY, other):
        change = world.cache.accept(world.known[service], 0, "poll", asked=0)
        assert change is not None
        world.hub.publish(change)
    world.known[KEY] = REFUSED
    for interest in (Filter(frozenset({KEY, other})), Filter(everything=(KEY.namespace, KEY.group))):
        world.cache.reject(KEY, REFUSED, 0, barred=True)
        mailbox, start = await world.watching.watch(interest, lambda: None, after)
        assert {event.body.key for event in mailbox.take()} == {other}
        assert KEY not in {shown.key for shown in start}


async def test_of_many_services_only_some_are_asked_for_at_once_and_all_in_the_end() -> None:
    keys = [key(f"s{number}") for number in range(4 * MAX_READS)]
    under_way = most = 0

    class Slow(World):
        async def read(self, service: ServiceKey) -> None:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await settle(3)
            under_way -= 1
            await super().read(service)

    world = Slow()
    world.known = {service: snapshot(A, service=service) for service in keys}
    _, start = await world.watching.watch(Filter(frozenset(keys)), lambda: None, "")
    assert (len(start), most) == (4 * MAX_READS, MAX_READS)
