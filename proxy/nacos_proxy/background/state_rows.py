"""The rows of the state file: converts this package's values to compact JSON and back, without a loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import orjson

from nacos_proxy.catalog.drains import Drain
from nacos_proxy.catalog.journal import JournalEntry, LocalWrite
from nacos_proxy.catalog.registrations import Registration, RegistrationKey
from nacos_proxy.catalog.udp_subscribers import Subscription
from nacos_proxy.model.calls import Beat, Deregister, Register, Update
from nacos_proxy.model.services import DEFAULT_CLUSTER, EMPTY, Checking, Instance, Metadata, ServiceKey, Snapshot
from nacos_proxy.upstream.embedded.persistence import SWITCHES_KEY, PersistentValue
from nacos_proxy.upstream.embedded.state import InstanceOverrides, PersistentService, Service
from nacos_proxy.upstream.embedded.switches import SWITCHES

UNREADABLE = (ValueError, KeyError, TypeError, AttributeError)
UNWRITABLE = (ValueError, TypeError, OverflowError)  # not Unicode, nested too deeply, a number beyond 64 bits

JOURNAL_TABLE = """
CREATE TABLE IF NOT EXISTS journal (
    namespace TEXT, grp TEXT, name TEXT, ip TEXT, port INTEGER, number INTEGER, at REAL, body BLOB NOT NULL,
    PRIMARY KEY (namespace, grp, name, ip, port)
) WITHOUT ROWID
"""
SUBSCRIBER_TABLE = """
CREATE TABLE IF NOT EXISTS subscriber (
    namespace TEXT, grp TEXT, name TEXT, clusters TEXT, ip TEXT, port INTEGER, agent TEXT, app TEXT, seen REAL
)
"""
REGISTRY_TABLE = """
CREATE TABLE IF NOT EXISTS registry (
    namespace TEXT, grp TEXT, name TEXT, body BLOB NOT NULL, PRIMARY KEY (namespace, grp, name)
) WITHOUT ROWID
"""
DRAIN_TABLE = """
CREATE TABLE IF NOT EXISTS drain (
    namespace TEXT, grp TEXT, name TEXT, ip TEXT, port INTEGER, body BLOB NOT NULL,
    PRIMARY KEY (namespace, grp, name, ip, port)
) WITHOUT ROWID
"""
SubscriberRow = tuple[str, str, str, str, str, int, str, str, float]
RegistryRow = tuple[str, str, str, bytes]
DrainRow = tuple[str, str, str, str, int, bytes]
JournalRow = tuple[str, str, str, str, int, int, float, bytes]

_PLAIN_OF_SNAPSHOT = ("threshold", "masking", "cache_millis", "last_ref_time")
_KINDS: Mapping[str, type[LocalWrite]] = {kind.__name__: kind for kind in (Register, Deregister, Update, Beat)}


def _dumps(value: object) -> bytes:
    """orjson writes an `Instance` as an object of its fields by itself. Raises `TypeError`."""
    return orjson.dumps(value, default=dict)


def load_instance(row: dict[str, Any], like: Metadata = EMPTY) -> Instance:
    """Changes the row. `like` is used instead of equal metadata, as in `read_host`."""
    if row["cluster"] == DEFAULT_CLUSTER:
        row["cluster"] = DEFAULT_CLUSTER  # one object for all instances
    row["metadata"] = like if row["metadata"] == like else row["metadata"] or EMPTY
    row["extra"] = row["extra"] or EMPTY
    return Instance(**row)


def dump_snapshot(snapshot: Snapshot) -> bytes:
    row: dict[str, Any] = {name: getattr(snapshot, name) for name in _PLAIN_OF_SNAPSHOT}
    return _dumps({**row, "extra": snapshot.extra, "instances": snapshot.instances})


def load_snapshot(key: ServiceKey, body: bytes) -> Snapshot:
    row: dict[str, Any] = orjson.loads(body)
    instances, metadata = list[Instance](), EMPTY
    for fields_of_one in row.pop("instances"):
        instances.append(load_instance(fields_of_one, metadata))
        metadata = instances[-1].metadata
    return Snapshot(key, tuple(instances), **row)  # sorted already, and indexed when somebody needs that


class SavedService(NamedTuple):
    """The row of a service. `load_snapshot` reads the body. `confirmed_at` is in seconds since 1970."""

    key: ServiceKey
    body: bytes
    confirmed_at: float

    @property
    def empty(self) -> bool:
        """Whether the service has no instances."""
        return self.body.endswith(b'"instances":[]}')


class SavedRegistration(NamedTuple):
    """The saved part of a registration. `heard_at`: the time of its client's last call, in seconds since 1970."""

    service: ServiceKey
    instance: Instance
    beaten: bool
    managed: Mapping[str, Any] | None
    heard_at: float


def service_row(row: tuple[ServiceKey, Snapshot, float]) -> tuple[str, str, str, bytes, float]:
    key, snapshot, confirmed = row
    return (key.namespace, key.group, key.name, dump_snapshot(snapshot), confirmed)


