"""What a webhook still has to learn, at most one delivery for each service; and what follows from an answer.

A newer state takes the place of an older one that was not delivered. A webhook that was never told of a service gets a
snapshot, else a change from the state that it was told last. If an attempt failed, it may have arrived all the same; so
if the service then returns to the state before, the webhook gets a snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from nacos_proxy.model.services import Change, ServiceKey, Snapshot, merge

Verdict = Literal["delivered", "failed", "refused", "gone"]


@dataclass(frozen=True, slots=True)
class Delivery:
    """A snapshot or a change, and the id of its (last) event. `tried`: an attempt has failed."""

    body: Snapshot | Change
    event_id: str
    tried: bool = False

    @property
    def key(self) -> ServiceKey:
        return self.body.key


def verdict(status: int) -> Verdict:
    """What an answer means. `failed` is tried again; `refused` is not, as it would be refused again."""
    if 200 <= status < 300:
        return "delivered"
    if status == 410:
        return "gone"
    return "refused" if 300 <= status < 500 and status not in (408, 429) else "failed"


class Deliveries:
    """The deliveries that wait for one webhook, the one that has waited longest first."""

    def __init__(self) -> None:
        self._waiting: dict[ServiceKey, Delivery] = {}

    def put(self, delivery: Delivery) -> None:
        """Adds what happened last. It keeps the place of what waits for the same service."""
        older = self._waiting.get(delivery.key)
        joined = delivery if older is None else _joined(older, delivery)
        if joined is None:
            del self._waiting[delivery.key]
        else:
            self._waiting[delivery.key] = joined

    def put_back(self, delivery: Delivery) -> None:
        """It was taken, and its attempt failed. Others go first."""
        newer = self._waiting.pop(delivery.key, None)
        self._waiting[delivery.key] = replace(delivery, tried=True)
        if newer is not None:
            self.put(newer)

    def take(self) -> Delivery | None:
        return self._waiting.pop(next(iter(self._waiting))) if self._waiting else None

    def clear(self) -> None:
        self._waiting.clear()

    def __len__(self) -> int:
        return len(self._waiting)


def _joined(older: Delivery, newer: Delivery) -> Delivery | None:
    """Both as one; None if the newer undoes the older."""
    if isinstance(newer.body, Snapshot):
        return newer
    tried = older.tried or newer.tried
    merged = merge(older.body, newer.body) if isinstance(older.body, Change) else newer.body.after
    if merged is None and tried:
        merged = newer.body.after
    return None if merged is None else Delivery(merged, newer.event_id, tried)
