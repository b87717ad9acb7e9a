"""v3's instances: what 3.0.3 recorded comes out again, and calls make the round trip."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.calls import (
    BEAT_NOT_FOUND,
    Beat,
    BeatResult,
    DetailPage,
    Fetch,
    ListDetails,
    ListServices,
    Register,
    ServiceDetail,
    ServiceInfo,
    ServicePage,
)
from nacos_proxy.model.errors import BadCall, Malformed, Misplaced, Reason, Refused, Unreachable
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos import v3
from nacos_proxy.wire.nacos.base import ReadService, ServiceView
from nacos_proxy.wire.nacos.v3 import V3, details_of, find
from tests.helpers.build import KEY, instance, key, snapshot
from tests.helpers.pair import CLUSTERS, IPS, KEYS, PORTS, SNAPSHOTS, DialectPair, answer_again
from tests.helpers.recordings import Row, comparable, load

LIST = "/v3/admin/ns/service/list"
READY = "/v3/admin/core/state/readiness"
LISTS = "/v3/client/ns/instance/list"
ADMIN = "/v3/admin/ns/instance"
ROWS = [
    row
    for name in ("nacos-3.0.3", "v3-only", "modify", "protection", "auth")
    for row in load(name)
    if row.server != "nacos-2.5.1" and row.status != 410
    if row.below.startswith(("/v3/client/ns/", "/v3/admin/ns/instance")) and not row.below.endswith("/list")
]
SERVICE_ROWS = [
    row
    for name in ("nacos-3.0.3", "v3-only")
    for row in load(name)
    if row.below.startswith(("/v3/admin/ns/service", "/v3/admin/ns/ops", "/v3/admin/core", "/v3/admin/ns/health"))
    if not (row.below == LIST and "withInstances" not in row.query)  # numbers alone do not give the instances back
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


@pytest.mark.parametrize("row", [*ROWS, *SERVICE_ROWS], ids=str)
def test_v3_answers_as_3_0_3_was_recorded(row: Row) -> None:
    reply = answer_again(V3, row)
    assert (reply.status, reply.content_type) == (row.status, row.type)
    assert comparable(reply.body, loosely=True) == comparable(row.reply.body, loosely=True)


def test_v3_match_takes_a_slash_at_the_end_for_another_path() -> None:
    assert V3.match("GET", LISTS) is not None
    assert V3.match("GET", f"{LISTS}/") is None and V3.owns(f"{LISTS}/")


def test_v3_list_defaults_to_the_cluster_default_and_ignores_healthy_only() -> None:
    assert read("GET", LISTS, serviceName="orders") == ReadService(KEY, "DEFAULT")
    assert read("GET", LISTS, serviceName="orders", clusterName="a,b", healthyOnly="true") == ReadService(KEY, "a,b")
    assert read("GET", LISTS, serviceName="orders", clusters="a") == ReadService(KEY, "DEFAULT")


def test_v3_admin_list_shows_disabled_instances_and_true_health_of_one_cluster() -> None:
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
def test_v3_admin_list_refuses_an_unknown_service_or_cluster(shown: Snapshot, text: str) -> None:
    call = read("GET", f"{ADMIN}/list", serviceName="orders", clusterName="c9")
    with pytest.raises(Refused) as caught:
        write("GET", f"{ADMIN}/list", call, ServiceView(shown, shown.select()))
    request = HttpRequest("GET", f"{ADMIN}/list")
    reply = V3.write_error(request, caught.value, 0)
    assert (reply.status, json.loads(reply.body)) == (404, {"code": 30000, "message": "server error", "data": text})


def test_v3_partial_update_resets_weight_and_enabled_as_3_0_3_does() -> None:
    call = read("PUT", f"{ADMIN}/partial", **HERE, metadata="a=1")
    assert (call.partial, call.weight, call.enabled, call.metadata) == (True, 1.0, True, {"a": "1"})
    assert read("PUT", f"{ADMIN}/partial", **HERE, enabled="false").enabled is False


def test_v3_beat_ignores_weight_and_ephemeral() -> None:
    path = "/v3/client/ns/instance"
    assert read("POST", path, **HERE, heartBeat="true", weight="-5") == Beat(KEY, "10.0.0.1", 80)
    with pytest.raises(BadCall):
        read("POST", path, **HERE, heartBeat="false", weight="-5")


# client role


@pytest.mark.parametrize("row", [r for r in load("protection") if r.below == LISTS and r.status == 200], ids=str)
def test_v3_read_hosts_reads_the_recorded_lists(row: Row) -> None:
    hosts = v3.read_hosts(key(row.query["serviceName"]), row.reply).instances
    assert [(h.ip, h.healthy) for h in hosts] == [(h["ip"], h["healthy"]) for h in row.body["data"]]


def test_v3_beat_of_an_unknown_instance_is_answered_and_a_registration_refused() -> None:
    unknown = HttpReply(200, "application/json", b'{"code":21003,"message":"instance not found","data":null}')
    assert V3.read_reply(Beat(KEY, "10.0.0.1", 80), unknown) == BeatResult(BEAT_NOT_FOUND)
    with pytest.raises(Refused):
        V3.read_reply(Register(KEY, instance()), unknown)


def test_v3_beat_interval_comes_from_the_metadata() -> None:
    full = instance(metadata={"preserved.heart.beat.interval": "700"})
    ok = HttpReply(200, "application/json", b'{"code":0,"message":"success","data":"ok"}')
    assert V3.read_reply(Beat(KEY, "10.0.0.1", 80, full=full), ok) == BeatResult(interval=700)


def test_v3_fetch_does_not_take_an_incomplete_page_for_an_empty_service() -> None:
    body = {"code": 0, "message": "success", "data": {"totalCount": 501, "pageItems": []}}
    with pytest.raises(Malformed):
        V3.read_reply(Fetch(KEY), HttpReply(200, "application/json", json.dumps(body).encode()))


def test_v3_fetch_without_the_right_is_refused_with_no_right() -> None:
    row = next(r for r in load("auth") if r.status == 403 and "/v3/admin/ns" in r.path)
    with pytest.raises(Refused) as caught:
        V3.read_reply(Fetch(KEY), row.reply)
    assert caught.value.reason is Reason.NO_RIGHT


# round trips


@given(KEYS, IPS, PORTS, CLUSTERS, st.sampled_from([BeatResult(), BeatResult(BEAT_NOT_FOUND)]))
def test_v3_light_beat_and_its_answer_arrive_as_they_were_sent(
    service: ServiceKey, ip: str, port: int, cluster: str, answer: BeatResult
) -> None:
    pair, call = DialectPair(V3, lambda call: answer), Beat(service, ip, port, cluster)
    assert pair.send(call) == answer
    assert pair.seen == [call]


@given(SNAPSHOTS)
def test_v3_fetch_finds_the_service_on_a_page_of_similar_names(before: Snapshot) -> None:
    other = ServiceKey(before.key.namespace, before.key.group, before.key.name + "x")
    rows = [ServiceDetail(ServiceInfo(k), Snapshot.of(k, before.instances)) for k in (other, before.key)]

    def answer(call: Any) -> DetailPage:
        assert isinstance(call, ListDetails) and call.with_instances
        assert call.name_part in before.key.name and call.group_part == before.key.group
        return DetailPage(2, tuple(rows))

    after = DialectPair(V3, answer).send(Fetch(before.key))
    assert {i.key for i in after.instances} == {i.key for i in before.instances}
    assert after.key == before.key


# services, health, operator


def reply_of(path: str, call: Any, shown: Any) -> Any:
    operation = V3.match("GET", path)
    assert operation is not None
    return json.loads(operation.write_reply(call, shown).body)["data"]


@pytest.mark.parametrize(("count", "pages"), [(0, 0), (1, 1), (9, 1), (10, 2), (11, 2), (20, 3)])
def test_v3_pages_available_has_one_too_many_for_an_exact_multiple(count: int, pages: int) -> None:
    page = reply_of(LIST, ListDetails("public", size=10, with_instances=False), DetailPage(count, ()))
    assert page == {"totalCount": count, "pageNumber": 1, "pagesAvailable": pages, "pageItems": []}


def test_v3_list_details_with_instances_keeps_empty_services() -> None:
    assert read("GET", LIST, ignoreEmptyService="true").ignore_empty is True
    assert read("GET", LIST, ignoreEmptyService="true", withInstances="true").ignore_empty is False


def test_v3_list_details_without_instances_shows_counts() -> None:
    hosts = [instance(), instance("10.0.0.2", healthy=False), instance("10.0.0.3", cluster="c")]
    row = ServiceDetail(ServiceInfo(KEY, 0.7), Snapshot.of(KEY, hosts))
    (item,) = reply_of(LIST, ListDetails("public", with_instances=False), DetailPage(1, (row,)))["pageItems"]
    assert item == {
        "name": "orders",
        "groupName": "DEFAULT_GROUP",
        "clusterCount": 2,
        "ipCount": 3,
        "healthyInstanceCount": 2,
        "triggerFlag": "true",
    }


def test_v3_readiness_fails_with_a_200() -> None:
    reply = V3.write_error(HttpRequest("GET", READY), Unreachable("http://a: refused", arrived=False), 0)
    assert (reply.status, json.loads(reply.body)) == (
        200,
        {"code": 30000, "message": "http://a: refused", "data": None},
    )


def test_v3_details_of_searches_for_the_longest_part_without_special_characters() -> None:
    odd = key("a.*[b]longest|c")
    call = details_of(odd)
    assert call.name_part in odd.name and not set(call.name_part) & set("*[]|")
    row = ServiceDetail(ServiceInfo(odd), Snapshot.of(odd, [instance()]))
    assert find(odd, DetailPage(1, (row,))) is row.snapshot
    alike = ServiceDetail(ServiceInfo(key("orders-2")), Snapshot(key("orders-2")))
    assert find(KEY, DetailPage(1, (alike,))) is None


def test_v3_find_raises_misplaced_for_a_page_of_other_names() -> None:
    other = ServiceDetail(ServiceInfo(key("carts")), Snapshot(key("carts")))
    with pytest.raises(Misplaced, match="named like 'orders', but the answer is about 'carts'"):
        find(KEY, DetailPage(1, (other,)))


def test_v3_list_services_leaves_out_other_groups() -> None:
    items = [{"name": "a", "groupName": "G"}, {"name": "b", "groupName": "G2"}]
    body = {"code": 0, "message": "success", "data": {"totalCount": 2, "pageItems": items}}
    reply = HttpReply(200, "application/json", json.dumps(body).encode())
    assert V3.read_reply(ListServices("public", "G", 1, 10), reply) == ServicePage(1, ("a",))


def test_v3_list_services_requests_a_page_that_v3_accepts() -> None:
    asked = V3.write_request(ListServices("public", "G", 0, 0))
    assert (asked.parameters["pageNo"], asked.parameters["pageSize"]) == ("1", "1")
    reply = HttpReply(
        200, "application/json", b'{"code":0,"data":{"totalCount":1,"pageItems":[{"name":"a","groupName":"G"}]}}'
    )
    assert V3.read_reply(ListServices("public", "G", 0, 0), reply).names == ()
