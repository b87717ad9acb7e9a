"""The gRPC server: accepts connections, keeps their sessions, counts for operators."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from cachetools import LRUCache

from nacos_proxy.frontends.grpc.access import Admit, Connection, Tunnels
from nacos_proxy.frontends.grpc.connection import Budget, make_accept
from nacos_proxy.frontends.grpc.fuzzy_watch import FuzzyWatches
from nacos_proxy.frontends.grpc.pushes import Pushes, PushesPolicy
from nacos_proxy.frontends.grpc.session import Session, SessionPolicy
from nacos_proxy.frontends.requests import request_times
from nacos_proxy.model.limits import Rules
from nacos_proxy.request_context import GRPC, Answered, Begin, Incoming, RequestContext, new_id
from nacos_proxy.runtime import Clock, Supervisor, stop, ticks
from nacos_proxy.transport.http2 import EndpointPolicy
from nacos_proxy.wire.http import RouteName
from nacos_proxy.wire.nacos.grpc.payload import Payload
from nacos_proxy.wire.nacos.grpc.server import Request, RequestType, read_request

log = logging.getLogger("nacos_proxy.grpc")

TICK = 0.5  # seconds between two looks at what is late
LOOK = 3.0  # seconds between two looks at a session, as in real servers (nacos-grpc.md 6)
BACKLOG = 2048
MAX_SHOWN = 100  # sessions in `/status`
MAX_REMEMBERED, MAX_REMEMBERED_BYTES = 4096, 2048  # parsed requests; the longest one, in bytes


@dataclass(frozen=True, slots=True)
class GrpcPolicy:
    """`max_connections`: one client (an address) gets at most as many as stay free (`Shares`)."""

    max_connections: int = 20_000
    session: SessionPolicy = field(default_factory=SessionPolicy)
    pushes: PushesPolicy = field(default_factory=PushesPolicy)


class GrpcServer:
    """Serves one listening socket, from `start` to `stop`; the `Host` of its sessions.

    `admit` decides who serves a request, `tunnels` what happens to all but naming, `rules()` which values are accepted.
    `off`: why it does not serve, '' if it does.
    """

    def __init__(
        self,
        policy: GrpcPolicy,
        clock: Clock,
        supervisor: Supervisor,
        *,
        admit: Admit,
        tunnels: Tunnels,
        rules: Callable[[], Rules],
        fuzzy: FuzzyWatches | None = None,
        begin: Begin | None = None,
        log: Callable[[Answered], None] | None = None,
    ) -> None:
        self.off = "it is not started"
        self.port: int = 0
        self.sessions: dict[Session, None] = {}
        self.request_times = request_times()  # by type and outcome
        self.closed: Counter[str] = Counter()  # by reason
        self.policy = policy.session
        self.clock = clock
        self.supervisor = supervisor
        self.admit = admit
        self.tunnels = tunnels
        self.fuzzy = fuzzy
        self._rules = rules
        self._begin = begin
        self._log = log
        self._read: LRUCache[tuple[str, bytes, Rules], Request] = LRUCache(MAX_REMEMBERED)
        self.pushes = Pushes(supervisor, clock.now, policy.pushes)
        self.budget = Budget(max_connections=policy.max_connections)
        self._server: asyncio.Server | None = None
        self._ticker: asyncio.Task[None] | None = None

    async def start(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Accepts connections on a socket that listens."""
        accept = make_accept(self.made, EndpointPolicy(), self.budget, tls)
        self._server = await asyncio.get_running_loop().create_server(accept, sock=listener, backlog=BACKLOG)
        name: Any = listener.getsockname()
        self.off, self.port = "", name[1] if isinstance(name, tuple) else 0
        self.watch()

    def watch(self) -> None:
        """From now on, repeats lost pushes and ends silent sessions. `start` calls it."""
        self._ticker = self.supervisor.keep(self._tick, name="gRPC sessions")

    def drain(self) -> None:
        """Accepts no more, and ends each session when its requests under way are answered. Deregisters nothing."""
        if self._server is not None:
            self._server.close()
        for session in list(self.sessions):
            session.stop()

    async def stop(self) -> None:
        """Ends everything that is still open."""
        self.drain()
        await stop(self._ticker)
        for session in list(self.sessions):
            session.close("stopping")
        self.off = "it is stopped"

    def made(self, connection: Connection) -> Session:
        """The handler of a new connection."""
        session = Session(connection, self)
        self.sessions[session] = None
        return session

    async def _tick(self) -> None:
        look_at = self.clock.now() + LOOK
        async for now, gap in ticks(self.clock, TICK):
            if gap:
                self.pushes.shift(gap)
                for session in self.sessions:
                    session.shift(gap)
            self.pushes.tick()
            if now >= look_at:
                look_at = now + LOOK
                for session in list(self.sessions):
                    session.look(now)

    # what sessions call

    def read(self, kind: RequestType, payload: Payload) -> Request:
        """The request in a payload. SDKs repeat the same queries, so these are parsed only once. Raises `BadCall`."""
        rules = self._rules()
        slot = payload.type, payload.body, rules
        request = self._read.get(slot)
        if request is None:
            request = read_request(kind, payload, rules)
            if len(payload.body) <= MAX_REMEMBERED_BYTES:
                self._read[slot] = request
        return request

    def begin(self, kind: str, client: str) -> RequestContext:
        id = new_id()
        return RequestContext(id) if self._begin is None else self._begin(Incoming(id, GRPC, kind, client, GRPC))

    def answered(self, request: RequestContext, answered: Answered, outcome: str) -> None:
        self.request_times[RouteName("grpc", answered.route), outcome].add(answered.seconds)
        request.ended(answered)
        if self._log is not None:
            self._log(answered)

    def ended(self, session: Session, reason: str) -> None:
        self.sessions.pop(session, None)
        self.closed[reason] += 1

    # for operators

    def status(self) -> dict[str, Any]:
        """For `/status`: whether it serves, and its first sessions."""
        if self.off:
            return {"state": "off", "reason": self.off}
        now = self.clock.now()
        shown = [session.status(now) for session in islice(self.sessions, MAX_SHOWN)]
        return {"state": "ok", "port": self.port, "sessionsTotal": len(self.sessions), "sessions": shown}

    def __repr__(self) -> str:
        return f"<GrpcServer {self.off or self.port}, {len(self.sessions)} sessions, {self.pushes!r}>"
