"""Applications on real SDKs through the proxy: providers start, stop, die and are disabled, and Nacos goes down.

The consumer gets its providers from its SDK and calls one of them twenty times a second. Each change is timed against a
consumer whose SDK is connected to the server directly (`NACOS_TEST_URL`). r-nacos does not push to these SDKs, which
poll it every 10 s; there the time is compared with the server's own list, which no SDK sees earlier.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from nacos_proxy.runtime import SystemClock, spawn, stop
from tests.e2e.clients import NotBuilt, Sdk, build, required, start
from tests.e2e.conftest import process
from tests.helpers.fault import fault_proxy
from tests.helpers.live import GRPC_OFFSET, RNacos

CALLS = 0.05  # seconds between two calls
PUSHED = 1.0  # seconds after a change until r-nacos pushes it to the proxy
BUSY = 1.0  # extra seconds for a machine of two cores that runs all of this
OUTAGE = 20.0
CLOCK = SystemClock()
REAL = os.environ.get("NACOS_TEST_URL", "").split()


@dataclass
class Provider:
    """A process with the SDK, and the port that it registers; this test serves the port."""

    sdk: Sdk
    server: asyncio.Server
    port: int

    async def leave(self) -> None:
        """Sends SIGTERM: its SDK deregisters it. The port stays open until no consumer can know it any more."""
        self.sdk.process.terminate()
        await self.sdk.process.wait()

    async def die(self) -> None:
        """Like kill -9."""
        self.sdk.process.kill()
        await self.sdk.process.wait()
        self.server.close()


@dataclass
class Consumer:
    """The providers that the application knows from its subscription, and when it learned of each state."""

    name: str
    known: set[int] = field(default_factory=set)
    heard: list[tuple[float, set[int]]] = field(default_factory=list)

    async def listen(self, sdk: Sdk) -> None:
        while True:
            self.hears(await sdk.heard[self.name].get())

    async def look(self, server: httpx.AsyncClient, service: str) -> None:
        """Follows the list of the server itself instead of an SDK."""
        while True:
            reply = await server.get("/instance/list", params={"serviceName": service, "healthyOnly": "false"})
            self.hears(reply.json()["hosts"])
            await CLOCK.sleep_until(CLOCK.now() + CALLS)

    def hears(self, hosts: Sequence[Mapping[str, Any]]) -> None:
        self.known = {host["port"] for host in hosts if host["healthy"] and host["enabled"]}
        self.heard.append((CLOCK.now(), self.known))

    async def knows(self, ports: set[int], since: float, within: float = 60.0) -> float:
        """Seconds from `since` until it first knew exactly these ports."""
        while CLOCK.now() < since + within:
            found = [at for at, known in self.heard if known == ports and at >= since]
            if found or self.known == ports:
                return max(0.0, found[0] - since) if found else 0.0
            await asyncio.sleep(0.01)
        raise AssertionError(f"{self.name} knows {self.known}, not {ports}: {self.heard[-5:]}")


@dataclass
class Caller:
    """Calls a provider that the consumer knows; `failed`: the moment and the port of each failed call."""

    consumer: Consumer
    made: int = 0
    failed: list[tuple[float, int]] = field(default_factory=list)

    async def run(self) -> None:
        rng = random.Random(7)
        while True:
            self.made += 1
            if not self.consumer.known:
                self.failed.append((CLOCK.now(), 0))  # no provider known
            else:
                port = rng.choice(sorted(self.consumer.known))
                # not `open_connection`: a test that ends while it connects would leave its transport open
                with socket.socket() as connecting:
                    connecting.setblocking(False)
                    try:
                        await asyncio.get_running_loop().sock_connect(connecting, ("127.0.0.1", port))
                    except OSError:
                        self.failed.append((CLOCK.now(), port))
            await asyncio.sleep(CALLS)


@dataclass
class Stage:
    """One language's application and one server."""

    language: str
    command: Sequence[str]
    directory: Path
    service: str
    address: str
    stack: AsyncExitStack

    async def driver(self, client: str, address: str) -> Sdk:
        sdk = await start(self.language, self.command, self.directory)
        self.stack.push_async_callback(sdk.close)
        await sdk.call("connect", client=client, server=address)
        return sdk

    async def provider(self) -> Provider:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        self.stack.callback(server.close)
        sdk, port = await self.driver("p", self.address), server.sockets[0].getsockname()[1]
        await sdk.call("register", client="p", service=self.service, ip="127.0.0.1", port=port)
        return Provider(sdk, server, port)

    async def consumer(self, name: str, address: str) -> Consumer:
        sdk = await self.driver(name, address)
        await sdk.call("subscribe", client=name, service=self.service, name=name)
        consumer = Consumer(name)
        listening = spawn(consumer.listen(sdk), name=f"{name} listens")
        self.stack.push_async_callback(stop, listening)
        return consumer


@asynccontextmanager
async def stage(language: str, directory: Path, service: str, address: str) -> AsyncIterator[Stage]:
    try:
        command = await asyncio.to_thread(build, language, directory)
    except NotBuilt as why:
        if required(language):
            pytest.fail(f"the SDK for {language} is required: {why}", pytrace=False)
        pytest.skip(f"no SDK for {language}: {why}")
    async with AsyncExitStack() as stack:
        yield Stage(language, command, directory, service, address, stack)


