"""A dialect as a table: which operation a path means, which one a call needs. No rule of a dialect stands here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from nacos_proxy.model.calls import Call
from nacos_proxy.model.errors import Malformed, ProxyError
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos.base import Operation

R = TypeVar("R")

Unknown = Callable[[HttpRequest, int], HttpReply]
WriteError = Callable[[HttpRequest, ProxyError, int], HttpReply]

ANY = "*"  # the method of an operation that answers to all
KEY = "/{key}"  # the end of a path whose last part is a parameter
_IN_BODY = frozenset({"beat"})


def sent(request: HttpRequest) -> HttpRequest:
    """A request with its parameters where official SDKs have them: the object of a full beat in the body, all else in
    the query. 1.x does not see the form of a POST, and in a cluster a DELETE with a form is lost on its way to the
    responsible node (nacos-http.md 10.3, fact 12).
    """
    given = (*request.query, *request.form)
    query = tuple(pair for pair in given if pair[0] not in _IN_BODY)
    return request._replace(query=query, form=tuple(pair for pair in given if pair[0] in _IN_BODY))


class Table:
    """A `Dialect` made of rows; of two rows for the same path, or the same call, the first counts.

    `slash`: a slash at the end of a path is ignored. `head`: HEAD is answered as GET also where the naming API is;
    beside it (the console) it always is, as Spring does it, which load balancers count on.
    """

    def __init__(
        self,
        name: str,
        prefixes: Sequence[str],
        operations: Sequence[Operation[Any, Any]],
        *,
        unknown: Unknown,
        write_error: WriteError,
        slash: bool,
        head: bool,
    ) -> None:
        self.name = name
        self.operations = tuple(operations)
        self._prefixes = tuple(prefixes)
        self._unknown = unknown
        self._write_error = write_error
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
        """The same dialect with more to it."""
        return Table(
            self.name,
            self._prefixes,
            (*self.operations, *more),
            unknown=self._unknown,
            write_error=self._write_error,
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

    def unknown(self, request: HttpRequest, now_ms: int) -> HttpReply:
        return self._unknown(request, now_ms)

    def write_error(self, request: HttpRequest, error: ProxyError, now_ms: int) -> HttpReply:
        return self._write_error(request, error, now_ms)

    # client role

    def can_ask(self, call: Call[Any]) -> bool:
        return type(call) in self._asked

    def write_request(self, call: Call[Any]) -> HttpRequest:
        """Raises `KeyError` for a call that this dialect cannot ask."""
        operation = self._asked[type(call)]
        assert operation.write_request is not None
        return sent(operation.write_request(call))

    def read_reply(self, call: Call[R], reply: HttpReply) -> R:
        operation = self._asked[type(call)]
        assert operation.read_reply is not None
        try:
            return operation.read_reply(call, reply)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise Malformed(f"{type(call).__name__}: {error!r}") from error
