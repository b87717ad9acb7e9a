"""`GrpcAccess`: API tokens and tenants of gRPC requests, as over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from nacos_proxy.app.components import Components, TenantCounts, build, build_tenant, finish, start
from nacos_proxy.app.credentials import ClientCredentials
from nacos_proxy.app.grpc_access import GrpcAccess
from nacos_proxy.app.settings import Settings
from nacos_proxy.app.tenants import Tenants, TenantsPolicy
from nacos_proxy.frontends.auth import AccessControl, AccessPolicy, Token
from nacos_proxy.model.errors import Denied, ProxyError, Reason, Refused
from nacos_proxy.runtime import Supervisor
from nacos_proxy.upstream.nacos.login import Credential
from nacos_proxy.upstream.nacos.registry import NacosRegistry
from nacos_proxy.upstream.nacos.rights import AcceptedCredential
from tests.helpers.clock import FakeClock, settle

TOKENS = (Token("reader", "read"), Token("writer", "write"))


def access(parts: Components, tenants: Tenants | None = None, tokens: tuple[Token, ...] = ()) -> GrpcAccess:
    guard = AccessControl(lambda *_: None, AccessPolicy(tokens=tokens), lambda *_: None)  # type: ignore[arg-type,return-value]
    return GrpcAccess(guard, parts, tenants)


@asynccontextmanager
async def parts(**settings: Any) -> AsyncIterator[Components]:
    made = build(Settings(disk=False, udp_push=False, push="off", **settings), FakeClock())
    try:
        yield made
    finally:
        await finish(made)


async def test_admit_without_tokens_serves_everybody_from_the_proxys_own_components() -> None:
    async with parts() as own:
        for token in (None, "", "of the upstream"):
            served = await access(own).admit(token, "write", "10.0.0.1")
            assert (served.agent, served.publications, served.quota) == (own.agent, own.publications, own.events.quota)
            served.release()
            served.hold(lambda error: None)()


async def test_admit_requires_the_right_of_an_api_token() -> None:
    async with parts() as own:
        gate = access(own, tokens=TOKENS)
        (await gate.admit("reader", "read", "10.0.0.1")).release()
        for token, right, status in (
            (None, "read", 401),
            ("", "read", 401),
            ("x", "read", 401),
            ("reader", "write", 403),
        ):
            with pytest.raises(Denied) as caught:
                await gate.admit(token, right, "10.0.0.1")  # type: ignore[arg-type]
            assert caught.value.status == status


async def test_hold_ends_when_the_api_token_is_revoked() -> None:
    async with parts() as own:
        gate, ends = access(own, tokens=TOKENS), list[ProxyError]()
        writer = await gate.admit("writer", "write", "10.0.0.1")
        writer.hold(ends.append)
        (await gate.admit("reader", "read", "10.0.0.1")).hold(ends.append)()
        gate.guard.set_policy(AccessPolicy(tokens=TOKENS[:1]))
        assert [str(error) for error in ends] == ["this API token is unknown to the proxy"]
        writer.hold(ends.append)()
        assert len(ends) == 2, "at once"
        gate.guard.set_policy(AccessPolicy(tokens=()))
        assert len(gate.guard.open_streams) == 0


class Account:
    """A `Tenant` with real components."""

    def __init__(self, components: Components) -> None:
        self.components = components
        self.app, self.busy, self.last_read = None, False, 0.0
        self.closed = False

    def end(self, error: Refused | None) -> None: ...

    async def close(self) -> None:
        self.closed = True
        await finish(self.components)


class Upstream:
    """Accepts each token but 'invented'."""

    def __init__(self, own: Components) -> None:
        self.own = own
        self.accounts: list[Account] = []
        self.refused: list[Callable[[Refused], None]] = []

    async def authenticate(self, credentials: ClientCredentials) -> AcceptedCredential | None:
        if credentials.token == "invented":
            raise Refused(Reason.NO_RIGHT, "token invalid!", status=403)
        return None if credentials.token == "open" else AcceptedCredential(Credential(credentials.token))

    async def open(self, granted: AcceptedCredential, refused: Callable[[Refused], None]) -> Account:
        assert isinstance(self.own.registry, NacosRegistry)
        account = Account(build_tenant(self.own, self.own.registry, granted.credential, refused))
        await start(account.components)
        self.accounts.append(account)
        self.refused.append(refused)
        return account


@asynccontextmanager
async def with_tenants() -> AsyncIterator[tuple[GrpcAccess, Upstream, Components]]:
    async with parts(upstream="http://127.0.0.1:1", auth="client") as own:
        upstream = Upstream(own)
        tenants = Tenants(upstream, TenantsPolicy(idle=60.0), own.clock, Supervisor(own.clock), TenantCounts())  # type: ignore[arg-type]
        try:
            yield access(own, tenants, TOKENS[:0]), upstream, own
        finally:
            await tenants.close()


async def test_admit_with_an_account_serves_from_its_tenant() -> None:
    async with with_tenants() as (gate, upstream, own):
        one = await gate.admit("token-1", "write", "10.0.0.1")
        again = await gate.admit("token-1", "read", "10.0.0.1")
        another = await gate.admit("token-2", "read", "10.0.0.1")
        (first, second) = upstream.accounts
        assert one.publications is again.publications is first.components.publications
        assert another.agent is second.components.agent is not own.agent
        for token in (None, "open"):
            assert (await gate.admit(token, "read", "10.0.0.1")).agent is own.agent
        with pytest.raises(Refused):
            await gate.admit("invented", "read", "10.0.0.1")
        for served in (one, again, another):
            served.release()


async def test_admit_with_a_token_of_this_proxy_looks_for_no_account() -> None:
    async with with_tenants() as (gate, upstream, own):
        gate.guard.set_policy(AccessPolicy(tokens=TOKENS))
        assert (await gate.admit("writer", "write", "10.0.0.1")).agent is own.agent
        assert upstream.accounts == []


async def test_hold_keeps_the_tenant_and_ends_with_it() -> None:
    async with with_tenants() as (gate, upstream, _):
        ends = list[str]()
        served = await gate.admit("token-1", "write", "10.0.0.1")
        let_go = served.hold(lambda error: ends.append(str(error)))
        served.release()
        clock = gate.own.clock
        assert isinstance(clock, FakeClock)
        await clock.advance(200.0)
        assert not upstream.accounts[0].closed and ends == []
        upstream.refused[0](Refused(Reason.NO_RIGHT, "token expired!", status=403))
        assert ends == ["token expired!"]
        let_go()
        await settle()
        assert upstream.accounts[0].closed
