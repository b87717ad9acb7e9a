"""The values that Nacos accepts, and its messages for the others."""

from __future__ import annotations

import math
from typing import Any

import pytest

from nacos_proxy.model.errors import BadCall, Violation
from nacos_proxy.model.limits import (
    check_cluster,
    check_instance,
    check_ip,
    check_metadata,
    check_port,
    check_service,
    check_weight,
)
from nacos_proxy.model.services import ServiceKey
from tests.helpers.build import instance, key
from tests.helpers.recordings import Row, load


def refused(check: Any, *values: Any) -> str:
    """The message with which a check refuses the values."""
    with pytest.raises(BadCall) as caught:
        check(*values)
    assert caught.value.status == 400
    return caught.value.text


ILLEGAL = "illegal characters should not appear in the param."


# names


@pytest.mark.parametrize(
    "name",
    [
        "orders",
        "a@b",
        "a/b,c;d#e%f",
        "服x",
        "é",
        "🙂🙂",
        "a\u00a0b",
        "\tx",
        " x",
        "  ",
        "🙂" * 256,
        "x" * 512,
        "",
        "\0",
        "a@",
        "com.x:Y_z-1",
    ],
)
def test_check_service_accepts_nearly_any_name(name: str) -> None:
    check_service(key(name))


@pytest.mark.parametrize(
    "name", ["@x", "a b", "a\tb", "a\nb", "\nx", "\rx", "\u2028x", "a@@b", "x服务", "服务", "a@@", "x" * 512 + " "]
)
def test_check_service_refuses_blanks_a_second_separator_and_cjk_after_the_first_character(name: str) -> None:
    said = refused(check_service, key(name))
    assert said.startswith("Param 'serviceName' is illegal, ")


@pytest.mark.parametrize(
    ("service", "said"),
    [
        (key("🙂" * 256 + "x"), "Param 'serviceName' is illegal, the param length should not exceed 512."),
        (key("x" * 513), "Param 'serviceName' is illegal, the param length should not exceed 512."),
        (key(group="g" * 129), "Param 'group' is illegal, the param length should not exceed 128."),
        (key(group="g@g"), f"Param 'group' is illegal, {ILLEGAL}"),
        (key(group="grüppe"), f"Param 'group' is illegal, {ILLEGAL}"),
        (key(namespace="n" * 65), "Param 'namespaceId/tenant' is illegal, the param length should not exceed 64."),
        (key(namespace="n/n"), f"Param 'namespaceId/tenant' is illegal, {ILLEGAL}"),
        (key(namespace="nä"), f"Param 'namespaceId/tenant' is illegal, {ILLEGAL}"),
        (key(namespace="n\n"), f"Param 'namespaceId/tenant' is illegal, {ILLEGAL}"),
    ],
)
def test_check_service_refuses_with_the_message_of_nacos(service: ServiceKey, said: str) -> None:
    assert refused(check_service, service) == said


def test_check_service_names_the_first_value_that_fails() -> None:
    """Namespace, service name, group: nacos-http.md 1.6."""
    assert "namespaceId" in refused(check_service, ServiceKey("n/n", "g@", "a b"))
    assert "serviceName" in refused(check_service, ServiceKey("n", "g@", "a b"))


@pytest.mark.parametrize("cluster", ["DEFAULT", "a_b", "a-b", "1", "c" * 64, "", " ", "\t\u3000"])
def test_check_cluster_accepts(cluster: str) -> None:
    check_cluster(cluster)


@pytest.mark.parametrize("cluster", ["a b", "a,b", "a.b", "ä", "c\n", "\u00a0", "c" * 65])
def test_check_cluster_refuses(cluster: str) -> None:
    assert refused(check_cluster, cluster).startswith("Param 'cluster' is illegal, ")


@pytest.mark.parametrize("ip", ["10.0.0.1", "999.1.1.1", "2001:db8::1", "host.example", "h" * 128])
def test_check_ip_accepts_host_names(ip: str) -> None:
    check_ip(ip)


