"""Where the truth lives: one contract of one method. Not for: caching, retries of reads, what a reader sees."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import Protocol, TypeVar, runtime_checkable

from nacos_proxy.model.calls import Call
from nacos_proxy.model.services import ServiceKey

R = TypeVar("R")


class Registry(Protocol):
    """Takes a call, gives its result."""

    async def send(self, call: Call[R]) -> R:
        """The result of the call. Raises only `ProxyError`s.

        Where a `Fetch` finds the service as it was at the last `Fetch` of the same key, the very same `Snapshot`
        object may come back; the catalog then need not compare.
        """
        ...

    async def close(self) -> None:
        """Ends connections and tasks. A registry that was closed is not used again."""
        ...


@runtime_checkable
class Watchable(Protocol):
    """What a registry may be able to do beyond: to tell that something changed (never what)."""

    def watch(self, services: Collection[ServiceKey]) -> None:
        """Replaces the set of services that are to be told of."""
        ...

    def changes(self) -> AsyncIterator[ServiceKey]:
        """Yields a service each time it changed; ends when the source is lost for good."""
        ...

    @property
    def alive(self) -> bool:
        """Whether changes are being told right now; the poller slows down while they are."""
        ...

    def covers(self, key: ServiceKey) -> bool:
        """Whether changes of this service are among them: what is not subscribed to yet is polled as without push."""
        ...
