"""Real Nacos or r-nacos over HTTP, as a `Registry`.

A call travels like this:

    step                      | does                                             | with
    --------------------------+--------------------------------------------------+-------------------------------
    AuthenticatedClient.send  | chooses a server, and the next one if that fails | `servers`
    ServerClient.send         | chooses a dialect                                | `capabilities`
    DialectClient.execute     | writes the requests and reads the replies        | `dialect_client`, `wire.nacos`
    ServerClient.ask          | adds the token, and renews it if it is refused   | `login`
    HttpClient.send           | exchanges a request and a reply                  | `upstream.http.exchange`

A call that came before may be begun without these steps (`repeats`).

All calls are idempotent except those that create or delete a service.

    a call that               | is sent to the next server
    --------------------------+-----------------------------------------------------------------------------------
    did not arrive            | always
    may have arrived          | if it is idempotent
    was refused, 502 to 504   | if it is idempotent; a read also after 500
    was refused, NO_PEER      | if it is idempotent: the server needed another node, which is or was just down
    was refused, GONE         | never: it is sent to the same server in the next dialect
    was refused otherwise     | never
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Container,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from secrets import token_hex
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import httpx
from cachetools import LRUCache

from nacos_proxy.model.calls import (
    Alive,
    BatchMetadata,
    Beat,
    Call,
    CreateService,
    DeleteService,
    Deregister,
    Fetch,
    GetInstance,
    GetService,
    Metrics,
    Register,
    ServerState,
    SetHealth,
    Update,
    UpdateService,
    Write,
)
from nacos_proxy.model.errors import (
    Garbled,
    Malformed,
    Misplaced,
    Reason,
    Refused,
    Unreachable,
    UpstreamError,
    is_denied,
    is_unknown_token,
)
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.runtime import Clock
from nacos_proxy.upstream.contract import Sent
from nacos_proxy.upstream.grpc.session import Target
from nacos_proxy.upstream.http.exchange import Headers, HttpClient, HttpPolicy, TlsPolicy, tls_context
from nacos_proxy.upstream.http.transport import FastTransport, TransportPolicy
from nacos_proxy.upstream.nacos.capabilities import ORDER, DialectName
from nacos_proxy.upstream.nacos.dialect_client import NOT_IDEMPOTENT, DialectClient, dialect_clients
from nacos_proxy.upstream.nacos.forwarding import ForwardedRequest, ForwardedResponse, data_id, forward_request
from nacos_proxy.upstream.nacos.login import Credential, LoginPolicy, Session, log_in, token_headers
from nacos_proxy.upstream.nacos.repeats import Begun, Keys, Repeats
from nacos_proxy.upstream.nacos.response_cache import ResponseCache
from nacos_proxy.upstream.nacos.server_monitor import ServerMonitor
from nacos_proxy.upstream.nacos.servers import Server, Servers, ServersPolicy, server_failed
from nacos_proxy.upstream.nacos.udp_receiver import PushReceiver
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos.grpc.payload import GRPC_OFFSET
from nacos_proxy.wire.nacos.login import Login

R = TypeVar("R")

log = logging.getLogger("nacos_proxy.registry")

CACHE_MILLIS = 3000  # `defaultCacheMillis` of 1.x


@dataclass(frozen=True, slots=True)
class NacosPolicy:
    """`dialect`: the only dialect to use, or `auto`. `of_proxy`: the servers are upper proxies, which speak all.
    `uds`: the Unix socket of the upper proxy, if it has one.

    `grpc_port`, if not 0, is the gRPC port of the first server; those of the others have the same distance to their
    HTTP port. Otherwise it is `GRPC_OFFSET`.
    """

    servers: ServersPolicy
    http: HttpPolicy = field(default_factory=HttpPolicy)
    tls: TlsPolicy | None = None
    login: LoginPolicy = field(default_factory=LoginPolicy)
    dialect: Literal["auto", "v1", "v2", "v3"] = "auto"
    grpc_port: int = 0
    of_proxy: bool = False
    uds: str = ""


class NacosRegistry:
    """Implements `Registry`. `unreadable` counts the hosts that were left out of lists, because of invalid data."""

    def __init__(self, policy: NacosPolicy, clock: Clock, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """`transport` is for tests. Raises `ValueError` and `OSError` for an invalid policy."""
        tls = tls_context(policy.tls) if policy.tls is not None else None
        self._policy = policy
        self.of_proxy = policy.of_proxy
        self.clock = clock
        self.servers = Servers(policy.servers)
        self.session = Session(policy.login, clock)
        self.http = HttpClient(policy.http, transport or FastTransport(TransportPolicy(uds=policy.uds), tls))
        dialect = "auto" if policy.of_proxy else policy.dialect
        self.dialect_order: tuple[DialectName, ...] = ORDER if dialect == "auto" else (dialect,)
        self.receiver: PushReceiver | None = None
        self.probe: Call[Any] = Alive() if policy.of_proxy else Metrics()
        self.unreadable = 0
        self._unreadable_hosts: LRUCache[ServiceKey, tuple[str, ...]] = LRUCache(1000)
        self._proxy_id = token_hex(8)
        self.monitor = ServerMonitor(
            self.servers,
            self.http,
            clock,
            probe=lambda server: self.own_client.send_to(server, self.probe),
            read_state=lambda server: ServerClient(self.own_client, server).send(ServerState()),
            receiver=lambda: self.receiver,
            ask_versions=not policy.of_proxy,  # each of many lower proxies would ask the server behind
        )
        self.own_client = AuthenticatedClient(self, None)

    async def send(self, call: Call[R]) -> R:
        """As `Registry.send`, with this proxy's own token."""
        return await self.own_client.send(call)

    def begin(self, call: Call[Any], answered: Callable[[Sent], object]) -> bool:
        """As `Beginner.begin`, with this proxy's own token."""
        return self.own_client.begin(call, answered)

    def acting_as(
        self, credential: Credential, refused: Callable[[Refused], object] = lambda error: None
    ) -> AuthenticatedClient:
        """A client of the same servers with another token and its own response cache.

        It calls `refused` when a server no longer accepts the token.
        """
        return AuthenticatedClient(self, credential, refused)

    async def log_in(self, username: str, password: str) -> Login:
        """Logs a user in at the first server that answers. Raises as `login.log_in`."""
        await self.monitor.ready()
        last: UpstreamError = Unreachable("no server is known", arrived=False)
        for server in self.servers.candidates((username,), self.clock.now()):
            try:
                login, _ = await log_in(username, password, ServerClient(self.own_client, server).ask_without_token)
            except UpstreamError as error:
                if isinstance(error, Refused) and error.reason is Reason.NO_RIGHT:
                    raise
                self.monitor.failed(server, error)
                last = error
                continue
            self.monitor.succeeded(server, None, "login")
            return login
        raise last

    @asynccontextmanager
    async def forward(
        self, method: str, path: str, query: str, headers: list[tuple[bytes, bytes]], body: AsyncIterator[bytes]
    ) -> AsyncGenerator[ForwardedResponse]:
        """The response to a request of another API. `path` is raw and starts after the context path. Raises as
        `forward_request`.
        """
        await self.monitor.ready()
        config, request = await data_id(ForwardedRequest(method, path, query, headers, body))
        # Without a configuration, all requests of one proxy start at the same server. Several proxies use several.
        key = config or self._proxy_id
        servers = self.servers.candidates((key,), self.clock.now(), reading=method == "GET")
        async with forward_request(self.http, servers, self._report_forwarded, request) as response:
            yield response

    def _report_forwarded(self, server: Server, error: UpstreamError | None) -> None:
        if error is None:
            self.monitor.succeeded(server, None, "passed")
        else:
            self.monitor.failed(server, error)

    def grpc_targets(self, key: Hashable) -> Iterator[Target]:
        """The gRPC ports of all servers, in the order in which to try them. One key begins at the same server."""
        if self._policy.uds:
            return
        first = self.servers.candidates((key,), self.clock.now(), reading=True)
        for server in dict.fromkeys((*first, *self.servers.all)):
            address = urlsplit(server.origin)
            host, port = address.hostname or "", address.port or 0
            tls = self._grpc_tls if address.scheme == "https" else None
            if 0 < port + self._grpc_offset <= 65535:
                yield Target(host, port + self._grpc_offset, port, tls, self.http.policy.sni)

    @property
    def _grpc_offset(self) -> int:
        if not self._policy.grpc_port or not self.servers.all:
            return GRPC_OFFSET
        return self._policy.grpc_port - (urlsplit(self.servers.all[0].origin).port or 0)

    @cached_property
    def _grpc_tls(self) -> ssl.SSLContext:
        """The TLS of HTTP, with the protocol of gRPC."""
        context = tls_context(self._policy.tls or TlsPolicy())
        context.set_alpn_protocols(["h2"])
        return context

    def report_unreadable(self, snapshot: Snapshot) -> None:
        """Counts and logs the unreadable hosts of a service, unless they are the same as last time."""
        hosts, key = snapshot.unreadable, snapshot.key
        if not hosts:
            self._unreadable_hosts.pop(key, None)
        elif hosts != self._unreadable_hosts.get(key):
            self._unreadable_hosts[key] = hosts
            self.unreadable += len(hosts)
            log.warning("%s: hosts that cannot be read were left out (%d): %s", key, len(hosts), "; ".join(hosts[:3]))

    def status(self) -> dict[str, Any]:
        """The state of the login and of the servers, ready for JSON, without secrets."""
        login = {"enabled": self.session.enabled, "logins": self.session.logins, "error": self.session.error}
        servers = [
            {
                "url": server.url,
                "state": "up" if server.up else "down",
                "error": server.error,
                "latencyMs": round(server.latency * 1000, 3),
                "version": server.capabilities.version,
                "dialects": server.capabilities.dialects,
                "outcomes": dict(server.outcomes),
            }
            for server in self.servers.all
        ]
        return {"login": login, "servers": servers}

    async def close(self) -> None:
        await self.monitor.close()
        await self.http.transport.aclose()


