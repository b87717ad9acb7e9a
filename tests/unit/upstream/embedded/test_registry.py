"""The embedded registry with a fake clock: expiry, kinds, limits, and notifications."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.calls import (
    BEAT_NOT_FOUND,
    BEAT_OK,
    Alive,
    BatchMetadata,
    Beat,
    Call,
    CreateService,
    DeleteService,
    Deregister,
    Fetch,
    GetInstance,
    GetService,
    ListDetails,
    ListServices,
    Metrics,
    Namespaces,
    Ready,
    Register,
    ServerState,
    ServiceNames,
    SetHealth,
    Subscribers,
    Switches,
    Update,
    UpdateService,
)
from nacos_proxy.model.effects import apply
from nacos_proxy.model.errors import BadCall, Reason, Refused
from nacos_proxy.model.services import Instance, InstanceKey, ServiceKey, Snapshot
from nacos_proxy.runtime import spawn, stop
from nacos_proxy.upstream.contract import Watchable
from nacos_proxy.upstream.embedded.registry import EmbeddedRegistry, Limits
from nacos_proxy.wire.nacos.administration import WHOLE
from nacos_proxy.wire.nacos.base import ReadInstance, ReadPage, ReadService
from tests.helpers.build import KEY, instance, key
from tests.helpers.clock import FakeClock, settle

FROM_THE_CATALOG = {ReadService, ReadInstance, ReadPage}
EMBEDDED_CALLS = sorted(
    {kind for dialect in WHOLE for row in dialect.operations for kind in (row.call, *row.asks)} - FROM_THE_CATALOG,
    key=lambda kind: kind.__name__,
)
A = instance("10.0.0.1")
B = instance("10.0.0.2")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def registry(clock: FakeClock) -> AsyncIterator[EmbeddedRegistry]:
    registry = EmbeddedRegistry(clock)
    yield registry
    await registry.close()


async def listed(registry: EmbeddedRegistry, service: ServiceKey = KEY) -> tuple[Instance, ...]:
    return (await registry.send(Fetch(service))).instances


async def refusal(registry: EmbeddedRegistry, call: Call[Any]) -> Reason:
    with pytest.raises(Refused) as caught:
        await registry.send(call)
    return caught.value.reason


# --- time ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "unhealthy", "gone"),
    [
        ({}, 15, 30),
        ({"preserved.heart.beat.timeout": "7000"}, 7, 30),
        ({"preserved.ip.delete.timeout": "40000"}, 15, 40),
        ({"preserved.heart.beat.timeout": "6000", "preserved.ip.delete.timeout": "8000"}, 6, 8),
    ],
)
async def test_registry_marks_a_silent_instance_unhealthy_and_then_removes_it(
    registry: EmbeddedRegistry, clock: FakeClock, metadata: dict[str, str], unhealthy: int, gone: int
) -> None:
    await registry.send(Register(KEY, instance("10.0.0.1", metadata=metadata)))
    await clock.advance(unhealthy - 0.1)
    assert [i.healthy for i in await listed(registry)] == [True]
    await clock.advance(0.1)
    assert [i.healthy for i in await listed(registry)] == [False]
    await clock.advance(gone - unhealthy - 0.1)
    assert len(await listed(registry)) == 1
    await clock.advance(0.1)
    assert await listed(registry) == ()
    assert (await registry.send(Beat(KEY, "10.0.0.1", 80))).code == BEAT_NOT_FOUND


async def test_registry_removes_an_instance_with_a_delete_timeout_below_the_beat_timeout(
    registry: EmbeddedRegistry, clock: FakeClock
) -> None:
    await registry.send(Register(KEY, instance("10.0.0.1", metadata={"preserved.ip.delete.timeout": "6000"})))
    await clock.advance(6)
    assert await listed(registry) == ()


@pytest.mark.parametrize(
    ("metadata", "states"),
    [
        ({"enableClientBeat": "true"}, [True, True]),
        ({"enableClientBeat": "YES"}, [True, True]),
        ({"preserved.ip.delete.timeout": "600000"}, [False, False]),
        ({"enableClientBeat": "false"}, [False]),
    ],
)
async def test_registry_removes_a_client_after_three_minutes_of_silence(
    registry: EmbeddedRegistry, clock: FakeClock, metadata: dict[str, str], states: list[bool]
) -> None:
    """With enableClientBeat its beats are not missed until then (nacos-http.md 5.6)."""
    await registry.send(Register(KEY, instance("10.0.0.1", metadata=metadata)))
    seen: list[bool] = []
    for passed in (20.0, 159.0, 1.0):
        await clock.advance(passed)
        seen += [i.healthy for i in await listed(registry)]
    assert seen == states


async def test_registry_does_not_miss_beats_of_an_unchecked_service(
    registry: EmbeddedRegistry, clock: FakeClock
) -> None:
    await registry.send(Register(KEY, A))
    await registry.send(UpdateService(KEY, metadata={"enableClientBeat": "true"}))
    await registry.send(Register(KEY, B))
    await clock.advance(100.0)
    assert [i.healthy for i in await listed(registry)] == [True, True]
    await registry.send(UpdateService(KEY))
    await clock.advance(1.0)
    assert await listed(registry) == ()


async def test_registry_beat_keeps_an_instance_and_makes_it_healthy_again(
    registry: EmbeddedRegistry, clock: FakeClock
) -> None:
    await registry.send(Register(KEY, A))
    for _ in range(20):
        await clock.advance(14)
        assert (await registry.send(Beat(KEY, "10.0.0.1", 80))).code == BEAT_OK
        assert [i.healthy for i in await listed(registry)] == [True]
    await clock.advance(20)
    assert [i.healthy for i in await listed(registry)] == [False]
    await registry.send(Beat(KEY, "10.0.0.1", 80))
    assert [i.healthy for i in await listed(registry)] == [True]


async def test_registry_register_again_counts_as_a_beat(registry: EmbeddedRegistry, clock: FakeClock) -> None:
    await registry.send(Register(KEY, A))
    await clock.advance(29)
    await registry.send(Register(KEY, A))
    await clock.advance(14)
    assert [i.healthy for i in await listed(registry)] == [True]


async def test_registry_register_unhealthy_lasts_until_the_first_beat(
    registry: EmbeddedRegistry, clock: FakeClock
) -> None:
    await registry.send(Register(KEY, instance("10.0.0.1", healthy=False)))
    await clock.advance(5)
    assert [i.healthy for i in await listed(registry)] == [False]
    await registry.send(Beat(KEY, "10.0.0.1", 80))
    assert [i.healthy for i in await listed(registry)] == [True]


async def test_registry_never_removes_a_persistent_instance(registry: EmbeddedRegistry, clock: FakeClock) -> None:
    await registry.send(Register(KEY, instance("10.0.0.1", ephemeral=False)))
    await clock.advance(86_400)
    assert [i.healthy for i in await listed(registry)] == [True]
    assert (await registry.send(Beat(KEY, "10.0.0.1", 80))).code == BEAT_NOT_FOUND


async def test_registry_update_times_take_precedence(registry: EmbeddedRegistry, clock: FakeClock) -> None:
    await registry.send(Register(KEY, instance("10.0.0.1", metadata={"preserved.heart.beat.timeout": "20000"})))
    await registry.send(BatchMetadata(KEY, (), {"preserved.heart.beat.timeout": "6000"}))
    await clock.advance(6)
    assert [i.healthy for i in await listed(registry)] == [False]
    await registry.send(Update(KEY, "10.0.0.1", 80, metadata={"preserved.ip.delete.timeout": "7000"}))
    await clock.advance(1)
    assert await listed(registry) == ()


async def test_registry_expires_each_instance_in_its_own_time(registry: EmbeddedRegistry, clock: FakeClock) -> None:
    """Including one whose times are shorter than those of the instances before it."""
    for number in range(5):
        await registry.send(Register(KEY, instance(f"10.0.0.{number}")))
        await clock.advance(1)
    short = {"preserved.heart.beat.timeout": "5000", "preserved.ip.delete.timeout": "5000"}
    await registry.send(Register(KEY, instance("10.0.0.9", metadata=short)))
    await clock.advance(5)
    assert [i.ip for i in await listed(registry)] == [f"10.0.0.{n}" for n in range(5)]
    for left in (5, 4, 3, 2, 1, 0):
        await clock.advance(1 if left < 5 else 19)
        assert len(await listed(registry)) == left


async def test_registry_forgets_an_empty_service_after_a_while(registry: EmbeddedRegistry, clock: FakeClock) -> None:
    await registry.send(CreateService(KEY, 0.5))
    await registry.send(Register(key("other"), A))
    await registry.send(Deregister(key("other"), "10.0.0.1", 80))
    await clock.advance(59)
    assert (await registry.send(ListServices("public", "DEFAULT_GROUP"))).count == 2
    await clock.advance(1)
    assert (await registry.send(ListServices("public", "DEFAULT_GROUP"))).count == 0


async def test_registry_beat_returns_the_interval_of_the_instance(registry: EmbeddedRegistry) -> None:
    await registry.send(Register(KEY, instance("10.0.0.1", metadata={"preserved.heart.beat.interval": "3000"})))
    assert (await registry.send(Beat(KEY, "10.0.0.1", 80))).interval == 3000
    await registry.send(Update(KEY, "10.0.0.1", 80, metadata={"preserved.heart.beat.interval": "2000"}))
    assert (await registry.send(Beat(KEY, "10.0.0.1", 80))).interval == 2000
    await registry.send(Register(KEY, B))
    assert (await registry.send(Beat(KEY, "10.0.0.2", 80))).interval == 5000


async def test_registry_full_beat_registers_an_unknown_instance_and_changes_no_known_one(
    registry: EmbeddedRegistry,
) -> None:
    full = instance("10.0.0.1", weight=3.0, metadata={"a": "1"}, healthy=False, enabled=False)
    assert (await registry.send(Beat(KEY, "10.0.0.1", 80, full=full))).code == BEAT_OK
    [found] = await listed(registry)
    assert (found.weight, found.healthy, found.enabled) == (3.0, True, True)
    await registry.send(Beat(KEY, "10.0.0.1", 80, full=instance("10.0.0.1", weight=9.0, metadata={"b": "2"})))
    assert await listed(registry) == (found,)


# --- names, kinds, places --------------------------------------------------------------------------------------------


async def test_registry_register_refuses_the_other_kind(registry: EmbeddedRegistry) -> None:
    await registry.send(Register(KEY, A))
    assert await refusal(registry, Register(KEY, instance("10.0.0.9", ephemeral=False))) is Reason.WRONG_KIND
    await registry.send(Deregister(KEY, "10.0.0.1", 80, ephemeral=False))
    assert len(await listed(registry)) == 1


async def test_registry_register_in_another_cluster_moves_the_instance(registry: EmbeddedRegistry) -> None:
    await registry.send(Register(KEY, A))
    await registry.send(Update(KEY, "10.0.0.1", 80, weight=5.0))
    await registry.send(Register(KEY, instance("10.0.0.1", cluster="c1")))
    [found] = await listed(registry)
    assert (found.cluster, found.weight) == ("c1", 1.0)


async def test_registry_separates_namespaces_groups_and_names(registry: EmbeddedRegistry) -> None:
    places = [KEY, key(group="g"), key(namespace="dev"), key("other")]
    for number, service in enumerate(places):
        await registry.send(Register(service, instance(f"10.0.0.{number}")))
    assert [(await listed(registry, service))[0].ip for service in places] == [f"10.0.0.{n}" for n in range(4)]
    page = await registry.send(ListServices("public", "DEFAULT_GROUP"))
    assert (page.count, sorted(page.names)) == (2, ["orders", "other"])
    assert (await registry.send(ServiceNames("dev"))) == {"dev": ("DEFAULT_GROUP@@orders",)}
    assert set(await registry.send(ServiceNames())) == {"public", "dev"}


@pytest.mark.parametrize(("page", "names"), [(0, "ab"), (1, "ab"), (2, "c"), (3, ""), (-1, "ab")])
async def test_registry_list_services_returns_pages(registry: EmbeddedRegistry, page: int, names: str) -> None:
    for name in "abc":
        await registry.send(Register(key(name), A))
    found = await registry.send(ListServices("public", "DEFAULT_GROUP", page, 2))
    assert (found.count, "".join(found.names)) == (3, names)


async def test_registry_register_refuses_an_illegal_instance(registry: EmbeddedRegistry) -> None:
    with pytest.raises(BadCall):
        await registry.send(Register(KEY, instance("10.0.0.1", cluster="a_b")))
    assert (await registry.send(ListServices("public", "DEFAULT_GROUP"))).count == 0


# --- overlays (modify.jsonl) -----------------------------------------------------------------------------------------


async def test_registry_update_overrides_the_registration_until_it_is_removed(registry: EmbeddedRegistry) -> None:
    """Every step of the recording "modify" of 2.5.1."""

    async def shown() -> tuple[float, dict[str, str]] | None:
        found = [i for i in await listed(registry) if i.enabled]
        return (found[0].weight, dict(found[0].metadata)) if found else None

    async def put(**fields: Any) -> tuple[float, dict[str, str]] | None:
        await registry.send(Update(KEY, "10.0.0.1", 80, **fields))
        return await shown()

    await registry.send(Register(KEY, instance("10.0.0.1", weight=3.0, metadata={"a": "1"})))
    assert await shown() == (3.0, {"a": "1"})
    assert await put(weight=5.0) == (5.0, {"a": "1"})
    assert await put(metadata={"b": "2"}) == (1.0, {"a": "1", "b": "2"})
    assert await put(metadata={"a": "9"}, weight=2.0) == (2.0, {"a": "9"})
    assert await put(weight=7.0, partial=True) == (7.0, {"a": "9"})
    assert await put(metadata={"c": "3"}, partial=True) == (7.0, {"a": "1", "c": "3"})
    assert await put(enabled=False) is None
    assert await put(enabled=True) == (1.0, {"a": "1"})
    await registry.send(Register(KEY, instance("10.0.0.1", weight=9.0, metadata={"d": "4"})))
    assert await shown() == (1.0, {"d": "4"})
    await registry.send(Beat(KEY, "10.0.0.1", 80, full=instance("10.0.0.1", metadata={"e": "5"})))
    assert await shown() == (1.0, {"d": "4"})
    await registry.send(Deregister(KEY, "10.0.0.1", 80))
    await registry.send(Register(KEY, A))
    assert await shown() == (1.0, {})


async def test_registry_partial_update_keeps_what_it_does_not_name(registry: EmbeddedRegistry) -> None:
    await registry.send(Register(KEY, instance("10.0.0.1", weight=2.5, enabled=False)))
    await registry.send(Update(KEY, "10.0.0.1", 80, metadata={"a": "1"}, partial=True))
    await registry.send(BatchMetadata(KEY, (), {"b": "2"}))
    [found] = await listed(registry)
    assert (found.weight, found.enabled, dict(found.metadata)) == (2.5, False, {"a": "1", "b": "2"})


async def test_registry_batch_metadata_merges_and_removes(registry: EmbeddedRegistry) -> None:
    await registry.send(Register(KEY, instance("10.0.0.1", metadata={"a": "1"})))
    await registry.send(Register(KEY, B))
    one = InstanceKey("10.0.0.1", 80, "DEFAULT")
    unknown = InstanceKey("10.0.0.1", 80, "c9")
    assert await registry.send(BatchMetadata(KEY, (one, unknown), {"b": "2", "a": "9"})) == (
        "10.0.0.1:80:unknown:DEFAULT:ephemeral",
    )
    assert [dict(i.metadata) for i in await listed(registry)] == [{"a": "9", "b": "2"}, {}]
    await registry.send(BatchMetadata(KEY, (), {"a": "", "b": ""}, remove=True))
    assert [dict(i.metadata) for i in await listed(registry)] == [{"a": "1"}, {}]
    assert await registry.send(BatchMetadata(key("nobody"), (), {"a": "1"})) == ()


async def test_registry_update_of_a_missing_instance(registry: EmbeddedRegistry) -> None:
    unknown = Update(KEY, "10.9.9.9", 80, weight=2.0)
    assert await refusal(registry, unknown) is Reason.SERVICE_NOT_FOUND
    await registry.send(Register(KEY, A))
    await registry.send(unknown)  # a PUT of an unknown instance is a success, and changes nothing
    assert await listed(registry) == (A,)
    partial = Update(KEY, "10.9.9.9", 80, weight=2.0, partial=True)
    assert await refusal(registry, partial) is Reason.INSTANCE_NOT_FOUND
    assert await refusal(registry, GetInstance(KEY, "10.9.9.9", 80)) is Reason.INSTANCE_NOT_FOUND
    assert await refusal(registry, GetInstance(key("nobody"), "10.0.0.1", 80)) is Reason.NO_INSTANCES
    assert await refusal(registry, SetHealth(KEY, "10.0.0.1", 80, "DEFAULT", False)) is Reason.CHECKER_AT_WORK


# --- services --------------------------------------------------------------------------------------------------------


async def test_registry_create_update_and_delete_service(registry: EmbeddedRegistry) -> None:
    await registry.send(CreateService(KEY, 0.5, {"team": "x"}, ephemeral=True))
    assert await refusal(registry, CreateService(KEY)) is Reason.SERVICE_EXISTS
    info = await registry.send(GetService(KEY))
    assert (info.threshold, info.metadata, info.ephemeral) == (0.5, {"team": "x"}, True)
    await registry.send(Register(KEY, A))
    assert await refusal(registry, DeleteService(KEY)) is Reason.SERVICE_NOT_EMPTY
    await registry.send(UpdateService(KEY))
    assert (await registry.send(GetService(KEY))).metadata == {}
    await registry.send(Deregister(KEY, "10.0.0.1", 80))
    await registry.send(DeleteService(KEY))
    for call in (DeleteService(KEY), UpdateService(KEY), GetService(KEY)):
        assert await refusal(registry, call) is Reason.SERVICE_NOT_FOUND
    for selector in ("{", '{"type":"other"}', "[]"):
        assert await refusal(registry, CreateService(KEY, selector=selector)) is Reason.OTHER


async def test_registry_fetch_at_the_threshold_shows_all_as_healthy(
    registry: EmbeddedRegistry, clock: FakeClock
) -> None:
    await registry.send(CreateService(KEY, 0.5, ephemeral=True))
    await registry.send(Register(KEY, A))
    await registry.send(Register(KEY, B))
    await clock.advance(10)
    await registry.send(Beat(KEY, "10.0.0.1", 80))
    await clock.advance(6)
    snapshot = await registry.send(Fetch(KEY))
    assert [i.healthy for i in snapshot.instances] == [True, False]
    assert snapshot.select().protected and all(i.healthy for i in snapshot.select().hosts)
    await registry.send(UpdateService(KEY, 0.4))
    assert not (await registry.send(Fetch(KEY))).select().protected


async def test_registry_list_details_returns_pages(registry: EmbeddedRegistry) -> None:
    await registry.send(CreateService(key("empty")))
    for name in ("orders", "orders-eu", "disks"):
        await registry.send(Register(key(name), A))
    page = await registry.send(ListDetails("public", name_part="orders", size=1, page=2))
    assert (page.count, [row.info.key.name for row in page.rows]) == (2, ["orders-eu"])
    assert (await registry.send(ListDetails("public", ignore_empty=True))).count == 3
    assert (await registry.send(ListDetails("public", group_part="none"))).count == 0


async def test_registry_answers_administrative_calls(registry: EmbeddedRegistry) -> None:
    await registry.send(Register(KEY, A))
    await registry.send(Register(key("disks"), instance("10.0.0.9", ephemeral=False)))
    metrics = await registry.send(Metrics(only_status=False))
    assert (metrics["serviceCount"], metrics["instanceCount"], metrics["persistentIpPortClientCount"]) == (2, 2, 1)
    assert await registry.send(Metrics()) == {"status": "UP"}
    assert await registry.send(Subscribers(KEY)) == ()
    assert (await registry.send(Switches()))["lightBeatEnabled"] is True
    assert (await registry.send(ServerState()))["version"] == "2.5.1"
    assert [n["namespaceShowName"] for n in await registry.send(Namespaces())] == ["public"]
    assert (await registry.send(Alive()), await registry.send(Ready())) == (None, None)
    assert repr(registry) == "<EmbeddedRegistry 2 services, 2 instances>"


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EMBEDDED_CALLS, ids=lambda kind: kind.__name__)
async def test_registry_has_a_handler_for_each_call_of_its_dialects(registry: EmbeddedRegistry, kind: type) -> None:
    """The call has no fields, so its handler may raise `AttributeError`; without a handler it would be `KeyError`."""
    with contextlib.suppress(AttributeError):
        await registry.send(object.__new__(kind))


async def test_registry_keeps_its_limits(clock: FakeClock) -> None:
    registry = EmbeddedRegistry(clock, Limits(instances=2, services=2))
    await registry.send(Register(KEY, A))
    await registry.send(Register(key("b"), A))
    assert await refusal(registry, Register(key("c"), A)) is Reason.OTHER
    assert await refusal(registry, Register(KEY, B)) is Reason.OTHER
    await registry.send(Register(KEY, A))
    await clock.advance(30)
    await registry.send(Register(KEY, A))
    await registry.send(Register(KEY, B))
    assert len(await listed(registry)) == 2


async def test_registry_register_refused_leaves_no_service(clock: FakeClock) -> None:
    registry = EmbeddedRegistry(clock, Limits(instances=0))
    assert await refusal(registry, Register(KEY, A)) is Reason.OTHER
    assert (await registry.send(ListServices("public", "DEFAULT_GROUP"))).count == 0


async def test_registry_listing_delay_delays_all_but_the_first_list(clock: FakeClock) -> None:
    registry = EmbeddedRegistry(clock, Limits(listing_delay=0.5))
    await registry.send(Register(KEY, A))
    assert await listed(registry) == (A,)
    await registry.send(Register(KEY, B))
    await clock.advance(0.4)
    assert await listed(registry) == (A,)
    await clock.advance(0.1)
    assert await listed(registry) == (A, B)
    await registry.send(Deregister(KEY, "10.0.0.1", 80))
    assert await listed(registry) == (A, B)
    await clock.advance(0.5)
    assert await listed(registry) == (B,)


# --- watchers --------------------------------------------------------------------------------------------------------


async def test_registry_changes_yields_watched_services_including_expiry(
    registry: EmbeddedRegistry, clock: FakeClock
) -> None:
    assert isinstance(registry, Watchable) and registry.alive
    heard: list[ServiceKey] = []

    async def listen() -> None:
        async for changed in registry.changes():
            assert changed.pushed is None
            heard.append(changed.key)

    listening = spawn(listen(), name="listening")
    try:
        registry.watch([KEY])
        await settle()
        assert heard == [KEY]  # it may have changed before it was watched
        heard.clear()
        await registry.send(Register(KEY, A))
        await registry.send(Register(key("other"), A))
        await settle()
        assert heard == [KEY]
        await registry.send(Beat(KEY, "10.0.0.1", 80))  # changes nothing
        await settle()
        assert heard == [KEY]
        await clock.advance(15)
        assert heard == [KEY, KEY]  # unhealthy
        await registry.send(Beat(KEY, "10.0.0.1", 80))
        await settle()
        assert heard == [KEY] * 3  # healthy
        await clock.advance(30)
        assert heard == [KEY] * 5  # unhealthy, gone
    finally:
        await stop(listening)


async def test_registry_close_ends_the_task(clock: FakeClock) -> None:
    before = asyncio.all_tasks()
    registry = EmbeddedRegistry(clock)
    listening = spawn(anext(registry.changes()), name="listening")  # type: ignore[arg-type]
    await settle()
    await registry.close()
    await stop(listening)
    assert asyncio.all_tasks() == before


async def test_registry_fetch_returns_the_same_snapshot_while_unchanged(registry: EmbeddedRegistry) -> None:
    await registry.send(Register(KEY, A))
    first = await registry.send(Fetch(KEY))
    await registry.send(Beat(KEY, "10.0.0.1", 80))
    assert await registry.send(Fetch(KEY)) is first


# --- the prediction --------------------------------------------------------------------------------------------------

_IPS = st.sampled_from(["10.0.0.1", "10.0.0.2"])
_REGISTER = st.builds(
    lambda ip, weight, meta: Register(KEY, instance(ip, weight=weight, metadata=meta)),
    _IPS,
    st.sampled_from([1.0, 2.5]),
    st.sampled_from([{}, {"a": "1"}]),
)
_PARTIAL = st.builds(
    lambda ip, weight, enabled: Update(KEY, ip, 80, weight=weight, enabled=enabled, partial=True),
    _IPS,
    st.none() | st.sampled_from([3.0, 4.0]),
    st.none() | st.booleans(),
)
_WRITES = st.lists(
    _REGISTER | _PARTIAL | _IPS.map(lambda ip: Deregister(KEY, ip, 80)) | _IPS.map(lambda ip: Beat(KEY, ip, 80)),
    max_size=8,
)


@given(_WRITES)
async def test_registry_fetch_lists_what_apply_predicts(writes: list[Any]) -> None:
    """From any state to the next: a prediction starts at what the server lists."""
    registry = EmbeddedRegistry(FakeClock())
    modified: set[str] = set()
    for write in writes:
        before = await registry.send(Fetch(KEY))
        try:
            await registry.send(write)
        except Refused:
            continue
        after = await registry.send(Fetch(KEY))
        if isinstance(write, Update):
            modified.add(write.ip)
        if isinstance(write, Deregister):
            modified.discard(write.ip)
        if not (isinstance(write, Register) and write.instance.ip in modified):  # its overlay outlives this
            assert after == apply(before, write)
    assert isinstance(before if writes else Snapshot(KEY), Snapshot)


async def test_registry_does_not_count_a_standstill_as_silence(registry: EmbeddedRegistry, clock: FakeClock) -> None:
    watching = spawn(_watch(registry), name="watching")
    await registry.send(Register(KEY, A))
    await clock.advance(10)
    clock.jump(60)
    assert (await registry.send(Fetch(KEY))).instances == (A,), "asked before its own turn came"
    await clock.advance(2)
    assert (await registry.send(Fetch(KEY))).instances == (A,)
    await clock.advance(5)
    assert [i.healthy for i in (await registry.send(Fetch(KEY))).instances] == [False], "from here on it counts"
    await clock.advance(15)
    assert (await registry.send(Fetch(KEY))).instances == ()
    await stop(watching)


async def _watch(registry: EmbeddedRegistry) -> None:
    async for _ in registry.changes():
        pass
