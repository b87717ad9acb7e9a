"""The contracts of an upstream: `Registry`, which executes calls, and `Watchable`, which reports changes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import Protocol, TypeVar, runtime_checkable

from nacos_proxy.model.calls import Call
from nacos_proxy.model.services import ServiceKey

R = TypeVar("R")


class Registry(Protocol):
    """Executes calls. It caches nothing for readers, and does not retry reads."""

    async def send(self, call: Call[R]) -> R:
        """The result of the call. Raises only `ProxyError`s.

        If a `Fetch` finds the service unchanged, it may return the `Snapshot` object of the last `Fetch`; the catalog
        then need not compare.
        """
        ...

    async def close(self) -> None:
        """Ends connections and tasks. A closed registry is not used again."""
        ...


@runtime_checkable
class Watchable(Protocol):
    """An optional ability of a registry: it reports that a service changed, never what changed."""

    def watch(self, services: Collection[ServiceKey]) -> None:
        """Replaces the set of services whose changes are reported."""
        ...

    def changes(self) -> AsyncIterator[ServiceKey]:
        """Yields a service each time it changes. Ends when the source is lost for good."""
        ...

    @property
    def alive(self) -> bool:
        """Whether changes are reported right now. The poller slows down while they are."""
        ...

    def covers(self, key: ServiceKey) -> bool:
        """Whether changes of this service are reported. Services not subscribed to yet are polled as without push."""
        ...
