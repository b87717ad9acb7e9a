"""A change of what is named and of nothing else, also where two change the same instance at once."""

from __future__ import annotations

import asyncio

import pytest

from nacos_proxy.core.agent import Agent
from nacos_proxy.model.calls import Fetch, GetInstance, Register, Update
from nacos_proxy.model.errors import BadCall, Refused, Violation
from nacos_proxy.model.services import Instance
from tests.helpers.build import KEY, agent, instance, snapshot
from tests.helpers.clock import FakeClock
from tests.helpers.scripted import ScriptedRegistry, Shelf
from tests.helpers.world import A, World

KNOWN = instance(weight=3.0, metadata={"zone": "a"})


async def test_modify_sends_what_is_not_named_as_it_is_visible() -> None:
    registry = ScriptedRegistry(Shelf(snapshot(KNOWN)))
    worker = agent(registry, FakeClock())
    after = await worker.modify(Update(KEY, KNOWN.ip, KNOWN.port, metadata={"v": "2"}))
    (sent,) = registry.sent(Update)
    assert (sent.weight, sent.enabled, sent.metadata, sent.partial) == (3.0, True, {"zone": "a", "v": "2"}, False)
    assert after.result == instance(weight=3.0, metadata={"zone": "a", "v": "2"})
    await worker.close()


async def test_modify_waits_for_a_change_of_the_same_instance_only() -> None:
    other = instance("10.0.0.2")
    shelf = Shelf(snapshot(KNOWN, other))
    worker = agent(ScriptedRegistry(shelf), FakeClock())
    changes = [
        Update(KEY, KNOWN.ip, KNOWN.port, weight=9.0),
        Update(KEY, KNOWN.ip, KNOWN.port, metadata={"v": "2"}),
        Update(KEY, other.ip, other.port, enabled=True, weight=2.0),
    ]
    await asyncio.gather(*map(worker.modify, changes))
    assert shelf.of(KEY).instances == (
        instance(weight=9.0, metadata={"zone": "a", "v": "2"}),
        instance("10.0.0.2", weight=2.0),
    )
    assert len(worker._patches) == 0


async def test_modify_changes_no_other_cluster_than_the_one_named() -> None:
    shelf = Shelf(snapshot(instance(cluster="c1")))
    worker = agent(ScriptedRegistry(shelf), FakeClock())
    await worker.write(Register(KEY, instance(cluster="c1")))
    with pytest.raises(Refused, match="no matched ip found!"):
        await worker.modify(Update(KEY, KNOWN.ip, KNOWN.port, cluster="c2", weight=9.0))
    assert (await worker.modify(Update(KEY, KNOWN.ip, KNOWN.port, weight=9.0))).result.cluster == "c1"
    await worker.close()


async def test_modify_that_enables_an_instance_makes_it_visible_to_the_next_read() -> None:
    """Servers before 3.x, and 3.0 where only the client's list may be asked, list no disabled instance."""
    hidden = instance("10.0.0.9", cluster="c1", enabled=False, weight=4.0)
    shelf = Shelf(snapshot())
    registry = ScriptedRegistry(lambda call: hidden if isinstance(call, GetInstance) else shelf(call))
    worker = agent(registry, FakeClock())
    await worker.read(KEY)
    await worker.modify(Update(KEY, hidden.ip, hidden.port, "c1", weight=5.0))
    assert (await shown(worker)) == ()
    await worker.modify(Update(KEY, hidden.ip, hidden.port, "c1", enabled=True))
    assert (await shown(worker)) == (instance("10.0.0.9", cluster="c1", weight=5.0),)
    await worker.close()


async def shown(worker: Agent) -> tuple[Instance, ...]:
    look = await worker.read(KEY)
    assert look.snapshot is not None
    return look.snapshot.instances


async def test_modify_that_failed_releases_its_lock() -> None:
    shelf = Shelf(snapshot(KNOWN))
    registry = ScriptedRegistry(
        lambda call: BadCall("weight", Violation.WEIGHT, "no") if isinstance(call, Update) else shelf(call)
    )
    worker = agent(registry, FakeClock())
    with pytest.raises(BadCall):
        await worker.modify(Update(KEY, KNOWN.ip, KNOWN.port, weight=9.0))
    registry.script = shelf
    assert (await worker.modify(Update(KEY, KNOWN.ip, KNOWN.port, weight=9.0))).result.weight == 9.0


async def test_modify_of_an_instance_in_no_list_uses_its_registration_or_looks_it_up() -> None:
    hidden = instance("10.0.0.9", enabled=False, weight=4.0)
    registry = ScriptedRegistry(lambda call: snapshot() if isinstance(call, Fetch) else None)
    worker = agent(registry, FakeClock())
    worker.catalog.registrations.record_write(Register(KEY, hidden), 0.0)
    assert (await worker.modify(Update(KEY, hidden.ip, hidden.port, enabled=True))).result.weight == 4.0
    assert registry.sent(GetInstance) == []
    registry.script = Shelf(snapshot())
    with pytest.raises(Refused, match="no matched ip found!"):
        await worker.modify(Update(KEY, "10.0.0.8", 80, enabled=True))


