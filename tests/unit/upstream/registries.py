"""Registries in front of servers of the tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from nacos_proxy.runtime import Clock
from nacos_proxy.upstream.http.exchange import HttpPolicy, Timeouts
from nacos_proxy.upstream.nacos.registry import NacosPolicy, NacosRegistry
from nacos_proxy.upstream.nacos.servers import ServersPolicy
from tests.helpers.clock import FakeClock

QUICK = HttpPolicy(timeouts=Timeouts(reads=10.0, writes=10.0))


@asynccontextmanager
async def registry_of(*urls: str, clock: Clock | None = None, **fields: Any) -> AsyncIterator[NacosRegistry]:
    policy = NacosPolicy(**{"servers": ServersPolicy(urls), "http": QUICK, **fields})
    registry = NacosRegistry(policy, clock or FakeClock())
    try:
        yield registry
    finally:
        await registry.close()


async def version_known(registry: NacosRegistry) -> None:
    """Returns when the first server has given its version."""
    while not registry.servers.all[0].capabilities.version:
        await asyncio.sleep(0.001)
