"""The rest of the Nacos API (configuration, console, logins), streamed to the upstream untouched.

Not for: the naming API (`nacos`). Only the configured upstream can be reached, only below its context path.

A login is the one request that may be sent to another path than it came for: where the server has the other
generation's login alone (v1 is gone from 3.2, v3 is not there before 3.0), that is asked, with the same form.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Container
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from proxy.api.answers import read_body, send_reply
from proxy.errors import ProxyError
from proxy.wire.base import HttpReply

_V1_LOGIN, _V3_LOGIN = "/v1/auth/login", "/v3/auth/user/login"
OTHER_LOGIN = {_V1_LOGIN: _V3_LOGIN, "/v1/auth/users/login": _V3_LOGIN, _V3_LOGIN: _V1_LOGIN}
NOT_THERE = (404, 410, 501)
MOST_LOGIN = 64 * 1024  # bytes of a login's form


class StreamedReply(Protocol):
    """An upstream's answer whose body is still on its way; hop-by-hop headers are already gone."""

    status: int
    headers: list[tuple[bytes, bytes]]

    def body(self) -> AsyncIterator[bytes]: ...


@runtime_checkable
class Forwarder(Protocol):
    """What can carry a request to the upstream: `registry.nacos.NacosRegistry` is one."""

    def forward(
        self, method: str, path: str, query: str, headers: list[tuple[bytes, bytes]], body: AsyncIterator[bytes]
    ) -> AbstractAsyncContextManager[StreamedReply]:
        """`path` is raw (percent-encoded) and starts behind the context path. Raises `ProxyError`s."""
        ...


class Passthrough:
    """An ASGI app. Without a forwarder (the embedded registry) every path is unknown."""

    def __init__(self, forwarder: Forwarder | None, *, context_path: str = "/nacos") -> None:
        self._forwarder = forwarder
        self._context = context_path.rstrip("/").encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._forwarder is None:
            await send_reply(send, unknown(scope["path"]))
            return
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        path = raw.partition(b"?")[0][len(self._context) :].decode("latin-1")
        other = OTHER_LOGIN.get(path) if scope["method"] == "POST" else None
        try:
            if other is None:
                await self._pass(scope, path, Request(scope, receive).stream(), send)
                return
            form = await read_body(Request(scope, receive), MOST_LOGIN)
            if not await self._pass(scope, path, _once(form), send, unless=NOT_THERE):
                await self._pass(scope, other, _once(form), send)
        except ProxyError as error:
            await send_reply(send, failed(error))

    async def _pass(
        self, scope: Scope, path: str, body: AsyncIterator[bytes], send: Send, *, unless: Container[int] = ()
    ) -> bool:
        """Whether an answer was given: none is where its status would be one of `unless`."""
        assert self._forwarder is not None
        query = scope["query_string"].decode("latin-1")
        async with self._forwarder.forward(scope["method"], path, query, scope["headers"], body) as reply:
            if reply.status in unless:
                return False
            await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
            try:
                async for chunk in reply.body():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except ProxyError as error:
                raise CutShort(str(error)) from error
            await send({"type": "http.response.body", "body": b""})
        return True


class CutShort(Exception):
    """The upstream broke off in the middle of an answer. The server ends the connection, so that the client sees it."""


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def unknown(path: str) -> HttpReply:
    text = f"{path} is not part of the naming API, and there is no upstream to pass it to (the registry is embedded)"
    return HttpReply(404, "text/plain;charset=UTF-8", text.encode())


def failed(error: ProxyError) -> HttpReply:
    return HttpReply(error.status, "text/plain;charset=UTF-8", str(error).encode())
