"""Accepted writes that the upstream does not list yet, applied to its snapshots.

A real server lists a write some 500 ms after it answered `ok` (nacos-http.md, fact 1; recordings "v1 list at once after
register"). Until then a fetch returns the old list, which readers must not see again. A pending write ends in one of
two ways, which depend on when a list was requested, not on when it arrived:

- A list that agrees confirms it, if requested `confirm_after` seconds after the write or later. An earlier list may
  agree by chance, and an older state may follow.
- A list that does not agree ends it, if requested `grace` seconds after the write or later: then the upstream is right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nacos_proxy.model.calls import BatchMetadata, Beat, Deregister, Register, SetHealth, Update, Write
from nacos_proxy.model.effects import Draft
from nacos_proxy.model.services import Snapshot

UNSENT = math.inf  # `since` of a write that the upstream has not received yet, so no list can confirm it


@dataclass(frozen=True, slots=True)
class PendingPolicy:
    """Seconds. With `grace` 0 every list counts at once, for a registry that lists writes without a delay."""

    confirm_after: float = 1.0
    grace: float = 3.0


@dataclass(frozen=True, slots=True)
class Pending:
    """A write, when the upstream accepted it (or `UNSENT`), and the ip and port that it is about, if any."""

    write: Write[Any]
    since: float
    address: tuple[str, int] | None


def apply_pending(base: Snapshot, pending: tuple[Pending, ...]) -> Snapshot:
    """The upstream's snapshot with the writes applied, in their order; the same object if there are none."""
    if not pending:
        return base
    draft = Draft(base, many=True)
    for one in pending:
        draft.apply(one.write)
    return draft.snapshot


def add(pending: tuple[Pending, ...], write: Write[Any], now: float) -> tuple[Pending, ...]:
    """Adds a write and drops those that it supersedes, so that their number stays bounded."""
    address = _address(write)
    if isinstance(write, Beat) and any(p.address == address and p.write == write for p in pending):
        return pending  # the first beat keeps its place, before any modification that followed it
    kept = [p for p in pending if p.address != address or not supersedes(write, p.write)]
    kept.append(Pending(write, now, address))
    return tuple(kept)


def _address(write: Write[Any]) -> tuple[str, int] | None:
    match write:
        case Register():
            return (write.instance.ip, write.instance.port)
        case Deregister() | Update() | Beat() | SetHealth():
            return (write.ip, write.port)
        case _:
            return None


def supersedes(new: Write[Any], old: Write[Any]) -> bool:
    """Whether a write makes an older one about the same address irrelevant."""
    if isinstance(new, BatchMetadata) and isinstance(old, BatchMetadata):
        alike = (new.instances, new.remove, new.ephemeral) == (old.instances, old.remove, old.ephemeral)
        return alike and old.metadata.keys() <= new.metadata.keys()
    if _address(new) is None:
        return new == old
    if isinstance(new, Register):
        return True
    if isinstance(new, Deregister):
        return _ephemeral(old) == new.ephemeral
    if isinstance(old, Beat) and old.full is not None:
        return False  # it may have registered the instance
    if isinstance(new, Update) and isinstance(old, Update):
        if new.cluster != old.cluster:  # Nacos keeps modifications by cluster, too (nacos-http.md 5.4)
            return False
        return not new.partial or (old.partial and _named(old) <= _named(new))
    return type(new) is type(old)


def _ephemeral(write: Write[Any]) -> bool:
    """Whether the write is about an ephemeral instance; a deregistration of the other kind does not remove it."""
    match write:
        case Register():
            return write.instance.ephemeral
        case Beat():
            return write.ephemeral if write.full is None else write.full.ephemeral
        case Deregister() | Update():
            return write.ephemeral
        case _:
            return False


def _named(update: Update) -> set[str]:
    return {name for name in ("weight", "enabled", "metadata") if getattr(update, name) is not None}


def drop_confirmed(
    pending: tuple[Pending, ...], base: Snapshot, requested_at: float, policy: PendingPolicy
) -> tuple[Pending, ...]:
    """The writes that stay pending after the upstream listed `base` in answer to a request at `requested_at`."""
    if all(requested_at - p.since >= policy.confirm_after for p in pending) and apply_pending(base, pending) == base:
        return ()  # they agree together, though one alone may not: registered, then modified
    kept: list[Pending] = []
    visible = Draft(base, many=True)
    for one in pending:
        confirmed = requested_at - one.since >= policy.confirm_after and visible.shows(one.write)
        if not confirmed and requested_at - one.since < policy.grace:
            kept.append(one)
            visible.apply(one.write)
    return tuple(kept)


def explained(pending: Iterable[Pending], before: Snapshot, after: Snapshot, share: float) -> bool:
    """Whether `after` lacks at most this share of the instances, or only those that were deregistered from here."""
    missing = [i for i in before.instances if i.key not in after.by_key]
    deregistered = {p.address for p in pending if isinstance(p.write, Deregister)}
    return len(missing) <= share * len(before.instances) or all((i.ip, i.port) in deregistered for i in missing)


def next_check(pending: Iterable[Pending], policy: PendingPolicy, now: float) -> float:
    """When to fetch a list that may confirm pending writes, infinity if there are none.

    At the earliest after half of `confirm_after`, so that not every write of a series causes a fetch.
    """
    waits = [
        p.since + (policy.confirm_after if p.since + policy.confirm_after > now else policy.grace) for p in pending
    ]
    return max(now + policy.confirm_after / 2, min(waits)) if waits else math.inf
