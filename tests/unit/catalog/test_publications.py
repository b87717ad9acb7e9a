"""`PublishedInstances`: who publishes what, and when it beats."""

from __future__ import annotations

import pytest

from nacos_proxy.catalog.publications import PublishedInstances, seconds_between_beats
from nacos_proxy.catalog.registrations import RegistrationKey
from tests.helpers.build import KEY, instance, key

OTHER = key("payments")
A: RegistrationKey = (KEY, "10.0.0.1", 80)
B: RegistrationKey = (KEY, "10.0.0.2", 80)
C: RegistrationKey = (OTHER, "10.0.0.1", 80)
PLAIN, HEAVY = instance(), instance(weight=5.0)


def table(max_instances: int = 100) -> PublishedInstances:
    return PublishedInstances(max_instances)


@pytest.mark.parametrize(
    ("metadata", "seconds"),
    [
        ({}, 5.0),
        ({"preserved.heart.beat.interval": "2000"}, 2.0),
        ({"preserved.heart.beat.interval": "60000", "preserved.heart.beat.timeout": "300000"}, 5.0),
        ({"preserved.heart.beat.timeout": "6000"}, 2.0),
        ({"preserved.heart.beat.interval": "1"}, 1.0),
        ({"preserved.heart.beat.timeout": "0"}, 1.0),
    ],
)
def test_seconds_between_beats_is_what_the_metadata_demands_between_1_and_5(
    metadata: dict[str, str], seconds: float
) -> None:
    assert seconds_between_beats(metadata) == seconds


def test_add_keeps_one_value_for_each_owner_and_address() -> None:
    t = table()
    t.add("a", "host", A, PLAIN)
    t.add("a", "host", A, HEAVY)
    t.add("a", "host", C, PLAIN)
    assert t.values("a") == {A: HEAVY, C: PLAIN}
    assert t.value("a", KEY) == {A: HEAVY} and t.value("a", OTHER) == {C: PLAIN}
    assert t.values("b") == {} and len(t) == 2 and A in t and B not in t
    assert sorted(t) == sorted([A, C])


def test_newest_is_the_value_of_the_connection_that_published_last() -> None:
    t = table()
    t.add("old", "host", A, PLAIN)
    t.add("new", "host", A, HEAVY)
    assert t.newest(A) == HEAVY
    t.add("old", "host", A, PLAIN)  # as when an SDK repeats its registration
    assert t.newest(A) == PLAIN
    assert t.remove("old", A) == PLAIN
    assert t.newest(A) == HEAVY
    assert t.remove("old", A) is None and t.remove("new", A) == HEAVY
    assert t.newest(A) is None and A not in t and len(t) == 0


def test_room_counts_each_owner_of_an_address_against_its_client() -> None:
    t = table(4)
    assert t.room("host", 2) and t.room("host", 4) and not t.room("host", 5)
    t.add("a", "host", A, PLAIN)
    t.add("b", "host", A, PLAIN)
    assert not t.room("host", 1) and t.room("another", 2) and not t.room("another", 3)
    t.remove("a", A)
    t.remove("b", A)
    assert t.room("host", 4)


def test_an_orphan_is_taken_when_its_time_is_over() -> None:
    t = table()
    t.orphan(A, 60.0)
    t.orphan(B, 70.0)
    assert t.orphaned_until(A) == 60.0 and t.orphans == 2 and A in t
    assert t.take_lapsed(59.9) == []
    t.shift(5.0)
    assert t.take_lapsed(60.0) == []
    assert t.take_lapsed(65.0) == [A]
    assert A not in t and t.orphaned_until(A) is None
    assert repr(t) == "<PublishedInstances 0 of 0 connections, 1 orphaned>"


def test_add_adopts_an_orphan() -> None:
    t = table()
    t.orphan(A, 60.0)
    t.add("a", "host", A, PLAIN)
    assert t.orphans == 0 and t.take_lapsed(100.0) == [] and len(t) == 1
    t.orphan(A, 60.0)  # no effect: it has a connection
    assert t.orphans == 0


def test_take_due_gives_an_address_that_is_due_once_until_it_is_scheduled_again() -> None:
    t = table()
    t.orphan(A, 60.0)
    t.add("a", "host", B, PLAIN)
    t.schedule(B, 100.0, PLAIN.metadata)
    assert t.take_due(100.0) == A
    assert t.take_due(103.9) is None
    assert t.take_due(105.0) == B
    assert t.take_due(1e9) is None
    t.schedule(A, 100.0, PLAIN.metadata)
    assert t.take_due(105.0) == A


def test_schedule_spreads_beats_over_the_last_fifth_of_the_interval() -> None:
    t = table()
    for n in range(1000):
        address: RegistrationKey = (KEY, "10.0.0.1", n)
        t.add("a", "host", address, PLAIN)
        t.schedule(address, 0.0, PLAIN.metadata)
    due = [0] * 6
    for step in range(1, 6):
        while t.take_due(4.0 + step / 5) is not None:
            due[step] += 1
    assert due[0] == 0 and all(190 < n < 210 for n in due[1:])


def test_what_nobody_publishes_any_more_does_not_beat() -> None:
    t = table()
    for address in (A, B):
        t.add("a", "host", address, PLAIN)
        t.schedule(address, 0.0, PLAIN.metadata)
    t.remove("a", A)
    t.forget(B)
    t.schedule(A, 0.0, PLAIN.metadata)  # its last beat has just ended
    assert t.take_due(1e9) is None and t.values("a") == {B: PLAIN}
    t.schedule(B, 0.0, PLAIN.metadata)
    assert t.take_due(1e9) == B
    t.orphan(A, 60.0)
    t.forget(A)
    assert t.orphans == 0 and t.take_due(1e9) is None
