"""What clients ask of `pick`, and what is remembered between two picks: whose turn it is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from cachetools import LRUCache

from nacos_proxy.catalog.load_balancing import Candidates, Rng, fraction
from nacos_proxy.model.selectors import Selector
from nacos_proxy.model.services import Instance, InstanceKey, ServiceKey
from nacos_proxy.model.strategies import Strategy

_MAX_TURNS = 10_000  # positions of round_robin
_MAX_REMEMBERED = 50_000  # instances whose last pick least_recent knows


@dataclass(frozen=True, slots=True)
class Split:
    """The share of the picks, from 0 to 1, that goes to the instances that match."""

    selector: Selector
    share: float


@dataclass(frozen=True, slots=True)
class Pick:
    """`n` different instances, or all if there are fewer. `key` is for the strategy `hash`."""

    strategy: Strategy = "weighted"
    key: str = ""
    n: int = 1
    split: Split | None = None


def sides_of(hosts: Iterable[Instance], split: Selector) -> tuple[Candidates, ...]:
    """The hosts that match and the others. A side without any is left out, so that all picks go to the other one."""
    matching, rest = list[Instance](), list[Instance]()
    for host in hosts:
        (matching if split.matches(host.metadata) else rest).append(host)
    return tuple(side for side in (Candidates(matching), Candidates(rest)) if len(side))


def counts_of(wanted: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """How many to choose from each of two sides, `wanted` for each pick. What one side lacks, the other one gives."""
    first = min(sizes[0], max(wanted.count(0), len(wanted) - sizes[1]))
    return [first, min(sizes[1], len(wanted) - first)]


class Picker:
    """Makes the picks of one catalog."""

    def __init__(self, rng: Rng) -> None:
        self._rng = rng
        self._turns: LRUCache[Hashable, InstanceKey] = LRUCache(_MAX_TURNS)
        self._recent = RecentPicks()

    def choose(self, pick: Pick, sides: Sequence[Candidates], service: ServiceKey, turn: Hashable) -> list[Instance]:
        """From `sides_of`. `turn`: picks of round_robin with equal ones take turns; their sides should be alike."""
        if pick.split is None or len(sides) < 2:
            return [host for side in sides for host in self._choose(pick, pick.n, side, service, turn)]
        wanted = self._wanted(pick, pick.split.share)
        numbers = zip((0, 1), sides, counts_of(wanted, [len(side) for side in sides]), strict=True)
        chosen = [self._choose(pick, n, side, service, (turn, number)) if n else [] for number, side, n in numbers]
        ordered = list[Instance]()
        for side in wanted[: len(chosen[0]) + len(chosen[1])]:
            ordered.append((chosen[side] or chosen[1 - side]).pop(0))
        return ordered

    def _wanted(self, pick: Pick, share: float) -> list[int]:
        """The side of each pick. A key always has the same one, whatever instances there are."""
        if pick.strategy == "hash":
            return [0 if fraction(pick.key) < share else 1] * pick.n
        return [0 if self._rng() < share else 1 for _ in range(pick.n)]

    def _choose(
        self, pick: Pick, n: int, candidates: Candidates, service: ServiceKey, turn: Hashable
    ) -> list[Instance]:
        match pick.strategy:
            case "weighted":
                return candidates.weighted(self._rng, n)
            case "random":
                return candidates.random(self._rng, n)
            case "hash":
                return candidates.hashed(pick.key, n)
            case "round_robin":
                hosts = candidates.after(self._turns.get(turn), n)
                if hosts:  # whoever gets all of them shall not always begin with the same one
                    self._turns[turn] = hosts[-1 if len(hosts) < len(candidates) else 0].key
                return hosts
            case "least_recent":
                hosts = candidates.least_recent(lambda key: self._recent.number(service, key), n)
                for host in hosts:
                    self._recent.add(service, host.key)
                return hosts


class RecentPicks:
    """The last pick of each instance, as a number that grows; of at most `max_remembered`, the latest ones."""

    def __init__(self, max_remembered: int = _MAX_REMEMBERED) -> None:
        self._max_remembered = max_remembered
        self._numbers: OrderedDict[tuple[ServiceKey, InstanceKey], int] = OrderedDict()  # the latest is the last
        self._last = 0

    def number(self, service: ServiceKey, key: InstanceKey) -> int:
        """0 if the instance was not picked, or so long ago that it is forgotten."""
        return self._numbers.get((service, key), 0)

    def add(self, service: ServiceKey, key: InstanceKey) -> None:
        self._last += 1
        self._numbers[service, key] = self._last
        self._numbers.move_to_end((service, key))
        if len(self._numbers) > self._max_remembered:
            self._numbers.popitem(last=False)
