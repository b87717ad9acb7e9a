"""The whole program as one ASGI app, and the process that serves it.

Not for: rules of freshness, of a dialect, of a route; the making of the parts (`parts`); sockets and signals
(`serving`).
"""

from __future__ import annotations

import logging
import math
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy import __version__
from proxy.api.explorer import explorer_router
from proxy.api.guard import Guard
from proxy.api.lookup import LookupApi, LookupPolicy
from proxy.api.nacos import NacosApi
from proxy.api.ops import OpsApi
from proxy.api.passthrough import Forwarder, Passthrough
from proxy.api.rest import RestApi
from proxy.api.routes import PROBLEM_HANDLERS
from proxy.disk import StateLocked
from proxy.errors import ProxyError
from proxy.fastpath.asgi import FastPath
from proxy.fastpath.protocol import make_protocol
from proxy.insight import sight_of
from proxy.parts import Parts, build, finish, start
from proxy.policies import guard_policy, loopback
from proxy.runtime import Clock, SystemClock
from proxy.serving import Address, CannotStart, Server, sockets, tls_context, url_of
from proxy.settings import Loaded, Settings
from proxy.wire.base import Dialect, HttpReply
from proxy.wire.problem import problem
from proxy.wire.v1 import V1
from proxy.wire.v2 import V2
from proxy.wire.v3 import V3

log = logging.getLogger("nacos_proxy.server")

DIALECTS: tuple[Dialect, ...] = (V1, V2, V3)


def create_app(settings: Settings, clock: Clock | None = None) -> ASGIApp:
    """The whole program as one ASGI app; its lifespan starts and stops the parts, which stand in `app.parts`."""
    return App(build(settings, clock or SystemClock()))


class App:
    """Sends each request to whom it belongs, behind the fast path and the guard."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.guard = Guard(self._route, parts.guard, self._refuse)
        own: ASGIApp = self.guard
        if parts.settings.cors_origins:
            origins = list(parts.settings.cors_origins)
            headers = ["ETag", "Age", "Cache-Status", "Nacos-Proxy-Answer", "Nacos-Proxy-Index"]
            own = CORSMiddleware(
                own, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=headers
            )
        self._entry: ASGIApp = FastPath(own, parts.answers, parts.clock.now) if parts.settings.fast_path else own
        self._context = parts.settings.context_path.rstrip("/")
        forwarder = parts.registry if isinstance(parts.registry, Forwarder) else None
        self._nacos = NacosApi(
            parts.agent,
            DIALECTS,
            Passthrough(forwarder, context_path=self._context),
            context_path=self._context,
            max_body=parts.settings.max_body,
            on_list=parts.udp.listed if parts.udp is not None else None,
        )
        self._rest = rest_app(parts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._entry(scope, receive, send)
        else:
            await self._rest(scope, receive, send)

    def reload(self, settings: Settings) -> None:
        """What can change while serving: tokens, host names, the log level. The rest is said to need a restart."""
        self.guard.policy = guard_policy(settings)
        self.parts.answers.clear()  # who may ask is no longer who asked
        logging.getLogger("nacos_proxy").setLevel(settings.log_level.upper())
        log.info("reloaded tokens, allowed hosts and log level; other settings need a restart")

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        target = self._nacos if self._is_nacos(scope["path"]) else self._rest
        await target(scope, receive, send)

    def _is_nacos(self, path: str) -> bool:
        if self._context:
            return path.startswith(self._context + "/")
        return path.startswith(("/v1/", "/v2/", "/v3/"))

    def _refuse(self, scope: Scope, error: ProxyError) -> HttpReply:
        path: str = scope["path"]
        if self._is_nacos(path):
            return self._nacos.refuse(scope, error)
        return problem(error, path)


def rest_app(parts: Parts) -> FastAPI:
    """Our own API with its documents; the lifespan of all parts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        await start(parts)
        try:
            yield
        finally:
            await finish(parts)

    app = FastAPI(
        title="nacos-proxy",
        version=__version__,
        summary="A local caching discovery proxy for Nacos",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        exception_handlers=PROBLEM_HANDLERS,
    )
    app.include_router(RestApi(parts.agent, parts.reads, parts.keeper, max_body=parts.settings.max_body).router())
    app.include_router(LookupApi(parts.agent, parts.reads, LookupPolicy()).router())
    app.include_router(parts.events.router())
    app.include_router(OpsApi(sight_of(parts)).router())
    app.include_router(explorer_router())
    return app


def uvicorn_config(app: App, s: Settings, tls: ssl.SSLContext | None = None) -> uvicorn.Config:
    """How uvicorn serves the app: one worker, our protocol class where the fast path is on."""
    protocol = make_protocol(app.parts.answers, app.parts.clock.now) if s.fast_path else "httptools"
    config = uvicorn.Config(
        app,
        http=protocol,
        loop="auto",
        lifespan="on",
        log_config=None,
        access_log=s.access_log,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(s.drain_timeout),
        limit_concurrency=s.max_connections or None,
        h11_max_incomplete_event_size=s.max_head,
        ws="none",
    )
    config.ssl = tls  # pyright: ignore[reportAttributeAccessIssue]
    return config


# the process


def run(loaded: Loaded) -> int:
    """Serve until told to stop; the exit code. Raises `CannotStart` and `BadSettings`, sentences for the operator."""
    settings = loaded.settings
    check_exposure(settings)
    address = Address(settings.host, settings.port, settings.uds)
    listeners = sockets(address)
    try:
        app = App(build(settings, SystemClock()))
    except (StateLocked, ValueError, OSError) as error:
        for listener in listeners:
            listener.close()
        raise CannotStart(str(error)) from error
    tls = own_tls(settings)

    def ready() -> None:
        for listener in listeners:
            print(f"listening on {url_of(listener, tls=tls is not None)}", flush=True)

    async def reload() -> None:
        app.reload(loaded.again().settings)

    server = Server(uvicorn_config(app, settings, tls), ready, app.parts.events.close, reload)
    server.run(sockets=listeners)
    return 0 if server.started else 1


def check_exposure(s: Settings) -> None:
    """A process that can rewrite where traffic goes is not left open to a network by mistake."""
    if not loopback(s) and not s.all_tokens() and not s.insecure:
        text = f"{s.host} can be reached from other hosts: set an API token (tokens_file), or --insecure if you must"
        raise CannotStart(text)


def own_tls(s: Settings) -> ssl.SSLContext | None:
    return None if s.tls_cert is None else tls_context(s.tls_cert, s.tls_key, s.tls_client_ca)
