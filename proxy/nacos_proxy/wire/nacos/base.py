"""A dialect as a list of `Operation`s, and the calls that only clients of a dialect make.

A dialect has two roles. As a *client* it writes a call as a request and reads the reply. As a *server* it reads a
request as a call and writes the result or the error. Both are pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from nacos_proxy.model.calls import Call
from nacos_proxy.model.errors import ProxyError
from nacos_proxy.model.services import Instance, Selection, ServiceKey, Snapshot
from nacos_proxy.wire.http import HttpReply, HttpRequest

C = TypeVar("C")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class PushAddress:
    """Where a legacy client expects UDP push (nacos-http.md 6). `agent` is its User-Agent, or else Client-Version."""

    ip: str
    port: int
    agent: str
    app: str = ""


@dataclass(frozen=True, slots=True)
class ReadService(Call[Selection]):
    """A list as a client requests it; the catalog answers. `clusters` is echoed as sent; its parts are the filter."""

    service: ServiceKey
    clusters: str = ""
    healthy_only: bool = False
    push: PushAddress | None = None
    everything: bool = False  # the v3 admin list: with disabled instances and true health; refuses unknown names

    @property
    def cluster_set(self) -> frozenset[str]:
        return frozenset(part for part in self.clusters.split(",") if part)


@dataclass(frozen=True, slots=True)
class ReadPage(ReadService):
    """A page of the instances of a service; `page` counts from 1."""

    page: int = 1
    size: int = 10
    healthy: bool | None = None
    enabled: bool | None = None


@dataclass(frozen=True, slots=True)
class ServiceView:
    """The result of `ReadService`: a snapshot, and the selection of it that is shown."""

    snapshot: Snapshot
    selection: Selection


@dataclass(frozen=True, slots=True)
class ReadInstance(Call[Instance]):
    """One instance as a client requests it. The catalog answers, or the registry if the catalog lacks it."""

    service: ServiceKey
    ip: str
    port: int
    cluster: str


@dataclass(frozen=True, slots=True)
class Operation(Generic[C, R]):
    """One row of a dialect. `path` starts after the context path.

    Server role: `read_request` raises `BadCall`; `write_reply` gets the call and its result.
    Client role: `write_request` (None: the dialect has no such request) and `read_reply`, which raises `Malformed` or
    `Refused`. `asks` are the calls of the client role, if they differ from `call`: the same path serves a client's
    `ReadService` and our own `Fetch`.
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
        """Whether a path belongs to this dialect's naming API, even if no operation has it."""
        ...

    def match(self, method: str, path: str) -> Operation[Any, Any] | None:
        """The operation of the server role for a request."""
        ...

    def unknown(self, request: HttpRequest, now_ms: int, /) -> HttpReply:
        """The answer to an unknown method or path of the naming API."""
        ...

    def write_error(self, request: HttpRequest, error: ProxyError, now_ms: int, /) -> HttpReply:
        """An error as this dialect's servers answer it. Every `ProxyError` has an answer."""
        ...

    def can_send(self, call: Call[Any]) -> bool:
        """Whether the client role has a request for this call."""
        ...

    def write_request(self, call: Call[Any]) -> HttpRequest: ...

    def read_reply(self, call: Call[R], reply: HttpReply) -> R:
        """The result. Raises `Malformed` or `Refused`."""
        ...
