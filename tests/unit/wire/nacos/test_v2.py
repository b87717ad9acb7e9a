"""v2: what 2.5.1 recorded comes out again, and calls make the round trip."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nacos_proxy.model.calls import Fetch, ListServices, Metrics, Register, Update
from nacos_proxy.model.errors import BadCall, Malformed, Reason, Refused
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos.base import PushAddress, ReadPage, ReadService, ServiceView
from nacos_proxy.wire.nacos.v2 import V2
from tests.helpers.build import KEY, instance, snapshot
from tests.helpers.pair import answer_again
from tests.helpers.recordings import Row, comparable, load

ROWS = [row for row in load("nacos-2.5.1") if row.below.startswith("/v2/")]
HERE = {"serviceName": "orders", "ip": "10.0.0.1", "port": "80"}


def read(method: str, path: str, headers: dict[str, str] | None = None, **values: str) -> Any:
    operation = V2.match(method, path)
    assert operation is not None
    return operation.read_request(HttpRequest(method, path, tuple(values.items()), headers=headers or {}))


def wrong(method: str, path: str, **values: str) -> tuple[int, Any]:
    with pytest.raises(BadCall) as caught:
        read(method, path, **values)
    reply = V2.write_error(HttpRequest(method, path, tuple(values.items())), caught.value, 0)
    return reply.status, json.loads(reply.body)


# server role


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_v2_answers_as_2_5_1_was_recorded(row: Row) -> None:
    reply = answer_again(V2, row)
    assert (reply.status, reply.content_type) == (row.status, row.type)
    assert comparable(reply.body, loosely=True) == comparable(row.reply.body, loosely=True)


def test_v2_list_reads_its_push_address_from_ip_and_port() -> None:
    agent = {"user-agent": "Nacos-Java-Client:v1.4.6"}
    call = read("GET", "/v2/ns/instance/list", agent, serviceName="orders", clusterName="a,b", ip="10.0.0.9", port="9")
    assert call == ReadService(KEY, "a,b", False, PushAddress("10.0.0.9", 9, "Nacos-Java-Client:v1.4.6"))
    assert read("GET", "/v2/ns/instance/list", serviceName="orders", clusters="a", healthyOnly="1") == ReadService(
        KEY, "", True
    )


def test_v2_reads_a_name_with_its_group_as_2_5_1_does() -> None:
    assert read("PUT", "/v2/ns/instance/beat", **{**HERE, "serviceName": "G@@orders"}).service.group == "G"
    status, body = wrong("PUT", "/v2/ns/instance/beat", **HERE)
    assert (status, body["code"]) == (400, 20002)
    patch = {**HERE, "serviceName": "G@@orders", "weight": "3", "enabled": "false", "metadata": "a=1"}
    assert read("PATCH", "/v2/ns/instance", **patch, cluster="c1") == Update(
        ServiceKey("public", "G", "orders"),
        "10.0.0.1",
        80,
        "c1",
        weight=3.0,
        enabled=False,
        metadata={"a": "1"},
        partial=True,
    )


@pytest.mark.parametrize("name", ["weight", "enabled", "metadata"])
def test_v2_patch_requires_every_parameter(name: str) -> None:
    given = {**HERE, "serviceName": "G@@orders", "weight": "3", "enabled": "false", "metadata": "a=1"}
    status, body = wrong("PATCH", "/v2/ns/instance", **{n: v for n, v in given.items() if n != name})
    assert (status, body["code"]) == (400, 10000)
    assert f"'{name}'" in body["data"]


def test_v2_list_services_limits_its_page_size() -> None:
    assert read("GET", "/v2/ns/service/list") == ListServices("public", "DEFAULT_GROUP", 1, 20)
    assert read("GET", "/v2/ns/service/list", pageSize="9999", pageNo="2").size == 500


def test_v2_statuses_read_their_key_from_the_path() -> None:
    call = read("GET", "/v2/ns/instance/statuses/n%23%23g@@s")
    assert call == ReadService(ServiceKey("n", "g", "s"), everything=True)
    operation = V2.match("GET", "/v2/ns/instance/statuses/g@@s")
    assert operation is not None
    shown = snapshot(instance(), instance("10.0.0.2", healthy=False))
    reply = operation.write_reply(call, ServiceView(shown, shown.select()))
    assert (reply.content_type, reply.body) == ("application/json", b'{"ips":["10.0.0.1:80_true","10.0.0.2:80_false"]}')


def test_v2_catalog_page_is_cut_after_its_filters() -> None:
    call = read("GET", "/v2/ns/catalog/instances", serviceName="orders", pageNo="2", pageSize="1", enabledOnly="true")
    assert call == ReadPage(KEY, everything=True, page=2, size=1, enabled=True)
    operation = V2.match("GET", "/v2/ns/catalog/instances")
    assert operation is not None
    shown = snapshot(*(instance(f"10.0.0.{n}", enabled=n != 1) for n in range(3)))
    data = json.loads(operation.write_reply(call, ServiceView(shown, shown.select())).body)["data"]
    assert ([host["ip"] for host in data["instances"]], data["count"]) == (["10.0.0.2"], 2)


def test_v2_metrics_leave_out_what_v2_does_not_show() -> None:
    operation = V2.match("GET", "/v2/ns/operator/metrics")
    assert operation is not None
    reply = operation.write_reply(Metrics(False), {"status": "UP", "responsibleInstanceCount": 1, "cpu": None})
    assert json.loads(reply.body)["data"] == {"status": "UP"}


# client role


@pytest.mark.parametrize("row", [r for r in load("nacos-3.0.3") if r.below.startswith("/v2/")], ids=str)
def test_v2_calls_that_3_0_removed_are_refused_as_gone(row: Row) -> None:
    with pytest.raises(Refused) as caught:
        V2.read_reply(Fetch(KEY), row.reply)
    assert caught.value.reason is Reason.GONE


@pytest.mark.parametrize("body", [b"", b"ok", b"{}", b'{"code":0,"data":"no"}', b'{"code":"0","data":"ok"}'])
def test_v2_write_that_is_not_answered_ok_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        V2.read_reply(Register(KEY, instance()), HttpReply(200, "application/json", body))
