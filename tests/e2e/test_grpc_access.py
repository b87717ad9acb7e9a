"""Who may do what over gRPC: API tokens, and `auth = client`, with a client on grpcio."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nacos_proxy.app.settings import Settings
from nacos_proxy.runtime import SystemClock
from tests.e2e.test_auth import PASSWORDS, login
from tests.helpers.app import Served, serving
from tests.helpers.faces import FaceServer, facing
from tests.helpers.grpcio_client import GrpcClient, hosts_of

CLOCK = SystemClock()


@asynccontextmanager
async def serving_grpc(**settings: Any) -> AsyncIterator[tuple[Served, str]]:
    """A proxy, and `host:port` of its gRPC server."""
    async with serving(**settings) as proxy:
        listener = socket.create_server(("127.0.0.1", 0))
        await proxy.app.grpc.start(listener)
        yield proxy, f"127.0.0.1:{listener.getsockname()[1]}"
        await proxy.app.grpc.stop()


async def listed(face: FaceServer, service: str) -> list[str]:
    """What the upstream lists, asked as an admin."""
    assert face.users is not None
    query = {"serviceName": service, "accessToken": face.users.login("nacos")}
    async with serving(upstream=face.url, auth="client") as another:
        shown = await another.http.get("/nacos/v1/ns/instance/list", params=query)
        return [host["ip"] for host in shown.json()["hosts"]]


@pytest.mark.parametrize("kind", ["v1+v2", "v3"])
async def test_auth_client_publishes_with_the_account_of_the_connection(kind: str) -> None:
    async with (
        facing(kind, passwords=PASSWORDS) as face,
        serving_grpc(upstream=face.url, auth="client") as (proxy, target),
    ):
        assert face.users is not None
        face.users.closed.add("closed")
        token = await login(proxy.http, "app")
        async with GrpcClient(target, token=token) as sdk, GrpcClient(target, token="made-up") as stranger:
            for client in (sdk, stranger):
                await client.connect()
            assert (await sdk.register("orders", "10.0.0.1", 80)).code == 0
            assert await listed(face, "orders") == ["10.0.0.1"]
            assert hosts_of((await sdk.subscribe("orders")).body["serviceInfo"]) == {("10.0.0.1", 80)}
            refused = await sdk.register("closed", "10.0.0.1", 80)
            assert (refused.type, refused.code) == ("InstanceResponse", 403)
            for answer in (await stranger.register("orders", "10.0.0.2", 80), await stranger.query("orders")):
                assert answer.code == 403 and answer.type != "ErrorResponse" and "10.0.0.1" not in str(answer.body)
            assert await listed(face, "orders") == ["10.0.0.1"]

            face.users.revoke()
            await asyncio.wait_for(sdk.ended, 15.0)  # with the next beat or poll at the latest
            assert not stranger.ended.done()
        async with GrpcClient(target, token=await login(proxy.http, "app")) as again:
            await again.connect()
            assert (await again.register("orders", "10.0.0.1", 80)).code == 0
            assert await listed(face, "orders") == ["10.0.0.1"]
        while await listed(face, "orders"):
            await CLOCK.sleep_until(CLOCK.now() + 0.05)


async def test_auth_client_keeps_the_tenant_of_a_session_and_no_other() -> None:
    async with (
        facing("v1+v2", passwords=PASSWORDS) as face,
        serving_grpc(upstream=face.url, auth="client") as (proxy, target),
    ):
        assert proxy.app.tenants is not None
        async with GrpcClient(target, token=await login(proxy.http, "app")) as sdk:
            await sdk.connect()
            assert (await sdk.register("orders", "10.0.0.1", 80)).code == 0
            assert len(proxy.app.tenants) == 1 and len(proxy.components.publications) == 0


async def test_api_tokens_give_their_right_and_a_revoked_one_ends_the_session(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("read:the-reader\nwrite:the-writer\n")
    async with serving_grpc(tokens_file=tokens) as (proxy, target):
        async with (
            GrpcClient(target, token="the-reader") as reader,
            GrpcClient(target, token="the-writer") as writer,
            GrpcClient(target) as nobody,
        ):
            for client in (reader, writer, nobody):
                await client.connect()
            assert (await writer.register("orders", "10.0.0.1", 80)).code == 0
            assert hosts_of((await reader.subscribe("orders")).body["serviceInfo"]) == {("10.0.0.1", 80)}
            for answer, kind in (
                (await reader.register("orders", "10.0.0.2", 80), "InstanceResponse"),
                (await nobody.query("orders"), "QueryServiceResponse"),
            ):
                assert (answer.type, answer.code) == (kind, 403)

            tokens.write_text("read:the-reader\n")
            proxy.app.reload(Settings(tokens_file=tokens, upstream="embedded", disk=False))
            await asyncio.wait_for(writer.ended, 5.0)
            await reader.pushed("orders")  # the instance went with its connection
            assert not reader.ended.done()
