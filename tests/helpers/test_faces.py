"""`facing` and `clustered` answer as the recorded servers."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.helpers.clock import FakeClock
from tests.helpers.faces import FACES, clustered, facing
from tests.helpers.recordings import Row, load


async def answer(http: httpx.AsyncClient, row: Row, token: str = "") -> httpx.Response:
    query, form, headers = ({**part} for part in (row.query, row.form, row.headers))
    for part in (query, form, headers):
        part.update({name: value.replace("TOKEN", token) for name, value in part.items()})
    if "bearer" in row.case:
        headers = {"Authorization": f"Bearer {token}"}
    return await http.request(row.method, row.path, params=query, data=form or None, headers=headers)


def without_moment(body: object) -> object:
    return {**body, "timestamp": ""} if isinstance(body, dict) and "timestamp" in body else body


def check(row: Row, reply: httpx.Response) -> None:
    kind = reply.headers.get("content-type")
    assert (row.case, reply.status_code, kind) == (row.case, row.status, row.type)
    if row.status != 200:
        body = reply.json() if kind == "application/json" else reply.text
        assert (row.case, without_moment(body)) == (row.case, without_moment(row.body))


@pytest.mark.parametrize(("face", "server"), [("v1+v2", "nacos-2.5.1"), ("3.0", "nacos-3.0.3")])
async def test_facing_with_passwords_requires_a_token(face: str, server: str) -> None:
    rows = [
        row
        for row in load("auth")
        if row.server == server and "/admin" not in row.case and "admin" not in row.case[:30]
    ]
    async with facing(face, passwords={"nacos": "pw-1"}) as upstream, httpx.AsyncClient(base_url=upstream.url) as http:
        assert upstream.users is not None
        token = upstream.users.login("nacos")
        for row in rows:
            check(row, await answer(http, row, token))


@pytest.mark.parametrize(("face", "name"), [("3.0", "nacos-3.0.3"), ("3.0 closed", "v3-only")])
async def test_facing_refuses_what_its_server_removed(face: str, name: str) -> None:
    rows = [row for row in load(name) if row.status == 410]
    assert len(rows) > 5
    async with facing(face) as upstream, httpx.AsyncClient(base_url=upstream.url) as http:
        for row in rows:
            check(row, await answer(http, row))


@pytest.mark.parametrize(
    ("face", "spoken"),
    [("v1", "200 404 404"), ("v1+v2", "200 200 404"), ("3.0", "200 410 200"), ("v3", "404 404 200")],
)
async def test_facing_has_only_its_dialects(face: str, spoken: str) -> None:
    paths = ("/v1/ns/instance/list", "/v2/ns/instance/list", "/v3/client/ns/instance/list")
    async with facing(face) as upstream, httpx.AsyncClient(base_url=f"{upstream.url}/nacos") as http:
        replies = [await http.get(path, params={"serviceName": "s"}) for path in paths]
        assert [str(reply.status_code) for reply in replies] == spoken.split()
        assert upstream.asked == [f"GET {path}" for path in paths]


@pytest.mark.parametrize("face", FACES)
async def test_facing_listing_delay_delays_writes_to_listed_services(face: str) -> None:
    clock = FakeClock()
    path = "/v1/ns/instance" if face in ("v1", "1.x", "v1+v2", "3.0") else "/v3/client/ns/instance"
    async with facing(face, clock, listing_delay=0.5) as upstream:
        async with httpx.AsyncClient(base_url=f"{upstream.url}/nacos") as http:

            async def listed() -> list[str]:
                text = (await http.get(f"{path}/list", params={"serviceName": "s"})).text
                return [ip for ip in ("10.0.0.1", "10.0.0.2") if ip in text]

            await http.post(path, params={"serviceName": "s", "ip": "10.0.0.1", "port": "80"})
            assert await listed() == ["10.0.0.1"]
            await http.post(path, params={"serviceName": "s", "ip": "10.0.0.2", "port": "80"})
            assert await listed() == ["10.0.0.1"]
            await clock.advance(0.5)
            assert await listed() == ["10.0.0.1", "10.0.0.2"]


async def test_facing_tokens_expire_and_can_be_revoked() -> None:
    clock = FakeClock()
    async with facing("v1+v2", clock, passwords={"nacos": "pw", "reader": "pw"}) as upstream:
        assert upstream.users is not None
        async with httpx.AsyncClient(base_url=f"{upstream.url}/nacos/v1/ns") as http:

            async def listing(token: str) -> str:
                reply = await http.get("/instance/list", params={"serviceName": "s", "accessToken": token})
                return reply.json().get("message", "ok")

            token = upstream.users.login("reader")
            assert await listing(token) == "ok"
            await clock.advance(18_000)
            assert await listing(token) == "token expired!"
            upstream.users.revoke()
            assert await listing(token) == "token invalid!"


async def test_facing_admin_api_requires_an_admin() -> None:
    async with facing("v3", passwords={"nacos": "pw", "reader": "pw"}) as upstream:
        assert upstream.users is not None
        async with httpx.AsyncClient(base_url=f"{upstream.url}/nacos/v3") as http:

            async def status(path: str, user: str) -> int:
                assert upstream.users is not None
                query = {"serviceName": "s", "accessToken": upstream.users.login(user)}
                return (await http.get(path, params=query)).status_code

            assert await status("/client/ns/instance/list", "reader") == 200
            assert await status("/admin/ns/service/list", "reader") == 403
            assert await status("/admin/ns/service/list", "nacos") == 200


async def test_facing_1x_reads_post_parameters_only_from_the_query() -> None:
    fields = {"serviceName": "s", "ip": "10.0.0.1", "port": "80"}
    async with facing("1.x") as upstream, httpx.AsyncClient(base_url=f"{upstream.url}/nacos/v1/ns") as http:
        refused = await http.post("/instance", data=fields)
        assert (refused.status_code, refused.text) == (400, "caused: Param 'serviceName' is required.;")
        assert (await http.post("/instance", params=fields)).text == "ok"
        assert (await http.put("/instance", data={**fields, "weight": "2"})).text == "ok"
        assert (await http.get("/instance/list", params=fields)).json()["hosts"][0]["weight"] == 2.0


async def test_facing_1x_has_no_parameter_check_and_an_instance_per_cluster() -> None:
    fields = {"serviceName": "服务", "groupName": "组", "namespaceId": "a.b", "ip": "10.0.0.1", "port": "80"}
    async with facing("1.x") as upstream, httpx.AsyncClient(base_url=f"{upstream.url}/nacos/v1/ns") as http:
        for cluster in ("c1", "c2"):
            more = {"clusterName": cluster, "metadata": f"note={'x' * 2000}"}
            assert (await http.post("/instance", params=fields | more)).text == "ok"
        assert (await http.delete("/instance", params=fields | {"clusterName": "c1"})).text == "ok"
        answer = (await http.get("/instance/list", params=fields)).json()
        assert [(host["ip"], host["clusterName"]) for host in answer["hosts"]] == [("10.0.0.1", "c2")]
        missing = await http.get("/instance", params=fields | {"clusterName": "c1"})
        assert (missing.status_code, missing.text[:8]) == (500, "caused: ")


async def test_clustered_nodes_list_a_change_at_different_times() -> None:
    clock = FakeClock()
    fields = {"serviceName": "s", "ip": "10.0.0.1", "port": "80"}
    async with clustered(clock) as nodes, httpx.AsyncClient() as http:

        async def listed() -> list[int]:
            replies = [await http.get(f"{node.url}/nacos/v1/ns/instance/list", params=fields) for node in nodes]
            return sorted(len(reply.json()["hosts"]) for reply in replies)

        assert await listed() == [0, 0, 0]
        await http.post(f"{nodes[0].url}/nacos/v1/ns/instance", params=fields)
        assert await listed() == [0, 0, 0]
        await clock.advance(0.6)
        assert await listed() == [0, 0, 1]
        await clock.advance(1.2)
        assert await listed() == [1, 1, 1]


async def test_clustered_node_drops_a_forwarded_delete_form_and_reports_a_missing_peer() -> None:
    fields = {"serviceName": "s", "ip": "10.0.0.1", "port": "80"}
    async with clustered(lagging=False) as nodes, httpx.AsyncClient(timeout=30) as http:
        urls = [f"{node.url}/nacos/v1/ns/instance" for node in nodes]
        lost = await asyncio.gather(*(http.request("DELETE", url, data=fields) for url in urls))
        assert sorted(reply.status_code for reply in lost) == [200, 500, 500]
        assert sum("SocketTimeoutException: Read timed out" in reply.text for reply in lost) == 2
        assert [(await http.request("DELETE", url, params=fields)).status_code for url in urls] == [200] * 3
        for node in nodes:
            node.turmoil = (400, "receive invalid redirect request from peer 127.0.0.1")
        assert sorted([(await http.post(url, params=fields)).status_code for url in urls]) == [200, 400, 400]
        nodes[1].returned = True
        hosts = (await http.get(f"{urls[1]}/list", params=fields)).json()["hosts"]
        assert [host["healthy"] for host in hosts] == [False]


async def test_facing_accepts_an_instance_without_an_ip() -> None:
    async with facing("v1+v2") as upstream, httpx.AsyncClient(base_url=f"{upstream.url}/nacos/v1/ns") as http:
        assert (await http.put("/instance/beat", params={"serviceName": "s", "beat": "{}"})).json()["code"] == 10200
        (host,) = (await http.get("/instance/list", params={"serviceName": "s"})).json()["hosts"]
        assert "ip" not in host
