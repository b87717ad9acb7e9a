"""Writes that wait for the upstream: in order, and only those that still matter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.catalog.journal import Journal, JournalEntry, LocalWrite, registration_key
from nacos_proxy.model.calls import Beat, Deregister, Register, Update
from nacos_proxy.model.effects import apply
from nacos_proxy.model.services import Instance
from tests.helpers.build import KEY, instance, snapshot

A, B = instance("10.0.0.1"), instance("10.0.0.2")
PLACE = (KEY, A.ip, A.port)
HERE, GONE = Register(KEY, A), Deregister(KEY, A.ip, A.port)
HEAVY = Update(KEY, A.ip, A.port, weight=9.0)


def journal(*writes: LocalWrite, max_writes: int = 100) -> Journal:
    made = Journal(max_writes)
    for write in writes:
        made.add(write, 0.0)
    return made


@pytest.mark.parametrize(
    ("writes", "left"),
    [
        ([HERE, GONE], [GONE]),
        ([GONE, HERE], [HERE]),
        ([HERE, HEAVY, HERE], [HERE]),
        ([HERE, HEAVY, GONE], [GONE]),
        ([HERE, HEAVY], [HERE, HEAVY]),
        ([HEAVY, Update(KEY, A.ip, A.port, enabled=False)], [Update(KEY, A.ip, A.port, enabled=False)]),
        ([GONE, Beat(KEY, A.ip, A.port, full=A)], [GONE, Beat(KEY, A.ip, A.port, full=A)]),
    ],
)
def test_journal_add_keeps_only_the_writes_that_still_matter(writes: list[LocalWrite], left: list[LocalWrite]) -> None:
    made = journal(*writes)
    assert (list(made.of(PLACE)), len(made)) == (left, len(left))


def test_journal_add_keeps_a_deregistration_from_another_cluster() -> None:
    """On 1.x one address may be in two clusters."""
    blue = Deregister(KEY, A.ip, A.port, "blue")
    assert journal(blue, HERE).of(PLACE) == (blue, HERE)


def test_journal_add_moves_a_key_to_the_end() -> None:
    made = journal(HERE, Register(KEY, B), GONE)
    assert list(made) == [(KEY, B.ip, B.port), PLACE]


def test_journal_done_removes_only_the_write_that_was_sent() -> None:
    made = journal(HERE)
    made.add(GONE, 0.0)
    made.done(PLACE, HERE)
    assert made.of(PLACE) == (GONE,)
    made.done(PLACE, GONE)
    assert (PLACE in made, len(made), list(made)) == (False, 0, [])
    made.done(PLACE, GONE)


def test_journal_expired_keeps_only_deregistrations() -> None:
    blue = Deregister(KEY, A.ip, A.port, "blue")
    made = journal(blue, HERE, HEAVY)
    made.expired(PLACE)
    assert made.of(PLACE) == (blue,)


def test_journal_room_is_bounded_by_the_number_of_writes() -> None:
    made = journal(HERE, max_writes=2)
    assert made.room
    made.add(HEAVY, 0.0)
    assert not made.room
    made.done(PLACE, HERE)
    assert made.room


def test_journal_restore_keeps_the_order_and_marks_nothing_as_changed() -> None:
    made = journal(HERE, Register(KEY, B))
    assert made.changed == {PLACE, (KEY, B.ip, B.port)}
    again = journal()
    for place in made:
        waiting = made.get(place)
        assert waiting is not None
        again.restore(place, waiting)
    assert (list(again), again.changed) == (list(made), set())
    again.add(HEAVY, 5.0)
    assert again.get(PLACE) == JournalEntry((HERE, HEAVY), 3, 5.0)
    assert (len(again), len(list(again))) == (3, 2)


def test_registration_key_is_the_key_of_the_instance() -> None:
    assert {registration_key(write) for write in (HERE, GONE, HEAVY)} == {PLACE}


_instances = st.builds(
    instance,
    ip=st.sampled_from(["10.0.0.1", "10.0.0.2"]),
    cluster=st.sampled_from(["DEFAULT", "blue"]),
    weight=st.sampled_from([1.0, 2.0]),
    metadata=st.sampled_from([{}, {"a": "1"}, {"b": "2"}]),
)
_writes = st.one_of(
    st.builds(lambda i: Register(KEY, i), _instances),
    st.builds(lambda i: Beat(KEY, i.ip, i.port, i.cluster, full=i), _instances),
    st.builds(lambda i: Deregister(KEY, i.ip, i.port, i.cluster), _instances),
    st.builds(
        # of what a PUT lays over an instance nothing is left after the next PUT, which `apply` cannot foretell
        lambda i, weight, a, partial: Update(KEY, i.ip, i.port, i.cluster, weight, True, {"a": a}, partial=partial),
        _instances,
        st.sampled_from([2.0, 3.0]),
        st.sampled_from("12"),
        st.booleans(),
    ),
)


@given(st.lists(_instances, max_size=2, unique_by=lambda i: i.ip), st.lists(_writes, max_size=12))
def test_journal_sends_the_effect_of_all_writes(base: list[Instance], writes: list[LocalWrite]) -> None:
    made = journal(*writes)
    shown = sent = snapshot(*base)
    for write in writes:
        shown = apply(shown, write)
    for place in made:
        for write in made.of(place):
            sent = apply(sent, write)
    assert sent == shown
    assert len(made) == sum(len(made.of(place)) for place in made)
