"""Publishes changes to readers: event ids, history, resuming, mailboxes.

A change is published once and gets one id, `<epoch>-<n>`. A reader that keeps up gets every event. A slow one has at
most one pending change per service, into which newer changes are merged. So its memory is bounded by the number of
services; it may miss a state that came and went, but always gets the last state of each service.

A reader resumes after an id, so an id promises that the reader got everything up to it. In the middle of what a slow
reader is sent, that does not hold: if changes 1 and 3 of one service were merged, change 2 of another service goes out
before them. Such an event gets an id of an unknown epoch, so that a reader resuming there starts from new snapshots.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal, TypeVar

from cachetools import LRUCache

from nacos_proxy.model.services import Change, ServiceKey, merge

UpstreamState = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class HubPolicy:
    """How much is kept: `history` events with at most `hosts` instances in all, and `encoded` bytes of encodings."""

    history: int = 4096
    hosts: int = 100_000
    encoded: int = 16 << 20


@dataclass(frozen=True, slots=True)
class Notice:
    """The upstream was lost or is back. It has its place in the stream among the changes.

    Of several that wait for a reader only the last is sent: it is the whole state, and a repeated one does no harm.
    """

    state: UpstreamState
    reason: str


@dataclass(frozen=True, slots=True)
class Event:
    """A change or a notice with its number in the stream.

    `first` is the number of the first change that was merged into it. `resumable`: a reader that got this event has
    got everything up to its number.
    """

    number: int
    body: Change | Notice
    first: int
    resumable: bool = True


@dataclass(frozen=True, slots=True)
class Filter:
    """What a reader listens to: services by key, or all of a (namespace, group) (`everything`), and which instances."""

    keys: frozenset[ServiceKey] = frozenset()
    everything: tuple[str, str] | None = None
    clusters: frozenset[str] = frozenset()
    healthy_only: bool = False

    def wants(self, key: ServiceKey) -> bool:
        return key in self.keys or self.everything == (key.namespace, key.group)


class Mailbox:
    """One reader's pending events. `wake` is called when an event arrives in an empty mailbox; it must not block.

    A reader that keeps up, and has taken all that was pending, may attach a sink: events then go there at once.
    """

    def __init__(self, interest: Filter, wake: Callable[[], None]) -> None:
        self.filter = interest
        self.client = ""  # the reader's address
        self.reset = False
        self.sink: Callable[[Event], None] | None = None  # set by `attach` and `detach` only
        self._wake = wake
        self._pending: dict[ServiceKey | None, Event] = {}
        self._undone: tuple[float, int] = (math.inf, 0)  # from the first change that was undone here to what undid it

    def attach(self, sink: Callable[[Event], None]) -> None:
        """The hub hands each event to `sink` from now on, and nothing is kept here."""
        self.sink = sink

    def detach(self) -> None:
        """Events are kept here again; no effect without a sink."""
        self.sink = None

    def put(self, event: Event) -> None:
        """Adds an event. A change is merged into one of the same service that waits here."""
        empty = not self._pending
        key = event.body.key if isinstance(event.body, Change) else None
        waiting = self._pending.pop(key, None)
        if waiting is not None and isinstance(event.body, Change) and isinstance(waiting.body, Change):
            merged = merge(waiting.body, event.body)
            if merged is None:
                self._undone = (min(self._undone[0], waiting.first), event.number)
                return
            event = Event(event.number, merged, waiting.first)
        self._pending[key] = event
        if empty:
            self._wake()

    def drop(self, key: ServiceKey) -> None:
        """Removes a pending change, because its reader gets a snapshot of the service instead."""
        self._pending.pop(key, None)

    def take(self) -> list[Event]:
        """Removes all pending events, in the order of their numbers."""
        if len(self._pending) == 1 and not self._undone[1]:  # the common case of a reader that keeps up
            events = list(self._pending.values())
            self._pending.clear()
            return events
        events = sorted(self._pending.values(), key=lambda event: event.number)
        undone, self._undone = self._undone, (math.inf, 0)
        self._pending.clear()
        return events if len(events) < 2 and not undone[1] else _marked(events, undone)

    def __len__(self) -> int:
        return len(self._pending)


def _marked(events: list[Event], undone: tuple[float, int]) -> list[Event]:
    """Marks the events after which a change with a lower number follows, or was undone, as not resumable."""
    marked: list[Event] = []
    oldest = math.inf
    for event in reversed(events):
        if event.number < undone[1]:
            oldest = min(oldest, undone[0])
        marked.append(event if event.number < oldest else replace(event, resumable=False))
        oldest = min(oldest, event.first)
    return marked[::-1]


@dataclass(slots=True)
class _Readers:
    by_key: dict[ServiceKey, dict[Mailbox, None]] = field(default_factory=lambda: {})
    everything: dict[tuple[str, str], dict[Mailbox, None]] = field(default_factory=lambda: {})
    all: dict[Mailbox, None] = field(default_factory=lambda: {})


class Hub:
    """Numbers events and delivers them. `epoch` tells the ids of this run from those of another."""

    def __init__(self, policy: HubPolicy, epoch: str) -> None:
        self.epoch = epoch
        self.published = 0
        self._policy = policy
        self._history: deque[Event] = deque()
        self._hosts = 0
        self._readers = _Readers()
        self._encoded: LRUCache[Hashable, bytes] = LRUCache(policy.encoded, getsizeof=_size)

    def id_of(self, event: Event) -> str:
        """The id from which a reader of this event resumes; of an unknown epoch if the event is not resumable."""
        return f"{self.epoch}{'' if event.resumable else '.part'}-{event.number}"

    @property
    def last_id(self) -> str:
        """The id for a snapshot taken now: the stream continues after it."""
        return f"{self.epoch}-{self.published}"

    def publish(self, body: Change | Notice) -> Event:
        """Numbers it, keeps it in the history, and delivers it to every mailbox that wants it."""
        self.published += 1
        event = Event(self.published, body, self.published)
        self._remember(event)
        for mailbox in list(self._audience(body)):
            (mailbox.sink or mailbox.put)(event)
        return event

    def _remember(self, event: Event) -> None:
        history = self._history
        history.append(event)
        self._hosts += _hosts(event)
        while history and (len(history) > self._policy.history or self._hosts > self._policy.hosts):
            self._hosts -= _hosts(history.popleft())

    def _audience(self, body: Change | Notice) -> Iterable[Mailbox]:
        if isinstance(body, Notice):
            return self._readers.all
        listeners = self._readers.by_key.get(body.key)
        every = self._readers.everything.get((body.key.namespace, body.key.group))
        return {**listeners, **every} if listeners and every else listeners or every or ()

    def subscribe(self, interest: Filter, wake: Callable[[], None], after: str = "") -> Mailbox:
        """A mailbox that gets events from now on, filled with those after the id `after`.

        If these are not known any more (another epoch, or older than the history), the mailbox is marked `reset`: its
        reader must start from new snapshots.
        """
        mailbox = Mailbox(interest, wake)
        if after:
            missed = self._since(after)
            mailbox.reset = missed is None
            for event in missed or ():
                if isinstance(event.body, Notice) or interest.wants(event.body.key):
                    mailbox.put(event)
        self._readers.all[mailbox] = None
        for key in interest.keys:
            self._readers.by_key.setdefault(key, {})[mailbox] = None
        if interest.everything is not None:
            self._readers.everything.setdefault(interest.everything, {})[mailbox] = None
        return mailbox

    def unsubscribe(self, mailbox: Mailbox) -> bool:
        """Stops delivering to a mailbox. False if it was unsubscribed before."""
        if mailbox not in self._readers.all:
            return False
        del self._readers.all[mailbox]
        for key in mailbox.filter.keys:
            _discard(self._readers.by_key, key, mailbox)
        if mailbox.filter.everything is not None:
            _discard(self._readers.everything, mailbox.filter.everything, mailbox)
        return True

    def _since(self, after: str) -> list[Event] | None:
        epoch, _, text = after.rpartition("-")
        if epoch != self.epoch or not text.isdecimal() or int(text) > self.published:
            return None
        missed = self.published - int(text)
        kept = len(self._history)
        return list(islice(self._history, kept - missed, None)) if missed <= kept else None

    def encoded(self, event: Event, variant: Hashable, encode: Callable[[Event], bytes]) -> bytes:
        """The event's bytes for a variant, encoded once for all readers that see the same change.

        Readers with the same first and last number got the same changes of a service, so they see the same merged one.
        """
        slot = (event.number, event.first, event.resumable, variant)
        data = self._encoded.get(slot)
        if data is None:
            data = encode(event)
            if _size(data) <= self._policy.encoded:
                self._encoded[slot] = data
        return data

    @property
    def readers(self) -> int:
        return len(self._readers.all)

    def __repr__(self) -> str:
        return f"<Hub {self.last_id}, {self.readers} readers, {len(self._history)} kept>"


def _hosts(event: Event) -> int:
    return 1 + len(event.body.after.instances) if isinstance(event.body, Change) else 1


def _size(data: bytes) -> int:
    return 200 + len(data)  # with the overhead of an entry


K = TypeVar("K")


def _discard(index: dict[K, dict[Mailbox, None]], key: K, mailbox: Mailbox) -> None:
    mailboxes = index.get(key, {})
    mailboxes.pop(mailbox, None)
    if not mailboxes:
        index.pop(key, None)
