"""Random bytes as answers of an upstream, through the whole proxy: no traceback, no hang, no invalid status."""

from __future__ import annotations

import asyncio
import gzip
import logging
import random
import tracemalloc
from functools import cache

import httpx
import orjson
import pytest

from tests.helpers.app import Served, serving
from tests.unit.upstream.stub import Request, Say, ok, say, stub

CASES = 1500
LIMIT = 20.0  # seconds within which a call must end

LIST = orjson.dumps({"name": "DEFAULT_GROUP@@a", "hosts": [], "cacheMillis": 10000, "lastRefTime": 1})
CALLS = (
    ("GET", "/nacos/v1/ns/instance/list?serviceName=%d"),
    ("POST", "/nacos/v1/ns/instance?serviceName=%d&ip=10.0.0.1&port=80&ephemeral=false"),
    ("PUT", "/nacos/v1/ns/instance/beat?serviceName=%d&ip=10.0.0.1&port=80"),
    ("GET", "/nacos/v1/ns/operator/metrics?%d"),
    ("GET", "/api/v1/services/%d"),
    ("GET", "/nacos/v1/cs/configs?dataId=%d&group=b"),
    ("HEAD", "/nacos/v1/cs/configs?dataId=%d&group=b"),
    ("POST", "/nacos/v1/auth/login?username=%d"),
)
VERSIONS = (b"HTTP/1.1",) * 40 + (b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/9.9", b"ICY", b"")
STATUSES = (
    (b"200",) * 60
    + tuple(
        b"000 001 099 1 20 2000 100 101 102 103 199 201 204 205 206 299 301 304 399 400 404 418 500 503 599 600 999 "
        b"700 -1 0x1 +200 2OO".split()
    )
    + (b"",)
)
REASONS = (b" OK",) * 20 + (b" ", b"", b"  ", b" \xff\xfe", b" \0", b" " + b"r" * 3000, b"\tOK")
ENDS = (b"\r\n",) * 30 + (b"\n", b"\r", b"")
FIELDS = (
    b"Content-Type: application/json",
    b"Content-Encoding: gzip",
    b"Content-Encoding: x-gzip",
    b"Content-Encoding: DEFLATE",
    b"Content-Encoding: br",
    b"Content-Encoding: zstd",
    b"Content-Encoding: gzip, gzip",
    b"Content-Encoding: identity",
    b"Content-Encoding: of-nobody",
    b"Transfer-Encoding: gzip",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: identity",
    b"Connection: close",
    b"Connection: keep-alive, content-length",
    b"Connection: upgrade\r\nUpgrade: h2c",
    b"Keep-Alive: timeout=0",
    b"Date: yesterday",
    b"Server: one\r\nServer: two",
    b"X-Odd: \xff\xfe=\x80",
    b"Location: //evil",
    b"Trailer: X",
    b"X:" + b"y" * 9000,
    b": no name",
    b"no colon",
    b" folded",
    b"X\0: y",
    b"X: y\0",
    b"\r\n".join([b"A: b"] * 300),
    b"\r\n".join([b"A:b"] * 3000),
)
LENGTHS = (b"0", b"1", b"-1", b"+2", b"2, 2", b"0x2", b"", b"99999999999999999999999", b"18446744073709551615", b"1e3")
SIZES = (b"%x", b"%x;ext=1", b"%X", b"-%x", b"0%x", b"fffffffffffffffff%x", b"%x;" + b"e" * 3000, b"%xg", b" %x")


@cache
def double_gzip(size: int) -> bytes:
    """`size` zeros, gzipped twice to some hundred bytes; built on demand, because packing holds them all in memory."""
    return gzip.compress(gzip.compress(bytes(size)))


@cache
def bodies() -> tuple[bytes, ...]:
    return (b"ok", LIST) * 5 + (b"", b"[" * 5000, b"<html>", double_gzip(32 << 20))


def framed(rng: random.Random, body: bytes) -> tuple[list[bytes], bytes]:
    """Right or wrong headers for the length of a body, and the bytes that follow."""
    match rng.choice((0, 0, 0, 0, 1, 2, 3, 3, 3)):
        case 0:
            return [b"Content-Length: %d" % len(body)], body
        case 1:
            return [b"Content-Length: " + rng.choice(LENGTHS)], body
        case 2:
            return rng.choice(([], [b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked"])), body
        case _:
            end = rng.choice(
                (b"0\r\n\r\n",) * 8 + (b"0\r\nT: x\r\n\r\n", b"0\r\n", b"", b"0\r\nContent-Length: 5\r\n\r\n")
            )
            size = rng.choice((SIZES[0],) * 20 + SIZES) % len(body)
            return [b"Transfer-Encoding: chunked"], size + b"\r\n" + body + b"\r\n" + end


def random_answer(rng: random.Random) -> Say:
    """A random answer, wrong in any part, cut into packets anywhere."""
    before = rng.choice((b"",) * 30 + (b"HTTP/1.1 100 Continue\r\n\r\n" * rng.choice((1, 9, 900)), b"\r\n\r\n", b"\0"))
    lengths, body = framed(rng, rng.choice(bodies()))
    fields = [*lengths, *rng.sample(FIELDS, rng.choice((0, 0, 0, 1, 3)))]
    rng.shuffle(fields)
    line = rng.choice(VERSIONS) + b" " + rng.choice(STATUSES) + rng.choice(REASONS)
    end = rng.choice(ENDS)
    data = before + end.join([line, *fields, b"", b""]) + body
    data += rng.choice((b"",) * 9 + (b"more", b"HTTP/1.1 500 Evil\r\n\r\n"))
    if rng.random() < 0.1:
        data = data[: rng.randrange(len(data) + 1)]
    cut = rng.randrange(len(data) + 1)
    return say(data[:cut], data[cut:], then=rng.choice(("close", "close", "keep", "abort", "hang")))


async def status_of(proxy: Served, method: str, target: str) -> int:
    """The status that the client got; 0 if a forwarded answer was cut short, as the upstream's was."""
    try:
        async with proxy.http.stream(method, target, headers={"accept-encoding": "identity"}) as reply:
            async for _ in reply.aiter_raw():
                pass
            return reply.status_code
    except httpx.RemoteProtocolError as error:
        assert "incomplete" in str(error) or "complete message body" in str(error), error
        return 0


@pytest.mark.timeout(600)
async def test_upstream_bytes_never_cause_a_traceback_or_a_hang(
    caplog: pytest.LogCaptureFixture, rng: random.Random
) -> None:
    said: Say = ok()
    settings = {"upstream_timeout": 0.1, "upstream_dialect": "v1", "cold_wait": 0.2, "breaker_failures": 1_000_000}
    seen: dict[int, int] = {}
    async with stub(lambda _: said) as upstream, serving(upstream=upstream.url, **settings) as proxy:
        for number in range(CASES):
            method, target = rng.choice(CALLS)
            said = random_answer(rng)
            passed = "/cs/" in target or "/auth/" in target
            if passed and said.then in ("hang", "keep"):  # a long poll may last: the client gives up, not the proxy
                said = say(*said.pieces, then="close")
            status = await asyncio.wait_for(status_of(proxy, method, target % number), LIMIT)
            case = f"case {number}: {method} {target} {said}"
            assert status == 0 or 200 <= status <= 599, case
            bad = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
            # A forwarded answer is sent as it arrives: if the upstream's is cut, so is ours. uvicorn then
            # closes the connection, as it should, and logs an error of the app.
            cut = ["ASGI callable returned without completing response."] if status == 0 else []
            assert bad == cut and (passed or status), f"{case}: {bad}"
            caplog.clear()
            seen[status] = seen.get(status, 0) + 1
    print(dict(sorted(seen.items())))
    assert seen[200] > CASES / 20 and seen[502] > CASES / 20, seen


@pytest.mark.parametrize("coding", [b"gzip, gzip", b"x-gzip", b"GZIP", b"deflate", b"br", b"zstd", b"other"])
async def test_upstream_compressed_answer_is_not_decoded(coding: bytes) -> None:
    bomb, field = double_gzip(256 << 20), b"Content-Encoding: " + coding
    async with stub(lambda _: ok(bomb, field)) as upstream, serving(upstream=upstream.url) as proxy:
        tracemalloc.start()
        try:
            for target in ("/nacos/v1/ns/instance/list?serviceName=a", "/api/v1/services/a"):
                refused = await proxy.http.get(target)
                assert refused.status_code == 503 and "the answer is compressed" in refused.text
            async with proxy.http.stream("GET", "/nacos/v1/cs/configs?dataId=a&group=b") as reply:
                assert b"".join([chunk async for chunk in reply.aiter_raw()]) == bomb
                assert reply.headers["content-encoding"] == coding.decode()
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("status", ["000", "099", "600", "999"])
@pytest.mark.parametrize(("method", "target"), [CALLS[1], CALLS[5], CALLS[7]])
async def test_upstream_invalid_status_is_answered_502(status: str, method: str, target: str) -> None:
    line = f"HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\nok".encode()

    def play(request: Request) -> Say:
        return say(line)

    async with stub(play) as upstream, serving(upstream=upstream.url, upstream_dialect="v1") as proxy:
        reply = await proxy.http.request(method, target % 1)
        assert reply.status_code == 502
        assert f"the answer has the invalid status {status}" in reply.text
