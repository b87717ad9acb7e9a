"""The REST API: draining instances before they end, and maintenance of managed instances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import APIRouter, Body, Depends, Query
from fastapi.openapi.models import Example
from starlette.responses import Response

from nacos_proxy.catalog.drains import Drain
from nacos_proxy.catalog.registrations import Registration
from nacos_proxy.core.agent import Written
from nacos_proxy.frontends.answers import ANSWER_HEADER
from nacos_proxy.frontends.rest import examples, models
from nacos_proxy.frontends.rest.examples import BODY_ERRORS, READ_ERRORS, WHO_ANSWERED, WRITE_ERRORS
from nacos_proxy.frontends.rest.routing import (
    Address,
    ApiRequest,
    ApiRoute,
    Reply,
    ServiceName,
    documented,
    json_reply,
    provided,
)
from nacos_proxy.frontends.rest.services import INSTANCE, RestApi
from nacos_proxy.frontends.rest.states import drain_json, states_json
from nacos_proxy.model.calls import GetInstance
from nacos_proxy.model.errors import BadCall, Reason, Refused, Violation
from nacos_proxy.model.limits import Rules
from nacos_proxy.model.services import DEFAULT_CLUSTER, Instance, ServiceKey
from nacos_proxy.wire.http import Pairs
from nacos_proxy.wire.nacos.hosts import host_json
from nacos_proxy.wire.rest.bodies import MaintenanceBody
from nacos_proxy.wire.rest.query import DrainQuery, InstanceAddress, InstanceQuery, ServiceQuery, read_address

router = APIRouter(route_class=ApiRoute, tags=["traffic"], default_response_class=Response)

_NOT_OURS = BadCall(
    "address",
    Violation.OTHER,
    "The instance was not registered through this proxy with this account, so its heartbeats go elsewhere and would "
    "bring it back: drain it at the proxy that it is registered at, or disable it (PATCH).",
    status=409,
)
_NOT_MANAGED = BadCall(
    "address",
    Violation.OTHER,
    "The instance is not managed: this proxy does not beat for it. Drain it, or disable it (PATCH).",
    status=409,
)
_NO_DRAIN = Refused(Reason.INSTANCE_NOT_FOUND, "this instance is not drained", status=404)
_CANCELLED = BadCall("", Violation.OTHER, "the drain was cancelled", status=409)
_ANSWER = (("cache-control", "no-store"),)


class DrainManager(Protocol):
    """The part of `background.drains.Drainer` that the endpoints call."""

    def find(self, service: ServiceKey, ip: str, port: int) -> Drain | None: ...

    async def drain(self, registration: Registration, wait: float) -> Drain: ...

    async def ended(self, drain: Drain) -> None: ...

    async def cancel(self, drain: Drain) -> Written[Instance] | None: ...


class MaintenanceManager(Protocol):
    """The part of `background.health_checker.HealthChecker` that the endpoints call."""

    async def maintain(
        self, service: ServiceKey, ip: str, port: int, reason: str | None
    ) -> Written[Instance] | None: ...


@dataclass(frozen=True, slots=True)
class TrafficApi:
    """The objects that the endpoints use."""

    rest: RestApi
    drainer: DrainManager
    managed: MaintenanceManager

    async def address(self, key: ServiceKey, address: str, rules: Rules) -> InstanceAddress:
        """As it was registered. Raises `BadCall`."""
        return await self.rest.as_registered(key, read_address(address, rules))

    async def registration(self, key: ServiceKey, address: InstanceAddress, cluster: str) -> Registration:
        """Raises `Refused` (404) if there is no such instance, `BadCall` (409) if it was not registered here."""
        known = self.rest.agent.catalog.registrations.find(key, *address)
        if known is None:
            await self.rest.agent.instance(GetInstance(key, *address, cluster or DEFAULT_CLUSTER))
            raise _NOT_OURS
        return known

    async def found(self, key: ServiceKey, address: str, rules: Rules) -> Drain:
        """The drain of an instance. Raises `Refused` (404)."""
        drain = self.drainer.find(key, *await self.address(key, address, rules))
        if drain is None:
            raise _NO_DRAIN
        return drain

    def shown(self, drain: Drain, state: str = "", headers: Pairs = ()) -> Reply:
        return json_reply(drain_json(drain, self.rest.agent.clock.now(), state), headers=(*headers, *_ANSWER))


Api = Annotated[TrafficApi, Depends(provided(TrafficApi))]


@router.post(
    INSTANCE + "/drain",
    summary="Take an instance out of traffic, wait, and deregister it",
    description="For a hook that runs before the instance ends. Disables the instance at once, waits until its "
    "consumers have noticed, deregisters it, and answers then. It goes on if the client hangs up, and after a restart "
    "of this proxy. A repeated call waits for the same end, with the first `wait`. From the beginning until ten "
    "minutes after the end, the proxy answers the heartbeats of the instance itself, so that they do not bring it "
    "back; a new registration ends this. The instance must be registered through this proxy.",
    responses=documented(
        *(examples.DRAIN_JSON, models.Drain, *WRITE_ERRORS, examples.NOT_FOUND, _NOT_OURS, _CANCELLED),
        description="Deregistered",
    ),
)
async def drain(
    request: ApiRequest, service: ServiceName, address: Address, query: Annotated[DrainQuery, Query()], api: Api
) -> Response:
    key, cluster = query.service_key(service, request.rules), query.checked_cluster(request.rules)
    wait = query.seconds()
    at = await api.address(key, address, request.rules)
    begun = api.drainer.find(key, *at)
    if begun is not None:
        await api.drainer.ended(begun)
        return api.shown(begun)
    return api.shown(await api.drainer.drain(await api.registration(key, at, cluster), wait))


@router.get(
    INSTANCE + "/drain",
    summary="How far a drain is",
    description="`draining`: out of traffic. `deregistering`: the upstream has not accepted the deregistration yet; "
    "`error` says why. `drained`: deregistered, within the last ten minutes.",
    responses=documented(examples.DRAIN_JSON, models.Drain, *READ_ERRORS, _NO_DRAIN),
)
async def drain_state(
    request: ApiRequest, service: ServiceName, address: Address, query: Annotated[ServiceQuery, Query()], api: Api
) -> Response:
    key = query.service_key(service, request.rules)
    return api.shown(await api.found(key, address, request.rules))


@router.delete(
    INSTANCE + "/drain",
    summary="Cancel a drain",
    description="Brings the instance back as it was before; who waits for the end of the drain gets a 409. After the "
    "deregistration it only ends the ten minutes in which heartbeats do not bring the instance back." + WHO_ANSWERED,
    responses=documented(
        {**examples.DRAIN_JSON, "state": "cancelled"}, models.Drain, *WRITE_ERRORS, _NO_DRAIN, description="Cancelled"
    ),
)
async def cancel_drain(
    request: ApiRequest, service: ServiceName, address: Address, query: Annotated[ServiceQuery, Query()], api: Api
) -> Response:
    key = query.service_key(service, request.rules)
    found = await api.found(key, address, request.rules)
    written = await api.drainer.cancel(found)
    return api.shown(found, "cancelled", () if written is None else ((ANSWER_HEADER, written.how),))


_REASONS: dict[str, Example] = {"disk": {"summary": "With a reason", "value": {"reason": "disk swap"}}}


@router.put(
    INSTANCE + "/maintenance",
    summary="Keep a managed instance out of traffic",
    description="Until it is ended, whatever the checks of the instance say, and also after a restart of this proxy. "
    "The checks go on. `GET` of the instance, `/status` and the page show the reason. Called again, it changes "
    "the reason." + WHO_ANSWERED,
    responses=documented(
        *(examples.MAINTAINED_JSON, models.Instance, *WRITE_ERRORS, *BODY_ERRORS, examples.NOT_FOUND, _NOT_MANAGED),
        description="Out of traffic",
    ),
)
async def maintain(
    request: ApiRequest,
    service: ServiceName,
    address: Address,
    query: Annotated[InstanceQuery, Query()],
    body: Annotated[MaintenanceBody, Body(openapi_examples=_REASONS)],
    api: Api,
) -> Response:
    return await _maintenance(request, service, address, query, body.reason, api)


@router.delete(
    INSTANCE + "/maintenance",
    summary="End the maintenance of a managed instance",
    description="Brings the instance back into traffic." + WHO_ANSWERED,
    responses=documented(
        *(examples.INSTANCE_JSON, models.Instance, *WRITE_ERRORS, examples.NOT_FOUND, _NOT_MANAGED),
        description="In traffic",
    ),
)
async def end_maintenance(
    request: ApiRequest, service: ServiceName, address: Address, query: Annotated[InstanceQuery, Query()], api: Api
) -> Response:
    return await _maintenance(request, service, address, query, None, api)


async def _maintenance(
    request: ApiRequest, service: str, address: str, query: InstanceQuery, reason: str | None, api: TrafficApi
) -> Response:
    key, cluster = query.service_key(service, request.rules), query.checked_cluster(request.rules)
    at = await api.address(key, address, request.rules)
    written = await api.managed.maintain(key, *at, reason)
    agent = api.rest.agent
    if written is None:
        await agent.instance(GetInstance(key, *at, cluster or DEFAULT_CLUSTER))  # raises if there is none
        raise _NOT_MANAGED
    shown = host_json(written.result, key) | states_json(agent, agent.catalog.registrations.find(key, *at))
    return json_reply(shown, headers=((ANSWER_HEADER, written.how),))
