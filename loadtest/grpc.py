"""gRPC as SDKs speak it: queries, pushes to many subscribers, memory per session, and what sessions cost HTTP readers.

The change is written over HTTP to the same server, so it is known there at once.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import uvloop

from loadtest import contenders
from loadtest.contenders import LIST, Contender, Missing, register
from loadtest.grpc_wire import GrpcConnection, connected, each, naming
from loadtest.load import Usage, wrk
from loadtest.rounds import Sample, Series, interleave
from loadtest.wire import Connection, close_streams, open_streams, percentile

SERVICE = "loadtest-grpc"
OFFSET = 1000
QUERY = naming("ServiceQueryRequest", SERVICE, cluster="", healthyOnly=False, udpPort=0)
SUBSCRIBE = naming("SubscribeServiceRequest", SERVICE, subscribe=True, clusters="")
LIMITS = ("--subscribers-per-client", "20000", "--max-connections", "30000")


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", (parts.port or 80) + OFFSET


def _close(connections: list[GrpcConnection]) -> None:
    for connection in connections:
        connection.close()


async def queries(url: str, seconds: float, connections: int = 8, at_once: int = 4) -> dict[str, float]:
    """The rate and the latency (ms) of the same query from all connections, each with some under way."""
    sessions = await connected(*_place(url), connections)
    taken: list[float] = []
    until = time.perf_counter() + seconds
    left = connections * at_once
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ask(session: GrpcConnection) -> None:
        begun = time.perf_counter()

        def answered() -> None:
            nonlocal left
            now = time.perf_counter()
            taken.append(1000 * (now - begun))
            if now < until and session.transport is not None and not session.transport.is_closing():
                ask(session)
                return
            left -= 1
            if not left:
                done.set_result(None)

        session.ask(QUERY, answered)

    begun = time.perf_counter()
    for session in sessions:
        for _ in range(at_once):
            ask(session)
    await asyncio.wait_for(done, seconds + 30)
    passed = time.perf_counter() - begun
    requests, errors = sum(s.answered for s in sessions), sum(s.failed for s in sessions)
    _close(sessions)
    figures = {"rate": requests / passed, "p50": percentile(taken, 0.5), "p99": percentile(taken, 0.99)}
    return {**figures, "errors": float(errors), "requests": float(requests)}


async def _publish(connection: Connection, number: int) -> None:
    query = f"serviceName={SERVICE}&ip=10.1.0.1&port=8080&ephemeral=false&metadata=m%3Dmark-{number}-"
    status, answer = await connection.ask("POST", f"/nacos/v1/ns/instance?{query}")
    if status != 200:
        raise RuntimeError(f"publishing failed: {status} {answer!r}")


async def subscribers(contender: Contender, readers: int, events: int) -> dict[str, float]:
    """When the first, the median and the last of the subscribers hear of a change, and what a session costs."""
    needle = b""
    moments: list[float] = []
    done = asyncio.Event()

    def pushed(message: bytes, moment: float) -> None:
        if needle and needle in message:
            moments.append(moment)
            if len(moments) == readers:
                done.set()

    usage = Usage(contender.process.pid)
    await queries(contender.url, 0.2)  # what a first session needs once is not counted
    before = usage.resident()
    sessions = await connected(*_place(contender.url), readers, pushed)
    await asyncio.sleep(1)
    memory = usage.resident() - before
    await each(sessions, SUBSCRIBE)
    publisher = Connection(contender.url)
    rows: list[tuple[float, float, float]] = []
    try:
        for number in range(1, events + 1):
            await asyncio.sleep(1.5)
            needle = b"mark-%d-" % number
            moments.clear()
            done.clear()
            begun = time.perf_counter()
            await _publish(publisher, number)
            await asyncio.wait_for(done.wait(), 60)
            taken = [1000 * (moment - begun) for moment in moments]
            rows.append((max(taken), percentile(taken, 0.5), min(taken)))
    finally:
        _close(sessions)
        await publisher.close()
    last, median, first = ([row[n] for row in rows] for n in range(3))
    figures = {
        "last_ms": percentile(last, 0.5),
        "median_ms": percentile(median, 0.5),
        "first_ms": percentile(first, 0.5),
    }
    return {**figures, "most_ms": max(last), "kib_per_connection": 1024 * memory / readers}


async def to_event(server: str, proxy: str, times: int) -> list[dict[str, float]]:
    """A change at the server: when its own subscriber hears of it by gRPC, and how much later our SSE reader."""
    needle = b""
    pushed: asyncio.Queue[float] = asyncio.Queue()
    seen: asyncio.Queue[float] = asyncio.Queue()

    def hear(message: bytes, moment: float) -> None:
        if needle and needle in message:
            pushed.put_nowait(moment)

    sessions = await connected(*_place(server), 1, hear)
    await each(sessions, SUBSCRIBE)
    streams = await open_streams(proxy, f"/api/v1/events?service={SERVICE}", 1, lambda: needle, seen.put_nowait)
    writer = Connection(server)
    rows: list[dict[str, float]] = []
    try:
        for number in range(times):
            await asyncio.sleep(1.5)
            needle = b"mark-%d-" % (1000 + number)
            begun = time.perf_counter()
            await _publish(writer, 1000 + number)
            direct, ours = await asyncio.wait_for(asyncio.gather(pushed.get(), seen.get()), 40)
            rows.append({"added_ms": 1000 * (ours - direct), "push_ms": 1000 * (direct - begun)})
    finally:
        _close(sessions)
        close_streams(streams)
        await writer.close()
    return rows


def run(quick: bool, upstream: str | None, say: Callable[[str], None]) -> Iterator[tuple[Series, str, str]]:
    """Yields each question's series with its baseline and the figure that counts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))
    try:
        yield from _run(quick, upstream, say)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _run(quick: bool, upstream: str | None, say: Callable[[str], None]) -> Iterator[tuple[Series, str, str]]:
    seconds, rounds, readers, events = (2.0, 2, 200, 3) if quick else (5.0, 5, 1000, 5)
    try:
        server = contenders.rnacos()
    except Missing as error:
        if upstream is None:
            raise
        say(f"left out: {error}")
        server = None
    behind = upstream or (server.url if server else "")
    try:
        if server is not None:
            register(server.url, SERVICE, 10)
        if behind and (server is None or behind != server.url):
            register(behind, SERVICE, 10)
        proxy = contenders.proxy(behind, *LIMITS)
        with contenders.running(proxy):
            yield _queries(server, upstream, proxy, seconds, rounds, say), "r-nacos", "rate"
            yield _beside(proxy, seconds, rounds, say), "nacos-proxy", "rate"
            yield _to_event(behind, proxy, 3 if quick else 20, say), "nacos-proxy", "added_ms"
        series = Series(f"pushes over gRPC, {readers} subscribers")
        for number, name in interleave(["r-nacos", "nacos-proxy"], 1 if quick else 3):
            contender = contenders.proxy("embedded", *LIMITS) if name == "nacos-proxy" else contenders.rnacos()
            with contenders.running(contender):
                register(contender.url, SERVICE, 10)
                figures = uvloop.run(subscribers(contender, readers, events))
            series.add(Sample(name, figures))
            say(f"{series.question}, round {number + 1}, {name}: last {figures['last_ms']:.0f} ms, "
                f"{figures['kib_per_connection']:.1f} KiB per idle connection")  # fmt: skip
        yield series, "r-nacos", "last_ms"
    finally:
        if server is not None:
            server.stop()


