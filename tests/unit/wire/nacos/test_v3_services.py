"""v3 beyond instances: recorded answers again, and calls make the round trip."""

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
    ServicePage,
    SetHealth,
    Subscriber,
    Subscribers,
    Switches,
    UpdateService,
)
from nacos_proxy.model.errors import Misplaced, Unreachable
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos.v3 import V3, details_of, find
from tests.helpers.build import KEY, instance, key
from tests.helpers.pair import CLUSTERS, IPS, KEYS, METADATA, PORTS, DialectPair, answer_again
from tests.helpers.recordings import Row, comparable, load

LIST = "/v3/admin/ns/service/list"
READY = "/v3/admin/core/state/readiness"
ROWS = [
    row
    for name in ("nacos-3.0.3", "v3-only")
    for row in load(name)
    if row.below.startswith(("/v3/admin/ns/service", "/v3/admin/ns/ops", "/v3/admin/core", "/v3/admin/ns/health"))
    if not (row.below == LIST and "withInstances" not in row.query)  # numbers alone do not give the instances back
]


def reply_of(path: str, call: Any, shown: Any) -> Any:
    operation = V3.match("GET", path)
    assert operation is not None
    return json.loads(operation.write_reply(call, shown).body)["data"]


def read(method: str, path: str, **values: str) -> Any:
    operation = V3.match(method, path)
    assert operation is not None
    return operation.read_request(HttpRequest(method, path, tuple(values.items())))


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_what_3_0_3_answered_is_answered_again(row: Row) -> None:
    reply = answer_again(V3, row)
    assert (reply.status, reply.content_type) == (row.status, row.type)
    assert comparable(reply.body, loosely=True) == comparable(row.reply.body, loosely=True)


@pytest.mark.parametrize(("count", "pages"), [(0, 0), (1, 1), (9, 1), (10, 2), (11, 2), (20, 3)])
def test_an_exact_multiple_has_a_page_too_many(count: int, pages: int) -> None:
    page = reply_of(LIST, ListDetails("public", size=10, with_instances=False), DetailPage(count, ()))
    assert page == {"totalCount": count, "pageNumber": 1, "pagesAvailable": pages, "pageItems": []}


def test_with_instances_empty_services_are_never_left_out() -> None:
    assert read("GET", LIST, ignoreEmptyService="true").ignore_empty is True
    assert read("GET", LIST, ignoreEmptyService="true", withInstances="true").ignore_empty is False


def test_the_numbers_of_a_service_without_its_instances() -> None:
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


def test_not_ready_is_said_in_a_200() -> None:
    reply = V3.write_error(HttpRequest("GET", READY), Unreachable("http://a: refused", arrived=False), 0)
    assert (reply.status, json.loads(reply.body)) == (
        200,
        {"code": 30000, "message": "http://a: refused", "data": None},
    )


def test_a_name_with_signs_of_a_regular_expression_is_looked_for_by_its_longest_piece() -> None:
    odd = key("a.*[b]longest|c")
    call = details_of(odd)
    assert call.name_part in odd.name and not set(call.name_part) & set("*[]|")
    row = ServiceDetail(ServiceInfo(odd), Snapshot.of(odd, [instance()]))
    assert find(odd, DetailPage(1, (row,))) is row.snapshot
    alike = ServiceDetail(ServiceInfo(key("orders-2")), Snapshot(key("orders-2")))
    assert find(KEY, DetailPage(1, (alike,))) is None


def test_a_page_of_services_that_are_not_named_alike_is_misplaced() -> None:
    other = ServiceDetail(ServiceInfo(key("carts")), Snapshot(key("carts")))
    with pytest.raises(Misplaced, match="named like 'orders', but the answer is about 'carts'"):
        find(KEY, DetailPage(1, (other,)))


def test_services_of_another_group_are_left_out_of_the_page_and_of_its_count() -> None:
    items = [{"name": "a", "groupName": "G"}, {"name": "b", "groupName": "G2"}]
    body = {"code": 0, "message": "success", "data": {"totalCount": 2, "pageItems": items}}
    reply = HttpReply(200, "application/json", json.dumps(body).encode())
    assert V3.read_reply(ListServices("public", "G", 1, 10), reply) == ServicePage(1, ("a",))


def test_a_page_of_names_is_asked_for_as_v3_takes_it() -> None:
    asked = V3.write_request(ListServices("public", "G", 0, 0))
    assert (asked.parameters["pageNo"], asked.parameters["pageSize"]) == ("1", "1")
    reply = HttpReply(
        200, "application/json", b'{"code":0,"data":{"totalCount":1,"pageItems":[{"name":"a","groupName":"G"}]}}'
    )
    assert V3.read_reply(ListServices("public", "G", 0, 0), reply).names == ()


# round trips


def none(_call: Any) -> None:
    return None


SELECTORS = st.sampled_from(["", '{"type":"none"}', '{"type":"label","expression":"CONSUMER.label.a=1"}'])
WRITES = (
    st.builds(CreateService, KEYS, st.floats(0, 1), METADATA, SELECTORS, st.booleans())
    | st.builds(UpdateService, KEYS, st.floats(0, 1), METADATA, SELECTORS)
    | st.builds(DeleteService, KEYS)
    | st.builds(SetHealth, KEYS, IPS, PORTS, CLUSTERS, st.booleans())
    | st.sampled_from([Alive(), Ready()])
)


@given(WRITES)
def test_a_write_arrives_as_it_was_sent(call: Call[None]) -> None:
    pair = DialectPair(V3, none)
    pair.send(call)
    assert pair.seen == [call]


@given(KEYS, st.floats(0, 1), METADATA, st.lists(CLUSTERS, max_size=3, unique=True), st.booleans())
def test_a_services_own_data_come_back(
    service: ServiceKey, threshold: float, metadata: dict[str, str], clusters: list[str], ephemeral: bool
) -> None:
    none_selected = {"type": "none", "contextType": "NONE"}
    info = ServiceInfo(service, threshold, metadata, none_selected, tuple(clusters), ephemeral)
    assert DialectPair(V3, lambda call: info).send(GetService(service)) == info


def test_subscribers_come_back() -> None:
    one = Subscriber("10.0.0.9:5000", "Java", "app", "10.0.0.9", 5000, "public", "DEFAULT_GROUP@@orders", "")
    pair = DialectPair(V3, lambda call: (one,))
    assert pair.send(Subscribers(KEY, 2, 10)) == (one,)
    assert pair.seen == [Subscribers(KEY, 2, 10)]


def test_objects_of_the_server_come_back_as_they_are() -> None:
    pair = DialectPair(V3, lambda call: {"status": "UP", "any": "1"})
    for call in (Metrics(False), Switches(), ServerState()):
        assert pair.send(call) == {"status": "UP", "any": "1"}
    rows = ({"namespace": "public", "namespaceShowName": "public", "quota": 200},)
    assert DialectPair(V3, lambda call: rows).send(Namespaces()) == rows
