"""A server of Nacos over gRPC in this process: `connect` makes connections to it, and each call is a function."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nacos_proxy.model.errors import ProxyError, Reason, Refused, Unreachable
from nacos_proxy.model.limits import NACOS
from nacos_proxy.model.services import Instance, ServiceKey
from nacos_proxy.upstream.grpc.session import Target
from nacos_proxy.wire.nacos.base import ServiceView
from nacos_proxy.wire.nacos.grpc.payload import Payload, read_payload, write_payload
from nacos_proxy.wire.nacos.grpc.refusals import NotRegistered
from nacos_proxy.wire.nacos.grpc.server import (
    HealthCheck,
    ServerCheck,
    Subscribe,
    find_type,
    read_request,
    write_answer,
    write_error,
)
from nacos_proxy.wire.nacos.grpc.stream import ConnectionSetup, read_stream, write_notify
from tests.helpers.build import snapshot

DENIED = Refused(Reason.NO_RIGHT, "user not found!", status=403)


class NoTls(ConnectionResetError):
    """A server without TLS closes a connection that begins with its handshake."""


@dataclass(eq=False)
class Line:
    """One connection. `subscribed` are the services of its session, `acks` the responses on its stream."""

    server: FakeServer
    target: Target
    on_message: Callable[[bytes], None]
    on_lost: Callable[[str], None]
    setup: ConnectionSetup | None = None
    subscribed: set[ServiceKey] = field(default_factory=lambda: set())
    acks: list[tuple[str, str]] = field(default_factory=lambda: [])
    closed: bool = False

    async def call(self, message: bytes, *, timeout: float) -> bytes:
        if self.closed:
            raise Unreachable("closed", arrived=False)
        payload = read_payload(message)
        kind = find_type(payload)
        request = read_request(kind, payload, NACOS)
        self.server.calls.append((kind.name, dict(payload.headers)))
        self.server.at_once += 1
        self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        try:
            await asyncio.sleep(0)
            await self.server.up.wait()
            answer = write_answer(kind, request, self.server.answer(self, request, payload.headers))
        except ProxyError as error:
            if isinstance(error, Unreachable):
                raise
            answer = write_error(kind, error)
        finally:
            self.server.at_once -= 1
        return write_payload(answer)

    def open_stream(self) -> None:
        pass

    def send(self, message: bytes) -> None:
        payload = read_payload(message)
        sent = read_stream(payload)
        if isinstance(sent, ConnectionSetup):
            self.setup = sent
        else:
            self.acks.append((payload.type, json.loads(payload.body)["requestId"]))

    def close(self) -> None:
        self.lose("closed by us")

    def push(self, payload: Payload) -> None:
        if not self.closed:
            self.on_message(write_payload(payload))

    def lose(self, reason: str = "reset by peer") -> None:
        if not self.closed:
            self.closed = True
            self.on_lost(reason)


class FakeServer:
    """`refuse` has the errors of subscriptions that fail, `registers_late` how many requests get 301 after a setup.

    Calls wait while `up` is not set. `unreachable`: the errors of connections, by port.
    """

    def __init__(self) -> None:
        self.up = asyncio.Event()
        self.up.set()
        self.lines: list[Line] = []
        self.calls: list[tuple[str, dict[str, str]]] = []
        self.lists: dict[ServiceKey, tuple[Instance, ...]] = {}
        self.refuse: dict[ServiceKey, ProxyError] = {}
        self.unreachable: dict[int, Exception] = {}
        self.registers_late = 0
        self.healthy: ProxyError | None = None
        self.token = ""
        self.on_subscribe: Callable[[Line, ServiceKey], None] = lambda line, key: None
        self.tried: list[tuple[int, bool]] = []
        self.at_once = self.most_at_once = 0
        self._requests = itertools.count(1)

    async def connect(
        self,
        host: str,
        port: int,
        *,
        tls: Any,
        server_hostname: str | None,
        on_message: Callable[[bytes], None],
        on_lost: Callable[[str], None],
        timeout: float,
    ) -> Line:
        self.tried.append((port, tls is not None))
        error = self.unreachable.get(port)
        if error is not None and (tls is not None or not isinstance(error, NoTls)):
            raise error
        line = Line(self, Target(host, port, tls=tls, name=server_hostname or ""), on_message, on_lost)
        self.lines.append(line)
        return line

    def answer(self, line: Line, request: object, headers: Mapping[str, str]) -> Any:
        if isinstance(request, ServerCheck):
            return "1_127.0.0.1_2"
        if line.setup is None or self.registers_late:
            self.registers_late = max(0, self.registers_late - 1)
            raise NotRegistered
        if isinstance(request, HealthCheck):
            if self.healthy is not None:
                raise self.healthy
            return None
        assert isinstance(request, Subscribe)
        key = request.read.service
        if self.token and headers.get("accessToken") != self.token:
            raise DENIED
        if key in self.refuse:
            raise self.refuse[key]
        (line.subscribed.add if request.subscribe else line.subscribed.discard)(key)
        view = self.view(key)
        self.on_subscribe(line, key)
        return view

    def view(self, key: ServiceKey) -> ServiceView:
        known = snapshot(*self.lists.get(key, ()), service=key)
        return ServiceView(known, known.select())

    @property
    def line(self) -> Line:
        """The newest connection."""
        return self.lines[-1]

    @property
    def subscribed(self) -> set[ServiceKey]:
        """By all connections that are open."""
        return {key for line in self.lines if not line.closed for key in line.subscribed}

    def happen(self, key: ServiceKey, *instances: Instance, masked: bool = False) -> None:
        """The service changes; subscribed connections get a push."""
        self.lists[key] = instances
        view = self.view(key)
        if masked:
            view = ServiceView(view.snapshot, replace(view.selection, protected=True))
        for line in self.lines:
            if key in line.subscribed:
                line.push(write_notify(str(next(self._requests)), view, ""))

    def count(self, kind: str) -> int:
        return sum(called == kind for called, _ in self.calls)
