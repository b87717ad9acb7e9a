"""Whose turn it is among what is due: clients take turns, and within a client its lanes do. Polls and pushes use it.

Not for: when something is due (`schedule`), how much of it is done at once (`poller`, `udp`). A lane is one reader of
a client, or whatever else is to have a share of its own. What is due waits in one lane and moves up in the order in
which it came; so who listens to thousands of services delays itself, and a service that several listen to waits where
it waits least.
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


def room(held: int, in_all: int, most: int) -> bool:
    """Whether somebody who holds `held` of `most` places, of which `in_all` are taken, may have another.

    Nobody has more than it leaves free (a dynamic threshold, as switches share their buffers): one alone gets half, the
    next half of the rest, and so on; where all take in turn, `n` of them have an `n + 1`th part each. So who comes
    finds room, whatever a few others hold.
    """
    return held < most - in_all


class Turns(Generic[K]):
    """What waits for its turn, services among it. Clients and lanes are here only while something waits in them."""

    def __init__(self) -> None:
        self._clients: OrderedDict[Hashable, OrderedDict[Hashable, OrderedDict[K, float]]] = OrderedDict()
        self._lanes: dict[K, Lane] = {}

    def put(self, key: K, due: float, lanes: Iterable[Lane]) -> None:
        """It waits since `due` (seconds) in the emptiest of these lanes; harmless where it waits already."""
        if key in self._lanes:
            return
        client, lane = self._lanes[key] = min(islice(lanes, _LOOKED_AT), key=self._ahead)
        self._clients.setdefault(client, OrderedDict()).setdefault(lane, OrderedDict())[key] = due

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
        return key, self._lanes.pop(key)

    def drop(self, key: K) -> None:
        """It does not wait any more; harmless where it did not."""
        client, lane = self._lanes.pop(key, (None, None))
        lanes = self._clients.get(client)
        if lanes is None:
            return
        del lanes[lane][key]
        if not lanes[lane]:
            del lanes[lane]
        if not lanes:
            del self._clients[client]

    def oldest(self, but: Hashable) -> float:
        """Since when the one waits that waits longest, infinity for none; lanes of the name `but` do not count."""
        queues = (queue for lanes in self._clients.values() for lane, queue in lanes.items() if lane != but)
        return min((next(iter(queue.values())) for queue in queues), default=math.inf)

    def __len__(self) -> int:
        return len(self._lanes)
