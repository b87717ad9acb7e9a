"""v1's instances: what 2.5.1 recorded comes out again, any server is understood, calls make the round trip."""

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
    Fetch,
    GetInstance,
    Register,
    Update,
)
from nacos_proxy.model.errors import (
    BadCall,
    Garbled,
    Malformed,
    Reason,
    Refused,
    Violation,
)
from nacos_proxy.model.services import (
    Instance,
    InstanceKey,
    ServiceKey,
    Snapshot,
)
from nacos_proxy.wire.http import HttpReply, HttpRequest, Pairs
from nacos_proxy.wire.nacos import v1
from nacos_proxy.wire.nacos.base import (
    Operation,
    PushAddress,
    ReadInstance,
    ReadService,
    ServiceView,
)
from nacos_proxy.wire.nacos.hosts import list_json
from nacos_proxy.wire.nacos.v1 import V1
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
    asked_by,
    survives_reply,
    survives_request,
)
from tests.helpers.recordings import Row, comparable, load

# The text of Jackson's parser is the one thing that is not made again (docs/compatibility.md).
DIFFERENT = {"v1 beat, bad json"}
ROWS = [
    row
    for name in ("nacos-2.5.1", "modify", "protection", "auth")
    for row in load(name)
    if row.server == "nacos-2.5.1" and row.below.startswith("/v1/ns/instance") and row.case not in DIFFERENT
]


def read(method: str, path: str, **values: str) -> Any:
    operation = V1.match(method, path)
    assert operation is not None
    return operation.read_request(HttpRequest(method, path, tuple(values.items())))


def wrong(method: str, path: str, **values: str) -> HttpReply:
    request = HttpRequest(method, path, tuple(values.items()))
    with pytest.raises(BadCall) as caught:
        read(method, path, **values)
    return V1.write_error(request, caught.value, 0)


# server role


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_what_2_5_1_answered_is_answered_again(row: Row) -> None:
    reply = answer_again(V1, row)
    assert (reply.status, reply.content_type) == (row.status, row.type)
    assert comparable(reply.body) == comparable(row.reply.body)


def test_a_beat_that_is_no_json_is_answered_in_the_same_shape() -> None:
    (row,) = [row for row in load("nacos-2.5.1") if row.case in DIFFERENT]
    reply = answer_again(V1, row)
    said, recorded = json.loads(reply.body), row.body
    assert (reply.status, list(said)) == (row.status, list(recorded))
    start = "Server failed, caused: errCode: 101, errMsg: Nacos deserialize for class ["
    assert said["message"].startswith(start) and recorded["message"].startswith(start)


def test_unknown_paths_and_methods_are_501() -> None:
    for row in load("nacos-2.5.1"):
        if row.status == 501:
            assert V1.match(row.method, row.below) is None and V1.owns(row.below)
            assert V1.unknown(row.request, row.now_ms) == row.reply


def test_a_slash_at_the_end_is_ignored() -> None:
    assert V1.match("GET", "/v1/ns/instance/list/") is V1.match("GET", "/v1/ns/instance/list")


def test_a_list_is_read_with_its_filters_and_its_push_address() -> None:
    headers = {"user-agent": "Nacos-Java-Client:v1.4.6"}
    query = (("serviceName", "g@@s"), ("clusters", "c1,c2"), ("healthyOnly", "TRUE"), ("clientIP", "10.0.0.9"))
    request = HttpRequest("GET", "/v1/ns/instance/list", (*query, ("udpPort", "5000")), headers=headers)
    operation = V1.match("GET", "/v1/ns/instance/list")
    assert operation is not None
    push = PushAddress("10.0.0.9", 5000, "Nacos-Java-Client:v1.4.6")
    assert operation.read_request(request) == ReadService(key("s", "g"), "c1,c2", True, push)


def test_a_list_always_has_instance_ids_whatever_the_source() -> None:
    shown = snapshot(instance(), instance("10.0.0.2", instance_id="7#DEFAULT#g@@s"))
    operation = V1.match("GET", "/v1/ns/instance/list")
    assert operation is not None
    reply = operation.write_reply(ReadService(KEY), ServiceView(shown, shown.select()))
    ids = [host["instanceId"] for host in json.loads(reply.body)["hosts"]]
    assert ids == ["10.0.0.1#80#DEFAULT#DEFAULT_GROUP@@orders", "7#DEFAULT#g@@s"]


