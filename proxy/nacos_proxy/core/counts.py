"""What happened since start, by outcome. Not for: how it is shown (`metrics`)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Counts:
    """What happened since start, for operators."""

    reads: dict[str, int] = field(default_factory=lambda: {})
    fetches: dict[str, int] = field(default_factory=lambda: {})
    writes: dict[str, int] = field(default_factory=lambda: {})
    changes: dict[str, int] = field(default_factory=lambda: {})
    outage: dict[str, int] = field(default_factory=lambda: {})
    healed: int = 0
    local_beats: int = 0

    @staticmethod
    def add(counts: dict[str, int], name: str, number: int = 1) -> None:
        counts[name] = counts.get(name, 0) + number
