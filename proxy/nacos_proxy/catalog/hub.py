"""Publishes changes to readers: event ids, history, resuming, mailboxes.

Each published change gets one id, `<epoch>-<n>`. A reader that keeps up gets every event. A slow one has at most one
pending change per service, into which newer changes are merged, so the number of services bounds its memory. It may
miss an intermediate state, but always gets the last state of each service.

A reader resumes after an id, so an id promises that the reader got everything up to it. After a merge this may not
hold: if changes 1 and 3 of one service were merged, change 2 of another service goes out before them. Such an event
gets an id of an unknown epoch, so that a reader that resumes there starts from new snapshots.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, TypeVar

from cachetools import LRUCache

from nacos_proxy.model.services import Change, ServiceKey, merge


@dataclass(frozen=True, slots=True)
class HubPolicy:
    """Bounds: `history` events with at most `hosts` instances in all, and `encoded` bytes of encoded events."""

    history: int = 4096
    hosts: int = 100_000
    encoded: int = 16 << 20


@dataclass(frozen=True, slots=True)
class Notice:
    """The upstream was lost or is back. Of several waiting notices a reader gets only the last, the current state."""

    state: Literal["up", "down"]
    reason: str


@dataclass(frozen=True, slots=True)
class Event:
    """A change or a notice with its number in the stream.

    `first`: the number of the first change that was merged into it. `resumable`: a reader of this event has got
    everything up to its number.
    """

    number: int
    body: Change | Notice
    first: int
    resumable: bool = True


@dataclass(frozen=True, slots=True)
class Filter:
    """The services of a reader, by key or all of a (namespace, group) (`everything`)."""

    keys: frozenset[ServiceKey] = frozenset()
    everything: tuple[str, str] | None = None

    def wants(self, key: ServiceKey) -> bool:
        return key in self.keys or self.everything == (key.namespace, key.group)


class Mailbox:
    """One reader's pending events. `wake` is called when an event arrives in an empty mailbox; it must not block.

    A reader that has taken all pending events may attach a sink, which then gets each event at once. `reset`: the
    reader must start from new snapshots. `client` is the reader's address.
    """

    def __init__(self, interest: Filter, wake: Callable[[], None]) -> None:
        self.filter = interest
        self.client = ""
        self.reset = False
        self.sink: Callable[[Event], None] | None = None  # set by `attach` and `detach` only
        self._wake = wake
        self._pending: dict[ServiceKey | None, Event] = {}
        self._undone: tuple[float, int] = (math.inf, 0)  # numbers of the first undone change, and of the one undoing it

    def attach(self, sink: Callable[[Event], None]) -> None:
        """From now on, each event goes to `sink` and does not wait here."""
        self.sink = sink

    def detach(self) -> None:
        """From now on, events wait here again. No effect without a sink."""
        self.sink = None

    def put(self, event: Event) -> None:
        """Adds an event. A change is merged with a waiting one of the same service."""
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


class Hub:
    """Numbers events and delivers them. The `epoch` of an id names the run of the proxy."""

    def __init__(self, policy: HubPolicy, epoch: str) -> None:
        self.epoch = epoch
        self.published = 0
        self._policy = policy
        self._history: deque[Event] = deque()
        self._hosts = 0
        self._readers: dict[Mailbox, None] = {}
        self._by_key: dict[ServiceKey, dict[Mailbox, None]] = {}
        self._by_group: dict[tuple[str, str], dict[Mailbox, None]] = {}
        self._encoded: LRUCache[Hashable, bytes] = LRUCache(policy.encoded, getsizeof=_size)

    def id_of(self, event: Event) -> str:
        """The id after which a reader of this event resumes. It has an unknown epoch if the event is not resumable."""
        return f"{self.epoch}{'' if event.resumable else '.part'}-{event.number}"

    @property
    def last_id(self) -> str:
        """The id for a snapshot taken now: the stream continues after it."""
        return f"{self.epoch}-{self.published}"

    def publish(self, body: Change | Notice) -> Event:
        """Numbers the event, keeps it in the history, and delivers it to every mailbox that wants it."""
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
            return self._readers
        listeners = self._by_key.get(body.key)
        every = self._by_group.get((body.key.namespace, body.key.group))
        return {**listeners, **every} if listeners and every else listeners or every or ()

    def subscribe(self, interest: Filter, wake: Callable[[], None], after: str = "") -> Mailbox:
        """A mailbox that gets events from now on, filled with those after the id `after`.

        If the history does not hold all of these (another epoch, or too old), the mailbox is marked `reset`.
        """
        mailbox = Mailbox(interest, wake)
        if after:
            missed = self._since(after)
            mailbox.reset = missed is None
            for event in missed or ():
                if isinstance(event.body, Notice) or interest.wants(event.body.key):
                    mailbox.put(event)
        self._readers[mailbox] = None
        for key in interest.keys:
            self._by_key.setdefault(key, {})[mailbox] = None
        if interest.everything is not None:
            self._by_group.setdefault(interest.everything, {})[mailbox] = None
        return mailbox

    def unsubscribe(self, mailbox: Mailbox) -> bool:
        """Stops delivering to a mailbox. False if it was unsubscribed before."""
        if mailbox not in self._readers:
            return False
        del self._readers[mailbox]
        for key in mailbox.filter.keys:
            _discard(self._by_key, key, mailbox)
        if mailbox.filter.everything is not None:
            _discard(self._by_group, mailbox.filter.everything, mailbox)
        return True

    def is_of_this_run(self, id: str) -> bool:
        return id.rpartition("-")[0] == self.epoch

    def _since(self, after: str) -> list[Event] | None:
        text = after.rpartition("-")[2]
        if not self.is_of_this_run(after) or not text.isdecimal() or int(text) > self.published:
            return None
        missed = self.published - int(text)
        kept = len(self._history)
        return list(islice(self._history, kept - missed, None)) if missed <= kept else None

    def encoded(self, event: Event, variant: Hashable, encode: Callable[[Event], bytes]) -> bytes:
        """The event's bytes for a variant, encoded once for all readers that see the same change.

        If the first and last number of a merged change are the same, the change is the same.
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
        return len(self._readers)

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
