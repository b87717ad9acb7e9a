"""All that clients speak to one set of parts: the Nacos API below its context path, our own API beside it.

Not for: who may ask (`api.guard`), whose parts they are (`realms`), the process (`server`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from proxy import __version__
from proxy.api.explorer import explorer_router
from proxy.api.lookup import LookupApi, LookupPolicy
from proxy.api.nacos import NacosApi
from proxy.api.ops import OpsApi
from proxy.api.passthrough import Passthrough
from proxy.api.rest import RestApi
from proxy.api.routes import PROBLEM_HANDLERS
from proxy.errors import ProxyError
from proxy.insight import sight_of
from proxy.parts import Parts
from proxy.wire.base import Dialect, HttpReply
from proxy.wire.problem import problem
from proxy.wire.v1 import V1
from proxy.wire.v2 import V2
from proxy.wire.v3 import V3

DIALECTS: tuple[Dialect, ...] = (V1, V2, V3)

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


class Front:
    """An ASGI app for HTTP requests; `rest` is the FastAPI app within, which also runs the `lifespan`."""

    def __init__(self, parts: Parts, lifespan: Lifespan | None = None) -> None:
        self.rest = rest_app(parts, lifespan)
        self._context = parts.settings.context_path.rstrip("/")
        self._nacos = NacosApi(
            parts.agent,
            DIALECTS,
            Passthrough(parts.forwarder, context_path=self._context),
            context_path=self._context,
            max_body=parts.settings.max_body,
            on_list=parts.udp.listed if parts.udp is not None else None,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target = self._nacos if self._is_nacos(scope["path"]) else self.rest
        await target(scope, receive, send)

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


def rest_app(parts: Parts, lifespan: Lifespan | None = None) -> FastAPI:
    """Our own API with its documents."""
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
