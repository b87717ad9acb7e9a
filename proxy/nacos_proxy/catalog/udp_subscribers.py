"""The subscribers of UDP push, and the datagrams that wait for an acknowledgement.

A subscription expires `expire_after` seconds after the last list call with its address. An address has a subscription
for each service and set of clusters, as on 1.x, because all callers of an SDK share its one socket. (2.x keeps only the
last subscription, so the other callers get no pushes.) A datagram without an acknowledgement is sent once more after
`repeat_after` seconds, then given up (nacos-http.md 6, fact 2).

A client is an IP address. `Shares` bounds its subscriptions and its bytes that wait for an acknowledgement. Clients
take turns, and a waiting subscription gets only the last state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from nacos_proxy.catalog.fair_queue import FairQueue
from nacos_proxy.catalog.shares import Shares
from nacos_proxy.model.services import ServiceKey, Snapshot

SocketAddress = tuple[str, int]

MAX_SUBSCRIPTIONS = 20_000  # including those from disk
_MAX_NAME = 200  # characters of a client's agent and app that are kept
_OVERHEAD = 500  # bytes of memory for each datagram in addition to its own


@dataclass(frozen=True, slots=True)
class UdpSubscribersPolicy:
    """Seconds and numbers. `per_socket` bounds the subscriptions of one IP and port.

    Up to `max_unacknowledged` bytes of datagrams are kept for a repetition; datagrams beyond that are sent only once.
    A list call with more than `max_clusters_length` characters of clusters makes no subscription.
    """

    expire_after: float = 60.0
    repeat_after: float = 10.0
    tries: int = 2
    max_subscriptions: int = MAX_SUBSCRIPTIONS
    per_socket: int = 1_000
    max_unacknowledged: int = 16 << 20
    max_clusters_length: int = 1_000


@dataclass(slots=True)
class Subscription:
    service: ServiceKey
    address: SocketAddress
    clusters: str
    agent: str
    app: str
    seen: float
    reference: int = 0  # of its last datagram


@dataclass(slots=True)
class Sent:
    """A datagram that the client has not acknowledged yet."""

    subscription: Subscription
    packet: bytes
    at: float
    tries: int = 1


_Key = tuple[ServiceKey, SocketAddress, str]  # a subscription, by service, address and clusters


class UdpSubscribers:
    """`changes` grows with each subscription that is added or removed; `given_up` counts datagrams."""

    def __init__(self, policy: UdpSubscribersPolicy) -> None:
        self.changes = 0
        self.acknowledged = 0
        self.given_up = 0
        self._policy = policy
        self._by_service: dict[ServiceKey, dict[tuple[SocketAddress, str], Subscription]] = {}
        self._waiting: dict[int, Sent] = {}
        self._bytes: Shares[str] = Shares(policy.max_unacknowledged)  # of waiting datagrams, by client
        self._clients: Shares[str] = Shares(policy.max_subscriptions)  # subscriptions, by client
        self._sockets: Counter[SocketAddress] = Counter()  # subscriptions, by socket
        self._queue: FairQueue[_Key] = FairQueue()
        self._to_push: dict[ServiceKey, Snapshot] = {}  # of the services in the queue, the last state

    def listed(
        self, service: ServiceKey, address: SocketAddress, clusters: str, agent: str, app: str, now: float
    ) -> Subscription | None:
        """A list call came with a push address. Returns the subscription if it is new."""
        known = self._by_service.get(service, {}).get((address, clusters))
        if known is not None:
            known.agent, known.app, known.seen = agent[:_MAX_NAME], app[:_MAX_NAME], now
            return None
        room = self._clients.room(address[0]) and self._sockets[address] < self._policy.per_socket
        if not room or len(clusters) > self._policy.max_clusters_length:
            return None
        new = Subscription(service, address, clusters, agent[:_MAX_NAME], app[:_MAX_NAME], now)
        self._by_service.setdefault(service, {})[address, clusters] = new
        self.changes += 1
        self._clients.take(address[0])
        self._sockets[address] += 1
        return new

    def _forget(self, address: SocketAddress) -> None:
        self.changes += 1
        self._clients.give_back(address[0])
        self._sockets[address] -= 1
        if not self._sockets[address]:
            del self._sockets[address]

    def of(self, service: ServiceKey, now: float) -> list[Subscription]:
        """The subscriptions of a service that have not expired."""
        found = self._by_service.get(service, {}).values()
        return [s for s in found if now - s.seen < self._policy.expire_after]

    def changed(self, snapshot: Snapshot, now: float) -> None:
        """Queues a push of this state to all subscribers of the service."""
        for s in self.of(snapshot.key, now):
            self._queue.put((s.service, s.address, s.clusters), now, (s.address,))
            self._to_push[snapshot.key] = snapshot

    def next(self) -> tuple[Subscription, Snapshot] | None:
        """The next subscription to push to, and the state; None if the queue is empty."""
        while (turn := self._queue.take()) is not None:
            (service, address, clusters), _ = turn
            subscription, snapshot = self._by_service.get(service, {}).get((address, clusters)), self._to_push[service]
            if not self._queue:
                self._to_push.clear()
            if subscription is not None:
                return subscription, snapshot
        return None

    @property
    def queued(self) -> int:
        return len(self._queue)

    def sent(self, reference: int, subscription: Subscription, packet: bytes, now: float) -> None:
        """A datagram went out. An older one of the same subscription no longer needs an acknowledgement."""
        self._discard(subscription.reference)
        subscription.reference = reference
        client, size = subscription.address[0], len(packet) + _OVERHEAD
        if self._bytes.room(client, size):
            self._waiting[reference] = Sent(subscription, packet, now)
            self._bytes.take(client, size)

    def _discard(self, reference: int) -> None:
        sent = self._waiting.pop(reference, None)
        if sent is not None:
            self._bytes.give_back(sent.subscription.address[0], len(sent.packet) + _OVERHEAD)

    def acked(self, reference: int, sender: SocketAddress) -> bool:
        """An acknowledgement came. False if the datagram is unknown or went to another IP."""
        sent = self._waiting.get(reference)
        if sent is None or sent.subscription.address[0] != sender[0]:
            return False
        self._discard(reference)
        self.acknowledged += 1
        return True

    def due_again(self, now: float, limit: int = 500) -> list[Sent]:
        """At most `limit` datagrams to send again now; those without tries left are given up."""
        due: list[Sent] = []
        for reference, sent in list(self._waiting.items()):
            if now - sent.at < self._policy.repeat_after or len(due) >= limit:
                continue
            if sent.tries >= self._policy.tries:
                self._discard(reference)
                self.given_up += 1
                continue
            sent.tries += 1
            sent.at = now
            due.append(sent)
        return due

    def shift(self, gap: float, now: float) -> None:
        """This process stood still for `gap` seconds, which does not count as silence."""
        for subscription in self:
            subscription.seen = min(now, subscription.seen + gap)

    def expire(self, now: float) -> None:
        """Removes the expired subscriptions."""
        for service, subscriptions in list(self._by_service.items()):
            for key in [key for key, s in subscriptions.items() if now - s.seen >= self._policy.expire_after]:
                del subscriptions[key]
                self._forget(key[0])
            if not subscriptions:
                del self._by_service[service]

    def __iter__(self) -> Iterator[Subscription]:
        for subscriptions in self._by_service.values():
            yield from subscriptions.values()

    def __len__(self) -> int:
        return self._clients.total
