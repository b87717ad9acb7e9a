"""Whether the upstream accepts a client: its token, or its name and password."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nacos_proxy.model.calls import Fetch
from nacos_proxy.model.errors import Reason, Refused, is_unknown_token
from nacos_proxy.model.services import DEFAULT_GROUP, ServiceKey
from nacos_proxy.upstream.contract import Registry
from nacos_proxy.upstream.nacos.login import RENEW_AT, Credential
from nacos_proxy.upstream.nacos.registry import NacosRegistry

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
