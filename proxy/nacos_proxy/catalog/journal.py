"""Writes that were accepted here while the upstream was away, in their order, until it has heard of them.

Not for: what may be accepted, or when they are sent (`outage`). Of each place only what still means something is kept:
a registration stands for all before it, but for a deregistration from another cluster, which 1.x servers tell apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nacos_proxy.catalog.pending_writes import supersedes
from nacos_proxy.catalog.registrations import RegistrationKey
from nacos_proxy.model.calls import (
    Beat,
    Deregister,
    Register,
    Update,
    Write,
)

Local = Register | Deregister | Update | Beat


@dataclass(frozen=True, slots=True)
class JournalPolicy:
    """At most `most` writes wait."""

    max_writes: int = 20_000


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits of one place. `number` orders the places, `at` is when the last write was accepted (since 1970)."""

    writes: tuple[Local, ...]
    number: int
    at: float


def place_of(write: Local) -> RegistrationKey:
    if isinstance(write, Register):
        return (write.service, write.instance.ip, write.instance.port)
    return (write.service, write.ip, write.port)


class Journal:
    """Bounded by the number of writes. `changed` are the places that the disk does not know as they are."""

    def __init__(self, policy: JournalPolicy) -> None:
        self.changed: set[RegistrationKey] = set()
        self._policy = policy
        self._waiting: dict[RegistrationKey, Waiting] = {}
        self._count = 0
        self._number = 0

    @property
    def room(self) -> bool:
        return self._count < self._policy.max_writes

    def add(self, write: Local, at: float) -> None:
        place = place_of(write)
        kept = [old for old in self.of(place) if not supersedes(write, old) or _of_another_cluster(old, write)]
        self._number += 1
        self._put(place, Waiting((*kept, write), self._number, at))

    def done(self, place: RegistrationKey, write: Local) -> None:
        """The upstream has heard of it, or never will; harmless where something else took its place meanwhile."""
        known = self._waiting.get(place)
        if known is not None and any(old is write for old in known.writes):
            left = tuple(old for old in known.writes if old is not write)
            self._put(place, Waiting(left, known.number, known.at))

    def lapsed(self, place: RegistrationKey) -> None:
        """Its client fell silent: what would bring it back is not sent any more."""
        for write in self.of(place):
            if not isinstance(write, Deregister):
                self.done(place, write)

    def restore(self, place: RegistrationKey, waiting: Waiting) -> None:
        """As it was read from disk, the oldest first."""
        self._number = max(self._number, waiting.number)
        self._put(place, waiting)
        self.changed.discard(place)

    def _put(self, place: RegistrationKey, waiting: Waiting) -> None:
        before = self._waiting.get(place)
        self._count += len(waiting.writes) - (0 if before is None else len(before.writes))
        self.changed.add(place)
        if before is not None and before.number != waiting.number:
            del self._waiting[place]  # it goes to the end
        if waiting.writes:
            self._waiting[place] = waiting
        else:
            self._waiting.pop(place, None)

    def of(self, place: RegistrationKey) -> tuple[Local, ...]:
        known = self._waiting.get(place)
        return () if known is None else known.writes

    def get(self, place: RegistrationKey) -> Waiting | None:
        return self._waiting.get(place)

    def __contains__(self, place: object) -> bool:
        return place in self._waiting

    def __iter__(self) -> Iterator[RegistrationKey]:
        """The places, the longest unchanged first."""
        return iter(list(self._waiting))

    def __len__(self) -> int:
        """How many writes wait."""
        return self._count

    def __repr__(self) -> str:
        return f"<Journal {self._count} writes of {len(self._waiting)} places>"


def _of_another_cluster(old: Write[Any], new: Local) -> bool:
    cluster = new.instance.cluster if isinstance(new, Register) else new.cluster
    return isinstance(old, Deregister) and not isinstance(new, Update) and old.cluster != cluster
