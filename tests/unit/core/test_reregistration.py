"""What was registered here comes back where the upstream lost it, unless its owner takes it away at that moment."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from nacos_proxy.catalog.registrations import Registrations, RegistrationsPolicy
from nacos_proxy.core.reregistration import LOOKED_UP, Reregistration
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
from nacos_proxy.runtime import Supervisor, spawn
from tests.helpers.build import KEY, instance, key, snapshot
from tests.helpers.clock import FakeClock, settle
from tests.helpers.scripted import ScriptedRegistry, Shelf

MINE = instance(weight=3.0, metadata={"preserved.heart.beat.interval": "2000", "zone": "b"})
BEAT = Beat(KEY, MINE.ip, MINE.port)
LOST = BeatResult(BEAT_NOT_FOUND)


class World:
    """An upstream that forgot, and a ledger that did not."""

    def __init__(self) -> None:
        self.shelf = Shelf()
        self.registry = ScriptedRegistry(self.shelf)
        self.ledger = Registrations(RegistrationsPolicy())
        self.clock = FakeClock()
        self.back: list[Register] = []
        self.healing = Reregistration(self.ledger, self.registry, self.back.append, self.clock, Supervisor(self.clock))
        self.ledger.wrote(Register(KEY, MINE), self.clock.now())

    @property
    def registration(self) -> Any:
        return self.ledger.find(KEY, MINE.ip, MINE.port)

    def deregister(self) -> None:
        self.ledger.wrote(Deregister(KEY, MINE.ip, MINE.port), self.clock.now())


@pytest.fixture
def world() -> World:
    return World()


async def test_it_is_registered_again_with_all_its_data_and_its_client_hears_that_all_is_well(world: World) -> None:
    result = await world.healing.heal(BEAT, BeatResult(BEAT_NOT_FOUND, light=False, extra={"x": 1}))
    assert result == BeatResult(BEAT_OK, 2000, light=False, extra={"x": 1})
    assert world.registry.calls == [Register(KEY, MINE)]
    assert world.back == [Register(KEY, MINE)]


async def test_an_answer_that_says_all_is_well_stands(world: World) -> None:
    assert await world.healing.heal(BEAT, BeatResult()) is None
    assert world.registry.calls == []


async def test_what_was_not_registered_here_or_is_persistent_is_not_healed(world: World) -> None:
    assert await world.healing.heal(Beat(KEY, "10.0.0.9", 80), LOST) is None
    world.ledger.wrote(Register(KEY, instance("10.0.0.8", ephemeral=False)), 0)
    assert await world.healing.heal(Beat(KEY, "10.0.0.8", 80), LOST) is None
    assert world.registry.calls == []


async def test_where_the_upstream_refuses_the_client_hears_that_it_is_not_registered(world: World) -> None:
    world.registry.script = lambda call: Refused(Reason.NO_RIGHT, "authorization failed!", status=403)
    assert await world.healing.heal(BEAT, LOST) is None
    assert world.back == []


async def test_an_upstream_that_is_gone_again_is_the_callers_matter(world: World) -> None:
    world.registry.script = lambda call: Unreachable("reset", arrived=True)
    with pytest.raises(Unreachable):
        await world.healing.heal(BEAT, LOST)
    assert world.back == []


async def test_a_beat_that_finds_nothing_while_its_owner_deregisters_heals_nothing(world: World) -> None:
    leave = Deregister(KEY, MINE.ip, MINE.port)
    with world.healing.leaving(leave), world.healing.leaving(leave):
        assert await world.healing.heal(BEAT, LOST) is None
        assert await world.healing.renew(world.registration) is False
    assert world.registry.calls == []
    assert await world.healing.heal(BEAT, LOST) is not None


async def test_what_is_deregistered_while_it_is_registered_again_is_taken_away_again(world: World) -> None:
    release = asyncio.Event()

    async def late(call: Call[Any]) -> Any:
        await release.wait()
        return world.shelf(call)

    world.registry.script = lambda call: late(call) if isinstance(call, Register) else world.shelf(call)
    healing = spawn(world.healing.heal(BEAT, LOST), name="heal")
    await settle()
    world.deregister()
    release.set()
    assert await healing is None
    assert world.shelf.of(KEY).instances == ()
    assert world.back == []


async def test_a_renewal_registers_only_what_the_upstream_does_not_know(world: World) -> None:
    world.shelf.services[KEY] = snapshot(MINE)
    assert await world.healing.renew(world.registration) is False
    assert world.registry.sent(Register) == []
    world.shelf.services[KEY] = snapshot()
    assert await world.healing.renew(world.registration) is True
    assert world.shelf.of(KEY).instances == (MINE,)


@pytest.mark.parametrize("metadata", [{}, dict(MINE.metadata)])
async def test_a_renewal_makes_whole_what_a_light_beat_brought_back_without_its_data(
    world: World, metadata: dict[str, str]
) -> None:
    """r-nacos 0.8.8 registers on any beat, with weight 1 and the metadata that it still has."""
    world.shelf.services[KEY] = snapshot(instance(MINE.ip, MINE.port, metadata=metadata))
    assert await world.healing.renew(world.registration) is True
    assert world.shelf.of(KEY).instances == (MINE,)


async def test_a_renewal_leaves_alone_what_somebody_changed_at_the_upstream(world: World) -> None:
    changed = replace(MINE, weight=9.0, metadata={"by": "the console"})
    world.shelf.services[KEY] = snapshot(changed)
    assert await world.healing.renew(world.registration) is False
    assert world.shelf.of(KEY).instances == (changed,)


async def test_a_renewal_asks_with_a_beat_where_it_may_not_look(world: World) -> None:
    denied = Refused(Reason.NO_RIGHT, "authorization failed!", status=403)
    world.registry.script = lambda call: denied if isinstance(call, GetInstance) else world.shelf(call)
    assert await world.healing.renew(world.registration) is True
    assert world.shelf.of(KEY).instances == (MINE,)
    assert await world.healing.renew(world.registration) is False


ADDRESS = (MINE.ip, MINE.port)


async def test_a_list_without_what_beats_here_is_not_believed_and_the_upstream_gets_it_back(world: World) -> None:
    world.ledger.wrote(BEAT, world.clock.now())
    assert not await world.healing.lost(snapshot(), doubtful=False), "registered just now: a server lists it late"
    await world.clock.advance(6)
    assert not await world.healing.lost(snapshot(MINE), doubtful=False)
    assert await world.healing.lost(snapshot(), doubtful=False) == {ADDRESS: 1006}
    await settle()
    assert world.registry.sent(Register) == [Register(KEY, MINE)]
    assert world.shelf.of(KEY).instances == (MINE,)
    await world.clock.advance(2)
    assert not await world.healing.lost(snapshot(MINE), doubtful=False)
    world.shelf.services.clear()
    assert await world.healing.lost(snapshot(), doubtful=False) == {ADDRESS: 1008}
    await world.healing.close()


async def test_what_is_there_and_not_listed_was_disabled_and_is_looked_up_once(world: World) -> None:
    """Lists show no disabled instance; the call for one does (recording "v1 get instance by clusterName")."""
    world.ledger.wrote(BEAT, world.clock.now())
    world.shelf.services[KEY] = snapshot(MINE)
    await world.clock.advance(6)
    for _ in range(3):
        assert not await world.healing.lost(snapshot(), doubtful=False)
    assert [type(call) for call in world.registry.calls] == [GetInstance]
    assert not await world.healing.lost(snapshot(MINE), doubtful=False), "enabled again"
    world.shelf.services.clear()
    assert await world.healing.lost(snapshot(), doubtful=False), "and now it is gone"
    await world.healing.close()


async def test_where_hidden_ones_may_not_be_looked_at_a_beat_tells_whether_it_is_there(world: World) -> None:
    world.ledger.wrote(BEAT, world.clock.now())
    world.shelf.services[KEY] = snapshot(MINE)
    untold = Refused(Reason.INSTANCE_NOT_FOUND, "no matched ip found!", status=404)
    untold.__cause__ = Refused(Reason.NO_RIGHT, "authorization failed!", status=403)
    world.registry.script = lambda call: untold if isinstance(call, GetInstance) else world.shelf(call)
    await world.clock.advance(6)
    assert not await world.healing.lost(snapshot(), doubtful=False)
    assert await world.healing.renew(world.registration) is False
    assert world.registry.sent(Register) == []


async def test_what_was_disabled_through_this_proxy_is_not_missed(world: World) -> None:
    world.ledger.wrote(BEAT, world.clock.now())
    world.ledger.wrote(Update(KEY, MINE.ip, MINE.port, enabled=False), world.clock.now())
    await world.clock.advance(6)
    assert not await world.healing.lost(snapshot(), doubtful=False)
    assert world.registry.calls == []


async def test_a_list_that_lacks_a_crowd_costs_few_lookups(world: World) -> None:
    for number in range(40):
        world.ledger.wrote(Register(KEY, instance(f"10.0.1.{number}")), world.clock.now())
        world.ledger.wrote(Beat(KEY, f"10.0.1.{number}", 80), world.clock.now())
    await world.clock.advance(6)
    assert len(await world.healing.lost(snapshot(), doubtful=False)) == 40
    assert len(world.registry.sent(GetInstance)) == LOOKED_UP
    await world.healing.close()


async def test_after_an_outage_it_is_missed_anew_with_each_list_until_the_upstream_has_it(world: World) -> None:
    world.ledger.wrote(BEAT, world.clock.now())
    for passed in (1006, 1008):
        await world.clock.advance(passed - world.clock.now())
        assert await world.healing.lost(snapshot(), doubtful=True) == {ADDRESS: passed}
    await world.healing.close()


@pytest.mark.parametrize(
    ("weight", "metadata", "whole"),
    [(1.0, {}, False), (1.0, MINE.metadata, False), (3.0, {}, False), (9.0, {"by": "the console"}, True)],
)
async def test_after_an_outage_its_data_is_missed_too(
    world: World, weight: float, metadata: dict[str, str], whole: bool
) -> None:
    """r-nacos makes an instance of a light beat: without metadata or, where it keeps that over a restart, with it."""
    world.ledger.wrote(BEAT, world.clock.now())
    await world.clock.advance(6)
    word = world.shelf.services[KEY] = snapshot(replace(MINE, weight=weight, metadata=metadata))
    assert not await world.healing.lost(word, doubtful=False), "somebody may have changed it"
    assert bool(await world.healing.lost(word, doubtful=True)) is not whole
    await settle()
    assert world.shelf.of(KEY).instances == (word.instances if whole else (MINE,))


async def test_many_that_are_missed_in_many_lists_are_brought_back_one_after_the_other(world: World) -> None:
    services = [key(f"s{number}") for number in range(20)]
    for service in services:
        world.ledger.wrote(Register(service, MINE), world.clock.now())
        world.ledger.wrote(replace(BEAT, service=service), world.clock.now())
    await world.clock.advance(6)
    for service in services:
        await world.healing.lost(snapshot(service=service), doubtful=True)
    await settle()
    assert [call.service for call in world.registry.sent(Register)] == services


async def test_an_upstream_that_is_away_is_not_asked_for_each_that_it_may_have_lost(world: World) -> None:
    world.registry.script = lambda call: Unreachable("refused", arrived=False)
    for number in range(20):
        world.ledger.wrote(Register(KEY, instance(f"10.0.1.{number}")), world.clock.now())
        world.ledger.wrote(Beat(KEY, f"10.0.1.{number}", 80), world.clock.now())
    await world.clock.advance(6)
    await world.healing.lost(snapshot(), doubtful=True)
    await settle()
    assert len(world.registry.calls) == 1


async def test_after_an_outage_who_beats_here_is_no_less_well_for_the_beats_that_were_lost(world: World) -> None:
    world.ledger.wrote(BEAT, world.clock.now())
    await world.clock.advance(6)
    word = world.shelf.services[KEY] = snapshot(replace(MINE, healthy=False))
    assert not await world.healing.lost(word, doubtful=False), "its server may know better"
    assert await world.healing.lost(word, doubtful=True)
    await settle()
    assert [type(call) for call in world.registry.calls] == [GetInstance, Beat]


async def test_a_list_without_what_fell_silent_or_never_beat_or_left_is_believed(world: World) -> None:
    await world.clock.advance(6)
    assert not await world.healing.lost(snapshot(), doubtful=True), "it never beat"
    world.ledger.wrote(BEAT, world.clock.now())
    await world.clock.advance(16)
    assert not await world.healing.lost(snapshot(), doubtful=True), "it fell silent"
    world.ledger.wrote(BEAT, world.clock.now())
    with world.healing.leaving(Deregister(KEY, MINE.ip, MINE.port)):
        assert not await world.healing.lost(snapshot(), doubtful=True)
    assert world.registry.calls == []


async def test_a_renewal_is_no_sign_of_life_of_the_client(world: World) -> None:
    await world.clock.advance(10)
    await world.healing.renew(world.registration)
    assert world.registration.heard == 1000


async def test_a_renewal_leaves_what_was_deregistered_meanwhile(world: World) -> None:
    registration = world.registration
    world.registry.script = lambda call: world.deregister() or world.shelf(call)
    assert await world.healing.renew(registration) is False
    assert world.registry.sent(Register) == []
    assert await world.healing.renew(registration) is False
    assert len(world.registry.calls) == 1


async def test_for_a_client_that_fell_silent_nothing_is_sent(world: World) -> None:
    """A beat of ours would make it well again for everybody; registered again it would be there for good."""
    await world.clock.advance(15)
    assert await world.healing.renew(world.registration) is False
    assert world.registry.calls == []


async def test_a_client_that_falls_silent_while_it_is_looked_at_gets_no_beat_of_ours(world: World) -> None:
    world.shelf.services[KEY] = snapshot(replace(MINE, healthy=False))
    world.registry.script = lambda call: late(call)

    async def late(call: Call[Any]) -> Any:
        await world.clock.advance(20)
        return world.shelf(call)

    assert await world.healing.renew(world.registration) is False
    assert [type(call) for call in world.registry.calls] == [GetInstance]


async def test_what_its_owner_wanted_gone_is_not_kept_alive_though_the_upstream_did_not_answer_him(
    world: World,
) -> None:
    world.registration.left = True
    world.ledger.wrote(Beat(KEY, "10.0.0.9", 80), world.clock.now())
    assert await world.healing.renew(world.registration) is False
    assert await world.healing.heal(BEAT, LOST) is None
    assert world.registry.calls == []
    world.ledger.wrote(BEAT, world.clock.now())
    assert await world.healing.renew(world.registration) is True, "he beats on"
