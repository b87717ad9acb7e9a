"""How fresh an entry is, and the headers that tell a reader. Freshness depends on the age alone:

age                                              | freshness | what a read does
-------------------------------------------------|-----------|------------------------------------------------
younger than the TTL                             | FRESH     | answers
younger than the TTL + stale-if-error            | STALE     | answers, refreshes behind the answer
older                                            | EXPIRED   | asks the upstream; if that fails, the read fails
nothing was ever fetched                         | MISSING   | waits for a fetch
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from nacos_proxy.model.errors import ProxyError
from nacos_proxy.model.services import Snapshot, Via

PROXY_NAME = "nacos-proxy"


class Freshness(Enum):
    FRESH = "fresh"
    STALE = "stale"
    EXPIRED = "expired"
    MISSING = "missing"


def freshness(age: float | None, ttl: float, stale_if_error: float) -> Freshness:
    """From the age in seconds (None: never fetched) and the two limits, in seconds (infinity allowed)."""
    if age is None:
        return Freshness.MISSING
    if age < ttl:
        return Freshness.FRESH
    return Freshness.STALE if age < ttl + stale_if_error else Freshness.EXPIRED


@dataclass(frozen=True, slots=True)
class CacheControl:
    """A request's demands: `no_cache` asks for an answer of the upstream, `max_age` bounds the age in seconds."""

    no_cache: bool = False
    max_age: float | None = None

    @classmethod
    def parse(cls, cache_control: str) -> CacheControl:
        """From a request's Cache-Control header; unknown directives are ignored (RFC 9111 5.2)."""
        no_cache, max_age = False, None
        for part in cache_control.lower().split(","):
            name, _, value = part.strip().partition("=")
            if name == "no-cache":
                no_cache = True
            elif name == "max-age" and value.strip('"').isdecimal():
                max_age = float(value.strip('"'))
        return cls(no_cache or max_age == 0, max_age)

    def satisfied_by(self, result: CacheResult) -> bool:
        """Whether the cached result may be the answer, without a fetch."""
        if self.no_cache or result.freshness in (Freshness.MISSING, Freshness.EXPIRED):
            return False
        return self.max_age is None or result.age <= self.max_age


@dataclass(frozen=True, slots=True)
class CacheResult:
    """The cache's answer to a read. `age`: seconds since the upstream last confirmed the snapshot.

    `ttl`: seconds until the answer becomes stale, negative for a stale one. If both a snapshot and an `error` exist,
    the error is newer. `fetched`: this read waited for the upstream. `from_disk`: the snapshot was restored, and the
    upstream has not confirmed it since. `via`: the caches through which it was confirmed.
    """

    freshness: Freshness
    snapshot: Snapshot | None
    age: float
    ttl: float
    error: ProxyError | None = None
    fetched: bool = False
    from_disk: bool = False
    via: Via | None = None

    @property
    def stale(self) -> bool:
        return self.freshness is not Freshness.FRESH


def cache_headers(result: CacheResult) -> tuple[tuple[str, str], ...]:
    """`Age` (RFC 9111 5.1) and `Cache-Status` (RFC 9211)."""
    via = via_of(result)
    return (("age", str(int(via.age))), ("cache-status", via.status))


def via_of(result: CacheResult) -> Via:
    """What a cache behind this one is told of a result: `status` names the caches from the origin to this one."""
    outcome = "hit" if not result.fetched else "fwd=stale" if result.stale else "fwd=miss"
    status = f"{PROXY_NAME}; {outcome}; ttl={int(result.ttl)}"
    if result.stale:
        detail = "disk" if result.from_disk else "upstream-error" if result.error is not None else "revalidating"
        status += f"; detail={detail}"
    if result.via is not None and result.via.status:
        status = f"{result.via.status}, {status}"
    return Via(max(0.0, result.age), result.stale, status)
