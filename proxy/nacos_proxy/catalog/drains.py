"""Instances that are taken out of traffic before they end.

    draining       out of traffic; its consumers still have to notice
    deregistering  they had time to; the upstream has not accepted the deregistration yet
    drained        deregistered; the heartbeats of a client that is still going down do not bring it back

The state follows from the times. A registration by its client ends a drain at any time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nacos_proxy.catalog.registrations import RegistrationKey
from nacos_proxy.model.services import Instance, ServiceKey

State = Literal["draining", "deregistering", "drained"]

HELD_FOR = 600.0  # seconds for which heartbeats do not bring back an instance that was drained


@dataclass(slots=True)
class Drain:
    """`instance`: as it was before. It is deregistered at `until`; `ended_at`: when that was accepted.

    `modified`: the server kept it in traffic because somebody had modified it, so it was modified again; this is how
    the server showed it before. `error`: why the last step failed.
    """

    service: ServiceKey
    instance: Instance
    wait: float
    until: float
    ended_at: float | None = None
    modified: Instance | None = None
    error: str = ""

    @property
    def key(self) -> RegistrationKey:
        return (self.service, self.instance.ip, self.instance.port)

    @property
    def forgotten_at(self) -> float:
        """When heartbeats count again; infinity before it has ended."""
        return float("inf") if self.ended_at is None else self.ended_at + HELD_FOR

    def state(self, now: float) -> State:
        if self.ended_at is not None:
            return "drained"
        return "draining" if now < self.until else "deregistering"


class Drains:
    """At most `max_drains` that have not ended, and as many that have. `changed`: whether they differ from the disk."""

    def __init__(self, max_drains: int = 1_000) -> None:
        self.changed = False
        self._max_drains = max_drains
        self._by_key: dict[RegistrationKey, Drain] = {}

    def mark_changed(self) -> None:
        """A drain was changed, or could not be written."""
        self.changed = True

    def find(self, key: RegistrationKey, now: float) -> Drain | None:
        """None also for a drain that ended long ago."""
        drain = self._by_key.get(key)
        return drain if drain is not None and now < drain.forgotten_at else None

    @property
    def room(self) -> bool:
        return sum(drain.ended_at is None for drain in self._by_key.values()) < self._max_drains

    def add(self, drain: Drain, now: float) -> None:
        """Forgets what ended long ago, or first if there are too many."""
        ended = sorted((d for d in self if d.ended_at is not None), key=lambda d: d.forgotten_at)
        surplus = len(ended) - self._max_drains
        for number, old in enumerate(ended):
            if number < surplus or old.forgotten_at <= now:
                self.remove(old)
        self._by_key[drain.key] = drain
        self.changed = True

    def remove(self, drain: Drain) -> None:
        """No effect if another one took its place."""
        if self._by_key.get(drain.key) is drain:
            del self._by_key[drain.key]
            self.changed = True

    def __iter__(self) -> Iterator[Drain]:
        return iter(list(self._by_key.values()))

    def __len__(self) -> int:
        return len(self._by_key)
