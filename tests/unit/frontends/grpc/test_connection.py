"""The reference gRPC (grpcio) as the client, and clients that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from hpack import Encoder

from nacos_proxy.frontends.grpc.connection import Budget, ServerConnection, make_accept
from nacos_proxy.transport.http2 import LOW_WATER, EndpointPolicy
from nacos_proxy.wire.http2 import PREFACE
from tests.helpers import frames
from tests.unit.fastpath.drive import KeptTransport

CERTIFICATES = Path(__file__).parents[3] / "certificates"
PATIENCE = 30.0


class Echo:
    """Answers with what it got, and pushes what came on the stream. `b"fail"` gets the status NOT_FOUND."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection
        self.ended: list[int] = []
        self.drains = 0
        self.was_lost = 0

    def unary(self, stream: int, message: bytes) -> None:
        if message == b"fail":
            self.connection.fail(stream, 5, "not there: é%")
        else:
            self.connection.answer(stream, b"echo " + message)

    def stream_message(self, stream: int, message: bytes) -> None:
        self.connection.push(stream, b"push " + message)

    def stream_ended(self, stream: int) -> None:
        self.ended.append(stream)
        self.connection.end(stream)

    def drained(self) -> None:
        self.drains += 1

    def lost(self) -> None:
        self.was_lost += 1


class Server:
    def __init__(self, budget: Budget | None = None) -> None:
        self.budget = budget or Budget()
        self.handlers: list[Echo] = []
        self.port = 0

    def make(self, connection: ServerConnection) -> Echo:
        self.handlers.append(Echo(connection))
        return self.handlers[-1]

    async def all_lost(self) -> None:
        while not all(handler.was_lost for handler in self.handlers):
            await asyncio.sleep(0)


@asynccontextmanager
async def serving(
    *, tls: ssl.SSLContext | None = None, budget: Budget | None = None, policy: EndpointPolicy | None = None
) -> AsyncIterator[Server]:
    served = Server(budget)
    accept = make_accept(served.make, policy or EndpointPolicy(), served.budget, tls)
    listener = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    served.port = listener.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        listener.close()
        for handler in served.handlers:
            handler.connection.abort()
        await asyncio.wait_for(served.all_lost(), PATIENCE)
        assert (served.budget.bytes.total, [h.was_lost for h in served.handlers]) == (0, [1] * len(served.handlers))


@asynccontextmanager
async def grpcio(port: int, credentials: grpc.ChannelCredentials | None = None) -> AsyncIterator[grpc.aio.Channel]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    target = f"localhost:{port}" if credentials else f"127.0.0.1:{port}"
    opened = (
        grpc.aio.secure_channel(target, credentials, options)
        if credentials
        else grpc.aio.insecure_channel(target, options)
    )
    async with opened as channel:
        yield channel


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as served:
        yield served


@pytest.fixture
async def channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    async with grpcio(server.port) as opened:
        yield opened


async def call(channel: grpc.aio.Channel, body: bytes, **more: Any) -> bytes:
    return cast(bytes, await channel.unary_unary(more.pop("path", "/Request/request"))(body, **more))


@pytest.mark.parametrize("size", [0, 1, 100, 16_379, 16_384, 1_000_000, 9_000_000])
async def test_answer_reaches_grpcio(channel: grpc.aio.Channel, size: int) -> None:
    assert await call(channel, b"x" * size, timeout=PATIENCE) == b"echo " + b"x" * size


@pytest.mark.parametrize(
    ("body", "more", "status", "text"),
    [
        (b"fail", {}, grpc.StatusCode.NOT_FOUND, "not there: é%"),
        (b"x" * 10_485_761, {}, grpc.StatusCode.RESOURCE_EXHAUSTED, "a message of 10485761 bytes"),
        (b"x" * 99, {"compression": grpc.Compression.Gzip}, grpc.StatusCode.UNIMPLEMENTED, "compressed"),
        (b"x", {"path": "/nacos.Request/request"}, grpc.StatusCode.UNIMPLEMENTED, "no such method"),
    ],
)
async def test_refusals_reach_grpcio(
    channel: grpc.aio.Channel, body: bytes, more: dict[str, Any], status: grpc.StatusCode, text: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=text) as caught:
        await call(channel, body, **more)
    assert caught.value.code() == status
    assert await call(channel, b"x") == b"echo x", "the connection goes on"


async def test_push_reaches_grpcio(channel: grpc.aio.Channel, server: Server) -> None:
    stream = channel.stream_stream("/BiRequestStream/requestBiStream")()
    for message in (b"", b"one", b"x" * 3_000_000):
        await stream.write(message)
        assert await stream.read() == b"push " + message
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() == grpc.StatusCode.OK
    assert len(server.handlers[0].ended) == 1


async def test_cancelled_stream_of_grpcio_has_ended(channel: grpc.aio.Channel, server: Server) -> None:
    stream = channel.stream_stream("/BiRequestStream/requestBiStream")()
    await stream.write(b"x")
    await stream.read()
    stream.cancel()
    while not server.handlers[0].ended:
        await asyncio.sleep(0)
    assert await call(channel, b"x") == b"echo x"


async def test_many_calls_of_grpcio_side_by_side(channel: grpc.aio.Channel) -> None:
    bodies = [b"%d" % number for number in range(1000)]
    assert await asyncio.gather(*(call(channel, body) for body in bodies)) == [b"echo " + body for body in bodies]


