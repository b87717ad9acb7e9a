"""Writes that this proxy accepted while the upstream was away, in order, until it sends them.

For each ip:port of a service, the journal keeps only the writes that still matter. A registration supersedes all
earlier ones except a deregistration from another cluster, because servers 1.x keep an instance for each cluster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nacos_proxy.catalog.pending_writes import supersedes
from nacos_proxy.catalog.registrations import RegistrationKey
from nacos_proxy.model.calls import Beat, Deregister, Register, Update, Write

LocalWrite = Register | Deregister | Update | Beat

MAX_WRITES = 20_000


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """The waiting writes of one key. `number` orders the keys; `at`: the time of the last write (s since 1970)."""

    writes: tuple[LocalWrite, ...]
    number: int
    at: float


def registration_key(write: LocalWrite) -> RegistrationKey:
    if isinstance(write, Register):
        return (write.service, write.instance.ip, write.instance.port)
    return (write.service, write.ip, write.port)


class Journal:
    """At most `max_writes` writes, by key; `len` is their number. `changed`: the keys to write to disk."""

    def __init__(self, max_writes: int = MAX_WRITES) -> None:
        self.changed: set[RegistrationKey] = set()
        self._max_writes = max_writes
        self._waiting: dict[RegistrationKey, JournalEntry] = {}
        self._count = 0
        self._number = 0

    @property
    def room(self) -> bool:
        return self._count < self._max_writes

    def add(self, write: LocalWrite, at: float) -> None:
        key = registration_key(write)
        kept = [old for old in self.of(key) if not supersedes(write, old) or _of_another_cluster(old, write)]
        self._number += 1
        self._put(key, JournalEntry((*kept, write), self._number, at))

    def done(self, key: RegistrationKey, write: LocalWrite) -> None:
        """Removes a write that was sent or given up. No effect if a newer one superseded it meanwhile."""
        known = self._waiting.get(key)
        if known is not None and any(old is write for old in known.writes):
            left = tuple(old for old in known.writes if old is not write)
            self._put(key, JournalEntry(left, known.number, known.at))

    def expired(self, key: RegistrationKey) -> None:
        """The client fell silent: removes the writes that would register the instance again."""
        for write in self.of(key):
            if not isinstance(write, Deregister):
                self.done(key, write)

    def restore(self, key: RegistrationKey, waiting: JournalEntry) -> None:
        """Adds an entry from disk. Call it in the order of the numbers."""
        self._number = max(self._number, waiting.number)
        self._put(key, waiting)
        self.changed.discard(key)

    def _put(self, key: RegistrationKey, waiting: JournalEntry) -> None:
        before = self._waiting.get(key)
        self._count += len(waiting.writes) - (0 if before is None else len(before.writes))
        self.changed.add(key)
        if before is not None and before.number != waiting.number:
            del self._waiting[key]  # so that it moves to the end
        if waiting.writes:
            self._waiting[key] = waiting
        else:
            self._waiting.pop(key, None)

    def of(self, key: RegistrationKey) -> tuple[LocalWrite, ...]:
        known = self._waiting.get(key)
        return () if known is None else known.writes

    def get(self, key: RegistrationKey) -> JournalEntry | None:
        return self._waiting.get(key)

    def __contains__(self, key: object) -> bool:
        return key in self._waiting

    def __iter__(self) -> Iterator[RegistrationKey]:
        """The keys, the least recently changed first."""
        return iter(list(self._waiting))

    def __len__(self) -> int:
        return self._count


def _of_another_cluster(old: Write[Any], new: LocalWrite) -> bool:
    cluster = new.instance.cluster if isinstance(new, Register) else new.cluster
    return isinstance(old, Deregister) and not isinstance(new, Update) and old.cluster != cluster
