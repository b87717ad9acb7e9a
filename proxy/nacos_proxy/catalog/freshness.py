"""How fresh an entry is, and what a read is told of it. Not for: keeping entries (`cache`).

Freshness is a function of an entry's age; nothing flips a flag when time passes:

    age                                              | freshness | what a read does
    -------------------------------------------------|-----------|------------------------------------------
    younger than the TTL                             | FRESH     | answers
    younger than the TTL + stale-if-error            | STALE     | answers, refreshes behind the answer
    older                                            | EXPIRED   | asks the upstream, has nothing if that fails
    nothing was ever fetched                         | MISSING   | waits for the one fetch in flight
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from nacos_proxy.model.errors import ProxyError
from nacos_proxy.model.services import Snapshot

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
    """What a request says of freshness: `no_cache` wants the upstream asked, `max_age` bounds the age (seconds)."""

    no_cache: bool = False
    max_age: float | None = None

    @classmethod
    def parse(cls, cache_control: str) -> CacheControl:
        """From a request's Cache-Control; what is not understood is ignored (RFC 9111 5.2)."""
        no_cache, max_age = False, None
        for part in cache_control.lower().split(","):
            name, _, value = part.strip().partition("=")
            if name == "no-cache":
                no_cache = True
            elif name == "max-age" and value.strip('"').isdecimal():
                max_age = float(value.strip('"'))
        return cls(no_cache or max_age == 0, max_age)

    def satisfied_by(self, look: CacheResult) -> bool:
        """Whether the look may answer without asking the upstream."""
        if self.no_cache or look.freshness in (Freshness.MISSING, Freshness.EXPIRED):
            return False
        return self.max_age is None or look.age <= self.max_age


@dataclass(frozen=True, slots=True)
class CacheResult:
    """What the catalog answers to a read. `age` is in seconds since the upstream last confirmed the snapshot.

    `ttl` is how much longer the answer counts as fresh, negative when it no longer does. `error` is younger than the
    snapshot where both are there. `fetched`: this read waited for the upstream. `from_disk`: not confirmed since start.
    """

    freshness: Freshness
    snapshot: Snapshot | None
    age: float
    ttl: float
    error: ProxyError | None = None
    fetched: bool = False
    from_disk: bool = False

    @property
    def stale(self) -> bool:
        return self.freshness is not Freshness.FRESH


def cache_headers(look: CacheResult) -> tuple[tuple[str, str], ...]:
    """`Age` (RFC 9111 5.1) and `Cache-Status` (RFC 9211), made from the look and nothing else."""
    if look.fetched and not look.stale:
        outcome = "fwd=miss"
    elif look.stale:
        outcome = "fwd=stale" if look.fetched else "hit"
    else:
        outcome = "hit"
    status = f"{PROXY_NAME}; {outcome}; ttl={int(look.ttl)}"
    if look.stale:
        detail = "disk" if look.from_disk else "upstream-error" if look.error is not None else "revalidating"
        status += f"; detail={detail}"
    return (("age", str(max(0, int(look.age)))), ("cache-status", status))
