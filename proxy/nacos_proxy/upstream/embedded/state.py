"""One service of the embedded registry: its instances, their overrides and their deadlines. The time is an argument.

As in Nacos 2.5.1 (nacos-http.md 5), ip:port identifies an instance, and all instances of a service are ephemeral, or
all are persistent. Modifications (overrides) are kept apart from registrations; lists show instances with overrides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nacos_proxy.model.calls import ServiceInfo
from nacos_proxy.model.errors import Malformed, Reason, Refused
from nacos_proxy.model.heartbeats import beat_timeout, delete_timeout
from nacos_proxy.model.services import EMPTY, Checking, Instance, InstanceKey, Metadata, ServiceKey, Snapshot
from nacos_proxy.wire.nacos.parameters import TRUE
from nacos_proxy.wire.nacos.shapes import read_exactly

Address = tuple[str, int]

MAX_SILENCE = 180.0  # seconds until a silent ip:port is removed, whatever its metadata says
UNCHECKED = "enableClientBeat"  # if "true" in the metadata of an instance or a service, beats are not required
EMPTY_SERVICE_LIVES = 60.0  # seconds, also if it was created explicitly (nacos-http.md 2.10)


@dataclass(frozen=True, slots=True)
class InstanceOverrides:
    """The fields of an instance that PUT, PATCH and the metadata batch change (recordings modify.jsonl)."""

    weight: float = 1.0
    enabled: bool = True
    metadata: Metadata = field(default_factory=lambda: EMPTY)


@dataclass(slots=True)
class Registered:
    """An instance as it was registered, its overrides, its health, and the time of its last beat (`heard`).

    `unhealthy_after` and `removed_after` are seconds of silence. They are stored because reading the metadata at every
    check of a large service would be slow.
    """

    instance: Instance
    heard: float
    healthy: bool
    overrides: InstanceOverrides | None = None
    unhealthy_after: float = 15.0
    removed_after: float = 30.0

    @property
    def metadata(self) -> Metadata:
        """The metadata with its overrides, which take precedence (nacos-http.md 5.6)."""
        return {**self.instance.metadata, **self.overrides.metadata} if self.overrides else self.instance.metadata

    def set_timeouts(self, *, checked: bool) -> None:
        """Reads the timeouts from the metadata. `checked`: whether the service requires beats."""
        metadata = self.metadata
        checked = checked and (metadata.get(UNCHECKED) or "").lower() not in TRUE
        self.unhealthy_after = beat_timeout(metadata) / 1000 if checked else math.inf
        self.removed_after = min(MAX_SILENCE, delete_timeout(metadata) / 1000 if checked else math.inf)

    def unhealthy_at(self) -> float:
        return self.heard + self.unhealthy_after

    def removed_at(self) -> float:
        return self.heard + self.removed_after

    def deadline(self) -> float:
        return min(self.unhealthy_at(), self.removed_at()) if self.healthy else self.removed_at()

    def listed(self) -> Instance:
        """The instance as lists show it."""
        instance, changes = replace(self.instance, healthy=self.healthy), self.overrides
        if changes is None:
            return instance
        return replace(instance, weight=changes.weight, enabled=changes.enabled, metadata=self.metadata)


@dataclass(frozen=True, slots=True)
class PersistentService:
    """The part of a service that outlives the process, an object with these field names in the state file.

    `places` are its persistent instances, their health and their overrides.
    """

    ephemeral: bool
    explicit: bool
    threshold: float
    metadata: Metadata
    selector: Mapping[str, Any]
    checks: Mapping[str, Checking]
    places: tuple[tuple[Instance, bool, InstanceOverrides | None], ...]


@dataclass(slots=True)
class Service:
    """`explicit`: a caller created or modified the service itself. If not, a threshold of 0 never masks."""

    key: ServiceKey
    ephemeral: bool
    explicit: bool = False
    threshold: float = 0.0
    metadata: Metadata = field(default_factory=lambda: EMPTY)
    selector: Mapping[str, Any] = field(default_factory=lambda: {"type": "none", "contextType": "NONE"})
    instances: dict[Address, Registered] = field(default_factory=lambda: {})
    checks: Mapping[str, Checking] = field(default_factory=lambda: EMPTY)
    empty_since: float = math.inf
    _snapshot: Snapshot | None = None

    def persistent(self) -> PersistentService | None:
        """The part that outlives the process, None for nothing."""
        if not self.explicit and (self.ephemeral or not self.instances):
            return None
        instances = () if self.ephemeral else self.instances.values()
        places = tuple((known.instance, known.healthy, known.overrides) for known in instances)
        return PersistentService(
            self.ephemeral, self.explicit, self.threshold, self.metadata, self.selector, self.checks, places
        )

    @classmethod
    def of(cls, key: ServiceKey, stored: PersistentService, now: float) -> Service:
        """The inverse of `persistent`."""
        service = cls(key, stored.ephemeral, stored.explicit, stored.threshold, stored.metadata, stored.selector)
        service.checks, service.empty_since = stored.checks, now
        for instance, healthy, overrides in stored.places:
            service.register(replace(instance, ephemeral=stored.ephemeral), now)
            service.instances[(instance.ip, instance.port)].healthy = healthy
            if overrides is not None:
                service.override(instance.key, overrides)
        return service

    def register(self, instance: Instance, now: float) -> None:
        """Adds or replaces the instance at its ip:port. Raises `Refused` if only one of them is ephemeral."""
        if instance.ephemeral != self.ephemeral:
            kinds = ("ephemeral", "persistent")
            ours, theirs = kinds if self.ephemeral else reversed(kinds)
            text = f"errCode: 400, errMsg: Current service {self.key.grouped} is {ours} service, "
            raise Refused(Reason.WRONG_KIND, text + f"can't register {theirs} instance. ")
        address = (instance.ip, instance.port)
        known = self.instances.get(address)
        overrides = known.overrides if known is not None and known.instance.cluster == instance.cluster else None
        registered = self.instances[address] = Registered(instance, now, instance.healthy, overrides)
        registered.set_timeouts(checked=self._checked())
        self.empty_since = math.inf
        self._snapshot = None

    def deregister(self, ip: str, port: int, ephemeral: bool, now: float) -> bool:
        known = self.instances.get((ip, port))
        if known is None or known.instance.ephemeral != ephemeral:
            return False
        self._remove(known, now)
        return True

    def _remove(self, known: Registered, now: float) -> None:
        del self.instances[(known.instance.ip, known.instance.port)]
        self.empty_since = math.inf if self.instances else now
        self._snapshot = None

    def override(self, key: InstanceKey, overrides: InstanceOverrides) -> None:
        """Modifies an instance; no effect if it is not registered."""
        if (known := self.find(key)) is not None:
            known.overrides = overrides
            known.set_timeouts(checked=self._checked())
            self._snapshot = None

    def overrides_of(self, key: InstanceKey) -> InstanceOverrides:
        """The overrides of an instance. If it has none: overrides with its own weight and enabled.

        Nacos would reset these two, although the caller named only the metadata.
        """
        known = self.find(key)
        if known is None:
            return InstanceOverrides()
        return known.overrides or InstanceOverrides(known.instance.weight, known.instance.enabled)

    def find(self, key: InstanceKey) -> Registered | None:
        known = self.instances.get((key.ip, key.port))
        return known if known is not None and known.instance.cluster == key.cluster else None

    def beat(self, ip: str, port: int, now: float) -> Registered | None:
        """Records a beat. Returns the instance, None if no ephemeral one is registered."""
        known = self.instances.get((ip, port))
        if known is None or not known.instance.ephemeral:
            return None
        known.heard = now
        if not known.healthy:
            known.healthy = True
            self._snapshot = None
        return known

    def set_health(self, ip: str, port: int, healthy: bool) -> bool:
        """Sets the health of a persistent instance. Returns whether the list changed."""
        known = self.instances.get((ip, port))
        if known is None or known.instance.ephemeral or known.healthy == healthy:
            return False
        known.healthy = healthy
        self._snapshot = None
        return True

    def changed(self) -> None:
        """Must be called after a change of the service's own data."""
        self._snapshot = None
        for known in self.instances.values():
            known.set_timeouts(checked=self._checked())

    def _checked(self) -> bool:
        return (self.metadata.get(UNCHECKED) or "").lower() != "true"

    def expire(self, now: float) -> bool:
        """Marks silent instances unhealthy, then removes them. Returns whether the list changed."""
        if not self.ephemeral:
            return False
        changed = False
        for known in list(self.instances.values()):
            if now >= known.removed_at():
                self._remove(known, now)
                changed = True
            elif known.healthy and now >= known.unhealthy_at():
                known.healthy = False
                self._snapshot = None
                changed = True
        return changed

    def shift(self, gap: float, now: float) -> None:
        """Does not count as silence the `gap` seconds in which this process stood still."""
        for known in self.instances.values():
            known.heard = min(now, known.heard + gap)

    def deadline_of(self, ip: str, port: int) -> float:
        """The time at which one instance may next expire."""
        known = self.instances.get((ip, port))
        return known.deadline() if known is not None and self.ephemeral else math.inf

    def deadline(self) -> float:
        """The time at which an instance, or the empty service, may next expire."""
        if not self.instances:
            return self.empty_since + EMPTY_SERVICE_LIVES
        if not self.ephemeral:
            return math.inf
        return min(known.deadline() for known in self.instances.values())

    def snapshot(self) -> Snapshot:
        """The service as lists show it; the same object while nothing changed."""
        if self._snapshot is None:
            instances = [known.listed() for known in self.instances.values()]
            self._snapshot = Snapshot.of(self.key, instances, threshold=self.threshold, masking=self.explicit)
        return self._snapshot

    def info(self) -> ServiceInfo:
        clusters = tuple(dict.fromkeys(known.instance.cluster for known in self.instances.values()))
        return ServiceInfo(
            self.key, self.threshold, self.metadata, self.selector, clusters, self.ephemeral, self.checks
        )


def read_selector(text: str) -> Mapping[str, Any]:
    """The selector of a service (which clients see which instances) as its JSON object. Raises `Refused`."""
    if not text:
        return {"type": "none", "contextType": "NONE"}
    try:
        selector: Any = read_exactly(text)
    except Malformed:
        selector = None
    if not isinstance(selector, dict) or selector.get("type") not in ("none", "label"):  # pyright: ignore[reportUnknownMemberType]
        raise Refused(Reason.OTHER, "not match any type of selector!")
    return {"contextType": "NONE", **selector} if selector["type"] == "none" else selector  # pyright: ignore[reportUnknownVariableType]
