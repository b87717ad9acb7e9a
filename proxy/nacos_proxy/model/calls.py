"""Calls to a registry, as immutable values. `effects.apply` says what a write does.

A call names its result type: `Fetch` is a `Call[Snapshot]`. Constructors check nothing: the front ends check a caller's
values (`limits`) before they construct a call. Reads of a snapshot (a filtered list, a pick) are
not calls to a registry: the catalog answers them and needs only `Fetch`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from nacos_proxy.model.heartbeats import DEFAULT_BEAT_INTERVAL
from nacos_proxy.model.services import (
    DEFAULT_CLUSTER,
    EMPTY,
    Checking,
    Instance,
    InstanceKey,
    Metadata,
    ServiceKey,
    Snapshot,
    without_nulls,
)

R = TypeVar("R")

BEAT_OK = 10200
BEAT_NOT_FOUND = 20404


class Call(Generic[R]):
    """A call that a `Registry` can execute; `R` is the type of its result."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Fetch(Call[Snapshot]):
    """Fetches the whole service: all clusters, true health. An unknown service is an empty snapshot, not an error."""

    service: ServiceKey


@dataclass(frozen=True, slots=True)
class GetInstance(Call[Instance]):
    """Gets one instance from the registry, even a disabled one, which lists hide.

    Raises `Refused` with `Reason.NO_INSTANCES` (the service or cluster is empty) or `Reason.INSTANCE_NOT_FOUND`.
    """

    service: ServiceKey
    ip: str
    port: int
    cluster: str = DEFAULT_CLUSTER


@dataclass(frozen=True, slots=True)
class ServicePage:
    """One page of service names (without the group), and the total number of services."""

    count: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListServices(Call[ServicePage]):
    """Lists the names of one group. `page` counts from 1, and 0 also means 1. A page past the end is empty."""

    namespace: str
    group: str
    page: int = 1
    size: int = 10


@dataclass(frozen=True, slots=True)
class Write(Call[R]):
    """A call that changes one service; `effects.apply` says how."""

    service: ServiceKey


@dataclass(frozen=True, slots=True)
class Register(Write[None]):
    """Adds or replaces an instance. Idempotent, so it may be retried if its outcome is unknown."""

    instance: Instance


@dataclass(frozen=True, slots=True)
class Deregister(Write[None]):
    """Removes an instance. Idempotent: an unknown instance is a success. Nacos 2.x and later ignore `cluster`."""

    ip: str
    port: int
    cluster: str = DEFAULT_CLUSTER
    ephemeral: bool = True


@dataclass(frozen=True, slots=True)
class Update(Write[None]):
    """Changes weight, enabled and metadata of an instance; None means not given. Idempotent.

    `partial=False` is a PUT: the server resets what is not given (weight 1.0, enabled, no added metadata), and an
    unknown instance is a success. `partial=True` is a PATCH: only the given values change, given metadata replaces the
    metadata added before, and an unknown instance is `Refused`. Source: modify.jsonl.
    Nulls in the metadata are dropped: 2.5.1 fails on them, 3.0.3 drops them (nacos-http.md 1.7).
    """

    ip: str
    port: int
    cluster: str = DEFAULT_CLUSTER
    weight: float | None = None
    enabled: bool | None = None
    metadata: Metadata | None = None
    ephemeral: bool = True
    partial: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "metadata", self.metadata and without_nulls(self.metadata))


@dataclass(frozen=True, slots=True)
class BeatResult:
    """The answer to a beat. `code` is BEAT_OK or BEAT_NOT_FOUND; `interval` is in ms; `extra` has unknown fields."""

    code: int = BEAT_OK
    interval: int = DEFAULT_BEAT_INTERVAL
    light: bool = True
    extra: Mapping[str, Any] = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True)
class Beat(Write[BeatResult]):
    """A heartbeat. A server that does not know the instance registers `full`; without `full` it answers BEAT_NOT_FOUND.

    A known instance keeps its weight and metadata, even if those of `full` differ (nacos-http.md 2.7, recording "beat
    with weight 1").
    """

    ip: str
    port: int
    cluster: str = DEFAULT_CLUSTER
    ephemeral: bool = True
    full: Instance | None = None


