"""Choices and lists for load balancers and scrapers. Not for: how to choose (`catalog.pick`), formats (`wire.targets`).

A new format is a function in `wire.targets`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from weakref import ref

import orjson
from cachetools import LRUCache
from starlette.requests import Request

from nacos_proxy.catalog.freshness import CacheResult, cache_headers
from nacos_proxy.catalog.load_balancing import STRATEGIES, Candidates, why_empty
from nacos_proxy.core.agent import Agent
from nacos_proxy.frontends.answers import mark_cacheable, to_query
from nacos_proxy.frontends.rest import documents as docs
from nacos_proxy.frontends.rest.reads import (
    Reads,
    oldest,
    tagged,
    wants_of,
)
from nacos_proxy.frontends.rest.routes import Endpoint, Routes
from nacos_proxy.frontends.rest.services import target
from nacos_proxy.model.calls import ListServices
from nacos_proxy.model.errors import (
    BadCall,
    NothingKnown,
    UpstreamError,
    Violation,
)
from nacos_proxy.model.services import (
    Instance,
    InstanceKey,
    ServiceKey,
    Snapshot,
)
from nacos_proxy.wire.discovery.targets import FORMATS, prometheus
from nacos_proxy.wire.http import JSON_TYPE, TEXT_TYPE, HttpReply
from nacos_proxy.wire.nacos.hosts import host_json
from nacos_proxy.wire.rest.problem import nothing_to_pick
from nacos_proxy.wire.rest.query import (
    Query,
    View,
    illegal,
    missing,
    read_key,
    read_list,
    read_view,
)

# A choice that a cache in between repeats is none.
NO_STORE = (("cache-control", "no-store"), ("vary", "accept"))
_NEED_ONE = frozenset({"nginx", "haproxy"})


@dataclass(frozen=True, slots=True)
class LookupPolicy:
    """`prepared` bytes of choices are kept, and `turns` of round robin; one answer names at most `most` services."""

    prepared: int = 16 << 20
    turns: int = 10_000
    max_services: int = 1_000


class Draws:
    """The choices of one view of one snapshot, and the bytes of each. `size`: of all that, in bytes, at the most."""

    def __init__(self, snapshot: Snapshot, view: View, as_text: bool) -> None:
        self.choice = Candidates(view.of(snapshot).hosts)
        self.size = (
            1000 + len(view.clusters) + sum(_HOST + (0 if as_text else _told(host)) for host in self.choice.hosts)
        )
        self._key = snapshot.key
        self._text = as_text
        self._bytes: dict[InstanceKey, bytes] = {}

    def weighted(self, rng: float) -> bytes:
        return self.body(self.choice.weighted(rng))

    def at_random(self, rng: float) -> bytes:
        return self.body(self.choice.random(rng))

    def hashed(self, key: str) -> bytes:
        return self.body(self.choice.hashed(key))

    def body(self, host: Instance | None) -> bytes:
        """What is answered where `host` was chosen."""
        assert host is not None
        body = self._bytes.get(host.key)
        if body is None:
            body = host.address.encode() if self._text else orjson.dumps(host_json(host, self._key))
            self._bytes[host.key] = body
        return body


class Again:
    """The way back to draws that are kept within their bound: who may choose again does not hold them beyond it."""

    def __init__(self, draws: Draws, make: Callable[[], Draws]) -> None:
        self._draws = ref(draws)
        self._make = make

    def draws(self) -> Draws:
        draws = self._draws()
        if draws is None:
            draws = self._make()
            self._draws = ref(draws)
        return draws


_HOST = 400  # bytes of what is kept of one instance beside its JSON


def _told(host: Instance) -> int:
    return _HOST + sum(len(name) + len(value or "") for name, value in host.metadata.items())


class LookupApi:
    """The endpoints. `rng()` draws evenly from [0, 1)."""

    def __init__(
        self, agent: Agent, reads: Reads, policy: LookupPolicy, rng: Callable[[], float] = random.random
    ) -> None:
        self._agent = agent
        self._reads = reads
        self._policy = policy
        self._rng = rng
        self._draws: LRUCache[Hashable, Draws] = LRUCache(policy.prepared, getsizeof=lambda draws: draws.size)
        self._turns: LRUCache[int, InstanceKey] = LRUCache(policy.turns)

    def routes(self) -> Routes:
        routes = Routes("lookup")
        routes.add("GET", "/api/v1/services/{service}/pick", self.pick, docs.PICK)
        routes.add("GET", "/api/v1/sd/prometheus", self.prometheus, docs.SD_PROMETHEUS)
        for name in FORMATS:
            routes.add("GET", f"/api/v1/sd/{name}", self._lines(name), docs.SD_LIST)
        return routes

    # one instance

    async def pick(self, request: Request) -> HttpReply:
        key, query = target(request)
        strategy = query.one_of("strategy", "weighted", STRATEGIES)
        asked = read_view(query, healthy_only=True)
        if strategy == "hash" and not query.text("key"):
            raise missing("key")
        as_text = wants_text(request, query)
        wants = wants_of(request)
        look = await self._agent.read(key, wants)
        assert look.snapshot is not None
        shown = look.snapshot
        view = asked.within(shown)
        draws = self._prepared(shown, view, as_text) if view is not None else None
        if view is None or draws is None or not draws.choice.hosts:
            reason = why_empty(shown, asked.cluster_set, asked.healthy_only)
            return nothing_to_pick(reason, request.scope["path"])
        again = Again(draws, lambda: self._prepared(shown, view, as_text))
        draw = self._draw(strategy, again, hash((key, view)), query.text("key"))
        repeat = None if strategy == "hash" else draw
        mark_cacheable(request.scope, self._agent, look, "pick", wants, repeat)
        return HttpReply(200, TEXT_TYPE if as_text else JSON_TYPE, draw(), (*cache_headers(look), *NO_STORE))

    def _prepared(self, snapshot: Snapshot, view: View, as_text: bool) -> Draws:
        slot = (snapshot.key, snapshot.revision, view, as_text)
        draws = self._draws.get(slot)
        if draws is None:
            draws = Draws(snapshot, view, as_text)
            if draws.size <= self._draws.maxsize:
                self._draws[slot] = draws
        return draws

    def _draw(self, strategy: str, again: Again, turn: int, key: str) -> Callable[[], bytes]:
        """A function that chooses anew each time; the fast path calls it too."""
        rng = self._rng
        match strategy:
            case "random":
                return lambda: again.draws().at_random(rng())
            case "hash":
                body = again.draws().hashed(key)
                return lambda: body
            case "round_robin":
                return lambda: self._next(again.draws(), turn)
            case _:
                return lambda: again.draws().weighted(rng())

    def _next(self, draws: Draws, turn: int) -> bytes:
        host = draws.choice.after(self._turns.get(turn))
        assert host is not None
        self._turns[turn] = host.key
        return draws.body(host)

    # lists

    def _lines(self, name: str) -> Endpoint:
        write = FORMATS[name]

        async def lines(request: Request) -> HttpReply:
            query = to_query(request.scope)
            key = read_key(_one(query), query)
            view = read_view(query, healthy_only=True)
            reply = await self._reads.answer(
                request,
                key,
                f"sd_{name}",
                (name, view.clusters, view.healthy_only),
                lambda found, stale: write(view.of(found).hosts, key),
                media=TEXT_TYPE,
            )
            if reply.status == 200 and not reply.body and name in _NEED_ONE:
                return nothing_to_pick(f"{key} has no instance that {name} could use", request.scope["path"])
            return reply

        return lines

    async def prometheus(self, request: Request) -> HttpReply:
        query = to_query(request.scope)
        view = read_view(query)
        keys = await self._services(query)
        wants = wants_of(request)
        looks = await asyncio.gather(*(self._agent.read(key, wants) for key in keys))
        if len(looks) == 1:
            mark_cacheable(request.scope, self._agent, looks[0], "sd_prometheus", wants)
        groups = [group for look in looks for group in _groups(look, view)]
        return tagged(request, orjson.dumps(groups), oldest(looks))

    async def _services(self, query: Query) -> list[ServiceKey]:
        names = query.all("service")
        if not names:
            raise missing("service")
        if len(names) > self._policy.max_services:
            raise illegal("service", f"Param 'service' is given more than {self._policy.max_services} times.")
        if "*" not in names:
            return [read_key(name, query) for name in names]
        if len(names) > 1:
            raise illegal("service", "Param 'service' is illegal, '*' stands alone.")
        return await self._everything(query)

    async def _everything(self, query: Query) -> list[ServiceKey]:
        group = read_list(query)
        names: list[str] = []
        try:
            for page in range(1, self._policy.max_services // 500 + 2):
                found = await self._agent.ask(ListServices(group.namespace, group.group, page, 500))
                names += found.names
                if len(names) >= found.count or not found.names:
                    break
        except UpstreamError as error:
            entries = (e.visible for e in self._agent.catalog.cache.entries())
            names = sorted(s.key.name for s in entries if s is not None and _of(s.key, group) and s.instances)
            if not names:
                raise NothingKnown(f"no services are known here and the upstream cannot be asked: {error}") from error
        if len(names) > self._policy.max_services:
            text = f"the group has more than {self._policy.max_services} services: name those that are wanted"
            raise BadCall("service", Violation.OTHER, text)
        return [ServiceKey(group.namespace, group.group, name) for name in names]


def _of(key: ServiceKey, group: ListServices) -> bool:
    return (key.namespace, key.group) == (group.namespace, group.group)


def _groups(look: CacheResult, view: View) -> list[dict[str, object]]:
    assert look.snapshot is not None
    return prometheus(view.of(look.snapshot).hosts, look.snapshot.key)


def _one(query: Query) -> str:
    names = query.all("service")
    if len(names) != 1:
        raise missing("service") if not names else illegal("service", "Param 'service' must be given once here.")
    return names[0]


def wants_text(request: Request, query: Query) -> bool:
    """`format=text|json`, else whether Accept names text/plain and not JSON."""
    asked = query.one_of("format", "", ("", "json", "text"))
    if asked:
        return asked == "text"
    accept = request.headers.get("accept", "").lower()
    return "text/plain" in accept and "json" not in accept
