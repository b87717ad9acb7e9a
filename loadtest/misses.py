"""First reads of services: what one caller waits, and how many requests of 100 callers reach the upstream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence

from loadtest import contenders, nginx
from loadtest.contenders import LIST, Contender, Missing, register_all
from loadtest.rounds import Sample, Series, interleave
from loadtest.stand_in import StandIn, hosts
from loadtest.wire import Caller, Connection, percentile

CALLERS = 100


async def _storm(url: str, target: str) -> list[float]:
    connections = [Connection(url) for _ in range(CALLERS)]
    for connection in connections:
        await connection.ask("GET", "/healthz")

    async def one(connection: Connection) -> float:
        begun = time.perf_counter()
        status, answer = await connection.ask("GET", target)
        if status != 200:
            raise RuntimeError(f"{target} answered {status}: {answer!r}")
        return 1000 * (time.perf_counter() - begun)

    taken = await asyncio.gather(*(one(connection) for connection in connections))
    for connection in connections:
        await connection.close()
    return list(taken)


async def _counted(rounds: int, say: Callable[[str], None]) -> Series:
    """The upstream answers after 20 ms, so that the callers really coincide."""
    series = Series("misses, 100 callers at once on a counting upstream")
    server = StandIn(lambda _: hosts(10), delay=0.02)
    async with server.serving() as upstream:
        proxy = await asyncio.to_thread(contenders.proxy, upstream, "--upstream-dialect", "v1")
        try:
            for number in range(rounds):
                taken = await _storm(proxy.url, f"{LIST}cold-{number}")
                requests = server.asked[f"cold-{number}"]
                latency = {"p50": percentile(taken, 0.5), "p99": percentile(taken, 0.99)}
                series.add(Sample(proxy.name, {"upstream_requests": float(requests), **latency}))
                say(f"misses, round {number + 1}: {requests} upstream requests for {CALLERS} callers")
        finally:
            await asyncio.to_thread(proxy.stop)
    return series


def _first_reads(url: str, services: Sequence[str]) -> dict[str, float]:
    """One caller on one open connection reads services that nobody has read: milliseconds."""
    caller = Caller(url)
    for _ in range(3):
        caller.get(LIST + "loadtest-warm")
    taken: list[float] = []
    for service in services:
        begun = time.perf_counter()
        caller.get(LIST + service)
        taken.append(1000 * (time.perf_counter() - begun))
    caller.close()
    return {"p50": percentile(taken, 0.5), "p99": percentile(taken, 0.99)}


def _cold(quick: bool, upstream: str, field: list[Contender], say: Callable[[str], None]) -> Series:
    """Each contender has services of its own in each round, because a server makes a first list, too."""
    number, rounds = (50, 2) if quick else (200, 5)
    series = Series("misses, first read of a cold service")
    for turn, name in interleave([contender.name for contender in field], rounds):
        contender = next(contender for contender in field if contender.name == name)
        services = [f"loadtest-cold-{turn}-{len(series.samples)}-{n}" for n in range(number)]
        register_all(upstream, services, 10)
        series.add(Sample(name, figures := _first_reads(contender.url, services)))
        say(f"{series.question}, round {turn + 1}, {name}: p50 {figures['p50']:.2f} ms, p99 {figures['p99']:.2f} ms")
    return series


def run(quick: bool, upstream: str | None, say: Callable[[str], None]) -> Iterator[tuple[Series, str, str]]:
    """Yields each question's series with its baseline and the figure that counts."""
    series = asyncio.run(_counted(3 if quick else 10, say))
    yield series, series.contenders[0], "upstream_requests"
    started: list[Contender] = []
    try:
        if upstream is None:
            started.append(contenders.rnacos())
        url = upstream or started[0].url
        try:
            started.append(nginx.cache(url))
        except Missing as error:
            say(f"left out: {error}")
        started.append(contenders.proxy(url))
        yield _cold(quick, url, started, say), started[0].name, "p50"
    finally:
        for contender in started:
            contender.stop()
