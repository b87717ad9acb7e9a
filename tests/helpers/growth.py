"""How the CPU time of a function grows with its input; other processes do not affect CPU time."""

from __future__ import annotations

import time
from collections.abc import Callable


def grows_as_its_input(work: Callable[[int], object], size: int) -> bool:
    """Whether four times the input costs less than ten times as much; quadratic growth costs sixteen times."""
    return _cost(work, 4 * size) < 10 * _cost(work, size) + 0.02


def _cost(work: Callable[[int], object], size: int) -> float:
    costs: list[float] = []
    for _ in range(3):
        begun = time.process_time()
        work(size)
        costs.append(time.process_time() - begun)
    return min(costs)
