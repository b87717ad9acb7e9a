"""Views: which instances of a service a reader wants to see, and which of them first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from nacos_proxy.model.selectors import ANY, Selector
from nacos_proxy.model.services import Instance, Selection, Snapshot

ENOUGH = 0.3  # of the healthy weight


@dataclass(frozen=True, slots=True)
class Preference:
    """Near first: only the instances that match, while at least the share `enough` of the healthy weight is theirs."""

    selector: Selector
    enough: float = ENOUGH

    def split(self, hosts: Iterable[Instance]) -> tuple[tuple[Instance, ...], tuple[Instance, ...]]:
        """The hosts that match and the others, both in their order; all are in the first if too little matches."""
        near, far = list[Instance](), list[Instance]()
        for host in hosts:
            (near if self.selector.matches(host.metadata) else far).append(host)
        weight = _healthy_weight(near)
        if weight > 0 and weight >= self.enough * (weight + _healthy_weight(far)):
            return tuple(near), tuple(far)
        return (*near, *far), ()

    def __str__(self) -> str:
        return f"{self.selector}:{self.enough:g}"


@dataclass(frozen=True, slots=True)
class View:
    """The filter that a reader requests. `clusters` stays as the request has it, because answers repeat it."""

    clusters: str = ""
    healthy_only: bool = False
    selector: Selector = ANY
    prefer: Preference | None = None

    @property
    def cluster_set(self) -> frozenset[str]:
        return frozenset(part for part in self.clusters.split(",") if part)

    @property
    def variant(self) -> tuple[str | bool, ...]:
        """What tells this view from others, without a true value for the view that shows all."""
        return (self.clusters, self.healthy_only, self.selector.text, str(self.prefer or ""))

    @property
    def size(self) -> int:
        """Its characters."""
        return len(self.clusters) + len(self.selector.text) + (len(self.prefer.selector.text) if self.prefer else 0)

    def within(self, snapshot: Snapshot) -> View | None:
        """The view without the clusters that the snapshot lacks; None if it lacks all of them.

        Views that show the same hosts become equal, so requests with unknown clusters add no cache entries.
        """
        if not self.clusters:
            return self
        named = sorted(self.cluster_set & snapshot.clusters)
        return replace(self, clusters=",".join(named)) if named else None

    def of(self, snapshot: Snapshot) -> Selection:
        """Filtered and protected as `Snapshot.select` does; with `prefer`, the preferred hosts first, or alone."""
        shown = self._filtered(snapshot)
        return shown if self.prefer is None else replace(shown, hosts=self.prefer.split(shown.hosts)[0])

    def tiers(self, snapshot: Snapshot) -> tuple[tuple[Instance, ...], ...]:
        """The hosts that can take traffic: healthy as shown, of a weight above 0.

        One tier, or two if `prefer` would show only a part of them: the preferred ones, then the others.
        """
        usable = tuple(host for host in self._filtered(snapshot).hosts if host.healthy and host.weight > 0)
        tiers = (usable,) if self.prefer is None else self.prefer.split(usable)
        return tuple(tier for tier in tiers if tier)

    def _filtered(self, snapshot: Snapshot) -> Selection:
        matches = self.selector.matches if self.selector else None
        return snapshot.select(self.cluster_set, self.healthy_only, matches)


def _healthy_weight(hosts: Iterable[Instance]) -> float:
    return sum(host.weight for host in hosts if host.healthy and host.enabled)
