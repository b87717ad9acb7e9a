"""The cache: freshness, bounds, what is due, pending writes, and the quarantine of suspicious lists."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.catalog.cache import Cache, CachePolicy
from nacos_proxy.catalog.freshness import Freshness
from nacos_proxy.catalog.pending_writes import PendingPolicy, apply_pending
from nacos_proxy.model.calls import BatchMetadata, Beat, Deregister, Register, SetHealth, Update, Write
from nacos_proxy.model.errors import Unreachable
from nacos_proxy.model.services import Change, Instance, ServiceKey, Snapshot, Via
from tests.helpers.build import KEY, instance, key, snapshot

A, B, C, D = (instance(f"10.0.0.{number}") for number in (1, 2, 3, 4))
AWAY = Unreachable("connection refused", arrived=False)
WALL = 1_800_000_000_000


def cache(rng: float = 0.5, pending_policy: PendingPolicy = PendingPolicy(), **policy: Any) -> Cache:  # noqa: B008
    return Cache(CachePolicy(**policy), pending_policy, itertools.repeat(rng).__next__)


def listed(kept: Cache, now: float, *hosts: Instance, service: ServiceKey = KEY, **more: Any) -> Change | None:
    """The upstream listed these hosts; unless `asked` is given, it was asked at `now`."""
    return kept.accept(snapshot(*hosts, service=service), now, "poll", **{"requested_at": now, **more})


def shown(kept: Cache, now: float, service: ServiceKey = KEY) -> tuple[Instance, ...] | None:
    found = kept.lookup(service, now).snapshot
    return None if found is None else found.instances


def watched(kept: Cache, service: ServiceKey, now: float) -> bool:
    entry = kept.get(service)
    return entry is not None and kept.is_watched(entry, now)


def wrote(kept: Cache, write: Write[Any], now: float) -> Change | None:
    return kept.record_write(write, now, WALL)


def read(kept: Cache, now: float, service: ServiceKey = KEY) -> None:
    """Reads and fills a service once, so that it is watched without a listener."""
    kept.touch(service, now)
    listed(kept, now, A, service=service)


# --- freshness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "state"),
    [
        (0, Freshness.FRESH),
        (9.5, Freshness.FRESH),
        (10, Freshness.STALE),
        (109.5, Freshness.STALE),
        (110, Freshness.EXPIRED),
    ],
)
def test_cache_lookup_finds_a_snapshot_stale_and_then_expired(age: float, state: Freshness) -> None:
    kept = cache(ttl=10, stale_if_error=100)
    listed(kept, 1000, A)
    result = kept.lookup(KEY, 1000 + age)
    assert (result.freshness, result.age, result.ttl) == (state, age, 10 - age)


def test_cache_lookup_never_expires_without_a_stale_if_error_limit() -> None:
    kept = cache(stale_if_error=math.inf)
    listed(kept, 0, A)
    assert kept.lookup(KEY, 1e12).freshness is Freshness.STALE


def test_cache_lookup_finds_nothing_before_the_first_fetch() -> None:
    kept = cache()
    assert kept.lookup(KEY, 0).freshness is Freshness.MISSING
    kept.touch(KEY, 0)
    kept.reject(KEY, AWAY, 0)
    assert (kept.lookup(KEY, 0).freshness, kept.lookup(KEY, 0).error) == (Freshness.MISSING, AWAY)


def test_cache_lookup_uses_a_shorter_ttl_for_unknown_services() -> None:
    kept = cache(ttl=10, ttl_unknown=2)
    listed(kept, 0)
    assert kept.lookup(KEY, 1.9).freshness is Freshness.FRESH
    assert kept.lookup(KEY, 2).freshness is Freshness.STALE
    kept.watch(KEY, 2)
    assert kept.lookup(KEY, 9).freshness is Freshness.FRESH


def test_cache_lookup_uses_a_longer_ttl_while_push_is_alive() -> None:
    kept = cache(ttl=10, ttl_pushed=45)
    listed(kept, 0, A)
    kept.set_push_alive(True, 1)
    assert kept.lookup(KEY, 44).freshness is Freshness.FRESH
    kept.set_push_alive(False, 44)
    assert kept.lookup(KEY, 44).freshness is Freshness.STALE


def test_cache_fresh_interval_moves_with_each_list_without_a_change() -> None:
    kept = cache(ttl=10)
    read(kept, 100.0)
    first = kept.lookup(KEY, 100.0).snapshot
    assert first is not None
    assert kept.fresh_interval(first, 103.0) == (100.0, 110.0)
    listed(kept, 105.0, A)
    assert kept.fresh_interval(first, 112.0) == (105.0, 115.0)
    assert kept.fresh_interval(first, 115.0) is None  # stale
    listed(kept, 116.0, A, B)
    assert kept.fresh_interval(first, 116.0) is None  # another one
    assert kept.fresh_interval(snapshot(service=key("other")), 116.0) is None


def test_cache_fresh_interval_is_none_after_a_failed_fetch() -> None:
    kept = cache(ttl=10)
    read(kept, 100.0)
    first = kept.lookup(KEY, 100.0).snapshot
    assert first is not None
    kept.reject(KEY, AWAY, 101.0)
    assert kept.fresh_interval(first, 102.0) is None


def test_cache_lookup_watches_nothing() -> None:
    kept = cache()
    kept.lookup(KEY, 0)
    assert len(kept) == 0
    assert not watched(kept, KEY, 0)


def test_cache_reject_keeps_the_snapshot_and_accept_clears_the_error() -> None:
    kept = cache()
    listed(kept, 0, A)
    kept.reject(KEY, AWAY, 5)
    result = kept.lookup(KEY, 6)
    assert (shown(kept, 6), result.error, result.age) == ((A,), AWAY, 6)
    listed(kept, 7, A)
    assert (kept.lookup(KEY, 7).error, kept.lookup(KEY, 7).age) == (None, 0)


# --- changes ---------------------------------------------------------------------------------------------


def test_cache_accept_returns_a_change_for_the_first_list_and_none_for_the_same() -> None:
    kept = cache()
    change = listed(kept, 0, A, B)
    assert change is not None
    assert (change.added, change.removed, change.source) == ((A, B), (), "poll")
    assert listed(kept, 1, B, A, requested_at=1) is None
    assert kept.accept(snapshot(A, B, last_ref_time=7), 2, "poll", requested_at=2) is None


def test_cache_accept_returns_no_change_for_an_empty_service() -> None:
    kept = cache()
    assert listed(kept, 0) is None
    assert shown(kept, 0) == ()


def test_cache_accept_dates_a_list_without_a_time_by_the_change() -> None:
    kept = cache()
    kept.accept(snapshot(A, last_ref_time=0), 0, "poll", requested_at=0, now_ms=5_000)
    kept.accept(snapshot(A, last_ref_time=0), 1, "poll", requested_at=1, now_ms=6_000)
    first = kept.lookup(KEY, 1).snapshot
    assert first is not None and first.last_ref_time == 5_000
    kept.accept(snapshot(B, last_ref_time=0), 2, "poll", requested_at=2, now_ms=7_000)
    second = kept.lookup(KEY, 2).snapshot
    assert second is not None and second.last_ref_time == 7_000


def test_cache_accept_never_dates_a_service_earlier() -> None:
    """SDKs refuse a list that is older than the last as "out of date data"; a server's clock may be behind ours."""
    kept = cache()
    kept.accept(snapshot(A, last_ref_time=9_000), 0, "poll", requested_at=0, now_ms=5_000)
    moments: list[int] = []
    kept.record_write(Register(KEY, B), 1, 6_000)
    for now, hosts, wall in ((2, (B,), 5_500), (3, (A,), 7_000), (4, (A, B), 0)):
        kept.accept(snapshot(*hosts, last_ref_time=1_000), now + 5, "poll", requested_at=now + 5, now_ms=wall)
        result = kept.lookup(KEY, now).snapshot
        assert result is not None
        moments.append(result.last_ref_time)
    assert moments == [6_001, 7_000, 7_001]