@pytest.mark.parametrize("ip", ["10.0.0.1 ", "a b", "服", "h" * 129, "10.0.0.1\n"])
def test_check_ip_refuses_blanks_and_cjk(ip: str) -> None:
    assert refused(check_ip, ip).startswith("Param 'ip' is illegal, ")


def recorded() -> list[Row]:
    """Registrations over v1 that the parameter check of 2.5.1 refused."""
    rows = [row for row in load("nacos-2.5.1") if row.method == "POST" and row.below == "/v1/ns/instance"]
    return [row for row in rows if isinstance(row.body, str) and "is illegal" in row.body]


@pytest.mark.parametrize("row", recorded(), ids=lambda row: row.case)
def test_checks_refuse_with_the_recorded_message(row: Row) -> None:
    def check() -> None:
        check_service(ServiceKey.of(row.query["serviceName"], row.query.get("groupName")))
        check_cluster(row.query.get("clusterName", ""))
        check_ip(row.query["ip"])
        check_port(row.query["port"])

    assert refused(check) == row.body.strip()


# numbers


@pytest.mark.parametrize(
    ("given", "number"), [("0", 0), ("80", 80), ("+80", 80), ("-0", 0), ("00080", 80), (65535, 65535)]
)
def test_check_port_reads_numbers_as_java_does(given: str | int, number: int) -> None:
    assert check_port(given) == number


@pytest.mark.parametrize(
    "port", ["", " 80", "80 ", "8_0", "٨٠", "0x50", "80.0", "-1", "65536", -1, 65536, "9" * 5000, "80\n"]
)
def test_check_port_refuses(port: str | int) -> None:
    assert refused(check_port, port) == "Param 'port' is illegal, the value should be between 0 and 65535."


@pytest.mark.parametrize("weight", [0.0, 1.0, 0.001, 10_000.0])
def test_check_weight_accepts_its_range(weight: float) -> None:
    assert check_weight(weight) == weight


@pytest.mark.parametrize("weight", [-0.001, 10_000.001, math.nan, math.inf, -math.inf])
def test_check_weight_refuses_other_numbers(weight: float) -> None:
    with pytest.raises(BadCall) as caught:
        check_weight(weight)
    assert (caught.value.parameter, caught.value.violation) == ("weight", Violation.WEIGHT)


# metadata


def test_check_metadata_limits_the_sum_of_all_lengths() -> None:
    check_metadata({"k" * 24: "v" * 1000})
    check_metadata({"k" * 24: "🙂" * 500})
    check_metadata({})
    for one_too_long in ({"k" * 24: "v" * 1000, "x": ""}, {"k" * 25: "🙂" * 500}):
        said = refused(check_metadata, one_too_long)
        assert said == "Param 'Metadata' is illegal, the param length should not exceed 1024."


@pytest.mark.parametrize("cluster", ["a_b", "a.b", "", "ä"])
def test_check_instance_refuses_a_cluster_with_other_than_letters_digits_and_dashes(cluster: str) -> None:
    said = refused(check_instance, instance(cluster=cluster))
    assert said == f"Instance 'clusterName' should be characters with only 0-9a-zA-Z-. (current: {cluster})"


@pytest.mark.parametrize(
    "metadata",
    [
        {"preserved.heart.beat.interval": "20000"},
        {"preserved.heart.beat.timeout": "4999"},
        {"preserved.ip.delete.timeout": "4999"},
    ],
)
def test_check_instance_refuses_timeouts_shorter_than_the_beat_interval(metadata: dict[str, str]) -> None:
    said = refused(check_instance, instance(metadata=metadata))
    assert said == "Instance 'heart beat interval' must less than 'heart beat timeout' and 'ip delete timeout'."
    check_instance(instance(metadata={"preserved.heart.beat.timeout": "5000", "preserved.ip.delete.timeout": "5000"}))
