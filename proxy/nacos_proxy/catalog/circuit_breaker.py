"""The circuit breaker: whether the upstream counts as up, and when to probe it while it is down."""

from __future__ import annotations

from dataclasses import dataclass

from nacos_proxy.model.backoff import Backoff

FIRST_PROBE = 0.5  # seconds after the upstream was lost


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """It opens after `failures` in a row; `max_delay` is the longest time between two probes, in seconds.

    A timeout counts as a failure only if nothing at all was answered for `slow` seconds, which is how long a call may
    take: an upstream that answers some calls is slow, not lost.
    """

    failures: int = 3
    max_delay: float = 5.0
    slow: float = 5.0


class Breaker:
    """Learns the outcome of every call and says whether to call at all. `up` starts True; operators see it."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._backoff = Backoff(FIRST_PROBE, policy.max_delay)
        self.up = True
        self.since = 0.0
        self.reason = ""
        self.failures = 0
        self._answered = float("-inf")
        self._probes = 0
        self._next_probe = 0.0

    def allows(self, now: float) -> bool:
        """Whether a call may go out: while up always, while down one probe when it is due."""
        return self.up or now >= self._next_probe

    def call_started(self, now: float) -> None:
        """A call goes out. While down it is a probe, and puts off the next one."""
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
        """The upstream gave no answer or a senseless one; `slow`: none in time. True if it now counts as down.

        A failure while down does not put off the next probe: otherwise a client that keeps writing would put it off
        for ever.
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

    def __repr__(self) -> str:
        state = "up" if self.up else f"down, next probe at {self._next_probe:g}"
        return f"<Breaker {state}, {self.failures} failures>"