def test_cache_accept_does_not_compare_the_very_same_list() -> None:
    compared: list[object] = []

    class Word(Snapshot):
        def __eq__(self, other: object) -> bool:
            compared.append(other)
            return super().__eq__(other)

        __hash__ = None  # type: ignore[assignment]

    kept = cache()
    word = Word(KEY, (A,), last_ref_time=1)
    kept.accept(word, 0, "poll", requested_at=0)
    compared.clear()
    assert kept.accept(word, 1, "poll", requested_at=1) is None
    assert compared == []
    assert kept.lookup(KEY, 1).age == 0


# --- pending writes -------------------------------------------------------------------------------------------------


def test_cache_record_write_shows_in_the_next_lookup_and_returns_the_change() -> None:
    kept = cache()
    listed(kept, 0, A)
    change = wrote(kept, Register(KEY, B), 1)
    assert change is not None
    assert (change.added, change.source, change.after.last_ref_time) == ((B,), "write", WALL)
    assert shown(kept, 1) == (A, B)
    assert kept.lookup(KEY, 1).age == 1  # the upstream has confirmed nothing


def test_cache_accept_of_an_old_list_does_not_undo_a_pending_write() -> None:
    kept = cache()
    listed(kept, 0, A)
    wrote(kept, Register(KEY, B), 1)
    wrote(kept, Deregister(KEY, A.ip, A.port), 1)
    assert listed(kept, 1.2, A) is None
    assert listed(kept, 1.5, A, B) is None
    assert shown(kept, 1.5) == (B,)
    assert listed(kept, 2.1, B) is None
    assert shown(kept, 2.1) == (B,)


def test_cache_accept_of_a_list_requested_before_the_write_does_not_undo_it() -> None:
    kept = cache()
    listed(kept, 0, A)
    wrote(kept, Register(KEY, B), 1)
    assert listed(kept, 9, A, requested_at=0.5) is None
    assert shown(kept, 9) == (A, B)


def test_cache_accept_gives_up_a_write_that_is_not_listed_within_the_grace() -> None:
    kept = cache(pending_policy=PendingPolicy(confirm_after=1, grace=3))
    listed(kept, 0, A)
    wrote(kept, Register(KEY, B), 1)
    assert listed(kept, 3.9, A) is None
    change = listed(kept, 4, A)
    assert change is not None
    assert (change.removed, change.source) == ((B,), "poll")


def test_cache_accept_lets_the_next_list_replace_a_confirmed_write() -> None:
    kept = cache(pending_policy=PendingPolicy(confirm_after=1, grace=30))
    listed(kept, 0, A)
    wrote(kept, Register(KEY, B), 1)
    listed(kept, 2, A, B)
    assert listed(kept, 2.5, A) is not None
    assert shown(kept, 2.5) == (A,)


def test_cache_accept_does_not_confirm_a_write_by_a_list_that_agrees_too_early() -> None:
    kept = cache(pending_policy=PendingPolicy(confirm_after=1, grace=3))
    listed(kept, 0, A)
    wrote(kept, Register(KEY, B), 1)
    assert listed(kept, 1.5, A, B) is None  # one server of several
    assert listed(kept, 1.6, A) is None  # another one
    assert shown(kept, 1.6) == (A, B)


def test_cache_accept_shows_other_changes_beside_a_pending_write() -> None:
    kept = cache()
    listed(kept, 0, A)
    wrote(kept, Register(KEY, B), 1)
    change = listed(kept, 1.5, A, C)
    assert change is not None
    assert change.added == (C,) and shown(kept, 1.5) == (A, B, C)


def test_cache_record_write_to_an_unfetched_service_shows_with_its_first_list() -> None:
    kept = cache()
    kept.set_local_registrations(KEY, 1, 0)
    assert wrote(kept, Register(KEY, B), 0) is None
    assert kept.due(0, 10) == [KEY]
    change = listed(kept, 0.2, A)
    assert change is not None
    assert change.added == (A, B)


def test_cache_record_write_of_a_reregistration_holds_until_it_is_listed() -> None:
    kept = cache()
    listed(kept, 0, A, B)
    assert wrote(kept, Register(KEY, B), 1) is None  # it shows already
    assert listed(kept, 1.3, A) is None
    assert shown(kept, 1.3) == (A, B)


def test_cache_record_write_of_a_beat_without_effect_is_not_pending() -> None:
    kept = cache()
    read(kept, 0)
    before = kept.next_due()
    for number in range(100):
        wrote(kept, Beat(KEY, A.ip, A.port, full=A), number / 100)
    assert kept.next_due() == before
    entry = kept.get(KEY)
    assert entry is not None and entry.pending == ()


def test_cache_record_write_of_a_light_beat_keeps_the_full_beat_pending() -> None:
    kept = cache()
    listed(kept, 0, A)
    wrote(kept, Beat(KEY, B.ip, B.port, full=B), 1)
    wrote(kept, SetHealth(KEY, B.ip, B.port, B.cluster, False), 1.1)
    wrote(kept, Beat(KEY, B.ip, B.port), 1.2)
    assert listed(kept, 1.3, A) is None
    assert shown(kept, 1.3) == (A, B)


def test_cache_record_write_of_an_unlisted_instance_makes_the_service_due_soon() -> None:
    kept = cache(pending_policy=PendingPolicy(confirm_after=1, grace=3))
    read(kept, 0)
    wrote(kept, Update(KEY, C.ip, C.port, enabled=True), 1)
    assert kept.due(1.9, 10) == []
    assert kept.due(2, 10) == [KEY]


