"""Durations as text: `500ms`, `5s`, `24h`, `forever`."""

from __future__ import annotations

import math
import re
from typing import Any

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "": 1.0}
_FORMAT_UNITS = (("d", 172_800.0), ("h", 3600.0), ("m", 60.0), ("s", 1.0))  # a unit, and from how many seconds on
_HINT = "write a duration like 500ms, 5s, 10m, 24h, 7d or forever"


def parse_duration(value: Any) -> Any:
    """Seconds from text; values that are not text pass through. Raises `ValueError`."""
    if isinstance(value, bool):
        raise ValueError(_HINT)
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    if text in ("forever", "inf"):
        return math.inf
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)", text)
    if found is None:
        raise ValueError(_HINT)
    return float(found[1]) * _SECONDS[found[2]]


def format_duration(seconds: float) -> str:
    """Text that `parse_duration` reads."""
    if seconds == math.inf:
        return "forever"
    for unit, minimum in _FORMAT_UNITS:
        if seconds >= minimum and seconds % _SECONDS[unit] == 0:
            return f"{seconds / _SECONDS[unit]:.0f}{unit}"
    return f"{seconds:.12g}s" if seconds == 0 or seconds > 1 else f"{1000 * seconds:.12g}ms"
