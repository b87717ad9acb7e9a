"""The ASGI app of the whole program, and `run`, which serves it as a process."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from nacos_proxy import __version__
from nacos_proxy.app.components import Components, build, build_tenant, finish, start, start_udp
from nacos_proxy.app.credentials import ClientCredentials
from nacos_proxy.app.failures import BadSettings, CannotStart
from nacos_proxy.app.grpc_access import GrpcAccess
from nacos_proxy.app.listening import Listening, acceptors, check_exposure, unlink_own
from nacos_proxy.app.logs import announce, log_access
from nacos_proxy.app.operator_view import EMBEDDED
from nacos_proxy.app.policies import grpc_policy, guard_policy
from nacos_proxy.app.process import Server, max_open_files
from nacos_proxy.app.router import Router, TenantApp, apply_settings, with_access_control
from nacos_proxy.app.setting_types import unix_path
from nacos_proxy.app.settings import Loaded, Settings
from nacos_proxy.app.tenants import Tenants, TenantsPolicy
from nacos_proxy.background.state_file import StateLocked
from nacos_proxy.fastpath.limits import ConnectionLimits, make_limited
from nacos_proxy.fastpath.protocol import make_protocol
from nacos_proxy.fastpath.tls import make_tls
from nacos_proxy.fastpath.writes import KnownWrites
from nacos_proxy.frontends.answers import send_reply
from nacos_proxy.frontends.auth import AccessControl
from nacos_proxy.frontends.discovery.agent_check import AgentCheck
from nacos_proxy.frontends.dns.server import Listeners
from nacos_proxy.frontends.grpc.fuzzy_watch import FuzzyWatches
from nacos_proxy.frontends.grpc.server import GrpcServer
from nacos_proxy.frontends.grpc.tunnel import GrpcTunnels
from nacos_proxy.frontends.request_log import RequestLog
from nacos_proxy.frontends.requests import path_of
from nacos_proxy.model.errors import BadCall, ProxyError, Refused, Unreachable, Violation
from nacos_proxy.model.limits import LENIENT, NACOS, Rules
from nacos_proxy.model.masking import shown_origin
from nacos_proxy.model.services import Snapshot
from nacos_proxy.request_context import current_request, loop_in
from nacos_proxy.runtime import SystemClock
from nacos_proxy.upstream.grpc.tunnel import Dialer
from nacos_proxy.upstream.nacos.registry import NacosRegistry
from nacos_proxy.upstream.nacos.rights import AcceptedCredential, accept_account, accept_token
from nacos_proxy.wire.nacos.base import ReadService

if TYPE_CHECKING:
    from nacos_proxy.app.traces import Traces

log = logging.getLogger("nacos_proxy.server")

# Seconds. Nacos clients send heartbeats every 5 s and list every 10 s. uvicorn's default of 5 s would close a
# connection just when the next heartbeat comes.
KEEP_ALIVE = 30

YOUNG_OBJECTS = 10_000  # until a garbage collection: more than a burst of requests holds, and Python's 700 are less


class App:
    """The ASGI app: fast path, guard, then the router of the proxy itself or of the client's tenant."""

    def __init__(self, components: Components, traces: Traces | None = None) -> None:
        self.components = components
        self.traces = traces
        self.router = Router(components, self._lifespan)
        self.tenants: Tenants | None = None
        s = components.settings
        if s.auth == "client" and isinstance(components.registry, NacosRegistry):
            self.tenants = Tenants(
                UpstreamAuthenticator(components, components.registry, self.router),
                TenantsPolicy(wait=s.cold_wait, max_form=s.max_body),
                components.clock,
                components.agent.supervisor,
                components.tenant_counts,
            )
            self.router.passthrough.on_login = self.tenants.trust
        self.guard, entry = with_access_control(self.router, self._route, guard_policy(s), components)
        begin, access_log = None if traces is None else traces.begin, log_access if s.access_log else None
        self._entry = RequestLog(entry, components.clock.now, path_of, begin, access_log)
        times, now = components.request_times, components.clock.now
        self.writes: KnownWrites | None = None
        if begin is None and self.tenants is None:  # a trace and a tenant belong to one request
            self.writes = KnownWrites(self._rules, lambda route, status, took: times[route, status].add(took), now)
        self.grpc_listener: tuple[socket.socket, ssl.SSLContext | None] | None = None
        self.dns_listeners: Sequence[Listeners] = ()
        dialer = _dialer(components)
        tunnels = GrpcTunnels(dialer, self.guard)
        self.grpc = components.grpc = GrpcServer(
            grpc_policy(s, max_open_files()),
            components.clock,
            components.agent.supervisor,
            admit=GrpcAccess(self.guard, components, self.tenants).admit,
            tunnels=tunnels,
            fuzzy=_fuzzy_watches(components, self.guard, dialer, tunnels),
            rules=self._rules,
            begin=begin,
            log=access_log,
        )
        self.agent_check_listener: socket.socket | None = None

    def _rules(self) -> Rules:
        return NACOS if self.components.checks() else LENIENT

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncGenerator[None]:
        dns = self.components.dns
        await start(self.components)
        try:
            if self.grpc_listener is not None:
                await self.grpc.start(*self.grpc_listener)
            if self.agent_check_listener is not None:
                self.components.agent_check = AgentCheck(self.components.agent, self._rules)
                await self.components.agent_check.start(self.agent_check_listener)
            if dns is not None:
                await dns.start(self.dns_listeners)
            yield
        finally:
            if dns is not None:
                await dns.stop()
            await self.grpc.stop()
            if self.components.agent_check is not None:
                await self.components.agent_check.stop()
            if self.tenants is not None:
                await self.tenants.close()
            await finish(self.components)
            if self.traces is not None:
                await asyncio.to_thread(self.traces.close)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._entry(scope, receive, send)
        else:
            await self.router.rest(scope, receive, send)

    def end_streams(self) -> None:
        """Ends what lasts before the process stops: event streams, whose subscribers learn when to reconnect; gRPC."""
        self.components.events.close()
        self.components.drainer.end_waits()
        self.grpc.drain()
        if self.tenants is not None:
            self.tenants.end_streams()

    def reload(self, settings: Settings) -> None:
        apply_settings(self.guard, self.components.response_table, settings)
        if self.writes is not None:
            self.writes.clear()
        self.components.service_files.reload()
        log.info("reloaded the API tokens, the allowed hosts and the log level; other settings need a restart")

    def _loop(self) -> str:
        """Why the request is refused for the proxies that it has passed. Prepared answers need no check."""
        request, upstream = current_request(), self.components.registry
        if request is None or not request.hops:
            return ""
        return loop_in(request.hops, upstream.http.hop if isinstance(upstream, NacosRegistry) else "")

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        if why := self._loop():
            error = BadCall("", Violation.OTHER, why, status=508)
            await send_reply(send, self.router.refuse(scope, error), head_only=scope["method"] == "HEAD")
            return
        if self.tenants is None or not self.router.is_per_tenant(scope):
            await self.router(scope, receive, send)
            return
        try:
            request = await self.tenants.admit(scope, receive)
        except ProxyError as error:
            await send_reply(send, self.router.refuse(scope, error), head_only=scope["method"] == "HEAD")
            return
        try:
            await (request.app or self.router)(request.scope, request.receive, send)
        finally:
            request.release()


