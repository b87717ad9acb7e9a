"""One service's entry in the cache, and the store that bounds the number of entries."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import cast

from cachetools import Cache, LRUCache

from nacos_proxy.catalog.fair_queue import Lane
from nacos_proxy.catalog.pending_writes import Pending
from nacos_proxy.model.errors import ProxyError
from nacos_proxy.model.services import ServiceKey, Snapshot, Source, Via

Watcher = tuple[str, int]  # a client, by its address, and one of its streams
REGISTERED_HERE: Lane = ("registered here", "")
READS: Lane = ("reads", "")
MAX_LANES = 8  # streams of one client whose lanes `lanes` returns
UNLIKELY = "unlikely"  # the lane of a client for services that probably do not exist
RECHECKS = (0.4, 0.8, 1.2, 2.0, 4.0)  # seconds after a notification


def discovery_lane(key: ServiceKey) -> Lane:
    """The lane for services that nobody asked for by name, in a group to which somebody listens as a whole."""
    return "discovery", (key.namespace, key.group)


@dataclass(slots=True)
class Entry:
    """One service; all times are in seconds of the monotonic clock.

    `upstream_snapshot` is the upstream's last list, `visible` the snapshot that readers see. `confirmed_at`: when the
    registry last confirmed it; `via`: the caches through which this was heard. `error` and `failures` are those of the
    fetches since then. `fetching`: a fetch is in flight. `notified_at`: when a change was last reported; `fetch_cause`:
    by whom. `pushed_at`: when the last pushed list became the upstream's snapshot. Before `retry_at`, a stale read
    starts no fetch, because the last one failed or its list is quarantined. `ever_nonempty`: the service has had
    instances. `discovered_at`: when the upstream last listed the name for a client that listens to the whole group.
    """

    key: ServiceKey
    upstream_snapshot: Snapshot | None = None
    visible: Snapshot | None = None
    confirmed_at: float = -math.inf
    via: Via | None = None
    error: ProxyError | None = None
    failures: int = 0
    retry_at: float = -math.inf
    pending: tuple[Pending, ...] = ()
    quarantined_since: float | None = None
    last_read: float = -math.inf
    discovered_at: float = -math.inf
    watchers: dict[str, Counter[int]] = field(default_factory=lambda: {})  # by client: its streams
    local_registrations: int = 0
    fetching: bool = False
    notified_at: float = -math.inf
    fetch_cause: Source = "poll"
    pushed_at: float = -math.inf
    ever_nonempty: bool = False
    from_disk: bool = False

    @property
    def pinned(self) -> bool:
        """Whether the entry must not be evicted: someone listens, or registered an instance here."""
        return bool(self.watchers) or self.local_registrations > 0

    @property
    def unlikely(self) -> bool:
        """Whether the service probably does not exist: it never had instances, and no change was reported since."""
        return not self.ever_nonempty and not self.local_registrations and self.notified_at <= self.confirmed_at

    @property
    def unknown(self) -> bool:
        return not self.pinned and (self.visible is None or not self.visible.instances)

    @property
    def watcher_count(self) -> int:
        return sum(streams.total() for streams in self.watchers.values())

    def add_watcher(self, watcher: Watcher) -> Lane:
        """Someone listens from now on. Returns the lane in which the service waits for it."""
        client, stream = watcher
        self.watchers.setdefault(client, Counter())[stream] += 1
        return (client, UNLIKELY) if self.unlikely else watcher

    def remove_watcher(self, watcher: Watcher) -> None:
        """A listener is gone; no effect if it did not listen."""
        client, stream = watcher
        streams = self.watchers.get(client, Counter[int]())
        if streams[stream] > 1:
            streams[stream] -= 1
            return
        del streams[stream]
        if not streams:
            self.watchers.pop(client, None)

    def next_recheck(self, now: float) -> float:
        """When to fetch again after the last notification, infinity after the last recheck.

        In a cluster, one node reports a change after half a second, but another lists it only after 1.2 to 1.7 s and
        may list an older state meanwhile (nacos-http.md, fact 19). Readers should see the change within 2 s.
        """
        return next((self.notified_at + after for after in RECHECKS if self.notified_at + after > now), math.inf)

    def lanes(self, read_since: float) -> Iterable[Lane]:
        """The lanes in which the service may wait for its poll. All unlikely services of a client share one."""
        if self.watchers and self.unlikely:
            return ((client, UNLIKELY) for client in self.watchers)
        if self.watchers:  # a few of each client, so that the streams of others are compared, too
            return ((client, at) for client, streams in self.watchers.items() for at in islice(streams, MAX_LANES))
        if self.local_registrations or self.pending:
            return (REGISTERED_HERE,)
        return (READS if self.last_read > read_since else discovery_lane(self.key),)


_peek = cast("Callable[[Mapping[ServiceKey, Entry], ServiceKey], Entry]", Cache.__getitem__)  # pyright: ignore[reportUnknownMemberType]


@dataclass(slots=True)
class EntryStore:
    """All entries. Pinned ones have no bound. Known and unknown services have one each, so that requests for a million
    invented names evict no real service.

    `dormant` has what puts the entry of a service here when that is first needed, the least recently used first. Those
    services have instances.
    """

    known: LRUCache[ServiceKey, Entry]
    unknown: LRUCache[ServiceKey, Entry]
    pinned: dict[ServiceKey, Entry] = field(default_factory=lambda: {})
    dormant: dict[ServiceKey, Callable[[], object]] = field(default_factory=lambda: {})

    def get(self, key: ServiceKey) -> Entry | None:
        if self.dormant and key in self.dormant:
            self.dormant.pop(key)()
        return self.pinned.get(key) or self.known.get(key) or self.unknown.get(key)

    def wake(self, number: int) -> int:
        """Puts this many of the dormant entries here, as far as there is room. Returns how many are left."""
        for key in list(islice(self.dormant, number)):
            if len(self.known) + len(self.dormant) > self.known.maxsize:
                del self.dormant[key]
            else:
                self.get(key)
        return len(self.dormant)

    def put(self, entry: Entry) -> None:
        """Adds an entry, or moves it to the mapping for its current state."""
        target = self.pinned if entry.pinned else self.unknown if entry.unknown else self.known
        if target.get(entry.key) is entry:
            return
        for entries in (self.pinned, self.known, self.unknown):
            if entries is not target:
                entries.pop(entry.key, None)
        target[entry.key] = entry

    def __iter__(self) -> Iterator[Entry]:
        """All entries, the pinned ones first. Unlike `get`, it does not count as a use for the eviction order."""
        self.wake(len(self.dormant))
        yield from list(self.pinned.values())
        for entries in (self.known, self.unknown):
            yield from [_peek(entries, key) for key in entries]

    def __len__(self) -> int:
        return len(self.pinned) + len(self.known) + len(self.unknown) + len(self.dormant)
