"""Predicts what a server lists after a write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nacos_proxy.model.calls import BatchMetadata, Beat, Deregister, Register, SetHealth, Update, Write
from nacos_proxy.model.services import Instance, InstanceKey, Snapshot


def apply(snapshot: Snapshot, write: Write[Any]) -> Snapshot:
    """What the server will list after a write: a prediction to use until the server's own list confirms it.

    Never raises. If the write changes nothing, the same object is returned.
    """
    draft = Draft(snapshot)
    draft.apply(write)
    return draft.snapshot


def completed(update: Update, known: Instance) -> Update:
    """A PATCH as a PUT that gives every value, because servers reset what a PUT leaves out (modify.jsonl)."""
    return replace(
        update,
        weight=known.weight if update.weight is None else update.weight,
        enabled=known.enabled if update.enabled is None else update.enabled,
        metadata=known.metadata if update.metadata is None else update.metadata,
        ephemeral=known.ephemeral,
        partial=False,
    )


class Draft:
    """Applies many writes, one after the other, to a snapshot, and sorts its instances only once.

    A service with thousands of instances may have thousands of pending writes: each must not cost a whole copy.
    """

    def __init__(self, base: Snapshot, *, many: bool = False) -> None:
        """`many`: so many writes follow that an index by address pays off."""
        self._base = base
        self._instances: Mapping[InstanceKey, Instance] = base.by_key
        self._draft: dict[InstanceKey, Instance] | None = None  # the same as `_instances` from the first change on
        self._index: dict[tuple[str, int], set[InstanceKey]] | None = None
        if many:
            self._index = {}
            for key in self._instances:
                self._index.setdefault((key.ip, key.port), set()).add(key)

    @property
    def snapshot(self) -> Snapshot:
        """The result of all writes so far; the base itself if they changed nothing."""
        return self._base if self._draft is None else self._base.with_by_key(self._draft)

    def apply(self, write: Write[Any]) -> None:
        removed, changed = self._effect(write)
        for key in removed:
            self._remove(key)
        for instance in changed:
            self._put(instance)

    def shows(self, write: Write[Any]) -> bool:
        """Whether the snapshot already shows the write, so that applying it would change nothing."""
        return not any(self._effect(write))

    def _mutable(self) -> dict[InstanceKey, Instance]:
        """The mutable copy of the instances, made on the first change, because most writes change nothing."""
        if self._draft is None:
            self._instances = self._draft = dict(self._instances)
        return self._draft

    def _remove(self, key: InstanceKey) -> None:
        del self._mutable()[key]
        if self._index is not None:
            self._index[key.ip, key.port].discard(key)

    def _put(self, instance: Instance) -> None:
        key = instance.key
        self._mutable()[key] = instance
        if self._index is not None:
            self._index.setdefault((key.ip, key.port), set()).add(key)

    def _keys_at(self, ip: str, port: int) -> list[InstanceKey]:
        if self._index is not None:
            return sorted(self._index.get((ip, port), ()))
        return [key for key in self._instances if key[0] == ip and key[1] == port]

    def _affected_keys(self, ip: str, port: int, cluster: str) -> list[InstanceKey]:
        """The instances that a write to this address affects.

        Only 1.x keeps more than one instance at an address; there, a write affects only the one of its cluster.
        """
        keys = self._keys_at(ip, port)
        return [key for key in keys if key.cluster == cluster] if self._base.by_cluster or len(keys) > 1 else keys

    def _effect(self, write: Write[Any]) -> tuple[Iterable[InstanceKey], list[Instance]]:
        """The keys that a write removes, and the instances that it adds or changes."""
        match write:
            case Register():
                return self._register(write.instance)
            case Deregister():
                keys = self._affected_keys(write.ip, write.port, write.cluster)
                return [key for key in keys if self._instances[key].ephemeral == write.ephemeral], []
            case Update():
                return (), self._update(write)
            case Beat():
                return self._beat(write)
            case BatchMetadata():
                return (), self._merge(write)
            case SetHealth():
                known = self._instances.get(InstanceKey(write.ip, write.port, write.cluster))
                return (), [] if known is None else self._changes(known, replace(known, healthy=write.healthy))
            case _:
                return (), []

    def _register(self, instance: Instance) -> tuple[Iterable[InstanceKey], list[Instance]]:
        key = instance.key
        known = self._instances.get(key)
        if known is not None:  # a registration lacks values that the server adds, such as a snowflake id
            instance_id, extra = instance.instance_id or known.instance_id, instance.extra or known.extra
            if instance_id != instance.instance_id or extra != instance.extra:
                instance = replace(instance, instance_id=instance_id, extra=extra)
            if instance == known:
                return (), []
        others = () if self._base.by_cluster else self._keys_at(key.ip, key.port)
        return [other for other in others if other != key], [instance]

    @staticmethod
    def _changes(known: Instance, after: Instance) -> list[Instance]:
        return [] if after == known else [after]

    def _update(self, write: Update) -> list[Instance]:
        known = self._instances.get(InstanceKey(write.ip, write.port, write.cluster))
        if known is None:
            return []
        default_weight, default_enabled = (known.weight, known.enabled) if write.partial else (1.0, True)
        weight = default_weight if write.weight is None else write.weight
        enabled = default_enabled if write.enabled is None else write.enabled
        metadata = {**known.metadata, **(write.metadata or {})}
        return self._changes(known, replace(known, weight=weight, enabled=enabled, metadata=metadata))

    def _beat(self, write: Beat) -> tuple[Iterable[InstanceKey], list[Instance]]:
        # Beats are frequent and rarely change anything, so look in the snapshot's own index first.
        keys: Sequence[InstanceKey] = self._base.by_address.get((write.ip, write.port), ())
        if self._draft is not None or len(keys) > 1 or self._base.by_cluster:
            keys = self._affected_keys(write.ip, write.port, write.cluster)
        if keys:
            known = self._instances[min(keys)]
            recovers = known.ephemeral and not known.healthy
            return (), [replace(known, healthy=True)] if recovers else []
        if write.full is None:
            return (), []
        return self._register(replace(write.full, healthy=True, enabled=True))  # nacos-http.md 2.7

    def _merge(self, write: BatchMetadata) -> list[Instance]:
        if write.remove:
            return []
        found = [self._instances[key] for key in write.instances or self._instances if key in self._instances]
        merged = [replace(known, metadata={**known.metadata, **write.metadata}) for known in found]
        return [after for known, after in zip(found, merged, strict=True) if after != known]