def test_cache_due_after_a_write_when_it_should_be_listed_and_when_its_grace_ends() -> None:
    kept = cache(pending_policy=PendingPolicy(confirm_after=1, grace=3), interval_read=100)
    read(kept, 0)
    wrote(kept, Register(KEY, B), 1)
    assert kept.due(1.99, 10) == []
    assert kept.due(2, 10) == [KEY]
    listed(kept, 2.1, A)
    assert kept.next_due() == 4
    assert kept.due(4, 10) == [KEY]
    listed(kept, 4.1, A)
    assert shown(kept, 4.1) == (A,)
    assert kept.next_due() > 50


def test_cache_without_grace_trusts_each_list_at_once() -> None:
    kept = cache(pending_policy=PendingPolicy(grace=0))
    word = snapshot(A)
    kept.accept(word, 0, "poll", requested_at=0)
    assert wrote(kept, Register(KEY, B), 1) is not None
    assert shown(kept, 1) == (A, B)
    assert kept.accept(word, 1.1, "poll", requested_at=1.1) is not None
    assert shown(kept, 1.1) == (A,)


def test_cache_record_write_keeps_few_pending_writes_of_one_instance() -> None:
    kept = cache()
    listed(kept, 0, A)
    for number in range(1000):
        wrote(kept, Update(KEY, A.ip, A.port, weight=float(number)), 1)
        wrote(kept, Register(KEY, B), 1)
        wrote(kept, Deregister(KEY, B.ip, B.port), 1)
    entry = kept.get(KEY)
    assert entry is not None and len(entry.pending) == 2


# --- bounds --------------------------------------------------------------------------------------------------------


def test_cache_touch_of_many_unknown_names_evicts_nothing_and_polls_nothing() -> None:
    kept = cache(max_services=10, max_unknown=5)
    for number in range(10):
        read(kept, 0, key(f"real{number}"))
    for number in range(10_000):
        name = key(f"no{number}")
        kept.touch(name, 1)
        kept.begin_fetch(name)
        listed(kept, 1, service=name)
    assert len(kept) == 15
    assert all(shown(kept, 1, key(f"real{number}")) == (A,) for number in range(10))
    assert len(kept.watched_keys()) == 10
    assert len(kept.due(1e6, 10_000)) == 0
    assert {service.name for service in kept.due(1, 10_000)} == set()


def test_cache_reject_of_unknown_names_polls_nothing() -> None:
    kept = cache(max_unknown=5)
    for number in range(100):
        kept.touch(key(f"no{number}"), 1)
        kept.reject(key(f"no{number}"), AWAY, 1)
    assert kept.next_due() == math.inf
    assert len(kept) == 5


def test_cache_record_write_to_unknown_names_polls_nothing() -> None:
    kept = cache(max_unknown=5)
    for number in range(100):
        wrote(kept, Deregister(key(f"no{number}"), "10.0.0.1", 80), 1)
    assert kept.next_due() == math.inf
    assert len(kept) == 5


def test_cache_keeps_pinned_services_without_a_bound_until_they_are_unpinned() -> None:
    kept = cache(max_services=2, max_unknown=2)
    services = [key(f"s{number}") for number in range(6)]
    for number, service in enumerate(services):
        (kept.watch if number % 2 else kept.set_local_registrations)(service, *(() if number % 2 else (1,)), now=0)  # type: ignore[operator]
        listed(kept, 0, A, service=service)
    assert len(kept) == 6
    for number, service in enumerate(services):
        if number % 2:
            kept.unwatch(service, 1)
        else:
            kept.set_local_registrations(service, 0, 1)
    assert len(kept) == 2
    assert repr(kept).startswith("<Cache 0 pinned, 2 known, 0 unknown")


def test_cache_accept_moves_a_service_that_becomes_known() -> None:
    kept = cache(max_unknown=1)
    listed(kept, 0)
    listed(kept, 1, A)
    listed(kept, 2, service=key("other"))
    assert shown(kept, 2) == (A,)
    assert repr(kept).startswith("<Cache 0 pinned, 1 known, 1 unknown")


def test_cache_schedule_does_not_grow_with_the_operations_on_one_service() -> None:
    kept = cache()
    read(kept, 0)
    for number in range(10_000):
        now = number / 1000
        kept.invalidate(KEY, now)
        kept.begin_fetch(KEY)
        listed(kept, now, A)
        kept.touch(KEY, now)
    schedule = kept._schedule
    assert len(schedule._heap) < 100


# --- what is due ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rng", "moment"), [(0.0, 4.5), (0.5, 5.0), (1.0, 5.5)])
def test_cache_due_lists_a_read_service_after_its_interval_with_jitter(rng: float, moment: float) -> None:
    kept = cache(rng)
    read(kept, 0)
    assert kept.next_due() == pytest.approx(moment)


def test_cache_watch_makes_a_service_due_sooner() -> None:
    kept = cache()
    read(kept, 0)
    kept.watch(KEY, 0.2)
    assert kept.next_due() == 1
    assert kept.due(1, 10) == [KEY]
    listed(kept, 1, A)
    assert kept.next_due() == pytest.approx(2)
    kept.unwatch(KEY, 2)
    kept.due(2, 10)
    listed(kept, 2, A)
    assert kept.next_due() == pytest.approx(7)


def test_cache_is_watched_while_anyone_listens() -> None:
    kept = cache(watch_idle=60)
    kept.watch(KEY, 0)
    kept.watch(KEY, 0)
    listed(kept, 0)
    kept.unwatch(KEY, 1)
    assert watched(kept, KEY, 1e6)
    kept.unwatch(KEY, 1e6)
    assert not watched(kept, KEY, 1e6 + 60)


def test_cache_unwatch_removes_unknown_names_from_the_schedule() -> None:
    kept = cache()
    for number in range(100):
        kept.watch(key(f"s{number}"), number)
        kept.unwatch(key(f"s{number}"), number)
    assert list(kept.watched_keys()) == []


def test_cache_due_omits_services_that_were_not_read_for_long() -> None:
    kept = cache(watch_idle=60, interval_read=5)
    read(kept, 0)
    kept.touch(KEY, 10)
    asked = 0
    for second in range(1, 200):
        if kept.due(second, 10):
            asked += 1
            listed(kept, second, A)
    assert 12 <= asked <= 14
    assert (list(kept.watched_keys()), kept.next_due()) == ([], math.inf)
    kept.touch(KEY, 300)
    assert kept.due(300, 10) == [KEY]


def test_cache_set_local_registrations_watches_a_service_without_reads() -> None:
    kept = cache()
    kept.restore(snapshot(A), 100, 0)
    assert kept.next_due() == math.inf
    kept.set_local_registrations(KEY, 1, 0)
    assert kept.due(0, 10) == [KEY]
    listed(kept, 0, A)
    assert kept.next_due() == pytest.approx(5)


