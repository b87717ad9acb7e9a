"""The rest of the Nacos API (configuration, console, logins), streamed to the upstream untouched.

Not for: the naming API (`nacos`). Only the configured upstream can be reached, only below its context path.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from proxy.api.answers import send_reply
from proxy.errors import ProxyError
from proxy.wire.base import HttpReply


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
        query = scope["query_string"].decode("latin-1")
        started = False
        try:
            body = Request(scope, receive).stream()
            async with self._forwarder.forward(scope["method"], path, query, scope["headers"], body) as reply:
                started = True
                await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
                async for chunk in reply.body():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        except ProxyError as error:
            if started:
                raise
            await send_reply(send, failed(error))


def unknown(path: str) -> HttpReply:
    text = f"{path} is not part of the naming API, and there is no upstream to pass it to (the registry is embedded)"
    return HttpReply(404, "text/plain;charset=UTF-8", text.encode())


def failed(error: ProxyError) -> HttpReply:
    return HttpReply(error.status, "text/plain;charset=UTF-8", str(error).encode())