def test_the_cluster_of_one_instance_is_called_clustername_alone() -> None:
    here = {"serviceName": "orders", "ip": "10.0.0.1", "port": "80"}
    assert read("GET", "/v1/ns/instance", **here, cluster="c1") == ReadInstance(KEY, "10.0.0.1", 80, "DEFAULT")
    assert read("GET", "/v1/ns/instance", **here, clusterName="c1").cluster == "c1"
    assert read("POST", "/v1/ns/instance", **here, cluster="c1").instance.cluster == "c1"


def test_put_names_what_was_named_and_replaces_patch_changes_only_that() -> None:
    here = {"serviceName": "orders", "ip": "10.0.0.1", "port": "80"}
    assert read("PUT", "/v1/ns/instance", **here) == Update(KEY, "10.0.0.1", 80)
    named = read("PUT", "/v1/ns/instance", **here, weight="5", enable="false", metadata="a=1")
    assert named == Update(KEY, "10.0.0.1", 80, weight=5.0, enabled=False, metadata={"a": "1"})
    patch = read("PATCH", "/v1/ns/instance", **here, weight="99999", enable="false", healthy="false")
    assert patch == Update(KEY, "10.0.0.1", 80, weight=99999.0, partial=True)


NO_CLUSTER = "Instance 'clusterName' should be characters with only 0-9a-zA-Z-."


def test_a_cluster_called_none_is_one() -> None:
    call = read("POST", "/v1/ns/instance", serviceName="orders", ip="10.0.0.1", port="80", clusterName="None")
    assert call.instance.cluster == "None"


@pytest.mark.parametrize(
    ("method", "values", "status", "body"),
    [
        (
            "POST",
            {"clusterName": "a_b"},
            400,
            "Instance 'clusterName' should be characters with only 0-9a-zA-Z-. (current: a_b)",
        ),
        (
            "PUT",
            {"clusterName": "a_b"},
            400,
            "Instance 'clusterName' should be characters with only 0-9a-zA-Z-. (current: a_b)",
        ),
        ("DELETE", {"weight": "-1"}, 400, "instance format invalid: The weights range from 0.0 to 10000.0"),
        ("PATCH", {"weight": "NaN"}, 400, "instance format invalid: The weights range from 0.0 to 10000.0"),
        ("PATCH", {"weight": "x"}, 400, 'For input string: "x"'),
        (
            "POST",
            {"metadata": "preserved.heart.beat.timeout=1"},
            400,
            "Instance 'heart beat interval' must less than 'heart beat timeout' and 'ip delete timeout'.",
        ),
        (
            "POST",
            {"metadata": "preserved.instance.id.generator=odd"},
            500,
            "caused: The InstanceIdGenerator type is not found ;",
        ),
    ],
)
def test_what_a_controller_refuses_it_says_in_plain_text(
    method: str, values: dict[str, str], status: int, body: str
) -> None:
    reply = wrong(method, "/v1/ns/instance", serviceName="orders", ip="10.0.0.1", port="80", **values)
    assert (reply.status, reply.content_type, reply.body.decode()) == (status, "text/plain;charset=UTF-8", body)


def test_deregistering_from_a_cluster_that_nobody_could_register_in_is_fine() -> None:
    call = read("DELETE", "/v1/ns/instance", serviceName="orders", ip="10.0.0.1", port="80", clusterName="a_b")
    assert call == Deregister(KEY, "10.0.0.1", 80, "a_b")


def test_statuses_take_their_key_as_a_parameter() -> None:
    call = read("POST", "/v1/ns/instance/statuses", key="n##g@@s")
    assert call == ReadService(ServiceKey("n", "g", "s"), everything=True)
    assert wrong("GET", "/v1/ns/instance/statuses").body == b"Parameter 'key' is missing"
    operation = V1.match("GET", "/v1/ns/instance/statuses")
    assert operation is not None
    shown = snapshot(instance())
    assert operation.write_reply(call, ServiceView(shown, shown.select())).body == b'{"ips":["10.0.0.1:80_true"]}'


