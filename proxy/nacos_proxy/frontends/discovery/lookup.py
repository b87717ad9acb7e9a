"""Lookups for load balancers and scrapers: one instance (`pick`), and lists in the formats of `wire.discovery`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Hashable
from typing import Annotated, Literal
from weakref import ref

import orjson
from cachetools import LRUCache
from fastapi import APIRouter, Depends, Query
from pydantic import AfterValidator, Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from nacos_proxy.catalog.freshness import cache_headers
from nacos_proxy.catalog.load_balancing import Candidates, Strategy, why_empty
from nacos_proxy.core.agent import Agent
from nacos_proxy.frontends.answers import mark_cacheable
from nacos_proxy.frontends.rest import examples, models
from nacos_proxy.frontends.rest.examples import READ_ERRORS
from nacos_proxy.frontends.rest.reads import Reads, cache_control_of, known_names, oldest, tagged
from nacos_proxy.frontends.rest.routing import ApiRequest, ApiRoute, Reply, ServiceName, documented, provided
from nacos_proxy.frontends.rest.services import SERVICE
from nacos_proxy.model.calls import ListServices
from nacos_proxy.model.errors import BadCall, NothingKnown, UpstreamError, Violation
from nacos_proxy.model.limits import Rules
from nacos_proxy.model.services import Instance, InstanceKey, ServiceKey, Snapshot
from nacos_proxy.model.views import View
from nacos_proxy.wire.discovery.formats import FORMATS
from nacos_proxy.wire.discovery.prometheus import target_groups
from nacos_proxy.wire.http import JSON_TYPE, TEXT_TYPE, HttpReply
from nacos_proxy.wire.nacos.hosts import host_json
from nacos_proxy.wire.rest.problem import nothing_to_pick
from nacos_proxy.wire.rest.query import HealthyOnly, Names, ServicesQuery, ViewQuery, illegal, missing

router = APIRouter(route_class=ApiRoute, tags=["lookup"], default_response_class=Response)

NO_STORE = (("cache-control", "no-store"), ("vary", "accept"))  # else a cache would repeat one choice for all clients
_MAX_DRAWS_BYTES = 16 << 20
_MAX_TURNS = 10_000  # round-robin positions that are kept
_HOST_BYTES = 400  # bytes kept of one instance, besides its JSON


class Draws:
    """The instances that one view of one snapshot chooses from, and their bodies. `size`: bytes of memory, at most."""

    def __init__(self, snapshot: Snapshot, view: View, as_text: bool) -> None:
        self.candidates = Candidates(view.of(snapshot).hosts)
        sizes = (_HOST_BYTES + (0 if as_text else _json_size(host)) for host in self.candidates.hosts)
        self.size = 1000 + 4 * view.size + sum(sizes)
        self._key = snapshot.key
        self._text = as_text
        self._bytes: dict[InstanceKey, bytes] = {}

    def body(self, host: Instance | None) -> bytes:
        assert host is not None
        body = self._bytes.get(host.key)
        if body is None:
            body = host.address.encode() if self._text else orjson.dumps(host_json(host, self._key))
            self._bytes[host.key] = body
        return body


def _json_size(host: Instance) -> int:
    return _HOST_BYTES + sum(len(name) + len(value or "") for name, value in host.metadata.items())


class LookupApi:
    """Prepared draws and round-robin turns. `rng()` is uniform in [0, 1). One answer has at most `max_services`."""

    def __init__(
        self, agent: Agent, reads: Reads, rng: Callable[[], float] = random.random, *, max_services: int = 1_000
    ) -> None:
        self.agent = agent
        self.reads = reads
        self._max_services = max_services
        self._rng = rng
        self._draws: LRUCache[Hashable, Draws] = LRUCache(_MAX_DRAWS_BYTES, getsizeof=lambda draws: draws.size)
        self._turns: LRUCache[int, InstanceKey] = LRUCache(_MAX_TURNS)

    def prepared(self, snapshot: Snapshot, view: View, as_text: bool) -> Draws:
        slot = (snapshot.key, snapshot.revision, view, as_text)
        draws = self._draws.get(slot)
        if draws is None:
            draws = Draws(snapshot, view, as_text)
            if draws.size <= self._draws.maxsize:
                self._draws[slot] = draws
        return draws

    def make_draw(
        self, strategy: Strategy, draws: Draws, prepare: Callable[[], Draws], turn: int, key: str
    ) -> Callable[[], bytes]:
        """A function that chooses anew at each call. The fast path keeps it; it keeps no `Draws` beyond their bound."""
        choices: dict[Strategy, Callable[[Candidates], Instance | None]] = {
            "weighted": lambda candidates: candidates.weighted(self._rng()),
            "random": lambda candidates: candidates.random(self._rng()),
            "round_robin": lambda candidates: self._next(candidates, turn),
            "hash": lambda candidates: candidates.hashed(key),
        }
        choose, known = choices[strategy], ref(draws)

        def draw() -> bytes:
            nonlocal known
            found = known()
            if found is None:
                found = prepare()
                known = ref(found)
            return found.body(choose(found.candidates))

        return draw

    def _next(self, candidates: Candidates, turn: int) -> Instance | None:
        host = candidates.after(self._turns.get(turn))
        if host is not None:
            self._turns[turn] = host.key
        return host

    async def services(self, query: ServicesQuery, rules: Rules) -> list[ServiceKey]:
        """The services that a query names; `*` is every service of its group. Raises what a read raises."""
        if (keys := query.keys(self._max_services, rules)) is not None:
            return keys
        group, names = query.list_call(rules), list[str]()
        try:
            for page in range(1, self._max_services // 500 + 2):
                found = await self.agent.ask(ListServices(group.namespace, group.group, page, 500))
                names += found.names
                if len(names) >= found.count or not found.names:
                    break
        except UpstreamError as error:
            names = known_names(self.agent, group)
            if not names:
                raise NothingKnown(f"no services are known here and the upstream cannot be asked: {error}") from error
        if len(names) > self._max_services:
            text = f"the group has more than {self._max_services} services: name the ones you want"
            raise BadCall("service", Violation.OTHER, text)
        return [ServiceKey(group.namespace, group.group, name) for name in names]


Api = Annotated[LookupApi, Depends(provided(LookupApi))]


class PickQuery(ViewQuery):
    healthy_only: HealthyOnly = True
    strategy: Annotated[
        Strategy, Field(description="How to choose. Weight 0 and disabled instances are never chosen.")
    ] = "weighted"
    key: Annotated[
        str, Field(description="For `hash`: requests with the same key get the same instance; for example a user's id.")
    ] = ""
    format: Annotated[
        Literal["json", "text"] | None,
        WithJsonSchema({"type": "string", "enum": ["json", "text"]}),
        Field(description="`text` gives `ip:port`; so does `Accept: text/plain`."),
    ] = None


def _one(names: list[str]) -> list[str]:
    if len(names) > 1:
        raise illegal("service", "Param 'service' must be given once here.")
    return names


class LinesQuery(ViewQuery):
    healthy_only: HealthyOnly = True
    service: Annotated[Names, AfterValidator(_one), WithJsonSchema({"type": "string", "example": "orders"})]


def wants_text(request: Request, query: PickQuery) -> bool:
    """`format`, or else whether Accept names text/plain and not JSON."""
    if query.format is not None:
        return query.format == "text"
    accept = request.headers.get("accept", "").lower()
    return "text/plain" in accept and "json" not in accept


_MISSING_KEY = BadCall("key", Violation.MISSING, "Param 'key' is required.")
_PICKED = documented(
    *(examples.INSTANCE_JSON, models.Instance, *READ_ERRORS, _MISSING_KEY), description="As JSON, or as text"
)
_PICKED[200]["content"][TEXT_TYPE] = {"example": "10.0.0.5:8080"}


@router.get(
    SERVICE + "/pick",
    summary="One instance to send a request to",
    description="`weighted` honours weights, `random` does not, `round_robin` takes turns (per proxy process), `hash` "
    "keeps a `key` on its instance while others come and go. 503, with the reason, if there is no instance to choose.",
    responses=_PICKED,
)
async def pick(request: ApiRequest, service: ServiceName, query: Annotated[PickQuery, Query()], api: Api) -> Response:
    key, asked = query.service_key(service, request.rules), query.view(request.rules)
    if query.strategy == "hash" and not query.key:
        raise missing("key")
    as_text = wants_text(request, query)
    cache_control = cache_control_of(request)
    cached = await api.agent.read(key, cache_control)
    assert cached.snapshot is not None
    shown = cached.snapshot
    view = asked.within(shown)
    draws = api.prepared(shown, view, as_text) if view is not None else None
    if view is None or draws is None or not draws.candidates.hosts:
        reason = why_empty(shown, asked)
        return Reply(nothing_to_pick(reason, request.scope["path"]))
    draw = api.make_draw(
        query.strategy, draws, lambda: api.prepared(shown, view, as_text), hash((key, view)), query.key
    )
    repeat = None if query.strategy == "hash" else draw
    mark_cacheable(request.scope, api.agent, cached, "pick", cache_control, repeat)
    media = TEXT_TYPE if as_text else JSON_TYPE
    return Reply(HttpReply(200, media, draw(), (*cache_headers(cached), *NO_STORE)))


@router.get(
    "/api/v1/sd/prometheus",
    summary="Targets for Prometheus (http_sd)",
    description="One target group per instance, its data as `__meta_nacos_*` labels. `service` may be given many "
    "times; `service=*` is every service of the group.",
    responses=examples.of_a_read(
        [{"targets": ["10.0.0.5:8080"], "labels": {"__meta_nacos_service": "orders"}}], list[models.TargetGroup]
    ),
)
async def prometheus(request: ApiRequest, query: Annotated[ServicesQuery, Query()], api: Api) -> Response:
    view = query.view(request.rules)
    keys = await api.services(query, request.rules)
    cache_control = cache_control_of(request)
    results = await asyncio.gather(*(api.agent.read(key, cache_control) for key in keys))
    if len(results) == 1:
        mark_cacheable(request.scope, api.agent, results[0], "sd_prometheus", cache_control)
    snapshots = [result.snapshot for result in results if result.snapshot is not None]
    groups = [group for found in snapshots for group in target_groups(view.of(found).hosts, found.key)]
    return tagged(request, groups, oldest(results))


def _lines(name: str) -> Callable[..., Awaitable[Response]]:
    """The endpoint of one of `FORMATS`."""
    line_format = FORMATS[name]

    async def lines(request: ApiRequest, query: Annotated[LinesQuery, Query()], api: Api) -> Response:
        key, view = query.service_key(query.service[0], request.rules), query.view(request.rules)
        variant = (name, *view.variant)
        reply = await api.reads.answer(
            request, key, f"sd_{name}", variant, lambda found, _: line_format.render(view.of(found).hosts), TEXT_TYPE
        )
        if reply.status_code == 200 and not reply.body and line_format.needs_server:
            return Reply(nothing_to_pick(f"{key} has no instance that {name} could use", request.scope["path"]))
        return reply

    return lines


_LINES = "10.0.0.5:8080\n10.0.0.6:8080\n"
for _name in FORMATS:
    router.add_api_route(
        f"/api/v1/sd/{_name}",
        _lines(_name),
        summary="Instances as plain lines, for load balancers",
        description="`text` is `ip:port` on each line, `nginx` and `haproxy` are `server` lines with weights. The list "
        "omits instances with weight 0, and addresses that are not an IP address or host name with a port from 1 to "
        "65535. Different spellings of an address make one line. If one host name does not resolve, nginx refuses the "
        "whole file: for nginx, register IP addresses. `nginx` and `haproxy` need at least one server: otherwise 503.",
        responses={
            **documented(_LINES, None, *READ_ERRORS, description="The lines", media=TEXT_TYPE),
            **examples.UNCHANGED,
        },
    )
