"""For operators: is it alive, can it answer, what does it do. Not for: the numbers' own meaning (`metrics`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import parse_qsl

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request

from nacos_proxy.catalog.entries import Entry
from nacos_proxy.core.agent import Agent
from nacos_proxy.frontends.answers import to_query
from nacos_proxy.frontends.auth import STRANGER
from nacos_proxy.frontends.events.streams import EventsApi
from nacos_proxy.frontends.operations.metrics import Metrics
from nacos_proxy.frontends.operations.status_page import (
    CONTENT_SECURITY_POLICY,
    MOST_HOSTS,
    page,
    service_row,
)
from nacos_proxy.frontends.rest import documents as docs
from nacos_proxy.frontends.rest.routes import Doc, Endpoint, Routes
from nacos_proxy.frontends.rest.services import json_reply
from nacos_proxy.runtime import in_turns
from nacos_proxy.wire.http import HttpReply
from nacos_proxy.wire.rest.query import TOKENS

_NO_STORE = (("cache-control", "no-store"),)
_PAGE_SERVICES = 200
_WELL = ("off", "ok", "idle", "unavailable")  # states of a part that degrade nothing
_BOUNDS = (("limit", 1000), ("offset", 0))


def _nothing() -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class OperatorView:
    """What operators are shown. The functions give JSON without secrets, made anew each time.

    `upstream`: servers, dialect and the like, `note` where something is to be said of it; `push`, `polling` and `disk`:
    at least `state` (`off`, `idle`, `ok`, `unavailable`, or else what is wrong) and `reason`; `failing`: background
    work that failed lately, with why. `started` is a moment of the agent's clock.
    """

    agent: Agent
    events: EventsApi
    metrics: Metrics
    version: str
    started: float
    upstream: Callable[[], Mapping[str, Any]] = _nothing
    push: Callable[[], Mapping[str, Any]] = _nothing
    polling: Callable[[], Mapping[str, Any]] = _nothing
    disk: Callable[[], Mapping[str, Any]] = _nothing
    failing: Callable[[], Mapping[str, str]] = _nothing
    more: Callable[[], Mapping[str, Any]] = _nothing


class OpsApi:
    """The endpoints."""

    def __init__(self, sight: OperatorView) -> None:
        self._sight = sight
        self.endpoints: dict[str, Endpoint] = {
            "/healthz": self.health,
            "/readyz": self.ready,
            "/status": self.status,
            "/metrics": self.metrics,
            "/": self.page,
        }

    def routes(self) -> Routes:
        return operations_routes(self.endpoints)

    async def health(self, request: Request) -> HttpReply:
        return json_reply({"status": "ok"}, headers=_NO_STORE)

    async def ready(self, request: Request) -> HttpReply:
        status, reasons = readiness(self._sight)
        if request.scope.get(STRANGER):  # what is wrong may name accounts and say what the upstream said
            reasons = list(dict.fromkeys(reason.partition(":")[0].partition(" ")[0] for reason in reasons))
        return json_reply({"status": status, "reasons": reasons}, 503 if status == "unready" else 200, _NO_STORE)

    async def status(self, request: Request) -> HttpReply:
        query = to_query(request.scope)
        limit, offset = (query.number(name, default, 0, 1_000_000) for name, default in _BOUNDS)
        return json_reply(await status_json(self._sight, limit, offset), headers=_NO_STORE)

    async def metrics(self, request: Request) -> HttpReply:
        encode, content_type = _encoder(request.headers.get("accept", ""))
        return HttpReply(200, content_type, await self._sight.metrics.scrape(encode), _NO_STORE)

    async def page(self, request: Request) -> HttpReply:
        headers = (("content-security-policy", CONTENT_SECURITY_POLICY), ("x-content-type-options", "nosniff"))
        query = parse_qsl(request.scope["query_string"].decode("latin-1"))
        token = {name: value for name, value in query if name in TOKENS}
        shown = await status_json(self._sight, _PAGE_SERVICES, hosts=MOST_HOSTS)
        rows = [service_row(row) async for row in in_turns(shown["services"], 10)]
        body = page(shown, rows, *readiness(self._sight), token)
        return HttpReply(200, "text/html; charset=utf-8", body, (*headers, *_NO_STORE))


def _encoder(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):  # of a version that is none
        return choose_encoder("")


_DOCS: dict[str, Doc | None] = {
    "/healthz": docs.HEALTH,
    "/readyz": docs.READY,
    "/status": docs.STATUS,
    "/metrics": docs.METRICS,
    "/": None,
}


def operations_routes(endpoints: Mapping[str, Endpoint]) -> Routes:
    """The endpoints by path, documented."""
    routes = Routes("operations")
    for path, doc in _DOCS.items():
        routes.add("GET", path, endpoints[path], doc)
    return routes


def readiness(sight: OperatorView) -> tuple[str, list[str]]:
    """`ready`, `degraded` or `unready`, and why. Unready is a proxy that could not answer a single read.

    Nodes of the upstream that are down are named; as long as half of them are up that alone degrades nothing.
    """
    catalog = sight.agent.catalog
    reasons: list[str] = []
    if not catalog.breaker.up:
        reasons.append(f"upstream: {catalog.breaker.reason or 'no answer'}")
        if not any(entry.visible is not None for entry in catalog.cache.entries()):
            return "unready", [*reasons, "cache: nothing is known yet"]
    parts = (("push", sight.push()), ("polling", sight.polling()), ("disk", sight.disk()))
    for name, part in parts:
        state = part.get("state", "off")
        if state not in _WELL:
            reasons.append(f"{name}: {part.get('reason') or state}")
    reasons += [f"failing: {name}: {why}" for name, why in sight.failing().items()]
    if refused := sight.upstream().get("login", {}).get("error"):
        reasons.append(f"login: {refused}")
        if not any(entry.visible is not None for entry in catalog.cache.entries()):
            return "unready", [*reasons, "cache: nothing is known yet"]
    if catalog.registrations.full:
        reasons.append("registrations: more than can be remembered; the newest are not registered again after a loss")
    if sight.events.closed:
        reasons.append("stopping")
    upstream = sight.upstream()
    servers: list[Mapping[str, Any]] = upstream.get("servers", [])
    down = [s for s in servers if s["state"] == "down"] if len(servers) > 1 and catalog.breaker.up else []
    notes = [f"upstream: {upstream['note']}"] if "note" in upstream else []
    notes += [f"node {s['url']}: down: {s['error']}" for s in down]
    return ("degraded" if reasons or 2 * len(down) > len(servers) else "ready"), [*reasons, *notes]


async def status_json(sight: OperatorView, limit: int, offset: int = 0, *, hosts: int = 0) -> dict[str, Any]:
    """Everything in one object; of the services `limit` from `offset` on, in the order of their names.

    `hosts` of each service are shown. The services are read in turns: what changes meanwhile may show or not.
    """
    agent, catalog = sight.agent, sight.agent.catalog
    now = agent.clock.now()
    breaker = catalog.breaker
    entries = sorted(catalog.cache.entries(), key=lambda entry: entry.key)
    chosen = entries[offset : offset + limit]
    services = [_service_json(sight, entry, now, hosts) async for entry in in_turns(chosen, 100)]
    return {
        "version": sight.version,
        "uptimeSeconds": round(now - sight.started, 3),
        "upstream": {
            "state": "up" if breaker.up else "down",
            "forSeconds": round(now - max(breaker.since, sight.started), 3),
            "reason": breaker.reason,
            **sight.upstream(),
        },
        "push": {"state": "off", **sight.push()},
        "disk": {"state": "off", **sight.disk()},
        "failing": sight.failing(),
        "subscribers": {"streams": sight.events.readers, "byClient": sight.events.quota.clients},
        "registrations": len(catalog.registrations),
        "lastEventId": catalog.hub.last_id,
        "counts": asdict(agent.counts),
        **sight.more(),
        "servicesTotal": len(entries),
        "offset": offset,
        "limit": limit,
        "truncated": len(services) < len(entries),
        "services": services,
    }


def _service_json(sight: OperatorView, entry: Entry, now: float, hosts: int) -> dict[str, Any]:
    cache = sight.agent.catalog.cache
    look, shown = cache.result_of(entry, now), entry.visible
    instances = shown.instances if shown is not None else ()
    row: dict[str, Any] = {
        "service": entry.key.grouped,
        "namespaceId": entry.key.namespace,
        "state": look.freshness.value,
        "ageSeconds": round(look.age, 3) if shown is not None else None,
        "instances": len(instances),
        "healthy": sum(1 for i in instances if i.healthy),
        "watched": cache.watches(entry, now),
        "subscribers": entry.listeners,
        "registeredHere": entry.local_registrations,
        "pendingWrites": len(entry.pending),
        "fromDisk": entry.from_disk,
        "error": str(entry.error) if entry.error is not None else None,
        "revision": shown.revision if shown is not None else None,
    }
    if hosts:
        row["hosts"] = [(i.address, i.cluster, i.weight, i.healthy, i.enabled, i.metadata) for i in instances[:hosts]]
    return row
