"""What the agent promises to who reads, writes and watches; the registry is a function, the clock stands still."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from nacos_proxy.catalog.cache import CachePolicy
from nacos_proxy.catalog.freshness import (
    CacheControl,
    CacheResult,
    Freshness,
    cache_headers,
)
from nacos_proxy.catalog.hub import Filter, Notice
from nacos_proxy.catalog.registrations import Registrations, RegistrationsPolicy
from nacos_proxy.core.agent import AgentPolicy, Written
from nacos_proxy.model.calls import (
    BEAT_NOT_FOUND,
    Beat,
    BeatResult,
    Call,
    Deregister,
    Fetch,
    GetInstance,
    Metrics,
    Register,
    Update,
)
from nacos_proxy.model.errors import (
    BadCall,
    Busy,
    Garbled,
    NothingKnown,
    Problem,
    Reason,
    Refused,
    TooSlow,
    Unreachable,
)
from nacos_proxy.model.services import Change, ServiceKey
from nacos_proxy.runtime import spawn, stop
from tests.helpers.build import KEY, agent, instance, key, snapshot
from tests.helpers.clock import FakeClock, settle
from tests.helpers.scripted import ScriptedRegistry, Shelf

A, B, C = (instance(f"10.0.0.{number}") for number in (1, 2, 3))
AWAY = Unreachable("connection refused", arrived=False)
NO_CACHE = CacheControl(no_cache=True)


class World:
    """An agent on a registry whose answers can be held back, and the changes that it published."""

    def __init__(self, *followers: Callable[[Change], None], strict: bool = False) -> None:
        self.clock = FakeClock()
        self.shelf = Shelf(snapshot(A, B))
        self.registry = ScriptedRegistry(self.shelf)
        self.changes: list[Change] = []
        self.agent = agent(
            self.registry, self.clock, self.changes.append, *followers, policy=AgentPolicy(strict=strict)
        )

    def hold(self, kind: type[Call[Any]] = Fetch) -> Held:
        """From now on, calls of this kind wait."""
        held = Held(self.registry.script, kind)
        self.registry.script = held
        return held

    def fail(self, error: Exception) -> None:
        self.registry.script = lambda call: error

    def heal(self) -> None:
        self.registry.script = self.shelf

    async def lose(self) -> None:
        """The upstream goes away, and that is known."""
        self.fail(AWAY)
        while self.agent.catalog.breaker.up:
            with pytest.raises(Unreachable):
                await self.agent.send(Metrics())

    async def read(self, *wants: CacheControl) -> CacheResult:
        return await self.agent.read(KEY, *wants)

    def fetches(self) -> int:
        return len(self.registry.sent(Fetch))


class Held:
    """A script that answers calls of one kind when it is told, as things were when they were asked."""

    def __init__(self, script: Callable[[Call[Any]], Any], kind: type[Call[Any]]) -> None:
        self._script = script
        self._kind = kind
        self.waiting: list[tuple[asyncio.Future[Any], Any]] = []

    def __call__(self, call: Call[Any]) -> Any:
        if not isinstance(call, self._kind):
            return self._script(call)
        return self._answer(self._script(call))

    async def _answer(self, result: Any) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.waiting.append((future, result))
        return await future

    async def release(self) -> None:
        for future, result in self.waiting:
            future.set_result(result)
        self.waiting.clear()
        await settle()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.agent.close()


def status(look: CacheResult) -> str:
    return dict(cache_headers(look))["cache-status"]


# --- read ----------------------------------------------------------------------------------------------------------


async def test_a_hundred_readers_of_a_cold_service_cost_one_fetch(world: World) -> None:
    held = world.hold()
    readers = [spawn(world.read(), name="reader") for _ in range(100)]
    await settle()
    await held.release()
    looks = await asyncio.gather(*readers)
    assert world.fetches() == 1
    assert {status(look) for look in looks} == {"nacos-proxy; fwd=miss; ttl=10"}
    assert world.agent.counts.reads == {"miss": 100}
    assert len(world.changes) == 1


async def test_a_fresh_snapshot_is_answered_without_asking(world: World) -> None:
    await world.read()
    await world.clock.advance(4)
    look = await world.read()
    assert (world.fetches(), look.age, look.fetched) == (1, 4, False)
    assert cache_headers(look) == (("age", "4"), ("cache-status", "nacos-proxy; hit; ttl=6"))


async def test_what_is_repeated_as_long_as_it_is_confirmed_counts_as_read(world: World) -> None:
    shown = (await world.read()).snapshot
    assert shown is not None
    begun, entry = world.clock.now(), world.agent.catalog.cache.get(KEY)
    await world.clock.advance(9)
    assert world.agent.confirmed(shown, world.clock.now()) == (begun, begun + 10)
    assert entry is not None and entry.last_read == begun + 9
    await world.clock.advance(1)
    assert world.agent.confirmed(shown, world.clock.now()) is None
    assert entry.last_read == begun + 9


async def test_a_stale_snapshot_is_answered_at_once_and_refreshed_behind(world: World) -> None:
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


async def test_a_stale_answer_says_that_the_upstream_is_down_before_it_was_asked_for_the_service(world: World) -> None:
    await world.read()
    world.fail(AWAY)
    for _ in range(3):
        with pytest.raises(Unreachable):
            await world.agent.send(Metrics())
    await world.clock.advance(11)
    assert status(await world.read()) == "nacos-proxy; hit; ttl=-1; detail=upstream-error"


async def test_stale_reads_leave_an_upstream_in_peace_that_just_failed(world: World) -> None:
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


async def restored(world: World) -> None:
    """A start: A alone is on disk, and a moment is given to the upstream to say what it knows."""
    world.agent.catalog.cache.restore(snapshot(A), 30.0, world.clock.now())
    world.agent.restored(1.0)


async def test_right_after_a_start_a_read_shows_what_a_kill_kept_from_the_disk(world: World) -> None:
    await restored(world)
    held = world.hold()
    reader = spawn(world.read(), name="reader")
    await world.clock.advance(0.9)
    assert not reader.done()
    await held.release()
    look = await reader
    assert look.snapshot is not None and look.snapshot.instances == (A, B)
    assert status(look) == "nacos-proxy; fwd=miss; ttl=10"


async def test_right_after_a_start_an_upstream_that_is_slow_or_away_delays_nobody_for_long(world: World) -> None:
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


async def test_no_cache_waits_for_the_upstream(world: World) -> None:
    await world.read()
    world.shelf.services[KEY] = snapshot(C)
    look = await world.read(NO_CACHE)
    assert look.snapshot is not None
    assert (look.snapshot.instances, look.fetched, world.fetches()) == ((C,), True, 2)


async def test_max_age_asks_only_for_what_is_older(world: World) -> None:
    await world.read()
    await world.clock.advance(3)
    assert (await world.read(CacheControl(max_age=3))).age == 3
    assert (await world.read(CacheControl(max_age=2))).age == 0
    assert world.fetches() == 2


async def test_a_cold_read_waits_no_longer_than_it_may_and_says_why_it_knows_nothing(world: World) -> None:
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


async def test_a_reader_that_waits_too_long_gets_what_is_there(world: World) -> None:
    await world.read()
    world.hold()
    reader = spawn(world.read(NO_CACHE), name="reader")
    await world.clock.advance(2.5)
    look = await reader
    assert (look.freshness, look.age, look.fetched) == (Freshness.FRESH, 2.5, True)


async def test_who_goes_away_while_waiting_leaves_the_fetch_to_the_others(world: World) -> None:
    held = world.hold()
    first, second = (spawn(world.read(), name="reader") for _ in range(2))
    await settle()
    await stop(first)
    await held.release()
    assert (await second).snapshot is not None
    assert world.fetches() == 1


async def test_a_failed_fetch_leaves_a_reader_with_the_snapshot_and_its_error(world: World) -> None:
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
async def test_nothing_known_says_what_the_upstream_said(world: World, error: Exception, why: str) -> None:
    world.fail(error)
    with pytest.raises(NothingKnown, match=why) as raised:
        await world.read()
    assert raised.value.__cause__ is error
    assert world.agent.counts.reads == {"none": 1}


async def test_a_refusal_is_told_as_it_was_said(world: World) -> None:
    world.fail(Refused(Reason.NO_RIGHT, "authorization failed!", status=403))
    with pytest.raises(Refused, match="authorization failed!"):
        await world.read()


async def test_an_expired_snapshot_is_not_served(world: World) -> None:
    await world.read()
    await world.clock.advance(86_411)
    world.fail(AWAY)
    with pytest.raises(NothingKnown):
        await world.read()
    world.heal()
    assert (await world.read()).freshness is Freshness.FRESH


async def test_nobody_waits_for_an_upstream_that_is_down_where_a_snapshot_is_there(world: World) -> None:
    await world.read()
    await world.lose()
    world.hold(Call)
    await world.clock.advance(100)  # a probe would be allowed
    for wants in (NO_CACHE, CacheControl(), CacheControl(max_age=1)):
        look = await asyncio.wait_for(world.read(wants), 60)  # the clock stands still: who waited would hang
        assert (look.freshness, look.age, look.fetched) == (Freshness.STALE, 100, False)
    await settle()
    assert world.fetches() == 2  # the probe, behind


async def test_nobody_waits_for_a_cold_service_between_the_probes_of_an_upstream_that_is_down(world: World) -> None:
    await world.lose()
    world.hold(Call)
    with pytest.raises(NothingKnown, match="connection refused"):
        await asyncio.wait_for(world.read(), 60)
    assert world.fetches() == 0


async def test_a_bug_in_a_registry_does_not_end_the_polling_of_a_service(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(call: Call[Any]) -> Any:
        raise ZeroDivisionError("a bug")

    await world.read()
    world.registry.script = broken
    with caplog.at_level(logging.CRITICAL):
        look = await world.read(NO_CACHE)
        await settle()
    assert look.snapshot is not None
    world.heal()
    assert (await world.read(NO_CACHE)).error is None
    assert KEY in world.agent.catalog.cache.watched_keys()


# --- one instance --------------------------------------------------------------------------------------------------


async def test_one_instance_comes_from_the_snapshot(world: World) -> None:
    found, look = await world.agent.instance(GetInstance(KEY, B.ip, B.port))
    assert (found, look is not None, world.registry.sent(GetInstance)) == (B, True, [])


async def test_an_instance_that_no_list_shows_is_asked_for(world: World) -> None:
    hidden = instance("10.0.0.9", enabled=False)
    world.registry.script = lambda call: hidden if isinstance(call, GetInstance) else world.shelf(call)
    found, look = await world.agent.instance(GetInstance(KEY, hidden.ip, hidden.port))
    assert (found, look) == (hidden, None)


async def test_an_instance_that_is_not_in_the_snapshot_is_not_found_while_the_upstream_is_down(world: World) -> None:
    await world.read()
    await world.lose()
    with pytest.raises(Refused) as raised:
        await world.agent.instance(GetInstance(KEY, "10.0.0.9", 80))
    assert (raised.value.reason, raised.value.status) == (Reason.INSTANCE_NOT_FOUND, 404)


# --- write ---------------------------------------------------------------------------------------------------------


async def test_a_write_shows_in_the_very_next_read_and_is_published_before_the_upstream_lists_it(world: World) -> None:
    await world.read()
    old = world.shelf.of(KEY)
    world.registry.script = lambda call: old if isinstance(call, Fetch) else world.shelf(call)
    assert await world.agent.write(Register(KEY, C)) == Written(None)
    assert [(change.added, change.source) for change in world.changes[1:]] == [((C,), "write")]
    for wants in (CacheControl(), NO_CACHE):
        look = await world.read(wants)
        assert look.snapshot is not None and look.snapshot.instances == (A, B, C)
    assert len(world.changes) == 2
    await world.clock.advance(1.5)
    world.heal()
    await world.read(NO_CACHE)
    assert len(world.changes) == 2


async def test_the_first_read_after_a_write_to_a_cold_service_shows_it(world: World) -> None:
    old = world.shelf.of(KEY)
    world.registry.script = lambda call: old if isinstance(call, Fetch) else world.shelf(call)
    await world.agent.write(Register(KEY, C))
    look = await world.read()
    assert look.snapshot is not None and look.snapshot.instances == (A, B, C)


async def test_a_fetch_that_was_asked_before_a_write_and_ends_after_it_does_not_undo_it(world: World) -> None:
    await world.read()
    held = world.hold()
    world.agent.refresh(KEY)
    await settle()
    await world.agent.write(Deregister(KEY, A.ip, A.port))
    await world.clock.advance(4)
    await held.release()
    look = await world.read()
    assert look.snapshot is not None and look.snapshot.instances == (B,)
    assert [change.removed for change in world.changes[1:]] == [(A,)]


async def test_who_goes_away_does_not_cancel_his_write(world: World) -> None:
    await world.read()
    held = world.hold(Register)
    writer = spawn(world.agent.write(Register(KEY, C)), name="writer")
    await settle()
    await stop(writer)
    assert writer.cancelled()
    await held.release()
    look = await world.read()
    assert look.snapshot is not None and C in look.snapshot.instances
    assert world.agent.catalog.registrations.count(KEY) == 1


async def test_a_put_that_enables_what_was_registered_here_brings_it_back_into_the_list(world: World) -> None:
    """It is in no list while it is disabled; and what nobody registered here, or in another cluster, stays out."""
    await world.read()
    await world.agent.write(Register(KEY, instance("10.0.0.9", cluster="c1", weight=2.0)))
    await world.agent.write(Update(KEY, "10.0.0.9", 80, "c1", enabled=False))
    world.shelf.services[KEY] = snapshot(A, B)
    await world.clock.advance(4)
    await world.read(NO_CACHE)
    await world.agent.write(Update(KEY, "10.0.0.9", 80, "c2", enabled=True))
    await world.agent.write(Update(KEY, "10.0.0.8", 80, enabled=True))
    look = await world.read()
    assert look.snapshot is not None and look.snapshot.instances == (A, B)
    await world.agent.write(Update(KEY, "10.0.0.9", 80, "c1", weight=3.0, enabled=True))
    look = await world.read()
    assert look.snapshot is not None and look.snapshot.find("10.0.0.9", 80, "c1") == instance(
        "10.0.0.9", cluster="c1", weight=3.0
    )


async def test_a_put_makes_nobody_healthy(world: World) -> None:
    await world.read()
    await world.agent.write(Register(KEY, C))
    world.shelf.services[KEY] = snapshot(A, B, instance(C.ip, healthy=False))
    await world.clock.advance(4)
    await world.read(NO_CACHE)
    await world.agent.write(Update(KEY, C.ip, C.port, weight=2.0))
    look = await world.read()
    assert look.snapshot is not None
    assert look.snapshot.find(C.ip, C.port) == instance(C.ip, healthy=False, weight=2.0)


async def test_a_refused_write_changes_nothing_and_says_what_the_upstream_said(world: World) -> None:
    await world.read()
    refusal = Refused(Reason.WRONG_KIND, "Current service is ephemeral service", status=400)
    world.registry.script = lambda call: refusal if isinstance(call, Register) else world.shelf(call)
    with pytest.raises(Refused) as raised:
        await world.agent.write(Register(KEY, C))
    assert raised.value is refusal
    assert (len(world.changes), world.agent.catalog.registrations.count(KEY)) == (1, 0)
    assert world.agent.counts.writes == {"Refused": 1}


@pytest.mark.parametrize(
    ("error", "hastened"), [(TooSlow("no answer"), True), (AWAY, False), (Unreachable("cut", arrived=True), True)]
)
async def test_a_write_that_may_have_arrived_makes_its_service_due(
    world: World, error: Exception, hastened: bool
) -> None:
    await world.read()
    now = world.clock.now()
    world.registry.script = lambda call: error if isinstance(call, Register) else world.shelf(call)
    with pytest.raises(type(error)):
        await world.agent.write(Register(KEY, C))
    assert (world.agent.catalog.cache.next_due() <= now) is hastened


async def test_followers_hear_of_each_change_in_their_order_and_once() -> None:
    heard: list[tuple[str, int]] = []
    world = World(
        lambda change: heard.append(("first", len(change.after.instances))),
        lambda change: heard.append(("second", len(change.after.instances))),
    )
    await world.read()
    await world.agent.write(Register(KEY, C))
    await world.read(NO_CACHE)
    assert heard == [("first", 2), ("second", 2), ("first", 3), ("second", 3)]
    assert world.agent.counts.changes == {"poll": 1, "write": 1}


async def test_a_follower_that_raises_robs_neither_those_behind_it_nor_the_writer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def raising(change: Change) -> None:
        raise RuntimeError("a bug")

    heard: list[int] = []
    world = World(raising, lambda change: heard.append(len(change.after.instances)))
    await world.read()
    written = await world.agent.write(Register(KEY, C))
    assert (written.how, heard) == ("upstream", [2, 3])
    assert world.agent.supervisor.failures == {"follower 1": 2}
    assert [r.getMessage() for r in caplog.records] == ["follower 1 failed and goes on: RuntimeError('a bug')"]


async def test_a_write_that_the_upstream_accepted_is_answered_whatever_fails_here(world: World) -> None:
    class Failing(Registrations):
        def wrote(self, write: Register | Deregister | Update | Beat, now: float) -> bool:
            raise RuntimeError("a bug")

    await world.read()
    world.agent.catalog = replace(world.agent.catalog, registrations=Failing(RegistrationsPolicy()))
    assert (await world.agent.write(Register(KEY, C))).how == "upstream"
    assert world.agent.supervisor.failing == {"write": "RuntimeError: a bug"}


async def test_what_hears_of_a_recovery_does_not_rob_what_hears_of_it_next(world: World) -> None:
    told: list[str] = []
    world.agent.on_recovery += [lambda: told.append("first") or 1 / 0, lambda: told.append("second")]
    await world.lose()
    world.heal()
    await world.agent.send(Metrics())
    assert told == ["first", "second"]
    assert world.agent.supervisor.failing == {"recovery": "ZeroDivisionError: division by zero"}


async def test_registrations_are_told_of_when_what_is_remembered_changed(world: World) -> None:
    told: list[int] = []
    world.agent.on_registration.append(lambda: told.append(world.agent.catalog.registrations.count(KEY)))
    await world.agent.write(Register(KEY, C))
    await world.agent.write(Beat(KEY, C.ip, C.port, full=C))
    await world.agent.write(Deregister(KEY, C.ip, C.port))
    assert told == [1, 0]


# --- beats ---------------------------------------------------------------------------------------------------------


async def test_a_beat_for_what_the_upstream_lost_registers_it_again_and_is_answered_well(world: World) -> None:
    await world.agent.write(Register(KEY, C))
    world.shelf.services[KEY] = snapshot()
    assert await world.agent.write(Beat(KEY, C.ip, C.port)) == Written(BeatResult(), "healed")
    assert world.shelf.of(KEY).instances == (C,)
    assert world.agent.counts.healed == 1


async def test_a_beat_for_what_nobody_registered_here_is_answered_as_the_upstream_does(world: World) -> None:
    written = await world.agent.write(Beat(KEY, C.ip, C.port))
    assert written == Written(BeatResult(BEAT_NOT_FOUND))
    assert (world.registry.sent(Register), world.agent.catalog.registrations.count(KEY)) == ([], 0)


@pytest.mark.parametrize(
    "error",
    [
        AWAY,
        TooSlow("5 s"),
        Busy("no connection became free"),
        Garbled("HTML"),
        Refused(Reason.OTHER, "server is STARTING now", status=503),
        Refused(Reason.NO_PEER, "invalid redirect", status=400),
    ],
)
async def test_a_beat_is_answered_here_while_the_upstream_does_not_answer_it(world: World, error: Exception) -> None:
    await world.agent.write(Register(KEY, C))
    await world.clock.advance(20)
    world.fail(error)
    assert await world.agent.write(Beat(KEY, C.ip, C.port)) == Written(BeatResult(), "local")
    known = world.agent.catalog.registrations.find(KEY, C.ip, C.port)
    assert known is not None and known.heard == world.clock.now()
    assert world.agent.counts.local_beats == 1
    with pytest.raises(type(error)):
        await world.agent.write(Beat(KEY, "10.0.0.9", 80))


@pytest.mark.parametrize(
    ("late", "how"),
    [(BeatResult(), "in time"), (BeatResult(BEAT_NOT_FOUND), "lost"), (TooSlow("5 s"), "never")],
)
async def test_a_beat_that_is_not_answered_in_time_is_answered_here_and_its_late_answer_counts(
    world: World, late: Any, how: str
) -> None:
    """At the start of a black hole it waited for 5 s, and legacy clients give up after 3 (nacos-http.md 10.1)."""
    await world.agent.write(Register(KEY, C))
    held = world.hold(Beat)
    begun, failures = world.clock.now(), world.agent.catalog.breaker.failures
    beat = spawn(world.agent.write(Beat(KEY, C.ip, C.port)), name="beat")
    await world.clock.advance(2.4)
    assert not beat.done()
    await world.clock.advance(0.2)
    assert await beat == Written(BeatResult(), "local")
    known = world.agent.catalog.registrations.find(KEY, C.ip, C.port)
    assert known is not None and begun + 2.4 < known.heard < begun + 2.7
    assert world.agent.counts.local_beats == 1
    registered = len(world.registry.sent(Register))
    await world.clock.advance(5.0)  # longer than an answer counts that came before
    held.waiting = [(future, late) for future, _ in held.waiting]
    if isinstance(late, Exception):
        for future, error in held.waiting:
            future.set_exception(error)
        await settle()
    else:
        await held.release()
    assert world.agent.counts.local_beats == 1, "it is answered once"
    assert len(world.registry.sent(Register)) - registered == (how == "lost"), "what is lost is registered again"
    assert world.agent.catalog.breaker.failures - failures == (how == "never")


@pytest.mark.parametrize("local", [True, False])
async def test_a_late_beat_brings_nothing_back_that_was_deregistered_meanwhile(world: World, local: bool) -> None:
    await world.agent.write(Register(KEY, C))
    held = world.hold(Beat)
    beat = spawn(world.agent.write(Beat(KEY, C.ip, C.port, full=C)), name="beat")
    await world.clock.advance(2.6 if local else 1.0)
    assert beat.done() is local
    await world.agent.write(Deregister(KEY, C.ip, C.port))
    held.waiting = [(future, BeatResult()) for future, _ in held.waiting]
    await held.release()
    await settle()
    assert world.agent.catalog.registrations.find(KEY, C.ip, C.port) is None
    assert C not in (await world.read()).snapshot.instances  # type: ignore[union-attr]


async def test_a_beat_of_what_is_not_registered_here_waits_for_its_answer(world: World) -> None:
    held = world.hold(Beat)
    beat = spawn(world.agent.write(Beat(KEY, C.ip, C.port)), name="beat")
    await world.clock.advance(4.0)
    assert not beat.done()
    await held.release()
    assert await beat == Written(BeatResult(BEAT_NOT_FOUND))


async def test_a_probe_that_fails_is_no_second_answer_to_its_beat(world: World) -> None:
    await world.agent.write(Register(KEY, C))
    await world.lose()
    await world.clock.advance(1)
    assert (await world.agent.write(Beat(KEY, C.ip, C.port))).how == "local"
    await settle()
    assert world.agent.counts.local_beats == 1


async def test_what_waited_in_vain_for_a_connection_of_ours_says_nothing_of_the_upstream(world: World) -> None:
    breaker = world.agent.catalog.breaker
    for error in (Busy("no connection became free"), TooSlow("5 s")):
        await world.agent.send(Metrics())
        world.fail(error)
        for _ in range(10):
            with pytest.raises(type(error)):
                await world.agent.send(Metrics())
        assert (breaker.up, breaker.failures) == (True, 0)
        world.registry.script = world.shelf
    await world.clock.advance(5)
    await world.lose()
    world.fail(Busy("no connection became free"))
    with pytest.raises(Busy):
        await world.agent.send(Metrics())
    assert not breaker.up  # nor that it is back


async def test_a_refused_beat_is_told_as_it_was_said(world: World) -> None:
    await world.agent.write(Register(KEY, C))
    world.fail(Refused(Reason.NO_RIGHT, "authorization failed!", status=403))
    with pytest.raises(Refused):
        await world.agent.write(Beat(KEY, C.ip, C.port))


async def test_no_beat_waits_for_an_upstream_that_is_down_but_one_goes_out_as_a_probe(world: World) -> None:
    await world.agent.write(Register(KEY, C))
    await world.lose()
    held = world.hold(Call)
    sent = len(world.registry.calls)
    assert (await world.agent.write(Beat(KEY, C.ip, C.port))).how == "local"
    await settle()
    assert len(world.registry.calls) == sent
    await world.clock.advance(1)
    for _ in range(20):
        assert (await asyncio.wait_for(world.agent.write(Beat(KEY, C.ip, C.port)), 60)).how == "local"
        await settle()
    assert world.registry.calls[sent:] == [Beat(KEY, C.ip, C.port)]
    held.waiting = [(future, BeatResult()) for future, _ in held.waiting]
    await held.release()
    assert world.agent.catalog.breaker.up


# --- modify --------------------------------------------------------------------------------------------------------


async def test_modify_puts_back_all_that_it_does_not_change(world: World) -> None:
    known = instance("10.0.0.7", cluster="c1", weight=5.0, metadata={"a": "1", "b": "2"})
    world.shelf.services[KEY] = snapshot(A, known)
    await world.read()
    after = await world.agent.modify(Update(KEY, known.ip, known.port, metadata={"b": "3"}))
    (sent,) = world.registry.sent(Update)
    assert sent == Update(
        KEY, known.ip, known.port, "c1", 5.0, True, {"a": "1", "b": "3"}, ephemeral=True, partial=False
    )
    assert after.result == instance("10.0.0.7", cluster="c1", weight=5.0, metadata={"a": "1", "b": "3"})


async def test_modify_looks_at_the_upstream_first_not_at_what_was_cached(world: World) -> None:
    await world.read()
    world.shelf.services[KEY] = snapshot(instance(A.ip, weight=7.0))
    await world.agent.modify(Update(KEY, A.ip, A.port, enabled=False))
    (sent,) = world.registry.sent(Update)
    assert (sent.weight, sent.enabled) == (7.0, False)


async def test_two_that_modify_one_instance_at_once_do_not_undo_each_other(world: World) -> None:
    await world.read()
    await asyncio.gather(
        world.agent.modify(Update(KEY, A.ip, A.port, weight=9.0)),
        world.agent.modify(Update(KEY, A.ip, A.port, metadata={"a": "1"})),
        world.agent.modify(Update(KEY, A.ip, A.port, metadata={"b": "2"})),
    )
    assert world.shelf.of(KEY).find(A.ip, A.port) == instance(A.ip, weight=9.0, metadata={"a": "1", "b": "2"})
    assert len(world.agent._patches) == 0


async def test_modify_means_the_instance_of_the_cluster_that_is_named(world: World) -> None:
    first, second = instance(cluster="a", weight=1.0), instance(cluster="b", weight=2.0)
    world.shelf.services[KEY] = snapshot(first, second)
    await world.agent.modify(Update(KEY, A.ip, A.port, cluster="b", enabled=True))
    (sent,) = world.registry.sent(Update)
    assert (sent.cluster, sent.weight) == ("b", 2.0)


async def test_modify_knows_instances_that_no_list_shows(world: World) -> None:
    hidden = instance("10.0.0.9", enabled=False, weight=3.0)
    world.registry.script = lambda call: hidden if isinstance(call, GetInstance) else world.shelf(call)
    assert (await world.agent.modify(Update(KEY, hidden.ip, hidden.port, enabled=True))).result.weight == 3.0
    await world.agent.write(Register(KEY, instance("10.0.0.8", enabled=False, weight=4.0)))
    world.shelf.services[KEY] = snapshot(A)
    await world.clock.advance(5)
    assert (await world.agent.modify(Update(KEY, "10.0.0.8", 80, enabled=True))).result.weight == 4.0


async def test_modify_of_what_nobody_knows_is_refused_as_the_upstream_does(world: World) -> None:
    with pytest.raises(Refused, match="no matched ip found!"):
        await world.agent.modify(Update(KEY, "10.0.0.9", 80, weight=1.0))
    assert world.registry.sent(Update) == []


# --- the upstream is lost and back ---------------------------------------------------------------------------------


def notices(world: World) -> list[str]:
    return [e.body.state for e in world.agent.catalog.hub._history if isinstance(e.body, Notice)]


async def test_its_loss_and_its_return_are_told_once_each(world: World) -> None:
    back: list[int] = []
    world.agent.on_recovery.append(lambda: back.append(1))
    await world.lose()
    for _ in range(5):
        with pytest.raises(Unreachable):
            await world.agent.send(Metrics())
    world.heal()
    for _ in range(5):
        await world.agent.send(Metrics())
    assert (notices(world), back) == (["down", "up"], [1])


@pytest.mark.parametrize(
    ("error", "call", "counts"),
    [
        (Refused(Reason.OTHER, "out of memory", status=500), Fetch(KEY), True),
        (Refused(Reason.OTHER, "caused: bad weight", status=500), Register(KEY, A), False),
        (Refused(Reason.OTHER, "bad gateway", status=502), Register(KEY, A), True),
        (Refused(Reason.NO_RIGHT, "authorization failed!", status=403), Fetch(KEY), False),
        (BadCall("ip", Problem.ILLEGAL, "illegal"), Register(KEY, A), False),
        (Garbled("HTML"), Metrics(), True),
        (Garbled("HTML"), Fetch(KEY), True),
        (Refused(Reason.NO_PEER, "receive invalid redirect request", status=400), Beat(KEY, A.ip, A.port), False),
        (Garbled("another service's list", answered=True), Fetch(KEY), False),
        (Garbled("nothing that a beat is answered", answered=True), Beat(KEY, A.ip, A.port), True),
    ],
)
async def test_what_counts_as_a_loss(world: World, error: Exception, call: Call[Any], counts: bool) -> None:
    world.fail(error)
    for _ in range(3):
        with pytest.raises(type(error)):
            await world.agent.send(call)
    assert world.agent.catalog.breaker.up is not counts


async def test_an_empty_list_after_the_return_is_not_believed_at_once(world: World) -> None:
    await world.read()
    await world.lose()
    world.heal()
    world.shelf.services[KEY] = snapshot()
    look = await _asked(world)
    assert look.snapshot is not None and look.snapshot.instances == (A, B)
    await world.clock.advance(5)
    look = await _asked(world)
    assert look.snapshot is not None and look.snapshot.instances == ()
    assert len(world.changes) == 2


async def test_one_failure_is_enough_to_distrust_an_empty_list(world: World) -> None:
    """A restart between two polls fails one call at the most, and the upstream never counts as down."""
    await world.read()
    world.fail(AWAY)
    await world.read(NO_CACHE)
    world.heal()
    world.shelf.services[KEY] = snapshot()
    look = await world.read(NO_CACHE)
    assert look.snapshot is not None and look.snapshot.instances == (A, B)


async def test_long_after_an_outage_an_empty_list_is_believed(world: World) -> None:
    await world.read()
    await world.lose()
    world.heal()
    await world.agent.send(Metrics())
    await world.clock.advance(31)
    world.shelf.services[KEY] = snapshot()
    look = await world.read(NO_CACHE)
    assert look.snapshot is not None and look.snapshot.instances == ()


async def test_another_server_is_as_suspicious_as_an_outage(world: World) -> None:
    await world.read()
    world.agent.suspect()
    world.shelf.services[KEY] = snapshot()
    look = await world.read(NO_CACHE)
    assert look.snapshot is not None and look.snapshot.instances == (A, B)


async def test_what_failed_during_an_outage_is_due_soon_after_it(world: World) -> None:
    await world.read()
    world.fail(AWAY)
    for _ in range(10):
        world.agent.refresh(KEY)
        await settle()
    assert world.agent.catalog.cache.next_due() > world.clock.now() + 20
    world.heal()
    await world.agent.send(Metrics())
    assert world.agent.catalog.cache.next_due() <= world.clock.now() + 5


# --- watch ---------------------------------------------------------------------------------------------------------


async def test_a_watcher_gets_the_snapshot_and_every_change_behind_it(world: World) -> None:
    mailbox, known = await world.agent.watch(Filter(frozenset({KEY})), lambda: None)
    assert [s.instances for s in known] == [(A, B)]
    assert len(mailbox) == 0
    await world.agent.write(Register(KEY, C))
    (event,) = mailbox.take()
    assert isinstance(event.body, Change) and event.body.added == (C,)


async def test_a_watcher_that_resumes_without_a_gap_gets_no_snapshot(world: World) -> None:
    first, _ = await world.agent.watch(Filter(frozenset({KEY})), lambda: None)
    last = world.agent.catalog.hub.last_id
    world.agent.unwatch(first)
    await world.agent.write(Register(KEY, C))
    again, known = await world.agent.watch(Filter(frozenset({KEY})), lambda: None, last)
    assert (known, len(again)) == ([], 1)
    _, known = await world.agent.watch(Filter(frozenset({KEY})), lambda: None, "other-1")
    assert len(known) == 1


async def test_who_resumes_is_told_that_a_service_is_empty_which_was_forgotten_meanwhile() -> None:
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


async def test_a_watcher_of_many_gets_what_can_be_had(world: World) -> None:
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


async def test_a_watcher_of_a_group_gets_its_services_that_have_instances(world: World) -> None:
    services: list[ServiceKey] = [key("a"), key("b"), key("c", group="other"), key("empty")]
    for service in services[:3]:
        world.shelf.services[service] = snapshot(A, service=service)
    for service in services:
        await world.agent.read(service)
    _, known = await world.agent.watch(Filter(everything=("public", "DEFAULT_GROUP")), lambda: None)
    assert sorted(s.key.name for s in known) == ["a", "b"]


async def test_ending_a_watch_twice_does_not_end_that_of_another(world: World) -> None:
    first, _ = await world.agent.watch(Filter(frozenset({KEY})), lambda: None)
    await world.agent.watch(Filter(frozenset({KEY})), lambda: None)
    world.agent.unwatch(first)
    world.agent.unwatch(first)
    entry = world.agent.catalog.cache.get(KEY)
    assert entry is not None and entry.listeners == 1


async def test_closing_ends_what_is_under_way_and_the_registry() -> None:
    world = World()
    world.hold()
    world.agent.refresh(KEY)
    await settle()
    await world.agent.close()
    assert world.registry.closed
    assert not [task for task in asyncio.all_tasks() if task.get_name() == f"fetch {KEY}"]


async def _result(task: Awaitable[CacheResult]) -> CacheResult:
    return await task


async def _asked(world: World) -> CacheResult:
    """After the upstream was asked, whether the reader waited for that or not."""
    world.agent.refresh(KEY)
    await settle()
    return await world.read()


# --- what no list shows ----------------------------------------------------------------------------------------------


def unlisted(world: World) -> None:
    """C is there and disabled: the call for one instance finds it, lists do not show it, and nobody says why."""
    full = world.shelf

    def script(call: Call[Any]) -> Any:
        if isinstance(call, GetInstance) and (call.ip, call.port) == (C.ip, C.port):
            return C
        return BeatResult() if isinstance(call, Beat) else full(call)

    world.registry.script = script


async def test_a_full_beat_does_not_bring_back_what_somebody_disabled(world: World) -> None:
    """Go, Node and Python SDKs send the whole beat each time; it says nothing of `enabled`."""
    beat = Beat(KEY, C.ip, C.port, full=C)
    await world.agent.write(Register(KEY, C))
    await world.clock.advance(10)
    del world.shelf.services[KEY]
    world.shelf.services[KEY] = snapshot(A, B)
    unlisted(world)
    await world.agent.write(beat)
    await world.read(CacheControl(no_cache=True))
    for _ in range(3):
        await world.clock.advance(2)
        await world.agent.write(beat)
        look = await world.read(CacheControl(no_cache=True))
        assert look.snapshot is not None and look.snapshot.find(C.ip, C.port) is None


async def test_a_full_beat_of_what_was_never_heard_of_here_is_looked_up_first(world: World) -> None:
    await world.read()
    unlisted(world)
    await world.agent.write(Beat(KEY, C.ip, C.port, full=C))
    assert (await world.read()).snapshot == snapshot(A, B), "the upstream knows it and does not list it: it is disabled"
    other = instance("10.0.0.77")
    await world.agent.write(Beat(KEY, other.ip, other.port, full=other))
    look = await world.read()
    assert look.snapshot is not None and look.snapshot.find(other.ip, other.port) == other


async def test_what_somebody_disables_is_gone_for_readers_with_the_first_list_without_it(world: World) -> None:
    await world.agent.write(Register(KEY, C))
    await world.agent.write(Beat(KEY, C.ip, C.port))
    await world.read(CacheControl(no_cache=True))
    await world.clock.advance(10)
    await world.agent.write(Beat(KEY, C.ip, C.port))
    await world.read(CacheControl(no_cache=True))
    world.changes.clear()
    world.shelf.services[KEY] = snapshot(A, B)
    unlisted(world)
    look = await world.read(CacheControl(no_cache=True))
    assert look.snapshot == snapshot(A, B)
    assert [change.removed for change in world.changes] == [(C,)]
    assert world.registry.sent(Register) == [Register(KEY, C)]


async def test_the_only_instance_of_a_service_is_gone_as_soon_as_any_other_when_it_is_disabled(world: World) -> None:
    world.shelf.services.clear()
    await world.agent.write(Register(KEY, C))
    await world.clock.advance(10)
    await world.agent.write(Beat(KEY, C.ip, C.port))
    await world.read(CacheControl(no_cache=True))
    world.shelf.services.clear()
    unlisted(world)
    look = await world.read(CacheControl(no_cache=True))
    assert look.snapshot is not None and look.snapshot.instances == ()


async def test_who_may_not_see_a_service_any_more_is_told_once_it_is_forgotten() -> None:
    world = World(strict=True)
    told: list[ServiceKey] = []
    world.agent.on_barred.append(lambda key, error: told.append(key))
    await world.read()
    world.fail(Refused(Reason.OTHER, "bad", status=400))
    world.agent.refresh(KEY)
    await settle()
    assert (told, (await world.read()).freshness) == ([], Freshness.FRESH), "another no says nothing of rights"
    world.fail(Refused(Reason.NO_RIGHT, "authorization failed!", status=403))
    world.agent.refresh(KEY)
    await settle()
    assert told == [KEY]
    assert world.agent.catalog.cache.lookup(KEY, world.clock.now()).freshness is Freshness.MISSING
    with pytest.raises(Refused):
        await world.read()
