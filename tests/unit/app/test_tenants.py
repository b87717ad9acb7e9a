"""Tenants: one for each account that the upstream accepts; bounded, ended when idle or refused."""

from __future__ import annotations

import asyncio
import gc
import math
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from nacos_proxy.app.credentials import ClientCredentials
from nacos_proxy.app.tenants import TenantCounts, TenantRequest, Tenants, TenantsPolicy
from nacos_proxy.model.errors import BadCall, NothingKnown, ProxyError, Reason, Refused, Unreachable
from nacos_proxy.runtime import Supervisor, spawn
from nacos_proxy.upstream.nacos.login import Credential
from nacos_proxy.upstream.nacos.rights import AcceptedCredential
from tests.helpers.asgi import scope as http_scope
from tests.helpers.clock import FakeClock, settle

FORM = {"content-type": "application/x-www-form-urlencoded"}
ACCOUNT = "username=app&password=hunter2-secret"


def scope(query: str = "", client: str = "127.0.0.1", **headers: str) -> Scope:
    return http_scope("GET", f"/?{query}", headers, client)


async def receive() -> dict[str, Any]:
    raise AssertionError("there is no body")


def refusal(text: str = "token invalid!") -> Refused:
    return Refused(Reason.NO_RIGHT, text, status=403)


@dataclass
class View:
    token: str
    refused: Callable[[Refused], None]
    busy: bool = False
    last_read: float = -math.inf
    ended: list[object] = field(default_factory=list)

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    def end(self, why: ProxyError | None) -> None:
        self.ended.append(str(why) if why else "idle")

    async def close(self) -> None:
        self.ended.append("closed")


@dataclass
class Upstream:
    """Takes what is in `known`; `away`: the upstream is. `wait`: it answers when this is set."""

    clock: FakeClock
    known: set[str] = field(default_factory=lambda: {"a", "b", "c", "d", "app"})
    away: bool = False
    wait: asyncio.Event | None = None
    asked: list[str] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    fails: list[str] = field(default_factory=list)
    ttl: float = math.inf

    async def authenticate(self, credentials: ClientCredentials) -> AcceptedCredential | None:
        who = credentials.token or credentials.username
        self.asked.append(who)
        await asyncio.sleep(0)
        if self.wait is not None:
            await self.wait.wait()
        if self.away:
            raise Unreachable("no connection", arrived=False)
        if who == "open":
            return None
        if who not in self.known:
            raise refusal()
        now = self.clock.now()
        return AcceptedCredential(Credential(f"{who}-{len(self.asked)}"), now + 0.9 * self.ttl, now + self.ttl)

    async def open(self, granted: AcceptedCredential, refused: Callable[[Refused], None]) -> View:
        if self.fails:
            raise OSError(self.fails.pop())
        self.views.append(View(granted.credential.token, refused))
        return self.views[-1]


@dataclass
class World:
    clock: FakeClock
    upstream: Upstream
    tenants: Tenants

    async def admit(self, query: str, client: str = "127.0.0.1") -> TenantRequest:
        return await self.tenants.admit(scope(query, client), receive)

    async def ask(self, token: str, client: str = "127.0.0.1") -> TenantRequest:
        request = await self.admit(f"accessToken={token}", client)
        request.release()
        return request

    @property
    def ended(self) -> list[list[object]]:
        return [view.ended for view in self.upstream.views]


def world(**policy: Any) -> World:
    clock = FakeClock()
    upstream = Upstream(clock)
    return World(clock, upstream, Tenants(upstream, TenantsPolicy(**policy), clock, Supervisor(clock), TenantCounts()))


async def test_admit_finds_a_token_in_a_form_and_leaves_the_form_to_be_read() -> None:
    """As the Go SDK shows it when it registers and beats."""
    w, body = world(), b"serviceName=DEFAULT_GROUP@@s&beat={}&accessToken=a"

    async def once() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    asked = http_scope("PUT", "/", {**FORM, "content-length": str(len(body))})
    request = await w.tenants.admit(asked, once)
    assert request.app == w.upstream.views[0].app
    assert (await request.receive())["body"] == body


# who is let in


async def test_admit_opens_one_tenant_for_concurrent_requests() -> None:
    w = world()
    found = await asyncio.gather(*(w.ask("a") for _ in range(20)))
    other = await w.ask("b")
    assert w.upstream.asked == ["a", "b"] and len(w.upstream.views) == 2
    assert all(request.app == w.upstream.views[0].app for request in found)
    assert other.app == w.upstream.views[1].app


