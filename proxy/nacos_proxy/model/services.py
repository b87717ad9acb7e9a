"""Services, instances, snapshots and changes: immutable values that can be compared and filtered."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import InitVar, dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

import orjson

from nacos_proxy.model.addresses import address_of, plain_ip

DEFAULT_NAMESPACE = "public"
DEFAULT_GROUP = "DEFAULT_GROUP"
DEFAULT_CLUSTER = "DEFAULT"
GROUP_SEPARATOR = "@@"

Source = Literal["poll", "push", "write", "disk"]

EMPTY: Mapping[str, Any] = MappingProxyType({})

# Nacos stores null values as clients send them (tried with 2.5.1).
Metadata: TypeAlias = Mapping[str, str | None]


def without_nulls(metadata: Metadata) -> Metadata:
    """The metadata without its nulls."""
    if None not in metadata.values():
        return metadata
    return {name: text for name, text in metadata.items() if text is not None}


class ServiceKey(NamedTuple):
    """The key of a service. `str()` gives `namespace/group@@name`, as in logs and in our own API.

    A tuple, because most tables have it as key, and tuples hash and compare in C.
    """

    namespace: str
    group: str
    name: str

    @classmethod
    def of(cls, service: str, group: str | None = None, namespace: str | None = None) -> ServiceKey:
        """The key that a caller means. `group@@name` wins over `group`; '' and None mean `public` and `DEFAULT_GROUP`.

        Source: nacos-http.md 1.7 and the recordings "groupName and prefix disagree", "list namespaceId=public".
        """
        prefix, separator, name = service.partition(GROUP_SEPARATOR)
        if not separator:
            prefix, name = group or DEFAULT_GROUP, service
        return cls(namespace or DEFAULT_NAMESPACE, prefix or DEFAULT_GROUP, name)

    @property
    def grouped(self) -> str:
        """`group@@name`, as Nacos writes it."""
        return f"{self.group}{GROUP_SEPARATOR}{self.name}"

    def __str__(self) -> str:
        return f"{self.namespace}/{self.grouped}"


@dataclass(frozen=True, slots=True)
class Checking:
    """How a server checks the persistent instances of a cluster: the checker's JSON object, and the port."""

    checker: Mapping[str, Any] = field(default_factory=lambda: {"type": "TCP"})
    port: int = 80
    by_instance_port: bool = True
    metadata: Metadata = field(default_factory=lambda: EMPTY)


class InstanceKey(NamedTuple):
    """The key of an instance in its service. Nacos 2.x compares only ip and port (nacos-http.md 5.1)."""

    ip: str
    port: int
    cluster: str


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance as a server shows it. Lenient on purpose: `limits` checks what callers register.

    `instance_id` is '' if it is the usual `ip#port#cluster#group@@name`, which `wire` then writes.
    `extra` has the server's fields that we do not know, as parsed JSON; they are passed on unchanged.
    """

    ip: str
    port: int
    cluster: str = DEFAULT_CLUSTER
    weight: float = 1.0
    healthy: bool = True
    enabled: bool = True
    ephemeral: bool = True
    metadata: Metadata = field(default_factory=lambda: EMPTY)
    instance_id: str = ""
    extra: Mapping[str, Any] = field(default_factory=lambda: EMPTY)

    @property
    def key(self) -> InstanceKey:
        return InstanceKey(self.ip, self.port, self.cluster)

    @property
    def address(self) -> str:
        """As `address_of`."""
        return address_of(self.ip, self.port)


@dataclass(frozen=True, slots=True)
class Selection:
    """The hosts that pass a reader's filters, in order. `protected`: protection hides their true health."""

    hosts: tuple[Instance, ...]
    protected: bool = False


@dataclass(frozen=True, slots=True)
class Via:
    """What an upstream that is a cache itself said of a list: its age in seconds, whether it was stale, and the
    `Cache-Status` of the caches on its way, the one nearest to the origin first.
    """

    age: float = 0.0
    stale: bool = False
    status: str = ""


