"""v1's instances: what 2.5.1 recorded comes out again, any server is understood, calls make the round trip."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.calls import (
    DeleteService,
    Deregister,
    DetailPage,
    ListDetails,
    ListServices,
    ServiceDetail,
    ServiceInfo,
    ServiceNames,
    ServicePage,
    SetHealth,
    Update,
    UpdateService,
)
from nacos_proxy.model.errors import BadCall, Garbled, Malformed, Reason, Refused, Violation
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos import v1
from nacos_proxy.wire.nacos.base import PushAddress, ReadInstance, ReadPage, ReadService, ServiceView
from nacos_proxy.wire.nacos.hosts import list_json
from nacos_proxy.wire.nacos.v1 import V1
from tests.helpers.build import KEY, instance, key, snapshot
from tests.helpers.pair import GROUPS, NAMES, NAMESPACES, DialectPair, answer_again, asked_by
from tests.helpers.recordings import Row, comparable, load

SERVICE = "/v1/ns/service"
CATALOG = "/v1/ns/catalog"
# The text of Jackson's parser is the one thing that is not made again (docs/compatibility.md).
DIFFERENT = {"v1 beat, bad json"}
ROWS = [
    row
    for name in ("nacos-2.5.1", "modify", "protection", "auth")
    for row in load(name)
    if row.server == "nacos-2.5.1" and row.case not in DIFFERENT
    if row.below.startswith(("/v1/ns/instance", "/v1/ns/service", "/v1/ns/operator", "/v1/ns/health", "/v1/console"))
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
def test_v1_answers_as_2_5_1_was_recorded(row: Row) -> None:
    reply = answer_again(V1, row)
    assert (reply.status, reply.content_type) == (row.status, row.type)
    assert comparable(reply.body) == comparable(row.reply.body)


def test_v1_beat_that_is_not_json_is_answered_in_the_recorded_shape() -> None:
    (row,) = [row for row in load("nacos-2.5.1") if row.case in DIFFERENT]
    reply = answer_again(V1, row)
    said, recorded = json.loads(reply.body), row.body
    assert (reply.status, list(said)) == (row.status, list(recorded))
    start = "Server failed, caused: errCode: 101, errMsg: Nacos deserialize for class ["
    assert said["message"].startswith(start) and recorded["message"].startswith(start)


def test_v1_unknown_answers_501() -> None:
    for row in load("nacos-2.5.1"):
        if row.status == 501:
            assert V1.match(row.method, row.below) is None and V1.owns(row.below)
            assert V1.unknown(row.request, row.now_ms) == row.reply


def test_v1_match_ignores_a_slash_at_the_end() -> None:
    assert V1.match("GET", "/v1/ns/instance/list/") is V1.match("GET", "/v1/ns/instance/list")


def test_v1_list_reads_its_filters_and_its_push_address() -> None:
    headers = {"user-agent": "Nacos-Java-Client:v1.4.6"}
    query = (("serviceName", "g@@s"), ("clusters", "c1,c2"), ("healthyOnly", "TRUE"), ("clientIP", "10.0.0.9"))
    request = HttpRequest("GET", "/v1/ns/instance/list", (*query, ("udpPort", "5000")), headers=headers)
    operation = V1.match("GET", "/v1/ns/instance/list")
    assert operation is not None
    push = PushAddress("10.0.0.9", 5000, "Nacos-Java-Client:v1.4.6")
    assert operation.read_request(request) == ReadService(key("s", "g"), "c1,c2", True, push)


def test_v1_list_shows_instance_ids_whatever_the_source() -> None:
    shown = snapshot(instance(), instance("10.0.0.2", instance_id="7#DEFAULT#g@@s"))
    operation = V1.match("GET", "/v1/ns/instance/list")
    assert operation is not None
    reply = operation.write_reply(ReadService(KEY), ServiceView(shown, shown.select()))
    ids = [host["instanceId"] for host in json.loads(reply.body)["hosts"]]
    assert ids == ["10.0.0.1#80#DEFAULT#DEFAULT_GROUP@@orders", "7#DEFAULT#g@@s"]


def test_v1_get_instance_reads_its_cluster_from_cluster_name_only() -> None:
    here = {"serviceName": "orders", "ip": "10.0.0.1", "port": "80"}
    assert read("GET", "/v1/ns/instance", **here, cluster="c1") == ReadInstance(KEY, "10.0.0.1", 80, "DEFAULT")
    assert read("GET", "/v1/ns/instance", **here, clusterName="c1").cluster == "c1"
    assert read("POST", "/v1/ns/instance", **here, cluster="c1").instance.cluster == "c1"


def test_v1_put_is_a_full_update_and_patch_a_partial_one() -> None:
    here = {"serviceName": "orders", "ip": "10.0.0.1", "port": "80"}
    assert read("PUT", "/v1/ns/instance", **here) == Update(KEY, "10.0.0.1", 80)
    named = read("PUT", "/v1/ns/instance", **here, weight="5", enable="false", metadata="a=1")
    assert named == Update(KEY, "10.0.0.1", 80, weight=5.0, enabled=False, metadata={"a": "1"})
    patch = read("PATCH", "/v1/ns/instance", **here, weight="99999", enable="false", healthy="false")
    assert patch == Update(KEY, "10.0.0.1", 80, weight=99999.0, partial=True)


NO_CLUSTER = "Instance 'clusterName' should be characters with only 0-9a-zA-Z-."


def test_v1_accepts_a_cluster_called_none() -> None:
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
def test_v1_controllers_refuse_in_plain_text(method: str, values: dict[str, str], status: int, body: str) -> None:
    reply = wrong(method, "/v1/ns/instance", serviceName="orders", ip="10.0.0.1", port="80", **values)
    assert (reply.status, reply.content_type, reply.body.decode()) == (status, "text/plain;charset=UTF-8", body)


def test_v1_deregister_accepts_a_cluster_that_register_refuses() -> None:
    call = read("DELETE", "/v1/ns/instance", serviceName="orders", ip="10.0.0.1", port="80", clusterName="a_b")
    assert call == Deregister(KEY, "10.0.0.1", 80, "a_b")


def test_v1_statuses_read_their_key_from_a_parameter() -> None:
    call = read("POST", "/v1/ns/instance/statuses", key="n##g@@s")
    assert call == ReadService(ServiceKey("n", "g", "s"), everything=True)
    assert wrong("GET", "/v1/ns/instance/statuses").body == b"Parameter 'key' is missing"
    operation = V1.match("GET", "/v1/ns/instance/statuses")
    assert operation is not None
    shown = snapshot(instance())
    assert operation.write_reply(call, ServiceView(shown, shown.select())).body == b'{"ips":["10.0.0.1:80_true"]}'


# client role


@pytest.mark.parametrize("row", [r for r in load("r-nacos-0.8.8") if r.below.startswith("/v1/ns/instance")], ids=str)
def test_v1_reads_every_answer_of_r_nacos_about_instances(row: Row) -> None:
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
def test_v1_shows_the_list_of_any_server_with_the_fields_of_2_5_1(name: str) -> None:
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
def test_v1_read_reply_raises_refused_with_the_reason(name: str, case: str, reason: Reason, text: str | None) -> None:
    row = next(row for row in load(name) if row.case == case)
    operation = V1.match(row.method, row.below)
    assert operation is not None
    with pytest.raises(Refused) as caught:
        V1.read_reply(asked_by(operation.read_request(row.request)), row.reply)
    assert caught.value.reason is reason
    assert text is None or caught.value.text == text


def test_v1_read_list_tells_masked_health_and_healthy_only_shows_the_true_one() -> None:
    rows = {row.case: row for row in load("protection") if row.server == "nacos-2.5.1"}
    asked = key(rows["protection: list all"].query["serviceName"])
    shown = v1.read_list(asked, rows["protection: list all"].reply)
    truth = v1.read_list(asked, rows["protection: list all healthyOnly"].reply)
    assert shown.protected and not truth.protected
    assert all(i.healthy for i in shown.snapshot.instances)
    assert len(truth.snapshot.instances) == 3 and len(shown.snapshot.instances) == 6
    assert v1.write_list(KEY, healthy_only=True).parameters["healthyOnly"] == "true"


def test_v1_write_that_is_not_answered_ok_is_malformed() -> None:
    for body in (b"", b"nope", b"{}"):
        with pytest.raises(Malformed):
            V1.read_reply(Deregister(KEY, "10.0.0.1", 80), HttpReply(200, None, body))
    V1.read_reply(Deregister(KEY, "10.0.0.1", 80), HttpReply(200, "application/json", b'"ok"'))


# errors


def test_v1_write_error_answers_garbled_with_502_in_plain_text() -> None:
    reply = V1.write_error(HttpRequest("GET", "/v1/ns/instance"), Garbled("not HTTP"), 0)
    assert (reply.status, reply.content_type, reply.body) == (502, "text/plain;charset=UTF-8", b"not HTTP")


def test_v1_write_error_of_the_whole_body_names_no_parameter() -> None:
    reply = V1.write_error(
        HttpRequest("POST", "/v1/ns/instance"), BadCall("", Violation.BODY, "too long", status=413), 0
    )
    assert (reply.status, reply.body) == (413, b"too long")


# services, health, operator, catalog


def refused(method: str, path: str, **values: str) -> tuple[int, str]:
    with pytest.raises(BadCall) as caught:
        read(method, path, **values)
    reply = V1.write_error(HttpRequest(method, path, tuple(values.items())), caught.value, 0)
    return reply.status, reply.body.decode()


def written(method: str, path: str, call: Any, shown: Any) -> Any:
    operation = V1.match(method, path)
    assert operation is not None
    return json.loads(operation.write_reply(call, shown).body)


@pytest.mark.parametrize(
    ("method", "path", "values", "text"),
    [
        ("GET", SERVICE, {}, "Parameter 'serviceName' is missing"),
        ("POST", SERVICE, {}, "Parameter 'serviceName' is missing"),
        ("DELETE", SERVICE, {}, "Parameter 'serviceName' is missing"),
        ("PUT", SERVICE, {}, "Param 'serviceName' is required."),
        ("PUT", SERVICE, {"serviceName": "s"}, "Param 'protectThreshold' is required."),
        ("POST", SERVICE, {"serviceName": "s", "selector": "{"}, "not match any type of selector!"),
        ("GET", f"{SERVICE}/list", {}, "Param 'pageNo' is required."),
        ("GET", f"{SERVICE}/list", {"pageNo": "1"}, "Param 'pageSize' is required."),
        ("GET", f"{SERVICE}/subscribers", {}, "Param 'serviceName' is required."),
        ("PUT", "/v1/ns/health/instance", {}, "Param 'healthy' is required."),
        ("GET", f"{CATALOG}/instances", {"serviceName": "s"}, "Parameter 'clusterName' is missing"),
    ],
)
def test_v1_service_calls_name_what_is_missing_with_the_recorded_message(
    method: str, path: str, values: dict[str, str], text: str
) -> None:
    assert refused(method, path, **values) == (400, text)


def test_v1_list_services_reads_page_numbers_that_are_none_as_0() -> None:
    call = read("GET", f"{SERVICE}/list", pageNo="x", pageSize="y")
    assert call == ListServices("public", "DEFAULT_GROUP", 0, 0)
    assert read("PUT", SERVICE, serviceName="orders", protectThreshold="x") == UpdateService(KEY)


def test_v1_set_health_has_another_parameter_and_another_path() -> None:
    here = {"serviceName": "orders", "ip": "10.0.0.1", "port": "80"}
    assert read("PUT", "/v1/ns/health", **here, valid="true") == SetHealth(KEY, "10.0.0.1", 80, "DEFAULT", True)
    assert read("PUT", "/v1/ns/health/instance", **here, healthy="no").healthy is False


def test_v1_catalog_shows_counts_or_instances() -> None:
    row = ServiceDetail(ServiceInfo(KEY, metadata={"a": "1"}), Snapshot.of(KEY, [instance(weight=2.0)]))
    call = read("GET", f"{CATALOG}/services", pageNo="1", pageSize="10", withInstances="true")
    (shown,) = written("GET", f"{CATALOG}/services", call, DetailPage(1, (row,)))
    assert shown["metadata"] == {"a": "1"}
    assert shown["clusterMap"]["DEFAULT"]["hosts"] == [
        {"valid": True, "metadata": {}, "port": 80, "ip": "10.0.0.1", "weight": 2.0, "enabled": True}
    ]
    call = read("GET", f"{CATALOG}/services", pageNo="1", pageSize="10", hasIpCount="true", serviceNameParam="or")
    assert call == ListDetails("public", "or", "", 1, 10, True, False)
    shown = written("GET", f"{CATALOG}/services", call, DetailPage(1, (row,)))
    assert (shown["count"], shown["serviceList"][0]["ipCount"]) == (1, 1)


def test_v1_catalog_instances_show_one_cluster_with_disabled_instances() -> None:
    named = {"serviceName": "orders", "clusterName": "c1", "pageNo": "2", "pageSize": "1"}
    call = read("GET", f"{CATALOG}/instances", **named)
    assert call == ReadPage(KEY, "c1", everything=True, page=2, size=1)
    hosts = [instance(f"10.0.0.{n}", cluster="c1", enabled=n == 1) for n in range(3)]
    shown = snapshot(*hosts, instance("10.0.0.9"))
    page = written("GET", f"{CATALOG}/instances", call, ServiceView(shown, shown.select()))
    assert ([host["ip"] for host in page["list"]], page["count"]) == (["10.0.0.1"], 3)
    for gone, text in ((snapshot(), "service DEFAULT_GROUP@@orders"), (snapshot(instance()), "cluster c1")):
        with pytest.raises(Refused, match=f"{text} is not found!"):
            written("GET", f"{CATALOG}/instances", call, ServiceView(gone, gone.select()))


# client role


@pytest.mark.parametrize("row", [r for r in load("r-nacos-0.8.8") if r.below.startswith("/v1/ns/service")], ids=str)
def test_v1_reads_every_answer_of_r_nacos_about_services(row: Row) -> None:
    operation = V1.match(row.method, row.below)
    if operation is None:
        return
    try:
        call = operation.read_request(row.request)
    except BadCall:
        return  # a client of ours never gets so far
    if row.status == 200:
        V1.read_reply(call, row.reply)
    else:
        with pytest.raises(Refused):
            V1.read_reply(call, row.reply)


def test_v1_delete_service_refused_by_r_nacos_has_the_message_of_nacos() -> None:
    said = HttpReply(500, None, b"the service has instances, can't delete")
    with pytest.raises(Refused, match="is not empty, can't be delete") as caught:
        V1.read_reply(DeleteService(KEY), said)
    assert (caught.value.status, caught.value.reason) == (400, Reason.SERVICE_NOT_EMPTY)


def test_v1_service_names_of_1_x_belong_to_the_default_group() -> None:
    reply = HttpReply(200, "application/json", b'{"services":{"public":["a","G@@b"]},"count":1}')
    assert V1.read_reply(ServiceNames(), reply) == {"public": ("DEFAULT_GROUP@@a", "G@@b")}


def test_v1_list_services_reads_the_page_of_1_x_and_refuses_nonsense() -> None:
    page = HttpReply(200, None, b'{"doms":["a"],"count":1}')
    assert V1.read_reply(ListServices("public", "G"), page) == ServicePage(1, ("a",))
    for body in (b"ok", b"[]", b'{"count":"x","doms":[]}', b'{"count":1,"doms":[1]}'):
        with pytest.raises(Malformed):
            V1.read_reply(ListServices("public", "G"), HttpReply(200, None, body))


@given(st.dictionaries(NAMESPACES, st.lists(st.builds("{}@@{}".format, GROUPS, NAMES), max_size=3).map(tuple)))
def test_v1_service_names_arrive_as_they_were(names: dict[str, tuple[str, ...]]) -> None:
    pair = DialectPair(V1, lambda call: names)
    assert pair.send(ServiceNames("n")) == names
    assert pair.seen == [ServiceNames("n")]
