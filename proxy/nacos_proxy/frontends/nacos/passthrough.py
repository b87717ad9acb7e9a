"""The rest of the Nacos API (configuration, console, logins), streamed to the upstream untouched,
but for API tokens of this proxy, which stop here.

Not for: the naming API (`nacos`). Only the configured upstream can be reached, only below its context path.

A login is the one request that may be sent to another path than it came for: where the server has the other
generation's login alone (v1 is gone from 3.2, v3 is not there before 3.0), that is asked, with the same form.

A client that goes away ends its request to the upstream, where a long poll would else be held for nobody. One address
has no more of the connections for passed requests than it leaves free (docs/decisions/0018-shares-by-client.md).
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
    own_in,
    without_own_headers,
    without_own_in_body,
    without_own_parameters,
)
from nacos_proxy.frontends.request_body import read_body
from nacos_proxy.model.errors import (
    BadCall,
    Malformed,
    ProxyError,
    Refused,
)
from nacos_proxy.runtime import spawn
from nacos_proxy.wire.http import HttpReply
from nacos_proxy.wire.nacos.login import read_login

log = logging.getLogger("nacos_proxy.api")

_V1_LOGIN, _V3_LOGIN = "/v1/auth/login", "/v3/auth/user/login"
OTHER_LOGIN = {_V1_LOGIN: _V3_LOGIN, "/v1/auth/users/login": _V3_LOGIN, _V3_LOGIN: _V1_LOGIN}
NOT_THERE = (404, 410, 501)
_CONFIGURATION = re.compile(r"/v[12]/cs")
_ALWAYS_FOUND = ("/v1/cs/configs/listener",)  # elsewhere 404 also means that there is no such configuration
GONE = (
    "clients ask for configuration by %s, which the server behind does not have (status %d); the proxy does not "
    "translate it. Use a client of the server's generation for configuration, or let the server answer %s: on Nacos "
    "3.0 and 3.1 set nacos.core.api.compatibility.client.enabled=true in its application.properties, for publishing "
    "nacos.core.api.compatibility.admin.enabled=true, too; Nacos 3.2 cannot"
)
MOST_LOGIN = 64 * 1024  # bytes of a login's form
MOST = 1024  # requests under way at once: `registry.transport` has as many connections for them
TOO_MANY = "this address has too many requests at Nacos at once: half of them are left to others. Wait for some to end"


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
        self.on_login: Callable[[str], None] = lambda token: None  # hears the token of each login that was answered
        self._gone = ""  # the configuration API that the server behind has not, once that was said
        self._context = context_path.rstrip("/").encode()
        self._under_way: Shares[str] = Shares(MOST)  # requests, by address

    async def offer(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """For a naming call that we do not know: whether the upstream knew it, and answered. Else its body is gone."""
        if self._forwarder is None:
            return False

        async def work(request: Request, send: Send) -> bool:
            try:
                return await self._pass(scope, self._path(scope), request.stream(), send, unless=(*NOT_THERE, 405))
            except BadCall:
                return False

        return await _attend(scope, receive, send, work)

    def _path(self, scope: Scope) -> str:
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        return raw.partition(b"?")[0][len(self._context) :].decode("latin-1")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._forwarder is None:
            await send_reply(send, unknown(scope["path"]))
            return
        path = self._path(scope)

        async def work(request: Request, send: Send) -> bool:
            await self._answer(scope, path, request, send)
            return True

        await _attend(scope, receive, send, work)

    async def _answer(self, scope: Scope, path: str, request: Request, send: Send) -> None:
        other = OTHER_LOGIN.get(path) if scope["method"] == "POST" else None
        if other is None:
            await self._pass(scope, path, request.stream(), send)
            return
        form = await read_body(request.scope, request.receive, MOST_LOGIN)
        send = _overheard(send, self.on_login)
        if not await self._pass(scope, path, _once(form), send, unless=NOT_THERE):
            await self._pass(scope, other, _once(form), send)

    def _note(self, path: str, status: int) -> None:
        """A client of another generation than the server asks for configuration again and again, and nobody knows why:
        it is said once, and again after it worked.
        """
        api = "/".join(path.split("/", 3)[:3])
        if not _CONFIGURATION.fullmatch(api):
            return
        if status not in NOT_THERE:
            self._gone = ""
        elif api != self._gone and (status != 404 or path.startswith(_ALWAYS_FOUND)):
            self._gone = api
            log.warning(GONE, api, status, api)

    async def _pass(
        self, scope: Scope, path: str, body: AsyncIterator[bytes], send: Send, *, unless: Container[int] = ()
    ) -> bool:
        """Whether an answer was given: none is where its status would be one of `unless`."""
        client = client_of(scope)
        if not self._under_way.room(client):
            await send_reply(send, HttpReply(429, "text/plain;charset=UTF-8", TOO_MANY.encode()))
            return True
        self._under_way.take(client)
        try:
            return await self._carry(scope, path, body, send, unless)
        finally:
            self._under_way.give_back(client)

    async def _carry(
        self, scope: Scope, path: str, body: AsyncIterator[bytes], send: Send, unless: Container[int]
    ) -> bool:
        assert self._forwarder is not None
        own, given = own_in(scope), scope["headers"]
        query = without_own_parameters(scope["query_string"].decode("latin-1"), own)
        headers, body = without_own_headers(given, own), without_own_in_body(given, body, own)
        async with self._forwarder.forward(scope["method"], path, query, headers, body) as reply:
            if reply.status in unless:
                return False
            self._note(path, reply.status)
            await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
            async for chunk in reply.body():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        return True


async def _attend(scope: Scope, receive: Receive, send: Send, work: Callable[[Request, Send], Awaitable[bool]]) -> bool:
    """What `work` says, which ends with its client, or when that may not go on; then True, and what failed is said."""
    begun = False

    async def sending(message: Message) -> None:
        nonlocal begun
        begun = True
        await send(message)

    try:
        async with _attended(scope, receive) as heard:
            return await work(Request(scope, heard), sending)
    except ClientDisconnect:
        pass
    except ProxyError as error:
        if begun:  # the server ends the connection, so that the client sees it
            log.warning("an answer was cut short that was passed on: %s", error)
        else:
            await send_reply(send, failed(error))
    return True


@asynccontextmanager
async def _attended(scope: Scope, receive: Receive) -> AsyncGenerator[Receive]:
    """What is done within ends with `ClientDisconnect` when the client goes away after its body was read, and with why
    where it may not go on.

    Gives the `receive` to read that body with; until then whoever reads is told.
    """
    read, working = asyncio.Event(), asyncio.current_task()
    ended: Exception | None = None
    assert working is not None
    if not _has_body(scope):
        read.set()

    def end(why: Exception) -> None:
        nonlocal ended
        ended = why
        working.cancel()

    async def heard() -> Message:
        message = await receive()
        if not message.get("more_body", False):
            read.set()
        return message

    async def watch() -> None:
        await read.wait()
        await wait_for_disconnect(receive)
        end(ClientDisconnect())

    watching, release = spawn(watch(), name="client of the passthrough"), end_on_revocation(scope, end)
    try:
        yield heard
    except asyncio.CancelledError:
        if ended is not None:
            raise ended from None
        raise
    finally:
        release()
        watching.cancel()


def _overheard(send: Send, told: Callable[[str], None]) -> Send:
    """As `send`; `told` hears the token in the answer to a login."""
    body, well = bytearray(), False

    async def sending(message: Message) -> None:
        nonlocal well
        if message["type"] == "http.response.start":
            well = message["status"] == 200
        elif well and len(body) <= MOST_LOGIN:
            body.extend(message["body"])
            if not message.get("more_body", False):
                with suppress(Malformed, Refused):
                    told(read_login("v1", HttpReply(200, None, bytes(body))).token)
        await send(message)

    return sending


def _has_body(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def unknown(path: str) -> HttpReply:
    text = f"{path} is not part of the naming API, and there is no upstream to pass it to (the registry is embedded)"
    return HttpReply(404, "text/plain;charset=UTF-8", text.encode())


def failed(error: ProxyError) -> HttpReply:
    return HttpReply(error.status, "text/plain;charset=UTF-8", str(error).encode())
