"""`apply`: the one meaning of a write, used by the overlay, the embedded registry's oracle and the tests.

Not for: what a call is or which values it may have (`calls`). A prediction of what a server will list, pure and total.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from nacos_proxy.model.calls import (
    BatchMetadata,
    Beat,
    Deregister,
    Register,
    SetHealth,
    Update,
    Write,
)
from nacos_proxy.model.services import Instance, InstanceKey, Snapshot


def apply(snapshot: Snapshot, write: Write[Any]) -> Snapshot:
    """What the server will show after a write: a prediction that holds only until the server's own list speaks.

    Total and pure: a write that changes nothing gives the snapshot back as it is (the same object).
    """
    draft = Draft(snapshot)
    draft.apply(write)
    return draft.snapshot


def completed(update: Update, known: Instance) -> Update:
    """A change of what is named as one that names all: servers put the rest back to its default (modify.jsonl)."""
    return replace(
        update,
        weight=known.weight if update.weight is None else update.weight,
        enabled=known.enabled if update.enabled is None else update.enabled,
        metadata=known.metadata if update.metadata is None else update.metadata,
        ephemeral=known.ephemeral,
        partial=False,
    )


class Draft:
    """A snapshot that many writes go into, one after the other, before it is put in order once.

    A service of thousands may have thousands of writes that it does not list yet: each must not cost as much as all.
    """

    def __init__(self, base: Snapshot, *, many: bool = False) -> None:
        """`many`: so many writes will come that it pays to look up who is at an address."""
        self._base = base
        self._now: Mapping[InstanceKey, Instance] = base.by_key
        self._draft: dict[InstanceKey, Instance] | None = None  # `_now` from the first change on
        self._index: dict[tuple[str, int], set[InstanceKey]] | None = None
        if many:
            self._index = {}
            for key in self._now:
                self._index.setdefault((key.ip, key.port), set()).add(key)

    @property
    def snapshot(self) -> Snapshot:
        """What all writes so far have made of it; the base itself where they changed nothing."""
        return self._base if self._draft is None else self._base.with_by_key(self._draft)

    def apply(self, write: Write[Any]) -> None:
        gone, put = self._effect(write)
        for key in gone:
            self._remove(key)
        for instance in put:
            self._put(instance)

    def shows(self, write: Write[Any]) -> bool:
        """Whether a write has nothing to change here."""
        return not any(self._effect(write))

    def _begun(self) -> dict[InstanceKey, Instance]:
        """The instances, to be changed; most writes change nothing, and need no copy of a whole service."""
        if self._draft is None:
            self._now = self._draft = dict(self._now)
        return self._draft

    def _remove(self, key: InstanceKey) -> None:
        del self._begun()[key]
        if self._index is not None:
            self._index[key.ip, key.port].discard(key)

    def _put(self, instance: Instance) -> None:
        key = instance.key
        self._begun()[key] = instance
        if self._index is not None:
            self._index.setdefault((key.ip, key.port), set()).add(key)

    def _keys_at(self, ip: str, port: int) -> list[InstanceKey]:
        if self._index is not None:
            return sorted(self._index.get((ip, port), ()))
        return [key for key in self._now if key[0] == ip and key[1] == port]

    def _at(self, ip: str, port: int, cluster: str) -> list[InstanceKey]:
        """Who a write about an address means: all that is there, but on a 1.x the instance of that cluster alone.

        Two at one address are there on a 1.x only.
        """
        keys = self._keys_at(ip, port)
        return [key for key in keys if key.cluster == cluster] if self._base.by_cluster or len(keys) > 1 else keys

    # what each write does: the instances that go, then those that come or change

    def _effect(self, write: Write[Any]) -> tuple[Iterable[InstanceKey], list[Instance]]:
        match write:
            case Register():
                return self._registered(write.instance)
            case Deregister():
                keys = self._at(write.ip, write.port, write.cluster)
                return [key for key in keys if self._now[key].ephemeral == write.ephemeral], []
            case Update():
                return (), self._updated(write)
            case Beat():
                return self._beaten(write)
            case BatchMetadata():
                return (), self._merged(write)
            case SetHealth():
                known = self._now.get(InstanceKey(write.ip, write.port, write.cluster))
                return (), [] if known is None else self._changes(known, replace(known, healthy=write.healthy))
            case _:
                return (), []

    def _registered(self, instance: Instance) -> tuple[Iterable[InstanceKey], list[Instance]]:
        key = instance.key
        known = self._now.get(key)
        if known is not None:  # what the server adds of its own, such as a snowflake id, is in no registration
            own, extra = instance.instance_id or known.instance_id, instance.extra or known.extra
            if own != instance.instance_id or extra != instance.extra:
                instance = replace(instance, instance_id=own, extra=extra)
            if instance == known:
                return (), []
        others = () if self._base.by_cluster else self._keys_at(key.ip, key.port)
        return [other for other in others if other != key], [instance]

    @staticmethod
    def _changes(known: Instance, after: Instance) -> list[Instance]:
        return [] if after == known else [after]

    def _updated(self, write: Update) -> list[Instance]:
        known = self._now.get(InstanceKey(write.ip, write.port, write.cluster))
        if known is None:
            return []
        default_weight, default_enabled = (known.weight, known.enabled) if write.partial else (1.0, True)
        weight = default_weight if write.weight is None else write.weight
        enabled = default_enabled if write.enabled is None else write.enabled
        metadata = {**known.metadata, **(write.metadata or {})}
        return self._changes(known, replace(known, weight=weight, enabled=enabled, metadata=metadata))

    def _beaten(self, write: Beat) -> tuple[Iterable[InstanceKey], list[Instance]]:
        # beats come often and change nothing: then the snapshot's own index pays
        base = self._base.by_address.get((write.ip, write.port), ())
        if self._draft is not None or len(base) > 1 or self._base.by_cluster:
            base = self._at(write.ip, write.port, write.cluster)
        if base:
            known = self._now[min(base)]
            alive = known.ephemeral and not known.healthy
            return (), [replace(known, healthy=True)] if alive else []
        if write.full is None:
            return (), []
        return self._registered(replace(write.full, healthy=True, enabled=True))  # nacos-http.md 2.7

    def _merged(self, write: BatchMetadata) -> list[Instance]:
        if write.remove:
            return []
        found = [self._now[key] for key in write.instances or self._now if key in self._now]
        changed = (
            self._changes(known, replace(known, metadata={**known.metadata, **write.metadata})) for known in found
        )
        return [instance for some in changed for instance in some]
