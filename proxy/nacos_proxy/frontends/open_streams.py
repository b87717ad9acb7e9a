"""What is open for long (event streams, long polls, passed requests), by the API token that opened it.

Not for: who may open it (`guard`), which ends it here when its token is revoked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import Scope

from nacos_proxy.model.errors import ProxyError

HOLDER = "nacos_proxy.holder"
"""Where the guard leaves in the scope what `hold` needs."""

End = Callable[[ProxyError], None]


@dataclass(frozen=True, slots=True)
class Opened:
    """By what a request was let in: its token (None: it showed none), its method and its path."""

    token: str | None = field(repr=False)
    method: str
    path: str


class Held:
    """All that is open. `judge` says why something may not be open now, None where it may."""

    def __init__(self, judge: Callable[[Opened], ProxyError | None] = lambda _: None) -> None:
        self._judge = judge
        self._ends: dict[object, tuple[Opened, End]] = {}

    def add(self, opened: Opened, end: End) -> Callable[[], None]:
        """`end` is called when it may not go on, until what comes back was called; that is harmless later."""
        if (why := self._judge(opened)) is not None:  # its token was revoked between the guard and here
            end(why)
            return _nothing
        mark = object()
        self._ends[mark] = (opened, end)
        return lambda: self._forget(mark)

    def _forget(self, mark: object) -> None:
        self._ends.pop(mark, None)

    def end(self, refused: Callable[[Opened], ProxyError | None]) -> None:
        """Ends what would be `refused` now."""
        for mark, (opened, end) in list(self._ends.items()):
            if (why := refused(opened)) is not None:
                self._forget(mark)
                end(why)

    def __len__(self) -> int:
        return len(self._ends)


def hold(scope: Scope, end: End) -> Callable[[], None]:
    """As `Held.add`, for a request; nothing is held where no guard stands before the app."""
    holder: tuple[Held, Opened] | None = scope.get(HOLDER)
    return _nothing if holder is None else holder[0].add(holder[1], end)


def _nothing() -> None:
    """Nothing is held."""
