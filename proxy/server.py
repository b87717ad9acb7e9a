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
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.api.answers import send_reply
from proxy.api.guard import Guard
from proxy.disk import StateLocked
from proxy.errors import ProxyError
from proxy.fastpath.asgi import FastPath
from proxy.fastpath.limits import ConnectionLimits, make_limited
from proxy.fastpath.protocol import make_protocol
from proxy.front import Front
from proxy.parts import Parts, build, build_realm, finish, start
from proxy.policies import guard_policy, loopback
from proxy.realms import Realms, RealmsPolicy
from proxy.registry.nacos import NacosRegistry
from proxy.runtime import Clock, SystemClock
from proxy.serving import Address, CannotStart, Server, sockets, tls_context, url_of
from proxy.settings import Loaded, Settings

log = logging.getLogger("nacos_proxy.server")


def create_app(settings: Settings, clock: Clock | None = None) -> ASGIApp:
    """The whole program as one ASGI app; its lifespan starts and stops the parts, which stand in `app.parts`."""
    return App(build(settings, clock or SystemClock()))


class App:
    """Sends each request to whom it belongs, behind the fast path and the guard."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.front = Front(parts, self._lifespan)
        self.realms: Realms | None = None
        if parts.settings.auth == "client" and isinstance(parts.registry, NacosRegistry):
            self.realms = realms_of(parts, parts.registry)
        self.guard = Guard(self._route, parts.guard, self.front.refuse)
        own: ASGIApp = self.guard
        if parts.settings.cors_origins:
            origins = list(parts.settings.cors_origins)
            headers = ["ETag", "Age", "Cache-Status", "Nacos-Proxy-Answer", "Nacos-Proxy-Index"]
            own = CORSMiddleware(
                own, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=headers
            )
        self._entry: ASGIApp = FastPath(own, parts.answers, parts.clock.now) if parts.settings.fast_path else own

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncGenerator[None]:
        await start(self.parts)
        try:
            yield
        finally:
            if self.realms is not None:
                await self.realms.close()
            await finish(self.parts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._entry(scope, receive, send)
        else:
            await self.front.rest(scope, receive, send)

    def end_streams(self) -> None:
        """A stop begins: readers are told when to come back."""
        self.parts.events.close()
        if self.realms is not None:
            self.realms.end_streams()

    def reload(self, settings: Settings) -> None:
        """What can change while serving: tokens, host names, the log level. The rest is said to need a restart."""
        self.guard.policy = guard_policy(settings)
        self.parts.answers.clear()  # who may ask is no longer who asked
        logging.getLogger("nacos_proxy").setLevel(settings.log_level.upper())
        log.info("reloaded tokens, allowed hosts and log level; other settings need a restart")

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = self.front
        if self.realms is not None:
            try:
                realm = await self.realms.of(scope)
            except ProxyError as error:
                await send_reply(send, self.front.refuse(scope, error), head_only=scope["method"] == "HEAD")
                return
            app = self.front if realm is None else realm.app
        await app(scope, receive, send)


def realms_of(parts: Parts, upstream: NacosRegistry) -> Realms:
    """For `auth = client`: the same upstream, asked with each client's own token and nothing else."""

    async def make(token: str) -> OneRealm:
        own = build_realm(parts, upstream, token)
        realm = OneRealm(own, Front(own))
        await start(own)
        return realm

    return Realms(make, RealmsPolicy(bearer=not parts.guard.tokens), parts.clock.now)


@dataclass(frozen=True, slots=True)
class OneRealm:
    """A `Realm` made of parts of its own."""

    parts: Parts
    app: ASGIApp

    @property
    def streams(self) -> int:
        return self.parts.events.readers

    def end_streams(self) -> None:
        self.parts.events.close()

    async def close(self) -> None:
        await finish(self.parts)


def uvicorn_config(app: App, s: Settings, tls: ssl.SSLContext | None = None) -> uvicorn.Config:
    """How uvicorn serves the app: one worker, our protocol class where the fast path is on."""
    limits = ConnectionLimits(s.max_head, connections=s.max_connections)
    fast = make_protocol(app.parts.answers, app.parts.clock.now, limits=limits) if s.fast_path else None
    config = uvicorn.Config(
        app,
        http=fast or make_limited(limits),
        loop="auto",
        lifespan="on",
        log_config=None,
        access_log=s.access_log,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(s.drain_timeout),
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

    server = Server(uvicorn_config(app, settings, tls), ready, app.end_streams, reload)
    server.run(sockets=listeners)
    return 0 if server.started else 1


def check_exposure(s: Settings) -> None:
    """A process that can rewrite where traffic goes is not left open to a network by mistake."""
    if not loopback(s) and not s.all_tokens() and not s.insecure:
        text = f"{s.host} can be reached from other hosts: set an API token (tokens_file), or --insecure if you must"
        raise CannotStart(text)


def own_tls(s: Settings) -> ssl.SSLContext | None:
    return None if s.tls_cert is None else tls_context(s.tls_cert, s.tls_key, s.tls_client_ca)