def test_cache_due_lists_an_emptied_service_while_it_is_read() -> None:
    kept = cache(watch_idle=60)
    read(kept, 0)
    listed(kept, 5)
    assert watched(kept, KEY, 59) and kept.due(10, 10) == [KEY]
    assert not watched(kept, KEY, 60)


def test_cache_due_honours_the_budget_and_the_order() -> None:
    kept = cache()
    for number in range(10):
        read(kept, number, key(f"s{number}"))
    assert [k.name for k in kept.due(100, 3)] == ["s0", "s1", "s2"]
    assert [k.name for k in kept.due(100, 2)] == ["s3", "s4"]
    assert kept.due(100, 0) == []
    assert len(kept.due(100, 100)) == 5


def test_cache_due_is_not_delayed_by_a_listener_of_many_unlikely_names() -> None:
    kept = cache(interval_subscribed=1.0)
    for number in range(200):
        kept.watch(key(f"no{number}"), 0)
        kept.begin_fetch(key(f"no{number}"))
        listed(kept, 0, service=key(f"no{number}"))
    for number in range(10):
        read(kept, 0, key(f"real{number}"))
        kept.watch(key(f"real{number}"), 0)
    asked = Counter[str]()
    for turn in range(200):
        now = 2 + turn / 10
        for service in kept.due(now, 20):
            asked[service.name] += 1
            listed(kept, now, *((A,) if service.name.startswith("real") else ()), service=service)
    assert all(asked[f"real{number}"] >= 15 for number in range(10))
    assert all(asked[f"no{number}"] >= 1 for number in range(200))


def test_cache_invalidate_is_followed_by_rechecks_for_some_seconds() -> None:
    """The node that is asked may list a change later than the one that reported it (nacos-http.md, fact 19)."""
    kept = cache()
    kept.watch(KEY, 0)
    kept.set_push_alive(True, 0)
    listed(kept, 0, A)
    kept.invalidate(KEY, 10, "push")
    looks: list[float] = []
    for _ in range(7):
        looks.append(kept.next_due())
        assert kept.due(looks[-1], 9) == [KEY]
        listed(kept, looks[-1], A)
    assert [round(look - 10, 6) for look in looks[:6]] == [0, 0.4, 0.8, 1.2, 2, 4]
    assert looks[6] > 40, "then at the pace of push again"
    kept.invalidate(KEY, 100, "push")
    assert kept.due(100, 9) == [KEY]
    listed(kept, 100, A, B)
    assert kept.next_due() == 100.4, "what it brought may be an earlier change than the one that was told"


def test_cache_invalidate_of_an_unlikely_name_misses_no_turn() -> None:
    kept = cache()
    names = [key(f"no{number}") for number in range(8)]
    for name in names:
        kept.watch(name, 0)
        kept.begin_fetch(name)
        listed(kept, 0, service=name)
        kept.invalidate(name, 1, "push")
    assert len(kept.due(1, 8)) == 8


def test_cache_due_omits_a_service_that_is_being_fetched() -> None:
    kept = cache()
    read(kept, 0)
    kept.watch(KEY, 0)
    assert kept.due(10, 10) == [KEY]
    kept.touch(KEY, 11)
    kept.watch(KEY, 12)
    kept.set_local_registrations(KEY, 1, 13)
    kept.invalidate(KEY, 14)
    wrote(kept, Register(KEY, B), 15)
    kept.set_push_alive(True, 16)
    kept.set_push_alive(False, 17)
    assert kept.due(1000, 10) == []
    listed(kept, 1000, A, requested_at=999)
    assert len(kept.due(2000, 10)) == 1


def test_cache_begin_fetch_by_a_read_postpones_the_poll() -> None:
    kept = cache()
    read(kept, 0)
    kept.begin_fetch(KEY)
    assert kept.due(100, 10) == []
    assert not kept.may_refresh(KEY, 100)
    kept.reject(KEY, AWAY, 100)
    assert not kept.may_refresh(KEY, 100)
    assert kept.may_refresh(KEY, 110)


def test_cache_invalidate_makes_a_service_due_at_once_with_its_cause() -> None:
    kept = cache()
    read(kept, 0)
    kept.invalidate(KEY, 1, "push")
    entry = kept.get(KEY)
    assert entry is not None
    assert (kept.due(1, 10), entry.fetch_cause) == ([KEY], "push")
    listed(kept, 1.1, A, requested_at=1)
    assert entry.fetch_cause == "poll"
    assert kept.next_due() == 1.4, "it brought nothing: looked at once more"


def test_cache_invalidate_during_a_fetch_causes_another_fetch() -> None:
    kept = cache()
    read(kept, 0)
    assert kept.due(5, 10) == [KEY]
    kept.invalidate(KEY, 5.2, "push")
    listed(kept, 5.4, A, requested_at=5)
    entry = kept.get(KEY)
    assert entry is not None
    assert (kept.due(5.4, 10), entry.fetch_cause) == ([KEY], "push")
    listed(kept, 5.7, B, requested_at=5.5)
    assert kept.next_due() == pytest.approx(6.0), "once more for what was told last"


def test_cache_invalidate_of_an_unwatched_service_changes_nothing() -> None:
    kept = cache()
    kept.invalidate(KEY, 0)
    listed(kept, 0)
    kept.invalidate(KEY, 0)
    assert kept.next_due() == math.inf


def test_cache_set_push_alive_slows_polling_down_until_push_is_lost() -> None:
    kept = cache()
    read(kept, 0)
    kept.watch(KEY, 0)
    kept.set_push_alive(True, 0.5)
    assert kept.due(1, 10) == [KEY]
    listed(kept, 1, A)
    assert kept.next_due() == pytest.approx(31)
    kept.set_push_alive(False, 10)
    assert kept.due(10, 10) == [KEY]


def test_cache_set_push_alive_does_not_shorten_a_backoff() -> None:
    kept = cache()
    read(kept, 0)
    kept.set_push_alive(True, 0)
    kept.due(5, 10)
    kept.reject(KEY, AWAY, 5)
    before = kept.next_due()
    kept.set_push_alive(False, 5)
    assert kept.next_due() == before


def test_cache_watched_changes_grows_with_watched_keys() -> None:
    kept = cache(watch_idle=60)
    before = kept.watched_changes
    read(kept, 0)
    assert list(kept.watched_keys()) == [KEY]
    came = kept.watched_changes
    assert came > before
    for second in range(1, 50):
        kept.touch(KEY, second)
        if kept.due(second, 10):
            listed(kept, second, A)
        assert list(kept.watched_keys()) == [KEY]
    assert kept.watched_changes == came
    kept.due(200, 10)
    assert list(kept.watched_keys()) == []
    assert kept.watched_changes > came


# --- failures ------------------------------------------------------------------------------------------------------


def waits(kept: Cache, failures: int) -> list[float]:
    now, found = 0.0, []
    for _ in range(failures):
        kept.begin_fetch(KEY)
        kept.reject(KEY, AWAY, now)
        found.append(kept.next_due() - now)
        now = kept.next_due()
    return found


