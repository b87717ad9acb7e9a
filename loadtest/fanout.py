"""One change to many event streams: the time from publishing to the first, the median and the last reader."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable, Iterator

from loadtest import contenders, nginx
from loadtest.contenders import Contender, Missing, register
from loadtest.load import Usage
from loadtest.rounds import Sample, Series, interleave
from loadtest.wire import Connection, close_streams, open_streams, percentile

SERVICE = "loadtest-fan"


def _target(contender: Contender) -> str:
    return f"/sub?id={SERVICE}" if contender.name == "nchan" else f"/api/v1/events?service={SERVICE}"


async def _publish(contender: Contender, connection: Connection, number: int, body: bytes) -> None:
    if contender.name == "nchan":
        await connection.ask("POST", f"/pub?id={SERVICE}", body.replace(b"MARK", b"mark-%d-" % number))
        return
    query = f"serviceName={SERVICE}&ip=10.4.0.1&port=80&ephemeral=false&metadata=m%3Dmark-{number}-"
    status, answer = await connection.ask("POST", f"/nacos/v1/ns/instance?{query}")
    if status != 200:
        raise RuntimeError(f"publishing failed: {status} {answer!r}")


async def _measure(contender: Contender, readers: int, events: int, body: bytes) -> dict[str, float]:
    state = {"needle": b"", "left": 0}
    moments: list[float] = []
    done = asyncio.Event()

    def seen(moment: float) -> None:
        moments.append(moment)
        state["left"] = int(state["left"]) - 1  # type: ignore[call-overload]
        if state["left"] == 0:
            done.set()

    before = Usage(contender.process.pid).resident()
    waiting = [] if contender.name != "nchan" else [Connection(contender.url)]
    for connection in waiting:
        await _publish(contender, connection, 0, body)
    streams = await open_streams(contender.url, _target(contender), readers, lambda: bytes(state["needle"]), seen)  # type: ignore[call-overload]
    memory = Usage(contender.process.pid).resident() - before
    publisher = waiting[0] if waiting else Connection(contender.url)
    first: list[float] = []
    median: list[float] = []
    last: list[float] = []
    try:
        for number in range(1, events + 1):
            await asyncio.sleep(0.3)
            state.update(needle=b"mark-%d-" % number, left=readers)
            moments.clear()
            done.clear()
            begun = time.perf_counter()
            await _publish(contender, publisher, number, body)
            await asyncio.wait_for(done.wait(), 30)
            taken = [1000 * (moment - begun) for moment in moments]
            first.append(min(taken))
            median.append(percentile(taken, 0.5))
            last.append(max(taken))
    finally:
        close_streams(streams)
        await publisher.close()
    figures = {
        "last_ms": percentile(last, 0.5),
        "median_ms": percentile(median, 0.5),
        "first_ms": percentile(first, 0.5),
    }
    return {**figures, "kib_per_reader": 1024 * memory / readers}


def run(quick: bool, upstream: str | None, say: Callable[[str], None]) -> Iterator[tuple[Series, str, str]]:
    """Yields each question's series with its baseline and the figure that counts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))
    sizes, rounds, events = ((200,), 1, 3) if quick else ((1_000, 5_000, 10_000), 3, 5)
    try:
        for readers in sizes:
            series = Series(f"fanout, {readers} readers")
            for number, name in interleave(["nchan", "nacos-proxy"], rounds):
                try:
                    contender = nginx.nchan() if name == "nchan" else _proxy()
                except Missing as error:
                    say(f"left out: {error}")
                    continue
                with contenders.running(contender):
                    body = b'{"hosts":[{"ip":"10.4.0.1","metadata":{"m":"MARK"}}],"pad":"' + b"x" * 800 + b'"}'
                    figures = asyncio.run(_measure(contender, readers, events, body))
                series.add(Sample(name, figures))
                say(f"{series.question}, round {number + 1}, {name}: last {figures['last_ms']:.1f} ms")
            yield series, "nchan", "last_ms"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _proxy() -> Contender:
    contender = contenders.proxy("embedded", "--subscribers-per-client", "20000", "--max-connections", "30000")
    register(contender.url, SERVICE, 1)
    return contender
