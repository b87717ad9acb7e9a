"""A relay in front of a Nacos server that counts what passes to it: HTTP requests, and pieces over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from loadtest.contenders import free_pair, local

GRPC_OFFSET = 1000
REQUEST = b" HTTP/1.1\r\n"


class Relay:
    """`requests`: HTTP requests, and pieces of bytes that clients sent over gRPC (calls, acknowledgements, pings)."""

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        self.requests = 0
        self.url = local(free_pair(GRPC_OFFSET))
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[str]:
        """Its URL; gRPC is 1,000 ports above, as in Nacos."""
        port = urlsplit(self.url).port or 0
        loop = asyncio.get_running_loop()
        servers = [
            await loop.create_server(
                lambda at=offset: _Client(self, self._host, self._port + at), "127.0.0.1", port + offset
            )
            for offset in (0, GRPC_OFFSET)
        ]
        try:
            yield self.url
        finally:
            for server in servers:
                server.close()


class _End(asyncio.Protocol):
    """One end of a relayed connection. What comes before the other end is there waits."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.peer: _End | None = None
        self._waiting: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        for data in self._waiting:
            transport.write(data)

    def send(self, data: bytes) -> None:
        if self.transport is None:
            self._waiting.append(data)
        else:
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        if self.peer is not None:
            self.peer.send(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.close()


class _Client(_End):
    def __init__(self, relay: Relay, host: str, port: int) -> None:
        super().__init__()
        self._relay = relay
        self._server = host, port
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.peer = _End()
        self.peer.peer = self
        self._connecting = asyncio.get_running_loop().create_task(self._connect(self.peer))

    async def _connect(self, peer: _End) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: peer, *self._server)
        except OSError:
            if self.transport is not None:
                self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._relay.requests += data.count(REQUEST) or 1
        super().data_received(data)
