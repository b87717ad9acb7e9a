"""Send: pass a call to the upstream, and its outcome to the circuit breaker."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nacos_proxy.catalog.hub import Notice
from nacos_proxy.core.commit import Catalog
from nacos_proxy.model.calls import Call, Fetch
from nacos_proxy.model.errors import BadCall, ProxyError, Refused, TooSlow, counts_for_upstream, is_unavailable
from nacos_proxy.model.histogram import Histogram
from nacos_proxy.model.services import Via
from nacos_proxy.runtime import Clock, Supervisor
from nacos_proxy.upstream.contract import Beginner, Registry, Sent

R = TypeVar("R")

log = logging.getLogger("nacos_proxy.agent")

AGE_UNIT = 1.0  # ages of lists are whole seconds, rounded down
SUSPICIOUS_FOR = 30.0  # seconds during which the cache quarantines lists that shrink a lot


@dataclass(slots=True, eq=False, repr=False)
class Sender:
    """Sends calls to one registry. `on_recovery` is called when the upstream answers again after it was down.

    `durations` are by the class of the call and the outcome: `ok`, or the class of the error.
    """

    _registry: Registry
    _catalog: Catalog
    _clock: Clock
    _supervisor: Supervisor
    on_recovery: list[Callable[[], None]] = field(default_factory=lambda: [])
    durations: defaultdict[tuple[str, str], Histogram] = field(default_factory=lambda: defaultdict(Histogram))
    _suspicious_until: float = 0.0
    _doubted_at: float = 0.0
    _beginner: Beginner | None = field(init=False)

    def __post_init__(self) -> None:
        self._beginner = self._registry if isinstance(self._registry, Beginner) else None

    async def send(self, call: Call[R]) -> R:
        """The upstream's result. Raises what the registry raises."""
        return await self._outcome(call, self._registry.send(call), self._clock.now())

    def begin(self, call: Call[Any], answered: Callable[[Any, Awaitable[Any] | None], object]) -> bool:
        """Sends a call without waiting, if the registry can do that at once.

        `answered` gets the result, or else an awaitable that gives it or raises, as `send` does.
        """
        if self._beginner is None:
            return False
        began = self._clock.now()

        def ended(sent: Sent) -> None:
            if not sent.usual:
                answered(None, self._outcome(call, sent.finish(), began))
                return
            # The upstream has answered, so the caller must not wait because of an exception of this step.
            self._supervisor.call("answer", self._succeeded, call, began)
            answered(sent.result, None)

        return self._beginner.begin(call, ended)

    async def _outcome(self, call: Call[R], sending: Awaitable[R], began: float) -> R:
        try:
            result = await sending
        except ProxyError as error:
            now = self._clock.now()
            self.durations[type(call).__name__, type(error).__name__].add(now - began)
            self._failed(call, error, now)
            raise
        self._succeeded(call, began)
        return result

    def _succeeded(self, call: Call[Any], began: float) -> None:
        now = self._clock.now()
        self.durations[type(call).__name__, "ok"].add(now - began)
        self._answered(now)

    def _failed(self, call: Call[Any], error: ProxyError, now: float) -> None:
        """While in doubt, an upper proxy refuses what it cannot pass on; only no answer says that it is lost, too."""
        breaker = self._catalog.breaker
        if not counts_for_upstream(error, fetching=isinstance(call, Fetch)):
            return
        if is_unavailable(error) and not (breaker.doubt and isinstance(error, Refused)):
            self.suspect()
            if breaker.failed(now, str(error), slow=isinstance(error, TooSlow)):
                log.warning("upstream lost: %s", error)
                self._catalog.hub.publish(Notice("down", str(error)))
        elif not isinstance(error, BadCall):
            self._answered(now)

    def _answered(self, now: float) -> None:
        if not self._catalog.breaker.succeeded(now):
            return
        log.warning("upstream is back")
        self.suspect()
        self._catalog.cache.retry_failed(now)
        self._publish_doubt()
        for listener in list(self.on_recovery):
            self._supervisor.call("recovery", listener)

    def doubt(self, reason: str) -> None:
        """The upstream is a cache and has lost the registry behind it. Reason '': it is back, maybe without its data.

        Calls still go to the upstream, which answers what it can.
        """
        breaker, cache = self._catalog.breaker, self._catalog.cache
        changed = bool(reason) != bool(breaker.doubt)
        breaker.doubt, cache.doubted = reason, bool(reason)
        if not changed:
            return
        if reason:
            log.warning("the upstream has lost its own upstream: %s", reason)
        else:
            log.warning("the upstream no longer says that its own upstream is lost")
        self._doubted_at = self._clock.now()
        self.suspect()
        if breaker.up:
            self._publish_doubt()

    def _publish_doubt(self) -> None:
        doubt = self._catalog.breaker.doubt
        self._catalog.hub.publish(Notice("down", doubt) if doubt else Notice("up", ""))

    def heard(self, via: Via | None) -> None:
        """A fetch brought a list through these caches. If the registry confirmed it since the doubt, that is over."""
        if not self._catalog.breaker.doubt or via is None or via.stale:
            return
        if self._clock.now() - via.age > self._doubted_at + AGE_UNIT:
            self.doubt("")

    @property
    def suspicious(self) -> bool:
        """Whether `suspect` was called within the last `SUSPICIOUS_FOR` seconds."""
        return self._clock.now() < self._suspicious_until

    def suspect(self) -> None:
        """The upstream may have lost its data."""
        self._suspicious_until = self._clock.now() + SUSPICIOUS_FOR
