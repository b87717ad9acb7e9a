"""Which transport carries a call to the upstream, by calls per second on one core: `python -m loadtest.transports`.

Each contender calls a trivial server on loopback (a process of its own) from one event loop, including httpx's Request.
`rate` is calls per second, `cpu` microseconds of this process per call, `p50` and `p99` the latency in ms. It ends
after about two minutes, with `--quick` after about twenty seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import cast

import aiohttp
import httpx
import httpx_aiohttp
import uvloop

from loadtest.report import table
from loadtest.rounds import Sample, Series, interleave
from loadtest.wire import percentile
from nacos_proxy.upstream.http.transport import FastTransport, TransportPolicy

HOST = (
    b'{"instanceId":"10.0.0.%d#80#DEFAULT#DEFAULT_GROUP@@a","ip":"10.0.0.%d","port":80,"weight":1.0,"healthy":true,'
    b'"enabled":true,"ephemeral":true,"clusterName":"DEFAULT","serviceName":"DEFAULT_GROUP@@a","metadata":{},'
    b'"instanceHeartBeatInterval":5000,"instanceHeartBeatTimeOut":15000,"ipDeleteTimeout":30000}'
)
LIST = b'{"name":"DEFAULT_GROUP@@a","hosts":[%b]}' % b",".join(HOST % (n, n) for n in range(10))
TARGET = "/nacos/v1/ns/instance/list?serviceName=DEFAULT_GROUP%40%40a&namespaceId=public"
FORM = b"serviceName=DEFAULT_GROUP%40%40a&ip=10.0.0.1&port=80&namespaceId=public&ephemeral=true"

Ask = Callable[[], Awaitable[bytes]]


class Trivial(asyncio.Protocol):
    """Answers each packet with the list (GET) or `ok`; it does not parse."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._held = b""

    def data_received(self, data: bytes) -> None:
        self._held += data
        head, separator, body = self._held.partition(b"\r\n\r\n")
        if not separator or (head.startswith(b"POST") and len(body) < len(FORM)):
            return
        self._held = b""
        answer, kind = (LIST, b"application/json") if head.startswith(b"GET") else (b"ok", b"text/plain;charset=UTF-8")
        lines = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (kind, len(answer))
        self._transport.write(lines + answer)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Trivial, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def _client(transport: httpx.AsyncBaseTransport, url: str, method: str) -> tuple[Ask, Callable[[], Awaitable[None]]]:
    client = httpx.AsyncClient(transport=transport, trust_env=False)
    content = FORM if method == "POST" else None

    async def ask() -> bytes:
        return (await client.request(method, url, content=content)).content

    return ask, client.aclose


def default(url: str, method: str) -> tuple[Ask, Callable[[], Awaitable[None]]]:
    return _client(httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=64)), url, method)


def over_aiohttp(url: str, method: str) -> tuple[Ask, Callable[[], Awaitable[None]]]:
    return _client(httpx_aiohttp.AiohttpTransport(limits=httpx.Limits(max_connections=64)), url, method)


def over_fast(url: str, method: str) -> tuple[Ask, Callable[[], Awaitable[None]]]:
    return _client(FastTransport(TransportPolicy(connections=64)), url, method)


def fast(url: str, method: str) -> tuple[Ask, Callable[[], Awaitable[None]]]:
    """What `upstream/http` does: no client; the transport gets a prepared request."""
    transport = FastTransport(TransportPolicy(connections=64))
    timeout = {"connect": 1.0, "read": None, "write": 5.0, "pool": 5.0}
    content = FORM if method == "POST" else None

    async def ask() -> bytes:
        request = httpx.Request(method, url, content=content, extensions={"timeout": timeout, "total": 5.0})
        response = await transport.handle_async_request(request)
        return await response.aread()

    return ask, transport.aclose


def bare_aiohttp(url: str, method: str) -> tuple[Ask, Callable[[], Awaitable[None]]]:
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64))
    content = FORM if method == "POST" else None

    async def ask() -> bytes:
        async with session.request(method, url, data=content) as response:
            return await response.read()

    return ask, session.close


CONTENDERS = {
    "httpx, its own transport": default,
    "httpx on httpx-aiohttp": over_aiohttp,
    "httpx on ours": over_fast,
    "ours, called directly": fast,
    "aiohttp bare": bare_aiohttp,
}


async def _run(name: str, port: int, method: str, callers: int, seconds: float) -> Sample:
    ask, close = CONTENDERS[name](
        f"http://127.0.0.1:{port}{TARGET if method == 'GET' else '/nacos/v1/ns/instance'}", method
    )
    expected = LIST if method == "GET" else b"ok"
    latencies: list[float] = []

    async def caller(end: float) -> None:
        while (begin := time.perf_counter()) < end:
            if await ask() != expected:
                raise AssertionError(f"{name} got another answer")
            latencies.append(time.perf_counter() - begin)

    try:
        await asyncio.gather(*(caller(time.perf_counter() + seconds / 5) for _ in range(callers)))
        latencies.clear()
        begin, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(caller(begin + seconds) for _ in range(callers)))
        took, used = time.perf_counter() - begin, time.process_time() - cpu
    finally:
        await close()
    calls = len(latencies)
    figures = {"rate": calls / took, "cpu": used / calls * 1e6, "a core": calls / used}
    figures |= {"p50": percentile(latencies, 0.5) * 1e3, "p99": percentile(latencies, 0.99) * 1e3}
    return Sample(name, figures)


def main() -> int:
    parser = argparse.ArgumentParser("loadtest.transports", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--server", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.server:
        uvloop.run(serve())
        return 0
    rounds, seconds = (1, 0.6) if options.quick else (3, 2.0)
    command = [sys.executable, "-m", "loadtest.transports", "--server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            for method in ("GET", "POST"):
                for callers in (1, 32):
                    series = Series(f"{method}, {callers} callers")
                    for _, name in interleave(list(CONTENDERS), rounds):
                        series.add(uvloop.run(_run(name, port, method, callers, seconds)))
                    print(f"\n## {series.question}\n\n{table(series, 'httpx, its own transport')}", flush=True)
        finally:
            server.terminate()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
