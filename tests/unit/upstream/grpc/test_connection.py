"""The reference gRPC (grpcio) as the server, and servers that misbehave."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from nacos_proxy.model.errors import Busy, Garbled, Reason, Refused, TooSlow, Unreachable
from nacos_proxy.runtime import spawn
from nacos_proxy.upstream.grpc.connection import GrpcConnection
from nacos_proxy.wire.http2 import ServerEndpoint, Unary
from tests.helpers import frames

CERTIFICATES = Path(__file__).parents[3] / "certificates"
PATIENCE = 30.0


class Reference(grpc.GenericRpcHandler):
    """Echoes. `b"wait"` is answered only after `go`; `b"deny"` and `b"fail"` with a status."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.at_once = self.most = 0

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if details.method == "/Request/request":
            return grpc.unary_unary_rpc_method_handler(self._unary)
        return grpc.stream_stream_rpc_method_handler(self._stream)

    async def _unary(self, message: bytes, context: Any) -> bytes:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            if message == b"wait":
                await self.go.wait()
            await asyncio.sleep(0)
            if message == b"deny":
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
            elif message == b"fail":
                await context.abort(grpc.StatusCode.INTERNAL, "100 % of ü")
            return b"echo " + message
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.at_once -= 1

    async def _stream(self, messages: Any, context: Any) -> Any:
        async for message in messages:
            if message == b"end":
                await context.abort(grpc.StatusCode.ABORTED, "enough")
            yield b"push " + message


