"""Counts requests by route and status, with their durations, for the metrics. It names a route, never a raw path.

A request that the fast path repeats does not come here: `fastpath.table` counts it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nacos_proxy.model.histogram import Histogram
from nacos_proxy.wire.http import HAS_LEFT, OTHER, REPEATED, RouteName

REQUEST = "nacos_proxy.request"
"""The scope key of the `_Request`, which all copies of the scope share."""

LEFT = 499  # as nginx counts a client that left before its answer began, whether the app noticed it or not

RequestTimes: TypeAlias = "defaultdict[tuple[RouteName, int | str], Histogram]"
"""By route and status. Both are bounded: routes are those of the program's own tables."""


def request_times() -> RequestTimes:
    return defaultdict(Histogram)


def set_route(scope: Scope, route: RouteName) -> None:
    """Call it when it is known which route answers a request."""
    request: _Request | None = scope.get(REQUEST)
    if request is not None:
        request.route = route


def route_of(scope: Scope) -> RouteName:
    request: _Request | None = scope.get(REQUEST)
    return OTHER if request is None else request.route


def path_of(scope: Scope) -> str:
    """The route's path without values; '' if there is none."""
    route = scope.get(REPEATED) or route_of(scope)
    return "" if route is OTHER else route.path


class RequestCounter:
    """Passes requests on to `app`. The duration of each ends when its answer begins: streams last as clients like."""

    def __init__(self, app: ASGIApp, times: RequestTimes, now: Callable[[], float]) -> None:
        self._app = app
        self._times = times
        self._now = now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = scope[REQUEST] = _Request(self._times, self._now, scope.get(HAS_LEFT), send)
        try:
            await self._app(scope, receive, request.send)
        except Exception:
            request.count(500)  # the server's answer to an exception
            raise
        finally:
            request.count(LEFT)


class _Request:
    """A request on its way: it is counted once, at first."""

    __slots__ = ("_began", "_has_left", "_now", "_send", "_times", "route")

    def __init__(
        self, times: RequestTimes, now: Callable[[], float], has_left: Callable[[], bool] | None, send: Send
    ) -> None:
        self.route = OTHER
        self._times: RequestTimes | None = times  # None: it is counted
        self._now = now
        self._has_left = has_left
        self._send = send
        self._began = now()

    def count(self, status: int) -> None:
        if self._times is not None:
            self._times[self.route, status].add(self._now() - self._began)
            self._times = None

    def send(self, message: Message) -> Awaitable[None]:
        """Returns the coroutine of the next `send`: one of its own would cost each message of each request."""
        if self._times is not None and message["type"] == "http.response.start":
            self.count(LEFT if self._has_left is not None and self._has_left() else message["status"])
        return self._send(message)
