"""How much CPU and memory the proxy of one host needs, by services, instances and readers. Without push: the most."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, takewhile
from random import Random

from loadtest import contenders
from loadtest.contenders import LIST, Contender
from loadtest.load import Usage
from loadtest.rounds import Sample, Series
from loadtest.stand_in import StandIn, hosts
from loadtest.wire import Connection, at_once, close_streams, open_streams

QUESTION = "sizing, by services, instances of each, readers"
SETTLE = 7.0  # longer than one poll of everything
SERVICE = "sizing-{}"
FETCHES = "nacos_proxy_fetches_total"


@dataclass(frozen=True, slots=True)
class Host:
    """What runs on a host. A reader has an event stream of one service, and reads a service at random every second."""

    services: int
    instances: int
    readers: int

    @property
    def name(self) -> str:
        return f"{self.services:,} services of {self.instances}, {self.readers:,} readers"


HOSTS = (Host(100, 10, 10), Host(1_000, 10, 100), Host(1_000, 100, 100), Host(1_000, 10, 1_000), Host(5_000, 10, 100))


async def _reads(url: str, host: Host, begin: float, until: float, seed: int) -> int:
    """One reader: a read of some service every second, from `begin` on. Returns how many it has made by `until`."""
    connection, chosen, made = Connection(url), Random(seed), 0
    for due in takewhile(until.__gt__, count(begin)):
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await connection.ask("GET", LIST + SERVICE.format(chosen.randrange(host.services)))
        made += time.perf_counter() < until
    await connection.close()
    return made


async def _fetches(url: str) -> float:
    connection = Connection(url)
    _, body = await connection.ask("GET", "/metrics")
    await connection.close()
    return sum(float(line.split()[-1]) for line in body.decode().splitlines() if line.startswith(FETCHES))


async def _use(proxy: Contender, seconds: float) -> tuple[float, float]:
    """Percent of a core that the proxy uses during the next seconds, and its requests a second to the upstream."""
    before, usage, begun = await _fetches(proxy.url), Usage(proxy.process.pid), time.perf_counter()
    await asyncio.sleep(seconds)
    elapsed = time.perf_counter() - begun
    return 100 * usage.cpu_seconds() / elapsed, (await _fetches(proxy.url) - before) / elapsed


async def _measure(proxy: Contender, host: Host, settle: float, seconds: float) -> dict[str, float]:
    await at_once(proxy.url, [("GET", LIST + SERVICE.format(n)) for n in range(host.services)])
    await asyncio.sleep(settle)
    idle, _ = await _use(proxy, seconds)
    streams = [
        stream
        for n in range(min(host.readers, host.services))
        for stream in await open_streams(
            proxy.url,
            f"/api/v1/events?service={SERVICE.format(n)}",
            len(range(n, host.readers, host.services)),
            lambda: b"",
            lambda _: None,
        )
    ]
    now = time.perf_counter()
    reading = asyncio.gather(
        *(_reads(proxy.url, host, now + n / host.readers, now + seconds, n) for n in range(host.readers))
    )
    busy, asked = await _use(proxy, seconds)
    made = await reading
    close_streams(streams)
    return {
        "cpu_percent_idle": idle,
        "cpu_percent": busy,
        "memory": Usage(proxy.process.pid).figures(1)["memory"],
        "reads_a_second": sum(made) / seconds,
        "upstream_a_second": asked,
    }


async def _one(host: Host, settle: float, seconds: float) -> dict[str, float]:
    load, _, _ = os.getloadavg()
    born = time.perf_counter()

    def changing(name: str) -> str:
        """One service changes every second."""
        return hosts(host.instances, 2 if name == SERVICE.format(int(time.perf_counter() - born)) else 1)

    async with StandIn(changing).serving() as upstream:
        proxy = await asyncio.to_thread(contenders.proxy, upstream, "--upstream-dialect", "v1", "--push", "off")
        try:
            return {**await _measure(proxy, host, settle, seconds), "load": load}
        finally:
            await asyncio.to_thread(proxy.stop)


def run(quick: bool, upstream: str | None, say: Callable[[str], None]) -> Iterator[tuple[Series, str, str]]:
    """Yields the series with its baseline and the figure that counts. The upstream is always a stand-in."""
    sizes, settle, seconds = (HOSTS[:1], 1.0, 3.0) if quick else (HOSTS, SETTLE, 20.0)
    series = Series(QUESTION)
    for host in sizes:
        figures = asyncio.run(_one(host, settle, seconds))
        series.add(Sample(host.name, figures))
        say(f"sizing, {host.name}: " + ", ".join(f"{name} {value:.1f}" for name, value in figures.items()))
    yield series, series.contenders[0], "cpu_percent"
