"""The table's door for any ASGI server: an app in front of the others that repeats what they marked as repeatable.

Not for: the fastest way (`protocol`); freshness, which the mark tells. An answer is found by what it can depend on:
the target, the scheme, whether it came over a Unix socket, and the headers that matter. What else a client sends, such
as a request id that is different each time, is ignored. Requests that ask for more than an answer are let through:
those with a body, with `Expect`, or with `Cache-Control`, whose limits an answer from memory would not know.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, cast

from nacos_proxy.fastpath.table import (
    Answer,
    Headers,
    LookupKey,
    ResponseTable,
    repeatable,
)
from nacos_proxy.wire.http import CACHEABLE, Cacheable

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEAD = "nacos_proxy.head"
"""Where the protocol door leaves the request head in the scope, when it would repeat the answer by itself."""

MATTER = frozenset(
    {b"accept", b"accept-encoding", b"accesstoken", b"authorization", b"cookie", b"host"}
    | {b"if-match", b"if-modified-since", b"if-none-match", b"if-unmodified-since", b"origin", b"range"}
)
MORE_THAN_AN_ANSWER = frozenset(
    {b"cache-control", b"content-length", b"expect", b"pragma", b"transfer-encoding", b"upgrade"}
)


class FastPath:
    """Repeats marked answers to GET, and records them for both doors. `now` is the clock that marks are made with.

    `matter` are the request headers, in lower case, on which an answer may depend.
    """

    def __init__(
        self, app: App, answers: ResponseTable, now: Callable[[], float], matter: Iterable[bytes] = MATTER
    ) -> None:
        self._app = app
        self._answers = answers
        self._now = now
        self._matter = frozenset(matter) | MORE_THAN_AN_ANSWER

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        target = self._target(scope)
        answer = self._answers.find(target, self._now())
        if answer is None:
            recorder = _Recorder(self._answers, scope, target, send)
            await self._app(scope, receive, recorder.send)
            return
        if HEAD in scope and self._answers.wants(scope[HEAD]) and suits_one_connection(scope):
            self._answers.offer(scope[HEAD], answer.copy(), self._answers.serial)
        answer.tally.target += 1
        body = answer.body if answer.draw is None else answer.draw()
        headers = answer.headers if answer.draw is None else answer.sized(len(body))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _target(self, scope: Scope) -> LookupKey:
        kind = socket_kind(scope.get("scheme") == "https", over_unix(scope))
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        matter = self._matter
        return target_place(kind, path, scope["query_string"], [p for p in scope["headers"] if p[0] in matter])


def socket_kind(tls: bool, unix: bool) -> bytes:
    """Requests of another kind of socket have answers of their own."""
    return (b"https" if tls else b"http") + (b" unix" if unix else b"")


def target_place(kind: bytes, path: bytes, query: bytes, headers: Headers) -> LookupKey:
    """Where an answer is found whose request may differ in all that does not matter; `headers` are those that do."""
    parts = [kind, path, query]
    for pair in headers:
        parts += pair
    return tuple(parts)


def over_unix(scope: Scope) -> bool:
    """Whether a request came over a Unix socket: there Host is not checked, so the answers are others'."""
    server = scope.get("server")
    return server is not None and server[1] is None


def plain_read(scope: Scope) -> bool:
    """Whether a request asks for no more than an answer."""
    return all(name not in MORE_THAN_AN_ANSWER for name, _ in scope["headers"])


def suits_one_connection(scope: Scope) -> bool:
    """Whether the response leaves the connection as it is: HTTP/1.1 that stays open."""
    if scope["http_version"] != "1.1":
        return False
    return all(value.lower() == b"keep-alive" for name, value in scope["headers"] if name == b"connection")


def log_path(scope: Scope) -> str:
    """The target as uvicorn's access log shows it."""
    path = urllib.parse.quote(scope["path"])
    query = cast("bytes", scope["query_string"])
    return f"{path}?{query.decode('ascii')}" if query else path


class _Recorder:
    """Passes a response on; where it is marked, and wanted, it becomes an answer when it is complete."""

    __slots__ = ("_answers", "_body", "_head", "_mark", "_places", "_scope", "_send", "_since", "_target")

    def __init__(self, answers: ResponseTable, scope: Scope, target: LookupKey, send: Send) -> None:
        self._answers = answers
        self._scope = scope
        self._target = target
        self._send = send
        self._since = answers.serial
        self._mark: Cacheable | None = None
        self._places: list[LookupKey] = []
        self._head: tuple[int, Headers] = (0, ())
        self._body: list[bytes] = []

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start(message)
        elif self._mark is not None and message["type"] == "http.response.body":
            self._body.append(message.get("body", b""))
            if not message.get("more_body", False):
                self._finish(self._mark)
        await self._send(message)

    def _start(self, message: Message) -> None:
        mark: Cacheable | None = self._scope.get(CACHEABLE)
        if mark is None or not plain_read(self._scope):
            return
        places = [self._target]
        if HEAD in self._scope and suits_one_connection(self._scope):
            places.append(self._scope[HEAD])
        self._places = [place for place in places if self._answers.wants(place)]
        if self._places:
            self._mark = mark
            self._head = (message["status"], list(message.get("headers", ())))

    def _finish(self, mark: Cacheable) -> None:
        self._mark = None
        status, headers = self._head
        body = b"".join(self._body)
        if not repeatable(status, headers, body):
            return
        tally = self._answers.tally(mark.kind, status)
        answer = Answer(mark, status, headers, body, path=log_path(self._scope), tally=tally)
        for place in self._places:
            self._answers.offer(place, answer.copy(), self._since)
