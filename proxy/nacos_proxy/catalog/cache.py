"""What this host knows of each service: entries, freshness, bounds, and what is due to be asked again.

Not for: fetching (it says what is due and never asks), the network, the clock (it is told `now`, seconds of one
monotonic clock). Rules of this file:

- a failure never touches a snapshot: `accept` and `reject` are two doors (value and error lie side by side, and the
  error is the younger where both are there);
- what readers see is the upstream's word with the pending writes on top; only `_show` sets it;
- services that nobody registered have a bound of their own, so that asking for a million names pushes out nothing;
- what is planned is what is watched: the schedule has a place for each watched service, due or being asked for;
- what is due takes turns by client, so that no listener delays another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from cachetools import LRUCache

from nacos_proxy.catalog.entries import (
    UNLIKELY,
    Entry,
    EntryStore,
    Watcher,
    discovery,
)
from nacos_proxy.catalog.freshness import CacheResult, Freshness, freshness
from nacos_proxy.catalog.pending_writes import (
    UNHEARD,
    Pending,
    PendingPolicy,
    add,
    apply_pending,
    drop_confirmed,
    explained,
    next_check,
)
from nacos_proxy.catalog.recent_writes import Recent
from nacos_proxy.catalog.schedule import Schedule
from nacos_proxy.catalog.turns import Turns
from nacos_proxy.model.calls import Beat, Register, Write
from nacos_proxy.model.effects import apply
from nacos_proxy.model.errors import ProxyError
from nacos_proxy.model.services import (
    Change,
    ServiceKey,
    Snapshot,
    Source,
    diff,
)


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
    max_back_off: float = 60.0
    suspicious_share: float = 0.5
    confirm_after: float = 5.0


class Cache:
    """The entries of all services, bounded. `rng()` draws from [0, 1) and spreads the polls."""

    def __init__(self, policy: CachePolicy, overlay: PendingPolicy, rng: Callable[[], float]) -> None:
        self.pushed = False
        self.covers: Callable[[ServiceKey], bool] = lambda _: True  # whether what is pushed to us has this service
        self.recent = Recent(overlay.grace)
        self._policy = policy
        self._overlay = overlay
        self._rng = rng
        self._shelf = EntryStore(LRUCache(policy.max_services), LRUCache(policy.max_unknown))
        self._schedule = Schedule()
        self._turns: Turns[ServiceKey] = Turns()

    # reading

    def lookup(self, key: ServiceKey, now: float) -> CacheResult:
        """What is known of a service. Changes nothing but who goes last; `touch` says that it was read."""
        return self.result_of(self._shelf.get(key), now)

    def result_of(self, entry: Entry | None, now: float) -> CacheResult:
        """The same of one of `entries`, which is no use of it."""
        if entry is None or entry.visible is None:
            error = entry.error if entry is not None else None
            return CacheResult(Freshness.MISSING, None, 0.0, 0.0, error)
        age, ttl = now - entry.confirmed_at, self._ttl(entry)
        if entry.from_disk:  # nobody knows what happened while this proxy did not run
            ttl = min(ttl, age)
        state = freshness(age, ttl, self._policy.stale_if_error)
        return CacheResult(state, entry.visible, age, ttl - age, entry.error, from_disk=entry.from_disk)

    def confirmed(self, shown: Snapshot, now: float) -> tuple[float, float] | None:
        """Since when and until when a snapshot that was shown is fresh; None where it is not, or is another by now."""
        look = self.lookup(shown.key, now)
        if look.snapshot is not shown or look.stale or look.error is not None:
            return None
        return now - look.age, now + look.ttl

    def touch(self, key: ServiceKey, now: float) -> None:
        """A reader asked for the service: it is watched from now on, until nobody has asked for a while."""
        entry = self._entry(key)
        entry.last_read = now
        self._keep(entry, now)

    def may_refresh(self, key: ServiceKey, now: float) -> bool:
        """Whether a read of a stale snapshot is reason enough to ask the upstream now."""
        entry = self._shelf.get(key)
        return entry is None or (not entry.fetching and entry.retry_at <= now)

    def _ttl(self, entry: Entry) -> float:
        if entry.unknown:
            return self._policy.ttl_unknown
        return self._policy.ttl_pushed if self.pushed and self.covers(entry.key) else self._policy.ttl

    # the upstream's word

    def begin_fetch(self, key: ServiceKey) -> None:
        """A fetch begins: the service is not due again until `accept` or `reject` ends it."""
        entry = self._entry(key)
        entry.fetching = True
        if key in self._schedule:
            self._schedule.plan(key, math.inf)

    def accept(
        self,
        word: Snapshot,
        now: float,
        source: Source,
        *,
        asked: float,
        suspicious: bool = False,
        missed: Mapping[tuple[str, int], float] = MappingProxyType({}),
        now_ms: int = 0,
    ) -> Change | None:
        """A list arrived that was asked for at `asked`. The change that readers see, or None.

        `suspicious`: the upstream was away or is another one now; a list that then lost more than the policy's share
        of a service is held back until a second one says the same `confirm_after` seconds later. `missed` are
        addresses that will be registered again, by when they were first missed, which is suspicious, too: readers
        go on seeing them as after a write at that moment. `now_ms` dates a change.
        """
        entry = self._entry(word.key)
        self._keep_showing(entry, missed)
        entry.fetching, entry.error, entry.failures = False, None, 0
        if self._quarantine(entry, word, now, suspicious or bool(missed)):
            entry.retry_at = (
                now if entry.quarantined_since is None else entry.quarantined_since
            ) + self._policy.confirm_after
            self._plan(entry, entry.retry_at, now)
            return None
        entry.quarantined_since, entry.retry_at, entry.from_disk, entry.confirmed_at = None, -math.inf, False, now
        pending = drop_confirmed(entry.pending, word, asked, self._overlay) if entry.pending else ()
        # a registry gives the very same object where nothing changed: then nothing need be compared
        same = word is entry.upstream_snapshot and pending == entry.pending
        entry.upstream_snapshot, entry.pending = word, pending
        change = None if same else self._show(entry, apply_pending(word, pending), source, now_ms)
        self._shelf.put(entry)
        anew = entry.notified_at > asked
        entry.fetch_cause = entry.fetch_cause if anew else "poll"
        self._plan(entry, now if anew else min(self._next(entry, now), entry.next_recheck(now)), now)
        return change

    def _keep_showing(self, entry: Entry, missed: Mapping[tuple[str, int], float]) -> None:
        for (ip, port), since in missed.items() if self._overlay.grace > 0 else ():
            if entry.visible is not None and (seen := entry.visible.find(ip, port)) is not None:
                entry.pending = add(entry.pending, Register(entry.key, seen), since)

    def _quarantine(self, entry: Entry, word: Snapshot, now: float, suspicious: bool) -> bool:
        before, doubted = entry.visible, suspicious or entry.from_disk or entry.quarantined_since is not None
        if before is None or not doubted:
            return False
        if explained(entry.pending, before, word, self._policy.suspicious_share):
            return False
        if freshness(now - entry.confirmed_at, self._ttl(entry), self._policy.stale_if_error) is Freshness.EXPIRED:
            return False  # nobody is served what would be kept
        if entry.quarantined_since is None:
            entry.quarantined_since = now
        return now - entry.quarantined_since < self._policy.confirm_after

    def reject(self, key: ServiceKey, error: ProxyError, now: float, *, barred: bool = False) -> None:
        """A fetch failed. The next attempt is put off, longer each time. The snapshot stays, unless it is `barred`."""
        entry = self._entry(key)
        if barred:
            entry.upstream_snapshot, entry.visible, entry.pending = None, None, ()
            self._shelf.put(entry)
        entry.fetching, entry.error, entry.failures = False, error, entry.failures + 1
        wait = min(self._pace(entry) * 2.0 ** min(entry.failures, 16), self._policy.max_back_off)
        entry.retry_at = now + wait * (0.5 + self._rng() / 2)
        self._plan(entry, entry.retry_at, now)

    def recovered(self, now: float) -> None:
        """The upstream is back: what failed meanwhile may be asked again at once, and is soon, spread over a while."""
        for entry in self._shelf:
            if entry.failures:
                entry.retry_at = now
                self._plan(entry, now + self._rng() * self._pace(entry), now)

    def wrote(self, write: Write[Any], now: float, now_ms: int, *, local: bool = False) -> Change | None:
        """The upstream accepted a write (`local`: will hear of it): readers see it at once. The change, or None."""
        entry = self._entry(write.service)
        before = entry.visible if entry.visible is not None else Snapshot(write.service)
        after = apply(before, write)
        if local and entry.visible is None and after.instances:  # all that is known of the service, and stale
            entry.upstream_snapshot = entry.visible = before
            entry.confirmed_at = now - self._policy.ttl_pushed
        # A write that shows nothing here may still be news to the upstream, which lists it late: an instance that it
        # had lost, a disabled one that no list shows. Beats come too often to be followed for that.
        if local or (self._overlay.grace > 0 and (after is not before or not isinstance(write, Beat))):
            entry.pending = add(entry.pending, write, UNHEARD if local else now)
            self.recent.note(entry.key, now)
            self._plan(entry, min(self._schedule.moment(entry.key), now + self._overlay.settle), now)
        if entry.visible is None or after is before:
            return None
        if self._overlay.grace <= 0 and not local:
            entry.upstream_snapshot = after
        change = self._show(entry, after, "write", now_ms)
        self._shelf.put(entry)
        return change

    def revise(
        self, key: ServiceKey, revised: Callable[[Pending], Pending | None], now: float, now_ms: int
    ) -> Change | None:
        """The pending writes of a service become others, or none; readers see what is left of them."""
        entry = self._entry(key)
        entry.pending = tuple(p for p in map(revised, entry.pending) if p is not None)
        self._plan(entry, min(self._schedule.moment(key), now + self._overlay.settle), now)
        if entry.upstream_snapshot is None:
            return None
        change = self._show(entry, apply_pending(entry.upstream_snapshot, entry.pending), "write", now_ms)
        self._shelf.put(entry)
        return change

    def restore(self, snapshot: Snapshot, age: float, now: float) -> None:
        """A state from disk, `age` seconds old. What the upstream said since start is never replaced by it."""
        entry = self._entry(snapshot.key)
        if entry.visible is None:
            entry.upstream_snapshot = snapshot
            self._show(entry, apply_pending(snapshot, entry.pending), "disk", 0)
            entry.confirmed_at, entry.from_disk = now - age, True
            self._shelf.put(entry)

    def _show(self, entry: Entry, shown: Snapshot, source: Source, now_ms: int) -> Change | None:
        change = diff(entry.visible, shown, source)
        if change is None and entry.visible is not None:
            return None
        # SDKs ignore a list that is older than the one they have, and the clocks of servers and of this host differ
        earliest = entry.visible.last_ref_time + 1 if entry.visible is not None else 0
        shown = shown.dated(max(now_ms or shown.last_ref_time, earliest))
        change = None if change is None else replace(change, after=shown)
        entry.visible = shown
        entry.ever_nonempty = entry.ever_nonempty or bool(shown.instances)
        return change

    # watching

    def watch(self, key: ServiceKey, now: float, who: Watcher = ("", 0)) -> None:
        """Someone listens to the service from now on."""
        entry = self._entry(key)
        lane = entry.join(who)
        self._shelf.put(entry)
        if self._turns.join(key, lane):
            return
        moment = max(now, entry.confirmed_at + self._interval(entry), entry.retry_at)
        self._plan(entry, min(self._schedule.moment(key), moment), now)

    def unwatch(self, key: ServiceKey, now: float, who: Watcher = ("", 0)) -> None:
        entry = self._entry(key)
        entry.leave(who)
        entry.last_read = max(entry.last_read, now)
        self._shelf.put(entry)
        if not self.watches(entry, now):
            self._schedule.drop(key)

    def found(self, key: ServiceKey, now: float) -> None:
        """The upstream has this name, and someone listens to all that it has: also to what nobody asks for."""
        if (entry := self._shelf.get(key)) is not None and self.watches(entry, now):
            entry.discovered_at = now
            self._keep(entry, now)
        else:
            self._turns.put(key, now, (discovery(key),))

    def set_local_registrations(self, key: ServiceKey, number: int, now: float) -> None:
        """How many instances of the service are registered through this proxy."""
        entry = self._entry(key)
        entry.local_registrations = number
        entry.last_read = max(entry.last_read, now)
        self._shelf.put(entry)
        self._keep(entry, now)

    def invalidate(self, key: ServiceKey, now: float, because: Source = "poll") -> None:
        """The service is said to have changed: it is due at once, or again after the fetch that is under way."""
        if (entry := self._shelf.get(key)) is not None:
            entry.notified_at, entry.fetch_cause = now, because
            self._plan(entry, now, now)

    def set_push_alive(self, alive: bool, now: float) -> None:
        """Whether changes are told to us. Where they no longer are, what is watched is due at its old pace again."""
        if alive == self.pushed:
            return
        self.pushed = alive
        for key in () if alive else tuple(self._schedule.keys()):
            entry = self._shelf.get(key)
            if entry is not None:
                moment = max(entry.confirmed_at + self._pace(entry) * self._jitter(), entry.retry_at)
                self._plan(entry, min(self._schedule.moment(key), moment), now)

    def due(self, now: float, budget: int) -> list[ServiceKey]:
        """At most `budget` services whose turn it is; none is due again until its fetch ends."""
        self._line_up(now)
        keys: list[ServiceKey] = []
        while len(keys) < budget and (turn := self._turns.take()) is not None:
            key, lane = turn
            entry = self._shelf.get(key)
            if lane == discovery(key) and key not in self._schedule:
                entry = self._entry(key)
                entry.discovered_at = now
            elif entry is None or not self.watches(entry, now):
                self._schedule.drop(key)
                continue
            elif self._schedule.moment(key) < math.inf:  # planned anew
                continue
            if not entry.fetching:
                entry.fetching = True
                keys.append(key)
        return keys

    def _line_up(self, now: float) -> None:
        while (moment := self._schedule.next()) <= now and (key := self._schedule.take(now)) is not None:
            entry = self._shelf.get(key)
            if entry is None or not self.watches(entry, now):
                self._schedule.drop(key)
            else:
                self._turns.put(key, moment, entry.lanes(now - self._policy.watch_idle))

    def next_due(self) -> float:
        """When `due` may have something, infinity for never."""
        return -math.inf if self._turns else self._schedule.next()

    def overdue_since(self) -> float:
        """Since when the service waits that waits longest, infinity for none; unlikely ones do not count."""
        return min(self._schedule.next(), self._turns.oldest(but=UNLIKELY))

    def watched(self, key: ServiceKey, now: float) -> bool:
        """Someone listens, or has read it lately, or registered an instance of it here."""
        entry = self._shelf.get(key)
        return entry is not None and self.watches(entry, now)

    def watches(self, entry: Entry, now: float) -> bool:
        """The same of one of `entries`."""
        if entry.pinned or (entry.pending and entry.visible is not None):
            return True
        return entry.ever_nonempty and now - max(entry.last_read, entry.discovered_at) < self._policy.watch_idle

    def _pace(self, entry: Entry) -> float:
        return self._policy.interval_subscribed if entry.watchers else self._policy.interval_read

    def _interval(self, entry: Entry) -> float:
        return self._policy.interval_pushed if self.pushed and self.covers(entry.key) else self._pace(entry)

    def _jitter(self) -> float:
        return 0.9 + self._rng() / 5

    def _next(self, entry: Entry, now: float) -> float:
        return min(now + self._interval(entry) * self._jitter(), next_check(entry.pending, self._overlay, now))

    def _keep(self, entry: Entry, now: float) -> None:
        """It is watched, maybe since now: it has a place in the schedule."""
        if entry.key not in self._schedule:
            self._plan(entry, max(entry.confirmed_at + self._interval(entry), entry.retry_at), now)

    def _plan(self, entry: Entry, moment: float, now: float) -> None:
        if not self.watches(entry, now):
            self._schedule.drop(entry.key)
        else:
            self._schedule.plan(entry.key, math.inf if entry.fetching else moment)

    def _entry(self, key: ServiceKey) -> Entry:
        entry = self._shelf.get(key)
        if entry is None:
            entry = Entry(key)
            self._shelf.put(entry)
        return entry

    # for operators, and for who listens to the upstream

    def entries(self) -> Iterator[Entry]:
        """All entries, the pinned first. Not to be changed by the caller."""
        return iter(self._shelf)

    def get(self, key: ServiceKey) -> Entry | None:
        return self._shelf.get(key)

    def watched_keys(self) -> Collection[ServiceKey]:
        """What is kept fresh, as a view; one that is no longer watched leaves it when its turn comes."""
        return self._schedule.keys()

    @property
    def watched_changes(self) -> int:
        """Grows whenever a service comes into `watched_keys` or leaves it."""
        return self._schedule.changes

    def __len__(self) -> int:
        return len(self._shelf)

    def __repr__(self) -> str:
        counts = f"{len(self._shelf.pinned)} pinned, {len(self._shelf.known)} known, {len(self._shelf.unknown)} unknown"
        return f"<Cache {counts}, next due {self.next_due():g}>"
