"""`GrpcServer` on a real socket, with the reference gRPC (grpcio) as the client."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from nacos_proxy.app.listening import tls_context
from nacos_proxy.frontends.grpc.server import GrpcPolicy
from nacos_proxy.model.calls import Register
from nacos_proxy.wire.nacos.grpc.payload import Payload, read_payload, write_payload
from tests.helpers.build import KEY, instance
from tests.helpers.grpc_client import GrpcWorld, grpc_world

PEM = Path(__file__).parents[3] / "certificates" / "server.pem"
NAMED = {"namespace": "public", "groupName": "DEFAULT_GROUP", "serviceName": "orders"}
SETUP = Payload("ConnectionSetupRequest", b'{"clientVersion":"Test:v1","labels":{"module":"naming"},"abilityTable":{}}')


class Client:
    """grpcio's client with an open stream."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.unary = channel.unary_unary("/Request/request", write_payload, read_payload)
        self.stream = channel.stream_stream("/BiRequestStream/requestBiStream", write_payload, read_payload)()

    async def ask(self, kind: str, **fields: Any) -> tuple[str, dict[str, Any]]:
        answer = await self.unary(Payload(kind, json.dumps(fields).encode()), timeout=30)
        return answer.type, json.loads(answer.body)

    async def pushed(self) -> tuple[str, dict[str, Any]]:
        pushed = await self.stream.read()
        return pushed.type, json.loads(pushed.body)


@asynccontextmanager
async def served(world: GrpcWorld, tls: ssl.SSLContext | None = None) -> AsyncIterator[Client]:
    listener = socket.create_server(("127.0.0.1", 0))
    await world.server.start(listener, tls)
    where = f"127.0.0.1:{world.server.port}"
    options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1)]
    if tls is None:
        channel = grpc.aio.insecure_channel(where, options=options)
    else:
        options.append(("grpc.ssl_target_name_override", "localhost"))
        channel = grpc.aio.secure_channel(where, grpc.ssl_channel_credentials(PEM.read_bytes()), options=options)
    async with channel:
        yield Client(channel)


@pytest.mark.parametrize("secure", [False, True])
async def test_start_serves_grpcio_from_its_check_to_its_end(secure: bool) -> None:
    async with grpc_world() as world:
        async with served(world, tls_context(PEM, None, None, ["h2"]) if secure else None) as client:
            kind, body = await client.ask("ServerCheckRequest")
            assert (kind, body["success"]) == ("ServerCheckResponse", True)
            await client.stream.write(SETUP)
            assert (await client.pushed())[0] == "SetupAckRequest"
            (session,) = world.server.sessions
            assert (session.id, session.client_version) == (body["connectionId"], "Test:v1")
            assert (await client.ask("SubscribeServiceRequest", **NAMED, subscribe=True))[1]["success"]
            assert (await client.pushed())[1]["serviceInfo"]["hosts"] == []
            await world.agent.write(Register(KEY, instance()))
            assert [host["ip"] for host in (await client.pushed())[1]["serviceInfo"]["hosts"]] == ["10.0.0.1"]
            assert (await client.ask("ServiceQueryRequest", **NAMED))[1]["serviceInfo"]["hosts"][0]["port"] == 80
            assert world.server.status()["state"] == "ok"
        while world.server.sessions:
            await asyncio.sleep(0)
        assert sum(world.server.closed.values()) == 1 and world.agent.catalog.hub.readers == 0


async def test_stop_ends_sessions_and_frees_the_port() -> None:
    async with grpc_world() as world, served(world) as client:
        await client.ask("ServerCheckRequest")
        port = world.server.port
        await world.server.stop()
        while world.server.sessions:
            await asyncio.sleep(0)
        assert world.server.status() == {"state": "off", "reason": "it is stopped"}
        socket.create_server(("127.0.0.1", port)).close()


async def test_a_client_with_too_many_connections_is_refused() -> None:
    async with grpc_world(GrpcPolicy(max_connections=3)) as world, served(world) as client:
        await client.ask("ServerCheckRequest")
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{world.server.port}", options=[("grpc.use_local_subchannel_pool", 1), ("x", 1)]
        ) as second:
            other = second.unary_unary("/Request/request", write_payload, read_payload)
            await other(Payload("ServerCheckRequest"), timeout=30)
            reader, writer = await asyncio.open_connection("127.0.0.1", world.server.port)
            assert await reader.read() in (b"",) or world.server.budget.refused
            writer.close()
        assert world.server.budget.refused == 1
        assert len(world.server.sessions) <= 2


async def test_status_shows_a_bounded_number_of_sessions() -> None:
    async with grpc_world() as world:
        world.server.off = ""
        for _ in range(150):
            world.sdk()
        shown = world.server.status()
        assert (shown["sessionsTotal"], len(shown["sessions"])) == (150, 100)
