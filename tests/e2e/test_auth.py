"""`auth = client`: each client's own token goes to the upstream, and nobody sees what their own would not show."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.helpers.app import Served, serving
from tests.helpers.faces import FaceServer, facing

PASSWORDS = {"nacos": "secret-of-nacos", "app": "secret-of-app"}
LIST = "/nacos/v1/ns/instance/list"
INSTANCE = "/nacos/v1/ns/instance"


@pytest.fixture(params=["v1+v2", "3.0", "v3"])
async def upstream(request: pytest.FixtureRequest) -> AsyncIterator[FaceServer]:
    async with facing(request.param, passwords=PASSWORDS) as face:
        yield face


@pytest.fixture
async def proxy(upstream: FaceServer) -> AsyncIterator[Served]:
    async with serving(upstream=upstream.url, auth="client") as served:
        yield served


async def login(http: httpx.AsyncClient, user: str) -> str:
    for path in ("/nacos/v1/auth/login", "/nacos/v3/auth/user/login"):
        reply = await http.post(path, data={"username": user, "password": PASSWORDS[user]})
        if reply.status_code == 200:
            return reply.json()["accessToken"]
    raise AssertionError(reply.text)


async def test_a_token_writes_and_reads_and_no_token_sees_nothing(proxy: Served) -> None:
    token = await login(proxy.http, "nacos")
    query = {"serviceName": "orders", "ip": "10.0.0.1", "port": "80", "accessToken": token}
    assert (await proxy.http.post(INSTANCE, params=query)).text == "ok"
    for _ in range(3):
        shown = await proxy.http.get(LIST, params={"serviceName": "orders"}, headers={"accessToken": token})
        assert [host["ip"] for host in shown.json()["hosts"]] == ["10.0.0.1"]
        refused = await proxy.http.get(LIST, params={"serviceName": "orders"})
        assert (refused.status_code, "10.0.0.1" in refused.text) == (403, False)
        wrong = await proxy.http.get(LIST, params={"serviceName": "orders", "accessToken": "made-up"})
        assert (wrong.status_code, "10.0.0.1" in wrong.text) == (403, False)


async def test_a_write_without_a_token_is_refused_as_the_upstream_refuses_it(proxy: Served) -> None:
    refused = await proxy.http.post(INSTANCE, params={"serviceName": "orders", "ip": "10.0.0.1", "port": "80"})
    assert refused.status_code == 403


async def test_nobody_acts_with_the_identity_of_this_proxy() -> None:
    """A request with that header passes every check of Nacos, so it may go with none that is somebody else's."""
    key, value = "serverIdentity", "of-the-servers"
    async with (
        facing("v1+v2", passwords=PASSWORDS, identity=(key, value)) as face,
        serving(upstream=face.url, auth="client", identity_key=key, identity_value=value) as proxy,
    ):
        assert face.users is not None
        wrong = {"accessToken": "made-up"}
        for shown in ({}, wrong):
            service = {"serviceName": "orders", "ip": "10.0.0.1", "port": "80"}
            for method, path, query in (
                ("POST", INSTANCE, service),
                ("PUT", INSTANCE, service),
                ("PUT", f"{INSTANCE}/beat", service),
                ("DELETE", INSTANCE, service),
                ("GET", INSTANCE, service),
                ("GET", LIST, service),
                ("GET", "/nacos/v1/ns/service/list", {"pageNo": "1", "pageSize": "1"}),
                ("GET", "/nacos/v1/cs/configs", {"dataId": "a"}),
                ("GET", "/api/v1/services/orders", {}),
                ("GET", "/api/v1/services", {}),
            ):
                refused = await proxy.http.request(method, path, params={**query, **shown})
                assert refused.status_code == 403, (method, path, refused.text)


async def test_reads_of_two_tokens_are_cached_apart(proxy: Served, upstream: FaceServer) -> None:
    tokens = [await login(proxy.http, user) for user in PASSWORDS]
    for token in tokens:
        for _ in range(4):
            reply = await proxy.http.get(LIST, params={"serviceName": "orders"}, headers={"accessToken": token})
            assert reply.status_code == 200
    asked = [line for line in upstream.asked if "list" in line]
    own = await proxy.http.get("/api/v1/services/orders", headers={"Authorization": f"Bearer {tokens[0]}"})
    assert own.headers["cache-status"].startswith("nacos-proxy; hit")
    assert len([line for line in upstream.asked if "list" in line]) == len(asked) >= 2


async def test_a_token_that_was_revoked_is_not_answered_from_memory(proxy: Served, upstream: FaceServer) -> None:
    token = await login(proxy.http, "nacos")
    query = {"serviceName": "orders", "ip": "10.0.0.1", "port": "80", "accessToken": token}
    await proxy.http.post(INSTANCE, params=query)
    seen = {"serviceName": "orders", "accessToken": token}
    assert (await proxy.http.get(LIST, params=seen)).status_code == 200
    assert upstream.users is not None
    upstream.users.revoke()
    fresh = await proxy.http.get(LIST, params=seen, headers={"cache-control": "no-cache"})
    assert (fresh.status_code, "10.0.0.1" in fresh.text) == (403, False)
    again = await proxy.http.get(LIST, params={**seen, "clusters": "DEFAULT"})
    assert (again.status_code, "10.0.0.1" in again.text) == (403, False)


async def test_no_token_stands_in_what_operators_see(proxy: Served) -> None:
    token = await login(proxy.http, "nacos")
    await proxy.http.get(LIST, params={"serviceName": "orders", "accessToken": token})
    for path in ("/status", "/metrics", "/", "/readyz"):
        for headers in ({}, {"Authorization": f"Bearer {token}"}):
            assert token not in (await proxy.http.get(path, headers=headers)).text
