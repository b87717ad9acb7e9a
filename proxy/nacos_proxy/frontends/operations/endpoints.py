"""Endpoints for operators: health, readiness, status, metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, get_args

from fastapi import APIRouter, Depends, Query
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from pydantic import Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from nacos_proxy.frontends.auth import RIGHT, UNAUTHENTICATED
from nacos_proxy.frontends.operations.status import (
    NOTHING_CACHED,
    Condition,
    Filter,
    OperatorView,
    Page,
    Sort,
    readiness,
    service_json,
    status_json,
)
from nacos_proxy.frontends.rest import examples
from nacos_proxy.frontends.rest.routing import (
    ApiRequest,
    ApiRoute,
    Reply,
    ServiceName,
    documented,
    json_reply,
    provided,
)
from nacos_proxy.model.errors import BadCall, Violation
from nacos_proxy.wire.http import TEXT_TYPE, HttpReply
from nacos_proxy.wire.rest import query
from nacos_proxy.wire.rest.query import ServiceQuery, bounded

_NO_STORE = (("cache-control", "no-store"),)
_MAX_SERVICES = 1_000_000
_REFUSED = "upstream: connection refused"

router = APIRouter(route_class=ApiRoute, tags=["operations"], default_response_class=Response)

View = Annotated[OperatorView, Depends(provided(OperatorView))]


@router.get(
    "/healthz",
    summary="Whether the process is alive",
    description="Always 200.",
    responses=documented({"status": "ok"}),
)
async def health() -> Response:
    return json_reply({"status": "ok"}, headers=_NO_STORE)


@router.get(
    "/readyz",
    summary="Whether reads can be answered",
    description="`degraded` with reasons if it answers reads but something is wrong; 503 if it cannot answer reads.",
    responses={
        **documented({"status": "degraded", "reasons": [_REFUSED]}),
        **documented({"status": "unready", "reasons": [_REFUSED, NOTHING_CACHED]}, status=503),
    },
)
async def ready(request: Request, view: View) -> Response:
    status, reasons = readiness(view)
    if request.scope.get(UNAUTHENTICATED):  # reasons may name accounts and quote the upstream
        reasons = list(dict.fromkeys(reason.partition(":")[0].partition(" ")[0] for reason in reasons))
    return json_reply({"status": status, "reasons": reasons}, 503 if status == "unready" else 200, _NO_STORE)


class StatusQuery(query.Query):
    limit: Annotated[
        int, Field(ge=0, le=_MAX_SERVICES, description="How many services are shown."), bounded(0, _MAX_SERVICES)
    ] = 1000
    offset: Annotated[
        int,
        Field(ge=0, le=_MAX_SERVICES, description="How many services, in the order of their names, are skipped."),
        bounded(0, _MAX_SERVICES),
    ] = 0
    search: Annotated[str, Field(description="Only services with this in their name or group.")] = ""
    namespace: Annotated[str, Field(description="Only services of this namespace.")] = ""
    group: Annotated[str, Field(description="Only services of this group.")] = ""
    condition: Annotated[
        Condition | None,
        WithJsonSchema({"type": "string", "enum": list(get_args(Condition))}),
        Field(description="Only services in this condition; `failing`: the last fetch failed."),
    ] = None
    sort: Annotated[Sort, Field(description="With `-` before it, the largest first.")] = "name"

    @property
    def page(self) -> Page:
        return Page(
            self.limit, self.offset, Filter(self.search, self.namespace, self.group, self.condition or ""), self.sort
        )


_ROW = {
    "service": examples.KEY.grouped,
    "namespaceId": examples.KEY.namespace,
    "state": "fresh",
    "ageSeconds": 0.4,
    "instances": 2,
    "healthy": 2,
    "watched": True,
    "subscribers": 1,
    "registeredHere": 2,
    "pendingWrites": 0,
    "fromDisk": False,
    "error": None,
    "revision": examples.AFTER.revision,
}
_STATUS = {
    "version": "1.0.0",
    "host": "shop-7",
    "right": "admin",
    "status": "ready",
    "warnings": [],
    "summary": {
        "services": 1,
        "states": {"fresh": 1, "stale": 0, "expired": 0, "missing": 0},
        "namespaces": {"public": 1},
        "groups": {"DEFAULT_GROUP": 1},
        "watched": 1,
        "instances": 2,
        "healthy": 2,
        "oldestAgeSeconds": 0.4,
        "reads": 4711,
        "hits": 4700,
    },
    "uptimeSeconds": 86400.5,
    "upstream": {
        "state": "up",
        "forSeconds": 86400.5,
        "reason": "",
        "kind": "nacos",
        "login": {"enabled": False, "logins": 0, "error": ""},
        "servers": [
            {
                "url": "http://10.0.0.1:8848/nacos",
                "state": "up",
                "error": "",
                "latencyMs": 1.9,
                "version": "2.5.1",
                "dialects": ["v1", "v2"],
                "outcomes": {"ok": 4711},
            }
        ],
    },
    "push": {"state": "ok"},
    "disk": {"state": "ok"},
    "serviceFiles": {"state": "ok", "directory": "/etc/nacos-proxy/services.d", "files": 1},
    "subscribers": {"streams": 1, "byClient": {"127.0.0.1": 1}},
    "grpc": {
        "state": "ok",
        "port": 9840,
        "sessionsTotal": 1,
        "sessions": [
            {
                "client": "127.0.0.1",
                "sdk": "Nacos-Java-Client:v3.0.3",
                "app": "shop",
                "module": "naming",
                "namespaceId": "public",
                "subscriptions": 3,
                "published": 1,
                "sinceSeconds": 3600.5,
            }
        ],
    },
    "registrations": 2,
    "lastEventId": "1f0c9ab2-17",
    "servicesTotal": 1,
    "servicesFound": 1,
    "offset": 0,
    "limit": 1000,
    "truncated": False,
    "services": [_ROW],
}
_BAD_LIMIT = BadCall("limit", Violation.ILLEGAL, "Param 'limit' is illegal, it must be a number from 0 to 1000000.")


@router.get(
    "/status",
    summary="The proxy's state",
    description="Readiness with warnings and advice, a summary, upstream, push, services with their age, subscribers, "
    "gRPC sessions, counts, disk. `right` is what the token of the request allows (`read`, `write` or `admin`; null if "
    "only Nacos knows, with `auth = client`). It shows `limit` (1000) services from `offset` (0) on, of those that the "
    "other parameters choose; `servicesFound` counts these, `servicesTotal` counts all, and `truncated` is "
    "true if some of those found are not shown.",
    responses=documented(_STATUS, None, _BAD_LIMIT),
)
async def status(request: Request, page: Annotated[StatusQuery, Query()], view: View) -> Response:
    shown = await status_json(view, page.page)
    return json_reply({**shown, "right": request.scope.get(RIGHT, view.right)}, headers=_NO_STORE)


_SERVICE = {
    **_ROW,
    "hosts": [
        {**examples.INSTANCE_JSON, "listed": True, "origin": "elsewhere"},
        {
            **examples.INSTANCE_JSON,
            "enabled": False,
            "listed": False,
            "origin": "client",
            "drain": {"state": "draining", "secondsLeft": 12.5, "error": ""},
        },
    ],
}


@router.get(
    "/status/{service}",
    summary="What this host knows of a service",
    description="The service as `/status` shows it, and all its instances that this host knows, also those that lists "
    "omit (`listed` is false): drained, in maintenance, disabled. `origin` says where an instance came from: "
    "`elsewhere`, or through this proxy from a `client`, a `connection` of an SDK by gRPC, a health `check` or a "
    "service `file`. It asks no one, so a service that nobody reads is `missing`.",
    responses=documented(_SERVICE, None, examples.BAD_NAME, *examples.ANY_ERRORS),
)
async def service_status(
    request: ApiRequest, service: ServiceName, query: Annotated[ServiceQuery, Query()], view: View
) -> Response:
    return json_reply(service_json(view, query.service_key(service, request.rules)), headers=_NO_STORE)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    description="`nacos_proxy_*` and the process's own.",
    responses=documented("…", media=TEXT_TYPE),
)
async def metrics(request: Request, view: View) -> Response:
    encode, content_type = _encoder(request.headers.get("accept", ""))
    return Reply(HttpReply(200, content_type, await view.metrics.scrape(encode), _NO_STORE))


def _encoder(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):  # the version in Accept is not a number
        return choose_encoder("")