async def test_patch_reads_what_the_patch_before_it_wrote() -> None:
    """KNOWN server shows a modification half a second later; a PATCH that reads it there would undo the one before."""
    shelf = Shelf(snapshot(KNOWN))
    late = ScriptedRegistry(lambda call: shelf(call) if isinstance(call, Fetch) else None)
    worker = agent(late, FakeClock())
    await worker.write(Update(KEY, KNOWN.ip, KNOWN.port, weight=5.0, partial=True))
    await worker.write(Update(KEY, KNOWN.ip, KNOWN.port, metadata={"v": "2"}, partial=True))
    sent = late.sent(Update)[-1]
    assert (sent.weight, sent.enabled, sent.metadata, sent.partial) == (5.0, True, {"v": "2"}, False)
    await worker.close()


async def test_patch_of_a_disabled_instance_does_not_enable_it() -> None:
    """Not every server tells that an instance which it does not list is disabled."""
    registry = ScriptedRegistry(lambda call: KNOWN if isinstance(call, GetInstance) else snapshot())
    worker = agent(registry, FakeClock())
    worker.catalog.registrations.record_write(Register(KEY, KNOWN), 0.0)
    await worker.write(Update(KEY, KNOWN.ip, KNOWN.port, weight=5.0, partial=True))
    await worker.modify(Update(KEY, KNOWN.ip, KNOWN.port, weight=6.0))
    assert [(call.weight, call.enabled) for call in registry.sent(Update)] == [(5.0, False), (6.0, False)]
    await worker.close()


async def test_modify_sends_all_that_it_does_not_change(world: World) -> None:
    known = instance("10.0.0.7", cluster="c1", weight=5.0, metadata={"a": "1", "b": "2"})
    world.shelf.services[KEY] = snapshot(A, known)
    await world.read()
    after = await world.agent.modify(Update(KEY, known.ip, known.port, metadata={"b": "3"}))
    (sent,) = world.registry.sent(Update)
    assert sent == Update(
        KEY, known.ip, known.port, "c1", 5.0, True, {"a": "1", "b": "3"}, ephemeral=True, partial=False
    )
    assert after.result == instance("10.0.0.7", cluster="c1", weight=5.0, metadata={"a": "1", "b": "3"})


async def test_modify_reads_from_the_upstream_and_not_from_the_cache(world: World) -> None:
    await world.read()
    world.shelf.services[KEY] = snapshot(instance(A.ip, weight=7.0))
    await world.agent.modify(Update(KEY, A.ip, A.port, enabled=False))
    (sent,) = world.registry.sent(Update)
    assert (sent.weight, sent.enabled) == (7.0, False)


async def test_modify_of_one_instance_at_the_same_time_loses_no_change(world: World) -> None:
    await world.read()
    await asyncio.gather(
        world.agent.modify(Update(KEY, A.ip, A.port, weight=9.0)),
        world.agent.modify(Update(KEY, A.ip, A.port, metadata={"a": "1"})),
        world.agent.modify(Update(KEY, A.ip, A.port, metadata={"b": "2"})),
    )
    assert world.shelf.of(KEY).find(A.ip, A.port) == instance(A.ip, weight=9.0, metadata={"a": "1", "b": "2"})
    assert len(world.agent._patches) == 0


async def test_modify_changes_the_instance_of_the_cluster_that_is_named(world: World) -> None:
    first, second = instance(cluster="a", weight=1.0), instance(cluster="b", weight=2.0)
    world.shelf.services[KEY] = snapshot(first, second)
    await world.agent.modify(Update(KEY, A.ip, A.port, cluster="b", enabled=True))
    (sent,) = world.registry.sent(Update)
    assert (sent.cluster, sent.weight) == ("b", 2.0)


async def test_modify_knows_instances_that_no_list_shows(world: World) -> None:
    hidden = instance("10.0.0.9", enabled=False, weight=3.0)
    world.registry.script = lambda call: hidden if isinstance(call, GetInstance) else world.shelf(call)
    assert (await world.agent.modify(Update(KEY, hidden.ip, hidden.port, enabled=True))).result.weight == 3.0
    await world.agent.write(Register(KEY, instance("10.0.0.8", enabled=False, weight=4.0)))
    world.shelf.services[KEY] = snapshot(A)
    await world.clock.advance(5)
    assert (await world.agent.modify(Update(KEY, "10.0.0.8", 80, enabled=True))).result.weight == 4.0


async def test_modify_of_an_unknown_instance_raises_the_upstreams_refusal(world: World) -> None:
    with pytest.raises(Refused, match="no matched ip found!"):
        await world.agent.modify(Update(KEY, "10.0.0.9", 80, weight=1.0))
    assert world.registry.sent(Update) == []
