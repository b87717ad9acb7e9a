"""Setting types: from text and back."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, TypeAdapter, ValidationError

from nacos_proxy.app.setting_types import (
    Address,
    ContextPath,
    DnsAddresses,
    DnsAliases,
    DnsZones,
    Duration,
    Networks,
    OptionalPath,
    SelectorText,
    Size,
    TextList,
    check_proxies,
    format_value,
    parse_dns_address,
    server_url,
    split_address,
    unix_path,
)
from nacos_proxy.model.masking import MASK

DURATION: TypeAdapter[float] = TypeAdapter(Duration)
SIZE: TypeAdapter[int] = TypeAdapter(Size)
TEXT_LIST: TypeAdapter[tuple[str, ...]] = TypeAdapter(TextList)
NETWORKS: TypeAdapter[tuple[str, ...]] = TypeAdapter(Networks)
ADDRESS: TypeAdapter[str] = TypeAdapter(Address)
CONTEXT: TypeAdapter[str] = TypeAdapter(ContextPath)


@pytest.mark.parametrize(
    ("text", "seconds", "shown"),
    [
        ("500ms", 0.5, "500ms"), ("5s", 5.0, "5s"), ("2.5 s", 2.5, "2.5s"), ("10m", 600.0, "10m"), ("90", 90.0, "90s"),
        ("24h", 86_400.0, "24h"), ("7d", 604_800.0, "7d"), ("1d", 86_400.0, "24h"), ("FOREVER", math.inf, "forever"),
        ("0", 0.0, "0s"), (3, 3.0, "3s"), ("1000ms", 1.0, "1s"),
    ],
)  # fmt: skip
def test_duration_is_text_or_seconds(text: str, seconds: float, shown: str) -> None:
    assert DURATION.validate_python(text) == seconds
    assert format_value(seconds, "duration") == shown


@given(st.floats(min_value=0, max_value=1e8).map(lambda x: round(x, 3)))
def test_format_value_of_a_duration_is_parsed_as_the_same(seconds: float) -> None:
    assert DURATION.validate_python(format_value(seconds, "duration")) == pytest.approx(seconds, rel=1e-9)


@pytest.mark.parametrize("value", ["5 years", "-1s", "", "s", True, -1, math.nan])
def test_duration_refuses_other_text(value: Any) -> None:
    with pytest.raises(ValidationError):
        DURATION.validate_python(value)


@pytest.mark.parametrize(
    ("text", "size", "shown"),
    [
        ("8192", 8192, "8KiB"), ("64KiB", 65_536, "64KiB"), ("1MiB", 1 << 20, "1MiB"), ("2g", 2 << 30, "2GiB"),
        ("64kb", 65_536, "64KiB"), (1000, 1000, "1000"), (0, 0, "0"),
    ],
)  # fmt: skip
def test_size_is_text_or_bytes(text: str, size: int, shown: str) -> None:
    assert SIZE.validate_python(text) == size
    assert format_value(size, "size") == shown
    assert SIZE.validate_python(shown) == size


@pytest.mark.parametrize("value", ["1.5MiB", "big", "-1", -1])
def test_size_refuses_other_text(value: Any) -> None:
    with pytest.raises(ValidationError):
        SIZE.validate_python(value)


def test_text_list_is_text_with_commas_or_a_list() -> None:
    assert TEXT_LIST.validate_python(" a, b ,,c") == ("a", "b", "c")
    assert TEXT_LIST.validate_python(["a", "b"]) == ("a", "b")
    assert TEXT_LIST.validate_python("") == ()
    assert format_value(("a", "b")) == "a,b"


def test_networks_name_the_one_that_is_invalid() -> None:
    assert NETWORKS.validate_python("10.0.0.1/8, fd00::/8") == ("10.0.0.1/8", "fd00::/8")
    with pytest.raises(ValidationError, match=r"'nonsense' is not a network"):
        NETWORKS.validate_python("10.0.0.0/8,nonsense")


@pytest.mark.parametrize(
    ("text", "path"), [("/nacos", "/nacos"), ("nacos/", "/nacos"), ("/", ""), ("", ""), ("/a/b", "/a/b")]
)
def test_context_path_has_one_form(text: str, path: str) -> None:
    assert CONTEXT.validate_python(text) == path


@pytest.mark.parametrize("text", ["/a/../b", "/a//b", "/a?b", "http://a", "/ä"])
def test_context_path_refuses_other_text(text: str) -> None:
    with pytest.raises(ValidationError, match="write a context path like"):
        CONTEXT.validate_python(text)


def test_optional_path_is_none_for_empty_text() -> None:
    assert TypeAdapter[Any](OptionalPath).validate_python("") is None


def test_format_value_masks_secrets_only() -> None:
    assert format_value(True) == "true"
    assert format_value(False) == "false"
    assert format_value(None) == ""
    assert format_value(0.5) == "0.5"
    assert format_value(8840) == "8840"
    assert format_value(SecretStr("hush")) == MASK
    assert format_value(SecretStr("")) == ""


def test_address_has_host_and_port() -> None:
    for text, parts in (("127.0.0.1:8841", ("127.0.0.1", 8841)), ("[::1]:0", ("::1", 0)), ("web:1", ("web", 1))):
        assert split_address(ADDRESS.validate_python(text)) == parts
    assert ADDRESS.validate_python("") == ""


@pytest.mark.parametrize(
    "text", ["8841", ":8841", "web", "web:", "web:http", "::1:8841", "[web]:80", "web:65536", "[]:1"]
)
def test_address_refuses_other_text(text: str) -> None:
    with pytest.raises(ValidationError, match=r"write an address like 127\.0\.0\.1:8841"):
        ADDRESS.validate_python(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:8853", ("127.0.0.1", 8853)), ("[::1]:0", ("::1", 0))],
)
def test_parse_dns_address_reads_an_address_and_a_port(text: str, address: tuple[str, int]) -> None:
    assert parse_dns_address(text) == address


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (DnsAddresses, "0.0.0.0:53", "all addresses"),
        (DnsAddresses, "127.0.0.1:8853,[::]:53", "all addresses"),
        (DnsAddresses, "localhost:53", "not an IP address"),
        (DnsAddresses, "8853", "write an address like"),
        (DnsAddresses, "127.0.0.1:70000", "write an address like"),
        (DnsAddresses, "::1:53", "write an address like"),
        (DnsZones, "", "at least 1"),
        (DnsZones, "nacos,a..b", "not a name"),
        (DnsAliases, "a", "not an alias"),
        (SelectorText, "zone=(", "write a selector like"),
    ],
)
def test_settings_of_dns_say_what_is_wrong(kind: Any, text: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(kind).validate_python(text)


@pytest.mark.parametrize(
    ("url", "plain", "path"),
    [
        ("http://10.0.0.1:8848", "http://10.0.0.1:8848", ""),
        ("10.0.0.1", "10.0.0.1", ""),
        ("proxy+http://site", "http://site:8840", ""),
        ("proxy+http://site/nacos", "http://site:8840/nacos", ""),
        ("proxy+http://[fd00::1]", "http://[fd00::1]:8840", ""),
        ("proxy+http://[fd00::1]:1/x", "http://[fd00::1]:1/x", ""),
        ("proxy+https://site", "https://site", ""),
        ("proxy+unix:///run/upper.sock", "http://localhost", "/run/upper.sock"),
    ],
)
def test_server_url_of_a_proxy_is_that_of_its_server(url: str, plain: str, path: str) -> None:
    assert (server_url(url), unix_path(url)) == (plain, path)
    check_proxies((url,))


@pytest.mark.parametrize(
    ("urls", "text"),
    [
        (("proxy+http://a", "http://b"), "choose one kind"),
        (("proxy+http://a", "proxy+https://b"), "different ways"),
        (("proxy+ftp://a",), "unknown"),
        (("proxy+unix:///a", "proxy+unix:///b"), "one Unix socket"),
        (("proxy+unix://a",), "whole path"),
    ],
)
def test_check_proxies_refuses_what_does_not_fit_together(urls: tuple[str, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        check_proxies(urls)
