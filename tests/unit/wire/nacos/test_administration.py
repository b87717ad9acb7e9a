"""What a server alone can do: which requests mean it, how a checker is read, and what the tables say beyond others."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.calls import Subscriber
from nacos_proxy.model.errors import BadCall, ProxyError
from nacos_proxy.model.services import Checking, ServiceKey
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos.administration import WHOLE, Publishers, SetCluster, SetSwitch
from nacos_proxy.wire.nacos.base import ANY, Operation
from nacos_proxy.wire.nacos.v1 import V1
from nacos_proxy.wire.nacos.v2 import V2
from nacos_proxy.wire.nacos.v3 import V3
from tests.helpers.build import KEY
from tests.helpers.pair import ODD_PARAMETERS

BY_NAME = {dialect.name: dialect for dialect in WHOLE}
NEW = [
    (dialect.name, operation)
    for dialect, before in zip(WHOLE, (V1, V2, V3), strict=True)
    for operation in dialect.operations[len(before.operations) :]
]
CLUSTER = {
    "serviceName": "orders",
    "clusterName": "c1",
    "checkPort": "81",
    "useInstancePort4Check": "false",
    "healthChecker": '{"type":"NONE"}',
}


def operation_of(method: str, path: str) -> Operation[Any, Any]:
    found = BY_NAME[path[1:3]].match(method, path)
    assert found is not None
    return found


def read(method: str, path: str, **values: str) -> Any:
    return operation_of(method, path).read_request(HttpRequest(method, path, tuple(values.items())))


def wrong(method: str, path: str, **values: str) -> HttpReply:
    request = HttpRequest(method, path, tuple(values.items()))
    with pytest.raises(BadCall) as caught:
        operation_of(method, path).read_request(request)
    return BY_NAME[path[1:3]].write_error(request, caught.value, 0)


def test_only_the_whole_dialects_have_the_administration() -> None:
    for _, operation in NEW:
        method = "GET" if operation.method == ANY else operation.method
        assert all(dialect.match(method, operation.path) is None for dialect in (V1, V2, V3))


@pytest.mark.parametrize("path", ["/v1/ns/cluster", "/v3/admin/ns/cluster"])
def test_set_cluster_reads_every_field_of_checking(path: str) -> None:
    call = read("PUT", path, **CLUSTER, metadata='{"a":"1"}', groupName="g", namespaceId="dev")
    checking = Checking({"type": "NONE"}, 81, False, {"a": "1"})
    assert call == SetCluster(ServiceKey("dev", "g", "orders"), "c1", checking)


@pytest.mark.parametrize(
    ("given_text", "checker"),
    [
        ('{"type":"TCP"}', {"type": "TCP"}),
        ('{"type":"HTTP"}', {"type": "HTTP", "path": "", "headers": "", "expectedResponseCode": 200}),
        (
            '{"type":"HTTP","path":"/up","expectedResponseCode":204,"headers":7,"more":1}',
            {"type": "HTTP", "path": "/up", "headers": "", "expectedResponseCode": 204},
        ),
        ('{"type":"MYSQL","user":"u"}', {"type": "MYSQL", "user": "u", "pwd": None, "cmd": None}),
        ("{}", {"type": "NONE"}),
        ('{"type":"OURS"}', {"type": "NONE"}),
    ],
)
def test_set_cluster_reads_a_checker_with_the_fields_of_its_type(given_text: str, checker: dict[str, Any]) -> None:
    call = read("PUT", "/v1/ns/cluster", **{**CLUSTER, "healthChecker": given_text})
    assert call.checking.checker == checker


@pytest.mark.parametrize("text", ["oops", "[]", "1", "null", "[" * 100_000])
@pytest.mark.parametrize("path", ["/v1/ns/cluster", "/v3/admin/ns/cluster"])
def test_set_cluster_refuses_a_checker_that_is_not_an_object(path: str, text: str) -> None:
    reply = wrong("PUT", path, **{**CLUSTER, "healthChecker": text})
    assert reply.status == 400
    assert b"deserialize for class [com.alibaba.nacos.api.naming.pojo.healthcheck.AbstractHealthChecker]" in reply.body


@pytest.mark.parametrize("name", list(CLUSTER))
def test_set_cluster_requires_each_parameter(name: str) -> None:
    rest = {other: value for other, value in CLUSTER.items() if other != name}
    assert wrong("PUT", "/v1/ns/cluster", **rest).body == f"Param '{name}' is required.".encode()
    said = json.loads(wrong("PUT", "/v3/admin/ns/cluster", **rest).body)
    kind = {"checkPort": "Integer", "useInstancePort4Check": "Boolean"}.get(name, "String")
    assert (said["code"], said["data"]) == (10000, f"Required parameter '{name}' type {kind} is not present")


@pytest.mark.parametrize("path", ["/v1/ns/cluster", "/v3/admin/ns/cluster"])
def test_set_cluster_checks_its_port(path: str) -> None:
    reply = wrong("PUT", path, **{**CLUSTER, "checkPort": "70000"})
    assert reply.body == b"Param 'port' is illegal, the value should be between 0 and 65535.\r\n"


@pytest.mark.parametrize(
    "path", ["/v1/ns/operator/switches", "/v1/ns/ops/switches", "/v2/ns/operator/switches", "/v2/ns/ops/switches"]
)
def test_set_switch_reads_entry_and_value(path: str) -> None:
    assert read("PUT", path, entry="check", value="false", debug="true") == SetSwitch("check", "false")


def test_set_switch_may_be_empty_in_v1_only() -> None:
    switch = {"entry": "overriddenServerStatus", "value": ""}
    assert read("PUT", "/v1/ns/operator/switches", **switch) == SetSwitch("overriddenServerStatus", "")
    for path in ("/v2/ns/operator/switches", "/v3/admin/ns/ops/switches"):
        assert json.loads(wrong("PUT", path, **switch).body)["code"] == 10000
    assert wrong("PUT", "/v1/ns/operator/switches", value="1").body == b"Parameter 'entry' is missing"


@pytest.mark.parametrize("path", ["/v2/ns/client", "/v2/ns/client/publish/list", "/v3/admin/ns/client"])
def test_find_client_reads_the_name(path: str) -> None:
    assert read("GET", path, clientId="10.0.0.1:80#true").name == "10.0.0.1:80#true"
    said = json.loads(wrong("GET", path).body)
    assert said["data"] == "Required request parameter 'clientId' for method parameter type String is not present"


@pytest.mark.parametrize("path", ["/v2/ns/client/service", "/v3/admin/ns/client/service"])
def test_publishers_and_subscribers_read_their_service(path: str) -> None:
    call = read("GET", f"{path}/publisher/list", serviceName="orders", groupName="g", ip="10.0.0.1", port="80")
    assert call == Publishers(ServiceKey("public", "g", "orders"), "10.0.0.1", 80)
    assert read("GET", f"{path}/publisher/list", serviceName="orders").port is None
    assert json.loads(wrong("GET", f"{path}/subscriber/list").body)["code"] == 10000


def test_subscribers_are_shown_as_clients() -> None:
    found = (Subscriber("10.0.0.9:5000", "Nacos-Go-Client:v1", "app", "10.0.0.9", 5000, "public", "g@@s", ""),)
    shown = {}
    for path in ("/v2/ns/client/service/subscriber/list", "/v3/admin/ns/client/service/subscriber/list"):
        operation = operation_of("GET", path)
        shown[path[1:3]] = json.loads(operation.write_reply(read("GET", path, serviceName="s"), found).body)["data"]
    assert shown == {
        "v2": [{"clientId": "10.0.0.9:5000#true", "ip": "10.0.0.9", "port": 5000}],
        "v3": [
            {
                "clientId": "10.0.0.9:5000#true",
                "appName": "app",
                "agent": "Nacos-Go-Client:v1",
                "address": "10.0.0.9:5000",
            }
        ],
    }


@given(st.sampled_from(NEW), ODD_PARAMETERS, st.booleans())
def test_administration_reads_any_request_as_a_call_or_raises_bad_call(
    new: tuple[str, Operation[Any, Any]], parameters: tuple[tuple[str, str], ...], in_form: bool
) -> None:
    name, operation = new
    more = {"query": ()} if in_form else {"form": ()}
    request = HttpRequest("PUT", operation.path, parameters, parameters)._replace(**more)
    try:
        operation.read_request(request)
    except ProxyError as error:
        assert 400 <= BY_NAME[name].write_error(request, error, 0).status <= 599


def test_v1_administration_reads_the_group_of_a_grouped_name() -> None:
    call = read("GET", "/v1/ns/catalog/service", serviceName=KEY.grouped)
    assert call.service == KEY
