"""Follows each request of HTTP from its beginning to its end: its id, its line in the access log, its trace.

It stands in front of the fast path's target stage, so that an id is never part of a prepared response. What the
protocol repeats (`fastpath.protocol`) does not come here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nacos_proxy.frontends.answers import client_of
from nacos_proxy.frontends.requests import LEFT
from nacos_proxy.request_context import (
    HOPS_HEADER,
    ID_HEADER,
    Answered,
    Begin,
    Incoming,
    RequestContext,
    hops_of,
    new_id,
    sane_id,
    work_for,
)
from nacos_proxy.wire.http import HAS_LEFT, REPEATED
from nacos_proxy.wire.rest.sse import CONTENT_TYPE as EVENT_STREAM

_HEADER = ID_HEADER.lower().encode()
_HOPS = HOPS_HEADER.lower().encode()
_STREAM = EVENT_STREAM.encode()


class RequestLog:
    """An ASGI app in front of the whole app.

    `begin`: makes the context of a request; None: one without a trace.
    `log`: gets each request that was answered; None: nobody wants to know.
    """

    def __init__(
        self,
        app: ASGIApp,
        now: Callable[[], float],
        route_of: Callable[[Scope], str],
        begin: Begin | None = None,
        log: Callable[[Answered], None] | None = None,
    ) -> None:
        self._app = app
        self._now = now
        self._route_of = route_of
        self._begin = begin
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = passed = b""
        for name, value in scope["headers"]:
            if name == _HEADER:
                given = value
            elif name == _HOPS:
                passed = value
        id = sane_id(given) or new_id()
        if self._begin is None:
            request = RequestContext(id)
        else:
            request = self._begin(
                Incoming(*(id, scope["method"], raw_path(scope), client_of(scope)), scope["scheme"], scope["headers"])
            )
        if passed:
            request.hops = hops_of(passed)
        work_for(request)  # until the task ends: the server logs a failure of the app after it
        if self._log is None and self._begin is None:
            await self._app(scope, receive, _Answer(id.encode("ascii"), send).send)
            return
        ended = partial(self._ended, scope, request, self._now())
        answer = _Answer(id.encode("ascii"), send, ended, scope.get(HAS_LEFT))
        try:
            await self._app(scope, receive, answer.send)
        except Exception:
            answer.end(500)  # the server answers it
            raise
        finally:
            answer.end(LEFT)

    def _ended(self, scope: Scope, request: RequestContext, began: float, status: int, size: int) -> None:
        repeated = REPEATED in scope  # such answers are not timed, whoever sends them
        answered = Answered(
            scope["method"],
            raw_path(scope),
            scope["query_string"].decode("latin-1"),
            self._route_of(scope),
            status,
            0.0 if repeated else self._now() - began,
            size,
            client_of(scope),
            request.id,
            repeated,
        )
        request.ended(answered)
        if self._log is not None:
            self._log(answered)


def raw_path(scope: Scope) -> str:
    """The path as the client wrote it, without the query."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw.decode("latin-1")


class _Answer:
    """Passes an answer on, with the request's id. `ended` gets its status and the bytes of its body, once.

    It is called for an event stream when that begins, because streams last as clients like. `has_left` says whether the
    client has left, if the server knows.
    """

    __slots__ = ("_ended", "_has_left", "_id", "_send", "_size", "_status")

    def __init__(
        self,
        id: bytes,
        send: Send,
        ended: Callable[[int, int], None] | None = None,
        has_left: Callable[[], bool] | None = None,
    ) -> None:
        self._ended = ended  # None: nobody wants to know, or it was called
        self._has_left = has_left
        self._id = id
        self._send = send
        self._size = 0
        self._status = 0  # before it begins

    def end(self, status: int) -> None:
        """The answer has ended; with `status` if it had not begun."""
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self._status or status, self._size)

    def send(self, message: Message) -> Awaitable[None]:
        """Returns the coroutine of the next `send`, because one of its own would cost more."""
        if message["type"] == "http.response.start":
            status: int = message["status"]
            # a server's answer to a forwarded request may have one already
            others = [field for field in message.get("headers", ()) if field[0].lower() != _HEADER]
            headers = [(_HEADER, self._id), *others]  # first, as in a repeated answer
            message = {"type": "http.response.start", "status": status, "headers": headers}
            if self._ended is not None:
                self._status = LEFT if self._has_left is not None and self._has_left() else status
                if _is_event_stream(headers):
                    self.end(self._status)
        elif message["type"] == "http.response.body":
            self._size += len(message.get("body", b""))
        return self._send(message)


def _is_event_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(value[: len(_STREAM)].lower() == _STREAM and name.lower() == b"content-type" for name, value in headers)
