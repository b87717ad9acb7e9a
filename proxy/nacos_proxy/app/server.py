"""The whole program as one ASGI app, and the process that serves it.

Not for: rules of freshness, of a dialect, of a route; the making of the parts (`parts`); sockets and signals
(`serving`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from nacos_proxy import __version__
from nacos_proxy.app.components import (
    Components,
    build,
    build_tenant,
    finish,
    start,
    start_udp,
)
from nacos_proxy.app.credentials import Shown
from nacos_proxy.app.operator_view import EMBEDDED
from nacos_proxy.app.policies import loopback
from nacos_proxy.app.process import (
    CannotStart,
    ListenAddress,
    Server,
    beyond_loopback,
    sockets,
    tls_context,
    unlink_own,
    url_of,
)
from nacos_proxy.app.router import (
    Router,
    TenantApp,
    guarded,
    obey,
)
from nacos_proxy.app.settings import BadSettings, Loaded, Settings
from nacos_proxy.app.tenants import Tenants, TenantsPolicy
from nacos_proxy.background.state_lock import StateLocked
from nacos_proxy.fastpath.limits import ConnectionLimits, make_limited
from nacos_proxy.fastpath.protocol import make_protocol
from nacos_proxy.fastpath.table import ResponseTable
from nacos_proxy.fastpath.tls import make_tls
from nacos_proxy.frontends.answers import send_reply
from nacos_proxy.model.errors import ProxyError, Refused, Unreachable
from nacos_proxy.model.masking import shown_origin
from nacos_proxy.model.services import Snapshot
from nacos_proxy.runtime import Clock, SystemClock
from nacos_proxy.upstream.nacos.registry import NacosRegistry
from nacos_proxy.upstream.nacos.rights import Pass, take_account, take_token
from nacos_proxy.wire.nacos.base import ReadService

log = logging.getLogger("nacos_proxy.server")

# Seconds. Clients of Nacos beat every 5 and list every 10: a connection that ended after uvicorn's own 5 would break in
# the very moment of the next beat.
KEEP_ALIVE = 30


def create_app(settings: Settings, clock: Clock | None = None) -> ASGIApp:
    """The whole program as one ASGI app; its lifespan starts and stops the parts, which stand in `app.parts`."""
    return App(build(settings, clock or SystemClock()))


class App:
    """Sends each request to whom it belongs, behind the fast path and the guard."""

    def __init__(self, parts: Components) -> None:
        self.parts = parts
        self.clock = parts.clock
        self.answers = parts.response_table
        self.front = Router(parts, self._lifespan)
        self.tenants: Tenants | None = None
        if parts.settings.auth == "client" and isinstance(parts.registry, NacosRegistry):
            tenants = self.tenants = tenants_of(parts, self.front, parts.registry)
            self.front.passthrough.on_login = tenants.expect
            parts.tenants = lambda: (len(tenants), tenants.refused)
        self.guard, self._entry = guarded(
            self.front, self._route, parts.guard, parts.response_table, parts.clock, parts.settings
        )

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncGenerator[None]:
        await start(self.parts)
        try:
            yield
        finally:
            if self.tenants is not None:
                await self.tenants.close()
            await finish(self.parts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._entry(scope, receive, send)
        else:
            await self.front.rest(scope, receive, send)

    def end_streams(self) -> None:
        """A stop begins: readers are told when to come back."""
        self.parts.events.close()
        if self.tenants is not None:
            self.tenants.end_streams()

    def reload(self, settings: Settings) -> None:
        """What can change while serving: tokens, host names, the log level. The rest is said to need a restart."""
        obey(self.guard, self.answers, settings)
        log.info("reloaded tokens, allowed hosts and log level; other settings need a restart")

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.tenants is None or not self.front.answers_for_one(scope):
            await self.front(scope, receive, send)
            return
        try:
            visit = await self.tenants.visit(scope, receive)
        except ProxyError as error:
            await send_reply(send, self.front.refuse(scope, error), head_only=scope["method"] == "HEAD")
            return
        try:
            await (visit.app or self.front)(visit.scope, visit.receive, send)
        finally:
            visit.leave()


def tenants_of(parts: Components, front: Router, upstream: NacosRegistry) -> Tenants:
    """For `auth = client`: the same upstream, asked with each client's own token and nothing else."""
    policy = TenantsPolicy(wait=parts.settings.cold_wait, max_form=parts.settings.max_body)
    return Tenants(UpstreamGate(parts, front, upstream), policy, parts.clock, parts.agent.supervisor)


@dataclass(frozen=True, slots=True)
class UpstreamGate:
    """A `Gate` to the upstream of these parts. While that is down it is not asked: its return is found out by polls."""

    parts: Components
    front: Router
    upstream: NacosRegistry

    async def prove(self, shown: Shown) -> Pass | None:
        breaker = self.parts.agent.catalog.breaker
        if not breaker.up:
            raise Unreachable(breaker.reason, arrived=False)
        if shown.password:
            return await take_account(self.upstream, shown.username, shown.password)
        return await take_token(self.upstream, shown.token, shown.namespace)

    async def open(self, proven: Pass, refused: Callable[[Refused], None]) -> OneTenant:
        own = build_tenant(self.parts, self.upstream, proven.credential, refused)
        await start(own, of_tenant=True)
        return OneTenant(own, self.front)


