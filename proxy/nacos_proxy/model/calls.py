"""What somebody wants: immutable values. What a write means is `effects.apply`.

A call names its result type: `Fetch` is a `Call[Snapshot]`. A value that exists is valid: the limits that Nacos puts
on callers (nacos-http.md 1.6, 1.7) are checked in the constructors by way of `check_*`, which raise `BadCall`.
Calls that only read a snapshot (a list with its filters, one instance, a pick) are no calls of a registry:
they are answered from the catalog, which needs `Fetch` alone.
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
    texts,
)

R = TypeVar("R")

BEAT_OK = 10200
BEAT_NOT_FOUND = 20404


# --- calls -----------------------------------------------------------------------------------------------------


class Call(Generic[R]):
    """Something that a `Registry` can be asked; `R` is the type of its result."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Fetch(Call[Snapshot]):
    """The whole service: all clusters, true health. An unknown service is an empty snapshot, never an error."""

    service: ServiceKey


@dataclass(frozen=True, slots=True)
class GetInstance(Call[Instance]):
    """One instance, straight from the registry: it also finds disabled ones that lists hide.

    Raises `Refused` with `Reason.NO_INSTANCES` (the service or cluster has none) or `Reason.INSTANCE_NOT_FOUND`.
    """

    service: ServiceKey
    ip: str
    port: int
    cluster: str = DEFAULT_CLUSTER


@dataclass(frozen=True, slots=True)
class ServicePage:
    """One page of service names (bare, without the group) and the number of all."""

    count: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListServices(Call[ServicePage]):
    """Names of one group; `page` counts from 1 (0 means 1, too), a page past the end is empty."""

    namespace: str
    group: str
    page: int = 1
    size: int = 10


@dataclass(frozen=True, slots=True)
class Write(Call[R]):
    """A call that changes one service; `apply` says how."""

    service: ServiceKey


@dataclass(frozen=True, slots=True)
class Register(Write[None]):
    """Upsert. Idempotent: it may be sent again when it may have arrived."""

    instance: Instance


@dataclass(frozen=True, slots=True)
class Deregister(Write[None]):
    """Idempotent; of an unknown instance it is a success. `cluster` is ignored by Nacos 2.x and later."""

    ip: str
    port: int
    cluster: str = DEFAULT_CLUSTER
    ephemeral: bool = True


@dataclass(frozen=True, slots=True)
class Update(Write[None]):
    """Weight, enabled and metadata of an instance; None is "not named". Idempotent.

    `partial=False` is a PUT: the server puts what is not named back to its default (weight 1.0, enabled, no
    metadata of the overlay), and an unknown instance is a success. `partial=True` is a PATCH: only what is named
    changes, named metadata replaces the overlay's, and an unknown instance is `Refused`. Source: modify.jsonl.
    Nulls among the metadata are left out: 2.5.1 fails over one, 3.0.3 drops it (nacos-http.md 1.7).
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
        object.__setattr__(self, "metadata", self.metadata and texts(self.metadata))


@dataclass(frozen=True, slots=True)
class BeatResult:
    """`interval` in ms; `code` is BEAT_OK or BEAT_NOT_FOUND; `extra` what else the server says."""

    code: int = BEAT_OK
    interval: int = DEFAULT_BEAT_INTERVAL
    light: bool = True
    extra: Mapping[str, Any] = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True)
class Beat(Write[BeatResult]):
    """A heartbeat. With `full` the server registers an instance that it does not know; else it says BEAT_NOT_FOUND.
    Weight and metadata of `full` are not applied to a known instance (nacos-http.md 2.7, recording "beat with weight 1").
    """

    ip: str
    port: int
    cluster: str = DEFAULT_CLUSTER
    ephemeral: bool = True
    full: Instance | None = None


@dataclass(frozen=True, slots=True)
class BatchMetadata(Write[tuple[str, ...]]):
    """Merge keys into (or with `remove`, take keys from) the overlays of many instances.

    `instances` empty means all. The result names each one changed: `ip:port:unknown:cluster:ephemeral`.
    """

    instances: tuple[InstanceKey, ...]
    metadata: Metadata
    remove: bool = False
    ephemeral: bool = True


@dataclass(frozen=True, slots=True)
class SetHealth(Write[None]):
    """Health by hand: only of persistent instances whose cluster has no health checker."""

    ip: str
    port: int
    cluster: str
    healthy: bool


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """A service's own data. `selector` is the JSON object that the server showed, for example `{"type": "none"}`."""

    key: ServiceKey
    threshold: float = 0.0
    metadata: Metadata = field(default_factory=lambda: EMPTY)
    selector: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    clusters: tuple[str, ...] = ()
    ephemeral: bool = True
    checks: Mapping[str, Checking] = field(default_factory=lambda: EMPTY)  # of the clusters that have their own


@dataclass(frozen=True, slots=True)
class GetService(Call[ServiceInfo]):
    """Raises `Refused` with `Reason.SERVICE_NOT_FOUND`."""

    service: ServiceKey


@dataclass(frozen=True, slots=True)
class CreateService(Call[None]):
    """Raises `Refused` with `Reason.SERVICE_EXISTS`. On v1 a created service is persistent."""

    service: ServiceKey
    threshold: float = 0.0
    metadata: Metadata = field(default_factory=lambda: EMPTY)
    selector: str = ""
    ephemeral: bool = False


@dataclass(frozen=True, slots=True)
class UpdateService(Call[None]):
    """All three are replaced. Raises `Refused` with `Reason.SERVICE_NOT_FOUND`."""

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
    """Namespace -> `group@@name`s; '' asks for all namespaces."""

    namespace: str = ""


@dataclass(frozen=True, slots=True)
class ServiceDetail:
    """A row of the admin list: a service with its instances (all, also disabled ones)."""

    info: ServiceInfo
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class DetailPage:
    count: int
    rows: tuple[ServiceDetail, ...]


@dataclass(frozen=True, slots=True)
class ListDetails(Call[DetailPage]):
    """Services whose name and group contain the given texts ('' matches all), with their instances."""

    namespace: str
    name_part: str = ""
    group_part: str = ""
    page: int = 1
    size: int = 100
    ignore_empty: bool = False
    with_instances: bool = True  # False: only the numbers are wanted; a registry may give the instances all the same


@dataclass(frozen=True, slots=True)
class Subscriber:
    """Who asked a list with a push address, as `service/subscribers` shows it."""

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
    """The server's own metrics object, `{"status": "UP"}` where only the status is asked."""

    only_status: bool = True


@dataclass(frozen=True, slots=True)
class Switches(Call[Mapping[str, Any]]):
    """The server's switch object as it shows it."""


@dataclass(frozen=True, slots=True)
class ServerState(Call[Mapping[str, str | None]]):
    """Version, mode and the like, a flat map."""


@dataclass(frozen=True, slots=True)
class Namespaces(Call[tuple[Mapping[str, Any], ...]]):
    """The namespaces as objects with at least `namespace` (`public` for the default one) and `namespaceShowName`."""


@dataclass(frozen=True, slots=True)
class Alive(Call[None]):
    """Does the process that answers live? Nobody else need be asked."""


@dataclass(frozen=True, slots=True)
class Ready(Call[None]):
    """Can the registry serve? Raises an `UpstreamError` that says why not."""
