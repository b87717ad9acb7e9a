"""Commit: change the catalog and publish the change, as one transaction.

On one event loop, code without `await` is a transaction, because nothing else can run in between. This module never
awaits, nor may a follower. Therefore followers get each change once, in order and without a gap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from nacos_proxy.catalog.cache import Cache
from nacos_proxy.catalog.circuit_breaker import Breaker
from nacos_proxy.catalog.drains import Drains
from nacos_proxy.catalog.hub import Hub
from nacos_proxy.catalog.pending_writes import Pending
from nacos_proxy.catalog.registrations import Registrations
from nacos_proxy.model.calls import BEAT_OK, Beat, BeatResult, Deregister, Register, Update, Write
from nacos_proxy.model.services import Change, Instance, ServiceKey
from nacos_proxy.runtime import Clock, Supervisor

R = TypeVar("R")
Follower = Callable[[Change], object]

_OF_INSTANCE = (Register, Deregister, Update, Beat)  # a tuple, because a union would be made anew for each beat


@dataclass(slots=True)
class Catalog:
    """What this host knows. Its parts never await, and get the time as an argument."""

    cache: Cache
    hub: Hub
    registrations: Registrations
    breaker: Breaker
    drains: Drains = field(default_factory=Drains)


@dataclass(frozen=True, slots=True)
class Written(Generic[R]):
    """The result of a write, and its source: the upstream, the upstream after a reregistration, or this proxy alone.

    `drained`: also this proxy alone, because the instance is being taken out of traffic.
    """

    result: R
    how: Literal["upstream", "healed", "local", "drained"] = "upstream"


@dataclass(slots=True)
class Counts:
    """What happened since the start, by outcome. `/status` shows the field names."""

    reads: dict[str, int] = field(default_factory=lambda: {})
    fetches: dict[str, int] = field(default_factory=lambda: {})
    writes: dict[str, int] = field(default_factory=lambda: {})
    changes: dict[str, int] = field(default_factory=lambda: {})
    outage: dict[str, int] = field(default_factory=lambda: {})
    pushes: dict[str, int] = field(default_factory=lambda: {})
    healed: int = 0
    local_beats: int = 0

    @staticmethod
    def add(counts: dict[str, int], name: str) -> None:
        counts[name] = counts.get(name, 0) + 1


@dataclass(slots=True, eq=False, repr=False)
class Committer:
    """Makes accepted writes visible to readers and calls the followers of each change, in the order they joined."""

    _catalog: Catalog
    _clock: Clock
    _supervisor: Supervisor
    counts: Counts = field(default_factory=Counts)
    on_registration: list[Callable[[], None]] = field(default_factory=lambda: [])
    _followers: dict[str, Follower] = field(default_factory=lambda: {})

    def follow(self, name: str, follower: Follower) -> None:
        """Call `follower` for each change, after the earlier followers. It must not await."""
        self._followers[name] = follower

    def commit(self, change: Change | None) -> None:
        """Publish a change that the cache has just made. None: readers see no difference."""
        if change is None:
            return
        Counts.add(self.counts.changes, change.source)
        for name, follower in self._followers.items():
            self._supervisor.call(name, follower, change)

    def show(self, write: Write[Any], *, local: bool = False) -> Change | None:
        """Make a write visible to the next read. `local`: only this proxy has accepted it so far."""
        change = self._catalog.cache.record_write(write, self._clock.now(), self.now_ms(), local=local)
        self.commit(change)
        return change

    def revise(self, service: ServiceKey, revised: Callable[[Pending], Pending | None]) -> None:
        """Replace each pending write of a service by `revised(write)`; None drops it."""
        self.commit(self._catalog.cache.revise(service, revised, self._clock.now(), self.now_ms()))

    def accepted(
        self, write: Write[Any], result: object, *, shown_as: Write[Any] | None = None, local: bool = False
    ) -> None:
        """Record an accepted write: remember registrations, and show the write (or `shown_as` instead) to readers."""
        if isinstance(result, BeatResult) and result.code != BEAT_OK:
            return
        now, registrations = self._clock.now(), self._catalog.registrations
        if isinstance(write, _OF_INSTANCE) and registrations.record_write(write, now):
            self.registrations_changed(write.service)
        self.show(shown_as or write, local=local)
        if isinstance(write, Update) and (hidden := registrations.find(write.service, write.ip, write.port)):
            if hidden.instance.enabled and hidden.instance.cluster == write.cluster and hidden.alive(now):
                self.enabled(write.service, hidden.instance)

    def enabled(self, service: ServiceKey, instance: Instance) -> None:
        """Show an instance that was just enabled, until the upstream lists it. Lists hide disabled instances."""
        entry, i = self._catalog.cache.get(service), instance
        if entry is not None and entry.visible is not None and entry.visible.find(i.ip, i.port) is None:
            # A full beat adds the instance to a list that lacks it, and changes nothing in others.
            self.show(Beat(service, i.ip, i.port, i.cluster, i.ephemeral, full=i))

    def registrations_changed(self, service: ServiceKey) -> None:
        """The remembered registrations of a service have changed: notify the cache and `on_registration`."""
        number = self._catalog.registrations.count(service)
        self._catalog.cache.set_local_registrations(service, number, self._clock.now())
        for listener in self.on_registration:
            self._supervisor.call("registrations", listener)

    def now_ms(self) -> int:
        return int(self._clock.wall() * 1000)
