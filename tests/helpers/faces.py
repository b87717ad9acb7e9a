"""The embedded registry as an upstream over real HTTP, with the face of one generation of servers.

face       | v1                           | v2         | v3   | as
-----------+------------------------------+------------+------+-----------------------------------
v1         | most of it, texts untyped    | 404        | 404  | r-nacos 0.8.8
1.x        | all, without parameter check | 404        | 404  | Nacos 1.4.8
v1+v2      | all                          | all        | 404  | Nacos 2.5.1
3.0        | register, beat, list, login… | 410        | all  | Nacos 3.0.3
3.0 closed | 410                          | 410        | all  | 3.0.3 without its compatibility
v3         | 404                          | 404        | all  | Nacos 3.2
"""

from __future__ import annotations

import asyncio
import re
import socket
import zlib
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count
from typing import Any

import orjson
import uvicorn
from starlette.types import Receive, Scope, Send

from nacos_proxy.frontends.answers import send_reply, to_request
from nacos_proxy.frontends.request_body import read_body
from nacos_proxy.model.calls import (
    Beat,
    CreateService,
    Deregister,
    Fetch,
    GetInstance,
    Register,
    ServerState,
    Update,
    Write,
)
from nacos_proxy.model.errors import ProxyError, Reason, Refused
from nacos_proxy.model.limits import LENIENT
from nacos_proxy.model.services import Instance, ServiceKey, Snapshot
from nacos_proxy.runtime import Clock, SystemClock, spawn, stop
from nacos_proxy.upstream.embedded.registry import EmbeddedRegistry, Limits
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos.administration import V1_WHOLE, V2_WHOLE, V3_WHOLE
from nacos_proxy.wire.nacos.base import Dialect, PushAddress, ReadService, ServiceView
from nacos_proxy.wire.nacos.shapes import as_json, as_text, error_page
from nacos_proxy.wire.nacos.udp import qualifies, write_push
from nacos_proxy.wire.nacos.v1 import V1
from tests.helpers.app import running
from tests.helpers.grpc_nacos import GrpcNacos, Published
from tests.helpers.live import GRPC_OFFSET, free_port
from tests.helpers.pair import asked_by
from tests.helpers.recordings import load

LOGINS = ("/v1/auth/login", "/v1/auth/users/login", "/v3/auth/user/login")
# What v1 of 3.0.3 still does (nacos-http.md 4.0).
STILL_OPEN = frozenset(
    {
        ("POST", "/v1/ns/instance"),
        ("DELETE", "/v1/ns/instance"),
        ("GET", "/v1/ns/instance/list"),
        ("PUT", "/v1/ns/instance/beat"),
        ("GET", "/v1/ns/service/list"),
        ("GET", "/v1/ns/operator/metrics"),
        *(("POST", path) for path in LOGINS),
    }
)
# Paths that need no token (nacos-http.md 7.1).
PUBLIC = ("/operator/metrics", "/operator/switches", "/console/", "/core/state")
NOBODY = "user not found!"


@dataclass(frozen=True)
class Face:
    """The version and the dialects of a server. `three`: it words refusals as 3.x does."""

    version: str
    dialects: tuple[Dialect, ...]
    open: frozenset[tuple[str, str]] | None = None
    gone: int = 404

    @property
    def three(self) -> bool:
        return V3_WHOLE in self.dialects


FACES = {
    "v1": Face("1.4.6", (V1,)),
    "1.x": Face("1.4.8", (V1_WHOLE,)),
    "v1+v2": Face("2.5.1", (V1_WHOLE, V2_WHOLE)),
    "3.0": Face("3.0.3", (V1_WHOLE, V3_WHOLE), STILL_OPEN, 410),
    "3.0 closed": Face("3.0.3", (V3_WHOLE,), gone=410),
    "v3": Face("3.2.0", (V3_WHOLE,)),
}


