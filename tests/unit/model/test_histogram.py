"""Durations in buckets."""

from __future__ import annotations

from nacos_proxy.model.histogram import BOUNDS, Histogram


def test_buckets_are_cumulative_and_include_their_bound() -> None:
    durations = Histogram()
    for seconds in (0.0, 0.001, 0.0011, 10.0, 99.0):
        durations.add(seconds)
    buckets = dict(durations.buckets())
    assert [buckets[name] for name in ("0.001", "0.0025", "5.0", "10.0", "+Inf")] == [2, 3, 3, 4, 5]
    assert (len(buckets), durations.count) == (len(BOUNDS) + 1, 5)
    assert round(durations.seconds, 4) == 109.0021


def test_buckets_put_instant_ones_into_the_lowest() -> None:
    assert set(dict(Histogram().buckets(instant=3)).values()) == {3}
