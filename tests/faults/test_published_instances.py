"""Instances that a connection publishes, seen at the upstream: through kills and restarts of the proxy.

Their heartbeat times are short: unhealthy after `TIMEOUT` seconds of silence, gone after twice as long.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from nacos_proxy.runtime import SystemClock, spawn, stop
from tests.faults.load import until
from tests.helpers.faces import facing
from tests.helpers.live import ProxyProcess, RNacos, rnacos_binary, rnacos_required
from tests.helpers.publisher import COMMAND

CLOCK = SystemClock()
TIMEOUT = 6
SERVICE = "published"


def upstreams() -> list[str]:
    """Faces of the stand-in, and r-nacos if it is installed."""
    found = rnacos_binary() is not None
    if not found and rnacos_required():
        pytest.fail("r-nacos is missing")
    return ["v1+v2", "v3", *["r-nacos"] * found]


@asynccontextmanager
async def upstream(kind: str) -> AsyncIterator[str]:
    if kind != "r-nacos":
        async with facing(kind, listing_delay=0.5) as server:
            yield server.url
        return
    async with AsyncExitStack() as stack:
        server = RNacos(rnacos_binary() or "")
        await asyncio.to_thread(server.start)
        stack.push_async_callback(asyncio.to_thread, server.close)
        yield server.url


class Observer:
    """Looks at the server's list all the time. `seen`: each state that differed from the one before."""

    def __init__(self, url: str, http: httpx.AsyncClient, version: str) -> None:
        self.seen: list[tuple[str, ...]] = []
        self.looks = 0
        self._http = http
        path = "v3/client/ns/instance/list" if version == "v3" else "v1/ns/instance/list"
        self._url = f"{url}/nacos/{path}"

    async def look(self) -> tuple[str, ...]:
        """The addresses that are listed, with their health if it is bad."""
        body: Any = (await self._http.get(self._url, params={"serviceName": SERVICE})).json()
        hosts = body["hosts"] if "hosts" in body else body["data"]
        self.looks += 1
        return tuple(sorted(f"{h['ip']}:{h['port']}{'' if h['healthy'] else ' unhealthy'}" for h in hosts))

    async def watch(self) -> None:
        while True:
            state = await self.look()
            if not self.seen or self.seen[-1] != state:
                self.seen.append(state)
            await CLOCK.sleep_until(CLOCK.now() + 0.05)

    async def until(self, *state: str) -> float:
        """Waits for a state; returns how long it took."""
        begun = CLOCK.now()
        await until(lambda: self.seen and self.seen[-1] == state, f"{state}")
        return CLOCK.now() - begun


class Scene:
    """`starts`: proxies start one after the other, because several at once take longer than the heartbeat times."""

    def __init__(
        self, proxy: ProxyProcess, http: httpx.AsyncClient, server: Observer, starts: asyncio.Lock | None = None
    ) -> None:
        self._starts = starts or asyncio.Lock()
        self.proxy = proxy
        self.http = http
        self.server = server

    async def ask(self, what: str, **asked: object) -> None:
        query = {"service": SERVICE, "timeout": TIMEOUT, **asked}
        reply = await self.http.post(f"{self.proxy.url}/test/{what}", params=query)  # type: ignore[arg-type]
        assert reply.status_code == 200, reply.text

    async def publish(self, owner: str, ip: str) -> None:
        await self.ask("publish", owner=owner, ip=ip, port=80)

    async def killed(self, seconds: float) -> float:
        """kill -9, then a start some seconds later. Returns for how long it did not serve."""
        async with self._starts:
            begun = CLOCK.now()
            await asyncio.to_thread(self.proxy.kill)
            await CLOCK.sleep_until(CLOCK.now() + seconds)
            await asyncio.to_thread(self.proxy.start)
            return CLOCK.now() - begun

    async def passing(self, seconds: float) -> None:
        await CLOCK.sleep_until(CLOCK.now() + seconds)


