"""Whether the upstream accepts a client: its token, or its name and password."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from nacos_proxy.model.calls import Call, Fetch
from nacos_proxy.model.errors import Reason, Refused, is_unknown_token
from nacos_proxy.model.services import DEFAULT_GROUP, ServiceKey
from nacos_proxy.upstream.contract import Registry
from nacos_proxy.upstream.nacos.login import RENEW_AT, Credential
from nacos_proxy.upstream.nacos.registry import NacosRegistry

R = TypeVar("R")

PROBED_SERVICE = "nacos-proxy"  # it need not exist


@dataclass(slots=True)
class AcceptedCredential:
    """A credential that the upstream accepted. If from a login, renew it at `renew_at`; it ends at `ends_at`."""

    credential: Credential
    renew_at: float = math.inf
    ends_at: float = math.inf

    def renew(self, fresh: AcceptedCredential) -> None:
        """Calls made with this credential use the new token from now on."""
        self.credential.token = fresh.credential.token
        self.renew_at, self.ends_at = fresh.renew_at, fresh.ends_at


class RefusalReporter:
    """A `Registry` that calls `refused` when the upstream no longer accepts the token."""

    def __init__(self, registry: Registry, refused: Callable[[Refused], None]) -> None:
        self._registry = registry
        self._refused = refused

    async def send(self, call: Call[R]) -> R:
        try:
            return await self._registry.send(call)
        except Refused as error:
            if is_unknown_token(error):
                self._refused(error)
            raise

    async def close(self) -> None:
        await self._registry.close()


async def prove(client: Registry, namespace: str) -> None:
    """Fetches a service to find out whether the upstream knows the token of `client`. Needs no right to read it.

    Raises `Refused` (NO_RIGHT) for an invalid token, and the errors of the call.
    """
    try:
        await client.send(Fetch(ServiceKey(namespace, DEFAULT_GROUP, PROBED_SERVICE)))
    except Refused as error:
        if error.reason is not Reason.NO_RIGHT or is_unknown_token(error):
            raise


async def accept_token(registry: NacosRegistry, token: str, namespace: str) -> AcceptedCredential:
    """Raises as `prove`."""
    credential = Credential(token)
    await prove(registry.acting_as(credential), namespace)
    return AcceptedCredential(credential)


async def accept_account(registry: NacosRegistry, username: str, password: str) -> AcceptedCredential | None:
    """Logs the account in; None if the upstream requires no token. Raises as `login.log_in`."""
    login, now = await registry.log_in(username, password), registry.clock.now()
    if not login.token:
        return None
    return AcceptedCredential(Credential(login.token), now + login.ttl * RENEW_AT, now + login.ttl)
