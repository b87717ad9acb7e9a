"""What a service file means, and the sentence that refuses a wrong one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.catalog.health_checks import CheckSpec
from nacos_proxy.model.limits import LENIENT
from nacos_proxy.model.services import Instance
from nacos_proxy.wire.service_files import BadFile, Declared, parse
from tests.helpers.build import key

HERE = 'service = "legacy"\naddress = "127.0.0.1:8080"\n'


def only(text: str) -> Declared:
    (one,) = parse(text)
    return one


def test_parse_three_lines_are_enough() -> None:
    found = only(HERE + 'check.http = "/health"\n')
    assert (found.register.service, found.register.instance) == (key("legacy"), Instance("127.0.0.1", 8080))
    assert found.managed == {"check": {"http": "http://127.0.0.1:8080/health"}}


def test_parse_without_a_check_is_not_managed_by_one() -> None:
    assert only(HERE).managed is None


def test_parse_takes_every_field() -> None:
    found = only(
        """
        service = "shop@@legacy"
        namespace = "prod"
        address = "[2001:DB8::7]:8080"
        cluster = "c1"
        weight = 2
        metadata = { zone = "a", version = "2" }
        enabled = false
        check = { http = "https://other:1/x", interval = "10s", timeout = 1, failures = 5 }
        deregister_after = "10m"
        """
    )
    more: dict[str, Any] = {"weight": 2.0, "enabled": False, "metadata": {"zone": "a", "version": "2"}}
    assert found.register.service == key("legacy", "shop", "prod")
    assert found.register.instance == Instance("2001:db8::7", 8080, "c1", **more)
    assert CheckSpec.parse(found.managed) == CheckSpec("http", "https://other:1/x", 10.0, 1.0, 5, 600.0)


@pytest.mark.parametrize(
    ("check", "means"),
    [
        ('http = "/a?b=c"', {"http": "http://[::1]:80/a?b=c"}),
        ('http = "http://10.0.0.1/x"', {"http": "http://10.0.0.1/x"}),
        ("tcp = true", {"tcp": "[::1]:80"}),
        ('tcp = "localhost:81"', {"tcp": "localhost:81"}),
    ],
)
def test_parse_reads_a_check_relative_to_the_address_or_as_given(check: str, means: dict[str, str]) -> None:
    assert only(f'service = "a"\naddress = "[::1]:80"\n[check]\n{check}').managed == {"check": means}


def test_parse_tables_share_what_stands_before_them() -> None:
    first, second = parse(
        """
        service = "legacy"
        check.tcp = true
        [[instance]]
        address = "127.0.0.1:1"
        [[instance]]
        address = "127.0.0.1:2"
        service = "other"
        check.http = "/"
        """
    )
    assert (first.where, second.where) == ("instance 1: ", "instance 2: ")
    assert (first.register.service.name, second.register.service.name) == ("legacy", "other")
    assert first.managed == {"check": {"tcp": "127.0.0.1:1"}}
    assert second.managed == {"check": {"http": "http://127.0.0.1:2/"}}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "service is required."),
        ('service = "legacy"', "address is required."),
        ('service = "legacy\n', "not valid TOML: Illegal character '\\n' (at line 1, column 18)"),
        ("[" * 2000, "not valid TOML"),
        ('service = "a b"\naddress = "h:1"', "service is illegal, illegal characters should not appear in the param."),
        ('service = "a"\naddress = "a:b:80"', "address is illegal, it must be ip:port, an IPv6 address in brackets"),
        ('service = "a"\naddress = "h:70000"', "port is illegal, the value should be between 0 and 65535."),
        (HERE + "weigth = 2", "weigth is not known here; did you mean 'weight'? Known are: service, address, group"),
        (HERE + "weight = '2'", "weight is illegal, it must be a number."),
        (HERE + "weight = 20000", "weights range from 0.0 to 10000.0"),
        (HERE + "metadata.version = 2", "metadata is illegal, it must be an object whose values are texts."),
        (HERE + "cluster = 'a_b'", "'cluster' should be characters with only 0-9a-zA-Z-."),
        (HERE + "check = '/'", "check is a table: write check.http = '/health', or check.tcp = true"),
        (HERE + "check = {}", "check has one of http and tcp: write check.http = '/health', or check.tcp = true"),
        (HERE + "check = {http = '/', tcp = true}", "check has one of http and tcp"),
        (HERE + "check = {htp = '/'}", "check: htp is not known here; did you mean 'http'?"),
        (HERE + "check.http = 1", "check: http is illegal, it must be a text."),
        (HERE + "check.ttl = '30s'", "check.ttl needs a client that sends signs of life"),
        (HERE + "deregister_after = '5m'", "deregister_after needs a check"),
        (HERE + "ephemeral = false\ncheck.tcp = true", "check is for ephemeral instances"),
        ('service = "a"\naddress = "h:0"\ncheck.http = "/"', "check is relative to the address, which has port 0"),
        ("instance = 1", "instance is a table: write [[instance]]"),
        ("instance = []", "instance is a table: write [[instance]]"),
        (
            'service = "a"\n[[instance]]\naddress = "h:1"\n[[instance]]\nadress = "h:2"',
            "instance 2: adress is not known",
        ),
    ],
)
def test_parse_refuses_with_the_field_and_what_to_do(text: str, sentence: str) -> None:
    with pytest.raises(BadFile) as raised:
        parse(text)
    assert sentence in str(raised.value)


def test_parse_checks_names_by_the_rules_given() -> None:
    assert only("service = 'a'\naddress = 'h:1'\ncluster = 'c-1'").register.instance.cluster == "c-1"
    (found,) = parse("service = 'a b'\naddress = 'h:1'", LENIENT)
    assert found.register.service.name == "a b"


@given(st.text(max_size=200) | st.text(alphabet="[]{}=.\"'\n#:instance check.htp/true", max_size=200))
def test_parse_refuses_or_reads_any_text(text: str) -> None:
    for start in ("", HERE):
        try:
            parse(start + text)
        except BadFile as error:
            assert str(error)
