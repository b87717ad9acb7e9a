"""When each service is to be asked for again. Not for: who is worth asking for, or how often (`cache`).

A service has one moment; planning it anew replaces that. What was replaced stays in the heap until its time comes, or
until there is more of it than of what counts: so the heap is bounded by the services, however often they are planned.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import KeysView

from nacos_proxy.model.services import ServiceKey

_SPARE = 64


class Schedule:
    """Services by the moment at which they are due. `changes` counts those that came and went."""

    def __init__(self) -> None:
        self.changes = 0
        self._moments: dict[ServiceKey, float] = {}
        self._heap: list[tuple[float, ServiceKey]] = []

    def plan(self, key: ServiceKey, moment: float) -> None:
        """Due at `moment` and no other; with infinity it has a place here and waits to be planned."""
        known = self._moments.get(key)
        if known is None:
            self.changes += 1
        elif known == moment:
            return
        self._moments[key] = moment
        if moment < math.inf:
            heapq.heappush(self._heap, (moment, key))
            if len(self._heap) > _SPARE + 2 * len(self._moments):
                self._heap = [(at, planned) for planned, at in self._moments.items() if at < math.inf]
                heapq.heapify(self._heap)

    def drop(self, key: ServiceKey) -> None:
        """No longer to be asked for; harmless where it is not planned."""
        if self._moments.pop(key, None) is not None:
            self.changes += 1

    def take(self, now: float) -> ServiceKey | None:
        """The one that is most overdue, which then waits to be planned; None where none is due."""
        if self.next() > now:
            return None
        _, key = heapq.heappop(self._heap)
        self._moments[key] = math.inf
        return key

    def next(self) -> float:
        """When the next one is due, infinity for never."""
        heap = self._heap
        while heap and self._moments.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else math.inf

    def moment(self, key: ServiceKey) -> float:
        """When it is due, infinity where it waits or is not planned."""
        return self._moments.get(key, math.inf)

    def keys(self) -> KeysView[ServiceKey]:
        """All that have a place here, due or waiting."""
        return self._moments.keys()

    def __contains__(self, key: ServiceKey) -> bool:
        return key in self._moments

    def __len__(self) -> int:
        return len(self._moments)

    def __repr__(self) -> str:
        return f"<Schedule {len(self)} services, {len(self._heap)} moments>"
