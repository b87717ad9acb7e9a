"""How much of what is bounded each of several holds. Not for: what is done one after the other (`turns`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Shares(Generic[K]):
    """Of `most` units nobody has more than was free before (a dynamic threshold, as switches share their buffers).

    One alone gets half, the next half of the rest, and so on; where all take in turn, `n` of them have an `n + 1`th
    part each. So who comes finds room, whatever a few others hold.
    """

    def __init__(self, most: int, holders: Iterable[K] = ()) -> None:
        """`holders` have a unit each already."""
        self._most = most
        self._held = Counter(holders)
        self.total = self._held.total()

    def held(self, who: K) -> int:
        return self._held[who]

    def room(self, who: K, units: int = 1) -> bool:
        """Whether so many more are within the share."""
        return self._held[who] + units <= self._most - self.total

    def take(self, who: K, units: int = 1) -> None:
        self._held[who] += units
        self.total += units

    def give_back(self, who: K, units: int = 1) -> None:
        """Who has nothing left is forgotten."""
        self._held[who] -= units
        self.total -= units
        if not self._held[who]:
            del self._held[who]

    def __repr__(self) -> str:
        return f"<Shares {self.total} of {self._most}, held by {len(self._held)}>"