class Client:
    """A connection, the messages of its stream, and why it was lost."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[bytes] = asyncio.Queue()
        self.losses: list[str] = []
        self.was_lost = asyncio.Event()
        self.drained = asyncio.Event()

    def lost(self, reason: str) -> None:
        self.losses.append(reason)
        self.was_lost.set()

    async def connect(self, port: int, **more: Any) -> GrpcConnection:
        return await GrpcConnection.connect(
            more.pop("host", "127.0.0.1"),
            port,
            on_message=self.messages.put_nowait,
            on_lost=self.lost,
            on_drained=self.drained.set,
            timeout=more.pop("timeout", PATIENCE),
            **more,
        )


@asynccontextmanager
async def reference(secure: bool = False, **options: Any) -> AsyncIterator[tuple[Reference, int, grpc.aio.Server]]:
    settings = [("grpc.max_receive_message_length", -1), *options.items()]
    server, handler = grpc.aio.server(options=settings), Reference()
    server.add_generic_rpc_handlers((handler,))
    if secure:
        chain = (CERTIFICATES / "server.pem").read_bytes()
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(chain, chain)]))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield handler, port, server
    finally:
        await server.stop(0)


@asynccontextmanager
async def raw(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[int]:
    writers: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await serve(reader, writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(0.01)  # the loop closes the sockets


async def test_call_reaches_grpcio() -> None:
    async with reference() as (_, port, _server):
        connection = await Client().connect(port)
        for size in (0, 1, 16_384, 70_000, 9_000_000):
            assert await connection.call(b"x" * size, timeout=PATIENCE) == b"echo " + b"x" * size
        connection.close()


async def test_calls_run_side_by_side() -> None:
    async with reference() as (handler, port, _server):
        connection = await Client().connect(port)
        waiting = spawn(connection.call(b"wait", timeout=PATIENCE), name="call")
        while not handler.at_once:
            await asyncio.sleep(0)
        bodies = [b"%d" % number for number in range(500)]
        answers = await asyncio.gather(*(connection.call(body, timeout=PATIENCE) for body in bodies))
        assert answers == [b"echo " + body for body in bodies] and not waiting.done()
        handler.go.set()
        assert await waiting == b"echo wait"
        assert 1 < handler.most <= 129
        connection.close()


async def test_calls_obey_the_most_streams_of_the_server() -> None:
    async with reference(**{"grpc.max_concurrent_streams": 3}) as (handler, port, _server):
        connection = await Client().connect(port)
        waiting = [spawn(connection.call(b"wait", timeout=PATIENCE), name="call") for _ in range(3)]
        while handler.at_once < 3:
            await asyncio.sleep(0)
        with pytest.raises(Busy):
            await connection.call(b"x", timeout=0.05)
        handler.go.set()
        assert await asyncio.gather(*waiting) == [b"echo wait"] * 3
        assert handler.most == 3
        connection.close()


@pytest.mark.parametrize(
    ("body", "status", "reason", "text"),
    [(b"deny", 403, Reason.NO_RIGHT, "who are you?"), (b"fail", 500, Reason.OTHER, "100 % of ü")],
)
async def test_status_becomes_refused(body: bytes, status: int, reason: Reason, text: str) -> None:
    async with reference() as (_, port, _server):
        connection = await Client().connect(port)
        with pytest.raises(Refused, match=text) as caught:
            await connection.call(body, timeout=PATIENCE)
        assert (caught.value.status, caught.value.reason) == (status, reason)
        connection.close()


async def test_time_out_and_cancellation_reset_the_stream() -> None:
    async with reference() as (handler, port, _server):
        connection = await Client().connect(port)
        with pytest.raises(TooSlow):
            await connection.call(b"wait", timeout=0.05)
        await asyncio.wait_for(handler.cancelled.wait(), PATIENCE)
        handler.cancelled.clear()
        call = spawn(connection.call(b"wait", timeout=PATIENCE), name="call")
        while not handler.at_once:
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait_for(handler.cancelled.wait(), PATIENCE)
        assert await connection.call(b"x", timeout=PATIENCE) == b"echo x"
        connection.close()


async def test_stream_carries_messages_both_ways() -> None:
    async with reference() as (_, port, _server):
        client = Client()
        connection = await client.connect(port)
        connection.send(b"too early")
        connection.open_stream()
        connection.open_stream()
        for body in (b"", b"one", b"x" * 3_000_000):
            connection.send(body)
        for body in (b"", b"one", b"x" * 3_000_000):
            assert await asyncio.wait_for(client.messages.get(), PATIENCE) == b"push " + body
        connection.close()
        await asyncio.wait_for(client.was_lost.wait(), PATIENCE)
        assert client.losses == ["closed here"]


async def test_drained_is_called_when_the_server_has_taken_it() -> None:
    async with reference() as (_, port, _server):
        client = Client()
        connection = await client.connect(port)
        connection.open_stream()
        connection.send(b"x" * 5_000_000)
        assert connection.unsent > 4_000_000
        await asyncio.wait_for(client.drained.wait(), PATIENCE)
        connection.close()


async def test_end_of_the_stream_is_the_end() -> None:
    async with reference() as (_, port, _server):
        client = Client()
        connection = await client.connect(port)
        connection.open_stream()
        waiting = spawn(connection.call(b"wait", timeout=PATIENCE), name="call")
        connection.send(b"end")
        await asyncio.wait_for(client.was_lost.wait(), PATIENCE)
        assert connection.lost
        with pytest.raises(Unreachable, match="enough") as caught:
            await waiting
        assert caught.value.arrived
        with pytest.raises(Unreachable) as caught:
            await connection.call(b"x", timeout=PATIENCE)
        assert not caught.value.arrived
        connection.send(b"x")
        assert client.losses == ["the server ended the stream: enough"]


@pytest.mark.parametrize("grace", [0, 5])
async def test_end_of_the_server_is_the_end(grace: float) -> None:
    async with reference() as (handler, port, server):
        client = Client()
        connection = await client.connect(port)
        waiting = spawn(connection.call(b"wait", timeout=PATIENCE), name="call")
        while not handler.at_once:
            await asyncio.sleep(0)
        stopping = spawn(server.stop(grace), name="stop")
        await asyncio.wait_for(client.was_lost.wait(), PATIENCE)
        assert len(client.losses) == 1
        with pytest.raises(Unreachable):
            await waiting
        handler.go.set()
        await stopping


@pytest.mark.parametrize("name", ["localhost", "elsewhere"])
async def test_tls_checks_the_name(name: str) -> None:
    context = ssl.create_default_context(cafile=str(CERTIFICATES / "ca.pem"))
    context.set_alpn_protocols(["h2"])
    async with reference(secure=True) as (_, port, _server):
        client = Client()
        if name == "localhost":
            connection = await client.connect(port, tls=context, server_hostname=name)
            assert await connection.call(b"x", timeout=PATIENCE) == b"echo x"
            connection.close()
        else:
            with pytest.raises(OSError, match="certificate"):
                await client.connect(port, tls=context, server_hostname=name)


async def test_connect_raises_if_nobody_listens() -> None:
    client = Client()
    async with raw(lambda reader, writer: asyncio.sleep(0)) as port:
        pass
    with pytest.raises(ConnectionRefusedError):
        await client.connect(port)
    assert client.losses == []


async def test_connect_raises_if_the_server_is_silent() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    client = Client()
    async with raw(silent) as port:
        with pytest.raises(TimeoutError, match="no handshake in"):
            await client.connect(port, timeout=0.05)
    assert client.losses == []


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP/1, not gRPC"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "a frame of"),
        (b"", "the peer closed it"),
    ],
)
async def test_connect_raises_if_the_server_does_not_speak_grpc(said: bytes, reason: str) -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(said)
        writer.close()

    client = Client()
    async with raw(other) as port:
        with pytest.raises(OSError, match=reason):
            await client.connect(port)
    assert client.losses == []


class Odd:
    """A server that answers each call by `answer`."""

    def __init__(self, answer: Callable[[ServerEndpoint, int], None], raw_answer: bytes = b"") -> None:
        self._answer = answer
        self._raw = raw_answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        endpoint = ServerEndpoint()
        while data := await reader.read(65_536):
            for event in endpoint.receive(data, 0.0):
                if isinstance(event, Unary):
                    self._answer(endpoint, event.stream)
                    writer.write(self._raw)
            writer.write(endpoint.take())


@pytest.mark.parametrize(("code", "arrived"), [(7, False), (8, True)])
async def test_reset_becomes_unreachable(code: int, arrived: bool) -> None:
    reset = frames.frame(frames.RST_STREAM, 0, 1, frames.number(code))
    async with raw(Odd(lambda endpoint, stream: None, reset).serve) as port:
        connection = await Client().connect(port)
        with pytest.raises(Unreachable) as caught:
            await connection.call(b"x", timeout=PATIENCE)
        assert caught.value.arrived is arrived
        connection.close()


async def test_unreadable_answer_is_garbled() -> None:
    async with raw(Odd(lambda endpoint, stream: endpoint.answer(stream, b"x" * 11_000_000)).serve) as port:
        connection = await Client().connect(port)
        with pytest.raises(Garbled, match="11000000 bytes"):
            await connection.call(b"x", timeout=PATIENCE)
        connection.close()


async def test_pause_stops_reading() -> None:
    async with reference() as (_, port, _server):
        client = Client()
        connection = await client.connect(port)
        connection.open_stream()
        connection.pause()
        connection.send(b"x")
        with pytest.raises(TooSlow):
            await connection.call(b"x", timeout=0.05)
        assert client.messages.empty()
        connection.resume()
        assert await asyncio.wait_for(client.messages.get(), PATIENCE) == b"push x"
        connection.close()
