"""v2: what 2.5.1 recorded comes out again, and calls make the round trip."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.calls import (
    BEAT_NOT_FOUND,
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
    Register,
    ServiceInfo,
    ServicePage,
    SetHealth,
    Switches,
    Update,
    UpdateService,
)
from nacos_proxy.model.errors import (
    BadCall,
    Malformed,
    Reason,
    Refused,
)
from nacos_proxy.model.services import (
    Instance,
    InstanceKey,
    ServiceKey,
    Snapshot,
)
from nacos_proxy.wire.http import HttpReply, HttpRequest, Pairs
from nacos_proxy.wire.nacos.base import (
    Operation,
    PushAddress,
    ReadInstance,
    ReadPage,
    ReadService,
    ServiceView,
)
from nacos_proxy.wire.nacos.v2 import V2
from tests.helpers.build import KEY, instance, snapshot
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
    answer_again,
    survives_reply,
    survives_request,
)
from tests.helpers.recordings import Row, comparable, load

ROWS = [row for row in load("nacos-2.5.1") if row.below.startswith("/v2/")]
HERE = {"serviceName": "orders", "ip": "10.0.0.1", "port": "80"}


def read(method: str, path: str, headers: dict[str, str] | None = None, **values: str) -> Any:
    operation = V2.match(method, path)
    assert operation is not None
    return operation.read_request(HttpRequest(method, path, tuple(values.items()), headers=headers or {}))


def wrong(method: str, path: str, **values: str) -> tuple[int, Any]:
    with pytest.raises(BadCall) as caught:
        read(method, path, **values)
    reply = V2.write_error(HttpRequest(method, path, tuple(values.items())), caught.value, 0)
    return reply.status, json.loads(reply.body)


# server role


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_what_2_5_1_answered_is_answered_again(row: Row) -> None:
    reply = answer_again(V2, row)
    assert (reply.status, reply.content_type) == (row.status, row.type)
    assert comparable(reply.body, loosely=True) == comparable(row.reply.body, loosely=True)


def test_a_list_names_the_push_address_ip_and_port_and_the_clusters_clustername() -> None:
    agent = {"user-agent": "Nacos-Java-Client:v1.4.6"}
    call = read("GET", "/v2/ns/instance/list", agent, serviceName="orders", clusterName="a,b", ip="10.0.0.9", port="9")
    assert call == ReadService(KEY, "a,b", False, PushAddress("10.0.0.9", 9, "Nacos-Java-Client:v1.4.6"))
    assert read("GET", "/v2/ns/instance/list", serviceName="orders", clusters="a", healthyOnly="1") == ReadService(
        KEY, "", True
    )


def test_a_name_with_its_group_is_taken_as_nacos_takes_it_only_where_it_wants_one() -> None:
    assert read("PUT", "/v2/ns/instance/beat", **{**HERE, "serviceName": "G@@orders"}).service.group == "G"
    status, body = wrong("PUT", "/v2/ns/instance/beat", **HERE)
    assert (status, body["code"]) == (400, 20002)
    patch = {**HERE, "serviceName": "G@@orders", "weight": "3", "enabled": "false", "metadata": "a=1"}
    assert read("PATCH", "/v2/ns/instance", **patch, cluster="c1") == Update(
        ServiceKey("public", "G", "orders"),
        "10.0.0.1",
        80,
        "c1",
        weight=3.0,
        enabled=False,
        metadata={"a": "1"},
        partial=True,
    )


@pytest.mark.parametrize("name", ["weight", "enabled", "metadata"])
def test_a_patch_wants_everything_named(name: str) -> None:
    given = {**HERE, "serviceName": "G@@orders", "weight": "3", "enabled": "false", "metadata": "a=1"}
    status, body = wrong("PATCH", "/v2/ns/instance", **{n: v for n, v in given.items() if n != name})
    assert (status, body["code"]) == (400, 10000)
    assert f"'{name}'" in body["data"]


def test_pages_have_their_bounds() -> None:
    assert read("GET", "/v2/ns/service/list") == ListServices("public", "DEFAULT_GROUP", 1, 20)
    assert read("GET", "/v2/ns/service/list", pageSize="9999", pageNo="2").size == 500


def test_statuses_stand_in_the_path() -> None:
    call = read("GET", "/v2/ns/instance/statuses/n%23%23g@@s")
    assert call == ReadService(ServiceKey("n", "g", "s"), everything=True)
    operation = V2.match("GET", "/v2/ns/instance/statuses/g@@s")
    assert operation is not None
    shown = snapshot(instance(), instance("10.0.0.2", healthy=False))
    reply = operation.write_reply(call, ServiceView(shown, shown.select()))
    assert (reply.content_type, reply.body) == ("application/json", b'{"ips":["10.0.0.1:80_true","10.0.0.2:80_false"]}')


def test_a_page_of_the_catalog_is_cut_out_of_those_that_fit() -> None:
    call = read("GET", "/v2/ns/catalog/instances", serviceName="orders", pageNo="2", pageSize="1", enabledOnly="true")
    assert call == ReadPage(KEY, everything=True, page=2, size=1, enabled=True)
    operation = V2.match("GET", "/v2/ns/catalog/instances")
    assert operation is not None
    shown = snapshot(*(instance(f"10.0.0.{n}", enabled=n != 1) for n in range(3)))
    data = json.loads(operation.write_reply(call, ServiceView(shown, shown.select())).body)["data"]
    assert ([host["ip"] for host in data["instances"]], data["count"]) == (["10.0.0.2"], 2)


def test_metrics_leave_out_what_v2_does_not_say() -> None:
    operation = V2.match("GET", "/v2/ns/operator/metrics")
    assert operation is not None
    reply = operation.write_reply(Metrics(False), {"status": "UP", "responsibleInstanceCount": 1, "cpu": None})
    assert json.loads(reply.body)["data"] == {"status": "UP"}


@given(st.sampled_from(V2.operations), ODD_PARAMETERS, st.booleans())
def test_no_request_is_too_odd(operation: Operation[Any, Any], parameters: Pairs, in_form: bool) -> None:
    survives_request(V2, operation, parameters, in_form)


# client role


@pytest.mark.parametrize("call", [call for call in CALLS if V2.can_ask(call)], ids=repr)
@given(ODD_REPLIES)
def test_no_reply_is_too_odd(call: Call[Any], reply: HttpReply) -> None:
    survives_reply(V2, call, reply)


@pytest.mark.parametrize("row", [r for r in load("nacos-3.0.3") if r.below.startswith("/v2/")], ids=str)
def test_what_3_0_has_no_more_is_gone(row: Row) -> None:
    with pytest.raises(Refused) as caught:
        V2.read_reply(Fetch(KEY), row.reply)
    assert caught.value.reason is Reason.GONE


@pytest.mark.parametrize("body", [b"", b"ok", b"{}", b'{"code":0,"data":"no"}', b'{"code":"0","data":"ok"}'])
def test_an_answer_that_is_not_ok_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        V2.read_reply(Register(KEY, instance()), HttpReply(200, "application/json", body))


# round trips


def none(_call: Any) -> None:
    return None


NAMED = METADATA.filter(bool)
EVERYTHING_NAMED = st.builds(
    Update, KEYS, IPS, PORTS, CLUSTERS, WEIGHTS, st.booleans(), NAMED, st.just(True), st.just(True)
)
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
WRITES = (
    st.builds(Register, KEYS, REGISTERED)
    | st.builds(Deregister, KEYS, IPS, PORTS, CLUSTERS, st.booleans())
    | PUTS
    | EVERYTHING_NAMED
    | st.builds(SetHealth, KEYS, IPS, PORTS, CLUSTERS, st.booleans())
    | st.builds(CreateService, KEYS, st.floats(0, 1), METADATA, st.sampled_from(["", '{"type":"none"}']), st.booleans())
    | st.builds(UpdateService, KEYS, st.floats(0, 1), METADATA, st.sampled_from(["", '{"type":"none"}']))
    | st.builds(DeleteService, KEYS)
)


@given(WRITES)
def test_a_write_arrives_as_it_was_sent(call: Call[None]) -> None:
    pair = DialectPair(V2, none)
    pair.send(call)
    assert pair.seen == [call]


@given(KEYS, REGISTERED, st.booleans(), st.sampled_from([BeatResult(), BeatResult(BEAT_NOT_FOUND, 1000)]))
def test_a_beat_and_its_answer_arrive_as_they_were_sent(
    service: ServiceKey, i: Instance, full: bool, answer: BeatResult
) -> None:
    beating = Instance(i.ip, i.port, i.cluster, i.weight, ephemeral=i.ephemeral, metadata=i.metadata)
    pair = DialectPair(V2, lambda call: answer)
    call = Beat(service, i.ip, i.port, i.cluster, i.ephemeral, beating if full else None)
    assert pair.send(call) == answer
    assert pair.seen == [call]


@given(KEYS, st.lists(st.builds(InstanceKey, IPS, PORTS, CLUSTERS), max_size=3), NAMED, st.booleans(), st.booleans())
def test_a_batch_and_its_answer_arrive_as_they_were_sent(
    service: ServiceKey, keys: list[InstanceKey], metadata: dict[str, str], remove: bool, ephemeral: bool
) -> None:
    pair = DialectPair(V2, lambda call: ("10.0.0.1:80:unknown:DEFAULT:ephemeral",))
    call = BatchMetadata(service, tuple(keys), metadata, remove, ephemeral)
    assert pair.send(call) == ("10.0.0.1:80:unknown:DEFAULT:ephemeral",)
    assert pair.seen == [call]


@given(SNAPSHOTS)
def test_a_service_comes_back_as_it_was(before: Snapshot) -> None:
    pair = DialectPair(V2, lambda call: ServiceView(before, before.select(call.cluster_set, call.healthy_only)))
    assert pair.send(Fetch(before.key)) == before
    assert pair.seen == [ReadService(before.key)]


@given(KEYS, LISTED)
def test_one_instance_comes_back_but_for_what_v2_does_not_say(service: ServiceKey, before: Instance) -> None:
    pair = DialectPair(V2, lambda call: before)
    after = pair.send(GetInstance(service, before.ip, before.port, before.cluster))
    assert (after.key, after.weight, after.healthy) == (before.key, before.weight, before.healthy)
    assert (after.metadata, after.instance_id, after.extra) == (before.metadata, before.instance_id, before.extra)
    assert pair.seen == [ReadInstance(service, before.ip, before.port, before.cluster)]


@given(KEYS, st.floats(0, 1), METADATA, st.lists(CLUSTERS, max_size=3, unique=True), st.booleans())
def test_a_services_own_data_come_back(
    key: ServiceKey, threshold: float, metadata: dict[str, str], clusters: list[str], ephemeral: bool
) -> None:
    info = ServiceInfo(key, threshold, metadata, {"type": "none", "contextType": "NONE"}, tuple(clusters), ephemeral)
    assert DialectPair(V2, lambda call: info).send(GetService(key)) == info


@given(st.builds(ListServices, NAMESPACES, GROUPS, st.integers(1, 99), st.integers(1, 500)))
def test_a_page_of_names_comes_back(call: ListServices) -> None:
    page = ServicePage(3, ("a", "b"))
    pair = DialectPair(V2, lambda call: page)
    assert pair.send(call) == page
    assert pair.seen == [call]


def test_objects_of_the_server_come_back_as_they_are() -> None:
    pair = DialectPair(V2, lambda call: {"status": "UP", "any": [1]})
    assert pair.send(Metrics(False)) == {"status": "UP", "any": [1]}
    assert pair.send(Switches()) == {"status": "UP", "any": [1]}
    assert pair.seen == [Metrics(False), Switches()]
