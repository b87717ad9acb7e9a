"""Parameters of our own API."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.errors import BadCall
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.wire.rest.query import (
    InstanceAddress,
    Query,
    View,
    read_address,
    read_key,
    read_list,
    read_view,
    read_wait,
)
from tests.helpers.build import instance, snapshot


def test_of_a_parameter_given_twice_the_first_counts() -> None:
    query = Query("a=1&a=2&b=&a=1")
    assert (query.text("a"), query.text("b", "x"), query.text("c"), query.all("a")) == ("1", "x", "", ["1", "2"])


@pytest.mark.parametrize(("text", "value"), [("TRUE", True), ("1", True), ("off", False), ("no", False), ("", None)])
def test_flags(text: str, value: bool | None) -> None:
    for default in (True, False):
        assert Query(f"f={text}").flag("f", default) is (default if value is None else value)


@pytest.mark.parametrize("text", ["-1", "1.0", "11", "²", "1" * 30, "a"])
def test_a_number_out_of_its_bounds_names_its_parameter(text: str) -> None:
    with pytest.raises(BadCall) as caught:
        Query(f"n={text}").number("n", 1, 0, 10)
    assert caught.value.parameter == "n"


def test_a_service_is_named_in_three_ways() -> None:
    assert read_key("a", Query("")) == ServiceKey("public", "DEFAULT_GROUP", "a")
    assert read_key("a", Query("group=g&namespace=n")) == ServiceKey("n", "g", "a")
    assert read_key("g@@a", Query("group=other")) == ServiceKey("public", "g", "a")


def test_errors_of_the_common_checks_speak_of_our_parameters() -> None:
    with pytest.raises(BadCall) as caught:
        read_key("a", Query(f"namespace={'n' * 65}"))
    assert (caught.value.parameter, "'namespace'" in caught.value.text) == ("namespace", True)


def test_a_view_keeps_the_order_of_clusters_and_filters_by_them() -> None:
    view = read_view(Query("clusters=b,,a&clusters=c&healthy_only=true"))
    assert (view, view.cluster_set) == (View("b,a,c", True), frozenset("abc"))
    assert read_view(Query(""), healthy_only=True) == View("", True)


@pytest.mark.parametrize(
    ("asked", "shown"),
    [("", ""), ("a", "a"), ("b,a", "a,b"), ("a,a,x,b", "a,b"), ("x", None), ("x,y", None)],
)
def test_of_the_clusters_that_are_named_those_count_that_a_service_has(asked: str, shown: str | None) -> None:
    found = snapshot(instance(cluster="a"), instance("10.0.0.2", cluster="b"))
    within = View(asked, True).within(found)
    assert within == (None if shown is None else View(shown, True))
    hosts = () if within is None else within.of(found).hosts
    assert hosts == View(asked, True).of(found).hosts


def test_a_view_of_long_clusters_is_not_remembered() -> None:
    for text, same in (("a", True), ("a" * 60 + ("," + "b" * 60) * 9, False)):
        views = [read_view(Query(f"clusters={text}")) for _ in range(2)]
        assert views[0] == views[1]
        assert (views[0] is views[1]) is same


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("", 30.0), ("5", 5.0), ("5s", 5.0), ("1500ms", 1.5), ("2m", 120.0), ("0.5s", 0.5), ("1000m", 300.0)],
)
def test_a_wait_is_a_time_of_at_most_five_minutes(text: str, seconds: float) -> None:
    assert read_wait(Query(f"wait={text}")) == seconds


@pytest.mark.parametrize("text", ["-1", "1h", "soon", "1e3", "nan", "1.", "5 s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(BadCall) as caught:
        read_wait(Query(f"wait={text}"))
    assert caught.value.parameter == "wait"


@given(st.sampled_from(["10.0.0.1", "my-host", "2001:db8::1", "::1", "fe80::1%eth0"]), st.integers(0, 65535))
def test_an_address_is_read_as_an_instance_writes_it(ip: str, port: int) -> None:
    assert read_address(instance(ip, port).address) == InstanceAddress(ip, port)


@pytest.mark.parametrize(
    "text",
    ["2001:db8::7:80", "[2001:db8::7]:80", "[2001:DB8::7]:80", "2001:db8:0:0:0:0:0:7:80", "[2001:0db8::0007]:80"],
)
def test_an_ipv6_address_is_read_in_every_spelling(text: str) -> None:
    assert read_address(text) == InstanceAddress("2001:db8::7", 80)


@pytest.mark.parametrize("ip", ["10.0.0.1:80", "[2001:db8::7", "x::y", "a]b", "[a:b]"])
def test_what_was_registered_as_no_address_has_a_path_too(ip: str) -> None:
    assert read_address(instance(ip, 80).address) == InstanceAddress(ip, 80)


@pytest.mark.parametrize(
    "text",
    ["", "10.0.0.1", "2001:db8::7", "10.0.0.1:80:80", "[::1]", "a:b", "a:-1", "[::1]:80x", ":", "[]:80", "[::1:80"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadCall):
        read_address(text)


def test_a_list_counts_pages_from_one() -> None:
    call = read_list(Query("namespace=n&page=2&size=5"))
    assert (call.namespace, call.group, call.page, call.size) == ("n", "DEFAULT_GROUP", 2, 5)
