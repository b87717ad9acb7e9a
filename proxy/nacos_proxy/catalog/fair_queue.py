"""A fair queue: clients take turns, and so do the lanes of a client. Polls and UDP pushes use it.

A lane is one stream of a client, or anything else with a share of its own. It is first in, first out. A key waits in
the shortest of its lanes. So a client that listens to thousands of services delays only itself, and a service with
several listeners has the shortest wait of them all. A new listener adds a lane to a waiting key, which keeps its place
in the others.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from itertools import islice
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
Lane = tuple[Hashable, Hashable]  # a client, and the name of one of its lanes

_MAX_COMPARED = 1_000  # lanes of one key; to compare more of them costs more than it gains
_MAX_ADDED = 8  # lanes that a waiting key may get in addition


class FairQueue(Generic[K]):
    """Keys that wait for their turn. A client or lane without waiting keys takes no memory."""

    def __init__(self) -> None:
        self._clients: OrderedDict[Hashable, OrderedDict[Hashable, OrderedDict[K, float]]] = OrderedDict()
        self._lanes: dict[K, list[Lane]] = {}

    def put(self, key: K, due: float, lanes: Iterable[Lane]) -> None:
        """Queues a key, due since `due` (seconds), in the shortest of these lanes. No effect if it waits already."""
        if key in self._lanes:
            return
        lane = min(islice(lanes, _MAX_COMPARED), key=self._turns_ahead)
        self._lanes[key] = [lane]
        self._add(key, lane, due)

    def add_lane(self, key: K, lane: Lane) -> bool:
        """Adds a lane to a waiting key. Returns whether the key waits."""
        lanes = self._lanes.get(key)
        if lanes is None:
            return False
        if lane not in lanes and len(lanes) <= _MAX_ADDED:
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

    def _turns_ahead(self, lane: Lane) -> int:
        """How many turns the lane's client takes until the end of this lane."""
        lanes = self._clients.get(lane[0])
        if lanes is None:
            return 0
        queue = lanes.get(lane[1], ())
        return (len(queue) + 1) * len(lanes)

    def take(self) -> tuple[K, Lane] | None:
        """Removes the key whose turn it is, with the lane that it waited in; None if nothing waits."""
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

    def oldest(self, but: Hashable) -> float:
        """The earliest `due` of all waiting keys, infinity for none; lanes named `but` do not count."""
        queues = (queue for lanes in self._clients.values() for lane, queue in lanes.items() if lane != but)
        return min((next(iter(queue.values())) for queue in queues), default=math.inf)

    def __len__(self) -> int:
        return len(self._lanes)
