"""Who wants UDP pushes, what was sent, and what must be sent again. Told the time; not for: sockets, encodings.

A subscription lives `lapse` seconds from the last list call that carried its address. One address has a subscription
for each service and clusters, as on 1.x: an SDK has one socket, and lists a service for each of its callers with other
clusters. 2.x keeps the last one alone, and the others hear nothing. A datagram that is not acknowledged is sent once
more after `again` seconds, then given up (NACOS.md 6, DESIGN fact 2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from proxy.model import ServiceKey

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class PushesPolicy:
    """Seconds and numbers. At most `most` subscriptions, `waiting` datagrams without an acknowledgement."""

    lapse: float = 60.0
    again: float = 10.0
    tries: int = 2
    most: int = 10_000
    waiting: int = 10_000


@dataclass(slots=True)
class Subscription:
    service: ServiceKey
    address: Address
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


class Pushes:
    """The bookkeeping of UDP push."""

    def __init__(self, policy: PushesPolicy) -> None:
        self.changes = 0  # grows with each subscription that comes or goes
        self.acknowledged = 0
        self.given_up = 0
        self._policy = policy
        self._by_service: dict[ServiceKey, dict[tuple[Address, str], Subscription]] = {}
        self._waiting: dict[int, Sent] = {}
        self._count = 0

    def listed(
        self, service: ServiceKey, address: Address, clusters: str, agent: str, app: str, now: float
    ) -> Subscription | None:
        """A list call with a push address. The subscription where it is new."""
        known = self._by_service.get(service, {}).get((address, clusters))
        if known is not None:
            known.agent, known.app, known.seen = agent, app, now
            return None
        if self._count >= self._policy.most:
            return None
        new = Subscription(service, address, clusters, agent, app, now)
        self._by_service.setdefault(service, {})[address, clusters] = new
        self._count += 1
        self.changes += 1
        return new

    def of(self, service: ServiceKey, now: float) -> list[Subscription]:
        """The living subscriptions of a service."""
        found = self._by_service.get(service, {}).values()
        return [s for s in found if now - s.seen < self._policy.lapse]

    def sent(self, reference: int, subscription: Subscription, packet: bytes, now: float) -> None:
        """A datagram went out; an older one for the same subscription no longer needs an answer."""
        self._waiting.pop(subscription.reference, None)
        subscription.reference = reference
        if len(self._waiting) < self._policy.waiting:
            self._waiting[reference] = Sent(subscription, packet, now)

    def acked(self, reference: int, sender: Address) -> bool:
        """An acknowledgement came from `sender`; one for somebody else's datagram does not count."""
        sent = self._waiting.get(reference)
        if sent is None or sent.subscription.address[0] != sender[0]:
            return False
        del self._waiting[reference]
        self.acknowledged += 1
        return True

    def again(self, now: float) -> list[Sent]:
        """The datagrams to send once more now; those that had all their tries are given up."""
        due: list[Sent] = []
        for reference, sent in list(self._waiting.items()):
            if now - sent.at < self._policy.again:
                continue
            if sent.tries >= self._policy.tries:
                del self._waiting[reference]
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
                self._count -= 1
                self.changes += 1
            if not found:
                del self._by_service[service]
                emptied.append(service)
        return emptied

    def __iter__(self) -> Iterator[Subscription]:
        for found in self._by_service.values():
            yield from found.values()

    def __len__(self) -> int:
        return self._count
