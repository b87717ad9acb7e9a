"""Formats of scrapers and load balancers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.services import Instance
from nacos_proxy.wire.discovery.addresses import whole_weights
from nacos_proxy.wire.discovery.base import Shown
from nacos_proxy.wire.discovery.formats import FORMATS
from nacos_proxy.wire.discovery.prometheus import nacos_target_groups
from nacos_proxy.wire.discovery.traefik import service_name
from tests.helpers.build import KEY, instance, key


def _writer(name: str) -> Callable[[Sequence[Instance]], Any]:
    return lambda hosts: FORMATS[name].of([Shown(KEY, hosts)])


text, nginx, haproxy, target_groups = map(_writer, ("text", "nginx", "haproxy", "prometheus"))

HOSTS = [instance("10.0.0.1", 80, weight=2.0), instance("::1", 81, weight=1.0), instance("10.0.0.3", weight=0.0)]


def test_target_groups_has_labels_for_every_field() -> None:
    host = instance("10.0.0.1", 80, cluster="c", weight=0.5, healthy=False, metadata={"a-b": "1", "service": "x"})
    assert target_groups([host]) == [
        {
            "targets": ["10.0.0.1:80"],
            "labels": {
                "__meta_nacos_metadata_a_b": "1",
                "__meta_nacos_metadata_service": "x",
                "__meta_nacos_namespace": "public",
                "__meta_nacos_group": "DEFAULT_GROUP",
                "__meta_nacos_service": "orders",
                "__meta_nacos_cluster": "c",
                "__meta_nacos_clusters": ",c,",
                "__meta_nacos_instance_id": "10.0.0.1#80#c#DEFAULT_GROUP@@orders",
                "__meta_nacos_address": "10.0.0.1",
                "__meta_nacos_port": "80",
                "__meta_nacos_enabled": "true",
                "__meta_nacos_weight": "0.5",
                "__meta_nacos_healthy": "false",
                "__meta_nacos_ephemeral": "true",
            },
        }
    ]


@pytest.mark.parametrize(
    ("metadata", "scrape"),
    [
        ({}, {}),
        ({"secure": "true"}, {"__scheme__": "https"}),
        ({"protocol": "HTTPS"}, {"__scheme__": "https"}),
        ({"protocol": "dubbo", "secure": "false"}, {}),
        ({"prometheus.io/path": "metrics", "context-path": "/x"}, {"__metrics_path__": "/metrics"}),
        ({"context-path": "/shop/"}, {"__metrics_path__": "/shop/actuator/prometheus"}),
        ({"context-path": "/"}, {"__metrics_path__": "/actuator/prometheus"}),
        (
            {"management.context-path": "admin", "context-path": "/x"},
            {"__metrics_path__": "/admin/actuator/prometheus"},
        ),
    ],
)
def test_target_groups_say_how_to_scrape(metadata: dict[str, str], scrape: dict[str, str]) -> None:
    labels = target_groups([instance("10.0.0.1", 80, metadata=metadata)])[0]["labels"]
    assert {name: text for name, text in labels.items() if not name.startswith("__meta")} == scrape


def test_target_groups_keeps_names_that_become_the_same_label() -> None:
    metadata = {"a.b": "1", "a-b": "2", "a_b": "3", "a_b_2": "4"}
    labels = target_groups([instance("10.0.0.1", 80, metadata=metadata)])[0]["labels"]
    found = {name.removeprefix("__meta_nacos_metadata_"): text for name, text in labels.items() if "metadata" in name}
    assert found == {"a_b": "3", "a_b_2": "4", "a_b_3": "2", "a_b_4": "1"}


LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")  # Prometheus 2 refuses the whole list over any other


@given(st.dictionaries(st.text(st.sampled_from("aZ1_.-/ä")), st.one_of(st.none(), st.text()), max_size=8))
def test_every_metadata_entry_is_a_label_that_prometheus_accepts(metadata: dict[str, str | None]) -> None:
    host = instance("10.0.0.1", 80, metadata=metadata)
    texts = sorted(text for text in metadata.values() if text is not None)
    ours, theirs = target_groups([host])[0]["labels"], nacos_target_groups([Shown(KEY, [host])])[0]["labels"]
    assert all(LABEL.fullmatch(name) for name in (*ours, *theirs))
    assert sorted(text for name, text in ours.items() if name.startswith("__meta_nacos_metadata_")) == texts
    assert sorted([*texts, "DEFAULT"]) == sorted(theirs.values())


def test_nacos_target_groups_are_as_nacos_writes_them() -> None:
    """Recorded from 2.5.1, which has an IPv6 address without brackets and the label `e/f`."""
    host = instance("::1", 81, cluster="c9", metadata={"a.b": "1", "c-d": "2", "e/f": "3"})
    labels = {"__meta_clusterName": "c9", "a_b": "1", "c_d": "2", "e_f": "3"}
    assert nacos_target_groups([Shown(KEY, [host])]) == [{"targets": ["[::1]:81"], "labels": labels}]


def test_formats_render_lines_for_each_load_balancer() -> None:
    assert text(HOSTS) == b"10.0.0.1:80\n[::1]:81\n"
    assert nginx(HOSTS) == b"server 10.0.0.1:80 weight=2;\nserver [::1]:81 weight=1;\n"
    assert haproxy(HOSTS) == (
        b"server 10.0.0.1:80 10.0.0.1:80 weight 2 check\nserver _::1_:81 [::1]:81 weight 1 check\n"
    )


@pytest.mark.parametrize("ip", ["a;include/etc/passwd;#", "a{b", "a}", "$x", "a/b", "a'b", 'a"', "", "a\0", "a\\b"])
def test_formats_leave_out_addresses_with_other_syntax(ip: str) -> None:
    for write in (text, nginx, haproxy):
        assert write([instance(ip)]) == b""


@pytest.mark.parametrize(
    "ip",
    [
        *("10.0.0.1:80", "999.1.1.1", "10.0.0", "010.0.0.1", "1", "0x7f000001", "a.0x7f", "127.1", "10.0.0.1/8"),
        *("2001:db8::g", "[2001:db8::7", "[[::1]]", "[10.0.0.1]", "::1%eth0", "[fe80::1%;}]", ":", "::1.", "1::2::3"),
        *("-a", "a-", "a..b", ".a", "a.", "a" * 64, ".".join(["a" * 60] * 5), "\u212a", "\u0661.0.0.1", "unix", "UNIX"),
    ],
)
def test_formats_leave_out_what_is_neither_ip_nor_host_name(ip: str) -> None:
    for write in (text, nginx, haproxy):
        assert write([instance(ip)]) == b""


@pytest.mark.parametrize("ip", ["localhost", "a-b.c-1", "my_web_1", "1.a", "0x7f.a", "a" * 63, "xn--bcher-kva.example"])
def test_formats_accept_host_names(ip: str) -> None:
    assert text([instance(ip, 8080)]) == f"{ip}:8080\n".encode()


def test_haproxy_starts_despite_an_unresolvable_name() -> None:
    assert haproxy([instance("Nosuch.invalid", 80)]) == (
        b"server nosuch.invalid:80 nosuch.invalid:80 weight 1 check init-addr last,libc,none\n"
    )


@pytest.mark.parametrize(
    "spellings",
    [("2001:db8::7", "[2001:db8::7]", "2001:DB8::7", "2001:db8:0:0::7", "[2001:0DB8::0007]"), ("web", "WEB")],
)
def test_servers_lists_an_address_once_in_whichever_spelling(spellings: tuple[str, ...]) -> None:
    hosts = [instance(ip, 80, weight=float(n + 1)) for n, ip in enumerate(spellings)]
    address = f"[{spellings[0]}]" if ":" in spellings[0] else spellings[0]
    assert text(hosts) == f"{address}:80\n".encode()
    assert nginx(hosts) == f"server {address}:80 weight={len(spellings)};\n".encode()
    assert haproxy(hosts).count(b"\n") == 1


def test_target_groups_puts_ipv6_in_one_pair_of_brackets() -> None:
    assert target_groups([instance("[2001:DB8::7]", 80)])[0]["targets"] == ["[2001:db8::7]:80"]


_PIECES = st.sampled_from(["10", ".", "0", "1", ":", "::", "[", "]", "db8", "a", "A", "-", "_", "%", ";", "unix", "x"])
_IPS = st.one_of(
    st.text(max_size=12),
    st.lists(_PIECES, max_size=9).map("".join),
    st.ip_addresses().map(str),
    st.ip_addresses(v=6).map(lambda ip: f"[{ip.exploded.upper()}]"),
)
_WEIGHTS = st.one_of(st.floats(), st.integers(-1, 300).map(float))
_HOSTS = st.builds(lambda ip, port, weight: instance(ip, port, weight=weight), _IPS, st.integers(-1, 65_537), _WEIGHTS)
_LINES = {
    text: re.compile(r"(?P<host>[0-9a-z._-]+|\[[0-9a-f:.]+\]):(?P<port>[0-9]+)"),
    nginx: re.compile(r"server (?P<host>[0-9a-z._-]+|\[[0-9a-f:.]+\]):(?P<port>[0-9]+) weight=(?P<weight>[0-9]+);"),
    haproxy: re.compile(
        r"server [0-9a-zA-Z._:-]+ (?P<host>[0-9a-z._-]+|\[[0-9a-f:.]+\]):(?P<port>[0-9]+)"
        r" weight (?P<weight>[0-9]+) check( init-addr last,libc,none)?"
    ),
}


@given(st.lists(_HOSTS, max_size=6))
def test_formats_write_one_line_per_server_for_any_registrations(hosts: list[Instance]) -> None:
    for write, line in _LINES.items():
        found = [line.fullmatch(row) for row in write(hosts).decode().splitlines()]
        assert all(found)
        places = [(match["host"], match["port"]) for match in found if match]
        assert len(set(places)) == len(places)
        assert all(1 <= int(port) <= 65_535 for _, port in places)
        for match in found:
            most = 100 if write is nginx else 256
            assert match is None or write is text or 1 <= int(match["weight"]) <= most


@pytest.mark.parametrize("port", [0, -1, 65_536])
def test_servers_leaves_out_invalid_ports(port: int) -> None:
    for write in (text, nginx, haproxy):
        assert write([instance("10.0.0.1", port)]) == b""


@given(st.lists(st.floats(1e-6, 10_000), min_size=1, max_size=8), st.integers(1, 256))
def test_whole_weights_stay_within_bounds_and_in_order(weights: list[float], most: int) -> None:
    whole = whole_weights(weights, most)
    assert all(1 <= number <= most for number in whole)
    for (a, b), (x, y) in zip(pairwise(weights), pairwise(whole), strict=True):
        assert (a <= b) <= (x <= y)


def test_whole_weights_that_fit_are_left_alone() -> None:
    assert whole_weights([1.0, 100.0], 100) == [1, 100]
    assert whole_weights([0.5, 1.0], 100) == [50, 100]
    assert whole_weights([], 100) == []


# Traefik


def test_traefik_has_a_load_balancer_for_each_service() -> None:
    secure = instance("::1", 443, metadata={"secure": "true"})
    grpc = instance("10.0.0.4", 81, weight=2.5, metadata={"protocol": "gRPC"})
    shown = [Shown(KEY, [*HOSTS, secure, grpc]), Shown(key("none", "g"), [])]
    servers = [
        {"url": "http://10.0.0.1:80", "weight": 8000},
        {"url": "http://[::1]:81", "weight": 4000},
        {"url": "https://[::1]:443", "weight": 4000},
        {"url": "h2c://10.0.0.4:81", "weight": 10000},
    ]
    assert FORMATS["traefik"].of(shown) == {
        "http": {
            "services": {"orders": {"loadBalancer": {"servers": servers}}, "g/none": {"loadBalancer": {"servers": []}}}
        }
    }


def test_traefik_has_no_empty_map() -> None:
    assert FORMATS["traefik"].of([]) == {}


_NAMES = st.text(st.sampled_from("ab/@%."), min_size=1, max_size=5).filter(lambda name: "@@" not in name)
_GROUPS = st.sampled_from(["DEFAULT_GROUP", "a", "a.b"])


@given(st.lists(st.tuples(_NAMES, _GROUPS), unique=True))
def test_traefik_names_each_service_differently_and_without_a_provider(names: list[tuple[str, str]]) -> None:
    found = [service_name(key(name, group)) for name, group in names]
    assert len(set(found)) == len(names)
    assert not any("@" in name for name in found)
