"""What v2 and v3 share: the order of a form's checks, and the wrapper."""

from __future__ import annotations

from typing import Any

import pytest

from nacos_proxy.model.calls import CreateService, Fetch, Metrics, SetHealth, Update, UpdateService
from nacos_proxy.model.errors import BadCall, Malformed, Reason, Refused, Violation
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos.forms import health_form
from nacos_proxy.wire.nacos.parameters import Parameters
from nacos_proxy.wire.nacos.results import (
    data_of,
    form_required,
    named_key,
    param_required,
    read_batch_form,
    read_create,
    read_deregister,
    read_health,
    read_instance,
    read_mapping,
    read_metrics,
    read_ok,
    read_register,
    read_service_form,
    read_service_update,
    read_update,
    read_updated,
    write_as_is,
    write_ok,
    write_updated,
)
from tests.helpers.build import KEY, instance, key

HERE = {"serviceName": "orders", "ip": "10.0.0.1", "port": "80"}


def request(method: str = "POST", **values: str) -> HttpRequest:
    return HttpRequest(method, "/v2/ns/instance", tuple(values.items()))


def of(**values: str) -> Parameters:
    return Parameters(request(**values))


def reply(body: bytes, status: int = 200) -> HttpReply:
    return HttpReply(status, "application/json", body)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "Required parameter 'serviceName' type String is not present"),
        ({"serviceName": " "}, "Required parameter 'serviceName' type String is not present"),
        ({"serviceName": "s"}, "Required parameter 'ip' type String is not present"),
        ({"serviceName": "s", "ip": "x"}, "Required parameter 'port' type Integer is not present"),
    ],
)
def test_form_required_names_what_is_missing(values: dict[str, str], text: str) -> None:
    with pytest.raises(BadCall) as caught:
        form_required(of(**values), "serviceName", "ip", "port")
    assert (caught.value.text, caught.value.violation) == (text, Violation.MISSING)


def test_param_required_has_another_message() -> None:
    text = "Required request parameter 'port' for method parameter type Integer is not present"
    with pytest.raises(BadCall, match=text):
        param_required(of(), "port", "Integer")
    assert param_required(of(port=" 5 "), "port") == "5"
    with pytest.raises(BadCall, match="serviceName is blank"):
        named_key(of(serviceName=""))
    assert named_key(of(serviceName="orders")) == KEY


def test_read_instance_has_defaults() -> None:
    assert read_instance(of(**HERE)) == (KEY, instance())


@pytest.mark.parametrize(
    ("values", "violation"),
    [
        ({"metadata": "{oops", "weight": "abc"}, Violation.METADATA),
        ({"clusterName": "a b", "weight": "abc"}, Violation.ILLEGAL),
        ({"weight": "abc"}, Violation.NOT_A_NUMBER),
        ({"enabled": "maybe"}, Violation.NOT_A_BOOLEAN),
        ({"weight": "-1"}, Violation.MISSING),
        ({**HERE, "weight": "-1", "clusterName": "a_b"}, Violation.WEIGHT),
        ({**HERE, "weight": "NaN"}, Violation.WEIGHT),
        ({**HERE, "clusterName": "a_b"}, Violation.INSTANCE),
    ],
)
def test_read_register_checks_in_the_order_of_nacos(values: dict[str, str], violation: Violation) -> None:
    with pytest.raises(BadCall) as caught:
        read_register(request(**values))
    assert caught.value.violation is violation


def test_read_deregister_checks_the_weight_if_weighed() -> None:
    wrong = of(**HERE, weight="-1", ephemeral="false")
    assert not read_deregister(wrong, weighed=False).ephemeral
    with pytest.raises(BadCall):
        read_deregister(wrong, weighed=True)


