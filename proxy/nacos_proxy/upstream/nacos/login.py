"""The credentials for the servers: a client's own token, or this proxy's token, which is renewed before it ends.

    our token is      | while                              | a call
    ------------------+------------------------------------+-------------------------------------------------
    valid             | before `RENEW_AT` of its ttl       | carries it
    about to end      | until its ttl is over              | carries it; one login runs in the background
    absent            | otherwise                          | waits for the one login in flight
    refused (401/403) | unless a login was tried just now  | waits for the one login in flight, then is sent again

After each login that the servers refuse (a wrong password), the pause before the next login grows, because a directory
behind the servers may lock the account. If a server does not answer a login, another server may.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field

from nacos_proxy.model.backoff import Backoff
from nacos_proxy.model.errors import Garbled, Malformed, ProxyError, Reason, Refused
from nacos_proxy.runtime import Clock, spawn
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos.login import Login, read_login, write_login

RENEW_AT = 0.9  # of the ttl of a token
BACKOFF = Backoff(initial=5.0, maximum=60.0)
AUTH_DISABLED = "AUTH_DISABLED"  # a server's token if it requires none (nacos-http.md 7.3)

Ask = Callable[[HttpRequest], Awaitable[HttpReply]]


@dataclass(frozen=True, slots=True)
class LoginPolicy:
    """This proxy's account. Without a username there is no login."""

    username: str = ""
    password: str = field(default="", repr=False)


@dataclass(slots=True)
class Credential:
    """A client's token. The client's calls carry it, and neither token nor identity of this proxy.

    If the proxy logged the client in, `token` changes when that login is renewed.
    """

    token: str = field(repr=False)

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        return token_headers(self.token)


NOBODY = Credential("")


def token_headers(token: str) -> tuple[tuple[str, str], ...]:
    """The token in two headers: 1.4.6 reads only `Authorization`, which some gateways consume.

    Raises `Refused` if the token cannot be in a header.
    """
    if not (token.isascii() and token.isprintable()):
        raise Refused(Reason.NO_RIGHT, "a token may contain only printable ASCII characters", status=403)
    return (("Authorization", f"Bearer {token}"), ("accessToken", token)) if token else ()


class Session:
    """The token of this proxy, which is valid at all servers of a cluster.

    `logins` counts successful logins. `error` says why the last login failed.
    """

    def __init__(self, policy: LoginPolicy, clock: Clock) -> None:
        self.logins = 0
        self.error = ""
        self._policy = policy
        self._clock = clock
        self._token = ""
        self._renew_at = self._ends_at = float("-inf")
        self._tried_at = float("-inf")
        self._refusal: Refused | None = None  # of the last login
        self._retry = 0
        self._login_task: asyncio.Task[ProxyError | None] | None = None
        self._login_server: Hashable = None
        self._dialect = "v1"  # the one that had a login

    @property
    def enabled(self) -> bool:
        return bool(self._policy.username)

    async def token(self, server: Hashable, ask: Ask) -> str:
        """The token to send, '' if none is needed. `ask` sends a login to `server`. Raises as `log_in`."""
        if not self.enabled:
            return ""
        now = self._clock.now()
        if now >= self._ends_at:
            await self._log_in(server, ask)
        elif now >= self._renew_at and not self._backing_off:
            self._start_login(server, ask)
        return self._token

    def held(self) -> str | None:
        """As `token`, without a login; None if one is due."""
        return self._token if not self.enabled or self._clock.now() < self._renew_at else None

    async def renew(self, refused: str, server: Hashable, ask: Ask) -> str:
        """A new token if the refused one is still in use and a login may be tried; else the current one."""
        if self.enabled and self._token == refused and not self._backing_off:
            await self._log_in(server, ask)
        return self._token

    @property
    def _backing_off(self) -> bool:
        return self._clock.now() - self._tried_at < BACKOFF.delay(self._retry)

    async def _log_in(self, server: Hashable, ask: Ask) -> None:
        if self._refusal is not None and self._backing_off:
            raise self._refusal
        while True:
            login_task = self._start_login(server, ask)
            login_server = self._login_server
            error = await asyncio.shield(login_task)
            if error is None:
                return
            if login_server == server or error is self._refusal:
                raise error
            # Another server did not answer the login that was in flight. Log in at this server.

    def _start_login(self, server: Hashable, ask: Ask) -> asyncio.Task[ProxyError | None]:
        if self._login_task is None or self._login_task.done():
            self._login_task, self._login_server = spawn(self._run_login(ask), name="login"), server
        return self._login_task

    async def _run_login(self, ask: Ask) -> ProxyError | None:
        self._tried_at = self._clock.now()
        try:
            login, self._dialect = await log_in(self._policy.username, self._policy.password, ask, self._dialect)
        except ProxyError as error:
            self.error = str(error)
            if isinstance(error, Refused) and error.reason is Reason.NO_RIGHT:
                self._retry = 0 if self._refusal is None else self._retry + 1
                self._refusal = error
            else:
                self._refusal = None
            return error
        now = self._clock.now()
        self.logins += 1
        self.error, self._refusal, self._retry = "", None, 0
        self._token = login.token
        self._renew_at, self._ends_at = now + login.ttl * RENEW_AT, now + login.ttl
        return None


async def log_in(username: str, password: str, ask: Ask, dialect: str = "v1") -> tuple[Login, str]:
    """The login, and the dialect that has one: `dialect`, or else the other one of v1 and v3.

    The token is '' if the servers require none. Raises `Refused` (NO_RIGHT) if they do not accept the account, and
    the errors of `ask`.
    """
    for name in (dialect, "v3" if dialect == "v1" else "v1"):
        try:
            login = read_login(name, await ask(write_login(name, username, password)))
        except Refused as refused:
            if refused.status >= 502:  # from a gateway or a server that is not ready, whatever the password
                raise
            if refused.reason is not Reason.GONE:
                text = f"the login as {username!r} was refused: {refused.text}"
                raise Refused(Reason.NO_RIGHT, text, status=403) from refused
            continue
        except Malformed as error:
            raise Garbled(f"the answer to a login cannot be read: {error}") from error
        return (login._replace(token="") if login.token == AUTH_DISABLED else login), name
    return Login("", 60.0), dialect  # a server without login requires no token
