"""Applications on real SDKs through the proxy: providers come, leave, die and are disabled, and Nacos goes away.

The consumer is told of its providers by its SDK and calls one of them twenty times a second. Each change is timed
against the server's own list, which no SDK sees earlier: r-nacos pushes nothing to these, which poll it every 10 s.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.runtime import SystemClock, spawn, stop
from tests.e2e.clients import NotBuilt, Sdk, build, required, start
from tests.e2e.conftest import process
from tests.helpers.fault import fault_proxy
from tests.helpers.live import RNacos

CALLS = 0.05  # seconds between two calls
PUSHED = 1.0  # seconds after a change in which r-nacos pushes it
ALLOWED = PUSHED + 0.2 + 1.0  # later than the list, and what a busy machine of two cores takes
OUTAGE = 20.0
CLOCK = SystemClock()


@dataclass
class Provider:
    """A process with the SDK, and the port that it serves, which is this program's."""

    sdk: Sdk
    service: str
    server: asyncio.Server
    port: int

    @property
    def instance(self) -> dict[str, object]:
        return {"service": self.service, "ip": "127.0.0.1", "port": self.port}

    async def register(self) -> None:
        await self.sdk.call("register", client="p", **self.instance)

    async def leave(self) -> None:
        """As on SIGTERM: it deregisters, and serves on until nobody can know it any more."""
        await self.sdk.call("deregister", client="p", **self.instance)

    async def die(self) -> None:
        """As by kill -9."""
        self.sdk.process.kill()
        await self.sdk.process.wait()
        self.server.close()


@dataclass
class Consumer:
    """What the application knows of its providers, by its subscription, and when it heard of each state."""

    name: str
    known: set[int] = field(default_factory=set)
    heard: list[tuple[float, set[int]]] = field(default_factory=list)

    async def listen(self, sdk: Sdk) -> None:
        while True:
            self.hears(await sdk.heard[self.name].get())

    async def look(self, server: httpx.AsyncClient, service: str) -> None:
        """Instead of an SDK: at the list of the server itself, all the time."""
        while True:
            reply = await server.get("/instance/list", params={"serviceName": service, "healthyOnly": "false"})
            self.hears(reply.json()["hosts"])
            await CLOCK.sleep_until(CLOCK.now() + CALLS)

    def hears(self, hosts: Sequence[Mapping[str, Any]]) -> None:
        self.known = {host["port"] for host in hosts if host["healthy"] and host["enabled"]}
        self.heard.append((CLOCK.now(), self.known))

    async def knows(self, ports: set[int], since: float, within: float = 60.0) -> float:
        """When it first knew just these, in seconds after `since`."""
        while CLOCK.now() < since + within:
            found = [at for at, known in self.heard if known == ports and at >= since]
            if found or self.known == ports:
                return max(0.0, found[0] - since) if found else 0.0
            await asyncio.sleep(0.01)
        raise AssertionError(f"{self.name} knows {self.known}, not {ports}: {self.heard[-5:]}")


@dataclass
class Caller:
    """Calls a provider that the consumer knows; `failed` are the ports that did not answer, and when."""

    consumer: Consumer
    made: int = 0
    failed: list[tuple[float, int]] = field(default_factory=list)

    async def run(self) -> None:
        luck = random.Random(7)
        while True:
            self.made += 1
            if not self.consumer.known:
                self.failed.append((CLOCK.now(), 0))  # nobody to call
            else:
                port = luck.choice(sorted(self.consumer.known))
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                except OSError:
                    self.failed.append((CLOCK.now(), port))
            await asyncio.sleep(CALLS)


@dataclass
class Stage:
    """One language's application in front of one server."""

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
        provider = Provider(
            await self.driver("p", self.address), self.service, server, server.sockets[0].getsockname()[1]
        )
        await provider.register()
        return provider

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


