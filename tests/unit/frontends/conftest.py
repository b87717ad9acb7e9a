"""The REST, lookup, event and operations APIs around a registry in a dict, on a `FakeClock`."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.types import Message, Receive

from nacos_proxy.app.router import rest_app
from nacos_proxy.background.drains import Drainer, DrainerPolicy
from nacos_proxy.background.health_checker import HealthChecker, HealthCheckerPolicy
from nacos_proxy.core.agent import Agent
from nacos_proxy.frontends.discovery.envoy import EnvoyApi
from nacos_proxy.frontends.discovery.formats import FormatsApi
from nacos_proxy.frontends.discovery.group_names import GroupNames
from nacos_proxy.frontends.discovery.lookup import LookupApi
from nacos_proxy.frontends.events.long_polls import LongPolls
from nacos_proxy.frontends.events.streams import EventsApi, EventsPolicy
from nacos_proxy.frontends.operations.metrics import Metrics, Sources
from nacos_proxy.frontends.operations.status import OperatorView
from nacos_proxy.frontends.rest.models import Instance, Snapshot
from nacos_proxy.frontends.rest.reads import Reads
from nacos_proxy.frontends.rest.services import RestApi
from nacos_proxy.frontends.rest.traffic import TrafficApi
from nacos_proxy.model.calls import Register
from nacos_proxy.model.errors import ProxyError
from nacos_proxy.wire.http import HttpReply
from tests.helpers import build
from tests.helpers.asgi import Exchange, ask, scope, start
from tests.helpers.build import KEY, instance
from tests.helpers.clock import FakeClock, settle
from tests.helpers.scripted import ScriptedRegistry, Shelf


class FakeRandom:
    """Returns the numbers that a test puts in, then 0.0."""

    def __init__(self) -> None:
        self.next: list[float] = []

    def __call__(self) -> float:
        return self.next.pop(0) if self.next else 0.0


class Change(Snapshot):
    """The data of a `change` event; OpenAPI cannot describe it."""

    added: list[Instance]
    modified: list[Instance]
    removed: list[Instance]
    source: str


@dataclass
class World:
    app: FastAPI
    agent: Agent
    registry: ScriptedRegistry
    shelf: Shelf
    clock: FakeClock
    events: EventsApi
    rng: FakeRandom
    discovered: list[tuple[str, str, str]]
    operator_view: OperatorView
    checker: HealthChecker

    async def ask(self, method: str, target: str, **more: Any) -> Exchange:
        return await ask(self.app, method, target, **more)

    async def start(self, target: str, headers: dict[str, str] | None = None, **more: Any) -> Exchange:
        return await start(self.app, scope("GET", target, headers, **more))


@pytest.fixture
def events_policy() -> EventsPolicy:
    return EventsPolicy()


@pytest.fixture
def max_services() -> int:
    return 1_000


@pytest.fixture
async def world(events_policy: EventsPolicy, max_services: int) -> AsyncIterator[World]:
    shelf, clock, rng = Shelf(), FakeClock(), FakeRandom()
    registry = ScriptedRegistry(shelf)
    agent = build.agent(registry, clock)
    reads = Reads(agent)
    discovered: list[tuple[str, str, str]] = []
    events = EventsApi(
        agent,
        events_policy,
        discover=lambda namespace, group: discovered.append(("discover", namespace, group)),
        forget=lambda namespace, group: discovered.append(("forget", namespace, group)),
        rng=rng,
    )
    metrics = Metrics(Sources(agent, "1.2.3", subscribers=lambda: events.readers))
    operator_view = OperatorView(agent, events, metrics, "1.2.3", clock.now(), "here")
    groups = GroupNames(agent, max_services)
    rest, drainer = RestApi(agent, reads), Drainer(agent, DrainerPolicy())
    checker = HealthChecker(agent, HealthCheckerPolicy())
    app = rest_app(
        {
            RestApi: rest,
            TrafficApi: TrafficApi(rest, drainer, checker),
            LookupApi: LookupApi(agent, rng),
            FormatsApi: FormatsApi(agent, reads, groups, max_services=max_services),
            EnvoyApi: EnvoyApi(agent, reads, events.polls, groups, max_services=max_services),
            EventsApi: events,
            LongPolls: events.polls,
            OperatorView: operator_view,
        }
    )
    yield World(app, agent, registry, shelf, clock, events, rng, discovered, operator_view, checker)
    events.close()
    await drainer.stop()
    await checker.stop()
    await agent.close()


async def register(world: World, ip: str, **fields: object) -> None:
    await world.agent.write(Register(KEY, instance(ip, **fields)))
    await settle()


def ips(rows: list[dict]) -> list[str]:
    return [row["ip"] for row in rows]


def refuse(scope: object, error: ProxyError) -> HttpReply:
    return HttpReply(error.status, "text/plain", str(error).encode())


async def memory_of(read: Callable[[Receive], Awaitable[object]]) -> int:
    """The peak of traced bytes while `read` reads a body of 200,000 bytes that arrives in pieces of two."""
    left = 100_000

    async def receive() -> Message:
        nonlocal left
        left -= 1
        return {"type": "http.request", "body": b"%02d" % (left % 100), "more_body": left > 0}

    tracemalloc.start()
    try:
        await read(receive)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
