"""How a read of our own API is answered: freshness as asked for, a body made once, validators, the fast path's mark.

Not for: what a body shows (`wire.rest`), where it comes from (the agent).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from hashlib import blake2b

import orjson
from cachetools import LRUCache
from starlette.requests import Request

from nacos_proxy.catalog.freshness import CacheControl, CacheResult, cache_headers
from nacos_proxy.core.agent import Agent
from nacos_proxy.frontends.answers import mark_cacheable
from nacos_proxy.model.calls import ListServices
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.wire.http import JSON_TYPE, HttpReply, Pairs
from nacos_proxy.wire.rest.bodies import etag, tag_matches

# The proxy is the cache. Another one between it and the reader may keep an answer, but must ask each time, which the
# ETag makes cheap: so nobody is told of an instance that this host knows to be gone.
REVALIDATE = ("cache-control", "private, max-age=0, must-revalidate")


def cache_control_of(request: Request) -> CacheControl:
    """What the request says of freshness."""
    return CacheControl.parse(",".join(request.headers.getlist("cache-control")))


class Bodies:
    """Bodies of services as they are now, made once; `most` bytes. What one was before, nobody asks for again."""

    def __init__(self, most: int) -> None:
        self._kept: LRUCache[Hashable, tuple[object, bytes, int]] = LRUCache(most, getsizeof=lambda kept: kept[2])

    def of(self, snapshot: Snapshot, variant: tuple[object, ...], make: Callable[[], bytes]) -> bytes:
        slot, made_of = (snapshot.key, variant), (snapshot.revision, snapshot.last_ref_time)
        known = self._kept.get(slot)
        if known is not None and known[0] == made_of:
            return known[1]
        body = make()
        self._kept.pop(slot, None)
        size = 500 + len(body) + sum(4 * len(part) for part in variant if isinstance(part, str))  # with what is around
        if size <= self._kept.maxsize:
            self._kept[slot] = (made_of, body, size)
        return body


class Reads:
    """Answers reads of one service. Bodies are made once per (snapshot, variant, stale)."""

    def __init__(self, agent: Agent, *, prepared: int = 32 << 20) -> None:
        self._agent = agent
        self._bodies = Bodies(prepared)

    async def answer(
        self,
        request: Request,
        key: ServiceKey,
        kind: str,
        variant: tuple[object, ...],
        make: Callable[[Snapshot, bool], object],
        *,
        media: str = JSON_TYPE,
    ) -> HttpReply:
        """The service as `make(snapshot, stale)` shows it: bytes, or what becomes JSON. Raises what a read raises.

        `variant` and `kind` name all that the body depends on besides the snapshot.
        """
        wants = cache_control_of(request)
        look = await self._agent.read(key, wants)
        return self.reply(request, look, wants, kind, variant, make, media=media)

    def reply(
        self,
        request: Request,
        look: CacheResult,
        wants: CacheControl,
        kind: str,
        variant: tuple[object, ...],
        make: Callable[[Snapshot, bool], object],
        *,
        media: str = JSON_TYPE,
    ) -> HttpReply:
        """The same from a look that was taken before."""
        snapshot = look.snapshot
        assert snapshot is not None
        mark_cacheable(request.scope, self._agent, look, kind, wants)
        tag = etag(snapshot.revision, *variant, "stale" if look.stale else "")
        headers = (*cache_headers(look), ("etag", tag), REVALIDATE)
        if tag_matches(",".join(request.headers.getlist("if-none-match")), tag):
            return HttpReply(304, None, b"", headers)
        body = self._bodies.of(snapshot, (look.stale, kind, *variant), lambda: _encoded(make(snapshot, look.stale)))
        return HttpReply(200, media, body, headers)


def _encoded(made: object) -> bytes:
    return made if isinstance(made, bytes) else orjson.dumps(made)


def tagged(request: Request, body: bytes, headers: Pairs, *, media: str = JSON_TYPE) -> HttpReply:
    """An answer that no one snapshot stands behind: its tag is a digest of its bytes."""
    tag = etag(blake2b(body, digest_size=8).hexdigest())
    headers = (*headers, ("etag", tag))
    if tag_matches(",".join(request.headers.getlist("if-none-match")), tag):
        return HttpReply(304, None, b"", headers)
    return HttpReply(200, media, body, headers)


def known_names(agent: Agent, group: ListServices) -> list[str]:
    """The names of a group's services that this host knows instances of, for while the upstream is away."""
    keys = (
        entry.key for entry in agent.catalog.cache.entries() if entry.visible is not None and entry.visible.instances
    )
    return sorted(key.name for key in keys if (key.namespace, key.group) == (group.namespace, group.group))


def oldest(looks: list[CacheResult]) -> Pairs:
    """Headers for an answer made from several looks: those of the oldest."""
    return (*cache_headers(max(looks, key=lambda look: look.age)), REVALIDATE) if looks else (REVALIDATE,)
