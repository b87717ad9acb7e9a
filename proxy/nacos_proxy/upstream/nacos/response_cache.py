"""A bounded cache of the values read from replies to one credential, so that an unchanged reply is not parsed again.

A digest identifies the body of a reply without `lastRefTime` and `checksum`, which r-nacos and Nacos change in every
reply. These are removed only after the list of hosts, because metadata may contain the same words.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from cachetools import LRUCache

from nacos_proxy.model.calls import ServiceInfo
from nacos_proxy.model.services import DEFAULT_CLUSTER, ServiceKey
from nacos_proxy.wire.http import HttpReply

T = TypeVar("T")

MAX_CLUSTERS = 64  # of one service
INFO_TTL = 30.0  # seconds until a service's own data is fetched again
ADMIN_RETRY = 60.0  # seconds until the admin API is tried again after a refusal

_RENEWED = re.compile(rb'"(?:lastRefTime":\s*\d+|checksum":\s*"[^"\\]*")')


def digest(body: bytes) -> bytes:
    """16 bytes. Bodies that differ only in `lastRefTime` or `checksum` have the same digest."""
    tail = body.rfind(b"]") + 1
    hasher = hashlib.blake2b(digest_size=16)
    depth = 2 if body.startswith(b'{"code":') else 1  # v2 wraps the list in another object
    if tail and b"{" not in (rest := body[tail:]) and rest.count(b"}") == depth:
        hasher.update(memoryview(body)[:tail])
        hasher.update(_RENEWED.sub(b"", rest))
    else:
        hasher.update(body)
    return hasher.digest()


@dataclass(frozen=True, slots=True)
class Versioned(Generic[T]):
    """A value, and the version of its source: for one service, equal versions mean equal values."""

    value: T
    version: Hashable


@dataclass(slots=True)
class _Service:
    values: dict[Hashable, Versioned[Any]] = field(default_factory=lambda: {})
    info: ServiceInfo | None = None
    info_until: float = float("-inf")
    clusters: tuple[str, ...] = (DEFAULT_CLUSTER,)
    list_by_cluster: bool = False


class ResponseCache:
    """The cache of one credential, because another may not see the same.

    Services that never had an instance have a separate bound, `max_unknown`: requests for a million invented names must
    not evict real services.
    """

    def __init__(self, max_services: int = 20_000, max_unknown: int = 1_000) -> None:
        self.admin_refused_until = float("-inf")
        self._known: LRUCache[ServiceKey, _Service] = LRUCache(max_services)
        self._unknown: LRUCache[ServiceKey, _Service] = LRUCache(max_unknown)

    def _find(self, key: ServiceKey) -> _Service | None:
        return self._known.get(key) or self._unknown.get(key)

    def _find_or_add(self, key: ServiceKey) -> _Service:
        service = self._find(key)
        if service is None:
            service = self._unknown[key] = _Service()
        return service

    def parse(
        self, key: ServiceKey, question: Hashable, reply: HttpReply, read: Callable[[HttpReply], T]
    ) -> Versioned[T]:
        """The value of a reply: the last object if the reply to `question` is unchanged, else `read(reply)`."""
        version = (digest(reply.body), reply.status, question)
        return self.derive(key, question, version, partial(read, reply), keep=reply.status == 200)

    def derive(
        self, key: ServiceKey, name: Hashable, version: Hashable, build: Callable[[], T], *, keep: bool = True
    ) -> Versioned[T]:
        """The last object of this name if its version is the same, else `build()`, which is cached if `keep`."""
        values = self._find_or_add(key).values
        if len(values) > 2 * MAX_CLUSTERS:  # many clusters came and went
            values.clear()
        last = values.get(name)
        if last is not None and last.version == version:
            return last
        derived = Versioned(build(), version)
        if keep:
            values[name] = derived
        return derived

    def info(self, key: ServiceKey, now: float) -> tuple[ServiceInfo | None, bool]:
        """The service's own data, None if the server did not show it, and whether to fetch it again."""
        service = self._find(key)
        return (None, True) if service is None else (service.info, now >= service.info_until)

    def set_info(self, key: ServiceKey, info: ServiceInfo | None, now: float) -> ServiceInfo | None:
        """Keeps a service's own data. Returns the object kept before if it is equal."""
        service = self._find_or_add(key)
        service.info = service.info if service.info == info else info
        service.info_until = now + INFO_TTL
        if info is not None:
            self._add_clusters(service, info.clusters)
        return service.info

    def add_clusters(self, key: ServiceKey, clusters: Collection[str]) -> None:
        """Adds clusters in which a service has instances."""
        known = self._known.get(key)
        if not clusters or (known is not None and all(cluster in known.clusters for cluster in clusters)):
            return
        service = self._find_or_add(key)
        if self._unknown.pop(key, None) is not None:
            self._known[key] = service
        self._add_clusters(service, clusters)

    def _add_clusters(self, service: _Service, clusters: Collection[str]) -> None:
        for cluster in clusters:
            known = service.clusters
            if cluster not in known and cluster and "," not in cluster and len(known) < MAX_CLUSTERS:
                service.clusters = (*known, cluster)

    def clusters(self, key: ServiceKey) -> tuple[str, ...]:
        """All clusters seen so far, DEFAULT first."""
        service = self._find(key)
        return (DEFAULT_CLUSTER,) if service is None else service.clusters

    def admin_refused(self, now: float) -> None:
        """Postpones the next list by the admin API, which refused this one."""
        self.admin_refused_until = now + ADMIN_RETRY

    def list_by_cluster(self, key: ServiceKey) -> bool:
        """Whether to list each cluster of this service, because a page would have too many services."""
        service = self._find(key)
        return service is not None and service.list_by_cluster

    def set_list_by_cluster(self, key: ServiceKey) -> None:
        self._find_or_add(key).list_by_cluster = True

    def __len__(self) -> int:
        return len(self._known) + len(self._unknown)
