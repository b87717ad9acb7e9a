"""What the monitor of the servers does beside the calls: the address server, probes, versions, UDP push."""

from __future__ import annotations

import asyncio

import pytest

from nacos_proxy.model.calls import Fetch, Register
from nacos_proxy.runtime import spawn
from nacos_proxy.upstream.nacos.registry import NacosPolicy, NacosRegistry
from nacos_proxy.upstream.nacos.server_monitor import SUBSCRIBE_AGAIN
from nacos_proxy.upstream.nacos.servers import Server, ServersPolicy
from nacos_proxy.upstream.nacos.udp_receiver import PushReceiver
from tests.helpers.build import KEY, instance, key
from tests.helpers.clock import FakeClock
from tests.helpers.faces import facing
from tests.unit.upstream.registries import registry_of, version_known
from tests.unit.upstream.stub import Request, Say, ok, say, stub

A = instance("10.0.0.1")


async def test_server_monitor_ready_asks_the_address_server_once_for_many_calls() -> None:
    async with facing("v1") as up, stub(lambda _: ok(up.url.encode())) as addresses:
        async with registry_of(servers=ServersPolicy(endpoint=f"{addresses.url}/list")) as registry:
            await asyncio.gather(*(registry.send(Fetch(KEY)) for _ in range(50)))
            assert len(addresses.requests) == 1


async def test_server_monitor_close_ends_its_tasks() -> None:
    before = asyncio.all_tasks()
    async with stub(lambda request: say(then="hang") if b"/state" in request.line else ok()) as server:
        async with registry_of(server.url) as registry:
            await registry.send(Register(KEY, A))
            await asyncio.sleep(0)
        names = {task.get_name() for task in asyncio.all_tasks() - before}
        assert not any("upstream" in name for name in names)


async def test_server_monitor_asks_for_the_version_again_if_there_was_no_answer() -> None:
    asked = 0

    def play(request: Request) -> Say:
        nonlocal asked
        if b"/state" not in request.line:
            return ok()
        asked += 1
        return say(then="close") if asked < 3 else ok(b'{"version":"1.4.6"}')

    async with stub(play) as server, registry_of(server.url) as registry:
        while not registry.servers.all[0].capabilities.version:
            await registry.send(Register(KEY, A))
            await asyncio.sleep(0.01)
        assert registry.servers.all[0].capabilities.version == "1.4.6"


@pytest.mark.parametrize(("face", "version"), [("v1", ""), ("v1+v2", "2.5.1"), ("3.0", "3.0.3"), ("v3", "3.2.0")])
async def test_server_monitor_asks_for_the_version_with_the_first_call(face: str, version: str) -> None:
    async with facing(face) as upstream, registry_of(upstream.url) as registry:
        await registry.send(Fetch(KEY))
        if version:
            await version_known(registry)
        assert registry.servers.all[0].capabilities.version == version


async def test_server_monitor_asks_for_the_version_again_after_an_upgrade() -> None:
    async with facing("v1+v2") as upstream, registry_of(upstream.url) as registry:
        await registry.send(Fetch(KEY))
        await version_known(registry)
        upstream.turn("v3")
        await registry.send(Fetch(KEY))
        await version_known(registry)
        [server] = registry.status()["servers"]
        assert (server["version"], server["dialects"]) == ("3.2.0", ["v3"])


async def test_server_monitor_logs_one_line_when_a_node_goes_down_and_one_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    async with facing("v1+v2", clock) as up:
        async with registry_of("127.0.0.1:1", up.url, clock=clock) as registry:
            for number in range(20):
                await registry.send(Register(key(f"s{number}"), A))
            down = registry.servers.all[0]
            registry.servers.succeeded(down, clock.now())
            registry.servers.succeeded(down, clock.now())
    lines = [record.getMessage() for record in caplog.records if "node " in record.getMessage()]
    assert [line.partition(":1/nacos ")[2][:25] for line in lines] == [
        "is down: 1 of 2 are up: h",
        "is back: 2 of 2 are up",
    ]


async def test_server_monitor_retries_a_failed_udp_subscription_in_one_task(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Barred(PushReceiver):
        tries = 0

        async def subscribe(self, server: Server) -> None:
            self.tries += 1
            if self.tries < 3:
                raise OSError("no IPv4 address")

    clock = FakeClock()
    registry = NacosRegistry(NacosPolicy(ServersPolicy(urls=("http://127.0.0.1:1",))), clock)
    receiver = registry.receiver = Barred(("1.",))
    (server,) = registry.servers.all
    trying = [spawn(registry.monitor._subscribe(server), name="subscribe") for _ in range(3)]
    await clock.advance(1.0)
    assert receiver.tries == 1
    for _ in range(2):
        await clock.advance(SUBSCRIBE_AGAIN)
    await asyncio.gather(*trying)
    assert receiver.tries == 3
    assert caplog.text.count("no UDP push from") == 1
    await registry.close()
