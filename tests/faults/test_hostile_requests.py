"""Requests with two meanings, and more of anything than one client may have.

Each test runs with and without the fast path.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.faults.load import until
from tests.helpers.app import Served, serving
from tests.helpers.fault import fault_proxy

HOST = b"Host: 127.0.0.1\r\n"
POST = b"POST /nacos/v1/ns/instance?serviceName=smuggled&ip=10.6.6.6&port=80 HTTP/1.1\r\n" + HOST
INNER = b"POST /nacos/v1/ns/instance?serviceName=inner&ip=10.6.6.6&port=80 HTTP/1.1\r\n" + HOST + b"\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
END = b"0\r\n\r\n"

# INNER follows each of these: a server that ends the request elsewhere would execute INNER.
SMUGGLED = {
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "two equal lengths": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "a list of lengths": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "a signed length": POST + b"Content-Length: +3\r\n\r\nabc",
    "a negative length": POST + b"Content-Length: -3\r\n\r\nabc",
    "a hexadecimal length": POST + b"Content-Length: 0x3\r\n\r\nabc",
    "an endless length": POST + b"Content-Length: 99999999999999999999999\r\n\r\nabc",
    "an empty length": POST + b"Content-Length: \r\n\r\nabc",
    "length and chunks": POST + b"Content-Length: 5\r\n" + CHUNKED + b"\r\n" + END,
    "chunks and length": POST + CHUNKED + b"Content-Length: 5\r\n\r\n" + END,
    "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n" + END,
    "chunked is not last": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n" + END,
    "two codings": POST + CHUNKED + b"Transfer-Encoding: identity\r\n\r\n" + END,
    "space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n" + END,
    "a vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + END,
    "a folded coding": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + END,
    "a folded length": POST + b"Content-Length:\r\n 3\r\n\r\nabc",
    "a folded field": POST + b"X-A: 1\r\n\t2\r\nContent-Length: 0\r\n\r\n",
    "a fold first": b"GET / HTTP/1.1\r\n " + HOST + b"\r\n",
    "a bare LF": POST + b"X-A: 1\nX-B: 2\r\nContent-Length: 0\r\n\r\n",
    "a bare CR": POST + b"X-A: 1\rX-B: 2\r\nContent-Length: 0\r\n\r\n",
    "a NUL": POST + b"X-A: 1\x002\r\nContent-Length: 0\r\n\r\n",
    "a space in a name": POST + b"X A: 1\r\nContent-Length: 0\r\n\r\n",
    "a chunk size that is none": POST + CHUNKED + b"\r\nzz\r\nabc\r\n" + END,
    "a signed chunk size": POST + CHUNKED + b"\r\n-1\r\nabc\r\n" + END,
    "a prefixed chunk size": POST + CHUNKED + b"\r\n0x3\r\nabc\r\n" + END,
    "an endless chunk size": POST + CHUNKED + b"\r\nfffffffffffffffff\r\nabc\r\n" + END,
    "a chunk that is longer": POST + CHUNKED + b"\r\n3\r\nabcd\r\n" + END,
    "chunks by LF": POST + CHUNKED + b"\r\n3\nabc\n0\n\n",
    "an extension by LF": POST + CHUNKED + b"\r\n3;a\nabc\r\n" + END,
    "two hosts": b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n",
    "an unknown version": b"GET /healthz HTTP/1.9\r\n" + HOST + b"\r\n",
}


@pytest.fixture(params=[True, False], ids=["fast-path", "plain"])
async def proxy(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    limits = {"max_head": 4096, "max_body": 10_000, "max_connections": 8, "subscribers_per_client": 3}
    async with serving(fast_path=request.param, services_per_client=5, cache_max_unknown=100, **limits) as served:
        yield served


async def say(proxy: Served, data: bytes) -> bytes:
    """Returns everything the server sends until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy.url.rpartition(":")[2]))
    try:
        writer.write(data)
        writer.write_eof()
        return await asyncio.wait_for(reader.read(), 60)
    except OSError:
        return b""
    finally:
        writer.transport.abort()


async def names(proxy: Served) -> list[str]:
    services: list[str] = (await proxy.http.get("/api/v1/services")).json()["services"]
    return services


