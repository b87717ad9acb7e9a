"""One service's entry, and the bounds under which entries are kept. Not for: what becomes of an entry (`cache`)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import cast

from cachetools import Cache, LRUCache

from nacos_proxy.catalog.pending_writes import Pending
from nacos_proxy.catalog.turns import Lane
from nacos_proxy.model.errors import ProxyError
from nacos_proxy.model.services import ServiceKey, Snapshot, Source

Watcher = tuple[str, int]  # a client, by its address, and one of its streams
REGISTERED_HERE: Lane = ("registered here", "")
READS: Lane = ("reads", "")
LANES = 8  # streams of one client that are looked at
UNLIKELY = "unlikely"
RECHECKS = (0.4, 0.8, 1.2, 2.0, 4.0)  # seconds after something was told


def discovery(key: ServiceKey) -> Lane:
    """Where what nobody asks for waits, of a group that someone listens to as a whole."""
    return "discovery", (key.namespace, key.group)


@dataclass(slots=True)
class Entry:
    """One service. `word` is the upstream's own list, `shown` what readers see; `contact` when it was last confirmed.

    `asking`: a fetch is under way. `told`: when somebody last said that it changed, and `because` who did. `retry_at`
    is before when a stale read alone is no reason to ask again: the last fetch failed, or its list is held back.
    `lived` says that instances were seen, which no asking for names brings about. `found`: when the upstream last had
    its name for someone who listens to all that there is.
    """

    key: ServiceKey
    upstream_snapshot: Snapshot | None = None
    visible: Snapshot | None = None
    confirmed_at: float = -math.inf
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
    ever_nonempty: bool = False
    from_disk: bool = False

    @property
    def pinned(self) -> bool:
        """Whether it must not be pushed out: someone listens, or registered an instance here."""
        return bool(self.watchers) or self.local_registrations > 0

    def join(self, who: Watcher) -> Lane:
        """One listens from now on; the lane in which it waits for the service."""
        client, stream = who
        self.watchers.setdefault(client, Counter())[stream] += 1
        return (client, UNLIKELY) if self.unlikely else who

    def leave(self, who: Watcher) -> None:
        """One that listened no longer does; harmless where it did not."""
        client, stream = who
        streams = self.watchers.get(client, Counter[int]())
        if streams[stream] > 1:
            streams[stream] -= 1
            return
        del streams[stream]
        if not streams:
            self.watchers.pop(client, None)

    @property
    def listeners(self) -> int:
        return sum(streams.total() for streams in self.watchers.values())

    def next_recheck(self, now: float) -> float:
        """When to ask again for what was told last, infinity where no more is owed to it.

        One node of a cluster tells of a change half a second after it, another lists it 1.2 to 1.7 s after it, and an
        earlier one meanwhile (nacos-http.md, fact 19): it is to be seen within 2 s.
        """
        return next((self.notified_at + after for after in RECHECKS if self.notified_at + after > now), math.inf)

    def lanes(self, read_since: float) -> Iterable[Lane]:
        """Where it may wait for its turn, none of which delays the others. Unlikely ones share one of their client."""
        if self.watchers and self.unlikely:
            return ((client, UNLIKELY) for client in self.watchers)
        if self.watchers:  # a few of each client: with all of one, others' would not be looked at
            return ((client, at) for client, streams in self.watchers.items() for at in islice(streams, LANES))
        if self.local_registrations or self.pending:
            return (REGISTERED_HERE,)
        return (READS if self.last_read > read_since else discovery(self.key),)

    @property
    def unlikely(self) -> bool:
        """Listened to, never seen, and nobody has said that it changed since it was last confirmed."""
        return not self.ever_nonempty and not self.local_registrations and self.notified_at <= self.confirmed_at

    @property
    def unknown(self) -> bool:
        return not self.pinned and (self.visible is None or not self.visible.instances)


_peek = cast("Callable[[Mapping[ServiceKey, Entry], ServiceKey], Entry]", Cache.__getitem__)  # pyright: ignore[reportUnknownMemberType]


@dataclass(slots=True)
class EntryStore:
    """Entries under one bound; the pinned ones live outside of it."""

    known: LRUCache[ServiceKey, Entry]
    unknown: LRUCache[ServiceKey, Entry]
    pinned: dict[ServiceKey, Entry] = field(default_factory=lambda: {})

    def get(self, key: ServiceKey) -> Entry | None:
        return self.pinned.get(key) or self.known.get(key) or self.unknown.get(key)

    def put(self, entry: Entry) -> None:
        wanted = self.pinned if entry.pinned else self.unknown if entry.unknown else self.known
        if wanted.get(entry.key) is entry:
            return
        for shelf in (self.pinned, self.known, self.unknown):
            if shelf is not wanted:
                shelf.pop(entry.key, None)
        wanted[entry.key] = entry

    def __iter__(self) -> Iterator[Entry]:
        """To look at all of them, as a scrape does, is no use of any: it must not change which go first."""
        yield from list(self.pinned.values())
        for shelf in (self.known, self.unknown):
            yield from [_peek(shelf, key) for key in shelf]

    def __len__(self) -> int:
        return len(self.pinned) + len(self.known) + len(self.unknown)
