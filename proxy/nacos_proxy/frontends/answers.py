"""Between ASGI and our values: requests in, replies out, and the mark of what may be repeated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from nacos_proxy.catalog.freshness import CacheControl, CacheResult
from nacos_proxy.core.agent import Agent
from nacos_proxy.model.errors import BadCall, Problem
from nacos_proxy.wire.http import (
    CACHEABLE,
    Cacheable,
    HttpReply,
    HttpRequest,
)
from nacos_proxy.wire.nacos.rules import NACOS, RULES

ANY_AGE = CacheControl()


def client_of(scope: Scope) -> str:
    """Who asks: the address that connects, '' on a Unix socket."""
    return (scope.get("client") or ("", 0))[0]


async def read_body(request: Request, most: int) -> bytes:
    """The whole body. Raises `BadCall` with status 413 where it is longer than `most` bytes."""
    return await whole_body(request.scope, request.receive, most)


async def whole_body(scope: Scope, receive: Receive, most: int) -> bytes:
    """As `read_body`, without the cost of a `Request`, which is as much as that of a body."""
    for name, value in scope["headers"]:
        if name == b"content-length" and length_of(value) > most:
            raise too_large(most)
    body, more = bytearray(), True  # a list of pieces, of which each may be a byte, takes many times as much
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadCall("", Problem.BODY, "the client went away before its request was complete")
        body += message.get("body", b"")
        if len(body) > most:
            raise too_large(most)
        more = message.get("more_body", False)
    return bytes(body)


def length_of(value: bytes) -> int:
    """What a Content-Length says, 0 where it is no number; of thousands of digits Python makes none."""
    return int(value[:20]) if value.isdigit() else 0


def too_large(most: int) -> BadCall:
    return BadCall("", Problem.BODY, f"the body is longer than {most} bytes", status=413)


def to_request(scope: Scope, path: str, body: bytes, context: str = "/nacos") -> HttpRequest:
    """The request as a value; `path` is what stands behind the `context` path, decoded."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    query = scope["query_string"].decode("latin-1")
    return HttpRequest.parse(scope["method"], path, query, body, headers, context, scope.get(RULES, NACOS))


def header(scope: Scope, name: bytes) -> bytes:
    """The value of a header, the last where there are several, b"" for none."""
    value = b""
    for key, given in scope["headers"]:
        if key == name:
            value = given
    return value


async def send_reply(send: Send, reply: HttpReply, *, head_only: bool = False) -> None:
    """One answer, its length known; `head_only` for HEAD."""
    headers: list[tuple[bytes, bytes]] = []
    if reply.status not in (204, 304):  # RFC 9110 8.6: a 204 must not say a length, a 304 not that of its own body
        headers.append((b"content-length", str(len(reply.body)).encode()))
    if reply.content_type is not None:
        headers.append((b"content-type", reply.content_type.encode("latin-1")))
    headers += [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head_only else reply.body})


def mark_cacheable(
    scope: Scope,
    agent: Agent,
    look: CacheResult,
    kind: str,
    wants: CacheControl = ANY_AGE,
    draw: Callable[[], bytes] | None = None,
) -> None:
    """Let the fast path repeat the answer that follows, where it comes from a fresh entry and the request allows it.

    A request that wants the upstream asked is never answered from memory, one with a `max-age` only that long.
    """
    shown, now = look.snapshot, agent.clock.now()
    if look.stale or shown is None or wants.no_cache:
        return
    born, until, renew = now - look.age, now + look.ttl, partial(agent.confirmed, shown)
    if wants.max_age is not None:
        until, renew = min(until, born + wants.max_age), None
    scope[CACHEABLE] = Cacheable(shown.key, born, until, kind, draw, renew)
