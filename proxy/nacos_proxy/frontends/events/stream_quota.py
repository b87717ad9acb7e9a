"""Bounds on event streams and long polls, in total and per client (address).

The services that a client watches are bounded, too, because each of them is polled; each counts once per client.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from nacos_proxy.model.errors import BadCall, Violation
from nacos_proxy.model.services import ServiceKey


@dataclass(frozen=True, slots=True)
class StreamQuotaPolicy:
    """Streams include long polls."""

    max_streams: int = 20_000
    streams_per_client: int = 20_000
    services_per_client: int = 10_000


class StreamQuota:
    """Counts streams. Call `leave` once for each `take` that did not raise, with the same arguments."""

    def __init__(self, policy: StreamQuotaPolicy) -> None:
        self.refused = 0
        self.open = 0
        self._policy = policy
        self._clients: Counter[str] = Counter()
        self._services: dict[str, Counter[ServiceKey]] = {}

    def take(self, client: str, keys: Collection[ServiceKey]) -> None:
        """Adds a stream. Raises `BadCall` with status 429 if that is too many."""
        held = self._services.get(client, Counter[ServiceKey]())
        services = len(held) + sum(1 for key in keys if key not in held)
        for whose, number, limit, what in (
            ("the proxy", self.open + 1, self._policy.max_streams, "open streams"),
            ("this client", self._clients[client] + 1, self._policy.streams_per_client, "open streams"),
            ("this client", services, self._policy.services_per_client, "watched services"),
        ):
            if number > limit:
                self.refused += 1
                raise BadCall("", Violation.OTHER, f"{whose} may have at most {limit} {what}", status=429)
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
        return f"<StreamQuota {self.open} open by {len(self._clients)} clients>"
