"""The REST API: services, instances, beats. Lookups and event streams have routers of their own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Protocol
from urllib.parse import quote

from fastapi import APIRouter, Body, Depends, Query
from fastapi.openapi.models import Example
from starlette.responses import Response

from nacos_proxy.catalog.health_checks import CheckSpec
from nacos_proxy.core.agent import Agent, Written
from nacos_proxy.frontends.answers import ANSWER_HEADER, client_of
from nacos_proxy.frontends.rest import examples, models
from nacos_proxy.frontends.rest.examples import BODY_ERRORS, FRESHNESS, WHO_ANSWERED, WRITE_ERRORS
from nacos_proxy.frontends.rest.reads import REVALIDATE, Reads, cache_control_of, known_names, tagged
from nacos_proxy.frontends.rest.routing import (
    Address,
    ApiRequest,
    ApiRoute,
    Reply,
    ServiceName,
    documented,
    json_reply,
    problems,
    provided,
)
from nacos_proxy.frontends.rest.states import states_json
from nacos_proxy.model.calls import BEAT_NOT_FOUND, BeatResult, GetInstance, ListServices, Register, ServicePage
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
from nacos_proxy.model.services import DEFAULT_CLUSTER, Instance, ServiceKey, Snapshot
from nacos_proxy.model.views import View
from nacos_proxy.wire.http import HttpReply, Pairs
from nacos_proxy.wire.nacos.hosts import beat_json, host_json
from nacos_proxy.wire.rest.bodies import (
    BeatBody,
    RegisterBody,
    UpdateBody,
    instances_json,
    page_json,
    read_beat,
    read_deregister,
    read_register,
    read_update,
    snapshot_json,
)
from nacos_proxy.wire.rest.query import (
    DeregisterQuery,
    FilterQuery,
    InstanceAddress,
    InstanceQuery,
    KindQuery,
    PageQuery,
    ServiceQuery,
    ViewQuery,
    read_address,
)

SERVICE = "/api/v1/services/{service}"
INSTANCE = SERVICE + "/instances/{address}"
NOT_REGISTERED = "the registry does not know this instance: register it (POST …/instances), or send a beat with a body"

_BEAT_NOT_FOUND = Refused(Reason.INSTANCE_NOT_FOUND, NOT_REGISTERED, status=404)

router = APIRouter(route_class=ApiRoute, tags=["services"], default_response_class=Response)


class InstanceManager(Protocol):
    """The part of `background.health_checker.HealthChecker` that the endpoints call."""

    async def register(self, service: ServiceKey, instance: Instance, spec: CheckSpec, owner: str) -> Written[None]: ...

    def heard(self, service: ServiceKey, ip: str, port: int) -> bool: ...

    def forget(self, service: ServiceKey, ip: str, port: int) -> None: ...


@dataclass(frozen=True, slots=True)
class RestApi:
    """The objects that the endpoints use. Without a `health_checker`, `managed` registrations are refused."""

    agent: Agent
    reads: Reads
    health_checker: InstanceManager | None = None

    async def as_registered(self, key: ServiceKey, address: InstanceAddress) -> InstanceAddress:
        """The address as registered, for a write: servers treat two spellings of an IPv6 address as two instances."""
        if ":" not in address.ip:
            return address
        try:
            listed = (await self.agent.read(key)).snapshot
        except ProxyError:  # the write that follows reports the failure
            listed = None
        return self.spelling(key, address, listed or Snapshot(key))

    async def is_ephemeral(self, key: ServiceKey, address: InstanceAddress) -> bool:
        """As registered here, or as listed; an unknown instance counts as ephemeral.

        A server ignores a deregistration of the wrong kind, and reports success.
        """
        if (registration := self.agent.catalog.registrations.find(key, *address)) is not None:
            return registration.instance.ephemeral
        try:
            listed = (await self.agent.read(key)).snapshot
        except ProxyError:  # the deregistration that follows reports the failure
            listed = None
        found = None if listed is None else listed.find(*address)
        return found is None or found.ephemeral

    def spelling(self, key: ServiceKey, address: InstanceAddress, listed: Snapshot) -> InstanceAddress:
        """The address as `listed` spells it, or as it was registered here: lists omit disabled instances."""
        ip, port = address
        spelt = listed.registered_ip(ip, port)
        if ":" in ip and spelt == ip and listed.find(ip, port) is None:
            ours = (registration.instance for registration in self.agent.catalog.registrations.of_service(key))
            spelt = Snapshot.of(key, ours).registered_ip(ip, port)
        return InstanceAddress(spelt, port)


Api = Annotated[RestApi, Depends(provided(RestApi))]


@router.get(
    "/api/v1/services",
    summary="The names of a group's services",
    description="Asks the upstream each time. While the upstream is away: the names that this host knows, marked "
    "`stale`.",
    responses={
        **documented(
            page_json(ListServices("public", "DEFAULT_GROUP", size=100), ServicePage(2, ("orders", "stock"))),
            models.ServicePage,
            BadCall("page", Violation.ILLEGAL, "Param 'page' is illegal, it must be a number from 1 to 999999999."),
            *(*examples.ANY_ERRORS, examples.NOTHING),
        ),
        **examples.UNCHANGED,
    },
)
async def services(request: ApiRequest, query: Annotated[PageQuery, Query()], api: Api) -> Response:
    call = query.list_call(request.rules, query.page, query.size)
    error: Exception | None = None
    if api.agent.catalog.breaker.allows(api.agent.clock.now()):
        try:
            page = await api.agent.ask(call)
            headers = (("cache-status", "nacos-proxy; fwd=request"), REVALIDATE)
            return tagged(request, page_json(call, page), headers)
        except (Unreachable, TooSlow, Garbled) as failure:
            error = failure
    names, first = known_names(api.agent, call), (call.page - 1) * call.size
    if not names:
        why = str(error or api.agent.catalog.breaker.reason)
        raise NothingKnown(f"no services are known here and the upstream cannot be asked: {why}") from error
    page = ServicePage(len(names), tuple(names[first : first + call.size]))
    headers = (("cache-status", "nacos-proxy; hit; detail=upstream-error"), REVALIDATE)
    return tagged(request, page_json(call, page, stale=True), headers)


@router.get(
    SERVICE,
    summary="A service: its instances as a reader sees them",
    description="Enabled instances of all clusters, filtered as Nacos filters them. `revision` names this state; "
    "`stale` means that the upstream could not confirm it lately. An unknown service has no hosts." + FRESHNESS,
    responses=examples.of_a_read(examples.SNAPSHOT_JSON, models.Snapshot),
)
async def snapshot(
    request: ApiRequest, service: ServiceName, query: Annotated[ViewQuery, Query()], api: Api
) -> Response:
    key, view = query.service_key(service, request.rules), query.view(request.rules)
    return await api.reads.answer(
        request, key, "snapshot", view.variant, lambda found, stale: snapshot_json(found, view, stale=stale)
    )


@router.get(
    SERVICE + "/instances",
    summary="All known instances of a service",
    description="With their true health, even where the protection threshold hides it from readers. Includes disabled "
    "instances if the upstream shows them." + FRESHNESS,
    responses=examples.of_a_read(instances_json(examples.AFTER, View()), models.Instances),
)
async def instances(
    request: ApiRequest, service: ServiceName, query: Annotated[FilterQuery, Query()], api: Api
) -> Response:
    key, view = query.service_key(service, request.rules), query.view(request.rules)
    variant = ("all", *view.variant)
    return await api.reads.answer(
        request, key, "instances", variant, lambda found, stale: instances_json(found, view, stale=stale)
    )


@router.get(
    INSTANCE,
    summary="One instance",
    description="If the list does not show the instance (it may be disabled), the proxy asks the upstream. `drain` and "
    "`maintenance` say why an instance that is registered here gets no traffic." + FRESHNESS,
    responses=examples.of_a_read(examples.INSTANCE_JSON, models.Instance, examples.BAD_PORT, examples.NOT_FOUND),
)
async def instance(
    request: ApiRequest, service: ServiceName, address: Address, query: Annotated[InstanceQuery, Query()], api: Api
) -> Response:
    key, asked = query.service_key(service, request.rules), read_address(address, request.rules)
    cluster = query.checked_cluster(request.rules)
    cache_control = cache_control_of(request)
    cached = await api.agent.read(key, cache_control)
    assert cached.snapshot is not None
    ip, port = api.spelling(key, asked, cached.snapshot)
    owned = api.agent.catalog.registrations.find(key, ip, port)
    if owned is not None and (states := states_json(api.agent, owned)):
        return json_reply(host_json(owned.instance, key) | states, headers=(REVALIDATE,))
    known = cached.snapshot.find(ip, port, cluster or None)
    if known is not None:
        variant = (ip, port, cluster)
        return api.reads.reply(request, cached, cache_control, "instance", variant, lambda _, __: host_json(known, key))
    cluster = cluster or (DEFAULT_CLUSTER if owned is None else owned.instance.cluster)
    found, _ = await api.agent.instance(GetInstance(key, ip, port, cluster))
    return json_reply(host_json(found, key), headers=(("cache-status", "nacos-proxy; fwd=uri-miss"), REVALIDATE))


_REGISTRATIONS: dict[str, Example] = {
    "least": {"summary": "Only the required fields", "value": {"ip": "10.0.0.5", "port": 8080}},
    "all": {
        "summary": "All fields, with their defaults",
        "value": RegisterBody(ip="10.0.0.5", port=8080, cluster="DEFAULT", metadata={"zone": "a"}).model_dump(
            exclude={"clusterName", "managed"}
        ),
    },
    "managed": {
        "summary": "The proxy checks the service and beats for it",
        "value": {
            "ip": "127.0.0.1",
            "port": 8080,
            "managed": {"interval": "5s", "check": {"http": "http://127.0.0.1:8080/health"}},
        },
    },
}
_UPDATES: dict[str, Example] = {
    "drain": {"summary": "Send it no more traffic", "value": {"weight": 0}},
    "off": {"summary": "Disable it", "value": {"enabled": False}},
}
_BEATS: dict[str, Example] = {
    "full": {"summary": "A full beat", "value": {"weight": 1.0, "metadata": {"zone": "a"}, "ephemeral": True}}
}


@router.post(
    SERVICE + "/instances",
    summary="Register an instance",
    description="Replaces an instance with the same address. The next read through this proxy shows the new one, and "
    "subscribers get it at once. An ephemeral instance lives as long as its beats come." + WHO_ANSWERED,
    status_code=201,
    responses=documented(
        *(examples.INSTANCE_JSON, models.Instance, *WRITE_ERRORS, examples.BAD_PORT, *BODY_ERRORS, examples.WRONG_KIND),
        description="Registered; the instance as it will be shown",
        status=201,
    ),
)
async def register(
    request: ApiRequest,
    service: ServiceName,
    query: Annotated[ServiceQuery, Query()],
    body: Annotated[RegisterBody, Body(openapi_examples=_REGISTRATIONS)],
    api: Api,
) -> Response:
    key = query.service_key(service, request.rules)
    given = read_register(key, body, request.rules).instance
    instance = replace(given, ip=(await api.as_registered(key, InstanceAddress(given.ip, given.port))).ip)
    written: Written[None]
    if body.managed is None:
        written = await api.agent.write(Register(key, instance))
    elif api.health_checker is None:
        raise BadCall("managed", Violation.OTHER, "Param 'managed' is not possible: this proxy does not beat itself.")
    else:
        spec = CheckSpec.parse(body.managed)
        written = await api.health_checker.register(key, instance, spec, client_of(request.scope))
    location = f"/api/v1/services/{quote(service, safe='@')}/instances/{quote(instance.address, safe='[]:')}"
    if query_string := request.scope["query_string"].decode("latin-1"):
        location += f"?{query_string}"
    return json_reply(host_json(instance, key), 201, (("location", location), *_how(written)))


@router.patch(
    INSTANCE,
    summary="Change weight, enabled or metadata",
    description="Changes only the fields in the body; metadata is merged key by key. A metadata key cannot be removed "
    "(Nacos keeps the registered ones)." + WHO_ANSWERED,
    responses=documented(
        *(examples.INSTANCE_JSON, models.Instance, *WRITE_ERRORS, *BODY_ERRORS, examples.NOT_FOUND),
        description="Changed; the instance as it will be shown",
    ),
)
async def update(
    request: ApiRequest,
    service: ServiceName,
    address: Address,
    query: Annotated[InstanceQuery, Query()],
    body: Annotated[UpdateBody, Body(openapi_examples=_UPDATES)],
    api: Api,
) -> Response:
    key = query.service_key(service, request.rules)
    registered = await api.as_registered(key, read_address(address, request.rules))
    written = await api.agent.modify(read_update(key, registered, query, body, request.rules))
    return json_reply(host_json(written.result, key), headers=_how(written))


@router.delete(
    INSTANCE,
    summary="Deregister an instance",
    description="Succeeds even if the instance is unknown." + WHO_ANSWERED,
    status_code=204,
    responses={204: {"description": "Deregistered"}, **problems(*WRITE_ERRORS, examples.BAD_PORT)},
)
async def deregister(
    request: ApiRequest, service: ServiceName, address: Address, query: Annotated[DeregisterQuery, Query()], api: Api
) -> Response:
    key = query.service_key(service, request.rules)
    registered = await api.as_registered(key, read_address(address, request.rules))
    ephemeral = await api.is_ephemeral(key, registered) if query.ephemeral is None else query.ephemeral
    call = read_deregister(key, registered, query, ephemeral, request.rules)
    written = await api.agent.write(call)
    if api.health_checker is not None:
        api.health_checker.forget(key, call.ip, call.port)
    return Reply(HttpReply(204, None, b"", _how(written)))


def _not_null(schema: dict[str, Any]) -> None:
    """A body may be absent, but not `null`."""
    schema.update(schema.pop("anyOf")[0])


@router.put(
    INSTANCE + "/beat",
    summary="Send a heartbeat",
    description="Without a body it is a light beat: 404 if the registry does not know the instance. With a body it is "
    "a full beat, which also registers an unknown instance. The next beat is due after `clientBeatInterval` (ms)."
    + WHO_ANSWERED,
    responses=documented(
        *(beat_json(BeatResult()), models.BeatAnswer, *WRITE_ERRORS, *BODY_ERRORS, _BEAT_NOT_FOUND),
        description="Received",
    ),
)
async def beat(
    request: ApiRequest,
    service: ServiceName,
    address: Address,
    query: Annotated[KindQuery, Query()],
    api: Api,
    body: Annotated[BeatBody | None, Body(openapi_examples=_BEATS, json_schema_extra=_not_null)] = None,
) -> Response:
    key = query.service_key(service, request.rules)
    registered = await api.as_registered(key, read_address(address, request.rules))
    call = read_beat(key, registered, query, body, request.rules)
    if api.health_checker is not None:
        api.health_checker.heard(key, call.ip, call.port)
    written = await api.agent.write(call)
    if written.result.code == BEAT_NOT_FOUND:
        raise Refused(Reason.INSTANCE_NOT_FOUND, NOT_REGISTERED, status=404)
    return json_reply(beat_json(written.result), headers=_how(written))


def _how(written: Written[Any]) -> Pairs:
    return ((ANSWER_HEADER, written.how),)
