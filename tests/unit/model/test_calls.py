"""Which values a call may have: Nacos's own limits, in Nacos's own words."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.catalog.registrations import Registrations
from nacos_proxy.model import calls
from nacos_proxy.model.calls import (
    Beat,
    Call,
    Deregister,
    Fetch,
    Register,
    Update,
    Write,
)
from nacos_proxy.model.errors import BadCall, Problem
from nacos_proxy.model.heartbeats import (
    beat_interval,
    beat_timeout,
    delete_timeout,
    millis,
)
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
from tests.helpers.build import KEY, instance, key
from tests.helpers.recordings import Row, load


def refused(check: Any, *values: Any) -> str:
    """What a check says of a value that it does not let through."""
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
def test_a_service_name_may_be_nearly_anything(name: str) -> None:
    check_service(key(name))


@pytest.mark.parametrize(
    "name", ["@x", "a b", "a\tb", "a\nb", "\nx", "\rx", "\u2028x", "a@@b", "x服务", "服务", "a@@", "x" * 512 + " "]
)
def test_a_service_name_has_no_blank_no_second_separator_and_no_cjk_behind_its_first_character(name: str) -> None:
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
def test_what_is_wrong_with_a_name_is_said_in_the_words_of_nacos(service: ServiceKey, said: str) -> None:
    assert refused(check_service, service) == said


def test_the_first_that_fails_is_the_one_that_is_named() -> None:
    """Namespace, service name, group: nacos-http.md 1.6."""
    assert "namespaceId" in refused(check_service, ServiceKey("n/n", "g@", "a b"))
    assert "serviceName" in refused(check_service, ServiceKey("n", "g@", "a b"))


@pytest.mark.parametrize("cluster", ["DEFAULT", "a_b", "a-b", "1", "c" * 64, "", " ", "\t\u3000"])
def test_a_cluster_that_may_be_asked_for(cluster: str) -> None:
    check_cluster(cluster)


@pytest.mark.parametrize("cluster", ["a b", "a,b", "a.b", "ä", "c\n", "\u00a0", "c" * 65])
def test_a_cluster_that_may_not(cluster: str) -> None:
    assert refused(check_cluster, cluster).startswith("Param 'cluster' is illegal, ")


@pytest.mark.parametrize("ip", ["10.0.0.1", "999.1.1.1", "2001:db8::1", "host.example", "h" * 128])
def test_an_ip_may_be_a_name_too(ip: str) -> None:
    check_ip(ip)


@pytest.mark.parametrize("ip", ["10.0.0.1 ", "a b", "服", "h" * 129, "10.0.0.1\n"])
def test_an_ip_has_no_blank_and_no_cjk(ip: str) -> None:
    assert refused(check_ip, ip).startswith("Param 'ip' is illegal, ")


def recorded() -> list[Row]:
    """Registrations over v1 that the parameter check of 2.5.1 refused, and that a check here is about."""
    rows = [row for row in load("nacos-2.5.1") if row.method == "POST" and row.below == "/v1/ns/instance"]
    return [row for row in rows if isinstance(row.body, str) and "is illegal" in row.body]


@pytest.mark.parametrize("row", recorded(), ids=lambda row: row.case)
def test_a_recorded_refusal_is_worded_as_it_was_recorded(row: Row) -> None:
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
def test_a_port_is_read_as_java_reads_it(given: str | int, number: int) -> None:
    assert check_port(given) == number


@pytest.mark.parametrize(
    "port", ["", " 80", "80 ", "8_0", "٨٠", "0x50", "80.0", "-1", "65536", -1, 65536, "9" * 5000, "80\n"]
)
def test_what_is_no_port_is_refused(port: str | int) -> None:
    assert refused(check_port, port) == "Param 'port' is illegal, the value should be between 0 and 65535."


@pytest.mark.parametrize("weight", [0.0, 1.0, 0.001, 10_000.0])
def test_a_weight_within_its_range(weight: float) -> None:
    assert check_weight(weight) == weight


@pytest.mark.parametrize("weight", [-0.001, 10_000.001, math.nan, math.inf, -math.inf])
def test_a_weight_outside_of_it_is_refused(weight: float) -> None:
    with pytest.raises(BadCall) as caught:
        check_weight(weight)
    assert (caught.value.parameter, caught.value.problem) == ("weight", Problem.WEIGHT)


# metadata


def test_metadata_is_bounded_by_the_sum_of_its_lengths() -> None:
    check_metadata({"k" * 24: "v" * 1000})
    check_metadata({"k" * 24: "🙂" * 500})
    check_metadata({})
    for one_too_long in ({"k" * 24: "v" * 1000, "x": ""}, {"k" * 25: "🙂" * 500}):
        said = refused(check_metadata, one_too_long)
        assert said == "Param 'Metadata' is illegal, the param length should not exceed 1024."


def test_times_come_from_the_metadata_or_are_those_of_nacos() -> None:
    assert (beat_interval({}), beat_timeout({}), delete_timeout({})) == (5000, 15_000, 30_000)
    given = {
        "preserved.heart.beat.interval": "1000",
        "preserved.heart.beat.timeout": "3000",
        "preserved.ip.delete.timeout": "6000",
    }
    assert (beat_interval(given), beat_timeout(given), delete_timeout(given)) == (1000, 3000, 6000)


@pytest.mark.parametrize("text", ["", "soon", "-1", "1.5", " 1", "٣", "²", "9" * 19, "9" * 400, "9" * 5000])
def test_a_time_that_is_no_number_is_the_default(text: str) -> None:
    assert millis({"t": text}, "t", 7) == 7


@given(st.text(max_size=30) | st.integers(0, 10**30).map(str))
def test_no_time_that_a_client_gives_breaks_who_counts_with_it(text: str) -> None:
    """A time of 400 digits once ended the poller: too large for a float."""
    metadata = dict.fromkeys(
        ("preserved.heart.beat.interval", "preserved.heart.beat.timeout", "preserved.ip.delete.timeout"), text
    )
    ledger = Registrations()
    ledger.wrote(Register(KEY, instance(metadata=metadata)), 100.0)
    ledger.expire(1e6)
    assert all(r.alive(100.0) in (True, False) and r.healthy(100.0) in (True, False) for r in ledger)
    orjson.dumps([beat_interval(metadata), beat_timeout(metadata), delete_timeout(metadata)])


@pytest.mark.parametrize("cluster", ["a_b", "a.b", "", "ä"])
def test_an_instance_is_registered_only_in_a_cluster_of_letters_digits_and_dashes(cluster: str) -> None:
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
def test_an_instance_may_not_be_dropped_between_two_of_its_beats(metadata: dict[str, str]) -> None:
    said = refused(check_instance, instance(metadata=metadata))
    assert said == "Instance 'heart beat interval' must less than 'heart beat timeout' and 'ip delete timeout'."
    check_instance(instance(metadata={"preserved.heart.beat.timeout": "5000", "preserved.ip.delete.timeout": "5000"}))


# calls


KINDS = [
    kind for kind in vars(calls).values() if isinstance(kind, type) and issubclass(kind, Call) and kind is not Call
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_call_is_a_frozen_value(kind: type[Any]) -> None:
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [k for k in KINDS if issubclass(k, Write)], ids=lambda kind: kind.__name__)
def test_every_write_names_the_service_that_it_changes(kind: type[Any]) -> None:
    assert dataclasses.fields(kind)[0].name == "service"


def test_a_modification_carries_no_null() -> None:
    assert Update(KEY, "10.0.0.1", 80, metadata={"a": "1", "b": None}).metadata == {"a": "1"}
    assert Update(KEY, "10.0.0.1", 80).metadata is None
    assert Update(KEY, "10.0.0.1", 80, metadata={}).metadata == {}


def test_calls_that_say_the_same_are_the_same() -> None:
    assert Fetch(KEY) == Fetch(key("orders")) and hash(Fetch(KEY)) == hash(Fetch(key("orders")))
    assert Deregister(KEY, "10.0.0.1", 80) == Deregister(KEY, "10.0.0.1", 80, "DEFAULT", True)
    assert Update(KEY, "10.0.0.1", 80) != Update(KEY, "10.0.0.1", 80, partial=True)
    assert Beat(KEY, "10.0.0.1", 80) != Beat(KEY, "10.0.0.1", 80, full=instance())
