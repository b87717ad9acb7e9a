"""Whose turn it is among what is due: clients take turns, and within a client its lanes do. Polls and pushes use it.

Not for: when something is due (`schedule`), how much of it is done at once (`poller`, `udp`). A lane is one reader of
a client, or whatever else is to have a share of its own. What is due waits in one lane, the emptiest of those that it
may wait in, and moves up in the order in which it came; so who listens to thousands of services delays itself, and a
service that several listen to waits where it waits least. Who comes to it meanwhile adds a lane and takes none away.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from itertools import islice
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
Lane = tuple[Hashable, Hashable]  # a client, and one of its lanes

_LOOKED_AT = 1_000  # lanes of one service: more would cost more than they bring
_JOINED = 8  # lanes that are added while it waits


class Turns(Generic[K]):
    """What waits for its turn, services among it. Clients and lanes are here only while something waits in them."""

    def __init__(self) -> None:
        self._clients: OrderedDict[Hashable, OrderedDict[Hashable, OrderedDict[K, float]]] = OrderedDict()
        self._lanes: dict[K, list[Lane]] = {}

    def put(self, key: K, due: float, lanes: Iterable[Lane]) -> None:
        """It waits since `due` (seconds) in the emptiest of these lanes; harmless where it waits already."""
        if key in self._lanes:
            return
        lane = min(islice(lanes, _LOOKED_AT), key=self._ahead)
        self._lanes[key] = [lane]
        self._add(key, lane, due)

    def join(self, key: K, lane: Lane) -> bool:
        """Whether it waits already; then it waits in this lane as well, and keeps its place in the others."""
        lanes = self._lanes.get(key)
        if lanes is None:
            return False
        if lane not in lanes and len(lanes) <= _JOINED:
            client, name = lanes[0]
            self._add(key, lane, self._clients[client][name][key])
            lanes.append(lane)
        return True

    def _add(self, key: K, lane: Lane, due: float) -> None:
        self._clients.setdefault(lane[0], OrderedDict()).setdefault(lane[1], OrderedDict())[key] = due

    def _remove(self, key: K, lane: Lane) -> None:
        client, name = lane
        lanes = self._clients[client]
        del lanes[name][key]
        if not lanes[name]:
            del lanes[name]
        if not lanes:
            del self._clients[client]

    def _ahead(self, lane: Lane) -> int:
        """How many turns of its client come before the end of a lane."""
        lanes = self._clients.get(lane[0])
        if lanes is None:
            return 0
        queue = lanes.get(lane[1], ())
        return (len(queue) + 1) * len(lanes)

    def take(self) -> tuple[K, Lane] | None:
        """The one whose turn it is, and the lane that it waited in; None where none waits."""
        if not self._clients:
            return None
        client, lanes = self._clients.popitem(last=False)
        lane, queue = lanes.popitem(last=False)
        key, _ = queue.popitem(last=False)
        if queue:
            lanes[lane] = queue
        if lanes:
            self._clients[client] = lanes
        for other in self._lanes.pop(key):
            if other != (client, lane):
                self._remove(key, other)
        return key, (client, lane)

    def drop(self, key: K) -> None:
        """It does not wait any more; harmless where it did not."""
        for lane in self._lanes.pop(key, ()):
            self._remove(key, lane)

    def oldest(self, but: Hashable) -> float:
        """Since when the one waits that waits longest, infinity for none; lanes of the name `but` do not count."""
        queues = (queue for lanes in self._clients.values() for lane, queue in lanes.items() if lane != but)
        return min((next(iter(queue.values())) for queue in queues), default=math.inf)

    def __len__(self) -> int:
        return len(self._lanes)
