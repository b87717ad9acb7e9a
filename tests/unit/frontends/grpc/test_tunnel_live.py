"""The tunnel between real ends: r-nacos behind it, and the reference gRPC in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import orjson
import pytest

from nacos_proxy.frontends.auth import AccessControl, AccessPolicy
from nacos_proxy.frontends.grpc.access import Tunnel
from nacos_proxy.frontends.grpc.connection import Budget, ServerConnection
from nacos_proxy.frontends.grpc.tunnel import GrpcTunnels
from nacos_proxy.model.errors import ProxyError
from nacos_proxy.runtime import spawn
from nacos_proxy.transport.http2 import EndpointPolicy
from nacos_proxy.upstream.grpc.session import Target
from nacos_proxy.upstream.grpc.tunnel import Dialer
from nacos_proxy.wire.nacos.grpc.payload import Payload, read_payload, write_payload
from tests.helpers.live import GRPC_OFFSET, RNacos, rnacos_binary
from tests.unit.frontends.conftest import refuse

SETUP = {"clientVersion": "test", "tenant": "", "labels": {"module": "config", "source": "sdk"}, "abilityTable": {}}
D = {"dataId": "d", "group": "g", "tenant": ""}


class Session:
    """The `Handler` of a connection, as far as a tunnel needs one."""

    def __init__(self, tunnels: GrpcTunnels, connection: ServerConnection) -> None:
        self._tunnels, self._connection = tunnels, connection
        self._tunnel: Tunnel | None = None

    def unary(self, stream: int, message: bytes) -> None:
        payload = read_payload(message)
        if payload.type == "ServerCheckRequest":
            check = Payload("ServerCheckResponse", b'{"resultCode":200,"connectionId":"1","success":true}')
            self._connection.answer(stream, write_payload(check))
        else:
            assert self._tunnel is not None
            self._tunnel.unary(stream, payload)

    def stream_message(self, stream: int, message: bytes) -> None:
        if self._tunnel is not None:
            self._tunnel.stream(read_payload(message))
        else:
            spawn(self._open(stream, read_payload(message)), name="open")

    async def _open(self, stream: int, setup: Payload) -> None:
        try:
            self._tunnel = await self._tunnels.open("127.0.0.1", setup, self._connection, stream)
        except ProxyError:
            self._connection.close()

    def stream_ended(self, stream: int) -> None:
        self._connection.close()

    def drained(self) -> None:
        if self._tunnel is not None:
            self._tunnel.drained()

    def lost(self) -> None:
        if self._tunnel is not None:
            self._tunnel.close()


async def nothing(*_: object) -> None: ...


class Sdk:
    """A client by the reference gRPC: `ask` a request, and `heard` has what the server sent on the stream."""

    def __init__(self, port: int) -> None:
        options = [("grpc.max_receive_message_length", 1 << 24), ("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options)
        self._unary = self._channel.unary_unary("/Request/request")
        self._open = self._channel.stream_stream("/BiRequestStream/requestBiStream")
        self.heard: asyncio.Queue[Payload | None] = asyncio.Queue()

    async def connect(self) -> None:
        """As the Java SDK: the check, then the setup on the stream."""
        await self.ask("ServerCheckRequest")
        self._stream = self._open()
        self._reader = spawn(self._read(), name="reader")
        await self.say("ConnectionSetupRequest", **SETUP)

    async def say(self, kind: str, **fields: Any) -> None:
        await self._stream.write(write_payload(Payload(kind, orjson.dumps(fields))))

    async def ask(self, kind: str, **fields: Any) -> tuple[str, dict[str, Any]]:
        answer = read_payload(await self._unary(write_payload(Payload(kind, orjson.dumps(fields))), timeout=20))
        return answer.type, orjson.loads(answer.body)

    async def hear(self) -> tuple[str, dict[str, Any]]:
        heard = await asyncio.wait_for(self.heard.get(), 20)
        return ("", {}) if heard is None else (heard.type, orjson.loads(heard.body))

    async def _read(self) -> None:
        try:
            async for message in self._stream:
                self.heard.put_nowait(read_payload(message))
        except (grpc.aio.AioRpcError, asyncio.CancelledError):  # the second is its word for a closed channel
            pass
            pass
        self.heard.put_nowait(None)

    async def close(self) -> None:
        await self._channel.close()
        await self._reader


@asynccontextmanager
async def tunnels_to(target: Target) -> AsyncIterator[tuple[GrpcTunnels, int]]:
    guard = AccessControl(nothing, AccessPolicy(), refuse)
    tunnels = GrpcTunnels(Dialer(lambda key: [target]), guard)
    loop, budget = asyncio.get_running_loop(), Budget()
    server = await loop.create_server(
        lambda: ServerConnection(lambda connection: Session(tunnels, connection), EndpointPolicy(), budget),
        "127.0.0.1",
        0,
    )
    try:
        yield tunnels, server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.mark.skipif(rnacos_binary() is None, reason="no r-nacos")
async def test_a_tunnel_carries_configuration_to_rnacos_and_pushes_back() -> None:
    binary = rnacos_binary()
    assert binary is not None
    with RNacos(binary) as server:
        async with tunnels_to(Target("127.0.0.1", server.port + GRPC_OFFSET)) as (tunnels, port):
            sdk, other = Sdk(port), Sdk(port)
            await sdk.connect()
            await other.connect()
            assert await sdk.hear() == ("SetupAckRequest", {"headers": {}, "abilityTable": {}, "module": "internal"})
            await other.hear()
            assert tunnels.tunnels.total == 2

            kind, answer = await sdk.ask("ConfigQueryRequest", **D)
            assert (kind, answer["errorCode"]) == ("ConfigQueryResponse", 300)
            assert (await other.ask("ConfigPublishRequest", content="one", **D))[1]["resultCode"] == 200
            listen = {"listen": True, "configListenContexts": [{**D, "md5": ""}]}
            kind, answer = await sdk.ask("ConfigBatchListenRequest", **listen)
            assert (kind, len(answer["changedConfigs"])) == ("ConfigChangeBatchListenResponse", 1)

            large = "x" * 2_000_000
            assert (await other.ask("ConfigPublishRequest", content=large, **D))[1]["resultCode"] == 200
            kind, push = await sdk.hear()
            assert (kind, push["dataId"]) == ("ConfigChangeNotifyRequest", "d")
            await sdk.say("ConfigChangeNotifyResponse", resultCode=200, requestId=push["requestId"])
            answers = await asyncio.gather(*(sdk.ask("ConfigQueryRequest", **D) for _ in range(20)))
            assert {len(answer["content"]) for _, answer in answers} == {2_000_000}
            assert (await sdk.ask("ConfigRemoveRequest", **D))[1]["resultCode"] == 200
            assert (await sdk.hear())[0] == "ConfigChangeNotifyRequest"
            assert tunnels.bytes.total == 0

            await other.close()
            assert (await sdk.ask("HealthCheckRequest"))[0] == "HealthCheckResponse"
            assert tunnels.tunnels.total == 1
            server.kill()
            assert await sdk.hear() == ("", {})
            assert tunnels.tunnels.total == 0
            await sdk.close()


async def test_a_tunnel_that_cannot_be_opened_ends_the_connection() -> None:
    async with tunnels_to(Target("127.0.0.1", 1)) as (tunnels, port):
        sdk = Sdk(port)
        await sdk.connect()
        assert await sdk.hear() == ("", {})
        assert tunnels.tunnels.total == 0
        assert "127.0.0.1:1" in tunnels.error
        await sdk.close()
