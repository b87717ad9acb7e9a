"""What the rows of the state file hold, as JSON of our own: short and complete. Not for: the file itself (`disk`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

from proxy.calls import Beat, Deregister, Register, Update
from proxy.catalog.journal import Journal, Local, Waiting
from proxy.catalog.ledger import Place, Registration
from proxy.catalog.pushes import Subscription
from proxy.model import EMPTY, Instance, ServiceKey, Snapshot

UNREADABLE = (ValueError, KeyError, TypeError, AttributeError)

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
SubscriberRow = tuple[str, str, str, str, str, int, str, str, float]
JournalRow = tuple[str, str, str, str, int, int, float, bytes]

_PLAIN = ("ip", "port", "cluster", "weight", "healthy", "enabled", "ephemeral", "instance_id")
_PLAIN_OF_SNAPSHOT = ("threshold", "masking", "cache_millis", "last_ref_time")
_KINDS: Mapping[str, type[Local]] = {kind.__name__: kind for kind in (Register, Deregister, Update, Beat)}


def dump_instance(i: Instance) -> dict[str, Any]:
    return {**{name: getattr(i, name) for name in _PLAIN}, "metadata": dict(i.metadata), "extra": dict(i.extra)}


def load_instance(row: Mapping[str, Any]) -> Instance:
    fields: dict[str, Any] = {**row, "metadata": row["metadata"] or EMPTY, "extra": row["extra"] or EMPTY}
    return Instance(**fields)


def dump_snapshot(snapshot: Snapshot) -> bytes:
    row: dict[str, Any] = {name: getattr(snapshot, name) for name in _PLAIN_OF_SNAPSHOT}
    row |= {"extra": dict(snapshot.extra), "instances": [dump_instance(i) for i in snapshot.instances]}
    return orjson.dumps(row)


def load_snapshot(key: ServiceKey, body: bytes) -> Snapshot:
    row: dict[str, Any] = orjson.loads(body)
    return Snapshot.of(key, [load_instance(i) for i in row.pop("instances")], **row)


def load_registration(key: ServiceKey, body: bytes) -> Registration:
    """One of which nothing was heard yet."""
    row: dict[str, Any] = orjson.loads(body)
    return Registration(key, load_instance(row["instance"]), 0.0, row["beaten"], row["managed"])


def dump_writes(writes: Iterable[Local]) -> bytes:
    return orjson.dumps([_dump_write(write) for write in writes])


def _dump_write(write: Local) -> dict[str, Any]:
    fields = {name: getattr(write, name) for name in type(write).__slots__}
    for name, value in fields.items():
        if isinstance(value, Instance):
            fields[name] = dump_instance(value)
        elif isinstance(value, Mapping):
            fields[name] = dict(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return {"kind": type(write).__name__, **fields}


def load_writes(key: ServiceKey, body: bytes) -> tuple[Local, ...]:
    return tuple(_load_write(key, row) for row in orjson.loads(body))


def _load_write(key: ServiceKey, row: dict[str, Any]) -> Local:
    kind = _KINDS[row.pop("kind")]
    for name in ("instance", "full"):
        if row.get(name) is not None:
            row[name] = load_instance(row[name])
    return kind(key, **row)


def journal_rows(journal: Journal, places: Iterable[Place]) -> Iterator[JournalRow]:
    """A row for each place; without a body where nothing waits of it any more."""
    for place in places:
        (key, ip, port), waiting = place, journal.get(place)
        number, at, body = (waiting.number, waiting.at, dump_writes(waiting.writes)) if waiting else (0, 0.0, b"")
        yield (key.namespace, key.group, key.name, ip, port, number, at, body)


def load_waiting(row: JournalRow) -> tuple[Place, Waiting]:
    namespace, group, name, ip, port, number, at, body = row
    key = ServiceKey(namespace, group, name)
    return (key, ip, port), Waiting(load_writes(key, body), number, at)


def subscriber_row(s: Subscription, ahead: float) -> SubscriberRow:
    """`ahead`: by how much the calendar is ahead of the clock that `seen` was told by."""
    key, (ip, port) = s.service, s.address
    return (key.namespace, key.group, key.name, s.clusters, ip, port, s.agent, s.app, s.seen + ahead)


def load_subscriber(row: SubscriberRow) -> Subscription:
    """Seen at a moment of the calendar."""
    namespace, group, name, clusters, ip, port, agent, app, seen = row
    return Subscription(ServiceKey(namespace, group, name), (ip, int(port)), clusters, agent, app, float(seen))
