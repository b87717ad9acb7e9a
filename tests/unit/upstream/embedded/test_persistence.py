"""What of the embedded registry outlives its process."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nacos_proxy.model.calls import (
    BatchMetadata,
    Beat,
    Call,
    CreateService,
    DeleteService,
    Deregister,
    Fetch,
    GetService,
    Register,
    SetHealth,
    Switches,
    Update,
    UpdateService,
)
from nacos_proxy.model.errors import Refused
from nacos_proxy.model.services import Checking, ServiceKey
from nacos_proxy.runtime import spawn, stop
from nacos_proxy.upstream.embedded.persistence import SWITCHES_KEY, PersistentState, PersistentValue
from nacos_proxy.upstream.embedded.registry import EmbeddedRegistry
from nacos_proxy.wire.nacos.administration import SetCluster, SetSwitch
from tests.helpers.build import KEY, instance, key
from tests.helpers.clock import FakeClock, settle

LASTING = instance(metadata={"zone": "a"}, ephemeral=False)


class Written:
    """What a registry has written; `then` returns another one that restores it."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.rows: dict[ServiceKey, PersistentValue] = {}
        self.writes = 0
        self.registry = EmbeddedRegistry(clock)
        self.registry.persistent_state.set_writer(self.write)

    async def write(self) -> None:
        self.writes += 1
        await self.registry.persistent_state.write_changes(self.write_rows)

    async def write_rows(self, rows: list[tuple[ServiceKey, PersistentValue | None]]) -> bool:
        for where, value in rows:
            self.rows.pop(where, None)
            if value is not None:
                self.rows[where] = value
        return True

    async def send(self, *calls: Call[Any]) -> None:
        for call in calls:
            await self.registry.send(call)

    def then(self) -> EmbeddedRegistry:
        again = EmbeddedRegistry(self.clock)
        again.restore(self.rows.items())
        return again


@pytest.fixture
def written() -> Written:
    return Written(FakeClock())


async def test_registry_restore_brings_back_persistent_instances_with_their_overrides(written: Written) -> None:
    two = instance("10.0.0.2", cluster="b", ephemeral=False)
    await written.send(
        Register(KEY, LASTING),
        Register(KEY, two),
        Update(KEY, "10.0.0.1", 80, weight=3.0, enabled=False, metadata={"zone": "b"}, ephemeral=False),
        BatchMetadata(KEY, (two.key,), {"more": "1"}, ephemeral=False),
        SetCluster(KEY, "b", Checking({"type": "NONE"})),
        SetHealth(KEY, "10.0.0.2", 80, "b", False),
    )
    before = await written.registry.send(Fetch(KEY))
    assert await written.then().send(Fetch(KEY)) == before
    assert [(i.weight, i.enabled, i.healthy, dict(i.metadata)) for i in before.instances] == [
        (3.0, False, True, {"zone": "b"}),
        (1.0, True, False, {"more": "1"}),
    ]


async def test_registry_restore_brings_back_the_data_of_services(written: Written) -> None:
    selector = '{"type":"label","expression":"x"}'
    await written.send(
        CreateService(KEY, 0.5, {"owner": "us"}, selector, ephemeral=True),
        CreateService(key("second")),
        UpdateService(key("second"), 0.25, {"a": None}),
        SetCluster(key("second"), "c", Checking({"type": "TCP"}, 81, False, {"m": "1"})),
    )
    again = written.then()
    for service in (KEY, key("second")):
        assert await again.send(GetService(service)) == await written.registry.send(GetService(service))
    found = await again.send(GetService(KEY))
    assert (found.threshold, dict(found.metadata), found.selector["type"]) == (0.5, {"owner": "us"}, "label")


async def test_registry_restore_brings_back_switches(written: Written) -> None:
    await written.send(SetSwitch("clientBeatInterval", "7000"), SetSwitch("unknown", "1"))
    assert written.writes == 1
    assert (await written.then().send(Switches()))["clientBeatInterval"] == 7000
    assert list(written.rows) == [SWITCHES_KEY]


async def test_registry_persists_removals(written: Written) -> None:
    await written.send(
        Register(KEY, LASTING), CreateService(key("second")), Deregister(KEY, "10.0.0.1", 80, ephemeral=False)
    )
    await written.send(DeleteService(key("second")))
    assert written.rows == {}
    await written.send(CreateService(key("empty")))
    written.clock.jump(61.0)
    await written.send(Register(KEY, LASTING))  # time took the empty one
    assert list(written.rows) == [KEY]


