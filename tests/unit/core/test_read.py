"""`Reader`: what a read answers, and when it asks the upstream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from nacos_proxy.catalog.freshness import CacheControl, CacheResult, Freshness, cache_headers
from nacos_proxy.model.calls import Call, Metrics
from nacos_proxy.model.errors import Garbled, NothingKnown, Reason, Refused, TooSlow, Unreachable
from nacos_proxy.runtime import spawn, stop
from tests.helpers.build import KEY, snapshot
from tests.helpers.clock import settle
from tests.helpers.world import AWAY, NO_CACHE, A, B, C, World


def status(look: CacheResult) -> str:
    return dict(cache_headers(look))["cache-status"]


async def restored(world: World) -> None:
    """A start: A alone is on disk, and a moment is given to the upstream to say what it knows."""
    world.agent.catalog.cache.restore(snapshot(A), 30.0, world.clock.now())
    world.agent.restored(1.0)


async def _result(task: Awaitable[CacheResult]) -> CacheResult:
    return await task


async def test_read_of_a_cold_service_by_a_hundred_costs_one_fetch(world: World) -> None:
    held = world.hold()
    readers = [spawn(world.read(), name="reader") for _ in range(100)]
    await settle()
    await held.release()
    looks = await asyncio.gather(*readers)
    assert world.fetches() == 1
    assert {status(look) for look in looks} == {"nacos-proxy; fwd=miss; ttl=10"}
    assert world.agent.counts.reads == {"miss": 100}
    assert len(world.changes) == 1


async def test_read_answers_a_fresh_snapshot_without_a_fetch(world: World) -> None:
    await world.read()
    await world.clock.advance(4)
    look = await world.read()
    assert (world.fetches(), look.age, look.fetched) == (1, 4, False)
    assert cache_headers(look) == (("age", "4"), ("cache-status", "nacos-proxy; hit; ttl=6"))


async def test_confirmed_gives_the_fresh_interval_and_counts_as_a_read(world: World) -> None:
    shown = (await world.read()).snapshot
    assert shown is not None
    begun, entry = world.clock.now(), world.agent.catalog.cache.get(KEY)
    await world.clock.advance(9)
    assert world.agent.confirmed(shown, world.clock.now()) == (begun, begun + 10)
    assert entry is not None and entry.last_read == begun + 9
    await world.clock.advance(1)
    assert world.agent.confirmed(shown, world.clock.now()) is None
    assert entry.last_read == begun + 9


async def test_read_answers_a_stale_snapshot_at_once_and_refreshes_behind(world: World) -> None:
    await world.read()
    held = world.hold()
    await world.clock.advance(11)
    for _ in range(3):
        look = await world.read()
        assert (look.freshness, look.age) == (Freshness.STALE, 11)
        assert status(look) == "nacos-proxy; hit; ttl=-1; detail=revalidating"
        await settle()
    assert world.fetches() == 2
    await held.release()
    look = await world.read()
    assert (look.freshness, look.age, world.fetches()) == (Freshness.FRESH, 0, 2)


async def test_read_says_that_the_upstream_is_down_before_it_fetches_this_service(world: World) -> None:
    await world.read()
    world.fail(AWAY)
    for _ in range(3):
        with pytest.raises(Unreachable):
            await world.agent.send(Metrics())
    await world.clock.advance(11)
    assert status(await world.read()) == "nacos-proxy; hit; ttl=-1; detail=upstream-error"


async def test_read_of_a_stale_snapshot_does_not_fetch_again_right_after_a_failure(world: World) -> None:
    await world.read()
    world.fail(Refused(Reason.OTHER, "out of memory", status=500))
    await world.clock.advance(11)
    for _ in range(50):
        look = await world.read()
        await settle()
    assert world.fetches() == 2
    assert status(look) == "nacos-proxy; hit; ttl=-1; detail=upstream-error"
    await world.clock.advance(10)
    await world.read()
    await settle()
    assert world.fetches() == 3


async def test_restored_makes_a_read_wait_for_writes_that_a_kill_kept_from_the_disk(world: World) -> None:
    await restored(world)
    held = world.hold()
    reader = spawn(world.read(), name="reader")
    await world.clock.advance(0.9)
    assert not reader.done()
    await held.release()
    look = await reader
    assert look.snapshot is not None and look.snapshot.instances == (A, B)
    assert status(look) == "nacos-proxy; fwd=miss; ttl=10"


async def test_restored_delays_a_read_only_briefly_if_the_upstream_is_slow_or_away(world: World) -> None:
    await restored(world)
    held = world.hold()
    reader = spawn(world.read(), name="reader")
    await world.clock.advance(1.0)
    assert status(await reader) == "nacos-proxy; hit; ttl=-21; detail=disk"
    assert status(await world.read()) == "nacos-proxy; hit; ttl=-21; detail=disk"
    await held.release()
    await restored(world)
    world.fail(AWAY)
    assert (await world.read()).snapshot is not None


async def test_read_with_no_cache_waits_for_the_upstream(world: World) -> None:
    await world.read()
    world.shelf.services[KEY] = snapshot(C)
    look = await world.read(NO_CACHE)
    assert look.snapshot is not None
    assert (look.snapshot.instances, look.fetched, world.fetches()) == ((C,), True, 2)


async def test_read_with_max_age_fetches_only_what_is_older(world: World) -> None:
    await world.read()
    await world.clock.advance(3)
    assert (await world.read(CacheControl(max_age=3))).age == 3
    assert (await world.read(CacheControl(max_age=2))).age == 0
    assert world.fetches() == 2


async def test_read_waits_at_most_cold_wait_and_says_why_nothing_is_known(world: World) -> None:
    held = world.hold()
    reader = spawn(world.read(), name="reader")
    await world.clock.advance(2.4)
    assert not reader.done()
    await world.clock.advance(0.1)
    with pytest.raises(NothingKnown, match="the upstream has not answered in time"):
        await _result(reader)
    await held.release()
    assert (await world.read()).fetched is False
    assert world.fetches() == 1


async def test_read_that_waited_in_vain_answers_the_snapshot_it_has(world: World) -> None:
    await world.read()
    world.hold()
    reader = spawn(world.read(NO_CACHE), name="reader")
    await world.clock.advance(2.5)
    look = await reader
    assert (look.freshness, look.age, look.fetched) == (Freshness.FRESH, 2.5, True)


async def test_read_that_is_cancelled_leaves_the_fetch_to_the_others(world: World) -> None:
    held = world.hold()
    first, second = (spawn(world.read(), name="reader") for _ in range(2))
    await settle()
    await stop(first)
    await held.release()
    assert (await second).snapshot is not None
    assert world.fetches() == 1


async def test_read_after_a_failed_fetch_has_the_snapshot_and_the_error(world: World) -> None:
    await world.read()
    world.fail(TooSlow("no answer within 5 s"))
    await world.clock.advance(20)
    look = await world.read(NO_CACHE)
    assert status(look) == "nacos-proxy; fwd=stale; ttl=-10; detail=upstream-error"
    assert isinstance(look.error, TooSlow)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (AWAY, "connection refused"),
        (TooSlow("no answer within 5 s"), "no answer within 5 s"),
        (Garbled("not JSON"), "not JSON"),
        (Refused(Reason.OTHER, "server is DOWN now", status=503), "server is DOWN now"),
    ],
)
async def test_read_raises_nothing_known_with_the_upstreams_error(world: World, error: Exception, why: str) -> None:
    world.fail(error)
    with pytest.raises(NothingKnown, match=why) as raised:
        await world.read()
    assert raised.value.__cause__ is error
    assert world.agent.counts.reads == {"none": 1}


async def test_read_raises_a_refusal_unchanged(world: World) -> None:
    world.fail(Refused(Reason.NO_RIGHT, "authorization failed!", status=403))
    with pytest.raises(Refused, match="authorization failed!"):
        await world.read()


async def test_read_does_not_answer_an_expired_snapshot(world: World) -> None:
    await world.read()
    await world.clock.advance(86_411)
    world.fail(AWAY)
    with pytest.raises(NothingKnown):
        await world.read()
    world.heal()
    assert (await world.read()).freshness is Freshness.FRESH


async def test_read_with_a_snapshot_does_not_wait_for_an_upstream_that_is_down(world: World) -> None:
    await world.read()
    await world.lose()
    world.hold(Call)
    await world.clock.advance(100)  # a probe would be allowed
    for wants in (NO_CACHE, CacheControl(), CacheControl(max_age=1)):
        look = await asyncio.wait_for(world.read(wants), 60)  # the clock stands still: who waited would hang
        assert (look.freshness, look.age, look.fetched) == (Freshness.STALE, 100, False)
    await settle()
    assert world.fetches() == 2  # the probe, behind


async def test_read_of_a_cold_service_does_not_wait_between_probes_of_an_upstream_that_is_down(world: World) -> None:
    await world.lose()
    world.hold(Call)
    with pytest.raises(NothingKnown, match="connection refused"):
        await asyncio.wait_for(world.read(), 60)
    assert world.fetches() == 0


LOOP = Refused(Reason.OTHER, "this request has passed 4 proxies", status=508)


async def test_read_whose_request_has_passed_too_many_proxies_is_refused_and_changes_nothing_for_others(
    world: World,
) -> None:
    world.fail(LOOP)
    for _ in range(5):
        with pytest.raises(Refused, match="4 proxies"):
            await world.read()
    breaker = world.agent.catalog.breaker
    assert (breaker.up, breaker.failures, world.agent.suspicious) == (True, 0, False)
    world.heal()
    look = await world.read()
    assert (look.freshness, look.error, world.changes[-1].added) == (Freshness.FRESH, None, (A, B))


async def test_read_that_waits_for_the_fetch_of_a_request_that_is_refused_fetches_itself(world: World) -> None:
    world.fail(LOOP)
    held = world.hold()
    first = spawn(world.read(), name="reader")
    await settle()
    second = spawn(world.read(), name="reader")
    await settle()
    world.heal()
    await held.release()
    assert (await second).freshness is Freshness.FRESH
    with pytest.raises(Refused, match="4 proxies"):
        await first


async def test_refresh_that_is_refused_for_its_way_leaves_the_service_watched(world: World) -> None:
    await world.read()
    world.fail(LOOP)
    world.agent.refresh(KEY)
    await settle()
    cache = world.agent.catalog.cache
    assert (await world.read()).error is None
    assert cache.due(world.clock.now() + 0.5, 9) == []
    assert cache.due(world.clock.now() + 6, 9) == [KEY]
