"""Totals of the services in the cache, for `/status` and `/metrics`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from nacos_proxy.catalog.entries import Entry
from nacos_proxy.catalog.freshness import CacheResult, Freshness


@dataclass(slots=True)
class Census:
    """`oldest_age`: seconds, of the services that are kept up to date; None if there are none."""

    states: Counter[Freshness] = field(default_factory=lambda: Counter({state: 0 for state in Freshness}))
    namespaces: Counter[str] = field(default_factory=lambda: Counter[str]())
    groups: Counter[str] = field(default_factory=lambda: Counter[str]())
    watched: int = 0
    instances: int = 0
    healthy: int = 0
    oldest_age: float | None = None

    def add(self, entry: Entry, result: CacheResult, watched: bool) -> None:
        self.states[result.freshness] += 1
        self.namespaces[entry.key.namespace] += 1
        self.groups[entry.key.group] += 1
        self.watched += watched
        if entry.visible is None:
            return
        self.instances += len(entry.visible.instances)
        self.healthy += sum(one.healthy for one in entry.visible.instances)
        if watched:
            self.oldest_age = result.age if self.oldest_age is None else max(self.oldest_age, result.age)
