"""What the embedded registry knows of its services, told the time. Not for: calls' dispatch, tasks (`embedded`).

As in Nacos 2.5.1 (nacos-http.md 5): an instance of a service is its ip:port; a service is ephemeral or persistent as a
whole; what was registered and what a modification laid over it are kept apart, and a listed instance is their sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nacos_proxy.model.calls import ServiceInfo, Update
from nacos_proxy.model.errors import Malformed, Reason, Refused
from nacos_proxy.model.heartbeats import (
    DEFAULT_BEAT_INTERVAL,
    beat_interval,
    beat_timeout,
    delete_timeout,
)
from nacos_proxy.model.services import (
    EMPTY,
    Checking,
    Instance,
    InstanceKey,
    Metadata,
    ServiceKey,
    Snapshot,
)
from nacos_proxy.wire.nacos.parameters import TRUE
from nacos_proxy.wire.nacos.shapes import read_exactly

InstanceAddress = tuple[str, int]

CLIENT_LIVES = 180.0  # seconds of an ip:port that is silent, whatever its instances say of themselves
UNCHECKED = "enableClientBeat"  # in the metadata of an instance or a service: beats are not asked for

EMPTY_SERVICE_LIVES = 60.0  # seconds, also one that was created explicitly (nacos-http.md 2.10)


@dataclass(slots=True)
class Registered:
    """A registration: the instance as it came, when it was last heard of, and whether it counts as alive.

    Seconds of silence until it is unhealthy, and until it goes, are kept: many are looked at together.
    """

    instance: Instance
    heard: float
    healthy: bool
    unhealthy_after: float = 15.0
    gone_after: float = 30.0

    def timed(self, laid: InstanceOverrides | None, *, checked: bool) -> None:
        """The overlay's times count before the registration's (nacos-http.md 5.6). `checked`: as its service has it."""
        metadata = {**self.instance.metadata, **(laid.metadata if laid else {})}
        checked = checked and (metadata.get(UNCHECKED) or "").lower() not in TRUE
        self.unhealthy_after = beat_timeout(metadata) / 1000 if checked else math.inf
        self.gone_after = min(CLIENT_LIVES, delete_timeout(metadata) / 1000 if checked else math.inf)

    def unhealthy_at(self) -> float:
        return self.heard + self.unhealthy_after

    def gone_at(self) -> float:
        return self.heard + self.gone_after

    def next_at(self) -> float:
        return min(self.unhealthy_at(), self.gone_at()) if self.healthy else self.gone_at()


@dataclass(frozen=True, slots=True)
class InstanceOverrides:
    """What PUT, PATCH and the metadata batch lay over a registration (modify.jsonl)."""

    weight: float = 1.0
    enabled: bool = True
    metadata: Metadata = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True)
class Kept:
    """What of a service outlives the process: of each persistent instance whether it is well, and what lies over it."""

    ephemeral: bool
    explicit: bool
    threshold: float
    metadata: Metadata
    selector: Mapping[str, Any]
    checks: Mapping[str, Checking]
    places: tuple[tuple[Instance, bool, InstanceOverrides | None], ...]


@dataclass(slots=True)
class Service:
    """One service. `explicit`: it has metadata of its own, without which a threshold of 0 never masks."""

    key: ServiceKey
    ephemeral: bool
    explicit: bool = False
    threshold: float = 0.0
    metadata: Metadata = field(default_factory=lambda: EMPTY)
    selector: Mapping[str, Any] = field(default_factory=lambda: {"type": "none", "contextType": "NONE"})
    places: dict[InstanceAddress, Registered] = field(default_factory=lambda: {})
    overrides: dict[InstanceKey, InstanceOverrides] = field(default_factory=lambda: {})
    checks: Mapping[str, Checking] = field(default_factory=lambda: EMPTY)
    empty_since: float = math.inf
    _listed: Snapshot | None = None

    # what lasts

    def kept(self) -> Kept | None:
        """None where nothing of it does."""
        if not self.explicit and (self.ephemeral or not self.places):
            return None
        places = () if self.ephemeral else self.places.values()
        lasting = tuple((known.instance, known.healthy, self.overrides.get(known.instance.key)) for known in places)
        return Kept(
            self.ephemeral, self.explicit, self.threshold, self.metadata, self.selector, self.checks, lasting
        )  # fmt: skip

    @classmethod
    def of(cls, key: ServiceKey, kept: Kept, now: float) -> Service:
        """The other direction of `kept`."""
        k = kept
        made = cls(key, k.ephemeral, k.explicit, k.threshold, k.metadata, k.selector, checks=k.checks, empty_since=now)
        for instance, healthy, laid in kept.places:
            made.register(replace(instance, ephemeral=k.ephemeral), now)
            made.places[(instance.ip, instance.port)].healthy = healthy
            if laid is not None:
                made.override(instance.key, laid)
        return made

    # writes

    def register(self, instance: Instance, now: float) -> None:
        """Upsert by ip:port. Raises `Refused` where the service is of the other kind."""
        if instance.ephemeral != self.ephemeral:
            kinds = ("ephemeral", "persistent")
            ours, theirs = kinds if self.ephemeral else reversed(kinds)
            text = f"errCode: 400, errMsg: Current service {self.key.grouped} is {ours} service, "
            raise Refused(Reason.WRONG_KIND, text + f"can't register {theirs} instance. ")
        place = (instance.ip, instance.port)
        known = self.places.get(place)
        if known is not None and known.instance.cluster != instance.cluster:
            self.overrides.pop(known.instance.key, None)
        registered = self.places[place] = Registered(instance, now, instance.healthy)
        registered.timed(self.overrides.get(instance.key), checked=self._checked())
        self.empty_since = math.inf
        self._listed = None

    def deregister(self, ip: str, port: int, ephemeral: bool, now: float) -> bool:
        known = self.places.get((ip, port))
        if known is None or known.instance.ephemeral != ephemeral:
            return False
        del self.places[(ip, port)]
        self.overrides.pop(known.instance.key, None)
        self.empty_since = math.inf if self.places else now
        self._listed = None
        return True

    def override(self, key: InstanceKey, laid: InstanceOverrides) -> None:
        """Over an instance that is there; over another it changes nothing that anybody could see."""
        if self.has(key):
            self.overrides[key] = laid
            self.places[(key.ip, key.port)].timed(laid, checked=self._checked())
            self._listed = None

    def overrides_of(self, key: InstanceKey) -> InstanceOverrides:
        """What lies over an instance; where nothing does, one that changes nothing.

        Nacos puts weight and enabled back then; who names the metadata alone means the metadata alone.
        """
        known = self.places.get((key.ip, key.port))
        if key in self.overrides or known is None:
            return self.overrides.get(key, InstanceOverrides())
        return InstanceOverrides(known.instance.weight, known.instance.enabled)

    def has(self, key: InstanceKey) -> bool:
        known = self.places.get((key.ip, key.port))
        return known is not None and known.instance.cluster == key.cluster

    def beat(self, ip: str, port: int, now: float) -> Registered | None:
        """Renews an ephemeral instance; None where there is none to renew."""
        known = self.places.get((ip, port))
        if known is None or not known.instance.ephemeral:
            return None
        known.heard = now
        if not known.healthy:
            known.healthy = True
            self._listed = None
        return known

    def set_health(self, ip: str, port: int, healthy: bool) -> bool:
        """By hand, of a persistent instance; whether a list differs now."""
        known = self.places.get((ip, port))
        if known is None or known.instance.ephemeral or known.healthy == healthy:
            return False
        known.healthy = healthy
        self._listed = None
        return True

    def interval(self, known: Registered, default: int = DEFAULT_BEAT_INTERVAL) -> int:
        laid = self.overrides.get(known.instance.key)
        return beat_interval({**known.instance.metadata, **(laid.metadata if laid else {})}, default)

    def changed(self) -> None:
        """Of the service itself."""
        self._listed = None
        for known in self.places.values():
            known.timed(self.overrides.get(known.instance.key), checked=self._checked())

    def _checked(self) -> bool:
        return (self.metadata.get(UNCHECKED) or "").lower() != "true"

    # time

    def expire(self, now: float) -> bool:
        """What time has done: silent instances turn unhealthy, then go. True where a list differs now."""
        if not self.ephemeral:
            return False
        changed = False
        for place, known in list(self.places.items()):
            if now >= known.gone_at():
                del self.places[place]
                self.overrides.pop(known.instance.key, None)
                self.empty_since = math.inf if self.places else now
                changed = True
            elif known.healthy and now >= known.unhealthy_at():
                known.healthy = False
                changed = True
        if changed:
            self._listed = None
        return changed

    def shift(self, gap: float, now: float) -> None:
        """For so long nobody could be heard: that is no silence."""
        for known in self.places.values():
            known.heard = min(now, known.heard + gap)

    def deadline_of(self, ip: str, port: int) -> float:
        """The same, as far as one instance matters."""
        known = self.places.get((ip, port))
        return known.next_at() if known is not None and self.ephemeral else math.inf

    def deadline(self) -> float:
        """When `expire` may next have something to do."""
        if not self.places:
            return self.empty_since + EMPTY_SERVICE_LIVES
        if not self.ephemeral:
            return math.inf
        return min(p.next_at() for p in self.places.values())

    # reads

    def listed(self) -> Snapshot:
        """The service as it is now; the same object while nothing changed."""
        if self._listed is None:
            instances = [self._sum(known) for known in self.places.values()]
            self._listed = Snapshot.of(self.key, instances, threshold=self.threshold, masking=self.explicit)
        return self._listed

    def _sum(self, known: Registered) -> Instance:
        instance = replace(known.instance, healthy=known.healthy)
        laid = self.overrides.get(instance.key)
        if laid is None:
            return instance
        metadata = {**instance.metadata, **laid.metadata}
        return replace(instance, weight=laid.weight, enabled=laid.enabled, metadata=metadata)

    def info(self) -> ServiceInfo:
        return ServiceInfo(
            self.key, self.threshold, self.metadata, self.selector, self.clusters(), self.ephemeral, self.checks
        )

    def clusters(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(known.instance.cluster for known in self.places.values()))


def read_selector(text: str) -> Mapping[str, Any]:
    """Which clients see which instances, as a service shows it. Raises `Refused`."""
    if not text:
        return {"type": "none", "contextType": "NONE"}
    try:
        selector: Any = read_exactly(text)
    except Malformed:
        selector = None
    if not isinstance(selector, dict) or selector.get("type") not in ("none", "label"):  # pyright: ignore[reportUnknownMemberType]
        raise Refused(Reason.OTHER, "not match any type of selector!")
    return {"contextType": "NONE", **selector} if selector["type"] == "none" else selector  # pyright: ignore[reportUnknownVariableType]


def no_instances(key: ServiceKey, cluster: str) -> Refused:
    text = f"no ips found for cluster {cluster} in service {key.grouped}"
    return Refused(Reason.NO_INSTANCES, text, status=404)


def service_not_found(call: Update) -> Refused:
    key = call.service
    java = f"Service{{namespace='{key.namespace}', group='{key.group}', name='{key.name}', "
    java += f"ephemeral={str(call.ephemeral).lower()}, revision=0}}"
    return Refused(Reason.SERVICE_NOT_FOUND, f"service not found, namespace: {key.namespace}, service: {java}")
