"""Who wants UDP pushes, what was sent, and what must be sent again. Told the time; not for: sockets, encodings.

A subscription lives `lapse` seconds from the last list call that carried its address. One address has a subscription
for each service and clusters, as on 1.x: an SDK has one socket, and lists a service for each of its callers with other
clusters. 2.x keeps the last one alone, and the others hear nothing. A datagram that is not acknowledged is sent once
more after `again` seconds, then given up (nacos-http.md 6, fact 2).

A client is the IP that is pushed to. Of subscriptions, and of the bytes that wait for an acknowledgement, it has no
more than it leaves free, and one socket has a bound of its own. Who is to hear of a change takes turns (`turns`): a
subscription that waits hears of the last change alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from nacos_proxy.catalog.fair_queue import FairQueue
from nacos_proxy.catalog.shares import Shares
from nacos_proxy.model.services import ServiceKey, Snapshot

SocketAddress = tuple[str, int]

MOST = 20_000  # subscriptions, also of those that are read back
_NAMED = 200  # characters of what a client calls itself
_OVERHEAD = 500  # bytes of what is kept of a datagram beside it


@dataclass(frozen=True, slots=True)
class PushesPolicy:
    """Seconds and numbers. At most `most` subscriptions, `per_socket` of one IP and port.

    `waiting` bytes are kept of datagrams without an acknowledgement; what goes beyond them is sent once. `said` is how
    long the clusters of a subscription may be, in characters; of longer ones nobody is told.
    """

    lapse: float = 60.0
    again: float = 10.0
    tries: int = 2
    max_subscriptions: int = MOST
    per_socket: int = 1_000
    waiting: int = 16 << 20
    said: int = 1_000


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
    """A datagram on its way."""

    subscription: Subscription
    packet: bytes
    at: float
    tries: int = 1


_Place = tuple[ServiceKey, SocketAddress, str]


class Pushes:
    """The bookkeeping of UDP push."""

    def __init__(self, policy: PushesPolicy) -> None:
        self.changes = 0  # grows with each subscription that comes or goes
        self.acknowledged = 0
        self.given_up = 0
        self._policy = policy
        self._by_service: dict[ServiceKey, dict[tuple[SocketAddress, str], Subscription]] = {}
        self._waiting: dict[int, Sent] = {}
        self._held: Shares[str] = Shares(policy.waiting)  # bytes that wait, by client
        self._clients: Shares[str] = Shares(policy.max_subscriptions)  # subscriptions, by client
        self._sockets: Counter[SocketAddress] = Counter()  # the same by socket
        self._turns: FairQueue[_Place] = FairQueue()
        self._news: dict[ServiceKey, Snapshot] = {}

    def listed(
        self, service: ServiceKey, address: SocketAddress, clusters: str, agent: str, app: str, now: float
    ) -> Subscription | None:
        """A list call with a push address. The subscription where it is new."""
        known = self._by_service.get(service, {}).get((address, clusters))
        if known is not None:
            known.agent, known.app, known.seen = agent[:_NAMED], app[:_NAMED], now
            return None
        if not self._may_have(address) or len(clusters) > self._policy.said:
            return None
        new = Subscription(service, address, clusters, agent[:_NAMED], app[:_NAMED], now)
        self._by_service.setdefault(service, {})[address, clusters] = new
        self.changes += 1
        self._clients.take(address[0])
        self._sockets[address] += 1
        return new

    def _may_have(self, address: SocketAddress) -> bool:
        return self._clients.room(address[0]) and self._sockets[address] < self._policy.per_socket

    def _forget(self, address: SocketAddress) -> None:
        self.changes += 1
        self._clients.give_back(address[0])
        self._sockets[address] -= 1
        if not self._sockets[address]:
            del self._sockets[address]

    def of(self, service: ServiceKey, now: float) -> list[Subscription]:
        """The living subscriptions of a service."""
        found = self._by_service.get(service, {}).values()
        return [s for s in found if now - s.seen < self._policy.lapse]

    def changed(self, shown: Snapshot, now: float) -> None:
        """Whoever subscribes the service is to hear of it as it is now."""
        for s in self.of(shown.key, now):
            self._turns.put((s.service, s.address, s.clusters), now, (s.address,))
            self._news[shown.key] = shown

    def next(self) -> tuple[Subscription, Snapshot] | None:
        """Who is to hear of what now; None where nobody is."""
        while (turn := self._turns.take()) is not None:
            (service, address, clusters), _ = turn
            found, shown = self._by_service.get(service, {}).get((address, clusters)), self._news[service]
            if not self._turns:
                self._news.clear()
            if found is not None:
                return found, shown
        return None

    @property
    def behind(self) -> int:
        """How many are still to hear of a change."""
        return len(self._turns)

    def sent(self, reference: int, subscription: Subscription, packet: bytes, now: float) -> None:
        """A datagram went out; an older one for the same subscription no longer needs an answer."""
        self._settled(subscription.reference)
        subscription.reference = reference
        client, size = subscription.address[0], len(packet) + _OVERHEAD
        if self._held.room(client, size):
            self._waiting[reference] = Sent(subscription, packet, now)
            self._held.take(client, size)

    def _settled(self, reference: int) -> None:
        sent = self._waiting.pop(reference, None)
        if sent is not None:
            self._held.give_back(sent.subscription.address[0], len(sent.packet) + _OVERHEAD)

    def acked(self, reference: int, sender: SocketAddress) -> bool:
        """An acknowledgement came from `sender`; one for somebody else's datagram does not count."""
        sent = self._waiting.get(reference)
        if sent is None or sent.subscription.address[0] != sender[0]:
            return False
        self._settled(reference)
        self.acknowledged += 1
        return True

    def again(self, now: float, most: int = 500) -> list[Sent]:
        """At most `most` datagrams to send once more now; those that had all their tries are given up."""
        due: list[Sent] = []
        for reference, sent in list(self._waiting.items()):
            if now - sent.at < self._policy.again or len(due) >= most:
                continue
            if sent.tries >= self._policy.tries:
                self._settled(reference)
                self.given_up += 1
                continue
            sent.tries += 1
            sent.at = now
            due.append(sent)
        return due

    def shift(self, gap: float, now: float) -> None:
        """For so long nobody could be heard: that is no silence."""
        for subscription in self:
            subscription.seen = min(now, subscription.seen + gap)

    def lapse(self, now: float) -> list[ServiceKey]:
        """Forget who no longer lists; the services that nobody subscribes any more."""
        emptied: list[ServiceKey] = []
        for service, found in list(self._by_service.items()):
            for place in [p for p, s in found.items() if now - s.seen >= self._policy.lapse]:
                del found[place]
                self._forget(place[0])
            if not found:
                del self._by_service[service]
                emptied.append(service)
        return emptied

    def __iter__(self) -> Iterator[Subscription]:
        for found in self._by_service.values():
            yield from found.values()

    def __len__(self) -> int:
        return self._clients.total
