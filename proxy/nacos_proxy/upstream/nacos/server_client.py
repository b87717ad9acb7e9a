"""One server as one set of rights is given it: a call in whatever dialect the server takes, with a token.

Not for: which server (`servers`), what becomes of a failure (`nacos`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, TypeVar

from nacos_proxy.model.calls import Call
from nacos_proxy.model.errors import (
    Garbled,
    Malformed,
    Misplaced,
    Reason,
    Refused,
)
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.upstream.http.exchange import Http
from nacos_proxy.upstream.nacos.capabilities import DialectName
from nacos_proxy.upstream.nacos.dialect_client import DialectClient
from nacos_proxy.upstream.nacos.login import Credential, Session, token_headers
from nacos_proxy.upstream.nacos.servers import Server
from nacos_proxy.upstream.nacos.udp_receiver import PushReceiver
from nacos_proxy.wire.http import HttpReply, HttpRequest

R = TypeVar("R")

log = logging.getLogger("nacos_proxy.registry")

UNPUSHED = 3000  # `defaultCacheMillis` of 1.x, in ms


@dataclass(frozen=True, slots=True)
class ServerClient:
    """Implements `speech.Line`. `credential` None: this proxy's own login."""

    server: Server
    http: Http
    dialect_clients: dict[str, DialectClient]
    order: tuple[DialectName, ...]
    session: Session
    credential: Credential | None
    receiver: PushReceiver | None = None

    async def send(self, call: Call[R]) -> R:
        """In the dialects that the server takes the call in; what it has not is remembered, and the next is used."""
        spoken, kind = self.server.spoken, type(call)
        tried: set[str] = set()
        gone: Refused | None = None
        while (name := self._next(call, tried)) is not None:
            tried.add(name)
            try:
                result = await self._execute(self.dialect_clients[name], call)
            except Refused as refused:
                if refused.reason is not Reason.GONE:
                    raise
                gone = refused
                if spoken.gone(name, kind):
                    log.warning("%s no longer takes %s in %s: it is another version now", self.server, kind, name)
                continue
            spoken.worked(name, kind)
            return result
        raise gone or Refused(Reason.GONE, f"no dialect of {self.server.url} has {kind.__name__}", status=501)

    def _next(self, call: Call[Any], tried: set[str]) -> DialectName | None:
        for name in self.server.spoken.plan(call, self.order):
            if name not in tried and self.dialect_clients[name].can_execute(call):
                return name
        return None

    async def _execute(self, speech: DialectClient, call: Call[R]) -> R:
        try:
            return await speech.execute(self, call)
        except Malformed as error:
            if isinstance(error, Misplaced):
                self.http.renew(self.server)
            raise Garbled(f"{self.server.origin}: the answer is none: {error}", answered=True) from error

    async def ask(self, request: HttpRequest, *, again: bool = True) -> HttpReply:
        """A reply, with a token; once more with a new one where the token was refused."""
        if self.credential is not None:
            return await self._ask(request, self.credential.headers, again)
        session = self.session
        token = await session.token(self.server.url, self.ask_plainly)
        reply = await self._ask(request, self._own(token), again)
        if reply.status in (401, 403) and session.enabled:
            fresh = await session.renew(token, self.server.url, self.ask_plainly)
            if fresh != token:
                reply = await self._ask(request, self._own(fresh), again)
        return reply

    def subscribing(self, key: ServiceKey, request: HttpRequest) -> tuple[HttpRequest, int | None]:
        """A list of v1, which may ask for UDP push; where a client's own token asks, it is for that client alone.

        With it the `cacheMillis` to show: 1.x says 10 s to whom it pushes, and our clients are others (asked of 1.4.8).
        """
        if self.receiver is None or self.credential is not None:
            return request, None
        asking = self.receiver.subscribing(self.server, key, request)
        unpushed = asking is not request and self.server.spoken.version.startswith("1.")
        return asking, UNPUSHED if unpushed else None

    def _own(self, token: str) -> tuple[tuple[str, str], ...]:
        identity = self.http.policy.identity
        return token_headers(token) + ((identity,) if identity is not None else ())

    async def ask_plainly(self, request: HttpRequest) -> HttpReply:
        return await self._ask(request, (), True)

    async def _ask(self, request: HttpRequest, headers: tuple[tuple[str, str], ...], again: bool) -> HttpReply:
        return await self.http.ask(self.server, request, headers, again=again)
