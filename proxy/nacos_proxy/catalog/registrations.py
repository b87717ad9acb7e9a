"""Instances that were registered through this proxy, and whether their clients still beat.

Not for: what readers see (that is the cache). The ledger is what lets the proxy register an instance again when the
upstream has lost it, and answer a beat while the upstream is away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nacos_proxy.model.calls import (
    Beat,
    Deregister,
    Register,
    Update,
)
from nacos_proxy.model.effects import apply
from nacos_proxy.model.heartbeats import beat_timeout, delete_timeout
from nacos_proxy.model.services import Instance, ServiceKey, Snapshot

RegistrationKey = tuple[ServiceKey, str, int]


@dataclass(frozen=True, slots=True)
class RegistrationsPolicy:
    """`most` registrations are remembered; beyond it new ones are served but not remembered."""

    max_registrations: int = 20_000


@dataclass(slots=True)
class Registration:
    """An instance as its client registered it, and when it was last heard of (seconds).

    `beaten` says that its client sends beats through this proxy; one that never did is not kept alive by us.
    `managed` is the check by which the proxy beats for it, as `catalog.checks` dumps it. `since` is when it was last
    registered, `left` that its owner has deregistered it since, which the upstream did not answer: silence alone is to
    follow. `missed_since` is from when on the upstream's lists have lacked it (infinity: they have it). Until
    `hidden_until` it is known that the upstream has it and does not list it: somebody disabled it.
    """

    service: ServiceKey
    instance: Instance
    heard: float
    beaten: bool = False
    managed: Mapping[str, Any] | None = None
    left: bool = False
    since: float = -math.inf
    missed_since: float = math.inf
    hidden_until: float = -math.inf

    @property
    def key(self) -> RegistrationKey:
        return (self.service, self.instance.ip, self.instance.port)

    @property
    def expires_at(self) -> float:
        """When Nacos drops it unless its client is heard of before; infinity for a persistent one."""
        return self.heard + delete_timeout(self.instance.metadata) / 1000 if self.instance.ephemeral else math.inf

    def alive(self, now: float) -> bool:
        """Whether its client counts as alive."""
        return now < self.expires_at

    @property
    def unhealthy_at(self) -> float:
        """When Nacos calls it unhealthy unless its client is heard of before; infinity for a persistent one."""
        return self.heard + beat_timeout(self.instance.metadata) / 1000 if self.instance.ephemeral else math.inf

    def healthy(self, now: float) -> bool:
        return now < self.unhealthy_at


class Registrations:
    """Registrations by place. Told of every accepted write and of every beat, it never asks."""

    def __init__(self, policy: RegistrationsPolicy) -> None:
        self._policy = policy
        self._places: dict[RegistrationKey, Registration] = {}
        self._of: dict[ServiceKey, dict[RegistrationKey, Registration]] = {}
        self._first_lapse = math.inf  # none can lapse before: `lapse` is asked many times a second
        self.full = False

    def wrote(self, write: Register | Deregister | Update | Beat, now: float) -> bool:
        """Follows a write. True where what is remembered changed (a beat alone does not count)."""
        match write:
            case Register():
                return self._put(write.service, write.instance, now)
            case Deregister():
                return self._drop((write.service, write.ip, write.port))
            case Update():
                return self._update(write)
            case Beat():
                return self._beat(write, now)

    def _put(self, service: ServiceKey, instance: Instance, now: float) -> bool:
        place = (service, instance.ip, instance.port)
        known = self._places.get(place)
        if known is not None:
            known.heard, known.since, known.left = now, now, False
            changed = known.instance != instance
            known.instance = instance
            self._expect(known)
            return changed
        if not self.room:
            self.full = True
            return False
        self._keep(Registration(service, instance, now, since=now))
        return True

    def _keep(self, registration: Registration) -> None:
        self._places[registration.key] = registration
        self._of.setdefault(registration.service, {})[registration.key] = registration
        self._expect(registration)

    def _expect(self, registration: Registration) -> None:
        self._first_lapse = min(self._first_lapse, registration.expires_at)

    def _drop(self, place: RegistrationKey) -> bool:
        if self._places.pop(place, None) is None:
            return False
        left = self._of[place[0]]
        del left[place]
        if not left:
            del self._of[place[0]]
        self.full = False
        return True

    def _update(self, write: Update) -> bool:
        known = self._places.get((write.service, write.ip, write.port))
        if known is None:
            return False
        shown = apply(Snapshot(write.service, (known.instance,)), replace(write, cluster=known.instance.cluster))
        changed = shown.instances[0] != known.instance
        known.instance = shown.instances[0]
        self._expect(known)
        return changed

    def _beat(self, write: Beat, now: float) -> bool:
        known = self._places.get((write.service, write.ip, write.port))
        if known is not None:
            known.heard, known.beaten, known.left = now, True, False
            return False
        if write.full is None or not self._put(write.service, write.full, now):
            return False
        self._places[(write.service, write.ip, write.port)].beaten = True
        return True

    @property
    def room(self) -> bool:
        """Whether one more would be remembered."""
        return len(self._places) < self._policy.max_registrations

    def find(self, service: ServiceKey, ip: str, port: int) -> Registration | None:
        return self._places.get((service, ip, port))

    def count(self, service: ServiceKey) -> int:
        """How many instances of the service are remembered."""
        return len(self._of.get(service, ()))

    def of(self, service: ServiceKey) -> Iterable[Registration]:
        """Those of a service; not to be held while the ledger changes."""
        return self._of.get(service, {}).values()

    def expire(self, now: float) -> list[Registration]:
        """Forget the ephemeral ones whose clients fell silent; they are given back. A managed one is its keeper's."""
        if now < self._first_lapse:
            return []
        gone = [r for r in self._places.values() if r.managed is None and not r.alive(now)]
        for registration in gone:
            self._drop(registration.key)
        # its keeper may let go of a managed one at any time: looked at again before long
        mortal = (r.expires_at if r.managed is None else now + 1 for r in self._places.values())
        self._first_lapse = min(mortal, default=math.inf)
        return gone

    def shift(self, gap: float, now: float) -> None:
        """For so long nobody could be heard here: that is no silence of the clients."""
        for registration in self._places.values():
            registration.heard = min(now, registration.heard + gap)

    def restore(self, registration: Registration) -> None:
        """One read from disk; what was heard since start is not replaced."""
        if registration.key in self._places:
            return
        if not self.room:
            self.full = True
            return
        self._keep(registration)

    def __iter__(self) -> Iterator[Registration]:
        return iter(list(self._places.values()))

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"<Ledger {len(self._places)} registrations of {len(self._of)} services>"
