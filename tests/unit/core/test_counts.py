"""Counting by outcome."""

from __future__ import annotations

from nacos_proxy.core.counts import Counts


def test_outcomes_are_counted_apart_one_by_one_or_many_at_once() -> None:
    counts = Counts()
    Counts.add(counts.reads, "hit")
    Counts.add(counts.reads, "hit", 41)
    Counts.add(counts.reads, "miss")
    assert (counts.reads, counts.writes) == ({"hit": 42, "miss": 1}, {})
