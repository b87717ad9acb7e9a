"""When the upstream counts as down, and when it is probed."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.catalog.circuit_breaker import Breaker, BreakerPolicy

POLICY = BreakerPolicy(failures=3, max_delay=5.0)


def lost(now: float = 100.0, policy: BreakerPolicy = POLICY) -> Breaker:
    breaker = Breaker(policy)
    for _ in range(policy.failures):
        breaker.failed(now, "refused")
    return breaker


def test_breaker_failed_opens_once_after_consecutive_failures() -> None:
    breaker = Breaker(POLICY)
    assert [breaker.failed(100.0 + n, "refused") for n in range(5)] == [False, False, True, False, False]
    assert (breaker.up, breaker.since, breaker.reason) == (False, 102.0, "refused")


def test_breaker_succeeded_resets_the_count_of_failures() -> None:
    breaker = Breaker(POLICY)
    for _ in range(10):
        assert not breaker.failed(100.0, "refused")
        assert not breaker.failed(100.0, "refused")
        assert not breaker.succeeded(100.0)
    assert breaker.up


def test_breaker_failed_counts_timeouts_only_if_nothing_is_answered() -> None:
    breaker = Breaker(POLICY)
    breaker.succeeded(99.5)
    for second in range(60):  # of ten calls each second one is answered
        for tenth in range(1, 10):
            assert not breaker.failed(100.0 + second + tenth / 10, "no answer in time", slow=True)
        breaker.succeeded(101.0 + second)
    assert (breaker.up, breaker.failures) == (True, 0)
    assert not breaker.failed(164.9, "no answer in time", slow=True)
    assert [breaker.failed(165.0, "no answer in time", slow=True) for _ in range(3)] == [False, False, True]


def test_breaker_failed_counts_refused_connections_at_once() -> None:
    breaker = Breaker(POLICY)
    breaker.succeeded(100.0)
    assert [breaker.failed(100.1, "refused") for _ in range(3)] == [False, False, True]


def test_breaker_succeeded_closes_once() -> None:
    breaker = lost()
    assert [breaker.succeeded(101.0), breaker.succeeded(102.0)] == [True, False]
    assert (breaker.up, breaker.since, breaker.reason, breaker.failures) == (True, 101.0, "", 0)


def test_breaker_allows_everything_while_up() -> None:
    breaker = Breaker(POLICY)
    breaker.call_started(100.0)
    breaker.failed(100.0, "refused")
    assert breaker.allows(100.0)


def test_breaker_allows_one_probe_when_it_is_due() -> None:
    breaker = lost(100.0)
    assert not breaker.allows(100.49)
    assert breaker.allows(100.5)
    breaker.call_started(100.5)
    assert not breaker.allows(100.5)


def test_breaker_probes_back_off_up_to_the_maximum() -> None:
    breaker, now, pauses = lost(0.0), 0.0, []
    for _ in range(7):
        moment = next(n / 8 for n in range(int(now * 8), 10_000) if breaker.allows(n / 8))
        pauses.append(moment - now)
        now = moment
        breaker.call_started(now)
        breaker.failed(now, "refused")
    assert pauses == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]


def test_breaker_failed_many_times_at_once_does_not_delay_the_first_probe() -> None:
    breaker = Breaker(POLICY)
    assert [breaker.failed(100.0, "refused") for _ in range(100)].count(True) == 1
    assert breaker.allows(100.5)


def test_breaker_failed_while_down_does_not_put_off_the_probe() -> None:
    breaker = lost(100.0)
    for tenth in range(1, 6):
        breaker.failed(100.0 + tenth / 10, "no answer in time")
    assert breaker.allows(100.5)


def test_breaker_probes_start_from_the_first_delay_after_each_loss() -> None:
    breaker = lost(100.0)
    for _ in range(10):
        breaker.call_started(101.0)
    breaker.succeeded(200.0)
    for _ in range(3):
        breaker.failed(300.0, "refused")
    assert (breaker.allows(300.4), breaker.allows(300.5)) == (False, True)


@pytest.mark.parametrize("probes", [1000, 5000])
def test_breaker_stands_any_number_of_probes(probes: int) -> None:
    breaker = lost(0.0)
    for _ in range(probes):
        breaker.call_started(0.0)
    assert breaker.allows(5.0)


@given(st.lists(st.tuples(st.sampled_from(["failed", "succeeded", "probing"]), st.floats(0, 3)), max_size=60))
def test_breaker_transitions_alternate_and_the_next_probe_is_never_far(steps: list[tuple[str, float]]) -> None:
    breaker, now, told = Breaker(POLICY), 0.0, [True]
    for step, passed in steps:
        now += passed
        match step:
            case "failed":
                news = breaker.failed(now, "refused")
            case "succeeded":
                news = breaker.succeeded(now)
            case _:
                breaker.call_started(now)
                news = False
        if news:
            told.append(breaker.up)
        assert told[-1] == breaker.up
        assert breaker.allows(now + POLICY.max_delay)
        assert breaker.allows(math.inf)
    assert all(a != b for a, b in itertools.pairwise(told))
