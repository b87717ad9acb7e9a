"""What this host knows of each service: entries, freshness, bounds, and what is due to be asked again.

Not for: fetching (it says what is due and never asks), the network, the clock (it is told `now`, seconds of one
monotonic clock). Rules of this file:

- a failure never touches a snapshot: `accept` and `reject` are two doors (value and error lie side by side, and the
  error is the younger where both are there);
- what readers see is the upstream's word with the pending writes on top; only `_show` sets it;
- services that nobody registered have a bound of their own, so that asking for a million names pushes out nothing.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from cachetools import LRUCache

from proxy.calls import Update, Write
from proxy.catalog.look import Freshness, Look, freshness
from proxy.catalog.overlay import OverlayPolicy, Pending, add, explains, fold, settle
from proxy.effects import apply
from proxy.errors import ProxyError
from proxy.model import Change, ServiceKey, Snapshot, Source, diff


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """Seconds and numbers. `ttl_pushed` holds where changes are pushed to us, `ttl_unknown` for empty services."""

    ttl: float = 10.0
    ttl_pushed: float = 45.0
    ttl_unknown: float = 2.0
    stale_if_error: float = 86_400.0
    max_services: int = 10_000
    max_unknown: int = 1_000
    interval_subscribed: float = 1.0
    interval_read: float = 5.0
    interval_pushed: float = 30.0
    watch_idle: float = 600.0
    longest_back_off: float = 60.0
    suspicious_share: float = 0.5
    confirm_after: float = 5.0


@dataclass(slots=True)
class Entry:
    """One service. `word` is the upstream's own list, `shown` what readers see; `contact`: when last confirmed."""

    key: ServiceKey
    word: Snapshot | None = None
    shown: Snapshot | None = None
    contact: float = -math.inf
    error: ProxyError | None = None
    failures: int = 0
    pending: tuple[Pending, ...] = ()
    held_since: float | None = None
    last_read: float = -math.inf
    watchers: int = 0
    owned: int = 0
    due_at: float = math.inf
    from_disk: bool = False

    @property
    def pinned(self) -> bool:
        """Whether it must not be pushed out: someone listens, or registered an instance here."""
        return self.watchers > 0 or self.owned > 0

    @property
    def unknown(self) -> bool:
        return not self.pinned and (self.shown is None or not self.shown.instances)


@dataclass(slots=True)
class _Shelf:
    """Entries under one bound; the pinned ones live outside of it."""

    known: LRUCache[ServiceKey, Entry]
    unknown: LRUCache[ServiceKey, Entry]
    pinned: dict[ServiceKey, Entry] = field(default_factory=lambda: {})

    def get(self, key: ServiceKey) -> Entry | None:
        return self.pinned.get(key) or self.known.get(key) or self.unknown.get(key)

    def place(self, entry: Entry) -> None:
        wanted = self.pinned if entry.pinned else self.unknown if entry.unknown else self.known
        if wanted.get(entry.key) is entry:
            return
        for shelf in (self.pinned, self.known, self.unknown):
            if shelf is not wanted:
                shelf.pop(entry.key, None)
        wanted[entry.key] = entry

    def __iter__(self) -> Iterator[Entry]:
        for shelf in (self.pinned, self.known, self.unknown):
            yield from list(shelf.values())

    def __len__(self) -> int:
        return len(self.pinned) + len(self.known) + len(self.unknown)