@dataclass
class Users:
    """Accounts, their passwords, admins, and the tokens given with the moment of their expiry.

    `closed`: names of services that only admins may read or write.
    `identity`: the header by which servers recognise each other; a request with it passes every check (nacos-http.md
    7.1).
    """

    passwords: Mapping[str, str]
    admins: Collection[str]
    clock: Clock
    ttl: int = 18_000
    identity: tuple[str, str] | None = None
    tokens: dict[str, tuple[str, float]] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    _numbers: Any = field(default_factory=count)

    def login(self, user: str) -> str:
        token = f"token-{next(self._numbers)}-of-{user}"
        self.tokens[token] = (user, self.clock.now() + self.ttl)
        return token

    def revoke(self) -> None:
        """Revokes all tokens, as when the server gets another secret."""
        self.tokens.clear()

    def refusal(self, request: HttpRequest) -> str | None:
        """Why a request is refused with 403, as 2.5.1 says it; None if it is allowed."""
        parameters, headers = request.parameters, request.headers
        if self.identity is not None and headers.get(self.identity[0].lower()) == self.identity[1]:
            return None
        user, password = parameters.get("username"), parameters.get("password")
        if user is not None and self.passwords.get(user) == password:
            return self._right(user, request)
        bearer = headers.get("authorization", "")
        token = bearer[len("Bearer ") :] if bearer.startswith("Bearer ") else ""
        token = token or parameters.get("accessToken") or headers.get("accesstoken") or ""
        if not token:
            return NOBODY
        user, until = self.tokens.get(token, ("", 0.0))
        if self.clock.now() >= until:
            return "token expired!" if user else "token invalid!"
        return self._right(user, request)

    def _right(self, user: str, request: HttpRequest) -> str | None:
        admin = request.path.startswith("/v3/admin/")
        service = request.parameters.get("serviceName", "").rpartition("@@")[2]
        return "authorization failed!" if (admin or service in self.closed) and user not in self.admins else None


