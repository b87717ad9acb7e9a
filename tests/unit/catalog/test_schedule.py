"""When a service is due: one moment each, the most overdue first, and no more memory than there are services."""

import math

from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.catalog.schedule import Schedule
from tests.helpers.build import key

A, B, C = key("a"), key("b"), key("c")


def test_the_most_overdue_is_taken_first() -> None:
    schedule = Schedule()
    for service, moment in ((A, 3.0), (B, 1.0), (C, 2.0)):
        schedule.plan(service, moment)
    assert [schedule.take(2.5) for _ in range(3)] == [B, C, None]
    assert schedule.next() == 3.0


def test_planning_anew_replaces_the_moment_in_both_directions() -> None:
    schedule = Schedule()
    schedule.plan(A, 5.0)
    schedule.plan(A, 1.0)
    assert schedule.next() == 1.0
    schedule.plan(A, 9.0)
    assert (schedule.take(8.9), schedule.take(9.0), schedule.take(99.0)) == (None, A, None)


def test_what_was_taken_has_its_place_until_it_is_planned_or_dropped() -> None:
    schedule = Schedule()
    schedule.plan(A, 1.0)
    assert schedule.take(1.0) == A
    assert A in schedule and schedule.moment(A) == math.inf and schedule.next() == math.inf
    schedule.plan(A, 1.0)
    assert schedule.take(1.0) == A
    schedule.drop(A)
    schedule.drop(A)
    assert A not in schedule and len(schedule) == 0


def test_what_was_dropped_is_never_due() -> None:
    schedule = Schedule()
    schedule.plan(A, 1.0)
    schedule.drop(A)
    assert schedule.take(2.0) is None
    assert repr(schedule) == "<Schedule 0 services, 0 moments>"


def test_changes_count_those_that_came_and_went_and_nothing_else() -> None:
    schedule = Schedule()
    schedule.plan(A, 1.0)
    schedule.plan(A, 2.0)
    schedule.take(2.0)
    assert schedule.changes == 1
    schedule.drop(A)
    assert schedule.changes == 2
    assert list(schedule.keys()) == []


def test_planning_a_service_a_million_times_takes_no_more_room_than_once() -> None:
    schedule = Schedule()
    for number in range(100_000):
        schedule.plan(A, 1e6 + number)
    assert repr(schedule) in {f"<Schedule 1 services, {n} moments>" for n in range(1, 68)}
    assert schedule.take(2e6) == A


STEPS = st.one_of(
    st.tuples(st.just("plan"), st.sampled_from([A, B, C]), st.integers(0, 20) | st.just(math.inf)),
    st.tuples(st.just("drop"), st.sampled_from([A, B, C]), st.just(0)),
    st.tuples(st.just("take"), st.just(A), st.integers(0, 20)),
)


@given(st.lists(STEPS, max_size=200))
def test_it_behaves_as_a_plain_dict_of_moments_would(steps: list[tuple[str, object, float]]) -> None:
    schedule, model = Schedule(), dict[object, float]()
    for what, service, number in steps:
        if what == "plan":
            schedule.plan(service, number)  # type: ignore[arg-type]
            model[service] = number
        elif what == "drop":
            schedule.drop(service)  # type: ignore[arg-type]
            model.pop(service, None)
        else:
            taken = schedule.take(number)
            due = [moment for moment in model.values() if moment <= number and moment < math.inf]
            assert (taken is None) == (not due)
            if taken is not None:
                assert model[taken] == min(due)
                model[taken] = math.inf
        assert schedule.next() == min(model.values(), default=math.inf)
        assert set(schedule.keys()) == set(model)