class AuthenticatedClient:
    """The servers for one credential; None is this proxy's own token. Implements `Registry` and `Beginner`."""

    def __init__(
        self,
        registry: NacosRegistry,
        credential: Credential | None,
        refused: Callable[[Refused], object] = lambda error: None,
    ) -> None:
        """`refused` is called when a server does not accept the token."""
        self.registry = registry
        self.credential = credential
        self._refused = refused
        self._own_headers: tuple[str | None, Headers] = (None, ())
        self.cache = ResponseCache()
        self.dialect_clients = dialect_clients(self.cache, registry.clock, of_proxy=registry.of_proxy)
        self.add_clusters = self.cache.add_clusters
        self._repeats = Repeats(registry.http, registry.monitor, registry.clock.now, _keys)
        self._push_key = token_hex(8)  # proxies spread over the servers

    def begin(self, call: Call[Any], answered: Callable[[Sent], object]) -> bool:
        """As `Beginner.begin`."""
        return self._repeats.begin(self, call, answered)

    async def send(self, call: Call[R], begun: Begun | None = None) -> R:
        """The result, from the first server that does not fail. `begun`: the call was sent to a server already."""
        try:
            return await self._send(call, begun)
        except Refused as error:
            if is_unknown_token(error):
                self._refused(error)
            raise

    async def _send(self, call: Call[R], begun: Begun | None) -> R:
        registry = self.registry
        await registry.monitor.ready()
        keys = _keys(call)
        last: UpstreamError | None = None
        reading = not isinstance(call, Write)
        for server in registry.servers.candidates(keys, registry.clock.now(), reading=reading):
            try:
                result = await self.send_to(server, call, begun)
            except UpstreamError as error:
                if not _lacks_peer(error) and not server_failed(error, reading=reading):
                    raise
                last = error
                if type(call) in NOT_IDEMPOTENT and (error.arrived or isinstance(error, Refused)):
                    break
                continue
            self.note_result(call, result, server, keys)
            return result
        raise last or Unreachable("no server is known", arrived=False)

    async def send_to(self, server: Server, call: Call[R], begun: Begun | None = None) -> R:
        """The result from one server. The outcome counts for the server's health."""
        clock, monitor = self.registry.clock, self.registry.monitor
        begun = begun if begun is not None and begun.server is server else None
        begin = clock.now() if begun is None else begun.at
        try:
            result = await ServerClient(self, server, begun).send(call)
        except Refused as error:
            if not _lacks_peer(error) and server_failed(error, reading=not isinstance(call, Write)):
                monitor.failed(server, error)
            else:
                monitor.succeeded(server, None, "refused")
            raise
        except UpstreamError as error:
            if isinstance(error, Garbled) and error.answered:  # other calls may still work
                server.count("Garbled")
            else:
                monitor.failed(server, error)
            raise
        monitor.succeeded(server, clock.now() - begin)
        return result

    def first_server(self, keys: Keys) -> Server | None:
        registry = self.registry
        registry.monitor.start_due()
        return registry.servers.first(keys, registry.clock.now())

    def token_headers(self) -> Headers | None:
        if self.credential is not None:
            return self.credential.headers
        token = self.registry.session.held()
        return None if token is None else self.own_headers(token)

    def own_headers(self, token: str) -> Headers:
        """Those of this proxy's own calls: the token and the identity. The same object for the same token."""
        if self._own_headers[0] != token:
            identity = self.registry.http.policy.identity
            self._own_headers = token, token_headers(token) + ((identity,) if identity is not None else ())
        return self._own_headers[1]

    def worked_dialect(self, server: Server, call: Call[Any]) -> DialectClient | None:
        name = server.capabilities.dialects_for(call, self.registry.dialect_order)[0]
        return self.dialect_clients[name] if server.capabilities.has_worked(name, type(call)) else None

    def note_result(self, call: Call[Any], result: Any, server: Server, keys: Keys) -> None:
        registry = self.registry
        if isinstance(call, Fetch):
            registry.report_unreadable(result)
        elif isinstance(call, (Register, Beat)):
            cluster = call.instance.cluster if isinstance(call, Register) else call.cluster
            self.cache.add_clusters(call.service, (cluster,))
            for key in keys:
                registry.servers.pin(key, server, registry.clock.now())
        elif isinstance(call, Deregister):
            registry.servers.unpin(keys[0])

    def grpc_targets(self) -> Iterable[Target]:
        """As `NacosRegistry.grpc_targets`, always in the same order while no server goes down."""
        return self.registry.grpc_targets(self._push_key)

    async def grpc_headers(self, refused: Mapping[str, str] | None = None) -> Mapping[str, str]:
        """The headers of payloads that carry the token and, if it is our own, the server identity.

        `refused`: the headers that a server has just refused; if they have our own token, logs in again. Raises
        `UpstreamError`.
        """
        registry, identity = self.registry, self.registry.http.policy.identity
        if self.credential is not None:
            return {"accessToken": self.credential.token} if self.credential.token else {}
        headers, session = dict([identity] if identity is not None else ()), registry.session
        if not session.enabled:
            return headers
        await registry.monitor.ready()
        last: UpstreamError = Unreachable("no server is known", arrived=False)
        for server in registry.servers.candidates((self._push_key,), registry.clock.now(), reading=True):
            ask = ServerClient(self, server).ask_without_token
            try:
                token = await session.token(server.url, ask)
                if refused is not None and token == refused.get("accessToken", ""):
                    token = await session.renew(token, server.url, ask)
            except UpstreamError as error:
                if is_denied(error):
                    raise
                last = error
                continue
            return {**headers, "accessToken": token} if token else headers
        raise last

    def lists_disabled(self, key: ServiceKey) -> bool:
        """Whether a fetch also lists disabled instances: only the admin API of v3 does."""
        registry, now = self.registry, self.registry.clock.now()
        if now < self.cache.admin_refused_until:
            return False
        order, call = registry.dialect_order, Fetch(key)
        return any(server.capabilities.dialects_for(call, order)[0] == "v3" for server in registry.servers.all)

    async def close(self) -> None:
        """Does nothing, because the connections belong to the registry."""


