"""Servers behind a running proxy become another generation; clients that beat and read lose nothing."""

from __future__ import annotations

import httpx
import pytest

from nacos_proxy.model.calls import Fetch
from tests.helpers.app import serving
from tests.helpers.build import KEY
from tests.helpers.clock import FakeClock
from tests.helpers.faces import FaceServer, facing

INSTANCE = "/nacos/v1/ns/instance"
HERE = {"serviceName": "orders", "ip": "10.0.0.1", "port": "80"}
WHOLE = '{"serviceName":"DEFAULT_GROUP@@orders","ip":"10.0.0.1","port":80,"weight":2.5,"cluster":"DEFAULT"}'


class Client:
    """A legacy client that registers once, then beats and lists. Each answer must be as good as the first."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def register(self, **more: str) -> None:
        reply = await self.http.post(INSTANCE, params={**HERE, "weight": "2.5", **more})
        assert (reply.status_code, reply.text) == (200, "ok")

    async def lives(self) -> None:
        for beat in ({**HERE}, {"serviceName": "orders", "beat": WHOLE}):
            reply = await self.http.put(f"{INSTANCE}/beat", params=beat)
            assert (reply.status_code, reply.json()["code"]) == (200, 10200)
        for control in ("", "no-cache"):
            assert ("10.0.0.1", 2.5) in await self.listed(control)

    async def listed(self, control: str = "") -> list[tuple[str, float]]:
        headers = {"cache-control": control} if control else {}
        reply = await self.http.get(f"{INSTANCE}/list", params={"serviceName": "orders"}, headers=headers)
        assert reply.status_code == 200
        return [(host["ip"], host["weight"]) for host in reply.json()["hosts"]]


async def held(server: FaceServer) -> list[str]:
    """The addresses of the service at the server itself."""
    return [instance.ip for instance in (await server.registry.send(Fetch(KEY))).instances]


@pytest.mark.parametrize(
    "faces", [("v1+v2", "3.0", "v3"), ("v1", "v1+v2", "3.0 closed"), ("v3", "3.0", "v1+v2")], ids=" then ".join
)
async def test_upgrade_and_downgrade_of_the_upstream_lose_no_instance(faces: tuple[str, ...]) -> None:
    clock = FakeClock()
    async with facing(faces[0], clock) as server, serving(clock=clock, upstream=server.url) as proxy:
        client = Client(proxy.http)
        await client.register()
        await client.lives()
        for number, face in enumerate(faces[1:], 2):
            server.turn(face)
            for _ in range(4):
                await clock.advance(5.0)
                await client.lives()
            await client.register(ip=f"10.0.0.{number}", weight="1")
            assert (f"10.0.0.{number}", 1.0) in await client.listed("no-cache")
            assert "10.0.0.1" in await held(server)
            changed = await proxy.http.put(INSTANCE, params={**HERE, "weight": "2.5", "metadata": f"face={number}"})
            assert (changed.status_code, changed.text) == (200, "ok")
            got = await proxy.http.get(INSTANCE, params=HERE)
            assert got.json()["metadata"] == {"face": str(number)}


async def test_upgrade_of_the_upstream_sends_subscribers_no_change() -> None:
    clock = FakeClock()
    async with facing("v1+v2", clock) as server, serving(clock=clock, upstream=server.url) as proxy:
        client = Client(proxy.http)
        await client.register()
        async with proxy.http.stream("GET", "/api/v1/events", params={"service": "orders"}) as stream:
            lines = stream.aiter_lines()

            async def heard() -> str:
                """The data of the next snapshot or change."""
                name = ""
                async for line in lines:
                    if line.startswith("event:"):
                        name = line.partition(":")[2].strip()
                    if line.startswith("data:") and name in ("snapshot", "change"):
                        return line
                raise AssertionError("the stream ended")

            assert "10.0.0.1" in await heard()
            for number, face in enumerate(("3.0", "v3"), 2):
                server.turn(face)
                await client.lives()
                await client.register(ip=f"10.0.0.{number}", weight="1")
                assert f"10.0.0.{number}" in await heard()  # the next event: the upgrade caused none
