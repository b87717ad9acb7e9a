"""The rest of the Nacos API (configuration, console, logins), streamed to the upstream and back unchanged.

- The proxy removes only its own API tokens. Requests go only to the upstream, below its context path.
- If the server lacks a login path (3.2 has no v1, versions before 3.0 have no v3), the proxy tries the other one.
- If a client disconnects, its request to the upstream ends.
- One address gets at most as many connections as it leaves free (docs/decisions/0018-shares-by-client.md).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Container
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Protocol, runtime_checkable

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send

from nacos_proxy.catalog.shares import Shares
from nacos_proxy.frontends.answers import client_of, send_reply
from nacos_proxy.frontends.channel import wait_for_disconnect
from nacos_proxy.frontends.open_streams import end_on_revocation
from nacos_proxy.frontends.own_tokens import (
    own_token_test,
    without_own_headers,
    without_own_in_body,
    without_own_parameters,
)
from nacos_proxy.frontends.request_body import read_body
from nacos_proxy.frontends.requests import set_route
from nacos_proxy.model.errors import BadCall, Malformed, ProxyError, Refused
from nacos_proxy.runtime import spawn
from nacos_proxy.wire.http import TEXT_TYPE, HttpReply, RouteName
from nacos_proxy.wire.nacos.login import read_login

log = logging.getLogger("nacos_proxy.api")

_V1_LOGIN, _V3_LOGIN = "/v1/auth/login", "/v3/auth/user/login"
OTHER_LOGIN = {_V1_LOGIN: _V3_LOGIN, "/v1/auth/users/login": _V3_LOGIN, _V3_LOGIN: _V1_LOGIN}
MISSING_STATUSES = (404, 410, 501)
_CONFIGURATION = re.compile(r"/v[12]/cs")
_APIS = re.compile(r"/v[1-3]/(ai|auth|client|console|core|cs|ns|admin/(ai|core|cs|ns))(?=/|$)|/actuator(?=/|$)")
_ALWAYS_FOUND = ("/v1/cs/configs/listener",)  # at other paths, 404 can also mean that a configuration is missing
_MISSING_API = (
    "clients ask for configuration by %s, which the upstream does not have (status %d), and the proxy does not "
    "translate configuration calls. Use a client of the server's generation for configuration, or make the server "
    "answer %s: on Nacos 3.0 and 3.1 set nacos.core.api.compatibility.client.enabled=true in its "
    "application.properties, and nacos.core.api.compatibility.admin.enabled=true for publishing; Nacos 3.2 cannot"
)
MAX_LOGIN = 64 * 1024  # bytes of a login's form or response
MAX_REQUESTS = 1024  # at once, as many as `upstream.http.transport` has connections for them
TOO_MANY = "this address has too many concurrent requests to Nacos; wait for some to end"


class StreamedReply(Protocol):
    """An upstream's response, without hop-by-hop headers; its body is still to come."""

    status: int
    headers: list[tuple[bytes, bytes]]

    def body(self) -> AsyncIterator[bytes]: ...


@runtime_checkable
class Forwarder(Protocol):
    def forward(
        self, method: str, path: str, query: str, headers: list[tuple[bytes, bytes]], body: AsyncIterator[bytes]
    ) -> AbstractAsyncContextManager[StreamedReply]:
        """`path` is percent-encoded and starts behind the context path. Raises `ProxyError`s."""
        ...


