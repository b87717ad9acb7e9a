"""Instances that are taken out of traffic, and the writes about them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nacos_proxy.catalog.drains import Drain
from nacos_proxy.catalog.registrations import CONNECTION, Registration
from nacos_proxy.core.traffic import LOOK_AFTER
from nacos_proxy.model.calls import BEAT_OK, Beat, BeatResult, Deregister, Fetch, Register, Update
from nacos_proxy.model.errors import Reason, Refused
from nacos_proxy.model.services import Instance
from nacos_proxy.runtime import spawn
from tests.helpers.build import KEY, instance, snapshot
from tests.helpers.clock import settle
from tests.helpers.world import AWAY, World

MINE = instance("10.0.0.9", weight=2.0, metadata={"preserved.heart.beat.interval": "2000"})
OFF = replace(MINE, enabled=False)
BEAT = Beat(KEY, MINE.ip, MINE.port, full=MINE)


async def registered(world: World) -> Registration:
    await world.read()
    await world.agent.write(Register(KEY, MINE))
    found = world.agent.catalog.registrations.find(KEY, MINE.ip, MINE.port)
    assert found is not None
    return found


def drained(world: World, **fields: Any) -> Drain:
    now = world.clock.now()
    drain = Drain(KEY, MINE, 20.0, now + 20.0, **fields)
    world.agent.catalog.drains.add(drain, now)
    return drain


def visible(world: World) -> list[Instance]:
    entry = world.agent.catalog.cache.get(KEY)
    assert entry is not None and entry.visible is not None
    return [i for i in entry.visible.instances if i.ip == MINE.ip]


async def test_traffic_answers_the_beats_of_an_instance_that_is_drained(world: World) -> None:
    registration = await registered(world)
    drained(world)
    await world.clock.advance(10)
    world.registry.calls.clear()
    written = await world.agent.write(BEAT)
    assert (written.how, written.result) == ("drained", BeatResult(BEAT_OK, 2000))
    assert (world.registry.sent(Beat), registration.last_heard) == ([], world.clock.now())
    other = await world.agent.write(Beat(KEY, "10.0.0.8", 80, full=instance("10.0.0.8")))
    assert other.how == "upstream"


async def test_traffic_does_not_let_a_late_beat_register_what_was_drained(world: World) -> None:
    await registered(world)
    drained(world, ended_at=world.clock.now())
    await world.agent.write(Deregister(KEY, MINE.ip, MINE.port))
    for beat in (BEAT, replace(BEAT, full=None)):
        written = await world.agent.write(beat)
        assert written.result.code == BEAT_OK, "else its SDK registers it again"
    assert world.registry.sent(Beat) == [] and world.agent.catalog.registrations.find(KEY, MINE.ip, MINE.port) is None
    await world.clock.advance(601)
    assert (await world.agent.write(BEAT)).how == "upstream"


async def test_agent_begin_leaves_what_takes_more_steps_to_write(world: World) -> None:
    await registered(world)
    begun = world.agent.begin(BEAT)
    assert begun is not None and (await begun).how == "upstream"
    assert world.agent.begin(Update(KEY, MINE.ip, MINE.port, weight=1.0, partial=True)) is None
    drained(world)
    assert world.agent.begin(BEAT) is None and world.agent.begin(Register(KEY, MINE)) is None
    assert world.agent.begin(Deregister(KEY, MINE.ip, MINE.port)) is not None


async def test_traffic_ends_a_drain_when_the_instance_is_registered(world: World) -> None:
    await registered(world)
    drain, ended = drained(world, ended_at=world.clock.now()), list[Drain]()
    world.agent.traffic.on_registered.append(ended.append)
    await world.agent.write(Register(KEY, MINE))
    assert ended == [drain] and not world.agent.catalog.drains
    assert (await world.agent.write(BEAT)).how == "upstream"


async def test_traffic_lets_a_registration_wait_for_a_deregistration_under_way(world: World) -> None:
    await registered(world)
    drain, held = drained(world), world.hold(Deregister)
    leaving = spawn(world.agent.traffic.deregister(drain), name="deregister")
    await settle()
    world.registry.calls.clear()
    coming = spawn(world.agent.write(Register(KEY, MINE)), name="register")
    await settle()
    assert world.registry.sent(Register) == []
    await held.release()
    await leaving
    await coming
    assert len(world.registry.sent(Register)) == 1 and visible(world) == [MINE]


async def test_traffic_deregisters_nothing_whose_drain_has_ended(world: World) -> None:
    await registered(world)
    drain = drained(world)
    world.agent.catalog.drains.remove(drain)
    await world.agent.traffic.deregister(drain)
    assert world.registry.sent(Deregister) == []


async def test_traffic_disables_by_a_registration_which_leaves_the_instance_to_its_connection(world: World) -> None:
    registration = await registered(world)
    registration.check = CONNECTION
    written = await world.agent.traffic.enable(registration, False)
    assert (written.result, world.registry.sent(Register)[-1]) == (OFF, Register(KEY, OFF))
    assert registration.of_connection and registration.instance == OFF and visible(world) == [OFF]
    await world.agent.traffic.enable(registration, True)
    assert registration.of_connection and visible(world) == [MINE]


async def test_traffic_enable_raises_what_the_upstream_answers(world: World) -> None:
    registration = await registered(world)
    world.registry.script = lambda call: Refused(Reason.NO_RIGHT, "authorization failed!", status=403)
    with pytest.raises(Refused, match="authorization failed"):
        await world.agent.traffic.enable(registration, False)


async def test_traffic_enforce_modifies_only_what_the_server_shows_otherwise(world: World) -> None:
    registration = await registered(world)
    assert await world.agent.traffic.enforce(registration) is None
    await world.agent.traffic.enable(registration, False)
    assert await world.agent.traffic.enforce(registration) is None
    shown = replace(MINE, weight=7.0)
    world.registry.script = lambda call: snapshot(shown) if isinstance(call, Fetch) else world.shelf(call)
    assert await world.agent.traffic.enforce(registration) == shown
    assert world.registry.sent(Update) == [
        Update(KEY, MINE.ip, MINE.port, weight=7.0, enabled=False, metadata=MINE.metadata)
    ]


async def test_traffic_enforce_enables_what_the_server_does_not_list(world: World) -> None:
    registration = await registered(world)
    world.registry.script = lambda call: snapshot() if isinstance(call, Fetch) else world.shelf(call)
    assert await world.agent.traffic.enforce(registration) == OFF
    (update,) = world.registry.sent(Update)
    assert (update.enabled, update.weight) == (True, 2.0)


async def test_traffic_deregister_undoes_a_modification_that_the_server_would_keep(world: World) -> None:
    await registered(world)
    drain = drained(world, modified=replace(MINE, weight=7.0))
    world.registry.calls.clear()
    await world.agent.traffic.deregister(drain)
    gone = Deregister(KEY, MINE.ip, MINE.port)
    restored = Update(KEY, MINE.ip, MINE.port, weight=7.0, enabled=True, metadata=MINE.metadata)
    assert [call for call in world.registry.calls if not isinstance(call, Fetch)] == [gone, restored, gone]


@pytest.mark.parametrize("reason", [Reason.SERVICE_NOT_FOUND, Reason.NO_RIGHT])
async def test_traffic_deregister_does_not_mind_that_the_service_is_gone(world: World, reason: Reason) -> None:
    await registered(world)
    drain = drained(world, modified=replace(MINE, weight=7.0))
    refusal = Refused(reason, "no", status=400)
    world.registry.script = lambda call: refusal if isinstance(call, Update) else world.shelf(call)
    if reason is Reason.NO_RIGHT:
        with pytest.raises(Refused):
            await world.agent.traffic.deregister(drain)
    else:
        await world.agent.traffic.deregister(drain)
        assert len(world.registry.sent(Deregister)) == 2


async def test_traffic_settle_looks_when_the_server_lists_a_registration(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    registration = await registered(world)
    world.registry.calls.clear()
    settling = spawn(world.agent.traffic.settle(registration), name="settle")
    await world.clock.advance(LOOK_AFTER - 0.1)
    assert world.fetches() == 0
    world.fail(AWAY)
    await world.clock.advance(0.2)
    assert settling.result() is None and "it is not known whether 10.0.0.9:80" in caplog.text
