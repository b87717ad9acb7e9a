"""Envoy's discovery over REST: endpoints (EDS) and clusters (CDS), as long polls.

Envoy says in a header how long it waits. A request whose version is still current is held for most of that time, and is
answered 304 if nothing changes, which Envoy counts neither as an update nor as a failure.

What is not certain changes nothing: without knowledge of any service asked for, the answer is an error, and Envoy keeps
the endpoints that it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import orjson
from fastapi import APIRouter, Depends, Query
from pydantic import Field
from starlette.responses import Response
from starlette.types import Scope

from nacos_proxy.catalog.hub import Filter
from nacos_proxy.core.agent import Agent
from nacos_proxy.frontends.answers import header
from nacos_proxy.frontends.auth import is_cluster_name
from nacos_proxy.frontends.discovery.group_names import MAX_SERVICES, GroupNames
from nacos_proxy.frontends.events.long_polls import LongPolls
from nacos_proxy.frontends.request_body import read_body
from nacos_proxy.frontends.rest import examples, models
from nacos_proxy.frontends.rest.reads import Bodies, Reads
from nacos_proxy.frontends.rest.routing import ApiRequest, ApiRoute, Reply, Responses, documented, provided
from nacos_proxy.model.errors import BadCall, ProxyError, Violation
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.wire.discovery.envoy import (
    ASSIGNMENT,
    CLUSTER,
    CLUSTERS_PATH,
    ENDPOINTS_PATH,
    EXPECTED_TIMEOUT,
    DiscoveryRequest,
    DiscoveryResponse,
    assignment,
    cluster,
    encoded,
    joined,
    read_options,
    read_request,
    response,
)
from nacos_proxy.wire.discovery.envoy_names import EnvoyQuery, Resource, Wanted, read_resource
from nacos_proxy.wire.http import JSON_TYPE, HttpReply
from nacos_proxy.wire.rest.query import MAX_WAIT
from nacos_proxy.wire.rest.query import Query as QueryParameters

log = logging.getLogger("nacos_proxy.envoy")

router = APIRouter(route_class=ApiRoute, tags=["lookup"], default_response_class=Response)

MIN_BODY = 256 << 10  # bytes; Envoy 1.40 sends 77 KB
_MAX_NAMES = 20  # in one request; Envoy asks for one at a time
_PREPARED = 32 << 20  # bytes
_MARGIN = 0.25  # seconds before Envoy's time is up
_LOOK_EVERY = 1.0  # seconds between two looks for new services while a request waits
_HELD = 0.9  # of the time until Envoy gives up
_FALLBACK_SOURCE = "nacos_proxy"


_ASSIGNED = orjson.loads(response(ASSIGNMENT, [assignment("orders", [examples.AFTER.instances])]).body)
_CLUSTERS = orjson.loads(response(CLUSTER, [cluster("orders", str(examples.KEY), _FALLBACK_SOURCE, {})]).body)


class DiscoveryQuery(QueryParameters):
    """No parameters: Envoy cannot send any."""


class FileQuery(EnvoyQuery):
    service: Annotated[
        str, Field(description="The service's name, or `group@@name`.", json_schema_extra={"example": "orders"})
    ]


class EnvoyApi:
    """Answers discovery requests. One answer has at most `max_services` clusters."""

    def __init__(
        self, agent: Agent, reads: Reads, polls: LongPolls, groups: GroupNames, *, max_services: int = MAX_SERVICES
    ) -> None:
        self.reads = reads
        self._agent = agent
        self._polls = polls
        self._max_services = max_services
        self._prepared = Bodies(_PREPARED)
        self._groups = groups

    async def endpoints(self, request: ApiRequest, asked: DiscoveryRequest) -> Reply:
        """Raises `BadCall`; what a read raises if that is so for all of the services."""
        if not 0 < len(asked.names) <= _MAX_NAMES:
            text = f"'resource_names' must have 1 to {_MAX_NAMES} names."
            raise BadCall("resource_names", Violation.BODY, text)
        resources = await self._readable([read_resource(name, request.rules) for name in asked.names])
        for resource in resources:  # prepares them one by one, because each takes some milliseconds
            self._assignments([resource])
            await asyncio.sleep(0)
        found = self._assignments(resources)
        wait = wait_of(request.scope)
        if found.version == asked.version and wait > 0:

            def changed() -> bool:
                return self._assignments(resources).version != asked.version

            interest = Filter(frozenset(resource.key for resource in resources))
            await self._hold(request, interest, wait, changed)
            found = self._assignments(resources)
        return _reply(found, asked.version)

    async def _readable(self, resources: Sequence[Resource]) -> list[Resource]:
        """Those whose service is known. A client keeps what it has of the others."""
        results = await asyncio.gather(*(self._agent.read(it.key) for it in resources), return_exceptions=True)
        readable = list[Resource]()
        for resource, result in zip(resources, results, strict=True):
            if not isinstance(result, BaseException):
                readable.append(resource)
            elif not isinstance(result, ProxyError):
                raise result
        if not readable:
            raise next(result for result in results if isinstance(result, ProxyError))
        return readable

    def _assignments(self, resources: Sequence[Resource]) -> DiscoveryResponse:
        now, cache = self._agent.clock.now(), self._agent.catalog.cache
        known = ((resource, cache.lookup(resource.key, now).snapshot) for resource in resources)
        return joined(ASSIGNMENT, [self._assignment(it, snapshot) for it, snapshot in known if snapshot is not None])

    def _assignment(self, resource: Resource, snapshot: Snapshot) -> bytes:
        return self._prepared.of(
            snapshot, (resource.name,), lambda: encoded(assignment(resource.name, resource.tiers(snapshot)))
        )

    async def _hold(self, request: ApiRequest, interest: Filter, wait: float, changed: Callable[[], bool]) -> None:
        """Waits until `changed()`, at most `wait` seconds. Beyond the quota of long polls it does not wait, so that
        Envoy is served less well, but served. Raises the error with which the poll is refused."""
        try:
            await self._polls.hold(request, interest, wait, unchanged=lambda _: not changed(), ends=lambda _: changed())
        except BadCall as error:
            if error.status != 429:
                raise

    async def clusters(self, request: ApiRequest, asked: DiscoveryRequest) -> Reply:
        """Raises `BadCall`; `NothingKnown` if a whole group is asked for and nothing is known of it."""
        services, template = read_options(asked.options)
        wanted = Wanted.read(services, request.rules, self._max_services)
        host = header(request.scope, b"host").decode("latin-1")
        source = host if is_cluster_name(host) else _FALLBACK_SOURCE

        def made(names: Mapping[str, str] | None) -> DiscoveryResponse | None:
            if names is None:
                return None
            return response(CLUSTER, (cluster(name, names[name], source, template) for name in sorted(names)))

        names = await self._cluster_names(wanted, partial_allowed=not asked.version)
        found, clock, wait = made(names), self._agent.clock, wait_of(request.scope)
        end = clock.now() + wait
        while (found is None or found.version == asked.version) and clock.now() < end:
            look = min(end, clock.now() + (_LOOK_EVERY if wanted.groups else wait))
            await self._hold(request, Filter(), look - clock.now(), lambda: False)
            if clock.now() < look:  # the client has left, the proxy stops, or the quota is used up
                break
            newer = await self._cluster_names(wanted, partial_allowed=not asked.version)
            if newer != names:
                names, found = newer, made(newer)
        return _reply(found, asked.version)

    async def _cluster_names(self, wanted: Wanted, *, partial_allowed: bool) -> dict[str, str] | None:
        """The EDS resource of each cluster. None if some may be missing: Envoy would drop clusters in use."""
        found = dict[str, str]()
        for prefix, query, group in wanted.groups:
            names, complete = await self._groups.names(group)
            if not complete and not partial_allowed:
                return None
            for name in names:
                key = ServiceKey(group.namespace, group.group, name)
                found[prefix + name] = f"{key}?{query}" if query else str(key)
        if len(found) > self._max_services:
            text = f"these are more than {self._max_services} services: name the ones you want"
            raise BadCall("services", Violation.OTHER, text)
        return {**found, **wanted.named}


def wait_of(scope: Scope) -> float:
    """For how long a request may be held, in seconds; 0 if its client does not say when it gives up."""
    text = header(scope, EXPECTED_TIMEOUT.encode())
    patience = int(text) / 1000 if text.isdigit() and len(text) < 10 else 0.0
    return max(0.0, min(patience - _MARGIN, patience * _HELD, MAX_WAIT))


def _reply(found: DiscoveryResponse | None, version: str) -> Reply:
    if found is None or found.version == version:
        return Reply(HttpReply(304, None, b""))
    return Reply(HttpReply(200, JSON_TYPE, found.body, (("cache-control", "no-store"),)))


async def read_asked(request: ApiRequest) -> DiscoveryRequest:
    """The request in the body. Raises `BadCall`."""
    return read_request(await read_body(request.scope, request.receive, max(MIN_BODY, request.app.state.max_body)))


Api = Annotated[EnvoyApi, Depends(provided(EnvoyApi))]
_EXAMPLE = {"node": {"id": "gateway-1"}, "resource_names": ["orders"], "version_info": "0f343b0931126a20"}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {JSON_TYPE: {"schema": {"type": "object"}, "examples": {"endpoints": {"value": _EXAMPLE}}}},
    }
}
_ERRORS = (
    examples.NO_PARAMETER,
    BadCall("resource_names", Violation.BODY, "'resource_names' must be a list of texts, 'version_info' a text."),
    *(examples.BODY_ERRORS[-1], examples.NO_TOKEN, examples.DENIED, examples.NOTHING),
)
_UNCHANGED: Responses = {304: {"description": "Nothing changed since the answer with `version_info`"}}


@router.post(
    ENDPOINTS_PATH,
    summary="Endpoints for Envoy (EDS over REST)",
    description="A `ClusterLoadAssignment` for each of `resource_names`; one without endpoints for an unknown service. "
    "Names are `orders`, `group@@orders`, `namespace/group/orders` or `outbound|8080||orders.group.namespace.nacos`; "
    "`?` and parameters of a read may follow, such as `orders?selector=version=2&prefer=zone=a`. A request whose "
    "`version_info` is current is held for most of the time in its header `x-envoy-expected-rq-timeout-ms`.",
    responses={**documented(_ASSIGNED, models.DiscoveryResponse, *_ERRORS), **_UNCHANGED},
    openapi_extra=_BODY,
)
async def endpoints(request: ApiRequest, query: Annotated[DiscoveryQuery, Query()], api: Api) -> Response:
    return await api.endpoints(request, await read_asked(request))


@router.post(
    CLUSTERS_PATH,
    summary="Clusters for Envoy (CDS over REST)",
    description="A cluster for each service in `node.metadata.nacos_proxy.services`, which are names as for EDS; `*` "
    "instead of a service's name is each service of the group, and the default. The clusters get the fields of "
    "`node.metadata.nacos_proxy.cluster`.",
    responses={**documented(_CLUSTERS, models.DiscoveryResponse, *_ERRORS), **_UNCHANGED},
    openapi_extra=_BODY,
)
async def clusters(request: ApiRequest, query: Annotated[DiscoveryQuery, Query()], api: Api) -> Response:
    return await api.clusters(request, await read_asked(request))


@router.get(
    "/api/v1/sd/envoy",
    summary="Endpoints for Envoy, as a file",
    description="What EDS answers for a service, for `path_config_source`. Envoy accepts one service in a file; the "
    "cluster's `service_name` has to be the same as `service` here.",
    responses=examples.of_a_read(_ASSIGNED, models.DiscoveryResponse),
)
async def file(request: ApiRequest, query: Annotated[FileQuery, Query()], api: Api) -> Response:
    mark = query.unhealthy == "mark"
    it = Resource(query.service, query.service_key(query.service, request.rules), query.view(request.rules), mark)

    def made(snapshot: Snapshot, stale: bool) -> bytes:
        return response(ASSIGNMENT, [assignment(it.name, it.tiers(snapshot))]).body

    return await api.reads.answer(request, it.key, "sd_envoy", (it.name, mark, *it.view.variant), made)