@dataclass(frozen=True)
class Upstream:
    """A server; `pushes`: whether it pushes to these SDKs."""

    port: int
    grpc_port: int
    pushes: bool

    @property
    def allowed(self) -> float:
        """Seconds by which a consumer may learn of a change later than directly."""
        return 0.2 if self.pushes else 0.2 + PUSHED + BUSY


@pytest.fixture(params=["r-nacos", *(["NACOS_TEST_URL"] if REAL else [])])
def upstream(request: pytest.FixtureRequest) -> Upstream:
    if request.param == "r-nacos":
        rnacos: RNacos = request.getfixturevalue("rnacos")
        return Upstream(rnacos.port, rnacos.grpc_port, pushes=False)
    port = urlsplit(REAL[0]).port or 8848
    return Upstream(port, port + GRPC_OFFSET, pushes=True)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("language", ["go", "node"])
async def test_application_calls_survive_changes_of_providers_and_an_outage(
    language: str, upstream: Upstream, tmp_path: Path, service: str
) -> None:
    delays: list[str] = []

    async def both(what: str, ports: set[int], since: float) -> None:
        late, usual = await asyncio.gather(through.knows(ports, since), directly.knows(ports, since))
        delays.append(f"{what} {late:.2f} s, {usual:.2f} s directly")
        assert late <= usual + upstream.allowed, delays

    async with AsyncExitStack() as outer:
        relay = await outer.enter_async_context(fault_proxy(upstream.port))
        pushing = await outer.enter_async_context(fault_proxy(upstream.grpc_port))
        proxy = await outer.enter_async_context(
            process("--upstream", relay.url, "--push-port", str(pushing.port), "--udp-push-allow", "127.0.0.0/8")
        )
        address = proxy.url.removeprefix("http://")
        play = await outer.enter_async_context(stage(language, tmp_path, service, address))
        server = f"127.0.0.1:{upstream.port}"
        http = await outer.enter_async_context(
            httpx.AsyncClient(base_url=f"http://{server}/nacos/v1/ns", timeout=60, trust_env=False)
        )

        first = await play.provider()
        through = await play.consumer("through", address)
        if upstream.pushes:
            directly = await play.consumer("directly", server)
        else:
            directly = Consumer("directly")
            outer.push_async_callback(stop, spawn(directly.look(http, service), name="looks directly"))
        await both("first", {first.port}, CLOCK.now())
        caller = Caller(through)
        calling = spawn(caller.run(), name="caller")
        outer.push_async_callback(stop, calling)

        # scale up
        begin = CLOCK.now()
        second, third = await asyncio.gather(play.provider(), play.provider())
        await both("two more", {first.port, second.port, third.port}, begin)

        # one provider stops
        begin = CLOCK.now()
        await first.leave()
        await both("stopped", {second.port, third.port}, begin)
        first.server.close()

        # one is killed: calls to it may fail until its beats are missed
        killed = CLOCK.now()
        await second.die()
        await both("killed", {third.port}, killed)
        missed = CLOCK.now()

        # one is disabled at the server and enabled again, while its SDK goes on beating; another one stays healthy,
        # because r-nacos lists unhealthy instances if nothing else is left
        begin = CLOCK.now()
        spare = await play.provider()
        await both("one more", {third.port, spare.port}, begin)
        where = {"serviceName": service, "ip": "127.0.0.1", "port": str(third.port)}
        for enabled in (False, True):
            begin = CLOCK.now()
            (await http.put("/instance", params={**where, "enabled": str(enabled).lower()})).raise_for_status()
            wanted = {third.port, spare.port} if enabled else {spare.port}
            await both("enabled" if enabled else "disabled", wanted, begin)
            if not enabled:
                await CLOCK.sleep_until(CLOCK.now() + 3)  # three beats
                assert through.known == wanted, "no beat brings it back"

        # Nacos goes down while a deployment goes on: the next provider starts, the last one stops
        for way in (relay, pushing):
            await way.set("refuse")
        begin = CLOCK.now()
        fourth = await play.provider()
        assert await through.knows({third.port, spare.port, fourth.port}, begin) < 10
        leaving = CLOCK.now()
        await third.leave()
        assert await through.knows({spare.port, fourth.port}, leaving) < 10
        third.server.close()
        known = len(through.heard)
        await CLOCK.sleep_until(begin + OUTAGE)
        assert {*map(frozenset, (k for _, k in through.heard[known - 1 :]))} == {frozenset((spare.port, fourth.port))}
        for way in (relay, pushing):
            await way.set("pass")
        back = CLOCK.now()
        await directly.knows({spare.port, fourth.port}, back, within=90)

        # the proxy restarts, and a provider starts
        await asyncio.to_thread(proxy.terminate)
        await asyncio.to_thread(proxy.start)
        begin = CLOCK.now()
        fifth = await play.provider()
        await both("after a restart", {spare.port, fourth.port, fifth.port}, begin)

        needless = [(at, port) for at, port in caller.failed if not (port == second.port and killed <= at <= missed)]
        who = {p.port: name for p, name in zip((first, second, third, spare, fourth, fifth), "123s45", strict=True)}
        told = [f"{at - killed:.1f}: {sorted(who.get(p, '?') for p in known)}" for at, known in through.heard]
        failed = sorted({f"{at - killed:.0f} s: {who.get(port)}" for at, port in needless})
        assert needless == [], f"{len(needless)} of {caller.made} calls failed, {failed}; the consumer was told {told}"
        assert caller.made > 100
        print(language, caller.made, "calls:", "; ".join(delays))