class FaceServer:
    """An ASGI app. `asked` lists the requests as `METHOD /path`; `turn` upgrades the server to another face.

    Nacos pushes by UDP to legacy clients that request it in a v1 list: 1.x one second after a change, later versions
    half a second. A client that does not repeat the request within 10 s is forgotten.
    `odd`: hosts that each list of a service contains unchanged, as Nacos accepted them, though no client can read them.
    `listing_delay`: seconds until a read shows a write, once the service has been read (lag.jsonl: 0.5-0.65 s).
    """

    def __init__(self, face: str, clock: Clock, listing_delay: float = 0.0, users: Users | None = None) -> None:
        self.face = FACES[face]
        self.clock = clock
        self.users = users
        self.registry: EmbeddedRegistry | Published = EmbeddedRegistry(clock, Limits(listing_delay=listing_delay))
        self.grpc: GrpcNacos | None = None
        self.asked: list[str] = []
        self.odd: dict[ServiceKey, list[Any]] = {}
        self.url = ""
        self._pushing: dict[ServiceKey, asyncio.Task[None]] = {}
        self.subscribers: dict[tuple[ServiceKey, PushAddress], float] = {}

    def turn(self, face: str) -> None:
        self.face = FACES[face]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(scope, receive, 1 << 20)
        request = to_request(scope, scope["path"].removeprefix("/nacos"), body)
        self.asked.append(f"{request.method} {request.path}")
        if self.face is FACES["1.x"]:  # 1.x ignores the form of a POST, except of a login, and checks no parameters
            form = () if request.method == "POST" and request.path not in LOGINS else request.form
            request = request._replace(form=form, rules=LENIENT)
        reply = self._gone(request) or self._login(request) or self._barred(request) or await self._answer(request)
        await send_reply(send, self._accent(request, reply), head_only=request.method == "HEAD")

    # refusals of a face

    def _gone(self, request: HttpRequest) -> HttpReply | None:
        spoken = request.path[1:3]
        place = (request.method, request.path.rstrip("/"))
        if any(d.name == spoken for d in self.face.dialects):
            if self.face is FACES["v1"]:
                return HttpReply(404, None, b"") if place in absent() or request.path.endswith("/") else None
            if spoken == "v3" or self.face.open is None or place in self.face.open:
                return None
        if self.face.gone == 410 and spoken != "v3":
            return error_page(request, 410, gone_messages().get(place, GONE), self._now_ms())
        if self.face is FACES["v1"]:
            return HttpReply(404, None, b"")
        return error_page(request, 404, "No message available", self._now_ms())

    # permissions

    def _login(self, request: HttpRequest) -> HttpReply | None:
        if request.path not in LOGINS or request.method != "POST":
            return None
        users = self.users or Users({}, (), self.clock)
        user, password = (request.parameters.get(name) for name in ("username", "password"))
        if user is None or password is None or users.passwords.get(user) != password:
            return self._no_login(request, user, users)
        answer = {"accessToken": users.login(user), "tokenTtl": users.ttl}
        return as_json({**answer, "globalAdmin": user in users.admins, "username": user})

    def _no_login(self, request: HttpRequest, user: str | None, users: Users) -> HttpReply:
        if request.path.startswith("/v3/"):
            unknown = user is not None and user not in users.passwords
            status, text = (403, "Access Denied") if unknown else (500, "No message available")
            return error_page(request, status, text, self._now_ms())
        if self.face.three:
            missing = (400, "Required parameter 'username' is not present.")
            status, text = (
                missing if user is None else (500, "Handle API Compatibility failed, please see log for detail.")
            )
            return error_page(request, status, text, self._now_ms())
        if user is None:
            what = "Required request parameter &#39;username&#39; for method parameter type String is not present"
            return as_text(f"caused: {what};", 500)
        if user not in users.passwords:
            return as_text(f"caused: User {user} not found;", 500)
        return as_text(NOBODY, 403)

    def _barred(self, request: HttpRequest) -> HttpReply | None:
        if self.users is None or any(part in request.path for part in PUBLIC):
            return None
        why = self.users.refusal(request)
        if why is None:
            return None
        if self.face.three:
            code = 403 if why.startswith("authorization") else 401
            why = "User not found! Please check user exist or password is right!" if why == NOBODY else why
            why = f"Code: {code}, Message: {why}."
        return error_page(request, 403, why, self._now_ms())

    # operations

    async def _answer(self, request: HttpRequest) -> HttpReply:
        """Overridden by a face that forwards the request or answers something else."""
        if request.parameters.get("beat") == "{}":  # Nacos stores an instance without an ip
            key = ServiceKey.of(request.parameters["serviceName"], request.parameters.get("groupName"))
            self.odd.setdefault(key, []).append({"port": 0, "weight": 1.0, "healthy": True, "metadata": {}})
            return as_json({"clientBeatInterval": 5000, "code": 10200, "lightBeatEnabled": True})
        cluster = request.parameters.get("clusterName", "")
        if self.face is FACES["1.x"] and not re.fullmatch(r"[0-9a-zA-Z-]*", cluster):
            text = f"cluster name can only have these characters: 0-9a-zA-Z-, current: {cluster}"
            return as_text(text, 400)
        return await self._perform(request)

    async def _perform(self, request: HttpRequest) -> HttpReply:
        dialect = next((d for d in self.face.dialects if d.name == request.path[1:3]), self.face.dialects[0])
        operation = dialect.match(request.method, request.path)
        if operation is None:
            if dialect.owns(request.path):
                return dialect.unknown(request, self._now_ms())
            return error_page(request, 404, "No message available", self._now_ms())
        try:
            call = self._meant(operation.read_request(request))
            result = await self._send(asked_by(call))
            if isinstance(call, Write) and call.service not in self._pushing:
                self._pushing[call.service] = spawn(self._push(call.service), name=f"push of {call.service}")
            if isinstance(call, ReadService):
                if call.push is not None and qualifies(call.push.agent) and self.face is not FACES["v1"]:
                    self.subscribers[call.service, call.push] = self.clock.now() + 10.0
                snapshot = replace(result, last_ref_time=self._now_ms())
                result = ServiceView(snapshot, snapshot.select(call.cluster_set, call.healthy_only))
            if isinstance(call, ServerState):
                result = {**result, "version": self.face.version, "auth_enabled": str(self.users is not None).lower()}
            reply = operation.write_reply(call, result)
        except ProxyError as error:
            return dialect.write_error(request, error, self._now_ms())
        if isinstance(call, ReadService) and call.service in self.odd:
            answer = orjson.loads(reply.body)
            listed = answer.get("data", answer)
            (listed if isinstance(listed, list) else listed["hosts"]).extend(self.odd[call.service])
            reply = as_json(answer)
        return reply

    async def _push(self, key: ServiceKey) -> None:
        await self.clock.sleep_until(self.clock.now() + (1.0 if self.face is FACES["1.x"] else 0.5))
        del self._pushing[key]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for (service, address), until in self.subscribers.items():
                if service == key and self.clock.now() < until:
                    packet = write_push(orjson.dumps({"name": key.grouped, "hosts": []}), 1)
                    sender.sendto(packet or b"", (address.ip, address.port))

    async def speak_grpc(self, port: int) -> None:
        """Starts the gRPC side, which has the same services and accounts."""
        merges = self.face is FACES["v1"]
        if isinstance(self.registry, EmbeddedRegistry):
            self.registry = Published(self.registry, merges=merges)
        name = next(name for name, face in FACES.items() if face is self.face)
        self.grpc = GrpcNacos(
            name, self.registry, self.clock, send=self._send, refusal=self._token_refusal, lag=self._lag
        )
        await self.grpc.start(port)

    def _lag(self, key: ServiceKey) -> float:
        return 0.0

    def _token_refusal(self, token: str, service: str) -> str | None:
        if self.users is None:
            return None
        return self.users.refusal(HttpRequest("GET", "", (("serviceName", service),), (), {"accesstoken": token}))

    async def close(self) -> None:
        if self.grpc is not None:
            await self.grpc.stop()
        for task in tuple(self._pushing.values()):
            await stop(task)
        await self.registry.close()

    async def _send(self, call: Any) -> Any:
        """Sends to the registry. On 1.x each cluster at an address is an instance of its own (nacos-http.md 5.1)."""
        if self.face is not FACES["1.x"]:
            return await self.registry.send(call)
        result = await self.registry.send(_inside(call))
        return _outside(result) if isinstance(result, Snapshot | Instance) else result

    def _meant(self, call: Any) -> Any:
        """r-nacos lists all clusters, and its services may hold both kinds of instances."""
        if self.face is FACES["v1"] and isinstance(call, CreateService):
            return replace(call, ephemeral=True)
        if self.face is FACES["v1"] and type(call) is ReadService:
            return replace(call, clusters="")
        return call

    def _accent(self, request: HttpRequest, reply: HttpReply) -> HttpReply:
        """Differences between servers that speak the same dialect (recordings)."""
        body, kind = reply.body, reply.content_type
        if self.face is FACES["v1"] and (kind or "").startswith("text/"):
            kind = None
        if self.face.three:
            body = body.replace(b'"allIPs":', b'"allIps":')
        if self.face is FACES["1.x"]:
            pushed = int(request.parameters.get("udpPort") or 0) and qualifies(request.headers.get("user-agent", ""))
            return _as_1x(request, reply, 10_000 if pushed else 3000)
        if not request.path.startswith("/v1/"):  # instances registered by v2 or v3 have no id
            body = re.sub(rb'"instanceId":"[^"]*",', b"", body)
        return HttpReply(reply.status, kind, body, reply.headers)

    def _now_ms(self) -> int:
        return int(self.clock.wall() * 1000)