def test_cache_reject_backs_off_up_to_a_maximum() -> None:
    kept = cache(rng=1.0, interval_read=5)
    read(kept, 0)
    assert waits(kept, 6) == pytest.approx([10, 20, 40, 60, 60, 60])


def test_cache_reject_backs_off_with_jitter() -> None:
    kept = cache(rng=0.0, interval_read=5)
    read(kept, 0)
    assert waits(kept, 4) == pytest.approx([5, 10, 20, 30])


def test_cache_reject_while_push_is_alive_backs_off_from_the_base_interval() -> None:
    kept = cache(rng=1.0)
    kept.watch(KEY, 0)
    listed(kept, 0, A)
    kept.set_push_alive(True, 0)
    assert waits(kept, 3) == pytest.approx([2, 4, 8])


def test_cache_reject_stands_a_million_failures() -> None:
    kept = cache()
    read(kept, 0)
    entry = kept.get(KEY)
    assert entry is not None
    entry.failures = 1_000_000
    kept.reject(KEY, AWAY, 0)
    assert kept.next_due() <= 60


def test_cache_accept_ends_the_backoff() -> None:
    kept = cache()
    read(kept, 0)
    waits(kept, 5)
    listed(kept, 100, A)
    assert kept.next_due() == pytest.approx(105)
    assert kept.may_refresh(KEY, 100)


def test_cache_retry_failed_ends_the_backoff() -> None:
    kept = cache(rng=0.5)
    kept.touch(key("unwatched"), 0)
    kept.reject(key("unwatched"), AWAY, 0)
    read(kept, 0)
    waits(kept, 8)
    assert kept.next_due() > 100
    kept.retry_failed(100)
    assert kept.next_due() == 102.5
    assert kept.may_refresh(KEY, 100) and kept.may_refresh(key("unwatched"), 100)


# --- quarantine ------------------------------------------------------------------------------------------


def held(**policy: Any) -> Cache:
    kept = cache(**policy)
    kept.touch(KEY, 0)
    listed(kept, 0, A, B, C, D)
    return kept


def test_cache_accept_quarantines_an_empty_list_after_an_outage_until_it_is_confirmed() -> None:
    kept = held(confirm_after=5)
    assert listed(kept, 100, suspicious=True) is None
    assert shown(kept, 100) == (A, B, C, D)
    assert kept.due(104.9, 10) == [] and kept.due(105, 10) == [KEY]
    change = listed(kept, 105.2)
    assert change is not None
    assert change.removed == (A, B, C, D)


def test_cache_accept_never_shows_a_quarantined_list_that_recovers() -> None:
    kept = held(confirm_after=5)
    assert listed(kept, 100, suspicious=True) is None
    assert listed(kept, 102, A, B, C) is not None
    assert shown(kept, 102) == (A, B, C)
    assert listed(kept, 200) is not None  # long after the outage an empty list is an empty list


def test_cache_accept_of_a_second_list_too_early_does_not_end_the_quarantine() -> None:
    kept = held(confirm_after=5)
    for now in (100, 101, 104.9):
        assert listed(kept, now, suspicious=True) is None
    assert kept.quarantined == 1
    assert listed(kept, 105, suspicious=True) is not None


def test_cache_may_refresh_is_false_during_a_quarantine() -> None:
    kept = held(confirm_after=5)
    listed(kept, 100, suspicious=True)
    assert kept.lookup(KEY, 101).freshness is Freshness.STALE
    assert not kept.may_refresh(KEY, 104.9)
    assert kept.may_refresh(KEY, 105)


def test_cache_lookup_gives_the_true_age_during_a_quarantine() -> None:
    kept = held(confirm_after=5)
    kept.reject(KEY, AWAY, 50)
    listed(kept, 100, suspicious=True)
    result = kept.lookup(KEY, 101)
    assert (result.age, result.error) == (101, None)


@pytest.mark.parametrize(
    ("share", "left", "is_held"), [(0.5, 2, False), (0.5, 1, True), (0.0, 3, True), (1.0, 0, False)]
)
def test_cache_accept_quarantines_by_the_share_of_the_policy(share: float, left: int, is_held: bool) -> None:
    kept = held(suspicious_share=share)
    assert (listed(kept, 100, *(A, B, C, D)[:left], suspicious=True) is None) is is_held


def test_cache_accept_believes_an_empty_list_without_an_outage() -> None:
    kept = held()
    assert listed(kept, 100) is not None
    assert shown(kept, 100) == ()


def test_cache_accept_does_not_quarantine_over_an_expired_snapshot() -> None:
    kept = held(ttl=10, stale_if_error=50)
    assert listed(kept, 100, suspicious=True) is not None


def test_cache_accept_does_not_quarantine_deregistrations_from_here() -> None:
    kept = held()
    for gone in (A, B, C):
        assert wrote(kept, Deregister(KEY, gone.ip, gone.port), 99) is not None
    assert listed(kept, 100, D, suspicious=True) is None
    assert shown(kept, 100) == (D,)
    entry = kept.get(KEY)
    assert entry is not None and entry.quarantined_since is None
    wrote(kept, Deregister(KEY, D.ip, D.port), 101)
    listed(kept, 102, suspicious=True)
    assert (shown(kept, 102), entry.quarantined_since) == ((), None)


def at(*hosts: Instance, since: float) -> dict[tuple[str, int], float]:
    return {(host.ip, host.port): since for host in hosts}


def test_cache_accept_keeps_missed_instances_even_if_it_believes_the_list() -> None:
    kept = held()
    assert listed(kept, 100, A, B, C, missing_since=at(D, since=100)) is None
    assert shown(kept, 100) == (A, B, C, D)
    change = listed(kept, 101, A, B, missing_since=at(D, since=101))
    assert change is not None and change.removed == (C,)
    listed(kept, 110, A, B, D)
    assert shown(kept, 110) == (A, B, D)
    entry = kept.get(KEY)
    assert entry is not None and entry.pending == ()


def test_cache_accept_drops_instances_that_are_missed_longer_than_the_grace() -> None:
    kept = held(confirm_after=5)
    listed(kept, 100, A, B, C, missing_since=at(D, since=100))
    change = listed(kept, 103, A, B, C, missing_since=at(D, since=100))
    assert change is not None and change.removed == (D,)
    assert listed(kept, 104, A, B, C, missing_since=at(D, since=104)) is None  # readers have not seen it any more


def test_cache_accept_shows_missed_instances_with_their_data() -> None:
    kept = cache()
    rich = instance(weight=2.0, metadata={"zone": "a"})
    listed(kept, 0, rich, B)
    assert listed(kept, 100, A, B, missing_since=at(A, since=100)) is None
    assert shown(kept, 100) == (rich, B)


