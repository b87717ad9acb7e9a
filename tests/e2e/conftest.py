"""Servers of every generation behind the proxy, over real sockets, and the proxy as a process."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.helpers.faces import FACES, clustered, facing
from tests.helpers.live import ProxyProcess

UPSTREAMS = [*FACES, "r-nacos"]
_numbers = itertools.count()


PROMPT = ("v1", "1.x")  # these list a write at once: r-nacos, and Nacos before 2.0


@pytest.fixture(params=[*UPSTREAMS, "cluster"])
def generation(request: pytest.FixtureRequest) -> str:
    """The kind of upstream: a face of `tests.helpers.faces`, a cluster of three, or a real r-nacos."""
    return str(request.param)


@pytest.fixture
async def upstream(generation: str, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The value of `--upstream`."""
    if generation == "r-nacos":
        yield request.getfixturevalue("rnacos").url
    elif generation == "cluster":
        async with clustered() as nodes:
            yield ",".join(node.url for node in nodes)
    else:
        async with facing(generation, listing_delay=0.0 if generation in PROMPT else 0.55) as server:
            yield server.url


@pytest.fixture
def service() -> str:
    """A unique name: the real server is shared and keeps data."""
    return f"e2e-{os.getpid()}-{next(_numbers)}"


@asynccontextmanager
async def process(*arguments: str, **environ: str) -> AsyncIterator[ProxyProcess]:
    """The proxy as a process; started and stopped in threads, because its upstream may run in this event loop."""
    proxy = ProxyProcess(*arguments, env=environ)
    try:
        await asyncio.to_thread(proxy.start)
        yield proxy
    finally:
        await asyncio.to_thread(proxy.close)
