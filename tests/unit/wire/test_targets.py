"""Formats of scrapers and load balancers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.targets import haproxy, nginx, prometheus, text, whole_weights
from tests.helpers.build import KEY, instance

HOSTS = [instance("10.0.0.1", 80, weight=2.0), instance("::1", 81, weight=1.0), instance("10.0.0.3", weight=0.0)]


def test_a_target_carries_what_is_known_of_it_as_labels() -> None:
    host = instance("10.0.0.1", 80, cluster="c", weight=0.5, healthy=False, metadata={"a-b": "1", "service": "x"})
    assert prometheus([host], KEY) == [
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


def test_lines_for_each_load_balancer() -> None:
    assert text(HOSTS, KEY) == b"10.0.0.1:80\n[::1]:81\n"
    assert nginx(HOSTS, KEY) == b"server 10.0.0.1:80 weight=2;\nserver [::1]:81 weight=1;\n"
    assert haproxy(HOSTS, KEY) == (
        b"server 10.0.0.1:80 10.0.0.1:80 weight 2 check\nserver _::1_:81 [::1]:81 weight 1 check\n"
    )


@pytest.mark.parametrize("ip", ["a;include/etc/passwd;#", "a{b", "a}", "$x", "a/b", "a'b", 'a"', "", "a\0", "a\\b"])
def test_an_address_that_could_say_more_than_where_is_left_out(ip: str) -> None:
    for write in (text, nginx, haproxy):
        assert write([instance(ip)], KEY) == b""


@pytest.mark.parametrize("port", [0, -1, 65_536])
def test_a_port_that_nobody_can_listen_on_is_left_out(port: int) -> None:
    for write in (text, nginx, haproxy):
        assert write([instance("10.0.0.1", port)], KEY) == b""


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
