"""Resource names of Envoy's discovery, and the services that a client wants as clusters."""

from __future__ import annotations

import pytest

from nacos_proxy.model.calls import ListServices
from nacos_proxy.model.errors import BadCall
from nacos_proxy.model.limits import NACOS
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.wire.discovery.envoy_names import Target, Wanted, read_name, read_resource
from tests.helpers.build import instance, snapshot


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("orders", ("", "", "orders", "")),
        ("com.x.Orders:1.0", ("", "", "com.x.Orders:1.0", "")),
        ("G@@orders", ("", "G", "orders", "")),
        ("dev/G@@orders", ("dev", "G", "orders", "")),
        ("dev/G@@a/b/c", ("dev", "G", "a/b/c", "")),
        ("dev/G/orders", ("dev", "G", "orders", "")),
        ("a/b", ("", "", "a/b", "")),
        ("orders?selector=a=b&prefer=zone=a", ("", "", "orders", "selector=a=b&prefer=zone=a")),
        ("outbound|8080||orders.DEFAULT-GROUP.public.nacos", ("public", "DEFAULT_GROUP", "orders", "")),
        ("outbound|8080||com.x.Y.G.dev.nacos?unhealthy=mark", ("dev", "G", "com.x.Y", "unhealthy=mark")),
    ],
)
def test_read_name_reads_each_form(name: str, target: tuple[str, ...]) -> None:
    assert read_name(name) == Target(*target)


@pytest.mark.parametrize("name", ["outbound|8080|v1|orders.G.dev.nacos", "outbound|8080||orders", "outbound|orders"])
def test_read_name_refuses_a_subset_and_an_incomplete_name(name: str) -> None:
    with pytest.raises(BadCall, match="name 'outbound"):
        read_name(name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("orders?selctor=zone=a", "did you mean 'selector'"),
        ("orders?selector=(", "selector"),
        ("orders?unhealthy=keep", "one of: omit, mark"),
        ("a/b c/orders", "namespace|group"),
        ("", "'service' is required"),
        ("x" * 4001, "at most 4000"),
    ],
)
def test_read_resource_refuses_a_wrong_name_and_says_why(name: str, says: str) -> None:
    with pytest.raises(BadCall, match=says):
        read_resource(name, NACOS)


def test_read_resource_reads_namespace_and_group_of_the_query() -> None:
    assert read_resource("orders?namespace=dev&group=G", NACOS).key == ServiceKey("dev", "G", "orders")


@pytest.mark.parametrize(
    ("name", "tiers"),
    [
        ("orders", [[1, 2]]),
        ("orders?unhealthy=mark", [[1, 2, 3, 4]]),
        ("orders?prefer=zone=a", [[1], [2]]),
        ("orders?prefer=zone=a&unhealthy=mark", [[1, 3], [2, 4]]),
        ("orders?prefer=zone=a&prefer_min=0.9&unhealthy=mark", [[1, 2, 3, 4]]),
        ("orders?selector=zone=c&unhealthy=mark", [[]]),
        ("orders?selector=zone=c", []),
    ],
)
def test_resource_tiers_are_by_preference_with_the_unhealthy_ones_if_marked(name: str, tiers: list[list[int]]) -> None:
    """Numbers are those of instances: zone a has the odd ones, and the last two are unhealthy."""
    hosts = [instance(f"10.0.0.{n}", n, healthy=n < 3, metadata={"zone": "a" if n % 2 else "b"}) for n in (1, 2, 3, 4)]
    found = read_resource(name, NACOS).tiers(snapshot(*hosts))
    assert [[host.port for host in tier] for tier in found] == tiers


def test_wanted_are_services_by_name_and_whole_groups() -> None:
    wanted = Wanted.read(["orders?prefer=zone=a", "*?selector=x", "dev/G/*"], NACOS, 1000)
    assert wanted.named == {"orders": "orders?prefer=zone=a"}
    assert wanted.groups == [
        ("", "selector=x", ListServices("public", "DEFAULT_GROUP", size=500)),
        ("dev/G/", "", ListServices("dev", "G", size=500)),
    ]
