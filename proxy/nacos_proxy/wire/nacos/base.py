"""`Dialect`: a Nacos HTTP dialect as a table of `Operation`s; and the calls that only clients of a dialect make.

A dialect has two roles. As a *client* it writes a call as a request and reads the reply. As a *server* it reads a
request as a call and writes the result or the error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from nacos_proxy.model.calls import Call
from nacos_proxy.model.errors import Malformed, ProxyError
from nacos_proxy.model.services import Instance, Selection, ServiceKey, Snapshot
from nacos_proxy.wire.http import HttpReply, HttpRequest

C = TypeVar("C")
R = TypeVar("R")

ANY = "*"  # an operation with this method answers every method
KEY = "/{key}"  # at the end of a path: the last segment is a parameter


@dataclass(frozen=True, slots=True)
class PushAddress:
    """Where a legacy client expects UDP push (nacos-http.md 6). `agent` is its User-Agent, else its Client-Version."""

    ip: str
    port: int
    agent: str
    app: str = ""


@dataclass(frozen=True, slots=True)
class ReadService(Call[Selection]):
    """A list as a client requests it; the catalog answers. `clusters` is repeated as sent; its parts are the filter."""

    service: ServiceKey
    clusters: str = ""
    healthy_only: bool = False
    push: PushAddress | None = None
    everything: bool = False  # as the v3 admin list: disabled instances, true health; unknown names are refused

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
    """The result of `ReadService`: a snapshot, and the hosts of it to show."""

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
    Client role: `write_request` and `read_reply`, which raises `Malformed` or `Refused`; None if the dialect has no
    such request. `asks` are the calls that the client role sends, if they differ from `call`: at the same path we
    answer a client's `ReadService` and send our own `Fetch`.
    """

    method: str
    path: str
    call: type[C]
    read_request: Callable[[HttpRequest], C]
    write_reply: Callable[[C, R], HttpReply]
    write_request: Callable[[C], HttpRequest] | None = None
    read_reply: Callable[[C, HttpReply], R] | None = None
    asks: tuple[type, ...] = ()


class Dialect:
    """A Nacos HTTP dialect. If two operations have the same path, or the same call, the first one wins.

    `prefixes` are the paths of its naming API. `slash`: a slash at the end of a path is ignored. `head`: HEAD is
    answered as GET in the naming API. Outside of it (the console) HEAD always works, as in Spring; load balancers rely
    on it.
    """

    def __init__(
        self,
        name: str,
        prefixes: Sequence[str],
        operations: Sequence[Operation[Any, Any]],
        *,
        unknown: Callable[[HttpRequest, int], HttpReply],
        write_error: Callable[[HttpRequest, ProxyError, int], HttpReply],
        slash: bool,
        head: bool,
    ) -> None:
        """`unknown` answers an unknown method or path of the naming API, `write_error` every `ProxyError`.

        Both also get the time in ms since 1970.
        """
        self.name = name
        self.operations = tuple(operations)
        self.unknown = unknown
        self.write_error = write_error
        self._prefixes = tuple(prefixes)
        self._slash = slash
        self._head = head
        self._by_path: dict[tuple[str, str], Operation[Any, Any]] = {}
        self._by_call: dict[type, Operation[Any, Any]] = {}
        for operation in operations:
            self._by_path.setdefault((operation.method, operation.path), operation)
            if operation.write_request is not None and operation.read_reply is not None:
                for call in operation.asks or (operation.call,):
                    self._by_call.setdefault(call, operation)

    def with_operations(self, more: Sequence[Operation[Any, Any]]) -> Dialect:
        return Dialect(
            self.name,
            self._prefixes,
            (*self.operations, *more),
            unknown=self.unknown,
            write_error=self.write_error,
            slash=self._slash,
            head=self._head,
        )

    def __repr__(self) -> str:
        return f"<dialect {self.name}>"

    def owns(self, path: str) -> bool:
        """Whether a path belongs to the naming API, even if no operation has it."""
        return any(path == prefix or path.startswith(f"{prefix}/") for prefix in self._prefixes)

    def match(self, method: str, path: str) -> Operation[Any, Any] | None:
        if self._slash and path.endswith("/"):
            path = path[:-1]
        if method == "HEAD" and (self._head or not self.owns(path)):
            method = "GET"
        by_path = self._by_path
        found = by_path.get((method, path)) or by_path.get((ANY, path))
        return found or by_path.get((ANY, path.rpartition("/")[0] + KEY))

    def can_send(self, call: Call[Any]) -> bool:
        return type(call) in self._by_call

    def write_request(self, call: Call[Any]) -> HttpRequest:
        """Raises `KeyError` if this dialect has no request for the call.

        Parameters stand where official SDKs put them: the object of a full beat in the body, all others in the query.
        1.x ignores the form of a POST, and a cluster loses the form of a DELETE that one node forwards to another
        (nacos-http.md 10.3, fact 12).
        """
        write = self._by_call[type(call)].write_request
        assert write is not None
        request = write(call)
        given = (*request.query, *request.form)
        query = tuple(pair for pair in given if pair[0] != "beat")
        return request._replace(query=query, form=tuple(pair for pair in given if pair[0] == "beat"))

    def read_reply(self, call: Call[R], reply: HttpReply) -> R:
        """Raises `Malformed` or `Refused`."""
        read = self._by_call[type(call)].read_reply
        assert read is not None
        try:
            return read(call, reply)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise Malformed(f"{type(call).__name__}: {error!r}") from error
