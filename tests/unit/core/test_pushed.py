"""`PushedLists`: a pushed list is committed as a fetched one is."""

from __future__ import annotations

from nacos_proxy.model.calls import Beat, Deregister, Register
from tests.helpers.build import KEY, snapshot
from tests.helpers.clock import settle
from tests.helpers.world import A, B, C, World


async def test_accept_publishes_the_change_without_a_fetch(world: World) -> None:
    await world.read()
    fetches = world.fetches()
    assert world.agent.accept_pushed(snapshot(A, B, C))
    assert (world.changes[-1].added, world.changes[-1].source, world.fetches()) == ((C,), "push", fetches)
    assert world.agent.counts.pushes == {"used": 1}


async def test_accept_of_what_a_fetch_must_tell_publishes_nothing(world: World) -> None:
    assert not world.agent.accept_pushed(snapshot(A))
    assert (world.changes, world.agent.counts.pushes) == ([], {"fetched": 1})


async def test_accept_does_not_undo_a_write_that_the_push_lacks(world: World) -> None:
    await world.read()
    await world.agent.write(Register(KEY, C))
    assert world.agent.accept_pushed(snapshot(A, B))
    look = await world.read()
    assert look.snapshot is not None and look.snapshot.instances == (A, B, C)


async def test_accept_does_not_believe_an_empty_list_right_after_an_outage(world: World) -> None:
    await world.read()
    world.agent.suspect()
    assert world.agent.accept_pushed(snapshot())
    look = await world.read()
    assert look.snapshot is not None and look.snapshot.instances == (A, B)


async def test_accept_needs_a_fetch_if_the_list_lacks_an_instance_that_beats_here(world: World) -> None:
    await world.read()
    await world.agent.write(Register(KEY, C))
    for _ in range(3):
        await world.clock.advance(2.5)
        await world.agent.write(Beat(KEY, C.ip, C.port))
    assert not world.agent.accept_pushed(snapshot(A, B)), "it may be disabled, or lost"
    await world.agent.write(Deregister(KEY, C.ip, C.port))
    await settle()
    assert world.agent.accept_pushed(snapshot(A, B))
