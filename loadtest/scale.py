"""10 to 5,000 watched services: CPU, memory and upstream requests of an idle proxy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

from loadtest import contenders
from loadtest.contenders import LIST, Contender
from loadtest.load import Usage
from loadtest.rounds import Sample, Series
from loadtest.wire import Connection, at_once

SIZES = (10, 100, 1_000, 5_000)
SETTLE = 12.0  # longer than two polls; from then on every service is polled as rarely as push allows
PUSH_WITHIN = 120.0
FETCHES = "nacos_proxy_fetches_total"


async def _register(url: str, numbers: range) -> None:
    query = "serviceName=loadtest-s{}&ip=10.6.{}.1&port=80&ephemeral=false"
    targets = [f"/nacos/v1/ns/instance?{query.format(n, i)}" for n in numbers for i in range(10)]
    await at_once(url, [("POST", target) for target in targets])


async def _metric(proxy: str, name: str) -> float:
    connection = Connection(proxy)
    _, body = await connection.ask("GET", "/metrics")
    await connection.close()
    rows = (line.split() for line in body.decode().splitlines() if line.startswith(name))
    return sum(float(row[-1]) for row in rows)


async def _ready(proxy: str, number: int, push: bool) -> None:
    """Waits until all services are watched and push, if on, is alive."""
    await at_once(proxy, [("GET", f"{LIST}loadtest-s{n}") for n in range(number)])
    until = time.perf_counter() + PUSH_WITHIN
    while push and not await _metric(proxy, "nacos_proxy_push_up"):
        if time.perf_counter() > until:
            raise RuntimeError("push did not come alive")
        await asyncio.sleep(0.5)


async def _measure(contender: Contender, number: int, push: bool, settle: float, seconds: float) -> dict[str, float]:
    url = contender.url
    await _ready(url, number, push)
    await asyncio.sleep(settle)
    usage, asked, begun = Usage(contender.process.pid), await _metric(url, FETCHES), time.perf_counter()
    await asyncio.sleep(seconds)
    elapsed = time.perf_counter() - begun
    cpu = 100 * usage.cpu_seconds() / elapsed
    polls = (await _metric(url, FETCHES) - asked) / elapsed
    return {"cpu_percent": cpu, "memory": usage.figures(1)["memory"], "upstream_a_second": polls}


def run(quick: bool, upstream: str | None, say: Callable[[str], None]) -> Iterator[tuple[Series, str, str]]:
    """Yields each question's series with its baseline and the figure that counts."""
    sizes, settle, seconds = ((10, 100), 1.0, 3.0) if quick else (SIZES, SETTLE, 30.0)
    server = contenders.rnacos() if upstream is None else None
    url = upstream or (server.url if server else "")
    registered = 0
    try:
        for push in ("off", "on"):
            series = Series(f"scale, watched services, push {push}")
            for number in sizes:
                asyncio.run(_register(url, range(registered, number)))
                registered = max(registered, number)
                try:
                    with contenders.running(contender := contenders.proxy(url, "--push", push)):
                        figures = asyncio.run(_measure(contender, number, push == "on", settle, seconds))
                except RuntimeError as error:
                    say(f"left out: push {push}, {number} services: {error}")
                    continue
                series.add(Sample(f"{number} services", figures))
                say(f"{series.question}, {number}: " + ", ".join(f"{k} {v:.1f}" for k, v in figures.items()))
            if series.samples:
                yield series, series.contenders[0], "cpu_percent"
    finally:
        if server is not None:
            server.stop()
