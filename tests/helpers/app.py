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

from nacos_proxy.app.components import Components, build
from nacos_proxy.app.server import App, uvicorn_config
from nacos_proxy.app.settings import Settings
from nacos_proxy.runtime import Clock, SystemClock, spawn, stop

PATIENCE = 60.0  # for what hangs: httpx's own 5 s may pass on a busy machine


@dataclass(slots=True)
class Served:
    """A proxy that runs: its URL, a client for it, its app and parts."""

    url: str
    http: httpx.AsyncClient
    components: Components
    app: App


@asynccontextmanager
async def running(config: uvicorn.Config) -> AsyncIterator[str]:
    """uvicorn on a free port; gives the URL. At the end what is under way is finished, then the app ends."""
    # asyncio turns Nagle's algorithm off only for sockets that say that they are TCP.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(config)
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup([listener])
    ticking = spawn(server.main_loop(), name="ticks of uvicorn")
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        await stop(ticking)
        await _end(server)
        listener.close()


async def _end(server: uvicorn.Server) -> None:
    """As `Server.shutdown`, but for its naps: a run of all tests ends a thousand servers."""
    for listening in server.servers:
        listening.close()
    for connection in list(server.server_state.connections):
        connection.shutdown()
    try:
        await asyncio.wait_for(_idle(server), server.config.timeout_graceful_shutdown)
    except asyncio.TimeoutError:
        for task in server.server_state.tasks:
            task.cancel()
    await server.lifespan.shutdown()


async def _idle(server: uvicorn.Server) -> None:
    while server.server_state.connections or server.server_state.tasks:
        await asyncio.sleep(0.001)


@asynccontextmanager
async def serving(clock: Clock | None = None, **settings: Any) -> AsyncIterator[Served]:
    """A proxy with these settings, ready to answer; `keep_alive` in seconds, in place of its own."""
    upstream, keep_alive = settings.pop("upstream", "embedded"), settings.pop("keep_alive", None)
    chosen = Settings(**{"disk": False, "udp_push": False, "push": "off", "upstream": upstream, "port": 0, **settings})
    app = App(build(chosen, clock or SystemClock()))
    config = uvicorn_config(app, chosen)
    config.timeout_keep_alive = config.timeout_keep_alive if keep_alive is None else keep_alive
    async with (
        running(config) as url,
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=PATIENCE, verify=False) as http,
    ):
        try:
            yield Served(url, http, app.components, app)
        finally:
            app.components.events.close()


async def heard(chunks: AsyncIterator[str], text: str) -> str:
    """What a stream says until this text came; how it is cut into chunks says nothing. Raises `EOFError`."""
    said = ""
    async for chunk in chunks:
        said += chunk
        if text in said:
            return said
    raise EOFError(said)
