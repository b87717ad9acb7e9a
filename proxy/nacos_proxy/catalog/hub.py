"""Changes to those who want to hear: ids, history, resume, mailboxes. Not for: sockets, encodings, what has changed.

A change is published once and gets one id, `<epoch>-<n>`. A reader that keeps up gets every event; one that does not
has at most one pending change per service, the newest state merged into it, so its bound is the number of services.
A slow reader may thus never see a state that came and went; it always sees the last state of each service.

A reader resumes behind an id, so an id promises that all up to it was heard. In the middle of what a slow reader is
sent that is not so: where 1 and 3 became one change of a service, 2 of another goes out before it. Such an event gets
an id of another epoch: whoever comes back with it starts from new snapshots.
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
    """`history` events can be resumed from, fewer where they hold more than `hosts` instances in all.

    `encoded` is how many bytes of encodings are kept.
    """

    history: int = 4096
    hosts: int = 100_000
    encoded: int = 16 << 20


@dataclass(frozen=True, slots=True)
class Notice:
    """The upstream was lost or is back, in the stream's order among the changes.

    Of several that wait for a reader the last one counts: it is the whole state, and one too many does no harm.
    """

    state: UpstreamState
    reason: str


@dataclass(frozen=True, slots=True)
class Event:
    """A change or a notice with its place in the stream.

    `first` is the number of the first change that was merged into it. A reader that got an event which is not `whole`
    has not heard all up to its number.
    """

    number: int
    body: Change | Notice
    first: int
    resumable: bool = True


@dataclass(frozen=True, slots=True)
class Filter:
    """What a reader listens to: services by key, or all of a (namespace, group) (`everything`), and what of them."""

    keys: frozenset[ServiceKey] = frozenset()
    everything: tuple[str, str] | None = None
    clusters: frozenset[str] = frozenset()
    healthy_only: bool = False

    def wants(self, key: ServiceKey) -> bool:
        return key in self.keys or self.everything == (key.namespace, key.group)


class Mailbox:
    """One reader's pending events. `wake` is called when something was put into an empty box; it must not block.

    A reader that keeps up, and has taken all that was here, may set `direct_sink`: events then go there at once.
    """

    def __init__(self, interest: Filter, wake: Callable[[], None]) -> None:
        self.filter = interest
        self.client = ""  # whose it is
        self.reset = False
        self.direct_sink: Callable[[Event], None] | None = None
        self._wake = wake
        self._pending: dict[ServiceKey | None, Event] = {}
        self._undone: tuple[float, int] = (math.inf, 0)  # from the first change that was undone here to what undid it

    def put(self, event: Event) -> None:
        """Adds an event; a change of a service that waits here already becomes one with it."""
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
        """Its reader is told of this service in another way."""
        self._pending.pop(key, None)

    def take(self) -> list[Event]:
        """All that waits, in the order of the ids; the box is empty afterwards."""
        if len(self._pending) == 1 and not self._undone[1]:  # what a reader that keeps up has
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
    """Events in order; not whole are those behind which a change of a lower number is still to come, or was undone."""
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
    """The one place where events are numbered. `epoch` tells this run's ids from those of another."""

    def __init__(self, policy: HubPolicy, epoch: str) -> None:
        self.epoch = epoch
        self.published = 0
        self._policy = policy
        self._history: deque[Event] = deque()
        self._hosts = 0
        self._readers = _Readers()
        self._encoded: LRUCache[Hashable, tuple[Event, bytes]] = LRUCache(policy.encoded, getsizeof=_size)

    def id_of(self, event: Event) -> str:
        """What a reader that got the event resumes with. One that is not whole is of an epoch that nobody knows."""
        return f"{self.epoch}{'' if event.resumable else '.part'}-{event.number}"

    @property
    def last_id(self) -> str:
        """The id that a snapshot taken now carries: the stream goes on behind it."""
        return f"{self.epoch}-{self.published}"

    def publish(self, body: Change | Notice) -> Event:
        """Number it, keep it, put it into every mailbox that wants it."""
        self.published += 1
        event = Event(self.published, body, self.published)
        self._remember(event)
        for mailbox in list(self._audience(body)):
            if mailbox.direct_sink is None:
                mailbox.put(event)
            else:
                mailbox.direct_sink(event)
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

    def unsubscribe(self, mailbox: Mailbox) -> bool:
        """Harmless when it was done before; whether it was not."""
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
        """The event's bytes for a variant, made once and shared by all readers that see the same change."""
        slot = (event.number, id(event.body), event.resumable, variant)
        kept = self._encoded.get(slot)
        if kept is None:
            # the event is kept with its bytes: while it lives, no other body can have its id
            kept = (event, encode(event))
            if _size(kept) <= self._policy.encoded:
                self._encoded[slot] = kept
        return kept[1]

    @property
    def readers(self) -> int:
        return len(self._readers.all)

    def __repr__(self) -> str:
        return f"<Hub {self.last_id}, {self.readers} readers, {len(self._history)} kept>"


def _hosts(event: Event) -> int:
    return 1 + len(event.body.after.instances) if isinstance(event.body, Change) else 1


def _size(kept: tuple[Event, bytes]) -> int:
    return 200 + len(kept[1]) + 100 * _hosts(kept[0])  # with what is around the bytes, and the event's own index


K = TypeVar("K")


def _discard(index: dict[K, dict[Mailbox, None]], key: K, mailbox: Mailbox) -> None:
    boxes = index.get(key, {})
    boxes.pop(mailbox, None)
    if not boxes:
        index.pop(key, None)
