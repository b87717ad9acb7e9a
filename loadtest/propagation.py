"""The time to the event at a reader: from a change at the upstream, by polling and by push, and from an own write."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

from loadtest import contenders
from loadtest.contenders import Contender, register
from loadtest.rounds import Sample, Series
from loadtest.wire import Connection, close_streams, open_streams, percentile

SERVICE = "loadtest-prop"


async def _measure(reader_url: str, writer_url: str, times: int, pause: float) -> list[float]:
    state = {"needle": b""}
    arrived: asyncio.Queue[float] = asyncio.Queue()
    streams = await open_streams(
        reader_url, f"/api/v1/events?service={SERVICE}", 1, lambda: state["needle"], arrived.put_nowait
    )
    writer = Connection(writer_url)
    taken: list[float] = []
    try:
        for number in range(times):
            await asyncio.sleep(pause)
            state["needle"] = b"mark-%d-" % number
            query = f"serviceName={SERVICE}&ip=10.5.0.1&port=80&ephemeral=false&metadata=m%3Dmark-{number}-"
            begun = time.perf_counter()
            await writer.ask("POST", f"/nacos/v1/ns/instance?{query}")
            moment = await asyncio.wait_for(arrived.get(), 40)
            taken.append(1000 * (moment - begun))
    finally:
        close_streams(streams)
        await writer.close()
    return taken


def run(quick: bool, upstream: str | None, say: Callable[[str], None]) -> Iterator[tuple[Series, str, str]]:
    """Yields each question's series with its baseline and the figure that counts."""
    few, many = (3, 20) if quick else (20, 500)
    server = contenders.rnacos() if upstream is None else None
    url = upstream or (server.url if server else "")
    series = Series("propagation, change to event")
    try:
        register(url, SERVICE, 1)
        for name, push in (("poll", "off"), ("push", "on")):
            try:
                contender = contenders.proxy(url, "--push", push)
            except RuntimeError as error:
                say(f"left out: {name}: {error}")
                continue
            with contenders.running(contender):
                _sample(series, f"{name}, change past the proxy", contender, url, few, 0.3, say)
                if push == "off":
                    _sample(series, "own write", contender, contender.url, many, 0.01, say)
        yield series, series.contenders[0], "p50_ms"
    finally:
        if server is not None:
            server.stop()


def _sample(series: Series, name: str, reader: Contender, writer: str, times: int, pause: float,
            say: Callable[[str], None]) -> None:  # fmt: skip
    taken = asyncio.run(_measure(reader.url, writer, times, pause))
    figures = {"p50_ms": percentile(taken, 0.5), "p99_ms": percentile(taken, 0.99), "most_ms": max(taken)}
    series.add(Sample(name, figures))
    say(f"{name}: p50 {figures['p50_ms']:.1f} ms, p99 {figures['p99_ms']:.1f} ms, most {figures['most_ms']:.1f} ms")
