"""Who may ask: Host and Origin check, API tokens and their rights, as an ASGI app in front of all others.

Not for: the upstream's own accounts (`registry.login`). A process that can rewrite where traffic goes is worth
attacking from a web page: a browser that was led to us by a rebound DNS name sends that name as Host, so on a loopback
address only names of this host count.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from starlette.types import ASGIApp, Receive, Scope, Send

from nacos_proxy.frontends.answers import send_reply
from nacos_proxy.frontends.forms import form_of
from nacos_proxy.frontends.open_streams import HOLDER, Held, Opened
from nacos_proxy.frontends.own_tokens import OWN
from nacos_proxy.frontends.rest.explorer import PATHS
from nacos_proxy.model.errors import Denied, ProxyError
from nacos_proxy.wire.http import HttpReply, first_of
from nacos_proxy.wire.rest.query import TOKENS

Right = Literal["read", "write", "admin"]
_RANK: dict[Right, int] = {"read": 0, "write": 1, "admin": 2}
OPEN_PATHS = PATHS | {"/healthz", "/readyz"}  # a browser has no way to send a token with the page itself
STRANGER = "nacos_proxy.stranger"
"""Where the guard leaves in the scope whether a request to an open path shows no token that would open the others."""

_SAFE = ("GET", "HEAD", "OPTIONS")
_NACOS = ("/v1/", "/v2/", "/v3/")  # beside them, where there is no context path, stands our own API
_LOGINS = ("/v1/auth/login", "/v1/auth/users/login", "/v3/auth/user/login")
_NAMING = ("/v1/ns/instance", "/v2/ns/instance", "/v3/client/ns", "/v3/admin/ns/instance")


@dataclass(frozen=True, slots=True)
class Token:
    """A secret and the most it may do: each right holds those before it (read, write, admin)."""

    secret: str = field(repr=False)
    right: Right


@dataclass(frozen=True, slots=True)
class GuardPolicy:
    """`hosts` are names that Host may carry besides this host's own; '*' switches the check off. `origins` are those of
    web pages that may change something; '*' is any.
    """

    tokens: tuple[Token, ...] = ()
    hosts: frozenset[str] = frozenset()
    loopback: bool = True
    context_path: str = "/nacos"
    origins: frozenset[str] = frozenset()
    max_form: int = 1 << 20  # bytes of a form in which a token is looked for


class Guard:
    """Lets a request through to `app`, or answers it with what `refuse` makes of a `ProxyError`."""

    def __init__(self, app: ASGIApp, policy: GuardPolicy, refuse: Callable[[Scope, ProxyError], HttpReply]) -> None:
        self.denied = 0
        self.held = Held(self._revoked)
        self._app = app
        self.policy = policy
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        error = self._out_of_place(scope, headers)
        opened = Opened(None, scope["method"], scope["path"])
        if error is None and self.policy.tokens:
            opened, receive = await self._opened(scope, headers, receive)
            error = self._without_right(opened)
            scope[OWN], scope[STRANGER] = self._is_own, error is not None
            error = None if scope["path"] in OPEN_PATHS else error
        if error is None:
            scope[HOLDER] = (self.held, opened)
            await self._app(scope, receive, send)
            return
        self.denied += 1
        await send_reply(send, self._refuse(scope, error), head_only=scope["method"] == "HEAD")

    async def _opened(self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive) -> tuple[Opened, Receive]:
        given = _given(scope, headers)
        if given is None and scope["method"] not in _SAFE:  # the Go SDK's writes have it in their form
            form, receive = await form_of(scope, receive, self.policy.max_form)
            given = _token_in(form)
        return Opened(given, scope["method"], scope["path"]), receive

    def _out_of_place(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Denied | None:
        """What no token helps against."""
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 and (hosts or scope.get("http_version") == "1.1"):  # RFC 9112 3.2
            return Denied("a request needs one Host, and no second one", status=400)
        host = hosts[0].decode("latin-1") if hosts else ""
        if not self._host_fits(scope, host):
            return Denied(f"the Host '{host[:100]}' is not one of this proxy's; add it to allowed_hosts", status=421)
        if scope["method"] not in _SAFE and not self._origin_fits(headers, host):
            return Denied("a web page of another origin may change nothing here; see cors_origins", status=403)
        return None

    def _is_own(self, text: str) -> bool:
        return right_of(text, self.policy.tokens) is not None

    def obey(self, policy: GuardPolicy) -> None:
        """From now on. What is open and would be refused now ends."""
        self.policy = policy
        self.held.end(self._revoked)

    def _revoked(self, opened: Opened) -> Denied | None:
        return self._without_right(opened) if self.policy.tokens else None

    def _without_right(self, opened: Opened) -> Denied | None:
        if (given := opened.token) is None:
            return Denied("no API token: send it as 'Authorization: Bearer TOKEN', or as accessToken", status=401)
        right = right_of(given, self.policy.tokens)
        if right is None:
            return Denied("the API token is not known here", status=401)
        wanted = needed(opened.method, opened.path, self.policy.context_path)
        if _RANK[right] < _RANK[wanted]:
            return Denied(f"the API token has the right '{right}', this needs '{wanted}'", status=403)
        return None

    def _host_fits(self, scope: Scope, host: str) -> bool:
        if "*" in self.policy.hosts or not host or scope.get("server", ("", 0))[1] is None:
            return True
        name = host_name(host)
        if name in self.policy.hosts or name == "localhost" or name.endswith(".localhost"):
            return True
        own = loopback_address(name)
        if own is None:
            return not self.policy.loopback and not self.policy.hosts
        return own or not self.policy.loopback

    def _origin_fits(self, headers: Mapping[bytes, bytes], host: str) -> bool:
        """A page of any site can send a form to a loopback port unasked, but not without saying where it comes from."""
        if b"origin" not in headers:
            return headers.get(b"sec-fetch-site", b"none") in (b"none", b"same-origin")
        origin = headers[b"origin"].decode("latin-1")
        own = origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")
        return own or "*" in self.policy.origins or origin in self.policy.origins


def _given(scope: Scope, headers: Mapping[bytes, bytes]) -> str | None:
    """The token that a request shows without its body."""
    scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    if b"accesstoken" in headers:
        return headers[b"accesstoken"].decode("latin-1")
    return _token_in(scope["query_string"])


def _token_in(parameters: bytes) -> str | None:
    values = first_of(parameters)
    return next((values[name] for name in TOKENS if values.get(name)), None)


@lru_cache(maxsize=256)
def loopback_address(name: str) -> bool | None:
    """Whether an address is of this host alone; None where a name is no address. Clients name the same few again."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return None


def host_name(host: str) -> str:
    """The name in a Host header, without port and brackets, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def right_of(given: str, tokens: Sequence[Token]) -> Right | None:
    """The right of a token, None for an unknown one; takes as long whichever it is."""
    found: Right | None = None
    for token in tokens:
        if hmac.compare_digest(given.encode(), token.secret.encode()):
            found = token.right
    return found


def needed(method: str, path: str, context_path: str) -> Right:
    """Reads need 'read', naming writes 'write', what else is passed through to the upstream and changes it 'admin'.

    A login changes nothing: who may read may show an account of the upstream's.
    """
    if method in _SAFE:
        return "read"
    context = context_path.rstrip("/")
    if not path.startswith(f"{context}/" if context else _NACOS):
        return "write"
    below = path[len(context) :]
    if method == "POST" and below in _LOGINS:
        return "read"
    return "write" if any(below == name or below.startswith(f"{name}/") for name in _NAMING) else "admin"