def _inside(call: Any) -> Any:
    """Puts the cluster into the address, so that the registry keeps one instance per cluster."""
    if isinstance(call, Register):
        i = call.instance
        return replace(call, instance=replace(i, ip=f"{i.ip}|{i.cluster}"))
    if isinstance(call, Deregister | Update | Beat | GetInstance):
        full = getattr(call, "full", None)
        more = {} if full is None else {"full": replace(full, ip=f"{full.ip}|{full.cluster}")}
        return replace(call, ip=f"{call.ip}|{call.cluster}", **more)
    return call


def _outside(found: Any) -> Any:
    if isinstance(found, Instance):
        return replace(found, ip=found.ip.partition("|")[0])
    return Snapshot.of(found.key, [_outside(i) for i in found.instances])


def _as_1x(request: HttpRequest, reply: HttpReply, cache_millis: int) -> HttpReply:
    """Rewrites a reply as 1.4.8 answers."""
    if reply.status >= 400 and (reply.content_type or "").startswith("text/"):
        text = reply.body.decode()
        absent = request.method == "GET" and ("found" in text or "no ips" in text)
        wrapped = text if text.startswith("caused: ") else f"caused: {text};"
        return as_text(wrapped, 500 if absent else reply.status)
    if request.path == "/v1/ns/instance/list" and reply.status == 200:
        answer = orjson.loads(reply.body)
        name = answer["name"].partition("@@")[2]
        hosts = [{"valid": h.get("healthy"), "marked": False, **h, "serviceName": name} for h in answer["hosts"]]
        for host in hosts:
            for field in ("instanceHeartBeatInterval", "instanceHeartBeatTimeOut", "ipDeleteTimeout"):
                host.pop(field, None)
        shown = {"hosts": hosts, "dom": name, "name": answer["name"], "cacheMillis": cache_millis}
        shown |= {"lastRefTime": answer["lastRefTime"], "checksum": "0", "useSpecifiedURL": False}
        return as_json({**shown, "clusters": answer["clusters"], "env": "", "metadata": {}})
    return reply