@dataclass(frozen=True)
class Snapshot:
    """A service at one moment: its instances, sorted by key, with their true health; disabled ones if the source shows
    them.

    `threshold` is the protection threshold (0.0 to 1.0). With 0.0, protection works only if the service has metadata of
    its own (`masking`; nacos-http.md 5.5). `cache_millis` is the poll interval of clients in ms. `extra` holds a
    server's unknown fields.

    Not compared: `last_ref_time` is in ms since 1970. `by_cluster` marks a 1.x server, which keeps one instance per
    cluster at an address; later servers keep one per address (nacos-http.md 5.1). `unreadable` has one text for each
    host that was left out. `via` is None if the registry itself listed it. `index`, if given, is the `instances` by
    key, in the same order.
    """

    key: ServiceKey
    instances: tuple[Instance, ...] = ()
    threshold: float = 0.0
    masking: bool = False
    cache_millis: int = 10_000
    extra: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    last_ref_time: int = field(default=0, compare=False)
    by_cluster: bool = field(default=False, compare=False)
    unreadable: tuple[str, ...] = field(default=(), compare=False)
    via: Via | None = field(default=None, compare=False)
    index: InitVar[Mapping[InstanceKey, Instance] | None] = None

    def __post_init__(self, index: Mapping[InstanceKey, Instance] | None) -> None:
        if index is not None:
            object.__setattr__(self, "by_key", index)

    @classmethod
    def of(cls, key: ServiceKey, instances: Iterable[Instance] = (), **fields: Any) -> Snapshot:
        """Sorts the instances. If several have the same key, the fittest wins (`_fittest`)."""
        given = tuple(instances)
        by_key = {instance.key: instance for instance in given}
        index = _sorted(by_key if len(by_key) == len(given) else _fittest(given))
        return cls(key, tuple(index.values()), **fields, index=index)

    @cached_property
    def revision(self) -> str:
        """A hash (16 hex digits) of what clients can see. Stable across restarts, but not ordered."""
        text = orjson.dumps(self._content(), option=orjson.OPT_SORT_KEYS)
        return hashlib.blake2b(text, digest_size=8).hexdigest()

    def _content(self) -> list[Any]:
        rows = [
            (
                *(i.ip, i.port, i.cluster, float(i.weight), i.healthy, i.enabled, i.ephemeral, i.instance_id),
                *(dict(i.metadata), dict(i.extra)),
            )
            for i in self.instances
        ]
        return [str(self.key), rows, float(self.threshold), self.masking, self.cache_millis, dict(self.extra)]

    @cached_property
    def by_key(self) -> Mapping[InstanceKey, Instance]:
        return {instance.key: instance for instance in self.instances}

    @cached_property
    def clusters(self) -> frozenset[str]:
        return frozenset(instance.cluster for instance in self.instances)

    @cached_property
    def by_address(self) -> Mapping[tuple[str, int], tuple[InstanceKey, ...]]:
        """The keys at each address, in order. Nacos 2.x has one per address, 1.x one per cluster."""
        found: dict[tuple[str, int], tuple[InstanceKey, ...]] = {}
        for key in self.by_key:
            address = (key.ip, key.port)
            found[address] = (*found.get(address, ()), key)
        return found

    def find(self, ip: str, port: int, cluster: str | None = None) -> Instance | None:
        """The instance at ip:port, in `cluster` if given, else in any cluster."""
        if cluster is not None:
            return self.by_key.get(InstanceKey(ip, port, cluster))
        keys = self.by_address.get((ip, port))
        return self.by_key[keys[0]] if keys else None

    def registered_ip(self, ip: str, port: int) -> str:
        """`ip` as the instance at this address spells it; unchanged if there is no such instance."""
        if ":" not in ip or (ip, port) in self.by_address:
            return ip
        same = (i.ip for i in self.instances if i.port == port and plain_ip(i.ip) == plain_ip(ip))
        return next(same, ip)

    def with_instances(self, instances: Iterable[Instance]) -> Snapshot:
        return self.with_by_key({instance.key: instance for instance in instances})

    def with_by_key(self, by_key: Mapping[InstanceKey, Instance]) -> Snapshot:
        """As `with_instances`, for instances that are indexed already."""
        index = _sorted(by_key)
        return replace(self, instances=tuple(index.values()), index=index)

    def dated(self, last_ref_time: int) -> Snapshot:
        """The same snapshot with another `last_ref_time`."""
        return replace(self, last_ref_time=last_ref_time, index=self.by_key)

    def heard(self, via: Via) -> Snapshot:
        """The same snapshot, as an upstream that is a cache has it."""
        return replace(self, via=via, index=self.by_key)

    def select(
        self,
        clusters: frozenset[str] = frozenset(),
        healthy_only: bool = False,
        matches: Callable[[Metadata], bool] | None = None,
    ) -> Selection:
        """Filters as `instance/list` of Nacos 2.5.1 does (protection.jsonl, nacos-http.md 5.5).

        Disabled instances are never listed. Protection: if the healthy share of the requested instances is at or below
        the threshold, all are listed as healthy. `healthy_only` lists the truly healthy ones, without protection.
        `matches`, a filter of our own, counts as part of the request.
        """
        hosts = tuple(i for i in self.instances if i.enabled and (not clusters or i.cluster in clusters))
        if matches is not None:
            hosts = tuple(i for i in hosts if matches(i.metadata))
        healthy = tuple(i for i in hosts if i.healthy)
        if healthy_only:
            return Selection(healthy)
        if hosts and (self.masking or self.threshold > 0) and self._protects(len(healthy) / len(hosts)):
            return Selection(tuple(i if i.healthy else replace(i, healthy=True) for i in hosts), protected=True)
        return Selection(hosts)

    def _protects(self, share: float) -> bool:
        # Nacos compares Java floats: 29 of 100 equals a threshold of 0.29 as a float, but not as a double.
        return _float32(share) <= _float32(min(1.0, self.threshold))


