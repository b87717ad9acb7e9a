"""Routes requests: the Nacos API is below its context path, the REST API is everything else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from nacos_proxy import __version__
from nacos_proxy.app.components import Components
from nacos_proxy.app.operator_view import operator_view
from nacos_proxy.app.policies import guard_policy
from nacos_proxy.app.settings import Settings
from nacos_proxy.fastpath.asgi import FastPath
from nacos_proxy.fastpath.table import ResponseTable
from nacos_proxy.frontends.answers import header, send_reply
from nacos_proxy.frontends.auth import OPEN_PATHS, AccessControl, AccessPolicy
from nacos_proxy.frontends.discovery import envoy, formats, lookup, nacos_prometheus
from nacos_proxy.frontends.discovery.envoy import EnvoyApi
from nacos_proxy.frontends.discovery.formats import FormatsApi
from nacos_proxy.frontends.discovery.group_names import GroupNames
from nacos_proxy.frontends.discovery.lookup import LookupApi
from nacos_proxy.frontends.events import followers, long_polls, streams
from nacos_proxy.frontends.nacos.naming import NacosApi, parsed_writes
from nacos_proxy.frontends.nacos.passthrough import Passthrough
from nacos_proxy.frontends.operations import endpoints as operations
from nacos_proxy.frontends.operations import page
from nacos_proxy.frontends.requests import RequestCounter
from nacos_proxy.frontends.rest import explorer, services, traffic
from nacos_proxy.frontends.rest.routing import PROBLEM_HANDLERS, PROVIDED, openapi_of
from nacos_proxy.frontends.rest.services import RestApi
from nacos_proxy.frontends.rest.traffic import TrafficApi
from nacos_proxy.model.errors import ProxyError
from nacos_proxy.model.limits import LENIENT, NACOS
from nacos_proxy.model.services import Snapshot
from nacos_proxy.request_context import ID_HEADER
from nacos_proxy.wire.discovery.envoy import PATHS as DISCOVERY
from nacos_proxy.wire.http import RULES, HttpReply
from nacos_proxy.wire.nacos.administration import WHOLE
from nacos_proxy.wire.nacos.base import Dialect, ReadService
from nacos_proxy.wire.nacos.v1 import V1
from nacos_proxy.wire.nacos.v2 import V2
from nacos_proxy.wire.nacos.v3 import V3
from nacos_proxy.wire.rest.problem import problem

DIALECTS: tuple[Dialect, ...] = (V1, V2, V3)  # without the calls that only servers answer (`WHOLE` has them)

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]
OnList = Callable[[ReadService, Snapshot], None]


def provided_by(components: Components) -> Mapping[type, Any]:
    """The objects that the REST endpoints depend on, by class."""
    groups = GroupNames(components.agent)
    rest = RestApi(components.agent, components.reads, components.health_checker)
    objects = (
        rest,
        TrafficApi(rest, components.drainer, components.health_checker),
        LookupApi(components.agent),
        FormatsApi(components.agent, components.reads, groups),
        EnvoyApi(components.agent, components.reads, components.events.polls, groups),
        components.events,
        components.events.polls,
        operator_view(components),
    )
    return {type(it): it for it in objects}


class TenantApp:
    """An ASGI app: the routes of `router` with one tenant's components. `on_list` is as in `NacosApi`."""

    def __init__(self, router: Router, components: Components, on_list: OnList | None) -> None:
        self._router = router
        self._nacos = router.nacos_api(components, on_list)
        self._provided = provided_by(components)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[PROVIDED] = self._provided
        await self._router.serve(self._nacos, scope, receive, send)