@dataclass(frozen=True, slots=True)
class UpstreamAuthenticator:
    """The `Authenticator` that asks the upstream. It does not ask while the breaker counts the upstream as down."""

    components: Components
    upstream: NacosRegistry
    router: Router

    async def authenticate(self, credentials: ClientCredentials) -> AcceptedCredential | None:
        breaker = self.components.agent.catalog.breaker
        if not breaker.up:
            raise Unreachable(breaker.reason, arrived=False)
        if credentials.password:
            return await accept_account(self.upstream, credentials.username, credentials.password)
        return await accept_token(self.upstream, credentials.token, credentials.namespace)

    async def open(self, granted: AcceptedCredential, refused: Callable[[Refused], None]) -> AccountTenant:
        components = build_tenant(self.components, self.upstream, granted.credential, refused)
        await start(components)
        return AccountTenant(components, self.router)


def _dialer(components: Components) -> Dialer | None:
    """To the upstream's gRPC ports. None on the embedded registry."""
    upstream = components.registry
    if not isinstance(upstream, NacosRegistry):
        return None

    def absent() -> str:
        versions = [server.capabilities.version for server in upstream.servers.all]
        old = bool(versions) and all(version.startswith("1.") for version in versions)
        return f"Nacos {versions[0]} has none" if old else ""

    return Dialer(upstream.grpc_targets, ready=upstream.monitor.ready, absent=absent)


def _fuzzy_watches(
    components: Components, guard: AccessControl, dialer: Dialer | None, tunnels: GrpcTunnels
) -> FuzzyWatches | None:
    """Only servers of 3.x and later have fuzzy watch. With auth = client, only the clients' own tokens count."""
    upstream = components.registry
    if dialer is None or not isinstance(upstream, NacosRegistry):
        return None

    def offered() -> bool:
        versions = [server.capabilities.version.partition(".")[0] for server in upstream.servers.all]
        return bool(versions) and all(version.isdecimal() and int(version) >= 3 for version in versions)

    headers = None if components.settings.auth == "client" else upstream.own_client.grpc_headers
    clock, supervisor = components.clock, components.agent.supervisor
    return FuzzyWatches(dialer, guard, offered, headers, clock, supervisor, tunnels.tunnels, tunnels.bytes)


