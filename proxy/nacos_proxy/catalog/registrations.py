"""Instances that were registered through this proxy, and whether their clients still beat.

They let the proxy reregister an instance that the upstream has lost, and answer beats while the upstream is away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nacos_proxy.model.calls import Beat, Deregister, Register, Update
from nacos_proxy.model.effects import apply
from nacos_proxy.model.heartbeats import beat_timeout, delete_timeout
from nacos_proxy.model.services import Instance, ServiceKey, Snapshot

RegistrationKey = tuple[ServiceKey, str, int]

MAX_REGISTRATIONS = 20_000

CONNECTION: Mapping[str, Any] = {"kind": "connection"}
"""The `check` of an instance that lives as long as its client's gRPC connection; the proxy beats for it."""


@dataclass(slots=True)
class Registration:
    """An instance as its client registered it; all times are in seconds of the monotonic clock.

    `beats`: beats come through this proxy. `check`: the proxy itself beats for it, while its health check passes (the
    value is that of `CheckedInstance.saved`) or its connection lives (`CONNECTION`). `deregistering`: its owner
    deregistered it, but the upstream did not answer; it is not reregistered. `missed_since`: since when the upstream's
    lists lack it (infinity: they do not). Until `hidden_until` the upstream is known to have it but not to list it,
    because someone disabled it. `toggling`: this proxy is registering it itself, to enable or disable it.
    """

    service: ServiceKey
    instance: Instance
    last_heard: float
    beats: bool = False
    check: Mapping[str, Any] | None = None
    deregistering: bool = False
    registered_at: float = -math.inf
    missed_since: float = math.inf
    hidden_until: float = -math.inf
    toggling: bool = False

    @property
    def key(self) -> RegistrationKey:
        return (self.service, self.instance.ip, self.instance.port)

    @property
    def of_connection(self) -> bool:
        return self.check == CONNECTION

    @property
    def expires_at(self) -> float:
        """When Nacos removes it unless its client beats before; infinity for a persistent one."""
        return self.last_heard + delete_timeout(self.instance.metadata) / 1000 if self.instance.ephemeral else math.inf

    def alive(self, now: float) -> bool:
        return now < self.expires_at

    @property
    def unhealthy_at(self) -> float:
        """When Nacos marks it unhealthy unless its client beats before; infinity for a persistent one."""
        return self.last_heard + beat_timeout(self.instance.metadata) / 1000 if self.instance.ephemeral else math.inf

    def healthy(self, now: float) -> bool:
        return now < self.unhealthy_at


class Registrations:
    """At most `max_registrations`, by key. `full`: further instances were not remembered, though readers see them."""

    def __init__(self, max_registrations: int = MAX_REGISTRATIONS) -> None:
        self._max_registrations = max_registrations
        self._by_key: dict[RegistrationKey, Registration] = {}
        self._by_service: dict[ServiceKey, dict[RegistrationKey, Registration]] = {}
        self._first_expiry = math.inf  # lets `expire`, which is called many times a second, return at once
        self.full = False

    def record_write(self, write: Register | Deregister | Update | Beat, now: float) -> bool:
        """Records an accepted write or beat. True if a registration changed; a beat alone does not change one."""
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
        known = self._by_key.get((service, instance.ip, instance.port))
        if known is not None:
            known.last_heard, known.registered_at, known.deregistering = now, now, False
            changed = known.instance != instance
            known.instance = instance
            if known.of_connection and not known.toggling:
                known.check = None  # until its connection claims it, it is like any other
            self._track_expiry(known)
            return changed
        if not self.room:
            self.full = True
            return False
        self._add(Registration(service, instance, now, registered_at=now))
        return True

    def _add(self, registration: Registration) -> None:
        self._by_key[registration.key] = registration
        self._by_service.setdefault(registration.service, {})[registration.key] = registration
        self._track_expiry(registration)

    def _track_expiry(self, registration: Registration) -> None:
        self._first_expiry = min(self._first_expiry, registration.expires_at)

    def _drop(self, key: RegistrationKey) -> bool:
        if self._by_key.pop(key, None) is None:
            return False
        of_service = self._by_service[key[0]]
        del of_service[key]
        if not of_service:
            del self._by_service[key[0]]
        self.full = False
        return True

    def _update(self, write: Update) -> bool:
        known = self._by_key.get((write.service, write.ip, write.port))
        if known is None:
            return False
        after = apply(Snapshot(write.service, (known.instance,)), replace(write, cluster=known.instance.cluster))
        changed = after.instances[0] != known.instance
        known.instance = after.instances[0]
        self._track_expiry(known)
        return changed

    def _beat(self, write: Beat, now: float) -> bool:
        known = self._by_key.get((write.service, write.ip, write.port))
        if known is not None:
            known.last_heard, known.beats, known.deregistering = now, True, False
            return False
        if write.full is None or not self._put(write.service, write.full, now):
            return False
        self._by_key[(write.service, write.ip, write.port)].beats = True
        return True

    @property
    def room(self) -> bool:
        return len(self._by_key) < self._max_registrations

    def find(self, service: ServiceKey, ip: str, port: int) -> Registration | None:
        return self._by_key.get((service, ip, port))

    def count(self, service: ServiceKey) -> int:
        """How many instances of the service are registered here."""
        return len(self._by_service.get(service, ()))

    def of_service(self, service: ServiceKey) -> Iterable[Registration]:
        """A view of the registrations of a service; do not change any while iterating."""
        return self._by_service.get(service, {}).values()

    def expire(self, now: float) -> list[Registration]:
        """Removes and returns the expired registrations, except those that the proxy beats for."""
        if now < self._first_expiry:
            return []
        gone = [r for r in self._by_key.values() if r.check is None and not r.alive(now)]
        for registration in gone:
            self._drop(registration.key)
        # whoever beats for an expired one may give it up at any time, so look again soon
        expiries = (r.expires_at if r.check is None else max(r.expires_at, now + 1) for r in self._by_key.values())
        self._first_expiry = min(expiries, default=math.inf)
        return gone

    def shift(self, gap: float, now: float) -> None:
        """This process stood still for `gap` seconds, which does not count as silence of the clients."""
        for registration in self._by_key.values():
            registration.last_heard = min(now, registration.last_heard + gap)

    def restore(self, registration: Registration) -> None:
        """Adds a registration from disk. It never replaces one that was made since the start."""
        if registration.key not in self._by_key:
            if self.room:
                self._add(registration)
            else:
                self.full = True

    def __iter__(self) -> Iterator[Registration]:
        return iter(list(self._by_key.values()))

    def __len__(self) -> int:
        return len(self._by_key)

    def __repr__(self) -> str:
        return f"<Registrations {len(self._by_key)} instances of {len(self._by_service)} services>"
