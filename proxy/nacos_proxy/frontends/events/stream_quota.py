"""How many listen, and to how much: the bounds of event streams and long polls, in all and for each client.

Not for: what they hear (`events`). A client is its address. Services count once for a client, however many of its
streams name them: what is listened to is asked for again and again, so nobody may listen to everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from nacos_proxy.model.errors import BadCall, Violation
from nacos_proxy.model.services import ServiceKey


@dataclass(frozen=True, slots=True)
class StreamQuotaPolicy:
    """`most` streams and long polls in all, `per_client` from one address, which may name `services` in all."""

    max_streams: int = 20_000
    per_client: int = 20_000
    services: int = 10_000


class StreamQuota:
    """Each `take` that did not raise wants one `leave` with the same arguments."""

    def __init__(self, policy: StreamQuotaPolicy) -> None:
        self.refused = 0
        self.open = 0
        self._policy = policy
        self._clients: Counter[str] = Counter()
        self._services: dict[str, Counter[ServiceKey]] = {}

    def take(self, client: str, keys: Collection[ServiceKey]) -> None:
        """Raises `BadCall` where that is too many."""
        held = self._services.get(client, Counter[ServiceKey]())
        services = len(held) + sum(1 for key in keys if key not in held)
        for whose, number, most, what in (
            ("the proxy", self.open + 1, self._policy.max_streams, "streams open"),
            ("this client", self._clients[client] + 1, self._policy.per_client, "streams open"),
            ("this client", services, self._policy.services, "services that it listens to"),
        ):
            if number > most:
                self.refused += 1
                raise BadCall("", Violation.OTHER, f"{whose} has no more than {most} {what}", status=429)
        self.open += 1
        self._clients[client] += 1
        self._services.setdefault(client, Counter()).update(keys)

    def leave(self, client: str, keys: Collection[ServiceKey]) -> None:
        self.open -= 1
        self._clients[client] -= 1
        if not self._clients[client]:
            del self._clients[client], self._services[client]
            return
        held = self._services[client]
        for key in keys:
            held[key] -= 1
            if not held[key]:
                del held[key]

    @property
    def clients(self) -> dict[str, int]:
        """Streams and long polls by address."""
        return dict(self._clients)

    def __repr__(self) -> str:
        return f"<Seats {self.open} taken by {len(self._clients)} clients>"
