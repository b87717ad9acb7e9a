"""Finds the operation of a dialect for a request (server role) or a call (client role)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from nacos_proxy.model.calls import Call
from nacos_proxy.model.errors import Malformed, ProxyError
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos.base import Operation

R = TypeVar("R")


ANY = "*"  # an operation with this method answers every method
KEY = "/{key}"  # at the end of a path: the last segment is a parameter
_IN_BODY = frozenset({"beat"})


def _arranged(request: HttpRequest) -> HttpRequest:
    """Puts parameters where official SDKs put them: the object of a full beat into the body, the rest into the query.

    1.x ignores the form of a POST, and a cluster loses the form of a DELETE that one node forwards to another
    (nacos-http.md 10.3, fact 12).
    """
    given = (*request.query, *request.form)
    query = tuple(pair for pair in given if pair[0] not in _IN_BODY)
    return request._replace(query=query, form=tuple(pair for pair in given if pair[0] in _IN_BODY))


class Table:
    """A `Dialect` made of rows. If two rows have the same path, or the same call, the first one wins.

    `slash`: a slash at the end of a path is ignored. `head`: HEAD is answered as GET in the naming API. Outside of it
    (the console) HEAD always works, as in Spring; load balancers rely on it.
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
        self.name = name
        self.operations = tuple(operations)
        self.unknown = unknown
        self.write_error = write_error
        self._prefixes = tuple(prefixes)
        self._slash = slash
        self._head = head
        self._served: dict[tuple[str, str], Operation[Any, Any]] = {}
        self._asked: dict[type, Operation[Any, Any]] = {}
        for operation in operations:
            self._served.setdefault((operation.method, operation.path), operation)
            if operation.write_request is not None and operation.read_reply is not None:
                for call in operation.asks or (operation.call,):
                    self._asked.setdefault(call, operation)

    def with_rows(self, more: Sequence[Operation[Any, Any]]) -> Table:
        """The dialect with additional rows."""
        return Table(
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

    # server role

    def owns(self, path: str) -> bool:
        return any(path == prefix or path.startswith(f"{prefix}/") for prefix in self._prefixes)

    def match(self, method: str, path: str) -> Operation[Any, Any] | None:
        if self._slash and path.endswith("/"):
            path = path[:-1]
        if method == "HEAD" and (self._head or not self.owns(path)):
            method = "GET"
        served = self._served
        found = served.get((method, path)) or served.get((ANY, path))
        return found or served.get((ANY, path.rpartition("/")[0] + KEY))

    # client role

    def can_send(self, call: Call[Any]) -> bool:
        return type(call) in self._asked

    def write_request(self, call: Call[Any]) -> HttpRequest:
        """Raises `KeyError` if this dialect has no request for the call."""
        operation = self._asked[type(call)]
        assert operation.write_request is not None
        return _arranged(operation.write_request(call))

    def read_reply(self, call: Call[R], reply: HttpReply) -> R:
        operation = self._asked[type(call)]
        assert operation.read_reply is not None
        try:
            return operation.read_reply(call, reply)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise Malformed(f"{type(call).__name__}: {error!r}") from error
