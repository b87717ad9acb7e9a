"""A registry that is real Nacos, or r-nacos, behind HTTP: servers, dialects and login joined into one `send`.

Not for: what clients see (`catalog`), formats (`wire`), how a fetch is made whole (`speech`). It runs no timer: what is
due (a probe, the address server's list, a server's version) is started beside the next call.

    a call that failed     | goes to the next server
    -----------------------+----------------------------------------------------------------------------------
    did not arrive         | always
    may have arrived       | where the second time says the same: all but creating and deleting a service
    refused, 502 to 504    | the same; a read also after 500
    refused for a peer     | the same: the node asked one that is gone or has just come back
    refused otherwise      | never
    refused as gone        | stays, and is spoken in the next dialect
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Coroutine, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any, Literal, TypeVar

import httpx
from cachetools import LRUCache

from nacos_proxy.model.calls import (
    BatchMetadata,
    Beat,
    BeatResult,
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
    Busy,
    Garbled,
    ProxyError,
    Reason,
    Refused,
    Unreachable,
    UpstreamError,
)
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.runtime import Clock, spawn, stop
from nacos_proxy.upstream.contract import Registry
from nacos_proxy.upstream.http.exchange import (
    Http,
    HttpPolicy,
    TlsPolicy,
    tls_context,
)
from nacos_proxy.upstream.http.transport import FastTransport, TransportPolicy
from nacos_proxy.upstream.nacos.capabilities import ORDER, DialectName
from nacos_proxy.upstream.nacos.dialect_client import ONCE, dialect_clients
from nacos_proxy.upstream.nacos.forwarding import ForwardedResponse, passing, subject
from nacos_proxy.upstream.nacos.login import (
    Ask,
    Credential,
    LoginPolicy,
    Session,
)
from nacos_proxy.upstream.nacos.response_cache import ResponseCache, ResponseCachePolicy
from nacos_proxy.upstream.nacos.server_client import ServerClient
from nacos_proxy.upstream.nacos.servers import (
    Server,
    Servers,
    ServersPolicy,
    failing,
    parse_addresses,
)
from nacos_proxy.upstream.nacos.udp_receiver import PushReceiver

R = TypeVar("R")

log = logging.getLogger("nacos_proxy.registry")

MEET_AGAIN = 30.0  # seconds until a UDP push that could not be had is tried again


@dataclass(frozen=True, slots=True)
class NacosPolicy:
    """`dialect` other than `auto` is the only one that is spoken."""

    servers: ServersPolicy
    http: HttpPolicy = field(default_factory=HttpPolicy)
    tls: TlsPolicy | None = None
    transport: TransportPolicy = field(default_factory=TransportPolicy)
    login: LoginPolicy = field(default_factory=LoginPolicy)
    response_cache: ResponseCachePolicy = field(default_factory=ResponseCachePolicy)
    dialect: Literal["auto", "v1", "v2", "v3"] = "auto"


class NacosRegistry:
    """Implements `Registry`. `servers`, `session` and `unreadable` (hosts left out) are what operators want to know."""

    def __init__(self, policy: NacosPolicy, clock: Clock, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """`transport` is for tests; else it is made from the policy. Raises `ValueError` and `OSError` for bad ones."""
        tls = tls_context(policy.tls) if policy.tls is not None else None
        self.servers = Servers(policy.servers)
        self.session = Session(policy.login, clock)
        self.order: tuple[DialectName, ...] = ORDER if policy.dialect == "auto" else (policy.dialect,)
        self.policy = policy
        self.clock = clock
        self.http = Http(policy.http, transport or FastTransport(policy.transport, tls))
        self._voice = AuthenticatedClient(self, None)
        self._listed_at = float("-inf")
        self._listing: asyncio.Task[None] | None = None
        self._beside: set[asyncio.Task[None]] = set()
        self._closed = False
        self.receiver: PushReceiver | None = None
        self._meeting: set[str] = set()
        self.unreadable = 0
        self._odd: LRUCache[ServiceKey, tuple[str, ...]] = LRUCache(1000)
        self._drawn = token_hex(8)  # where calls start that are about nothing: else all proxies would choose the same
        self.servers.on_up.append(self._came)
        self.servers.on_down.append(self._went)

    async def send(self, call: Call[R]) -> R:
        """As `Registry.send`, with this proxy's own login."""
        return await self._voice.send(call)

    def acting_as(self, credential: Credential) -> Registry:
        """The same servers for a client that shows its own token: nothing that others were shown is used for it."""
        return AuthenticatedClient(self, credential)

    def asks_plainly(self, server: Server) -> Ask:
        """What asks a server without any token, as a login is asked for."""
        return self._voice.line(server).ask_plainly

    def hint(self, key: ServiceKey, clusters: Collection[str]) -> None:
        """Clusters of a service that were heard of elsewhere, for servers that list only what they are asked for."""
        if clusters:
            self._voice.memory.saw(key, clusters)

    @asynccontextmanager
    async def forward(
        self, method: str, path: str, query: str, headers: list[tuple[bytes, bytes]], body: AsyncIterator[bytes]
    ) -> AsyncGenerator[ForwardedResponse]:
        """The answer to what is passed through. `path` is raw and starts behind the context path.

        Raises `BadCall` for what would leave the context path, else `UpstreamError`s.
        """
        await self.ready()
        about, body = await subject(query, headers, body)
        call = (method, path, query, headers, body)
        servers = self.servers.candidates((about or self._drawn,), self.clock.now(), reading=method == "GET")
        async with passing(self.http, servers, self._passed, call) as reply:
            yield reply

    def status(self) -> dict[str, Any]:
        """What operators want to know, ready for JSON, without secrets. Latencies in milliseconds."""
        session = self.session
        login = {"enabled": session.enabled, "logins": session.logins, "error": session.error}
        return {"login": login, "servers": [_status(server) for server in self.servers.all]}

    async def close(self) -> None:
        self._closed = True
        for task in tuple(self._beside):
            await stop(task)
        await self.http.transport.aclose()

    # beside the calls

    async def ready(self) -> None:
        """Returns when there is a server to ask; waits for the address server where none is known yet."""
        self.tend()
        if not self.servers.all and self.policy.servers.endpoint:
            if self._listing is None or self._listing.done():
                self._listing = self._spawn(self._list(), "address server")
            if self._listing is not None:
                await asyncio.wait([self._listing])

    def tend(self) -> None:
        """Starts what is due: the address server's list, probes."""
        now = self.clock.now()
        servers, policy = self.servers, self.policy.servers
        if policy.endpoint and servers.all and now - self._listed_at >= policy.endpoint_every:
            self._listed_at = now
            self._spawn(self._list(), "address server")
        for server in servers.to_probe(now):
            server.probing = True
            self._spawn(self._probe(server), "probe")

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None] | None:
        if self._closed:
            work.close()
            return None
        task = spawn(work, name=f"{name} of the upstream")
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)
        return task

    async def _list(self) -> None:
        policy = self.policy.servers
        self._listed_at = self.clock.now()
        try:
            reply = await self.http.get(policy.endpoint)
        except ProxyError as error:
            log.warning("the address server cannot be asked: %s", error)
            return
        found = parse_addresses(reply.body, policy.context_path) if reply.status == 200 else []
        if not found:
            log.warning("the address server named no server (status %d)", reply.status)
        self.servers.replace(found)

    async def _probe(self, server: Server) -> None:
        try:
            await self._voice.on(server, Metrics())
        except ProxyError as error:
            log.debug("probe of %s: %s", server.url, error)
        finally:
            server.probing = False

    async def _ask_version(self, server: Server) -> None:
        """Every version tells in one dialect; r-nacos in none, which is no matter. No answer: it is asked again."""
        try:
            server.spoken.told(await self._voice.line(server).send(ServerState()))
        except ProxyError as error:
            log.debug("%s does not tell its version: %s", server.url, error)
            if not isinstance(error, Refused):
                server.spoken.asked_at = float("-inf")

        else:
            await self._subscribe(server)

    async def _subscribe(self, server: Server) -> None:
        """To its UDP push, as soon as that can be; what prevents it may pass. One at a time tries for each server."""
        if self.receiver is None or server.origin in self._meeting:
            return
        told = ""
        self._meeting.add(server.origin)
        try:
            while server in self.servers.all:
                try:
                    return await self.receiver.meet(server)
                except OSError as error:
                    if str(error) != told:
                        told = str(error)
                        log.warning("no UDP push from %s: %s; polling keeps time", server.origin, error)
                await self.clock.sleep_until(self.clock.now() + MEET_AGAIN)
        finally:
            self._meeting.discard(server.origin)

    # outcomes

    def _came(self, server: Server) -> None:
        server.spoken.forget()  # back after an outage it may be another version
        if len(self.servers.all) > 1:
            log.warning("node %s is back: %d of %d are up", server.url, len(self.servers.up), len(self.servers.all))

    def _went(self, server: Server) -> None:
        if len(self.servers.all) > 1:
            up, number = len(self.servers.up), len(self.servers.all)
            log.warning("node %s is down: %d of %d are up: %s", server.url, up, number, server.error)

    def left_out(self, snapshot: Snapshot) -> None:
        """Counts and tells of hosts that cannot be read, once for as long as a service has the same."""
        found, key = snapshot.unreadable, snapshot.key
        if not found:
            self._odd.pop(key, None)
        elif found != self._odd.get(key):
            self._odd[key] = found
            self.unreadable += len(found)
            log.warning("%s: left out what cannot be read of its hosts, %d: %s", key, len(found), "; ".join(found[:3]))

    def succeeded(self, server: Server, seconds: float | None, outcome: str = "ok") -> None:
        now = self.clock.now()
        server.count(outcome)
        self.servers.succeeded(server, now, seconds)
        if server.spoken.asked_at == float("-inf"):
            server.spoken.asked_at = now
            self._spawn(self._ask_version(server), "version")

    def failed(self, server: Server, error: UpstreamError) -> None:
        server.count(type(error).__name__)
        if not isinstance(error, Busy):  # our own queue was too long: of the server it tells nothing
            self.servers.failed(server, self.clock.now(), error)

    def _passed(self, server: Server, error: UpstreamError | None) -> None:
        if error is None:
            self.succeeded(server, None, "passed")
        else:
            self.failed(server, error)


