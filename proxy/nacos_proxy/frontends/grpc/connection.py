"""One TCP connection of an SDK: requests and messages to its handler, answers and pushes back."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Protocol, cast

from nacos_proxy.catalog.shares import Shares
from nacos_proxy.transport.http2 import LOW_WATER as LOW_WATER
from nacos_proxy.transport.http2 import EndpointPolicy, EndpointProtocol
from nacos_proxy.transport.tls import TlsProtocol
from nacos_proxy.wire.http2 import Ended, Event, ServerEndpoint, StreamMessage, Unary

log = logging.getLogger("nacos_proxy.grpc")


class Handler(Protocol):
    """What a connection calls. None of these may raise or await."""

    def unary(self, stream: int, message: bytes) -> None:
        """One complete request; answer it later, with `answer` or `fail`."""
        ...

    def stream_message(self, stream: int, message: bytes) -> None:
        """A message on the bidirectional stream."""
        ...

    def stream_ended(self, stream: int) -> None:
        """The client half-closed or reset the bidirectional stream. `push` may still reach it in the first case."""
        ...

    def drained(self) -> None:
        """`unsent` is no longer above LOW_WATER. Called whenever it was read while it was above."""
        ...

    def lost(self) -> None:
        """The TCP connection is gone; the connection's `cause` and `reason` say why. Called exactly once."""
        ...


class Budget:
    """What all connections may hold together, shared out by client address: one alone gets at most half.

    `bytes`: of incomplete requests and of unsent answers; each connection has LOW_WATER unsent bytes beside.
    """

    def __init__(self, max_connections: int = 20_000, max_bytes: int = 128 * 1024 * 1024) -> None:
        self.connections: Shares[str] = Shares(max_connections)
        self.bytes: Shares[str] = Shares(max_bytes)
        self.refused = 0
        self._refusing = False

    def admit(self, client: str) -> bool:
        """Counts a connection, unless its client has too many. Logs the first refusal."""
        if self.connections.room(client):
            self.connections.take(client)
            return True
        self.refused += 1
        if not self._refusing:
            self._refusing = True
            log.warning("%s has %d gRPC connections: refused more", client or "local", self.connections.held(client))
        return False

    def leave(self, client: str) -> None:
        self.connections.give_back(client)
        self._refusing = False

    def hold(self, client: str, size: int) -> bool:
        """Takes bytes if they are there; gives them back if `size` is negative."""
        if size < 0:
            self.bytes.give_back(client, -size)
        elif not self.bytes.room(client, size):
            return False
        else:
            self.bytes.take(client, size)
        return True


class ServerConnection(EndpointProtocol):
    """A connection of a client. All methods do nothing if the connection, or the stream, is gone.

    `client`: the IP address, "" for none; `name`: "ip_port" of the peer, unique among the open connections.
    `make_handler` is called when the connection is made; not for one that is refused.
    """

    def __init__(
        self,
        make_handler: Callable[[ServerConnection], Handler],
        policy: EndpointPolicy,
        budget: Budget,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.client = ""
        self.name = ""
        self._server = ServerEndpoint(limits=policy.limits, hold=self._take)
        super().__init__(self._server, policy, loop)
        self._make_handler = make_handler
        self._budget = budget
        self._handler: Handler | None = None  # None: not yet connected, or refused
        self._hold = self._take

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.client, port = _peer(transport)
        self.name = f"{self.client}_{port}" if port else f"unix_{id(self)}"
        super().connection_made(transport)
        if not self._budget.admit(self.client):
            self._give_up("refused", "too many connections of this client")
            return
        self._handler = self._make_handler(self)

    def answer(self, stream: int, message: bytes) -> None:
        """The whole answer to a request, with status OK."""
        self._server.answer(stream, message)
        self._touch()

    def fail(self, stream: int, status: int, text: str = "") -> None:
        """A status of gRPC as the answer."""
        self._server.fail(stream, status, text)
        self._touch()

    def push(self, stream: int, message: bytes) -> None:
        """A message on the bidirectional stream."""
        self._server.send(stream, message)
        self._touch()

    def end(self, stream: int, status: int = 0) -> None:
        """Ends the bidirectional stream, behind what was pushed."""
        self._server.end(stream, status)
        self._touch()

    def _happened(self, event: Event) -> None:
        if self._handler is None:
            return
        if isinstance(event, Unary):
            self._handler.unary(event.stream, event.message)
        elif isinstance(event, StreamMessage):
            self._handler.stream_message(event.stream, event.message)
        elif isinstance(event, Ended):
            self._handler.stream_ended(event.stream)

    def _drained(self) -> None:
        if self._handler is not None:
            self._handler.drained()

    def _lost(self) -> None:
        if self._handler is not None:
            self._budget.leave(self.client)
            self._handler.lost()

    def _take(self, size: int) -> bool:
        return self._budget.hold(self.client, size)


class _Handshake(TlsProtocol):
    """Counts a connection before it has sent its first request."""

    def __init__(self, connection: ServerConnection, context: ssl.SSLContext, timeout: float, budget: Budget) -> None:
        super().__init__(connection, context, timeout)
        self._budget = budget
        self._client = ""

    def _admit(self, transport: asyncio.Transport) -> bool:
        self._client, _ = _peer(transport)
        return self._budget.admit(self._client)

    def _leave(self) -> None:
        self._budget.leave(self._client)


def make_accept(
    make_handler: Callable[[ServerConnection], Handler],
    policy: EndpointPolicy,
    budget: Budget,
    tls: ssl.SSLContext | None = None,
) -> Callable[[], asyncio.Protocol]:
    """The factory for `loop.create_server`, which itself must not be configured for TLS. `tls` must offer "h2"."""

    def accept() -> asyncio.Protocol:
        connection = ServerConnection(make_handler, policy, budget)
        return connection if tls is None else _Handshake(connection, tls, policy.handshake_timeout, budget)

    return accept


def _peer(transport: asyncio.BaseTransport) -> tuple[str, int]:
    """Address and port of the client; none on a Unix socket."""
    peer = transport.get_extra_info("peername")
    if not isinstance(peer, tuple):
        return "", 0
    host, port, *_ = cast("tuple[str, int]", peer)
    return host, port