def _queries(server: Contender | None, upstream: str | None, proxy: Contender, seconds: float, rounds: int,
             say: Callable[[str], None]) -> Series:  # fmt: skip
    """Side by side; the server behind `upstream` is none of our processes, so it has no figures of CPU and memory."""
    series = Series("queries over gRPC, a service of 10 hosts")
    field = {"nacos-proxy": (proxy.url, proxy)}
    if server is not None:
        field = {"r-nacos": (server.url, server), **field}
    urls: dict[str, tuple[str, Contender | None]] = dict(field)
    if upstream is not None:
        urls["the upstream"] = upstream, None
    for url, _ in urls.values():
        uvloop.run(queries(url, 1.0))
    for number, name in interleave(list(urls), rounds):
        url, contender = urls[name]
        usage = None if contender is None else Usage(contender.process.pid)
        figures = uvloop.run(queries(url, seconds))
        more = {} if usage is None else usage.figures(figures["requests"])
        series.add(Sample(name, {**figures, **more}))
        cpu = f", {more['cpu_s_per_1000']:.3f} CPU s per 1,000" if more else ""
        what = f"{figures['rate']:,.0f}/s{cpu}, {figures['errors']:.0f} errors"
        say(f"{series.question}, round {number + 1}, {name}: {what}")
    return series


def _beside(proxy: Contender, seconds: float, rounds: int, say: Callable[[str], None]) -> Series:
    """Hot HTTP reads, alone and with 100 gRPC sessions that subscribe and check their health as SDKs do."""
    series = Series("hot HTTP reads with 100 gRPC sessions")
    wrk(proxy.url + LIST + SERVICE, seconds=1.0)
    for number, name in interleave(["nacos-proxy", "nacos-proxy, 100 sessions"], rounds):
        if name == "nacos-proxy":
            figures = wrk(proxy.url + LIST + SERVICE, seconds=seconds)
        else:
            figures = uvloop.run(_with_sessions(proxy, seconds))
        series.add(Sample(name, figures))
        say(f"{series.question}, round {number + 1}, {name}: {figures['rate']:,.0f}/s, p99 {figures['p99']:.2f} ms")
    return series


async def _with_sessions(proxy: Contender, seconds: float) -> dict[str, float]:
    sessions = await connected(*_place(proxy.url), 100)
    await each(sessions, SUBSCRIBE)
    try:
        return await asyncio.to_thread(wrk, proxy.url + LIST + SERVICE, seconds=seconds)
    finally:
        _close(sessions)


def _to_event(server: str, proxy: Contender, times: int, say: Callable[[str], None]) -> Series:
    series = Series("events after gRPC push, change at the server to an SSE reader")
    for figures in asyncio.run(to_event(server, proxy.url, times)):
        series.add(Sample("nacos-proxy", figures))
    added = series.spread("nacos-proxy", "added_ms")
    assert added is not None
    say(f"{series.question}: {added.median:.1f} ms after the server's own push, most {added.most:.1f} ms")
    return series
