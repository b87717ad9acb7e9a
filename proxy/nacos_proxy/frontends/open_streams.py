"""Ends what lasts (event streams, long polls, forwarded requests, gRPC sessions) when its API token is revoked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from starlette.types import Scope

from nacos_proxy.model.errors import ProxyError

OPEN_STREAMS = "nacos_proxy.open_streams"
"""The scope key under which access control puts the `OpenStreams` and the `Admission` of the request."""

End = Callable[[ProxyError], None]
Right = Literal["read", "write", "admin"]


@dataclass(frozen=True, slots=True)
class Admission:
    """What access control checked of a request: its token, None if it had none, and the right that it needs."""

    token: str | None = field(repr=False)
    right: Right


class OpenStreams:
    """All open long-lived requests. `check` returns None if it still admits one, else the error."""

    def __init__(self, check: Callable[[Admission], ProxyError | None] = lambda _: None) -> None:
        self._check = check
        self._ends: dict[object, tuple[Admission, End]] = {}

    def add(self, admission: Admission, end: End) -> Callable[[], object]:
        """Calls `end` when `check` no longer admits the request, which may be at once.

        The caller must call the returned function when the request has ended; more than once is harmless.
        """
        if (why := self._check(admission)) is not None:
            end(why)
            return _do_nothing
        entry = object()
        self._ends[entry] = (admission, end)
        return partial(self._ends.pop, entry, None)

    def end_revoked(self) -> None:
        """Ends the requests that `check` no longer admits."""
        for entry, (admission, end) in list(self._ends.items()):
            if (why := self._check(admission)) is not None:
                self._ends.pop(entry, None)
                end(why)

    def __len__(self) -> int:
        return len(self._ends)


def end_on_revocation(scope: Scope, end: End) -> Callable[[], object]:
    """`OpenStreams.add` for a request. Does nothing if no access control is in front of the app."""
    found: tuple[OpenStreams, Admission] | None = scope.get(OPEN_STREAMS)
    return _do_nothing if found is None else found[0].add(found[1], end)


def _do_nothing() -> None:
    pass