@asynccontextmanager
async def scene(kind: str, state_dir: Path, starts: asyncio.Lock | None = None) -> AsyncIterator[Scene]:
    async with upstream(kind) as url, httpx.AsyncClient(trust_env=False, timeout=60.0) as http:
        proxy = ProxyProcess("--upstream", url, "--push", "off", state_dir=state_dir, command=COMMAND)
        await asyncio.to_thread(proxy.start)
        observer = Observer(url, http, kind)
        watching = spawn(observer.watch(), name="observer")
        try:
            yield Scene(proxy, http, observer, starts)
        finally:
            await stop(watching)
            await asyncio.to_thread(proxy.kill)
    assert "Traceback" not in proxy.log, proxy.log


async def test_a_publication_beats_survives_a_kill_of_the_proxy_and_goes_with_its_connection(tmp_path: Path) -> None:
    starts = asyncio.Lock()

    async def story(kind: str) -> None:
        async with scene(kind, tmp_path / kind, starts) as s:
            await s.publish("connection 1", "10.0.0.1")
            await s.publish("connection 2", "10.0.0.2")
            both = ("10.0.0.1:80", "10.0.0.2:80")
            await s.server.until(*both)
            s.server.seen.clear()

            away = await s.killed(0.5)  # from now on they beat without their connections
            await s.passing(1.25 * TIMEOUT)
            await s.publish("connection 1, again", "10.0.0.1")
            await s.publish("connection 2, again", "10.0.0.2")
            await s.passing(1.25 * TIMEOUT)
            assert s.server.seen == [both], f"{kind}: a flicker, while the proxy was away for {away:.1f} s"

            await s.ask("end", owner="connection 1, again")
            assert await s.server.until("10.0.0.2:80") < 2.0
            await s.passing(0.5 * TIMEOUT)
            assert s.server.seen == [both, ("10.0.0.2:80",)], "no beat brings it back"

    await asyncio.gather(*map(story, upstreams()))


async def test_a_kill_right_after_the_answer_forgets_neither_a_publication_nor_its_end(tmp_path: Path) -> None:
    async with scene(upstreams()[-1], tmp_path) as s:
        await s.publish("connection 1", "10.0.0.1")
        await s.killed(0.0)
        await s.publish("connection 2", "10.0.0.2")
        await s.passing(1.25 * TIMEOUT)
        assert s.server.seen[-1] == ("10.0.0.1:80", "10.0.0.2:80")
        await s.ask("end", owner="connection 2")
        await s.server.until("10.0.0.1:80")
        await s.killed(0.0)
        s.server.seen.clear()
        await s.passing(0.5 * TIMEOUT)
        assert s.server.seen == [("10.0.0.1:80",)]


async def test_a_stop_of_the_proxy_deregisters_nothing(tmp_path: Path) -> None:
    async with scene("v1+v2", tmp_path) as s:
        await s.publish("connection", "10.0.0.1")
        await s.server.until("10.0.0.1:80")
        s.server.seen.clear()
        await asyncio.to_thread(s.proxy.terminate)
        await s.passing(1.0)
        await asyncio.to_thread(s.proxy.start)
        await s.passing(1.25 * TIMEOUT)
        assert s.server.seen == [("10.0.0.1:80",)]


async def test_an_embedded_registry_has_its_publications_again_after_a_kill(tmp_path: Path) -> None:
    """Nothing is behind it, so its own readers are those who must see no flicker."""
    async with httpx.AsyncClient(trust_env=False, timeout=60.0) as http:
        proxy = ProxyProcess("--upstream", "embedded", state_dir=tmp_path, command=COMMAND)
        await asyncio.to_thread(proxy.start)
        try:
            observer = Observer(proxy.url, http, "embedded")
            s = Scene(proxy, http, observer)
            await s.publish("connection", "10.0.0.1")
            await s.killed(1.0)
            for _ in range(20):
                assert await observer.look() == ("10.0.0.1:80",)
                await s.passing(0.02)
            await s.publish("connection, again", "10.0.0.1")
            await s.ask("end", owner="connection, again")
            while await observer.look():  # it is deregistered in the background
                await s.passing(0.02)
        finally:
            await asyncio.to_thread(proxy.kill)
    assert "Traceback" not in proxy.log, proxy.log
