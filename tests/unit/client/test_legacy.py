"""What the client takes over from the legacy SDK."""

from __future__ import annotations

import pytest

from nacos_proxy.client.legacy import (
    Metadata,
    NacosException,
    NacosRequestException,
    address_segment,
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
def test_metadata_of_takes_a_mapping_json_or_pairs(given: Metadata, meant: dict[str, str]) -> None:
    assert metadata_of(given) == meant


@pytest.mark.parametrize("given", ["zone", "zone=a,b", "{zone", "{"])
def test_metadata_of_names_what_it_refuses(given: str) -> None:
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
def test_check_names_an_invalid_parameter(arguments: tuple[str, ...], named: str) -> None:
    with pytest.raises(NacosException, match=named) as refused:
        check(*arguments)
    assert not isinstance(refused.value, NacosRequestException)


def test_check_accepts_valid_parameters() -> None:
    check("orders")
    check("orders", "10.0.0.1", 0)
    check("orders", "10.0.0.1", "65535")


def test_nacos_request_exception_has_a_status() -> None:
    assert isinstance(NacosRequestException("no"), NacosException)
    assert (NacosRequestException("no").status, NacosRequestException("no", 404).status) == (0, 404)


def test_address_segment_puts_ipv6_in_brackets_and_escapes() -> None:
    assert address_segment("10.0.0.1", 80) == "10.0.0.1:80"
    assert address_segment("2001:db8::1", "80") == address_segment("[2001:db8::1]", 80) == "[2001:db8::1]:80"
    assert address_segment("a/b", 80) == "a%2Fb:80"
