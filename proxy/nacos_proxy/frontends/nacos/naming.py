"""The Nacos naming API for clients, made from the dialects' tables. No rule of a dialect stands here.

Not for: the configuration API, the console, logins (`passthrough`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Hashable, Sequence
from secrets import token_bytes
from typing import Any, cast

from cachetools import LRUCache
from starlette.types import ASGIApp, Receive, Scope, Send

from nacos_proxy.catalog.freshness import CacheControl, CacheResult, cache_headers
from nacos_proxy.core.agent import Agent
from nacos_proxy.frontends.answers import (
    header,
    mark_cacheable,
    send_reply,
    to_request,
)
from nacos_proxy.frontends.request_body import read_body
from nacos_proxy.model.calls import (
    Alive,
    Beat,
    DetailPage,
    GetInstance,
    Write,
)
from nacos_proxy.model.errors import ProxyError
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.wire.http import HttpReply, Pairs
from nacos_proxy.wire.nacos.administration import WHOLE
from nacos_proxy.wire.nacos.base import (
    Dialect,
    Operation,
    ReadInstance,
    ReadService,
    ServiceView,
)
from nacos_proxy.wire.nacos.rules import RULES
from nacos_proxy.wire.rest.bodies import etag, tag_matches

ANSWER_HEADER = "nacos-proxy-answer"
_REMEMBERED, _LONGEST = 4096, 2048  # requests whose meaning is remembered, and how many bytes one may have
_DIGEST_KEY = token_bytes(32)
_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH")

_LARGE = 100  # services or clients in an answer: to write more would hold the loop too long

Offer = Callable[[Scope, Receive, Send], Awaitable[bool]]
"""Answers a request where the upstream knows its path; whether it did."""


Remembered = LRUCache[Hashable, Write[Any]]
"""What requests meant, by their digest and the rules: they may hold a token or a password, which is not kept."""


def remembered_calls() -> Remembered:
    return LRUCache(_REMEMBERED)


def _digest(*parts: bytes) -> bytes:
    found = hashlib.blake2b(key=_DIGEST_KEY, digest_size=16)
    for part in parts:
        found.update(b"%d:" % len(part))
        found.update(part)
    return found.digest()


class NacosApi:
    """An ASGI app for all paths below the context path; what no dialect owns or answers goes to `otherwise`.

    `on_list` hears of every list that was answered, which is how push addresses become known; `on_beat` of every beat
    that a client sent, whatever becomes of it: a sign of life. A naming call that no dialect knows is `offer`ed to the
    server behind before it is called unknown.
    """

    def __init__(
        self,
        agent: Agent,
        dialects: Sequence[Dialect],
        otherwise: ASGIApp,
        *,
        offer: Offer | None = None,
        context_path: str = "/nacos",
        max_body: int = 1 << 20,
        on_list: Callable[[ReadService, Snapshot], None] | None = None,
        on_beat: Callable[[ServiceKey, str, int], object] | None = None,
        remembered: Remembered | None = None,
    ) -> None:
        self._agent = agent
        self._dialects = tuple(dialects)
        self._otherwise = otherwise
        self._offer = offer
        self._context = context_path.rstrip("/")
        self._max_body = max_body
        self._on_list = on_list
        self._on_beat = on_beat
        self._read = remembered_calls() if remembered is None else remembered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"][len(self._context) :]
        for dialect in self._dialects:
            operation = dialect.match(scope["method"], path)
            if operation is not None or dialect.owns(path):
                if operation is None and self._foreign(dialect, scope["method"], path):
                    await self._ask_behind(dialect, path, scope, receive, send)
                    return
                reply = await self._answer(dialect, operation, path, scope, receive)
                await send_reply(send, reply, head_only=scope["method"] == "HEAD")
                return
        await self._otherwise(scope, receive, send)

    def knows(self, method: str, path: str) -> bool:
        """Whether a request is one of the naming API; `path` with the context path."""
        below = path[len(self._context) :]
        return any(d.match(method, below) is not None or d.owns(below) for d in self._dialects)

    @staticmethod
    def _foreign(dialect: Dialect, method: str, path: str) -> bool:
        """What of the naming API this proxy does not speak, and the server behind may: whole paths, and what servers
        alone can do.
        """
        theirs = any(whole.name == dialect.name and whole.match(method, path) for whole in WHOLE)
        return theirs or not any(dialect.match(known, path) for known in _METHODS)

    async def _ask_behind(self, dialect: Dialect, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        if self._offer is None or not await self._offer(scope, receive, send):
            reply = dialect.unknown(to_request(scope, path, b"", self._context), self._now_ms())
            await send_reply(send, reply, head_only=scope["method"] == "HEAD")

    async def _answer(
        self, dialect: Dialect, operation: Operation[Any, Any] | None, path: str, scope: Scope, receive: Receive
    ) -> HttpReply:
        try:
            body = b"" if scope["method"] in ("GET", "HEAD") else await read_body(scope, receive, self._max_body)
        except ProxyError as error:
            return dialect.write_error(to_request(scope, path, b"", self._context), error, self._now_ms())
        if operation is None:
            return dialect.unknown(to_request(scope, path, b"", self._context), self._now_ms())
        try:
            call = self._call(operation, path, scope, body)
            result, headers = await self._perform(call, scope)
            if _large(result):
                reply = await asyncio.to_thread(operation.write_reply, call, result)
            else:
                reply = operation.write_reply(call, result)
        except ProxyError as error:
            return dialect.write_error(to_request(scope, path, b"", self._context), error, self._now_ms())
        if reply.status == 200 and unchanged(scope, headers):
            return HttpReply(304, None, b"", headers)
        return HttpReply(reply.status, reply.content_type, reply.body, reply.headers + headers)

    def _call(self, operation: Operation[Any, Any], path: str, scope: Scope, body: bytes) -> Any:
        """What a request means. Beats, and what is registered again, say the same each time: they are read once."""
        if scope["method"] == "GET":
            return operation.read_request(to_request(scope, path, body, self._context))
        kind = header(scope, b"content-type")
        said = _digest(scope["method"].encode(), path.encode(), scope["query_string"], body, kind), scope.get(RULES)
        known = self._read.get(said)
        if known is not None:
            return known
        call = operation.read_request(to_request(scope, path, body, self._context))
        short = len(path) + len(body) + len(scope["query_string"]) + len(kind) <= _LONGEST
        if short and issubclass(operation.call, Write):
            self._read[said] = call
        return call

    async def _perform(self, call: Any, scope: Scope) -> tuple[Any, Pairs]:
        agent = self._agent
        if isinstance(call, ReadService):
            wants = CacheControl.parse(header(scope, b"cache-control").decode("latin-1"))
            look = await agent.read(call.service, wants)
            assert look.snapshot is not None
            if self._on_list is not None:
                self._on_list(call, look.snapshot)
            if call.push is None:
                mark_cacheable(scope, agent, look, "list", wants)
            return ServiceView(look.snapshot, look.snapshot.select(call.cluster_set, call.healthy_only)), _headers(look)
        if isinstance(call, ReadInstance):
            instance, found = await agent.instance(GetInstance(call.service, call.ip, call.port, call.cluster))
            if found is not None:
                wants = CacheControl.parse(header(scope, b"cache-control").decode("latin-1"))
                mark_cacheable(scope, agent, found, "instance", wants)
            return instance, _headers(found)
        if isinstance(call, Write):
            if isinstance(call, Beat) and self._on_beat is not None:
                self._on_beat(call.service, call.ip, call.port)
            written = await agent.write(cast("Write[Any]", call))
            return written.result, () if written.how == "upstream" else ((ANSWER_HEADER, written.how),)
        if isinstance(call, Alive):  # this process lives, as it answers; r-nacos has no such call at all
            return None, ()
        return await agent.ask(call), ()

    def refuse(self, scope: Scope, error: ProxyError) -> HttpReply:
        """An error that arose before the request came here, in the dialect of its path (v1's where none owns it)."""
        path = scope["path"][len(self._context) :]
        dialect = next((d for d in self._dialects if d.owns(path)), self._dialects[0])
        return dialect.write_error(to_request(scope, path, b"", self._context), error, self._now_ms())

    def _now_ms(self) -> int:
        return int(self._agent.clock.wall() * 1000)


def _headers(look: CacheResult | None) -> Pairs:
    if look is None or look.snapshot is None:
        return ()
    return (*cache_headers(look), ("etag", etag(look.snapshot.revision)))


def _large(result: object) -> bool:
    rows: Any = result.rows if isinstance(result, DetailPage) else result
    return isinstance(rows, tuple) and len(rows) > _LARGE  # pyright: ignore[reportUnknownArgumentType]


def unchanged(scope: Scope, headers: Pairs) -> bool:
    """Whether the client has this very answer already (RFC 9110 13.1.2)."""
    tag = dict(headers).get("etag") if headers else None
    return tag is not None and tag_matches(header(scope, b"if-none-match").decode("latin-1"), tag)