def _fittest(instances: Iterable[Instance]) -> dict[InstanceKey, Instance]:
    """One instance for each key: a healthy one wins, then an enabled one.

    A server lists an address twice if it was registered over gRPC and over HTTP (nacos-grpc.md 7), in any order. The
    last fields make the choice the same for each order.
    """

    def fitness(i: Instance) -> tuple[Any, ...]:
        return (
            i.healthy,
            i.enabled,
            i.weight,
            i.ephemeral,
            sorted((name, str(i.metadata[name])) for name in i.metadata),
        )

    return {instance.key: instance for instance in sorted(instances, key=fitness)}


def _sorted(by_key: Mapping[InstanceKey, Instance]) -> Mapping[InstanceKey, Instance]:
    return {key: by_key[key] for key in sorted(by_key)}


def _float32(number: float) -> float:
    return struct.unpack("f", struct.pack("f", number))[0]


@dataclass(frozen=True)
class Change:
    """The step from one snapshot of a service to the next. Clients can see at least one difference."""

    before: Snapshot
    after: Snapshot
    source: Source

    @property
    def key(self) -> ServiceKey:
        return self.after.key

    @cached_property
    def added(self) -> tuple[Instance, ...]:
        before = self.before.by_key
        return tuple(i for key, i in self.after.by_key.items() if key not in before)

    @cached_property
    def removed(self) -> tuple[Instance, ...]:
        after = self.after.by_key
        return tuple(i for key, i in self.before.by_key.items() if key not in after)

    @cached_property
    def modified(self) -> tuple[Instance, ...]:
        before = self.before.by_key
        pairs = ((before.get(key), i) for key, i in self.after.by_key.items())
        return tuple(i for old, i in pairs if old is not None and old is not i and old != i)


def diff(before: Snapshot | None, after: Snapshot, source: Source) -> Change | None:
    """The change from `before` to `after`; None if no client could tell them apart.

    If nothing was known (`before` is None), all instances are new; a first snapshot without instances is no change.
    """
    before = before if before is not None else replace(after, instances=())
    return None if before == after else Change(before, after, source)


def merge(first: Change, second: Change) -> Change | None:
    """Two successive changes of a service as one; None if the second undoes the first."""
    return diff(first.before, second.after, second.source)
