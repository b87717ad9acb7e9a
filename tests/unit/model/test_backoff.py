from __future__ import annotations

import pytest

from nacos_proxy.model.backoff import Backoff


def test_backoff_delay_grows_by_the_factor_up_to_the_maximum() -> None:
    backoff = Backoff(initial=0.5, maximum=5.0)
    assert [backoff.delay(retry) for retry in range(6)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert Backoff(initial=1.0, maximum=50.0, factor=3.0).delay(3) == 27.0


def test_backoff_delay_never_exceeds_a_maximum_below_the_initial_delay() -> None:
    assert Backoff(initial=10.0, maximum=4.0).delay(0) == 4.0


def test_backoff_delay_accepts_any_number_of_retries() -> None:
    assert Backoff(initial=0.001, maximum=60.0).delay(10_000_000) == 60.0


@pytest.mark.parametrize(("drawn", "delay"), [(0.0, 5.0), (0.5, 7.5), (1.0, 10.0)])
def test_backoff_jitter_is_the_random_share_of_the_delay(drawn: float, delay: float) -> None:
    assert Backoff(initial=10.0, maximum=60.0, jitter=0.5).delay(0, lambda: drawn) == delay


def test_backoff_delay_without_rng_has_no_jitter() -> None:
    assert Backoff(initial=10.0, maximum=60.0, jitter=0.5).delay(0) == 10.0
