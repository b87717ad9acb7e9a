"""The circuit breaker: whether the upstream counts as up, and when to probe it while it is down."""

from __future__ import annotations

from dataclasses import dataclass

from nacos_proxy.model.backoff import Backoff

FIRST_PROBE = 0.5  # seconds after the upstream was lost


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """The breaker opens after `failures` in a row. `max_delay`: the longest time between two probes, in seconds.

    A timeout counts as a failure only if the upstream answered no call for `slow` seconds, the timeout of a call: an
    upstream that answers some calls is slow, not lost.
    """

    failures: int = 3
    max_delay: float = 5.0
    slow: float = 5.0


class Breaker:
    """Gets the outcome of every call and decides whether calls may go out. Operators see `up`, which starts True.

    `doubt`: an upstream that is a cache answers, but says that it has lost the registry behind it, and why; else ''.
    """

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._backoff = Backoff(FIRST_PROBE, policy.max_delay)
        self.up = True
        self.since = 0.0
        self.reason = ""
        self.doubt = ""
        self.failures = 0
        self._answered = float("-inf")
        self._probes = 0
        self._next_probe = 0.0

    @property
    def outage(self) -> str:
        """Why the registry cannot be reached, directly or through an upstream that is a cache; '' if it can."""
        return self.doubt if self.up else self.reason or "no answer"

    def allows(self, now: float) -> bool:
        """Whether a call may go out: always while the upstream is up, else only a probe that is due."""
        return self.up or now >= self._next_probe

    def call_started(self, now: float) -> None:
        """A call goes out. While the upstream is down, it is a probe and puts off the next one."""
        if not self.up:
            self._probes += 1
            self._next_probe = now + self._backoff.delay(self._probes)

    def succeeded(self, now: float) -> bool:
        """The upstream answered. True if it was down before."""
        was_down = not self.up
        self.failures, self.reason, self._answered = 0, "", now
        if was_down:
            self.up, self.since = True, now
        return was_down

    def failed(self, now: float, reason: str, *, slow: bool = False) -> bool:
        """A call failed; `slow`: by a timeout. True if the upstream now counts as down.

        A failure while it is down does not put off the next probe. Otherwise a client that keeps writing would put it
        off for ever.
        """
        if slow and now - self._answered < self._policy.slow:
            return False
        self.failures += 1
        self.reason = reason
        lost = self.up and self.failures >= self._policy.failures
        if lost:
            self.up, self.since, self._probes = False, now, 0
            self._next_probe = now + self._backoff.delay(0)
        return lost
