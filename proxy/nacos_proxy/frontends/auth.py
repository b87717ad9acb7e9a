"""Access control, as an ASGI app in front of all others: Host and Origin checks, API tokens and their rights.

These are this proxy's own tokens. The upstream's accounts are in `upstream.nacos.login`. If clients may send a token in
a new place, `own_tokens` has to remove it there, and `VARY` of `fastpath.asgi` has to list it if it is a header.

A web page could attack this proxy through DNS rebinding: the browser then sends the attacker's name as Host. So on a
loopback address, only names of this host are accepted.

Envoy sends the name of its cluster (`nacos_proxy`) as Host, and its configuration has no place for another. So on the
two paths of discovery, a POST may name any host without a dot, if no browser sent it. A page of the internet has a name
with a dot. One of the local network may not, because resolvers add a domain and LLMNR has none; but with each POST a
browser sends `Origin`, which scripts cannot remove (Fetch 3.2) and Envoy does not send.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from starlette.types import ASGIApp, Receive, Scope, Send

from nacos_proxy.frontends.answers import send_reply
from nacos_proxy.frontends.open_streams import OPEN_STREAMS, Admission, End, OpenStreams, Right
from nacos_proxy.frontends.operations.page import PATHS as PAGE
from nacos_proxy.frontends.own_tokens import OWN
from nacos_proxy.frontends.request_body import peek_form
from nacos_proxy.frontends.rest.explorer import PATHS
from nacos_proxy.model.errors import Denied, ProxyError
from nacos_proxy.wire.discovery.envoy import PATHS as DISCOVERY
from nacos_proxy.wire.http import HttpReply, first_of
from nacos_proxy.wire.rest.query import TOKENS
from nacos_proxy.wire.rest.tiers import EVENTS

_RANK: dict[Right, int] = {"read": 0, "write": 1, "admin": 2}
OPEN_PATHS = PATHS | PAGE | {"/healthz", "/readyz"}  # a browser cannot send a token with the page itself
UNAUTHENTICATED = "nacos_proxy.stranger"
"""The scope key: true if the request has no token with the right for its path. Only open paths can see true."""

RIGHT = "nacos_proxy.right"
"""The scope key: the `Right` of the request's token, None without one; absent if the proxy has no tokens."""

NO_TOKEN = "no API token; send one as 'Authorization: Bearer TOKEN' or as accessToken"
NO_RIGHT = "this token lacks the '{}' right; it has '{}'"
_SAFE = ("GET", "HEAD", "OPTIONS")
_NACOS = ("/v1/", "/v2/", "/v3/")  # without a context path, these stand beside the REST API
_LOGINS = ("/v1/auth/login", "/v1/auth/users/login", "/v3/auth/user/login")
_CLUSTER_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")
_NAMING = ("/v1/ns/instance", "/v2/ns/instance", "/v3/client/ns", "/v3/admin/ns/instance")


@dataclass(frozen=True, slots=True)
class Token:
    """A secret and its right. Each right includes those before it: read, write, admin."""

    secret: str = field(repr=False)
    right: Right


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """Requests may name `hosts` as Host, beside this host's own names; '*' switches the check off.

    Web pages of these `origins` may make changes; '*' is any. A form of up to `max_form` bytes is searched for a token.
    Without `tokens`, every request has every right.
    """

    tokens: tuple[Token, ...] = ()
    hosts: frozenset[str] = frozenset()
    loopback: bool = True
    context_path: str = "/nacos"
    origins: frozenset[str] = frozenset()
    max_form: int = 1 << 20


