"""What was registered here comes back where the upstream lost it, unless its owner takes it away at that moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from nacos_proxy.core.commit import Committer
from nacos_proxy.core.reregistration import MAX_LOOKUPS, Reregistration
from nacos_proxy.core.send import Sender
from nacos_proxy.model.calls import (
    BEAT_NOT_FOUND,
    BEAT_OK,
    Beat,
    BeatResult,
    Call,
    Deregister,
    GetInstance,
    Register,
    Update,
)
from nacos_proxy.model.errors import Reason, Refused, Unreachable
from nacos_proxy.model.services import Change
from nacos_proxy.runtime import Supervisor, spawn
from tests.helpers.build import KEY, instance, key, make_catalog, snapshot
from tests.helpers.clock import FakeClock, settle
from tests.helpers.scripted import ScriptedRegistry, Shelf

MINE = instance(weight=3.0, metadata={"preserved.heart.beat.interval": "2000", "zone": "b"})
BEAT = Beat(KEY, MINE.ip, MINE.port)
LOST = BeatResult(BEAT_NOT_FOUND)


class World:
    """An upstream that forgot a registration, and a proxy that did not."""

    def __init__(self, *, below_proxy: bool = False) -> None:
        self.shelf = Shelf()
        self.registry = ScriptedRegistry(self.shelf)
        self.clock = FakeClock()
        catalog = make_catalog()
        self.registrations = catalog.registrations
        self.changes: list[Change] = []
        supervisor = Supervisor(self.clock)
        self.committer = Committer(catalog, self.clock, supervisor)
        self.committer.follow("changes", self.changes.append)
        self.sender = Sender(self.registry, catalog, self.clock, supervisor)
        self.reregistration = Reregistration(
            catalog.registrations, catalog.drains, self.sender, self.committer, self.clock, supervisor, below_proxy
        )
        catalog.cache.accept(snapshot(), self.clock.now(), "poll", requested_at=0)
        self.registrations.record_write(Register(KEY, MINE), self.clock.now())

    @property
    def registration(self) -> Any:
        return self.registrations.find(KEY, MINE.ip, MINE.port)

    def deregister(self) -> None:
        self.registrations.record_write(Deregister(KEY, MINE.ip, MINE.port), self.clock.now())


@pytest.fixture
def world() -> World:
    return World()


async def test_reregister_sends_all_data_and_answers_that_all_is_well(world: World) -> None:
    result = await world.reregistration.reregister(BEAT, BeatResult(BEAT_NOT_FOUND, light=False, extra={"x": 1}))
    assert result == BeatResult(BEAT_OK, 2000, light=False, extra={"x": 1})
    assert world.registry.calls == [Register(KEY, MINE)]
    assert [change.added for change in world.changes] == [(MINE,)], "the next read shows it"
    assert (world.committer.counts.healed, world.sender.suspicious) == (1, True)


async def test_reregister_does_nothing_if_the_upstream_knows_the_instance(world: World) -> None:
    assert await world.reregistration.reregister(BEAT, BeatResult()) is None
    assert world.registry.calls == []


async def test_reregister_ignores_what_was_not_registered_here_or_is_persistent(world: World) -> None:
    assert await world.reregistration.reregister(Beat(KEY, "10.0.0.9", 80), LOST) is None
    world.registrations.record_write(Register(KEY, instance("10.0.0.8", ephemeral=False)), 0)
    assert await world.reregistration.reregister(Beat(KEY, "10.0.0.8", 80), LOST) is None
    assert world.registry.calls == []


async def test_reregister_that_is_refused_leaves_the_answer_that_it_is_not_registered(world: World) -> None:
    world.registry.script = lambda call: Refused(Reason.NO_RIGHT, "authorization failed!", status=403)
    assert await world.reregistration.reregister(BEAT, LOST) is None
    assert (world.changes, world.committer.counts.healed) == ([], 0)


async def test_reregister_raises_if_the_upstream_is_gone_again(world: World) -> None:
    world.registry.script = lambda call: Unreachable("reset", arrived=True)
    with pytest.raises(Unreachable):
        await world.reregistration.reregister(BEAT, LOST)
    assert (world.changes, world.committer.counts.healed) == ([], 0)


async def test_reregister_does_nothing_while_its_owner_is_deregistering(world: World) -> None:
    leave = Deregister(KEY, MINE.ip, MINE.port)
    with world.reregistration.deregistering(leave), world.reregistration.deregistering(leave):
        assert await world.reregistration.reregister(BEAT, LOST) is None
        assert await world.reregistration.renew(world.registration) is False
    assert world.registry.calls == []
    assert await world.reregistration.reregister(BEAT, LOST) is not None


async def test_reregister_takes_back_what_is_deregistered_meanwhile(world: World) -> None:
    release = asyncio.Event()

    async def late(call: Call[Any]) -> Any:
        await release.wait()
        return world.shelf(call)

    world.registry.script = lambda call: late(call) if isinstance(call, Register) else world.shelf(call)
    healing = spawn(world.reregistration.reregister(BEAT, LOST), name="heal")
    await settle()
    world.deregister()
    release.set()
    assert await healing is None
    assert world.shelf.of(KEY).instances == ()
    assert (world.changes, world.committer.counts.healed) == ([], 0)


async def test_renew_registers_only_what_the_upstream_does_not_know(world: World) -> None:
    world.shelf.services[KEY] = snapshot(MINE)
    assert await world.reregistration.renew(world.registration) is False
    assert world.registry.sent(Register) == []
    world.shelf.services[KEY] = snapshot()
    assert await world.reregistration.renew(world.registration) is True
    assert world.shelf.of(KEY).instances == (MINE,)


@pytest.mark.parametrize("metadata", [{}, dict(MINE.metadata)])
async def test_renew_restores_data_that_a_light_beat_did_not_bring_back(world: World, metadata: dict[str, str]) -> None:
    """r-nacos 0.8.8 registers on any beat, with weight 1 and the metadata that it still has."""
    world.shelf.services[KEY] = snapshot(instance(MINE.ip, MINE.port, metadata=metadata))
    assert await world.reregistration.renew(world.registration) is True
    assert world.shelf.of(KEY).instances == (MINE,)


async def test_renew_leaves_alone_what_somebody_changed_at_the_upstream(world: World) -> None:
    changed = replace(MINE, weight=9.0, metadata={"by": "the console"})
    world.shelf.services[KEY] = snapshot(changed)
    assert await world.reregistration.renew(world.registration) is False
    assert world.shelf.of(KEY).instances == (changed,)


async def test_renew_sends_a_beat_if_it_may_not_look_up(world: World) -> None:
    denied = Refused(Reason.NO_RIGHT, "authorization failed!", status=403)
    world.registry.script = lambda call: denied if isinstance(call, GetInstance) else world.shelf(call)
    assert await world.reregistration.renew(world.registration) is True
    assert world.shelf.of(KEY).instances == (MINE,)
    assert await world.reregistration.renew(world.registration) is False


ADDRESS = (MINE.ip, MINE.port)


async def test_missing_from_finds_what_beats_here_and_registers_it_again(world: World) -> None:
    world.registrations.record_write(BEAT, world.clock.now())
    assert not await world.reregistration.missing_from(snapshot(), suspicious=False), (
        "registered just now: a server lists it late"
    )
    await world.clock.advance(6)
    assert not await world.reregistration.missing_from(snapshot(MINE), suspicious=False)
    assert await world.reregistration.missing_from(snapshot(), suspicious=False) == {ADDRESS: 1006}
    await settle()
    assert world.registry.sent(Register) == [Register(KEY, MINE)]
    assert world.shelf.of(KEY).instances == (MINE,)
    await world.clock.advance(2)
    assert not await world.reregistration.missing_from(snapshot(MINE), suspicious=False)
    world.shelf.services.clear()
    assert await world.reregistration.missing_from(snapshot(), suspicious=False) == {ADDRESS: 1008}
    await world.reregistration.close()


async def test_missing_from_looks_up_a_disabled_instance_once(world: World) -> None:
    """Lists show no disabled instance; the call for one does (recording "v1 get instance by clusterName")."""
    world.registrations.record_write(BEAT, world.clock.now())
    world.shelf.services[KEY] = snapshot(MINE)
    await world.clock.advance(6)
    for _ in range(3):
        assert not await world.reregistration.missing_from(snapshot(), suspicious=False)
    assert [type(call) for call in world.registry.calls] == [GetInstance]
    assert not await world.reregistration.missing_from(snapshot(MINE), suspicious=False), "enabled again"
    world.shelf.services.clear()
    assert await world.reregistration.missing_from(snapshot(), suspicious=False), "and now it is gone"
    await world.reregistration.close()


async def test_missing_from_sends_a_beat_if_hidden_instances_may_not_be_looked_up(world: World) -> None:
    world.registrations.record_write(BEAT, world.clock.now())
    world.shelf.services[KEY] = snapshot(MINE)
    untold = Refused(Reason.INSTANCE_NOT_FOUND, "no matched ip found!", status=404)
    untold.__cause__ = Refused(Reason.NO_RIGHT, "authorization failed!", status=403)
    world.registry.script = lambda call: untold if isinstance(call, GetInstance) else world.shelf(call)
    await world.clock.advance(6)
    assert not await world.reregistration.missing_from(snapshot(), suspicious=False)
    assert await world.reregistration.renew(world.registration) is False
    assert world.registry.sent(Register) == []


async def test_missing_from_ignores_what_was_disabled_through_this_proxy(world: World) -> None:
    world.registrations.record_write(BEAT, world.clock.now())
    world.registrations.record_write(Update(KEY, MINE.ip, MINE.port, enabled=False), world.clock.now())
    await world.clock.advance(6)
    assert not await world.reregistration.missing_from(snapshot(), suspicious=False)
    assert world.registry.calls == []


async def test_missing_from_looks_up_only_a_few_of_many(world: World) -> None:
    for number in range(40):
        world.registrations.record_write(Register(KEY, instance(f"10.0.1.{number}")), world.clock.now())
        world.registrations.record_write(Beat(KEY, f"10.0.1.{number}", 80), world.clock.now())
    await world.clock.advance(6)
    assert len(await world.reregistration.missing_from(snapshot(), suspicious=False)) == 40
    assert len(world.registry.sent(GetInstance)) == MAX_LOOKUPS
    await world.reregistration.close()


async def test_missing_from_a_suspicious_list_counts_anew_with_each_list(world: World) -> None:
    world.registrations.record_write(BEAT, world.clock.now())
    for passed in (1006, 1008):
        await world.clock.advance(passed - world.clock.now())
        assert await world.reregistration.missing_from(snapshot(), suspicious=True) == {ADDRESS: passed}
    await world.reregistration.close()


@pytest.mark.parametrize(
    ("weight", "metadata", "whole"),
    [(1.0, {}, False), (1.0, MINE.metadata, False), (3.0, {}, False), (9.0, {"by": "the console"}, True)],
)
async def test_missing_from_a_suspicious_list_includes_what_lacks_its_data(
    world: World, weight: float, metadata: dict[str, str], whole: bool
) -> None:
    """r-nacos makes an instance of a light beat: without metadata or, where it keeps that over a restart, with it."""
    world.registrations.record_write(BEAT, world.clock.now())
    await world.clock.advance(6)
    word = world.shelf.services[KEY] = snapshot(replace(MINE, weight=weight, metadata=metadata))
    assert not await world.reregistration.missing_from(word, suspicious=False), "somebody may have changed it"
    assert bool(await world.reregistration.missing_from(word, suspicious=True)) is not whole
    await settle()
    assert world.shelf.of(KEY).instances == (word.instances if whole else (MINE,))


async def test_missing_from_many_lists_registers_again_one_after_the_other(world: World) -> None:
    services = [key(f"s{number}") for number in range(20)]
    for service in services:
        world.registrations.record_write(Register(service, MINE), world.clock.now())
        world.registrations.record_write(replace(BEAT, service=service), world.clock.now())
    await world.clock.advance(6)
    for service in services:
        await world.reregistration.missing_from(snapshot(service=service), suspicious=True)
    await settle()
    assert [call.service for call in world.registry.sent(Register)] == services


async def test_missing_from_stops_registering_again_if_the_upstream_is_away(world: World) -> None:
    world.registry.script = lambda call: Unreachable("refused", arrived=False)
    for number in range(20):
        world.registrations.record_write(Register(KEY, instance(f"10.0.1.{number}")), world.clock.now())
        world.registrations.record_write(Beat(KEY, f"10.0.1.{number}", 80), world.clock.now())
    await world.clock.advance(6)
    await world.reregistration.missing_from(snapshot(), suspicious=True)
    await settle()
    assert len(world.registry.calls) == 1


async def test_missing_from_a_suspicious_list_sends_a_beat_for_what_is_unhealthy_there(world: World) -> None:
    world.registrations.record_write(BEAT, world.clock.now())
    await world.clock.advance(6)
    word = world.shelf.services[KEY] = snapshot(replace(MINE, healthy=False))
    assert not await world.reregistration.missing_from(word, suspicious=False), "its server may know better"
    assert await world.reregistration.missing_from(word, suspicious=True)
    await settle()
    assert [type(call) for call in world.registry.calls] == [GetInstance, Beat]


async def test_missing_from_ignores_what_fell_silent_or_never_beat_or_left(world: World) -> None:
    await world.clock.advance(6)
    assert not await world.reregistration.missing_from(snapshot(), suspicious=True), "it never beat"
    world.registrations.record_write(BEAT, world.clock.now())
    await world.clock.advance(16)
    assert not await world.reregistration.missing_from(snapshot(), suspicious=True), "it fell silent"
    world.registrations.record_write(BEAT, world.clock.now())
    with world.reregistration.deregistering(Deregister(KEY, MINE.ip, MINE.port)):
        assert not await world.reregistration.missing_from(snapshot(), suspicious=True)
    assert world.registry.calls == []


async def test_renew_is_no_sign_of_life_of_the_client(world: World) -> None:
    await world.clock.advance(10)
    await world.reregistration.renew(world.registration)
    assert world.registration.last_heard == 1000


async def test_renew_does_not_register_what_was_deregistered_meanwhile(world: World) -> None:
    registration = world.registration
    world.registry.script = lambda call: world.deregister() or world.shelf(call)
    assert await world.reregistration.renew(registration) is False
    assert world.registry.sent(Register) == []
    assert await world.reregistration.renew(registration) is False
    assert len(world.registry.calls) == 1


async def test_renew_sends_nothing_for_a_client_that_fell_silent(world: World) -> None:
    """A beat of ours would make it well again for everybody; registered again it would be there for good."""
    await world.clock.advance(15)
    assert await world.reregistration.renew(world.registration) is False
    assert world.registry.calls == []


async def test_renew_sends_no_beat_for_a_client_that_falls_silent_meanwhile(world: World) -> None:
    world.shelf.services[KEY] = snapshot(replace(MINE, healthy=False))
    world.registry.script = lambda call: late(call)

    async def late(call: Call[Any]) -> Any:
        await world.clock.advance(20)
        return world.shelf(call)

    assert await world.reregistration.renew(world.registration) is False
    assert [type(call) for call in world.registry.calls] == [GetInstance]


async def test_renew_ignores_what_its_owner_deregistered_though_the_upstream_did_not_answer(
    world: World,
) -> None:
    world.registration.deregistering = True
    world.registrations.record_write(Beat(KEY, "10.0.0.9", 80), world.clock.now())
    assert await world.reregistration.renew(world.registration) is False
    assert await world.reregistration.reregister(BEAT, LOST) is None
    assert world.registry.calls == []
    world.registrations.record_write(BEAT, world.clock.now())
    assert await world.reregistration.renew(world.registration) is True, "he beats on"


@pytest.fixture
async def lower() -> AsyncIterator[World]:
    """Below an upper proxy, with an instance that has beaten for long enough to be listed."""
    made = World(below_proxy=True)
    made.registrations.record_write(BEAT, made.clock.now())
    await made.clock.advance(6)
    yield made
    await made.reregistration.close()


async def test_missing_from_a_list_of_an_upper_proxy_leaves_it_to_that_to_bring_back(lower: World) -> None:
    assert not await lower.reregistration.missing_from(snapshot(), suspicious=False)
    assert not lower.reregistration.expects_more(snapshot(), suspicious=False)
    assert lower.registry.calls == []
    assert await lower.reregistration.reregister(BEAT, LOST) is not None, "a client learns from its own beat"


async def test_missing_from_a_list_of_another_run_of_an_upper_proxy_is_registered_again(lower: World) -> None:
    assert await lower.reregistration.missing_from(snapshot(), suspicious=True)
    await settle()
    assert [type(call) for call in lower.registry.calls] == [GetInstance, Beat, Register]
    assert lower.shelf.of(KEY).instances == (MINE,)


async def test_renew_leaves_out_of_traffic_what_is_drained_at_an_upper_proxy(lower: World) -> None:
    """It lists no such instance, but accepts its beats."""
    lower.registry.script = lambda call: BeatResult() if isinstance(call, Beat) else lower.shelf(call)
    assert await lower.reregistration.renew(lower.registration) is False
    assert lower.registry.sent(Register) == []
