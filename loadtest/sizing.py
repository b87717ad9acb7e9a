"""How much CPU and memory the proxy of one host needs, by services, instances and readers. Without push: the most."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, takewhile
from random import Random
from urllib.parse import parse_qs, urlsplit

from loadtest import contenders
from loadtest.contenders import LIST, Contender
from loadtest.load import Usage
from loadtest.rounds import Sample, Series
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


class Lists(asyncio.Protocol):
    """A stand-in for Nacos 1.x that knows every service. One service changes every second."""

    def __init__(self, instances: int, born: float) -> None:
        self._instances = instances
        self._born = born
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        for head in data.split(b"\r\n\r\n"):
            if head.startswith((b"GET", b"POST", b"PUT")):
                body = self._body(head.split(b" ", 2)[1].decode())
                reply = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                self._transport.write(reply.encode() + body)

    def _body(self, target: str) -> bytes:
        name = parse_qs(urlsplit(target).query).get("serviceName", ["x"])[0].rpartition("@@")[2]
        second = int(time.perf_counter() - self._born)
        hosts = _hosts(self._instances, 2 if name == SERVICE.format(second) else 1)
        return f'{{"name":"DEFAULT_GROUP@@{name}","clusters":"","hosts":{hosts}}}'.encode()


@lru_cache
def _hosts(number: int, weight: int) -> str:
    metadata = {"zone": "a", "version": "1.4.2"}
    hosts = [
        {"ip": f"10.7.{n // 250}.{n % 250 + 1}", "port": 8080, "weight": weight, "metadata": metadata}
        for n in range(number)
    ]
    return json.dumps(hosts)


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
    (busy, asked), *made = await asyncio.gather(
        _use(proxy, seconds),
        *(_reads(proxy.url, host, now + n / host.readers, now + seconds, n) for n in range(host.readers)),
    )
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
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Lists(host.instances, born), "127.0.0.1", 0)
    upstream = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    proxy = await asyncio.to_thread(contenders.proxy, upstream, "--upstream-dialect", "v1", "--push", "off")
    try:
        return {**await _measure(proxy, host, settle, seconds), "load": load}
    finally:
        await asyncio.to_thread(proxy.stop)
        with suppress(OSError):
            server.close()


def run(quick: bool, upstream: str | None, say: Callable[[str], None]) -> Iterator[tuple[Series, str, str]]:
    """Yields the series with its baseline and the figure that counts. The upstream is always a stand-in."""
    hosts, settle, seconds = (HOSTS[:1], 1.0, 3.0) if quick else (HOSTS, SETTLE, 20.0)
    series = Series(QUESTION)
    for host in hosts:
        figures = asyncio.run(_one(host, settle, seconds))
        series.add(Sample(host.name, figures))
        say(f"sizing, {host.name}: " + ", ".join(f"{name} {value:.1f}" for name, value in figures.items()))
    yield series, series.contenders[0], "cpu_percent"
