"""Changes that others make are heard of by UDP where the upstream pushes so: Nacos 1.x, and others without gRPC."""

from __future__ import annotations

import httpx
import pytest

from tests.helpers.app import serving
from tests.helpers.clock import FakeClock
from tests.helpers.faces import facing

INSTANCE = "/nacos/v1/ns/instance"
HERE = {"serviceName": "orders", "ip": "10.0.0.1", "port": "80"}


async def test_a_change_made_at_the_server_is_heard_of_by_udp_without_a_poll() -> None:
    clock = FakeClock()
    async with (
        facing("1.x", clock) as server,
        serving(clock=clock, upstream=server.url, push="auto") as proxy,
        httpx.AsyncClient(base_url=server.url) as directly,
    ):
        await proxy.http.post(INSTANCE, params=HERE)
        await proxy.http.get(f"{INSTANCE}/list", params=HERE)
        while not server.subscribers:  # from the first list on that is asked for with the version known
            await clock.advance(1.0)
        async with proxy.http.stream("GET", "/api/v1/events", params={"service": "orders"}) as stream:
            lines = (line async for line in stream.aiter_lines() if line.startswith("data:"))
            assert '"enabled":true' in await anext(lines)
            await clock.advance(1.0)  # what is pushed of the time before
            await directly.put(INSTANCE, params={**HERE, "weight": "7"})
            await clock.advance(1.0)
            assert '"weight":7.0' in await anext(lines)
        told = (await proxy.http.get("/status", headers={"accept": "application/json"})).json()["push"]
        assert (told["state"], told["kind"]) == ("ok", "udp") and told["received"] > 0
        assert (await proxy.http.get("/readyz")).json()["reasons"] == []


@pytest.mark.parametrize(("face", "settings"), [("1.x", {"push": "off"}), ("v1", {"push": "auto"})])
async def test_who_does_not_want_it_or_is_not_known_to_have_it_is_asked_for_none(
    face: str, settings: dict[str, str]
) -> None:
    clock = FakeClock()
    async with facing(face, clock) as server, serving(clock=clock, upstream=server.url, **settings) as proxy:
        await proxy.http.get(f"{INSTANCE}/list", params=HERE)
        for _ in range(12):
            await clock.advance(1.0)
            await proxy.http.get(f"{INSTANCE}/list", params=HERE)
        assert server.asked.count("GET /v1/ns/instance/list") > 1
        assert not server.subscribers
