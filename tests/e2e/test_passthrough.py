"""Requests outside the naming API through the whole proxy: configuration on r-nacos, logins on each generation."""

from __future__ import annotations

import asyncio
import hashlib
import time

import httpx
import pytest

from nacos_proxy.runtime import spawn
from tests.e2e.conftest import process
from tests.helpers.app import Served, serving
from tests.helpers.faces import FACES, facing
from tests.helpers.live import RNacos

CONFIGS = "/nacos/v1/cs/configs"


async def publish(http: httpx.AsyncClient, data_id: str, content: str) -> str:
    form = {"dataId": data_id, "group": "DEFAULT_GROUP", "content": content}
    return (await http.post(CONFIGS, data=form)).text


async def read(http: httpx.AsyncClient, data_id: str) -> httpx.Response:
    return await http.get(CONFIGS, params={"dataId": data_id, "group": "DEFAULT_GROUP"})


async def listen(http: httpx.AsyncClient, data_id: str, content: str, wait_ms: int) -> httpx.Response:
    """Listens as SDKs do: sends the md5 of what they have, and how long they wait."""
    known = "\x02".join((data_id, "DEFAULT_GROUP", hashlib.md5(content.encode()).hexdigest())) + "\x01"
    return await http.post(
        f"{CONFIGS}/listener",
        data={"Listening-Configs": known},
        headers={"Long-Pulling-Timeout": str(wait_ms)},
        timeout=30.0,
    )


async def test_passthrough_publishes_reads_and_deletes_configuration(rnacos: RNacos, service: str) -> None:
    async with serving(upstream=rnacos.url) as proxy, httpx.AsyncClient(base_url=rnacos.url) as direct:
        assert await publish(proxy.http, service, "a: 1\nb: 北京\n") == "true"
        ours, theirs = await read(proxy.http, service), await read(direct, service)
        assert (ours.status_code, ours.content) == (200, "a: 1\nb: 北京\n".encode())
        kept = ("content-type", "content-md5", "content-length")
        assert [ours.headers.get(name) for name in kept] == [theirs.headers.get(name) for name in kept]
        deleted = await proxy.http.delete(CONFIGS, params={"dataId": service, "group": "DEFAULT_GROUP"})
        assert (deleted.status_code, deleted.text) == (200, "true")
        ours, theirs = await read(proxy.http, service), await read(direct, service)
        assert (ours.status_code, ours.content) == (theirs.status_code, theirs.content) == (404, theirs.content)


async def test_passthrough_listener_waits_for_a_change(rnacos: RNacos, service: str) -> None:
    async with serving(upstream=rnacos.url) as proxy:
        await publish(proxy.http, service, "one")
        waiting = spawn(listen(proxy.http, service, "one", 20_000), name="listener")
        while not proxy.components.agent.registry.servers.all[0].outcomes.get("passed"):  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
        assert not waiting.done()
        await publish(proxy.http, service, "two")
        reply = await waiting
        assert reply.status_code == 200
        assert service in reply.text


async def test_passthrough_listener_gets_the_timeout_answer_of_the_server(rnacos: RNacos, service: str) -> None:
    """The wait is longer than every timeout of the proxy for a call."""
    async with serving(upstream=rnacos.url, upstream_timeout=1.0, cold_wait=0.5) as proxy:
        await publish(proxy.http, service, "one")
        begin = time.perf_counter()
        reply = await listen(proxy.http, service, "one", 3000)
        assert (reply.status_code, reply.text) == (200, "")
        assert time.perf_counter() - begin > 1.5


async def test_passthrough_of_the_process_forwards_configuration(rnacos: RNacos, service: str) -> None:
    async with process("--upstream", rnacos.url) as proxy, httpx.AsyncClient(base_url=proxy.url) as http:
        assert await publish(http, service, "x" * 200_000) == "true"
        assert (await read(http, service)).text == "x" * 200_000


async def login(proxy: Served, path: str, password: str) -> httpx.Response:
    """Logs in as the Java client does: the name in the query, the password in the form."""
    return await proxy.http.post(f"/nacos{path}", params={"username": "nacos"}, data={"password": password})


@pytest.mark.parametrize("path", ["/v1/auth/login", "/v1/auth/users/login", "/v3/auth/user/login"])
@pytest.mark.parametrize("face", FACES)
async def test_passthrough_login_works_for_every_upstream(face: str, path: str) -> None:
    async with facing(face, passwords={"nacos": "pw"}) as upstream, serving(upstream=upstream.url) as proxy:
        reply = await login(proxy, path, "pw")
        assert (reply.status_code, list(reply.json())) == (
            200,
            ["accessToken", "tokenTtl", "globalAdmin", "username"],
        )
        assert (await login(proxy, path, "wrong")).status_code in (403, 500)


async def test_passthrough_reaches_only_the_context_path() -> None:
    async with facing("v1+v2") as upstream, serving(upstream=upstream.url) as proxy:
        for path in ("/nacos/../secret", "/nacos/%2e%2e/secret", "/nacos//evil.example/x", "/nacos/a%2fb"):
            reply = await proxy.http.send(httpx.Request("GET", httpx.URL(proxy.url, raw_path=path.encode())))
            assert reply.status_code in (400, 404)
        assert {line.split()[1].split("/")[1] for line in upstream.asked} <= {"v1"}  # the proxy's own probes