class AccessControl:
    """Passes a request on to `app`, or answers it with `refuse(scope, error)`."""

    def __init__(self, app: ASGIApp, policy: AccessPolicy, refuse: Callable[[Scope, ProxyError], HttpReply]) -> None:
        self.open_streams = OpenStreams(self.check)
        self.policy = policy
        self._app = app
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        error = self._check_host_and_origin(scope, headers)
        right = required_right(scope["method"], scope["path"], self.policy.context_path)
        admission = Admission(None, right)
        if error is None and self.policy.tokens:
            token = _shown_token(scope, headers)
            if token is None and scope["method"] not in _SAFE:  # the Go SDK sends it in the form of its writes
                form, receive = await peek_form(scope, receive, self.policy.max_form)
                token = _token_in(form)
            admission = Admission(token, right)
            error = self.check(admission)
            scope[OWN], scope[UNAUTHENTICATED] = self.is_own, error is not None
            error = None if scope["path"] in OPEN_PATHS else error
            scope[RIGHT] = None if admission.token is None else right_of(admission.token, self.policy.tokens)
        if error is None:
            scope[OPEN_STREAMS] = (self.open_streams, admission)
            await self._app(scope, receive, send)
            return
        await send_reply(send, self._refuse(scope, error), head_only=scope["method"] == "HEAD")

    def set_policy(self, policy: AccessPolicy) -> None:
        """Replaces the policy, and ends open requests that it would refuse."""
        self.policy = policy
        self.open_streams.end_revoked()

    def _check_host_and_origin(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Denied | None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 and (hosts or scope.get("http_version") == "1.1"):  # RFC 9112 3.2
            return Denied("a request must have exactly one Host header", status=400)
        host = hosts[0].decode("latin-1") if hosts else ""
        if not self._is_host_allowed(scope, host) and not _is_sent_by_envoy(scope, headers, host):
            return Denied(f"the Host '{host[:100]}' is not one of this proxy's; add it to allowed_hosts", status=421)
        if scope["method"] not in _SAFE and not self._is_origin_allowed(headers, host):
            return Denied("a web page of another origin cannot make changes; to allow it, see cors_origins")
        return None

    def check(self, admission: Admission) -> Denied | None:
        """Why the token does not have the right; None if it has."""
        tokens = self.policy.tokens
        if not tokens:
            return None
        if admission.token is None:
            return Denied(NO_TOKEN, status=401)
        right = right_of(admission.token, tokens)
        if right is None:
            return Denied("this API token is unknown to the proxy", status=401)
        if _RANK[right] < _RANK[admission.right]:
            return Denied(NO_RIGHT.format(admission.right, right))
        return None

    def is_own(self, text: str) -> bool:
        """Whether a text is one of this proxy's tokens, which the upstream must not see."""
        return right_of(text, self.policy.tokens) is not None

    def _is_host_allowed(self, scope: Scope, host: str) -> bool:
        if "*" in self.policy.hosts or not host or scope.get("server", ("", 0))[1] is None:
            return True
        name = host_name(host)
        if name in self.policy.hosts or name == "localhost" or name.endswith(".localhost"):
            return True
        own = loopback_address(name)
        if own is None:
            return not self.policy.loopback and not self.policy.hosts
        return own or not self.policy.loopback

    def _is_origin_allowed(self, headers: Mapping[bytes, bytes], host: str) -> bool:
        """Any web page can send a form to a loopback port, but the browser then names the page's origin."""
        if b"origin" not in headers:
            return headers.get(b"sec-fetch-site", b"none") in (b"none", b"same-origin")
        origin = headers[b"origin"].decode("latin-1")
        own = origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")
        return own or "*" in self.policy.origins or origin in self.policy.origins


class LastingAdmission:
    """The API token of a connection on which pushes go on between requests. Once it is revoked, `end` is called."""

    def __init__(self, guard: AccessControl, end: End) -> None:
        self._guard = guard
        self._end = end
        self._token: str | None = None
        self._forget: Callable[[], object] | None = None

    def check(self, token: str | None, right: Right) -> None:
        """For each request. The token of the last one counts between them. Raises `Denied`."""
        if (error := self._guard.check(Admission(token, right))) is not None:
            raise error
        if self._forget is None or token != self._token:
            self.release()
            self._token = token
            self._forget = self._guard.open_streams.add(Admission(token, "read"), self._end)

    def release(self) -> None:
        """The connection is gone."""
        if self._forget is not None:
            self._forget()
            self._forget = None


def _is_sent_by_envoy(scope: Scope, headers: Mapping[bytes, bytes], host: str) -> bool:
    """Whether a request may have a Host that is not ours, because it is Envoy's and no browser's."""
    from_browser = b"origin" in headers or b"sec-fetch-site" in headers
    named = is_cluster_name(host_name(host))
    return named and not from_browser and scope["method"] == "POST" and scope["path"] in DISCOVERY


def is_cluster_name(host: str) -> bool:
    """Whether the name in a Host header, without its port, can be that of a cluster of Envoy."""
    return _CLUSTER_NAME.fullmatch(host) is not None


def _shown_token(scope: Scope, headers: Mapping[bytes, bytes]) -> str | None:
    """The token in the headers or the query."""
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
    """Whether an address is a loopback address; None if the name is not an address."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return None


def host_name(host: str) -> str:
    """The name in a Host header, without port and brackets, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def right_of(secret: str, tokens: Sequence[Token]) -> Right | None:
    """The right of a token, None if it is unknown. Takes the same time for every token."""
    found: Right | None = None
    for token in tokens:
        if hmac.compare_digest(secret.encode(), token.secret.encode()):
            found = token.right
    return found


def required_right(method: str, path: str, context_path: str) -> Right:
    """Reads need 'read', naming writes 'write', and forwarded requests that can change the upstream 'admin'.

    A login needs 'read', because it changes nothing; so do discovery and event streams by POST.
    """
    if method in _SAFE or path in DISCOVERY or path == EVENTS:
        return "read"
    context = context_path.rstrip("/")
    if not path.startswith(f"{context}/" if context else _NACOS):
        return "write"
    below = path[len(context) :]
    if method == "POST" and below in _LOGINS:
        return "read"
    return "write" if any(below == name or below.startswith(f"{name}/") for name in _NAMING) else "admin"
