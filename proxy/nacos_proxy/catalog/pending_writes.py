"""Accepted writes that the upstream does not list yet, folded over its word.

A real server lists a write some 500 ms after it said `ok`. Until then a refresh brings the old list, and must not
bring it back to readers. A write is *settled* when a list agrees with it that was asked for `settle` after it (an
older one may agree by chance and be followed by an older state), and *given up* when one that was asked for `grace`
after it does not agree: then the upstream's word stands. When a list arrived says nothing of how old it is.
Source: nacos-http.md, fact 1, recordings "v1 list at once after register".
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
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
from nacos_proxy.model.effects import Draft
from nacos_proxy.model.services import Snapshot

UNHEARD = math.inf  # the moment of a write that the upstream has not heard of: no list of it settles that


@dataclass(frozen=True, slots=True)
class PendingPolicy:
    """Seconds. `grace` 0 trusts every list at once, which suits a registry without a delay."""

    settle: float = 1.0
    grace: float = 3.0


@dataclass(frozen=True, slots=True)
class Pending:
    """A write, when the upstream accepted it (or `UNHEARD`), and the address that it is about (`_place`)."""

    write: Write[Any]
    since: float
    address: tuple[str, int] | None


def apply_pending(base: Snapshot, pending: Iterable[Pending]) -> Snapshot:
    """The upstream's word with the writes on top, in their order."""
    draft = Draft(base, many=True)
    for entry in pending:
        draft.apply(entry.write)
    return draft.snapshot


def add(pending: tuple[Pending, ...], write: Write[Any], now: float) -> tuple[Pending, ...]:
    """The pending writes with one more; what it makes meaningless is left out, so their number stays bounded."""
    place = _place(write)
    if isinstance(write, Beat) and any(p.address == place and p.write == write for p in pending):
        return pending  # what the first one did stands where it is, before what was modified since
    kept = [p for p in pending if p.address != place or not supersedes(write, p.write)]
    kept.append(Pending(write, now, place))
    return tuple(kept)


def _place(write: Write[Any]) -> tuple[str, int] | None:
    match write:
        case Register():
            return (write.instance.ip, write.instance.port)
        case Deregister() | Update() | Beat() | SetHealth():
            return (write.ip, write.port)
        case _:
            return None


def supersedes(new: Write[Any], old: Write[Any]) -> bool:
    """Whether an older write about the same address means nothing any more."""
    if isinstance(new, BatchMetadata) and isinstance(old, BatchMetadata):
        alike = (new.instances, new.remove, new.ephemeral) == (old.instances, old.remove, old.ephemeral)
        return alike and old.metadata.keys() <= new.metadata.keys()
    if _place(new) is None:
        return new == old
    if isinstance(new, Register):
        return True
    if isinstance(new, Deregister):
        return _ephemeral(old) == new.ephemeral
    if isinstance(old, Beat) and old.full is not None:
        return False  # it may be what registered the instance
    if isinstance(new, Update) and isinstance(old, Update):
        if new.cluster != old.cluster:  # Nacos keeps what it modified by cluster, too (nacos-http.md 5.4)
            return False
        return not new.partial or (old.partial and _named(old) <= _named(new))
    return type(new) is type(old)


def _ephemeral(write: Write[Any]) -> bool:
    """Of which kind the instance is that a write is about: a deregistration of the other kind leaves it there."""
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
    pending: tuple[Pending, ...], base: Snapshot, asked: float, policy: PendingPolicy
) -> tuple[Pending, ...]:
    """What stays pending after the upstream listed `base`, asked for at `asked`: neither settled nor given up."""
    if all(asked - entry.since >= policy.settle for entry in pending) and apply_pending(base, pending) == base:
        return ()  # together they agree, though one alone may not: registered, then modified
    kept: list[Pending] = []
    shown = Draft(base, many=True)
    for entry in pending:
        agreed = asked - entry.since >= policy.settle and shown.shows(entry.write)
        if not agreed and asked - entry.since < policy.grace:
            kept.append(entry)
            shown.apply(entry.write)
    return tuple(kept)


def explained(pending: Iterable[Pending], before: Snapshot, after: Snapshot, share: float) -> bool:
    """Whether a list lacks no more than this share of the instances, or deregistrations from here account for it."""
    missing = [i for i in before.instances if i.key not in after.by_key]
    gone = {p.address for p in pending if isinstance(p.write, Deregister)}
    return len(missing) <= share * len(before.instances) or all((i.ip, i.port) in gone for i in missing)


def next_check(pending: Iterable[Pending], policy: PendingPolicy, now: float) -> float:
    """When pending writes want a list, infinity where there are none.

    Not sooner than half of `settle`: where one write follows the other, each would want a list of its own.
    """
    waits = [p.since + (policy.settle if p.since + policy.settle > now else policy.grace) for p in pending]
    return max(now + policy.settle / 2, min(waits)) if waits else math.inf
