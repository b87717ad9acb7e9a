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

from nacos_proxy.catalog.freshness import CacheResult, cache_headers
from nacos_proxy.catalog.load_balancing import Candidates, Strategy, why_empty
from nacos_proxy.core.agent import Agent
from nacos_proxy.frontends.answers import mark_cacheable
from nacos_proxy.frontends.rest import examples, models
from nacos_proxy.frontends.rest.examples import READ_ERRORS
from nacos_proxy.frontends.rest.reads import Reads, cache_control_of, known_names, oldest, tagged
from nacos_proxy.frontends.rest.routing import ApiRequest, ApiRoute, Reply, ServiceName, documented, problems, provided
from nacos_proxy.frontends.rest.services import SERVICE
from nacos_proxy.model.calls import ListServices
from nacos_proxy.model.errors import BadCall, NothingKnown, UpstreamError, Violation
from nacos_proxy.model.limits import Rules
from nacos_proxy.model.services import Instance, InstanceKey, ServiceKey, Snapshot
from nacos_proxy.wire.discovery.formats import FORMATS
from nacos_proxy.wire.discovery.prometheus import target_groups
from nacos_proxy.wire.http import JSON_TYPE, TEXT_TYPE, HttpReply
from nacos_proxy.wire.nacos.hosts import host_json
from nacos_proxy.wire.rest.problem import nothing_to_pick
from nacos_proxy.wire.rest.query import HealthyOnly, Names, ServicesQuery, View, ViewQuery, illegal, missing

router = APIRouter(route_class=ApiRoute, tags=["lookup"], default_response_class=Response)

# A cache in between would repeat one choice for all.
NO_STORE = (("cache-control", "no-store"), ("vary", "accept"))


_PREPARED = 16 << 20  # bytes of choices that are kept
_TURNS = 10_000  # positions of round robin that are kept


class Draws:
    """The choices from one view of one snapshot, and their bytes. `size` is the most memory it may take, in bytes."""

    def __init__(self, snapshot: Snapshot, view: View, as_text: bool) -> None:
        self.choice = Candidates(view.of(snapshot).hosts)
        self.size = (
            1000 + len(view.clusters) + sum(_HOST + (0 if as_text else _json_size(host)) for host in self.choice.hosts)
        )
        self._key = snapshot.key
        self._text = as_text
        self._bytes: dict[InstanceKey, bytes] = {}

    def body(self, host: Instance | None) -> bytes:
        """The answer if `host` was chosen."""
        assert host is not None
        body = self._bytes.get(host.key)
        if body is None:
            body = host.address.encode() if self._text else orjson.dumps(host_json(host, self._key))
            self._bytes[host.key] = body
        return body


class Again:
    """Finds the draws, or makes them anew. The fast path holds this, which keeps no draws alive beyond the bound."""

    def __init__(self, draws: Draws, make: Callable[[], Draws]) -> None:
        self._draws = ref(draws)
        self._make = make

    def draws(self) -> Draws:
        draws = self._draws()
        if draws is None:
            draws = self._make()
            self._draws = ref(draws)
        return draws


_HOST = 400  # bytes kept of one instance, besides its JSON


def _json_size(host: Instance) -> int:
    return _HOST + sum(len(name) + len(value or "") for name, value in host.metadata.items())


class LookupApi:
    """What the endpoints work with: prepared choices and turns. `rng()` draws evenly from [0, 1).

    One answer names at most `max_services`.
    """

    def __init__(
        self, agent: Agent, reads: Reads, rng: Callable[[], float] = random.random, *, max_services: int = 1_000
    ) -> None:
        self.agent = agent
        self.reads = reads
        self._max_services = max_services
        self._rng = rng
        self._draws: LRUCache[Hashable, Draws] = LRUCache(_PREPARED, getsizeof=lambda draws: draws.size)
        self._turns: LRUCache[int, InstanceKey] = LRUCache(_TURNS)

    # one instance

    def prepared(self, snapshot: Snapshot, view: View, as_text: bool) -> Draws:
        slot = (snapshot.key, snapshot.revision, view, as_text)
        draws = self._draws.get(slot)
        if draws is None:
            draws = Draws(snapshot, view, as_text)
            if draws.size <= self._draws.maxsize:
                self._draws[slot] = draws
        return draws

    def draw(self, strategy: Strategy, again: Again, turn: int, key: str) -> Callable[[], bytes]:
        """A function that chooses anew each time; the fast path calls it too."""
        choices: dict[Strategy, Callable[[Candidates], Instance | None]] = {
            "weighted": lambda choice: choice.weighted(self._rng()),
            "random": lambda choice: choice.random(self._rng()),
            "round_robin": lambda choice: self._next(choice, turn),
            "hash": lambda choice: choice.hashed(key),
        }
        choose = choices[strategy]

        def chosen() -> bytes:
            draws = again.draws()
            return draws.body(choose(draws.choice))

        return chosen

    def _next(self, choice: Candidates, turn: int) -> Instance | None:
        host = choice.after(self._turns.get(turn))
        if host is not None:
            self._turns[turn] = host.key
        return host

    # lists

    async def services(self, query: ServicesQuery, rules: Rules) -> list[ServiceKey]:
        """The services that a query names; `*` is every service of its group. Raises what a read raises."""
        keys = query.keys(self._max_services, rules)
        return await self._whole_group(query.list_call(rules)) if keys is None else keys

    async def _whole_group(self, group: ListServices) -> list[ServiceKey]:
        names: list[str] = []
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


