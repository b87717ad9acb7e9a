"""All that clients speak to one set of parts: the Nacos API below its context path, our own API beside it.

Not for: who may ask (`api.guard`), whose parts they are (`tenants`), the process (`server`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from nacos_proxy import __version__
from nacos_proxy.app.components import Components
from nacos_proxy.app.operator_view import operator_view
from nacos_proxy.app.policies import guard_policy
from nacos_proxy.app.settings import Settings
from nacos_proxy.core.agent import Agent
from nacos_proxy.fastpath.asgi import FastPath
from nacos_proxy.fastpath.table import ResponseTable
from nacos_proxy.frontends.answers import header, send_reply
from nacos_proxy.frontends.auth import OPEN_PATHS, AccessControl, AccessPolicy
from nacos_proxy.frontends.discovery.lookup import LookupApi, LookupPolicy
from nacos_proxy.frontends.events.streams import EventsApi
from nacos_proxy.frontends.nacos.naming import NacosApi, remembered_calls
from nacos_proxy.frontends.nacos.passthrough import Forwarder, Passthrough
from nacos_proxy.frontends.operations.endpoints import OpsApi, operations_routes
from nacos_proxy.frontends.rest.explorer import explorer_router
from nacos_proxy.frontends.rest.reads import Reads
from nacos_proxy.frontends.rest.routes import (
    ENDPOINTS,
    PROBLEM_HANDLERS,
    Endpoint,
    Routes,
)
from nacos_proxy.frontends.rest.services import Managing, RestApi
from nacos_proxy.model.errors import ProxyError
from nacos_proxy.model.services import Snapshot
from nacos_proxy.runtime import Clock
from nacos_proxy.wire.http import HttpReply
from nacos_proxy.wire.nacos.administration import WHOLE
from nacos_proxy.wire.nacos.base import Dialect, ReadService
from nacos_proxy.wire.nacos.rules import LENIENT, NACOS, RULES
from nacos_proxy.wire.nacos.v1 import V1
from nacos_proxy.wire.nacos.v2 import V2
from nacos_proxy.wire.nacos.v3 import V3
from nacos_proxy.wire.rest.problem import problem

DIALECTS: tuple[Dialect, ...] = (V1, V2, V3)  # of a proxy with servers behind it, which know the rest

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True)
class RouterDependencies:
    """What a front is made of. `operations` are the endpoints for operators, by path; `checks` says whether Nacos's
    parameter check applies now.
    """

    settings: Settings
    agent: Agent
    reads: Reads
    events: EventsApi
    keeper: Managing
    operations: Mapping[str, Endpoint]
    checks: Callable[[], bool]
    forwarder: Forwarder | None = None
    on_list: Callable[[ReadService, Snapshot], None] | None = None


def router_dependencies(parts: Components) -> RouterDependencies:
    """Those of these parts."""
    return RouterDependencies(
        parts.settings,
        parts.agent,
        parts.reads,
        parts.events,
        parts.health_checker,
        OpsApi(operator_view(parts)).endpoints,
        parts.checks,
        parts.forwarder,
        parts.udp.listed if parts.udp is not None else None,
    )


class View:
    """An ASGI app: one set of parts behind the routes of a front."""

    def __init__(self, front: Router, nacos: ASGIApp, endpoints: Mapping[tuple[str, str], Endpoint]) -> None:
        self._front = front
        self._nacos = nacos
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[ENDPOINTS] = self._endpoints
        await self._front.serve(self._nacos, scope, receive, send)


class Router:
    """An ASGI app for HTTP requests; `rest` is the FastAPI app within, which also runs the `lifespan`.

    Its routes and their documents take milliseconds to make. Other parts get a `view` of the same.
    """

    def __init__(self, faces: RouterDependencies, lifespan: Lifespan | None = None) -> None:
        self.rest = rest_app(faces, lifespan)
        self._checks = faces.checks
        self._context = faces.settings.context_path.rstrip("/")
        self.passthrough = Passthrough(faces.forwarder, context_path=self._context)
        self._remembered = remembered_calls()
        self._nacos = self._nacos_api(faces)

    def _nacos_api(self, faces: RouterDependencies) -> NacosApi:
        return NacosApi(
            faces.agent,
            WHOLE if faces.settings.embedded else DIALECTS,
            self.passthrough,
            offer=self.passthrough.offer,
            context_path=self._context,
            max_body=faces.settings.max_body,
            on_list=faces.on_list,
            on_beat=faces.keeper.heard,
            remembered=self._remembered,
        )

    def view(self, faces: RouterDependencies) -> View:
        """The same for other parts."""
        endpoints = {place: endpoint for routes in routes_of(faces) for place, endpoint in routes.endpoints.items()}
        return View(self, self._nacos_api(faces), endpoints)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.serve(self._nacos, scope, receive, send)

    async def serve(self, nacos: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """`nacos` answers below the context path, the endpoints in the scope, or our own, beside it."""
        scope[RULES] = NACOS if self._checks() else LENIENT
        if self._seeks_console(scope):
            query = scope["query_string"].decode("latin-1")  # a token may stand there
            headers = (("location", f"/?{query}" if query else "/"), ("vary", "accept"))
            await send_reply(send, HttpReply(302, None, b"", headers))
        elif self._is_nacos(scope["path"]):
            await nacos(scope, receive, send)
        else:
            await self.rest(_without_slash(scope), receive, send)

    def _seeks_console(self, scope: Scope) -> bool:
        """Whether somebody looks for the console where Nacos has it; whoever is no browser and writes the slash, as
        probes do, gets what is behind.
        """
        path: str = scope["path"]
        if not self._context or scope["method"] not in ("GET", "HEAD"):
            return False
        return path == self._context or (path == self._context + "/" and b"text/html" in header(scope, b"accept"))

    def answers_for_one(self, scope: Scope) -> bool:
        """Whether a request is answered from what its client may see; not what is passed on, nor what all may see."""
        path: str = scope["path"]
        return self._nacos.knows(scope["method"], path) if self._is_nacos(path) else path not in OPEN_PATHS

    def _is_nacos(self, path: str) -> bool:
        if self._context:
            return path.startswith(self._context + "/")
        return path.startswith(("/v1/", "/v2/", "/v3/"))

    def refuse(self, scope: Scope, error: ProxyError) -> HttpReply:
        """An error that arose before a request came here, in the dialect of its path."""
        path: str = scope["path"]
        if self._is_nacos(path):
            return self._nacos.refuse(scope, error)
        return problem(error, path)


def _without_slash(scope: Scope) -> Scope:
    """A slash at the end says nothing. A redirect to the path without it would name the host, and the scheme that
    somebody in between speaks to us.
    """
    path, raw = scope["path"], scope.get("raw_path") or scope["path"].encode()
    if len(path) < 2 or not raw.endswith(b"/"):
        return scope
    return {**scope, "path": path[:-1], "raw_path": raw[:-1]}


def rest_app(faces: RouterDependencies, lifespan: Lifespan | None = None) -> FastAPI:
    """Our own API with its documents."""
    app = FastAPI(
        title="nacos-proxy",
        version=__version__,
        summary="A local caching discovery proxy for Nacos",
        description="The Nacos API stands beside it, below the context path (`/nacos`), as Nacos documents it.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        exception_handlers=PROBLEM_HANDLERS,
    )
    for routes in routes_of(faces):
        app.include_router(routes.router())
    app.include_router(explorer_router())
    made = app.openapi
    app.openapi = lambda: _with_tokens(made())
    return app


def routes_of(faces: RouterDependencies) -> list[Routes]:
    """Our own API, but for its documents."""
    return [
        RestApi(faces.agent, faces.reads, faces.keeper, max_body=faces.settings.max_body).routes(),
        LookupApi(faces.agent, faces.reads, LookupPolicy()).routes(),
        faces.events.routes(),
        operations_routes(faces.operations),
    ]


def _with_tokens(document: dict[str, Any]) -> dict[str, Any]:
    """The document, with the token that calls may need: `/docs` asks for it."""
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return {**document, "security": [{}, {"token": []}]}


def guarded(
    front: Router, app: ASGIApp, guard: AccessPolicy, answers: ResponseTable, clock: Clock, s: Settings
) -> tuple[AccessControl, ASGIApp]:
    """`app` behind the guard, cross-origin rules and the fast path, the outermost; and the guard."""
    keeper = AccessControl(app, guard, front.refuse)
    own: ASGIApp = keeper
    if s.cors_origins:
        headers = ["ETag", "Age", "Cache-Status", "Nacos-Proxy-Answer", "Nacos-Proxy-Index"]
        own = CORSMiddleware(
            own, allow_origins=list(s.cors_origins), allow_methods=["*"], allow_headers=["*"], expose_headers=headers
        )
    return keeper, FastPath(own, answers, clock.now) if s.fast_path else own


def obey(guard: AccessControl, answers: ResponseTable, s: Settings) -> None:
    """What can change while a process serves: tokens, host names, the log level."""
    guard.set_policy(guard_policy(s))
    answers.clear()  # who may ask is no longer who asked
    logging.getLogger("nacos_proxy").setLevel(s.log_level.upper())
