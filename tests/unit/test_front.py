"""Which requests are whose."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.errors import Denied
from proxy.front import Front, faces_of
from proxy.parts import build
from proxy.settings import Settings
from tests.helpers.app import serving
from tests.helpers.clock import FakeClock
from tests.helpers.faces import facing


@pytest.mark.parametrize("context", ["/nacos", "/discovery/v", "/"])
async def test_the_nacos_api_stands_below_its_context_path_and_ours_beside_it(context: str) -> None:
    below = context.rstrip("/")
    async with serving(context_path=context) as proxy:
        listed = await proxy.http.get(f"{below}/v1/ns/instance/list", params={"serviceName": "a"})
        assert listed.json()["name"] == "DEFAULT_GROUP@@a"
        assert (await proxy.http.get("/api/v1/services/a")).json()["name"] == "DEFAULT_GROUP@@a"
        assert (await proxy.http.get("/healthz")).status_code == 200
        if context != "/nacos":
            elsewhere = await proxy.http.get("/nacos/v1/ns/instance/list", params={"serviceName": "a"})
            assert elsewhere.status_code == 404


async def test_what_a_server_alone_can_do_is_done_here_where_none_is_behind() -> None:
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


async def test_a_slash_at_the_end_of_our_own_paths_says_nothing_and_is_never_a_redirect() -> None:
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
def test_a_refusal_before_the_api_speaks_the_dialect_of_its_path(path: str, shape: str) -> None:
    settings: dict[str, Any] = {"disk": False, "udp_push": False, "push": "off"}
    front = Front(faces_of(build(Settings(**settings), FakeClock())))
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
    reply = front.refuse(scope, Denied("no API token", status=401))
    assert b"no API token" in reply.body
    expected = {"problem": "application/problem+json", "code": "application/json"}
    assert expected.get(shape, "") in (reply.content_type or "")
