"""Admits gRPC requests: checks API tokens as over HTTP, and finds the client's tenant with `auth = client`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nacos_proxy.app.components import Components
from nacos_proxy.app.credentials import ClientCredentials
from nacos_proxy.app.tenants import TenantLease, Tenants
from nacos_proxy.frontends.auth import AccessControl
from nacos_proxy.frontends.grpc.access import Served
from nacos_proxy.frontends.open_streams import Admission, End, Right
from nacos_proxy.model.errors import NothingKnown


@dataclass(frozen=True, slots=True)
class GrpcAccess:
    """Its method `admit` is an `Admit`. `own`: the components for clients without a tenant."""

    guard: AccessControl
    own: Components
    tenants: Tenants | None

    async def admit(self, token: str | None, right: Right, client: str) -> Served:
        """A token that is one of this proxy's own is no account of the upstream. Raises as `Admit` says."""
        admission = Admission(token or None, right)
        if (error := self.guard.check(admission)) is not None:
            raise error
        lease = None
        if self.tenants is not None and token and not self.guard.is_own(token):
            lease = await self.tenants.enter(ClientCredentials(token), client)
        tenant = None if lease is None else lease.tenant
        components = self.own if tenant is None else tenant.components

        def hold(end: End) -> Callable[[], None]:
            return self._hold(admission, lease, end)

        return Served(
            components.agent,
            components.publications,
            components.events.quota,
            _nothing if lease is None else lease.release,
            hold,
        )

    def _hold(self, admission: Admission, lease: TenantLease | None, end: End) -> Callable[[], None]:
        forget = self.guard.open_streams.add(admission, end)
        if lease is None:
            return lambda: _all(forget)
        free = lease.hold(lambda error: end(error or NothingKnown("this account's components end")))
        return lambda: _all(forget, free)


def _all(*steps: Callable[[], object]) -> None:
    for step in steps:
        step()


def _nothing() -> None:
    pass
