"""The proxy learns of changes by UDP from upstreams without gRPC push, such as Nacos 1.x."""

from __future__ import annotations

import httpx
import pytest

from nacos_proxy.upstream.grpc.sdk import available
from nacos_proxy.upstream.nacos.registry import NacosRegistry
from nacos_proxy.upstream.nacos.udp_receiver import PushReceiver
from tests.helpers.app import serving
from tests.helpers.clock import FakeClock
from tests.helpers.faces import facing

INSTANCE = "/nacos/v1/ns/instance"
HERE = {"serviceName": "orders", "ip": "10.0.0.1", "port": "80"}


async def test_upstream_push_by_udp_brings_changes_without_a_poll() -> None:
    clock = FakeClock()
    async with (
        facing("1.x", clock) as server,
        serving(clock=clock, upstream=server.url, push="auto") as proxy,
        httpx.AsyncClient(base_url=server.url) as directly,
    ):
        await proxy.http.post(INSTANCE, params=HERE)
        await proxy.http.get(f"{INSTANCE}/list", params=HERE)
        first = await proxy.http.get(f"{INSTANCE}/list", params=HERE)
        for _ in range(30):
            if not server.subscribers:  # until the version is known
                await clock.advance(1.0)
        assert server.subscribers
        async with proxy.http.stream("GET", "/api/v1/events", params={"service": "orders"}) as stream:
            lines = (line async for line in stream.aiter_lines() if line.startswith("data:"))
            assert '"enabled":true' in await anext(lines)
            await clock.advance(1.0)  # pushes of earlier changes
            await directly.put(INSTANCE, params={**HERE, "weight": "7"})
            await clock.advance(1.0)
            assert '"weight":7.0' in await anext(lines)
        shown = [
            (await proxy.http.get(f"{INSTANCE}/list", params=HERE)).json()["cacheMillis"],
            first.json()["cacheMillis"],
        ]
        assert shown == [3000, 3000], "who gets no push of ours goes on as with a 1.x"
        told = (await proxy.http.get("/status", headers={"accept": "application/json"})).json()["push"]
        assert (told["state"], told["kind"]) == ("ok", "udp") and told["received"] > 0
        assert (await proxy.http.get("/readyz")).json()["reasons"] == []
        assert "nacos_proxy_push_up 1.0" in (await proxy.http.get("/metrics")).text


@pytest.mark.skipif(not available(), reason="the extra 'push' is not installed")
async def test_upstream_push_is_unavailable_and_ready_without_a_grpc_port(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    async with facing("v1+v2", clock) as server, serving(clock=clock, upstream=server.url, push="auto") as proxy:
        with caplog.at_level("WARNING", "nacos_proxy.push"):
            for _ in range(30):
                for namespace in ("", "dev"):
                    await proxy.http.post(INSTANCE, params={**HERE, "namespaceId": namespace})
                    await proxy.http.get(f"{INSTANCE}/list", params={**HERE, "namespaceId": namespace})
                await clock.advance(2.0)
        assert (await proxy.http.get("/readyz")).json() == {"status": "ready", "reasons": []}
        told = (await proxy.http.get("/status", headers={"accept": "application/json"})).json()["push"]
        assert told["state"] == "unavailable" and "no gRPC port answers" in told["reason"]
        assert len([r for r in caplog.records if "no gRPC push" in r.getMessage()]) == 1


@pytest.mark.parametrize(("face", "settings"), [("1.x", {"push": "off"}), ("v1", {"push": "auto"})])
async def test_upstream_push_by_udp_is_not_requested_if_off_or_unknown(face: str, settings: dict[str, str]) -> None:
    clock = FakeClock()
    async with facing(face, clock) as server, serving(clock=clock, upstream=server.url, **settings) as proxy:
        await proxy.http.get(f"{INSTANCE}/list", params=HERE)
        for _ in range(12):
            await clock.advance(1.0)
            await proxy.http.get(f"{INSTANCE}/list", params=HERE)
        assert server.asked.count("GET /v1/ns/instance/list") > 1
        assert not server.subscribers


@pytest.mark.parametrize(("face", "dialect"), [("v3", "auto"), ("3.0 closed", "auto"), ("3.0", "v3"), ("v1", "auto")])
async def test_upstream_push_is_off_if_no_list_can_request_it(face: str, dialect: str) -> None:
    clock = FakeClock()
    async with (
        facing(face, clock) as server,
        serving(clock=clock, upstream=server.url, upstream_dialect=dialect, push="off") as proxy,
    ):
        receiver, registry = PushReceiver(("1.", "2.", "3.")), proxy.components.registry
        assert isinstance(registry, NacosRegistry)
        registry.receiver = proxy.components.receiver = receiver
        for _ in range(12):
            await proxy.http.get(f"{INSTANCE}/list", params=HERE)
            await clock.advance(1.0)
        told = (await proxy.http.get("/status", headers={"accept": "application/json"})).json()["push"]
        assert (told, server.subscribers) == ({"state": "off"}, {})
