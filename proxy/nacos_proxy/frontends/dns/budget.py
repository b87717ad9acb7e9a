"""How many lookups clients may cause that the cache cannot answer, so that invented names do not flood the upstream."""

from __future__ import annotations

from dataclasses import dataclass

from cachetools import LRUCache

MAX_CLIENTS = 1024


@dataclass(slots=True)
class _Bucket:
    """A token bucket: `tokens` at the time `at` (s)."""

    tokens: float
    at: float


class Budget:
    """Lookups a second, for one client (an address) and for all; each may save up `burst` seconds of them. Pure."""

    def __init__(self, per_client: float, total: float, burst: float) -> None:
        self._per_client = per_client
        self._total = total
        self._burst = burst
        self._all = _Bucket(total * burst, 0.0)
        self._clients: LRUCache[str, _Bucket] = LRUCache(MAX_CLIENTS)

    def take(self, client: str, number: int, now: float) -> bool:
        """Takes that many lookups; False if there are not as many."""
        own = self._clients.get(client)
        if own is None:
            own = self._clients[client] = _Bucket(self._per_client * self._burst, now)
        for bucket, rate in ((own, self._per_client), (self._all, self._total)):
            bucket.tokens = min(rate * self._burst, bucket.tokens + (now - bucket.at) * rate)
            bucket.at = now
        if min(own.tokens, self._all.tokens) < number:
            return False
        own.tokens -= number
        self._all.tokens -= number
        return True
