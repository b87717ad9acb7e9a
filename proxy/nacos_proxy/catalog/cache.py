"""The cache: each service's snapshot, how fresh it is, and when to fetch it again.

The cache never fetches: `due` returns what to fetch, and callers report the outcome and the time (`now`: seconds of one
monotonic clock). Its rules:

- Only `accept` sets a snapshot of the upstream, only `reject` an error; if both exist, the error is newer.
- Readers see the upstream's snapshot with the pending writes applied; only `_set_visible` sets that.
- Invariant: a key is scheduled if and only if it is watched. A key in the queue or in a fetch has no due time.
- Clients take turns in what is due, so that no listener delays another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from cachetools import LRUCache

from nacos_proxy.catalog.entries import UNLIKELY, Entry, EntryStore, Watcher, discovery_lane
from nacos_proxy.catalog.fair_queue import FairQueue
from nacos_proxy.catalog.freshness import CacheResult, Freshness, freshness
from nacos_proxy.catalog.pending_writes import (
    UNSENT,
    Pending,
    PendingPolicy,
    add,
    apply_pending,
    drop_confirmed,
    explained,
    next_check,
)
from nacos_proxy.catalog.pushed_lists import completed
from nacos_proxy.catalog.recent_writes import RecentWrites
from nacos_proxy.catalog.schedule import Schedule
from nacos_proxy.model.backoff import Backoff
from nacos_proxy.model.calls import Beat, Register, Write
from nacos_proxy.model.effects import apply
from nacos_proxy.model.errors import ProxyError
from nacos_proxy.model.services import Change, ServiceKey, Snapshot, Source, Via, diff

MAX_BACKOFF = 60.0  # seconds between the attempts of a fetch that keeps failing
PUSH_SETTLES = 2.0  # seconds after a push until every node of a cluster lists it (nacos-http.md, fact 19)


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """Seconds and numbers. `ttl_pushed`: while the upstream pushes changes. `ttl_unknown`: for unknown services."""

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
    suspicious_share: float = 0.5
    confirm_after: float = 5.0


class Cache:
    """The entries of all services, bounded. `rng()` draws from [0, 1); it spreads the polls over time.

    `quarantined`: how many lists were quarantined so far. `doubted`: the upstream says that it cannot reach what is
    behind it, so nothing is fresh.
    """

    def __init__(self, policy: CachePolicy, pending_policy: PendingPolicy, rng: Callable[[], float]) -> None:
        self.pushed = False
        self.doubted = False
        self.quarantined = 0
        self.recent_writes = RecentWrites(pending_policy.grace)
        self._covered_by_push: Callable[[ServiceKey], bool] = lambda _: True
        self._policy = policy
        self._pending_policy = pending_policy
        self._rng = rng
        self._store = EntryStore(LRUCache(policy.max_services), LRUCache(policy.max_unknown))
        self._schedule = Schedule[ServiceKey]()
        self._queue: FairQueue[ServiceKey] = FairQueue()

    def lookup(self, key: ServiceKey, now: float) -> CacheResult:
        """The state of a service. It changes only the eviction order; `touch` records that someone read it."""
        return self.result_of(self._store.get(key), now)

    def result_of(self, entry: Entry | None, now: float) -> CacheResult:
        """Like `lookup`, for one of `entries`, without a change of the eviction order."""
        if entry is None or entry.visible is None:
            error = entry.error if entry is not None else None
            return CacheResult(Freshness.MISSING, None, 0.0, 0.0, error)
        age, ttl, via = now - entry.confirmed_at, self._ttl(entry), entry.via
        # From disk it is never fresh: the upstream may have changed while this proxy did not run.
        if entry.from_disk or self.doubted or (via is not None and via.stale):
            ttl = min(ttl, age)
        state = freshness(age, ttl, self._policy.stale_if_error)
        return CacheResult(state, entry.visible, age, ttl - age, entry.error, from_disk=entry.from_disk, via=via)

    def fresh_interval(self, visible: Snapshot, now: float) -> tuple[float, float] | None:
        """From when until when this snapshot is fresh. None if it is not, or readers see another one by now."""
        result = self.lookup(visible.key, now)
        if result.snapshot is not visible or result.stale or result.error is not None:
            return None
        return now - result.age, now + result.ttl

    def touch(self, key: ServiceKey, now: float) -> None:
        """A reader asked for the service: watch it until nobody has asked for `watch_idle` seconds."""
        entry = self._get_or_create(key)
        entry.last_read = now
        self._ensure_scheduled(entry, now)

    def may_refresh(self, key: ServiceKey, now: float) -> bool:
        """Whether a read of a stale snapshot may start a fetch now."""
        entry = self._store.get(key)
        return entry is None or (not entry.fetching and entry.retry_at <= now and not self._is_futile(entry))

    def _ttl(self, entry: Entry) -> float:
        """It counts from when the upstream was heard. What the upstream had counted by then comes on top."""
        heard = 0.0 if entry.via is None else entry.via.age
        if entry.unknown:
            return heard + self._policy.ttl_unknown
        return heard + (self._policy.ttl_pushed if self._is_pushed(entry) else self._policy.ttl)

    def begin_fetch(self, key: ServiceKey) -> None:
        """A fetch begins: the service has no due time until `accept` or `reject`."""
        entry = self._get_or_create(key)
        entry.fetching = True
        if key in self._schedule:
            self._schedule.put(key, math.inf)

    def accept(
        self,
        snapshot: Snapshot,
        now: float,
        source: Source,
        *,
        requested_at: float,
        suspicious: bool = False,
        missing_since: Mapping[tuple[str, int], float] = MappingProxyType({}),
        now_ms: int = 0,
    ) -> Change | None:
        """A fetch that began at `requested_at` succeeded. Returns the change that readers see, or None.

        `suspicious`: the upstream was away, or another server answers now. If the list then lacks more than
        `suspicious_share` of the instances, it is quarantined: it counts only if a list that is `confirm_after` seconds
        younger lacks them, too. `missing_since` holds the addresses that will be reregistered, and since when the
        upstream lacks each. They make a list suspicious, and readers go on seeing them as if registered at that time.
        `now_ms` dates the change.
        """
        entry = self._get_or_create(snapshot.key)
        self._keep_visible(entry, missing_since)
        entry.fetching, entry.error, entry.failures = False, None, 0
        settled_at = entry.pushed_at + PUSH_SETTLES
        if requested_at < settled_at and snapshot != entry.upstream_snapshot:
            self._schedule_at(entry, max(now, settled_at), now)  # an older list, or of a node that learns it later
            return None
        if self._lost_too_much(entry, snapshot, now, suspicious=suspicious or bool(missing_since)):
            since = now if entry.quarantined_since is None else entry.quarantined_since
            if now - since < self._policy.confirm_after:
                self.quarantined += entry.quarantined_since is None
                entry.quarantined_since, entry.retry_at = since, since + self._policy.confirm_after
                self._schedule_at(entry, entry.retry_at, now)
                return None
        entry.quarantined_since, entry.retry_at, entry.from_disk = None, -math.inf, False
        entry.via, entry.confirmed_at = snapshot.via, now if snapshot.via is None else now - snapshot.via.age
        pending = drop_confirmed(entry.pending, snapshot, requested_at, self._pending_policy) if entry.pending else ()
        # a registry returns the same object if nothing changed, which saves the comparison
        unchanged = snapshot is entry.upstream_snapshot and pending == entry.pending
        entry.upstream_snapshot, entry.pending = snapshot, pending
        change = None if unchanged else self._set_visible(entry, apply_pending(snapshot, pending), source, now_ms)
        self._store.put(entry)
        if entry.notified_at > requested_at:  # it changed again during the fetch
            self._schedule_at(entry, now, now)
        else:
            entry.fetch_cause = "poll"
            self._schedule_at(entry, min(self._next_poll(entry, now), entry.next_recheck(now)), now)
        return change

    def confirm(self, lists: Mapping[ServiceKey, Snapshot], via: Via, now: float) -> None:
        """The upstream says that these lists, which it pushed, still hold, and are at most `via.age` old.

        No effect on a service whose last list is another one, or of which a fetch has to tell more.
        """
        for key, pushed in lists.items():
            entry = self._store.get(key)
            if entry is None or entry.fetching or entry.error is not None or entry.from_disk or entry.pending:
                continue
            known = entry.upstream_snapshot
            if entry.quarantined_since is not None or (known is not pushed and known != pushed):
                continue
            entry.confirmed_at = max(entry.confirmed_at, now - via.age)
            entry.via = replace(via, age=now - entry.confirmed_at)
            if key in self._schedule:
                self._schedule_at(entry, self._next_poll(entry, now), now)

    def confirmations(self, keys: Iterable[ServiceKey], now: float) -> tuple[CacheResult | None, list[ServiceKey]]:
        """The oldest fresh result of these services (None if there is none), and the services without a fresh one."""
        oldest: CacheResult | None = None
        others: list[ServiceKey] = []
        for key in keys:
            result = self.result_of(self._store.get(key), now)
            if result.stale:
                others.append(key)
            elif oldest is None or result.age > oldest.age:
                oldest = result
        return oldest, others

    def accept_pushed(
        self,
        pushed: Snapshot,
        now: float,
        *,
        suspicious: bool = False,
        fetch_shows_more: bool = False,
        whole: bool = False,
        now_ms: int = 0,
    ) -> tuple[bool, Change | None]:
        """The upstream pushed a list. Returns whether it counts as a fetch would, and the change that readers see.

        If it does not count (`pushed_lists.completed`), nothing changes. Otherwise as `accept`. A list that was
        requested earlier, or less than `PUSH_SETTLES` later, no longer counts if it differs. `whole`: it says all that
        a fetch says.
        """
        entry = self._store.get(pushed.key)
        known = None if entry is None or entry.from_disk else entry.upstream_snapshot
        snapshot = pushed if whole else completed(known, pushed, fetch_shows_more=fetch_shows_more)
        if entry is None or snapshot is None:
            return False, None
        fetching = entry.fetching
        entry.pushed_at = -math.inf  # it was pushed earlier, so this list is the younger one
        change = self.accept(snapshot, now, "push", requested_at=now, suspicious=suspicious, now_ms=now_ms)
        if entry.quarantined_since is None:
            entry.pushed_at = now
        elif fetching:
            entry.notified_at = now  # the list that is under way is older, and does not refute this one
        if fetching:
            self.begin_fetch(pushed.key)
        return True, change

    def _keep_visible(self, entry: Entry, missing_since: Mapping[tuple[str, int], float]) -> None:
        if self._pending_policy.grace <= 0 or entry.visible is None:
            return
        for (ip, port), since in missing_since.items():
            if (instance := entry.visible.find(ip, port)) is not None:
                entry.pending = add(entry.pending, Register(entry.key, instance), since)

    def _lost_too_much(self, entry: Entry, snapshot: Snapshot, now: float, *, suspicious: bool) -> bool:
        """Whether a list lacks more than the policy's share of what readers see, for no known reason."""
        if entry.visible is None or not (suspicious or entry.from_disk or entry.quarantined_since is not None):
            return False
        if explained(entry.pending, entry.visible, snapshot, self._policy.suspicious_share):
            return False
        # nobody gets an expired snapshot, so there is nothing to protect
        state = freshness(now - entry.confirmed_at, self._ttl(entry), self._policy.stale_if_error)
        return state is not Freshness.EXPIRED

    def reject(self, key: ServiceKey, error: ProxyError, now: float, *, forbidden: bool = False) -> None:
        """A fetch failed: put off the next one, longer each time. `forbidden`: readers lose the snapshot, too."""
        entry = self._get_or_create(key)
        if forbidden:
            entry.upstream_snapshot, entry.visible, entry.pending = None, None, ()
            self._store.put(entry)
        entry.fetching, entry.error, entry.failures = False, error, entry.failures + 1
        backoff = Backoff(self._base_interval(entry), MAX_BACKOFF, jitter=0.5)
        entry.retry_at = now + backoff.delay(entry.failures, self._rng)
        self._schedule_at(entry, entry.retry_at, now)

    def abandon(self, key: ServiceKey, now: float) -> None:
        """A fetch failed because of the request that it was for: the service is due as if there had been none."""
        entry = self._get_or_create(key)
        entry.fetching = False
        self._schedule_at(entry, max(now + self._base_interval(entry) * self._jitter(), entry.retry_at), now)

    def retry_failed(self, now: float) -> None:
        """The upstream is back: reads may retry failed fetches at once, and polls do so within one interval."""
        for entry in self._store:
            if entry.failures:
                entry.retry_at = now
                self._schedule_at(entry, now + self._rng() * self._base_interval(entry), now)

    def invalidate(self, key: ServiceKey, now: float, cause: Source = "poll") -> None:
        """Someone reports a change of the service: it is due at once, or again right after the fetch in flight."""
        if (entry := self._store.get(key)) is not None:
            entry.notified_at, entry.fetch_cause, entry.pushed_at = now, cause, -math.inf
            self._schedule_at(entry, now, now)

    def record_write(self, write: Write[Any], now: float, now_ms: int, *, local: bool = False) -> Change | None:
        """A write was accepted: readers see it at once. Returns the change, or None.

        `local`: this proxy accepted it while the upstream was away, and will send it later.
        """
        entry = self._get_or_create(write.service)
        if entry.visible is None and not local:  # there is no list yet that it could change
            self._expect(entry, write, now, changes=isinstance(write, Beat) and write.full is not None)
            return None
        before = entry.visible if entry.visible is not None else Snapshot(write.service)
        after = apply(before, write)
        if local and entry.visible is None and after.instances:  # the write is all that is known, so it starts stale
            entry.upstream_snapshot = entry.visible = before
            entry.confirmed_at = now - self._policy.ttl_pushed
        self._expect(entry, write, now, changes=after is not before, local=local)
        if entry.visible is None or after is before:
            return None
        if self._pending_policy.grace <= 0 and not local:
            entry.upstream_snapshot = after
        change = self._set_visible(entry, after, "write", now_ms)
        self._store.put(entry)
        return change

    def _expect(self, entry: Entry, write: Write[Any], now: float, *, changes: bool, local: bool = False) -> None:
        """The next list should show a write. `changes`: it changes what readers see.

        A write that changes nothing here may still change the upstream, which may have lost the instance or may list no
        disabled ones. Beats are too frequent for that check.
        """
        if local or (self._pending_policy.grace > 0 and (changes or not isinstance(write, Beat))):
            entry.pending = add(entry.pending, write, UNSENT if local else now)
            self.recent_writes.add(entry.key, now)
            self._schedule_by(entry, now + self._pending_policy.confirm_after, now)

    def revise(
        self, key: ServiceKey, revised: Callable[[Pending], Pending | None], now: float, now_ms: int
    ) -> Change | None:
        """Replaces or drops (None) each pending write of a service. Returns the change that readers see, or None."""
        entry = self._get_or_create(key)
        entry.pending = tuple(p for p in map(revised, entry.pending) if p is not None)
        self._schedule_by(entry, now + self._pending_policy.confirm_after, now)
        if entry.upstream_snapshot is None:
            return None
        change = self._set_visible(entry, apply_pending(entry.upstream_snapshot, entry.pending), "write", now_ms)
        self._store.put(entry)
        return change

    def restore(self, snapshot: Snapshot, age: float, now: float, now_ms: int = 0) -> None:
        """Adds a snapshot from disk, `age` seconds old. It never replaces one that was fetched since the start.

        It is dated `now_ms`: before a kill, SDKs may have seen later lists than the disk has, and they ignore a list
        that is older than their last one (nacos-grpc.md 6).
        """
        entry = self._store.get(snapshot.key) or Entry(snapshot.key)
        if entry.visible is None:
            snapshot = snapshot.dated(max(now_ms, snapshot.last_ref_time + 1))
            entry.upstream_snapshot, entry.visible = snapshot, apply_pending(snapshot, entry.pending)
            entry.ever_nonempty = entry.ever_nonempty or bool(entry.visible.instances)
            entry.confirmed_at, entry.from_disk = now - age, True
            self._store.put(entry)

    def restore_later(self, key: ServiceKey, load: Callable[[], object]) -> None:
        """When the service, which has instances, is first needed, `load` is called, which calls `restore` if it can.

        So a start need not wait for the snapshots of 10,000 services. The least recently used one comes first.
        """
        self._store.dormant[key] = load

    def restore_some(self, number: int) -> bool:
        """Restores this many services of `restore_later` now. Returns whether there are more."""
        return self._store.wake(number) > 0

    def _set_visible(self, entry: Entry, snapshot: Snapshot, source: Source, now_ms: int) -> Change | None:
        change = diff(entry.visible, snapshot, source)
        if change is None and entry.visible is not None:
            return None
        # SDKs ignore a list that is older than their last one, and the clocks of servers and this host differ
        earliest = entry.visible.last_ref_time + 1 if entry.visible is not None else 0
        snapshot = snapshot.dated(max(now_ms or snapshot.last_ref_time, earliest))
        entry.visible = snapshot
        entry.ever_nonempty = entry.ever_nonempty or bool(snapshot.instances)
        return None if change is None else replace(change, after=snapshot)

    def watch(self, key: ServiceKey, now: float, watcher: Watcher = ("", 0)) -> None:
        """Someone listens to the service from now on."""
        entry = self._get_or_create(key)
        lane = entry.add_watcher(watcher)
        self._store.put(entry)
        if not self._queue.add_lane(key, lane):
            self._schedule_by(entry, max(now, entry.confirmed_at + self._poll_interval(entry), entry.retry_at), now)

    def unwatch(self, key: ServiceKey, now: float, watcher: Watcher = ("", 0)) -> None:
        """A listener is gone. For `watch_idle` seconds the service stays watched, as after a read."""
        entry = self._get_or_create(key)
        entry.remove_watcher(watcher)
        entry.last_read = max(entry.last_read, now)
        self._store.put(entry)
        if not self.is_watched(entry, now):
            self._schedule.drop(key)

    def discovered(self, key: ServiceKey, now: float) -> None:
        """The upstream lists this name in a group to which someone listens as a whole."""
        if (entry := self._store.get(key)) is not None and self.is_watched(entry, now):
            entry.discovered_at = now
            self._ensure_scheduled(entry, now)
        else:
            self._queue.put(key, now, (discovery_lane(key),))

    def set_local_registrations(self, key: ServiceKey, number: int, now: float) -> None:
        """Sets how many instances of the service are registered through this proxy."""
        entry = self._get_or_create(key)
        entry.local_registrations = number
        entry.last_read = max(entry.last_read, now)
        self._store.put(entry)
        self._ensure_scheduled(entry, now)

    def set_push_coverage(self, covers: Callable[[ServiceKey], bool]) -> None:
        """`covers(key)`: whether the upstream pushes changes of a service while push is alive."""
        self._covered_by_push = covers

    def set_push_alive(self, alive: bool, now: float) -> None:
        """Sets whether the upstream pushes changes. If not, poll watched services at their base interval again."""
        if alive == self.pushed:
            return
        self.pushed = alive
        for key in () if alive else tuple(self._schedule.keys()):
            if (entry := self._store.get(key)) is not None:
                due = entry.confirmed_at + self._base_interval(entry) * self._jitter()
                self._schedule_by(entry, max(due, entry.retry_at), now)

    def is_watched(self, entry: Entry, now: float) -> bool:
        """Whether someone listens to the service, has read it lately, or registered an instance of it here."""
        if entry.pinned or (entry.pending and entry.visible is not None):
            return True
        return entry.ever_nonempty and now - max(entry.last_read, entry.discovered_at) < self._policy.watch_idle

    def due(self, now: float, budget: int) -> list[ServiceKey]:
        """At most `budget` services to fetch now. None of them is due again until its fetch ends."""
        self._enqueue_due(now)
        keys: list[ServiceKey] = []
        while len(keys) < budget and (turn := self._queue.take()) is not None:
            key, lane = turn
            entry = self._store.get(key)
            if lane == discovery_lane(key) and key not in self._schedule:
                entry = self._get_or_create(key)
                entry.discovered_at = now
            elif entry is None or not self.is_watched(entry, now):
                self._schedule.drop(key)
                continue
            elif self._schedule.due_at(key) < math.inf:  # it got a new due time while it waited
                continue
            elif self._is_futile(entry):
                self._schedule_at(entry, now + self._poll_interval(entry) * self._jitter(), now)
                continue
            if not entry.fetching:
                entry.fetching = True
                keys.append(key)
        return keys

    def _enqueue_due(self, now: float) -> None:
        while (due := self._schedule.next_due()) <= now and (key := self._schedule.take(now)) is not None:
            entry = self._store.get(key)
            if entry is None or not self.is_watched(entry, now):
                self._schedule.drop(key)
            else:
                self._queue.put(key, due, entry.lanes(now - self._policy.watch_idle))

    def next_due(self) -> float:
        """When `due` may next have something, infinity for never."""
        return -math.inf if self._queue else self._schedule.next_due()

    def overdue_since(self) -> float:
        """Since when the most overdue service has been due, infinity for none. Unlikely services do not count."""
        return min(self._schedule.next_due(), self._queue.oldest(but=UNLIKELY))

    def _is_pushed(self, entry: Entry) -> bool:
        return self.pushed and self._covered_by_push(entry.key)

    def _is_futile(self, entry: Entry) -> bool:
        """Whether a fetch would bring the list that was pushed last: a doubted upstream has no other, or pushes it."""
        unsettled = entry.error is not None or entry.quarantined_since is not None or entry.fetch_cause == "push"
        return self.doubted and entry.visible is not None and not unsettled and self._is_pushed(entry)

    def _base_interval(self, entry: Entry) -> float:
        return self._policy.interval_subscribed if entry.watchers else self._policy.interval_read

    def _poll_interval(self, entry: Entry) -> float:
        return self._policy.interval_pushed if self._is_pushed(entry) else self._base_interval(entry)

    def _jitter(self) -> float:
        return 0.9 + self._rng() / 5

    def _next_poll(self, entry: Entry, now: float) -> float:
        poll = now + self._poll_interval(entry) * self._jitter()
        return min(poll, next_check(entry.pending, self._pending_policy, now))

    def _ensure_scheduled(self, entry: Entry, now: float) -> None:
        if entry.key not in self._schedule:
            self._schedule_at(entry, max(entry.confirmed_at + self._poll_interval(entry), entry.retry_at), now)

    def _schedule_by(self, entry: Entry, due: float, now: float) -> None:
        """Schedules the service at `due`, unless it is due earlier."""
        self._schedule_at(entry, min(self._schedule.due_at(entry.key), due), now)

    def _schedule_at(self, entry: Entry, due: float, now: float) -> None:
        if not self.is_watched(entry, now):
            self._schedule.drop(entry.key)
        else:
            self._schedule.put(entry.key, math.inf if entry.fetching else due)

    def _get_or_create(self, key: ServiceKey) -> Entry:
        entry = self._store.get(key)
        if entry is None:
            entry = Entry(key)
            self._store.put(entry)
        return entry

    def entries(self) -> Iterator[Entry]:
        """All entries, the pinned ones first. Callers must not change them."""
        return iter(self._store)

    def get(self, key: ServiceKey) -> Entry | None:
        return self._store.get(key)

    def watched_keys(self) -> Collection[ServiceKey]:
        """A view of the watched services. A service that is no longer watched leaves it when it is next due."""
        return self._schedule.keys()

    @property
    def watched_changes(self) -> int:
        """Grows whenever a service enters or leaves `watched_keys`."""
        return self._schedule.changes

    def __len__(self) -> int:
        return len(self._store)

    def __repr__(self) -> str:
        store = self._store
        counts = f"{len(store.pinned)} pinned, {len(store.known)} known, {len(store.unknown)} unknown"
        dormant = f", {len(store.dormant)} dormant" if store.dormant else ""
        return f"<Cache {counts}{dormant}, next due {self.next_due():g}>"
