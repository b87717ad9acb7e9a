"""v3's instances: what 3.0.3 recorded comes out again, and calls make the round trip."""

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
    Deregister,
    DetailPage,
    Fetch,
    GetInstance,
    ListDetails,
    Register,
    ServiceDetail,
    ServiceInfo,
    Update,
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
from nacos_proxy.wire.nacos import v3
from nacos_proxy.wire.nacos.base import (
    Operation,
    ReadInstance,
    ReadService,
    ServiceView,
)
from nacos_proxy.wire.nacos.v3 import V3
from tests.helpers.build import KEY, instance, key, snapshot
from tests.helpers.pair import (
    CALLS,
    CLUSTERS,
    IPS,
    KEYS,
    LISTED,
    METADATA,
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

LISTS = "/v3/client/ns/instance/list"
ADMIN = "/v3/admin/ns/instance"
ROWS = [
    row
    for name in ("nacos-3.0.3", "v3-only", "modify", "protection", "auth")
    for row in load(name)
    if row.server != "nacos-2.5.1" and row.status != 410
    if row.below.startswith(("/v3/client/ns/", "/v3/admin/ns/instance")) and not row.below.endswith("/list")
]
HERE = {"serviceName": "orders", "ip": "10.0.0.1", "port": "80"}


def read(method: str, path: str, **values: str) -> Any:
    operation = V3.match(method, path)
    assert operation is not None
    return operation.read_request(HttpRequest(method, path, tuple(values.items())))


def write(method: str, path: str, call: Any, shown: Any) -> Any:
    operation = V3.match(method, path)
    assert operation is not None
    return json.loads(operation.write_reply(call, shown).body)


# server role


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_what_3_0_3_answered_is_answered_again(row: Row) -> None:
    reply = answer_again(V3, row)
    assert (reply.status, reply.content_type) == (row.status, row.type)
    assert comparable(reply.body, loosely=True) == comparable(row.reply.body, loosely=True)


def test_a_slash_at_the_end_is_another_path() -> None:
    assert V3.match("GET", LISTS) is not None
    assert V3.match("GET", f"{LISTS}/") is None and V3.owns(f"{LISTS}/")


def test_a_list_shows_the_cluster_default_where_none_is_named_and_ignores_healthy_only() -> None:
    assert read("GET", LISTS, serviceName="orders") == ReadService(KEY, "DEFAULT")
    assert read("GET", LISTS, serviceName="orders", clusterName="a,b", healthyOnly="true") == ReadService(KEY, "a,b")
    assert read("GET", LISTS, serviceName="orders", clusters="a") == ReadService(KEY, "DEFAULT")


def test_the_admin_list_shows_disabled_ones_and_raw_health_of_one_cluster() -> None:
    shown = snapshot(instance(enabled=False), instance("10.0.0.2", healthy=False), instance("10.0.0.3", cluster="c"))
    view = ServiceView(shown, shown.select())
    call = read("GET", f"{ADMIN}/list", serviceName="orders")
    assert [h["ip"] for h in write("GET", f"{ADMIN}/list", call, view)["data"]] == ["10.0.0.1", "10.0.0.2"]
    call = read("GET", f"{ADMIN}/list", serviceName="orders", healthyOnly="true")
    assert [h["ip"] for h in write("GET", f"{ADMIN}/list", call, view)["data"]] == ["10.0.0.1"]


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (snapshot(), "service DEFAULT_GROUP@@orders is not found!"),
        (snapshot(instance()), "cluster c9 is not found!"),
    ],
)
def test_the_admin_list_refuses_what_is_not_there(shown: Snapshot, text: str) -> None:
    call = read("GET", f"{ADMIN}/list", serviceName="orders", clusterName="c9")
    with pytest.raises(Refused) as caught:
        write("GET", f"{ADMIN}/list", call, ServiceView(shown, shown.select()))
    request = HttpRequest("GET", f"{ADMIN}/list")
    reply = V3.write_error(request, caught.value, 0)
    assert (reply.status, json.loads(reply.body)) == (404, {"code": 30000, "message": "server error", "data": text})


def test_a_partial_change_puts_weight_and_enabled_back_as_3_0_3_does() -> None:
    call = read("PUT", f"{ADMIN}/partial", **HERE, metadata="a=1")
    assert (call.partial, call.weight, call.enabled, call.metadata) == (True, 1.0, True, {"a": "1"})
    assert read("PUT", f"{ADMIN}/partial", **HERE, enabled="false").enabled is False


def test_a_beat_looks_neither_at_weight_nor_at_the_kind() -> None:
    path = "/v3/client/ns/instance"
    assert read("POST", path, **HERE, heartBeat="true", weight="-5") == Beat(KEY, "10.0.0.1", 80)
    with pytest.raises(BadCall):
        read("POST", path, **HERE, heartBeat="false", weight="-5")


@given(st.sampled_from(V3.operations), ODD_PARAMETERS, st.booleans())
def test_no_request_is_too_odd(operation: Operation[Any, Any], parameters: Pairs, in_form: bool) -> None:
    survives_request(V3, operation, parameters, in_form)


# client role


