"""Clients apart by what they may see: with `auth = client`, one set of parts for each account that the upstream knows.

Not for: who may use this proxy (`api.guard`), what an account may do (the upstream alone knows). Who shows a token, or
name and password, reads from a catalog that only it filled, and writes with it; so nobody sees what their own would
not show.

    a tenant is | from                                         | until
    ------------+----------------------------------------------+--------------------------------------------------
    opening     | the first request that shows a token         | the upstream took it, or refused it
    open        | the upstream took it once                    | it was idle for `idle` seconds; it makes room for
                |                                              | another; the upstream refuses its token
    busy        | requests, streams or managed instances of it | the last of them has ended

What was refused is answered from memory for a while, longer each time, and an address has `attempts` refusals before
its guesses have to wait. What a login through this proxy gave, and what was taken before, is no guess. Tokens and
passwords are known by a keyed digest; a password is gone when its request is.
"""

from __future__ import annotations

import asyncio
import hmac
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from secrets import token_bytes
from typing import Protocol

from cachetools import LRUCache
from starlette.types import ASGIApp, Receive, Scope

from nacos_proxy.app.credentials import Shown, shown_in
from nacos_proxy.frontends.answers import client_of
from nacos_proxy.frontends.own_tokens import own_in
from nacos_proxy.frontends.request_body import peek_form
from nacos_proxy.model.errors import (
    BadCall,
    NothingKnown,
    ProxyError,
    Reason,
    Refused,
    UpstreamError,
    Violation,
    no_right,
)
from nacos_proxy.runtime import (
    Clock,
    Supervisor,
    at_most,
    spawn,
    stop,
)
from nacos_proxy.upstream.nacos.rights import Pass

_LONGEST_BODY = 4096  # bytes of a refusal that are kept


@dataclass(frozen=True, slots=True)
class TenantsPolicy:
    """Seconds and numbers. A first request waits at most `wait` for the upstream's word.

    What was refused is so for `refused` seconds, then for twice that, up to `longest_refused`. An address may be
    refused `attempts` times; each is forgiven after `forgiven`. `at_once` of it are looked into at a time. `remembered`
    is how many of both are known.
    """

    max_tenants: int = 256
    idle: float = 900.0
    wait: float = 2.5
    refused: float = 5.0
    max_refused: float = 60.0
    attempts: int = 32
    at_once: int = 128
    forgiven: float = 2.0
    retry: float = 5.0
    remembered: int = 4096
    max_form: int = 1 << 20


class Tenant(Protocol):
    """One account's view: an app for its requests, and its end."""

    @property
    def app(self) -> ASGIApp: ...

    @property
    def busy(self) -> bool:
        """Whether it has event streams or managed instances."""
        ...

    @property
    def last_read(self) -> float:
        """When an answer was last given, also one from memory that no request came here for."""
        ...

    def end(self, why: ProxyError | None) -> None:
        """Ends its streams; `why`: it may see nothing any more, and what was prepared for it is gone."""
        ...

    async def close(self) -> None: ...


class Gate(Protocol):
    """The upstream, as far as tenants need it."""

    async def prove(self, shown: Shown) -> Pass | None:
        """What the upstream took; None where it asks nobody for an account. Raises `UpstreamError`s."""
        ...

    async def open(self, proven: Pass, refused: Callable[[Refused], None]) -> Tenant:
        """`refused` is called when the upstream does not know the token any more."""
        ...


@dataclass(slots=True)
class _TenantSlot:
    """`tenant` None: the upstream asks nobody for an account. `requests` are those under way."""

    key: bytes
    address: str
    proven: Pass | None
    tenant: Tenant | None
    used: float
    requests: int = 0
    ended: bool = False
    why: Refused | None = None
    renewing: asyncio.Task[None] | None = None
    try_at: float = 0.0

    @property
    def busy(self) -> bool:
        return self.requests > 0 or (self.tenant is not None and self.tenant.busy)


def _nothing() -> None:
    """Nobody's parts are always open."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One request of a tenant's; `app` None: nobody's answers. Each wants one call of `leave`."""

    app: ASGIApp | None
    scope: Scope
    receive: Receive
    leave: Callable[[], None] = _nothing


@dataclass(slots=True)
class _Refusal:
    error: Refused
    until: float
    pause: float


