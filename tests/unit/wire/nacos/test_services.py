"""Services, pages, subscribers and namespaces as JSON."""

from __future__ import annotations

from typing import Any

import pytest

from nacos_proxy.model.calls import ServiceDetail, ServiceInfo, Subscriber
from nacos_proxy.model.errors import Malformed, Misplaced
from nacos_proxy.model.services import Checking, Instance
from nacos_proxy.wire.nacos.base import ReadPage
from nacos_proxy.wire.nacos.services import (
    by_cluster,
    cluster_map,
    detail_json,
    page_of,
    read_detail,
    read_namespaces,
    read_service,
    read_subscriber,
    subscriber_json,
    view_json,
)
from tests.helpers.build import KEY, instance, key, snapshot
from tests.helpers.recordings import load


def detail(*instances: Instance, threshold: float = 0.0, **fields: Any) -> ServiceDetail:
    return ServiceDetail(ServiceInfo(KEY, threshold, **fields), snapshot(*instances))


def recorded(name: str, case: str) -> Any:
    (row,) = [row for row in load(name) if row.case == case]
    return row.body


def test_read_service_reads_the_cluster_list_of_v1() -> None:
    shown = recorded("r-nacos-0.8.8", "v1 service get")
    info = read_service(key(shown["name"]), shown)
    assert info == ServiceInfo(
        info.key, 0.5, {"owner": "x"}, {"contextType": "NONE", "type": "none"}, ("DEFAULT",), ephemeral=True
    )


@pytest.mark.parametrize(
    ("name", "case", "clusters"),
    [("nacos-2.5.1", "v2 service get", ("DEFAULT",)), ("nacos-3.0.3", "v3 admin service get", ("c1", "DEFAULT"))],
)
def test_read_service_reads_the_cluster_map_of_v2_and_v3(name: str, case: str, clusters: tuple[str, ...]) -> None:
    shown = recorded(name, case)["data"]
    info = read_service(key(shown["serviceName"]), shown)
    assert (info.clusters, info.ephemeral, info.threshold) == (clusters, True, 0.0)


@pytest.mark.parametrize(
    "value", [None, [], {"clusters": {}}, {"clusters": [1]}, {"clusterMap": []}, {"metadata": [1]}]
)
def test_read_service_refuses_what_is_not_a_service(value: Any) -> None:
    with pytest.raises(Malformed):
        read_service(KEY, value)


@pytest.mark.parametrize(
    "value", [{"name": "carts"}, {"name": "G@@orders"}, {"serviceName": "carts"}, {"name": "orders", "groupName": "G"}]
)
def test_read_service_raises_misplaced_for_another_service(value: Any) -> None:
    with pytest.raises(Misplaced):
        read_service(KEY, value)


def test_read_service_has_defaults() -> None:
    assert read_service(KEY, {"protectThreshold": None, "selector": None, "ephemeral": None}) == ServiceInfo(KEY)


def test_cluster_map_has_no_hosts() -> None:
    cluster = {"clusterName": "c1", "healthChecker": {"type": "TCP"}, "metadata": {}, "hosts": None}
    info = ServiceInfo(KEY, clusters=("c1",))
    assert cluster_map(info, ports=False) == {"c1": cluster}
    ports = {"healthyCheckPort": 80, "useInstancePortForCheck": True}
    assert cluster_map(info, ports=True) == {"c1": {**cluster, **ports}}


@pytest.mark.parametrize(
    "value",
    [
        {"clusters": [{"name": "c1", "healthChecker": {"type": "NONE"}, "metadata": {"a": "1"}}, {"name": "c2"}]},
        {"clusterMap": {"c1": {"healthChecker": {"type": "NONE"}, "metadata": {"a": "1"}, "hosts": None}, "c2": {}}},
    ],
)
def test_read_service_keeps_the_checker(value: Any) -> None:
    info = read_service(KEY, value)
    assert (info.clusters, dict(info.checks)) == (
        ("c1", "c2"),
        {"c1": Checking({"type": "NONE"}, metadata={"a": "1"})},
    )
    assert cluster_map(info, ports=False)["c1"]["healthChecker"] == {"type": "NONE"}


def test_read_service_reads_the_check_port_of_v3() -> None:
    row = {"healthChecker": {"type": "TCP"}, "healthyCheckPort": 81, "useInstancePortForCheck": False, "metadata": {}}
    info = read_service(KEY, {"clusterMap": {"c1": row}})
    assert info.checks == {"c1": Checking(port=81, by_instance_port=False)}


