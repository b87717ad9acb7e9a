"""The proxy in front of each registry, through each API. `NACOS_TEST_URL` names more registries.

It lists them separated by blanks, and the nodes of one cluster separated by commas. The tests are spread over them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.conformance.drivers import V1, Driver, Rest
from tests.helpers.app import Served, serving
from tests.helpers.faces import clustered, facing

REAL = os.environ.get("NACOS_TEST_URL", "").split()
STAND_INS = ["1.x", "2.5.1", "3.0", "cluster", "upper proxy"]
REGISTRIES = ["embedded", "r-nacos", *STAND_INS, *(["NACOS_TEST_URL"] * bool(REAL))]
_numbers = itertools.count()
_REAL = itertools.cycle(REAL or [""])


@pytest.fixture(params=REGISTRIES)
async def upstream(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The value of `--upstream`. The stand-ins list writes as late as real servers do."""
    match request.param:
        case "embedded":
            yield "embedded"
        case "r-nacos":
            yield request.getfixturevalue("rnacos").url
        case "upper proxy":
            async with facing("v1+v2", listing_delay=0.55) as server, serving(upstream=server.url) as upper:
                yield f"proxy+{upper.url}"
        case "cluster":
            async with clustered() as nodes:
                yield ",".join(node.url for node in nodes)
        case "1.x" | "2.5.1" | "3.0" as face:
            lag = 0.0 if face == "1.x" else 0.55
            async with facing("v1+v2" if face == "2.5.1" else face, listing_delay=lag) as server:
                yield server.url
        case _:
            yield next(_REAL)


@pytest.fixture
def registry(request: pytest.FixtureRequest) -> str:
    """The name of the registry behind the proxy, for known differences."""
    return str(request.node.callspec.params["upstream"])


@pytest.fixture(params=["on", "off"], ids=["fast-path", "plain"])
def fast_path(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "on")


@pytest.fixture
async def proxy(upstream: str, registry: str, fast_path: bool, tmp_path: Path) -> AsyncIterator[Served]:
    if not fast_path and registry in STAND_INS:
        pytest.skip("one way of reading is enough for what the server does")
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
    """A unique name: real servers are shared and keep data."""
    return f"conf-{os.getpid()}-{next(_numbers)}"


@pytest.fixture(params=["proxy", *(["NACOS_TEST_URL"] * bool(REAL))])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient]:
    """The proxy with its embedded registry, and a real server directly, to verify our claims about servers."""
    if request.param == "proxy":
        async with serving(upstream="embedded") as proxy:
            yield proxy.http
        return
    async with httpx.AsyncClient(base_url=REAL[0].partition(",")[0], trust_env=False) as http:
        if '"version":"1.' in (await http.get("/nacos/v1/console/server/state")).text:
            pytest.skip("1.x reads the parameters of a POST from its query alone")
        yield http