async def test_registry_does_not_persist_ephemeral_instances(written: Written) -> None:
    await written.send(Register(KEY, instance()), Beat(KEY, "10.0.0.1", 80), Deregister(KEY, "10.0.0.1", 80))
    assert written.writes == 0
    await written.send(CreateService(key("said"), 0.5, ephemeral=True), Register(key("said"), instance()))
    assert (written.writes, (await written.then().send(Fetch(key("said")))).instances) == (1, ())


async def test_registry_writes_nothing_without_a_change(written: Written) -> None:
    for _ in range(3):
        await written.send(Register(KEY, LASTING), Beat(KEY, "10.0.0.1", 80, ephemeral=False, full=LASTING))
    assert written.writes == 1
    with pytest.raises(Refused):
        await written.send(Register(KEY, instance()))
    assert written.writes == 1


async def test_registry_restore_counts_and_expires_like_registrations(written: Written) -> None:
    await written.send(Register(KEY, LASTING), CreateService(key("empty")))
    again = written.then()
    assert repr(again) == "<EmbeddedRegistry 2 services, 1 instances>"
    assert again.persistent_state.unwritten == {}
    written.clock.jump(61.0)
    await again.send(Deregister(KEY, "10.0.0.1", 80, ephemeral=False))
    assert repr(again) == "<EmbeddedRegistry 1 services, 0 instances>"
    assert again.persistent_state.unwritten == {KEY: None, key("empty"): None}


async def test_registry_reads_do_not_wait_for_writes(written: Written) -> None:
    await written.send(CreateService(KEY))
    written.clock.jump(61.0)
    await written.send(Fetch(KEY))  # with which it goes
    assert (written.writes, written.registry.persistent_state.unwritten) == (1, {KEY: None})


async def test_registry_notifies_watchers_once_a_write_is_persistent_even_if_its_caller_is_gone(
    written: Written,
) -> None:
    """They are notified after the caller got its answer; both wait for the same write."""
    registry, done = written.registry, asyncio.Event()
    registry.persistent_state.set_writer(done.wait)  # type: ignore[arg-type]
    heard: list[str] = []

    async def listen() -> None:
        async for changed in registry.changes():
            heard.append(f"{changed.key.name} changed")

    async def register(service: ServiceKey) -> None:
        await registry.send(Register(service, LASTING))
        heard.append(f"{service.name} answered")

    registry.watch([KEY, key("second")])
    listening = spawn(listen(), name="listening")
    await settle()
    heard.clear()
    writes = [spawn(register(service), name="write") for service in (KEY, key("second"))]
    await settle()
    assert heard == []
    await stop(writes[1])
    assert heard == ["second changed"]
    done.set()
    await settle()
    assert heard == ["second changed", "orders answered", "orders changed"]
    await stop(listening)


async def test_registry_fetch_waits_for_changes_of_its_service_that_are_being_written(written: Written) -> None:
    """Otherwise a poll at that moment would publish an instance that a kill could still undo."""
    registry, done = written.registry, asyncio.Event()
    registry.persistent_state.set_writer(done.wait)  # type: ignore[arg-type]
    write = spawn(registry.send(Register(KEY, LASTING)), name="write")
    await settle()
    fetch = spawn(registry.send(Fetch(KEY)), name="fetch")
    assert (await registry.send(Fetch(key("second")))).instances == ()
    await settle()
    assert not fetch.done()
    done.set()
    assert [i.address for i in (await fetch).instances] == [LASTING.address]
    await write


async def test_persistent_state_flush_returns_without_a_writer() -> None:
    state = PersistentState()
    state.update(KEY, {"a": 1})
    await state.flush()
    assert state.unwritten == {KEY: {"a": 1}}


async def test_persistent_state_write_changes_keeps_changes_until_they_are_written() -> None:
    state = PersistentState()
    state.update(KEY, {"a": 1})
    state.update(key("second"), {"b": 1})

    async def fail(rows: list[tuple[ServiceKey, PersistentValue | None]]) -> bool:
        state.update(KEY, {"a": 2})
        return False

    async def succeed(rows: list[tuple[ServiceKey, PersistentValue | None]]) -> bool:
        assert rows == [(KEY, {"a": 2}), (key("second"), {"b": 1})]
        return True

    assert not await state.write_changes(fail)
    assert state.unwritten == {KEY: {"a": 2}, key("second"): {"b": 1}}
    assert await state.write_changes(succeed)
    assert state.unwritten == {}
