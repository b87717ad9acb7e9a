"""Pushes lists to subscriptions: encoded once for all sessions, spread over turns of the event loop, repeated if lost.

A subscription that waits for its turn, or whose session takes no more bytes, gets the newest state when it is its turn.
So several changes make one push, and a slow session costs nothing but its place in the queue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cachetools import LRUCache

from nacos_proxy.model.services import Snapshot
from nacos_proxy.runtime import Supervisor, in_turns
from nacos_proxy.wire.nacos.base import ReadService, ServiceView
from nacos_proxy.wire.nacos.grpc.payload import write_payload
from nacos_proxy.wire.nacos.grpc.server import encode_info
from nacos_proxy.wire.nacos.grpc.stream import write_prepared_notify

_OVERHEAD = 500  # bytes of a prepared message beside its own


@dataclass(frozen=True, slots=True)
class PushesPolicy:
    """`turn` subscriptions are served before other tasks run. `prepared`: bytes of messages that are kept.

    A push is repeated `repeat` seconds after it was not acknowledged for `ack` seconds, as real servers do
    (nacos-grpc.md 6).
    """

    turn: int = 20
    ack: float = 5.0
    repeat: float = 1.0
    prepared: int = 16 << 20


class Subscriber(Protocol):
    """A subscription, as its pushes see it."""

    def push(self, *, anew: bool) -> bool:
        """Sends the current list; `anew`: under an id that no session has got yet. Returns whether it was sent."""
        ...


class _Prepared(NamedTuple):
    snapshot: Snapshot
    name: str
    message: bytes
    size: int


class PreparedMessages:
    """Messages that show the current snapshot of a service, each encoded once. Those of earlier ones are dropped."""

    def __init__(self, max_bytes: int) -> None:
        self._kept: LRUCache[Hashable, _Prepared] = LRUCache(max_bytes, getsizeof=lambda kept: kept.size)
        self._names = 0

    def answer(self, request: Hashable, snapshot: Snapshot, write: Callable[[], bytes]) -> bytes:
        """The answer to a query."""
        return self._of(request, snapshot, lambda _: write()).message

    def push(self, read: ReadService, snapshot: Snapshot, *, other_than: str = "") -> tuple[str, bytes]:
        """The request id of a push and its message, which are the same for all sessions.

        `other_than`: the id that the session got last. So a repeat has a new one, which is shared, too.
        """
        kept = self._kept.get(read)
        if kept is not None and kept.name == other_than:
            self._kept.pop(read)

        def write(name: str) -> bytes:
            view = ServiceView(snapshot, snapshot.select(read.cluster_set))
            return write_payload(write_prepared_notify(name, encode_info(view, read.clusters)))

        made = self._of(read, snapshot, write)
        return made.name, made.message

    def _of(self, slot: Hashable, snapshot: Snapshot, write: Callable[[str], bytes]) -> _Prepared:
        known = self._kept.get(slot)
        if known is not None and known.snapshot is snapshot:
            return known
        self._names += 1
        name = str(self._names)
        message = write(name)
        self._kept.pop(slot, None)
        made = _Prepared(snapshot, name, message, _OVERHEAD + 2 * len(message))  # the slot repeats parts of it
        if made.size <= self._kept.maxsize:
            self._kept[slot] = made
        return made


class Pushes:
    """The subscriptions that wait for a push, and those that wait for its acknowledgement.

    `counts`: pushes `sent`, and those whose acknowledgement was `late`.
    """

    def __init__(self, supervisor: Supervisor, now: Callable[[], float], policy: PushesPolicy) -> None:
        self.counts: Counter[str] = Counter(sent=0, late=0)
        self.prepared = PreparedMessages(policy.prepared)
        self._supervisor = supervisor
        self._now = now
        self._policy = policy
        self._waiting: dict[Subscriber, bool] = {}  # whether it gets a push that it has got already
        self._running = False
        self._unacknowledged: dict[Subscriber, float] = {}  # in the order of their time-outs
        self._repeats: dict[Subscriber, float] = {}  # in the order of their times

    def add(self, subscriber: Subscriber) -> None:
        """It gets the current list, in its turn."""
        self._wait(subscriber, anew=False)

    def _wait(self, subscriber: Subscriber, *, anew: bool) -> None:
        self._waiting[subscriber] = anew or self._waiting.get(subscriber, False)
        if not self._running:
            self._running = True
            self._supervisor.once(self._run(), name="pushes")

    async def _run(self) -> None:
        try:
            while self._waiting:
                turn, self._waiting = list(self._waiting.items()), {}
                async for subscriber, anew in in_turns(turn, self._policy.turn):
                    self._supervisor.call("pushes", self._push, subscriber, anew)
        finally:
            self._running = False

    def _push(self, subscriber: Subscriber, anew: bool) -> None:
        if subscriber.push(anew=anew):
            self.forget(subscriber)
            self.counts["sent"] += 1
            self._unacknowledged[subscriber] = self._now() + self._policy.ack

    def acknowledged(self, subscriber: Subscriber) -> None:
        """Its last push has arrived. If it waits for its turn again, then because of a later change: it stays there."""
        self._unacknowledged.pop(subscriber, None)
        self._repeats.pop(subscriber, None)

    def forget(self, subscriber: Subscriber) -> None:
        """It has ended, or got the current list."""
        self.acknowledged(subscriber)
        self._waiting.pop(subscriber, None)

    def tick(self) -> None:
        """Repeats what was not acknowledged in time."""
        now = self._now()
        for subscriber in _due(self._unacknowledged, now):
            self.counts["late"] += 1
            self._repeats[subscriber] = now + self._policy.repeat
        for subscriber in _due(self._repeats, now):
            self._wait(subscriber, anew=True)

    def shift(self, gap: float) -> None:
        """This process stood still for `gap` seconds, in which it heard no acknowledgement."""
        for moments in (self._unacknowledged, self._repeats):
            moments.update({subscriber: moment + gap for subscriber, moment in moments.items()})

    def __repr__(self) -> str:
        counts = f"{len(self._waiting)} waiting, {len(self._unacknowledged)} unacknowledged"
        return f"<Pushes {counts}, {len(self._repeats)} to repeat>"


def _due(moments: dict[Subscriber, float], now: float) -> list[Subscriber]:
    """Removes and returns those whose moment has come."""
    due: list[Subscriber] = []
    for subscriber, moment in moments.items():
        if moment > now:
            break
        due.append(subscriber)
    for subscriber in due:
        del moments[subscriber]
    return due
