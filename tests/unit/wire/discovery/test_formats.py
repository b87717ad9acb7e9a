"""Formats of scrapers and load balancers."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.services import Instance
from nacos_proxy.wire.discovery import haproxy, nginx
from nacos_proxy.wire.discovery.addresses import whole_weights
from nacos_proxy.wire.discovery.formats import text
from nacos_proxy.wire.discovery.prometheus import target_groups
from tests.helpers.build import KEY, instance

HOSTS = [instance("10.0.0.1", 80, weight=2.0), instance("::1", 81, weight=1.0), instance("10.0.0.3", weight=0.0)]


def test_target_groups_has_labels_for_every_field() -> None:
    host = instance("10.0.0.1", 80, cluster="c", weight=0.5, healthy=False, metadata={"a-b": "1", "service": "x"})
    assert target_groups([host], KEY) == [
        {
            "targets": ["10.0.0.1:80"],
            "labels": {
                "__meta_nacos_metadata_a_b": "1",
                "__meta_nacos_metadata_service": "x",
                "__meta_nacos_namespace": "public",
                "__meta_nacos_group": "DEFAULT_GROUP",
                "__meta_nacos_service": "orders",
                "__meta_nacos_cluster": "c",
                "__meta_nacos_weight": "0.5",
                "__meta_nacos_healthy": "false",
                "__meta_nacos_ephemeral": "true",
            },
        }
    ]


def test_formats_render_lines_for_each_load_balancer() -> None:
    assert text(HOSTS) == b"10.0.0.1:80\n[::1]:81\n"
    assert nginx.render(HOSTS) == b"server 10.0.0.1:80 weight=2;\nserver [::1]:81 weight=1;\n"
    assert haproxy.render(HOSTS) == (
        b"server 10.0.0.1:80 10.0.0.1:80 weight 2 check\nserver _::1_:81 [::1]:81 weight 1 check\n"
    )


@pytest.mark.parametrize("ip", ["a;include/etc/passwd;#", "a{b", "a}", "$x", "a/b", "a'b", 'a"', "", "a\0", "a\\b"])
def test_formats_leave_out_addresses_with_other_syntax(ip: str) -> None:
    for write in (text, nginx.render, haproxy.render):
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
    for write in (text, nginx.render, haproxy.render):
        assert write([instance(ip)]) == b""


@pytest.mark.parametrize("ip", ["localhost", "a-b.c-1", "my_web_1", "1.a", "0x7f.a", "a" * 63, "xn--bcher-kva.example"])
def test_formats_accept_host_names(ip: str) -> None:
    assert text([instance(ip, 8080)]) == f"{ip}:8080\n".encode()


def test_haproxy_starts_despite_an_unresolvable_name() -> None:
    assert haproxy.render([instance("Nosuch.invalid", 80)]) == (
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
    assert nginx.render(hosts) == f"server {address}:80 weight={len(spellings)};\n".encode()
    assert haproxy.render(hosts).count(b"\n") == 1


def test_target_groups_puts_ipv6_in_one_pair_of_brackets() -> None:
    assert target_groups([instance("[2001:DB8::7]", 80)], KEY)[0]["targets"] == ["[2001:db8::7]:80"]


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
    nginx.render: re.compile(
        r"server (?P<host>[0-9a-z._-]+|\[[0-9a-f:.]+\]):(?P<port>[0-9]+) weight=(?P<weight>[0-9]+);"
    ),
    haproxy.render: re.compile(
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
            most = 100 if write is nginx.render else 256
            assert match is None or write is text or 1 <= int(match["weight"]) <= most


@pytest.mark.parametrize("port", [0, -1, 65_536])
def test_servers_leaves_out_invalid_ports(port: int) -> None:
    for write in (text, nginx.render, haproxy.render):
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