@dataclass(frozen=True, slots=True)
class BatchMetadata(Write[tuple[str, ...]]):
    """Adds metadata to many instances, or removes it (`remove`). Without `instances`: to all of the service.

    The result names each changed instance as `ip:port:unknown:cluster:ephemeral`.
    """

    instances: tuple[InstanceKey, ...]
    metadata: Metadata
    remove: bool = False
    ephemeral: bool = True


@dataclass(frozen=True, slots=True)
class SetHealth(Write[None]):
    """Sets the health of a persistent instance. Only for clusters without a health checker."""

    ip: str
    port: int
    cluster: str
    healthy: bool


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """A service's own data. `selector` is the server's JSON object, for example `{"type": "none"}`."""

    key: ServiceKey
    threshold: float = 0.0
    metadata: Metadata = field(default_factory=lambda: EMPTY)
    selector: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    clusters: tuple[str, ...] = ()
    ephemeral: bool = True
    checks: Mapping[str, Checking] = field(default_factory=lambda: EMPTY)  # only clusters with a setting of their own


@dataclass(frozen=True, slots=True)
class GetService(Call[ServiceInfo]):
    """Raises `Refused` with `Reason.SERVICE_NOT_FOUND`."""

    service: ServiceKey


@dataclass(frozen=True, slots=True)
class CreateService(Call[None]):
    """Raises `Refused` with `Reason.SERVICE_EXISTS`. v1 creates only persistent services."""

    service: ServiceKey
    threshold: float = 0.0
    metadata: Metadata = field(default_factory=lambda: EMPTY)
    selector: str = ""
    ephemeral: bool = False


@dataclass(frozen=True, slots=True)
class UpdateService(Call[None]):
    """Replaces all three values. Raises `Refused` with `Reason.SERVICE_NOT_FOUND`."""

    service: ServiceKey
    threshold: float = 0.0
    metadata: Metadata = field(default_factory=lambda: EMPTY)
    selector: str = ""


@dataclass(frozen=True, slots=True)
class DeleteService(Call[None]):
    """Raises `Refused` with `Reason.SERVICE_NOT_FOUND` or `Reason.SERVICE_NOT_EMPTY`."""

    service: ServiceKey


@dataclass(frozen=True, slots=True)
class ServiceNames(Call[Mapping[str, tuple[str, ...]]]):
    """Lists `group@@name` by namespace; '' means all namespaces."""

    namespace: str = ""


@dataclass(frozen=True, slots=True)
class ServiceDetail:
    """A row of the admin list: a service with all its instances, disabled ones included."""

    info: ServiceInfo
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class DetailPage:
    count: int
    rows: tuple[ServiceDetail, ...]


@dataclass(frozen=True, slots=True)
class ListDetails(Call[DetailPage]):
    """Lists services whose name and group contain the given texts ('' matches all), with their instances."""

    namespace: str
    name_part: str = ""
    group_part: str = ""
    page: int = 1
    size: int = 100
    ignore_empty: bool = False
    with_instances: bool = True  # False: the caller needs only counts; the registry may still return instances


@dataclass(frozen=True, slots=True)
class Subscriber:
    """A client that read a list and gave a push address, as `service/subscribers` shows it."""

    address: str
    agent: str
    app: str
    ip: str
    port: int
    namespace: str
    service: str
    cluster: str


@dataclass(frozen=True, slots=True)
class Subscribers(Call[tuple[Subscriber, ...]]):
    service: ServiceKey
    page: int = 1
    size: int = 1000


@dataclass(frozen=True, slots=True)
class Metrics(Call[Mapping[str, Any]]):
    """The server's own metrics object; `{"status": "UP"}` with `only_status`."""

    only_status: bool = True


@dataclass(frozen=True, slots=True)
class Switches(Call[Mapping[str, Any]]):
    """The server's switches, as the server's own JSON object."""


@dataclass(frozen=True, slots=True)
class ServerState(Call[Mapping[str, str | None]]):
    """Version, mode and the like, as a flat map."""


@dataclass(frozen=True, slots=True)
class Namespaces(Call[tuple[Mapping[str, Any], ...]]):
    """The namespaces, as objects with at least `namespace` (`public` for the default one) and `namespaceShowName`."""


@dataclass(frozen=True, slots=True)
class Alive(Call[None]):
    """Checks only that the server process answers."""


@dataclass(frozen=True, slots=True)
class Ready(Call[None]):
    """Checks that the registry can serve requests. Raises an `UpstreamError` with the reason if it cannot."""
