"""Keeps the list of servers, their health and their versions current. It has no timer: calls start what is due."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from nacos_proxy.model.errors import Busy, ProxyError, Refused, UpstreamError
from nacos_proxy.runtime import Clock, spawn, stop
from nacos_proxy.upstream.http.exchange import HttpClient
from nacos_proxy.upstream.nacos.servers import Server, Servers, parse_addresses
from nacos_proxy.upstream.nacos.udp_receiver import PushReceiver

log = logging.getLogger("nacos_proxy.registry")

LIST_EVERY = 30.0  # seconds between two requests to the address server
SUBSCRIBE_AGAIN = 30.0  # seconds until a UDP subscription that failed is tried again


class ServerMonitor:
    """`probe` sends a cheap call to a server and reports the outcome to this monitor. `read_state` reads its state.

    `receiver` returns the receiver of UDP push, which subscribes to each server once its version is known. With
    `ask_versions` False, no version is ever known.
    """

    def __init__(
        self,
        servers: Servers,
        http: HttpClient,
        clock: Clock,
        probe: Callable[[Server], Awaitable[object]],
        read_state: Callable[[Server], Awaitable[Mapping[str, str | None]]],
        receiver: Callable[[], PushReceiver | None],
        *,
        ask_versions: bool = True,
    ) -> None:
        self._servers = servers
        self._http = http
        self._clock = clock
        self._send_probe = probe
        self._read_state = read_state
        self._receiver = receiver
        self._ask_versions = ask_versions
        self._listed_at = float("-inf")
        self._list_task: asyncio.Task[None] | None = None
        self._subscribing: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        servers.on_up.append(self._on_up)
        servers.on_down.append(self._on_down)

    async def ready(self) -> None:
        """Starts what is due. Waits for the address server while no server is known."""
        self.start_due()
        if self._servers.policy.endpoint and not self._servers.all:
            if self._list_task is None or self._list_task.done():
                self._list_task = self._spawn(self._fetch_list(), "address server")
            if self._list_task is not None:
                await asyncio.wait([self._list_task])

    def start_due(self) -> None:
        """As `ready`, without waiting."""
        now = self._clock.now()
        endpoint = self._servers.policy.endpoint
        if endpoint and self._servers.all and now - self._listed_at >= LIST_EVERY:
            self._listed_at = now
            self._spawn(self._fetch_list(), "address server")
        for server in self._servers.to_probe(now):
            server.probing = True
            self._spawn(self._probe(server), "probe")

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None] | None:
        if self._closed:
            work.close()
            return None
        task = spawn(work, name=f"{name} of the upstream", for_request=False)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _fetch_list(self) -> None:
        policy = self._servers.policy
        self._listed_at = self._clock.now()
        try:
            reply = await self._http.get(policy.endpoint)
        except ProxyError as error:
            log.warning("the address server does not answer: %s", error)
            return
        found = parse_addresses(reply.body, policy.context_path) if reply.status == 200 else []
        if not found:
            log.warning("the answer of the address server (status %d) lists no server", reply.status)
        self._servers.replace(found)

    async def _probe(self, server: Server) -> None:
        try:
            await self._send_probe(server)
        except ProxyError as error:
            log.debug("probe of %s: %s", server.url, error)
        finally:
            server.probing = False

    async def _fetch_version(self, server: Server) -> None:
        """Reads the version, which every Nacos gives in some dialect. r-nacos refuses, and has no version then."""
        try:
            server.capabilities.set_version(await self._read_state(server))
        except ProxyError as error:
            log.debug("%s does not give its version: %s", server.url, error)
            if not isinstance(error, Refused):
                server.capabilities.version_asked_at = float("-inf")
        else:
            await self._subscribe(server)

    async def _subscribe(self, server: Server) -> None:
        """Subscribes to a server's UDP push, again and again until that succeeds, unless another task does."""
        receiver = self._receiver()
        if receiver is None or server.origin in self._subscribing:
            return
        logged = ""
        self._subscribing.add(server.origin)
        try:
            while server in self._servers.all:
                try:
                    return await receiver.subscribe(server)
                except OSError as error:
                    if str(error) != logged:
                        logged = str(error)
                        log.warning("no UDP push from %s: %s; changes are found by polling", server.origin, error)
                await self._clock.sleep_until(self._clock.now() + SUBSCRIBE_AGAIN)
        finally:
            self._subscribing.discard(server.origin)

    def succeeded(self, server: Server, seconds: float | None, outcome: str = "ok") -> None:
        """Notes an answer, even a refusal. `seconds`: the latency of a normal call, else None."""
        now = self._clock.now()
        server.count(outcome)
        self._servers.succeeded(server, now, seconds)
        if self._ask_versions and server.capabilities.version_asked_at == float("-inf"):
            server.capabilities.version_asked_at = now
            self._spawn(self._fetch_version(server), "version")

    def failed(self, server: Server, error: UpstreamError) -> None:
        server.count(type(error).__name__)
        if not isinstance(error, Busy):  # only our own queue was too long
            self._servers.failed(server, self._clock.now(), error)

    def _on_up(self, server: Server) -> None:
        server.capabilities.forget()  # after an outage it may have another version
        if (total := len(self._servers.all)) > 1:
            log.warning("node %s is back: %d of %d are up", server.url, len(self._servers.up), total)

    def _on_down(self, server: Server) -> None:
        if (total := len(self._servers.all)) > 1:
            log.warning("node %s is down: %d of %d are up: %s", server.url, len(self._servers.up), total, server.error)

    async def close(self) -> None:
        self._closed = True
        for task in tuple(self._tasks):
            await stop(task)