async def test_close_ends_the_connection_of_grpcio(channel: grpc.aio.Channel, server: Server) -> None:
    stream = channel.stream_stream("/BiRequestStream/requestBiStream")()
    await stream.write(b"x")
    await stream.read()
    server.handlers[0].connection.push(1, b"last")
    server.handlers[0].connection.close()
    await asyncio.wait_for(server.all_lost(), PATIENCE)
    assert server.handlers[0].connection.cause == "here"


async def test_tls() -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATES / "server.pem")
    context.set_alpn_protocols(["h2"])
    roots = grpc.ssl_channel_credentials((CERTIFICATES / "ca.pem").read_bytes())
    async with serving(tls=context) as server, grpcio(server.port, roots) as channel:
        assert await call(channel, b"x" * 1_000_000) == b"echo " + b"x" * 1_000_000
        assert server.budget.connections.held("127.0.0.1") == 1
        assert server.handlers[0].connection.name.startswith("127.0.0.1_")


async def test_handshakes_of_tls_count() -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATES / "server.pem")
    policy = EndpointPolicy(handshake_timeout=0.5)
    async with serving(tls=context, budget=Budget(max_connections=6), policy=policy) as server:
        opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(3)]
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await refused(reader)
        opened.append((reader, writer))
        assert server.budget.refused == 1
        while server.budget.connections.total:  # the handshakes time out
            await asyncio.sleep(0.01)
        for _, writer in opened:
            writer.transport.abort()
        assert server.handlers == []


async def refused(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""


async def test_http1_gets_an_answer(server: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
    assert (await asyncio.wait_for(reader.read(), PATIENCE)).startswith(b"HTTP/1.1 400 ")
    writer.close()


# budgets


class Said:
    """A connection on a transport that keeps what is written."""

    def __init__(self, budget: Budget, address: str = "10.0.0.1", **extra: Any) -> None:
        self.server = Server(budget)
        self.transport = KeptTransport(**{"peername": (address, 4000), **extra})
        self.connection = ServerConnection(self.server.make, EndpointPolicy(), budget)
        self.connection.connection_made(self.transport)
        self.encoder = Encoder()

    def say(self, *data: bytes) -> None:
        self.connection.data_received(b"".join(data))

    def half_request(self, size: int) -> None:
        head = frames.headers(self.encoder, 1, frames.REQUEST)
        prefix = b"\0" + frames.number(size * 2)
        body = (prefix + bytes(size))[: size + 5]
        pieces = [body[start : start + 16_384] for start in range(0, len(body), 16_384)]
        self.say(PREFACE, frames.settings(), head, *(frames.frame(frames.DATA, 0, 1, piece) for piece in pieces))

    def lose(self) -> None:
        self.connection.connection_lost(None)


async def test_connections_of_one_client_leave_room_for_others(caplog: pytest.LogCaptureFixture) -> None:
    budget = Budget(max_connections=10)
    first = [Said(budget) for _ in range(7)]
    assert [said.transport.aborted for said in first] == [False] * 5 + [True] * 2
    assert [len(said.server.handlers) for said in first] == [1] * 5 + [0] * 2
    assert first[6].connection.cause == "refused"
    assert (budget.refused, [record.levelno for record in caplog.records]) == (2, [logging.WARNING])
    other = [Said(budget, "10.0.0.2") for _ in range(4)]
    assert [said.transport.aborted for said in other] == [False, False, False, True]
    for said in first + other:
        said.lose()
    assert budget.connections.total == 0
    assert [handler.was_lost for said in first + other for handler in said.server.handlers] == [1] * 8


async def test_incomplete_requests_of_one_client_leave_room_for_others() -> None:
    budget = Budget(max_bytes=1_000_000)
    first = [Said(budget) for _ in range(3)]
    for said in first:
        said.half_request(200_000)
    assert 400_010 < budget.bytes.held("10.0.0.1") < 405_000
    other = Said(budget, "10.0.0.2")
    other.half_request(200_000)
    assert 200_005 < budget.bytes.held("10.0.0.2") < 205_000
    for said in (*first, other):
        said.lose()
    assert budget.bytes.total == 0


async def test_unsent_answers_of_one_client_leave_room_for_others() -> None:
    budget = Budget(max_bytes=1_000_000)

    def unread(address: str) -> Said:
        said = Said(budget, address)
        said.say(PREFACE, frames.settings((4, 0)), frames.headers(said.encoder, 1, frames.STREAM))
        said.connection.push(1, bytes(LOW_WATER + 400_000))
        return said

    saids = [unread("10.0.0.1"), unread("10.0.0.1"), unread("10.0.0.2")]
    await asyncio.sleep(0)
    assert [said.connection.cause for said in saids] == [None, "unread", None]
    for said in saids:
        said.lose()
    assert budget.bytes.total == 0


@pytest.mark.parametrize(
    ("peer", "client", "name"),
    [(("10.0.0.1", 5), "10.0.0.1", "10.0.0.1_5"), (("::1", 5, 0, 0), "::1", "::1_5"), ("", "", "unix_")],
)
async def test_name_is_that_of_the_peer(peer: Any, client: str, name: str) -> None:
    said = Said(Budget(), peername=peer)
    assert said.connection.client == client
    assert said.connection.name.startswith(name)


async def test_everything_is_a_no_op_after_the_end() -> None:
    said = Said(Budget())
    said.lose()
    connection = said.connection
    actions: list[Callable[[], None]] = [
        lambda: connection.answer(1, b""),
        lambda: connection.fail(1, 2),
        lambda: connection.push(1, b""),
        lambda: connection.end(1),
        *(connection.pause, connection.resume, connection.close, connection.abort),
    ]
    for action in actions:
        action()
    await asyncio.sleep(0)
    assert said.transport.written == b""
