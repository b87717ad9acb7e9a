"""Who we are to the servers: the token of a login, renewed before it ends; a client's own token in its place.

Not for: who may use this proxy (`api.guard`), how a login travels (`wire.login`).

    the token is      | while                        | a call
    ------------------+------------------------------+---------------------------------------------
    good              | before `renew_at` of its ttl | goes with it
    ending            | until its ttl is over        | goes with it, and one login runs beside
    none              | else                         | waits for the one login in flight
    refused (401/403) | once per `pause`             | waits for the one login in flight, then goes once more

A login that the servers refuse (a wrong password) is tried again after `pause`, then after twice that, up to
`longest_pause`: a directory behind the servers may lock the account. One that found no server is each server's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field

from nacos_proxy.model.errors import (
    Garbled,
    Malformed,
    ProxyError,
    Reason,
    Refused,
)
from nacos_proxy.runtime import Clock, spawn
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos import v1, v3
from nacos_proxy.wire.nacos.login import Login

AUTH_DISABLED = "AUTH_DISABLED"  # what a server says for a token where it asks for none (nacos-http.md 7.3)

Ask = Callable[[HttpRequest], Awaitable[HttpReply]]

_PATHS = ((v1.login_request, v1.login_reply), (v3.login_request, v3.login_reply))


@dataclass(frozen=True, slots=True)
class LoginPolicy:
    """Without a username nobody logs in. `renew_at` is a share of the ttl; pauses are seconds between two tries."""

    username: str = ""
    password: str = field(default="", repr=False)
    renew_at: float = 0.9
    pause: float = 5.0
    longest_pause: float = 60.0


@dataclass(slots=True)
class Credential:
    """What a client brought: its token goes with its calls, and nothing of this proxy's own does.

    The token of one that was logged in here changes when that login is renewed.
    """

    token: str = field(repr=False)

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        return token_headers(self.token)


NOBODY = Credential("")


def token_headers(token: str) -> tuple[tuple[str, str], ...]:
    """Both spellings: 1.4.6 knows the bearer alone, some gateways keep `Authorization` for themselves.

    Raises `Refused` for a token that no header can carry, whoever brought it.
    """
    if not (token.isascii() and token.isprintable()):
        raise Refused(Reason.NO_RIGHT, "a token has only printable ASCII characters", status=403)
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
        self._pause = policy.pause
        self._running: asyncio.Task[ProxyError | None] | None = None
        self._running_at: Hashable = None
        self._first = 0

    @property
    def enabled(self) -> bool:
        return bool(self._policy.username)

    async def token(self, at: Hashable, ask: Ask) -> str:
        """The token to send, '' where none is needed; `ask` asks the server `at`.

        Raises `Refused` (NO_RIGHT) and what the login's call raised.
        """
        if not self.enabled:
            return ""
        now = self._clock.now()
        if now >= self._ends_at:
            await self._login(at, ask)
        elif now >= self._renew_at and not self._pausing:
            self._start(at, ask)
        return self._token

    async def renew(self, refused: str, at: Hashable, ask: Ask) -> str:
        """Another token than the refused one where there is one to be had; else the same. Raises as `token`."""
        if self.enabled and self._token == refused and not self._pausing:
            await self._login(at, ask)
        return self._token

    @property
    def _pausing(self) -> bool:
        return self._clock.now() - self._tried_at < self._pause

    async def _login(self, at: Hashable, ask: Ask) -> None:
        if self._refusal is not None and self._pausing:
            raise self._refusal
        while True:
            running = self._start(at, ask)
            asked = self._running_at
            error = await asyncio.shield(running)
            if error is None:
                return
            if asked == at or error is self._refusal:
                raise error
            # It was another server that did not answer; that says nothing of this one.

    def _start(self, at: Hashable, ask: Ask) -> asyncio.Task[ProxyError | None]:
        if self._running is None or self._running.done():
            self._running, self._running_at = spawn(self._run(ask), name="login"), at
        return self._running

    async def _run(self, ask: Ask) -> ProxyError | None:
        self._tried_at = self._clock.now()
        try:
            login = await self._ask(ask)
        except ProxyError as error:
            self.error = str(error)
            if isinstance(error, Refused) and error.reason is Reason.NO_RIGHT:
                longer = min(self._pause * 2, self._policy.longest_pause)
                self._pause = longer if self._refusal is not None else self._policy.pause
                self._refusal = error
            else:
                self._refusal = None
            return error
        now = self._clock.now()
        self.logins += 1
        self.error, self._refusal, self._pause = "", None, self._policy.pause
        self._token = login.token
        self._renew_at, self._ends_at = now + login.ttl * self._policy.renew_at, now + login.ttl
        return None

    async def _ask(self, ask: Ask) -> Login:
        login, self._first = await log_in(self._policy.username, self._policy.password, ask, self._first)
        return login


async def log_in(username: str, password: str, ask: Ask, first: int = 0) -> tuple[Login, int]:
    """The login at the path of this number, at the other where there is none; and the number that it was.

    Its token is '' where nobody asks for one. Raises `Refused` (NO_RIGHT) where the upstream takes no such account, and
    what the calls raise.
    """
    for number in (first, 1 - first):
        write, read = _PATHS[number]
        try:
            login = read(await ask(write(username, password)))
        except Refused as refused:
            if refused.status >= 502:  # a gateway, or a server that is not ready; both say nothing of the password
                raise
            if refused.reason is not Reason.GONE:
                said = f"the login as {username!r} was refused: {refused.text}"
                raise Refused(Reason.NO_RIGHT, said, status=403) from refused
            continue
        except Malformed as error:
            raise Garbled(f"the answer to a login is none: {error}") from error
        return (login._replace(token="") if login.token == AUTH_DISABLED else login), number
    return Login("", 60.0), first  # no login at either path: nobody asks for a token here
