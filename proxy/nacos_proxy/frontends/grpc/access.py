"""What a session needs of others: a connection, who serves a request, and tunnels for what is not naming."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from nacos_proxy.catalog.publications import Owner
from nacos_proxy.core.agent import Agent
from nacos_proxy.frontends.events.stream_quota import StreamQuota
from nacos_proxy.frontends.open_streams import End, Right
from nacos_proxy.model.services import Instance, ServiceKey
from nacos_proxy.upstream.grpc.tunnel import Dialed, UpstreamOwner
from nacos_proxy.wire.nacos.grpc.payload import Payload

TOKEN = "accessToken"  # the header of a payload
HIGH_WATER = 1 << 20  # bytes that one end of a connection to the upstream has not taken yet: the other is not read


class Publishing(Protocol):
    """The instances that connections publish: `background.publications.Publications`. An owner is a connection."""

    async def publish(
        self, owner: Owner, service: ServiceKey, instances: Iterable[Instance], *, client: str = ""
    ) -> None: ...

    async def withdraw(self, owner: Owner, service: ServiceKey, named: Iterable[Instance] = ()) -> None: ...

    def end(self, owner: Owner, *, back_soon: bool = False) -> None: ...

    def of(self, owner: Owner) -> Mapping[ServiceKey, tuple[Instance, ...]]: ...

    def count(self, owner: Owner) -> int: ...


@dataclass(frozen=True, slots=True)
class Served:
    """What serves a request, until `release` is called: the proxy's own components, or those of the client's tenant.

    `hold(end)` is for a subscription or a publication, which lasts beyond the request: call the returned function when
    it is over. `end` is called, perhaps at once, when the token is revoked or the tenant ends; the session must end
    then.
    """

    agent: Agent
    publications: Publishing
    quota: StreamQuota
    release: Callable[[], None]
    hold: Callable[[End], Callable[[], None]]


Admit = Callable[["str | None", Right, str], Awaitable[Served]]
"""Admits a request by its token, the right that it needs, and the client's address.

Raises `Denied` (API tokens), `Refused` (the upstream does not accept the token), `BadCall` (429), `NothingKnown`.
"""


class Connection(Protocol):
    """The TCP connection of a client: `frontends.grpc.connection.ServerConnection`. All is a no-op once it is lost."""

    @property
    def client(self) -> str:
        """The client's IP address, '' for none."""
        ...

    @property
    def name(self) -> str:
        """`ip_port` of the client."""
        ...

    @property
    def cause(self) -> str | None:
        """Why it ended, in one word; None before."""
        ...

    @property
    def reason(self) -> str:
        """The same for people."""
        ...

    @property
    def unsent(self) -> int:
        """Bytes that the socket has not taken yet."""
        ...

    def answer(self, stream: int, message: bytes) -> None:
        """The whole answer to a unary call."""
        ...

    def fail(self, stream: int, status: int, text: str) -> None:
        """Ends a call with a status of gRPC."""
        ...

    def push(self, stream: int, message: bytes) -> None:
        """A message on the open stream."""
        ...

    def pause(self) -> None:
        """Read nothing until `resume`."""
        ...

    def resume(self) -> None: ...

    def close(self) -> None:
        """Close the TCP connection when everything is sent, at the latest after a second."""
        ...

    def abort(self) -> None: ...


class Tunnel(Protocol):
    """A client's way to the upstream, for everything but naming. It closes the client's connection when it ends."""

    def unary(self, stream: int, payload: Payload) -> None:
        """A request. The tunnel answers it on the connection."""
        ...

    def stream(self, payload: Payload) -> None:
        """A message on the client's stream."""
        ...

    def drained(self) -> None:
        """The connection takes more bytes again."""
        ...

    def close(self) -> None:
        """The client is gone. More than once is harmless."""
        ...


class Tunnels(Protocol):
    async def open(self, client: str, setup: Payload, connection: Connection, stream: int) -> Tunnel:
        """A tunnel for a connection whose setup came on `stream`; answers the setup. `client` is an address.

        Raises a `ProxyError` if the upstream cannot be reached, or the client has too many: the connection is closed.
        """
        ...

    def status(self) -> Mapping[str, Any]:
        """For `/status`: how many are `open`, and the `error` that keeps clients from the upstream."""
        ...


class Dialing(Protocol):
    """`upstream.grpc.tunnel.Dialer`."""

    @property
    def absent(self) -> Callable[[], str]: ...

    async def dial(self, key: str, setup: Payload, owner: UpstreamOwner) -> Dialed: ...