class OneTenant:
    """A `Tenant` made of parts of its own."""

    def __init__(self, parts: Components, front: Router) -> None:
        self.parts = parts
        self.app: ASGIApp = TenantApp(front, parts, self._listed if parts.udp else None)
        self._starting: asyncio.Task[None] | None = None

    def _listed(self, call: ReadService, snapshot: Snapshot) -> None:
        """The first list that asks for UDP push opens the socket for it."""
        if call.push is None or self.parts.udp is None:
            return
        if self._starting is None:
            self._starting = self.parts.agent.supervisor.once(start_udp(self.parts), name="udp push of a tenant")
        self.parts.udp.listed(call, snapshot)

    @property
    def busy(self) -> bool:
        return self.parts.events.readers > 0 or len(self.parts.health_checker) > 0

    @property
    def last_read(self) -> float:
        return max((entry.last_read for entry in self.parts.agent.catalog.cache.entries()), default=-math.inf)

    def end(self, why: ProxyError | None) -> None:
        if why is not None:
            self.parts.response_table.clear()
            self.parts.events.refuse(why)
        self.parts.events.close()

    async def close(self) -> None:
        if self._starting is not None:
            await asyncio.wait([self._starting])
        await finish(self.parts)


class Served(Protocol):
    """What `uvicorn_config` serves: an ASGI app with the table that its fast path shares."""

    clock: Clock
    answers: ResponseTable

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


def uvicorn_config(app: Served, s: Settings, tls: ssl.SSLContext | None = None) -> uvicorn.Config:
    """How uvicorn serves the app: our protocol class where the fast path is on."""
    limits = ConnectionLimits(s.max_head, connections=s.max_connections)
    fast = make_protocol(app.answers, app.clock.now, limits=limits) if s.fast_path else None
    made = fast or make_limited(limits)
    return uvicorn.Config(
        app,
        http=made if tls is None else make_tls(made, tls),
        loop="auto",
        lifespan="on",
        log_config=None,
        access_log=s.access_log,
        server_header=False,
        proxy_headers=False,  # who is counted as which client is nothing that a client may say
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=None if math.isinf(s.drain_timeout) else math.ceil(s.drain_timeout),
        ws="none",
    )


# the process


def run(loaded: Loaded) -> int:
    """Serve until told to stop; the exit code. Raises `CannotStart` and `BadSettings`, sentences for the operator."""
    settings = loaded.settings
    check_exposure(settings)
    address = ListenAddress(settings.host, settings.port, settings.uds)
    tls = own_tls(settings)
    listeners = sockets(address)
    try:
        check_exposure(settings, listeners)
        app = App(build(settings, SystemClock()))
    except (BadSettings, CannotStart, StateLocked, ValueError, OSError) as error:
        for listener in listeners:
            listener.close()
        raise CannotStart(str(error)) from error

    print(banner(settings, None if app.parts.persistence is None else app.parts.persistence.directory), flush=True)

    def ready() -> None:
        urls = [url_of(listener, tls=tls is not None) for listener in listeners]
        lines = [f"listening on {url}" for url in urls]
        lines += [f"page: {url}/  API: {url}/docs" for url in urls[:1] if not url.startswith("unix:")]
        print("\n".join(lines), flush=True)

    async def reload() -> None:
        reload_safely(app, loaded, listeners)

    def stopping() -> None:
        app.end_streams()
        unlink_own(listeners)

    server = Server(uvicorn_config(app, settings, tls), ready, stopping, reload, app.parts.agent.supervisor)
    server.run(sockets=listeners)
    return 0 if server.started else 1


def banner(s: Settings, directory: Path | None) -> str:
    """What an operator has to know of a start: version, upstream, where the state is kept."""
    upstream = (
        f"{EMBEDDED}; name one with --upstream"
        if s.embedded
        else ", ".join(map(shown_origin, s.upstream)) or f"as {shown_origin(s.endpoint)} names it"
    )
    state = "not kept (disk = false)" if directory is None else str(directory)
    return f"nacos-proxy {__version__}\nupstream: {upstream}\nstate: {state}"


def reload_safely(app: App, loaded: Loaded, listeners: Sequence[socket.socket]) -> None:
    """What cannot be, or would open a door that was locked, is said, and all stays as it was."""
    try:
        settings = loaded.again().settings
        check_exposure(settings, listeners)
        if app.guard.policy.tokens and not settings.all_tokens():
            raise CannotStart("all tokens are gone; to serve without any, stop and start")
    except (BadSettings, CannotStart) as error:
        log.error("not reloaded: %s", error)
        return
    app.reload(settings)


def check_exposure(s: Settings, listeners: Sequence[socket.socket] = ()) -> None:
    """A process that can rewrite where traffic goes is not left open to a network by mistake."""
    reachable = beyond_loopback(listeners) or ([] if loopback(s) else [s.host])
    if reachable and not s.all_tokens() and not s.insecure:
        text = (
            f"{reachable[0]} can be reached from other hosts: set an API token (tokens_file), or --insecure if you must"
        )
        raise CannotStart(text)


def own_tls(s: Settings) -> ssl.SSLContext | None:
    return None if s.tls_cert is None else tls_context(s.tls_cert, s.tls_key, s.tls_client_ca)
