"""`apply`: the one meaning of a write, used by the overlay, the embedded registry's oracle and the tests.

Not for: what a call is or which values it may have (`calls`). A prediction of what a server will list, pure and total.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from proxy.calls import BatchMetadata, Beat, Deregister, Register, SetHealth, Update, Write
from proxy.model import Instance, InstanceKey, Snapshot


def apply(snapshot: Snapshot, write: Write[Any]) -> Snapshot:
    """What the server will show after a write: a prediction that holds only until the server's own list speaks.

    Total and pure: a write that changes nothing gives the snapshot back as it is (the same object).
    """
    match write:
        case Register():
            return _register(snapshot, write.instance)
        case Deregister():
            same = (i for i in snapshot.instances if i.ip == write.ip and i.port == write.port)
            return _drop(snapshot, {i.key for i in same if i.ephemeral == write.ephemeral})
        case Update():
            return _update(snapshot, write)
        case Beat():
            return _beat(snapshot, write)
        case BatchMetadata():
            return _batch(snapshot, write)
        case SetHealth():
            known = snapshot.find(write.ip, write.port, write.cluster)
            return snapshot if known is None else _put(snapshot, replace(known, healthy=write.healthy))
        case _:
            return snapshot


def _register(snapshot: Snapshot, instance: Instance) -> Snapshot:
    known = snapshot.by_key.get(instance.key)
    if known is not None:  # what the server adds of its own, such as a snowflake id, is in no registration
        own = instance.instance_id or known.instance_id
        instance = replace(instance, instance_id=own, extra=instance.extra or known.extra)
    return _put(snapshot, instance)


def _put(snapshot: Snapshot, instance: Instance) -> Snapshot:
    if snapshot.by_key.get(instance.key) == instance:
        return snapshot
    others = (i for i in snapshot.instances if not (i.ip == instance.ip and i.port == instance.port))
    return snapshot.with_instances([*others, instance])


def _drop(snapshot: Snapshot, keys: set[InstanceKey]) -> Snapshot:
    if not keys:
        return snapshot
    return snapshot.with_instances(i for i in snapshot.instances if i.key not in keys)


def _update(snapshot: Snapshot, write: Update) -> Snapshot:
    known = snapshot.find(write.ip, write.port, write.cluster)
    if known is None:
        return snapshot
    default_weight, default_enabled = (known.weight, known.enabled) if write.partial else (1.0, True)
    weight = default_weight if write.weight is None else write.weight
    enabled = default_enabled if write.enabled is None else write.enabled
    metadata = {**known.metadata, **(write.metadata or {})}
    return _put(snapshot, replace(known, weight=weight, enabled=enabled, metadata=metadata))


def _beat(snapshot: Snapshot, write: Beat) -> Snapshot:
    known = snapshot.find(write.ip, write.port)
    if known is not None:
        alive = known.ephemeral and not known.healthy
        return _put(snapshot, replace(known, healthy=True)) if alive else snapshot
    if write.full is None:
        return snapshot
    return _register(snapshot, replace(write.full, healthy=True, enabled=True))  # NACOS.md 2.7


def _batch(snapshot: Snapshot, write: BatchMetadata) -> Snapshot:
    keys = write.instances or tuple(i.key for i in snapshot.instances)
    for key in keys:
        if (known := snapshot.by_key.get(key)) is not None and not write.remove:
            snapshot = _put(snapshot, replace(known, metadata={**known.metadata, **write.metadata}))
    return snapshot
