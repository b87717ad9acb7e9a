"""Parameters of our own API."""

from __future__ import annotations

from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nacos_proxy.model.errors import BadCall
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.wire.rest.query import (
    Flag,
    InstanceAddress,
    Names,
    PageQuery,
    Query,
    ServiceQuery,
    View,
    ViewQuery,
    bounded,
    read_address,
    read_wait,
    refusal,
)
from tests.helpers.build import instance, snapshot


class Sample(Query):
    flag: Flag = False
    number: Annotated[int, bounded(0, 10)] = 5
    word: str = "x"


class Named(Query):
    names: Names


def test_query_treats_an_empty_value_as_absent() -> None:
    query = Sample.model_validate({"flag": "", "number": "", "word": ""})
    assert (query.flag, query.number, query.word) == (False, 5, "x")


def test_query_refuses_unknown_names_but_not_credentials() -> None:
    assert Sample.model_validate({"accessToken": "a", "username": "b"}).word == "x"
    with pytest.raises(BadCall, match="did you mean 'word'") as caught:
        Sample.model_validate({"wrod": "a"})
    assert caught.value.parameter == "wrod"


@pytest.mark.parametrize(("text", "value"), [("TRUE", True), ("1", True), ("off", False), ("no", False), ("", False)])
def test_flag_reads_true_and_false(text: str, value: bool) -> None:
    assert Sample.model_validate({"flag": text}).flag is value


@pytest.mark.parametrize("text", ["t", "y", "2", "maybe"])
def test_flag_refuses_other_words(text: str) -> None:
    with pytest.raises(BadCall) as caught:
        Sample.model_validate({"flag": text})
    assert caught.value.parameter == "flag"


@pytest.mark.parametrize("text", ["-1", "1.0", "11", "²", "1" * 30, "a", "+1", " 1", "1_0"])
def test_bounded_refuses_a_number_out_of_its_bounds_and_names_the_parameter(text: str) -> None:
    with pytest.raises(BadCall) as caught:
        Sample.model_validate({"number": text})
    assert caught.value.parameter == "number"


def test_names_drops_repeated_names_and_requires_one() -> None:
    assert Named.model_validate({"names": ["b", "", "a", "b"]}).names == ["b", "a"]
    with pytest.raises(BadCall, match="'names' is required"):
        Named.model_validate({"names": [""]})


def test_refusal_turns_pydantic_errors_into_ours_with_missing_fields_last() -> None:
    class Strict(Query, strict=True):
        ip: str
        port: int

    for values, text in (({"port": "80"}, "Param 'port' is illegal, it must be a whole number."), ({}, "'ip' is requ")):
        with pytest.raises(ValidationError) as caught:
            Strict.model_validate(values)
        assert text in refusal(caught.value.errors()).text


def test_service_key_reads_a_name_in_three_ways() -> None:
    assert ServiceQuery().service_key("a") == ServiceKey("public", "DEFAULT_GROUP", "a")
    assert ServiceQuery(group="g", namespace="n").service_key("a") == ServiceKey("n", "g", "a")
    assert ServiceQuery(group="other").service_key("g@@a") == ServiceKey("public", "g", "a")


def test_checked_names_our_parameters() -> None:
    with pytest.raises(BadCall) as caught:
        ServiceQuery(namespace="n" * 65).service_key("a")
    assert (caught.value.parameter, "'namespace'" in caught.value.text) == ("namespace", True)


def test_view_keeps_the_order_of_clusters_and_filters_by_them() -> None:
    view = ViewQuery.model_validate({"clusters": ["b,,a", "c"], "healthy_only": "true"}).view()
    assert (view, view.cluster_set) == (View("b,a,c", True), frozenset("abc"))
    assert ViewQuery.model_validate({}).view() == View("", False)


@pytest.mark.parametrize(
    ("asked", "shown"),
    [("", ""), ("a", "a"), ("b,a", "a,b"), ("a,a,x,b", "a,b"), ("x", None), ("x,y", None)],
)
def test_view_within_drops_clusters_that_the_service_lacks(asked: str, shown: str | None) -> None:
    found = snapshot(instance(cluster="a"), instance("10.0.0.2", cluster="b"))
    within = View(asked, True).within(found)
    assert within == (None if shown is None else View(shown, True))
    hosts = () if within is None else within.of(found).hosts
    assert hosts == View(asked, True).of(found).hosts


def test_view_with_long_clusters_is_not_cached() -> None:
    for text, same in (("a", True), ("a" * 60 + ("," + "b" * 60) * 9, False)):
        views = [ViewQuery(clusters=[text]).view() for _ in range(2)]
        assert views[0] == views[1]
        assert (views[0] is views[1]) is same


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5.0), ("5s", 5.0), ("1500ms", 1.5), ("2m", 120.0), ("0.5s", 0.5), ("1000m", 300.0)],
)
def test_read_wait_reads_times_up_to_five_minutes(text: str, seconds: float) -> None:
    assert read_wait(text) == seconds


@pytest.mark.parametrize("text", ["-1", "1h", "soon", "1e3", "nan", "1.", "5 s"])
def test_read_wait_refuses_other_text(text: str) -> None:
    with pytest.raises(BadCall) as caught:
        read_wait(text)
    assert caught.value.parameter == "wait"


@given(st.sampled_from(["10.0.0.1", "my-host", "2001:db8::1", "::1", "fe80::1%eth0"]), st.integers(0, 65535))
def test_read_address_reads_the_address_of_an_instance(ip: str, port: int) -> None:
    assert read_address(instance(ip, port).address) == InstanceAddress(ip, port)


@pytest.mark.parametrize(
    "text",
    ["2001:db8::7:80", "[2001:db8::7]:80", "[2001:DB8::7]:80", "2001:db8:0:0:0:0:0:7:80", "[2001:0db8::0007]:80"],
)
def test_read_address_reads_ipv6_in_every_spelling(text: str) -> None:
    assert read_address(text) == InstanceAddress("2001:db8::7", 80)


@pytest.mark.parametrize("ip", ["10.0.0.1:80", "[2001:db8::7", "x::y", "a]b", "[a:b]"])
def test_read_address_accepts_names_that_are_not_addresses(ip: str) -> None:
    assert read_address(instance(ip, 80).address) == InstanceAddress(ip, 80)


@pytest.mark.parametrize(
    "text",
    ["", "10.0.0.1", "2001:db8::7", "10.0.0.1:80:80", "[::1]", "a:b", "a:-1", "[::1]:80x", ":", "[]:80", "[::1:80"],
)
def test_read_address_refuses_other_text(text: str) -> None:
    with pytest.raises(BadCall):
        read_address(text)


def test_list_call_counts_pages_from_one() -> None:
    query = PageQuery.model_validate({"namespace": "n", "page": "2", "size": "5"})
    call = query.list_call(page=query.page, size=query.size)
    assert (call.namespace, call.group, call.page, call.size) == ("n", "DEFAULT_GROUP", 2, 5)
