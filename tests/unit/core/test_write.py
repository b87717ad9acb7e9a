"""`Writer`: what a write answers, and when readers see it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nacos_proxy.catalog.freshness import CacheControl
from nacos_proxy.catalog.registrations import Registrations
from nacos_proxy.core.agent import Written
from nacos_proxy.model.calls import (
    BEAT_NOT_FOUND,
    Beat,
    BeatResult,
    Call,
    Deregister,
    Fetch,
    GetInstance,
    Register,
    Update,
    Write,
)
from nacos_proxy.model.errors import Busy, Garbled, Reason, Refused, TooSlow, Unreachable
from nacos_proxy.runtime import spawn, stop
from tests.helpers.build import KEY, instance, snapshot
from tests.helpers.clock import settle
from tests.helpers.scripted import BeginningRegistry
from tests.helpers.world import AWAY, NO_CACHE, A, B, C, World


def unlisted(world: World) -> None:
    """C is there and disabled: the call for one instance finds it, lists do not show it, and nobody says why."""
    full = world.shelf

    def script(call: Call[Any]) -> Any:
        if isinstance(call, GetInstance) and (call.ip, call.port) == (C.ip, C.port):
            return C
        return BeatResult() if isinstance(call, Beat) else full(call)

    world.registry.script = script


async def test_write_is_visible_and_published_before_the_upstream_lists_it(world: World) -> None:
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


async def test_write_to_a_cold_service_is_visible_to_the_first_read(world: World) -> None:
    old = world.shelf.of(KEY)
    world.registry.script = lambda call: old if isinstance(call, Fetch) else world.shelf(call)
    await world.agent.write(Register(KEY, C))
    look = await world.read()
    assert look.snapshot is not None and look.snapshot.instances == (A, B, C)


async def test_write_goes_on_when_its_caller_is_cancelled(world: World) -> None:
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


async def test_write_of_an_update_that_enables_an_instance_registered_here_shows_it_again(world: World) -> None:
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


async def test_write_of_an_update_makes_no_instance_healthy(world: World) -> None:
    await world.read()
    await world.agent.write(Register(KEY, C))
    world.shelf.services[KEY] = snapshot(A, B, instance(C.ip, healthy=False))
    await world.clock.advance(4)
    await world.read(NO_CACHE)
    await world.agent.write(Update(KEY, C.ip, C.port, weight=2.0))
    look = await world.read()
    assert look.snapshot is not None
    assert look.snapshot.find(C.ip, C.port) == instance(C.ip, healthy=False, weight=2.0)


async def test_write_that_is_refused_changes_nothing_and_raises_the_refusal(world: World) -> None:
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
async def test_write_whose_outcome_is_unknown_makes_its_service_due(
    world: World, error: Exception, hastened: bool
) -> None:
    await world.read()
    now = world.clock.now()
    world.registry.script = lambda call: error if isinstance(call, Register) else world.shelf(call)
    with pytest.raises(type(error)):
        await world.agent.write(Register(KEY, C))
    assert (world.agent.catalog.cache.next_due() <= now) is hastened


async def test_write_that_the_upstream_accepted_is_answered_whatever_fails_here(world: World) -> None:
    class Failing(Registrations):
        def record_write(self, write: Register | Deregister | Update | Beat, now: float) -> bool:
            raise RuntimeError("a bug")

    await world.read()
    world.agent.catalog.registrations = Failing()
    assert (await world.agent.write(Register(KEY, C))).how == "upstream"
    assert world.agent.supervisor.failing == {"write": "RuntimeError: a bug"}


async def test_write_of_a_beat_registers_again_what_the_upstream_lost(world: World) -> None:
    await world.agent.write(Register(KEY, C))
    world.shelf.services[KEY] = snapshot()
    assert await world.agent.write(Beat(KEY, C.ip, C.port)) == Written(BeatResult(), "healed")
    assert world.shelf.of(KEY).instances == (C,)
    assert world.agent.counts.healed == 1


async def test_write_of_a_beat_of_an_unknown_instance_gives_the_upstreams_answer(world: World) -> None:
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
async def test_write_of_a_beat_is_answered_here_if_the_upstream_does_not_answer(world: World, error: Exception) -> None:
    await world.agent.write(Register(KEY, C))
    await world.clock.advance(20)
    world.fail(error)
    assert await world.agent.write(Beat(KEY, C.ip, C.port)) == Written(BeatResult(), "local")
    known = world.agent.catalog.registrations.find(KEY, C.ip, C.port)
    assert known is not None and known.last_heard == world.clock.now()
    assert world.agent.counts.local_beats == 1
    with pytest.raises(type(error)):
        await world.agent.write(Beat(KEY, "10.0.0.9", 80))


@pytest.mark.parametrize(
    ("late", "how"),
    [(BeatResult(), "in time"), (BeatResult(BEAT_NOT_FOUND), "lost"), (TooSlow("5 s"), "never")],
)
async def test_write_of_a_beat_that_takes_too_long_is_answered_here_and_its_late_answer_counts(
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
    assert known is not None and begun + 2.4 < known.last_heard < begun + 2.7
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
async def test_write_of_a_late_beat_does_not_bring_back_what_was_deregistered_meanwhile(
    world: World, local: bool
) -> None:
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


async def test_write_of_a_beat_of_an_instance_not_registered_here_waits_for_its_answer(world: World) -> None:
    held = world.hold(Beat)
    beat = spawn(world.agent.write(Beat(KEY, C.ip, C.port)), name="beat")
    await world.clock.advance(4.0)
    assert not beat.done()
    await held.release()
    assert await beat == Written(BeatResult(BEAT_NOT_FOUND))


async def test_write_of_a_beat_is_answered_once_if_it_also_is_a_probe_that_fails(world: World) -> None:
    await world.agent.write(Register(KEY, C))
    await world.lose()
    await world.clock.advance(1)
    assert (await world.agent.write(Beat(KEY, C.ip, C.port))).how == "local"
    await settle()
    assert world.agent.counts.local_beats == 1


async def test_write_of_a_beat_that_is_refused_raises_the_refusal(world: World) -> None:
    await world.agent.write(Register(KEY, C))
    world.fail(Refused(Reason.NO_RIGHT, "authorization failed!", status=403))
    with pytest.raises(Refused):
        await world.agent.write(Beat(KEY, C.ip, C.port))


async def test_write_of_a_beat_does_not_wait_for_an_upstream_that_is_down_and_one_is_a_probe(world: World) -> None:
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


async def test_write_of_a_full_beat_does_not_bring_back_a_disabled_instance(world: World) -> None:
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


async def test_write_of_a_full_beat_of_an_unknown_instance_looks_it_up_first(world: World) -> None:
    await world.read()
    unlisted(world)
    await world.agent.write(Beat(KEY, C.ip, C.port, full=C))
    assert (await world.read()).snapshot == snapshot(A, B), "the upstream knows it and does not list it: it is disabled"
    other = instance("10.0.0.77")
    await world.agent.write(Beat(KEY, other.ip, other.port, full=other))
    look = await world.read()
    assert look.snapshot is not None and look.snapshot.find(other.ip, other.port) == other


async def test_write_of_beats_does_not_keep_a_disabled_instance_visible(world: World) -> None:
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


async def test_write_of_beats_does_not_keep_the_only_instance_visible_when_it_is_disabled(world: World) -> None:
    world.shelf.services.clear()
    await world.agent.write(Register(KEY, C))
    await world.clock.advance(10)
    await world.agent.write(Beat(KEY, C.ip, C.port))
    await world.read(CacheControl(no_cache=True))
    world.shelf.services.clear()
    unlisted(world)
    look = await world.read(CacheControl(no_cache=True))
    assert look.snapshot is not None and look.snapshot.instances == ()


@pytest.mark.parametrize(
    ("call", "begun"), [(Register(KEY, C), 1), (Beat(KEY, A.ip, A.port), 1), (Deregister(KEY, A.ip, A.port), 0)]
)
async def test_begin_sends_at_once_what_the_registry_can_begin(call: Write[Any], begun: int) -> None:
    world = World(begins=True)
    assert isinstance(world.registry, BeginningRegistry)
    await world.agent.write(call)
    assert (world.registry.begun, world.registry.calls) == (begun, [call])
    await world.agent.close()


async def test_begin_goes_on_if_its_future_is_cancelled(world: World) -> None:
    held = world.hold(Register)
    begun = world.agent.begin(Register(KEY, C))
    assert begun is not None
    await settle()
    begun.cancel()
    await held.release()
    assert world.agent.catalog.registrations.find(KEY, C.ip, C.port) is not None


async def test_write_is_cancelled_with_what_it_waits_for(world: World) -> None:
    held = world.hold(Register)
    writing = spawn(world.agent.write(Register(KEY, C)), name="writing")
    await settle()
    for waiting, _ in held.waiting:
        waiting.cancel()
    await settle()
    assert writing.cancelled()
