"""Chooses instances of a snapshot for a request: one, or several different ones.

    strategy     | the choice
    -------------|------------------------------------------------------------------------------------------
    weighted     | at random, in proportion to the weights; several: each in proportion to those that are left
    random       | at random, each instance equally likely
    round_robin  | those after the last choice, in the order of ip, port, cluster
    least_recent | those that were chosen longest ago; before them, those that never were
    hash         | the same instances for the same key, while they exist (weighted rendezvous hashing)

No strategy chooses a disabled instance or one of weight 0.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import cached_property
from hashlib import blake2b
from heapq import nlargest, nsmallest
from itertools import accumulate

from nacos_proxy.model.services import Instance, InstanceKey, Snapshot
from nacos_proxy.model.views import View

Rng = Callable[[], float]
"""A random number from [0, 1)."""


class Candidates:
    """The instances to choose from. Each method chooses `n` different ones, or all if there are fewer."""

    def __init__(self, hosts: Iterable[Instance]) -> None:
        usable = (host for host in hosts if host.enabled and host.weight > 0)
        self.hosts = tuple(sorted(usable, key=lambda host: host.key))

    def __len__(self) -> int:
        return len(self.hosts)

    @cached_property
    def _cumulative_weights(self) -> list[float]:
        return list(accumulate(host.weight for host in self.hosts))

    @cached_property
    def _keys(self) -> list[InstanceKey]:
        return [host.key for host in self.hosts]

    def weighted(self, rng: Rng, n: int = 1) -> list[Instance]:
        """Each choice is in proportion to the weights of the instances that are left."""
        if n == 1 and self.hosts:
            index = bisect_right(self._cumulative_weights, rng() * self._cumulative_weights[-1])
            return [self.hosts[min(index, len(self.hosts) - 1)]]
        # If each waits for an exponential time whose rate is its weight, they come in the order of such choices.
        return nsmallest(n, self.hosts, key=lambda host: -math.log1p(-rng()) / host.weight)

    def random(self, rng: Rng, n: int = 1) -> list[Instance]:
        left = list(self.hosts)
        for index in range(min(n, len(left))):
            chosen = min(index + int(rng() * (len(left) - index)), len(left) - 1)
            left[index], left[chosen] = left[chosen], left[index]
        return left[:n]

    def after(self, last: InstanceKey | None, n: int = 1) -> list[Instance]:
        """The next instances after `last`, even if `last` is gone; None starts from the first."""
        first = 0 if last is None else bisect_right(self._keys, last)
        return [self.hosts[(first + more) % len(self.hosts)] for more in range(min(n, len(self.hosts)))]

    def least_recent(self, chosen_at: Callable[[InstanceKey], int], n: int = 1) -> list[Instance]:
        """`chosen_at`: a number that grows with each choice, 0 for an instance that was never chosen."""
        return nsmallest(n, self.hosts, key=lambda host: chosen_at(host.key))

    def hashed(self, key: str, n: int = 1) -> list[Instance]:
        """Rendezvous hashing: the highest scores win, so a new or lost instance moves only its own keys."""
        return nlargest(n, self.hosts, key=lambda host: score(key, host))


def score(key: str, host: Instance) -> float:
    """An instance's score for a key: `-weight / ln(u)`, u in (0, 1) from 8 bytes of BLAKE2b over `key NUL ip:port`.

    Each instance gets keys in proportion to its weight (Schindelhauer, Schomaker 2005). Any program that computes the
    same score finds the same instance.
    """
    u = fraction(f"{key}\0{host.address}")
    return -host.weight / math.log(u) if u < 1.0 else math.inf


def fraction(text: str) -> float:
    """A number from (0, 1] that is uniform over texts, and the same for the same one: from 8 bytes of BLAKE2b."""
    digest = blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2.0**64


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
