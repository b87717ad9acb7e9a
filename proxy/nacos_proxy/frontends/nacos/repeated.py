"""A write that came before: it is begun again from its call, without its parse.

The `Repeatable` of the Nacos API. Access control, the tenant and the parse are behind it: whoever repeats it (the fast
path) does so only for the bytes that passed them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from nacos_proxy.core.agent import Agent, Written
from nacos_proxy.frontends.answers import ANSWER_HEADER
from nacos_proxy.model.calls import Write
from nacos_proxy.model.errors import ProxyError
from nacos_proxy.model.services import EMPTY
from nacos_proxy.wire.http import HttpReply, HttpRequest, Pairs, RouteName
from nacos_proxy.wire.nacos.base import Dialect, Operation

log = logging.getLogger("nacos_proxy.server")

FAILED = HttpReply(500, "text/plain; charset=utf-8", b"Internal Server Error")


def answer_headers(written: Written[Any]) -> Pairs:
    """Says who answered a write, unless it was the upstream."""
    return () if written.how == "upstream" else ((ANSWER_HEADER, written.how),)


class RepeatedWrite:
    """Implements `Repeatable`. `heard` is called each time that it begins."""

    __slots__ = (
        "_agent", "_call", "_dialect", "_heard", "_last", "_operation", "_request",
        "method", "path", "query", "route", "rules",
    )  # fmt: skip

    def __init__(
        self,
        agent: Agent,
        dialect: Dialect,
        operation: Operation[Any, Any],
        request: HttpRequest,
        call: Write[Any],
        target: tuple[str, str],
        route: RouteName,
        heard: Callable[[Write[Any]], object],
    ) -> None:
        """`target` is the raw path and the query."""
        self.method, self.rules, self.route = request.method, request.rules, route
        self.path, self.query = target
        self._agent = agent
        self._dialect = dialect
        self._operation = operation
        self._request = request._replace(query=(), form=(), headers=EMPTY)  # an error needs no more of it
        self._call = call
        self._heard = heard
        self._last: tuple[Any, str, HttpReply] | None = None  # result, how, and the reply made from them

    def begin(self, answered: Callable[[HttpReply], object]) -> bool:
        outcome = self._agent.begin(self._call)
        if outcome is None:
            return False
        self._heard(self._call)
        outcome.add_done_callback(lambda outcome: answered(self._reply(outcome)))
        return True

    def _reply(self, outcome: asyncio.Future[Written[Any]]) -> HttpReply:
        """The same object as last time if the result is the same, so that its bytes need not be made again."""
        try:
            error = outcome.exception()
            if isinstance(error, ProxyError):
                return self._dialect.write_error(self._request, error, int(self._agent.clock.wall() * 1000))
            written = outcome.result()
            if self._last is None or self._last[0] is not written.result or self._last[1] != written.how:
                reply = self._operation.write_reply(self._call, written.result)
                reply = reply._replace(headers=reply.headers + answer_headers(written))
                self._last = written.result, written.how, reply
            return self._last[2]
        except (Exception, asyncio.CancelledError):
            log.exception("a repeated write failed")
            return FAILED
