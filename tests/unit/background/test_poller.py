"""The background work of an agent, on a clock that stands still: what is asked for, how often, never all at once."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

import pytest

from nacos_proxy.background.poller import Poller, PollPolicy
from nacos_proxy.catalog.hub import Filter
from nacos_proxy.model.calls import BEAT_OK, Beat, Call, Deregister, Fetch, GetInstance, ListServices, Metrics, Register
from nacos_proxy.model.errors import Busy, Reason, Refused, Unreachable
from nacos_proxy.model.services import Change, ServiceKey, Via
from nacos_proxy.runtime import spawn
from nacos_proxy.upstream.contract import Changed, Confirmed, Doubted, Report
from tests.helpers.build import KEY, agent, instance, key, snapshot
from tests.helpers.clock import FakeClock, settle
from tests.helpers.scripted import ScriptedRegistry, Shelf

A, B = instance("10.0.0.1"), instance("10.0.0.2")
AWAY = Unreachable("connection refused", arrived=False)


class Push:
    """Tells what the test says. `asked` are the sets that it was to watch."""

    def __init__(self) -> None:
        self.alive = True
        self.unheard: set[ServiceKey] = set()
        self.asked: list[frozenset[ServiceKey]] = []
        self._told: asyncio.Queue[ServiceKey | Report | Exception] = asyncio.Queue()

    def watch(self, services: Collection[ServiceKey]) -> None:
        self.asked.append(frozenset(services))

    def covers(self, key: ServiceKey) -> bool:
        return key not in self.unheard

    async def changes(self) -> AsyncIterator[Report]:
        while True:
            told = await self._told.get()
            if isinstance(told, Exception):
                raise told
            yield Changed(told) if isinstance(told, ServiceKey) else told

    async def tell(self, told: ServiceKey | Report | Exception) -> None:
        self._told.put_nowait(told)
        await settle()


class World:
    """A poller that runs around services in a dict. `polls` are the fetches since the last look."""

    def __init__(self, push: Push | None, policy: PollPolicy) -> None:
        self.clock = FakeClock()
        self.shelf = Shelf(snapshot(A))
        self.registry = ScriptedRegistry(self.shelf)
        self.changes: list[Change] = []
        self.agent = agent(self.registry, self.clock, self.changes.append)
        self.poller = Poller(self.agent, policy, push)
        self._seen = 0

    @property
    def cache(self) -> Any:
        return self.agent.catalog.cache

    def calls(self) -> list[Call[Any]]:
        new, self._seen = self.registry.calls[self._seen :], len(self.registry.calls)
        return new

    def polls(self) -> list[ServiceKey]:
        return [call.service for call in self.calls() if isinstance(call, Fetch)]

    async def fill(self, number: int) -> list[ServiceKey]:
        """So many services that were read once."""
        services = [key(f"s{n}") for n in range(number)]
        for service in services:
            self.shelf.services[service] = snapshot(A, service=service)
            await self.agent.read(service)
        self.calls()
        return services

    async def lose(self) -> None:
        self.registry.script = lambda call: AWAY
        while self.agent.catalog.breaker.up:
            with pytest.raises(Unreachable):
                await self.agent.send(Metrics())
        self.calls()


@asynccontextmanager
async def polling(push: Push | None = None, **policy: Any) -> AsyncIterator[World]:
    world = World(push, PollPolicy(**policy))
    world.poller.start()
    await settle()
    try:
        yield world
    finally:
        await world.poller.stop()
        await world.agent.close()


# --- polls ---------------------------------------------------------------------------------------------------------


async def test_poll_fetches_only_what_is_watched_and_finds_changes_made_elsewhere() -> None:
    async with polling() as world:
        await world.agent.watch(Filter(frozenset({KEY})), lambda: None)
        await world.agent.read(key("nobody"))
        world.calls()
        await world.clock.advance(10)
        assert set(world.polls()) == {KEY}
        world.shelf.services[KEY] = snapshot(A, B)
        await world.clock.advance(1.2)
        assert world.changes[-1].added == (B,)


async def test_poll_fetches_a_subscribed_service_each_second_and_a_read_one_every_five() -> None:
    async with polling() as world:
        (read,) = await world.fill(1)
        await world.agent.watch(Filter(frozenset({KEY})), lambda: None)
        world.calls()
        await world.clock.advance(60)
        polls = world.polls()
        assert 50 <= polls.count(KEY) <= 60
        assert 11 <= polls.count(read) <= 12


async def test_poll_keeps_to_its_budget_and_leaves_nothing_out() -> None:
    async with polling(budget=10) as world:
        services = await world.fill(100)
        await world.clock.advance(0.1)
        world.calls()
        for service in services:
            world.cache.invalidate(service, world.clock.now())
        begin = len(world.registry.calls)
        await world.clock.advance(4)
        assert len(world.registry.calls) - begin <= 50
        await world.clock.advance(8)
        assert set(world.polls()) == set(services)


async def test_poll_works_with_a_budget_of_less_than_one_a_second() -> None:
    async with polling(budget=0.5) as world:
        await world.fill(3)
        await world.clock.advance(60)
        assert 25 <= len(world.polls()) <= 32


async def test_poll_does_not_fetch_a_slow_service_twice_or_spend_the_others_budget_on_it() -> None:
    async with polling(budget=2) as world:
        slow, *others = await world.fill(4)
        forever = asyncio.get_running_loop().create_future()
        world.registry.script = lambda call: (
            forever if isinstance(call, Fetch) and call.service == slow else world.shelf(call)
        )
        for _ in range(100):
            await world.agent.read(slow)
            await world.clock.advance(0.3)
        polls = world.polls()
        assert polls.count(slow) == 1
        assert all(polls.count(other) >= 5 for other in others)
        forever.cancel()


async def test_expire_registrations_forgets_silent_clients_and_ends_their_watch() -> None:
    async with polling() as world:
        await world.agent.write(Register(KEY, B))
        await world.clock.advance(29)
        entry = world.cache.get(KEY)
        assert (world.agent.catalog.registrations.count(KEY), entry.local_registrations) == (1, 1)
        await world.clock.advance(1.2)
        assert (world.agent.catalog.registrations.count(KEY), entry.local_registrations) == (0, 0)


async def test_step_that_fails_is_logged_once_and_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Push):
        def watch(self, services: Collection[ServiceKey]) -> None:
            raise RuntimeError("the SDK panicked")

    broken = Broken()
    broken.unheard = {key("s0")}
    async with polling(broken) as world:
        await world.fill(1)
        with caplog.at_level(logging.ERROR, "nacos_proxy.runtime"):
            await world.clock.advance(6)
        told = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
        assert len(told) == 1 and told[0].startswith(
            "following push failed and goes on: RuntimeError('the SDK panicked')"
        )
        assert world.agent.supervisor.failing == {"following push": "RuntimeError: the SDK panicked"}
        assert world.polls() == [key("s0")]
        assert world.poller._running is not None and not world.poller._running.done()


async def test_poll_of_what_push_does_not_cover_is_as_without_push() -> None:
    push = Push()
    push.unheard = {key("s1")}
    async with polling(push) as world:
        _, other = await world.fill(2)
        await world.clock.advance(6)
        assert world.poller.push_alive
        world.polls()
        await world.clock.advance(12)
        assert set(world.polls()) == {other}


async def longest_pauses(world: World, services: Collection[ServiceKey], seconds: float) -> dict[ServiceKey, float]:
    """The longest time between two polls of each service."""
    world.polls()
    last, longest = dict.fromkeys(services, world.clock.now()), dict.fromkeys(services, 0.0)
    end = world.clock.now() + seconds
    while (now := world.clock.now()) < end:
        await world.clock.advance(0.1)
        for polled in world.polls():
            if polled in last:
                longest[polled], last[polled] = max(longest[polled], now - last[polled]), now
    return {service: max(longest[service], end - last[service]) for service in services}


@pytest.mark.parametrize("streams", [1, 8])
@pytest.mark.parametrize("client", ["10.0.0.1", "10.0.0.2"], ids=["same address", "other address"])
async def test_poll_for_a_client_that_watches_thousands_of_services_delays_nobody_else(
    streams: int, client: str
) -> None:
    """4,000 services of one listener made each poll of the others wait for 20 s in place of 1 s."""
    async with polling(budget=200.0) as world:
        services = await world.fill(4_020)
        heavy, light, read = services[:4000], services[4000:4010], services[4010:]
        for number in range(streams):
            part = frozenset(heavy[number::streams])
            await world.agent.watch(Filter(part), lambda: None, client="10.0.0.1")
        for service in light:
            await world.agent.watch(Filter(frozenset({service})), lambda: None, client=client)
        await world.clock.advance(5.0)
        pauses = await longest_pauses(world, (*light, *read), 30.0)
        assert max(pauses[service] for service in light) <= 2.0, pauses
        assert max(pauses[service] for service in read) <= 6.5, pauses
        rest = await longest_pauses(world, heavy, 60.0)
        assert max(rest.values()) < 40.0, "they have what is left"
        print(f"light {max(pauses[s] for s in light):.1f} s, read {max(pauses[s] for s in read):.1f} s,", end=" ")
        print(f"heavy {max(rest.values()):.1f} s")


async def test_poll_for_a_client_that_watches_a_whole_namespace_delays_nobody_else() -> None:
    async with polling(budget=200.0) as world:
        for service in [key(f"s{number}") for number in range(4_000)]:
            world.shelf.services[service] = snapshot(A, service=service)
        light = [key("s0"), key("s1")]
        for service in light:
            await world.agent.watch(Filter(frozenset({service})), lambda: None, client="10.0.0.2")
        world.poller.discover(*GROUP)
        pauses = await longest_pauses(world, light, 30.0)
        assert max(pauses.values()) <= 2.0, pauses


async def test_late_is_logged_once_and_so_is_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with polling(budget=2.0) as world:
        services = await world.fill(100)
        readers = [await world.agent.watch(Filter(frozenset({service})), lambda: None) for service in services]
        await world.clock.advance(60)
        assert world.poller.late and world.poller.behind > 10
        for mailbox, _ in readers[5:]:
            world.agent.unwatch(mailbox)
        await world.clock.advance(700)
        assert not world.poller.late
        lines = [record.getMessage() for record in caplog.records if "polling" in record.getMessage()]
        assert [line.partition(":")[0] for line in lines] == ["polling is late", "polling keeps up again"]


# --- is it there? --------------------------------------------------------------------------------------------------


async def test_probe_notices_the_loss_of_an_idle_upstream() -> None:
    async with polling(probe_after=5) as world:
        await world.clock.advance(20)
        assert {type(call) for call in world.calls()} == {Metrics}
        world.registry.script = lambda call: AWAY
        await world.clock.advance(5 + 2 * 1 + 0.5)  # quiet until the first failure, in doubt for the next two
        assert not world.agent.catalog.breaker.up
        world.registry.script = world.shelf
        await world.clock.advance(5.5)
        assert world.agent.catalog.breaker.up


async def test_probe_is_not_sent_while_polls_are_answered() -> None:
    async with polling(probe_after=5) as world:
        await world.agent.watch(Filter(frozenset({KEY})), lambda: None)
        await world.clock.advance(4)
        world.calls()
        await world.clock.advance(30)
        assert {type(call) for call in world.calls()} == {Fetch}


async def test_probe_of_an_upstream_that_is_down_is_rare_and_one_call_at_a_time() -> None:
    async with polling() as world:
        services = await world.fill(50)
        await world.lose()
        await world.clock.advance(60)
        calls = world.calls()
        assert 60 / 5 <= len(calls) <= 60 / 5 + 5
        assert all(world.cache.lookup(service, world.clock.now()).snapshot is not None for service in services)


async def test_probe_notices_the_return_and_all_is_fresh_soon_after() -> None:
    async with polling() as world:
        services = await world.fill(50)
        await world.lose()
        await world.clock.advance(120)
        world.registry.script = world.shelf
        await world.clock.advance(12)
        assert world.agent.catalog.breaker.up
        assert all(not world.cache.lookup(service, world.clock.now()).stale for service in services)


# --- push ----------------------------------------------------------------------------------------------------------


async def test_poll_is_rare_while_push_is_alive_and_changes_arrive_at_once() -> None:
    push = Push()
    async with polling(push) as world:
        await world.agent.watch(Filter(frozenset({KEY})), lambda: None)
        await world.clock.advance(2)
        assert push.asked[-1] == {KEY}
        world.calls()
        await world.clock.advance(60)
        assert len(world.polls()) == 2
        world.shelf.services[KEY] = snapshot(A, B)
        await push.tell(KEY)  # the clock stands still
        assert (world.changes[-1].added, world.changes[-1].source) == ((B,), "push")


async def test_push_of_a_list_costs_no_fetch_and_no_budget() -> None:
    push = Push()
    async with polling(push, budget=20) as world:
        services = await world.fill(200)
        await world.clock.advance(60)
        world.calls()
        for service in services:
            await push.tell(Changed(service, snapshot(A, B, service=service)))
        assert (world.polls(), len(world.changes)) == ([], 400)
        assert all(change.added == (B,) for change in world.changes[200:])


async def test_push_of_a_whole_list_counts_whatever_is_known() -> None:
    push = Push()
    async with polling(push) as world:
        (service,) = await world.fill(1)
        await world.clock.advance(60)
        world.calls()
        await push.tell(Changed(service, snapshot(A, B, service=service, threshold=0.5), whole=True))
        await push.tell(Changed(service, snapshot(A, service=service, threshold=0.5), whole=True))
        assert (world.polls(), world.changes[-1].removed) == ([], (B,))


async def test_confirmed_lists_are_not_polled_and_the_upstream_is_not_probed() -> None:
    push = Push()
    async with polling(push) as world:
        (service,) = await world.fill(1)
        pushed = snapshot(A, service=service)
        await push.tell(Changed(service, pushed, whole=True))
        world.calls()
        for _ in range(40):
            await world.clock.advance(4)
            await push.tell(Confirmed({service: pushed}, Via(1.0)))
        assert world.calls() == []
        assert world.cache.lookup(service, world.clock.now()).age <= 5.0


async def test_a_doubt_drops_prepared_answers_and_outlasts_push() -> None:
    push, dropped = Push(), list[str]()
    async with polling(push) as world:
        world.poller.on_push_lost.append(lambda: dropped.append("dropped"))
        await world.fill(1)
        await push.tell(Doubted("refused"))
        assert (world.cache.doubted, dropped) == (True, ["dropped"])
        push.alive = False
        await world.clock.advance(1)
        assert (world.cache.doubted, dropped) == (True, ["dropped", "dropped"])
        push.alive = True
        await push.tell(Doubted(""))
        assert not world.cache.doubted, "the next stream says how it is"


async def test_push_of_a_list_that_does_not_say_all_is_fetched() -> None:
    push = Push()
    async with polling(push) as world:
        (service,) = await world.fill(1)
        await world.clock.advance(60)
        world.calls()
        world.shelf.services[service] = snapshot(service=service)
        await push.tell(Changed(service, snapshot(service=service), fetch_shows_more=True))
        assert (world.polls(), world.changes[-1].removed) == ([service], (A,))


async def test_poll_returns_to_its_pace_when_push_is_lost() -> None:
    push = Push()
    async with polling(push) as world:
        await world.agent.watch(Filter(frozenset({KEY})), lambda: None)
        await world.clock.advance(10)
        push.alive = False
        lost: list[bool] = []
        world.poller.on_push_lost.append(lambda: lost.append(world.agent.catalog.cache.pushed))
        world.calls()
        await world.clock.advance(0.2)
        assert lost == [False]  # told once, when what is prepared from now on has its shorter life already
        assert (world.polls(), world.poller.push_alive) == ([KEY], False)
        await world.clock.advance(10)
        assert 9 <= len(world.polls()) <= 10
        push.alive = True
        await world.clock.advance(10)
        assert len(world.polls()) <= 1
        assert world.poller.push_alive


async def test_push_that_failed_counts_as_lost_until_it_listens_again() -> None:
    push = Push()
    async with polling(push) as world:
        await world.agent.watch(Filter(frozenset({KEY})), lambda: None)
        await world.clock.advance(5)
        world.calls()
        await push.tell(RuntimeError("the SDK panicked"))
        await world.clock.advance(0.5)
        assert not world.poller.push_alive
        assert len(world.polls()) == 1, "what changed in between nobody has told"
        await world.clock.advance(1)
        assert world.poller.push_alive
        await push.tell(KEY)
        await world.clock.advance(0.2)
        assert len(world.polls()) >= 1


async def test_notified_of_thousands_of_changes_keeps_to_the_budget() -> None:
    push = Push()
    async with polling(push, budget=20) as world:
        services = await world.fill(200)
        await world.clock.advance(60)
        world.calls()
        for service in services:
            await push.tell(service)
        assert len(world.polls()) <= 20
        await world.clock.advance(10)
        assert set(world.polls()) >= set(services[20:])


async def test_notified_during_a_fetch_causes_another_fetch() -> None:
    push = Push()
    async with polling(push) as world:
        await world.agent.watch(Filter(frozenset({KEY})), lambda: None)
        await world.clock.advance(2)
        old = world.shelf.of(KEY)
        waiting: list[asyncio.Future[Any]] = []

        def held(call: Call[Any]) -> Any:
            waiting.append(asyncio.get_running_loop().create_future())
            return waiting[-1]

        world.registry.script = held
        await push.tell(KEY)
        await world.clock.advance(0.05)
        world.shelf.services[KEY] = snapshot(A, B)
        await push.tell(KEY)
        world.registry.script = world.shelf
        waiting[0].set_result(old)
        await world.clock.advance(0.2)
        assert world.changes[-1].added == (B,)


async def test_push_gets_the_watched_services_only_when_they_changed() -> None:
    push = Push()
    async with polling(push) as world:
        mailbox, _ = await world.agent.watch(Filter(frozenset({KEY})), lambda: None)
        await world.clock.advance(100)
        assert push.asked == [frozenset(), {KEY}]
        (other,) = await world.fill(1)
        await world.clock.advance(1)
        assert push.asked[2:] == [{KEY, other}]
        world.agent.unwatch(mailbox)
        await world.clock.advance(700)
        assert push.asked[-1] == frozenset()


# --- every service of a group --------------------------------------------------------------------------------------

GROUP = ("public", "DEFAULT_GROUP")


def names(world: World) -> set[str]:
    return {service.name for service in world.cache.watched_keys()}


async def test_discover_finds_services_that_come_and_go() -> None:
    async with polling() as world:
        mailbox, known = await world.agent.watch(Filter(everything=GROUP), lambda: None)
        assert known == []
        world.poller.discover(*GROUP)
        await world.clock.advance(0.5)
        assert [e.body.added for e in mailbox.take() if isinstance(e.body, Change)] == [(A,)]
        world.shelf.services[key("late")] = snapshot(B, service=key("late"))
        await world.clock.advance(6)
        assert [e.body.key.name for e in mailbox.take() if isinstance(e.body, Change)] == ["late"]
        del world.shelf.services[key("late")]
        await world.clock.advance(6)
        (event,) = mailbox.take()
        assert isinstance(event.body, Change) and event.body.removed == (B,)


async def test_discover_watches_a_service_without_instances_until_it_has_some() -> None:
    async with polling() as world:
        mailbox, _ = await world.agent.watch(Filter(everything=GROUP), lambda: None)
        empty = key("empty")

        def script(call: Call[Any]) -> Any:
            page = world.shelf(call)
            return type(page)(2, ("empty", "orders")) if isinstance(call, ListServices) else page

        world.registry.script = script
        world.poller.discover(*GROUP)
        await world.clock.advance(60)
        mailbox.take()
        world.shelf.services[empty] = snapshot(B, service=empty)
        await world.clock.advance(6)
        (event,) = mailbox.take()
        assert event.body.key == empty  # type: ignore[union-attr]


async def test_discover_lists_a_large_group_page_by_page_within_the_budget() -> None:
    async with polling(budget=50, discover_page=10) as world:
        for number in range(95):
            service = key(f"s{number}")
            world.shelf.services[service] = snapshot(A, service=service)
        world.poller.discover(*GROUP)
        await world.clock.advance(0.1)
        calls = world.calls()
        assert [c.page for c in calls if isinstance(c, ListServices)] == list(range(1, 11))
        assert len([c for c in calls if isinstance(c, Fetch)]) <= 60
        await world.clock.advance(12)
        assert len(names(world)) == 96


async def test_discover_leaves_out_and_logs_services_beyond_max_discovered(caplog: pytest.LogCaptureFixture) -> None:
    async with polling(discover_page=10, max_discovered=20) as world:
        for number in range(50):
            service = key(f"s{number}")
            world.shelf.services[service] = snapshot(A, service=service)
        world.poller.discover(*GROUP)
        with caplog.at_level(logging.WARNING):
            await world.clock.advance(11)
        assert len(names(world)) == 20
        assert "has more than 20 services" in caplog.text


async def test_discover_goes_on_until_the_last_forget() -> None:
    async with polling() as world:
        world.poller.discover(*GROUP)
        world.poller.discover(*GROUP)
        world.poller.forget(*GROUP)
        await world.clock.advance(6)
        assert [c for c in world.calls() if isinstance(c, ListServices)]
        world.poller.forget(*GROUP)
        world.poller.forget(*GROUP)
        await world.clock.advance(0.1)
        world.calls()
        await world.clock.advance(20)
        assert [c for c in world.calls() if isinstance(c, ListServices)] == []
        assert world.poller.discovering == {}


async def test_discover_of_many_groups_takes_at_most_half_of_the_budget() -> None:
    """Anybody may follow any group of any namespace, also of those that are not there."""
    async with polling(budget=100) as world:
        for number in range(100):
            world.poller.discover(f"namespace-{number}", "DEFAULT_GROUP")
        await world.clock.advance(0.1)
        assert 1 <= len([c for c in world.calls() if isinstance(c, ListServices)]) <= 20
        await world.clock.advance(4)
        asked = [c.namespace for c in world.calls() if isinstance(c, ListServices)]
        assert len(asked) == len(set(asked)) > 60  # none twice before all


async def test_discover_and_forget_in_turn_list_a_group_no_more_often() -> None:
    async with polling() as world:
        for _ in range(20):
            world.poller.discover(*GROUP)
            await world.clock.advance(0.1)
            world.poller.forget(*GROUP)
        assert len([c for c in world.calls() if isinstance(c, ListServices)]) == 1
        await world.clock.advance(20)
        assert world.poller._names_due == {}


async def test_discover_survives_a_list_that_fails_or_takes_long() -> None:
    async with polling() as world:
        forever = asyncio.get_running_loop().create_future()
        world.registry.script = lambda call: forever if isinstance(call, ListServices) else world.shelf(call)
        world.poller.discover(*GROUP)
        await world.clock.advance(30)
        assert len([c for c in world.calls() if isinstance(c, ListServices)]) == 1
        forever.set_result(AWAY)
        world.registry.script = world.shelf
        await world.clock.advance(6)
        assert names(world) == {"orders"}


# --- after an outage -----------------------------------------------------------------------------------------------


async def registered(world: World, number: int) -> None:
    for n in range(number):
        await world.agent.write(Register(KEY, instance(f"10.0.1.{n}")))


def looks(world: World) -> int:
    """How many registrations were looked at."""
    return len([call for call in world.calls() if isinstance(call, GetInstance)])


async def back(world: World, *, lost: bool = True) -> None:
    """The upstream returns, and has forgotten everything."""
    world.registry.script = world.shelf
    if lost:
        world.shelf.services.clear()
    await world.agent.send(Metrics())
    world.calls()


async def test_renew_restores_registrations_within_one_beat_interval_and_spread_out() -> None:
    async with polling(renew_within=5) as world:
        await registered(world, 50)
        await world.lose()
        await back(world)
        counts = []
        for _ in range(5):
            await world.clock.advance(1)
            counts.append(looks(world))
        assert sum(counts) == 50 and max(counts) <= 12
        assert len(world.shelf.of(KEY).instances) == 50
        assert world.agent.counts.healed == 50


async def test_renew_does_not_register_what_the_upstream_still_has() -> None:
    async with polling() as world:
        await registered(world, 5)
        await world.lose()
        await back(world, lost=False)
        await world.clock.advance(6)
        assert {type(call) for call in world.calls()} <= {GetInstance, Fetch, Metrics}
        assert world.agent.counts.healed == 0


async def test_renew_does_not_register_who_fell_silent_or_left_during_the_outage() -> None:
    async with polling() as world:
        await registered(world, 3)
        await world.clock.advance(20)
        await world.agent.write(Beat(KEY, "10.0.1.0", 80))
        await world.agent.write(Beat(KEY, "10.0.1.1", 80))
        await world.lose()
        await world.clock.advance(10)
        world.registry.script = world.shelf
        world.shelf.services.clear()
        await world.agent.write(Deregister(KEY, "10.0.1.1", 80))
        await world.clock.advance(6)
        assert [i.ip for i in world.shelf.of(KEY).instances] == ["10.0.1.0"]


async def test_renew_of_one_that_hangs_does_not_delay_the_others() -> None:
    async with polling(renew_within=5, max_renewals=4) as world:
        await registered(world, 20)
        await world.lose()
        forever = asyncio.get_running_loop().create_future()

        def script(call: Call[Any]) -> Any:
            return forever if isinstance(call, GetInstance) and call.ip == "10.0.1.3" else world.shelf(call)

        await back(world)
        world.registry.script = script
        await world.clock.advance(6)
        assert len(world.shelf.of(KEY).instances) == 19
        forever.set_result(Refused(Reason.INSTANCE_NOT_FOUND, "no matched ip found!", status=404))
        await settle()
        assert len(world.shelf.of(KEY).instances) == 20


async def test_renew_stops_if_the_upstream_goes_again_and_restarts_on_its_return() -> None:
    async with polling(renew_within=5) as world:
        await registered(world, 50)
        await world.lose()
        await back(world)
        await world.clock.advance(2)
        await world.lose()
        await world.clock.advance(4)
        assert looks(world) == 0
        await back(world)
        await world.clock.advance(6)
        assert len(world.shelf.of(KEY).instances) == 50


async def test_renew_restarts_if_the_upstream_was_gone_for_a_moment() -> None:
    async with polling(renew_within=5) as world:
        await registered(world, 50)
        await world.lose()
        await back(world)
        await world.clock.advance(2)
        await world.lose()
        await back(world)
        await world.clock.advance(6)
        assert len(world.shelf.of(KEY).instances) == 50


async def test_poll_of_an_upstream_that_takes_three_seconds_is_slow_and_does_not_lose_it() -> None:
    """More beats come than 64 connections can carry. Polls and renewals, of 205 each, leave some to others."""
    async with polling() as world:
        clock, waiting, most = world.clock, 0, 0
        behind: Counter[type] = Counter()

        async def slowly(call: Call[Any]) -> Any:
            nonlocal waiting, most
            waiting += 1
            behind[type(call)] += 1
            most = max(most, behind[Fetch] + behind[GetInstance])
            try:
                if waiting > 64:
                    raise Busy("no connection became free in time")
                await clock.sleep_until(clock.now() + 3)
                return world.shelf(call)
            finally:
                waiting -= 1
                behind[type(call)] -= 1

        await registered(world, 205)
        await world.fill(205)
        await world.lose()
        await back(world)
        world.registry.script = slowly
        beats = [Beat(KEY, f"10.0.1.{n}", 80) for n in range(205)]
        tasks = []
        for turn in range(120):
            tasks += [spawn(world.agent.write(beat), name="beat") for beat in beats[turn % 10 :: 10]]
            await clock.advance(0.5)
            assert world.agent.catalog.breaker.up
        await clock.advance(10)
        assert {task.result().result.code for task in tasks} == {10200}
        assert 16 < most <= 32 + 16
        assert len(world.shelf.of(KEY).instances) == 205


async def test_stop_ends_all_tasks() -> None:
    held: list[asyncio.Future[Any]] = []

    def never(call: Call[Any]) -> Any:
        held.append(asyncio.get_running_loop().create_future())
        return held[-1]

    before = asyncio.all_tasks()
    async with polling(Push()) as world:
        await registered(world, 3)
        await world.lose()
        await back(world)
        world.registry.script = never
        world.poller.discover(*GROUP)
        await world.clock.advance(20)
        assert held
    await settle()
    assert asyncio.all_tasks() - before == set()


# --- a gap in our own time -----------------------------------------------------------------------------------------


async def test_notice_gap_keeps_registrations_whose_beats_could_not_be_heard(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with polling() as world:
        await registered(world, 2)
        await world.clock.advance(12)
        world.clock.jump(60)
        await world.clock.advance(0.2)
        assert "this process did not run for 60" in caplog.text
        ledger, now = world.agent.catalog.registrations, world.clock.now()
        assert [(r.healthy(now), round(now - r.last_heard)) for r in ledger] == [(True, 12)] * 2
        assert world.agent.suspicious
        await world.clock.advance(31)
        assert len(ledger) == 0, "from here on their silence counts"
        assert not world.agent.suspicious


async def test_notice_gap_shows_readers_neither_an_empty_list_nor_unhealthy_instances() -> None:
    for lost in (False, True):
        async with polling() as world:
            world.shelf.services.clear()
            await registered(world, 4)
            for n in range(4):
                await world.agent.write(Beat(KEY, f"10.0.1.{n}", 80))
            await world.agent.watch(Filter(frozenset({KEY})), lambda: None)
            await world.clock.advance(6)
            before = len(world.changes)
            world.clock.jump(60)
            world.shelf.services[KEY] = snapshot(
                *(instance(f"10.0.1.{n}", healthy=False) for n in range(0 if lost else 4))
            )
            await world.clock.advance(5)
            for n in range(4):
                assert (await world.agent.write(Beat(KEY, f"10.0.1.{n}", 80))).result.code == BEAT_OK
            await world.clock.advance(5)
            assert world.changes[before:] == []
            assert all(i.healthy for i in world.shelf.of(KEY).instances)
            assert len(world.shelf.of(KEY).instances) == 4


async def test_notice_gap_ignores_a_turn_that_is_a_little_late() -> None:
    async with polling() as world:
        await registered(world, 1)
        world.clock.jump(0.9)
        await world.clock.advance(0.2)
        (registration,) = world.agent.catalog.registrations
        assert round(world.clock.now() - registration.last_heard, 1) == 1.1
        assert not world.agent.suspicious


async def test_notice_gap_suspects_lists_after_the_host_slept() -> None:
    """Its clock did not run, but the upstream's did."""
    async with polling() as world:
        await world.clock.advance(1)
        world.clock.oversleep(3600)
        await world.clock.advance(0.2)
        assert world.agent.suspicious
        await world.clock.advance(40)
        world.clock.oversleep(-3600)
        await world.clock.advance(0.2)
        assert not world.agent.suspicious, "a calendar that is set back tells nothing"
