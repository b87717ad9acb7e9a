"""Who we are to the servers: the token of a login, renewed before it ends; a client's own token in its place.

Not for: who may use this proxy (`api.guard`), how a login travels (`wire.login`).

    the token is      | while                        | a call
    ------------------+------------------------------+---------------------------------------------
    good              | before `renew_at` of its ttl | goes with it
    ending            | until its ttl is over        | goes with it, and one login runs beside
    none              | else                         | waits for the one login in flight
    refused (401/403) | once per `pause`             | waits for the one login in flight, then goes once more
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from proxy.errors import Garbled, Malformed, ProxyError, Reason, Refused
from proxy.runtime import Clock, spawn
from proxy.wire import v1, v3
from proxy.wire.base import HttpReply, HttpRequest
from proxy.wire.login import Login

AUTH_DISABLED = "AUTH_DISABLED"  # what a server says for a token where it asks for none (NACOS.md 7.3)

Ask = Callable[[HttpRequest], Awaitable[HttpReply]]

_PATHS = ((v1.login_request, v1.login_reply), (v3.login_request, v3.login_reply))


@dataclass(frozen=True, slots=True)
class LoginPolicy:
    """Without a username nobody logs in. `renew_at` is a share of the ttl; `pause` seconds between two tries."""

    username: str = ""
    password: str = field(default="", repr=False)
    renew_at: float = 0.9
    pause: float = 5.0


@dataclass(frozen=True, slots=True)
class Credential:
    """What a client brought: its token goes with its calls, and nothing of this proxy's own does."""

    token: str = field(repr=False)

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        return token_headers(self.token)


def token_headers(token: str) -> tuple[tuple[str, str], ...]:
    """Both spellings: 1.4.6 knows the bearer alone, some gateways keep `Authorization` for themselves."""
    return (("Authorization", f"Bearer {token}"), ("accessToken", token)) if token else ()


class Session:
    """The token of this proxy. All servers of a cluster take the same one."""

    def __init__(self, policy: LoginPolicy, clock: Clock) -> None:
        self.logins = 0
        self.error = ""
        self._policy = policy
        self._clock = clock
        self._token = ""
        self._renew_at = self._ends_at = float("-inf")
        self._tried_at = float("-inf")
        self._refusal: Refused | None = None
        self._running: asyncio.Task[ProxyError | None] | None = None
        self._first = 0

    @property
    def enabled(self) -> bool:
        return bool(self._policy.username)

    async def token(self, ask: Ask) -> str:
        """The token to send, '' where none is needed. Raises `Refused` (NO_RIGHT) and what the login's call raised."""
        if not self.enabled:
            return ""
        now = self._clock.now()
        if now >= self._ends_at:
            await self._login(ask)
        elif now >= self._renew_at and now - self._tried_at >= self._policy.pause:
            self._start(ask)
        return self._token

    async def renew(self, refused: str, ask: Ask) -> str:
        """Another token than the refused one where there is one to be had; else the same."""
        if not self.enabled or self._token != refused or self._clock.now() - self._tried_at < self._policy.pause:
            return self._token
        await self._login(ask)
        return self._token

    async def _login(self, ask: Ask) -> None:
        if self._refusal is not None and self._clock.now() - self._tried_at < self._policy.pause:
            raise self._refusal
        error = await asyncio.shield(self._start(ask))
        if error is not None:
            raise error

    def _start(self, ask: Ask) -> asyncio.Task[ProxyError | None]:
        if self._running is None or self._running.done():
            self._running = spawn(self._run(ask), name="login")
        return self._running

    async def _run(self, ask: Ask) -> ProxyError | None:
        self._tried_at = self._clock.now()
        try:
            login = await self._ask(ask)
        except ProxyError as error:
            self._refusal = error if isinstance(error, Refused) else None
            self.error = str(error)
            return error
        now = self._clock.now()
        self.logins += 1
        self.error, self._refusal = "", None
        self._token = "" if login.token == AUTH_DISABLED else login.token
        self._renew_at, self._ends_at = now + login.ttl * self._policy.renew_at, now + login.ttl
        return None

    async def _ask(self, ask: Ask) -> Login:
        """At the path that worked last; at the other where there is none."""
        for number in (self._first, 1 - self._first):
            write, read = _PATHS[number]
            try:
                login = read(await ask(write(self._policy.username, self._policy.password)))
            except Refused as refused:
                if refused.reason is not Reason.GONE:
                    said = f"the login as {self._policy.username!r} was refused: {refused.text}"
                    raise Refused(Reason.NO_RIGHT, said, status=403) from refused
                continue
            except Malformed as error:
                raise Garbled(f"the answer to a login is none: {error}") from error
            self._first = number
            return login
        return Login("", 60.0)  # no login at either path: nobody asks for a token here
