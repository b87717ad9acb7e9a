"""Endpoints for operators: health, readiness, status, metrics, the status page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Query
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from nacos_proxy.catalog.entries import Entry
from nacos_proxy.core.agent import Agent
from nacos_proxy.frontends.auth import UNAUTHENTICATED
from nacos_proxy.frontends.events.streams import EventsApi
from nacos_proxy.frontends.operations.metrics import Metrics
from nacos_proxy.frontends.operations.status_page import CONTENT_SECURITY_POLICY, MAX_HOSTS, service_row
from nacos_proxy.frontends.operations.status_page import page as status_page
from nacos_proxy.frontends.rest import examples
from nacos_proxy.frontends.rest.routing import ApiRoute, Reply, documented, json_reply, provided
from nacos_proxy.model.errors import BadCall, Violation
from nacos_proxy.runtime import in_turns
from nacos_proxy.wire.http import TEXT_TYPE, HttpReply
from nacos_proxy.wire.rest import query
from nacos_proxy.wire.rest.query import TOKENS, bounded

_NO_STORE = (("cache-control", "no-store"),)
_PAGE_SERVICES = 200
# States of push, polling and disk with which the proxy is not degraded.
_HEALTHY = ("off", "ok", "idle", "connecting", "unavailable")
_MAX_SERVICES = 1_000_000
_REFUSED, NOTHING_CACHED = "upstream: connection refused", "cache: nothing is known yet"

router = APIRouter(route_class=ApiRoute, tags=["operations"], default_response_class=Response)


@dataclass(frozen=True, slots=True)
class OperatorView:
    """The sources of the status. Each function returns current values for JSON, without secrets.

    `upstream`: kind, servers, login, maybe `note`. `push`, `polling`, `disk`, `service_files`:
    `state` (one of `_HEALTHY`, or the problem), maybe `reason`. `failing`: the reason for each background task that
    failed lately. `started` is in seconds of the agent's clock.
    """

    agent: Agent
    events: EventsApi
    metrics: Metrics
    version: str
    started: float
    upstream: Callable[[], Mapping[str, Any]] = dict
    push: Callable[[], Mapping[str, Any]] = dict
    polling: Callable[[], Mapping[str, Any]] = dict
    disk: Callable[[], Mapping[str, Any]] = dict
    service_files: Callable[[], Mapping[str, Any]] = dict
    failing: Callable[[], Mapping[str, str]] = dict
    more: Callable[[], Mapping[str, Any]] = dict


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


_STATUS = {
    "version": "1.0.0",
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
    "offset": 0,
    "limit": 1000,
    "truncated": False,
    "services": [
        {
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
    ],
}
_BAD_LIMIT = BadCall("limit", Violation.ILLEGAL, "Param 'limit' is illegal, it must be a number from 0 to 1000000.")


@router.get(
    "/status",
    summary="The proxy's state",
    description="Upstream, push, services with their age, subscribers, gRPC sessions, counts, disk. It shows `limit` "
    "(1000) services from `offset` (0) on, in the order of their names; `truncated` is true if there are others, and "
    "`servicesTotal` counts all.",
    responses=documented(_STATUS, None, _BAD_LIMIT),
)
async def status(page: Annotated[StatusQuery, Query()], view: View) -> Response:
    return json_reply(await status_json(view, page.limit, page.offset), headers=_NO_STORE)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    description="`nacos_proxy_*` and the process's own.",
    responses=documented("…", media=TEXT_TYPE),
)
async def metrics(request: Request, view: View) -> Response:
    encode, content_type = _encoder(request.headers.get("accept", ""))
    return Reply(HttpReply(200, content_type, await view.metrics.scrape(encode), _NO_STORE))


@router.get("/", include_in_schema=False)
async def page(request: Request, view: View) -> Response:
    headers = (("content-security-policy", CONTENT_SECURITY_POLICY), ("x-content-type-options", "nosniff"))
    given = parse_qsl(request.scope["query_string"].decode("latin-1"))
    token = {name: value for name, value in given if name in TOKENS}
    shown = await status_json(view, _PAGE_SERVICES, hosts=MAX_HOSTS)
    rows = [service_row(row) async for row in in_turns(shown["services"], 10)]
    body = status_page(shown, rows, *readiness(view), token)
    return Reply(HttpReply(200, "text/html; charset=utf-8", body, (*headers, *_NO_STORE)))


def _encoder(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):  # the version in Accept is not a number
        return choose_encoder("")


def readiness(view: OperatorView) -> tuple[str, list[str]]:
    """`ready`, `degraded` or `unready`, and the reasons. A proxy that cannot answer any read is unready.

    The reasons name upstream servers that are down; the proxy is only degraded if more than half of them are.
    """
    catalog = view.agent.catalog
    reasons: list[str] = []
    knows_nothing = not any(entry.visible is not None for entry in catalog.cache.entries())
    if not catalog.breaker.up:
        reasons.append(f"upstream: {catalog.breaker.reason or 'no answer'}")
        if knows_nothing:
            return "unready", [*reasons, NOTHING_CACHED]
    parts = {"push": view.push, "polling": view.polling, "disk": view.disk, "services_dir": view.service_files}
    for name, shown in ((name, part()) for name, part in parts.items()):
        state = shown.get("state", "off")
        if state not in _HEALTHY:
            reasons.append(f"{name}: {shown.get('reason') or state}")
    reasons += [f"failing: {name}: {why}" for name, why in view.failing().items()]
    upstream = view.upstream()
    if refused := upstream.get("login", {}).get("error"):
        reasons.append(f"login: {refused}")
        if knows_nothing:
            return "unready", [*reasons, NOTHING_CACHED]
    if catalog.registrations.full:
        reasons.append("registrations: more than can be remembered; the newest are not registered again after a loss")
    if view.events.closed:
        reasons.append("stopping")
    servers: list[Mapping[str, Any]] = upstream.get("servers", [])
    down = [s for s in servers if s["state"] == "down"] if len(servers) > 1 and catalog.breaker.up else []
    notes = [f"upstream: {upstream['note']}"] if "note" in upstream else []
    notes += [f"node {s['url']}: down: {s['error']}" for s in down]
    return ("degraded" if reasons or 2 * len(down) > len(servers) else "ready"), [*reasons, *notes]


async def status_json(view: OperatorView, limit: int, offset: int = 0, *, hosts: int = 0) -> dict[str, Any]:
    """The status with `limit` services from `offset` on, ordered by name, each with up to `hosts` instances.

    Other tasks run between the services, so the status may mix values from before and after a change.
    """
    agent, catalog = view.agent, view.agent.catalog
    now = agent.clock.now()
    breaker = catalog.breaker
    entries = sorted(catalog.cache.entries(), key=lambda entry: entry.key)
    chosen = entries[offset : offset + limit]
    services = [_service_json(view, entry, now, hosts) async for entry in in_turns(chosen, 100)]
    return {
        "version": view.version,
        "uptimeSeconds": round(now - view.started, 3),
        "upstream": {
            "state": "up" if breaker.up else "down",
            "forSeconds": round(now - max(breaker.since, view.started), 3),
            "reason": breaker.reason,
            **view.upstream(),
        },
        "push": {"state": "off", **view.push()},
        "disk": {"state": "off", **view.disk()},
        **({"serviceFiles": files} if (files := view.service_files()) else {}),
        "failing": view.failing(),
        "subscribers": {"streams": view.events.readers, "byClient": view.events.quota.clients},
        "registrations": len(catalog.registrations),
        "lastEventId": catalog.hub.last_id,
        "counts": asdict(agent.counts),
        **view.more(),
        "servicesTotal": len(entries),
        "offset": offset,
        "limit": limit,
        "truncated": len(services) < len(entries),
        "services": services,
    }


def _service_json(view: OperatorView, entry: Entry, now: float, hosts: int) -> dict[str, Any]:
    cache = view.agent.catalog.cache
    result, shown = cache.result_of(entry, now), entry.visible
    instances = shown.instances if shown is not None else ()
    row: dict[str, Any] = {
        "service": entry.key.grouped,
        "namespaceId": entry.key.namespace,
        "state": result.freshness.value,
        "ageSeconds": round(result.age, 3) if shown is not None else None,
        "instances": len(instances),
        "healthy": sum(1 for i in instances if i.healthy),
        "watched": cache.is_watched(entry, now),
        "subscribers": entry.watcher_count,
        "registeredHere": entry.local_registrations,
        "pendingWrites": len(entry.pending),
        "fromDisk": entry.from_disk,
        "error": str(entry.error) if entry.error is not None else None,
        "revision": shown.revision if shown is not None else None,
    }
    if hosts:
        row["hosts"] = [(i.address, i.cluster, i.weight, i.healthy, i.enabled, i.metadata) for i in instances[:hosts]]
    return row
