"""What is remembered between two fetches, so that an unchanged answer costs no parse: bounded, told the time.

Not for: what clients see (`catalog`), how a service is asked for (`speech`).

An answer is known by a digest of its body without `lastRefTime` and `checksum`, which r-nacos and Nacos make anew for
each answer. They are cut out only of the plain fields behind the hosts: metadata may use the same words.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from cachetools import LRUCache

from nacos_proxy.model.calls import ServiceInfo
from nacos_proxy.model.services import (
    DEFAULT_CLUSTER,
    Instance,
    ServiceKey,
    Snapshot,
)
from nacos_proxy.wire.http import HttpReply

T = TypeVar("T")

_MOMENTS = re.compile(rb'"(?:lastRefTime":\s*\d+|checksum":\s*"[^"\\]*")')


@dataclass(frozen=True, slots=True)
class ResponseCachePolicy:
    """Numbers and seconds. A service's own data is asked again after `info`, a missing right is tried after `bar`.

    `unknown` is how many services are remembered of which no instance was ever seen: whoever asks for a million names
    has no use of what is remembered, and takes no room from the others.
    """

    services: int = 20_000
    unknown: int = 1_000
    clusters: int = 64
    info: float = 30.0
    bar: float = 60.0


def digest(body: bytes) -> bytes:
    """16 bytes that stay the same where only the moment of the answer differs."""
    tail = body.rfind(b"]") + 1
    found = hashlib.blake2b(digest_size=16)
    depth = 2 if body.startswith(b'{"code":') else 1  # of the list's own fields: v2 wraps it
    if tail and b"{" not in (rest := body[tail:]) and rest.count(b"}") == depth:
        found.update(memoryview(body)[:tail])
        found.update(_MOMENTS.sub(b"", rest))
    else:
        found.update(body)
    return found.digest()


@dataclass(slots=True)
class _Service:
    """What is remembered of one. `asked` are the digests of its answers and what was read from them."""

    asked: dict[Hashable, tuple[bytes, Any]] = field(default_factory=lambda: {})
    made: dict[Hashable, tuple[tuple[Any, ...], Snapshot]] = field(default_factory=lambda: {})
    info: ServiceInfo | None = None
    info_until: float = float("-inf")
    clusters: tuple[str, ...] = (DEFAULT_CLUSTER,)
    crowded: bool = False


class ResponseCache:
    """One for each set of rights: what one credential was shown is not used for another."""

    def __init__(self, policy: ResponseCachePolicy = ResponseCachePolicy()) -> None:
        self.barred_until = float("-inf")
        self.parses = 0
        self._policy = policy
        self._seen: LRUCache[ServiceKey, _Service] = LRUCache(policy.services)
        self._unknown: LRUCache[ServiceKey, _Service] = LRUCache(policy.unknown)

    def _find(self, key: ServiceKey) -> _Service | None:
        return self._seen.get(key) or self._unknown.get(key)

    def _of(self, key: ServiceKey) -> _Service:
        service = self._find(key)
        if service is None:
            service = self._unknown[key] = _Service()
        return service

    def parsed(self, key: ServiceKey, what: Hashable, reply: HttpReply, read: Callable[[HttpReply], T]) -> T:
        """What `read` makes of a reply; the same object as last time where `what` is answered as last time."""
        if reply.status != 200:
            return read(reply)
        found = digest(reply.body)
        service = self._of(key)
        known = service.asked.get(what)
        if known is not None and known[0] == found:
            return cast(T, known[1])
        value = read(reply)
        self.parses += 1
        if len(service.asked) > 2 * self._policy.clusters:  # of clusters that came and went
            service.asked.clear()
        service.asked[what] = (found, value)
        return value

    def made(self, key: ServiceKey, what: Hashable, parts: tuple[Any, ...], make: Callable[[], Snapshot]) -> Snapshot:
        """The snapshot made of these parts; the same object as last time where they are the very same objects."""
        made = self._of(key).made
        known = made.get(what)
        if known is not None and [id(part) for part in known[0]] == [id(part) for part in parts]:
            return known[1]
        snapshot = make()
        made[what] = (parts, snapshot)
        return snapshot

    # a service's own data

    def info(self, key: ServiceKey, now: float) -> tuple[ServiceInfo | None, bool]:
        """What is known of it (None: nothing could be learned), and whether it is time to ask again."""
        service = self._find(key)
        return (None, True) if service is None else (service.info, now >= service.info_until)

    def learned(self, key: ServiceKey, info: ServiceInfo | None, now: float) -> ServiceInfo | None:
        """An answer; the object of the last one where they are equal."""
        service = self._of(key)
        service.info = service.info if service.info == info else info
        service.info_until = now + self._policy.info
        if info is not None:
            self._add(service, info.clusters)
        return service.info

    # clusters

    def saw(self, key: ServiceKey, clusters: Iterable[str]) -> None:
        """Clusters in which a service has instances, from answers and registrations."""
        service = self._of(key)
        if self._unknown.pop(key, None) is not None:
            self._seen[key] = service
        self._add(service, clusters)

    def _add(self, service: _Service, clusters: Iterable[str]) -> None:
        for cluster in clusters:
            known = service.clusters
            if cluster not in known and cluster and "," not in cluster and len(known) < self._policy.clusters:
                service.clusters = (*known, cluster)

    def saw_hosts(self, key: ServiceKey, hosts: Iterable[Instance]) -> None:
        clusters = {host.cluster for host in hosts}
        if clusters:
            self.saw(key, clusters)

    def clusters(self, key: ServiceKey) -> tuple[str, ...]:
        """All that were seen, DEFAULT first."""
        service = self._find(key)
        return (DEFAULT_CLUSTER,) if service is None else service.clusters

    # v3

    def bar(self, now: float) -> None:
        """The admin API was refused: not to be asked for lists for a while."""
        self.barred_until = now + self._policy.bar

    def crowd(self, key: ServiceKey) -> None:
        """Too many services are named alike: this one is asked for cluster by cluster."""
        self._of(key).crowded = True

    def crowded(self, key: ServiceKey) -> bool:
        service = self._find(key)
        return service is not None and service.crowded

    def __len__(self) -> int:
        return len(self._seen) + len(self._unknown)

    def __repr__(self) -> str:
        return f"<Memory of {len(self._seen)} services and {len(self._unknown)} names, {self.parses} parses>"
