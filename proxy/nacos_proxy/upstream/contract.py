"""The contracts of an upstream: `Registry`, which executes calls, and `Watchable`, which reports changes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

from nacos_proxy.model.calls import Call
from nacos_proxy.model.services import ServiceKey, Snapshot, Via

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


class Sent(Protocol):
    """A call that was begun, and its answer. `usual`: it has succeeded, and `result` is its result.

    A beat of an instance that the server does not know has not succeeded.
    """

    @property
    def usual(self) -> bool: ...

    @property
    def result(self) -> Any: ...

    async def finish(self) -> Any:
        """The result, as `Registry.send` gives it, from the answer on. Call it once unless `usual`."""
        ...


@runtime_checkable
class Beginner(Protocol):
    """A `Registry` that can begin some calls without waiting: those that came before."""

    def begin(self, call: Call[Any], answered: Callable[[Sent], object]) -> bool:
        """Sends a call at once. False: it is not sent, and only `send` can do it.

        `answered` is called in the caller's context when the answer is there, or will never be. It must not raise.
        """
        ...


class Changed(NamedTuple):
    """A report that a service may have changed.

    `pushed`: what the server lists now, with the true health of each instance, but without the service's threshold and
    masking, and without disabled instances; None if only a fetch tells. `fetch_shows_more`: a fetch also lists disabled
    instances, so one that `pushed` lacks may be disabled rather than gone. `whole`: `pushed` says all that a fetch
    says.
    """

    key: ServiceKey
    pushed: Snapshot | None = None
    fetch_shows_more: bool = False
    whole: bool = False


class Confirmed(NamedTuple):
    """A report that these lists, which were pushed before, still hold. `via` says how old they are at most."""

    lists: Mapping[ServiceKey, Snapshot]
    via: Via


class Doubted(NamedTuple):
    """A report that the upstream, which is a cache, has lost the registry behind it. Reason '': it is back."""

    reason: str


Report: TypeAlias = Changed | Confirmed | Doubted


@runtime_checkable
class Watchable(Protocol):
    """A source of changes: it reports that a service changed, and if it can, to what."""

    def watch(self, services: Collection[ServiceKey]) -> None:
        """Replaces the set of services whose changes are reported."""
        ...

    def changes(self) -> AsyncIterator[Report]:
        """Yields a report each time a service changes. Ends when the source is lost for good."""
        ...

    @property
    def alive(self) -> bool:
        """Whether changes are reported now. While they are, the poller slows down."""
        ...

    def covers(self, key: ServiceKey) -> bool:
        """Whether changes of this service are reported. If not, it is polled as without push."""
        ...
