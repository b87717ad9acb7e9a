"""What is remembered between two fetches, so that an unchanged answer costs no parse: bounded, told the time.

Not for: what clients see (`catalog`), how a service is asked for (`speech`).

An answer is known by a digest of its body without `lastRefTime` and `checksum`, which r-nacos and Nacos make anew for
each answer. They are cut out only of the plain fields behind the hosts: metadata may use the same words.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from cachetools import LRUCache

from proxy.calls import ServiceInfo
from proxy.model import DEFAULT_CLUSTER, Instance, ServiceKey, Snapshot
from proxy.wire.base import HttpReply

T = TypeVar("T")

_MOMENTS = re.compile(rb'"(?:lastRefTime":\s*\d+|checksum":\s*"[^"\\]*")')


@dataclass(frozen=True, slots=True)
class MemoryPolicy:
    """Numbers and seconds. A service's own data is asked again after `info`, a missing right is tried after `bar`."""

    services: int = 20_000
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


class Memory:
    """One for each set of rights: what one credential was shown is not used for another."""

    def __init__(self, policy: MemoryPolicy = MemoryPolicy()) -> None:
        self.barred_until = float("-inf")
        self.parses = 0
        self._policy = policy
        self._parsed: LRUCache[Hashable, tuple[bytes, Any]] = LRUCache(2 * policy.services)
        self._made: LRUCache[Hashable, tuple[tuple[Any, ...], Snapshot]] = LRUCache(2 * policy.services)
        self._infos: LRUCache[ServiceKey, tuple[ServiceInfo | None, float]] = LRUCache(policy.services)
        self._clusters: LRUCache[ServiceKey, dict[str, None]] = LRUCache(policy.services)
        self._crowded: LRUCache[ServiceKey, None] = LRUCache(policy.services)

    def parsed(self, what: Hashable, reply: HttpReply, read: Callable[[HttpReply], T]) -> T:
        """What `read` makes of a reply; the same object as last time where `what` is answered as last time."""
        if reply.status != 200:
            return read(reply)
        found = digest(reply.body)
        known = self._parsed.get(what)
        if known is not None and known[0] == found:
            return cast(T, known[1])
        value = read(reply)
        self.parses += 1
        self._parsed[what] = (found, value)
        return value

    def made(self, what: Hashable, parts: tuple[Any, ...], make: Callable[[], Snapshot]) -> Snapshot:
        """The snapshot made of these parts; the same object as last time where they are the very same objects."""
        known = self._made.get(what)
        if known is not None and [id(part) for part in known[0]] == [id(part) for part in parts]:
            return known[1]
        snapshot = make()
        self._made[what] = (parts, snapshot)
        return snapshot

    # a service's own data

    def info(self, key: ServiceKey, now: float) -> tuple[ServiceInfo | None, bool]:
        """What is known of it (None: nothing could be learned), and whether it is time to ask again."""
        info, until = self._infos.get(key, (None, float("-inf")))
        return info, now >= until

    def learned(self, key: ServiceKey, info: ServiceInfo | None, now: float) -> ServiceInfo | None:
        """An answer; the object of the last one where they are equal."""
        known, _ = self._infos.get(key, (None, 0.0))
        info = known if known == info else info
        self._infos[key] = (info, now + self._policy.info)
        if info is not None:
            self.saw(key, info.clusters)
        return info

    # clusters

    def saw(self, key: ServiceKey, clusters: Iterable[str]) -> None:
        """Clusters that a service has or may have, from answers, registrations and hints."""
        known = self._clusters.get(key)
        if known is None:
            known = self._clusters[key] = {DEFAULT_CLUSTER: None}
        for cluster in clusters:
            if cluster not in known and cluster and "," not in cluster and len(known) < self._policy.clusters:
                known[cluster] = None

    def saw_hosts(self, key: ServiceKey, hosts: Iterable[Instance]) -> None:
        self.saw(key, {host.cluster for host in hosts})

    def clusters(self, key: ServiceKey) -> tuple[str, ...]:
        """All that were seen, DEFAULT first."""
        return tuple(self._clusters.get(key, {DEFAULT_CLUSTER: None}))

    # v3

    def bar(self, now: float) -> None:
        """The admin API was refused: not to be asked for lists for a while."""
        self.barred_until = now + self._policy.bar

    def crowd(self, key: ServiceKey) -> None:
        """Too many services are named alike: this one is asked for cluster by cluster."""
        self._crowded[key] = None

    def crowded(self, key: ServiceKey) -> bool:
        return key in self._crowded
