"""Values with valid defaults, so that a test names only what matters; and an agent around a registry."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from nacos_proxy.catalog.cache import Cache, CachePolicy
from nacos_proxy.catalog.circuit_breaker import Breaker, BreakerPolicy
from nacos_proxy.catalog.hub import Hub, HubPolicy
from nacos_proxy.catalog.pending_writes import PendingPolicy
from nacos_proxy.catalog.registrations import Registrations
from nacos_proxy.core.agent import Agent, AgentPolicy, Catalog, Follower
from nacos_proxy.model.services import Instance, ServiceKey, Snapshot
from nacos_proxy.upstream.contract import Registry
from tests.helpers.clock import FakeClock

KEY = ServiceKey("public", "DEFAULT_GROUP", "orders")


def key(name: str = "orders", group: str = "DEFAULT_GROUP", namespace: str = "public") -> ServiceKey:
    return ServiceKey(namespace, group, name)


def instance(ip: str = "10.0.0.1", port: int = 80, **fields: Any) -> Instance:
    return Instance(ip, port, **fields)


def snapshot(*instances: Instance, service: ServiceKey = KEY, **fields: Any) -> Snapshot:
    return Snapshot.of(service, instances, **{"last_ref_time": 1_795_519_064_000, **fields})


def make_catalog(cache: CachePolicy | None = None, hub: HubPolicy | None = None, epoch: str = "e") -> Catalog:
    """An empty catalog whose random numbers are always 0.5."""
    return Catalog(
        Cache(cache or CachePolicy(), PendingPolicy(), itertools.repeat(0.5).__next__),
        Hub(hub or HubPolicy(), epoch),
        Registrations(),
        Breaker(BreakerPolicy()),
    )


def agent(
    registry: Registry,
    clock: FakeClock,
    *followers: Follower,
    cache: CachePolicy | None = None,
    hub: HubPolicy | None = None,
    epoch: str = "e",
    policy: AgentPolicy = AgentPolicy(),  # noqa: B008 - a frozen value
    checks: Callable[[], bool] = lambda: True,
) -> Agent:
    """An agent whose hub follows it, as in the server."""
    catalog = make_catalog(cache, hub, epoch)
    made = Agent(registry, catalog, clock, policy, checks=checks)
    made.follow("events", catalog.hub.publish)
    for n, follower in enumerate(followers):
        made.follow(f"follower {n}", follower)
    return made
