"""An SDK over gRPC without sockets: a `Connection` that records, and the server around an agent on a `FakeClock`."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from nacos_proxy.background.publications import Publications, PublicationsPolicy
from nacos_proxy.core.agent import Agent, AgentPolicy
from nacos_proxy.frontends.events.stream_quota import StreamQuota, StreamQuotaPolicy
from nacos_proxy.frontends.grpc.access import Connection, Served, Tunnel
from nacos_proxy.frontends.grpc.server import GrpcPolicy, GrpcServer
from nacos_proxy.frontends.grpc.session import Session
from nacos_proxy.frontends.open_streams import Admission, End, OpenStreams, Right
from nacos_proxy.model.errors import Denied, ProxyError, Unreachable
from nacos_proxy.model.limits import NACOS
from nacos_proxy.request_context import Answered, Begin
from nacos_proxy.wire.nacos.grpc.payload import Payload, read_payload, write_payload
from tests.helpers import build
from tests.helpers.clock import FakeClock, settle
from tests.helpers.scripted import ScriptedRegistry, Shelf

STREAM = 1
Answer = tuple[str, dict[str, Any]]


class FakeConnection:
    """A `Connection` on which nothing is sent. `close` ends it at once."""

    def __init__(self, client: str = "10.0.0.7", port: int = 40_000) -> None:
        self.client, self.name = client, f"{client}_{port}"
        self.cause: str | None = None
        self.reason = ""
        self.unsent = 0
        self.paused = self.closed = False
        self.answers: dict[int, Answer] = {}
        self.failures: dict[int, tuple[int, str]] = {}
        self.pushed: list[Answer] = []
        self.session: Session | None = None

    def answer(self, stream: int, message: bytes) -> None:
        assert stream not in self.answers and stream not in self.failures
        self.answers[stream] = _read(message)

    def fail(self, stream: int, status: int, text: str) -> None:
        self.failures[stream] = (status, text)

    def push(self, stream: int, message: bytes) -> None:
        assert stream == STREAM
        if not self.closed:
            self.pushed.append(_read(message))

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.lose("here", "closed here")

    def abort(self) -> None:
        self.close()

    def lose(self, cause: str = "peer", reason: str = "the peer closed it") -> None:
        if not self.closed:
            self.closed, self.cause, self.reason = True, cause, reason
            assert self.session is not None
            self.session.lost()


def _read(message: bytes) -> Answer:
    payload = read_payload(message)
    return payload.type, json.loads(payload.body)


class FakeTunnel:
    """A `Tunnel` that records what it gets."""

    def __init__(self) -> None:
        self.got: list[tuple[object, ...]] = []

    def unary(self, stream: int, payload: Payload) -> None:
        self.got.append(("unary", stream, payload.type))

    def stream(self, payload: Payload) -> None:
        self.got.append(("stream", payload.type))

    def drained(self) -> None:
        self.got.append(("drained",))

    def close(self) -> None:
        self.got.append(("close",))


class FakeTunnels:
    """Opens `tunnel`; None: raises."""

    def __init__(self) -> None:
        self.tunnel: FakeTunnel | None = FakeTunnel()

    async def open(self, client: str, setup: Payload, connection: Connection, stream: int) -> Tunnel:
        await settle(1)
        if self.tunnel is None:
            raise Unreachable("nobody is there", arrived=False)
        self.tunnel.got.append(("open", client, setup.type, stream))
        return self.tunnel


@dataclass
class Sdk:
    """One client. Its requests have increasing stream ids."""

    session: Session
    connection: FakeConnection
    headers: Mapping[str, str] = field(default_factory=dict)
    _streams: Any = field(default_factory=lambda: itertools.count(3, 2))

    def set_up(self, **fields: Any) -> None:
        labels = {"source": "sdk", "module": "naming", "AppName": "shop", **fields.pop("labels", {})}
        self.say("ConnectionSetupRequest", clientVersion="Test:v1", tenant="", labels=labels, **fields)

    def say(self, kind: str, **fields: Any) -> None:
        self.session.stream_message(STREAM, write_payload(Payload(kind, json.dumps(fields).encode())))

    def send(self, kind: str, **fields: Any) -> int:
        stream = next(self._streams)
        message = write_payload(Payload(kind, json.dumps(fields).encode(), self.headers))
        self.session.unary(stream, message)
        return stream

    async def ask(self, kind: str, **fields: Any) -> Answer:
        stream = self.send(kind, **fields)
        await settle()
        return self.connection.answers[stream]

    async def about(self, kind: str, service: str = "orders", **fields: Any) -> Answer:
        return await self.ask(kind, namespace="public", groupName="DEFAULT_GROUP", serviceName=service, **fields)

    async def subscribe(self, service: str = "orders", *, clusters: str = "", subscribe: bool = True) -> Answer:
        return await self.about("SubscribeServiceRequest", service, clusters=clusters, subscribe=subscribe)

    async def query(self, service: str = "orders", **fields: Any) -> Answer:
        return await self.about("ServiceQueryRequest", service, **fields)

    async def register(self, ip: str, service: str = "orders", kind: str = "registerInstance") -> Answer:
        return await self.about("InstanceRequest", service, type=kind, instance={"ip": ip, "port": 80})

    async def publish(self, *ips: str, service: str = "orders") -> Answer:
        instances = [{"ip": ip, "port": 80} for ip in ips]
        return await self.about("BatchInstanceRequest", service, type="batchRegisterInstance", instances=instances)

    def lists(self) -> list[list[str]]:
        """The addresses in each pushed list, in order."""
        return [ips(body) for kind, body in self.connection.pushed if kind == "NotifySubscriberRequest"]

    def acknowledge(self, number: int = -1) -> None:
        """The client has got a push."""
        kind, body = self.connection.pushed[number]
        self.say(kind.replace("Request", "Response"), requestId=body["requestId"], resultCode=200)


def ips(body: Mapping[str, Any]) -> list[str]:
    return [host["ip"] for host in body["serviceInfo"]["hosts"]]


@dataclass
class GrpcWorld:
    """The server around an agent whose registry is a dict. `tokens`: the right of each token; empty: no tokens."""

    server: GrpcServer
    agent: Agent
    registry: ScriptedRegistry
    shelf: Shelf
    clock: FakeClock
    publications: Publications
    quota: StreamQuota
    tunnels: FakeTunnels
    tokens: dict[str, Right]
    streams: OpenStreams
    admitted: list[tuple[str | None, Right, str]]
    released: int = 0

    def connect(self, client: str = "10.0.0.7", token: str = "") -> Sdk:
        connection = FakeConnection(client, 40_000 + len(self.server.sessions))
        session = connection.session = self.server.made(connection)
        return Sdk(session, connection, {"accessToken": token} if token else {})

    def sdk(self, client: str = "10.0.0.7", token: str = "") -> Sdk:
        """A client that has sent its setup."""
        sdk = self.connect(client, token)
        sdk.set_up()
        return sdk

    def check(self, admission: Admission) -> ProxyError | None:
        return None if not self.tokens or admission.token in self.tokens else Denied("no such token", status=401)

    async def admit(self, token: str | None, right: Right, client: str) -> Served:
        admission = Admission(token, right)
        self.admitted.append((token, right, client))
        if (error := self.check(admission)) is not None:
            raise error

        def release() -> None:
            self.released += 1

        def hold(end: End) -> Any:
            return self.streams.add(admission, end)

        return Served(self.agent, self.publications, self.quota, release, hold)


@asynccontextmanager
async def grpc_world(
    policy: GrpcPolicy = GrpcPolicy(),  # noqa: B008
    log: Callable[[Answered], None] | None = None,
    begin: Begin | None = None,
    **quota: int,
) -> AsyncIterator[GrpcWorld]:
    shelf, clock, tunnels = Shelf(), FakeClock(), FakeTunnels()
    registry = ScriptedRegistry(shelf)
    agent = build.agent(registry, clock, policy=AgentPolicy(outage_writes=True))
    publications = Publications(agent, PublicationsPolicy())

    async def admit(token: str | None, right: Right, client: str) -> Served:
        return await world.admit(token, right, client)

    server = GrpcServer(
        *(policy, clock, agent.supervisor),
        admit=admit,
        tunnels=tunnels,
        rules=lambda: NACOS,
        begin=begin,
        log=log,
    )
    world = GrpcWorld(
        server, agent, registry, shelf, clock, publications, StreamQuota(StreamQuotaPolicy(**quota)), tunnels, {},
        OpenStreams(), [],
    )  # fmt: skip
    world.streams = OpenStreams(world.check)
    server.watch()
    try:
        yield world
    finally:
        await server.stop()
        await publications.stop()
        await agent.close()
