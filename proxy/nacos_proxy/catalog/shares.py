"""Limits how much of a bounded resource each client may hold, so that a few cannot take all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Shares(Generic[K]):
    """No holder gets more of `capacity` units than are still free (a dynamic threshold, as in switch buffers).

    One holder alone gets half, the next half of the rest, and so on. If `n` holders take turns, each gets 1/(n + 1).
    So a new holder always finds room.
    """

    def __init__(self, capacity: int, holders: Iterable[K] = ()) -> None:
        """`holders` have one unit each already."""
        self._capacity = capacity
        self._held = Counter(holders)
        self.total = self._held.total()

    def held(self, holder: K) -> int:
        return self._held[holder]

    def room(self, holder: K, units: int = 1) -> bool:
        """Whether the holder may take that many more."""
        return self._held[holder] + units <= self._capacity - self.total

    def take(self, holder: K, units: int = 1) -> None:
        self._held[holder] += units
        self.total += units

    def give_back(self, holder: K, units: int = 1) -> None:
        self._held[holder] -= units
        self.total -= units
        if not self._held[holder]:
            del self._held[holder]

    def __repr__(self) -> str:
        return f"<Shares {self.total} of {self._capacity}, {len(self._held)} holders>"