def test_cache_accept_quarantines_a_list_that_misses_most_instances() -> None:
    kept = held(confirm_after=5)
    assert listed(kept, 100, A, missing_since=at(B, since=100)) is None
    assert shown(kept, 100) == (A, B, C, D)


def test_cache_accept_without_grace_drops_missed_instances_at_once() -> None:
    kept = cache(pending_policy=PendingPolicy(grace=0.0))
    listed(kept, 0, A, B, C)
    assert listed(kept, 100, A, B, missing_since=at(C, since=100)) is not None
    assert shown(kept, 100) == (A, B)


def test_cache_record_write_shows_during_a_quarantine() -> None:
    kept = held()
    listed(kept, 100, suspicious=True)
    assert wrote(kept, Deregister(KEY, A.ip, A.port), 101) is not None
    assert shown(kept, 101) == (B, C, D)


# --- from disk -----------------------------------------------------------------------------------------------------


def test_cache_restore_keeps_the_age_and_marks_the_snapshot_as_from_disk() -> None:
    kept = cache()
    kept.restore(snapshot(A), 3600, 100)
    result = kept.lookup(KEY, 101)
    assert (result.freshness, result.age, result.from_disk) == (Freshness.STALE, 3601, True)
    assert listed(kept, 102, A) is None
    assert not kept.lookup(KEY, 102).from_disk


def test_cache_restore_dates_a_list_later_than_any_that_was_shown_before_the_kill() -> None:
    kept = cache()
    kept.restore(snapshot(A, last_ref_time=1000), 3600, 100, 5000)
    shown = kept.lookup(KEY, 100).snapshot
    assert shown is not None and shown.last_ref_time == 5000
    late = cache()
    late.restore(snapshot(A, last_ref_time=9000), 3600, 100, 5000)
    shown = late.lookup(KEY, 100).snapshot
    assert shown is not None and shown.last_ref_time == 9001, "the clock was set back"


def test_cache_restore_never_replaces_a_snapshot_of_the_upstream() -> None:
    kept = cache()
    listed(kept, 0, A)
    kept.restore(snapshot(B), 1, 1)
    assert shown(kept, 1) == (A,)


def test_cache_restore_makes_a_service_due_with_its_first_read() -> None:
    kept = cache()
    kept.restore(snapshot(A), 3600, 0)
    assert kept.due(1, 10) == []
    kept.touch(KEY, 2)
    assert kept.due(2, 10) == [KEY]


def test_cache_accept_quarantines_an_empty_first_list_after_a_restart() -> None:
    kept = cache(confirm_after=5)
    kept.restore(snapshot(A, B), 10, 0)
    assert listed(kept, 1) is None
    assert shown(kept, 1) == (A, B)
    assert listed(kept, 6) is not None
    assert shown(kept, 6) == ()


# --- any sequence -------------------------------------------------------------------------------------------

PLACES = [("10.0.0.1", 80), ("10.0.0.2", 80), ("10.0.0.3", 80)]
INSTANCES = st.builds(
    # no instance changes its kind in place: Nacos refuses that (a service is ephemeral or persistent as a whole)
    lambda place, weight, healthy: Instance(*place, weight=weight, healthy=healthy, ephemeral=place != PLACES[2]),
    st.sampled_from(PLACES),
    st.sampled_from([1.0, 2.0]),
    st.booleans(),
)
AT = st.sampled_from(PLACES)
WRITES: st.SearchStrategy[Write[Any]] = st.one_of(
    st.builds(lambda i: Register(KEY, i), INSTANCES),
    st.builds(lambda at, ephemeral: Deregister(KEY, *at, ephemeral=ephemeral), AT, st.booleans()),
    st.builds(
        lambda at, weight, metadata, partial: Update(KEY, *at, weight=weight, metadata=metadata, partial=partial),
        AT,
        st.sampled_from([None, 1.0, 3.0]),
        st.sampled_from([None, {"a": "1"}, {"b": "2"}]),
        st.booleans(),
    ),
    st.builds(lambda at: Beat(KEY, *at), AT),
    st.builds(lambda at: Beat(KEY, *at, full=Instance(*at, weight=4.0)), st.sampled_from(PLACES[:2])),
    st.builds(lambda at, healthy: SetHealth(KEY, *at, "DEFAULT", healthy), AT, st.booleans()),
    st.builds(lambda value: BatchMetadata(KEY, (), {"c": value}), st.sampled_from(["1", "2"])),
)
LISTS = st.lists(INSTANCES, max_size=3, unique_by=lambda i: i.key)
OPERATIONS = st.one_of(
    st.tuples(st.just("list"), LISTS, st.booleans()),
    st.tuples(st.just("late list"), LISTS, st.booleans()),
    st.tuples(st.just("list that lacks"), LISTS, st.booleans()),
    st.tuples(st.just("write"), WRITES, st.none()),
    st.tuples(st.just("fail"), st.none(), st.none()),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 0.6, 1.1, 3.1, 20.0]), st.none()),
    st.tuples(st.just("restore"), LISTS, st.none()),
    st.tuples(st.just("watch"), st.booleans(), st.none()),
)


@given(st.lists(OPERATIONS, max_size=40), st.sampled_from([0.0, 3.0]))
def test_cache_always_shows_the_upstream_snapshot_with_the_pending_writes(
    operations: list[tuple[str, Any, Any]], grace: float
) -> None:
    kept = cache(pending_policy=PendingPolicy(grace=grace), stale_if_error=math.inf)
    now, last_contact = 0.0, -math.inf
    last: Snapshot | None = None
    for what, value, more in operations:
        change = None
        match what:
            case "list" | "late list" | "list that lacks":
                word = Snapshot.of(KEY, value, last_ref_time=1)
                asked = now - 2 if what == "late list" else now
                missed = at(*(last.instances if last and what == "list that lacks" else ()), since=now)
                change = kept.accept(
                    word, now, "poll", requested_at=asked, suspicious=more, missing_since=missed, now_ms=1
                )
            case "write":
                change = kept.record_write(value, now, 1)
            case "fail":
                kept.reject(KEY, AWAY, now)
            case "wait":
                now += value
            case "restore":
                kept.restore(Snapshot.of(KEY, value, last_ref_time=1), 10, now)
                if last is None:
                    last = kept.lookup(KEY, now).snapshot
            case _:
                (kept.watch if value else kept.unwatch)(KEY, now)
        visible = kept.lookup(KEY, now).snapshot
        if change is not None:
            assert change.before == (last if last is not None else Snapshot(KEY))
            assert change.before != change.after
            assert change.after == visible
        else:
            assert visible == last or (last is None and visible == Snapshot(KEY))
        last = visible
        entry = kept.get(KEY)
        if entry is not None and entry.visible is not None:
            assert entry.upstream_snapshot is not None
            assert entry.visible == apply_pending(entry.upstream_snapshot, entry.pending)
            assert len(entry.pending) <= 20
            assert entry.confirmed_at >= last_contact
            last_contact = entry.confirmed_at
        assert (KEY in kept.watched_keys()) >= (entry is not None and entry.pinned)


