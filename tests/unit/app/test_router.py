"""Which requests are whose."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from nacos_proxy.app.components import build
from nacos_proxy.app.router import Router
from nacos_proxy.app.settings import Settings
from nacos_proxy.model.errors import Denied
from tests.helpers.app import serving
from tests.helpers.clock import FakeClock
from tests.helpers.faces import facing


@pytest.mark.parametrize("context", ["/nacos", "/discovery/v", "/"])
async def test_router_serves_the_nacos_api_below_its_context_path_and_the_rest_api_beside_it(context: str) -> None:
    below = context.rstrip("/")
    async with serving(context_path=context) as proxy:
        listed = await proxy.http.get(f"{below}/v1/ns/instance/list", params={"serviceName": "a"})
        assert listed.json()["name"] == "DEFAULT_GROUP@@a"
        assert (await proxy.http.get("/api/v1/services/a")).json()["name"] == "DEFAULT_GROUP@@a"
        assert (await proxy.http.get("/healthz")).status_code == 200
        asked = {"json": {"resource_names": ["a"]}, "headers": {"host": "nacos_proxy"}}
        assert (await proxy.http.post("/v3/discovery:endpoints", **asked)).json()["resources"] != []
        if context != "/nacos":
            elsewhere = await proxy.http.get("/nacos/v1/ns/instance/list", params={"serviceName": "a"})
            assert elsewhere.status_code == 404


@pytest.mark.parametrize("context", ["/nacos", "/discovery/v", "/"])
async def test_router_serves_the_paths_for_prometheus_below_the_context_path(context: str) -> None:
    below = context.rstrip("/")
    async with serving(context_path=context) as proxy:
        await proxy.http.post("/api/v1/services/a%2Fb/instances", json={"ip": "10.0.0.1", "port": 80})
        group = {"targets": ["10.0.0.1:80"], "labels": {"__meta_clusterName": "DEFAULT"}}
        for path in ("", "/", "/namespaceId/public", "/namespaceId/public/service/a%2Fb"):
            assert (await proxy.http.get(f"{below}/prometheus{path}")).json() == [group], path
        assert (await proxy.http.get(f"{below}/prometheus/x")).status_code == 404
        assert (await proxy.http.post(f"{below}/prometheus")).status_code == 405


def test_router_answers_the_paths_for_prometheus_with_the_account_of_the_client() -> None:
    settings: dict[str, Any] = {"disk": False, "udp_push": False, "push": "off"}
    router = Router(build(Settings(**settings), FakeClock()))
    for path, own in (("/nacos/prometheus", True), ("/nacos/v1/cs/configs", False), ("/nacos/v1/ns/instance", True)):
        assert router.is_per_tenant({"type": "http", "method": "GET", "path": path}) is own, path


def test_router_gives_the_page_to_clients_of_every_account_and_the_status_to_its_own() -> None:
    settings: dict[str, Any] = {"disk": False, "udp_push": False, "push": "off"}
    router = Router(build(Settings(**settings), FakeClock()))
    for path, own in (("/", False), ("/ui", False), ("/ui/page.js", False), ("/status", True), ("/status/a", True)):
        assert router.is_per_tenant({"type": "http", "method": "GET", "path": path}) is own, path


BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.mark.parametrize("context", ["/nacos", "/a/b"])
async def test_router_redirects_a_browser_from_the_nacos_console_to_the_page(context: str) -> None:
    async with serving(context_path=context) as proxy:
        for path, headers in ((context, {}), (context, BROWSER), (f"{context}/", BROWSER)):
            answer = await proxy.http.get(path, headers=headers)
            assert (answer.status_code, answer.headers["location"]) == (302, "/ui")
        page = await proxy.http.get(f"{context}?accessToken=a%20b", headers=BROWSER, follow_redirects=True)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert (page.url.path, page.url.query) == ("/ui", b"accessToken=a%20b")
        assert (await proxy.http.head(context)).status_code == 302
        assert (await proxy.http.post(context)).status_code == 404


async def test_router_passes_a_probe_of_the_console_on_and_has_no_redirect_without_a_context_path() -> None:
    async with facing("v1+v2") as server, serving(upstream=server.url) as proxy:
        await proxy.http.get("/nacos/")
        assert "GET /" in server.asked
    async with serving(context_path="/") as proxy:
        assert "nacos-proxy" in (await proxy.http.get("/", headers=BROWSER, follow_redirects=True)).text


async def test_router_answers_server_calls_itself_on_the_embedded_registry() -> None:
    async with serving() as alone, facing("3.0") as server, serving(upstream=server.url) as before:
        for proxy, status in ((alone, 200), (before, 501)):  # that server has closed its v1 for it: 410
            answer = await proxy.http.get("/nacos/v1/ns/health/checkers")
            assert answer.status_code == status
        there = await before.http.get("/nacos/v3/admin/ns/health/checkers")
        assert there.json()["data"]["NONE"] == {"type": "NONE"}
        turned = {"entry": "clientBeatInterval", "value": "3000"}
        for proxy in (alone, before):
            answer = await proxy.http.put("/nacos/v3/admin/ns/ops/switches", params=turned)
            assert answer.json()["data"] == "ok"
        assert "GET /v3/admin/ns/health/checkers" in server.asked


CHINESE = {"serviceName": "用户服务", "ip": "10.0.0.1", "port": "80"}


@pytest.mark.parametrize(("face", "by"), [("v1+v2", "the proxy"), ("v1", "the server")])
async def test_router_applies_the_parameter_check_if_the_server_does(face: str, by: str) -> None:
    async with facing(face) as server, serving(upstream=server.url) as proxy:
        for _ in range(3):  # the version is asked for behind the first call; till then the server refuses
            refused = await proxy.http.post("/nacos/v1/ns/instance", params=CHINESE)
            assert (refused.status_code, refused.text[:30]) == (400, "Param 'serviceName' is illegal")
            while not proxy.components.checks() and face == "v1+v2":
                await proxy.http.get("/nacos/v1/ns/instance/list", params={"serviceName": "a"})
        assert (server.asked.count("POST /v1/ns/instance") == 1) is (by == "the proxy")


async def test_router_accepts_names_of_any_script_in_both_apis_without_the_parameter_check(tmp_path: Path) -> None:
    """Through answers, headers, events, targets, metrics and the disk; one that would break a line does not pass."""
    settings: dict[str, Any] = {"parameter_check": "off", "disk": True, "state_dir": tmp_path}
    async with serving(**settings) as proxy:
        http, service = proxy.http, "/api/v1/services/用户服务"
        where = {"groupName": "组", "namespaceId": "team.one"}
        long = {**CHINESE, **where, "metadata": '{"note":"' + "长" * 2000 + '"}'}
        assert (await http.post("/nacos/v1/ns/instance", params=long)).text == "ok"
        listed = await http.get("/nacos/v1/ns/instance/list", params={"serviceName": "用户服务", **where})
        assert listed.json()["hosts"][0]["metadata"] == {"note": "长" * 2000}
        ours = {"group": "组", "namespace": "team.one"}
        made = await http.post(f"{service}/instances", params=ours, json={"ip": "10.0.0.2", "port": 80})
        assert made.status_code == 201
        assert (await http.get(made.headers["location"])).json()["ip"] == "10.0.0.2"
        assert (await http.get(f"{service}/pick", params={**ours, "format": "text"})).status_code == 200
        lines = await http.get("/api/v1/sd/nginx", params={"service": "用户服务", **ours})
        assert lines.text == "server 10.0.0.1:80 weight=1;\nserver 10.0.0.2:80 weight=1;\n"
        for path in ("/metrics", "/status", "/readyz"):
            assert (await http.get(path)).status_code == 200
        for bad in ("a\nb", "a\x00b"):
            refused = await http.post("/nacos/v1/ns/instance", params={**CHINESE, "serviceName": bad})
            assert refused.status_code == 400
            assert (await http.get(f"/api/v1/services/{quote(bad)}")).status_code == 400
    async with serving(**settings) as again:
        listed = await again.http.get("/nacos/v1/ns/instance/list", params={"serviceName": "用户服务", **where})
        assert listed.status_code == 200


async def test_router_ignores_a_slash_at_the_end_of_a_rest_path() -> None:
    async with serving() as proxy:
        for path in ("/healthz/", "/status/", "/docs/", "/api/v1/services/", "/api/v1/services/a/instances/"):
            assert (await proxy.http.get(path)).status_code == 200, path
        assert (await proxy.http.get("/api/v1/services/a%2Fb/")).json()["name"] == "DEFAULT_GROUP@@a/b"
        assert (await proxy.http.get("/api/v1/services/a%2F")).json()["name"] == "DEFAULT_GROUP@@a/"
        new = {"ip": "10.0.0.1", "port": 80}
        assert (await proxy.http.post("/api/v1/services/a/instances/", json=new)).status_code == 201
        for path in ("/status//", "/api/v1/services//"):
            assert (await proxy.http.get(path)).status_code == 404, path


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/nacos/v1/ns/instance", "text"),
        ("/nacos/v2/ns/instance", "code"),
        ("/nacos/v3/client/ns/instance", "code"),
        ("/api/v1/services", "problem"),
    ],
)
def test_refuse_answers_in_the_dialect_of_the_path(path: str, shape: str) -> None:
    settings: dict[str, Any] = {"disk": False, "udp_push": False, "push": "off"}
    front = Router(build(Settings(**settings), FakeClock()))
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
    reply = front.refuse(scope, Denied("no API token", status=401))
    assert b"no API token" in reply.body
    expected = {"problem": "application/problem+json", "code": "application/json"}
    assert expected.get(shape, "") in (reply.content_type or "")


async def test_readyz_without_a_token_shows_no_accounts_and_no_upstream_texts() -> None:
    token = {"Authorization": "Bearer read-me-please"}
    account: dict[str, Any] = {"username": "discovery-account", "password": "wrong"}
    async with facing("v1+v2", passwords={"nacos": "right"}) as server:
        async with serving(upstream=server.url, tokens="read:read-me-please", **account) as proxy:
            await proxy.http.get("/api/v1/services/a", headers=token)
            for headers in ({}, {"Authorization": "Bearer wrong-token"}):
                bare = await proxy.http.get("/readyz", headers=headers)
                assert bare.json() == {"status": "unready", "reasons": ["login", "cache"]}
            told = await proxy.http.get("/readyz", headers=token)
            assert (told.status_code, "discovery-account" in told.text) == (bare.status_code, True)
        async with serving(upstream=server.url, **account) as open_to_all:
            await open_to_all.http.get("/api/v1/services/a")
            assert "discovery-account" in (await open_to_all.http.get("/readyz")).text
