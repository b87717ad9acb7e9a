"""`Fetcher`: which lists of the upstream are believed, and what its failures change."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from nacos_proxy.catalog.freshness import CacheResult, Freshness
from nacos_proxy.model.calls import Call, Deregister, Metrics
from nacos_proxy.model.errors import Reason, Refused
from nacos_proxy.model.services import ServiceKey
from tests.helpers.build import KEY, snapshot
from tests.helpers.clock import settle
from tests.helpers.world import AWAY, NO_CACHE, A, B, World


async def _asked(world: World) -> CacheResult:
    """After the upstream was asked, whether the reader waited for that or not."""
    world.agent.refresh(KEY)
    await settle()
    return await world.read()


async def test_refresh_survives_a_bug_in_the_registry(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def broken(call: Call[Any]) -> Any:
        raise ZeroDivisionError("a bug")

    await world.read()
    world.registry.script = broken
    with caplog.at_level(logging.CRITICAL):
        look = await world.read(NO_CACHE)
        await settle()
    assert look.snapshot is not None
    world.heal()
    assert (await world.read(NO_CACHE)).error is None
    assert KEY in world.agent.catalog.cache.watched_keys()


async def test_refresh_that_began_before_a_write_does_not_undo_it(world: World) -> None:
    await world.read()
    held = world.hold()
    world.agent.refresh(KEY)
    await settle()
    await world.agent.write(Deregister(KEY, A.ip, A.port))
    await world.clock.advance(4)
    await held.release()
    look = await world.read()
    assert look.snapshot is not None and look.snapshot.instances == (B,)
    assert [change.removed for change in world.changes[1:]] == [(A,)]


async def test_refresh_does_not_believe_an_empty_list_right_after_an_outage(world: World) -> None:
    await world.read()
    await world.lose()
    world.heal()
    world.shelf.services[KEY] = snapshot()
    look = await _asked(world)
    assert look.snapshot is not None and look.snapshot.instances == (A, B)
    await world.clock.advance(5)
    look = await _asked(world)
    assert look.snapshot is not None and look.snapshot.instances == ()
    assert len(world.changes) == 2


async def test_refresh_does_not_believe_an_empty_list_after_a_single_failure(world: World) -> None:
    """A restart between two polls fails one call at the most, and the upstream never counts as down."""
    await world.read()
    world.fail(AWAY)
    await world.read(NO_CACHE)
    world.heal()
    world.shelf.services[KEY] = snapshot()
    look = await world.read(NO_CACHE)
    assert look.snapshot is not None and look.snapshot.instances == (A, B)


async def test_refresh_believes_an_empty_list_long_after_an_outage(world: World) -> None:
    await world.read()
    await world.lose()
    world.heal()
    await world.agent.send(Metrics())
    await world.clock.advance(31)
    world.shelf.services[KEY] = snapshot()
    look = await world.read(NO_CACHE)
    assert look.snapshot is not None and look.snapshot.instances == ()


async def test_refresh_does_not_believe_an_empty_list_of_another_server(world: World) -> None:
    await world.read()
    world.agent.suspect()
    world.shelf.services[KEY] = snapshot()
    look = await world.read(NO_CACHE)
    assert look.snapshot is not None and look.snapshot.instances == (A, B)


async def test_refresh_that_failed_during_an_outage_is_due_soon_after_it(world: World) -> None:
    await world.read()
    world.fail(AWAY)
    for _ in range(10):
        world.agent.refresh(KEY)
        await settle()
    assert world.agent.catalog.cache.next_due() > world.clock.now() + 20
    world.heal()
    await world.agent.send(Metrics())
    assert world.agent.catalog.cache.next_due() <= world.clock.now() + 5


async def test_close_ends_fetches_in_flight_and_the_registry() -> None:
    world = World()
    world.hold()
    world.agent.refresh(KEY)
    await settle()
    await world.agent.close()
    assert world.registry.closed
    assert not [task for task in asyncio.all_tasks() if task.get_name() == f"fetch {KEY}"]


async def test_on_barred_is_called_when_a_service_is_forgotten_for_lack_of_rights() -> None:
    world = World(strict=True)
    told: list[ServiceKey] = []
    world.agent.on_barred.append(lambda key, error: told.append(key))
    await world.read()
    world.fail(Refused(Reason.OTHER, "bad", status=400))
    world.agent.refresh(KEY)
    await settle()
    assert (told, (await world.read()).freshness) == ([], Freshness.FRESH), "another no says nothing of rights"
    world.fail(Refused(Reason.NO_RIGHT, "authorization failed!", status=403))
    world.agent.refresh(KEY)
    await settle()
    assert told == [KEY]
    assert world.agent.catalog.cache.lookup(KEY, world.clock.now()).freshness is Freshness.MISSING
    with pytest.raises(Refused):
        await world.read()
