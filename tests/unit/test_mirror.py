"""A worker's agent mirrors the one that asks the upstream: joined to a real feed by a real socket."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from proxy.agent import Agent, Catalog
from proxy.calls import Deregister, Fetch, GetInstance, ListServices, Register, Update
from proxy.catalog.breaker import Breaker, BreakerPolicy
from proxy.catalog.cache import Cache, CachePolicy
from proxy.catalog.hub import Filter, Hub, HubPolicy, Notice
from proxy.catalog.ledger import Ledger, LedgerPolicy
from proxy.catalog.look import Freshness, Wants
from proxy.catalog.overlay import OverlayPolicy
from proxy.errors import NothingKnown, Refused, Unreachable
from proxy.fastpath.table import Answers, AnswersPolicy
from proxy.feed import Desk, Fed, Feed, FeedPolicy, Tallies
from proxy.link import Link
from proxy.managed import Keeper, ManagedPolicy
from proxy.mirror import FarKeeper, Mirror
from proxy.model import Change
from proxy.poller import Poller, PollPolicy
from proxy.wire.base import HttpReply
from tests.helpers.build import KEY, agent, instance, key, snapshot
from tests.helpers.clock import FakeClock, settle
from tests.helpers.scripted import ScriptedRegistry, Shelf

A, B = instance("10.0.0.1"), instance("10.0.0.2")


@dataclass
class Joined:
    """The process that asks the upstream, and one worker."""

    clock: FakeClock
    registry: ScriptedRegistry
    shelf: Shelf
    main: Agent
    feed: Feed
    fed: Fed
    mirror: Mirror
    changes: list[Change]
    tallies: list[Tallies] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    checking: list[bool] = field(default_factory=list)

    async def caught_up(self) -> None:
        """What was said is heard, on both ends."""
        assert self.mirror.link is not None and self.fed.link is not None
        await self.mirror.link.ask("operations", "/", "", "")
        await settle()


@asynccontextmanager
async def joined(*services: Any) -> AsyncIterator[Joined]:
    clock, shelf = FakeClock(), Shelf(*services)
    registry = ScriptedRegistry(shelf)
    main = agent(registry, clock, epoch="main")
    refused: list[int] = []

    async def operations(path: str, query: str, accept: str) -> HttpReply:
        return HttpReply(200, "text/plain", f"{path}?{query}".encode())

    keeper, poller = Keeper(main, ManagedPolicy()), Poller(main, PollPolicy())
    checking = [True]
    desk = Desk(main, poller, keeper, Answers(AnswersPolicy()), refused.append, operations, lambda: checking[0])
    feed = Feed(desk, FeedPolicy())
    feed.start()
    changes: list[Change] = []
    catalog = Catalog(
        Cache(CachePolicy(), OverlayPolicy(grace=0.0), itertools.repeat(0.5).__next__),
        Hub(HubPolicy(), ""),
        Ledger(LedgerPolicy()),
        Breaker(BreakerPolicy()),
    )
    mirror = Mirror(catalog, clock, [changes.append, catalog.hub.publish])
    world = Joined(clock, registry, shelf, main, feed, Fed(), mirror, changes, refused=refused, checking=checking)
    for known in services:
        await main.read(known.key)
    await _join(world)
    try:
        yield world
    finally:
        await mirror.close()
        while world.feed.workers:
            await asyncio.sleep(0)
        await feed.stop()
        await keeper.stop()


async def _join(world: Joined) -> None:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    world.fed, protocol = world.feed.join()

    async def nothing(name: str, args: tuple[Any, ...]) -> None: ...

    world.mirror.link = link = Link(world.mirror.hear, nothing, lambda: None)
    await loop.create_connection(lambda: protocol, sock=ours)
    world.feed.welcome(world.fed)
    await loop.create_connection(lambda: link, sock=theirs)
    world.mirror.start(lambda: world.tallies.pop() if world.tallies else Tallies({}, (), 0, 0))
    await world.mirror.begun.wait()


async def test_a_worker_knows_at_once_all_that_is_known() -> None:
    async with joined(snapshot(A, B)) as world:
        look = await world.mirror.read(KEY)
        assert (look.snapshot, look.freshness) == (snapshot(A, B), Freshness.FRESH)
        assert len(world.registry.sent(Fetch)) == 1
        assert world.mirror.catalog.hub.last_id == world.main.catalog.hub.last_id


async def test_a_worker_checks_parameters_as_the_process_does_that_asks_the_upstream() -> None:
    async with joined() as world:
        assert world.mirror.checks
        world.checking[0] = False
        while world.mirror.checks:
            await world.clock.advance(0.25)
            await asyncio.sleep(0)


async def test_what_it_does_not_know_it_asks_for_and_the_upstream_is_asked_once() -> None:
    async with joined() as world:
        world.shelf.services[KEY] = snapshot(A)
        looks = await asyncio.gather(*(world.mirror.read(KEY) for _ in range(20)))
        assert all(look.snapshot == snapshot(A) for look in looks)
        assert len(world.registry.sent(Fetch)) == 1


async def test_a_write_shows_here_and_there_before_it_is_answered() -> None:
    async with joined(snapshot(A)) as world:
        await world.mirror.write(Register(KEY, B))
        for one in (world.mirror, world.main):
            look = await one.read(KEY)
            assert look.snapshot is not None and set(look.snapshot.by_key) == {A.key, B.key}
        await world.main.write(Deregister(KEY, A.ip, A.port))
        look = await world.mirror.read(KEY)
        assert look.snapshot is not None and set(look.snapshot.by_key) == {B.key}


async def test_a_worker_that_hears_nothing_holds_up_a_write_for_a_while_only() -> None:
    async with joined(snapshot(A)) as world:
        world.fed.link = None  # what is told gets nowhere
        writing = asyncio.ensure_future(world.main.write(Register(KEY, B)))  # noqa: TID251
        await settle()
        assert not writing.done()
        await world.clock.advance(FeedPolicy().settle_within)
        await writing


async def test_events_come_with_the_same_ids_so_that_a_reader_may_come_back_to_any_worker() -> None:
    async with joined(snapshot(A)) as world:
        boxes = []
        for one in (world.main, world.mirror):
            box, _ = await one.watch(Filter(frozenset({KEY})), lambda: None)
            boxes.append(box)
        await world.mirror.write(Register(KEY, B))
        await world.mirror.write(Deregister(KEY, A.ip, A.port))
        there, here = (box.take() for box in boxes)
        ids = [
            [one.catalog.hub.id_of(event) for event in events]
            for one, events in ((world.main, there), (world.mirror, here))
        ]
        assert ids[0] == ids[1] != []
        resumed, first = await world.main.watch(Filter(frozenset({KEY})), lambda: None, ids[1][-1])
        assert (resumed.reset, first, resumed.take()) == (False, [], [])


async def test_a_loss_of_the_upstream_is_heard_here_in_order() -> None:
    async with joined(snapshot(A)) as world:
        box, _ = await world.mirror.watch(Filter(frozenset({KEY})), lambda: None)
        world.registry.script = lambda call: Unreachable("gone", arrived=False)
        for _ in range(3):
            with pytest.raises(Unreachable):
                await world.mirror.send(ListServices("public", "DEFAULT_GROUP"))
        await world.caught_up()
        assert [event.body for event in box.take()] == [Notice("down", "gone")]
        assert (world.mirror.catalog.breaker.up, world.mirror.catalog.breaker.reason) == (False, "gone")
        look = await world.mirror.read(KEY)
        assert look.snapshot == snapshot(A)


async def test_confirmations_keep_an_unchanged_service_fresh() -> None:
    async with joined(snapshot(A)) as world:
        await world.clock.advance(9.0)
        await world.main.read(KEY, Wants(no_cache=True))
        await world.clock.advance(2.0)
        await world.caught_up()
        look = world.mirror.catalog.cache.look(KEY, world.clock.now())
        assert (look.freshness, look.age <= 3.0) == (Freshness.FRESH, True)


async def test_losing_push_there_ends_here_what_was_prepared_while_it_lived() -> None:
    async with joined(snapshot(A)) as both:
        lost: list[bool] = []
        both.mirror.on_push_lost.append(lambda: lost.append(both.mirror.catalog.cache.pushed))
        for alive in (True, False, False):
            both.main.catalog.cache.pushing(alive, both.clock.now())
            await both.clock.advance(0.3)
            await both.caught_up()
            assert both.mirror.catalog.cache.pushed == alive
        assert lost == [False]


async def test_reads_and_watches_here_keep_a_service_watched_there() -> None:
    async with joined(snapshot(A)) as world:
        entry = world.main.catalog.cache.get(KEY)
        assert entry is not None
        await world.clock.advance(5.0)
        await world.mirror.read(KEY)
        await world.clock.advance(1.0)
        await world.caught_up()
        assert entry.last_read >= world.clock.now() - 1.5
        box, _ = await world.mirror.watch(Filter(frozenset({KEY})), lambda: None)
        await world.caught_up()
        assert entry.watchers == 1
        world.mirror.unwatch(box)
        world.mirror.unwatch(box)
        await world.caught_up()
        assert entry.watchers == 0


async def test_a_worker_that_dies_leaves_no_watch_behind() -> None:
    async with joined(snapshot(A)) as world:
        await world.mirror.watch(Filter(frozenset({KEY})), lambda: None)
        world.mirror.discover("public", "DEFAULT_GROUP")
        await world.caught_up()
        entry = world.main.catalog.cache.get(KEY)
        assert entry is not None and entry.watchers == 1
        assert world.mirror.link is not None
        world.mirror.link.close()
        while world.feed.workers:
            await asyncio.sleep(0)
        assert entry.watchers == 0


@pytest.mark.parametrize(
    "ask",
    [
        lambda one: one.modify(Update(KEY, A.ip, A.port, weight=5.0)),
        lambda one: one.instance(GetInstance(KEY, A.ip, A.port)),
        lambda one: one.send(ListServices("public", "DEFAULT_GROUP")),
    ],
    ids=["modify", "instance", "services"],
)
async def test_it_does_here_what_is_done_there(ask: Callable[[Agent], Awaitable[Any]]) -> None:
    async with joined(snapshot(A)) as world:
        here, there = await ask(world.mirror), await ask(world.main)
        assert str(here) == str(there) or here[0] == there[0]


async def test_a_refusal_comes_through() -> None:
    async with joined(snapshot(A)) as world:
        with pytest.raises(Refused, match="no matched ip"):
            await world.mirror.instance(GetInstance(KEY, "10.9.9.9", 80))


async def test_nothing_known_there_is_nothing_known_here() -> None:
    async with joined() as world:
        world.registry.script = lambda call: Unreachable("gone", arrived=False)
        with pytest.raises(NothingKnown):
            await world.mirror.read(key("unknown"))


async def test_what_was_counted_here_is_counted_there() -> None:
    async with joined() as world:
        world.tallies.append(Tallies({"hit": 3}, [("list", 200, 7, 2)], 1, 5))
        await world.clock.advance(1.0)
        await world.caught_up()
        assert world.main.counts.reads["hit"] == 3
        assert (world.feed.streams, world.refused) == (5, [1])


async def test_managed_instances_are_told_of_there() -> None:
    async with joined() as world:
        far = FarKeeper(world.mirror)
        assert far.heard(KEY, "10.0.0.1", 80) is True
        far.forget(KEY, "10.0.0.1", 80)
        await world.caught_up()
