"""The services that were written to through this proxy a moment ago."""

from __future__ import annotations

from nacos_proxy.model.services import ServiceKey


class RecentWrites:
    """Services by their last write, for `grace` seconds each, which bounds their number."""

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self._written: dict[ServiceKey, float] = {}  # the oldest first

    def add(self, key: ServiceKey, now: float) -> None:
        self._written.pop(key, None)
        self._written[key] = now
        self._forget_old(now)

    def keys(self, now: float) -> list[ServiceKey]:
        """The services that were written to within the grace."""
        self._forget_old(now)
        return list(self._written)

    def _forget_old(self, now: float) -> None:
        while self._written and now - self._written[oldest := next(iter(self._written))] >= self.grace:
            del self._written[oldest]

    def __repr__(self) -> str:
        return f"<RecentWrites {len(self._written)} services>"
