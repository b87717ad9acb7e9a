"""The whole program in the test's own loop, on a real socket of a free port; ended by its handle."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn

from proxy.parts import Parts, build
from proxy.runtime import Clock, SystemClock
from proxy.server import App, uvicorn_config
from proxy.settings import Settings


@dataclass(slots=True)
class Served:
    """A proxy that runs: its URL, a client for it, its app and parts."""

    url: str
    http: httpx.AsyncClient
    parts: Parts
    app: App


@asynccontextmanager
async def running(config: uvicorn.Config) -> AsyncIterator[str]:
    """uvicorn on a free port; gives the URL. At the end it stops after `Server.main_loop` has noticed."""
    # asyncio turns Nagle's algorithm off only for sockets that say that they are TCP.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(config)
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup([listener])
    ticking = asyncio.get_running_loop().create_task(server.main_loop())
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await ticking
        await server.shutdown([listener])


@asynccontextmanager
async def serving(clock: Clock | None = None, **settings: Any) -> AsyncIterator[Served]:
    """A proxy with these settings, ready to answer."""
    upstream = settings.pop("upstream", "embedded")
    chosen = Settings(**{"disk": False, "udp_push": False, "push": "off", "upstream": upstream, "port": 0, **settings})
    app = App(build(chosen, clock or SystemClock()))
    async with running(uvicorn_config(app, chosen)) as url, httpx.AsyncClient(base_url=url, trust_env=False) as http:
        try:
            yield Served(url, http, app.parts, app)
        finally:
            app.parts.events.close()