def test_read_update_has_only_what_is_given() -> None:
    assert read_update(request(**HERE)) == Update(KEY, "10.0.0.1", 80)
    named = read_update(request(**HERE, weight="2", enabled="0", metadata="a=1"), partial=True)
    assert named == Update(KEY, "10.0.0.1", 80, weight=2.0, enabled=False, metadata={"a": "1"}, partial=True)


def test_read_batch_form_requires_metadata() -> None:
    with pytest.raises(BadCall, match="'metadata' type String"):
        read_batch_form(request(serviceName="s"))
    with pytest.raises(BadCall, match="'port' is illegal"):
        read_batch_form(request(serviceName="s", metadata="a=1", instances='[{"ip":"x","port":99999}]'))
    assert read_batch_form(request("DELETE", serviceName="orders", metadata="a=1")).remove


def test_read_health_requires_healthy() -> None:
    with pytest.raises(BadCall, match="'healthy' type Boolean"):
        read_health(request(**HERE))
    call = SetHealth(KEY, "10.0.0.1", 80, "DEFAULT", False)
    assert read_health(request(**HERE, healthy="false")) == call
    assert read_health(request(serviceName="orders", **dict(health_form(call)))) == call


def test_read_create_and_read_service_update_read_their_forms() -> None:
    made = read_create(request(serviceName="s", protectThreshold="0.5", metadata="a=1", ephemeral="true"))
    assert made == CreateService(key("s"), 0.5, {"a": "1"}, ephemeral=True)
    assert read_service_update(request(serviceName="s")) == UpdateService(key("s"))
    assert read_service_form(request(serviceName="s", groupName="g")) == key("s", "g")
    assert read_metrics(request(onlyStatus="false")) == Metrics(False)
    with pytest.raises(BadCall):
        read_create(request())


# answers


def test_write_ok_and_write_updated_wrap_their_answers() -> None:
    assert write_ok(None, None).body == b'{"code":0,"message":"success","data":"ok"}'
    assert write_as_is(None, {"a": 1}).body == b'{"code":0,"message":"success","data":{"a":1}}'
    assert write_updated(None, ("x",)).body == b'{"code":0,"message":"success","data":{"updated":["x"]}}'  # type: ignore[arg-type]


def test_data_of_unwraps_the_data() -> None:
    assert data_of("v2", Fetch(KEY), write_as_is(None, {"a": 1})) == {"a": 1}
    read_ok("v2", Fetch(KEY), write_ok(None, None))
    assert read_updated("v2", Fetch(KEY), write_updated(None, ("x",))) == ("x",)  # type: ignore[arg-type]
    assert read_mapping("v2", Fetch(KEY), write_as_is(None, {"a": 1})) == {"a": 1}


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b'{"code":30000,"message":"server error","data":"x"}', 200, Reason.OTHER),
        (b'{"code":21008,"message":"service not exist","data":"x"}', 400, Reason.SERVICE_NOT_FOUND),
        (b"", 404, Reason.GONE),
    ],
)
def test_data_of_raises_refused_for_a_code_in_a_200(body: bytes, status: int, reason: Reason) -> None:
    with pytest.raises(Refused) as caught:
        data_of("v2", Fetch(KEY), reply(body, status))
    assert (caught.value.reason, caught.value.dialect) == (reason, "v2" if body else "")


@pytest.mark.parametrize(
    "body", [b"", b"ok", b"[]", b"{}", b'{"code":"0"}', b'{"code":0,"data":"no"}', b'{"code":true}']
)
def test_data_of_raises_malformed_without_a_code(body: bytes) -> None:
    with pytest.raises(Malformed):
        read_ok("v2", Fetch(KEY), reply(body))


@pytest.mark.parametrize("data", ["null", '"x"', "[]", '{"updated":null}', '{"updated":[1]}'])
def test_read_updated_raises_malformed_without_a_list(data: Any) -> None:
    with pytest.raises(Malformed):
        read_updated("v2", Fetch(KEY), reply(b'{"code":0,"data":%s}' % data.encode()))  # type: ignore[arg-type]
