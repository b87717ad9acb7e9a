"""`auth = client`: each client's own token goes to the upstream, and nobody sees more than their token allows."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import pytest

from nacos_proxy.runtime import spawn
from tests.helpers.app import Served, heard, serving
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


async def test_auth_client_reads_and_writes_only_with_a_token(proxy: Served) -> None:
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


async def test_auth_client_refuses_a_write_without_a_token(proxy: Served) -> None:
    refused = await proxy.http.post(INSTANCE, params={"serviceName": "orders", "ip": "10.0.0.1", "port": "80"})
    assert refused.status_code == 403


async def test_auth_client_never_sends_the_server_identity() -> None:
    """A request with that header passes every check of Nacos, so the proxy must not add it to a client's request."""
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


async def test_auth_client_caches_reads_per_token(proxy: Served, upstream: FaceServer) -> None:
    tokens = [await login(proxy.http, user) for user in PASSWORDS]
    for token in tokens:
        for _ in range(4):
            reply = await proxy.http.get(LIST, params={"serviceName": "orders"}, headers={"accessToken": token})
            assert reply.status_code == 200
    asked = [line for line in upstream.asked if "list" in line]
    own = await proxy.http.get("/api/v1/services/orders", headers={"Authorization": f"Bearer {tokens[0]}"})
    assert own.headers["cache-status"].startswith("nacos-proxy; hit")
    assert len([line for line in upstream.asked if "list" in line]) == len(asked) >= 2


async def test_auth_client_does_not_answer_a_revoked_token_from_the_cache(proxy: Served, upstream: FaceServer) -> None:
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


async def test_auth_client_shows_no_token_to_operators(proxy: Served) -> None:
    token = await login(proxy.http, "nacos")
    await proxy.http.get(LIST, params={"serviceName": "orders", "accessToken": token})
    for path in ("/status", "/status/orders", "/metrics", "/ui", "/readyz"):
        for headers in ({}, {"Authorization": f"Bearer {token}"}):
            assert token not in (await proxy.http.get(path, headers=headers)).text


async def test_auth_client_leaves_the_right_in_status_to_the_upstream(proxy: Served) -> None:
    token = await login(proxy.http, "nacos")
    shown = await proxy.http.get("/status", headers={"Authorization": f"Bearer {token}"})
    assert (shown.status_code, shown.json()["right"]) == (200, None)


async def test_auth_client_shows_envoy_what_its_token_may_see(proxy: Served) -> None:
    token = await login(proxy.http, "nacos")
    await register(proxy, "orders", accessToken=token)
    for path in ("/v3/discovery:endpoints", "/v3/discovery:clusters"):
        asked = {"resource_names": ["orders"]}
        for shown in ({}, {"authorization": "Bearer made-up"}):
            refused = await proxy.http.post(path, json=asked, headers={"host": "nacos_proxy", **shown})
            assert (refused.status_code, "orders" in refused.text) == (403, False), path
        headers = {"host": "nacos_proxy", "authorization": f"Bearer {token}"}
        answer = await proxy.http.post(path, json=asked, headers=headers)
        assert (answer.status_code, "orders" in answer.text) == (200, True), path


# admission


async def register(proxy: Served, service: str, **shown: str) -> None:
    query = {"serviceName": service, "ip": "10.0.0.1", "port": "80", **shown}
    reply = await proxy.http.post(INSTANCE, params=query)
    assert (reply.status_code, reply.text) == (200, "ok")


async def test_auth_client_invented_tokens_make_no_tenant_and_lock_nobody_out(proxy: Served) -> None:
    token = await login(proxy.http, "nacos")
    await register(proxy, "orders", accessToken=token)
    statuses = set[int]()
    for number in range(300):
        reply = await proxy.http.get(LIST, params={"serviceName": "orders", "accessToken": f"invented-{number}"})
        statuses.add(reply.status_code)
    assert statuses == {403, 429}
    numbers = (await proxy.http.get("/metrics")).text
    assert "nacos_proxy_tenants 1.0" in numbers and "nacos_proxy_tenants_refused_total 300.0" in numbers
    assert proxy.app.tenants is not None and len(proxy.app.tenants) == 1
    for known in (token, await login(proxy.http, "app")):
        again = await proxy.http.get(LIST, params={"serviceName": "orders", "accessToken": known})
        assert [host["ip"] for host in again.json()["hosts"]] == ["10.0.0.1"], "who logs in now is no guess"


