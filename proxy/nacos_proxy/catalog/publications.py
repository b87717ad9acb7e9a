"""Which connections publish which instances (Nacos over gRPC), and when each instance beats next.

A connection publishes one value for each service: a set of instances (nacos-grpc.md 4). An address stays published
while at least one connection publishes it; the value of the newest one counts. After a start, and when the proxy itself
has closed the connection, an address is *orphaned*: it beats on until its client is back, or until its time is over.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field

from nacos_proxy.catalog.registrations import RegistrationKey
from nacos_proxy.catalog.schedule import Schedule
from nacos_proxy.catalog.shares import Shares
from nacos_proxy.model.heartbeats import beat_interval, beat_timeout
from nacos_proxy.model.services import Instance, Metadata, ServiceKey

Owner = Hashable
"""A connection, as long as it lives."""

MAX_BEAT_INTERVAL = 5.0  # seconds; gRPC clients do not beat, so the metadata can only ask for less
MIN_BEAT_INTERVAL = 1.0
_GOLDEN = 0.618033988749895  # multiples of it modulo 1 are spread evenly, however many there are


def seconds_between_beats(metadata: Metadata) -> float:
    """So that two lost beats in a row do not make the instance unhealthy."""
    asked = min(beat_interval(metadata), beat_timeout(metadata) / 3) / 1000
    return min(max(asked, MIN_BEAT_INTERVAL), MAX_BEAT_INTERVAL)


@dataclass(slots=True)
class _Holder:
    """One connection: the address of its client, and its values."""

    client: str
    values: dict[RegistrationKey, Instance] = field(default_factory=lambda: {})


class PublishedInstances:
    """At most `max_instances`, of which one client (an address) gets at most as many as stay free (`Shares`)."""

    def __init__(self, max_instances: int) -> None:
        self._holders: dict[Owner, _Holder] = {}
        self._owners: dict[RegistrationKey, list[Owner]] = {}  # the newest is the last
        self._orphans: dict[RegistrationKey, float] = {}  # until when each one goes on beating
        self._shares = Shares[str](max_instances)
        self._schedule = Schedule[RegistrationKey]()
        self._beats = 0

    def room(self, client: str, instances: int) -> bool:
        """Whether the client may publish that many more."""
        return self._shares.room(client, instances)

    def add(self, owner: Owner, client: str, key: RegistrationKey, instance: Instance) -> None:
        """The owner publishes the instance from now on, and is the newest to do so."""
        holder = self._holders.setdefault(owner, _Holder(client))
        if key not in holder.values:
            self._shares.take(holder.client)
        holder.values[key] = instance
        owners = self._owners.setdefault(key, [])
        if owner in owners:
            owners.remove(owner)
        owners.append(owner)
        self._orphans.pop(key, None)

    def remove(self, owner: Owner, key: RegistrationKey) -> Instance | None:
        """The owner no longer publishes the address. Returns what it published there, if anything."""
        holder = self._holders.get(owner)
        if holder is None or (removed := holder.values.pop(key, None)) is None:
            return None
        self._shares.give_back(holder.client)
        if not holder.values:
            del self._holders[owner]
        owners = self._owners[key]
        owners.remove(owner)
        if not owners:
            del self._owners[key]
            self._schedule.drop(key)
        return removed

    def value(self, owner: Owner, service: ServiceKey) -> dict[RegistrationKey, Instance]:
        """What the owner publishes for the service."""
        return {key: instance for key, instance in self.values(owner).items() if key[0] == service}

    def values(self, owner: Owner) -> Mapping[RegistrationKey, Instance]:
        """Everything that the owner publishes."""
        holder = self._holders.get(owner)
        return {} if holder is None else holder.values

    def newest(self, key: RegistrationKey) -> Instance | None:
        """The value of the newest connection that publishes the address."""
        owners = self._owners.get(key)
        return self._holders[owners[-1]].values[key] if owners else None

    def orphan(self, key: RegistrationKey, until: float) -> None:
        """Without a connection, the address goes on beating until then. The next beat is due at once."""
        if key not in self._owners:
            self._orphans[key] = until
            self._schedule.put(key, -math.inf)

    def forget(self, key: RegistrationKey) -> None:
        """The address does not beat any more: it is no longer orphaned, and has to be scheduled anew."""
        self._schedule.drop(key)
        self._orphans.pop(key, None)

    def take_lapsed(self, now: float) -> list[RegistrationKey]:
        """Forgets and returns the orphaned addresses whose time is over."""
        lapsed = [key for key, until in self._orphans.items() if until <= now]
        for key in lapsed:
            self.forget(key)
        return lapsed

    def shift(self, gap: float) -> None:
        """This process stood still for `gap` seconds, in which no client could come back."""
        for key in self._orphans:
            self._orphans[key] += gap

    def schedule(self, key: RegistrationKey, since: float, metadata: Metadata) -> None:
        """The next beat is due at most `seconds_between_beats` after `since`; earlier by up to a fifth, to spread."""
        if key in self:
            self._beats += 1
            self._schedule.put(key, since + seconds_between_beats(metadata) * (0.8 + 0.2 * (self._beats * _GOLDEN % 1)))

    def take_due(self, now: float) -> RegistrationKey | None:
        """The address whose beat is most overdue; None if none is due. It is not due again until it is scheduled."""
        return self._schedule.take(now)

    def orphaned_until(self, key: RegistrationKey) -> float | None:
        """None if it is not orphaned."""
        return self._orphans.get(key)

    @property
    def orphans(self) -> int:
        return len(self._orphans)

    def __contains__(self, key: object) -> bool:
        return key in self._owners or key in self._orphans

    def __iter__(self) -> Iterator[RegistrationKey]:
        return iter((*self._owners, *self._orphans))

    def __len__(self) -> int:
        return len(self._owners) + len(self._orphans)

    def __repr__(self) -> str:
        owned, orphans = len(self._owners), len(self._orphans)
        return f"<PublishedInstances {owned} of {len(self._holders)} connections, {orphans} orphaned>"