@given(st.sampled_from(V1.operations), ODD_PARAMETERS, st.booleans())
def test_no_request_is_too_odd(operation: Operation[Any, Any], parameters: Pairs, in_form: bool) -> None:
    survives_request(V1, operation, parameters, in_form)


# client role


@pytest.mark.parametrize("row", [r for r in load("r-nacos-0.8.8") if r.below.startswith("/v1/ns/instance")], ids=str)
def test_every_answer_of_r_nacos_is_understood(row: Row) -> None:
    operation = V1.match(row.method, row.below)
    if operation is None:
        return
    try:
        call = operation.read_request(row.request)
    except BadCall:
        return  # a client of ours never gets so far
    if row.status == 200:
        V1.read_reply(asked_by(call), row.reply)
    else:
        with pytest.raises(Refused):
            V1.read_reply(asked_by(call), row.reply)


@pytest.mark.parametrize("name", ["r-nacos-0.8.8", "nacos-3.0.3"])
def test_a_list_of_any_server_is_shown_with_the_fields_of_2_5_1(name: str) -> None:
    rows = [r for r in load(name) if r.below == "/v1/ns/instance/list" and r.status == 200 and r.method == "GET"]
    (model,) = [r for r in load("nacos-2.5.1") if r.case == "v1 list a second later"]
    assert len(rows) > 15
    for row in rows:
        shown = v1.read_list(ServiceKey.of(row.body["name"]), row.reply).snapshot
        answer = list_json(ServiceView(shown, shown.select()), row.query.get("clusters", ""))
        assert list(answer) == list(model.body)
        assert [answer[name] for name in ("name", "clusters")] == [row.body[name] for name in ("name", "clusters")]
        for host in answer["hosts"]:
            assert list(host)[:13] == list(model.body["hosts"][0])[:13]


@pytest.mark.parametrize(
    ("name", "case", "reason", "text"),
    [
        ("r-nacos-0.8.8", "v1 get unknown instance", Reason.INSTANCE_NOT_FOUND, "no matched ip found!"),
        ("r-nacos-0.8.8", "v1 metadata batch put", Reason.GONE, "BatchMetadata: 404 Not Found"),
        ("nacos-2.5.1", "v1 get unknown instance", Reason.INSTANCE_NOT_FOUND, "no matched ip found!"),
        ("nacos-2.5.1", "v1 get of unknown service", Reason.NO_INSTANCES, None),
        ("nacos-2.5.1", "v1 put on unknown service", Reason.SERVICE_NOT_FOUND, None),
        ("nacos-2.5.1", "v1 register ephemeral in a persistent service", Reason.WRONG_KIND, None),
        ("nacos-3.0.3", "v1 modify", Reason.GONE, None),
        ("v3-only", "v3 only: v1 register", Reason.GONE, None),
        ("auth", "auth on: v1 list, no token", Reason.NO_RIGHT, None),
    ],
)
def test_refusals_have_their_reason(name: str, case: str, reason: Reason, text: str | None) -> None:
    row = next(row for row in load(name) if row.case == case)
    operation = V1.match(row.method, row.below)
    assert operation is not None
    with pytest.raises(Refused) as caught:
        V1.read_reply(asked_by(operation.read_request(row.request)), row.reply)
    assert caught.value.reason is reason
    assert text is None or caught.value.text == text


def test_a_masked_list_says_so_and_the_second_look_shows_the_truth() -> None:
    rows = {row.case: row for row in load("protection") if row.server == "nacos-2.5.1"}
    asked = key(rows["protection: list all"].query["serviceName"])
    shown = v1.read_list(asked, rows["protection: list all"].reply)
    truth = v1.read_list(asked, rows["protection: list all healthyOnly"].reply)
    assert shown.protected and not truth.protected
    assert all(i.healthy for i in shown.snapshot.instances)
    assert len(truth.snapshot.instances) == 3 and len(shown.snapshot.instances) == 6
    assert v1.write_list(KEY, healthy_only=True).parameters["healthyOnly"] == "true"


def test_an_answer_that_is_not_ok_is_malformed() -> None:
    for body in (b"", b"nope", b"{}"):
        with pytest.raises(Malformed):
            V1.read_reply(Deregister(KEY, "10.0.0.1", 80), HttpReply(200, None, body))
    V1.read_reply(Deregister(KEY, "10.0.0.1", 80), HttpReply(200, "application/json", b'"ok"'))


