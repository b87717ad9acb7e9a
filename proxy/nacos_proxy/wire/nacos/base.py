"""HTTP as values, and what all dialects share: operations, the table, names and texts that Nacos uses everywhere.

Pure: bytes in, bytes out. A dialect is a table of `Operation`s; it plays two roles with it. As a *client* it writes a
call as a request and reads the reply; as a *server* it reads a request as a call and writes the result, or the error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from nacos_proxy.model.calls import Call
from nacos_proxy.model.errors import ProxyError
from nacos_proxy.model.services import (
    Instance,
    Selection,
    ServiceKey,
    Snapshot,
)
from nacos_proxy.wire.http import HttpReply, HttpRequest

C = TypeVar("C")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class PushAddress:
    """Where a legacy client wants its UDP push (nacos-http.md 6); `agent` is its User-Agent, else its Client-Version."""

    ip: str
    port: int
    agent: str
    app: str = ""


@dataclass(frozen=True, slots=True)
class ReadService(Call[Selection]):
    """A list as a client asks for it. `clusters` is echoed as sent, its parts filter. Answered by the catalog."""

    service: ServiceKey
    clusters: str = ""
    healthy_only: bool = False
    push: PushAddress | None = None
    everything: bool = False  # the v3 admin list: disabled ones too, raw health, unknown service or cluster refused

    @property
    def cluster_set(self) -> frozenset[str]:
        return frozenset(part for part in self.clusters.split(",") if part)


@dataclass(frozen=True, slots=True)
class ReadPage(ReadService):
    """A catalog page over the instances of a service; `page` counts from 1."""

    page: int = 1
    size: int = 10
    healthy: bool | None = None
    enabled: bool | None = None


@dataclass(frozen=True, slots=True)
class ServiceView:
    """The result of `ReadService`: the snapshot it was taken from and what of it shows."""

    snapshot: Snapshot
    selection: Selection


@dataclass(frozen=True, slots=True)
class ReadInstance(Call[Instance]):
    """One instance as a client asks for it. Answered by the catalog, and by the registry where that has none."""

    service: ServiceKey
    ip: str
    port: int
    cluster: str


@dataclass(frozen=True, slots=True)
class Operation(Generic[C, R]):
    """One row of a dialect. `path` stands behind the context path.

    Server role: `read_request` raises `BadCall`; `write_reply` gets the call and its result.
    Client role: `write_request` (None: this dialect cannot ask for it) and `read_reply`, which raises `Malformed`
    for what it cannot read and `Refused` for a no. `asks` are the calls that it carries where they are others than
    `call`: a list carries a `Fetch` to a server, and a `ReadService` from a client.
    """

    method: str
    path: str
    call: type[C]
    read_request: Callable[[HttpRequest], C]
    write_reply: Callable[[C, R], HttpReply]
    write_request: Callable[[C], HttpRequest] | None = None
    read_reply: Callable[[C, HttpReply], R] | None = None
    asks: tuple[type, ...] = ()


class Dialect(Protocol):
    """A Nacos HTTP dialect, both roles."""

    name: str
    operations: tuple[Operation[Any, Any], ...]

    def owns(self, path: str) -> bool:
        """Whether a path is of this dialect's naming API, known to it or not."""
        ...

    def match(self, method: str, path: str) -> Operation[Any, Any] | None:
        """The operation of the server role for a request."""
        ...

    def unknown(self, request: HttpRequest, now_ms: int) -> HttpReply:
        """The answer to a method and path that the naming API does not have."""
        ...

    def write_error(self, request: HttpRequest, error: ProxyError, now_ms: int) -> HttpReply:
        """An error as this dialect's servers put it. Total: every `ProxyError` has an answer."""
        ...

    def can_ask(self, call: Call[Any]) -> bool:
        """Whether the client role has a request for this call."""
        ...

    def write_request(self, call: Call[Any]) -> HttpRequest: ...

    def read_reply(self, call: Call[R], reply: HttpReply) -> R:
        """The result. Raises `Malformed` or `Refused`."""
        ...