@pytest.mark.parametrize("case", SMUGGLED)
async def test_smuggled_request_is_refused_and_nothing_after_it_runs(
    case: str, proxy: Served, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await say(proxy, SMUGGLED[case] + INNER)
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert await names(proxy) == []
    assert "Traceback" not in caplog.text


JAVA = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\nUpgrade: h2c\r\n"


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("pieces", [1, 3])
async def test_upgrade_request_has_its_body_read_and_not_run(pieces: int, framing: str, proxy: Served) -> None:
    form = b"serviceName=java&ip=10.0.0.1&port=80&metadata=" + INNER.replace(b"&", b"%26")
    kind = b"Content-Type: application/x-www-form-urlencoded\r\n"
    head = b"POST /nacos/v1/ns/instance HTTP/1.1\r\n" + HOST + JAVA + kind
    if framing == "length":
        data = head + b"Content-Length: %d\r\n\r\n" % len(form) + form
    else:
        data = head + CHUNKED + b"\r\n%x\r\n%b\r\n" % (len(form), form) + END
    data += b"GET /healthz HTTP/1.1\r\n" + HOST + JAVA + b"\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy.url.rpartition(":")[2]))
    size = -(-len(data) // pieces)
    for at in range(0, len(data), size):
        writer.write(data[at : at + size])
        await writer.drain()
    answer = b""
    while b'"status":"ok"' not in answer and (more := await asyncio.wait_for(reader.read(65536), 60)):
        answer += more
    writer.transport.abort()
    assert answer.count(b"HTTP/1.1 ") == 2 and answer.endswith(b'{"status":"ok"}')
    assert "inner" not in await names(proxy) and "smuggled" not in await names(proxy)


async def test_http_1_0_event_stream_is_plain_and_ends_with_the_connection(proxy: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy.url.rpartition(":")[2]))
    writer.write(b"GET /api/v1/events?service=a HTTP/1.0\r\n" + HOST + b"\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"\r\nconnection: close\r\n" in head and b"transfer-encoding" not in head
    assert (await reader.readuntil(b"\n\n")).startswith(b"retry: ")
    assert (await reader.readuntil(b"\n\n")).startswith(b"id: ")
    proxy.components.events.close()
    assert (await asyncio.wait_for(reader.read(), 60)).endswith(b"\n\n")
    writer.transport.abort()


async def test_garbage_after_a_request_ends_the_connection(proxy: Served) -> None:
    answer = await say(proxy, b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n\0\1\2" + INNER)
    assert answer.startswith(b"HTTP/1.1 200 ") and b"\r\nconnection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1 ") == 1, "nothing behind it is a request"
    assert await names(proxy) == []


async def test_max_head_refuses_a_larger_head(proxy: Served) -> None:
    answer = await say(proxy, b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 5000 + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("path", ["/nacos/v1/ns/instance", "/nacos/v2/ns/instance", "/api/v1/services/a/instances"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_max_body_refuses_a_larger_body(path: str, framing: str, proxy: Served) -> None:
    head = f"POST {path} HTTP/1.1\r\n".encode() + HOST + b"Content-Type: application/json\r\nConnection: close\r\n"
    if framing == "length":
        data = head + b"Content-Length: 20000\r\n\r\n" + b"a" * 20_000
    else:
        data = head + CHUNKED + b"\r\n" + b"400\r\n" + (b"a" * 1024 + b"\r\n400\r\n") * 19 + b"a" * 1024 + b"\r\n" + END
    answer = await say(proxy, data)
    assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 413"), answer


async def test_max_connections_refuses_one_more_until_one_ends(proxy: Served) -> None:
    port = int(proxy.url.rpartition(":")[2])
    await proxy.http.aclose()
    held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
    for reader, writer in held:
        writer.write(b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
    writer.transport.abort()
    for _, writer in held:
        writer.transport.abort()
    answer = b""
    for _ in range(100):
        answer = await say(proxy, b"GET /healthz HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        if answer.startswith(b"HTTP/1.1 200 "):
            break
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_subscribers_per_client_refuses_one_more_and_keeps_the_others(proxy: Served) -> None:
    port = int(proxy.url.rpartition(":")[2])
    request = b"GET /api/v1/events?service=a HTTP/1.1\r\n" + HOST + b"\r\n"
    streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
    for reader, writer in streams:
        writer.write(request)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    assert (await proxy.http.get("/api/v1/events?service=a")).status_code == 429
    assert proxy.components.events.readers == 3
    for _, writer in streams:
        writer.transport.abort()
    await until(lambda: proxy.components.events.readers == 0, "the streams are gone")


async def test_services_per_client_refuses_one_more(proxy: Served) -> None:
    query = "&".join(f"service=s{n}" for n in range(6))
    assert (await proxy.http.get(f"/api/v1/events?{query}")).status_code == 400


async def test_cache_max_unknown_keeps_real_services_and_polls_no_unknown_one(proxy: Served) -> None:
    real = {"serviceName": "real", "ip": "10.0.0.1", "port": "80"}
    assert (await proxy.http.post("/nacos/v1/ns/instance", params=real)).text == "ok"
    agent = proxy.components.agent
    for n in range(500):
        reply = await proxy.http.get(f"/nacos/v1/ns/instance/list?serviceName=unknown-{n}")
        assert reply.status_code == 200
    assert len(agent.catalog.cache) <= 101 + 5
    assert [key.name for key in agent.catalog.cache.watched_keys()] == ["real"]
    assert len((await proxy.http.get("/nacos/v1/ns/instance/list?serviceName=real")).json()["hosts"]) == 1


async def test_unknown_services_wait_together_for_a_silent_upstream() -> None:
    async with (
        fault_proxy(1) as relay,
        serving(upstream=relay.url, upstream_timeout=0.2, cold_wait=0.3, cache_max_unknown=40) as proxy,
    ):
        await relay.set("blackhole")
        replies = await asyncio.gather(
            *(proxy.http.get(f"/nacos/v1/ns/instance/list?serviceName=unknown-{n}") for n in range(80))
        )
        assert {reply.status_code for reply in replies} <= {500, 502, 503, 504}
        assert len(proxy.components.agent.catalog.cache) <= 40
