"""The first read of a cold service by 100 callers at once: its latency, and how many requests reach the upstream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

from loadtest import contenders
from loadtest.contenders import LIST, Missing, register_all
from loadtest.rounds import Sample, Series
from loadtest.wire import Connection, percentile

CALLERS = 100


class Counter(asyncio.Protocol):
    """A stand-in upstream that counts its requests and answers after 20 ms, so that the callers really coincide."""

    asked: dict[bytes, int]

    def __init__(self, asked: dict[bytes, int], body: bytes) -> None:
        self._asked = asked
        self._body = body
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for head in data.split(b"\r\n\r\n"):
            if not head.startswith((b"GET", b"POST", b"PUT")):
                continue
            target = head.split(b" ", 2)[1]
            self._asked[target] = self._asked.get(target, 0) + 1
            asyncio.get_running_loop().call_later(0.02, self._answer)

    def _answer(self) -> None:
        assert self._transport is not None
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(self._body)}\r\n\r\n"
        self._transport.write(head.encode() + self._body)


async def _storm(url: str, target: str) -> list[float]:
    connections = [Connection(url) for _ in range(CALLERS)]
    for connection in connections:
        await connection.ask("GET", "/healthz")

    async def one(connection: Connection) -> float:
        begun = time.perf_counter()
        status, _ = await connection.ask("GET", target)
        if status != 200:
            raise RuntimeError(f"{target} answered {status}")
        return 1000 * (time.perf_counter() - begun)

    taken = await asyncio.gather(*(one(connection) for connection in connections))
    for connection in connections:
        await connection.close()
    return list(taken)


async def _counted(rounds: int, say: Callable[[str], None]) -> Series:
    asked: dict[bytes, int] = {}
    body = b'{"name":"DEFAULT_GROUP@@x","groupName":"DEFAULT_GROUP","clusters":"","hosts":[]}'
    server = await asyncio.get_running_loop().create_server(lambda: Counter(asked, body), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    proxy = await asyncio.to_thread(contenders.proxy, f"http://127.0.0.1:{port}", "--upstream-dialect", "v1")
    series = Series("misses, 100 callers at once on a counting upstream")
    try:
        for number in range(rounds):
            name = f"cold-{number}"
            taken = await _storm(proxy.url, LIST + name)
            requests = sum(count for target, count in asked.items() if name.encode() in target and b"/list" in target)
            figures = {
                "upstream_requests": float(requests),
                "p50": percentile(taken, 0.5),
                "p99": percentile(taken, 0.99),
            }
            series.add(Sample(proxy.name, figures))
            say(f"misses, round {number + 1}: {requests} upstream requests for {CALLERS} callers")
    finally:
        proxy.stop()
        server.close()
    return series


async def _real(quick: bool, upstream: str, field: list[contenders.Contender], say: Callable[[str], None]) -> Series:
    series = Series("misses, first read of a cold service")
    await asyncio.to_thread(register_all, upstream, [f"loadtest-cold-{n}" for n in range(3 if quick else 10)], 10)
    for number in range(3 if quick else 10):
        for contender in field:
            connection = Connection(contender.url)
            await connection.ask("GET", LIST + "warm")
            begun = time.perf_counter()
            await connection.ask("GET", f"{LIST}loadtest-cold-{number}")
            series.add(Sample(contender.name, {"latency": 1000 * (time.perf_counter() - begun)}))
            await connection.close()
    say("misses: first reads done")
    return series


def run(quick: bool, upstream: str | None, say: Callable[[str], None]) -> Iterator[tuple[Series, str, str]]:
    """Yields each question's series with its baseline and the figure that counts."""
    series = asyncio.run(_counted(3 if quick else 10, say))
    yield series, series.contenders[0], "upstream_requests"
    started: list[contenders.Contender] = []
    try:
        if upstream is None:
            started.append(contenders.rnacos())
        url = upstream or started[0].url
        try:
            started.append(contenders.nginx(url))
        except Missing as error:
            say(f"left out: {error}")
        started.append(contenders.proxy(url))
        yield asyncio.run(_real(quick, url, started, say)), started[0].name, "latency"
    finally:
        for contender in started:
            contender.stop()
