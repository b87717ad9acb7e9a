"""Chooses one instance of a snapshot for a request.

    strategy     | the choice
    -------------|------------------------------------------------------------------------------------------
    weighted     | at random, in proportion to the weights
    random       | at random, each instance equally likely
    round_robin  | the one after the last choice, in the order of ip, port, cluster
    hash         | the same instance for the same key, while that instance exists (weighted rendezvous hashing)

No strategy chooses a disabled instance or one of weight 0.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate
from typing import Literal, get_args

from nacos_proxy.model.services import Instance, InstanceKey, Snapshot
from nacos_proxy.model.views import View

Strategy = Literal["weighted", "round_robin", "random", "hash"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


class Candidates:
    """The instances to choose from. Each method makes one choice; None if there are no candidates."""

    def __init__(self, hosts: Iterable[Instance]) -> None:
        usable = (host for host in hosts if host.enabled and host.weight > 0)
        self.hosts = tuple(sorted(usable, key=lambda host: host.key))

    @cached_property
    def _cumulative_weights(self) -> list[float]:
        return list(accumulate(host.weight for host in self.hosts))

    @cached_property
    def _keys(self) -> list[InstanceKey]:
        return [host.key for host in self.hosts]

    def weighted(self, draw: float) -> Instance | None:
        """`draw` is a random number from [0, 1)."""
        if not self.hosts:
            return None
        index = bisect_right(self._cumulative_weights, draw * self._cumulative_weights[-1])
        return self.hosts[min(index, len(self.hosts) - 1)]

    def random(self, draw: float) -> Instance | None:
        """`draw` is a random number from [0, 1)."""
        return self.hosts[min(int(draw * len(self.hosts)), len(self.hosts) - 1)] if self.hosts else None

    def after(self, last: InstanceKey | None) -> Instance | None:
        """The next instance after `last`, even if `last` is gone; None starts from the first."""
        if not self.hosts:
            return None
        index = 0 if last is None else bisect_right(self._keys, last)
        return self.hosts[index % len(self.hosts)]

    def hashed(self, key: str) -> Instance | None:
        """Rendezvous hashing: the highest score wins, so a new or lost instance moves only its own keys."""
        return max(self.hosts, key=lambda host: score(key, host), default=None)


def score(key: str, host: Instance) -> float:
    """An instance's score for a key: `-weight / ln(u)`, u in (0, 1) from 8 bytes of BLAKE2b over `key NUL ip:port`.

    Each instance gets keys in proportion to its weight (Schindelhauer, Schomaker 2005). Any program that computes the
    same score finds the same instance.
    """
    digest = blake2b(f"{key}\0{host.address}".encode("utf-8", "replace"), digest_size=8).digest()
    u = (int.from_bytes(digest, "big") + 0.5) / 2.0**64
    return -host.weight / math.log(u) if u < 1.0 else math.inf


def why_empty(snapshot: Snapshot, view: View) -> str:
    """Tells people why no instance of a snapshot can be chosen."""
    hosts, clusters = snapshot.instances, view.cluster_set
    steps: tuple[tuple[str, Callable[[Instance], bool]], ...] = (
        (f"in the clusters {', '.join(sorted(clusters))}", lambda i: not clusters or i.cluster in clusters),
        (f"matched by the selector {view.selector}", lambda i: view.selector.matches(i.metadata)),
        ("enabled", lambda i: i.enabled),
        ("healthy", lambda i: not view.healthy_only or i.healthy),
        ("of a weight above 0", lambda i: i.weight > 0),
    )
    if not hosts:
        return f"{snapshot.key} has no instance"
    for what, passes in steps:
        left = tuple(i for i in hosts if passes(i))
        if not left:
            number = "its only instance is not" if len(hosts) == 1 else f"none of {len(hosts)} instances is"
            return f"{snapshot.key}: {number} {what}"
        hosts = left
    return ""