@pytest.mark.parametrize("call", [call for call in CALLS if V1.can_ask(call)], ids=repr)
@given(ODD_REPLIES)
def test_no_reply_is_too_odd(call: Call[Any], reply: HttpReply) -> None:
    survives_reply(V1, call, reply)


# round trips


def none(_call: Any) -> None:
    return None


@given(KEYS, REGISTERED)
def test_a_registration_arrives_as_it_was_sent(service: ServiceKey, registered: Instance) -> None:
    pair, call = DialectPair(V1, none), Register(service, registered)
    pair.send(call)
    assert pair.seen == [call]


@given(st.builds(Deregister, KEYS, IPS, PORTS, CLUSTERS, st.booleans()))
def test_a_deregistration_arrives_as_it_was_sent(call: Deregister) -> None:
    pair = DialectPair(V1, none)
    pair.send(call)
    assert pair.seen == [call]


NAMED = METADATA.filter(bool)
UPDATES = st.builds(
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


@given(UPDATES)
def test_an_update_arrives_as_it_was_sent(call: Update) -> None:
    pair = DialectPair(V1, none)
    pair.send(call)
    assert pair.seen == [call]


@given(KEYS, REGISTERED, st.booleans(), st.sampled_from([BeatResult(), BeatResult(BEAT_NOT_FOUND, 1000)]))
def test_a_beat_and_its_answer_arrive_as_they_were_sent(
    service: ServiceKey, i: Instance, full: bool, answer: BeatResult
) -> None:
    beating = Instance(i.ip, i.port, i.cluster, i.weight, ephemeral=i.ephemeral, metadata=i.metadata)
    pair = DialectPair(V1, lambda call: answer)
    call = Beat(service, i.ip, i.port, i.cluster, i.ephemeral, beating if full else None)
    assert pair.send(call) == answer
    assert pair.seen == [call]


@given(KEYS, st.lists(st.builds(InstanceKey, IPS, PORTS, CLUSTERS), max_size=3), NAMED, st.booleans(), st.booleans())
def test_a_batch_and_its_answer_arrive_as_they_were_sent(
    service: ServiceKey, keys: list[InstanceKey], metadata: dict[str, str], remove: bool, ephemeral: bool
) -> None:
    pair = DialectPair(V1, lambda call: ("10.0.0.1:80:unknown:DEFAULT:ephemeral",))
    call = BatchMetadata(service, tuple(keys), metadata, remove, ephemeral)
    assert pair.send(call) == ("10.0.0.1:80:unknown:DEFAULT:ephemeral",)
    assert pair.seen == [call]


@given(SNAPSHOTS)
def test_a_service_comes_back_as_it_was(before: Snapshot) -> None:
    pair = DialectPair(V1, lambda call: ServiceView(before, before.select(call.cluster_set, call.healthy_only)))
    assert pair.send(Fetch(before.key)) == before
    assert pair.seen == [ReadService(before.key)]


@given(KEYS, LISTED)
def test_one_instance_comes_back_but_for_what_v1_does_not_say(service: ServiceKey, before: Instance) -> None:
    pair = DialectPair(V1, lambda call: before)
    after = pair.send(GetInstance(service, before.ip, before.port, before.cluster))
    assert after == Instance(
        before.ip,
        before.port,
        before.cluster,
        before.weight,
        before.healthy,
        metadata=before.metadata,
        instance_id=before.instance_id,
        extra=before.extra,
    )
    assert pair.seen == [ReadInstance(service, before.ip, before.port, before.cluster)]


def test_an_upstream_that_makes_no_sense_is_a_502_in_plain_text() -> None:
    reply = V1.write_error(HttpRequest("GET", "/v1/ns/instance"), Garbled("not HTTP"), 0)
    assert (reply.status, reply.content_type, reply.body) == (502, "text/plain;charset=UTF-8", b"not HTTP")


def test_a_problem_of_the_whole_body_has_no_parameter() -> None:
    reply = V1.write_error(
        HttpRequest("POST", "/v1/ns/instance"), BadCall("", Violation.BODY, "too long", status=413), 0
    )
    assert (reply.status, reply.body) == (413, b"too long")
