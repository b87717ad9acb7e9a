"""Conversion between ASGI and values: requests, replies, and the mark for the fast path."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from starlette.types import Scope, Send

from nacos_proxy.catalog.freshness import CacheControl, CacheResult
from nacos_proxy.core.agent import Agent
from nacos_proxy.frontends.requests import route_of
from nacos_proxy.model.limits import NACOS
from nacos_proxy.wire.http import CACHEABLE, RULES, Cacheable, HttpReply, HttpRequest, Revalidate

ANSWER_HEADER = "nacos-proxy-answer"  # who answered a write


def client_of(scope: Scope) -> str:
    """The client's address; '' on a Unix socket."""
    return (scope.get("client") or ("", 0))[0]


def raw_path(scope: Scope) -> str:
    """The path as the client wrote it, without the query."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw.decode("latin-1")


def to_request(scope: Scope, path: str, body: bytes, context: str = "/nacos") -> HttpRequest:
    """The request as a value; `path` is decoded and starts behind the `context` path."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    query = scope["query_string"].decode("latin-1")
    return HttpRequest.parse(scope["method"], path, query, body, headers, context, scope.get(RULES, NACOS))


def header(scope: Scope, name: bytes) -> bytes:
    """The value of a header; the last if there are several, b"" if there is none."""
    value = b""
    for key, given in scope["headers"]:
        if key == name:
            value = given
    return value


async def send_reply(send: Send, reply: HttpReply, *, head_only: bool = False) -> None:
    await send({"type": "http.response.start", "status": reply.status, "headers": reply.raw_headers})
    await send({"type": "http.response.body", "body": b"" if head_only else reply.body})


def mark_cacheable(
    scope: Scope,
    agent: Agent,
    result: CacheResult,
    cache_control: CacheControl = CacheControl(),  # noqa: B008 - a frozen value
    make_body: Callable[[], bytes] | None = None,
    renew: Callable[[], object] | None = None,
) -> None:
    """Lets the fast path repeat the response if its entry is fresh: never with `no-cache`, only up to `max-age`.

    `renew` is called about once a second while the response is repeated, for what the request renewed besides.
    """
    snapshot, now = result.snapshot, agent.clock.now()
    if result.stale or snapshot is None or cache_control.no_cache:
        return
    confirmed_at, valid_until, revalidate = now - result.age, now + result.ttl, partial(agent.confirmed, snapshot)
    if renew is not None:
        revalidate = partial(_renew, renew, revalidate)
    if cache_control.max_age is not None:
        valid_until, revalidate = min(valid_until, confirmed_at + cache_control.max_age), None
    scope[CACHEABLE] = Cacheable(snapshot.key, confirmed_at, valid_until, route_of(scope), make_body, revalidate)


def _renew(renew: Callable[[], object], revalidate: Revalidate, now: float) -> tuple[float, float] | None:
    renew()
    return revalidate(now)
