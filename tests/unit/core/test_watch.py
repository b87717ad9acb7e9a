"""A mailbox and the snapshots that it starts from are taken in one stretch."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from nacos_proxy.catalog.cache import Cache, CachePolicy
from nacos_proxy.catalog.hub import Filter, Hub, HubPolicy
from nacos_proxy.catalog.pending_writes import PendingPolicy
from nacos_proxy.core.watch import MAX_READS, Watches
from nacos_proxy.model.calls import Call, Deregister, Fetch, Register
from nacos_proxy.model.errors import NothingKnown, Reason, Refused
from nacos_proxy.model.services import Change, ServiceKey
from tests.helpers.build import KEY, agent, key, snapshot
from tests.helpers.clock import FakeClock, settle
from tests.helpers.scripted import ScriptedRegistry, Shelf
from tests.helpers.world import AWAY, A, B, C, World


class Watched:
    def __init__(self, strict: bool = False, hub: HubPolicy = HubPolicy()) -> None:  # noqa: B008 - a frozen value
        self.cache = Cache(CachePolicy(), PendingPolicy(), itertools.repeat(0.5).__next__)
        self.hub = Hub(hub, "e")
        self.watches = Watches(self.cache, self.hub, self.read, FakeClock(), strict)
        self.known: dict[ServiceKey, Any] = {KEY: snapshot(A)}

    async def read(self, service: ServiceKey) -> None:
        if service not in self.known:
            raise NothingKnown("nobody to ask")
        if isinstance(self.known[service], Refused):
            raise self.known[service]
        self.cache.accept(self.known[service], 0, "poll", requested_at=0)


async def test_watch_of_a_service_that_cannot_be_fetched_gives_no_snapshot_but_watches_it() -> None:
    world = Watched()
    other = key("other")
    mailbox, start = await world.watches.watch(Filter(frozenset({KEY, other})), lambda: None, "")
    assert [s.instances for s in start] == [(A,)]
    assert other in world.cache.watched_keys()
    assert world.watches.unwatch(mailbox) is True
    assert world.watches.unwatch(mailbox) is False
    assert other not in world.cache.watched_keys()


REFUSED = Refused(Reason.NO_RIGHT, "authorization failed!", status=403)


async def test_watch_raises_if_all_is_refused_and_rights_are_strict() -> None:
    for strict in (True, False):
        world = Watched(strict)
        world.known[KEY] = REFUSED
        if strict:
            with pytest.raises(Refused):
                await world.watches.watch(Filter(frozenset({KEY})), lambda: None, "")
        else:
            assert (await world.watches.watch(Filter(frozenset({KEY})), lambda: None, ""))[1] == []
        assert world.hub.readers == (0 if strict else 1)


async def test_watch_that_resumes_does_not_replay_what_is_refused_now() -> None:
    world, other = Watched(strict=True), key("other")
    world.known[other] = snapshot(A, service=other)
    after = world.hub.last_id
    for service in (KEY, other):
        change = world.cache.accept(world.known[service], 0, "poll", requested_at=0)
        assert change is not None
        world.hub.publish(change)
    world.known[KEY] = REFUSED
    for interest in (Filter(frozenset({KEY, other})), Filter(everything=(KEY.namespace, KEY.group))):
        world.cache.reject(KEY, REFUSED, 0, forbidden=True)
        mailbox, start = await world.watches.watch(interest, lambda: None, after)
        assert {event.body.key for event in mailbox.take()} == {other}
        assert KEY not in {shown.key for shown in start}


async def test_watch_of_many_services_reads_only_some_at_once_and_all_in_the_end() -> None:
    keys = [key(f"s{number}") for number in range(4 * MAX_READS)]
    under_way = most = 0

    class Slow(Watched):
        async def read(self, service: ServiceKey) -> None:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await settle(3)
            under_way -= 1
            await super().read(service)

    world = Slow()
    world.known = {service: snapshot(A, service=service) for service in keys}
    _, start = await world.watches.watch(Filter(frozenset(keys)), lambda: None, "")
    assert (len(start), most) == (4 * MAX_READS, MAX_READS)


async def test_watch_gives_the_snapshot_and_then_every_change(world: World) -> None:
    mailbox, known = await world.agent.watch(Filter(frozenset({KEY})), lambda: None)
    assert [s.instances for s in known] == [(A, B)]
    assert len(mailbox) == 0
    await world.agent.write(Register(KEY, C))
    (event,) = mailbox.take()
    assert isinstance(event.body, Change) and event.body.added == (C,)


async def test_watch_that_resumes_without_a_gap_gives_no_snapshot(world: World) -> None:
    first, _ = await world.agent.watch(Filter(frozenset({KEY})), lambda: None)
    last = world.agent.catalog.hub.last_id
    world.agent.unwatch(first)
    await world.agent.write(Register(KEY, C))
    again, known = await world.agent.watch(Filter(frozenset({KEY})), lambda: None, last)
    assert (known, len(again)) == ([], 1)
    _, known = await world.agent.watch(Filter(frozenset({KEY})), lambda: None, "other-1")
    assert len(known) == 1


async def test_watch_that_resumes_gives_the_empty_snapshot_of_a_service_that_was_forgotten_meanwhile() -> None:
    """Pushed out of the cache, then emptied: no change says so, and the last one that is kept says otherwise."""
    shelf = Shelf(snapshot(A))
    agent_ = agent(ScriptedRegistry(shelf), FakeClock(), cache=CachePolicy(max_services=1))
    interest = Filter(frozenset({KEY}))
    first, _ = await agent_.watch(interest, lambda: None)
    heard = agent_.catalog.hub.last_id
    agent_.unwatch(first)
    await agent_.write(Register(KEY, B))
    for name in ("b", "c"):  # what was registered here is pinned, so it has to go first
        shelf.services[key(name)] = snapshot(C, service=key(name))
    await agent_.write(Deregister(KEY, B.ip, B.port))
    for name in ("b", "c"):
        await agent_.read(key(name))
    assert agent_.catalog.cache.get(KEY) is None
    shelf.services[KEY] = snapshot()
    again, known = await agent_.watch(interest, lambda: None, heard)
    assert not again.reset
    assert ([s.key for s in known], [s.instances for s in known], len(again)) == ([KEY], [()], 0)
    await agent_.close()


async def test_watch_of_many_services_gives_the_snapshots_that_can_be_fetched(world: World) -> None:
    other = key("other")

    def script(call: Call[Any]) -> Any:
        return AWAY if isinstance(call, Fetch) and call.service == other else world.shelf(call)

    world.registry.script = script
    mailbox, known = await world.agent.watch(Filter(frozenset({KEY, other})), lambda: None)
    assert [s.key for s in known] == [KEY]
    world.heal()
    world.shelf.services[other] = snapshot(C, service=other)
    world.agent.refresh(other)
    await settle()
    (event,) = mailbox.take()
    assert isinstance(event.body, Change) and (event.body.key, event.body.added) == (other, (C,))


async def test_watch_of_a_group_gives_its_services_that_have_instances(world: World) -> None:
    services: list[ServiceKey] = [key("a"), key("b"), key("c", group="other"), key("empty")]
    for service in services[:3]:
        world.shelf.services[service] = snapshot(A, service=service)
    for service in services:
        await world.agent.read(service)
    _, known = await world.agent.watch(Filter(everything=("public", "DEFAULT_GROUP")), lambda: None)
    assert sorted(s.key.name for s in known) == ["a", "b"]


async def test_unwatch_twice_does_not_end_the_watch_of_another(world: World) -> None:
    first, _ = await world.agent.watch(Filter(frozenset({KEY})), lambda: None)
    await world.agent.watch(Filter(frozenset({KEY})), lambda: None)
    world.agent.unwatch(first)
    world.agent.unwatch(first)
    entry = world.agent.catalog.cache.get(KEY)
    assert entry is not None and entry.watcher_count == 1


async def test_watch_from_gives_the_lists_of_another_revision_and_watches_all() -> None:
    world = Watched()
    stock, lost = key("stock"), key("lost")
    world.known[stock] = snapshot(B, service=stock)
    known = {KEY: snapshot(A).revision, stock: "", lost: ""}
    mailbox, changed = await world.watches.watch_from(known, lambda: None, "", "10.0.0.1")
    assert ([found.key for found in changed], mailbox.reset, mailbox.client) == ([stock], False, "10.0.0.1")
    assert all(world.cache.get(each).watcher_count == 1 for each in known)  # type: ignore[union-attr]
    assert world.watches.unwatch(mailbox)
    assert world.cache.get(KEY).watcher_count == 0  # type: ignore[union-attr]


async def test_watch_from_replays_nothing_and_says_whether_the_hub_is_the_same() -> None:
    world = Watched()
    await world.read(KEY)
    world.hub.publish(Change(snapshot(), snapshot(A), "poll"))
    same, _ = await world.watches.watch_from({KEY: "old"}, lambda: None, "e-0", "")
    other, _ = await world.watches.watch_from({KEY: "old"}, lambda: None, "f-0", "")
    assert (len(same), same.reset, other.reset) == (0, False, True)


async def test_watch_from_knows_its_run_by_an_id_that_the_history_no_longer_has() -> None:
    world = Watched(hub=HubPolicy(history=1))
    for _ in range(2):
        world.hub.publish(Change(snapshot(), snapshot(A), "poll"))
    assert world.hub.subscribe(Filter(), lambda: None, "e-0").reset
    assert not (await world.watches.watch_from({KEY: "old"}, lambda: None, "e-0", ""))[0].reset
