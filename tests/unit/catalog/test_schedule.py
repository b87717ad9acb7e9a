"""One due time for each service, the most overdue first, in memory bounded by the number of services."""

import math

from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.catalog.schedule import Schedule
from tests.helpers.build import key

A, B, C = key("a"), key("b"), key("c")


def test_schedule_take_returns_the_most_overdue_service() -> None:
    schedule = Schedule()
    for service, due in ((A, 3.0), (B, 1.0), (C, 2.0)):
        schedule.put(service, due)
    assert [schedule.take(2.5) for _ in range(3)] == [B, C, None]
    assert schedule.next_due() == 3.0


def test_schedule_put_replaces_a_due_time_by_an_earlier_or_later_one() -> None:
    schedule = Schedule()
    schedule.put(A, 5.0)
    schedule.put(A, 1.0)
    assert schedule.next_due() == 1.0
    schedule.put(A, 9.0)
    assert (schedule.take(8.9), schedule.take(9.0), schedule.take(99.0)) == (None, A, None)


def test_schedule_take_keeps_the_service_without_a_due_time() -> None:
    schedule = Schedule()
    schedule.put(A, 1.0)
    assert schedule.take(1.0) == A
    assert A in schedule and schedule.due_at(A) == math.inf and schedule.next_due() == math.inf
    schedule.put(A, 1.0)
    assert schedule.take(1.0) == A
    schedule.drop(A)
    schedule.drop(A)
    assert A not in schedule and len(schedule) == 0


def test_schedule_drop_makes_a_service_never_due() -> None:
    schedule = Schedule()
    schedule.put(A, 1.0)
    schedule.drop(A)
    assert schedule.take(2.0) is None
    assert repr(schedule) == "<Schedule 0 keys, 0 times>"


def test_schedule_changes_counts_added_and_dropped_services_only() -> None:
    schedule = Schedule()
    schedule.put(A, 1.0)
    schedule.put(A, 2.0)
    schedule.take(2.0)
    assert schedule.changes == 1
    schedule.drop(A)
    assert schedule.changes == 2
    assert list(schedule.keys()) == []


def test_schedule_put_many_times_takes_bounded_memory() -> None:
    schedule = Schedule()
    for number in range(100_000):
        schedule.put(A, 1e6 + number)
    assert repr(schedule) in {f"<Schedule 1 keys, {n} times>" for n in range(1, 68)}
    assert schedule.take(2e6) == A


STEPS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from([A, B, C]), st.integers(0, 20) | st.just(math.inf)),
    st.tuples(st.just("drop"), st.sampled_from([A, B, C]), st.just(0)),
    st.tuples(st.just("take"), st.just(A), st.integers(0, 20)),
)


@given(st.lists(STEPS, max_size=200))
def test_schedule_behaves_like_a_dict_of_due_times(steps: list[tuple[str, object, float]]) -> None:
    schedule, model = Schedule(), dict[object, float]()
    for what, service, number in steps:
        if what == "put":
            schedule.put(service, number)  # type: ignore[arg-type]
            model[service] = number
        elif what == "drop":
            schedule.drop(service)  # type: ignore[arg-type]
            model.pop(service, None)
        else:
            taken = schedule.take(number)
            due = [due for due in model.values() if due <= number and due < math.inf]
            assert (taken is None) == (not due)
            if taken is not None:
                assert model[taken] == min(due)
                model[taken] = math.inf
        assert schedule.next_due() == min(model.values(), default=math.inf)
        assert set(schedule.keys()) == set(model)
