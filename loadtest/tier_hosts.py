"""Simulated hosts: each follows a site proxy as a lower proxy does, without a server of its own."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import asynccontextmanager

import httpx

from loadtest.contenders import LIST
from loadtest.wire import Connection
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.runtime import SystemClock, spawn, stop
from nacos_proxy.upstream.contract import Changed
from nacos_proxy.upstream.http.exchange import HttpClient, HttpPolicy
from nacos_proxy.upstream.http.transport import FastTransport, TransportPolicy
from nacos_proxy.upstream.proxy.events import ProxyEvents, ProxyEventsPolicy

MARK = "mark"
BUCKET = 0.1  # seconds
Shown = dict[str, tuple[float, dict[str, str | None]]]  # weight and metadata by address


class Host:
    """The lists that one host knows. `heard` is called with each that arrives."""

    def __init__(self, site: str, http: HttpClient, heard: Callable[[Snapshot], None]) -> None:
        self.events = ProxyEvents(ProxyEventsPolicy((site,)), http, SystemClock(), random.random)
        self.lists: dict[str, Snapshot] = {}
        self._heard = heard

    async def run(self) -> None:
        async for report in self.events.changes():
            if isinstance(report, Changed) and report.pushed is not None:
                self.lists[report.key.name] = report.pushed
                self._heard(report.pushed)

    def shows(self, service: str) -> Shown:
        known = self.lists.get(service)
        hosts = known.instances if known is not None else ()
        return {f"{host.ip}:{host.port}": (host.weight, dict(host.metadata)) for host in hosts}


class Counting(HttpClient):
    """Notes the moments at which it opens a stream."""

    def __init__(self) -> None:
        super().__init__(HttpPolicy(), FastTransport(TransportPolicy(streams=4096)))
        self.moments: list[float] = []

    async def exchange(self, request: httpx.Request) -> httpx.Response:
        self.moments.append(time.perf_counter())
        return await super().exchange(request)


class Hosts:
    """`number` hosts, as evenly as possible under the sites. All follow the same services."""

    def __init__(self, sites: Sequence[str], number: int, services: Collection[str]) -> None:
        self.http = [Counting() for _ in sites]
        self._services = frozenset(ServiceKey("public", "DEFAULT_GROUP", service) for service in services)
        self._mark = ""
        self._arrived: list[float] = []
        self._all = asyncio.Event()
        self.of_site = [
            [Host(site, http, self._heard) for _ in range(n, number, len(sites))]
            for n, (site, http) in enumerate(zip(sites, self.http, strict=True))
        ]
        self.all = [host for hosts in self.of_site for host in hosts]

    @asynccontextmanager
    async def following(self) -> AsyncGenerator[None]:
        """From the moment at which every host has every list."""
        tasks = [spawn(host.run(), name="host") for host in self.all]
        try:
            for host in self.all:
                host.events.watch(self._services)
            await asyncio.wait_for(self._covered(), 120)
            gc.freeze()  # to look through the lists of a thousand hosts would stop all of them for half a second
            yield
        finally:
            gc.unfreeze()
            for host in self.all:
                await host.events.close()
            for task in tasks:
                await stop(task)
            for http in self.http:
                await http.transport.aclose()

    async def _covered(self) -> None:
        while not all(host.events.covers(key) for host in self.all for key in self._services):
            await asyncio.sleep(0.05)

    def _heard(self, snapshot: Snapshot) -> None:
        if self._mark and any(host.metadata.get(MARK) == self._mark for host in snapshot.instances):
            self._arrived.append(time.perf_counter())
            if len(self._arrived) == len(self.all):
                self._all.set()

    async def hear(self, mark: str, change: Callable[[], object]) -> list[float]:
        """Milliseconds from the change, which sets the mark somewhere, to each host. Raises `TimeoutError`."""
        self._mark, self._arrived = mark, []
        self._all.clear()
        begun = time.perf_counter()
        await asyncio.to_thread(change)
        await asyncio.wait_for(self._all.wait(), 60)
        return [1000 * (moment - begun) for moment in self._arrived]


async def truth(url: str, services: Collection[str]) -> dict[str, Shown]:
    """What the server lists."""
    connection = Connection(url)
    lists = {service: json.loads((await connection.ask("GET", LIST + service))[1]) for service in services}
    await connection.close()
    return {
        service: {f"{host['ip']}:{host['port']}": (host["weight"], host["metadata"]) for host in data["hosts"]}
        for service, data in lists.items()
    }


def most_in_a_bucket(moments: Sequence[float]) -> int:
    """The most of these moments (s) within any 100 ms."""
    ordered, first, most = sorted(moments), 0, 0
    for last, moment in enumerate(ordered):
        while moment - ordered[first] >= BUCKET:
            first += 1
        most = max(most, last - first + 1)
    return most