@pytest.mark.parametrize(
    ("row", "numbers"),
    [
        (detail(), (0, 0, 0, "false")),
        (detail(instance(), instance("10.0.0.2", healthy=False)), (1, 2, 1, "false")),
        (detail(instance(), instance("10.0.0.2", healthy=False), threshold=0.5), (1, 2, 1, "true")),
        (detail(instance(healthy=False)), (1, 1, 0, "true")),
        (detail(instance(cluster="c1"), clusters=("c2",)), (2, 1, 1, "false")),
    ],
)
def test_view_json_counts_instances(row: ServiceDetail, numbers: tuple[int, int, int, str]) -> None:
    view = view_json(row)
    assert (view["name"], view["groupName"]) == ("orders", "DEFAULT_GROUP")
    shown = ("clusterCount", "ipCount", "healthyInstanceCount", "triggerFlag")
    assert tuple(view[name] for name in shown) == numbers


def test_read_detail_reads_any_detail_json_but_the_threshold() -> None:
    before = detail(instance(), instance("10.0.0.2", cluster="c1", enabled=False), threshold=0.5, metadata={"a": "1"})
    after = read_detail("public", detail_json(before))
    assert after.snapshot.instances == before.snapshot.instances
    assert (after.info.metadata, after.info.threshold) == ({"a": "1"}, 0.0)
    assert after.snapshot.masking  # it has metadata of its own


def test_read_detail_reads_a_threshold() -> None:
    shown = {**detail_json(detail(instance())), "protectThreshold": 0.5}
    assert read_detail("public", shown).snapshot.threshold == 0.5


def test_read_detail_reads_the_recorded_details() -> None:
    rows = recorded("v3-only", "v3 only: service list with instances")["data"]["pageItems"]
    found = read_detail("public", rows[0]).snapshot
    assert [(i.ip, i.cluster, i.healthy, i.enabled) for i in found.instances] == [
        ("10.0.0.0", "DEFAULT", True, True),
        ("10.0.0.1", "c1", True, True),
        ("10.0.0.2", "c1", False, True),
        ("10.0.0.3", "c2", True, False),
    ]


NO_CLUSTERS: list[Any] = [1, {"hosts": 1}, {"hosts": [1]}]
NO_DETAILS: list[Any] = [None, {}, {"serviceName": "s"}, {"serviceName": 1, "groupName": "g"}]


@pytest.mark.parametrize(
    "value", NO_DETAILS + [{"serviceName": "s", "groupName": "g", "clusterMap": {"c": wrong}} for wrong in NO_CLUSTERS]
)
def test_read_detail_refuses_what_is_not_a_detail(value: Any) -> None:
    with pytest.raises(Malformed):
        read_detail("public", value)


def test_by_cluster_groups_instances() -> None:
    one, two = instance(), instance("10.0.0.2", cluster="c1")
    assert by_cluster([two, one]) == {"c1": [two], "DEFAULT": [one]}


@pytest.mark.parametrize(
    ("page", "size", "ports"), [(1, 2, (1, 2)), (2, 2, (3,)), (0, 2, (1, 2)), (3, 2, ()), (1, -1, ())]
)
def test_page_of_is_a_slice(page: int, size: int, ports: tuple[int, ...]) -> None:
    every = [instance(port=port) for port in (1, 2, 3)]
    assert tuple(i.port for i in page_of(ReadPage(KEY, page=page, size=size), every)) == ports


SUBSCRIBER = Subscriber("10.0.0.9:5000", "Nacos-Java-Client:v1", "shop", "10.0.0.9", 5000, "public", KEY.grouped, "c1")


def test_read_subscriber_reads_any_subscriber_json() -> None:
    assert read_subscriber(subscriber_json(SUBSCRIBER, KEY), KEY) == SUBSCRIBER


def test_read_subscriber_of_v3_has_neither_address_nor_cluster() -> None:
    shown = {
        "namespaceId": "n",
        "groupName": "g",
        "serviceName": "s",
        "ip": "10.0.0.9",
        "port": 5000,
        "appName": "shop",
    }
    found = read_subscriber(shown, KEY)
    assert found == Subscriber("10.0.0.9:5000", "", "shop", "10.0.0.9", 5000, "n", "g@@s", "")
    assert subscriber_json(Subscriber("a", "", "", "", 0, "", "s", ""), key("s", "g"))["serviceName"] == "g@@s"


def test_read_subscriber_refuses_what_is_not_a_subscriber() -> None:
    with pytest.raises(Malformed):
        read_subscriber("x", KEY)


def test_read_namespaces_calls_the_default_one_public() -> None:
    assert read_namespaces([{"namespace": "", "type": 0}, {"namespace": "n"}]) == (
        {"namespace": "public", "type": 0},
        {"namespace": "n"},
    )
    with pytest.raises(Malformed):
        read_namespaces({"a": 1})
