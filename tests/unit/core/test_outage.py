"""While the upstream is away: a deployment works on this host, who dies is gone, and the upstream hears of it later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nacos_proxy.background.poller import Poller, PollPolicy
from nacos_proxy.catalog.freshness import Freshness
from nacos_proxy.catalog.registrations import CONNECTION
from nacos_proxy.core.agent import Agent, AgentPolicy, Written
from nacos_proxy.model.calls import (  # fmt: skip
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
from nacos_proxy.model.errors import BadCall, NothingKnown, ProxyError, Reason, Refused, TooSlow, Unreachable
from nacos_proxy.model.services import Change, ServiceKey
from tests.helpers.build import KEY, agent, instance, key, snapshot
from tests.helpers.clock import FakeClock, settle
from tests.helpers.scripted import ScriptedRegistry, Shelf

A, B, C = (instance(f"10.0.0.{number}") for number in (1, 2, 3))
AWAY = Unreachable("connection refused", arrived=False)
SLOW = TooSlow("no answer in 5 s")


def beat(i: Any, service: ServiceKey = KEY, **more: Any) -> Beat:
    return Beat(service, i.ip, i.port, **more)


def leave(i: Any, service: ServiceKey = KEY, **more: Any) -> Deregister:
    return Deregister(service, i.ip, i.port, **more)


class World:
    """An agent with its poller. `lists` is what readers see."""

    def __init__(self, *, writes: bool = True) -> None:
        self.checked = True
        self.clock = FakeClock()
        self.shelf = Shelf()
        self.registry = ScriptedRegistry(self.shelf)
        self.changes: list[Change] = []
        self.agent: Agent = agent(
            self.registry,
            self.clock,
            self.changes.append,
            policy=AgentPolicy(outage_writes=writes),
            checks=lambda: self.checked,
        )
        self.poller = Poller(self.agent, PollPolicy())
        self.poller.start()

    async def lists(self, service: ServiceKey = KEY) -> list[str]:
        look = await self.agent.read(service)
        assert look.snapshot is not None
        return [f"{i.ip}{'' if i.healthy else ' unhealthy'}" for i in look.snapshot.instances]

    async def lose(self, error: ProxyError = AWAY) -> None:
        self.registry.script = lambda call: error
        while self.agent.catalog.breaker.up:
            with pytest.raises(ProxyError):
                await self.agent.send(Metrics())
        self.registry.calls.clear()

    async def back(self, seconds: float = 6.0) -> None:
        self.registry.calls.clear()
        self.registry.script = self.shelf
        await self.clock.advance(seconds)

    def sent(self) -> list[Call[Any]]:
        return [c for c in self.registry.calls if isinstance(c, Register | Deregister | Update | Beat)]

    async def beats(self, *instances: Any, seconds: float) -> None:
        for _ in range(int(seconds / 5)):
            for i in instances:
                await self.agent.write(beat(i))
            await self.clock.advance(5)

    @property
    def outage(self) -> Any:
        return self.agent.outage

    @property
    def counts(self) -> dict[str, int]:
        return self.agent.counts.outage


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    await made.agent.write(Register(KEY, A))
    await made.agent.write(Register(KEY, B))
    assert await made.lists() == [A.ip, B.ip]
    yield made
    await made.poller.stop()
    await made.agent.close()


# --- what is accepted ----------------------------------------------------------------------------------------------


async def test_outage_shows_a_rolling_deployment_at_once_and_sends_it_in_order_on_the_return(
    world: World,
) -> None:
    await world.lose()
    assert await world.agent.write(Register(KEY, C)) == Written(None, "local")
    assert await world.agent.write(leave(A)) == Written(None, "local")
    assert world.changes[-2].added == (C,)
    assert world.changes[-1].removed == (A,)
    assert await world.lists() == [B.ip, C.ip]
    await world.beats(B, C, seconds=120)
    assert await world.lists() == [B.ip, C.ip], "however long it takes"

    changes = len(world.changes)
    await world.back()
    assert world.sent()[:2] == [Register(KEY, C), leave(A)]
    assert [i.ip for i in world.shelf.of(KEY).instances] == [B.ip, C.ip]
    assert await world.lists() == [B.ip, C.ip]
    assert len(world.changes) == changes, "readers noticed nothing"
    assert world.counts == {"accepted": 2, "sent": 2}
    assert not len(world.outage.journal)


async def test_outage_writes_are_not_undone_by_lists_until_the_upstream_has_heard_of_them(world: World) -> None:
    await world.lose()
    await world.agent.write(Register(KEY, C))
    await world.agent.write(leave(A))
    world.registry.script = lambda call: SLOW if isinstance(call, Register | Deregister) else world.shelf(call)
    await world.beats(B, C, seconds=30)
    assert world.registry.sent(Fetch)
    assert await world.lists() == [B.ip, C.ip]
    assert len(world.outage.journal) == 2


async def test_outage_writes_make_a_service_readable_that_nobody_had_read(world: World) -> None:
    await world.lose()
    with pytest.raises(NothingKnown):
        await world.agent.read(key("new"))
    await world.agent.write(Register(key("new"), C))
    look = await world.agent.read(key("new"))
    assert look.snapshot is not None
    assert (look.freshness, look.snapshot.instances) == (Freshness.STALE, (C,))
    assert look.error is not None, "it says that the upstream was not asked"
    await world.agent.write(leave(C, key("other")))
    with pytest.raises(NothingKnown):
        await world.agent.read(key("other"))


async def test_outage_accepts_an_update_and_sends_it_after_the_registration(world: World) -> None:
    await world.lose()
    await world.agent.write(Register(KEY, C))
    heavy = Update(KEY, C.ip, C.port, weight=5.0, enabled=True)
    assert (await world.agent.write(heavy)).how == "local"
    look = await world.agent.read(KEY)
    assert look.snapshot is not None and [i.weight for i in look.snapshot.instances] == [1.0, 1.0, 5.0]
    await world.back()
    assert world.sent()[:2] == [Register(KEY, C), heavy]
    assert (await world.agent.modify(Update(KEY, C.ip, C.port, weight=6.0))).result.weight == 6.0


async def test_outage_accepts_a_full_beat_of_an_unknown_instance_and_no_light_one(world: World) -> None:
    await world.lose()
    assert (await world.agent.write(beat(C, full=C))).result == BeatResult()
    assert await world.lists() == [A.ip, B.ip, C.ip]
    with pytest.raises(Unreachable):
        await world.agent.write(Beat(KEY, "10.0.0.9", 80))
    await world.back()
    assert world.sent()[0] == beat(C, full=C)


@pytest.mark.parametrize("error", [AWAY, SLOW, Refused(Reason.OTHER, "bad gateway", status=502)])
async def test_after_failure_accepts_a_call_before_the_upstream_counts_as_away(world: World, error: ProxyError) -> None:
    world.registry.script = lambda call: error if isinstance(call, Register) else world.shelf(call)
    assert (await world.agent.write(Register(KEY, C))).how == "local"
    assert world.agent.catalog.breaker.up
    await world.back(2)
    assert C in world.shelf.of(KEY).instances, "it is sent again though the upstream never counted as away"


@pytest.mark.parametrize("status", [400, 403, 500])
async def test_after_failure_lets_a_refusal_of_the_upstream_stand(world: World, status: int) -> None:
    no = Refused(Reason.OTHER, "caused: no", status=status)
    world.registry.script = lambda call: no if isinstance(call, Register) else world.shelf(call)
    with pytest.raises(Refused):
        await world.agent.write(Register(KEY, C))
    assert await world.lists() == [A.ip, B.ip]


async def test_outage_does_not_accept_writes_about_persistent_or_unknown_instances(world: World) -> None:
    lasting = instance("10.0.0.7", ephemeral=False)
    world.shelf.services[key("lasting")] = snapshot(lasting, service=key("lasting"))
    await world.agent.read(key("lasting"))
    await world.lose()
    for call in (
        Register(KEY, lasting), leave(A, ephemeral=False), leave(lasting, key("lasting")),
        Update(KEY, "10.0.0.9", 80, weight=2.0),
    ):  # fmt: skip
        with pytest.raises(Unreachable):
            await world.agent.write(call)
    assert not len(world.outage.journal)


async def test_outage_refuses_what_nacos_would_refuse(world: World) -> None:
    await world.lose()
    with pytest.raises(BadCall, match="heart beat interval"):
        await world.agent.write(Register(KEY, instance("10.0.0.5", metadata={"preserved.heart.beat.timeout": "1"})))


async def test_outage_accepts_what_only_nacos_would_refuse_if_checks_says_no(world: World) -> None:
    """r-nacos takes it in peace, and so it is taken in an outage."""
    await world.lose()
    world.checked = False
    odd = instance("10.0.0.5", metadata={"preserved.heart.beat.timeout": "1"})
    assert (await world.agent.write(Register(KEY, odd))).how == "local"


async def test_outage_without_accept_writes_answers_only_beats() -> None:
    world = World(writes=False)
    await world.agent.write(Register(KEY, A))
    await world.lists()
    await world.lose()
    assert (await world.agent.write(beat(A))).how == "local"
    for call in (Register(KEY, B), leave(A), Update(KEY, A.ip, A.port, weight=2.0)):
        with pytest.raises(Unreachable):
            await world.agent.write(call)
    await world.back()
    assert world.registry.sent(Beat) == world.registry.sent(Register) == [], "nobody keeps alive what wanted to go"
    await world.poller.stop()
    await world.agent.close()


async def test_persist_with_makes_a_write_wait_until_it_is_on_disk(world: World) -> None:
    kept: list[int] = []

    async def keep() -> None:
        kept.append(len(world.outage.journal))

    world.outage.persist_with(keep)
    await world.lose()
    await world.agent.write(Register(KEY, C))
    assert kept == [1]


async def test_outage_accepts_nothing_when_its_journal_is_full(world: World) -> None:
    await world.lose()
    for number in range(20_000):
        world.outage.journal.add(leave(instance(f"10.1.{number // 250}.{number % 250}")), 0.0)
    with pytest.raises(Unreachable):
        await world.agent.write(Register(KEY, C))


# --- silence -------------------------------------------------------------------------------------------------------


async def test_check_silence_shows_a_dead_client_as_unhealthy_and_then_removes_it(world: World) -> None:
    await world.lose()
    await world.beats(B, seconds=15)
    await world.clock.advance(0.2)
    assert await world.lists() == [f"{A.ip} unhealthy", B.ip]
    assert world.changes[-1].modified[0].healthy is False
    await world.beats(B, seconds=15)
    assert await world.lists() == [B.ip]
    await world.back()
    assert await world.lists() == [A.ip, B.ip], "its word counts again"


async def test_check_silence_uses_the_times_in_the_metadata(world: World) -> None:
    quick = {"preserved.heart.beat.interval": "1000", "preserved.heart.beat.timeout": "2000",
             "preserved.ip.delete.timeout": "3000"}  # fmt: skip
    await world.lose()
    await world.agent.write(Register(KEY, instance("10.0.0.5", metadata=quick)))
    await world.clock.advance(2.1)
    assert (await world.lists())[-1] == "10.0.0.5 unhealthy"
    await world.clock.advance(1)
    assert await world.lists() == [A.ip, B.ip]


async def test_answer_beat_makes_a_silent_client_healthy_again_at_once(world: World) -> None:
    await world.lose()
    await world.clock.advance(16)
    assert await world.lists() == [f"{A.ip} unhealthy", f"{B.ip} unhealthy"]
    await world.agent.write(beat(A))
    assert await world.lists() == [A.ip, f"{B.ip} unhealthy"]
    await world.clock.advance(14)
    assert await world.lists() == [A.ip]
    await world.agent.write(beat(B, full=B))
    assert await world.lists() == [A.ip, B.ip]


async def test_check_silence_does_nothing_while_the_upstream_answers(world: World) -> None:
    await world.clock.advance(40)
    assert await world.lists() == [A.ip, B.ip]


async def test_check_silence_finds_the_silent_again_in_a_second_outage(world: World) -> None:
    await world.lose()
    await world.clock.advance(16)
    await world.back(10)
    assert await world.lists() == [A.ip, B.ip]
    await world.lose()
    await world.clock.advance(0.2)
    assert await world.lists() == [f"{A.ip} unhealthy", f"{B.ip} unhealthy"]


async def test_answer_beat_brings_back_a_managed_instance_that_was_removed(world: World) -> None:
    for registration in world.agent.catalog.registrations:
        registration.check = {"check": {}}
    await world.lose()
    await world.clock.advance(31)
    assert await world.lists() == []
    await world.agent.write(beat(A))
    assert await world.lists() == [A.ip]
    await world.back()
    assert Register(KEY, A) in world.sent()


async def test_answer_beat_keeps_a_removed_instance_with_its_connection(world: World) -> None:
    for registration in world.agent.catalog.registrations:
        registration.check = CONNECTION
    await world.lose()
    await world.clock.advance(31)
    await world.agent.write(beat(A))
    assert [r.of_connection for r in world.agent.catalog.registrations] == [True, True]


# --- the return ----------------------------------------------------------------------------------------------------


async def test_send_waiting_skips_clients_that_fell_silent_and_deregisters_those_that_left(
    world: World,
) -> None:
    await world.lose()
    await world.agent.write(Register(KEY, C))
    await world.agent.write(leave(A))
    await world.beats(B, seconds=20)
    assert await world.lists() == [B.ip, f"{C.ip} unhealthy"]
    await world.back()
    assert world.registry.sent(Register) == []
    assert world.registry.sent(Deregister) == [leave(A)]
    assert await world.lists() == [B.ip]
    assert world.counts == {"accepted": 2, "lapsed": 1, "sent": 1}


async def test_expired_drops_what_waits_of_a_client_that_is_gone_before_the_return(world: World) -> None:
    await world.lose()
    await world.agent.write(Register(KEY, C))
    await world.beats(A, B, seconds=35)
    assert (await world.lists(), len(world.outage.journal)) == ([A.ip, B.ip], 0)
    assert world.counts == {"accepted": 1, "lapsed": 1}


async def test_expired_hides_a_client_that_is_gone_after_the_return_and_before_it_was_sent(world: World) -> None:
    await world.lose()
    await world.agent.write(Register(KEY, C))
    never = asyncio.get_running_loop().create_future()
    world.registry.script = lambda call: never if isinstance(call, Register) else world.shelf(call)
    await world.beats(A, B, seconds=35)
    assert world.agent.catalog.breaker.up
    assert (await world.lists(), world.counts) == ([A.ip, B.ip], {"accepted": 1, "lapsed": 1})


async def test_renewal_after_the_return_sends_no_beat_for_clients_that_are_dead_or_left(world: World) -> None:
    for i in (A, B, C):
        await world.agent.write(Register(KEY, i))
        await world.agent.write(beat(i))
    await world.lose()
    await world.agent.write(leave(A))
    await world.beats(C, seconds=20)
    world.shelf.services[KEY] = snapshot(*(instance(i.ip, healthy=False) for i in (A, B, C)))
    await world.back()
    assert {call.ip for call in world.registry.sent(Beat)} == {C.ip}
    assert {call.ip for call in world.registry.sent(GetInstance)} == {C.ip}


async def test_send_waiting_undoes_logs_and_counts_what_the_upstream_refuses(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.lose()
    await world.agent.write(Register(KEY, C))
    await world.agent.write(leave(A))
    no = Refused(Reason.NO_RIGHT, "authorization failed!", status=403)
    world.registry.script = lambda call: no if isinstance(call, Register | Deregister) else world.shelf(call)
    await world.beats(B, C, seconds=10)
    assert await world.lists() == [A.ip, B.ip]
    assert world.counts == {"accepted": 2, "refused": 2}
    assert world.agent.catalog.registrations.find(KEY, C.ip, C.port) is None
    assert sum("it is undone" in record.getMessage() for record in caplog.records) == 2


async def test_a_request_that_has_passed_too_many_proxies_is_not_accepted_here_and_undoes_nothing(world: World) -> None:
    loop = Refused(Reason.OTHER, "this request has passed 4 proxies", status=508)
    world.registry.script = lambda call: loop
    with pytest.raises(Refused, match="4 proxies"):
        await world.agent.write(Register(KEY, C))
    await world.lose()
    await world.agent.write(Register(KEY, C))
    world.registry.script = lambda call: loop if isinstance(call, Register) else world.shelf(call)
    await world.beats(A, B, C, seconds=20)
    assert world.counts == {"accepted": 1}, "it waits on"
    await world.back()
    assert C in world.shelf.of(KEY).instances


async def test_send_waiting_tries_again_at_a_node_that_refuses_only_at_first(world: World) -> None:
    await world.lose()
    await world.agent.write(Register(KEY, C))
    answers: list[Any] = [Refused(Reason.OTHER, "receive invalid redirect request from peer", status=400)] * 2

    def script(call: Call[Any]) -> Any:
        return answers.pop() if isinstance(call, Register) and answers else world.shelf(call)

    world.registry.script = script
    await world.beats(A, B, C, seconds=10)
    assert C in world.shelf.of(KEY).instances


async def test_send_waiting_keeps_the_rest_if_the_upstream_goes_away_again(world: World) -> None:
    await world.lose()
    services = [key(f"s{number}") for number in range(40)]
    for service in services:
        await world.agent.write(leave(A, service))
    world.registry.script = lambda call: AWAY if len(world.registry.sent(Deregister)) > 5 else world.shelf(call)
    await world.clock.advance(3)
    assert not world.agent.catalog.breaker.up
    assert 30 <= len(world.outage.journal) <= 36
    await world.back()
    assert world.registry.sent(Deregister)[0].service == next(s for s in services if leave(A, s) in world.sent())
    assert len(world.outage.journal) == 0


async def test_send_waiting_is_spread_over_time(world: World) -> None:
    await world.lose()
    for number in range(400):
        await world.agent.write(leave(A, key(f"s{number}")))
    await world.back(0)
    while not world.agent.catalog.breaker.up:
        await world.clock.advance(0.1)
    await world.clock.advance(1)
    assert 50 < len(world.registry.sent(Deregister)) < 150
    await world.clock.advance(6)
    assert len(world.registry.sent(Deregister)) == 400


async def test_before_sending_sends_first_what_waits_of_the_same_instance(world: World) -> None:
    await world.lose()
    await world.agent.write(leave(A))
    world.registry.script = world.shelf
    world.agent.catalog.breaker.succeeded(world.clock.now())
    assert (await world.agent.write(Register(KEY, A))).how == "upstream"
    assert world.sent() == [leave(A), Register(KEY, A)]
    await world.clock.advance(6)
    assert await world.lists() == [A.ip, B.ip]
    assert world.registry.sent(Deregister) == [leave(A)]


async def test_before_sending_registers_an_instance_before_its_beat(world: World) -> None:
    await world.lose()
    await world.agent.write(Register(KEY, C))
    await world.clock.advance(16)
    world.registry.script = world.shelf
    world.agent.catalog.breaker.succeeded(world.clock.now())
    assert (await world.agent.write(beat(C))).how == "upstream"
    assert world.sent() == [Register(KEY, C), beat(C)]


async def test_before_sending_queues_a_write_if_the_upstream_is_away_again(world: World) -> None:
    await world.lose()
    await world.agent.write(Register(KEY, C))
    world.agent.catalog.breaker.succeeded(world.clock.now())
    assert (await world.agent.write(leave(C))).how == "local"
    await world.back()
    assert world.registry.sent(Register) == []
    assert world.registry.sent(Deregister) == [leave(C)]


async def test_send_waiting_also_sends_what_is_accepted_meanwhile(world: World) -> None:
    await world.lose()
    await world.agent.write(Register(KEY, C))
    place = (KEY, C.ip, C.port)

    async def late(call: Call[Any]) -> Any:
        world.outage.journal.add(leave(C), 0.0)
        return world.shelf(call)

    world.registry.script = lambda call: late(call) if isinstance(call, Register) else world.shelf(call)
    assert await world.outage.send_waiting(place)
    assert world.sent() == [Register(KEY, C), leave(C)]


async def test_outage_leaves_a_beat_of_an_unknown_instance_to_the_upstream(world: World) -> None:
    assert (await world.agent.write(Beat(KEY, "10.0.0.9", 80))).result.code == BEAT_NOT_FOUND
    await settle()
    assert len(world.outage.journal) == 0
