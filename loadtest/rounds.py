"""The order of runs (A B B A), medians, spread, ratios. Pure: measures nothing itself."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one contender: figures by name, such as `rate` (a second), `p99` (ms), `memory` (MiB)."""

    contender: str
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, minimum and maximum of several runs."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(slots=True)
class Series:
    """All samples of one question, in the order in which they were taken."""

    question: str
    samples: list[Sample] = field(default_factory=lambda: [])

    def add(self, sample: Sample) -> None:
        self.samples.append(sample)

    @property
    def contenders(self) -> list[str]:
        return list(dict.fromkeys(sample.contender for sample in self.samples))

    @property
    def figures(self) -> list[str]:
        return list(dict.fromkeys(name for sample in self.samples for name in sample.figures))

    def values(self, contender: str, figure: str) -> list[float]:
        chosen = (s for s in self.samples if s.contender == contender)
        return [s.figures[figure] for s in chosen if figure in s.figures]

    def spread(self, contender: str, figure: str) -> Spread | None:
        values = self.values(contender, figure)
        return Spread.of(values) if values else None

    def ratio(self, contender: str, baseline: str, figure: str) -> Spread | None:
        """Ratios round by round, so that drift between rounds cancels out. None if either has no such figure."""
        pairs = zip(self.values(contender, figure), self.values(baseline, figure), strict=False)
        ratios = [a / b for a, b in pairs if b]
        return Spread.of(ratios) if ratios else None


def interleave(contenders: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """A B C, then C B A, and so on: each contender is first and last equally often."""
    for number in range(rounds):
        order = contenders if number % 2 == 0 else list(reversed(contenders))
        for name in order:
            yield number, name