async def both(through: Consumer, directly: Consumer, ports: set[int], since: float) -> None:
    """The change reaches the consumer no later than it does directly, but for what is allowed."""
    late, usual = await asyncio.gather(through.knows(ports, since), directly.knows(ports, since))
    assert late <= usual + ALLOWED, f"{late:.2f} s through the proxy, {usual:.2f} s directly"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("language", ["go", "node"])
async def test_no_call_fails_that_need_not_whatever_happens_to_providers_and_to_nacos(
    language: str, rnacos: RNacos, tmp_path: Path, service: str
) -> None:
    async with AsyncExitStack() as outer:
        relay = await outer.enter_async_context(fault_proxy(rnacos.port))
        proxy = await outer.enter_async_context(
            process("--upstream", relay.url, "--push-port", str(rnacos.grpc_port), "--udp-push-allow", "127.0.0.0/8")
        )
        address = proxy.url.removeprefix("http://")
        play = await outer.enter_async_context(stage(language, tmp_path, service, address))
        http = await outer.enter_async_context(
            httpx.AsyncClient(base_url=f"{rnacos.url}/nacos/v1/ns", timeout=60, trust_env=False)
        )

        first = await play.provider()
        through = await play.consumer("through", address)
        directly = Consumer("directly")
        outer.push_async_callback(stop, spawn(directly.look(http, service), name="looks directly"))
        await both(through, directly, {first.port}, CLOCK.now())
        caller = Caller(through)
        calling = spawn(caller.run(), name="caller")
        outer.push_async_callback(stop, calling)

        # more of them
        begin = CLOCK.now()
        second, third = await asyncio.gather(play.provider(), play.provider())
        await both(through, directly, {first.port, second.port, third.port}, begin)

        # one is stopped
        begin = CLOCK.now()
        await first.leave()
        await both(through, directly, {second.port, third.port}, begin)
        first.server.close()

        # one is killed: calls to it may fail until its beats are missed
        killed = CLOCK.now()
        await second.die()
        await both(through, directly, {third.port}, killed)
        missed = CLOCK.now()

        # one is disabled at the server, whose SDK goes on beating, and enabled again; another one is well meanwhile,
        # since r-nacos lists the unwell as well where nobody else is left
        begin = CLOCK.now()
        spare = await play.provider()
        await both(through, directly, {third.port, spare.port}, begin)
        where = {"serviceName": service, "ip": "127.0.0.1", "port": str(third.port)}
        for enabled in (False, True):
            begin = CLOCK.now()
            (await http.put("/instance", params={**where, "enabled": str(enabled).lower()})).raise_for_status()
            wanted = {third.port, spare.port} if enabled else {spare.port}
            await both(through, directly, wanted, begin)
            if not enabled:
                await CLOCK.sleep_until(CLOCK.now() + 3)  # three beats
                assert through.known == wanted, "no beat brings it back"

        # Nacos goes away, and a deployment goes on: the next one comes, the last one leaves
        await relay.set("refuse")
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
        await relay.set("pass")
        back = CLOCK.now()
        await directly.knows({spare.port, fourth.port}, back, within=90)

        # the proxy is restarted, and a provider comes
        await asyncio.to_thread(proxy.terminate)
        await asyncio.to_thread(proxy.start)
        begin = CLOCK.now()
        fifth = await play.provider()
        await through.knows({spare.port, fourth.port, fifth.port}, begin)

        needless = [(at, port) for at, port in caller.failed if not (port == second.port and killed <= at <= missed)]
        who = {p.port: name for p, name in zip((first, second, third, spare, fourth, fifth), "123s45", strict=True)}
        told = [f"{at - killed:.1f}: {sorted(who.get(p, '?') for p in known)}" for at, known in through.heard]
        failed = sorted({f"{at - killed:.0f} s: {who.get(port)}" for at, port in needless})
        assert needless == [], f"{len(needless)} of {caller.made} calls failed, {failed}; the consumer was told {told}"
        assert caller.made > 100
