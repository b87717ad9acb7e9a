"""Kubernetes objects. A validation by Kubernetes' own code found no error in lists like these."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.services import Instance
from nacos_proxy.wire.discovery.base import Shown
from nacos_proxy.wire.discovery.endpointslice import FORMAT, MAX_ENDPOINTS, object_name
from tests.helpers.build import KEY, instance, key

NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")  # RFC 1123


def items(*hosts: Instance) -> list[dict[str, Any]]:
    made: Any = FORMAT.of([Shown(KEY, hosts)])
    assert (made["apiVersion"], made["kind"]) == ("v1", "List")
    return made["items"]


def slices(*hosts: Instance) -> dict[str, dict[str, Any]]:
    return {item["metadata"]["name"]: item for item in items(*hosts) if item["kind"] == "EndpointSlice"}


def test_endpointslice_list_has_a_headless_service_and_its_slices() -> None:
    service, only = items(instance("10.0.0.1", 8080, metadata={"zone": "a"}))
    assert (service["kind"], service["metadata"]["name"], service["spec"]) == (
        "Service",
        "orders",
        {"clusterIP": "None"},
    )
    assert only == {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "orders-ipv4-8080-0",
            "labels": {
                "app.kubernetes.io/managed-by": "nacos-proxy",
                "endpointslice.kubernetes.io/managed-by": "nacos-proxy",
                "kubernetes.io/service-name": "orders",
            },
            "annotations": {"nacos-proxy/service": "public/DEFAULT_GROUP@@orders"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": ["10.0.0.1"],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "zone": "a",
            }
        ],
    }
    assert [item["kind"] for item in items()] == ["Service"]


def test_endpointslice_has_a_slice_for_each_address_type_port_and_protocol() -> None:
    found = slices(
        instance("10.0.0.2", 80),
        instance("[2001:DB8::7]", 80),
        instance("10.0.0.1", 80),
        instance("10.0.0.1", 443, metadata={"secure": "true"}),
        instance("10.0.0.1", 81, metadata={"protocol": "grpc"}),
    )
    assert [*found] == ["orders-ipv4-80-0", "orders-ipv4-81-h2c-0", "orders-ipv4-443-https-0", "orders-ipv6-80-0"]
    assert [it["addresses"] for it in found["orders-ipv4-80-0"]["endpoints"]] == [["10.0.0.2"], ["10.0.0.1"]]
    assert found["orders-ipv6-80-0"]["endpoints"][0]["addresses"] == ["2001:db8::7"]
    assert found["orders-ipv4-81-h2c-0"]["ports"][0]["appProtocol"] == "kubernetes.io/h2c"


def test_endpointslice_has_at_most_100_endpoints() -> None:
    found = slices(*(instance(f"10.0.{n // 100}.{n % 100 + 1}", 80) for n in range(2 * MAX_ENDPOINTS + 1)))
    assert [len(it["endpoints"]) for it in found.values()] == [100, 100, 1]


@pytest.mark.parametrize(
    ("fields", "conditions"),
    [({}, (True, True, False)), ({"healthy": False}, (False, False, False)), ({"weight": 0.0}, (False, True, True))],
)
def test_endpointslice_conditions_follow_health_and_weight(
    fields: dict[str, Any], conditions: tuple[bool, ...]
) -> None:
    (found,) = slices(instance("10.0.0.1", 80, **fields)).values()
    assert tuple(found["endpoints"][0]["conditions"].values()) == conditions


def test_endpointslice_takes_the_best_of_an_address() -> None:
    hosts = [instance("10.0.0.1", 80, cluster=name, healthy=name == "b") for name in "abc"]
    (found,) = slices(*hosts).values()
    assert [it["conditions"]["ready"] for it in found["endpoints"]] == [True]


@pytest.mark.parametrize(
    "ip",
    [
        *("127.0.0.1", "0.0.0.0", "169.254.1.1", "224.0.0.1", "::1", "::", "fe80::1", "fd00::1%eth0", "ff02::1"),
        *("::ffff:10.0.0.1", "web.local", "999.1.1.1", ""),
    ],
)
def test_endpointslice_leaves_out_what_kubernetes_refuses(ip: str) -> None:
    assert slices(instance(ip, 80)) == {}


@pytest.mark.parametrize("zone", ["", "a b", "-a", "a" * 64, "ä"])
def test_endpointslice_has_no_zone_that_is_no_label(zone: str) -> None:
    (found,) = slices(instance("10.0.0.1", 80, metadata={"zone": zone})).values()
    assert "zone" not in found["endpoints"][0]


@given(st.sampled_from(["DEFAULT_GROUP", "g"]), st.one_of(st.text(min_size=1), st.from_regex(r"[a-zA-Z0-9.:-]{1,90}")))
def test_object_name_is_a_name_that_a_service_may_have(group: str, name: str) -> None:
    made = object_name(key(name, group))
    assert NAME.fullmatch(made) and made[0].isalpha() and len(made) <= 63


def test_object_name_tells_groups_and_spellings_apart() -> None:
    assert object_name(KEY) == "orders"
    names = [key("orders", "g"), key("Orders"), key("com.x.Orders"), key("com-x-orders"), key("用户"), key("订单")]
    assert len({object_name(it) for it in names}) == len(names)
    assert object_name(key("com.x.Orders")).startswith("com-x-orders-")
