"""A change of what is named and of nothing else, also where two change the same instance at once."""

from __future__ import annotations

import asyncio

import pytest

from nacos_proxy.core.agent import Agent
from nacos_proxy.model.calls import Fetch, GetInstance, Register, Update
from nacos_proxy.model.errors import BadCall, Problem, Refused
from nacos_proxy.model.services import Instance
from tests.helpers.build import KEY, agent, instance, snapshot
from tests.helpers.clock import FakeClock
from tests.helpers.scripted import ScriptedRegistry, Shelf

A = instance(weight=3.0, metadata={"zone": "a"})


async def test_what_is_not_named_is_sent_as_it_is_shown() -> None:
    registry = ScriptedRegistry(Shelf(snapshot(A)))
    worker = agent(registry, FakeClock())
    after = await worker.modify(Update(KEY, A.ip, A.port, metadata={"v": "2"}))
    (sent,) = registry.sent(Update)
    assert (sent.weight, sent.enabled, sent.metadata, sent.partial) == (3.0, True, {"zone": "a", "v": "2"}, False)
    assert after.result == instance(weight=3.0, metadata={"zone": "a", "v": "2"})
    await worker.close()


async def test_a_second_change_of_an_instance_waits_for_the_first_and_one_of_another_does_not() -> None:
    other = instance("10.0.0.2")
    shelf = Shelf(snapshot(A, other))
    worker = agent(ScriptedRegistry(shelf), FakeClock())
    changes = [
        Update(KEY, A.ip, A.port, weight=9.0),
        Update(KEY, A.ip, A.port, metadata={"v": "2"}),
        Update(KEY, other.ip, other.port, enabled=True, weight=2.0),
    ]
    await asyncio.gather(*map(worker.modify, changes))
    assert shelf.of(KEY).instances == (
        instance(weight=9.0, metadata={"zone": "a", "v": "2"}),
        instance("10.0.0.2", weight=2.0),
    )
    assert len(worker._patches) == 0


async def test_the_cluster_that_is_named_is_meant_and_no_other() -> None:
    shelf = Shelf(snapshot(instance(cluster="c1")))
    worker = agent(ScriptedRegistry(shelf), FakeClock())
    await worker.write(Register(KEY, instance(cluster="c1")))
    with pytest.raises(Refused, match="no matched ip found!"):
        await worker.modify(Update(KEY, A.ip, A.port, cluster="c2", weight=9.0))
    assert (await worker.modify(Update(KEY, A.ip, A.port, weight=9.0))).result.cluster == "c1"
    await worker.close()


async def test_what_is_enabled_again_shows_in_the_next_read_though_no_list_showed_it() -> None:
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


async def test_one_that_failed_lets_the_next_one_change() -> None:
    shelf = Shelf(snapshot(A))
    registry = ScriptedRegistry(
        lambda call: BadCall("weight", Problem.WEIGHT, "no") if isinstance(call, Update) else shelf(call)
    )
    worker = agent(registry, FakeClock())
    with pytest.raises(BadCall):
        await worker.modify(Update(KEY, A.ip, A.port, weight=9.0))
    registry.script = shelf
    assert (await worker.modify(Update(KEY, A.ip, A.port, weight=9.0))).result.weight == 9.0


async def test_what_no_list_shows_is_known_from_its_registration_or_asked_for() -> None:
    hidden = instance("10.0.0.9", enabled=False, weight=4.0)
    registry = ScriptedRegistry(lambda call: snapshot() if isinstance(call, Fetch) else None)
    worker = agent(registry, FakeClock())
    worker.catalog.registrations.wrote(Register(KEY, hidden), 0.0)
    assert (await worker.modify(Update(KEY, hidden.ip, hidden.port, enabled=True))).result.weight == 4.0
    assert registry.sent(GetInstance) == []
    registry.script = Shelf(snapshot())
    with pytest.raises(Refused, match="no matched ip found!"):
        await worker.modify(Update(KEY, "10.0.0.8", 80, enabled=True))


async def test_a_patch_reads_what_the_one_before_it_wrote() -> None:
    """A server shows a modification half a second later; a PATCH that reads it there would undo the one before."""
    shelf = Shelf(snapshot(A))
    late = ScriptedRegistry(lambda call: shelf(call) if isinstance(call, Fetch) else None)
    worker = agent(late, FakeClock())
    await worker.write(Update(KEY, A.ip, A.port, weight=5.0, partial=True))
    await worker.write(Update(KEY, A.ip, A.port, metadata={"v": "2"}, partial=True))
    sent = late.sent(Update)[-1]
    assert (sent.weight, sent.enabled, sent.metadata, sent.partial) == (5.0, True, {"v": "2"}, False)
    await worker.close()


async def test_a_patch_of_a_disabled_instance_does_not_enable_it() -> None:
    """Not every server tells that an instance which it does not list is disabled."""
    registry = ScriptedRegistry(lambda call: A if isinstance(call, GetInstance) else snapshot())
    worker = agent(registry, FakeClock())
    worker.catalog.registrations.wrote(Register(KEY, A), 0.0)
    await worker.write(Update(KEY, A.ip, A.port, weight=5.0, partial=True))
    await worker.modify(Update(KEY, A.ip, A.port, weight=6.0))
    assert [(call.weight, call.enabled) for call in registry.sent(Update)] == [(5.0, False), (6.0, False)]
    await worker.close()
