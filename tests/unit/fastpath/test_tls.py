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

from nacos_proxy.fastpath.limits import ConnectionLimits, make_limited
from nacos_proxy.fastpath.protocol import make_protocol
from nacos_proxy.fastpath.tls import make_tls
from tests.helpers.app import running
from tests.unit.fastpath.drive import GET, Service

CERTIFICATES = Path(__file__).parents[2] / "certificates"
HANGS = 60.0  # seconds
CLOSING = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


@asynccontextmanager
async def serving(fast: bool, patience: float = 10.0, connections: int = 3) -> AsyncIterator[int]:
    service, limits = Service(), ConnectionLimits(max_connections=connections, read_timeout=patience)
    made = make_protocol(service.table, service.clock, limits=limits) if fast else make_limited(limits)
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


@asynccontextmanager
async def connected(port: int, said: bytes = b"") -> AsyncIterator[asyncio.StreamReader]:
    """A connection over plain TCP, which is open until the test is done with it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(said)
        yield reader
    finally:
        writer.transport.abort()


async def ended(reader: asyncio.StreamReader) -> None:
    """The server ends the connection, and has said nothing in it."""
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), HANGS) == b""


async def asked_until_there_is_room(port: int) -> bytes:
    while True:
        try:
            if answer := await ask(port):
                return answer
        except OSError:  # the server has not noticed yet that there is room
            continue


@pytest.fixture(params=[True, False], ids=["fast-path", "plain"])
def fast(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def test_tls_answers_requests_after_the_handshake(fast: bool) -> None:
    async with serving(fast) as port:
        for _ in range(5):
            assert (await ask(port)).startswith(b"HTTP/1.1 200 ")


async def test_tls_counts_a_handshake_as_a_connection_until_it_ends(fast: bool) -> None:
    async with serving(fast, patience=1000.0) as port:  # the limit alone can end one
        async with contextlib.AsyncExitStack() as silent:
            for _ in range(3):
                await silent.enter_async_context(connected(port))
            async with connected(port) as fourth:
                await ended(fourth)
        assert (await asked_until_there_is_room(port)).startswith(b"HTTP/1.1 200 ")


async def test_tls_ends_a_handshake_that_takes_too_long(fast: bool) -> None:
    async with serving(fast, patience=0.05, connections=1) as port, connected(port) as silent:
        await ended(silent)


async def test_tls_ends_a_handshake_when_the_server_stops(fast: bool) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with serving(fast, patience=1000.0) as port:
            silent = await stack.enter_async_context(connected(port))
            await ask(port)  # which comes after the silent one
        await ended(silent)


@pytest.mark.parametrize(
    ("said", "patience"),
    [
        (GET, 1000.0),
        (b"\x16\x03\x01\x02\x00", 0.05),  # the head of a record: its rest may still come
    ],
)
async def test_tls_ends_a_connection_that_does_not_speak_tls(said: bytes, patience: float, fast: bool) -> None:
    async with serving(fast, patience, connections=1) as port, connected(port, said) as other:
        await ended(other)
        assert (await asked_until_there_is_room(port)).startswith(b"HTTP/1.1 200 ")