async def test_admit_gives_no_tenant_without_credentials_or_without_authentication_upstream() -> None:
    w = world()
    assert (await w.admit("")).app is None
    assert (await w.ask("open")).app is None
    await w.ask("open")
    assert w.upstream.asked == ["open"]


async def test_admit_refuses_a_refused_token_from_memory_for_longer_each_time() -> None:
    w = world()
    for pause, asked in ((0.0, 1), (4.9, 1), (0.2, 2), (9.9, 2), (0.2, 3)):
        await w.clock.advance(pause)
        with pytest.raises(Refused, match="token invalid!"):
            await w.ask("invented")
        assert len(w.upstream.asked) == asked
    assert (len(w.tenants), w.upstream.views) == (0, [])


@pytest.mark.parametrize("query", [f"accessToken={'x' * 5000}", f"username=app&password={'x' * 5000}"])
async def test_admit_refuses_credentials_that_are_too_long_without_asking(query: str) -> None:
    w = world()
    with pytest.raises(Refused, match="token invalid!") as refused:
        await w.admit(query)
    assert (refused.value.status, w.upstream.asked) == (403, [])


async def test_admit_makes_only_an_address_with_many_refusals_wait() -> None:
    w = world(max_refusals=3, forgiven_after=2.0)
    await w.ask("a", "10.0.0.1")
    for number in range(3):
        with pytest.raises(Refused):
            await w.ask(f"invented-{number}", "10.0.0.1")
    with pytest.raises(BadCall) as caught:
        await w.ask("invented-4", "10.0.0.1")
    assert caught.value.status == 429
    await w.ask("a", "10.0.0.1")
    await w.ask("b", "10.0.0.2")
    await w.clock.advance(2.1)
    assert (await w.ask("c", "10.0.0.1")).app is not None


async def test_admit_does_not_count_valid_tokens_as_guesses() -> None:
    """After a restart of the proxy all clients of a host come at once."""
    w = world(max_refusals=3, max_attempts=5)
    names = [f"good-{number}" for number in range(8)]
    w.upstream.known |= set(names)
    came = await asyncio.gather(*(w.ask(name) for name in names), return_exceptions=True)
    assert [type(c) for c in came] == [TenantRequest] * 5 + [NothingKnown] * 3
    for name in names:
        assert (await w.ask(name)).app is not None


async def test_admit_trusts_tokens_of_a_login_and_those_accepted_before() -> None:
    """All clients of one host are one address."""
    w = world(max_refusals=1, idle=60.0)
    await w.ask("a")
    for _ in range(12):
        await w.clock.advance(6.0)
    assert len(w.tenants) == 0
    for number in range(5):
        with pytest.raises(ProxyError):
            await w.ask(f"invented-{number}")
    w.tenants.trust("b")
    assert (await w.ask("a")).app is not None and (await w.ask("b")).app is not None
    with pytest.raises(BadCall):
        await w.ask("c")


async def test_admit_bounds_what_invented_tokens_cost() -> None:
    w = world(max_remembered=100)
    await w.ask("a", "10.0.0.9")
    for number in range(2000):
        with pytest.raises(ProxyError):
            await w.ask(f"invented-{number}", f"10.0.{number % 7}.1")
    assert len(w.upstream.asked) <= 1 + 7 * 33
    assert (len(w.tenants), len(w.upstream.views)) == (1, 1)


async def test_admit_serves_only_known_tenants_while_the_upstream_is_down() -> None:
    w = world(max_refusals=2)
    await w.ask("a")
    w.upstream.away = True
    for _ in range(5):
        with pytest.raises(NothingKnown, match="serves only accounts that the upstream accepted before") as no:
            await w.ask("b")
        assert no.value.status == 503
    assert (await w.ask("a")).app is not None
    w.upstream.away = False
    assert (await w.ask("b")).app is not None, "that it could not be asked is no refusal"


async def test_admit_waits_a_limited_time_and_the_next_request_finds_the_outcome() -> None:
    w = world(wait=2.5)
    w.upstream.wait = asyncio.Event()
    asking = spawn(w.ask("a"), name="request")
    await settle()
    await w.clock.advance(2.6)
    with pytest.raises(NothingKnown, match="not answered in time"):
        await asking
    w.upstream.wait.set()
    await settle()
    assert (await w.ask("a")).app is not None and w.upstream.asked == ["a"]


async def test_admit_tries_again_after_a_tenant_could_not_be_opened() -> None:
    w = world()
    w.upstream.fails.append("no socket")
    with pytest.raises(OSError, match="no socket"):
        await w.ask("a")
    assert (await w.ask("a")).app is not None


# how long one stays


