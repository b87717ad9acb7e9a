"""A proxy whose upstream is another proxy: both run here, each with its own HTTP server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from nacos_proxy.app.components import build
from nacos_proxy.app.listening import sockets
from nacos_proxy.app.server import App, uvicorn_config
from nacos_proxy.app.settings import Settings
from nacos_proxy.model.calls import Register
from nacos_proxy.model.services import Instance
from nacos_proxy.runtime import spawn, stop
from nacos_proxy.upstream.proxy.events import ProxyEvents
from tests.helpers.app import Served, serving
from tests.helpers.build import KEY
from tests.helpers.clock import FakeClock
from tests.helpers.faces import facing
from tests.helpers.fault import fault_proxy
from tests.helpers.live import free_port

INSTANCE = "/nacos/v1/ns/instance"
SERVICE = "/api/v1/services/orders"
OWN = "nacos-proxy; "


def here(ip: str = "10.0.0.1") -> dict[str, str]:
    return {"serviceName": "orders", "ip": ip, "port": "80"}


@asynccontextmanager
async def below(url: str, clock: FakeClock, **settings: Any) -> AsyncIterator[Served]:
    """A lower proxy."""
    async with serving(clock=clock, upstream=f"proxy+{url}", **{"push": "auto", **settings}) as lower:
        yield lower


async def until(clock: FakeClock, condition: Callable[[], Awaitable[bool] | bool], step: float = 0.05) -> None:
    """Lets time pass until the condition holds."""
    for _ in range(2000):
        held = condition()
        if held if isinstance(held, bool) else await held:
            return
        await clock.advance(step)
    raise AssertionError("it never came true")


def events_of(proxy: Served) -> ProxyEvents:
    assert isinstance(proxy.components.push, ProxyEvents)
    return proxy.components.push


async def shown(proxy: Served) -> list[str]:
    return [host["ip"] for host in (await proxy.http.get(SERVICE)).json()["hosts"]]


async def following(clock: FakeClock, lower: Served) -> None:
    """Registers 10.0.0.1, and waits until the event stream covers its service."""
    await lower.http.post(INSTANCE, params=here())
    await lower.http.get(SERVICE)
    await until(clock, lambda: events_of(lower).covers(KEY) and lower.components.poller.push_alive)


async def test_a_write_below_is_visible_at_once_below_and_above() -> None:
    clock = FakeClock()
    async with facing("v1+v2", clock) as nacos, serving(clock=clock, upstream=nacos.url) as upper:
        async with below(upper.url, clock) as lower:
            await following(clock, lower)
            answer = await lower.http.post(INSTANCE, params=here("10.0.0.2"))
            both = ["10.0.0.1", "10.0.0.2"]
            assert (answer.text, await shown(lower), await shown(upper)) == ("ok", both, both)
            beat = await lower.http.put(f"{INSTANCE}/beat", params=here())
            assert beat.json()["code"] == 10200
            assert "POST /v1/ns/instance" in nacos.asked and "PUT /v1/ns/instance/beat" in nacos.asked


async def test_a_change_above_reaches_readers_below_by_the_event_stream_and_without_a_poll() -> None:
    clock = FakeClock()
    async with serving(clock=clock) as upper, below(upper.url, clock) as lower:
        await following(clock, lower)
        await until(clock, lambda: _is_confirmed(lower))
        fetches = dict(lower.components.agent.counts.fetches)
        async with lower.http.stream("GET", "/api/v1/events", params={"service": "orders"}) as stream:
            lines = (line async for line in stream.aiter_lines() if line.startswith("data:"))
            await anext(lines)
            await upper.http.post(INSTANCE, params=here("10.0.0.2"))
            change = json.loads((await anext(lines))[5:])
        assert ([host["ip"] for host in change["added"]], change["source"]) == (["10.0.0.2"], "push")
        for _ in range(8):
            await clock.advance(15.0)  # heartbeats confirm the lists, so no poll is due
        assert lower.components.agent.counts.fetches == fetches
        assert (await lower.http.get(SERVICE)).headers["cache-status"].count("hit") == 2


async def test_a_list_below_has_the_threshold_and_the_disabled_instances_that_are_known_above() -> None:
    clock = FakeClock()
    async with serving(clock=clock) as upper, below(upper.url, clock) as lower:
        await following(clock, lower)
        service = {"serviceName": "orders", "protectThreshold": "0.8"}
        await upper.http.put("/nacos/v1/ns/service", params=service)
        await upper.http.post(INSTANCE, params={**here("10.0.0.2"), "enabled": "false"})
        above, known = (proxy.components.agent.catalog.cache.get(KEY) for proxy in (upper, lower))
        assert above is not None and known is not None
        await until(clock, lambda: known.visible == above.visible and known.visible.threshold > 0)
        assert known.visible is not None
        assert [(i.ip, i.enabled) for i in known.visible.instances] == [("10.0.0.1", True), ("10.0.0.2", False)]


async def test_ages_add_up_and_cache_status_names_both_proxies() -> None:
    clock = FakeClock()
    slow = {"poll_interval_read": "60s", "poll_interval_subscribed": "60s"}
    async with facing("v1+v2", clock) as nacos, serving(clock=clock, upstream=nacos.url, **slow) as upper:
        async with below(upper.url, clock, push="off", **slow) as lower:
            await upper.http.post(INSTANCE, params=here())
            await until(clock, lambda: _is_confirmed(upper))
            heard = await upper.http.get(SERVICE)
            await clock.advance(4.0)
            first = await lower.http.get(SERVICE)
            assert int(first.headers["age"]) == int(heard.headers["age"]) + 4
            assert first.headers["cache-status"].startswith("nacos-proxy; hit; ttl=")
            assert first.headers["cache-status"].partition(", ")[2].startswith("nacos-proxy; fwd=miss; ttl=")
            await clock.advance(3.0)
            for _ in range(4):  # the last ones from prepared bytes
                later = await lower.http.get(SERVICE)
                assert int(later.headers["age"]) == int(first.headers["age"]) + 3
                assert later.headers["cache-status"].count("nacos-proxy; hit") == 2


def _is_confirmed(proxy: Served) -> bool:
    entry = proxy.components.agent.catalog.cache.get(KEY)
    return entry is not None and entry.visible is not None and not entry.pending


async def test_nothing_below_is_fresh_while_the_upper_proxy_has_lost_nacos() -> None:
    clock = FakeClock()
    async with facing("v1+v2", clock) as nacos:
        port = int(nacos.url.rpartition(":")[2])
        async with fault_proxy(port) as way, serving(clock=clock, upstream=way.url) as upper:
            async with below(upper.url, clock) as lower:
                await following(clock, lower)
                await until(clock, lambda: _is_confirmed(lower))
                assert "detail" not in (await lower.http.get(SERVICE)).headers["cache-status"]
                await way.set("refuse")
                await until(clock, lambda: bool(lower.components.agent.catalog.breaker.doubt), 0.5)
                answer = await lower.http.get(SERVICE)
                assert "detail=" in answer.headers["cache-status"].rpartition(", ")[2]
                assert ([host["ip"] for host in answer.json()["hosts"]], answer.json()["stale"]) == (["10.0.0.1"], True)
                state = (await lower.http.get("/readyz")).json()
                assert state["status"] == "degraded" and "the upper proxy has lost its upstream" in state["reasons"][0]
                assert lower.components.agent.catalog.breaker.up
                async with lower.http.stream("GET", "/api/v1/events", params={"service": "orders"}) as stream:
                    events = [line async for line in _lines(stream, 2)]
                assert "event: upstream" in events
                beat = await lower.http.put(f"{INSTANCE}/beat", params=here())
                assert (beat.status_code, beat.json()["code"]) == (200, 10200), "the upper proxy answers it"
                await way.set("pass")
                await until(clock, lambda: not lower.components.agent.catalog.breaker.doubt, 0.5)
                await until(clock, lambda: _is_fresh(lower), 1.0)


async def _lines(stream: httpx.Response, events: int) -> AsyncIterator[str]:
    async for line in stream.aiter_lines():
        yield line
        events -= line.startswith("event:")
        if not events:
            return


async def _is_fresh(proxy: Served) -> bool:
    return "detail" not in (await proxy.http.get(SERVICE)).headers["cache-status"]


async def _beats_below(clock: FakeClock, lower: Served, number: int) -> None:
    for _ in range(number):
        assert (await lower.http.put(f"{INSTANCE}/beat", params=here())).json()["code"] == 10200
        await clock.advance(5.0)


async def test_a_drain_above_outlasts_the_beats_and_the_suspicion_of_a_lower_proxy() -> None:
    clock = FakeClock()
    async with facing("v1+v2", clock) as nacos, serving(clock=clock, upstream=nacos.url) as upper:
        async with below(upper.url, clock) as lower:
            await following(clock, lower)
            await _beats_below(clock, lower, 3)
            path = f"{SERVICE}/instances/10.0.0.1:80/drain"
            assert (await upper.http.post(path, params={"wait": "0"})).json()["state"] == "drained"
            await _beats_below(clock, lower, 3)
            lower.components.agent.suspect()
            lower.components.agent.refresh(KEY)
            await _beats_below(clock, lower, 3)
            assert (await shown(upper), await shown(lower), lower.components.agent.counts.healed) == ([], [], 0)
            assert (await upper.http.get(path)).json()["state"] == "drained"


async def test_a_deregistration_above_lasts_until_the_client_beats() -> None:
    clock = FakeClock()
    async with facing("v1+v2", clock) as nacos, serving(clock=clock, upstream=nacos.url) as upper:
        async with below(upper.url, clock) as lower:
            await following(clock, lower)
            await _beats_below(clock, lower, 3)
            await upper.http.delete(INSTANCE, params=here())
            for _ in range(4):
                await clock.advance(2.0)
            assert (await shown(upper), await shown(lower)) == ([], [])
            await _beats_below(clock, lower, 1)
            assert (await shown(upper), lower.components.agent.counts.healed) == (["10.0.0.1"], 1)


async def test_an_upper_proxy_that_is_killed_comes_back_with_other_data_and_nothing_is_lost() -> None:
    clock = FakeClock()
    port = free_port()
    async with facing("v1+v2", clock) as nacos:
        async with below(f"http://127.0.0.1:{port}", clock) as lower:
            async with serving(clock=clock, upstream=nacos.url, port=port):
                await following(clock, lower)
                await until(clock, lambda: _is_confirmed(lower))
            await until(clock, lambda: not events_of(lower).open)
            assert await shown(lower) == ["10.0.0.1"], "its own cache answers"
            await nacos.registry.send(Register(KEY, Instance("10.0.0.2", 80)))
            async with serving(clock=clock, upstream=nacos.url, port=port):
                await until(clock, lambda: events_of(lower).open and events_of(lower).resets == 1, 0.5)
                await until(clock, lambda: _shows(lower, ["10.0.0.1", "10.0.0.2"]), 0.5)
                assert (events_of(lower).reconnects, events_of(lower).resumed) == (1, 0)
                scraped = (await lower.http.get("/metrics")).text
                assert 'nacos_proxy_upper_streams_total{how="reset"} 1.0' in scraped
                assert "nacos_proxy_upper_stream_open 1.0" in scraped and "nacos_proxy_upstream_proxy 1.0" in scraped


async def _shows(proxy: Served, ips: list[str]) -> bool:
    return await shown(proxy) == ips


async def test_a_stream_that_is_cut_resumes_and_brings_what_changed_meanwhile() -> None:
    clock = FakeClock()
    async with serving(clock=clock) as upper, fault_proxy(int(upper.url.rpartition(":")[2])) as way:
        async with below(way.url, clock) as lower:
            await following(clock, lower)
            await way.set("refuse")
            await until(clock, lambda: not events_of(lower).open)
            await upper.http.post(INSTANCE, params=here("10.0.0.3"))
            await way.set("pass")
            await until(clock, lambda: events_of(lower).resumed == 1)
            await until(clock, lambda: _shows(lower, ["10.0.0.1", "10.0.0.3"]))
            assert (events_of(lower).resets, events_of(lower).reconnects) == (0, 1)
            assert lower.components.poller.push_alive, "a short loss makes nobody poll"


async def test_services_that_are_watched_later_join_the_stream() -> None:
    clock = FakeClock()
    async with serving(clock=clock) as upper, below(upper.url, clock) as lower:
        await following(clock, lower)
        await lower.http.post(INSTANCE, params={**here(), "serviceName": "stock"})
        await lower.http.get("/api/v1/services/stock")
        other = KEY._replace(name="stock")
        await until(clock, lambda: events_of(lower).covers(other))
        assert events_of(lower).covers(KEY) and events_of(lower).reconnects == 0
        await until(clock, lambda: upper.components.events.readers == 1)


async def test_a_request_that_passed_four_proxies_is_refused_in_the_callers_dialect() -> None:
    hops = {"x-nacos-proxy-hops": "a, b, c, d"}
    async with serving() as proxy:
        rest = await proxy.http.get(SERVICE, headers=hops)
        assert (rest.status_code, rest.headers["content-type"]) == (508, "application/problem+json")
        assert "at most 3 may stand above each other" in rest.json()["detail"]
        nacos = await proxy.http.get(f"{INSTANCE}/list", params=here(), headers=hops)
        assert (nacos.status_code, "at most 3" in nacos.text) == (508, True)
        stream = await proxy.http.post("/api/v1/events", json={"services": {}}, headers=hops)
        assert stream.status_code == 508
        assert (await proxy.http.get(SERVICE, headers={"x-nacos-proxy-hops": "a, b, c"})).status_code == 200


async def test_readers_who_claim_to_have_passed_proxies_do_not_make_a_lower_one_lose_the_upper_one() -> None:
    clock = FakeClock()
    async with serving(clock=clock) as upper, below(upper.url, clock) as lower:
        await following(clock, lower)
        for number in range(4):
            path, hops = f"/api/v1/services/unknown{number}", {"x-nacos-proxy-hops": "a, b, c"}
            answer = await lower.http.get(path, headers=hops)
            assert (answer.status_code, "at most 3" in answer.json()["detail"]) == (508, True)
            assert (await lower.http.get(path)).status_code != 508
        assert (await lower.http.get("/readyz")).json() == {"status": "ready", "reasons": []}


async def test_proxies_whose_upstreams_are_each_other_say_so() -> None:
    clock = FakeClock()
    a, b = free_port(), free_port()
    async with (
        below(f"http://127.0.0.1:{b}", clock, port=a) as first,
        below(f"http://127.0.0.1:{a}", clock, port=b),
    ):
        answer = await first.http.get(SERVICE)
        assert answer.status_code >= 500
        assert "its upstream leads back to it" in answer.text


async def test_a_server_that_is_no_proxy_is_named_as_such() -> None:
    clock = FakeClock()
    async with facing("v1+v2", clock) as nacos, below(nacos.url, clock) as lower:
        answer = await lower.http.get(SERVICE)
        assert answer.status_code == 503 and "not that of a nacos-proxy" in answer.json()["detail"]
        await lower.http.post(INSTANCE, params=here())
        await until(clock, lambda: bool(events_of(lower).unavailable))
        assert "not that of a nacos-proxy" in events_of(lower).unavailable
        reasons = (await lower.http.get("/readyz")).json()["reasons"]
        assert any("push:" in reason and "not that of a nacos-proxy" in reason for reason in reasons)


async def test_an_upper_proxy_with_tokens_is_served_and_passes_requests_on() -> None:
    clock = FakeClock()
    async with facing("v1+v2", clock) as nacos:
        async with serving(clock=clock, upstream=nacos.url, tokens="admin:12345678") as upper:
            async with below(upper.url, clock, upstream_token="12345678") as lower:
                await following(clock, lower)
                assert await shown(lower) == ["10.0.0.1"]
                await lower.http.get("/nacos/v1/cs/configs", params={"dataId": "a", "group": "b"})
                assert "GET /v1/cs/configs" in nacos.asked
            async with below(upper.url, clock) as stranger:
                assert (await stranger.http.get(SERVICE)).status_code == 401


async def test_with_auth_client_each_client_reads_and_writes_with_its_own_account_and_polls() -> None:
    clock = FakeClock()
    async with facing("v1+v2", clock, passwords={"nacos": "secret"}) as nacos:
        async with serving(clock=clock, upstream=nacos.url, auth="client") as upper:
            async with below(upper.url, clock, auth="client") as lower:
                account = {"username": "nacos", "password": "secret"}
                token = (await lower.http.post("/nacos/v1/auth/login", data=account)).json()["accessToken"]
                written = await lower.http.post(INSTANCE, params={**here(), "accessToken": token})
                assert written.text == "ok"
                answer = await lower.http.get(SERVICE, headers={"authorization": f"Bearer {token}"})
                assert [host["ip"] for host in answer.json()["hosts"]] == ["10.0.0.1"]
                assert (await lower.http.get(SERVICE)).status_code == 403
                assert lower.components.push is None


async def test_a_lower_proxy_reaches_the_upper_one_on_a_unix_socket(tmp_path: Path) -> None:
    clock, path = FakeClock(), tmp_path / "upper.sock"
    settings = Settings(disk=False, udp_push=False, push="off", uds=path)
    app = App(build(settings, clock))
    listeners = sockets("", 0, path)
    server = uvicorn.Server(uvicorn_config(app, settings))
    running = spawn(server.serve(sockets=listeners), name="upper proxy")
    try:
        async with serving(clock=clock, upstream=f"proxy+unix://{path}", push="auto") as lower:
            await until(clock, lambda: server.started)
            await following(clock, lower)
            assert await shown(lower) == ["10.0.0.1"]
    finally:
        app.end_streams()
        server.should_exit = True
        await asyncio.wait([running], timeout=30)
        await stop(running)


async def test_the_event_stream_is_opened_soon_after_the_return_of_the_upper_proxy() -> None:
    clock, port = FakeClock(), free_port()
    async with facing("v1+v2", clock) as nacos, below(f"http://127.0.0.1:{port}", clock) as lower:
        async with serving(clock=clock, upstream=nacos.url, port=port):
            await following(clock, lower)
        assert events_of(lower).upstream_is_back in lower.components.agent.on_recovery
        breaker = lower.components.agent.catalog.breaker
        await until(clock, lambda: not breaker.up, 1.0)
        await clock.advance(60.0)
        async with serving(clock=clock, upstream=nacos.url, port=port):
            await until(clock, lambda: breaker.up)
            back = clock.now()
            await until(clock, lambda: events_of(lower).open)
            assert clock.now() - back < 4.0, "2 s, and the time in which services are gathered"