class Node(FaceServer):
    """A node of a cluster over one registry. Each node is responsible for some instances and forwards writes of others.

    `turmoil` (status, text): its answer to a write that it has to forward, as when a peer dies or returns. `returned`:
    it has just come back and lists every instance as unhealthy. The node responsible for a service lists a change after
    0.6 s, the others after 1.2 to 1.7 s. A forwarded DELETE loses its form and is answered 500 after 2 s.
    """

    def __init__(self, number: int, nodes: list[Node], clock: Clock, lagging: bool) -> None:
        super().__init__("v1+v2", clock)
        self.number, self.nodes = number, nodes
        self.lagging = lagging
        self.turmoil: tuple[int, str] | None = None
        self.returned = False
        self._shown: dict[ServiceKey, Snapshot] = {}
        self._due: dict[ServiceKey, float] = {}
        if nodes:
            self.registry = nodes[0].registry
        nodes.append(self)

    async def _answer(self, request: HttpRequest) -> HttpReply:
        p = request.parameters
        place = f"{p.get('ip')}:{p.get('port')}"
        mine = zlib.crc32(place.encode()) % len(self.nodes) == self.number
        if request.method != "GET" and request.path == "/v1/ns/instance" and not mine:
            if self.turmoil is not None:
                return as_text(self.turmoil[1], self.turmoil[0])
            if request.method == "DELETE" and request.form:
                await self.clock.sleep_until(self.clock.now() + 2.0)
                text = "Server failed, caused: java.net.SocketTimeoutException: Read timed out;"
                return error_page(request, 500, text, self._now_ms())
        return await super()._answer(request)

    async def _send(self, call: Any) -> Any:
        if isinstance(call, Write):
            result = await super()._send(call)
            for node in self.nodes:
                node._changed(call.service)
            return result
        if isinstance(call, Fetch):
            shown = await self._view(call.service)
            unwell = (replace(i, healthy=False) for i in shown.instances)
            return shown.with_instances(unwell) if self.returned else shown
        if isinstance(call, GetInstance):
            found = (await self._view(call.service)).find(call.ip, call.port, call.cluster)
            if found is None:
                raise Refused(Reason.INSTANCE_NOT_FOUND, "no matched ip found!", status=404)
            return found
        return await super()._send(call)

    def _lag(self, key: ServiceKey) -> float:
        share = zlib.crc32(str(key).encode())
        return 0.6 if share % len(self.nodes) == self.number else 1.2 + share % 6 / 10

    def _changed(self, key: ServiceKey) -> None:
        if self.lagging and key in self._shown:
            self._due.setdefault(key, self.clock.now() + self._lag(key))

    async def _view(self, key: ServiceKey) -> Snapshot:
        truth = await self.registry.send(Fetch(key))
        if key in self._shown and truth != self._shown[key]:
            self._changed(key)
        if key not in self._due or self.clock.now() >= self._due[key]:
            self._due.pop(key, None)
            self._shown[key] = truth
        return self._shown[key]