def _groups(result: CacheResult, view: View) -> list[dict[str, object]]:
    assert result.snapshot is not None
    return target_groups(view.of(result.snapshot).hosts, result.snapshot.key)


class PickQuery(ViewQuery):
    healthy_only: HealthyOnly = True
    strategy: Annotated[
        Strategy, Field(description="How to choose. Weight 0 and disabled instances are never chosen.")
    ] = "weighted"
    key: Annotated[
        str, Field(description="For `hash`: what is to be kept on its instance, for example a user's id.")
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
    service: Annotated[Names, AfterValidator(_one), WithJsonSchema({"type": "string"})]


def wants_text(request: Request, query: PickQuery) -> bool:
    """`format`, or else whether Accept names text/plain and not JSON."""
    if query.format is not None:
        return query.format == "text"
    accept = request.headers.get("accept", "").lower()
    return "text/plain" in accept and "json" not in accept


_PICKED = documented(examples.INSTANCE_JSON, models.Instance, "As JSON, or as text")
_PICKED[200]["content"][TEXT_TYPE] = {"example": "10.0.0.5:8080"}


@router.get(
    SERVICE + "/pick",
    summary="One instance for whoever sends a request now",
    description="`weighted` honours weights, `random` does not, `round_robin` takes turns (per proxy process), `hash` "
    "keeps a `key` on its instance while others come and go. 503, with the reason, if there is no instance to choose.",
    responses={**_PICKED, **problems(*READ_ERRORS, BadCall("key", Violation.MISSING, "Param 'key' is required."))},
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
    if view is None or draws is None or not draws.choice.hosts:
        reason = why_empty(shown, asked.cluster_set, asked.healthy_only)
        return Reply(nothing_to_pick(reason, request.scope["path"]))
    again = Again(draws, lambda: api.prepared(shown, view, as_text))
    draw = api.draw(query.strategy, again, hash((key, view)), query.key)
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
    groups = [group for result in results for group in _groups(result, view)]
    return Reply(tagged(request, orjson.dumps(groups), oldest(results)))


def _lines(name: str) -> Callable[..., Awaitable[Response]]:
    """The endpoint of one of `FORMATS`."""
    line_format = FORMATS[name]

    async def lines(request: ApiRequest, query: Annotated[LinesQuery, Query()], api: Api) -> Response:
        key, view = query.service_key(query.service[0], request.rules), query.view(request.rules)
        reply = await api.reads.answer(
            request,
            key,
            f"sd_{name}",
            (name, view.clusters, view.healthy_only),
            lambda found, stale: line_format.render(view.of(found).hosts),
            media=TEXT_TYPE,
        )
        if reply.status == 200 and not reply.body and line_format.needs_server:
            reply = nothing_to_pick(f"{key} has no instance that {name} could use", request.scope["path"])
        return Reply(reply)

    return lines


for _name in FORMATS:
    router.add_api_route(
        f"/api/v1/sd/{_name}",
        _lines(_name),
        summary="Instances as plain lines, for load balancers",
        description="`text` is `ip:port` on each line, `nginx` and `haproxy` are `server` lines with weights. Weight 0 "
        "is left out, and so is an address that is no IP address or host name with a port from 1 to 65535; each "
        "address stands once, however it was spelt. nginx resolves host names when it reads the file, and refuses all "
        "of it for one that does not resolve: register IP addresses where nginx reads. `nginx` and `haproxy` need at "
        "least one server: otherwise 503.",
        responses={
            **documented("10.0.0.5:8080\n10.0.0.6:8080\n", None, "The lines", media=TEXT_TYPE),
            **examples.UNCHANGED,
            **problems(*READ_ERRORS),
        },
    )
