"""Runs the whole program in the test's own event loop, on a real socket with a free port."""

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
from nacos_proxy.app.listening import dns_sockets
from nacos_proxy.app.server import App, uvicorn_config
from nacos_proxy.app.setting_types import parse_dns_address
from nacos_proxy.app.settings import Settings
from nacos_proxy.runtime import Clock, SystemClock, spawn, stop

PATIENCE = 60.0  # seconds before a test gives up; httpx's own 5 s can pass on a busy machine


@dataclass(slots=True)
class Served:
    """A running proxy: its URL, a client for it, its components and its app; and its gRPC port, 0 without gRPC."""

    url: str
    http: httpx.AsyncClient
    components: Components
    app: App
    grpc_port: int = 0


@asynccontextmanager
async def running(config: uvicorn.Config, port: int = 0) -> AsyncIterator[str]:
    """Runs uvicorn on a port (0: a free one) and gives the URL. At the end it finishes open requests, stops the app."""
    # asyncio turns Nagle's algorithm off only for sockets created with IPPROTO_TCP.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
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
    """Does what `Server.shutdown` does without its sleeps: a run of all tests ends a thousand servers."""
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
async def serving(clock: Clock | None = None, *, with_grpc: bool = False, **settings: Any) -> AsyncIterator[Served]:
    """Runs a proxy with these settings, `with_grpc` also on a free gRPC port; `keep_alive` (s) overrides uvicorn's."""
    upstream, keep_alive = settings.pop("upstream", "embedded"), settings.pop("keep_alive", None)
    chosen = Settings(**{"disk": False, "udp_push": False, "push": "off", "upstream": upstream, "port": 0, **settings})
    app = App(build(chosen, clock or SystemClock()))
    grpc_port = 0
    if with_grpc:
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        grpc_port, app.grpc_listener = listener.getsockname()[1], (listener, None)
    if chosen.dns:
        app.dns_listeners = dns_sockets(map(parse_dns_address, chosen.dns))
    config = uvicorn_config(app, chosen)
    config.timeout_keep_alive = config.timeout_keep_alive if keep_alive is None else keep_alive
    async with (
        running(config, chosen.port) as url,
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=PATIENCE, verify=False) as http,
    ):
        try:
            yield Served(url, http, app.components, app, grpc_port)
        finally:
            app.components.events.close()


async def heard(chunks: AsyncIterator[str], text: str) -> str:
    """Returns what a stream sends until `text` appears, however it is cut into chunks. Raises `EOFError`."""
    said = ""
    async for chunk in chunks:
        said += chunk
        if text in said:
            return said
    raise EOFError(said)
