"""Names of whole groups at a bounded cost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nacos_proxy.frontends.discovery.group_names import LIST_EVERY, GroupNames
from nacos_proxy.model.calls import ListServices, ServicePage
from nacos_proxy.model.errors import NothingKnown, Reason, Refused, Unreachable
from nacos_proxy.runtime import spawn
from tests.helpers.build import KEY, instance, snapshot
from tests.unit.frontends.conftest import World

GROUP = ListServices("public", "DEFAULT_GROUP", size=2)


def listed(world: World, *names: str) -> None:
    """The registry lists these names from now on, two on a page."""

    def answer(call: Any) -> Any:
        if isinstance(call, ListServices):
            return ServicePage(len(names), names[2 * call.page - 2 : 2 * call.page])
        return world.shelf(call)

    world.registry.script = answer


async def test_names_of_all_pages_are_asked_once_for_all_callers(world: World) -> None:
    listed(world, "a", "b", "c")
    groups = GroupNames(world.agent, 1000)
    found = await asyncio.gather(*(groups.names(GROUP) for _ in range(10)))
    assert found == [(frozenset("abc"), True)] * 10
    assert [call.page for call in world.registry.calls] == [1, 2]
    await world.clock.advance(LIST_EVERY)
    listed(world, "a")
    assert await groups.names(GROUP) == (frozenset("a"), True)


async def test_names_include_services_with_instances_that_no_list_has_yet(world: World) -> None:
    listed(world)
    world.shelf.services[KEY] = snapshot(instance())
    await world.agent.read(KEY)
    assert await GroupNames(world.agent, 1000).names(GROUP) == (frozenset({"orders"}), True)


async def test_names_stay_those_of_the_last_list_while_the_upstream_is_away(world: World) -> None:
    listed(world, "a")
    groups = GroupNames(world.agent, 1000)
    await groups.names(GROUP)
    world.registry.script = lambda call: Unreachable("refused", arrived=False)
    await world.clock.advance(10 * LIST_EVERY)
    assert await groups.names(GROUP) == (frozenset("a"), True)
    with pytest.raises(NothingKnown, match="refused"):
        await GroupNames(world.agent, 1000).names(GROUP)


async def test_names_are_not_shown_to_an_account_that_has_lost_its_rights(world: World) -> None:
    listed(world, "a")
    groups = GroupNames(world.agent, 1000)
    await groups.names(GROUP)
    world.registry.script = lambda call: Refused(Reason.NO_RIGHT, "authorization failed!", status=403)
    await world.clock.advance(LIST_EVERY)
    with pytest.raises(Refused, match="authorization failed"):
        await groups.names(GROUP)
    listed(world, "a")
    await world.clock.advance(LIST_EVERY)
    assert await groups.names(GROUP) == (frozenset("a"), True)


async def test_names_do_not_wait_longer_for_a_slow_upstream_than_a_read_does(world: World) -> None:
    world.registry.script = lambda call: asyncio.Event().wait()
    asked = spawn(GroupNames(world.agent, 1000).names(GROUP), name="asked")
    await world.clock.advance(3)
    with pytest.raises(NothingKnown, match="not answered in time"):
        await asked
