"""Our own API: services, instances, beats. Not for: its JSON (`wire.rest`), streams (`events`), choices (`lookup`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol
from urllib.parse import quote

import orjson
from starlette.requests import Request

from nacos_proxy.catalog.health_checks import CheckSpec
from nacos_proxy.core.agent import Agent, Written
from nacos_proxy.frontends.answers import client_of, to_query
from nacos_proxy.frontends.request_body import read_body
from nacos_proxy.frontends.rest import documents as docs
from nacos_proxy.frontends.rest.reads import (
    REVALIDATE,
    Reads,
    tagged,
    wants_of,
)
from nacos_proxy.frontends.rest.routes import Routes
from nacos_proxy.model.calls import (
    BEAT_NOT_FOUND,
    GetInstance,
    ListServices,
    Register,
    ServicePage,
)
from nacos_proxy.model.errors import (
    BadCall,
    Garbled,
    NothingKnown,
    ProxyError,
    Reason,
    Refused,
    TooSlow,
    Unreachable,
    Violation,
)
from nacos_proxy.model.services import (
    DEFAULT_CLUSTER,
    Instance,
    ServiceKey,
    Snapshot,
)
from nacos_proxy.wire.http import JSON_TYPE, HttpReply, Pairs
from nacos_proxy.wire.nacos.hosts import host_json
from nacos_proxy.wire.nacos.shapes import dumps
from nacos_proxy.wire.rest.bodies import (
    beat_json,
    instances_json,
    page_json,
    read_beat,
    read_deregister,
    read_register,
    read_update,
    snapshot_json,
)
from nacos_proxy.wire.rest.query import (
    InstanceAddress,
    Query,
    read_address,
    read_cluster,
    read_key,
    read_list,
    read_view,
)

ANSWER_HEADER = "nacos-proxy-answer"
_SERVICE = "/api/v1/services/{service}"
_INSTANCE = _SERVICE + "/instances/{address}"


class Managing(Protocol):
    """Who beats for services that cannot: `managed.HealthChecker` is one."""

    async def register(
        self, service: ServiceKey, instance: Instance, spec: CheckSpec, owner: str = ""
    ) -> Written[None]:
        """Register for the client at this address, and keep beating. Raises `BadCall` or what the upstream says."""
        ...

    def heard(self, service: ServiceKey, ip: str, port: int) -> bool:
        """A sign of life; whether somebody waits for one."""
        ...

    def forget(self, service: ServiceKey, ip: str, port: int) -> None: ...


class RestApi:
    """The endpoints. `keeper` None: a registration that asks to be managed is refused."""

    def __init__(self, agent: Agent, reads: Reads, keeper: Managing | None = None, *, max_body: int = 1 << 20) -> None:
        self._agent = agent
        self._reads = reads
        self._keeper = keeper
        self._max_body = max_body

    def routes(self) -> Routes:
        routes = Routes("services")
        routes.add("GET", "/api/v1/services", self.services, docs.SERVICES)
        routes.add("GET", _SERVICE, self.snapshot, docs.SNAPSHOT)
        routes.add("GET", _SERVICE + "/instances", self.instances, docs.INSTANCES)
        routes.add("POST", _SERVICE + "/instances", self.register, docs.REGISTER)
        routes.add("GET", _INSTANCE, self.instance, docs.INSTANCE)
        routes.add("PATCH", _INSTANCE, self.update, docs.UPDATE)
        routes.add("DELETE", _INSTANCE, self.deregister, docs.DEREGISTER)
        routes.add("PUT", _INSTANCE + "/beat", self.beat, docs.BEAT)
        return routes

    # reads

    async def snapshot(self, request: Request) -> HttpReply:
        key, query = target(request)
        view = read_view(query)
        variant = (view.clusters, view.healthy_only)
        return await self._reads.answer(
            request, key, "snapshot", variant, lambda found, stale: snapshot_json(found, view, stale=stale)
        )

    async def instances(self, request: Request) -> HttpReply:
        key, query = target(request)
        view = read_view(query)
        variant = ("all", view.clusters, view.healthy_only)
        return await self._reads.answer(
            request, key, "instances", variant, lambda found, stale: instances_json(found, view, stale=stale)
        )

    async def instance(self, request: Request) -> HttpReply:
        key, query = target(request)
        asked_for = read_address(request.path_params["address"], query.rules)
        cluster = read_cluster(query)
        wants = wants_of(request)
        look = await self._agent.read(key, wants)
        assert look.snapshot is not None
        ip, port = self._spelt(key, asked_for, look.snapshot)
        known = look.snapshot.find(ip, port, cluster or None)
        if known is not None:

            def make(found: Snapshot, stale: bool) -> dict[str, Any]:
                return host_json(known, key)

            return self._reads.reply(request, look, wants, "instance", (ip, port, cluster), make)
        owned = self._agent.catalog.registrations.find(key, ip, port)
        cluster = cluster or (DEFAULT_CLUSTER if owned is None else owned.instance.cluster)
        asked, _ = await self._agent.instance(GetInstance(key, ip, port, cluster))
        return json_reply(host_json(asked, key), headers=(("cache-status", "nacos-proxy; fwd=uri-miss"), REVALIDATE))

    async def services(self, request: Request) -> HttpReply:
        call = read_list(to_query(request.scope))
        error: Exception | None = None
        if self._agent.catalog.breaker.allows(self._agent.clock.now()):
            try:
                page = await self._agent.ask(call)
                headers = (("cache-status", "nacos-proxy; fwd=request"), REVALIDATE)
                return tagged(request, orjson.dumps(page_json(call, page)), headers)
            except (Unreachable, TooSlow, Garbled) as failure:
                error = failure
        page = self._known(call)
        if not page.count:
            why = str(error or self._agent.catalog.breaker.reason)
            raise NothingKnown(f"no services are known here and the upstream cannot be asked: {why}") from error
        headers = (("cache-status", "nacos-proxy; hit; detail=upstream-error"), REVALIDATE)
        return tagged(request, orjson.dumps(page_json(call, page, stale=True)), headers)

    def _known(self, call: ListServices) -> ServicePage:
        entries = self._agent.catalog.cache.entries()
        shown = (entry.visible for entry in entries if entry.key.namespace == call.namespace)
        names = sorted(s.key.name for s in shown if s is not None and s.instances and s.key.group == call.group)
        first = (call.page - 1) * call.size
        return ServicePage(len(names), tuple(names[first : first + call.size]))

    # writes

    async def register(self, request: Request) -> HttpReply:
        key, query = target(request)
        registering = read_register(key, await json_body(request, self._max_body), query.rules)
        given = registering.call.instance
        instance = replace(given, ip=(await self._registered(key, InstanceAddress(given.ip, given.port))).ip)
        written: Written[None]
        if registering.managed is None:
            written = await self._agent.write(Register(key, instance))
        elif self._keeper is None:
            raise BadCall(
                "managed", Violation.OTHER, "Param 'managed' is not possible: this proxy does not beat itself."
            )
        else:
            spec = CheckSpec.parse(registering.managed)
            written = await self._keeper.register(key, instance, spec, client_of(request.scope))
        return json_reply(host_json(instance, key), 201, (("location", _location(request, instance)), *_how(written)))

    async def update(self, request: Request) -> HttpReply:
        key, query = target(request)
        body = await json_body(request, self._max_body)
        call = read_update(key, await self._addressed(request, key, query), query, body)
        written = await self._agent.modify(call)
        return json_reply(host_json(written.result, key), headers=_how(written))

    async def deregister(self, request: Request) -> HttpReply:
        key, query = target(request)
        call = read_deregister(key, await self._addressed(request, key, query), query)
        written = await self._agent.write(call)
        if self._keeper is not None:
            self._keeper.forget(key, call.ip, call.port)
        return HttpReply(204, None, b"", _how(written))

    async def beat(self, request: Request) -> HttpReply:
        key, query = target(request)
        body = await read_body(request.scope, request.receive, self._max_body)
        if body.strip():
            _want_json(request)
        call = read_beat(key, await self._addressed(request, key, query), query, body)
        if self._keeper is not None:
            self._keeper.heard(key, call.ip, call.port)
        written = await self._agent.write(call)
        if written.result.code == BEAT_NOT_FOUND:
            raise Refused(Reason.INSTANCE_NOT_FOUND, docs.NOT_REGISTERED, status=404)
        return json_reply(beat_json(written.result), headers=_how(written))

    async def _addressed(self, request: Request, key: ServiceKey, query: Query) -> InstanceAddress:
        return await self._registered(key, read_address(request.path_params["address"], query.rules))

    async def _registered(self, key: ServiceKey, address: InstanceAddress) -> InstanceAddress:
        """The address as its instance was registered, for a write: servers keep each spelling of one apart."""
        if ":" not in address.ip:
            return address
        try:
            listed = (await self._agent.read(key)).snapshot
        except ProxyError:  # the write has its own say of what fails
            listed = None
        return self._spelt(key, address, listed or Snapshot(key))

    def _spelt(self, key: ServiceKey, address: InstanceAddress, listed: Snapshot) -> InstanceAddress:
        """The same of what is listed, and of what was registered here: a disabled instance is in no list."""
        ip, port = address
        spelt = listed.spelt(ip, port)
        if ":" in ip and spelt == ip and listed.find(ip, port) is None:
            ours = (registration.instance for registration in self._agent.catalog.registrations.of(key))
            spelt = Snapshot.of(key, ours).spelt(ip, port)
        return InstanceAddress(spelt, port)


def target(request: Request) -> tuple[ServiceKey, Query]:
    """The service that a path names, and the parameters."""
    query = to_query(request.scope)
    return read_key(request.path_params["service"], query), query


async def json_body(request: Request, most: int) -> bytes:
    """The body of a request that must be JSON. Raises `BadCall`."""
    _want_json(request)
    return await read_body(request.scope, request.receive, most)


def _want_json(request: Request) -> None:
    # A web page can send a form or plain text to any address unasked, but not this type (the browser asks first).
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != JSON_TYPE and not media.endswith("+json"):
        text = f"the body must be JSON and say so with 'Content-Type: application/json', not '{media[:100]}'"
        raise BadCall("", Violation.BODY, text, status=415)


def json_reply(value: object, status: int = 200, headers: Pairs = ()) -> HttpReply:
    """What this host names, such as a path, may be no Unicode text."""
    return HttpReply(status, JSON_TYPE, dumps(value), headers)


def _how(written: Written[Any]) -> Pairs:
    return ((ANSWER_HEADER, written.how),)


def _location(request: Request, instance: Instance) -> str:
    service = quote(request.path_params["service"], safe="@")
    query = request.scope["query_string"].decode("latin-1")
    path = f"/api/v1/services/{service}/instances/{quote(instance.address, safe='[]:')}"
    return f"{path}?{query}" if query else path
