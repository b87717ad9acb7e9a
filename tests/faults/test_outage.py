"""Clients of one host work on while no Nacos answers; the upstream agrees after the outage."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from nacos_proxy.core.agent import AgentPolicy
from nacos_proxy.runtime import spawn, stop
from tests.faults.load import BEAT, CLOCK, INSTANCE, LIST, addresses, until
from tests.faults.test_upstream_faults import QUICK, metric
from tests.helpers.app import Served, serving
from tests.helpers.faces import clustered, facing
from tests.helpers.fault import FaultProxy, Mode, fault_proxy
from tests.helpers.live import RNacos

OLD, NEW, DEAD = ({"serviceName": "shop", "ip": f"10.9.1.{n}", "port": "80"} for n in (1, 2, 3))
SHORT_TIMEOUTS = json.dumps(
    {
        "preserved.heart.beat.interval": "500",
        "preserved.heart.beat.timeout": "2000",
        "preserved.ip.delete.timeout": "4000",
    }
)
LONG_TIMEOUTS = json.dumps({"preserved.heart.beat.timeout": "60000", "preserved.ip.delete.timeout": "120000"})


def address_of(instance: dict[str, str]) -> str:
    return f"{instance['ip']}:{instance['port']}"


class Shop:
    """The providers and a consumer of one service, all on one proxy."""

    def __init__(self, proxy: Served, relays: Sequence[FaultProxy], upstream: str) -> None:
        self.proxy = proxy
        self.relays = relays
        self.upstream = upstream
        self.events: list[frozenset[str]] = []
        self._beating: dict[str, Any] = {}

    async def register(self, instance: dict[str, str], metadata: str = LONG_TIMEOUTS) -> httpx.Response:
        return await self.proxy.http.post(INSTANCE, params={**instance, "metadata": metadata})

    async def leave(self, instance: dict[str, str]) -> httpx.Response:
        await self.kill(instance)
        return await self.proxy.http.delete(INSTANCE, params=instance)

    def beats(self, instance: dict[str, str]) -> None:
        async def beat() -> None:
            while True:
                await self.proxy.http.put(BEAT, params=instance)
                await CLOCK.sleep_until(CLOCK.now() + 0.3)

        self._beating[address_of(instance)] = spawn(beat(), name=f"beats of {address_of(instance)}")

    async def kill(self, instance: dict[str, str]) -> None:
        await stop(self._beating.pop(address_of(instance), None))

    async def shown(self, url: str = "", *, healthy: bool = False) -> frozenset[str]:
        params = {"serviceName": "shop", "healthyOnly": str(healthy).lower()}
        return addresses((await self.proxy.http.get(url + LIST, params=params)).json()["hosts"])

    async def follow(self) -> None:
        async with self.proxy.http.stream("GET", "/api/v1/events", params={"service": "shop"}, timeout=60) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data: ") and "hosts" in (data := json.loads(line[6:])):
                    self.events.append(addresses(data["hosts"]))

    async def end(self) -> None:
        for task in self._beating.values():
            await stop(task)

    def up(self) -> bool:
        return self.proxy.components.agent.catalog.breaker.up

    async def lose(self, mode: Mode) -> None:
        for relay in self.relays:
            await relay.set(mode)
        await until(lambda: not self.up(), "the breaker opens")

    async def back(self) -> None:
        for relay in self.relays:
            await relay.set("pass")
        await until(self.up, "the breaker closes")


@asynccontextmanager
async def running_shop(*upstream: str, **settings: Any) -> AsyncIterator[Shop]:
    """A `Shop` in front of these servers, or of its own 2.5.1."""
    async with AsyncExitStack() as stack:
        urls = upstream or ((await stack.enter_async_context(facing("v1+v2", listing_delay=0.5))).url,)
        relays = [await stack.enter_async_context(fault_proxy(int(url.rpartition(":")[2]))) for url in urls]
        ways = ",".join(relay.url for relay in relays)
        proxy = await stack.enter_async_context(serving(upstream=ways, **{**QUICK, **settings}))
        made = Shop(proxy, relays, urls[0])
        stack.push_async_callback(stop, spawn(made.follow(), name="follow"))
        stack.push_async_callback(made.end)
        yield made


async def settled(shop: Shop, wanted: Callable[[frozenset[str]], bool]) -> frozenset[str]:
    end = CLOCK.now() + 30
    while not wanted(found := await shop.shown(shop.upstream)):
        assert CLOCK.now() < end, found
        await CLOCK.sleep_until(CLOCK.now() + 0.1)
    return found


@pytest.mark.parametrize("mode", ["refuse", "half_open", "status_500"])
async def test_outage_writes_carry_a_rolling_deployment(mode: Mode) -> None:
    async with running_shop() as shop:
        await check_rolling_deployment(shop, mode)


async def test_outage_writes_carry_a_rolling_deployment_with_r_nacos(rnacos: RNacos) -> None:
    async with running_shop(rnacos.url) as shop:
        await check_rolling_deployment(shop, "refuse")


async def test_outage_writes_carry_a_rolling_deployment_with_a_cluster() -> None:
    async with clustered() as nodes, running_shop(*(node.url for node in nodes)) as shop:
        await check_rolling_deployment(shop, "refuse")


async def check_rolling_deployment(shop: Shop, mode: Mode) -> None:
    assert (await shop.register(OLD)).text == "ok"
    shop.beats(OLD)
    assert await shop.shown() == {address_of(OLD)}
    await shop.lose(mode)

    made = await shop.register(NEW)
    assert (made.status_code, made.text, made.headers["nacos-proxy-answer"]) == (200, "ok", "local")
    shop.beats(NEW)
    assert await shop.shown() == {address_of(OLD), address_of(NEW)}
    gone = await shop.leave(OLD)
    assert (gone.status_code, gone.text, gone.headers["nacos-proxy-answer"]) == (200, "ok", "local")
    assert await shop.shown() == {address_of(NEW)}
    await until(lambda: shop.events[-1] == {address_of(NEW)}, "the event stream tells")
    assert await shop.shown(shop.upstream) == {address_of(OLD)}
    assert metric((await shop.proxy.http.get("/metrics")).text, "nacos_proxy_outage_writes_waiting") == 2

    heard = len(shop.events)
    await shop.back()
    assert await settled(shop, lambda found: found == {address_of(NEW)})
    for _ in range(20):
        assert await shop.shown() == {address_of(NEW)}, "no old list brings the old state back"
        await CLOCK.sleep_until(CLOCK.now() + 0.2)
    assert shop.events[heard:] == []
    assert metric((await shop.proxy.http.get("/metrics")).text, "nacos_proxy_outage_writes_waiting") == 0


async def test_outage_makes_a_killed_provider_unhealthy_and_then_removes_it() -> None:
    async with running_shop() as shop:
        for instance in (OLD, DEAD):
            await shop.register(instance, SHORT_TIMEOUTS)
            shop.beats(instance)
        assert await shop.shown(healthy=True) == {address_of(OLD), address_of(DEAD)}
        await shop.lose("refuse")
        await shop.kill(DEAD)
        end = CLOCK.now() + 20
        states: list[tuple[bool, bool]] = []
        while CLOCK.now() < end and states[-1:] != [(False, False)]:
            healthy, listed = await shop.shown(healthy=True), await shop.shown()
            assert address_of(OLD) in healthy, "who beats stays well"
            if (state := (address_of(DEAD) in listed, address_of(DEAD) in healthy)) not in states:
                states.append(state)
            await CLOCK.sleep_until(CLOCK.now() + 0.1)
        assert states == [(True, True), (True, False), (False, False)]
        await shop.back()
        for _ in range(30):
            assert address_of(DEAD) not in await shop.shown(healthy=True), "nobody beats for the dead"
            assert address_of(DEAD) not in await shop.shown(shop.upstream, healthy=True)
            await CLOCK.sleep_until(CLOCK.now() + 0.1)
        assert await settled(shop, lambda found: found == {address_of(OLD)})


async def test_outage_writes_survive_a_restart_of_the_proxy(tmp_path: Path) -> None:
    kept: dict[str, Any] = {**QUICK, "disk": True, "state_dir": tmp_path}
    async with (
        facing("v1+v2", listing_delay=0.1) as server,
        fault_proxy(int(server.url.rpartition(":")[2])) as relay,
    ):
        async with serving(upstream=relay.url, **kept) as proxy:
            one = Shop(proxy, [relay], server.url)
            await one.register(OLD)
            assert await one.shown() == {address_of(OLD)}
            await one.lose("refuse")
            await one.register(NEW)
            await one.leave(OLD)
        async with serving(upstream=relay.url, **kept) as proxy:
            two = Shop(proxy, [relay], server.url)
            assert await two.shown() == {address_of(NEW)}
            await two.back()
            assert await settled(two, lambda found: found == {address_of(NEW)})
            assert await two.shown() == {address_of(NEW)}


async def test_outage_writes_of_the_rest_api_are_answered_as_local() -> None:
    async with running_shop() as shop:
        await shop.register(OLD)
        await shop.shown()
        await shop.lose("refuse")
        path = "/api/v1/services/shop/instances"
        made = await shop.proxy.http.post(path, json={"ip": NEW["ip"], "port": 80})
        assert (made.status_code, made.headers["nacos-proxy-answer"]) == (201, "local")
        changed = await shop.proxy.http.patch(f"{path}/{address_of(NEW)}", json={"weight": 3})
        assert (changed.json()["weight"], changed.headers["nacos-proxy-answer"]) == (3.0, "local")
        gone = await shop.proxy.http.delete(f"{path}/{address_of(OLD)}")
        assert (gone.status_code, gone.headers["nacos-proxy-answer"]) == (204, "local")
        assert await shop.shown() == {address_of(NEW)}
        lasting = await shop.proxy.http.post(path, json={"ip": "10.9.1.9", "port": 80, "ephemeral": False})
        assert lasting.status_code == 502


async def test_outage_writes_off_refuses_writes() -> None:
    async with running_shop(outage_writes=False) as shop:
        await shop.register(OLD)
        await shop.shown()
        await shop.lose("refuse")
        assert (await shop.register(NEW)).status_code == 502
        assert (await shop.leave(OLD)).status_code == 502
        assert await shop.shown() == {address_of(OLD)}


@pytest.mark.parametrize("mode", ["blackhole", "slow"])
async def test_beat_is_answered_within_cold_wait_if_the_upstream_is_silent(mode: Mode) -> None:
    """Legacy clients give up after 3 s (nacos-http.md 10.1)."""
    cold_wait = AgentPolicy().cold_wait
    assert cold_wait < 3.0
    async with facing("v1+v2") as server, fault_proxy(int(server.url.rpartition(":")[2])) as relay:
        async with serving(upstream=relay.url, upstream_dialect="v1", upstream_timeout=cold_wait + 1.0) as proxy:
            instance = {"serviceName": "beating", "ip": "10.0.0.1", "port": "80"}
            assert (await proxy.http.post("/nacos/v1/ns/instance", params=instance)).text == "ok"
            await relay.set(mode)
            beat = await proxy.http.put("/nacos/v1/ns/instance/beat", params=instance)
            assert proxy.components.agent.catalog.breaker.failures == 0, "it has not failed yet"
            assert (beat.json()["code"], beat.headers["nacos-proxy-answer"]) == (10200, "local")
            await until(lambda: proxy.components.agent.catalog.breaker.failures > 0, "its late failure is counted")
