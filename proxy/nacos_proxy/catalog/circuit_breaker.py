"""Whether the upstream is believed to be up, and when to try it again. Not for: who asks it, or why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """`failures` in a row open it; then probes: the first after `pause` seconds, the pause doubled up to `longest`.

    A call without an answer in time is one where nothing at all was answered for `slow` seconds, which is how long a
    call may take: an upstream that answers some calls is slow, and not lost.
    """

    failures: int = 3
    pause: float = 0.5
    max_delay: float = 5.0
    slow: float = 5.0


class Breaker:
    """Told of every outcome, it says whether to ask. `up` is what operators are shown; it starts True."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self.up = True
        self.since = 0.0
        self.reason = ""
        self.failures = 0
        self._answered = float("-inf")
        self._probes = 0
        self._next_probe = 0.0

    def allows(self, now: float) -> bool:
        """Whether a call may go out: always while up, while down one probe, at its moment."""
        return self.up or now >= self._next_probe

    def probing(self, now: float) -> None:
        """A call goes out. While down it is the probe, and the next one waits its turn."""
        if not self.up:
            self._probes += 1
            self._next_probe = now + self._pause()

    def succeeded(self, now: float) -> bool:
        """The upstream answered. True where that is news."""
        news = not self.up
        self.failures, self.reason, self._answered = 0, "", now
        if news:
            self.up, self.since = True, now
        return news

    def failed(self, now: float, reason: str, *, slow: bool = False) -> bool:
        """The upstream did not answer, or not sensibly, or (`slow`) not in time. True where it counts as down by this.

        Failures of calls that are no probe (writes, stragglers from before the loss) do not put off the next probe:
        else a client that keeps writing in vain would hold it back for ever.
        """
        if slow and now - self._answered < self._policy.slow:
            return False
        self.failures += 1
        self.reason = reason
        news = self.up and self.failures >= self._policy.failures
        if news:
            self.up, self.since, self._probes = False, now, 0
            self._next_probe = now + self._pause()
        return news

    def _pause(self) -> float:
        return min(self._policy.max_delay, self._policy.pause * 2.0 ** min(self._probes, 16))

    def __repr__(self) -> str:
        state = "up" if self.up else f"down, next probe at {self._next_probe:g}"
        return f"<Breaker {state}, {self.failures} failures>"
