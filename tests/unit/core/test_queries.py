"""What the upstream is asked beside its lists agrees with the writes that it accepted from here (lag.jsonl)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nacos_proxy.core.agent import Agent
from nacos_proxy.model.calls import (
    Call,
    Deregister,
    DetailPage,
    GetInstance,
    ListDetails,
    ListServices,
    Metrics,
    Register,
    ServiceDetail,
    ServiceInfo,
    ServiceNames,
    ServicePage,
    Update,
    Write,
)
from nacos_proxy.model.errors import Reason, Refused, Unreachable
from nacos_proxy.model.services import Snapshot
from tests.helpers.build import KEY, agent, instance, key, snapshot
from tests.helpers.clock import FakeClock
from tests.helpers.scripted import ScriptedRegistry, Shelf
from tests.helpers.world import A, B, World

NEW = key("new")
GET = GetInstance(KEY, A.ip, A.port)


class Late:
    """A server whose every read shows it as it was, whatever is written."""

    def __init__(self, *services: Snapshot) -> None:
        self.shelf = Shelf(*services)

    def __call__(self, call: Call[Any]) -> Any:
        rows = [ServiceDetail(ServiceInfo(s.key), s) for s in self.shelf.services.values()]
        match call:
            case Write():
                return None
            case ListDetails():
                return DetailPage(len(rows), tuple(rows))
            case ServiceNames():
                return {"public": tuple(row.info.key.grouped for row in rows)}
            case _:
                return self.shelf(call)


def world(*services: Snapshot) -> tuple[Agent, FakeClock]:
    clock = FakeClock()
    return agent(ScriptedRegistry(Late(*(services or (snapshot(A, B),)))), clock), clock


async def test_ask_does_not_find_what_was_deregistered_here_though_the_upstream_does() -> None:
    proxied, clock = world()
    await proxied.read(KEY)
    await proxied.write(Deregister(KEY, A.ip, A.port))
    for ask in (proxied.ask, proxied.instance):
        with pytest.raises(Refused, match="no matched ip found!"):
            await ask(GET)
    assert await proxied.ask(replace(GET, ip=B.ip)) == B
    await clock.advance(3)
    assert await proxied.ask(GET) == A, "after the grace the upstream's word stands"


async def test_ask_gives_an_instance_as_it_was_registered_and_modified_here() -> None:
    proxied, _ = world(snapshot(B))
    with pytest.raises(Refused):
        await proxied.ask(GET)
    await proxied.write(Register(KEY, A))
    await proxied.write(Update(KEY, A.ip, A.port, weight=7.0, enabled=False))
    assert await proxied.ask(GET) == replace(A, weight=7.0, enabled=False)


async def test_ask_for_lists_of_services_includes_pending_writes() -> None:
    proxied, clock = world()
    await proxied.read(KEY)
    await proxied.read(NEW)
    await proxied.write(Deregister(KEY, A.ip, A.port))
    await proxied.write(Register(NEW, A))
    page = await proxied.ask(ListServices("public", "DEFAULT_GROUP"))
    assert page == ServicePage(2, ("orders", "new"))
    assert await proxied.ask(ServiceNames()) == {"public": (KEY.grouped, NEW.grouped)}
    details = await proxied.ask(ListDetails("public"))
    assert details.count == 2
    assert [row.snapshot.instances for row in details.rows] == [(B,), (A,)]
    await proxied.write(Deregister(KEY, B.ip, B.port))
    details = await proxied.ask(ListDetails("public", ignore_empty=True))
    assert [row.info.key for row in details.rows] == [NEW]
    await clock.advance(3)
    assert (await proxied.ask(ListServices("public", "DEFAULT_GROUP"))).count == 1


async def test_ask_adds_nothing_to_a_page_that_does_not_hold_all_services() -> None:
    proxied, _ = world(*(snapshot(A, service=key(f"s{n}")) for n in range(5)))
    await proxied.read(NEW)
    await proxied.write(Register(NEW, A))
    assert (await proxied.ask(ListServices("public", "DEFAULT_GROUP", 1, 2))).count == 5
    other = await proxied.ask(ListServices("public", "other"))
    assert other == ServicePage(0, ())


async def test_ask_raises_what_the_upstream_refuses_and_passes_other_calls() -> None:
    denied = Refused(Reason.NO_RIGHT, "no", status=403)
    registry = ScriptedRegistry(lambda call: denied if isinstance(call, GetInstance) else {"status": "UP"})
    proxied = agent(registry, FakeClock())
    with pytest.raises(Refused, match="no"):
        await proxied.ask(GET)
    assert await proxied.ask(Metrics()) == {"status": "UP"}
    registry.script = lambda call: Unreachable("refused", arrived=False)
    with pytest.raises(Unreachable):
        await proxied.ask(GET)


async def test_instance_comes_from_the_snapshot(world: World) -> None:
    found, look = await world.agent.instance(GetInstance(KEY, B.ip, B.port))
    assert (found, look is not None, world.registry.sent(GetInstance)) == (B, True, [])


async def test_instance_that_no_list_shows_is_looked_up(world: World) -> None:
    hidden = instance("10.0.0.9", enabled=False)
    world.registry.script = lambda call: hidden if isinstance(call, GetInstance) else world.shelf(call)
    found, look = await world.agent.instance(GetInstance(KEY, hidden.ip, hidden.port))
    assert (found, look) == (hidden, None)


async def test_instance_that_is_not_in_the_snapshot_is_not_found_while_the_upstream_is_down(world: World) -> None:
    await world.read()
    await world.lose()
    with pytest.raises(Refused) as raised:
        await world.agent.instance(GetInstance(KEY, "10.0.0.9", 80))
    assert (raised.value.reason, raised.value.status) == (Reason.INSTANCE_NOT_FOUND, 404)
