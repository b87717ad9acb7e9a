"""Clients apart by what they may see: with `auth = client`, one set of parts for each token that was shown.

Not for: who may use this proxy (`api.guard`), what a token may do (the upstream alone knows). Who shows a token reads
from a catalog that only this token filled, and writes with it; so nobody sees what their own would not show.

    a realm is | while                                                      | then
    -----------+------------------------------------------------------------+--------------------------------------
    open       | it was asked within `idle` seconds, or has event streams,  | the longest unused one without streams
               | and no more than `most` are                                | makes room when another token comes
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Scope

from proxy.errors import Denied
from proxy.runtime import spawn


@dataclass(frozen=True, slots=True)
class RealmsPolicy:
    """`idle` in seconds. `bearer`: `Authorization` holds the upstream's token, not one of this proxy's own."""

    most: int = 256
    idle: float = 900.0
    bearer: bool = True


class Realm(Protocol):
    """One token's view: an app for its requests, and its end."""

    @property
    def app(self) -> ASGIApp: ...

    @property
    def streams(self) -> int:
        """Event streams that are open."""
        ...

    def end_streams(self) -> None: ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class _Place:
    opening: asyncio.Task[Realm]
    used: float = field(default=0.0)

    @property
    def realm(self) -> Realm | None:
        done = self.opening.done() and not self.opening.cancelled() and self.opening.exception() is None
        return self.opening.result() if done else None


class Realms:
    """`make(token)` opens one. `now` is the clock's."""

    def __init__(self, make: Callable[[str], Awaitable[Realm]], policy: RealmsPolicy, now: Callable[[], float]) -> None:
        self._make = make
        self._policy = policy
        self._now = now
        self._places: dict[str, _Place] = {}

    async def of(self, scope: Scope, form: bytes = b"") -> Realm | None:
        """Whose view a request gets; None for one that shows no token. Raises `Denied` where no more can be opened."""
        token = token_of(scope, bearer=self._policy.bearer, form=form)
        if not token:
            return None
        place = self._places.pop(token, None)
        if place is None or (place.opening.done() and place.realm is None):
            self._make_room()
            place = _Place(spawn(self._open(token), name="realm"))
        self._places[token] = place  # the last one is the last used
        place.used = self._now()
        return await asyncio.shield(place.opening)

    async def _open(self, token: str) -> Realm:
        return await self._make(token)

    def _make_room(self) -> None:
        now = self._now()
        for token, place in list(self._places.items()):
            realm = place.realm
            full = len(self._places) >= self._policy.most
            if realm is None or realm.streams or not (full or now - place.used >= self._policy.idle):
                continue
            del self._places[token]
            spawn(realm.close(), name="realm's end")
        if len(self._places) >= self._policy.most:
            raise Denied(f"{self._policy.most} tokens have event streams here; no more can be served", status=429)

    def end_streams(self) -> None:
        for place in self._places.values():
            if (realm := place.realm) is not None:
                realm.end_streams()

    async def close(self) -> None:
        """Ends all; one that is just being opened is waited for."""
        places, self._places = list(self._places.values()), {}
        await asyncio.gather(*(place.opening for place in places), return_exceptions=True)
        for place in places:
            if (realm := place.realm) is not None:
                await realm.close()

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"<Realms {len(self)} of {self._policy.most}>"


def token_of(scope: Scope, *, bearer: bool, form: bytes = b"") -> str:
    """The upstream's token that a request shows, as Nacos clients do it (NACOS.md 7.1); '' for none."""
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    if headers.get(b"accesstoken"):
        return headers[b"accesstoken"]
    for parameters in (scope["query_string"], form):
        if b"accessToken" in parameters:
            found = dict(parse_qsl(parameters.decode("latin-1"))).get("accessToken")
            if found:
                return found
    scheme, _, token = headers.get(b"authorization", "").partition(" ")
    return token.strip() if bearer and scheme.lower() == "bearer" else ""
