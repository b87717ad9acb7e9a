"""Faults between proxy and upstream: readers go on, no acknowledged write is lost, operators learn of it once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

from nacos_proxy.catalog.hub import Filter, Mailbox, Notice
from nacos_proxy.core.agent import Agent
from nacos_proxy.model.services import ServiceKey
from tests.faults.load import Follower, Load, number_of, until
from tests.helpers.app import Served, serving
from tests.helpers.faces import facing
from tests.helpers.fault import MODES, Mode, fault_proxy

# Short intervals, so that a whole fault takes seconds.
QUICK: dict[str, Any] = {
    "breaker_longest": 0.3,
    "cache_ttl": 0.3,
    "poll_interval_subscribed": 0.1,
    "poll_interval_read": 0.2,
    "cold_wait": 1.0,
    "empty_list_confirm": 1.0,
}

# Only without an answer must the timeout pass; in other modes a busy machine may need the default timeout.
SILENT: dict[Mode, dict[str, Any]] = {"blackhole": {"upstream_timeout": 1.5}, "slow": {"upstream_timeout": 1.5}}


@dataclass
class EventLog:
    """Every event in publication order, to compare streams with."""

    agent: Agent
    services: list[str]
    revisions: dict[int, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    box: Mailbox | None = None

    def open(self) -> None:
        keys = frozenset(ServiceKey.of(name) for name in self.services)
        self.box = self.agent.catalog.hub.subscribe(Filter(keys), self.take)

    def take(self) -> None:
        assert self.box is not None
        for event in self.box.take():
            if isinstance(event.body, Notice):
                self.notices.append(event.body.state)
            else:
                self.revisions[event.number] = event.body.after.revision

    def faults(self, follower: Follower) -> list[str]:
        changes = [(id, data) for name, id, data in follower.seen if name == "change"]
        own = ((id, self.revisions.get(number_of(id)), data["revision"]) for id, data in changes)
        return [f"{id} showed {shown}, it was {was}" for id, was, shown in own if was != shown]


@pytest.fixture(params=["faces", "r-nacos"])
async def upstream(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    if request.param == "r-nacos":
        yield request.getfixturevalue("rnacos").url
        return
    async with facing("v1+v2", listing_delay=0.1) as server:
        yield server.url


@asynccontextmanager
async def loaded(proxy: Served, name: str) -> AsyncIterator[tuple[Load, EventLog]]:
    load = Load(proxy.url, name)
    event_log = EventLog(proxy.components.agent, load.services)
    event_log.open()
    async with load:
        await load.more(10)
        yield load, event_log


def logged(caplog: pytest.LogCaptureFixture, text: str) -> int:
    return sum(text in record.getMessage() for record in caplog.records)


def metric(text: str, name: str) -> float:
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + " "))


@pytest.mark.parametrize("mode", MODES)
async def test_upstream_faults_lose_nothing(
    mode: Mode, upstream: str, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    caplog.set_level(logging.INFO)
    port = urlsplit(upstream).port
    assert port is not None
    name = f"fault-{mode}-{request.node.callspec.params['upstream']}".replace("_", "-")
    async with (
        fault_proxy(port) as relay,
        serving(upstream=relay.url, **QUICK, **SILENT.get(mode, {})) as proxy,
        loaded(proxy, name) as (load, event_log),
    ):
        breaker = proxy.components.agent.catalog.breaker
        assert (await proxy.http.get("/readyz")).json() == {"status": "ready", "reasons": []}

        await relay.set(mode)
        await until(lambda: not breaker.up, f"the breaker opens: {breaker}")
        ready = (await proxy.http.get("/readyz")).json()
        assert ready["status"] == "degraded" and ready["reasons"][0].startswith("upstream: "), ready
        assert metric((await proxy.http.get("/metrics")).text, "nacos_proxy_upstream_up") == 0
        first = len(load.reads)
        await load.more(10)
        for follower in load.followers:
            assert follower.states.keys() == {f"DEFAULT_GROUP@@{service}" for service in load.services}
        assert not breaker.up, "an upstream that answers like this is not up"
        during = [read for read in load.reads[first:] if read.status == 200]

        await relay.set("pass")
        await until(lambda: breaker.up, f"the breaker closes: {breaker}")
        await load.more(10)
        await load.stop_writing()
        await load.settled(upstream)
        assert (await proxy.http.get("/readyz")).json()["status"] == "ready"
        assert metric((await proxy.http.get("/metrics")).text, "nacos_proxy_upstream_up") == 1

        assert load.violations() == []
        assert [fault for follower in load.followers for fault in event_log.faults(follower)] == []
        assert during and all("; hit;" in read.cache for read in during), "no read waited for the upstream"
        assert event_log.notices == ["down", "up"]
        assert all(follower.resets == 0 for follower in load.followers)
        local = [beat for beat in load.beats if beat[1] == "local"]
        assert local, "beats were answered here meanwhile"
    assert (logged(caplog, "upstream lost"), logged(caplog, "upstream is back")) == (1, 1)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_upstream_that_is_slow_does_not_open_the_breaker(caplog: pytest.LogCaptureFixture) -> None:
    """Each answer takes more than half of the timeout, and there are more requests than connections."""
    caplog.set_level(logging.INFO)
    slow: dict[str, Any] = {**QUICK, "upstream_timeout": 1.0}
    async with facing("v1+v2") as server:
        port = urlsplit(server.url).port
        assert port is not None
        async with fault_proxy(port) as relay, serving(upstream=relay.url, **slow) as proxy:
            breaker = proxy.components.agent.catalog.breaker
            instances = [{"serviceName": f"slow-{n}", "ip": "10.0.0.1", "port": "80"} for n in range(205)]
            for instance in instances:
                assert (await proxy.http.post("/nacos/v1/ns/instance", params=instance)).text == "ok"
            await relay.set("refuse")
            await until(lambda: not breaker.up, "the breaker opens")
            await relay.set("late")
            await until(lambda: breaker.up, "the breaker closes")
            for _ in range(3):
                beats = (proxy.http.put("/nacos/v1/ns/instance/beat", params=instance) for instance in instances)
                codes = [(await beat).json()["code"] for beat in asyncio.as_completed([*beats])]
                assert codes == [10200] * len(instances)
                assert breaker.up, breaker
            assert logged(caplog, "upstream lost") == 1
            reasons = (await proxy.http.get("/readyz")).json()["reasons"]
            assert [reason for reason in reasons if not reason.startswith("polling: ")] == [], "polls may be late"
