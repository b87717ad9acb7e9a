"""The target stage, for any ASGI server: an app in front of the others that repeats the responses that they marked.

The lookup key has everything that a response can depend on: the target, the kind of socket, and the headers in `VARY`.
Other headers, such as a request id, do not matter. Requests with a header in `BYPASS` go to the app: they have a body,
or ask for more than a cached response can give.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from nacos_proxy.fastpath.table import Headers, LookupKey, PreparedResponse, ResponseTable, is_repeatable
from nacos_proxy.wire.http import CACHEABLE, REPEATED, Cacheable

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEAD_KEY = "nacos_proxy.head"
"""The scope key under which the protocol puts the head-stage `LookupKey` of a request that it did not answer."""

VARY = frozenset(
    {b"accept", b"accept-encoding", b"accesstoken", b"authorization", b"cookie", b"host"}
    | {b"if-match", b"if-modified-since", b"if-none-match", b"if-unmodified-since", b"origin", b"range"}
    | {b"client-version", b"user-agent"}  # whether a list makes a subscription to UDP push
)
BYPASS = frozenset(
    {b"cache-control", b"content-length", b"expect", b"pragma", b"transfer-encoding", b"upgrade"}
    | {b"proxy-connection"}  # the parser takes it for `Connection`
)
KEY_HEADERS = VARY | BYPASS  # in the lookup key, so that a request with one of `BYPASS` finds nothing


class FastPath:
    """Repeats marked responses to GET, and records them for both stages. `now` is the clock of the marks."""

    def __init__(self, app: App, table: ResponseTable, now: Callable[[], float]) -> None:
        self._app = app
        self._table = table
        self._now = now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        target = _target_key_of(scope)
        response = self._table.find(target, self._now())
        if response is None:
            recorder = _ResponseRecorder(self._table, scope, target, send)
            await self._app(scope, receive, recorder.send)
            return
        closes = closes_connection(scope)
        if HEAD_KEY in scope and self._table.admits(scope[HEAD_KEY]) and closes is not None:
            self._table.offer(scope[HEAD_KEY], response.copy(closes=closes), self._table.serial)
        scope[REPEATED] = response.cacheable.route
        response.hits.target += 1
        body = response.body if response.make_body is None else response.make_body()
        headers = response.headers if response.make_body is None else response.headers_for(len(body))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _target_key_of(scope: Scope) -> LookupKey:
    server = scope.get("server")
    kind = socket_kind(scope.get("scheme") == "https", server is not None and server[1] is None)
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    return target_key(kind, path, scope["query_string"], [pair for pair in scope["headers"] if pair[0] in KEY_HEADERS])


def socket_kind(tls: bool, unix: bool) -> bytes:
    """The part of a key for the kind of socket: responses depend on it; on a Unix socket, Host is not checked."""
    return (b"https" if tls else b"http") + (b" unix" if unix else b"")


def target_key(kind: bytes, path: bytes, query: bytes, headers: Headers) -> LookupKey:
    """The target-stage key; `headers` are those of the request that are in `KEY_HEADERS`."""
    parts = [kind, path, query]
    for pair in headers:
        parts += pair
    return tuple(parts)


def closes_connection(scope: Scope) -> bool | None:
    """Whether the connection ends after the response; None if the head stage cannot tell, or it is not HTTP/1.1."""
    if scope["http_version"] != "1.1":
        return None
    wishes = {value.lower() for name, value in scope["headers"] if name == b"connection"}
    return None if wishes - {b"keep-alive", b"close"} else b"close" in wishes


class _ResponseRecorder:
    """Passes a response on. When a marked and admitted response is complete, it becomes a `PreparedResponse`."""

    __slots__ = ("_body", "_cacheable", "_keys", "_scope", "_send", "_since", "_start", "_table", "_target")

    def __init__(self, table: ResponseTable, scope: Scope, target: LookupKey, send: Send) -> None:
        self._table = table
        self._scope = scope
        self._target = target
        self._send = send
        self._since = table.serial
        self._cacheable: Cacheable | None = None  # set while a response is recorded
        self._keys: dict[LookupKey, bool] = {}  # whether the connection ends after the response
        self._start: tuple[int, Headers] = (0, ())
        self._body: list[bytes] = []

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begin(message)
        elif self._cacheable is not None and message["type"] == "http.response.body":
            self._body.append(message.get("body", b""))
            if not message.get("more_body", False):
                self._finish(self._cacheable)
        await self._send(message)

    def _begin(self, message: Message) -> None:
        cacheable: Cacheable | None = self._scope.get(CACHEABLE)
        if cacheable is None or any(name in BYPASS for name, _ in self._scope["headers"]):
            return
        keys = {self._target: False}
        if HEAD_KEY in self._scope and (closes := closes_connection(self._scope)) is not None:
            keys[self._scope[HEAD_KEY]] = closes
        self._keys = {key: closes for key, closes in keys.items() if self._table.admits(key)}
        if self._keys:
            self._cacheable = cacheable
            self._start = (message["status"], list(message.get("headers", ())))

    def _finish(self, cacheable: Cacheable) -> None:
        self._cacheable = None
        status, headers = self._start
        body = b"".join(self._body)
        if not is_repeatable(status, headers, body):
            return
        raw: bytes = self._scope.get("raw_path") or self._scope["path"].encode()
        path = b"?".join(filter(None, (raw, self._scope["query_string"]))).decode("latin-1")
        hits = self._table.hits_of(cacheable.route, status)
        response = PreparedResponse(cacheable, status, headers, body, path=path, hits=hits)
        for key, closes in self._keys.items():
            self._table.offer(key, response.copy(closes=closes), self._since)
