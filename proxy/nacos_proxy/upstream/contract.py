"""The contracts of an upstream: `Registry`, which executes calls, and `Watchable`, which reports changes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from nacos_proxy.model.calls import Call
from nacos_proxy.model.services import ServiceKey, Snapshot

R = TypeVar("R")


class Registry(Protocol):
    """Executes calls. It caches nothing for readers, and does not retry reads."""

    async def send(self, call: Call[R]) -> R:
        """The result of the call. Raises only `ProxyError`s.

        A `Fetch` of an unchanged service may return the `Snapshot` object of the last `Fetch`, which saves the catalog
        a comparison.
        """
        ...

    async def close(self) -> None:
        """Ends connections and tasks, for good."""
        ...


class Changed(NamedTuple):
    """A report that a service may have changed.

    `pushed`: what the server lists now, with the true health of each instance, but without the service's threshold and
    masking, and without disabled instances; None if only a fetch tells. `fetch_shows_more`: a fetch also lists disabled
    instances, so one that `pushed` lacks may be disabled rather than gone.
    """

    key: ServiceKey
    pushed: Snapshot | None = None
    fetch_shows_more: bool = False


@runtime_checkable
class Watchable(Protocol):
    """A source of changes: it reports that a service changed, and if it can, to what."""

    def watch(self, services: Collection[ServiceKey]) -> None:
        """Replaces the set of services whose changes are reported."""
        ...

    def changes(self) -> AsyncIterator[Changed]:
        """Yields a report each time a service changes. Ends when the source is lost for good."""
        ...

    @property
    def alive(self) -> bool:
        """Whether changes are reported now. While they are, the poller slows down."""
        ...

    def covers(self, key: ServiceKey) -> bool:
        """Whether changes of this service are reported. If not, it is polled as without push."""
        ...