def registration_row(r: SavedRegistration) -> tuple[str, str, str, str, int, bytes, float]:
    body = _dumps({"instance": r.instance, "beaten": r.beaten, "managed": r.managed})
    key, i = r.service, r.instance
    return (key.namespace, key.group, key.name, i.ip, i.port, body, r.heard_at)


def load_registration(key: ServiceKey, body: bytes) -> Registration:
    """The caller sets `last_heard`."""
    row: dict[str, Any] = orjson.loads(body)
    return Registration(key, load_instance(row["instance"]), 0.0, row["beaten"], row["managed"])


def dump_writes(writes: Iterable[LocalWrite]) -> bytes:
    """Without the service, which the row has in columns of its own."""
    return _dumps([{"kind": type(w).__name__, **_fields_but_service(w)} for w in writes])


def _fields_but_service(write: LocalWrite) -> dict[str, Any]:
    return {field.name: getattr(write, field.name) for field in fields(write) if field.name != "service"}


def load_writes(key: ServiceKey, body: bytes) -> tuple[LocalWrite, ...]:
    return tuple(_load_write(key, row) for row in orjson.loads(body))


def _load_write(key: ServiceKey, row: dict[str, Any]) -> LocalWrite:
    kind = _KINDS[row.pop("kind")]
    for name in ("instance", "full"):
        if row.get(name) is not None:
            row[name] = load_instance(row[name])
    return kind(key, **row)


def journal_row(row: tuple[RegistrationKey, JournalEntry | None]) -> JournalRow:
    """The body is empty if no write waits."""
    (key, ip, port), waiting = row
    number, at, body = (waiting.number, waiting.at, dump_writes(waiting.writes)) if waiting else (0, 0.0, b"")
    return (key.namespace, key.group, key.name, ip, port, number, at, body)


def load_waiting(row: JournalRow) -> tuple[RegistrationKey, JournalEntry]:
    namespace, group, name, ip, port, number, at, body = row
    key = ServiceKey(namespace, group, name)
    return (key, ip, port), JournalEntry(load_writes(key, body), number, at)


def subscriber_row(s: Subscription, ahead: float) -> SubscriberRow:
    """`ahead`: the wall clock minus the clock of `seen`."""
    key, (ip, port) = s.service, s.address
    return (key.namespace, key.group, key.name, s.clusters, ip, port, s.agent, s.app, s.seen + ahead)


def load_subscriber(row: SubscriberRow) -> Subscription:
    """`seen` is in seconds since 1970."""
    namespace, group, name, clusters, ip, port, agent, app, seen = row
    return Subscription(ServiceKey(namespace, group, name), (ip, int(port)), clusters, agent, app, float(seen))


def drain_row(drain: Drain, ahead: float) -> DrainRow:
    """`ahead`: the wall clock minus the clock of the drain's times, which are stored in seconds since 1970."""
    key, i = drain.service, drain.instance
    ended_at = None if drain.ended_at is None else drain.ended_at + ahead
    times = {"wait": drain.wait, "until": drain.until + ahead, "ended_at": ended_at}
    body = _dumps({**times, "instance": i, "modified": drain.modified})
    return (key.namespace, key.group, key.name, i.ip, i.port, body)


def load_drain(row: DrainRow, ahead: float) -> Drain:
    """Its times are those of the clock that `ahead` belongs to."""
    namespace, group, name, _, _, body = row
    found: dict[str, Any] = orjson.loads(body)
    modified, ended_at = found["modified"], found["ended_at"]
    return Drain(
        ServiceKey(namespace, group, name),
        load_instance(found["instance"]),
        float(found["wait"]),
        float(found["until"]) - ahead,
        None if ended_at is None else float(ended_at) - ahead,
        modified and load_instance(modified),
    )


def registry_row(row: tuple[ServiceKey, PersistentValue | None]) -> RegistryRow:
    """The body is empty if nothing is left to keep."""
    key, lasting = row
    return (key.namespace, key.group, key.name, b"" if lasting is None else _dumps(lasting))


def load_lasting(row: RegistryRow) -> tuple[ServiceKey, PersistentValue]:
    namespace, group, name, body = row
    key, found = ServiceKey(namespace, group, name), orjson.loads(body)
    if key == SWITCHES_KEY:
        return key, {n: value for n, value in found.items() if n in SWITCHES and _same_type(value, SWITCHES[n])}
    checks = {name: Checking(**checking) for name, checking in found.pop("checks").items()}
    places = tuple(
        (load_instance(i), healthy, overrides and InstanceOverrides(**overrides))
        for i, healthy, overrides in found.pop("places")
    )
    kept = PersistentService(**found, checks=checks, places=places)
    Service.of(key, kept, 0.0).snapshot()  # an unreadable row raises here, not at the start of the registry
    return key, kept


def _same_type(value: object, default: object) -> bool:
    return default is None or type(value) is type(default)
