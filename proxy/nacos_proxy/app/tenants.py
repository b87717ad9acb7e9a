"""Tenants (`auth = client`): separate components for each account that the upstream accepts.

A client with credentials reads from a catalog that only its own account filled, and writes with that account. So
nobody sees more than the upstream would show them.

The first request with some credentials opens their tenant. A tenant without requests, streams, sessions and managed
instances ends after `idle` seconds, or when another tenant needs its place. Any tenant ends when the upstream refuses
its token.

Refused credentials are refused from memory for a while, longer each time. An address with `max_refusals` recent
refusals must wait before it can try others. Tokens from a login through this proxy, and credentials that were accepted
before, do not count as guesses. Only a keyed digest of credentials is remembered.
"""

from __future__ import annotations

import asyncio
import hmac
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from secrets import token_bytes
from typing import Protocol

from cachetools import LRUCache
from starlette.types import ASGIApp, Receive, Scope

from nacos_proxy.app.components import Components, TenantCounts
from nacos_proxy.app.credentials import ClientCredentials, find_credentials
from nacos_proxy.frontends.answers import client_of
from nacos_proxy.frontends.own_tokens import own_token_test
from nacos_proxy.frontends.request_body import peek_form
from nacos_proxy.model.backoff import Backoff
from nacos_proxy.model.errors import BadCall, NothingKnown, ProxyError, Reason, Refused, UpstreamError, Violation
from nacos_proxy.runtime import Clock, Supervisor, at_most, spawn, stop
from nacos_proxy.upstream.nacos.rights import AcceptedCredential

_MAX_REFUSAL_BODY = 4096  # bytes; of a longer refusal only the text is kept
_REFUSAL_BACKOFF = Backoff(initial=5.0, maximum=60.0)  # how long credentials are refused from memory


@dataclass(frozen=True, slots=True)
class TenantsPolicy:
    """Durations are seconds.

    wait: how long the first request of a tenant waits for the upstream.
    max_refusals: recent refusals after which an address must wait; one is forgotten every `forgiven_after` seconds.
    max_attempts: how many credentials of one address may be checked at the same time.
    renewal_retry: how soon a failed renewal of a login is tried again.
    max_remembered: entries in each memory of refused credentials, accepted credentials and addresses.
    """

    max_tenants: int = 256
    idle: float = 900.0
    wait: float = 2.5
    max_refusals: int = 32
    forgiven_after: float = 2.0
    max_attempts: int = 128
    renewal_retry: float = 5.0
    max_remembered: int = 4096
    max_form: int = 1 << 20


class Tenant(Protocol):
    """An ASGI app for the requests of one account, and its components."""

    @property
    def app(self) -> ASGIApp: ...

    @property
    def components(self) -> Components: ...

    @property
    def busy(self) -> bool:
        """Whether it has event streams, managed instances or drains."""
        ...

    @property
    def last_read(self) -> float:
        """When it last gave an answer, including those that the fast path gave."""
        ...

    def end(self, error: Refused | None) -> None:
        """Ends its streams; with `error`, drops prepared answers, too: the account may not see anything any more."""
        ...

    async def close(self) -> None: ...


class Authenticator(Protocol):
    """Checks credentials and makes tenants."""

    async def authenticate(self, credentials: ClientCredentials) -> AcceptedCredential | None:
        """Returns None if the upstream needs no account. Raises `UpstreamError`."""
        ...

    async def open(self, granted: AcceptedCredential, refused: Callable[[Refused], None]) -> Tenant:
        """`refused` is called when the upstream no longer accepts the token."""
        ...


@dataclass(slots=True)
class _TenantSlot:
    """Credentials and their tenant, which is None if the upstream needs no account, and after the tenant's end.

    `requests` counts requests under way, and `holders`, which are called at its end. `error` is why the upstream no
    longer accepts the credentials.
    """

    key: bytes
    address: str
    granted: AcceptedCredential | None
    tenant: Tenant | None
    last_used: float
    requests: int = 0
    ended: bool = False
    error: Refused | None = None
    renewal: asyncio.Task[None] | None = None
    renewal_allowed_at: float = 0.0
    holders: dict[object, OnEnd] = field(default_factory=lambda: {})

    @property
    def busy(self) -> bool:
        return self.requests > 0 or (self.tenant is not None and self.tenant.busy)


