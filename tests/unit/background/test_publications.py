"""Instances that live as long as a connection: registered, beaten for, deregistered at the upstream."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from nacos_proxy.background.publications import Publications, PublicationsPolicy
from nacos_proxy.catalog.drains import Drain
from nacos_proxy.catalog.registrations import CONNECTION, Registration, RegistrationKey
from nacos_proxy.core.agent import Agent, AgentPolicy
from nacos_proxy.model.calls import Beat, Call, Deregister, GetInstance, Metrics, Register, Update, Write
from nacos_proxy.model.errors import BadCall, Reason, Refused, Unreachable
from nacos_proxy.model.services import Instance, ServiceKey
from nacos_proxy.runtime import spawn
from tests.helpers.build import KEY, agent, instance, key
from tests.helpers.clock import FakeClock, settle
from tests.helpers.scripted import ScriptedRegistry, Shelf
from tests.helpers.world import AWAY, Held

A, B, C = (instance(f"10.0.0.{n}") for n in (1, 2, 3))
REFUSAL = Refused(Reason.OTHER, "no", status=400)


class World:
    """An agent on a shelf, and its publications."""

    def __init__(self, *, outage_writes: bool = False, **policy: Any) -> None:
        self.clock = FakeClock()
        self.shelf = Shelf()
        self.registry = ScriptedRegistry(self.shelf)
        self.agent: Agent = agent(self.registry, self.clock, policy=AgentPolicy(outage_writes=outage_writes))
        self.publications = Publications(self.agent, PublicationsPolicy(**policy))

    @property
    def listed(self) -> list[str]:
        return sorted(i.ip for i in self.shelf.of(KEY).instances)

    def instance(self, of: Instance) -> Instance | None:
        return self.shelf.of(KEY).find(of.ip, of.port)

    @property
    def writes(self) -> list[str]:
        """The writes sent since the last look, as `Register 10.0.0.1`."""
        found = [_named(call) for call in self.registry.calls if isinstance(call, Write)]
        self.registry.calls.clear()
        return found

    def registration(self, of: Instance) -> Registration:
        found = self.agent.catalog.registrations.find(KEY, of.ip, of.port)
        assert found is not None
        return found

    def refuse(self, what: Callable[[Call[Any]], bool], error: Exception = REFUSAL) -> None:
        self.registry.script = lambda call: error if what(call) else self.shelf(call)

    async def lose(self) -> None:
        self.refuse(lambda call: True, AWAY)
        while self.agent.catalog.breaker.up:
            with pytest.raises(Unreachable):
                await self.agent.send(Metrics())

    async def heal(self) -> None:
        self.registry.script = self.shelf
        self.clock.jump(60.0)
        await self.agent.send(Metrics())
        assert self.agent.catalog.breaker.up


def _named(call: Write[Any]) -> str:
    ip = call.instance.ip if isinstance(call, Register) else call.ip  # type: ignore[attr-defined]
    return f"{type(call).__name__} {ip}"


@asynccontextmanager
async def world(**policy: Any) -> AsyncIterator[World]:
    made = World(**policy)
    await made.publications.start()
    try:
        yield made
    finally:
        await made.publications.stop()
        await made.agent.close()


@pytest.fixture
async def w() -> AsyncIterator[World]:
    async with world() as made:
        yield made


# one value for each service and connection


async def test_publish_registers_an_instance_and_beats_for_it(w: World) -> None:
    await w.publications.publish("connection", KEY, [A])
    assert w.listed == ["10.0.0.1"] and w.writes == ["Register 10.0.0.1"]
    assert w.publications.of("connection") == {KEY: (A,)} and w.publications.count("connection") == 1
    await w.clock.advance(5.0)
    assert w.writes == ["Beat 10.0.0.1"]
    await w.clock.advance(300.0)
    assert 60 <= len(w.writes) <= 75
    assert w.registration(A).healthy(w.clock.now()) and w.registration(A).check == CONNECTION


async def test_publish_sends_the_whole_instance_with_a_beat(w: World) -> None:
    of_a = instance("10.0.0.1", weight=3.0, metadata={"zone": "a"})
    await w.publications.publish("connection", KEY, [of_a])
    await w.clock.advance(5.0)
    (beat,) = w.registry.sent(Beat)
    assert beat.full == of_a


async def test_publish_replaces_what_the_connection_published_before(w: World) -> None:
    await w.publications.publish("connection", KEY, [A, B])
    await w.publications.publish("connection", key("another"), [A])
    assert w.writes == ["Register 10.0.0.1", "Register 10.0.0.2", "Register 10.0.0.1"]
    await w.publications.publish("connection", KEY, [B, C])
    assert w.listed == ["10.0.0.2", "10.0.0.3"]
    assert w.writes == ["Register 10.0.0.3", "Deregister 10.0.0.1"], "the new first, and nothing for what stays"
    assert w.publications.of("connection") == {KEY: (B, C), key("another"): (A,)}
    await w.clock.advance(5.0)
    assert sorted(w.writes) == ["Beat 10.0.0.1", "Beat 10.0.0.2", "Beat 10.0.0.3"]
    await w.publications.publish("connection", KEY, [])
    assert w.listed == [] and w.publications.of("connection") == {key("another"): (A,)}


async def test_publish_changes_an_instance_without_removing_it(w: World) -> None:
    await w.publications.publish("connection", KEY, [A])
    await w.publications.publish("connection", KEY, [instance("10.0.0.1", weight=5.0)])
    assert w.writes == ["Register 10.0.0.1", "Register 10.0.0.1"]
    assert w.shelf.of(KEY).instances[0].weight == 5.0


async def test_publish_in_another_cluster_removes_the_instance_from_the_old_one(w: World) -> None:
    """Servers 1.x keep one instance for each cluster."""
    await w.publications.publish("connection", KEY, [A])
    await w.publications.publish("connection", KEY, [instance("10.0.0.1", cluster="B")])
    assert w.writes == ["Register 10.0.0.1", "Deregister 10.0.0.1", "Register 10.0.0.1"]
    assert [i.cluster for i in w.shelf.of(KEY).instances] == ["B"]


async def test_publish_beats_as_often_as_the_metadata_demands(w: World) -> None:
    await w.publications.publish(
        "connection", KEY, [instance("10.0.0.1", metadata={"preserved.heart.beat.timeout": "3000"})]
    )
    await w.clock.advance(30.0)
    assert len(w.registry.sent(Beat)) >= 24


async def test_publish_refused_leaves_the_old_value(w: World) -> None:
    await w.publications.publish("connection", KEY, [A, B])
    w.refuse(lambda call: isinstance(call, Register) and call.instance.ip == "10.0.0.3")
    with pytest.raises(Refused):
        await w.publications.publish("connection", KEY, [instance("10.0.0.1", weight=5.0), C, instance("10.0.0.4")])
    assert w.publications.of("connection") == {KEY: (A, B)}
    assert w.listed == ["10.0.0.1", "10.0.0.2"] and w.shelf.of(KEY).instances[0].weight == 1.0
    await w.clock.advance(10.0)
    assert {str(beat.ip) for beat in w.registry.sent(Beat)} == {"10.0.0.1", "10.0.0.2"}


async def test_publish_refused_and_not_undone_says_so(w: World, caplog: pytest.LogCaptureFixture) -> None:
    w.refuse(
        lambda call: isinstance(call, Deregister) or (isinstance(call, Register) and call.instance.ip == "10.0.0.2")
    )
    with pytest.raises(Refused):
        await w.publications.publish("connection", KEY, [A, B])
    assert "could not undo" in caplog.text and w.publications.count("connection") == 0
    await w.clock.advance(10.0)
    assert w.registry.sent(Beat) == []
    await w.clock.advance(30.0)
    assert [r.key for r in w.agent.catalog.registrations.expire(w.clock.now())] == [(KEY, "10.0.0.1", 80)]


LOST = (Refused(Reason.OTHER, "out of memory", status=500), Unreachable("the connection was lost", arrived=True))


def accept_but_refuse(w: World, of: Instance, error: Exception) -> None:
    """The upstream takes the registration, and its answer is lost."""

    def script(call: Call[Any]) -> Any:
        result = w.shelf(call)
        return error if isinstance(call, Register) and call.instance.ip == of.ip else result

    w.registry.script = script


@pytest.mark.parametrize("error", LOST, ids=["500", "lost"])
async def test_publish_removes_what_was_refused_but_may_be_there_when_the_connection_publishes_again(
    error: Exception, w: World
) -> None:
    accept_but_refuse(w, B, error)
    await w.publications.publish("connection", KEY, [A])
    with pytest.raises(type(error)):
        await w.publications.publish("connection", KEY, [B])
    assert w.listed == ["10.0.0.1", "10.0.0.2"], "its client may try again"
    await w.publications.publish("connection", key("another"), [A])
    assert w.listed == ["10.0.0.1", "10.0.0.2"], "nothing was said about this service"
    await w.publications.publish("connection", KEY, [C])
    assert w.listed == ["10.0.0.3"]
    w.registry.calls.clear()
    await w.publications.publish("connection", KEY, [A])
    assert w.writes == ["Register 10.0.0.1", "Deregister 10.0.0.3"], "once is enough"


@pytest.mark.parametrize("error", LOST, ids=["500", "lost"])
async def test_end_and_withdraw_remove_what_was_refused_but_may_be_there(error: Exception, w: World) -> None:
    accept_but_refuse(w, B, error)
    for withdrawn in (True, False):
        with pytest.raises(type(error)):
            await w.publications.publish("connection", KEY, [B])
        assert w.listed == ["10.0.0.2"]
        if withdrawn:
            await w.publications.withdraw("connection", KEY)
        else:
            w.publications.end("connection")
            await settle()
        assert w.listed == []


async def test_what_was_refused_stays_if_it_is_registered_since(w: World) -> None:
    """Again by this connection, by another one, or by HTTP."""
    instances = [instance(f"10.0.0.{n}") for n in (1, 2, 3)]
    for one in instances:
        accept_but_refuse(w, one, LOST[0])
        with pytest.raises(Refused):
            await w.publications.publish("connection", KEY, [one])
    w.registry.script = w.shelf
    await w.publications.publish("another", KEY, [instances[1]])
    await w.agent.write(Register(KEY, instances[2]))
    await w.publications.publish("connection", KEY, [instances[0]])
    w.publications.end("connection")
    await settle()
    assert w.listed == ["10.0.0.2", "10.0.0.3"]


async def test_what_was_refused_lapses_if_the_client_connects_again_or_nothing_arrived(w: World) -> None:
    accept_but_refuse(w, B, LOST[0])
    with pytest.raises(Refused):
        await w.publications.publish("connection", KEY, [B])
    w.publications.end("connection", back_soon=True)
    w.refuse(lambda call: isinstance(call, Register), Unreachable("no connection", arrived=False))
    with pytest.raises(Unreachable):
        await w.publications.publish("another", KEY, [B])
    w.publications.end("another")
    await settle()
    assert w.registry.sent(Deregister) == []


async def test_publish_goes_on_without_its_caller(w: World) -> None:
    held = Held(w.shelf, Register)
    w.registry.script = held
    publishing = spawn(w.publications.publish("connection", KEY, [A]), name="session")
    await settle()
    publishing.cancel()
    await settle()
    await held.release()
    assert w.publications.of("connection") == {KEY: (A,)} and w.registration(A).of_connection


async def test_publish_calls_of_one_connection_act_in_order(w: World) -> None:
    held = Held(w.shelf, Register)
    w.registry.script = held
    first = spawn(w.publications.publish("connection", KEY, [A]), name="first")
    second = spawn(w.publications.publish("connection", KEY, [B]), name="second")
    await settle()
    assert w.writes == ["Register 10.0.0.1"]
    w.registry.script = w.shelf
    await held.release()
    await asyncio.wait([first, second])
    assert w.listed == ["10.0.0.2"]


async def test_publish_beyond_the_limit_of_a_client_is_refused() -> None:
    async with world(max_instances=4) as w:
        await w.publications.publish("one", KEY, [A], client="10.1.0.1")
        await w.publications.publish("two", KEY, [B], client="10.1.0.1")
        with pytest.raises(BadCall) as caught:
            await w.publications.publish("three", KEY, [C], client="10.1.0.1")
        assert caught.value.status == 429
        await w.publications.publish("three", KEY, [C], client="10.1.0.2")
        assert w.listed == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
        assert len(w.publications) == 3


async def test_publish_is_refused_if_the_proxy_could_not_remember_it(w: World) -> None:
    """An instance whose registration is not remembered would get no beats."""
    for n in range(20_000):
        w.agent.catalog.registrations.record_write(Register(key("many"), instance("10.9.9.9", n)), w.clock.now())
    with pytest.raises(BadCall):
        await w.publications.publish("connection", KEY, [A])
    await w.publications.publish("connection", key("many"), [instance("10.9.9.9", 7)])


# the end of a connection


async def test_end_deregisters_everything_of_the_connection_at_once(w: World) -> None:
    await w.publications.publish("connection", KEY, [A, B])
    await w.publications.publish("another", KEY, [C])
    w.publications.end("connection")
    await settle()
    assert w.listed == ["10.0.0.3"] and w.publications.count("connection") == 0
    await w.clock.advance(10.0)
    assert {call.ip for call in w.registry.sent(Beat)} == {"10.0.0.3"}
    w.publications.end("never seen")


async def test_end_leaves_an_address_that_another_connection_publishes(w: World) -> None:
    await w.publications.publish("old", KEY, [A])
    await w.publications.publish("new", KEY, [A])
    assert w.writes == ["Register 10.0.0.1", "Register 10.0.0.1"]
    w.publications.end("old")
    await settle()
    assert w.writes == [] and w.listed == ["10.0.0.1"]
    await w.clock.advance(5.0)
    assert w.writes == ["Beat 10.0.0.1"]
    w.publications.end("new")
    await settle()
    assert w.listed == []


async def test_end_of_a_connection_that_is_back_soon_deregisters_nothing(w: World) -> None:
    await w.publications.publish("connection", KEY, [A, B])
    await w.publications.publish("another", KEY, [B])
    w.publications.end("connection", back_soon=True)
    await settle()
    assert w.listed == ["10.0.0.1", "10.0.0.2"] and w.publications.orphans == 1
    await w.publications.publish("connection, again", KEY, [A])
    assert w.publications.orphans == 0
    await w.clock.advance(100.0)
    assert w.listed == ["10.0.0.1", "10.0.0.2"]


async def test_end_of_the_newest_connection_brings_back_the_value_of_the_one_before(w: World) -> None:
    await w.publications.publish("old", KEY, [A])
    await w.publications.publish("new", KEY, [instance("10.0.0.1", weight=7.0)])
    w.publications.end("new")
    await settle()
    assert w.instance(A) == A


async def test_end_of_an_older_connection_keeps_what_an_operator_changed(w: World) -> None:
    await w.publications.publish("old", KEY, [A])
    await w.publications.publish("new", KEY, [A])
    await w.agent.write(Update(KEY, A.ip, A.port, weight=9.0))
    await w.publications.publish("old", KEY, [])
    assert w.shelf.of(KEY).instances[0].weight == 9.0
    await w.clock.advance(5.0)
    assert w.registry.sent(Beat)[0].full.weight == 9.0


async def test_end_during_a_registration_deregisters_after_it(w: World) -> None:
    held = Held(w.shelf, Register)
    w.registry.script = held
    calls = [spawn(w.publications.publish("connection", KEY, [i]), name="publish") for i in (A, B)]
    await settle()
    w.publications.end("connection")
    w.registry.script = w.shelf
    await held.release()
    await asyncio.wait(calls)
    assert w.writes == ["Register 10.0.0.1", "Deregister 10.0.0.1"], "the second call did not begin"
    assert w.listed == [] and len(w.publications) == 0


async def test_end_waits_for_a_beat_under_way(w: World) -> None:
    """Else the beat could register the instance again."""
    await w.publications.publish("connection", KEY, [A])
    held = Held(w.shelf, Beat)
    w.registry.script = held
    await w.clock.advance(5.0)
    w.publications.end("connection")
    await settle()
    assert w.writes == ["Register 10.0.0.1", "Beat 10.0.0.1"]
    await held.release()
    assert w.writes == ["Deregister 10.0.0.1"] and w.listed == []


async def test_a_new_connection_waits_for_the_end_of_the_old_one(w: World) -> None:
    """As when an SDK reconnects: its registration must not be undone by a late deregistration."""
    await w.publications.publish("old", KEY, [A])
    held = Held(w.shelf, Deregister)
    w.registry.script = held
    w.publications.end("old")
    await settle()
    publishing = spawn(w.publications.publish("new", KEY, [A]), name="publish")
    await settle()
    assert w.writes == ["Register 10.0.0.1", "Deregister 10.0.0.1"]
    await held.release()
    await publishing
    assert w.writes == ["Register 10.0.0.1"] and w.listed == ["10.0.0.1"]


async def test_end_refused_by_the_upstream_lets_the_instance_lapse(w: World, caplog: pytest.LogCaptureFixture) -> None:
    await w.publications.publish("connection", KEY, [A])
    w.refuse(lambda call: isinstance(call, Deregister))
    w.publications.end("connection")
    await w.clock.advance(29.0)
    assert "1 instances (10.0.0.1:80 of public/DEFAULT_GROUP@@orders, ...) are left to lapse" in caplog.text
    assert w.registry.sent(Beat) == []
    assert w.agent.catalog.registrations.expire(w.clock.now() + 2) != []


async def test_withdraw_deregisters_what_the_connection_publishes_for_the_service(w: World) -> None:
    await w.publications.publish("connection", KEY, [A, B])
    await w.publications.publish("connection", key("another"), [A])
    await w.publications.withdraw("connection", KEY)
    assert w.listed == [] and w.publications.of("connection") == {key("another"): (A,)}
    w.registry.calls.clear()
    await w.publications.withdraw("connection", KEY)
    await w.publications.withdraw("connection", KEY, [A])
    await w.publications.withdraw("never seen", KEY)
    assert w.writes == []


async def test_withdraw_raises_what_the_upstream_says(w: World) -> None:
    await w.publications.publish("connection", KEY, [A])
    w.refuse(lambda call: isinstance(call, Deregister))
    with pytest.raises(Refused):
        await w.publications.withdraw("connection", KEY)
    assert w.publications.count("connection") == 0


# others who write about the same address


async def test_what_was_registered_by_http_since_stays_and_beats_by_itself(w: World) -> None:
    await w.publications.publish("connection", KEY, [A])
    await w.agent.write(Register(KEY, A))
    assert w.writes == ["Register 10.0.0.1", "Register 10.0.0.1"]
    await w.clock.advance(10.0)
    assert w.writes == []
    w.publications.end("connection")
    await settle()
    assert w.writes == [] and w.listed == ["10.0.0.1"] and len(w.publications) == 0


async def test_publish_again_during_a_drain_keeps_the_instance_out_of_traffic(w: World) -> None:
    """An SDK that connects again, after a restart of the proxy, publishes the same once more."""
    await w.publications.publish("connection", KEY, [A])
    w.agent.catalog.drains.add(Drain(KEY, A, 20.0, w.clock.now() + 20), w.clock.now())
    await w.agent.traffic.enable(w.registration(A), False)
    assert w.registration(A).of_connection
    assert w.writes == ["Register 10.0.0.1", "Register 10.0.0.1"]
    w.publications.end("connection", back_soon=True)
    await w.publications.publish("again", KEY, [A])
    await w.clock.advance(10.0)
    assert w.writes == [] and w.registration(A).healthy(w.clock.now()), "its beats are answered here"
    (drain,) = w.agent.catalog.drains
    w.agent.catalog.drains.remove(drain)
    await w.agent.traffic.enable(w.registration(A), True)
    await w.clock.advance(6.0)
    assert w.writes == ["Register 10.0.0.1", "Beat 10.0.0.1"] and w.instance(A) == A


async def test_what_was_deregistered_by_http_does_not_come_back(w: World) -> None:
    await w.publications.publish("connection", KEY, [A])
    await w.agent.write(Deregister(KEY, A.ip, A.port))
    await w.clock.advance(10.0)
    assert w.listed == [] and w.writes == ["Register 10.0.0.1", "Deregister 10.0.0.1"]
    await w.publications.publish("connection", KEY, [A])
    await w.clock.advance(5.0)
    assert w.listed == ["10.0.0.1"] and w.writes == ["Register 10.0.0.1", "Beat 10.0.0.1"]


async def test_a_beat_of_what_was_deregistered_by_http_does_not_stop_a_registration_that_follows(w: World) -> None:
    await w.publications.publish("connection", KEY, [A])
    await w.clock.advance(3.9)
    await w.agent.write(Deregister(KEY, A.ip, A.port))
    publishing = spawn(w.publications.publish("connection", KEY, [A]), name="publish")
    w.clock.jump(1.1)
    await w.clock.advance(0.3)
    await publishing
    await w.clock.advance(5.0)
    assert w.listed == ["10.0.0.1"] and w.writes[-1] == "Beat 10.0.0.1"


async def test_a_beat_registers_again_what_the_upstream_has_lost(w: World) -> None:
    await w.publications.publish("connection", KEY, [A])
    w.shelf.services.clear()
    await w.clock.advance(5.0)
    assert w.instance(A) == A


async def test_beats_that_are_refused_show_until_one_gets_through(w: World, caplog: pytest.LogCaptureFixture) -> None:
    await w.publications.publish("connection", KEY, [A])
    w.refuse(lambda call: isinstance(call, Beat))
    await w.clock.advance(20.0)
    assert w.publications.failing == {(KEY, "10.0.0.1", 80): "no"}
    assert len([r for r in caplog.records if "do not get through" in r.message]) == 1
    w.registry.script = w.shelf
    await w.clock.advance(5.0)
    assert w.publications.failing == {} and "all beats get through again" in caplog.text
    w.refuse(lambda call: isinstance(call, Beat))
    await w.clock.advance(5.0)
    w.publications.end("connection")
    await settle()
    assert w.publications.failing == {}


async def test_at_most_max_beats_are_under_way() -> None:
    async with world(max_beats=3) as w:
        many = [instance("10.0.0.1", port) for port in range(1, 11)]
        await w.publications.publish("connection", KEY, many)
        held = Held(w.shelf, Beat)
        w.registry.script = held
        await w.clock.advance(7.4)
        assert len(w.registry.sent(Beat)) == 6, "three at a time: after 2.5 s each counts as answered here"
        w.registry.script = w.shelf
        await held.release()
        await w.clock.advance(1.0)
        assert {beat.port for beat in w.registry.sent(Beat)} == set(range(1, 11))


# outages


async def test_publish_while_the_upstream_is_down_is_refused_unless_it_is_registered_here(w: World) -> None:
    await w.publications.publish("old", KEY, [A])
    await w.lose()
    w.publications.end("gone")
    with pytest.raises(Unreachable):
        await w.publications.publish("new", KEY, [B])
    with pytest.raises(Unreachable):
        await w.publications.publish("new", KEY, [instance("10.0.0.1", weight=2.0)])
    with pytest.raises(Unreachable):
        await w.publications.publish("new", KEY, [A, B])
    assert w.publications.count("new") == 0
    await w.publications.publish("new", KEY, [A])
    assert w.publications.of("new") == {KEY: (A,)}
    w.publications.end("old")
    await w.clock.advance(40.0)
    assert w.registration(A).healthy(w.clock.now()), "its beats are answered here"


async def test_end_while_the_upstream_is_down_waits_in_the_journal() -> None:
    async with world(outage_writes=True) as w:
        await w.publications.publish("connection", KEY, [A])
        await w.lose()
        w.publications.end("connection")
        await settle()
        assert len(w.agent.outage.journal) == 1
        (waiting,) = w.agent.outage.journal
        await w.heal()
        await w.agent.outage.send_waiting(waiting)
        assert w.listed == []


async def test_end_while_the_upstream_is_down_lets_it_lapse_without_a_journal(w: World) -> None:
    await w.publications.publish("connection", KEY, [A])
    await w.lose()
    w.publications.end("connection")
    await w.clock.advance(31.0)
    assert [r.key for r in w.agent.catalog.registrations.expire(w.clock.now())] == [(KEY, "10.0.0.1", 80)]


# restarts


def restored(w: World, *instances: Instance, service: ServiceKey = KEY) -> None:
    for i in instances:
        w.shelf(Register(service, i))
        w.agent.catalog.registrations.restore(Registration(service, i, w.clock.now(), beats=True, check=CONNECTION))
    w.agent.catalog.registrations.restore(Registration(KEY, instance("10.8.8.8"), w.clock.now(), beats=True))


@asynccontextmanager
async def restarted(*instances: Instance, **policy: Any) -> AsyncIterator[World]:
    w = World(**policy)
    restored(w, *instances)
    assert w.publications.restore() == len(instances)
    await w.publications.start()
    try:
        yield w
    finally:
        await w.publications.stop()
        await w.agent.close()


async def test_stop_deregisters_nothing() -> None:
    async with world() as w:
        await w.publications.publish("connection", KEY, [A])
        await w.publications.stop()
        w.publications.end("connection")
        await w.clock.advance(10.0)
        assert w.writes == ["Register 10.0.0.1"]


async def test_stop_waits_for_deregistrations_under_way_but_not_for_long() -> None:
    async with world(max_stop=0.01) as w:
        await w.publications.publish("connection", KEY, [A])
        w.registry.script = Held(w.shelf, Deregister)
        w.publications.end("connection")
        await settle()
        await w.publications.stop()
        assert w.writes == ["Register 10.0.0.1", "Deregister 10.0.0.1"]
        w.registry.script = w.shelf


async def test_restore_beats_at_once_for_60_s_then_lets_the_instance_lapse(caplog: pytest.LogCaptureFixture) -> None:
    async with restarted(A, B) as w:
        await settle()
        assert sorted(w.writes) == ["Beat 10.0.0.1", "Beat 10.0.0.2"]
        assert w.publications.orphans == 2
        await w.clock.advance(59.0)
        assert len(w.writes) >= 22
        await w.clock.advance(10.0)
        assert w.publications.orphans == 0 and "2 instances (10.0.0.1:80 of" in caplog.text
        w.registry.calls.clear()
        await w.clock.advance(30.0)
        assert w.writes == [], "neither beaten for nor deregistered"
        assert len(w.agent.catalog.registrations.expire(w.clock.now())) == 3


async def test_start_registers_again_what_the_upstream_lost_meanwhile_and_shows_it_at_once() -> None:
    w = World()
    restored(w, A)
    w.shelf.services.clear()
    w.publications.restore()
    await w.publications.start()
    assert w.instance(A) == A
    shown = (await w.agent.read(KEY)).snapshot
    assert shown is not None and A in shown.instances
    await w.publications.stop()
    await w.agent.close()


async def test_start_does_not_wait_long_for_an_upstream_that_hangs() -> None:
    w = World()
    restored(w, A)
    w.publications.restore()
    held = Held(w.shelf, GetInstance)
    w.registry.script = held
    starting = spawn(w.publications.start(), name="start")
    await w.clock.advance(0.9)
    assert not starting.done()
    await w.clock.advance(0.2)
    assert starting.done()
    await held.release()
    w.registry.script = lambda call: AWAY
    await w.clock.advance(20.0)
    assert w.registration(A).healthy(w.clock.now()), "while the upstream is away, its beats are answered here"
    await w.publications.stop()
    await w.agent.close()


async def test_restore_lets_a_client_come_back_without_a_gap() -> None:
    async with restarted(A) as w:
        await w.clock.advance(20.0)
        await w.publications.publish("connection", KEY, [A])
        assert w.publications.orphans == 0
        await w.clock.advance(100.0)
        assert "Deregister 10.0.0.1" not in w.writes and w.registration(A).healthy(w.clock.now())
        w.publications.end("connection")
        await settle()
        assert w.listed == []


async def test_restore_while_the_upstream_is_down_adopts_what_is_the_same() -> None:
    async with restarted(A) as w:
        await w.lose()
        await w.publications.publish("connection", KEY, [A])
        assert w.publications.count("connection") == 1 and w.publications.orphans == 0


async def test_a_refused_registration_of_an_orphan_leaves_it_orphaned() -> None:
    """The client tries again; until then, its instance stays as it was."""
    async with restarted(A) as w:
        w.refuse(lambda call: isinstance(call, Register))
        with pytest.raises(Refused):
            await w.publications.publish("connection", KEY, [A])
        assert w.publications.orphans == 1 and w.listed == ["10.0.0.1"]
        w.registry.script = w.shelf
        await w.clock.advance(5.0)
        assert w.writes[-1] == "Beat 10.0.0.1"
        await w.clock.advance(60.0)
        assert w.publications.orphans == 0


async def test_withdraw_takes_an_orphan_that_the_client_names() -> None:
    """A client that comes back only to deregister."""
    async with restarted(A, B) as w:
        await w.publications.withdraw("connection", KEY, [A])
        assert w.listed == ["10.0.0.2"] and w.publications.orphans == 1


async def test_time_in_which_the_process_stood_still_does_not_count_for_orphans() -> None:
    async with restarted(A) as w:
        await w.clock.advance(10.0)
        w.clock.jump(300.0)
        w.agent.stood_still(300.0)
        await w.clock.advance(1.0)
        assert w.publications.orphans == 1
        await w.clock.advance(60.0)
        assert w.publications.orphans == 0


async def test_publish_and_end_wait_until_the_change_is_on_disk(w: World) -> None:
    written: list[RegistrationKey] = []

    async def persist(keys: Collection[RegistrationKey]) -> None:
        written.extend(keys)

    w.publications.persist_with(persist)
    await w.publications.publish("connection", KEY, [A, B])
    assert written == [(KEY, "10.0.0.1", 80), (KEY, "10.0.0.2", 80)]
    written.clear()
    await w.publications.publish("connection", KEY, [B])
    assert written == [(KEY, "10.0.0.1", 80)]
    written.clear()
    w.publications.end("connection")
    await settle()
    assert written == [(KEY, "10.0.0.2", 80)]


async def test_a_beat_that_fails_unexpectedly_is_counted_and_repeated(
    w: World, caplog: pytest.LogCaptureFixture
) -> None:
    await w.publications.publish("connection", KEY, [A])
    w.refuse(lambda call: isinstance(call, Beat), RuntimeError("a bug"))
    caplog.set_level(logging.CRITICAL)
    await w.clock.advance(5.0)
    w.registry.script = w.shelf
    await w.clock.advance(5.0)
    assert w.registration(A).healthy(w.clock.now())


# any order


class Slow:
    """Applies each write some turns of the loop after it was sent, so that those under way overtake each other."""

    def __init__(self, shelf: Shelf, chance: random.Random, failures: float, lost_answers: float) -> None:
        self._shelf = shelf
        self._chance = chance
        self.failures = failures
        self.lost_answers = lost_answers

    async def __call__(self, call: Call[Any]) -> Any:
        for _ in range(self._chance.randrange(12)):
            await asyncio.sleep(0)
        if isinstance(call, Register) and self._chance.random() < self.failures:
            return Refused(Reason.OTHER, "no", status=400)
        result = self._shelf(call)
        if isinstance(call, Register) and self._chance.random() < self.lost_answers:
            return Refused(Reason.OTHER, "out of memory", status=500)
        for _ in range(self._chance.randrange(12)):
            await asyncio.sleep(0)
        return result


@pytest.mark.parametrize(("failures", "lost_answers"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.3)])
@pytest.mark.parametrize("seed", range(25))
async def test_the_upstream_ends_with_what_living_connections_publish(
    seed: int, failures: float, lost_answers: float
) -> None:
    chance = random.Random(seed)
    async with world() as w:
        slow = Slow(w.shelf, chance, failures, lost_answers)
        w.registry.script = slow
        pool = [instance("10.0.0.1", port, weight=weight) for port in (1, 2, 3) for weight in (1.0, 2.0)]
        living, calls, born = ["connection 0"], list[asyncio.Task[Any]](), 1
        for _ in range(60):
            owner = chance.choice(living)
            match chance.randrange(6):
                case 0:
                    w.publications.end(owner)
                    living.remove(owner)
                    living.append(f"connection {born}")
                    born += 1
                case 1:
                    calls.append(spawn(w.publications.withdraw(owner, KEY), name="withdraw"))
                case 2:
                    living.append(f"connection {born}")
                    born += 1
                case 3:
                    await w.clock.advance(chance.choice((0.1, 5.0)))
                case _:
                    chosen = chance.sample(pool, chance.randrange(4))
                    calls.append(spawn(_published(w, owner, chosen), name="publish"))
            for _ in range(chance.randrange(1, 30)):
                await asyncio.sleep(0)
        slow.failures = slow.lost_answers = 0.0
        await asyncio.gather(*calls)
        await settle(500)
        expected = dict[int, set[float]]()
        for owner in living:
            for i in w.publications.of(owner).get(KEY, ()):
                expected.setdefault(i.port, set()).add(i.weight)
        listed = {i.port: i.weight for i in w.shelf.of(KEY).instances}
        assert listed.keys() == expected.keys() or (lost_answers and listed.keys() > expected.keys())
        assert failures or lost_answers or all(weight in expected[port] for port, weight in listed.items())
        w.registry.calls.clear()
        await w.clock.advance(6.0)
        assert {beat.port for beat in w.registry.sent(Beat)} == expected.keys()
        for owner in living:
            w.publications.end(owner)
        await settle(500)
        assert w.shelf.of(KEY).instances == () and len(w.publications) == 0
        assert w.agent.catalog.registrations.count(KEY) == 0


async def _published(w: World, owner: str, instances: list[Instance]) -> None:
    with suppress(Refused):
        await w.publications.publish(owner, KEY, instances)
