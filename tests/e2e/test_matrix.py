"""Requests of each dialect to servers of each generation: the answers are the same bytes for every upstream.

The proxy answers v1 and v2 as Nacos 2.5.1 does, v3 as 3.0.3 does. After each write a list is read twice: as the proxy
has it, and from the server (`no-cache`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import process
from tests.helpers.app import serving

TEXT, JSON = "text/plain;charset=UTF-8", "application/json"
V1, V2, V3, ADMIN = "/nacos/v1/ns", "/nacos/v2/ns", "/nacos/v3/client/ns", "/nacos/v3/admin/ns"
# r-nacos registers an unknown instance from any beat, even a light one.
REGISTERS = {"r-nacos": {"clientBeatInterval": 5000, "code": 10200, "lightBeatEnabled": True}}
OK = {"code": 0, "message": "success", "data": "ok"}


@dataclass(frozen=True)
class Step:
    """A request and its whole answer. `params` go into the query; for every other write into a form."""

    method: str
    path: str
    params: dict[str, Any]
    status: int
    type: str | None
    body: Any
    headers: dict[str, str] = field(default_factory=dict)
    otherwise: dict[str, Any] = field(default_factory=dict)  # the body of a generation that differs


def host(service: str, ip: str, *, weight: float = 1.0, cluster: str = "DEFAULT", **metadata: str) -> dict[str, Any]:
    name = f"G@@{service}"
    shown: dict[str, Any] = {
        "instanceId": f"{ip}#80#{cluster}#{name}",
        "ip": ip,
        "port": 80,
        "weight": weight,
        "healthy": True,
        "enabled": True,
        "ephemeral": True,
        "clusterName": cluster,
        "serviceName": name,
        "metadata": metadata,
        "instanceHeartBeatInterval": 5000,
        "instanceHeartBeatTimeOut": 15000,
        "ipDeleteTimeout": 30000,
    }
    return shown if metadata else {**shown, "instanceIdGenerator": "simple"}


def listing(service: str, clusters: str, *hosts: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": f"G@@{service}",
        "groupName": "G",
        "clusters": clusters,
        "cacheMillis": 10000,
        "hosts": list(hosts),
        "lastRefTime": 0,
        "checksum": "",
        "allIPs": False,
        "reachProtectionThreshold": False,
        "valid": True,
    }


def one(service: str, name: str, ip: str, weight: float, **metadata: str) -> dict[str, Any]:
    """A single instance as v1 (`service`) or v2 (`serviceName`) shows it."""
    shown = host(service, ip, weight=weight, **metadata)
    fields = ("ip", "port", "clusterName", "weight", "healthy", "instanceId", "metadata")
    return {name: f"G@@{service}", **{field: shown[field] for field in fields}}


def wrapped(data: Any) -> dict[str, Any]:
    return {"code": 0, "message": "success", "data": data}


def reads(step: Step) -> Iterator[Step]:
    yield step
    yield Step(step.method, step.path, step.params, step.status, step.type, step.body, {"cache-control": "no-cache"})


def v1(s: str) -> Iterator[Step]:
    here = {"serviceName": s, "groupName": "G", "ip": "10.0.0.1", "port": "80"}
    of = {"serviceName": s, "groupName": "G"}
    beat = json.dumps({"serviceName": f"G@@{s}", "ip": "10.0.0.3", "port": 80, "weight": 1.0, "cluster": "DEFAULT"})
    yield from reads(Step("GET", f"{V1}/instance/list", of, 200, JSON, listing(s, "")))
    yield Step("POST", f"{V1}/instance", {**here, "weight": "2.5", "metadata": '{"zone":"a"}'}, 200, TEXT, "ok")
    yield Step("POST", f"{V1}/instance", {**here, "ip": "10.0.0.2", "clusterName": "c2"}, 200, TEXT, "ok")
    first, second = host(s, "10.0.0.1", weight=2.5, zone="a"), host(s, "10.0.0.2", cluster="c2")
    yield from reads(Step("GET", f"{V1}/instance/list", of, 200, JSON, listing(s, "", first, second)))
    yield from reads(
        Step("GET", f"{V1}/instance/list", {**of, "clusters": "c2,c3"}, 200, JSON, listing(s, "c2,c3", second))
    )
    yield from reads(Step("GET", f"{V1}/instance", here, 200, JSON, one(s, "service", "10.0.0.1", 2.5, zone="a")))
    yield Step("PUT", f"{V1}/instance", {**here, "weight": "7", "metadata": "zone=b"}, 200, TEXT, "ok")
    first = host(s, "10.0.0.1", weight=7.0, zone="b")
    yield from reads(Step("GET", f"{V1}/instance/list", of, 200, JSON, listing(s, "", first, second)))
    known = {"clientBeatInterval": 5000, "code": 10200, "lightBeatEnabled": True}
    yield Step("PUT", f"{V1}/instance/beat", here, 200, JSON, known)
    yield Step(
        "PUT",
        f"{V1}/instance/beat",
        {**here, "serviceName": f"{s}-none"},
        200,
        JSON,
        {**known, "code": 20404},
        {},
        REGISTERS,
    )
    yield Step("PUT", f"{V1}/instance/beat", {**of, "beat": beat}, 200, JSON, known)
    third = host(s, "10.0.0.3")
    yield from reads(Step("GET", f"{V1}/instance/list", of, 200, JSON, listing(s, "", first, second, third)))
    yield Step("DELETE", f"{V1}/instance", {**here, "ip": "10.0.0.2", "clusterName": "c2"}, 200, TEXT, "ok")
    yield Step("DELETE", f"{V1}/instance", here, 200, TEXT, "ok")
    yield Step("DELETE", f"{V1}/instance", here, 200, TEXT, "ok")
    yield from reads(Step("GET", f"{V1}/instance/list", of, 200, JSON, listing(s, "", third)))
    yield Step("GET", f"{V1}/instance", here, 404, TEXT, "no matched ip found!")


def v2(s: str) -> Iterator[Step]:
    here = {"serviceName": s, "groupName": "G", "ip": "10.0.0.1", "port": "80"}
    of = {"serviceName": s, "groupName": "G"}
    yield from reads(Step("GET", f"{V2}/instance/list", of, 200, JSON, wrapped(listing(s, ""))))
    yield Step("POST", f"{V2}/instance", {**here, "weight": "2.5", "metadata": '{"zone":"a"}'}, 200, JSON, OK)
    yield Step("POST", f"{V2}/instance", {**here, "ip": "10.0.0.2", "clusterName": "c2"}, 200, JSON, OK)
    first, second = host(s, "10.0.0.1", weight=2.5, zone="a"), host(s, "10.0.0.2", cluster="c2")
    yield from reads(Step("GET", f"{V2}/instance/list", of, 200, JSON, wrapped(listing(s, "", first, second))))
    only = {**of, "clusterName": "c2"}
    yield from reads(Step("GET", f"{V2}/instance/list", only, 200, JSON, wrapped(listing(s, "c2", second))))
    shown = wrapped(one(s, "serviceName", "10.0.0.1", 2.5, zone="a"))
    yield from reads(Step("GET", f"{V2}/instance", here, 200, JSON, shown))
    yield Step("PUT", f"{V2}/instance", {**here, "weight": "7", "metadata": '{"zone":"b"}'}, 200, JSON, OK)
    first = host(s, "10.0.0.1", weight=7.0, zone="b")
    yield from reads(Step("GET", f"{V2}/instance/list", of, 200, JSON, wrapped(listing(s, "", first, second))))
    known = {"clientBeatInterval": 5000, "code": 10200, "lightBeatEnabled": True}
    beat = {"serviceName": f"G@@{s}", "ip": "10.0.0.1", "port": "80"}
    yield Step("PUT", f"{V2}/instance/beat", beat, 200, JSON, known)
    lost = {**beat, "serviceName": f"G@@{s}-none"}
    yield Step("PUT", f"{V2}/instance/beat", lost, 200, JSON, {**known, "code": 20404}, {}, REGISTERS)
    yield Step("DELETE", f"{V2}/instance", here, 200, JSON, OK)
    yield Step("DELETE", f"{V2}/instance", here, 200, JSON, OK)
    yield from reads(Step("GET", f"{V2}/instance/list", of, 200, JSON, wrapped(listing(s, "", second))))
    gone = {"code": 20004, "message": "resource not found", "data": "no matched ip found!"}
    yield Step("GET", f"{V2}/instance", here, 404, JSON, gone)


def v3(s: str) -> Iterator[Step]:
    here = {"serviceName": s, "groupName": "G", "ip": "10.0.0.1", "port": "80"}
    of = {"serviceName": s, "groupName": "G"}
    yield from reads(Step("GET", f"{V3}/instance/list", of, 200, JSON, wrapped([])))
    yield Step("POST", f"{V3}/instance", {**here, "weight": "2.5", "metadata": '{"zone":"a"}'}, 200, JSON, OK)
    yield Step("POST", f"{V3}/instance", {**here, "ip": "10.0.0.2", "clusterName": "c2"}, 200, JSON, OK)
    first, second = host(s, "10.0.0.1", weight=2.5, zone="a"), host(s, "10.0.0.2", cluster="c2")
    yield from reads(Step("GET", f"{V3}/instance/list", of, 200, JSON, wrapped([first])))
    both = {**of, "clusterName": "DEFAULT,c2"}
    yield from reads(Step("GET", f"{V3}/instance/list", both, 200, JSON, wrapped([first, second])))
    yield from reads(Step("GET", f"{ADMIN}/instance/list", of, 200, JSON, wrapped([first])))
    yield from reads(Step("GET", f"{ADMIN}/instance", here, 200, JSON, wrapped(first)))
    yield Step("PUT", f"{ADMIN}/instance", {**here, "weight": "7", "metadata": '{"zone":"b"}'}, 200, JSON, OK)
    first = host(s, "10.0.0.1", weight=7.0, zone="b")
    yield from reads(Step("GET", f"{V3}/instance/list", of, 200, JSON, wrapped([first])))
    yield Step("POST", f"{V3}/instance", {**here, "heartBeat": "true"}, 200, JSON, OK)
    unknown = {"code": 21003, "message": "instance not found", "data": None}
    lost = {**here, "serviceName": f"{s}-none", "heartBeat": "true"}
    yield Step("POST", f"{V3}/instance", lost, 200, JSON, unknown, {}, {"r-nacos": OK})
    yield Step("DELETE", f"{V3}/instance", here, 200, JSON, OK)
    yield Step("DELETE", f"{V3}/instance", here, 200, JSON, OK)
    yield from reads(Step("GET", f"{V3}/instance/list", both, 200, JSON, wrapped([second])))
    missing = {"code": 30000, "message": "server error", "data": "cluster DEFAULT is not found!"}
    yield Step("GET", f"{ADMIN}/instance/list", of, 404, JSON, missing)
    gone = {"code": 20004, "message": "resource not found", "data": "no matched ip found!"}
    yield Step("GET", f"{ADMIN}/instance", here, 404, JSON, gone)


CLIENTS = {"v1": v1, "v2": v2, "v3": v3}


async def play(http: httpx.AsyncClient, steps: Iterator[Step], generation: str = "") -> None:
    for number, step in enumerate(steps):
        in_form = step.method != "GET" and number % 2
        where = {"data": step.params} if in_form else {"params": step.params}
        reply = await http.request(step.method, step.path, headers=step.headers, **where)
        said = step.otherwise.get(generation, step.body)
        body = said if isinstance(said, str) else json.dumps(said, separators=(",", ":"))
        text = re.sub(r'(?<="lastRefTime":)\d+', "0", reply.text)
        text = (
            text.replace('"cacheMillis":3000', '"cacheMillis":10000') if generation == "1.x" else text
        )  # 1.x sends another interval
        got = (reply.status_code, reply.headers.get("content-type"), text)
        assert (number, step, got) == (number, step, (step.status, step.type, body))


@pytest.mark.parametrize("client", CLIENTS)
async def test_matrix_dialect_has_the_same_answers_for_every_upstream(
    client: str, generation: str, upstream: str, service: str
) -> None:
    async with serving(upstream=upstream) as proxy:
        await play(proxy.http, CLIENTS[client](service), generation)


@pytest.mark.parametrize("client", CLIENTS)
async def test_matrix_dialect_has_the_same_answers_without_the_fast_path(client: str, service: str) -> None:
    async with serving(fast_path=False) as proxy:
        await play(proxy.http, CLIENTS[client](service))


async def test_matrix_process_answers_all_dialects(generation: str, upstream: str, service: str) -> None:
    async with process("--upstream", upstream) as proxy, httpx.AsyncClient(base_url=proxy.url) as http:
        for client, steps in CLIENTS.items():
            await play(http, steps(f"{service}-{client}"), generation)


async def test_matrix_services_are_listed_in_each_dialect(upstream: str, service: str) -> None:
    """The test has its own group, because the real server holds other services."""
    async with serving(upstream=upstream) as proxy:
        for number in (1, 2, 3):
            query = {"serviceName": f"s{number}", "groupName": service, "ip": f"10.0.0.{number}", "port": "80"}
            await proxy.http.post(f"{V1}/instance", params=query)
        await proxy.http.post(f"{V1}/instance", params={**query, "ip": "10.0.1.1", "healthy": "false"})
        page = {"groupName": service, "pageNo": "1", "pageSize": "10"}
        found = (await proxy.http.get(f"{V1}/service/list", params=page)).json()
        assert (found["count"], sorted(found["doms"])) == (3, ["s1", "s2", "s3"])
        found = (await proxy.http.get(f"{V2}/service/list", params=page)).json()["data"]
        assert (found["count"], sorted(found["services"])) == (3, ["s1", "s2", "s3"])
        page = {"groupNameParam": service, "pageNo": "1", "pageSize": "2"}
        found = (await proxy.http.get(f"{ADMIN}/service/list", params=page)).json()["data"]
        second = (await proxy.http.get(f"{ADMIN}/service/list", params={**page, "pageNo": "2"})).json()["data"]
        assert (found["totalCount"], found["pageNumber"], found["pagesAvailable"]) == (3, 1, 2)
        rows = sorted([*found["pageItems"], *second["pageItems"]], key=lambda row: row["name"])
        assert [row["name"] for row in rows] == ["s1", "s2", "s3"]
        assert {"groupName": service, "clusterCount": 1, "ipCount": 1}.items() <= rows[0].items()
        assert rows[2]["ipCount"] == 2


async def test_matrix_service_pages_with_instances_show_them(upstream: str, service: str) -> None:
    async with serving(upstream=upstream) as proxy:
        query = {"serviceName": service, "groupName": "G", "ip": "10.0.0.1", "port": "80"}
        await proxy.http.post(f"{V1}/instance", params=query)
        await proxy.http.post(f"{V1}/instance", params={**query, "ip": "10.0.0.2", "clusterName": "c2"})
        query = {"serviceNameParam": service, "groupNameParam": "G", "withInstances": "true"}
        [row] = (await proxy.http.get(f"{ADMIN}/service/list", params=query)).json()["data"]["pageItems"]
        shown = {name: [h["ip"] for h in cluster["hosts"]] for name, cluster in row["clusterMap"].items()}
        assert (row["serviceName"], shown) == (service, {"DEFAULT": ["10.0.0.1"], "c2": ["10.0.0.2"]})


@pytest.mark.parametrize("path", ["/nacos/v1/console/health/liveness", "/nacos/v3/admin/core/state/liveness"])
async def test_matrix_liveness_is_ok_for_every_upstream(path: str, upstream: str) -> None:
    async with serving(upstream=upstream) as proxy:
        reply = await proxy.http.get(path)
        v1s = "OK" if "/v1/" in path else '{"code":0,"message":"success","data":"ok"}'
        assert (reply.status_code, reply.text) == (200, v1s)
