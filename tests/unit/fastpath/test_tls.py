"""Handshakes over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from uvicorn import Config

from proxy.fastpath.limits import ConnectionLimits, make_limited
from proxy.fastpath.protocol import make_protocol
from proxy.fastpath.tls import make_tls
from tests.helpers.app import running
from tests.unit.fastpath.drive import GET, Service

CERTIFICATES = Path(__file__).parents[2] / "certificates"
CLOSING = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


@asynccontextmanager
async def serving(fast: bool, patience: float = 10.0, connections: int = 3) -> AsyncIterator[int]:
    service, limits = Service(), ConnectionLimits(connections=connections, patience=patience)
    made = make_protocol(service.answers, service.clock, limits=limits) if fast else make_limited(limits)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATES / "server.pem")
    config = Config(service.app(), http=make_tls(made, context), lifespan="off", log_config=None, ws="none")
    async with running(config) as url:
        yield int(url.rpartition(":")[2])


async def ask(port: int) -> bytes:
    context = ssl.create_default_context(cafile=str(CERTIFICATES / "ca.pem"))
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    try:
        writer.write(CLOSING)
        return await reader.read()
    finally:
        writer.transport.abort()


@pytest.fixture(params=[True, False], ids=["fast-path", "plain"])
def fast(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def test_requests_are_answered_behind_a_handshake(fast: bool) -> None:
    async with serving(fast) as port:
        for _ in range(5):
            assert (await ask(port)).startswith(b"HTTP/1.1 200 ")


async def test_a_handshake_counts_as_a_connection_and_gives_its_place_back(fast: bool) -> None:
    async with serving(fast) as port:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.transport.abort()
        for _, other in silent:
            other.transport.abort()
        answer = b""
        while not answer:
            try:
                answer = await ask(port)
            except OSError:  # the server has not noticed yet that there is room
                continue
        assert answer.startswith(b"HTTP/1.1 200 ")


async def test_a_handshake_that_does_not_come_to_its_end_is_given_up(fast: bool) -> None:
    async with serving(fast, patience=0.05, connections=1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.transport.abort()


@pytest.mark.parametrize("said", [GET, b"\x16\x03\x01\x02\x00"])
async def test_what_is_no_tls_ends_and_gives_its_place_back(said: bytes, fast: bool) -> None:
    async with serving(fast, connections=1) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        writer.close()
        answer = b""
        while not answer:
            try:
                answer = await ask(port)
            except OSError:
                continue
        assert answer.startswith(b"HTTP/1.1 200 ")