class Router:
    """An ASGI app for HTTP requests. `rest` is the FastAPI app inside, which also runs the `lifespan`."""

    def __init__(self, components: Components, lifespan: Lifespan | None = None) -> None:
        self.rest = rest_app(provided_by(components), lifespan, max_body=components.settings.max_body)
        self._checks = components.checks
        self._context = components.settings.context_path.rstrip("/")
        self.passthrough = Passthrough(components.forwarder, context_path=self._context)
        self._remembered = parsed_writes()
        self._nacos = self.nacos_api(components, components.udp.listed if components.udp is not None else None)

    def nacos_api(self, components: Components, on_list: OnList | None) -> NacosApi:
        return NacosApi(
            components.agent,
            WHOLE if components.settings.embedded else DIALECTS,
            self.passthrough,
            offer=self.passthrough.offer,
            context_path=self._context,
            max_body=components.settings.max_body,
            on_list=on_list,
            on_beat=components.health_checker.heard,
            remembered=self._remembered,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.serve(self._nacos, scope, receive, send)

    async def serve(self, nacos: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request; `nacos` answers those below the context path."""
        scope[RULES] = NACOS if self._checks() else LENIENT
        if self._seeks_console(scope):
            query = scope["query_string"].decode("latin-1")  # it may hold a token
            headers = (("location", f"/ui?{query}" if query else "/ui"), ("vary", "accept"))
            await send_reply(send, HttpReply(302, None, b"", headers))
        elif self._is_prometheus(scope["path"]):
            await self.rest(_without_slash(_below(scope, self._context)), receive, send)
        elif self._is_nacos(scope["path"]):
            await nacos(scope, receive, send)
        else:
            await self.rest(_without_slash(scope), receive, send)

    def _seeks_console(self, scope: Scope) -> bool:
        """Whether a browser asks for Nacos's console. Probes, which add a slash, get the upstream's answer."""
        path: str = scope["path"]
        if not self._context or scope["method"] not in ("GET", "HEAD"):
            return False
        return path == self._context or (path == self._context + "/" and b"text/html" in header(scope, b"accept"))

    def is_per_tenant(self, scope: Scope) -> bool:
        """Whether the answer depends on the client's rights. On pass-through and open paths it does not."""
        path: str = scope["path"]
        if self._is_nacos(path) and not self._is_prometheus(path):
            return self._nacos.knows(scope["method"], path)
        return path not in OPEN_PATHS

    def _is_prometheus(self, path: str) -> bool:
        return path.startswith(self._context) and nacos_prometheus.owns(path[len(self._context) :])

    def _is_nacos(self, path: str) -> bool:
        if self._context:
            return path.startswith(self._context + "/")
        return path.startswith(("/v1/", "/v2/", "/v3/")) and path not in DISCOVERY

    def refuse(self, scope: Scope, error: ProxyError) -> HttpReply:
        """The answer to an error from before this app, in the dialect of the request's path."""
        path: str = scope["path"]
        if self._is_nacos(path):
            return self._nacos.refuse(scope, error)
        return problem(error, path)


def _below(scope: Scope, context: str) -> Scope:
    """The scope without the context path, which matches as a whole."""
    raw = scope.get("raw_path") or scope["path"].encode()
    return {**scope, "path": scope["path"][len(context) :], "raw_path": raw[len(context.encode()) :]}


def _without_slash(scope: Scope) -> Scope:
    """Ignores a slash at the end. A redirect would need the client's host and scheme, which a proxy may hide."""
    path, raw = scope["path"], scope.get("raw_path") or scope["path"].encode()
    if len(path) < 2 or not raw.endswith(b"/"):
        return scope
    return {**scope, "path": path[:-1], "raw_path": raw[:-1]}


def rest_app(provided: Mapping[type, Any], lifespan: Lifespan | None = None, *, max_body: int = 1 << 20) -> FastAPI:
    """The REST API with its document. `provided` has the objects that the endpoints depend on, by class."""
    routers = (
        *(services.router, traffic.router, lookup.router, formats.router, envoy.router, long_polls.router),
        *(streams.router, followers.router, nacos_prometheus.router, operations.router, page.router, explorer.router),
    )
    app = FastAPI(
        title="nacos-proxy",
        version=__version__,
        summary="A local caching discovery proxy for Nacos",
        description="The Nacos API stands beside it, below the context path (`/nacos`), as Nacos documents it.",
        routes=[route for router in routers for route in router.routes],
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        exception_handlers=PROBLEM_HANDLERS,
    )
    app.state.provided = provided
    app.state.max_body = max_body
    app.openapi = openapi_of(app)
    return app


def with_access_control(
    router: Router, app: ASGIApp, policy: AccessPolicy, components: Components
) -> tuple[AccessControl, ASGIApp]:
    """The access control in front of `app`, and the whole app: fast path, counting, CORS, access control, `app`."""
    s, now = components.settings, components.clock.now
    guard = AccessControl(app, policy, router.refuse)
    whole: ASGIApp = guard
    if s.cors_origins:
        headers = ["ETag", "Age", "Cache-Status", "Nacos-Proxy-Answer", "Nacos-Proxy-Index", ID_HEADER]
        whole = CORSMiddleware(
            whole, allow_origins=list(s.cors_origins), allow_methods=["*"], allow_headers=["*"], expose_headers=headers
        )
    whole = RequestCounter(whole, components.request_times, now)
    return guard, FastPath(whole, components.response_table, now) if s.fast_path else whole


def apply_settings(guard: AccessControl, answers: ResponseTable, s: Settings) -> None:
    """Applies the settings that can change at run time: tokens, host names, the log level."""
    guard.set_policy(guard_policy(s))
    answers.clear()  # their clients may have lost access
    logging.getLogger("nacos_proxy").setLevel(s.log_level.upper())
