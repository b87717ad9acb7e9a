"""The proxy in front of each registry, by each API. `NACOS_TEST_URL` names one more server."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.conformance.drivers import V1, Driver, Rest
from tests.helpers.app import Served, serving

REGISTRIES = ["embedded", "r-nacos", *(["NACOS_TEST_URL"] if os.environ.get("NACOS_TEST_URL") else [])]
_numbers = itertools.count()


@pytest.fixture(params=REGISTRIES)
def upstream(request: pytest.FixtureRequest) -> Iterator[str]:
    """What `--upstream` is given."""
    if request.param == "embedded":
        yield "embedded"
    elif request.param == "r-nacos":
        yield request.getfixturevalue("rnacos").url
    else:
        yield os.environ["NACOS_TEST_URL"]


@pytest.fixture
def registry(request: pytest.FixtureRequest) -> str:
    """The name of the registry behind the proxy, for what one of them is known to do otherwise."""
    return str(request.node.callspec.params["upstream"])


@pytest.fixture(params=["on", "off"], ids=["fast-path", "plain"])
def fast_path(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "on")


@pytest.fixture
async def proxy(upstream: str, fast_path: bool, tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(upstream=upstream, fast_path=fast_path, state_dir=tmp_path) as served:
        yield served


@pytest.fixture(params=[V1, Rest], ids=["v1", "rest"])
async def driver(request: pytest.FixtureRequest, proxy: Served) -> Driver:
    return request.param(proxy.http)


@pytest.fixture
def http(proxy: Served) -> httpx.AsyncClient:
    return proxy.http


@pytest.fixture
def service() -> str:
    """A name that no other test uses: real servers are shared and remember."""
    return f"conf-{os.getpid()}-{next(_numbers)}"