class Cache:
    """The entries of all services, bounded. `luck()` draws from [0, 1) and spreads the polls."""

    def __init__(self, policy: CachePolicy, overlay: OverlayPolicy, luck: Callable[[], float]) -> None:
        self._policy = policy
        self._overlay = overlay
        self._luck = luck
        self._shelf = _Shelf(LRUCache(policy.max_services), LRUCache(policy.max_unknown))
        self._schedule: list[tuple[float, ServiceKey]] = []
        self.pushed = False

    # reading

    def look(self, key: ServiceKey, now: float) -> Look:
        """What is known of a service. Changes nothing; `touch` says that it was read."""
        entry = self._shelf.get(key)
        if entry is None or entry.shown is None:
            error = entry.error if entry is not None else None
            return Look(Freshness.MISSING, None, 0.0, 0.0, error)
        age, ttl = now - entry.contact, self._ttl(entry)
        state = freshness(age, ttl, self._policy.stale_if_error)
        return Look(state, entry.shown, age, ttl - age, entry.error, from_disk=entry.from_disk)

    def touch(self, key: ServiceKey, now: float) -> None:
        """A reader asked for the service: it is watched from now on, until nobody has asked for a while."""
        entry = self._entry(key)
        entry.last_read = now
        if entry.due_at == math.inf and entry.shown is not None and not entry.unknown:
            self._plan(entry, entry.contact + self._interval(entry))

    def _ttl(self, entry: Entry) -> float:
        if entry.unknown:
            return self._policy.ttl_unknown
        return self._policy.ttl_pushed if self.pushed else self._policy.ttl

    # the upstream's word

    def accept(
        self, word: Snapshot, now: float, source: Source, *, asked: float, suspicious: bool = False
    ) -> Change | None:
        """A list arrived that was asked for at `asked`. The change that readers see, or None.

        `suspicious`: the upstream was away or is another one now; a list that then lost more than the policy's share
        of a service is held back until a second one says the same `confirm_after` seconds later.
        """
        entry = self._entry(word.key)
        if self._hold(entry, word, now, suspicious):
            entry.contact = max(entry.contact, now - self._ttl(entry))
            self._plan(entry, now + self._policy.confirm_after)
            return None
        entry.held_since, entry.error, entry.failures, entry.from_disk = None, None, 0, False
        entry.contact = now
        entry.word = word
        entry.pending = settle(entry.pending, word, asked, now, self._overlay) if entry.pending else ()
        change = self._show(entry, fold(word, entry.pending), source)
        self._shelf.place(entry)
        self._plan(entry, self._next(entry, now))
        return change

    def _hold(self, entry: Entry, word: Snapshot, now: float, suspicious: bool) -> bool:
        before = entry.shown
        if before is None or not before.instances or (not suspicious and entry.held_since is None):
            return False
        left = sum(1 for i in before.instances if i.key in word.by_key)
        lost = 1.0 - left / len(before.instances)
        if lost <= self._policy.suspicious_share or explains(entry.pending, before, word):
            return False
        if entry.held_since is None:
            entry.held_since = now
        return now - entry.held_since < self._policy.confirm_after

    def reject(self, key: ServiceKey, error: ProxyError, now: float) -> None:
        """A fetch failed. The snapshot stays; the next attempt is put off, longer each time."""
        entry = self._entry(key)
        entry.error = error
        entry.failures += 1
        wait = self._interval(entry) * 2.0 ** min(entry.failures, 16)
        self._plan(entry, now + min(wait, self._policy.longest_back_off) * (0.5 + self._luck() / 2))

    def wrote(self, write: Write[Any], now: float, wall_ms: int) -> Change | None:
        """The upstream accepted a write: readers see it at once. The change, or None where nothing shows."""
        entry = self._entry(write.service)
        before = entry.shown if entry.shown is not None else Snapshot(write.service)
        after = apply(before, write)
        tracked = bool(entry.pending) or after is not before or entry.word is None
        if tracked and self._overlay.grace > 0:
            entry.pending = add(entry.pending, write, now)
        # A disabled instance is in no list, so enabling it shows nothing here: only the upstream can tell.
        if self._overlay.grace > 0 and (tracked or isinstance(write, Update)):
            self._plan(entry, min(entry.due_at, now + self._overlay.settle))
        if entry.shown is None or after is before:
            return None
        change = self._show(entry, replace(after, last_ref_time=wall_ms), "write")
        self._shelf.place(entry)
        return change

    def restore(self, snapshot: Snapshot, age: float, now: float) -> None:
        """A state from disk, `age` seconds old. What the upstream said since start is never replaced by it."""
        entry = self._entry(snapshot.key)
        if entry.shown is None:
            entry.word = entry.shown = snapshot
            entry.contact, entry.from_disk = now - age, True
            self._shelf.place(entry)

    def _show(self, entry: Entry, shown: Snapshot, source: Source) -> Change | None:
        known, before = entry.shown is not None, entry.shown
        change = diff(before, shown, source)
        if change is not None or not known:
            entry.shown = shown
        return change

    # watching

    def watch(self, key: ServiceKey, now: float) -> None:
        """Someone listens to the service from now on."""
        entry = self._entry(key)
        entry.watchers += 1
        self._shelf.place(entry)
        self._plan(entry, min(entry.due_at, max(now, entry.contact + self._interval(entry))))

    def unwatch(self, key: ServiceKey, now: float) -> None:
        entry = self._entry(key)
        entry.watchers = max(0, entry.watchers - 1)
        entry.last_read = max(entry.last_read, now)
        self._shelf.place(entry)

    def own(self, key: ServiceKey, number: int, now: float) -> None:
        """How many instances of the service are registered through this proxy."""
        entry = self._entry(key)
        entry.owned = number
        entry.last_read = max(entry.last_read, now)
        self._shelf.place(entry)

    def hasten(self, key: ServiceKey, now: float) -> None:
        """The service is said to have changed: it is due at once."""
        if (entry := self._shelf.get(key)) is not None:
            self._plan(entry, now)

    def due(self, now: float, budget: int) -> list[ServiceKey]:
        """At most `budget` services whose turn it is, most overdue first; not due again until their fetch ends."""
        keys: list[ServiceKey] = []
        while self._schedule and self._schedule[0][0] <= now and len(keys) < budget:
            moment, key = heapq.heappop(self._schedule)
            entry = self._shelf.get(key)
            if entry is None or entry.due_at != moment:
                continue
            entry.due_at = math.inf
            if self.watched(key, now):
                keys.append(key)
        return keys

    def next_due(self) -> float:
        """When `due` may have something, infinity for never."""
        return self._schedule[0][0] if self._schedule else math.inf

    def watched(self, key: ServiceKey, now: float) -> bool:
        """Someone listens, or has read it lately, or registered an instance of it here."""
        entry = self._shelf.get(key)
        if entry is None:
            return False
        if entry.pinned or entry.pending:
            return True
        return not entry.unknown and now - entry.last_read < self._policy.watch_idle

    def _interval(self, entry: Entry) -> float:
        if self.pushed:
            return self._policy.interval_pushed
        return self._policy.interval_subscribed if entry.watchers else self._policy.interval_read

    def _next(self, entry: Entry, now: float) -> float:
        interval = self._interval(entry)
        moment = now + interval * (0.9 + self._luck() / 5)
        if entry.pending:
            waits = (
                p.since + (self._overlay.settle if p.since + self._overlay.settle > now else self._overlay.grace)
                for p in entry.pending
            )
            moment = min(moment, max(now + 0.05, min(waits)))
        return moment

    def _plan(self, entry: Entry, moment: float) -> None:
        if moment != entry.due_at:
            entry.due_at = moment
            heapq.heappush(self._schedule, (moment, entry.key))

    def _entry(self, key: ServiceKey) -> Entry:
        entry = self._shelf.get(key)
        if entry is None:
            entry = Entry(key)
            self._shelf.place(entry)
        return entry

    # for operators

    def entries(self) -> Iterator[Entry]:
        """All entries, the pinned first. Not to be changed by the caller."""
        return iter(self._shelf)

    def get(self, key: ServiceKey) -> Entry | None:
        return self._shelf.get(key)

    def watched_keys(self, now: float) -> list[ServiceKey]:
        return [entry.key for entry in self._shelf if self.watched(entry.key, now)]

    def __len__(self) -> int:
        return len(self._shelf)

    def __repr__(self) -> str:
        counts = f"{len(self._shelf.pinned)} pinned, {len(self._shelf.known)} known, {len(self._shelf.unknown)} unknown"
        return f"<Cache {counts}, next due {self.next_due():g}>"
