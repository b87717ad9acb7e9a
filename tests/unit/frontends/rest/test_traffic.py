"""Drain and maintenance, as clients call them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nacos_proxy.catalog.health_checks import CheckSpec
from nacos_proxy.frontends.rest.models import Drain
from nacos_proxy.model.calls import Deregister, Register
from nacos_proxy.model.errors import Reason, Refused
from nacos_proxy.runtime import spawn
from tests.helpers.asgi import Exchange
from tests.helpers.build import KEY, instance, snapshot
from tests.helpers.clock import settle
from tests.unit.frontends.conftest import World

MINE = instance("10.0.0.1", 80)
PATH = "/api/v1/services/orders/instances/10.0.0.1:80"
DRAIN = f"{PATH}/drain"
MAINTENANCE = f"{PATH}/maintenance"
JSON = {"content-type": "application/json"}


async def registered(world: World) -> None:
    await world.agent.read(KEY)
    await world.agent.write(Register(KEY, MINE))


async def managed(world: World) -> None:
    await world.agent.read(KEY)
    await world.checker.register(KEY, MINE, CheckSpec("ttl", interval=5.0, ttl=60.0))


def drain(world: World, more: str = "") -> Any:
    return spawn(world.ask("POST", DRAIN + more), name="drain")


async def maintain(world: World, body: bytes = b'{"reason": "disk swap"}') -> Exchange:
    return await world.ask("PUT", MAINTENANCE, headers=JSON, body=body)


async def test_drain_answers_when_the_instance_is_deregistered(world: World) -> None:
    await registered(world)
    call = drain(world)
    await world.clock.advance(5)
    state = await world.ask("GET", DRAIN)
    Drain.model_validate(state.json())
    assert (state.json()["state"], state.json()["secondsLeft"], state.headers["cache-control"]) == (
        *("draining", 15.0, "no-store"),
    )
    shown = await world.ask("GET", PATH)
    assert (shown.json()["enabled"], shown.json()["drain"]["state"]) == (False, "draining")
    assert (await world.ask("GET", "/api/v1/services/orders")).json()["hosts"] == []
    await world.clock.advance(15)
    answer = call.result()
    assert (answer.status, answer.json()["state"], answer.json()["address"]) == (200, "drained", "10.0.0.1:80")
    again = await world.ask("POST", DRAIN)
    assert (again.status, again.json()["state"]) == (200, "drained"), "a hook that is run twice does no harm"
    assert len(world.registry.sent(Deregister)) == 1


async def test_drain_that_is_cancelled_tells_both_clients(world: World) -> None:
    await registered(world)
    call = drain(world, "?wait=1m")
    await world.clock.advance(30)
    cancelled = await world.ask("DELETE", DRAIN)
    assert (cancelled.status, cancelled.json()["state"]) == (200, "cancelled")
    await settle()
    assert (call.result().status, call.result().json()["detail"]) == (409, "the drain was cancelled")
    assert [h["ip"] for h in (await world.ask("GET", "/api/v1/services/orders")).json()["hosts"]] == ["10.0.0.1"]
    assert (await world.ask("DELETE", DRAIN)).status == (await world.ask("GET", DRAIN)).status == 404


async def test_drain_of_an_unknown_instance_or_one_of_another_host(world: World) -> None:
    world.shelf.services[KEY] = snapshot(instance("10.0.0.2", 80))
    assert (await world.ask("POST", DRAIN)).status == 404
    other = await world.ask("POST", DRAIN.replace("10.0.0.1", "10.0.0.2"))
    assert (other.status, "was not registered through this proxy" in other.json()["detail"]) == (409, True)
    assert world.registry.sent(Register) == []


@pytest.mark.parametrize(
    ("query", "text"), [("wait=soon", "it must be a time like 30s"), ("wait=6m", "it must be at most 5m")]
)
async def test_drain_names_a_bad_wait(world: World, query: str, text: str) -> None:
    await registered(world)
    answer = await world.ask("POST", f"{DRAIN}?{query}")
    assert (answer.status, answer.json()["parameter"], text in answer.json()["detail"]) == (400, "wait", True)


async def test_drain_finds_an_ipv6_address_in_any_spelling(world: World) -> None:
    await world.agent.read(KEY)
    await world.agent.write(Register(KEY, instance("2001:DB8::7", 80)))
    answer = await world.ask("POST", "/api/v1/services/orders/instances/[2001:db8:0::7]:80/drain?wait=0")
    assert (answer.status, answer.json()["address"]) == (200, "[2001:db8::7]:80")
    assert world.registry.sent(Deregister)[0].ip == "2001:DB8::7"


async def test_maintenance_keeps_a_managed_instance_out_and_shows_the_reason(world: World) -> None:
    await managed(world)
    answer = await maintain(world)
    assert (answer.status, answer.json()["enabled"], answer.json()["maintenance"]["reason"]) == (
        200,
        False,
        "disk swap",
    )
    assert (await world.ask("GET", PATH)).json()["maintenance"] == answer.json()["maintenance"]
    assert (await world.ask("GET", "/api/v1/services/orders")).json()["hosts"] == []
    ended = await world.ask("DELETE", MAINTENANCE)
    assert (ended.status, ended.json()["enabled"], "maintenance" in ended.json()) == (200, True, False)
    assert [h["ip"] for h in (await world.ask("GET", "/api/v1/services/orders")).json()["hosts"]] == ["10.0.0.1"]


async def test_maintenance_of_what_is_unknown_or_not_managed(world: World) -> None:
    assert (await maintain(world)).status == 404
    await registered(world)
    refused = await maintain(world)
    assert (refused.status, "is not managed" in refused.json()["detail"]) == (409, True)


async def test_maintenance_that_the_upstream_refuses_does_not_begin(world: World) -> None:
    await managed(world)
    world.registry.script = lambda call: Refused(Reason.NO_RIGHT, "authorization failed!", status=403)
    assert (await maintain(world)).status == 403
    (checked,) = world.checker
    assert checked.maintenance is None


@pytest.mark.parametrize(("body", "parameter"), [(b'{"why": "x"}', "why"), (b'{"reason": 1}', "reason")])
async def test_maintenance_names_bad_fields(world: World, body: bytes, parameter: str) -> None:
    await managed(world)
    answer = await maintain(world, body)
    assert (answer.status, answer.json()["parameter"]) == (400, parameter)
    long = await maintain(world, b'{"reason": "%s"}' % (b"x" * 201))
    assert (long.status, long.json()["parameter"]) == (400, "reason")


async def test_drain_of_an_instance_in_maintenance_that_is_cancelled_leaves_it_there(world: World) -> None:
    await managed(world)
    await maintain(world)
    call = drain(world)
    await settle()
    assert (await world.ask("DELETE", MAINTENANCE)).status == 409
    await world.ask("DELETE", DRAIN)
    await settle()
    assert call.result().status == 409
    assert world.registry.sent(Register)[-1] == Register(KEY, replace(MINE, enabled=False))
