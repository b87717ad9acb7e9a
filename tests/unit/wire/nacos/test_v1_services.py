"""v1 beyond instances: what 2.5.1 recorded comes out again, other servers are understood, calls make the round trip."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.calls import (
    Alive,
    Call,
    CreateService,
    DeleteService,
    DetailPage,
    GetService,
    ListDetails,
    ListServices,
    Metrics,
    Namespaces,
    Ready,
    ServerState,
    ServiceDetail,
    ServiceInfo,
    ServiceNames,
    ServicePage,
    SetHealth,
    Subscriber,
    Subscribers,
    Switches,
    UpdateService,
)
from nacos_proxy.model.errors import (
    BadCall,
    Malformed,
    Reason,
    Refused,
)
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos.base import ReadPage, ServiceView
from nacos_proxy.wire.nacos.v1 import V1
from tests.helpers.build import KEY, instance, snapshot
from tests.helpers.pair import (
    CLUSTERS,
    GROUPS,
    IPS,
    KEYS,
    METADATA,
    NAMES,
    NAMESPACES,
    PORTS,
    DialectPair,
    answer_again,
)
from tests.helpers.recordings import Row, comparable, load

SERVICE = "/v1/ns/service"
CATALOG = "/v1/ns/catalog"
ROWS = [
    row
    for row in load("nacos-2.5.1")
    if row.below.startswith(("/v1/ns/service", "/v1/ns/operator", "/v1/ns/health", "/v1/console"))
]


def read(method: str, path: str, **values: str) -> Any:
    operation = V1.match(method, path)
    assert operation is not None
    return operation.read_request(HttpRequest(method, path, tuple(values.items())))


def wrong(method: str, path: str, **values: str) -> tuple[int, str]:
    with pytest.raises(BadCall) as caught:
        read(method, path, **values)
    reply = V1.write_error(HttpRequest(method, path, tuple(values.items())), caught.value, 0)
    return reply.status, reply.body.decode()


def written(method: str, path: str, call: Any, shown: Any) -> Any:
    operation = V1.match(method, path)
    assert operation is not None
    return json.loads(operation.write_reply(call, shown).body)


# server role


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_what_2_5_1_answered_is_answered_again(row: Row) -> None:
    reply = answer_again(V1, row)
    assert (reply.status, reply.content_type) == (row.status, row.type)
    assert comparable(reply.body) == comparable(row.reply.body)


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
def test_what_is_missing_is_named_in_the_words_of_each_call(
    method: str, path: str, values: dict[str, str], text: str
) -> None:
    assert wrong(method, path, **values) == (400, text)


def test_numbers_of_a_page_that_are_none_are_0() -> None:
    call = read("GET", f"{SERVICE}/list", pageNo="x", pageSize="y")
    assert call == ListServices("public", "DEFAULT_GROUP", 0, 0)
    assert read("PUT", SERVICE, serviceName="orders", protectThreshold="x") == UpdateService(KEY)


def test_health_takes_its_other_name_and_its_other_path() -> None:
    here = {"serviceName": "orders", "ip": "10.0.0.1", "port": "80"}
    assert read("PUT", "/v1/ns/health", **here, valid="true") == SetHealth(KEY, "10.0.0.1", 80, "DEFAULT", True)
    assert read("PUT", "/v1/ns/health/instance", **here, healthy="no").healthy is False


def test_the_catalog_shows_numbers_or_instances() -> None:
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


def test_a_catalog_page_of_instances_is_of_one_cluster_with_the_disabled() -> None:
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
def test_every_answer_of_r_nacos_is_understood(row: Row) -> None:
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


def test_r_nacos_refuses_to_delete_in_the_words_of_nacos() -> None:
    said = HttpReply(500, None, b"the service has instances, can't delete")
    with pytest.raises(Refused, match="is not empty, can't be delete") as caught:
        V1.read_reply(DeleteService(KEY), said)
    assert (caught.value.status, caught.value.reason) == (400, Reason.SERVICE_NOT_EMPTY)


def test_names_of_1_x_are_of_the_default_group() -> None:
    reply = HttpReply(200, "application/json", b'{"services":{"public":["a","G@@b"]},"count":1}')
    assert V1.read_reply(ServiceNames(), reply) == {"public": ("DEFAULT_GROUP@@a", "G@@b")}


def test_the_order_of_1_x_and_text_for_a_page_are_understood_and_nonsense_is_not() -> None:
    page = HttpReply(200, None, b'{"doms":["a"],"count":1}')
    assert V1.read_reply(ListServices("public", "G"), page) == ServicePage(1, ("a",))
    for body in (b"ok", b"[]", b'{"count":"x","doms":[]}', b'{"count":1,"doms":[1]}'):
        with pytest.raises(Malformed):
            V1.read_reply(ListServices("public", "G"), HttpReply(200, None, body))


# round trips


def none(_call: Any) -> None:
    return None


SELECTORS = st.sampled_from(["", '{"type":"none"}', '{"type":"label","expression":"CONSUMER.label.a=1"}'])
WRITES = (
    st.builds(CreateService, KEYS, st.floats(0, 1), METADATA, SELECTORS)
    | st.builds(UpdateService, KEYS, st.floats(0, 1), METADATA, SELECTORS)
    | st.builds(DeleteService, KEYS)
    | st.builds(SetHealth, KEYS, IPS, PORTS, CLUSTERS, st.booleans())
    | st.sampled_from([Alive(), Ready()])
)


@given(WRITES)
def test_a_write_arrives_as_it_was_sent(call: Call[None]) -> None:
    pair = DialectPair(V1, none)
    pair.send(call)
    assert pair.seen == [call]


@given(KEYS, st.floats(0, 1), METADATA, st.lists(CLUSTERS, max_size=3, unique=True))
def test_a_services_own_data_come_back(
    service: ServiceKey, threshold: float, metadata: dict[str, str], clusters: list[str]
) -> None:
    info = ServiceInfo(service, threshold, metadata, {"type": "none", "contextType": "NONE"}, tuple(clusters))
    assert DialectPair(V1, lambda call: info).send(GetService(service)) == info


@given(st.builds(ListServices, NAMESPACES, GROUPS, st.integers(0, 99), st.integers(0, 500)))
def test_a_page_of_names_comes_back(call: ListServices) -> None:
    pair = DialectPair(V1, lambda call: ServicePage(3, ("a", "b")))
    assert pair.send(call) == ServicePage(3, ("a", "b"))
    assert pair.seen == [call]


@given(st.dictionaries(NAMESPACES, st.lists(st.builds("{}@@{}".format, GROUPS, NAMES), max_size=3).map(tuple)))
def test_all_names_come_back(names: dict[str, tuple[str, ...]]) -> None:
    pair = DialectPair(V1, lambda call: names)
    assert pair.send(ServiceNames("n")) == names
    assert pair.seen == [ServiceNames("n")]


def test_subscribers_and_objects_of_the_server_come_back() -> None:
    one = Subscriber("10.0.0.9:5000", "Java", "app", "10.0.0.9", 5000, "public", "DEFAULT_GROUP@@orders", "c1")
    pair = DialectPair(V1, lambda call: (one,))
    assert pair.send(Subscribers(KEY, 2, 10)) == (one,)
    assert pair.seen == [Subscribers(KEY, 2, 10)]
    calls: list[Call[Any]] = [Metrics(False), Switches(), ServerState()]
    for call in calls:
        assert DialectPair(V1, lambda call: {"any": "1"}).send(call) == {"any": "1"}
    rows = ({"namespace": "public", "namespaceShowName": "public"},)
    assert DialectPair(V1, lambda call: rows).send(Namespaces()) == rows
