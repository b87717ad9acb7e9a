"""What a client may do at the upstream: whether its token is taken there, or its name and password.

Not for: who may use this proxy (`api.guard`), our own account (`login`), who is kept as a tenant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from nacos_proxy.model.calls import Call, Fetch
from nacos_proxy.model.errors import (
    Reason,
    Refused,
    Unreachable,
    UpstreamError,
    stranger,
)
from nacos_proxy.model.services import DEFAULT_GROUP, ServiceKey
from nacos_proxy.upstream.contract import Registry
from nacos_proxy.upstream.nacos.login import Credential, log_in
from nacos_proxy.upstream.nacos.registry import NacosRegistry
from nacos_proxy.wire.nacos.login import Login

R = TypeVar("R")

ASKED = "nacos-proxy"  # a service that need not be there
RENEW_AT = 0.9  # of the time for which a login holds


@dataclass(slots=True)
class Pass:
    """What the upstream took. That of a login is to be renewed at `renew_at` and ends at `ends_at` (seconds)."""

    credential: Credential
    renew_at: float = math.inf
    ends_at: float = math.inf

    def renew(self, fresh: Pass) -> None:
        """The calls that are made with it go on with the new token."""
        self.credential.token = fresh.credential.token
        self.renew_at, self.ends_at = fresh.renew_at, fresh.ends_at


class Telling:
    """A `Registry` that says when the upstream does not know any more who asks."""

    def __init__(self, registry: Registry, refused: Callable[[Refused], None]) -> None:
        self._registry = registry
        self._refused = refused

    async def send(self, call: Call[R]) -> R:
        try:
            return await self._registry.send(call)
        except Refused as error:
            if stranger(error):
                self._refused(error)
            raise

    async def close(self) -> None:
        await self._registry.close()


async def prove(voice: Registry, namespace: str) -> None:
    """Returns where the upstream takes the token that `voice` speaks with: one list of one service is asked for.

    An account that may not read there is known all the same. Raises `Refused` (NO_RIGHT) for a token that is none, and
    what the call raises.
    """
    try:
        await voice.send(Fetch(ServiceKey(namespace, DEFAULT_GROUP, ASKED)))
    except Refused as error:
        if error.reason is not Reason.NO_RIGHT or stranger(error):
            raise


async def take_token(registry: NacosRegistry, token: str, namespace: str) -> Pass:
    """Raises as `prove`."""
    credential = Credential(token)
    await prove(registry.acting_as(credential), namespace)
    return Pass(credential)


async def take_account(registry: NacosRegistry, username: str, password: str) -> Pass | None:
    """The token of a login; None where the upstream asks nobody for one. Raises as `login.log_in`."""
    login, now = await _login(registry, username, password), registry.clock.now()
    if not login.token:
        return None
    return Pass(Credential(login.token), now + login.ttl * RENEW_AT, now + login.ttl)


async def _login(registry: NacosRegistry, username: str, password: str) -> Login:
    await registry.ready()
    last: UpstreamError = Unreachable("no server is known", arrived=False)
    for server in registry.servers.candidates((username,), registry.clock.now(), reading=False):
        try:
            login, _ = await log_in(username, password, registry.asks_plainly(server))
        except UpstreamError as error:
            if isinstance(error, Refused) and error.reason is Reason.NO_RIGHT:
                raise
            registry.failed(server, error)
            last = error
            continue
        registry.succeeded(server, None, "login")
        return login
    raise last
