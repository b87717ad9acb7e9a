"""Accepted writes show at once, and an old list does not bring the old state back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.catalog.pending_writes import (
    UNSENT,
    Pending,
    PendingPolicy,
    add,
    apply_pending,
    drop_confirmed,
    explained,
)
from nacos_proxy.model.calls import BatchMetadata, Beat, Deregister, Register, SetHealth, Update, Write
from nacos_proxy.model.effects import apply
from nacos_proxy.model.services import Snapshot
from tests.helpers.build import KEY, instance, snapshot

POLICY = PendingPolicy(confirm_after=1.0, grace=3.0)
NOTHING = snapshot()
X, Y = instance("10.0.0.1"), instance("10.0.0.2")


def pending(*writes: Write[Any], since: float = 100.0) -> tuple[Pending, ...]:
    """What is pending after these writes, at short intervals from `since`."""
    found: tuple[Pending, ...] = ()
    for number, write in enumerate(writes):
        found = add(found, write, since + number / 100)
    return found


def register(found: Any = X) -> Register:
    return Register(KEY, found)


def deregister(found: Any = X, **fields: Any) -> Deregister:
    return Deregister(KEY, found.ip, found.port, **fields)


def update(**fields: Any) -> Update:
    return Update(KEY, X.ip, X.port, **fields)


def beat(full: Any = None) -> Beat:
    return Beat(KEY, X.ip, X.port, full=full)


# until the upstream lists it


def test_drop_confirmed_keeps_unsent_writes() -> None:
    some = add(pending(deregister(Y)), register(), UNSENT)
    for listed in (NOTHING, snapshot(X)):
        assert [p.write for p in drop_confirmed(some, listed, 1e9, POLICY)] == [register()]


@pytest.mark.parametrize(
    ("write", "old", "new"),
    [
        (register(), NOTHING, snapshot(X)),
        (deregister(), snapshot(X, Y), snapshot(Y)),
        (update(weight=5.0), snapshot(X), snapshot(instance(X.ip, weight=5.0))),
        (beat(X), NOTHING, snapshot(X)),
        (beat(), snapshot(instance(X.ip, healthy=False)), snapshot(X)),
    ],
    ids=["register", "deregister", "update", "full beat", "beat"],
)
def test_drop_confirmed_keeps_a_write_against_an_old_list(write: Any, old: Snapshot, new: Snapshot) -> None:
    waiting = pending(write)
    for asked in (99.5, 100.0, 100.6, 101.9, 102.9):
        waiting = drop_confirmed(waiting, old, asked, POLICY)
        assert apply_pending(old, waiting) == new


def test_drop_confirmed_drops_a_write_that_a_new_enough_list_shows() -> None:
    assert drop_confirmed(pending(register()), snapshot(X), 101.0, POLICY) == ()


def test_drop_confirmed_keeps_writes_if_an_old_list_agrees_by_chance() -> None:
    """A list from before a registration and a deregistration looks like one from after both."""
    waiting = pending(register(), deregister())
    waiting = drop_confirmed(waiting, NOTHING, 100.2, POLICY)
    assert apply_pending(snapshot(X), drop_confirmed(waiting, snapshot(X), 100.7, POLICY)) == NOTHING


def test_drop_confirmed_gives_up_a_write_after_the_grace() -> None:
    waiting = pending(register())
    assert drop_confirmed(waiting, NOTHING, 102.99, POLICY) == waiting
    assert drop_confirmed(waiting, NOTHING, 103.0, POLICY) == ()


def test_drop_confirmed_counts_from_the_request_of_the_list() -> None:
    """It was asked for at once after the write and came after the grace, so it may show an older state."""
    waiting = pending(register())
    assert apply_pending(NOTHING, drop_confirmed(waiting, NOTHING, 100.1, POLICY)) == snapshot(X)


def test_drop_confirmed_lets_the_upstream_change_a_confirmed_write() -> None:
    waiting = drop_confirmed(pending(register()), snapshot(X), 101.0, POLICY)
    assert apply_pending(NOTHING, drop_confirmed(waiting, NOTHING, 101.5, POLICY)) == NOTHING


def test_drop_confirmed_drops_writes_that_agree_only_together() -> None:
    waiting = pending(register(instance(X.ip, weight=1.0)), update(weight=5.0))
    assert drop_confirmed(waiting, snapshot(instance(X.ip, weight=5.0)), 101.5, POLICY) == ()


def test_drop_confirmed_drops_one_of_two_writes() -> None:
    waiting = pending(register(X), register(Y))
    (left,) = drop_confirmed(waiting, snapshot(X), 101.5, POLICY)
    assert left.write == register(Y)


# what one write makes of another


@pytest.mark.parametrize(
    ("writes", "left"),
    [
        ((register(), deregister()), (deregister(),)),
        ((deregister(), register()), (register(),)),
        ((update(weight=2.0), register()), (register(),)),
        ((update(weight=2.0), update(weight=3.0)), (update(weight=3.0),)),
        ((update(weight=2.0, partial=True), update(weight=3.0, partial=True)), (update(weight=3.0, partial=True),)),
        ((beat(), beat()), (beat(),)),
        ((SetHealth(KEY, X.ip, X.port, "c", True), deregister(ephemeral=False)), (deregister(ephemeral=False),)),
        ((SetHealth(KEY, X.ip, X.port, "c", True),) * 2, (SetHealth(KEY, X.ip, X.port, "c", True),)),
        (
            (BatchMetadata(KEY, (), {"a": "1"}), BatchMetadata(KEY, (), {"a": "2", "b": "1"})),
            (BatchMetadata(KEY, (), {"a": "2", "b": "1"}),),
        ),
    ],
)
def test_add_replaces_superseded_writes(writes: Any, left: Any) -> None:
    assert tuple(p.write for p in pending(*writes)) == left


@pytest.mark.parametrize(
    "writes",
    [
        (register(X), register(Y)),
        (register(), update(weight=2.0)),
        (update(weight=2.0, partial=True), update(enabled=False, partial=True)),
        (update(weight=2.0), update(enabled=False, partial=True)),
        (update(weight=2.0, cluster="c1"), update(weight=3.0, cluster="c2")),
        (beat(X), beat()),
        (register(), deregister(ephemeral=False)),
        (beat(X), deregister(ephemeral=False)),
        (deregister(), deregister(ephemeral=False)),
        (BatchMetadata(KEY, (), {"a": "1"}), BatchMetadata(KEY, (), {"b": "1"})),
        (BatchMetadata(KEY, (), {"a": "1"}), update(weight=2.0)),
        (register(), BatchMetadata(KEY, (), {"a": "1"})),
        (SetHealth(KEY, X.ip, X.port, "c", True), deregister()),
        (BatchMetadata(KEY, (), {"a": "1"}), BatchMetadata(KEY, (X.key,), {"a": "2"})),
    ],
)
def test_add_keeps_writes_that_both_matter_in_order(writes: Any) -> None:
    assert tuple(p.write for p in pending(*writes)) == writes


def test_add_of_a_second_full_beat_keeps_modifications_since_the_first() -> None:
    waiting = pending(beat(X), update(weight=5.0), beat(X))
    assert apply_pending(NOTHING, waiting) == snapshot(instance(X.ip, weight=5.0))


def test_add_of_a_light_beat_keeps_the_full_one() -> None:
    assert apply_pending(NOTHING, pending(beat(X), beat())) == snapshot(X)


# A service is of one kind (nacos-http.md 5.1); only deregistrations may be of the other, and then do nothing.
instances = st.builds(instance, st.sampled_from(["10.0.0.1", "10.0.0.2"]), weight=st.sampled_from([1.0, 2.0]))
changed = st.builds(
    Update,
    st.just(KEY),
    st.sampled_from(["10.0.0.1", "10.0.0.2"]),
    st.just(80),
    weight=st.none() | st.sampled_from([1.0, 3.0]),
    enabled=st.none() | st.booleans(),
    metadata=st.none() | st.just({"a": "1"}),
    partial=st.booleans(),
)
writes: Any = st.one_of(
    st.builds(Register, st.just(KEY), instances),
    st.builds(
        Deregister, st.just(KEY), st.sampled_from(["10.0.0.1", "10.0.0.2"]), st.just(80), ephemeral=st.booleans()
    ),
    changed,
    st.builds(
        Beat, st.just(KEY), st.just("10.0.0.1"), st.just(80), full=st.none() | st.just(instance("10.0.0.1", weight=0.0))
    ),
)
bases = st.lists(instances, max_size=2).map(lambda found: snapshot(*found))


@given(bases, st.lists(writes, max_size=200))
def test_add_bounds_the_number_by_the_addresses(base: Any, made: list[Any]) -> None:
    assert len(pending(*made)) <= 2 * 16


@given(bases, st.lists(writes.filter(lambda w: not isinstance(w, Update) or w.metadata is None), max_size=8))
def test_add_drops_only_writes_without_effect(base: Any, made: list[Any]) -> None:
    """Except for metadata: an update may drop what an earlier one named, which only the server knows."""
    whole = base
    for write in made:
        whole = apply(whole, write)
    assert apply_pending(base, pending(*made)) == whole


@given(bases, st.lists(writes, max_size=8), st.floats(90, 110))
def test_drop_confirmed_ends_every_write_at_the_grace(base: Any, made: list[Any], asked: float) -> None:
    before = pending(*made)
    after = drop_confirmed(before, base, asked, POLICY)
    assert set(map(id, after)) <= set(map(id, before))
    assert drop_confirmed(before, base, 104.0, POLICY) == ()
    assert all(asked - p.since < POLICY.grace for p in after)


# lists that shrink


def test_explained_by_deregistrations_from_here() -> None:
    assert explained(pending(deregister(X)), snapshot(X, Y), snapshot(Y), 0.0)
    assert explained(pending(deregister(X), deregister(Y)), snapshot(X, Y), NOTHING, 0.0)
    assert explained((), snapshot(X), snapshot(X), 0.0)


def test_explained_is_false_for_an_instance_that_was_not_deregistered_here() -> None:
    assert not explained(pending(deregister(X)), snapshot(X, Y), NOTHING, 0.0)
    assert not explained(pending(register(Y)), snapshot(Y), NOTHING, 0.0)
    assert not explained((), snapshot(X), NOTHING, 0.0)
    assert explained((), snapshot(X, Y), snapshot(X), 0.5), "no more than the share"