async def test_tenants_end_the_least_recently_used_one_to_make_room() -> None:
    w = world(max_tenants=2)
    for token in ("a", "b", "a", "c"):
        await w.ask(token)
    await settle()
    assert w.ended == [[], ["idle", "closed"], []]


async def test_tenants_make_room_at_the_address_that_has_most() -> None:
    w = world(max_tenants=3)
    await w.ask("a", "10.0.0.1")
    for token in ("b", "c", "d"):
        await w.ask(token, "10.0.0.2")
    await settle()
    assert w.ended == [[], ["idle", "closed"], [], []]


async def test_tenants_keep_busy_ones_and_refuse_one_too_many() -> None:
    w = world(max_tenants=2)
    await w.ask("a")
    w.upstream.views[0].busy = True
    under_way = await w.admit("accessToken=b")
    with pytest.raises(BadCall) as caught:
        await w.ask("c")
    assert caught.value.status == 429
    under_way.release()
    assert (await w.ask("c")).app is not None


async def test_tenants_sweep_ends_idle_ones() -> None:
    w = world(idle=60.0)
    await w.ask("a")
    await w.ask("b")
    w.upstream.views[1].busy = True
    under_way = await w.admit("accessToken=c")
    await w.ask("d")
    for _ in range(12):
        await w.clock.advance(6.0)
        w.upstream.views[3].last_read = w.clock.now()  # it is answered from memory all the time
    assert w.ended == [["idle", "closed"], [], [], []]
    under_way.release()
    w.upstream.views[1].busy = False
    for _ in range(12):
        await w.clock.advance(6.0)
    assert (w.ended, len(w.tenants)) == ([["idle", "closed"]] * 4, 0)


async def test_tenants_end_one_whose_token_is_refused() -> None:
    w = world()
    await w.ask("a")
    under_way = await w.admit("accessToken=a")
    w.upstream.views[0].refused(refusal("token expired!"))
    w.upstream.views[0].refused(refusal("token expired!"))
    await settle()
    assert w.ended == [["token expired!"]], "what is under way still needs it"
    await w.ask("a")
    assert w.upstream.asked == ["a", "a"], "what was said of one call is looked into anew"
    under_way.release()
    await settle()
    assert w.ended[0] == ["token expired!", "closed"]


# leases without a request


async def test_enter_finds_the_tenant_of_a_token_without_a_request() -> None:
    w = world()
    lease = await w.tenants.enter(ClientCredentials("a"), "10.0.0.1")
    assert lease.tenant is w.upstream.views[0]
    assert (await w.ask("a")).app == w.upstream.views[0].app and w.upstream.asked == ["a"]
    lease.release()
    assert (await w.tenants.enter(ClientCredentials("open"), "10.0.0.1")).tenant is None
    with pytest.raises(Refused):
        await w.tenants.enter(ClientCredentials("invented"), "10.0.0.1")
    with pytest.raises(Refused):
        await w.tenants.enter(ClientCredentials("a" * 5000), "10.0.0.1")


async def test_hold_keeps_a_tenant_open_until_it_is_released() -> None:
    w = world(idle=60.0)
    lease = await w.tenants.enter(ClientCredentials("a"), "10.0.0.1")
    release = lease.hold(lambda error: None)
    lease.release()
    await w.clock.advance(120.0)
    assert w.ended == [[]]
    release()
    release()
    await w.clock.advance(120.0)
    assert w.ended == [["idle", "closed"]]


async def test_hold_calls_back_when_the_tenant_ends_and_the_tenant_closes_after_its_release() -> None:
    w, ends = world(), list[str]()
    lease = await w.tenants.enter(ClientCredentials("a"), "10.0.0.1")
    release = lease.hold(lambda error: ends.append(str(error)))
    lease.hold(lambda error: ends.append("released before"))()
    w.upstream.views[0].refused(refusal("token expired!"))
    late = lease.hold(lambda error: ends.append(f"late: {error}"))
    await settle()
    assert ends == ["token expired!", "late: token expired!"] and w.ended == [["token expired!"]]
    for done in (release, late, lease.release):
        done()
    await settle()
    assert w.ended == [["token expired!", "closed"]]


# name and password


async def test_tenants_renew_a_login_before_it_ends() -> None:
    w = world()
    w.upstream.ttl = 100.0
    for _ in range(3):
        (await w.admit(ACCOUNT)).release()
    assert w.upstream.asked == ["app"] and len(w.upstream.views) == 1
    await w.clock.advance(91.0)
    (await w.admit(ACCOUNT)).release()
    await settle()
    await w.clock.advance(20.0)
    (await w.admit(ACCOUNT)).release()
    assert w.upstream.asked == ["app", "app"] and w.ended == [[]]
    await w.clock.advance(200.0)
    (await w.admit(ACCOUNT)).release()
    assert w.upstream.asked == ["app"] * 3