@asynccontextmanager
async def clustered(
    clock: Clock | None = None, *, lagging: bool = True, grpc: bool = False
) -> AsyncIterator[list[Node]]:
    """Three nodes of a 2.5.1 cluster, each on its own port; with `grpc`, also on its port + 1000."""
    clock, nodes = clock or SystemClock(), list[Node]()
    async with AsyncExitStack() as stack:
        for number in range(3):
            node = Node(number, nodes, clock, lagging)
            config = uvicorn.Config(
                node, lifespan="off", log_config=None, access_log=False, server_header=False, ws="none"
            )
            port = free_port(and_offset=GRPC_OFFSET) if grpc else 0
            node.url = await stack.enter_async_context(running(config, port))
            if grpc:
                await node.speak_grpc(port + GRPC_OFFSET)
        try:
            yield nodes
        finally:
            for node in nodes:
                await node.close()


GONE = (
    '{"code":40000,"message":"Current API will be deprecated, If wanted continue to use, please set '
    '`nacos.core.api.compatibility.admin.enabled=true` in application.properties."}'
)


@cache
def gone_messages() -> Mapping[tuple[str, str], str]:
    """The messages of 3.0.3 for removed operations, by method and path."""
    rows = [row for name in ("v3-only", "nacos-3.0.3") for row in load(name) if row.status == 410]
    return {(row.method, row.below): row.body["message"] for row in rows}


@cache
def absent() -> Collection[tuple[str, str]]:
    """The operations that r-nacos lacks."""
    rows = [row for row in load("r-nacos-0.8.8") if row.status == 404 and row.type is None and not row.body]
    return {(row.method, row.below) for row in rows if not row.below.endswith("/")}


@asynccontextmanager
async def facing(
    face: str,
    clock: Clock | None = None,
    *,
    listing_delay: float = 0.0,
    passwords: Mapping[str, str] | None = None,
    admins: Collection[str] = ("nacos",),
    identity: tuple[str, str] | None = None,
    grpc: bool = False,
) -> AsyncIterator[FaceServer]:
    """Runs a server of this face on a free port; with `passwords` it requires a login; with `grpc` it also speaks gRPC.

    The gRPC side, `server.grpc`, listens on the port + 1000 and has the same services.
    """
    clock = clock or SystemClock()
    users = Users(passwords, admins, clock, identity=identity) if passwords is not None else None
    server = FaceServer(face, clock, listing_delay, users)
    config = uvicorn.Config(server, lifespan="off", log_config=None, access_log=False, server_header=False, ws="none")
    port = free_port(and_offset=GRPC_OFFSET) if grpc else 0
    async with running(config, port) as url:
        server.url = url
        try:
            if grpc:
                await server.speak_grpc(port + GRPC_OFFSET)
            yield server
        finally:
            await server.close()
