"""The Nacos naming API, from the operations of the dialects. Configuration and logins are in `passthrough`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Hashable, Sequence
from functools import partial
from secrets import token_bytes
from typing import Any, cast

from cachetools import LRUCache
from starlette.types import ASGIApp, Receive, Scope, Send

from nacos_proxy.catalog.freshness import CacheControl, CacheResult, cache_headers
from nacos_proxy.core.agent import Agent
from nacos_proxy.frontends.answers import header, mark_cacheable, raw_path, send_reply, to_request
from nacos_proxy.frontends.nacos.repeated import RepeatedWrite, answer_headers
from nacos_proxy.frontends.request_body import read_body
from nacos_proxy.frontends.requests import set_route
from nacos_proxy.model.calls import Alive, Beat, DetailPage, GetInstance, Write
from nacos_proxy.model.errors import ProxyError
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.wire.http import REMEMBER, RULES, HttpReply, HttpRequest, Pairs, RouteName
from nacos_proxy.wire.nacos.administration import WHOLE
from nacos_proxy.wire.nacos.base import Dialect, Operation, ReadInstance, ReadService, ServiceView
from nacos_proxy.wire.rest.bodies import etag, tag_matches

_REMEMBERED, _MAX_REMEMBERED_BYTES = 4096, 2048  # parsed writes that are kept; the longest request, in bytes
_DIGEST_KEY = token_bytes(32)
_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH")
_LARGE = 100  # services or clients; a reply with more is written in a thread, so that it does not block the event loop

Offer = Callable[[Scope, Receive, Send], Awaitable[bool]]
"""Answers a request if the upstream knows its path. Returns whether it did."""

Remembered = LRUCache[Hashable, Write[Any]]
"""Parsed writes, by a digest of the request (which may hold a token or a password) and the rules."""


def parsed_writes() -> Remembered:
    return LRUCache(_REMEMBERED)


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(key=_DIGEST_KEY, digest_size=16)
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()


class NacosApi:
    """An ASGI app for all paths below the context path.

    - `otherwise` gets the requests that no dialect owns.
    - `offer` gets naming calls that this proxy does not implement; those that it does not answer get a 404.
    - `on_list` is called after each answered list, with the address that the client wants pushes at. If there is one,
      it is called about once a second while the fast path repeats the answer.
    - `on_beat` is called with each beat of a client, even if it then fails.
    - `remembered` can be shared between tenants.
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
        self._routes = {
            id(it): RouteName(dialect.name, name)
            for dialect in self._dialects
            for it, name in ((dialect, "other"), *((op, f"{op.method} {op.path}") for op in dialect.operations))
        }
        self._writes = parsed_writes() if remembered is None else remembered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = self._path(scope)
        for dialect in self._dialects:
            operation = dialect.match(scope["method"], path)
            if operation is None and not dialect.owns(path):
                continue
            set_route(scope, self._routes[id(operation or dialect)])
            if operation is not None or not _may_be_known_upstream(dialect, scope["method"], path):
                reply = await self._answer(dialect, operation, scope, receive)
            elif self._offer is not None and await self._offer(scope, receive, send):
                return
            else:
                reply = dialect.unknown(self._to_request(scope), self._now_ms())
            await send_reply(send, reply, head_only=scope["method"] == "HEAD")
            return
        await self._otherwise(scope, receive, send)

    def knows(self, method: str, path: str) -> bool:
        """Whether a request belongs to the naming API; `path` includes the context path."""
        below = path[len(self._context) :]
        return any(d.match(method, below) is not None or d.owns(below) for d in self._dialects)

    def refuse(self, scope: Scope, error: ProxyError) -> HttpReply:
        """The reply to an error from before this app, in the dialect of the request's path (else v1's)."""
        path = self._path(scope)
        return self._error(next((d for d in self._dialects if d.owns(path)), self._dialects[0]), scope, error)

    async def _answer(
        self, dialect: Dialect, operation: Operation[Any, Any] | None, scope: Scope, receive: Receive
    ) -> HttpReply:
        try:
            body = b"" if scope["method"] in ("GET", "HEAD") else await read_body(scope, receive, self._max_body)
            if operation is None:
                return dialect.unknown(self._to_request(scope), self._now_ms())
            call = self._call(operation, scope, body)
            if isinstance(call, Write) and REMEMBER in scope:
                scope[REMEMBER](self._repeated(dialect, operation, scope, cast("Write[Any]", call)))
            result, headers = await self._perform(call, scope)
            if _is_large(result):
                reply = await asyncio.to_thread(operation.write_reply, call, result)
            else:
                reply = operation.write_reply(call, result)
        except ProxyError as error:
            return self._error(dialect, scope, error)
        if reply.status == 200 and _is_unchanged(scope, headers):
            return HttpReply(304, None, b"", headers)
        return HttpReply(reply.status, reply.content_type, reply.body, reply.headers + headers)

    def _call(self, operation: Operation[Any, Any], scope: Scope, body: bytes) -> Any:
        """The call in a request. Clients repeat the same beats and registrations, so these are parsed only once."""
        if scope["method"] == "GET":
            return operation.read_request(self._to_request(scope, body))
        content_type = header(scope, b"content-type")
        parts = scope["method"].encode(), self._path(scope).encode(), scope["query_string"], body, content_type
        key = _digest(*parts), scope.get(RULES)
        call = self._writes.get(key)
        if call is None:
            call = operation.read_request(self._to_request(scope, body))
            if sum(map(len, parts)) <= _MAX_REMEMBERED_BYTES and issubclass(operation.call, Write):
                self._writes[key] = call
        return call

    def _repeated(
        self, dialect: Dialect, operation: Operation[Any, Any], scope: Scope, call: Write[Any]
    ) -> RepeatedWrite:
        request, target = self._to_request(scope), (raw_path(scope), scope["query_string"].decode("latin-1"))
        route = self._routes[id(operation)]
        return RepeatedWrite(self._agent, dialect, operation, request, call, target, route, self._heard)

    def _heard(self, call: Write[Any]) -> None:
        if isinstance(call, Beat) and self._on_beat is not None:
            self._on_beat(call.service, call.ip, call.port)

    async def _perform(self, call: Any, scope: Scope) -> tuple[Any, Pairs]:
        agent = self._agent
        if isinstance(call, ReadService):
            cache_control = _cache_control_of(scope)
            result = await agent.read(call.service, cache_control)
            snapshot = result.snapshot
            assert snapshot is not None
            renew: Callable[[], object] | None = None
            if self._on_list is not None:
                self._on_list(call, snapshot)
                if call.push is not None:
                    renew = partial(agent.supervisor.call, "udp push", self._on_list, call, snapshot)
            mark_cacheable(scope, agent, result, cache_control, renew=renew)
            return ServiceView(snapshot, snapshot.select(call.cluster_set, call.healthy_only)), _headers(result)
        if isinstance(call, ReadInstance):
            instance, result = await agent.instance(GetInstance(call.service, call.ip, call.port, call.cluster))
            if result is not None:
                mark_cacheable(scope, agent, result, _cache_control_of(scope))
            return instance, _headers(result)
        if isinstance(call, Write):
            self._heard(cast("Write[Any]", call))
            written = await agent.write(cast("Write[Any]", call))
            return written.result, answer_headers(written)
        if isinstance(call, Alive):  # about this process, not the upstream; r-nacos has no such call
            return None, ()
        return await agent.ask(call), ()

    def _path(self, scope: Scope) -> str:
        return scope["path"][len(self._context) :]

    def _to_request(self, scope: Scope, body: bytes = b"") -> HttpRequest:
        return to_request(scope, self._path(scope), body, self._context)

    def _error(self, dialect: Dialect, scope: Scope, error: ProxyError) -> HttpReply:
        return dialect.write_error(self._to_request(scope), error, self._now_ms())

    def _now_ms(self) -> int:
        return int(self._agent.clock.wall() * 1000)


def _may_be_known_upstream(dialect: Dialect, method: str, path: str) -> bool:
    """For an unmatched call: true if this proxy does not know the path, or if only real servers answer the call."""
    server_call = any(whole.name == dialect.name and whole.match(method, path) for whole in WHOLE)
    return server_call or not any(dialect.match(known, path) for known in _METHODS)


def _cache_control_of(scope: Scope) -> CacheControl:
    return CacheControl.parse(header(scope, b"cache-control").decode("latin-1"))


def _headers(result: CacheResult | None) -> Pairs:
    if result is None or result.snapshot is None:
        return ()
    return (*cache_headers(result), ("etag", etag(result.snapshot.revision)))


def _is_large(result: object) -> bool:
    rows: Any = result.rows if isinstance(result, DetailPage) else result
    return isinstance(rows, tuple) and len(rows) > _LARGE  # pyright: ignore[reportUnknownArgumentType]


def _is_unchanged(scope: Scope, headers: Pairs) -> bool:
    """Whether the client already has this response (RFC 9110 13.1.2)."""
    tag = dict(headers).get("etag") if headers else None
    return tag is not None and tag_matches(header(scope, b"if-none-match").decode("latin-1"), tag)
