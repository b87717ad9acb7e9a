"""The port of agent checks, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from nacos_proxy.app.listening import plain_socket
from nacos_proxy.core.agent import Agent
from nacos_proxy.frontends.discovery.agent_check import MAX_CONNECTIONS, MAX_SECONDS, AgentCheck
from nacos_proxy.model.calls import Deregister, Register
from nacos_proxy.model.errors import Unreachable
from nacos_proxy.model.limits import NACOS
from tests.helpers import build
from tests.helpers.build import KEY, instance, snapshot
from tests.helpers.clock import FakeClock, settle
from tests.helpers.scripted import ScriptedRegistry, Shelf


class World:
    def __init__(self) -> None:
        self.shelf, self.clock = Shelf(), FakeClock()
        self.registry = ScriptedRegistry(self.shelf)
        self.agent: Agent = build.agent(self.registry, self.clock)
        self.server = AgentCheck(self.agent, lambda: NACOS)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.server.address.rpartition(":")
        return await asyncio.open_connection(host, int(port))

    async def ask(self, line: bytes) -> bytes:
        reader, writer = await self.connect()
        writer.write(line)
        try:
            return await reader.read()
        finally:
            writer.close()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.server.start(plain_socket("127.0.0.1:0", "agent_check"))
    yield world
    await world.server.stop()
    await world.agent.close()


async def test_agent_check_answers_one_line_and_closes(world: World) -> None:
    world.shelf.services[KEY] = snapshot(instance("10.0.0.1", 80), instance("10.0.0.2", 80, weight=0.0))
    assert await world.ask(b"orders/10.0.0.1:80\n") == b"up ready\n"
    assert await world.ask(b"orders/10.0.0.1:80 weight\nmore") == b"up ready 100%\n"
    assert await world.ask(b"orders/10.0.0.2:80\n") == b"up drain #weight 0\n"
    assert await world.ask(b"orders/10.0.0.3:80\n") == b"down maint #not registered\n"
    assert len(world.registry.calls) == 1
    assert world.server.answers == {"up": 2, "drain": 1, "maint": 1}


async def test_agent_check_follows_changes(world: World) -> None:
    here = instance("10.0.0.1", 80)
    await world.agent.write(Register(KEY, here))
    assert await world.ask(b"orders/10.0.0.1:80\n") == b"up ready\n"
    await world.agent.write(Deregister(KEY, "10.0.0.1", 80))
    await settle()
    assert await world.ask(b"orders/10.0.0.1:80\n") == b"down maint #not registered\n"


@pytest.mark.parametrize(
    "line", [b"\n", b"GET / HTTP/1.1\r\n\r\n", b"x" * 5000, b"x" * 5000 + b"/10.0.0.1:80\n", b"nosuch/10.0.0.1:80\n"]
)
async def test_agent_check_is_silent_if_it_is_not_sure(world: World, line: bytes) -> None:
    world.shelf.services[KEY] = snapshot(instance("10.0.0.1", 80))
    assert await world.ask(line) == b""
    assert world.server.answers == {"silent": 1}


async def test_agent_check_is_silent_while_nothing_is_known(world: World) -> None:
    world.registry.script = lambda call: Unreachable("gone", arrived=False)
    assert await world.ask(b"orders/10.0.0.1:80\n") == b""


async def test_agent_check_keeps_the_last_known_state_while_the_upstream_is_away(world: World) -> None:
    world.shelf.services[KEY] = snapshot(instance("10.0.0.1", 80))
    assert await world.ask(b"orders/10.0.0.1:80\n") == b"up ready\n"
    world.registry.script = lambda call: Unreachable("gone", arrived=False)
    await world.clock.advance(60)
    assert await world.ask(b"orders/10.0.0.1:80\n") == b"up ready\n"


async def test_agent_check_closes_connections_that_ask_nothing(world: World) -> None:
    reader, writer = await world.connect()
    writer.write(b"orders/10")
    while not world.server.status()["connections"]:
        await asyncio.sleep(0)
    await world.clock.advance(2 * MAX_SECONDS)
    assert await reader.read() == b""
    writer.close()
    assert world.server.status()["connections"] == 0


async def test_agent_check_admits_half_of_all_connections_of_one_client(world: World) -> None:
    opened = [await world.connect() for _ in range(MAX_CONNECTIONS // 2 + 1)]
    while not world.server.answers["refused"]:
        await asyncio.sleep(0)
    assert world.server.status()["connections"] == MAX_CONNECTIONS // 2
    for _, writer in opened:
        writer.close()