@pytest.mark.parametrize("row", [r for r in load("protection") if r.below == LISTS and r.status == 200], ids=str)
def test_the_hosts_of_a_list_are_understood(row: Row) -> None:
    hosts = v3.read_hosts(key(row.query["serviceName"]), row.reply).instances
    assert [(h.ip, h.healthy) for h in hosts] == [(h["ip"], h["healthy"]) for h in row.body["data"]]


@pytest.mark.parametrize("call", [call for call in CALLS if V3.can_ask(call)], ids=repr)
@given(ODD_REPLIES)
def test_no_reply_is_too_odd(call: Call[Any], reply: HttpReply) -> None:
    survives_reply(V3, call, reply)


def test_a_beat_to_the_unknown_is_no_refusal_a_registration_is() -> None:
    unknown = HttpReply(200, "application/json", b'{"code":21003,"message":"instance not found","data":null}')
    assert V3.read_reply(Beat(KEY, "10.0.0.1", 80), unknown) == BeatResult(BEAT_NOT_FOUND)
    with pytest.raises(Refused):
        V3.read_reply(Register(KEY, instance()), unknown)


def test_the_interval_of_a_beat_is_that_of_the_metadata() -> None:
    full = instance(metadata={"preserved.heart.beat.interval": "700"})
    ok = HttpReply(200, "application/json", b'{"code":0,"message":"success","data":"ok"}')
    assert V3.read_reply(Beat(KEY, "10.0.0.1", 80, full=full), ok) == BeatResult(interval=700)


def test_a_page_that_does_not_hold_all_that_is_named_alike_is_not_taken_for_an_empty_service() -> None:
    body = {"code": 0, "message": "success", "data": {"totalCount": 501, "pageItems": []}}
    with pytest.raises(Malformed):
        V3.read_reply(Fetch(KEY), HttpReply(200, "application/json", json.dumps(body).encode()))


def test_a_missing_right_is_one() -> None:
    row = next(r for r in load("auth") if r.status == 403 and "/v3/admin/ns" in r.path)
    with pytest.raises(Refused) as caught:
        V3.read_reply(Fetch(KEY), row.reply)
    assert caught.value.reason is Reason.NO_RIGHT


# round trips


def none(_call: Any) -> None:
    return None


NAMED = METADATA.filter(bool)
WRITES = (
    st.builds(Register, KEYS, REGISTERED)
    | st.builds(Deregister, KEYS, IPS, PORTS, CLUSTERS, st.booleans())
    | st.builds(
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
)


@given(WRITES)
def test_a_write_arrives_as_it_was_sent(call: Call[None]) -> None:
    pair = DialectPair(V3, none)
    pair.send(call)
    assert pair.seen == [call]


@given(KEYS, IPS, PORTS, CLUSTERS, st.sampled_from([BeatResult(), BeatResult(BEAT_NOT_FOUND)]))
def test_a_light_beat_and_its_answer_arrive_as_they_were_sent(
    service: ServiceKey, ip: str, port: int, cluster: str, answer: BeatResult
) -> None:
    pair, call = DialectPair(V3, lambda call: answer), Beat(service, ip, port, cluster)
    assert pair.send(call) == answer
    assert pair.seen == [call]


@given(KEYS, st.lists(st.builds(InstanceKey, IPS, PORTS, CLUSTERS), max_size=3), NAMED, st.booleans(), st.booleans())
def test_a_batch_and_its_answer_arrive_as_they_were_sent(
    service: ServiceKey, keys: list[InstanceKey], metadata: dict[str, str], remove: bool, ephemeral: bool
) -> None:
    pair = DialectPair(V3, lambda call: ("10.0.0.1:80:unknown:DEFAULT:ephemeral",))
    call = BatchMetadata(service, tuple(keys), metadata, remove, ephemeral)
    assert pair.send(call) == ("10.0.0.1:80:unknown:DEFAULT:ephemeral",)
    assert pair.seen == [call]


@given(KEYS, LISTED)
def test_one_instance_comes_back_as_it_was(service: ServiceKey, before: Instance) -> None:
    pair = DialectPair(V3, lambda call: before)
    after = pair.send(GetInstance(service, before.ip, before.port, before.cluster))
    shown = before.instance_id or f"{before.ip}#{before.port}#{before.cluster}#{service.grouped}"
    assert after.instance_id in (before.instance_id, shown)
    assert (after.key, after.weight, after.metadata, after.extra) == (
        before.key,
        before.weight,
        before.metadata,
        before.extra,
    )
    assert pair.seen == [ReadInstance(service, before.ip, before.port, before.cluster)]


@given(SNAPSHOTS)
def test_a_service_comes_back_from_a_page_of_those_named_alike(before: Snapshot) -> None:
    other = ServiceKey(before.key.namespace, before.key.group, before.key.name + "x")
    rows = [ServiceDetail(ServiceInfo(k), Snapshot.of(k, before.instances)) for k in (other, before.key)]

    def answer(call: Any) -> DetailPage:
        assert isinstance(call, ListDetails) and call.with_instances
        assert call.name_part in before.key.name and call.group_part == before.key.group
        return DetailPage(2, tuple(rows))

    after = DialectPair(V3, answer).send(Fetch(before.key))
    assert {i.key for i in after.instances} == {i.key for i in before.instances}
    assert after.key == before.key
