"""Answers reads of the REST API: freshness, prepared bodies, ETags, and the mark for the fast path."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from hashlib import blake2b

import orjson
from cachetools import LRUCache
from starlette.requests import Request

from nacos_proxy.catalog.freshness import CacheControl, CacheResult, cache_headers
from nacos_proxy.core.agent import Agent
from nacos_proxy.frontends.answers import mark_cacheable
from nacos_proxy.frontends.rest.routing import Reply
from nacos_proxy.model.calls import ListServices
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.wire.http import JSON_TYPE, HttpReply, Pairs
from nacos_proxy.wire.rest.bodies import etag, tag_matches

# A cache between proxy and reader must revalidate each time (cheap, with the ETag), so that no reader sees an instance
# that this host knows to be gone.
REVALIDATE = ("cache-control", "private, max-age=0, must-revalidate")

Variant = tuple[object, ...]
Make = Callable[[Snapshot, bool], object]
"""From the snapshot, and whether it is stale, to the body: bytes, or a value for JSON."""


def cache_control_of(request: Request) -> CacheControl:
    return CacheControl.parse(",".join(request.headers.getlist("cache-control")))


class Bodies:
    """Prepared bodies of the current snapshots, `max_bytes` in all. Bodies of earlier snapshots are dropped."""

    def __init__(self, max_bytes: int) -> None:
        self._kept: LRUCache[Hashable, tuple[object, bytes, int]] = LRUCache(max_bytes, getsizeof=lambda kept: kept[2])

    def of(self, snapshot: Snapshot, variant: Variant, make: Callable[[], bytes]) -> bytes:
        slot, made_of = (snapshot.key, variant), (snapshot.revision, snapshot.last_ref_time)
        known = self._kept.get(slot)
        if known is not None and known[0] == made_of:
            return known[1]
        body = make()
        self._kept.pop(slot, None)
        size = 500 + len(body) + sum(4 * len(part) for part in variant if isinstance(part, str))  # and the overhead
        if size <= self._kept.maxsize:
            self._kept[slot] = (made_of, body, size)
        return body


class Reads:
    """Answers reads of one service. A body is made once per (snapshot, variant, stale)."""

    def __init__(self, agent: Agent, *, prepared: int = 32 << 20) -> None:
        self._agent = agent
        self._bodies = Bodies(prepared)

    async def answer(
        self, request: Request, key: ServiceKey, kind: str, variant: Variant, make: Make, media: str = JSON_TYPE
    ) -> Reply:
        """Reads the service, then `reply`. Raises what a read raises."""
        cache_control = cache_control_of(request)
        cached = await self._agent.read(key, cache_control)
        return self.reply(request, cached, cache_control, kind, variant, make, media)

    def reply(
        self,
        request: Request,
        cached: CacheResult,
        cache_control: CacheControl,
        kind: str,
        variant: Variant,
        make: Make,
        media: str = JSON_TYPE,
    ) -> Reply:
        """The answer from a cached snapshot; `kind` and `variant` name everything else that `make` depends on."""
        snapshot = cached.snapshot
        assert snapshot is not None
        mark_cacheable(request.scope, self._agent, cached, cache_control)
        tag = etag(snapshot.revision, *variant, "stale" if cached.stale else "")
        headers = (*cache_headers(cached), ("etag", tag), REVALIDATE)
        if _has(request, tag):
            return Reply(HttpReply(304, None, b"", headers))
        body = self._bodies.of(snapshot, (cached.stale, kind, *variant), lambda: encoded(make(snapshot, cached.stale)))
        return Reply(HttpReply(200, media, body, headers))


def encoded(made: object) -> bytes:
    return made if isinstance(made, bytes) else orjson.dumps(made)


def tagged(request: Request, made: object, headers: Pairs, media: str = JSON_TYPE) -> Reply:
    """An answer made from several snapshots, or from none: its ETag is a digest of its bytes."""
    body = encoded(made)
    tag = etag(blake2b(body, digest_size=8).hexdigest())
    headers = (*headers, ("etag", tag))
    return Reply(HttpReply(304, None, b"", headers) if _has(request, tag) else HttpReply(200, media, body, headers))


def _has(request: Request, tag: str) -> bool:
    """Whether the client already has this response (RFC 9110 13.1.2)."""
    return tag_matches(",".join(request.headers.getlist("if-none-match")), tag)


def known_keys(agent: Agent) -> list[ServiceKey]:
    """The services that this host knows instances of, for while the upstream is away."""
    entries = agent.catalog.cache.entries()
    return sorted(entry.key for entry in entries if entry.visible is not None and entry.visible.instances)


def known_names(agent: Agent, group: ListServices) -> list[str]:
    """The names of those of one group."""
    return [key.name for key in known_keys(agent) if (key.namespace, key.group) == (group.namespace, group.group)]


def oldest(results: list[CacheResult]) -> Pairs:
    """Headers for an answer made from several results: those of the oldest."""
    return (*cache_headers(max(results, key=lambda result: result.age)), REVALIDATE) if results else (REVALIDATE,)
