"""What the legacy SDK's names mean."""

from __future__ import annotations

import pytest

from nacos_proxy.client.legacy import (
    Metadata,
    NacosException,
    NacosRequestException,
    address_segment,
    bool_text,
    check,
    metadata_of,
)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (None, {}),
        ("", {}),
        ({}, {}),
        ({"zone": "a", "n": 1}, {"zone": "a", "n": "1"}),
        ('{"zone": "a", "n": 1}', {"zone": "a", "n": "1"}),
        (' {"zone": "a"}', {"zone": "a"}),
        ("zone=a,n=1", {"zone": "a", "n": "1"}),
        ("equation=a=b", {"equation": "a=b"}),
    ],
)
def test_metadata_is_a_mapping_json_or_pairs(given: Metadata, meant: dict[str, str]) -> None:
    assert metadata_of(given) == meant


@pytest.mark.parametrize("given", ["zone", "zone=a,b", "{zone", "{"])
def test_metadata_that_is_none_of_them_is_named(given: str) -> None:
    with pytest.raises(NacosException, match="metadata must be a mapping, JSON, or k=v,k=v"):
        metadata_of(given)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("",), "service_name is required"),
        (("orders", ""), "ip is required"),
        (("orders", "10.0.0.1", -1), "port"),
        (("orders", "10.0.0.1", 65536), "port"),
        (("orders", "10.0.0.1", "http"), "port"),
        (("orders", "10.0.0.1", None), "port"),
    ],
)
def test_a_bad_parameter_is_named(arguments: tuple[str, ...], named: str) -> None:
    with pytest.raises(NacosException, match=named) as refused:
        check(*arguments)
    assert not isinstance(refused.value, NacosRequestException)


def test_a_good_one_is_not_refused() -> None:
    check("orders")
    check("orders", "10.0.0.1", 0)
    check("orders", "10.0.0.1", "65535")


def test_a_failed_request_is_a_nacos_exception_with_its_status() -> None:
    assert isinstance(NacosRequestException("no"), NacosException)
    assert (NacosRequestException("no").status, NacosRequestException("no", 404).status) == (0, 404)


def test_switches_and_places_are_written_as_the_servers_read_them() -> None:
    assert (bool_text(True), bool_text(False)) == ("true", "false")
    assert address_segment("10.0.0.1", 80) == "10.0.0.1:80"
    assert address_segment("2001:db8::1", "80") == address_segment("[2001:db8::1]", 80) == "[2001:db8::1]:80"
    assert address_segment("a/b", 80) == "a%2Fb:80"
