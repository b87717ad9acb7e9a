"""One registry over real sockets: servers with each face, their upgrades, outages, rights and logins."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from proxy.calls import Fetch
from proxy.errors import Refused, Unreachable
from proxy.registry.http import HttpPolicy, Timeouts
from proxy.registry.login import LoginPolicy
from proxy.registry.nacos import NacosPolicy, NacosRegistry
from proxy.registry.servers import ServersPolicy
from proxy.runtime import Clock
from tests.helpers.build import KEY
from tests.helpers.clock import FakeClock
from tests.helpers.faces import facing

QUICK = HttpPolicy(timeouts=Timeouts(reads=10.0, writes=10.0))


@asynccontextmanager
async def registry_of(*urls: str, clock: Clock | None = None, **fields: Any) -> AsyncIterator[NacosRegistry]:
    policy = NacosPolicy(**{"servers": ServersPolicy(urls), "http": QUICK, **fields})
    registry = NacosRegistry(policy, clock or FakeClock())
    try:
        yield registry
    finally:
        await registry.close()


# --- what operators see --------------------------------------------------------------------------------------------


async def test_the_status_tells_of_each_server_and_of_the_login_and_no_secret() -> None:
    clock = FakeClock()
    login = LoginPolicy("nacos", "s3cret")
    async with facing("v1+v2", clock, passwords={"nacos": "s3cret"}) as upstream:
        async with registry_of(upstream.url, clock=clock, login=login) as registry:
            await registry.send(Fetch(KEY))
            await told(registry)
            status = registry.status()
    assert status == {
        "login": {"enabled": True, "logins": 1, "error": ""},
        "servers": [
            {
                "url": f"{upstream.url}/nacos",
                "state": "up",
                "error": "",
                "latencyMs": 0.0,
                "version": "2.5.1",
                "dialects": ["v1"],
                "outcomes": {"ok": 1},
            }
        ],
    }
    assert "s3cret" not in json.dumps(status)


async def test_the_status_says_which_server_is_down_and_why() -> None:
    async with registry_of("127.0.0.1:1") as registry:
        with pytest.raises(Unreachable):
            await registry.send(Fetch(KEY))
        [server] = registry.status()["servers"]
        assert (server["state"], server["outcomes"]) == ("down", {"Unreachable": 1})
        assert "127.0.0.1:1" in server["error"]


async def test_the_status_says_that_a_login_was_refused_and_not_with_which_password() -> None:
    async with facing("v1+v2", passwords={"nacos": "another"}) as upstream:
        async with registry_of(upstream.url, login=LoginPolicy("nacos", "s3cret")) as registry:
            with pytest.raises(Refused, match="the login as 'nacos' was refused"):
                await registry.send(Fetch(KEY))
            status = registry.status()
            assert status["login"]["error"].startswith("the login as 'nacos' was refused")
            assert "s3cret" not in json.dumps(status)


async def told(registry: NacosRegistry) -> None:
    """Until every server has told its version."""
    server = registry.servers.all[0]
    for _ in range(500):
        if server.spoken.version:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("no version was told")
