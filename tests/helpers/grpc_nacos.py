"""The gRPC side of a stand-in server, on grpcio: sessions, pushes and refusals as measured, and faults on demand.

It stands behind a relay of TCP connections, because a session is a TCP connection (nacos-grpc.md 3) and grpcio neither
tells when one ends nor closes a single one. `Published` joins it to the HTTP side: it is the registry of both.

The recordings are the authority; `test_grpc_nacos.py` replays them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import grpc
import grpc.aio

from nacos_proxy.model.calls import Call, Deregister, Fetch, GetInstance, ListServices, Register, ServicePage
from nacos_proxy.model.errors import BadCall, ProxyError, Reason, Refused, Violation
from nacos_proxy.model.limits import NACOS
from nacos_proxy.model.services import Instance, ServiceKey, Snapshot
from nacos_proxy.runtime import Clock, spawn, stop
from nacos_proxy.upstream.embedded.registry import EmbeddedRegistry
from nacos_proxy.wire.nacos.hosts import host_json
from tests.helpers.grpcio_client import MAX_MESSAGE, Packed, pack, unpack

OWNER = "192.0.2.2"  # the server's own address, as it writes it on the stream
NAMING_RESPONSES = {
    "InstanceRequest": "InstanceResponse",
    "BatchInstanceRequest": "BatchInstanceResponse",
    "PersistentInstanceRequest": "InstanceResponse",
    "ServiceQueryRequest": "QueryServiceResponse",
    "SubscribeServiceRequest": "SubscribeServiceResponse",
    "ServiceListRequest": "ServiceListResponse",
}
CONFIG_RESPONSES = {
    "ConfigQueryRequest": "ConfigQueryResponse",
    "ConfigPublishRequest": "ConfigPublishResponse",
    "ConfigRemoveRequest": "ConfigRemoveResponse",
    "ConfigBatchListenRequest": "ConfigChangeBatchListenResponse",
}
OF_CLUSTERS = (
    "DistroDataRequest",
    "ServerLoaderInfoRequest",
    "ServerReloadRequest",
    "ConfigChangeClusterSyncRequest",
    "MemberReportRequest",
)
_API = "com.alibaba.nacos.api.naming"
NO_INSTANCE = (
    f'Cannot invoke "{_API}.pojo.Instance.getIp()" because the return value of '
    f'"{_API}.remote.request.InstanceRequest.getInstance()" is null'
)
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.http2.lookahead_bytes", 1 << 20),
    ("grpc.max_metadata_size", 8192),
    ("grpc.http2.max_ping_strikes", 0),  # Nacos never punishes pings
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1),
    ("grpc.so_reuseport", 0),
)


class Failed(Exception):
    """A refusal: the class of the answer ('' for the request's own), its two codes, its message, and more fields."""

    def __init__(self, kind: str, result: int, error: int, message: str, **more: Any) -> None:
        super().__init__(message)
        self.kind = kind
        self.body = {"resultCode": result, "errorCode": error, "message": message, **more}


@dataclass(frozen=True)
class Server:
    """How one server differs from Nacos 2.5.1. Times are in seconds."""

    abilities: Mapping[str, bool] = field(default_factory=lambda: {"supportPersistentInstanceByGrpc": True})
    push_delay: float = 0.5
    close_delay: float = 0.5  # until subscribers hear that a connection is gone
    three: bool = False
    rnacos: bool = False


SERVERS = {
    "v1": Server({}, 0.75, 1.0, rnacos=True),
    "v1+v2": Server(),
    "3.0": Server(
        {"supportPersistentInstanceByGrpc": True, "fuzzyWatch": True, "lock": True, "mcp": True}, 0.59, 0.59, three=True
    ),
}
SERVERS["3.0 closed"] = SERVERS["v3"] = SERVERS["3.0"]


class Published:
    """A `Registry`: the embedded one, and what gRPC connections publish, which lives as long as they do.

    An address that is registered over HTTP and over gRPC is listed twice (nacos-grpc.md 7), by r-nacos once.
    `listeners` are called for each watched service that changed.
    """

    def __init__(self, registry: EmbeddedRegistry, *, merges: bool = False) -> None:
        self.inner = registry
        self.merges = merges
        self.listeners: list[Callable[[ServiceKey], None]] = []
        self._watched: set[ServiceKey] = set()
        self._published: dict[ServiceKey, dict[Session, tuple[Instance, ...]]] = {}
        self._following: asyncio.Task[None] | None = None

    async def send(self, call: Call[Any]) -> Any:
        if isinstance(call, Fetch):
            return self._merged(await self.inner.send(call))
        if isinstance(call, GetInstance) and call.service in self._published:
            found = self._merged(await self.inner.send(Fetch(call.service))).find(call.ip, call.port, call.cluster)
            if found is not None:
                return found
        if isinstance(call, Register) and not call.instance.ephemeral and call.service in self._published:
            raise Refused(Reason.WRONG_KIND, wrong_kind(call.service, "ephemeral", "register persistent"))
        result = await self.inner.send(call)
        if isinstance(call, ListServices) and self._published:
            return await self._list(call)
        return result

    async def close(self) -> None:
        await stop(self._following)
        await self.inner.close()

    def watch(self, key: ServiceKey) -> None:
        """From now on listeners hear of each change of this service."""
        self._watched.add(key)
        self.inner.watch(self._watched)
        if self._following is None:
            self._following = spawn(self._follow(), name="changes of a stand-in")

    def of(self, key: ServiceKey, session: Session) -> tuple[Instance, ...]:
        return self._published.get(key, {}).get(session, ())

    async def publish(self, session: Session, key: ServiceKey, instances: Iterable[Instance], *, what: str) -> None:
        """Makes `instances` the value of this session. Raises `Refused` for a persistent service."""
        if not self.merges and any(not i.ephemeral for i in (await self.inner.send(Fetch(key))).instances):
            raise Refused(Reason.WRONG_KIND, wrong_kind(key, "persistent", f"{what} ephemeral"))
        self._set(session, key, tuple(instances))

    def withdraw(self, session: Session, key: ServiceKey) -> None:
        self._set(session, key, ())

    def end(self, session: Session) -> None:
        for key in [key for key, sessions in self._published.items() if session in sessions]:
            self._set(session, key, ())

    def _set(self, session: Session, key: ServiceKey, instances: tuple[Instance, ...]) -> None:
        sessions = self._published.setdefault(key, {})
        before = sessions.pop(session, ())
        if instances:
            sessions[session] = instances
        if not sessions:
            del self._published[key]
        if before != instances:
            self._changed(key)

    def _changed(self, key: ServiceKey) -> None:
        for listener in self.listeners:
            listener(key)

    async def _follow(self) -> None:
        async for changed in self.inner.changes():
            self._changed(changed.key)

    def _merged(self, snapshot: Snapshot) -> Snapshot:
        published = self._published.get(snapshot.key)
        if not published:
            return snapshot
        own = [instance for instances in published.values() for instance in instances]
        if self.merges:
            return snapshot.with_instances((*snapshot.instances, *own))
        return replace(snapshot, instances=tuple(sorted((*snapshot.instances, *own), key=lambda i: i.key)))

    async def _list(self, call: ListServices) -> ServicePage:
        every = await self.inner.send(replace(call, page=1, size=100_000))
        names = {k.name for k in self._published if (k.namespace, k.group) == (call.namespace, call.group)}
        names = sorted(names.union(every.names))
        first = (max(1, call.page) - 1) * call.size
        return ServicePage(len(names), tuple(names[first : first + call.size]))


def wrong_kind(key: ServiceKey, kind: str, what: str) -> str:
    return f"errCode: 400, errMsg: Current service {key.grouped} is {kind} service, can't {what} instance. "


@dataclass(eq=False)
class Session:
    """One TCP connection. `known` after its setup. `name` is the client's `ip_port`."""

    id: str
    name: str
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    active: float
    setup: Mapping[str, Any] = field(default_factory=dict)
    known: bool = False
    sending: asyncio.Queue[bytes | None] | None = None  # what goes out on the stream; None ends it
    subscribed: dict[ServiceKey, str] = field(default_factory=dict)
    listening: set[tuple[str, str, str]] = field(default_factory=set)
    waiting: dict[str, asyncio.Task[None]] = field(default_factory=dict)  # for an acknowledgement, by request id
    gate: asyncio.Event = field(default_factory=asyncio.Event)  # closed: bytes wait in both directions


class GrpcNacos:
    """The gRPC side of a stand-in, on `port` of 127.0.0.1 while it is started.

    `send` performs a call as the HTTP side does. `refusal(token, service name)` says why a token is refused, or None.
    `lag(service)`: seconds until this node of a cluster lists a change; it pushes right after that.

    Faults, to be changed at any time:
        starting     answers everything with 300, as a server that is not ready
        silent       types of requests that are never answered
        losing       no push is sent, as if lost
        negotiates   whether the server check promises an acknowledgement of the setup (r-nacos does not)
        push_delay   seconds from a change to its push
    Methods end, reset, forget or hold back single sessions; `stop` and `start` are an outage.
    `asked` lists the types of all unary requests, `acked` those of all acknowledgements.
    """

    def __init__(
        self,
        face: str,
        published: Published,
        clock: Clock,
        *,
        send: Callable[[Call[Any]], Awaitable[Any]] | None = None,
        refusal: Callable[[str, str], str | None] = lambda token, name: None,
        lag: Callable[[ServiceKey], float] = lambda key: 0.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.server = SERVERS[face]
        self.published, self.clock = published, clock
        self.send = send or published.send
        self.refusal, self.lag = refusal, lag
        self.tls = tls
        self.port = 0
        self.push_delay = self.server.push_delay
        self.negotiates = not self.server.rnacos
        self.starting = False
        self.losing = False
        self.silent: set[str] = set()
        self.asked: list[str] = []
        self.acked: list[str] = []
        self.sessions: list[Session] = []
        self.configs: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._numbers = count(1)
        self._by_port: dict[int, Session] = {}
        self._pushing: dict[ServiceKey, asyncio.Task[None]] = {}
        self._again: set[ServiceKey] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._grpc: grpc.aio.Server | None = None
        self._listening: asyncio.Server | None = None
        self._looking: asyncio.Task[None] | None = None

    # life

    async def start(self, port: int = 0) -> None:
        """Listens on `port`, by default the one of the last start or any. Raises `OSError` if it is taken."""
        self._grpc = grpc.aio.server(options=OPTIONS)
        unary = {"request": grpc.unary_unary_rpc_method_handler(self._unary)}
        stream = {"requestBiStream": grpc.stream_stream_rpc_method_handler(self._stream)}
        self._grpc.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler("Request", unary),
                grpc.method_handlers_generic_handler("BiRequestStream", stream),
            )
        )
        inner = self._grpc.add_insecure_port("127.0.0.1:0")
        await self._grpc.start()

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._relay(reader, writer, inner)

        self._listening = await asyncio.start_server(
            relay, "127.0.0.1", port or self.port, ssl=self.tls, limit=1 << 20, backlog=1024
        )
        self.port = self._listening.sockets[0].getsockname()[1]
        self.published.listeners.append(self._changed)
        self._looking = spawn(self._look(), name="detection of a stand-in")

    async def stop(self) -> None:
        """Closes all connections, as a server that ends: what they published is gone."""
        if self._listening is None or self._grpc is None:
            return
        self._listening.close()
        self._listening = None
        await stop(self._looking)
        if self._changed in self.published.listeners:
            self.published.listeners.remove(self._changed)
        for session in tuple(self.sessions):
            self._end(session)
            session.client.close()
        await self._grpc.stop(None)
        for task in (*self._tasks, *self._pushing.values()):
            await stop(task)
        self._pushing.clear()

    @property
    def listening(self) -> bool:
        return self._listening is not None

    @property
    def known(self) -> list[Session]:
        """The sessions that have been set up and live."""
        return [session for session in self.sessions if session.known]

    def subscribers(self, key: ServiceKey) -> list[Session]:
        return [session for session in self.sessions if key in session.subscribed]

    # faults

    def end(self, session: Session) -> None:
        """Ends the stream with OK and closes the TCP connection, as after an unanswered detection."""
        self.end_stream(session)
        self._end(session)
        self._later(0.05, session.client.close)

    def end_stream(self, session: Session) -> None:
        """Ends only the stream, with OK."""
        if session.sending is not None:
            session.sending.put_nowait(None)

    def drop(self, session: Session) -> None:
        """Resets the TCP connection, as a server that is killed."""
        transport = session.client.transport
        transport.abort()
        self._end(session)

    def forget(self, session: Session) -> None:
        """Answers the session with 301 from now on; the stream and the TCP connection stay open."""
        self._end(session)

    def hold(self, session: Session) -> None:
        """Passes nothing in either direction until `let_go`, as a network that loses everything."""
        session.gate.clear()

    def let_go(self, session: Session) -> None:
        session.gate.set()

    def reset(self, session: Session, host: str | None = None, port: int | None = None) -> str:
        """Asks the client to connect anew, to another server if one is named; returns the request's id."""
        address = {} if host is None else {"serverIp": host, "serverPort": str(port)}
        return self._request(session, "ConnectResetRequest", {**address, "module": "internal"})

    def detect(self, session: Session) -> str:
        """Asks whether the client is alive; returns the request's id."""
        return self._request(session, "ClientDetectionRequest", {"module": "internal"})

    async def notify(self, session: Session, key: ServiceKey) -> None:
        """Pushes the service to one session now. Without an ack in 5 s it is pushed again 1 s later, with a new id."""
        snapshot: Snapshot = await self.send(Fetch(key))
        if key not in session.subscribed or self.losing:
            return
        info = self._info(snapshot, session.subscribed[key])
        names = {"namespace": key.namespace, "serviceName": key.name, "groupName": key.group}
        body = {**(names if self.server.rnacos else {}), "serviceInfo": info, "module": "naming"}
        number = self._request(session, "NotifySubscriberRequest", body)

        async def unacknowledged() -> None:
            await self.clock.sleep_until(self.clock.now() + 6.0)
            session.waiting.pop(number, None)
            await self.notify(session, key)

        session.waiting[number] = self._spawn(unacknowledged(), "unacknowledged push")

    # relay of TCP connections

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, inner: int) -> None:
        try:
            answers, server = await asyncio.open_connection("127.0.0.1", inner, limit=1 << 20)
        except OSError:
            writer.close()
            return
        ip, port = writer.get_extra_info("peername")[:2]
        number = next(self._numbers)
        name = f"{ip}_{port}"
        shown = f"{number}_{ip}:{port}" if self.server.rnacos else f"{self._now_ms()}_{name}"
        session = Session(shown, name, writer, server, self.clock.now())
        session.gate.set()
        inside = server.get_extra_info("sockname")[1]
        self._by_port[inside] = session
        self.sessions.append(session)
        back = spawn(_pass(answers, writer, session.gate), name="relay to the client")
        try:
            await _pass(reader, server, session.gate)
            server.close()
            await asyncio.wait([back])
        except asyncio.CancelledError:
            pass  # the loop ends
        finally:
            await stop(back)
            writer.close()
            server.close()
            del self._by_port[inside]
            self._later(self.server.close_delay - self.push_delay, lambda: self._end(session))

    # unary

    async def _unary(self, message: bytes, context: Any) -> bytes:
        asked, session = unpack(message), self._session(context)
        self.asked.append(asked.type)
        if asked.type in self.silent:
            await asyncio.Event().wait()
        session.active = self.clock.now()
        try:
            kind, result = await self._answer(session, asked)
        except Failed as failed:
            return pack(failed.kind or self._response(asked.type), self._shaped(failed.body, success=False))
        return pack(kind, self._shaped({"resultCode": 200, "errorCode": 0, **result}))

    def _shaped(self, result: dict[str, Any], *, success: bool = True) -> dict[str, Any]:
        """r-nacos writes null, never `success` (its recordings)."""
        return {"message": None, "requestId": None, **result} if self.server.rnacos else {**result, "success": success}

    def _response(self, kind: str) -> str:
        return (NAMING_RESPONSES | CONFIG_RESPONSES).get(kind, "ErrorResponse")

    async def _answer(self, session: Session, asked: Packed) -> tuple[str, dict[str, Any]]:
        if self.starting:
            raise Failed("ErrorResponse", 500, 300, "Server is starting,please try later.")
        if asked.type == "ServerCheckRequest":
            promise = {"supportAbilityNegotiation": True} if self.negotiates else {}
            return "ServerCheckResponse", {"connectionId": session.id, **promise}
        known = {"HealthCheckRequest", *NAMING_RESPONSES, *CONFIG_RESPONSES, *OF_CLUSTERS}
        if self.server.rnacos:
            self._check_known(session)
            known -= {"PersistentInstanceRequest", *OF_CLUSTERS}
        if asked.type not in known:
            named = f"{asked.type} " if self.server.rnacos else ""
            raise Failed("ErrorResponse", 500, 302, f"{named}RequestHandler Not Found")
        self._check_known(session)
        if asked.type in OF_CLUSTERS:
            raise Failed("ErrorResponse", 500, 502, f" invoke {asked.type} from sdk is forbidden")
        if asked.type == "HealthCheckRequest":
            return "HealthCheckResponse", {}
        try:
            body = read_json(asked.raw)
        except ValueError:
            code = 500 if self.server.rnacos else 502
            raise Failed("ErrorResponse", 500, code, "errCode: 101, errMsg: Nacos deserialize failed.  ") from None
        self._check_token(asked, body)
        if asked.type in CONFIG_RESPONSES:
            return self._response(asked.type), self._configure(session, asked.type, body)
        return self._response(asked.type), await self._name(session, asked.type, body)

    def _check_known(self, session: Session) -> None:
        if not session.known:
            raise Failed("ErrorResponse", 500, 301, "Connection is unregistered.")

    def _check_token(self, asked: Packed, body: Mapping[str, Any]) -> None:
        why = self.refusal(asked.headers.get("accessToken", ""), body.get("serviceName") or "")
        if why is not None and self.server.rnacos:
            raise Failed("ErrorResponse", 500, 403, "user not login")
        if why is not None:
            raise Failed("", 500, 403, why)

    # naming

    async def _name(self, session: Session, kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
        namespace, group, name = (str(body.get(part) or "") for part in ("namespace", "groupName", "serviceName"))
        if self.server.rnacos:  # nulls and '' mean the defaults
            namespace, group = namespace or "public", group or "DEFAULT_GROUP"
        key = ServiceKey(namespace, group, name)
        clusters = str(body.get("cluster" if kind == "ServiceQueryRequest" else "clusters") or "")
        try:
            if not self.server.rnacos:
                NACOS.service(key)
                for cluster in clusters.split(","):
                    NACOS.cluster(cluster)
            if kind in ("InstanceRequest", "BatchInstanceRequest", "PersistentInstanceRequest"):
                return await self._write(session, kind, key, body)
        except BadCall as error:
            if error.violation is Violation.INSTANCE:
                raise Failed("ErrorResponse", 400, 400, str(error)) from None
            more = {"count": 0} if kind == "ServiceListRequest" else {}
            raise Failed("", 500, 400, f"Param check invalid:{error}", **more) from None
        except ProxyError as error:
            raise Failed("ErrorResponse", 400, 400, str(error)) from None
        if kind == "ServiceListRequest":
            listing = ListServices(namespace, group, body.get("pageNo") or 1, body.get("pageSize") or 0)
            page: ServicePage = await self.send(listing)
            return {"count": page.count, "serviceNames": list(page.names)}
        snapshot: Snapshot = await self.send(Fetch(key))
        if kind == "ServiceQueryRequest":
            return {"serviceInfo": self._info(snapshot, clusters, healthy_only=bool(body.get("healthyOnly")))}
        self._check_name(key)
        if body.get("subscribe"):
            first = key not in session.subscribed
            session.subscribed[key] = clusters  # the newer filter replaces the older one
            self.published.watch(key)
            if first:  # a push follows, even of nothing, but none after a change of the filter
                self._later(self.push_delay, lambda: self._notify_soon(session, key))
        else:
            session.subscribed.pop(key, None)
        return {"message": "success", "serviceInfo": self._info(snapshot, clusters)}

    def _check_name(self, key: ServiceKey) -> None:
        if not key.name.strip() and not self.server.rnacos:
            raise Failed("ErrorResponse", 500, 500, "Param 'serviceName' is illegal, serviceName is blank")

    async def _write(self, session: Session, kind: str, key: ServiceKey, body: Mapping[str, Any]) -> dict[str, Any]:
        """In the order of Nacos's checks: parameters, name, type, instance, kind of the service."""
        verb = body.get("type") or ""
        batch = kind == "BatchInstanceRequest"
        persistent = kind == "PersistentInstanceRequest"
        sent = (body.get("instances") or []) if batch else [body.get("instance")]
        if self.server.rnacos:
            return await self._write_rnacos(session, key, verb, batch, sent)
        for one in sent:
            if one is not None:
                NACOS.port(int(one.get("port") or 0))
                NACOS.metadata(read_metadata(one))
                NACOS.cluster(one.get("clusterName") or "")
        self._check_name(key)
        if verb not in (("batchRegisterInstance",) if batch else ("registerInstance", "deregisterInstance")):
            raise Failed("ErrorResponse", 400, 400, f"Unsupported request type {verb}")
        if None in sent and verb == "deregisterInstance":
            raise Failed("ErrorResponse", 500, 500, NO_INSTANCE)
        if None in sent:
            raise Failed("ErrorResponse", 400, 400, "Instance can not be null.")
        instances = [read_instance(one, key, ephemeral=not persistent) for one in sent]
        if verb == "deregisterInstance":
            if persistent:
                await self.send(Deregister(key, instances[0].ip, instances[0].port, ephemeral=False))
            else:
                self.published.withdraw(session, key)
            return {"type": verb}
        if not batch:
            NACOS.instance(instances[0])
        if persistent:
            await self.send(Register(key, instances[0]))
        else:
            what = "batch register" if batch else "register"
            await self.published.publish(session, key, instances, what=what)
        return {"type": verb}

    async def _write_rnacos(
        self, session: Session, key: ServiceKey, verb: str, batch: bool, sent: list[Any]
    ) -> dict[str, Any]:
        """r-nacos adds by address, and removes only the address named (nacos-grpc.md 4)."""
        if None in sent:
            raise Failed("ErrorResponse", 500, 500, "instance is empty")
        if batch and not sent:
            return {"resultCode": 0, "type": None}
        instances = [read_instance(one, key, ephemeral=bool(one.get("ephemeral", True))) for one in sent]
        named = {(i.ip, i.port) for i in instances}
        kept = [i for i in self.published.of(key, session) if (i.ip, i.port) not in named]
        added = () if verb == "deregisterInstance" else instances
        await self.published.publish(session, key, (*kept, *added), what="register")
        return {"type": verb if verb == "deregisterInstance" else "registerInstance"}

    def _info(self, snapshot: Snapshot, clusters: str, *, healthy_only: bool = False) -> dict[str, Any]:
        wanted = frozenset(part.strip() for part in clusters.split(",") if part.strip())
        selection = snapshot.select(frozenset() if self.server.rnacos else wanted, healthy_only)
        key = snapshot.key
        hosts = [host_json(host, key) for host in selection.hosts]
        for host in hosts:
            if self.server.rnacos:
                for name in ("instanceHeartBeatInterval", "instanceHeartBeatTimeOut", "ipDeleteTimeout"):
                    del host[name]
        info: dict[str, Any] = {"name": key.name, "groupName": key.group, "clusters": clusters, "cacheMillis": 10_000}
        info |= {"hosts": hosts, "lastRefTime": self._now_ms(), "checksum": ""}
        info |= {"allIps" if self.server.three else "allIPs": False, "reachProtectionThreshold": selection.protected}
        if not key.group:
            del info["groupName"]
        return info if self.server.rnacos else {**info, "valid": True}

    # configuration

    def _configure(self, session: Session, kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if kind == "ConfigBatchListenRequest":
            return self._listen(session, body)
        place = (body.get("tenant") or "", body.get("group") or "", body.get("dataId") or "")
        stored = self.configs.get(place)
        if kind == "ConfigQueryRequest":
            if stored is None:
                empty = {"content": "", **dict.fromkeys(("contentType", "encryptedDataKey", "md5", "tag"))}
                more = empty if self.server.rnacos else {}
                raise Failed("", 500, 300, "config data not exist", lastModified=0, beta=False, **more)
            more = {"encryptedDataKey": None, "tag": None} if self.server.rnacos else {"encryptedDataKey": ""}
            return {**stored, **more, "beta": False}
        if kind == "ConfigRemoveRequest":
            self.configs.pop(place, None)
        else:
            expected = body.get("casMd5") or ""
            if expected and not self.server.rnacos and (stored is None or stored["md5"] != expected):
                raise Failed("", 500, 500, "Cas publish fail, server md5 may have changed.")
            content = body.get("content") or ""
            kind_of = (body.get("additionMap") or {}).get("type") or "text"
            md5 = hashlib.md5(content.encode()).hexdigest()
            entry = {"content": content, "contentType": kind_of, "md5": md5, "lastModified": self._now_ms()}
            self.configs[place] = entry
        names = {"dataId": place[2], "group": place[1]}
        if place[0] or self.server.rnacos:
            names["tenant"] = place[0]
        for other in self.sessions:
            if place in other.listening:
                self._request(other, "ConfigChangeNotifyRequest", {**names, "module": "config"})
        return {}

    def _listen(self, session: Session, body: Mapping[str, Any]) -> dict[str, Any]:
        changed: list[dict[str, str]] = []
        for context in body.get("configListenContexts") or ():
            place = (context.get("tenant") or "", context["group"], context["dataId"])
            if not body.get("listen", True):
                session.listening.discard(place)
                continue
            session.listening.add(place)
            if self.configs.get(place, {}).get("md5", "") != (context.get("md5") or ""):
                changed.append({"group": place[1], "dataId": place[2], "tenant": place[0]})
        return {"changedConfigs": changed}

    # the stream

    async def _stream(self, _: AsyncIterator[bytes], context: Any) -> None:
        session = self._session(context)
        session.sending = sending = asyncio.Queue()
        reading = self._spawn(self._read(session, context), "stream of a stand-in")
        reading.add_done_callback(lambda _: sending.put_nowait(None))
        try:
            while (message := await sending.get()) is not None:
                await context.write(message)
        finally:
            session.sending = None
            await stop(reading)
            if self.server.rnacos:  # Nacos keeps the session until it is silent for too long (nacos-grpc.md 7)
                self._end(session)

    async def _read(self, session: Session, context: Any) -> None:
        while (data := await context.read()) is not grpc.aio.EOF:
            message = unpack(data)
            if message.type == "ConnectionSetupRequest":
                if self.starting:
                    return
                setup = message.body
                session.setup, session.known, session.active = setup, True, self.clock.now()
                if setup.get("abilityTable") is not None and self.negotiates:
                    self._tell(
                        session, "SetupAckRequest", {"abilityTable": self.server.abilities, "module": "internal"}
                    )
            elif message.type.endswith("Response"):
                self.acked.append(message.type)
                session.active = self.clock.now()
                if (waiting := session.waiting.pop(message.body.get("requestId") or "", None)) is not None:
                    waiting.cancel()

    def _request(self, session: Session, kind: str, body: Mapping[str, Any]) -> str:
        number = str(next(self._numbers))
        self._tell(session, kind, {"requestId": number, **body})
        return number

    def _tell(self, session: Session, kind: str, body: Mapping[str, Any]) -> None:
        if session.sending is not None:
            client_ip = "" if self.server.rnacos else OWNER
            session.sending.put_nowait(pack(kind, {"headers": {}, **body}, client_ip=client_ip))

    # sessions and pushes

    def _session(self, context: Any) -> Session:
        found = re.search(r":(\d+)$", context.peer())
        assert found is not None, context.peer()
        return self._by_port[int(found[1])]

    def _end(self, session: Session) -> None:
        """Forgets the session and what it published."""
        if session in self.sessions:
            self.sessions.remove(session)
        session.known = False
        session.subscribed.clear()
        session.listening.clear()
        for waiting in session.waiting.values():
            waiting.cancel()
        session.waiting.clear()
        self.published.end(session)

    async def _look(self) -> None:
        """Every 3 s: asks clients that are silent for 20 s, and ends those that have not answered 5 s later."""
        while True:
            await self.clock.sleep_until(self.clock.now() + 3.0)
            now = self.clock.now()
            silent = [session for session in self.known if now - session.active >= 20.0]
            asked = [session for session in silent if session.sending is not None]
            for session in silent:
                if session in asked:
                    self.detect(session)
                else:
                    self.end(session)
            if asked:
                await self.clock.sleep_until(now + 5.0)
            for session in asked:
                if session.active < now and session.known:
                    self.end(session)

    def _changed(self, key: ServiceKey) -> None:
        if key in self._pushing:
            if self.lag(key):  # the pending push may still show what was before this change
                self._again.add(key)
        elif self.subscribers(key):
            self._pushing[key] = self._spawn(self._push(key), "push of a stand-in")

    async def _push(self, key: ServiceKey) -> None:
        await self.clock.sleep_until(self.clock.now() + max(self.push_delay, self.lag(key)))
        del self._pushing[key]
        for session in self.subscribers(key):
            await self.notify(session, key)
        if key in self._again:
            self._again.discard(key)
            self._changed(key)

    def _notify_soon(self, session: Session, key: ServiceKey) -> None:
        if key not in self._pushing:
            self._spawn(self.notify(session, key), "first push of a stand-in")

    def _later(self, seconds: float, do: Callable[[], object]) -> None:
        async def wait() -> None:
            await self.clock.sleep_until(self.clock.now() + seconds)
            do()

        self._spawn(wait(), "later, in a stand-in")

    def _spawn(self, work: Any, name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = spawn(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _now_ms(self) -> int:
        return int(self.clock.wall() * 1000)

    def __repr__(self) -> str:
        kinds = Counter(len(session.subscribed) for session in self.known)
        return f"<GrpcNacos on {self.port}, {len(self.known)} sessions, subscriptions {dict(kinds)}>"


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            await gate.wait()
            writer.write(data)
            await writer.drain()


def read_json(raw: bytes) -> dict[str, Any]:
    """The body, if Jackson would accept it for these classes. Raises `ValueError`."""
    body = json.loads(raw)
    if not isinstance(body, dict):
        raise ValueError("not an object")
    for one in (body.get("instance"), *(body.get("instances") or ())):
        if not isinstance(one, dict | None):
            raise ValueError("an instance is not an object")
        for name, value in (one or {}).items():
            if name in ("healthy", "enabled", "ephemeral") and value in ("yes", "no"):
                raise ValueError(f"{name} is not a boolean")
            if name == "metadata" and any(isinstance(text, dict | list) for text in (value or {}).values()):
                raise ValueError("metadata is not text")
    return body


def read_metadata(sent: Mapping[str, Any]) -> dict[str, str | None]:
    """Numbers and booleans become text."""
    items = (sent.get("metadata") or {}).items()
    return {name: json.dumps(value) if isinstance(value, bool | float | int) else value for name, value in items}


def read_instance(sent: Mapping[str, Any], key: ServiceKey, *, ephemeral: bool) -> Instance:
    """An instance as a client sends it: null, '' and absent mean the default. Its id has the cluster as sent."""
    cluster = sent.get("clusterName")
    ip, port = sent.get("ip"), int(sent.get("port") or 0)
    shown = "null" if cluster is None else cluster
    usual = cluster or "DEFAULT"
    return Instance(
        ip or "",
        port,
        usual,
        float(sent.get("weight", 1.0)),
        healthy=bool(sent.get("healthy", True)),
        enabled=bool(sent.get("enabled", True)),
        ephemeral=ephemeral,
        metadata=read_metadata(sent),
        instance_id="" if shown == usual else f"{ip}#{port}#{shown}#{key.grouped}",
    )
