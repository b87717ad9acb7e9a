"""`Sender`: what outcomes of calls say about the upstream."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nacos_proxy.catalog.hub import Notice
from nacos_proxy.model.calls import Beat, Call, Fetch, Metrics, Register
from nacos_proxy.model.errors import BadCall, Busy, Garbled, Reason, Refused, TooSlow, Unreachable, Violation
from nacos_proxy.model.services import Via
from nacos_proxy.runtime import spawn
from tests.helpers.build import KEY, snapshot
from tests.helpers.world import NO_CACHE, A, World


def notices(world: World) -> list[str]:
    return [e.body.state for e in world.agent.catalog.hub._history if isinstance(e.body, Notice)]


async def test_on_recovery_calls_all_listeners_even_if_one_fails(world: World) -> None:
    told: list[str] = []
    world.agent.on_recovery += [lambda: told.append("first") or 1 / 0, lambda: told.append("second")]
    await world.lose()
    world.heal()
    await world.agent.send(Metrics())
    assert told == ["first", "second"]
    assert world.agent.supervisor.failing == {"recovery": "ZeroDivisionError: division by zero"}


async def test_send_that_got_no_connection_of_ours_says_nothing_about_the_upstream(world: World) -> None:
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


async def test_send_publishes_loss_and_return_of_the_upstream_once_each(world: World) -> None:
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
        (BadCall("ip", Violation.ILLEGAL, "illegal"), Register(KEY, A), False),
        (Garbled("HTML"), Metrics(), True),
        (Garbled("HTML"), Fetch(KEY), True),
        (Refused(Reason.NO_PEER, "receive invalid redirect request", status=400), Beat(KEY, A.ip, A.port), False),
        (Garbled("another service's list", answered=True), Fetch(KEY), False),
        (Garbled("nothing that a beat is answered", answered=True), Beat(KEY, A.ip, A.port), True),
    ],
)
async def test_send_counts_a_failure_of_the_upstream(
    world: World, error: Exception, call: Call[Any], counts: bool
) -> None:
    world.fail(error)
    for _ in range(3):
        with pytest.raises(type(error)):
            await world.agent.send(call)
    assert world.agent.catalog.breaker.up is not counts


async def test_send_measures_calls_by_class_and_outcome(world: World) -> None:
    held = world.hold(Metrics)
    sending = spawn(world.agent.send(Metrics()), name="probe")
    await world.clock.advance(0.25)
    await held.release()
    await sending
    world.fail(Refused(Reason.OTHER, "no", status=400))
    with pytest.raises(Refused):
        await world.agent.send(Fetch(KEY))
    measured = {labels: (d.count, d.seconds) for labels, d in world.agent.durations.items()}
    assert measured == {("Metrics", "ok"): (1, 0.25), ("Fetch", "Refused"): (1, 0.0)}


async def test_doubt_of_the_upstream_is_published_and_makes_nothing_fresh(world: World) -> None:
    await world.read()
    world.agent.doubt("refused")
    world.agent.doubt("still refused")
    result = await world.read()
    assert (result.stale, result.snapshot is not None) == (True, True)
    assert (world.agent.catalog.breaker.up, world.agent.catalog.breaker.outage) == (True, "still refused")
    assert world.agent.suspicious
    world.agent.doubt("")
    assert not (await world.read()).stale
    assert (notices(world), world.agent.catalog.breaker.outage) == (["down", "up"], "")


async def test_the_loss_of_the_upstream_itself_is_its_outage(world: World) -> None:
    world.agent.doubt("refused")
    await world.lose()
    assert "connection refused" in world.agent.catalog.breaker.outage


async def test_doubt_that_ends_while_the_upstream_itself_is_lost_says_nothing(world: World) -> None:
    world.agent.doubt("refused")
    await world.lose()
    world.agent.doubt("")
    assert notices(world) == ["down", "down"]


async def test_doubt_is_said_again_when_the_upstream_itself_is_back(world: World) -> None:
    world.agent.doubt("refused")
    await world.lose()
    world.heal()
    await world.agent.send(Metrics())
    assert (notices(world), world.agent.catalog.breaker.outage) == (["down", "down", "down"], "refused")


async def test_send_counts_only_missing_answers_while_the_upstream_is_in_doubt(world: World) -> None:
    breaker = world.agent.catalog.breaker
    world.agent.doubt("refused")
    for status in (502, 503, 504):
        world.fail(Refused(Reason.OTHER, "the upstream cannot be asked", status=status))
        for _ in range(5):
            with pytest.raises(Refused):
                await world.agent.send(Metrics())
    assert (breaker.up, breaker.failures) == (True, 0)
    await world.lose()
    assert not breaker.up


@pytest.mark.parametrize(
    ("via", "over"),
    [
        (Via(age=10.0), False),
        (Via(age=4.0), False),  # up to 5 s in truth
        (Via(age=3.0), True),
        (Via(age=0.0), True),
        (Via(age=0.0, stale=True), False),
        (None, False),
    ],
)
async def test_doubt_ends_when_a_list_was_confirmed_since_it_began(world: World, via: Via | None, over: bool) -> None:
    world.agent.doubt("refused")
    await world.clock.advance(5)
    world.shelf.services[KEY] = replace(snapshot(A), via=via)
    await world.read(NO_CACHE)
    assert world.agent.catalog.cache.doubted is not over