@dataclass(frozen=True, slots=True)
class ServerClient:
    """One server for one credential. Implements `dialect_client.Client`.

    `begun`: the call that was sent to this server already.
    """

    client: AuthenticatedClient
    server: Server
    begun: Begun | None = None

    async def send(self, call: Call[R]) -> R:
        """The result, in the first dialect in which the server offers the call. Refused dialects are remembered."""
        capabilities, kind = self.server.capabilities, type(call)
        tried: set[str] = set()
        gone: Refused | None = None
        while (name := self._next_dialect(call, tried)) is not None:
            tried.add(name)
            try:
                result = await self._execute(self.client.dialect_clients[name], call)
            except Refused as refused:
                if refused.reason is not Reason.GONE:
                    raise
                gone = refused
                if capabilities.gone(name, kind):
                    url, call_name = self.server.url, kind.__name__
                    log.warning("%s no longer offers %s in %s: it has another version now", url, call_name, name)
                continue
            capabilities.worked(name, kind)
            return result
        raise gone or Refused(Reason.GONE, f"no dialect of {self.server.url} has {kind.__name__}", status=501)

    def _next_dialect(self, call: Call[Any], tried: set[str]) -> DialectName | None:
        for name in self.server.capabilities.dialects_for(call, self.client.registry.dialect_order):
            if name not in tried and self.client.dialect_clients[name].can_execute(call):
                return name
        return None

    async def _execute(self, dialect_client: DialectClient, call: Call[R]) -> R:
        try:
            return await dialect_client.execute(self, call)
        except Malformed as error:
            if isinstance(error, Misplaced):  # it answers another request, as will the next replies on this connection
                self.client.registry.http.renew(self.server.origin)
            raise Garbled(f"{self.server.origin}: the answer cannot be read: {error}", answered=True) from error

    async def ask(self, request: HttpRequest, *, idempotent: bool = True) -> HttpReply:
        """Sends a request with the token. If our own token is refused, logs in and sends the request again.

        `idempotent`: the request may be sent twice.
        """
        http, server = self.client.registry.http, self.server
        return await self._with_token(
            lambda headers: http.send(
                server.origin,
                server.context,
                request,
                headers,
                idempotent=idempotent,
                begun=None if self.begun is None else self.begun.take(request, headers),
            )
        )

    async def ask_proxy(self, request: HttpRequest, wanted: Container[str]) -> HttpReply:
        """As `ask`, for a request to an upper proxy's own API, which is outside the context path."""
        http, origin = self.client.registry.http, self.server.origin
        return await self._with_token(
            lambda headers: http.send(origin, "", request, headers, idempotent=True, wanted=wanted)
        )

    async def _with_token(self, send: Callable[[Headers], Awaitable[HttpReply]]) -> HttpReply:
        credential, session = self.client.credential, self.client.registry.session
        if credential is not None:
            return await send(credential.headers)
        token = await session.token(self.server.url, self.ask_without_token)
        reply = await send(self.client.own_headers(token))
        if reply.status in (401, 403) and session.enabled:
            renewed = await session.renew(token, self.server.url, self.ask_without_token)
            if renewed != token:
                reply = await send(self.client.own_headers(renewed))
        return reply

    async def ask_without_token(self, request: HttpRequest) -> HttpReply:
        return await self.client.registry.http.send(self.server.origin, self.server.context, request, idempotent=True)

    def with_push_address(self, key: ServiceKey, request: HttpRequest) -> tuple[HttpRequest, int | None]:
        """Makes our own list request of v1 subscribe to UDP push. Also returns the `cacheMillis` to show, or None.

        Nacos 1.x tells subscribers to cache for 10 s (seen with 1.4.8), but our clients do not get its pushes.
        """
        receiver = self.client.registry.receiver
        if receiver is None or self.client.credential is not None:
            return request, None
        subscribing = receiver.with_push_address(self.server, key, request)
        subscribes = subscribing is not request and self.server.capabilities.version.startswith("1.")
        return subscribing, CACHE_MILLIS if subscribes else None


def _lacks_peer(error: UpstreamError) -> bool:
    """Whether the server is well, but could not reach another node that it needed."""
    return isinstance(error, Refused) and error.reason is Reason.NO_PEER


def _keys(call: Call[Any]) -> Keys:
    """The instance and the service of a call, the most specific first."""
    match call:
        case Register():
            return ((call.service, call.instance.ip, call.instance.port), call.service)
        case Deregister() | Beat() | Update() | SetHealth() | GetInstance():
            return ((call.service, call.ip, call.port), call.service)
        case Fetch() | BatchMetadata() | GetService() | CreateService() | UpdateService() | DeleteService():
            return (call.service,)
        case _:
            return ()