@pytest.mark.parametrize("in_form", [False, True])
async def test_auth_client_logs_in_a_name_and_password_once(
    proxy: Served,
    upstream: FaceServer,
    in_form: bool,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    """The Node SDK sends them with each call."""
    caplog.set_level("DEBUG")
    account = {"username": "nacos", "password": PASSWORDS["nacos"]}
    service = {"serviceName": "orders", "ip": "10.0.0.1", "port": "80"}
    for _ in range(3):
        if in_form:
            written = await proxy.http.post(INSTANCE, data={**service, **account})
        else:
            written = await proxy.http.post(INSTANCE, params={**service, **account})
        assert (written.status_code, written.text) == (200, "ok")
        shown = await proxy.http.get(LIST, params={"serviceName": "orders", **account})
        assert [host["ip"] for host in shown.json()["hosts"]] == ["10.0.0.1"]
    logins = [line for line in upstream.asked if line in ("POST /v1/auth/login", "POST /v3/auth/user/login")]
    at_v3 = request.node.callspec.params["upstream"] == "v3"  # the path of v1 is tried first and does not exist
    assert logins == ["POST /v1/auth/login", *["POST /v3/auth/user/login"] * at_v3]
    wrong = await proxy.http.get(LIST, params={"serviceName": "orders", **account, "password": "guessed-1"})
    assert (wrong.status_code, "10.0.0.1" in wrong.text) == (403, False)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("nacos_proxy")]
    assert not [line for line in said if PASSWORDS["nacos"] in line or "guessed-1" in line]


async def test_auth_client_forwards_a_login(proxy: Served) -> None:
    account = {"username": "nacos", "password": PASSWORDS["nacos"]}
    for _ in range(2):
        assert (await proxy.http.post("/nacos/v1/auth/login", params=account)).status_code == 200
    assert proxy.app.tenants is not None and len(proxy.app.tenants) == 0


async def test_auth_client_serves_only_known_tokens_while_the_upstream_is_down() -> None:
    async with AsyncExitStack() as stack:
        face = await stack.enter_async_context(facing("v1+v2", passwords=PASSWORDS))
        async with serving(upstream=face.url, auth="client", breaker_failures=1, cache_ttl=0.001) as proxy:
            known, late = [await login(proxy.http, "nacos") for _ in range(2)]
            await register(proxy, "orders", accessToken=known)
            assert (
                await proxy.http.get(LIST, params={"serviceName": "orders", "accessToken": known})
            ).status_code == 200
            await stack.aclose()
            refused = await proxy.http.get(LIST, params={"serviceName": "orders", "accessToken": late})
            assert (refused.status_code, "try again when it answers" in refused.text) == (503, True)
            shown = await proxy.http.get(LIST, params={"serviceName": "orders", "accessToken": known})
            assert [host["ip"] for host in shown.json()["hosts"]] == ["10.0.0.1"]


def unpacked(datagram: bytes) -> str:
    return (gzip.decompress(datagram) if datagram[:2] == b"\x1f\x8b" else datagram).decode()


async def test_auth_client_pushes_by_udp(upstream: FaceServer) -> None:
    agent = {"User-Agent": "Nacos-Java-Client:v1.4.6"}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.setblocking(False)
        async with serving(upstream=upstream.url, auth="client", udp_push=True) as proxy:
            token = await login(proxy.http, "nacos")
            push = {"udpPort": str(udp.getsockname()[1]), "clientIP": "127.0.0.1"}
            listed = {"serviceName": "orders", "accessToken": token, **push}
            assert (await proxy.http.get(LIST, params=listed, headers=agent)).status_code == 200
            await register(proxy, "orders", accessToken=token)
            while "10.0.0.1" not in unpacked(await asyncio.get_running_loop().sock_recv(udp, 65_536)):
                pass  # the empty list from before


# revocation


