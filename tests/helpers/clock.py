"""A clock that moves only when the test moves it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Coroutine
from typing import Any

from nacos_proxy.runtime import spawn


class FakeClock:
    """A `Clock` for tests. `advance` wakes sleepers in order and lets the loop run in between."""

    def __init__(self, now: float = 1000.0, wall: float = 1_795_519_064.0) -> None:
        self._now = now
        self._offset = wall - now
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._now + self._offset

    async def sleep_until(self, moment: float) -> None:
        if moment <= self._now:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (moment, next(self._order), future))
        await future

    async def advance(self, seconds: float) -> None:
        """Moves time forward and wakes each sleeper at its moment. Returns when nothing more can run."""
        end = self._now + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            moment, _, future = heapq.heappop(self._sleepers)
            if future.done():
                continue
            self._now = max(self._now, moment)
            future.set_result(None)
            await settle()
        self._now = end
        await settle()

    @property
    def next(self) -> float:
        """When the next sleeper wakes; infinity if nobody sleeps."""
        return min((moment for moment, _, future in self._sleepers if not future.done()), default=math.inf)

    def jump(self, seconds: float) -> None:
        """Moves time without running anything, as for a suspended process: sleepers wake late."""
        self._now += seconds

    def oversleep(self, seconds: float) -> None:
        """Moves the wall clock but not the monotonic clock, as when the host sleeps."""
        self._offset += seconds


async def settle(rounds: int = 20) -> None:
    """Lets the loop run until tasks that wait only for each other are done."""
    for _ in range(rounds):
        await asyncio.sleep(0)


async def turns_during(asking: Coroutine[Any, Any, object]) -> int:
    """How many turns of the loop other tasks get until `asking` is done."""
    task, turns = spawn(asking, name="asking"), 0
    while not task.done():
        await asyncio.sleep(0)
        turns += 1
    return turns