@dataclass(frozen=True, slots=True)
class TenantRequest:
    """A request and the app that answers it, None if the client has no account. Call `release` when it ends."""

    app: ASGIApp | None
    scope: Scope
    receive: Receive
    release: Callable[[], None] = lambda: None


OnEnd = Callable[[Refused | None], None]


@dataclass(frozen=True, slots=True)
class TenantLease:
    """A tenant, None if the upstream needs no account. It stays open until `release` is called.

    `hold(on_end)` keeps it open beyond that, until the returned function is called. `on_end` is called when the tenant
    ends, perhaps at once: with an error if the upstream no longer accepts the credentials.
    """

    tenant: Tenant | None
    release: Callable[[], None]
    hold: Callable[[OnEnd], Callable[[], None]]


@dataclass(slots=True)
class _Refusal:
    error: Refused
    until: float
    retries: int


class Tenants:
    """All tenants of one proxy, by the digest of their credentials."""

    def __init__(
        self,
        authenticator: Authenticator,
        policy: TenantsPolicy,
        clock: Clock,
        supervisor: Supervisor,
        counts: TenantCounts,
    ) -> None:
        self.counts = counts
        self._authenticator = authenticator
        self._policy = policy
        self._clock = clock
        self._supervisor = supervisor
        self._digest_key = token_bytes(32)
        self._slots: dict[bytes, _TenantSlot] = {}  # the most recently used one is the last
        self._opening: dict[bytes, asyncio.Task[_TenantSlot | ProxyError]] = {}
        self._refusals: LRUCache[bytes, _Refusal] = LRUCache(policy.max_remembered)
        self._trusted: LRUCache[bytes, None] = LRUCache(policy.max_remembered)  # issued or accepted before
        self._attempts: Counter[str] = Counter()  # under way, by address
        self._refusals_of: LRUCache[str, tuple[float, float]] = LRUCache(policy.max_remembered)  # count, time of count
        self._sweeping: asyncio.Task[None] | None = None
        self._closed = False

    async def admit(self, scope: Scope, receive: Receive) -> TenantRequest:
        """Finds or opens the tenant of a request. It stays open until `release` is called.

        Raises `Refused` if the upstream does not accept the credentials, `BadCall` (429) if no tenant can be added or
        the address was refused too often, `NothingKnown` if the upstream cannot be asked.
        """
        credentials = find_credentials(scope, b"", own_token_test(scope))
        if credentials is None:
            form, receive = await peek_form(scope, receive, self._policy.max_form)
            credentials = find_credentials(scope, form, own_token_test(scope)) if form else None
        if credentials is None:
            return TenantRequest(None, scope, receive)
        lease = await self.enter(credentials, client_of(scope))
        if credentials.password:
            scope = {**scope}  # hides the mark "cacheable" from the fast path, which would keep the password
        return TenantRequest(None if lease.tenant is None else lease.tenant.app, scope, receive, lease.release)

    async def enter(self, credentials: ClientCredentials, address: str) -> TenantLease:
        """Finds or opens the tenant of a client at an address. Raises as `admit`."""
        if credentials.too_long:
            raise Refused(Reason.NO_RIGHT, "token invalid!", status=403)
        while (slot := await self._slot(credentials, address)).ended:
            pass  # it ended while this request waited for it
        slot.requests += 1
        return TenantLease(slot.tenant, lambda: self._release(slot), partial(self._hold, slot))

    def _hold(self, slot: _TenantSlot, on_end: OnEnd) -> Callable[[], None]:
        entry = object()
        slot.requests += 1
        slot.holders[entry] = on_end

        def release() -> None:
            if slot.holders.pop(entry, None) is not None:
                self._release(slot)

        if slot.ended:
            on_end(slot.error)
        return release

    def _release(self, slot: _TenantSlot) -> None:
        slot.requests -= 1
        slot.last_used = self._clock.now()
        if slot.ended:
            self._close_unless_busy(slot)

    async def _slot(self, credentials: ClientCredentials, address: str) -> _TenantSlot:
        key = self._digest(credentials)
        slot = self._slots.pop(key, None)
        if slot is not None:
            self._slots[key] = slot
            slot.last_used = self._clock.now()
            if slot.granted is not None:
                await self._renew_if_due(slot, slot.granted, credentials)
            return slot
        opening = self._opening.get(key)
        if opening is None:
            is_guess = self._check_limits(key, address)
            opening = self._opening[key] = spawn(self._open(key, credentials, address, is_guess), name="tenant")
            self._attempts[address] += 1
            opening.add_done_callback(lambda _: self._opened(key, address))
        await at_most(self._clock, self._policy.wait, opening)
        outcome = opening.result() if opening.done() else _cannot_ask("it has not answered in time")
        if isinstance(outcome, ProxyError):
            raise outcome.with_traceback(None)
        return outcome

    def _opened(self, key: bytes, address: str) -> None:
        self._opening.pop(key, None)
        self._attempts[address] -= 1
        if not self._attempts[address]:
            del self._attempts[address]

    def _digest(self, credentials: ClientCredentials) -> bytes:
        name, password = credentials.username, credentials.password
        text = f"as {len(name)} {name} {password}" if password else f"by {credentials.token}"
        return hmac.digest(self._digest_key, text.encode(), "sha256")

    def trust(self, token: str) -> None:
        """Call it with each token that the upstream issues to a client: such tokens do not count as guesses."""
        self._trusted[self._digest(ClientCredentials(token))] = None

    def _check_limits(self, key: bytes, address: str) -> bool:
        """Raises if the upstream must not be asked now. Returns whether a refusal counts against the address."""
        now, refusal = self._clock.now(), self._refusals.get(key)
        if refusal is not None and now < refusal.until:
            self.counts.refused += 1
            raise _copy(refusal.error)
        if key in self._trusted:
            return False
        if self._recent_refusals(address) > self._policy.max_refusals - 1:
            self.counts.refused += 1
            text = (
                "too many tokens and passwords from this address were refused; try again later. "
                "Accounts that were accepted before are still served"
            )
            raise BadCall("", Violation.OTHER, text, status=429)
        if self._attempts[address] >= self._policy.max_attempts or len(self._opening) >= self._policy.max_tenants:
            raise NothingKnown(f"{len(self._opening)} accounts are being checked at the moment; try again later")
        return True

    def _recent_refusals(self, address: str) -> float:
        count, since = self._refusals_of.get(address, (0.0, self._clock.now()))
        return max(0.0, count - (self._clock.now() - since) / self._policy.forgiven_after)

    async def _open(
        self, key: bytes, credentials: ClientCredentials, address: str, is_guess: bool
    ) -> _TenantSlot | ProxyError:
        try:
            granted = await self._authenticator.authenticate(credentials)
            self._make_room()
            slot = _TenantSlot(key, address, granted, None, self._clock.now())
            if granted is not None:
                slot.tenant = await self._authenticator.open(granted, lambda error: self._end(slot, error))
        except UpstreamError as error:
            if isinstance(error, Refused) and error.reason is Reason.NO_RIGHT:
                self._remember_refusal(key, error, address if is_guess else None)
                return _copy(error)
            return _cannot_ask(str(error))
        except ProxyError as error:
            return error
        if self._closed or slot.ended:
            slot.ended = True
            self._close_unless_busy(slot)
            return NothingKnown("the proxy is stopping") if slot.error is None else _copy(slot.error)
        self._refusals.pop(key, None)
        self._trusted[key] = None
        self._slots[key] = slot
        self.counts.open = len(self._slots)
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = self._supervisor.keep(self._sweep, name="idle tenants")
        return slot

    def _remember_refusal(self, key: bytes, error: Refused, address: str | None) -> None:
        """Counts against `address`, unless that is None."""
        self.counts.refused += 1
        now, known = self._clock.now(), self._refusals.get(key)
        retries = 0 if known is None else known.retries + 1
        self._refusals[key] = _Refusal(_copy(error), now + _REFUSAL_BACKOFF.delay(retries), retries)
        if address is not None:
            count = min(self._recent_refusals(address) + 1, 2.0 * self._policy.max_refusals)
            self._refusals_of[address] = (count, now)

    async def _renew_if_due(
        self, slot: _TenantSlot, granted: AcceptedCredential, credentials: ClientCredentials
    ) -> None:
        """Waits for the renewal only if the current login has ended."""
        now = self._clock.now()
        if now < granted.renew_at:
            return
        if (slot.renewal is None or slot.renewal.done()) and now >= slot.renewal_allowed_at:
            slot.renewal_allowed_at = now + self._policy.renewal_retry
            slot.renewal = self._supervisor.once(self._renew(slot, granted, credentials), name="login of a tenant")
        if now >= granted.ends_at and slot.renewal is not None:
            await asyncio.wait([slot.renewal])

    async def _renew(self, slot: _TenantSlot, granted: AcceptedCredential, credentials: ClientCredentials) -> None:
        try:
            fresh = await self._authenticator.authenticate(credentials)
        except UpstreamError as error:
            if isinstance(error, Refused) and error.reason is Reason.NO_RIGHT:
                self._end(slot, error)
            return
        if fresh is not None:
            granted.renew(fresh)

    def _end(self, slot: _TenantSlot, error: Refused | None = None) -> None:
        """With `error`, the upstream no longer accepts the token; the next request asks it again."""
        if slot.ended:
            return
        slot.ended, slot.error = True, error
        if self._slots.get(slot.key) is slot:
            del self._slots[slot.key]
            self.counts.open = len(self._slots)
        if slot.tenant is not None:
            slot.tenant.end(error)
        for on_end in list(slot.holders.values()):
            self._supervisor.call("tenants", on_end, error)
        self._close_unless_busy(slot)

    def _close_unless_busy(self, slot: _TenantSlot) -> None:
        if slot.requests == 0 and (tenant := slot.tenant) is not None:
            slot.tenant = None
            self._supervisor.once(tenant.close(), name="tenant's end")

    def _make_room(self) -> None:
        """If all places are taken, ends the least recently used idle tenant of the address that has most tenants."""
        if len(self._slots) < self._policy.max_tenants:
            return
        tenants_of = Counter(slot.address for slot in self._slots.values())
        idle = [slot for slot in self._slots.values() if not slot.busy]
        if not idle:
            text = f"the maximum of {self._policy.max_tenants} accounts is in use; try again later"
            raise BadCall("", Violation.OTHER, text, status=429)
        self._end(max(idle, key=lambda slot: tenants_of[slot.address]))

    async def _sweep(self) -> None:
        clock, idle = self._clock, self._policy.idle
        while self._slots:
            await clock.sleep_until(clock.now() + idle / 10)
            for slot in list(self._slots.values()):
                last_read = -math.inf if slot.tenant is None else slot.tenant.last_read
                if not slot.busy and max(slot.last_used, last_read) <= clock.now() - idle:
                    self._end(slot)

    def _tenants(self) -> list[Tenant]:
        return [slot.tenant for slot in self._slots.values() if slot.tenant is not None]

    def end_streams(self) -> None:
        for tenant in self._tenants():
            tenant.end(None)

    async def close(self) -> None:
        """Ends all tenants; waits for those that are being opened."""
        self._closed = True
        await stop(self._sweeping)
        await asyncio.gather(*self._opening.values(), return_exceptions=True)
        tenants, self._slots, self.counts.open = self._tenants(), {}, 0
        for tenant in tenants:
            await tenant.close()

    def __len__(self) -> int:
        return len(self._slots)


def _copy(error: Refused) -> Refused:
    """A copy without the traceback, whose stack frames hold the password."""
    copy = Refused(error.reason, error.text, status=error.status)
    if len(error.body) <= _MAX_REFUSAL_BODY:
        copy.dialect, copy.content_type, copy.body = error.dialect, error.content_type, error.body
    return copy


def _cannot_ask(reason: str) -> NothingKnown:
    return NothingKnown(
        f"the upstream cannot be asked about this account ({reason}); try again when it answers. "
        "Until then, the proxy serves only accounts that the upstream accepted before"
    )
