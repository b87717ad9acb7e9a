"""Exponential back-off: how long to wait between attempts that fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_MAX_EXPONENT = 64  # enough for any maximum in use; a larger one could overflow a float


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays in seconds: the first is `initial`, each next one is `factor` times as long, up to `maximum`.

    `jitter`, from 0 to 1, is the random share of a delay: 0.5 gives 50 to 100 % of it. It spreads the retries of many
    clients over time.
    """

    initial: float
    maximum: float
    factor: float = 2.0
    jitter: float = 0.0

    def delay(self, retry: int, rng: Callable[[], float] | None = None) -> float:
        """Seconds to wait before a retry; 0 is the first one. `rng` draws from [0, 1); without it there is no jitter.

        >>> backoff = Backoff(initial=1.0, maximum=5.0)
        >>> [backoff.delay(retry) for retry in range(4)]
        [1.0, 2.0, 4.0, 5.0]
        """
        delay = min(self.initial * self.factor ** min(retry, _MAX_EXPONENT), self.maximum)
        return delay if rng is None else delay * (1.0 - self.jitter + self.jitter * rng())
