"""Drains, from the call to the deregistration, whatever happens on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from nacos_proxy.background.drains import Drainer, DrainerPolicy
from nacos_proxy.catalog.drains import HELD_FOR, Drain
from nacos_proxy.catalog.registrations import Registration
from nacos_proxy.core.agent import AgentPolicy
from nacos_proxy.core.traffic import LOOK_AFTER
from nacos_proxy.model.calls import Beat, Call, Deregister, Fetch, Metrics, Register, Update
from nacos_proxy.model.errors import BadCall, NothingKnown, ProxyError, Reason, Refused, Unreachable
from nacos_proxy.runtime import spawn, stop
from tests.helpers.build import KEY, agent, instance, snapshot
from tests.helpers.clock import FakeClock, settle
from tests.helpers.scripted import ScriptedRegistry, Shelf

MINE = instance("10.0.0.9", 8080, weight=2.0)
OFF = replace(MINE, enabled=False)
GONE = Deregister(KEY, MINE.ip, MINE.port)
AWAY = Unreachable("connection refused", arrived=False)
WAIT = 20.0


class World:
    """An agent with one registered instance, and its drainer. `steps` is what the drainer wanted to be on disk."""

    def __init__(self, *, local: bool = False, give_up: float = 600.0) -> None:
        self.clock = FakeClock()
        self.shelf = Shelf()
        self.registry = ScriptedRegistry(self.shelf)
        self.agent = agent(self.registry, self.clock, policy=AgentPolicy(outage_writes=local))
        self.drainer = Drainer(self.agent, DrainerPolicy(give_up))
        self.saved: list[list[tuple[str, float]]] = []
        self.drainer.persist_with(self._save)

    async def _save(self) -> None:
        now = self.clock.now()
        self.saved.append([(drain.state(now), drain.until - now) for drain in self.agent.catalog.drains])

    async def register(self) -> Registration:
        await self.agent.read(KEY)
        await self.agent.write(Register(KEY, MINE))
        self.registry.calls.clear()
        return self.registration

    @property
    def registration(self) -> Registration:
        found = self.agent.catalog.registrations.find(KEY, MINE.ip, MINE.port)
        assert found is not None
        return found

    @property
    def found(self) -> Drain | None:
        return self.drainer.find(KEY, MINE.ip, MINE.port)

    def start(self, wait: float = WAIT) -> asyncio.Task[Any]:
        return spawn(self._drain(wait), name="caller")

    async def _drain(self, wait: float) -> str | ProxyError:
        try:
            return (await self.drainer.drain(self.registration, wait)).state(self.clock.now())
        except ProxyError as error:
            return error

    def writes(self) -> list[Call[Any]]:
        """What was sent since the registration, without lists."""
        return [call for call in self.registry.calls if not isinstance(call, Fetch)]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    await made.register()
    yield made
    await made.drainer.stop()
    await made.agent.close()


async def test_drain_disables_at_once_waits_and_deregisters(world: World) -> None:
    caller = world.start()
    await settle()
    assert world.writes() == [Register(KEY, OFF)]
    assert world.found is not None and world.found.state(world.clock.now()) == "draining"
    await world.clock.advance(WAIT - 0.1)
    assert world.writes() == [Register(KEY, OFF)] and not caller.done() and world.drainer.active == 1
    await world.clock.advance(0.2)
    assert world.writes() == [Register(KEY, OFF), GONE] and caller.result() == "drained"
    assert world.drainer.active == 0
    assert world.saved == [[("draining", WAIT)], [("draining", WAIT)], [("drained", 0.0)]]


async def test_drain_goes_on_without_its_caller_and_others_join_it(world: World) -> None:
    caller = world.start()
    await settle()
    await stop(caller)
    second = world.start(wait=1.0)
    await world.clock.advance(2.0)
    assert not second.done(), "the first wait counts"
    await world.clock.advance(WAIT)
    assert second.result() == "drained" and world.writes() == [Register(KEY, OFF), GONE]


async def test_drain_keeps_the_beats_of_its_client_away_until_it_is_forgotten(world: World) -> None:
    world.start()
    await settle()
    for _ in range(8):
        await world.agent.write(Beat(KEY, MINE.ip, MINE.port, full=MINE))
        await world.clock.advance(5)
    assert world.writes() == [Register(KEY, OFF), GONE]
    await world.clock.advance(HELD_FOR)
    await world.agent.write(Beat(KEY, MINE.ip, MINE.port, full=MINE))
    assert isinstance(world.writes()[-1], Beat)


async def test_drain_is_not_undone_by_a_reregistration(world: World) -> None:
    world.start()
    await settle()
    world.registry.calls.clear()
    world.shelf.services.clear()
    await world.clock.advance(10)
    await world.agent.write(Beat(KEY, MINE.ip, MINE.port, full=MINE))
    world.agent.suspect()
    await asyncio.wait([world.agent.refresh(KEY)])
    assert await world.agent.renew(world.registration) is False
    assert world.writes() == []


@pytest.mark.parametrize("enabled", [True, False])
async def test_drain_that_is_cancelled_brings_the_instance_back_as_it_was(world: World, enabled: bool) -> None:
    if not enabled:
        await world.agent.write(Register(KEY, OFF))
    caller = world.start()
    await world.clock.advance(5)
    assert world.found is not None
    world.registry.calls.clear()
    written = await world.drainer.cancel(world.found)
    assert written is not None and written.result == replace(MINE, enabled=enabled)
    await world.clock.advance(2 * WAIT)
    assert world.writes() == [Register(KEY, replace(MINE, enabled=enabled))]
    error = caller.result()
    assert isinstance(error, BadCall) and (error.status, error.text) == (409, "the drain was cancelled")
    assert world.found is None and world.saved[-1] == []


async def test_drain_that_is_cancelled_after_its_end_only_lets_beats_through_again(world: World) -> None:
    caller = world.start()
    await world.clock.advance(WAIT + 1)
    assert caller.result() == "drained" and world.found is not None
    world.registry.calls.clear()
    assert await world.drainer.cancel(world.found) is None
    assert world.writes() == [] and world.found is None


async def test_drain_ends_when_the_instance_is_registered_again(world: World) -> None:
    caller = world.start()
    await world.clock.advance(5)
    await world.agent.write(Register(KEY, MINE))
    await world.clock.advance(2 * WAIT)
    error = caller.result()
    assert isinstance(error, BadCall) and error.status == 409 and "registered again" in error.text
    assert world.writes() == [Register(KEY, OFF), Register(KEY, MINE)] and world.found is None


async def test_drain_that_the_upstream_refuses_to_begin_raises_that_and_changes_nothing(world: World) -> None:
    world.registry.script = lambda call: Refused(Reason.NO_RIGHT, "authorization failed!", status=403)
    caller = world.start()
    await settle()
    assert isinstance(caller.result(), Refused) and world.found is None and world.drainer.active == 0


async def test_drain_tries_the_deregistration_again_and_says_why(world: World) -> None:
    caller = world.start()
    await settle()
    refusing = Refused(Reason.OTHER, "raft is not ready", status=400)
    world.registry.script = lambda call: refusing if isinstance(call, Deregister) else world.shelf(call)
    await world.clock.advance(WAIT)
    assert caller.result() is refusing
    assert world.found is not None and (world.found.error, world.found.state(world.clock.now())) == (
        "raft is not ready",
        "deregistering",
    )
    second = world.start()
    await settle()
    world.registry.script = world.shelf
    await world.clock.advance(2)
    assert second.result() == "drained" and world.found.error == ""


async def test_drain_gives_up_a_deregistration_that_is_always_refused() -> None:
    world = World(give_up=10.0)
    await world.register()
    world.start()
    await settle()
    world.registry.script = lambda call: (
        Refused(Reason.OTHER, "no", status=400) if isinstance(call, Deregister) else world.shelf(call)
    )
    await world.clock.advance(WAIT + 60)
    assert world.drainer.active == 0 and world.found is not None and world.found.error == "no"
    assert len(world.registry.sent(Deregister)) == 5
    await world.agent.close()


async def test_drain_works_while_the_upstream_is_away_and_is_sent_later() -> None:
    world = World(local=True)
    await world.register()
    world.registry.script = lambda call: AWAY
    while world.agent.catalog.breaker.up:
        with pytest.raises(Unreachable):
            await world.agent.send(Metrics())
    caller = world.start()
    await settle()
    read = await world.agent.read(KEY)
    assert read.snapshot is not None and [i.enabled for i in read.snapshot.instances] == [False]
    await world.clock.advance(WAIT + 1)
    assert caller.result() == "drained"
    read = await world.agent.read(KEY)
    assert read.snapshot is not None and read.snapshot.instances == ()
    world.registry.script = world.shelf
    world.registry.calls.clear()
    assert await world.agent.outage.send_waiting((KEY, MINE.ip, MINE.port))
    assert world.writes() == [GONE]
    await world.agent.close()


async def test_drain_modifies_what_the_server_still_shows_and_waits_from_then_on(world: World) -> None:
    modified = replace(MINE, weight=7.0)
    caller = world.start()
    await settle()
    world.registry.script = lambda call: snapshot(modified) if isinstance(call, Fetch) else world.shelf(call)
    await world.clock.advance(LOOK_AFTER)
    off = Update(KEY, MINE.ip, MINE.port, weight=7.0, enabled=False, metadata=MINE.metadata)
    assert world.writes() == [Register(KEY, OFF), off]
    await world.clock.advance(WAIT - 0.1)
    assert not caller.done()
    await world.clock.advance(0.2)
    assert world.writes() == [Register(KEY, OFF), off, GONE, replace(off, enabled=True), GONE]


async def test_drain_that_modified_the_instance_modifies_it_back_when_it_is_cancelled(world: World) -> None:
    shown = replace(MINE, weight=7.0)
    world.start()
    await settle()
    world.registry.script = lambda call: snapshot(shown) if isinstance(call, Fetch) else world.shelf(call)
    await world.clock.advance(LOOK_AFTER + 1)
    assert world.found is not None
    await world.drainer.cancel(world.found)
    world.registry.script = lambda call: snapshot() if isinstance(call, Fetch) else world.shelf(call)
    world.registry.calls.clear()
    await world.clock.advance(LOOK_AFTER)
    assert [(call.enabled, call.weight) for call in world.registry.sent(Update)] == [(True, 7.0)]
    assert world.drainer.active == 0


async def test_drain_goes_on_if_the_upstream_does_not_take_the_instance_back(world: World) -> None:
    world.start()
    await world.clock.advance(5)
    refusing = Refused(Reason.OTHER, "raft is not ready", status=400)
    world.registry.script = lambda call: refusing if isinstance(call, Register) else world.shelf(call)
    assert world.found is not None
    with pytest.raises(Refused):
        await world.drainer.cancel(world.found)
    assert world.found is not None
    await world.clock.advance(WAIT)
    assert world.writes()[-1] == GONE


async def test_drain_that_begins_again_after_a_cancel_is_not_mistaken_for_the_one_before(world: World) -> None:
    world.start()
    await settle()
    assert world.found is not None
    await world.drainer.cancel(world.found)
    caller = world.start()
    await world.clock.advance(WAIT + 1)
    assert caller.result() == "drained" and world.registry.sent(Update) == []


async def test_drainer_goes_on_after_a_restart() -> None:
    world = World()
    await world.register()
    now = world.clock.now()
    world.agent.catalog.drains.add(Drain(KEY, MINE, WAIT, now + 7), now)
    world.drainer.start()
    await settle()
    assert world.writes() == [Register(KEY, OFF)], "the kill may have come before"
    assert world.found is not None
    joined = spawn(world.drainer.ended(world.found), name="joined")
    await world.clock.advance(8)
    assert world.writes() == [Register(KEY, OFF), GONE] and joined.done()
    await world.agent.close()


async def test_drainer_finishes_after_a_restart_even_if_it_cannot_disable_or_knows_no_registration() -> None:
    world = World()
    now = world.clock.now()
    world.agent.catalog.drains.add(Drain(KEY, MINE, WAIT, now - 3), now)
    world.agent.catalog.drains.add(Drain(KEY, instance("10.0.0.7"), WAIT, now, ended_at=now), now)
    world.drainer.start()
    await settle()
    assert world.writes() == [GONE] and world.drainer.active == 0

    refused = World()
    await refused.register()
    refused.registry.script = lambda call: AWAY if isinstance(call, Register) else refused.shelf(call)
    refused.agent.catalog.drains.add(Drain(KEY, MINE, WAIT, now), now)
    refused.drainer.start()
    await refused.clock.advance(1)
    assert refused.writes()[-1] == GONE
    for made in (world, refused):
        await made.agent.close()


async def test_drainer_that_stops_answers_those_who_wait_and_keeps_the_drains(world: World) -> None:
    caller = world.start()
    await settle()
    world.drainer.end_waits()
    await settle()
    assert isinstance(caller.result(), NothingKnown) and caller.result().status == 503
    assert world.found is not None and world.drainer.active == 1
    late = world.start()
    await settle()
    assert isinstance(late.result(), NothingKnown)
    await world.drainer.stop()
    assert world.writes() == [Register(KEY, OFF)] and world.found is not None


async def test_drainer_has_a_bound() -> None:
    world = World()
    for number in range(1000):
        world.agent.catalog.drains.add(Drain(KEY, instance(f"10.1.{number // 250}.{number % 250}"), 1.0, 1.0), 0.0)
    await world.register()
    caller = world.start()
    await settle()
    assert isinstance(caller.result(), BadCall) and caller.result().status == 429
    await world.agent.close()