class Passthrough:
    """An ASGI app. Without a forwarder (on the embedded registry) it answers 404."""

    def __init__(self, forwarder: Forwarder | None, *, context_path: str = "/nacos") -> None:
        self.on_login: Callable[[str], None] = lambda token: None  # called with the token of each successful login
        self._forwarder = forwarder
        self._context = context_path.rstrip("/").encode()
        self._missing_api = ""  # the configuration API that the upstream lacks, after it was logged
        self._in_progress: Shares[str] = Shares(MAX_REQUESTS)  # requests, by address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        set_route(scope, RouteName("passthrough", _template_of(scope["path"].removeprefix(self._context.decode()))))
        if self._forwarder is None:
            text = f"{scope['path']} is not part of the naming API, and there is no upstream to pass it to"
            await send_reply(send, HttpReply(404, TEXT_TYPE, f"{text} (the registry is embedded)".encode()))
        else:
            await _serve_while_connected(scope, receive, send, self._answer)

    async def offer(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Forwards a naming call that this proxy does not implement. If the upstream does not know it either, returns
        False; the request's body is then consumed.
        """
        return self._forwarder is not None and await _serve_while_connected(scope, receive, send, self._try)

    async def _try(self, request: Request, send: Send) -> bool:
        try:
            return await self._forward(
                request.scope, self._path(request), request.stream(), send, (*MISSING_STATUSES, 405)
            )
        except BadCall:
            return False

    async def _answer(self, request: Request, send: Send) -> bool:
        scope, path = request.scope, self._path(request)
        other_login = OTHER_LOGIN.get(path) if scope["method"] == "POST" else None
        if other_login is None:
            return await self._forward(scope, path, request.stream(), send)
        form = await read_body(scope, request.receive, MAX_LOGIN)
        send = _with_login_callback(send, self.on_login)
        if not await self._forward(scope, path, _once(form), send, MISSING_STATUSES):
            await self._forward(scope, other_login, _once(form), send)
        return True

    def _path(self, request: Request) -> str:
        raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
        return raw.partition(b"?")[0][len(self._context) :].decode("latin-1")

    async def _forward(
        self, scope: Scope, path: str, body: AsyncIterator[bytes], send: Send, unless: Container[int] = ()
    ) -> bool:
        """Returns False, without a response, if the upstream's status is one of `unless`."""
        client = client_of(scope)
        if not self._in_progress.room(client):
            await send_reply(send, HttpReply(429, TEXT_TYPE, TOO_MANY.encode()))
            return True
        self._in_progress.take(client)
        try:
            return await self._stream(scope, path, body, send, unless)
        finally:
            self._in_progress.give_back(client)

    async def _stream(
        self, scope: Scope, path: str, body: AsyncIterator[bytes], send: Send, unless: Container[int]
    ) -> bool:
        assert self._forwarder is not None
        own = own_token_test(scope)
        query = without_own_parameters(scope["query_string"].decode("latin-1"), own)
        headers = without_own_headers(scope["headers"], own)
        body = without_own_in_body(scope["headers"], body, own)
        async with self._forwarder.forward(scope["method"], path, query, headers, body) as reply:
            if reply.status in unless:
                return False
            self._log_missing_api(path, reply.status)
            await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
            async for chunk in reply.body():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        return True

    def _log_missing_api(self, path: str, status: int) -> None:
        """Logs that clients use a configuration API that the upstream lacks: once, and again after it worked."""
        api = "/".join(path.split("/", 3)[:3])
        if not _CONFIGURATION.fullmatch(api):
            return
        if status not in MISSING_STATUSES:
            self._missing_api = ""
        elif api != self._missing_api and (status != 404 or path.startswith(_ALWAYS_FOUND)):
            self._missing_api = api
            log.warning(_MISSING_API, api, status, api)


async def _serve_while_connected(
    scope: Scope, receive: Receive, send: Send, serve: Callable[[Request, Send], Awaitable[bool]]
) -> bool:
    """Returns the result of `serve`. If the client disconnects or its token is revoked, cancels it and returns True.

    A `ProxyError` becomes the response. If a response has begun, the server cuts the connection, which the client sees.
    """
    begun = False

    async def track_begun(message: Message) -> None:
        nonlocal begun
        begun = True
        await send(message)

    try:
        async with _cancelled_on_disconnect(scope, receive) as receive_body:
            return await serve(Request(scope, receive_body), track_begun)
    except ClientDisconnect:
        pass
    except ProxyError as error:
        if begun:
            log.warning("a forwarded response was cut short: %s", error)
        else:
            await send_reply(send, HttpReply(error.status, TEXT_TYPE, str(error).encode()))
    return True


@asynccontextmanager
async def _cancelled_on_disconnect(scope: Scope, receive: Receive) -> AsyncGenerator[Receive]:
    """Yields a `receive` for the request's body, which reports a disconnect before the end of the body.

    Cancels the block on a later disconnect, or when the token is revoked, and raises the reason: `ClientDisconnect`, or
    the `ProxyError`.
    """
    was_read, task = asyncio.Event(), asyncio.current_task()
    ended: Exception | None = None
    assert task is not None
    if not _has_body(scope):
        was_read.set()

    def end(why: Exception) -> None:
        nonlocal ended
        ended = why
        task.cancel()

    async def receive_body() -> Message:
        message = await receive()
        if not message.get("more_body", False):
            was_read.set()
        return message

    async def watch() -> None:
        await was_read.wait()
        await wait_for_disconnect(receive)
        end(ClientDisconnect())

    watching, release = spawn(watch(), name="client of the passthrough"), end_on_revocation(scope, end)
    try:
        yield receive_body
    except asyncio.CancelledError:
        if ended is not None:
            raise ended from None
        raise
    finally:
        release()
        watching.cancel()


def _with_login_callback(send: Send, on_login: Callable[[str], None]) -> Send:
    """Wraps `send`: calls `on_login` with the token in a successful response to a login."""
    body, ok = bytearray(), False

    async def send_and_read(message: Message) -> None:
        nonlocal ok
        if message["type"] == "http.response.start":
            ok = message["status"] == 200
        elif ok and len(body) <= MAX_LOGIN:
            body.extend(message["body"])
            if not message.get("more_body", False):
                with suppress(Malformed, Refused):
                    on_login(read_login("v1", HttpReply(200, None, bytes(body))).token)
        await send(message)

    return send_and_read


def _template_of(path: str) -> str:
    """The API of a path below the context path. Long polls are apart, because they take as long as they like."""
    if path.endswith("/configs/listener"):
        return "/*/configs/listener"
    api = _APIS.match(path)
    return f"{api[0]}/*" if api else "other"


def _has_body(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
