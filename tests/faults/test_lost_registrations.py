"""An upstream restarts without data: instances that beat are registered again, and readers never miss them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from nacos_proxy.runtime import SystemClock
from nacos_proxy.upstream.embedded.registry import EmbeddedRegistry
from tests.faults.load import CLOCK, LIST, Load, by_address, until
from tests.faults.test_upstream_faults import QUICK
from tests.helpers.app import Served, serving
from tests.helpers.faces import FaceServer, facing
from tests.helpers.fault import FaultProxy, fault_proxy
from tests.helpers.live import RNacos, rnacos_binary, rnacos_required


@asynccontextmanager
async def behind(url: str, name: str, confirm: float = 10.0) -> AsyncIterator[tuple[FaultProxy, Served, Load]]:
    """A proxy behind a relay, with clients. Only the beating service must survive.

    `confirm`: seconds until an empty list is accepted. Beats have to restore the registrations before.
    """
    port = int(url.rpartition(":")[2])
    async with (
        fault_proxy(port) as relay,
        serving(upstream=relay.url, **{**QUICK, "empty_list_confirm": confirm}) as proxy,
        Load(proxy.url, name, writers=0) as load,
    ):
        load.acknowledged.there.clear()  # has no beats: it may go with the upstream's data
        yield relay, proxy, load


async def hosts(load: Load, url: str) -> dict[str, dict[str, object]]:
    reply = await load.http.get(f"{url}{LIST}", params={"serviceName": load.beating})
    return by_address(reply.json()["hosts"])


async def steps(load: Load, number: int) -> None:
    """Waits for `number` more beats and reads; this load has no writers."""
    wanted = {actor: load.steps[actor] + number for actor in ("reader", "beater")}
    await until(lambda: all(load.steps[a] >= n for a, n in wanted.items()), f"{number} more steps")


async def until_listed(load: Load, url: str, before: dict[str, dict[str, object]]) -> None:
    """Waits until a server lists exactly the same as before, including weights and metadata."""
    end = CLOCK.now() + 20.0
    while (now := await hosts(load, url)) != before:
        assert CLOCK.now() < end, f"{now} is not as before: {before}"
        await CLOCK.sleep_until(CLOCK.now() + 0.05)


async def restart_without_data(server: FaceServer) -> None:
    """Restarts the server without data."""
    old, server.registry = server.registry, EmbeddedRegistry(SystemClock())
    await old.close()


async def test_reregistration_restores_all_data_after_an_outage() -> None:
    async with facing("v1+v2") as server, behind(server.url, "lost-outage") as (relay, proxy, load):
        before = await hosts(load, server.url)
        await relay.set("refuse")
        await until(lambda: not proxy.components.agent.catalog.breaker.up, "the breaker opens")
        await restart_without_data(server)
        beats = len(load.beats)
        await steps(load, 8)
        assert {beat[1] for beat in load.beats[beats:]} == {"local"}

        await relay.set("pass")
        await until(lambda: proxy.components.agent.catalog.breaker.up, "the breaker closes")
        await until(lambda: proxy.components.agent.counts.healed >= len(load.beaters), "all are registered again")
        await load.settled(server.url)
        assert await hosts(load, server.url) == before
        await steps(load, 8)
        assert load.violations() == [], "readers never saw them go"
        assert "upstream" in {beat[1] for beat in load.beats[-4:]}


async def test_reregistration_by_beats_after_an_unnoticed_restart() -> None:
    async with facing("v1+v2") as server, behind(server.url, "lost-quick") as (_, proxy, load):
        before = await hosts(load, server.url)
        await steps(load, 4)
        beats = len(load.beats)
        await restart_without_data(server)
        await until(lambda: proxy.components.agent.counts.healed >= len(load.beaters), "all are registered again")
        await load.settled(server.url)
        await steps(load, 4)
        assert await hosts(load, server.url) == before
        answers = [beat[1] for beat in load.beats[beats:]]
        assert answers.count("healed") >= len(load.beaters)
        assert load.violations() == [], "each beat was answered as if nothing had been, each read named all"


async def test_quarantine_keeps_a_service_without_beats_until_confirmed() -> None:
    async with facing("v1+v2") as server, behind(server.url, "lost-for-good", 3.0) as (relay, proxy, load):
        foreign = {"serviceName": "foreign", "ip": "10.9.0.1", "port": "80"}
        await load.http.post(f"{server.url}/nacos/v1/ns/instance", params=foreign)
        assert (await load.shown("", "foreign")) == {"10.9.0.1:80"}
        await relay.set("refuse")
        await until(lambda: not proxy.components.agent.catalog.breaker.up, "the breaker opens")
        await restart_without_data(server)
        await relay.set("pass")
        await until(lambda: proxy.components.agent.catalog.breaker.up, "the breaker closes")
        entry = next(e for e in proxy.components.agent.catalog.cache.entries() if e.key.name == "foreign")
        await until(lambda: entry.quarantined_since is not None, "the empty list is held back")
        assert (await load.shown("", "foreign")) == {"10.9.0.1:80"}
        await until(lambda: entry.quarantined_since is None, "the second look confirms it")
        assert (await load.shown("", "foreign")) == frozenset()


async def test_deregistration_after_an_outage_is_not_quarantined() -> None:
    async with facing("v1+v2") as server, behind(server.url, "lost-meant") as (relay, proxy, load):
        one = {"serviceName": "meant", "ip": "10.9.0.2", "port": "80"}
        await load.http.post("/nacos/v1/ns/instance", params=one)
        assert (await load.shown("", "meant")) == {"10.9.0.2:80"}
        await relay.set("refuse")
        await until(lambda: not proxy.components.agent.catalog.breaker.up, "the breaker opens")
        await relay.set("pass")
        await until(lambda: proxy.components.agent.catalog.breaker.up, "the breaker closes")
        assert (await load.http.delete("/nacos/v1/ns/instance", params=one)).text == "ok"
        assert (await load.shown("", "meant")) == frozenset()
        await steps(load, 20)
        assert (await load.shown("", "meant")) == frozenset()
        assert (await load.shown(server.url, "meant")) == frozenset(), "nobody registers it again"


@pytest.mark.parametrize("data", ["kept", "removed"])
async def test_reregistration_at_r_nacos_after_a_kill(data: str) -> None:
    binary = rnacos_binary()
    if binary is None:
        if rnacos_required():
            pytest.fail("r-nacos is required and was not found", pytrace=False)
        pytest.skip("no r-nacos: install it with cargo, or name it in NACOS_PROXY_TEST_RNACOS")
    with RNacos(binary) as server:
        async with behind(server.url, f"lost-{data}") as (_, proxy, load):
            before = await hosts(load, server.url)
            server.kill()
            await until(lambda: not proxy.components.agent.catalog.breaker.up, "the breaker opens")
            if data == "removed":
                server.forget()
            await steps(load, 8)
            server.start()
            await until(lambda: proxy.components.agent.catalog.breaker.up, "the breaker closes")
            await load.settled(server.url)
            await until_listed(load, server.url, before)
            await steps(load, 8)
            assert load.violations() == []