def _status(server: Server) -> dict[str, Any]:
    return {
        "url": server.url,
        "state": "up" if server.up else "down",
        "error": server.error,
        "latencyMs": round(server.latency * 1000, 3),
        "version": server.spoken.version,
        "dialects": server.spoken.dialects,
        "outcomes": dict(server.outcomes),
    }


class AuthenticatedClient:
    """A `Registry` over shared servers with one set of rights: this proxy's own, or a client's."""

    def __init__(self, registry: NacosRegistry, credential: Credential | None) -> None:
        self.registry = registry
        self.credential = credential
        self.memory = ResponseCache(registry.policy.response_cache)
        self.dialect_clients = dialect_clients(self.memory, registry.clock)

    async def send(self, call: Call[R]) -> R:
        registry = self.registry
        await registry.ready()
        keys = _keys(call)
        last: UpstreamError | None = None
        reading = not isinstance(call, Write)
        for server in registry.servers.candidates(keys, registry.clock.now(), reading=reading):
            try:
                result = await self.on(server, call)
            except UpstreamError as error:
                refused = isinstance(error, Refused)
                if not _elsewhere(error) and not failing(error, reading=reading):
                    raise
                last = error
                if _once(call) and (error.arrived or refused):
                    break
                continue
            self._note(call, result, server, keys)
            return result
        raise last or Unreachable("no server is known", arrived=False)

    async def on(self, server: Server, call: Call[R]) -> R:
        """A call on one server; how it went is noted with it."""
        registry = self.registry
        begin = registry.clock.now()
        try:
            result = await self.line(server).send(call)
        except Refused as error:
            if not _elsewhere(error) and failing(error, reading=not isinstance(call, Write)):
                registry.failed(server, error)
            else:
                registry.succeeded(server, None, "refused")
            raise
        except UpstreamError as error:
            if isinstance(error, Garbled) and error.answered:  # of one thing asked: it may well do all else
                server.count("Garbled")
            else:
                registry.failed(server, error)
            raise
        registry.succeeded(server, registry.clock.now() - begin)
        return result

    def line(self, server: Server) -> ServerClient:
        registry = self.registry
        http, session = registry.http, registry.session
        return ServerClient(
            server, http, self.dialect_clients, registry.order, session, self.credential, registry.receiver
        )

    def _note(self, call: Call[Any], result: object, server: Server, keys: tuple[Hashable, ...]) -> None:
        match call:
            case Register():
                self.memory.saw(call.service, (call.instance.cluster,))
            case Beat() if isinstance(result, BeatResult):
                self.memory.saw(call.service, (call.cluster,))
            case Fetch() if isinstance(result, Snapshot):
                self.registry.left_out(result)
                return
            case Deregister():
                self.registry.servers.forget(keys[0])
                return
            case _:
                return
        for key in keys:
            self.registry.servers.keep(key, server, self.registry.clock.now())

    async def close(self) -> None:
        """Nothing of its own to close."""


def _elsewhere(error: UpstreamError) -> bool:
    """Whether it is a peer of the server that is in trouble."""
    return isinstance(error, Refused) and error.reason is Reason.NO_PEER


def _once(call: object) -> bool:
    return isinstance(call, ONCE)


def _keys(call: Call[Any]) -> tuple[Hashable, ...]:
    """What a call is about, the closest first: an instance, its service."""
    match call:
        case Register():
            return ((call.service, call.instance.ip, call.instance.port), call.service)
        case Deregister() | Beat() | Update() | SetHealth() | GetInstance():
            return ((call.service, call.ip, call.port), call.service)
        case Fetch() | BatchMetadata() | GetService() | CreateService() | UpdateService() | DeleteService():
            return (call.service,)
        case _:
            return ()
