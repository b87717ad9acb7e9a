"""10 to 5,000 watched services: what an idle proxy costs in CPU and memory, and what it asks of the upstream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

from loadtest import contenders
from loadtest.contenders import LIST
from loadtest.load import Usage
from loadtest.rounds import Sample, Series
from loadtest.wire import Connection

SIZES = (10, 100, 1_000, 5_000)


async def _prepare(url: str, proxy: str, number: int) -> None:
    direct, through = Connection(url), Connection(proxy)
    for n in range(number):
        for i in range(10):
            query = f"serviceName=loadtest-s{n}&ip=10.6.{i}.1&port=80&ephemeral=false"
            await direct.ask("POST", f"/nacos/v1/ns/instance?{query}")
        await through.ask("GET", f"{LIST}loadtest-s{n}")
    await direct.close()
    await through.close()


async def _polls(proxy: str) -> float:
    connection = Connection(proxy)
    _, body = await connection.ask("GET", "/metrics")
    await connection.close()
    rows = (line.split() for line in body.decode().splitlines() if line.startswith("nacos_proxy_fetches_total"))
    return sum(float(row[-1]) for row in rows)


def run(quick: bool, upstream: str | None, say: Callable[[str], None]) -> Iterator[tuple[Series, str, str]]:
    """Yields each question's series with its baseline and the figure that counts."""
    sizes, seconds = ((10, 100), 5.0) if quick else (SIZES, 20.0)
    server = contenders.rnacos() if upstream is None else None
    url = upstream or (server.url if server else "")
    try:
        for push in ("off", "on"):
            series = Series(f"scale, watched services, push {push}")
            for number in sizes:
                with contenders.running(contender := contenders.proxy(url, "--push", push)):
                    asyncio.run(_prepare(url, contender.url, number))
                    asyncio.run(_settle(8.0))
                    usage, asked, begun = (
                        Usage(contender.process.pid),
                        asyncio.run(_polls(contender.url)),
                        time.perf_counter(),
                    )
                    asyncio.run(_settle(seconds))
                    elapsed = time.perf_counter() - begun
                    polls = asyncio.run(_polls(contender.url)) - asked
                    memory = usage.figures(1)["memory"]
                    cpu = 100 * usage.cpu_seconds() / elapsed
                figures = {"cpu_percent": cpu, "memory": memory, "upstream_a_second": polls / elapsed}
                series.add(Sample(f"{number} services", figures))
                say(
                    f"scale, push {push}, {number} services: {cpu:.1f} % of a core, {memory:.0f} MiB, {polls / elapsed:.0f}/s"
                )
            yield series, series.contenders[0], "cpu_percent"
    finally:
        if server is not None:
            server.stop()


async def _settle(seconds: float) -> None:
    await asyncio.sleep(seconds)
