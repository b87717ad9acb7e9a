"""Envoy's discovery over REST: what is read of a request, and assignments that Envoy accepts."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.errors import BadCall
from nacos_proxy.model.services import Instance
from nacos_proxy.wire.discovery.envoy import (
    ASSIGNMENT,
    DiscoveryRequest,
    assignment,
    cluster,
    read_options,
    read_request,
    response,
)
from tests.helpers.build import instance


def shown(made: dict[str, Any]) -> list[tuple[int, dict[str, str], list[tuple[str, int, str, int]]]]:
    """Priority, locality and endpoints of each locality."""
    return [
        (
            locality["priority"],
            locality["locality"],
            [
                (
                    *endpoint["endpoint"]["address"]["socket_address"].values(),
                    endpoint["health_status"],
                    endpoint["load_balancing_weight"],
                )
                for endpoint in locality["lb_endpoints"]
            ],
        )
        for locality in made["endpoints"]
    ]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"resource_names":["a","b","a"],"version_info":"7","node":{"id":"n"}}', (("a", "b"), "7", {})),
        (b'{"resourceNames":["a"],"versionInfo":"7","typeUrl":"x"}', (("a",), "7", {})),
        (b"{}", ((), "", {})),
        (b'{"version_info":null,"node":null}', ((), "", {})),
        (b'{"node":{"metadata":{"nacos_proxy":{"services":["a"]},"other":1}}}', ((), "", {"services": ["a"]})),
    ],
)
def test_read_request_reads_both_spellings_and_skips_what_it_does_not_need(body: bytes, expected: Any) -> None:
    assert read_request(body) == DiscoveryRequest(*expected)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b'"x"', b"{", b'{"resource_names":"a"}', b'{"resource_names":[1]}', b'{"version_info":1}'),
        *(b'{"node":[]}', b'{"node":{"metadata":1}}', b'{"node":{"metadata":{"nacos_proxy":[]}}}', b'{"a":"\\ud800"}'),
    ],
)
def test_read_request_refuses_what_is_no_discovery_request(body: bytes) -> None:
    with pytest.raises(BadCall):
        read_request(body)


def test_assignment_writes_address_health_weight_and_metadata() -> None:
    host = instance("10.0.0.1", 8080, weight=2.0, metadata={"version": "2", "gone": None}, cluster="c2")
    made = assignment("orders", [[host]])
    assert made == {
        "@type": ASSIGNMENT,
        "cluster_name": "orders",
        "endpoints": [
            {
                "locality": {},
                "priority": 0,
                "load_balancing_weight": 200,
                "lb_endpoints": [
                    {
                        "endpoint": {
                            "address": {"socket_address": {"address": "10.0.0.1", "port_value": 8080}},
                            "hostname": "10.0.0.1",
                        },
                        "health_status": "HEALTHY",
                        "load_balancing_weight": 200,
                        "metadata": {"filter_metadata": {"envoy.lb": {"version": "2", "nacos_cluster": "c2"}}},
                    }
                ],
            }
        ],
    }


def test_assignment_has_priorities_without_a_gap_and_a_locality_for_each_zone() -> None:
    near = [instance(f"10.0.0.{n}", metadata={"region": "cn", "zone": zone}) for n, zone in enumerate("aba", 1)]
    made = assignment("orders", [[instance("no-address")], near, [instance("10.0.0.9", healthy=False)]])
    healthy = [(f"10.0.0.{n}", 80, "HEALTHY", 100) for n in (1, 2, 3)]
    assert shown(made) == [
        (0, {"region": "cn", "zone": "a"}, [healthy[0], healthy[2]]),
        (0, {"region": "cn", "zone": "b"}, [healthy[1]]),
        (1, {}, [("10.0.0.9", 80, "UNHEALTHY", 100)]),
    ]


@pytest.mark.parametrize(
    "host",
    [
        *(instance("orders.example"), instance(port=0), instance(port=65536), instance("fe80::1%eth0"), instance("")),
        *(instance(weight=0.0), instance(weight=float("nan")), instance(weight=float("inf"))),
    ],
    ids=str,
)
def test_assignment_omits_what_envoy_refuses(host: Instance) -> None:
    assert assignment("orders", [[host]])["endpoints"] == []


def test_assignment_has_an_ipv6_address_once_and_without_brackets() -> None:
    made = assignment("orders", [[instance("[2001:DB8::7]")], [instance("2001:db8::7")]])
    assert shown(made) == [(0, {}, [("2001:db8::7", 80, "HEALTHY", 100)])]


IPS = st.one_of(st.ip_addresses().map(str), st.sampled_from(["10.0.0.1", "[::1]", "x", "", "10.0.0.01", "1.2.3.4 "]))
HOSTS = st.builds(
    Instance,
    IPS,
    st.sampled_from([0, 1, 80, 65535, 65536]),
    weight=st.one_of(st.floats(), st.floats(0, 10_000)),
    healthy=st.booleans(),
    metadata=st.dictionaries(st.sampled_from(["zone", "region", "x"]), st.none() | st.sampled_from("ab"), max_size=3),
)


@given(st.lists(st.lists(HOSTS, max_size=8), max_size=4))
def test_assignment_keeps_the_rules_of_envoy(tiers: list[list[Instance]]) -> None:
    """Valid addresses, each once; weights from 1 whose sums fit in 32 bits; priorities from 0 without a gap."""
    localities = json.loads(response(ASSIGNMENT, [assignment("orders", tiers)]).body)["resources"][0]["endpoints"]
    endpoints = [endpoint for locality in localities for endpoint in locality["lb_endpoints"]]
    addresses = [tuple(e["endpoint"]["address"]["socket_address"].values()) for e in endpoints]
    assert all(ipaddress.ip_address(ip) and 0 < port < 65536 for ip, port in addresses)
    assert len(set(addresses)) == len(addresses)
    assert all(e["load_balancing_weight"] >= 1 for e in endpoints)
    assert sum(locality["load_balancing_weight"] for locality in localities) < 2**32
    priorities = {locality["priority"] for locality in localities}
    assert priorities == set(range(len(priorities)))
    where = [(locality["priority"], *locality["locality"].items()) for locality in localities]
    assert len(set(where)) == len(where) and all(locality["lb_endpoints"] for locality in localities)


def test_response_has_a_version_that_changes_with_the_resources_only() -> None:
    first = response(ASSIGNMENT, [assignment("orders", [[instance()]])])
    again = response(ASSIGNMENT, [assignment("orders", [[instance()]])])
    other = response(ASSIGNMENT, [assignment("orders", [[instance(weight=2.0)]])])
    assert first == again and first.version != other.version
    read = json.loads(first.body)
    assert (read["version_info"], read["type_url"], len(read["resources"])) == (first.version, ASSIGNMENT, 1)


def test_read_options_names_services_and_the_fields_of_each_cluster() -> None:
    assert read_options({}) == (("*",), {})
    assert read_options({"services": ["a", "b", "a"], "cluster": {"lb_policy": "RANDOM"}}) == (
        ("a", "b"),
        {"lb_policy": "RANDOM"},
    )


def nested(depth: int) -> dict[str, Any]:
    return {"a": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(
    "options",
    [
        *({"service": ["a"]}, {"services": "a"}, {"services": [1]}, {"cluster": []}, {"cluster": {"name": "a"}}),
        *({"cluster": {"edsClusterConfig": {}}}, {"cluster": {"a": "x" * 20_000}}, {"cluster": nested(300)}),
    ],
    ids=lambda options: str(options)[:40],
)
def test_read_options_refuses_what_it_cannot_use(options: dict[str, Any]) -> None:
    with pytest.raises(BadCall, match=r"node\.metadata\.nacos_proxy"):
        read_options(options)


def test_cluster_reads_its_endpoints_from_the_cluster_that_names_us() -> None:
    made = cluster("orders", "dev/G@@orders", "discovery", {"connect_timeout": "2s", "lb_policy": "RANDOM"})
    assert (made["type"], made["connect_timeout"], made["lb_policy"]) == ("EDS", "2s", "RANDOM")
    source = made["eds_cluster_config"]
    assert source["service_name"] == "dev/G@@orders"
    assert source["eds_config"]["api_config_source"]["cluster_names"] == ["discovery"]