async def test_tenants_end_one_whose_login_cannot_be_renewed() -> None:
    w = world()
    w.upstream.ttl = 100.0
    (await w.admit(ACCOUNT)).release()
    w.upstream.known.clear()
    await w.clock.advance(101.0)
    with pytest.raises(Refused):
        await w.admit(ACCOUNT)
    await settle()
    assert w.ended == [["token invalid!", "closed"]]


async def test_tenants_retry_a_renewal_while_the_upstream_is_down() -> None:
    w = world(renewal_retry=5.0)
    w.upstream.ttl = 100.0
    (await w.admit(ACCOUNT)).release()
    w.upstream.away = True
    await w.clock.advance(91.0)
    for _ in range(3):
        (await w.admit(ACCOUNT)).release()
        await settle()
    assert w.upstream.asked == ["app", "app"]
    w.upstream.away = False
    await w.clock.advance(5.1)
    (await w.admit(ACCOUNT)).release()
    await settle()
    assert w.upstream.asked == ["app"] * 3 and w.ended == [[]]


def parts(one: object) -> list[object]:
    """What an object holds on to, but for what modules hold: the globals of functions and frames are one's."""
    if isinstance(one, types.ModuleType):
        return []
    if isinstance(one, types.FunctionType):
        return [one.__closure__, one.__defaults__, one.__kwdefaults__, one.__dict__]
    held = gc.get_referents(one)
    if isinstance(one, types.FrameType):  # on Python 3.10 they are among them
        return [part for part in held if part is not one.f_globals and part is not one.f_builtins]
    return held


def texts(root: object, most: int = 20_000) -> list[str]:
    """All text that can be reached from an object."""
    seen, todo, found = dict[int, object](), [root], list[str]()
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, type):
            continue
        seen[id(one)] = one  # as long as it is alive no other has its number
        assert len(seen) < most, "there is more than was looked at"
        if isinstance(one, str | bytes | bytearray):
            found.append(repr(one))
        else:
            todo += parts(one)
    return found


def keeping(password: str) -> list[Callable[[], object]]:
    def default(kept: str = password) -> str:
        return kept

    def keyword(*, kept: str = password) -> str:
        return kept

    def attribute() -> None: ...

    vars(attribute)["kept"] = password
    return [lambda: password, lambda: lambda: password, default, keyword, attribute, partial(str, password)]


@pytest.mark.parametrize("keep", keeping("hunter2-secret"))
def test_texts_finds_a_password_that_a_function_keeps(keep: Callable[[], object]) -> None:
    w = world()
    w.upstream.views.append(View("a", refused=keep))
    assert "'hunter2-secret'" in texts(w.tenants)
    with pytest.raises(AssertionError, match="more than was looked at"):
        texts(w.tenants, most=10)


@pytest.mark.parametrize("known", [True, False])
async def test_tenants_keep_no_password(known: bool) -> None:
    w = world()
    if not known:
        w.upstream.known.clear()
        with pytest.raises(Refused):
            await w.admit(ACCOUNT)
    else:
        request = await w.admit(ACCOUNT)
        request.release()
        del request
    await settle()
    found = texts(w.tenants)
    assert found and not [text for text in found if "hunter2" in text]


async def test_admit_hides_requests_with_a_password_from_the_fast_path() -> None:
    """The fast path keeps whole requests; it looks for the mark in the scope that it handed on."""
    w = world()
    asked = scope(ACCOUNT)
    assert (await w.tenants.admit(asked, receive)).scope is not asked
    plain = scope("accessToken=a")
    assert (await w.tenants.admit(plain, receive)).scope is plain


async def test_tenants_close_ends_every_tenant() -> None:
    w = world()
    await w.ask("a")
    w.tenants.end_streams()
    await w.tenants.close()
    assert (len(w.tenants), w.ended) == (0, [["idle", "closed"]])


async def test_tenants_close_waits_for_one_that_is_opening() -> None:
    w = world()
    w.upstream.wait = asyncio.Event()
    asking = spawn(w.ask("a"), name="request")
    await settle()
    closing = spawn(w.tenants.close(), name="stop")
    await settle()
    w.upstream.wait.set()
    with pytest.raises(NothingKnown, match="stopping"):
        await asking
    await closing
    await settle()
    assert w.ended == [["closed"]]
