"""Parameters of calls, as a client writes them and as a server reads them."""

from __future__ import annotations

import json

import pytest

from nacos_proxy.model.calls import BatchMetadata, Beat, CreateService, Register, Update
from nacos_proxy.model.errors import BadCall, Violation
from nacos_proxy.model.services import InstanceKey, ServiceKey
from nacos_proxy.wire.http import HttpRequest
from nacos_proxy.wire.nacos.base import PushAddress
from nacos_proxy.wire.nacos.forms import (
    bare,
    batch_form,
    beat_form,
    grouped,
    metadata_text,
    pairs,
    patched_weight,
    push_address,
    read_any_beat,
    read_batch,
    register_form,
    service_form,
    status_key,
    update_form,
)
from nacos_proxy.wire.nacos.parameters import Parameters
from tests.helpers.build import KEY, instance, key


def of(**values: str) -> Parameters:
    return Parameters(HttpRequest("PUT", "/", tuple(values.items())))


# writing


def test_pairs_leaves_out_none_and_writes_booleans_as_java() -> None:
    assert pairs(a=None, b=True, c=False, d=1, e=2.5, f="") == (
        ("b", "true"),
        ("c", "false"),
        ("d", "1"),
        ("e", "2.5"),
        ("f", ""),
    )


def test_grouped_and_bare_name_a_service() -> None:
    service = key("s", "g", "n")
    assert dict(grouped(service)) == {"serviceName": "g@@s", "groupName": "g", "namespaceId": "n"}
    assert dict(bare(service)) == {"serviceName": "s", "groupName": "g", "namespaceId": "n"}


def test_metadata_text_is_json_in_utf8() -> None:
    assert metadata_text({"zone": "北"}) == '{"zone":"北"}'
    assert "metadata" not in dict(register_form(Register(KEY, instance())))


def test_update_form_has_only_what_is_given() -> None:
    assert set(dict(update_form(Update(KEY, "10.0.0.1", 80)))) == {"ip", "port", "clusterName", "ephemeral"}
    form = dict(update_form(Update(KEY, "10.0.0.1", 80, weight=0.5, enabled=False, metadata={})))
    assert (form["weight"], form["enabled"], form["metadata"]) == ("0.5", "false", "{}")


def test_beat_form_has_the_object_beside_the_light_parameters() -> None:
    assert "beat" not in dict(beat_form(Beat(KEY, "10.0.0.1", 80)))
    full = instance(cluster="c1", weight=2.0, metadata={"a": "1"})
    beat = json.loads(dict(beat_form(Beat(KEY, "10.0.0.1", 80, "c1", full=full)))["beat"])
    assert beat == {
        "serviceName": "DEFAULT_GROUP@@orders",
        "ip": "10.0.0.1",
        "port": 80,
        "weight": 2.0,
        "cluster": "c1",
        "metadata": {"a": "1"},
        "ephemeral": True,
        "scheduled": True,
    }


def test_batch_form_of_all_instances_names_none() -> None:
    assert dict(batch_form(BatchMetadata(KEY, (), {"a": "1"}))) == {
        "consistencyType": "ephemeral",
        "metadata": '{"a":"1"}',
    }
    one = BatchMetadata(KEY, (InstanceKey("10.0.0.1", 80, "c1"),), {}, ephemeral=False)
    assert dict(batch_form(one)) == {
        "consistencyType": "persist",
        "metadata": "{}",
        "instances": '[{"ip":"10.0.0.1","port":80,"clusterName":"c1","ephemeral":false}]',
    }


def test_service_form_has_only_what_is_given() -> None:
    assert dict(service_form(CreateService(KEY))) == {"protectThreshold": "0.0"}


# reading


