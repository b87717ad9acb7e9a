"""Durations in buckets, as a histogram of Prometheus has them. It knows nothing of what was measured."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The upper bounds of the buckets, in seconds; one more bucket has no bound."""


class Histogram:
    """Durations. `seconds`: their sum."""

    __slots__ = ("_numbers", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self._numbers = [0] * (len(BOUNDS) + 1)

    def add(self, seconds: float) -> None:
        self._numbers[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds

    @property
    def count(self) -> int:
        return sum(self._numbers)

    def buckets(self, instant: int = 0) -> Sequence[tuple[str, float]]:
        """For each bound, how many were not longer; `instant` more took no time that anybody measured."""
        names, total = (*map(str, BOUNDS), "+Inf"), instant
        found: list[tuple[str, float]] = []
        for name, number in zip(names, self._numbers, strict=True):
            total += number
            found.append((name, total))
        return found
