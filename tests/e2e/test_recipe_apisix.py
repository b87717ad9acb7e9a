"""docs/recipes/apisix.md: the requests of APISIX's discovery module through the proxy, in front of each generation.

APISIX itself needs OpenResty and is not run. Its module (`apisix/discovery/nacos`) came in two forms: the older one
puts its query together by hand, the newer one encodes a table. Both log in first if they have an account, take a status
other than 200 as a failure, and read `ip`, `port`, `weight` and `metadata.gRPC_port` of each of the `hosts`.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
import pytest

from tests.helpers.app import Served, serving
from tests.helpers.faces import FACES, facing
from tests.helpers.recipes import block

CONFIG = block("apisix", "config.yaml")
UPSTREAM: Mapping[str, Any] = json.loads(block("apisix", "upstream.json"))
AGENT = "lua-resty-http/0.17.2 (Lua) ngx_lua/10027"
FORMS = ("old", "new")
Node = tuple[str, int | str, float]


class Module:
    """What the module does in each interval for one upstream, at the `host` of its configuration."""

    def __init__(self, host: str, form: str, prefix: str = "/nacos/v1/") -> None:
        url = urlsplit(host)
        self.username, self.password = url.username, url.password
        self.form, self.base = form, f"http://{url.hostname}:{url.port}{prefix}"

    async def nodes(self, upstream: Mapping[str, Any], *, scheme: str = "http") -> list[Node]:
        arguments = upstream.get("discovery_args", {})
        namespace = arguments.get("namespace_id", "public" if self.form == "old" else "")
        group = arguments.get("group_name", "DEFAULT_GROUP")
        token = await self._token()
        names = {"namespaceId": namespace, "groupName": group}
        if self.form == "old":
            query = f"healthyOnly=true&serviceName={upstream['service_name']}"
            query += f"&accessToken={token}" * bool(token)
            query += "".join(f"&{urlencode({name: value})}" for name, value in names.items())
        else:
            given = {"healthyOnly": "true", "serviceName": upstream["service_name"], **names}
            query = urlencode(given | ({"accessToken": token} if token else {}))
        data = await self._ask("GET", f"ns/instance/list?{query}")
        return [
            (
                host["ip"],
                host["metadata"]["gRPC_port"] if scheme == "grpc" and "gRPC_port" in host["metadata"] else host["port"],
                host["weight"],
            )
            for host in data["hosts"]
        ]

    async def _token(self) -> str:
        if not self.username or not self.password:
            return ""
        query = urlencode({"username": self.username, "password": self.password})
        return str((await self._ask("POST", f"auth/login?{query}"))["accessToken"])

    async def _ask(self, method: str, path: str) -> Any:
        headers = {"User-Agent": AGENT, "Accept": "application/json"}
        if self.form == "new":
            headers = {"User-Agent": AGENT}
            if method == "POST":
                headers["Content-Type"] = "application/x-www-form-urlencoded"
        async with httpx.AsyncClient(trust_env=False, timeout=5.0, verify=False) as http:
            http.headers.clear()
            answer = await http.request(method, self.base + path, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()


async def write(proxy: Served, method: str, ip: str, **more: str) -> None:
    query = {"serviceName": "orders", "ip": ip, "port": "8080", **more}
    (await proxy.http.request(method, "/nacos/v1/ns/instance", params=query)).raise_for_status()


def host(proxy: Served, account: str = "") -> str:
    """The `host` of the page, at this proxy."""
    found = re.search(r'- "(http://127\.0\.0\.1:8840)"', CONFIG)
    assert found is not None
    return found[1].replace("127.0.0.1:8840", account + proxy.url.removeprefix("http://"))


@pytest.mark.parametrize("generation", FACES)
async def test_apisix_module_finds_healthy_nodes_of_any_generation(generation: str) -> None:
    async with facing(generation) as server, serving(upstream=server.url) as proxy:
        metadata = json.dumps({"gRPC_port": "9090"})
        await write(proxy, "POST", "10.0.0.1", weight="3", metadata=metadata)
        await write(proxy, "POST", "10.0.0.2", enabled="false")
        for form in FORMS:
            module = Module(host(proxy), form)
            assert await module.nodes(UPSTREAM) == [("10.0.0.1", 8080, 3)]
            assert await module.nodes({"service_name": "orders"}) == [("10.0.0.1", 8080, 3)], "no discovery_args"
            assert await module.nodes(UPSTREAM, scheme="grpc") == [("10.0.0.1", "9090", 3)]
        await write(proxy, "DELETE", "10.0.0.1")
        for form in FORMS:
            assert await Module(host(proxy), form).nodes(UPSTREAM) == []


@pytest.mark.parametrize("form", FORMS)
async def test_apisix_module_separates_namespaces_and_groups(form: str) -> None:
    async with facing("v3") as server, serving(upstream=server.url) as proxy:
        where = {"namespaceId": "dev", "groupName": "web:a"}
        await write(proxy, "POST", "10.0.0.1", **where)
        other = {**UPSTREAM, "discovery_args": {"namespace_id": "dev", "group_name": "web:a"}}
        assert await Module(host(proxy), form).nodes(other) == [("10.0.0.1", 8080, 1)]
        assert await Module(host(proxy), form).nodes(UPSTREAM) == []


@pytest.mark.parametrize("form", FORMS)
async def test_apisix_module_uses_its_own_account(form: str) -> None:
    async with facing("v3", passwords={"nacos": "pw"}) as server:
        async with serving(upstream=server.url, auth="client") as proxy:
            await write(proxy, "POST", "10.0.0.1", username="nacos", password="pw")
            assert await Module(host(proxy, "nacos:pw@"), form).nodes(UPSTREAM) == [("10.0.0.1", 8080, 1)]


@pytest.mark.parametrize("form", FORMS)
async def test_apisix_module_keeps_its_nodes_while_nacos_is_away(form: str) -> None:
    async with AsyncExitStack() as nacos:
        server = await nacos.enter_async_context(facing("v3"))
        async with serving(upstream=server.url) as proxy:
            await write(proxy, "POST", "10.0.0.1")
            await Module(host(proxy), form).nodes(UPSTREAM)
            await nacos.aclose()
            while (await proxy.http.get("/readyz")).json()["status"] != "degraded":
                await asyncio.sleep(0.05)
            assert await Module(host(proxy), form).nodes(UPSTREAM) == [("10.0.0.1", 8080, 1)]
