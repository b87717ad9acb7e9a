"""Long-lived requests (event streams, long polls, forwarded requests), ended when their API token is revoked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import Scope

from nacos_proxy.model.errors import ProxyError

OPEN_STREAMS = "nacos_proxy.open_streams"
"""The scope key under which access control leaves what `end_on_revocation` needs."""

End = Callable[[ProxyError], None]


@dataclass(frozen=True, slots=True)
class Admission:
    """What a request was admitted by: its token (None: it showed none), its method and its path."""

    token: str | None = field(repr=False)
    method: str
    path: str


class OpenStreams:
    """All open long-lived requests. `check` returns why an admission does not hold now, None if it does."""

    def __init__(self, check: Callable[[Admission], ProxyError | None] = lambda _: None) -> None:
        self._check = check
        self._ends: dict[object, tuple[Admission, End]] = {}

    def add(self, admission: Admission, end: End) -> Callable[[], None]:
        """Calls `end` when the admission no longer holds; at once if it was revoked since the request was admitted.

        The caller calls the returned function when the request has ended; more than once is harmless.
        """
        if (why := self._check(admission)) is not None:
            end(why)
            return _do_nothing
        entry = object()
        self._ends[entry] = (admission, end)
        return lambda: self._remove(entry)

    def _remove(self, entry: object) -> None:
        self._ends.pop(entry, None)

    def end_revoked(self) -> None:
        """Ends the requests whose admission no longer holds."""
        for entry, (admission, end) in list(self._ends.items()):
            if (why := self._check(admission)) is not None:
                self._remove(entry)
                end(why)

    def __len__(self) -> int:
        return len(self._ends)


def end_on_revocation(scope: Scope, end: End) -> Callable[[], None]:
    """`OpenStreams.add` for a request; does nothing without access control in front of the app."""
    found: tuple[OpenStreams, Admission] | None = scope.get(OPEN_STREAMS)
    return _do_nothing if found is None else found[0].add(found[1], end)


def _do_nothing() -> None:
    pass
