"""Which services were written to from here a moment ago. Not for: what was written (`overlay`)."""

from __future__ import annotations

from nacos_proxy.model.services import ServiceKey


class Recent:
    """Services by their last write; one is forgotten `grace` seconds after it, so what is held is bounded by those."""

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self._written: dict[ServiceKey, float] = {}  # the oldest first

    def note(self, key: ServiceKey, now: float) -> None:
        self._written.pop(key, None)
        self._written[key] = now
        self.keys(now)

    def keys(self, now: float) -> list[ServiceKey]:
        """Those that were written to within the grace."""
        while self._written and now - self._written[oldest := next(iter(self._written))] >= self.grace:
            del self._written[oldest]
        return list(self._written)

    def __repr__(self) -> str:
        return f"<Recent {len(self._written)} services>"