class Tenants:
    """All tenants of one proxy."""

    def __init__(self, gate: Gate, policy: TenantsPolicy, clock: Clock, supervisor: Supervisor) -> None:
        self.refused = 0
        self._gate = gate
        self._policy = policy
        self._clock = clock
        self._supervisor = supervisor
        self._digest_key = token_bytes(32)
        self._places: dict[bytes, _TenantSlot] = {}
        self._opening: dict[bytes, asyncio.Task[_TenantSlot | ProxyError]] = {}
        self._refusals: LRUCache[bytes, _Refusal] = LRUCache(policy.remembered)
        self._expected: LRUCache[bytes, None] = LRUCache(policy.remembered)  # no guesses: given, or taken before
        self._asking: Counter[str] = Counter()
        self._attempts: LRUCache[str, tuple[float, float]] = LRUCache(policy.remembered)
        self._sweeping: asyncio.Task[None] | None = None
        self._closed = False

    async def visit(self, scope: Scope, receive: Receive) -> Visit:
        """Whose app answers a request, and what to call it with. The tenant stays open until `leave` is called.

        Raises `Refused` where the upstream does not take what is shown, `BadCall` where there is no room or an address
        was refused too often, `NothingKnown` where the upstream cannot be asked.
        """
        shown = shown_in(scope, b"", own_in(scope))
        if shown is None:
            form, receive = await peek_form(scope, receive, self._policy.max_form)
            shown = shown_in(scope, form, own_in(scope)) if form else None
        if shown is None:
            return Visit(None, scope, receive)
        if shown.endless:
            raise Refused(Reason.NO_RIGHT, "token invalid!", status=403)
        while (place := await self._place(shown, client_of(scope))).ended:
            pass  # it ended while this request waited for others' turn
        if shown.password:
            scope = {**scope}  # no mark of what may be repeated reaches the fast path: it would keep the password
        place.requests += 1
        return Visit(None if place.tenant is None else place.tenant.app, scope, receive, lambda: self._leave(place))

    def _leave(self, place: _TenantSlot) -> None:
        place.requests -= 1
        place.used = self._clock.now()
        if place.ended:
            self._close_unless_busy(place)

    async def _place(self, shown: Shown, address: str) -> _TenantSlot:
        key = self._digest(shown)
        place = self._places.pop(key, None)
        if place is not None:
            self._places[key] = place  # the last one is the last used
            place.used = self._clock.now()
            if place.proven is not None:
                await self._renewed(place, place.proven, shown)
            return place
        opening = self._opening.get(key)
        if opening is None:
            guess = self._check(key, address)
            opening = self._opening[key] = spawn(self._open(key, shown, address, guess), name="tenant")
            self._asking[address] += 1
            opening.add_done_callback(lambda _: self._opened(key, address))
        return await self._outcome(opening)

    def _opened(self, key: bytes, address: str) -> None:
        self._opening.pop(key, None)
        self._asking[address] -= 1
        if not self._asking[address]:
            del self._asking[address]

    def _digest(self, shown: Shown) -> bytes:
        name, password = shown.username, shown.password
        said = f"as {len(name)} {name} {password}" if password else f"by {shown.token}"
        return hmac.digest(self._digest_key, said.encode(), "sha256")

    def expect(self, token: str) -> None:
        """The upstream has just given this token to somebody: it is no guess, however many of them there are."""
        self._expected[self._digest(Shown(token))] = None

    async def _outcome(self, opening: asyncio.Task[_TenantSlot | ProxyError]) -> _TenantSlot:
        await at_most(self._clock, self._policy.wait, opening)
        outcome = opening.result() if opening.done() else NothingKnown(_unproven("it has not answered in time"))
        if isinstance(outcome, ProxyError):
            raise outcome.with_traceback(None)
        return outcome

    def _check(self, key: bytes, address: str) -> bool:
        """Whether the upstream is to be asked, and whether a no of it counts against the address."""
        now, refusal = self._clock.now(), self._refusals.get(key)
        if refusal is not None and now < refusal.until:
            self.refused += 1
            raise _fresh(refusal.error)
        if key in self._expected:
            return False
        if self._blamed(address) > self._policy.attempts - 1:
            self.refused += 1
            text = "too many tokens and passwords from this address were refused; what was taken before goes on"
            raise BadCall("", Violation.OTHER, text, status=429)
        if self._asking[address] >= self._policy.at_once or len(self._opening) >= self._policy.max_tenants:
            text = f"{len(self._opening)} tokens and passwords are being looked into at once; ask again in a moment"
            raise NothingKnown(text)
        return True

    def _blamed(self, address: str) -> float:
        """How many refusals an address has that are not forgiven yet."""
        count, since = self._attempts.get(address, (0.0, self._clock.now()))
        return max(0.0, count - (self._clock.now() - since) / self._policy.forgiven)

    def _blame(self, address: str) -> None:
        count = min(self._blamed(address) + 1, 2.0 * self._policy.attempts)
        self._attempts[address] = (count, self._clock.now())

    async def _open(self, key: bytes, shown: Shown, address: str, guess: bool) -> _TenantSlot | ProxyError:
        try:
            proven = await self._gate.prove(shown)
            self._make_room()
            place = _TenantSlot(key, address, proven, None, self._clock.now())
            if proven is not None:
                place.tenant = await self._gate.open(proven, lambda error: self._lost(place, error))
        except UpstreamError as error:
            if no_right(error) and isinstance(error, Refused):
                self._remember(key, error)
                if guess:
                    self._blame(address)
                return _fresh(error)
            return NothingKnown(_unproven(str(error)))
        except ProxyError as error:
            return error
        if self._closed or place.ended:
            place.ended = True
            self._close_unless_busy(place)
            return NothingKnown("the proxy is stopping") if place.why is None else _fresh(place.why)
        self._refusals.pop(key, None)
        self._expected[key] = None
        self._places[key] = place
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = self._supervisor.keep(self._sweep, name="idle tenants")
        return place

    def _remember(self, key: bytes, error: Refused) -> None:
        self.refused += 1
        known, policy = self._refusals.get(key), self._policy
        pause = policy.refused if known is None else min(known.pause * 2, policy.max_refused)
        self._refusals[key] = _Refusal(_fresh(error), self._clock.now() + pause, pause)

    # renewal of a login

    async def _renewed(self, place: _TenantSlot, proven: Pass, shown: Shown) -> None:
        now = self._clock.now()
        if now < proven.renew_at:
            return
        if (place.renewing is None or place.renewing.done()) and now >= place.try_at:
            place.try_at = now + self._policy.retry
            place.renewing = self._supervisor.once(self._renew(place, proven, shown), name="login of a tenant")
        if now >= proven.ends_at and place.renewing is not None:
            await asyncio.wait([place.renewing])

    async def _renew(self, place: _TenantSlot, proven: Pass, shown: Shown) -> None:
        try:
            fresh = await self._gate.prove(shown)
        except UpstreamError as error:
            if no_right(error) and isinstance(error, Refused):
                self._lost(place, error)
            return
        if fresh is not None:
            proven.renew(fresh)

    # ends

    def _lost(self, place: _TenantSlot, error: Refused) -> None:
        """The upstream does not know it any more, or so it seems: the next request is looked into anew."""
        if not place.ended:
            place.why = error
            self._end(place, error)

    def _end(self, place: _TenantSlot, why: ProxyError | None) -> None:
        place.ended = True
        if self._places.get(place.key) is place:
            del self._places[place.key]
        if place.tenant is not None:
            place.tenant.end(why)
        self._close_unless_busy(place)

    def _close_unless_busy(self, place: _TenantSlot) -> None:
        if place.requests == 0 and (tenant := place.tenant) is not None:
            place.tenant = None
            self._supervisor.once(tenant.close(), name="tenant's end")

    def _make_room(self) -> None:
        """The one that was unused for longest goes, of the address that has most."""
        if len(self._places) < self._policy.max_tenants:
            return
        shares = Counter(place.address for place in self._places.values())
        free = [place for place in self._places.values() if not place.busy]
        if not free:
            text = f"{self._policy.max_tenants} accounts are at work here; no more can be served"
            raise BadCall("", Violation.OTHER, text, status=429)
        self._end(max(free, key=lambda place: shares[place.address]), None)

    async def _sweep(self) -> None:
        """Ends who is idle, with no need of another request."""
        clock, idle = self._clock, self._policy.idle
        while self._places:
            await clock.sleep_until(clock.now() + idle / 10)
            for place in list(self._places.values()):
                since = clock.now() - idle
                if not place.busy and place.used <= since and (place.tenant is None or place.tenant.last_read <= since):
                    self._end(place, None)

    def each(self) -> list[Tenant]:
        return [place.tenant for place in self._places.values() if place.tenant is not None]

    def end_streams(self) -> None:
        for tenant in self.each():
            tenant.end(None)

    async def close(self) -> None:
        """Ends all; one that is just being opened is waited for."""
        self._closed = True
        await stop(self._sweeping)
        await asyncio.gather(*self._opening.values(), return_exceptions=True)
        tenants, self._places = self.each(), {}
        for tenant in tenants:
            await tenant.close()

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"<Tenants {len(self)} of {self._policy.max_tenants}, {len(self._opening)} opening>"


def _fresh(error: Refused) -> Refused:
    """The same to say. One that was raised holds on to the calls that it came through, and to the password in them."""
    fresh = Refused(error.reason, error.text, status=error.status)
    if len(error.body) <= _LONGEST_BODY:
        fresh.dialect, fresh.content_type, fresh.body = error.dialect, error.content_type, error.body
    return fresh


def _unproven(why: str) -> str:
    return (
        "the upstream cannot be asked whether it takes this account, and only those that it took before are served "
        f"meanwhile; try again when it answers: {why}"
    )