class AccountTenant:
    """The `Tenant` of one account."""

    def __init__(self, components: Components, router: Router) -> None:
        self.components = components
        self._starting_udp: asyncio.Task[None] | None = None
        self.app: ASGIApp = TenantApp(router, components, self._listed if components.udp else None)

    def _listed(self, call: ReadService, snapshot: Snapshot) -> None:
        """Opens the socket for UDP push at the first list that asks for it."""
        components = self.components
        if call.push is None or components.udp is None:
            return
        if self._starting_udp is None:
            self._starting_udp = components.agent.supervisor.once(start_udp(components), name="udp push of a tenant")
        components.udp.listed(call, snapshot)

    @property
    def busy(self) -> bool:
        return (
            self.components.events.readers > 0
            or len(self.components.health_checker) + self.components.drainer.active > 0
        )

    @property
    def last_read(self) -> float:
        return max((entry.last_read for entry in self.components.agent.catalog.cache.entries()), default=-math.inf)

    def end(self, error: Refused | None) -> None:
        if error is not None:
            self.components.response_table.clear()
            self.components.events.refuse(error)
        self.components.events.close()
        self.components.drainer.end_waits()

    async def close(self) -> None:
        if self._starting_udp is not None:
            await asyncio.wait([self._starting_udp])
        await finish(self.components)


def uvicorn_config(app: App, s: Settings, tls: ssl.SSLContext | None = None) -> uvicorn.Config:
    """How uvicorn serves the app, with our protocol classes."""
    table, now = app.components.response_table, app.components.clock.now
    limits = ConnectionLimits(s.max_head, max_connections=s.max_connections)
    log = log_access if s.access_log else None
    fast = s.fast_path
    protocol = make_protocol(table, now, limits, log, app.writes) if fast else make_limited(limits, log)
    return uvicorn.Config(
        app,
        http=protocol if tls is None else make_tls(protocol, tls),
        loop="auto",
        lifespan="on",
        log_config=None,
        access_log=False,  # `RequestLog` has one that knows more
        server_header=False,
        proxy_headers=False,  # limits count by address, so a client must not choose its own
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=None if math.isinf(s.drain_timeout) else math.ceil(s.drain_timeout),
        ws="none",
    )


def run(loaded: Loaded, listening: Listening) -> int:
    """Serves until a signal stops it; returns the exit code. Raises `CannotStart`, and closes the sockets then."""
    settings = loaded.settings
    try:
        app = App(build(settings, SystemClock()), _traces(settings))
    except (BadSettings, CannotStart, StateLocked, ValueError, OSError) as error:
        listening.close()
        raise CannotStart(_why(error, settings)) from error
    app.agent_check_listener = listening.agent_check
    app.dns_listeners = listening.dns
    app.grpc_listener = None if listening.grpc is None else (listening.grpc, listening.grpc_tls)
    app.grpc.off = listening.no_grpc
    if settings.grpc and listening.grpc is None:
        log.warning("no gRPC for Nacos SDKs: %s", listening.no_grpc)

    persistence = app.components.persistence
    announce(banner(settings, persistence.directory if persistence else None), settings.log_format)

    def ready() -> None:
        gc.freeze()  # no collection visits what the start has made, most of which lasts as long as the process
        gc.set_threshold(YOUNG_OBJECTS)
        gc.enable()
        lines = listening.lines(settings)
        announce("\n".join(lines), settings.log_format)

    def reload() -> None:
        reload_safely(app, loaded, listening.reachable)

    def stopping() -> None:
        app.end_streams()
        unlink_own(listening.http)

    server = Server(
        uvicorn_config(app, settings, listening.tls), ready, stopping, reload, app.components.agent.supervisor
    )
    server.run(sockets=acceptors(listening.http))
    return 0 if server.started else 1


def _why(error: Exception, s: Settings) -> str:
    """What an operator is told of a failed start."""
    if isinstance(error, OSError) and error.filename and Path(error.filename).is_relative_to(s.state_dir):
        return f"state_dir {s.state_dir} cannot be used: {error.strerror}; correct its owner, or choose another"
    return str(error)


def _traces(s: Settings) -> Traces | None:
    """Raises `CannotStart` if OpenTelemetry is not installed. Without the setting, it is not imported."""
    if not s.traces:
        return None
    try:
        from nacos_proxy.app.traces import Traces, exporter
    except ImportError as error:
        raise CannotStart(
            f"traces is set, but OpenTelemetry is not installed ({error}): install the extra otel, "
            "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http, or unset traces"
        ) from error
    return Traces(exporter(s.traces))


def banner(s: Settings, directory: Path | None) -> str:
    """The first lines that `serve` prints: version, upstream, where the state is kept."""
    upstream = ", ".join(map(_shown_upstream, s.upstream)) or f"the servers that {shown_origin(s.endpoint)} lists"
    if s.embedded:
        upstream = f"{EMBEDDED}; name one with --upstream"
    state = "not kept (disk = false)" if directory is None else str(directory)
    return f"nacos-proxy {__version__}\nupstream: {upstream}\nstate: {state}"


def _shown_upstream(url: str) -> str:
    """With the path of a Unix socket; other paths may hold secrets."""
    return url if unix_path(url) else shown_origin(url)


def reload_safely(app: App, loaded: Loaded, listeners: Sequence[socket.socket]) -> None:
    """On invalid settings, or if every token would vanish: log it and keep the old ones."""
    try:
        settings = loaded.reload().settings
        check_exposure(settings, listeners)
        if app.guard.policy.tokens and not settings.read_tokens():
            raise CannotStart("there is no API token any more; to serve without tokens, restart the proxy")
    except (BadSettings, CannotStart) as error:
        log.error("not reloaded: %s", error)
        return
    app.reload(settings)