async def until_refused(proxy: Served, target: str, query: dict[str, str]) -> httpx.Response:
    """Repeats a read, which the fast path may answer, until it is refused."""
    while (reply := await proxy.http.get(target, params=query)).status_code == 200:
        await asyncio.sleep(0)
    return reply


@pytest.fixture
async def quick(upstream: FaceServer) -> AsyncIterator[Served]:
    """Polls often and trusts a list for long: nothing ends here because of its age."""
    often = {"poll_interval_read": 0.05, "poll_interval_subscribed": 0.05}
    async with serving(upstream=upstream.url, auth="client", cache_ttl=3600.0, **often) as served:
        yield served


async def test_auth_client_revoked_token_ends_reads_and_streams(quick: Served, upstream: FaceServer) -> None:
    token = await login(quick.http, "nacos")
    await register(quick, "orders", accessToken=token)
    shown = {"accessToken": token}
    first = await quick.http.get("/api/v1/services/orders/watch", params=shown)
    waiting = {**shown, "index": first.headers["nacos-proxy-index"], "wait": "60s"}
    poll = spawn(quick.http.get("/api/v1/services/orders/watch", params=waiting), name="long poll")
    async with quick.http.stream("GET", "/api/v1/events", params={"service": "orders", **shown}) as stream:
        chunks = stream.aiter_text()
        await heard(chunks, "10.0.0.1")
        for _ in range(3):
            read = await quick.http.get(LIST, params={"serviceName": "orders", **shown})
            assert "10.0.0.1" in read.text
        assert upstream.users is not None
        upstream.users.revoke()
        refused = await until_refused(quick, LIST, {"serviceName": "orders", **shown})
        assert (refused.status_code, "10.0.0.1" in refused.text) == (403, False)
        rest = "".join([chunk async for chunk in chunks])
        assert "retry:" in rest
    answered = await poll
    assert (answered.status_code, "10.0.0.1" in answered.text) == (403, False)
    assert quick.app.tenants is not None and len(quick.app.tenants) == 0
    for path in (
        "/api/v1/events?service=orders",
        "/api/v1/services/orders",
        "/status",
        "/api/v1/sd/text?service=orders",
        "/nacos/prometheus",
    ):
        again = await quick.http.get(path, headers={"accessToken": token})
        assert (again.status_code, "10.0.0.1" in again.text) == (403, False), path


async def test_auth_client_revoked_right_ends_only_streams_of_that_service(quick: Served, upstream: FaceServer) -> None:
    assert upstream.users is not None
    admin, token = await login(quick.http, "nacos"), await login(quick.http, "app")
    shown = {"accessToken": token}
    for service in ("orders", "carts"):
        await register(quick, service, accessToken=admin)
        assert "10.0.0.1" in (await quick.http.get(f"/api/v1/services/{service}", params=shown)).text
    both = {"service": ["orders", "carts"], **shown}
    async with (
        quick.http.stream("GET", "/api/v1/events", params={"service": "carts", **shown}) as carts,
        quick.http.stream("GET", "/api/v1/events", params={"service": "orders", **shown}) as orders,
    ):
        kept, ended = carts.aiter_text(), orders.aiter_text()
        await heard(kept, "10.0.0.1")
        await heard(ended, "10.0.0.1")
        upstream.users.closed.add("orders")
        refused = await until_refused(quick, "/api/v1/services/orders", shown)
        assert (refused.status_code, "10.0.0.1" in refused.text) == (403, False)
        assert "retry:" in "".join([chunk async for chunk in ended])
        assert (await quick.http.get("/api/v1/events", params={"service": "orders", **shown})).status_code == 403
        async with quick.http.stream("GET", "/api/v1/events", params=both) as other:
            assert "@@orders" not in await heard(other.aiter_text(), "@@carts")
        await quick.http.delete(INSTANCE, params={"serviceName": "carts", "ip": "10.0.0.1", "port": "80", **shown})
        await heard(kept, "carts")
    page = await quick.http.get("/status", params=shown)
    assert quick.app.tenants is not None and len(quick.app.tenants) == 2 and page.status_code == 200
    upstream.users.closed.clear()
    while "10.0.0.1" not in (await quick.http.get("/api/v1/services/orders", params=shown)).text:
        await asyncio.sleep(0)
