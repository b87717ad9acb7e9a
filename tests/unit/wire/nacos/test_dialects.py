"""What holds for every dialect: calls and results survive the round trip, and odd input does no harm."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.calls import (
    BEAT_NOT_FOUND,
    Alive,
    BatchMetadata,
    Beat,
    BeatResult,
    Call,
    CreateService,
    DeleteService,
    Deregister,
    Fetch,
    GetInstance,
    GetService,
    ListServices,
    Metrics,
    Namespaces,
    Ready,
    Register,
    ServerState,
    ServiceInfo,
    ServicePage,
    SetHealth,
    Subscriber,
    Subscribers,
    Switches,
    Update,
    UpdateService,
)
from nacos_proxy.model.services import Instance, InstanceKey, ServiceKey, Snapshot
from nacos_proxy.wire.http import HttpReply, Pairs
from nacos_proxy.wire.nacos.base import Dialect, Operation, ReadInstance, ReadService, ServiceView
from nacos_proxy.wire.nacos.v1 import V1
from nacos_proxy.wire.nacos.v2 import V2
from nacos_proxy.wire.nacos.v3 import V3
from tests.helpers.build import KEY
from tests.helpers.pair import (
    CALLS,
    CLUSTERS,
    GROUPS,
    IPS,
    KEYS,
    LISTED,
    METADATA,
    NAMESPACES,
    ODD_PARAMETERS,
    ODD_REPLIES,
    PORTS,
    REGISTERED,
    SNAPSHOTS,
    WEIGHTS,
    DialectPair,
    survives_reply,
    survives_request,
)

DIALECTS = (V1, V2, V3)
every_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
v1_and_v2 = pytest.mark.parametrize("dialect", [V1, V2], ids=lambda dialect: dialect.name)

NAMED = METADATA.filter(bool)
SELECTORS = st.sampled_from(["", '{"type":"none"}', '{"type":"label","expression":"CONSUMER.label.a=1"}'])
PUTS = st.builds(
    Update,
    KEYS,
    IPS,
    PORTS,
    CLUSTERS,
    st.none() | WEIGHTS,
    st.none() | st.booleans(),
    st.none() | NAMED,
    st.booleans(),
)
V2_PATCHES = st.builds(Update, KEYS, IPS, PORTS, CLUSTERS, WEIGHTS, st.booleans(), NAMED, st.just(True), st.just(True))
CREATED = st.builds(CreateService, KEYS, st.floats(0, 1), METADATA, SELECTORS)
CREATED_OF_EITHER_KIND = st.builds(CreateService, KEYS, st.floats(0, 1), METADATA, SELECTORS, st.booleans())
V1_UPDATES = st.builds(
    Update,
    KEYS,
    IPS,
    PORTS,
    CLUSTERS,
    st.none() | WEIGHTS,
    st.none() | st.booleans(),
    st.none() | NAMED,
    st.just(True),
    st.booleans(),
)
PROBES = st.sampled_from([Alive(), Ready()])
WRITES: dict[Dialect, tuple[st.SearchStrategy[Any], ...]] = {
    V1: (V1_UPDATES, CREATED, PROBES),
    V2: (PUTS, V2_PATCHES, CREATED_OF_EITHER_KIND),
    V3: (PUTS, CREATED_OF_EITHER_KIND, PROBES),
}
COMMON_WRITES = (
    st.builds(Register, KEYS, REGISTERED)
    | st.builds(Deregister, KEYS, IPS, PORTS, CLUSTERS, st.booleans())
    | st.builds(SetHealth, KEYS, IPS, PORTS, CLUSTERS, st.booleans())
    | st.builds(UpdateService, KEYS, st.floats(0, 1), METADATA, SELECTORS)
    | st.builds(DeleteService, KEYS)
)


def none(_call: Any) -> None:
    return None


@every_dialect
@given(st.data(), ODD_PARAMETERS, st.booleans())
def test_read_request_survives_odd_parameters(
    dialect: Dialect, data: st.DataObject, parameters: Pairs, in_form: bool
) -> None:
    operation: Operation[Any, Any] = data.draw(st.sampled_from(dialect.operations))
    survives_request(dialect, operation, parameters, in_form)


@pytest.mark.parametrize(
    ("dialect", "call"),
    [(dialect, call) for dialect in DIALECTS for call in CALLS if dialect.can_send(call)],
    ids=lambda value: value.name if isinstance(value, Dialect) else repr(value),
)
@given(ODD_REPLIES)
def test_read_reply_survives_odd_replies(dialect: Dialect, call: Call[Any], reply: HttpReply) -> None:
    survives_reply(dialect, call, reply)


@pytest.mark.parametrize(
    ("dialect", "writes"),
    [(dialect, writes) for dialect in DIALECTS for writes in (COMMON_WRITES, *WRITES[dialect])],
    ids=lambda value: value.name if isinstance(value, Dialect) else "",
)
@given(st.data())
def test_a_write_arrives_as_it_was_sent(
    dialect: Dialect, writes: st.SearchStrategy[Call[None]], data: st.DataObject
) -> None:
    pair, call = DialectPair(dialect, none), data.draw(writes)
    pair.send(call)
    assert pair.seen == [call]


@v1_and_v2
@given(KEYS, REGISTERED, st.booleans(), st.sampled_from([BeatResult(), BeatResult(BEAT_NOT_FOUND, 1000)]))
def test_a_beat_and_its_answer_arrive_as_they_were_sent(
    dialect: Dialect, service: ServiceKey, i: Instance, full: bool, answer: BeatResult
) -> None:
    beating = Instance(i.ip, i.port, i.cluster, i.weight, ephemeral=i.ephemeral, metadata=i.metadata)
    pair = DialectPair(dialect, lambda call: answer)
    call = Beat(service, i.ip, i.port, i.cluster, i.ephemeral, beating if full else None)
    assert pair.send(call) == answer
    assert pair.seen == [call]


@every_dialect
@given(KEYS, st.lists(st.builds(InstanceKey, IPS, PORTS, CLUSTERS), max_size=3), NAMED, st.booleans(), st.booleans())
def test_a_batch_and_its_answer_arrive_as_they_were_sent(
    dialect: Dialect,
    service: ServiceKey,
    keys: list[InstanceKey],
    metadata: dict[str, str],
    remove: bool,
    ephemeral: bool,
) -> None:
    pair = DialectPair(dialect, lambda call: ("10.0.0.1:80:unknown:DEFAULT:ephemeral",))
    call = BatchMetadata(service, tuple(keys), metadata, remove, ephemeral)
    assert pair.send(call) == ("10.0.0.1:80:unknown:DEFAULT:ephemeral",)
    assert pair.seen == [call]


@v1_and_v2
@given(SNAPSHOTS)
def test_a_fetched_snapshot_arrives_as_it_was(dialect: Dialect, before: Snapshot) -> None:
    pair = DialectPair(dialect, lambda call: ServiceView(before, before.select(call.cluster_set, call.healthy_only)))
    assert pair.send(Fetch(before.key)) == before
    assert pair.seen == [ReadService(before.key)]


@every_dialect
@given(KEYS, LISTED)
def test_an_instance_arrives_as_far_as_the_dialect_shows_it(
    dialect: Dialect, service: ServiceKey, before: Instance
) -> None:
    """v1 and v2 show neither `enabled` nor `ephemeral` of one instance."""
    pair = DialectPair(dialect, lambda call: before)
    after = pair.send(GetInstance(service, before.ip, before.port, before.cluster))
    assert (after.key, after.weight, after.healthy) == (before.key, before.weight, before.healthy)
    assert (after.metadata, after.extra) == (before.metadata, before.extra)
    usual = f"{before.ip}#{before.port}#{before.cluster}#{service.grouped}"
    assert after.instance_id in (
        (before.instance_id, before.instance_id or usual) if dialect is V3 else (before.instance_id,)
    )
    assert dialect is V3 or (after.enabled, after.ephemeral) == (True, True)
    assert pair.seen == [ReadInstance(service, before.ip, before.port, before.cluster)]


@every_dialect
@given(KEYS, st.floats(0, 1), METADATA, st.lists(CLUSTERS, max_size=3, unique=True), st.booleans())
def test_a_service_info_arrives_as_it_was(
    dialect: Dialect, key: ServiceKey, threshold: float, metadata: dict[str, str], clusters: list[str], ephemeral: bool
) -> None:
    """v1 does not show `ephemeral`."""
    selector = {"type": "none", "contextType": "NONE"}
    info = ServiceInfo(key, threshold, metadata, selector, tuple(clusters), ephemeral or dialect is V1)
    assert DialectPair(dialect, lambda call: info).send(GetService(key)) == info


@pytest.mark.parametrize(("dialect", "first"), [(V1, 0), (V2, 1)], ids=["v1", "v2"])
@given(st.data())
def test_a_page_of_names_arrives_as_it_was(dialect: Dialect, first: int, data: st.DataObject) -> None:
    numbers = st.integers(first, 99), st.integers(first, 500)
    call = data.draw(st.builds(ListServices, NAMESPACES, GROUPS, *numbers))
    page = ServicePage(3, ("a", "b"))
    pair = DialectPair(dialect, lambda call: page)
    assert pair.send(call) == page
    assert pair.seen == [call]


@pytest.mark.parametrize(("dialect", "cluster"), [(V1, "c1"), (V3, "")], ids=["v1", "v3"])
def test_subscribers_arrive_as_they_were(dialect: Dialect, cluster: str) -> None:
    """v3 does not show the cluster."""
    one = Subscriber("10.0.0.9:5000", "Java", "app", "10.0.0.9", 5000, "public", "DEFAULT_GROUP@@orders", cluster)
    pair = DialectPair(dialect, lambda call: (one,))
    assert pair.send(Subscribers(KEY, 2, 10)) == (one,)
    assert pair.seen == [Subscribers(KEY, 2, 10)]


@pytest.mark.parametrize(
    ("dialect", "call"),
    [(d, call) for d in DIALECTS for call in (Metrics(False), Switches(), ServerState()) if d.can_send(call)],
    ids=lambda value: value.name if isinstance(value, Dialect) else type(value).__name__,
)
def test_objects_of_the_server_arrive_as_they_were(dialect: Dialect, call: Call[Any]) -> None:
    pair = DialectPair(dialect, lambda call: {"status": "UP", "any": [1]})
    assert pair.send(call) == {"status": "UP", "any": [1]}
    assert pair.seen == [call]


@pytest.mark.parametrize("dialect", [V1, V3], ids=["v1", "v3"])
def test_namespaces_arrive_as_they_were(dialect: Dialect) -> None:
    rows = ({"namespace": "public", "namespaceShowName": "public", "quota": 200},)
    assert DialectPair(dialect, lambda call: rows).send(Namespaces()) == rows
