"""When something is done again, as functions of the time: after changes have settled, and after failures.

Times are in seconds of a monotonic clock, which the caller reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable

from nacos_proxy.model.backoff import Backoff
from nacos_proxy.model.durations import parse_duration

RETRY = Backoff(initial=1.0, maximum=60.0)


def read_wait(text: str) -> tuple[float, float]:
    """Reads `MIN[:MAX]`. MAX is four times MIN if left out. Raises `ValueError`.

    >>> read_wait("500ms:5s"), read_wait("1s")
    ((0.5, 5.0), (1.0, 4.0))
    """
    least, colon, most = text.partition(":")
    shortest = float(parse_duration(least))
    longest = float(parse_duration(most)) if colon else 4 * shortest
    if longest < shortest:
        raise ValueError(f"{text!r}: the second time is shorter than the first")
    return shortest, longest


class Debounce:
    """Collects changes: `due` when none came for `shortest` seconds, at the latest `longest` after the first one."""

    def __init__(self, shortest: float, longest: float) -> None:
        self._shortest = shortest
        self._longest = longest
        self._latest = math.inf
        self.due = math.inf

    def changed(self, now: float) -> None:
        self._latest = min(self._latest, now + self._longest)
        self.due = min(now + self._shortest, self._latest)

    def done(self) -> None:
        self._latest = self.due = math.inf


class Retries:
    """What has failed, and when it is tried again, after growing pauses."""

    def __init__(self, backoff: Backoff = RETRY) -> None:
        self._backoff = backoff
        self._failures: dict[Hashable, int] = {}
        self._due: dict[Hashable, float] = {}

    def failed(self, what: Hashable, now: float) -> None:
        failures = self._failures.get(what, 0)
        self._failures[what] = failures + 1
        self._due[what] = now + self._backoff.delay(failures)

    def done(self, what: Hashable) -> None:
        self._failures.pop(what, None)
        self._due.pop(what, None)

    def hurry(self, now: float) -> None:
        """Makes everything due now, because its cause may be gone."""
        self._due = {what: now for what in self._due}

    def due_at(self, what: Hashable) -> float:
        """When it is tried again; -inf if it has not failed."""
        return self._due.get(what, -math.inf)

    def next(self) -> float:
        return min(self._due.values(), default=math.inf)


class Told:
    """Tells people about each failure once, until its text changes or it is over. `tell` prints a text."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._failing: dict[Hashable, str] = {}

    def failing(self, what: Hashable, text: str) -> None:
        if self._failing.get(what) != text:
            self._tell(text)
        self._failing[what] = text

    def over(self, what: Hashable, text: str = "") -> None:
        """Tells `text`, if it was failing."""
        if self._failing.pop(what, None) is not None and text:
            self._tell(text)

    def only(self, head: tuple[Hashable, ...], those: Iterable[Hashable]) -> None:
        """All tuples that begin with `head` are over, but `those`."""
        left = set(those)
        for what in tuple(self._failing):
            if isinstance(what, tuple) and what[: len(head)] == head and what not in left:
                del self._failing[what]

    def __contains__(self, what: object) -> bool:
        return what in self._failing
