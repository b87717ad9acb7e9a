"""The schedule: when something is due again for each key: a fetch of a service, a beat of an instance."""

from __future__ import annotations

import heapq
import math
from collections.abc import KeysView
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound="tuple[Any, ...]")

_SLACK = 64  # replaced times that the heap may hold, in addition to one for each key


class Schedule(Generic[K]):
    """One due time for each key. `changes` counts the keys that were added or dropped.

    A replaced time stays in the heap until it passes, or until too many of them exist. So the number of keys bounds
    the heap, however often they are rescheduled.
    """

    def __init__(self) -> None:
        self.changes = 0
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, K]] = []

    def put(self, key: K, due: float) -> None:
        """Sets when a key is due; with infinity it stays scheduled, but is never due."""
        known = self._due.get(key)
        if known is None:
            self.changes += 1
        elif known == due:
            return
        self._due[key] = due
        if due < math.inf:
            heapq.heappush(self._heap, (due, key))
            if len(self._heap) > _SLACK + 2 * len(self._due):
                self._heap = [(at, known) for known, at in self._due.items() if at < math.inf]
                heapq.heapify(self._heap)

    def drop(self, key: K) -> None:
        """Removes a key; no effect if it is not scheduled."""
        if self._due.pop(key, None) is not None:
            self.changes += 1

    def take(self, now: float) -> K | None:
        """The most overdue key, whose due time becomes infinity; None if none is due."""
        if self.next_due() > now:
            return None
        _, key = heapq.heappop(self._heap)
        self._due[key] = math.inf
        return key

    def next_due(self) -> float:
        """When the next key is due, infinity for never."""
        heap = self._heap
        while heap and self._due.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else math.inf

    def due_at(self, key: K) -> float:
        """When a key is due; infinity if it has no due time or is not scheduled."""
        return self._due.get(key, math.inf)

    def keys(self) -> KeysView[K]:
        """All scheduled keys, including those without a due time."""
        return self._due.keys()

    def __contains__(self, key: K) -> bool:
        return key in self._due

    def __len__(self) -> int:
        return len(self._due)

    def __repr__(self) -> str:
        return f"<Schedule {len(self)} keys, {len(self._heap)} times>"