# --- unsent writes -----------------------------------------------------------------------


def test_cache_accept_never_undoes_an_unsent_write() -> None:
    kept = cache()
    listed(kept, 0, A)
    change = kept.record_write(Register(KEY, B), 1, WALL, local=True)
    assert change is not None and change.added == (B,)
    kept.record_write(Deregister(KEY, A.ip, A.port), 1, WALL, local=True)
    for now in (2, 10, 1000):
        assert listed(kept, now, A) is None
        assert shown(kept, now) == (B,)


def test_cache_revise_of_a_sent_write_lets_lists_count_after_the_grace() -> None:
    kept = cache()
    listed(kept, 0, A)
    kept.record_write(Register(KEY, B), 1, WALL, local=True)
    kept.revise(KEY, lambda p: replace(p, since=100.0), 100, WALL)
    assert kept.due(101, 9) == [KEY], "looked at soon"
    listed(kept, 101, A)
    assert shown(kept, 101) == (A, B)
    listed(kept, 103, A)
    assert shown(kept, 103) == (A,)


def test_cache_revise_of_a_refused_write_hides_it() -> None:
    kept = cache()
    listed(kept, 0, A)
    kept.record_write(Register(KEY, B), 1, WALL, local=True)
    change = kept.revise(KEY, lambda p: None, 2, WALL + 1_000)
    assert change is not None and (change.removed, change.after.last_ref_time) == ((B,), WALL + 1_000)
    assert kept.revise(KEY, lambda p: None, 2, WALL) is None


def test_cache_record_write_locally_to_an_unknown_service_shows_it_stale() -> None:
    kept = cache()
    assert kept.record_write(Deregister(KEY, A.ip, A.port), 1, WALL, local=True) is None
    assert shown(kept, 1) is None
    change = kept.record_write(Register(KEY, B), 1, WALL, local=True)
    assert change is not None and change.added == (B,)
    assert kept.lookup(KEY, 1).freshness is Freshness.STALE
    change = listed(kept, 2, A, C)
    assert change is not None and change.added == (C,), "A left here, and the upstream will hear of it"
    assert shown(kept, 2) == (B, C)
    assert kept.revise(key("other"), lambda p: p, 2, WALL) is None


def test_cache_record_write_locally_stays_pending_without_grace() -> None:
    kept = cache(pending_policy=PendingPolicy(grace=0))
    listed(kept, 0, A)
    kept.record_write(Register(KEY, B), 1, WALL, local=True)
    listed(kept, 100, A)
    assert shown(kept, 100) == (A, B)
    kept.revise(KEY, lambda p: None, 100, WALL)
    assert shown(kept, 100) == (A,)


def test_cache_reject_forbidden_hides_the_snapshot_until_the_next_list() -> None:
    kept = cache()
    kept.watch(KEY, 0)
    listed(kept, 0, A)
    kept.reject(KEY, AWAY, 5, forbidden=True)
    assert (kept.lookup(KEY, 5).freshness, kept.lookup(KEY, 5).error) == (Freshness.MISSING, AWAY)
    assert watched(kept, KEY, 5), "who listens hears of it when it may be seen again"
    change = listed(kept, 7, A)
    assert change is not None and change.after.instances == (A,)
    assert shown(kept, 7) == (A,)


# --- pushed lists --------------------------------------------------------------------------------------------------


def pushed(kept: Cache, now: float, *hosts: Instance, **more: Any) -> tuple[bool, Change | None]:
    return kept.accept_pushed(snapshot(*hosts), now, **more)


def test_cache_accept_pushed_shows_the_list_and_confirms_it() -> None:
    kept = cache()
    kept.watch(KEY, 0)
    kept.set_push_alive(True, 0)
    listed(kept, 0, A)
    counts, change = pushed(kept, 20, A, B)
    assert counts and change is not None and (change.added, change.source) == ((B,), "push")
    assert kept.lookup(KEY, 20).age == 0
    assert kept.next_due() > 45, "the next poll is as far away as after a fetch"


@pytest.mark.parametrize("from_disk", [True, False])
def test_cache_accept_pushed_changes_nothing_without_a_fetched_snapshot(from_disk: bool) -> None:
    kept = cache()
    if from_disk:
        kept.restore(snapshot(A), 1, 0)
    before = shown(kept, 0)
    assert pushed(kept, 1, A, B) == (False, None)
    assert (shown(kept, 1), kept.get(KEY) is None) == (before, not from_disk)


def test_cache_accept_ignores_another_list_shortly_after_a_push_and_fetches_again() -> None:
    """Another node of a cluster lists a pushed change up to 1.7 s later (nacos-http.md, fact 19)."""
    kept = cache()
    kept.watch(KEY, 0)
    listed(kept, 0, A)
    pushed(kept, 10, A, B)
    for asked in (9.9, 10.1, 11.9):  # the first was under way when the push came
        kept.begin_fetch(KEY)
        assert kept.accept(snapshot(A), asked + 0.05, "poll", requested_at=asked) is None
        assert kept.next_due() == pytest.approx(12)
    assert shown(kept, 12) == (A, B)
    change = listed(kept, 12, A)
    assert change is not None and change.removed == (B,), "then the list counts"


def test_cache_accept_takes_the_same_list_after_a_push() -> None:
    kept = cache()
    listed(kept, 0, A)
    pushed(kept, 10, A, B)
    assert listed(kept, 10.5, A, B) is None
    assert kept.lookup(KEY, 10.5).age == 0


def test_cache_accept_takes_another_list_if_a_change_was_reported_after_the_push() -> None:
    kept = cache()
    kept.watch(KEY, 0)
    listed(kept, 0, A)
    pushed(kept, 10, A, B)
    kept.invalidate(KEY, 10.5, "push")
    assert listed(kept, 10.5, A) is not None


def test_cache_accept_pushed_during_a_fetch_leaves_it_in_flight() -> None:
    kept = cache()
    kept.watch(KEY, 0)
    listed(kept, 0, A)
    kept.begin_fetch(KEY)
    assert pushed(kept, 10, A, B)[0]
    assert not kept.may_refresh(KEY, 10) and kept.due(11, 9) == []
    assert listed(kept, 11, A, requested_at=9.5) is None
    assert kept.due(12, 9) == [KEY]


def test_cache_accept_pushed_quarantines_a_list_that_shrinks_while_the_upstream_is_suspicious() -> None:
    kept = cache(confirm_after=5)
    kept.watch(KEY, 0)
    listed(kept, 0, A, B, C)
    assert pushed(kept, 10, suspicious=True) == (True, None)
    assert shown(kept, 10) == (A, B, C)
    assert kept.next_due() == 15
    assert listed(kept, 15) is not None


