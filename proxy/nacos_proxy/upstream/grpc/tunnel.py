"""Opens a connection to a Nacos server for one client of ours, whose payloads then pass unchanged.

A server binds a session to its TCP connection (nacos-grpc.md 3), so each client needs a connection of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from nacos_proxy.model.errors import Unreachable, UpstreamError
from nacos_proxy.runtime import Clock, SystemClock
from nacos_proxy.transport.http2 import EndpointPolicy
from nacos_proxy.upstream.grpc.connection import GrpcConnection
from nacos_proxy.upstream.grpc.session import Target, set_up
from nacos_proxy.wire.http2 import DEFAULT
from nacos_proxy.wire.nacos.grpc.payload import Payload

# Calls under way on one connection. The answer to each, or each request, may be as large as a message can be.
CALLS = 4
_BYTES = (CALLS + 1) * DEFAULT.max_message
_POLICY = EndpointPolicy(DEFAULT._replace(max_partial=_BYTES), max_unsent=_BYTES)


class UpstreamConnection(Protocol):
    """A connection to a server: a `GrpcConnection`. All but `call` is a no-op once it is lost."""

    @property
    def unsent(self) -> int:
        """Bytes that the socket has not taken yet."""
        ...

    async def call(self, message: bytes, *, timeout: float) -> bytes:
        """The answer to a unary call. Raises `UpstreamError`s."""
        ...

    def open_stream(self) -> None: ...

    def send(self, message: bytes) -> None:
        """A message on the stream."""
        ...

    def pause(self) -> None:
        """Read nothing until `resume`."""
        ...

    def resume(self) -> None: ...

    def close(self) -> None: ...


class UpstreamOwner(Protocol):
    """Whoever uses a connection to a server."""

    def received(self, message: bytes) -> None:
        """A message on the stream."""
        ...

    def drained(self) -> None:
        """The connection takes more bytes again."""
        ...

    def lost(self, reason: str) -> None:
        """The connection is gone, perhaps by `close`. Called once."""
        ...


class Connect(Protocol):
    async def __call__(self, target: Target, owner: UpstreamOwner, timeout: float, /) -> UpstreamConnection:
        """Raises `OSError`."""
        ...


async def connect_upstream(target: Target, owner: UpstreamOwner, timeout: float) -> UpstreamConnection:
    """A `Connect`. Raises `OSError`."""
    return await GrpcConnection.connect(
        target.host,
        target.port,
        tls=target.tls,
        server_hostname=(target.name or target.host) if target.tls is not None else None,
        on_message=owner.received,
        on_lost=owner.lost,
        on_drained=owner.drained,
        timeout=timeout,
        policy=_POLICY,
    )


@dataclass(frozen=True, slots=True)
class Dialed:
    """A connection to a server that knows the client. `acknowledges`: the server answers a setup that has abilities."""

    connection: UpstreamConnection
    target: Target
    acknowledges: bool


@dataclass(frozen=True, slots=True)
class Dialer:
    """`targets(key)` are the servers to try, in order; one key starts at the same server each time.

    A server with an https URL must speak TLS on its gRPC port, too: what a client sends may be secret.

    `ready` is awaited first; it may fetch the list of servers. `absent()` says why the upstream has no gRPC at all; ''
    if it has. `timeout`: seconds for a connection and for the check, each; an SDK waits 5 s for the answer to a setup.
    """

    targets: Callable[[str], Iterable[Target]]
    connect: Connect = connect_upstream
    ready: Callable[[], Awaitable[None]] | None = None
    absent: Callable[[], str] = lambda: ""
    timeout: float = 2.0
    clock: Clock = field(default_factory=SystemClock)

    async def dial(self, key: str, setup: Payload, owner: UpstreamOwner) -> Dialed:
        """A connection to the first server that answers. Raises `UpstreamError`s; those of the last server."""
        if self.ready is not None:
            await self.ready()
        last: UpstreamError = Unreachable("no server is known", arrived=False)
        for target in self.targets(key):
            try:
                return await self._dial(target, setup, owner)
            except OSError as error:
                last = Unreachable(f"gRPC of {target}: {error}", arrived=False)
            except UpstreamError as error:
                last = error
        raise last

    async def _dial(self, target: Target, setup: Payload, owner: UpstreamOwner) -> Dialed:
        attempt = _Attempt(owner)
        connection = await self.connect(target, attempt, self.timeout)
        try:
            checked = await set_up(connection, setup, self.clock, target, answer=self.timeout, within=self.timeout)
        except BaseException:
            connection.close()
            raise
        if attempt.reason is not None:
            raise Unreachable(f"gRPC of {target}: {attempt.reason}", arrived=False)
        attempt.settled = True
        return Dialed(connection, target, checked.negotiates)


class _Attempt:
    """Keeps the loss of a connection that was never in use from its owner, who gets that of the next server."""

    def __init__(self, owner: UpstreamOwner) -> None:
        self.settled = False
        self.reason: str | None = None
        self._owner = owner

    def received(self, message: bytes) -> None:
        self._owner.received(message)

    def drained(self) -> None:
        if self.settled:
            self._owner.drained()

    def lost(self, reason: str) -> None:
        self.reason = reason
        if self.settled:
            self._owner.lost(reason)