@pytest.mark.parametrize(
    ("ip", "port", "headers", "found"),
    [
        ("10.0.0.9", 5000, {"user-agent": "Nacos-Java-Client:v1.4.6"}, "Nacos-Java-Client:v1.4.6"),
        ("10.0.0.9", 5000, {"user-agent": "", "client-version": "1.4.6"}, "1.4.6"),
        ("10.0.0.9", 5000, {}, ""),
        ("10.0.0.9", 0, {}, None),
        ("10.0.0.9", 70000, {}, None),
        ("", 5000, {}, None),
    ],
)
def test_push_address_reads_ip_and_port(ip: str, port: int, headers: dict[str, str], found: str | None) -> None:
    request = HttpRequest("GET", "/", (("app", "shop"),), headers=headers)
    expected = None if found is None else PushAddress(ip, port, found, "shop")
    assert push_address(request, Parameters(request), ip, port) == expected


def test_patched_weight_accepts_any_finite_number() -> None:
    assert patched_weight(None) is None and patched_weight(20_000.0) == 20_000.0
    with pytest.raises(BadCall):
        patched_weight(float("inf"))


def test_read_any_beat_accepts_a_light_beat_without_an_address() -> None:
    assert read_any_beat(of(serviceName="s"), group_needed=False) == Beat(key("s"), "", 0)


def test_read_any_beat_takes_the_service_from_the_parameters_and_the_rest_from_the_object() -> None:
    text = '{"serviceName":"other@@x","ip":"10.0.0.1","port":80}'
    p = of(serviceName="s", groupName="g", ip="9.9.9.9", port="1", clusterName="c1", beat=text)
    call = read_any_beat(p, group_needed=False)
    assert (call.service, call.ip, call.port, call.cluster) == (key("s", "g"), "10.0.0.1", 80, "c1")
    assert call.full == instance(cluster="c1", weight=0.0)


@pytest.mark.parametrize(
    ("values", "group_needed", "violation"),
    [
        ({}, False, Violation.MISSING),
        ({}, True, Violation.MISSING),
        ({"serviceName": ""}, False, Violation.MISSING),
        ({"serviceName": ""}, True, Violation.GROUPED_NAME),
        ({"serviceName": " "}, False, Violation.GROUPED_NAME),
        ({"serviceName": "s"}, True, Violation.GROUPED_NAME),
        ({"serviceName": "s", "ip": "a b"}, False, Violation.ILLEGAL),
        ({"serviceName": "s", "port": "x"}, False, Violation.ILLEGAL),
        ({"serviceName": "s", "beat": '{"port":99999}'}, False, Violation.ILLEGAL),
        ({"serviceName": "a b", "beat": "{"}, False, Violation.BODY),
    ],
)
def test_read_any_beat_checks_in_the_order_of_nacos(
    values: dict[str, str], group_needed: bool, violation: Violation
) -> None:
    with pytest.raises(BadCall) as caught:
        read_any_beat(of(**values), group_needed=group_needed)
    assert caught.value.violation is violation


def test_read_batch_is_ephemeral_or_persistent_as_a_whole() -> None:
    everybody = of(serviceName="s", consistencyType="persist")
    assert read_batch(everybody, (), {}, "PUT") == BatchMetadata(key("s"), (), {}, ephemeral=False)
    two = (instance(), instance("10.0.0.2", ephemeral=False))
    found = read_batch(of(serviceName="s"), two, {"a": "1"}, "DELETE")
    assert (found.remove, found.ephemeral, found.instances) == (True, False, (two[0].key, two[1].key))


@pytest.mark.parametrize(
    ("text", "found"),
    [("g@@s", ServiceKey("public", "g", "s")), ("n##g@@s", ServiceKey("n", "g", "s")), ("##g@@s", key("s", "g"))],
)
def test_status_key_reads_namespace_group_and_name(text: str, found: ServiceKey) -> None:
    assert status_key(text) == found


@pytest.mark.parametrize("text", ["", "s", "n##s", "@@s", "g@@"])
def test_status_key_refuses_a_key_without_group_and_name(text: str) -> None:
    with pytest.raises(BadCall):
        status_key(text)