def test_cache_accept_pushed_that_is_quarantined_during_a_fetch_is_looked_at_again_after_it() -> None:
    kept = cache(confirm_after=5)
    kept.watch(KEY, 0)
    kept.set_push_alive(True, 0)
    listed(kept, 0, A, B, C)
    kept.begin_fetch(KEY)
    pushed(kept, 10, suspicious=True)
    listed(kept, 10.1, A, B, C, requested_at=9.9)
    assert kept.next_due() == 10.1


def test_cache_accept_pushed_keeps_pending_writes_that_it_lacks() -> None:
    kept = cache()
    listed(kept, 0, A)
    wrote(kept, Register(KEY, B), 1)
    assert pushed(kept, 1.5, A, C)[0]
    assert shown(kept, 1.5) == (A, B, C)


def test_cache_accept_pushed_twice_within_moments_shows_the_second() -> None:
    kept = cache()
    listed(kept, 0, A)
    pushed(kept, 10, A, B)
    change = pushed(kept, 10.1, A)[1]
    assert change is not None and change.removed == (B,)


VIA = Via(4.0, False, "nacos-proxy; hit; ttl=6")


def heard(kept: Cache, now: float, via: Via = VIA) -> Snapshot:
    """An upstream that is a cache listed A."""
    found = snapshot(A).heard(via)
    kept.accept(found, now, "poll", requested_at=now)
    return found


def test_cache_lookup_adds_the_age_that_a_list_had_at_the_upstream() -> None:
    kept = cache(ttl=10.0)
    heard(kept, 100.0)
    result = kept.lookup(KEY, 109.0)
    assert (result.age, result.ttl, result.via, result.stale) == (13.0, 1.0, VIA, False)
    assert kept.lookup(KEY, 110.0).stale, "the TTL counts from when the upstream was heard"


def test_cache_lookup_is_stale_if_the_list_was_stale_at_the_upstream() -> None:
    kept = cache()
    heard(kept, 100.0, replace(VIA, stale=True))
    assert kept.lookup(KEY, 100.0).freshness is Freshness.STALE
    heard(kept, 101.0)
    assert kept.lookup(KEY, 101.0).freshness is Freshness.FRESH


def test_cache_lookup_finds_nothing_fresh_while_the_upstream_is_doubted() -> None:
    kept = cache()
    listed(kept, 100.0, A)
    kept.doubted = True
    assert kept.lookup(KEY, 100.0).freshness is Freshness.STALE
    assert kept.fresh_interval(snapshot(A), 100.0) is None
    kept.doubted = False
    assert kept.lookup(KEY, 100.0).freshness is Freshness.FRESH


def test_cache_asks_a_doubted_upstream_for_nothing_that_it_pushes() -> None:
    kept = cache()
    read(kept, 100.0)
    kept.set_push_alive(True, 100.0)
    kept.doubted = True
    assert not kept.may_refresh(KEY, 110.0)
    for now in range(110, 400, 5):
        assert kept.due(float(now), 9) == []
    kept.invalidate(KEY, 400.0, "push")
    assert (kept.may_refresh(KEY, 400.0), kept.due(400.0, 9)) == (True, [KEY]), "a report without a list"
    kept.reject(KEY, AWAY, 400.0)
    assert kept.due(500.0, 9) == [KEY], "the error hides what the upstream has"


def test_cache_asks_a_doubted_upstream_for_what_it_does_not_push_and_again_when_the_doubt_is_over() -> None:
    kept = cache()
    read(kept, 100.0)
    kept.doubted = True
    assert (kept.may_refresh(KEY, 110.0), kept.due(110.0, 9)) == (True, [KEY])
    listed(kept, 110.0, A)
    kept.set_push_alive(True, 110.0)
    assert kept.due(150.0, 9) == []
    kept.doubted = False
    assert (kept.may_refresh(KEY, 190.0), kept.due(190.0, 9)) == (True, [KEY])


def test_cache_confirm_makes_a_list_younger_and_puts_off_its_poll() -> None:
    kept = cache(ttl=10.0)
    read(kept, 100.0)
    pushed = heard(kept, 100.0)
    kept.confirm({KEY: pushed, key("unknown"): pushed}, replace(VIA, age=2.0), 104.0)
    assert (kept.lookup(KEY, 104.0).age, kept.lookup(KEY, 104.0).ttl) == (2.0, 10.0)
    assert kept.next_due() >= 108.0
    kept.confirm({KEY: pushed}, replace(VIA, age=60.0), 110.0)
    assert (kept.lookup(KEY, 110.0).age, kept.lookup(KEY, 110.0).ttl) == (8.0, 10.0), "an age is an upper bound"
    assert not watched(kept, key("unknown"), 110.0)


@pytest.mark.parametrize("state", ["another list", "fetching", "failed", "pending", "from disk", "quarantined"])
def test_cache_confirm_does_not_count_if_a_fetch_has_to_tell_more(state: str) -> None:
    kept = cache(pending_policy=PendingPolicy(grace=60.0))
    pushed = snapshot(A)
    if state == "from disk":
        kept.restore(pushed, 50.0, 100.0)
    else:
        listed(kept, 50.0, *((A, B) if state == "another list" else (A,)))
    if state == "fetching":
        kept.begin_fetch(KEY)
    elif state == "failed":
        kept.reject(KEY, AWAY, 60.0)
    elif state == "pending":
        wrote(kept, Register(KEY, B), 60.0)
    elif state == "quarantined":
        kept.accept(snapshot(), 60.0, "poll", requested_at=60.0, suspicious=True)
    kept.confirm({KEY: pushed}, VIA, 100.0)
    assert kept.lookup(KEY, 100.0).age == 50.0


def test_cache_confirmations_are_the_oldest_fresh_result_and_the_services_without_one() -> None:
    kept, old, gone = cache(ttl=10.0), key("old"), key("gone")
    listed(kept, 80.0, A, service=old)
    listed(kept, 95.0, A)
    listed(kept, 98.0, A, service=key("young"))
    oldest, others = kept.confirmations([old, gone, key("young"), KEY], 100.0)
    assert oldest is not None and (oldest.age, others) == (5.0, [old, gone])
    assert kept.confirmations([gone], 100.0) == (None, [gone])


def test_cache_accept_pushed_takes_a_whole_list_whatever_is_known() -> None:
    kept = cache()
    listed(kept, 100.0, A)
    kept.accept(replace(snapshot(A), threshold=0.5), 101.0, "poll", requested_at=101.0)
    accepted, change = kept.accept_pushed(snapshot(A, B).heard(VIA), 102.0, whole=True)
    assert accepted and change is not None and change.added == (B,)
    assert kept.lookup(KEY, 102.0).age == 4.0
    assert kept.accept_pushed(snapshot(A, service=key("unknown")), 102.0, whole=True) == (False, None)
