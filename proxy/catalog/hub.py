"""Changes to those who want to hear: ids, history, resume, mailboxes. Not for: sockets, encodings, what has changed.

A change is published once and gets one id, `<epoch>-<n>`. A reader that keeps up gets every event; one that does not
has at most one pending change per service, the newest state merged into it, so its bound is the number of services.
A slow reader may thus never see a state that came and went; it always sees the last state of each service.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from cachetools import LRUCache

from proxy.model import Change, ServiceKey, merge

UpstreamState = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class HubPolicy:
    """`history` events can be resumed from; `encoded` of their encodings are kept."""

    history: int = 4096
    encoded: int = 256


@dataclass(frozen=True, slots=True)
class Notice:
    """The upstream was lost or is back, in the stream's order among the changes."""

    state: UpstreamState
    reason: str


@dataclass(frozen=True, slots=True)
class Event:
    """A change or a notice with its place in the stream."""

    number: int
    body: Change | Notice


@dataclass(frozen=True, slots=True)
class Filter:
    """What a reader listens to: services by key, or all of a (namespace, group) (`everything`), and what of them."""

    keys: frozenset[ServiceKey] = frozenset()
    everything: tuple[str, str] | None = None
    clusters: frozenset[str] = frozenset()
    healthy_only: bool = False

    def wants(self, key: ServiceKey) -> bool:
        return key in self.keys or self.everything == (key.namespace, key.group)

    @property
    def variant(self) -> Hashable:
        """Readers with the same variant read the same bytes."""
        return (self.clusters, self.healthy_only)


class Mailbox:
    """One reader's pending events. `wake` is called when something was put into an empty box; it must not block."""

    def __init__(self, interest: Filter, wake: Callable[[], None]) -> None:
        self.filter = interest
        self.reset = False
        self._wake = wake
        self._pending: dict[ServiceKey | None, Event] = {}

    def put(self, event: Event) -> None:
        """Adds an event; a change of a service that waits here already becomes one with it."""
        empty = not self._pending
        key = event.body.key if isinstance(event.body, Change) else None
        waiting = self._pending.pop(key, None)
        if waiting is not None and isinstance(event.body, Change) and isinstance(waiting.body, Change):
            merged = merge(waiting.body, event.body)
            if merged is None:
                return
            event = Event(event.number, merged)
        self._pending[key] = event
        if empty:
            self._wake()

    def take(self) -> list[Event]:
        """All that waits, in the order of the ids; the box is empty afterwards."""
        events = sorted(self._pending.values(), key=lambda event: event.number)
        self._pending.clear()
        return events

    def __len__(self) -> int:
        return len(self._pending)


@dataclass(slots=True)
class _Readers:
    by_key: dict[ServiceKey, dict[Mailbox, None]] = field(default_factory=lambda: {})
    everything: dict[tuple[str, str], dict[Mailbox, None]] = field(default_factory=lambda: {})
    all: dict[Mailbox, None] = field(default_factory=lambda: {})


class Hub:
    """The one place where events are numbered. `epoch` tells this run's ids from those of another."""

    def __init__(self, policy: HubPolicy, epoch: str) -> None:
        self.epoch = epoch
        self.published = 0
        self._policy = policy
        self._history: deque[Event] = deque(maxlen=policy.history)
        self._readers = _Readers()
        self._encoded: LRUCache[tuple[int, int, Hashable], tuple[Event, bytes]] = LRUCache(policy.encoded)

    def id_of(self, number: int) -> str:
        return f"{self.epoch}-{number}"

    @property
    def last_id(self) -> str:
        """The id that a snapshot taken now carries: the stream goes on behind it."""
        return self.id_of(self.published)

    def publish(self, body: Change | Notice) -> Event:
        """Number it, keep it, put it into every mailbox that wants it."""
        self.published += 1
        event = Event(self.published, body)
        self._history.append(event)
        for mailbox in list(self._audience(body)):
            mailbox.put(event)
        return event

    def _audience(self, body: Change | Notice) -> Iterable[Mailbox]:
        if isinstance(body, Notice):
            return self._readers.all
        listeners = self._readers.by_key.get(body.key)
        every = self._readers.everything.get((body.key.namespace, body.key.group))
        if not every:
            return listeners or ()
        return (*(listeners or ()), *every)

    def subscribe(self, interest: Filter, wake: Callable[[], None], after: str = "") -> Mailbox:
        """A mailbox that hears from now on, filled with what came behind the id `after`.

        Where that is no longer known (another epoch, or older than the history), the mailbox is marked `reset`:
        its reader must start from new snapshots.
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

    def unsubscribe(self, mailbox: Mailbox) -> None:
        """Harmless when it was done before."""
        self._readers.all.pop(mailbox, None)
        for key in mailbox.filter.keys:
            _discard(self._readers.by_key, key, mailbox)
        if mailbox.filter.everything is not None:
            _discard(self._readers.everything, mailbox.filter.everything, mailbox)

    def _since(self, after: str) -> list[Event] | None:
        epoch, _, text = after.rpartition("-")
        if epoch != self.epoch or not text.isdecimal() or int(text) > self.published:
            return None
        number = int(text)
        if number < self.published - len(self._history):
            return None
        return [event for event in self._history if event.number > number]

    def encoded(self, event: Event, variant: Hashable, encode: Callable[[Event], bytes]) -> bytes:
        """The event's bytes for a variant, made once and shared by all readers that see the same change."""
        slot = (event.number, id(event.body), variant)
        kept = self._encoded.get(slot)
        if kept is None:
            # the event is kept with its bytes: while it lives, no other body can have its id
            kept = self._encoded[slot] = (event, encode(event))
        return kept[1]

    @property
    def readers(self) -> int:
        return len(self._readers.all)

    def __repr__(self) -> str:
        return f"<Hub {self.last_id}, {self.readers} readers, {len(self._history)} kept>"


K = TypeVar("K")


def _discard(index: dict[K, dict[Mailbox, None]], key: K, mailbox: Mailbox) -> None:
    boxes = index.get(key, {})
    boxes.pop(mailbox, None)
    if not boxes:
        index.pop(key, None)
