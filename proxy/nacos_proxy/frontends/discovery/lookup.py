"""`pick`: one instance to send a request to."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Hashable, Sequence
from typing import Annotated, Literal
from weakref import ref

import orjson
from cachetools import LRUCache
from fastapi import APIRouter, Depends, Query
from pydantic import Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from nacos_proxy.catalog.freshness import cache_headers
from nacos_proxy.catalog.load_balancing import why_empty
from nacos_proxy.catalog.picks import Pick, Picker, Split, sides_of
from nacos_proxy.core.agent import Agent
from nacos_proxy.frontends.answers import mark_cacheable
from nacos_proxy.frontends.rest import examples, models
from nacos_proxy.frontends.rest.examples import READ_ERRORS
from nacos_proxy.frontends.rest.reads import cache_control_of
from nacos_proxy.frontends.rest.routing import ApiRequest, ApiRoute, Reply, ServiceName, documented, provided
from nacos_proxy.frontends.rest.services import SERVICE
from nacos_proxy.model.errors import BadCall, Violation
from nacos_proxy.model.selectors import ANY, Selector
from nacos_proxy.model.services import Instance, InstanceKey, Snapshot
from nacos_proxy.model.strategies import MAX_PICKED, Strategy
from nacos_proxy.model.views import View
from nacos_proxy.wire.http import JSON_TYPE, TEXT_TYPE, HttpReply
from nacos_proxy.wire.nacos.hosts import host_json
from nacos_proxy.wire.rest.problem import nothing_to_pick
from nacos_proxy.wire.rest.query import HealthyOnly, ViewQuery, bounded, illegal, missing, read_selector

router = APIRouter(route_class=ApiRoute, tags=["lookup"], default_response_class=Response)

NO_STORE = (("cache-control", "no-store"), ("vary", "accept"))  # else a cache would repeat one choice for all clients
_MAX_DRAWS_BYTES = 16 << 20
_PERCENT = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,6})?")
_HOST_BYTES = 400  # bytes kept of one instance, besides its JSON


class Draws:
    """The instances that one view of one snapshot chooses from, and their bodies. `size`: bytes of memory, at most.

    `sides` are the two sides of a split that have instances, or one of all.
    """

    def __init__(self, snapshot: Snapshot, view: View, split: Selector, as_text: bool) -> None:
        hosts = view.of(snapshot).hosts
        self.sides = sides_of(hosts, split)
        self.key = snapshot.key
        sizes = (_HOST_BYTES + (0 if as_text else _json_size(host)) for host in hosts)
        self.size = 1000 + 4 * (view.size + len(split.text)) + sum(sizes)
        self._text = as_text
        self._bytes: dict[InstanceKey, bytes] = {}

    def body(self, host: Instance) -> bytes:
        body = self._bytes.get(host.key)
        if body is None:
            body = host.address.encode() if self._text else orjson.dumps(host_json(host, self.key))
            self._bytes[host.key] = body
        return body

    def list_of(self, hosts: Sequence[Instance]) -> bytes:
        """Addresses line by line, or an object with the fields of a list of instances."""
        if self._text:
            return b"".join(self.body(host) + b"\n" for host in hosts)
        shown = {"name": self.key.grouped, "namespaceId": self.key.namespace, "count": len(hosts)}
        return orjson.dumps(shown)[:-1] + b',"instances":[' + b",".join(map(self.body, hosts)) + b"]}"


def _json_size(host: Instance) -> int:
    return _HOST_BYTES + sum(len(name) + len(value or "") for name, value in host.metadata.items())


class LookupApi:
    """Prepared draws and their turns. `rng()` is uniform in [0, 1)."""

    def __init__(self, agent: Agent, rng: Callable[[], float] = random.random) -> None:
        self.agent = agent
        self._picker = Picker(rng)
        self._draws: LRUCache[Hashable, Draws] = LRUCache(_MAX_DRAWS_BYTES, getsizeof=lambda draws: draws.size)

    def prepared(self, snapshot: Snapshot, view: View, split: Selector, as_text: bool) -> Draws:
        slot = (snapshot.key, snapshot.revision, view, split, as_text)
        draws = self._draws.get(slot)
        if draws is None:
            draws = Draws(snapshot, view, split, as_text)
            if draws.size <= self._draws.maxsize:
                self._draws[slot] = draws
        return draws

    def make_draw(
        self, pick: Pick, draws: Draws, prepare: Callable[[], Draws], turn: Hashable, *, as_list: bool
    ) -> Callable[[], bytes]:
        """A function that chooses anew at each call. The fast path keeps it; it keeps no `Draws` beyond their bound."""
        known = ref(draws)

        def draw() -> bytes:
            nonlocal known
            found = known()
            if found is None:
                found = prepare()
                known = ref(found)
            hosts = self._picker.choose(pick, found.sides, found.key, turn)
            return found.list_of(hosts) if as_list else found.body(hosts[0])

        return draw


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
    n: Annotated[
        int | None,
        WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_PICKED}),
        Field(description="How many different instances. With it, also with `n=1`, the answer is a list."),
        bounded(1, MAX_PICKED),
    ] = None
    split: Annotated[
        str,
        Field(
            description="`SELECTOR:PERCENT`: this share of the picks goes to the instances that match, the rest to the "
            "others; all to one side if the other has none. With `hash` a key keeps its side.",
            examples=["version=2:10"],
        ),
    ] = ""

    def pick(self) -> Pick:
        """Raises `BadCall`."""
        return Pick(self.strategy, self.key, self.n or 1, _read_split(self.split) if self.split else None)


def _read_split(text: str) -> Split:
    selector, separator, percent = text.rpartition(":")
    if not separator or not selector.strip():
        expected = "Param 'split' is illegal, it must be SELECTOR:PERCENT, such as version=2:10."
        raise illegal("split", expected, text)
    if not (_PERCENT.fullmatch(percent) and float(percent) <= 100):
        place = f"at character {len(selector) + 2} ({percent[:20]!r})"
        raise illegal("split", f"Param 'split' is illegal, {place}: expected a number from 0 to 100.", text)
    return Split(read_selector("split", selector), float(percent) / 100)


def wants_text(request: Request, query: PickQuery) -> bool:
    """`format`, or else whether Accept names text/plain and not JSON."""
    if query.format is not None:
        return query.format == "text"
    accept = request.headers.get("accept", "").lower()
    return "text/plain" in accept and "json" not in accept


_MISSING_KEY = BadCall("key", Violation.MISSING, "Param 'key' is required.")
_PICKED = documented(
    *(examples.INSTANCE_JSON, models.Instance | models.Picked, *READ_ERRORS, _MISSING_KEY),
    description="As JSON, or as text; with `n`, a list",
)
_PICKED[200]["content"][JSON_TYPE] = {
    "examples": {"one": {"value": examples.INSTANCE_JSON}, "list": {"value": examples.PICKED_JSON}}
}
_PICKED[200]["content"][TEXT_TYPE] = {"example": "10.0.0.5:8080"}


@router.get(
    SERVICE + "/pick",
    summary="One instance to send a request to, or several",
    description="`weighted` honours weights, `random` does not, `round_robin` takes turns, `least_recent` chooses what "
    "it chose longest ago (both per proxy process), `hash` keeps a `key` on its instance while others come and go. "
    "`n` asks for a list of different instances, the first choice first; it is shorter if there are fewer. `split` "
    "gives a share of the picks to some instances, for a canary. 503, with the reason, if there is no instance to "
    "choose.",
    responses=_PICKED,
)
async def pick(request: ApiRequest, service: ServiceName, query: Annotated[PickQuery, Query()], api: Api) -> Response:
    key, asked = query.service_key(service, request.rules), query.view(request.rules)
    if query.strategy == "hash" and not query.key:
        raise missing("key")
    wanted = query.pick()
    as_text = wants_text(request, query)
    cache_control = cache_control_of(request)
    cached = await api.agent.read(key, cache_control)
    assert cached.snapshot is not None
    shown = cached.snapshot
    view = asked.within(shown)
    split = wanted.split.selector if wanted.split else ANY
    draws = api.prepared(shown, view, split, as_text) if view is not None else None
    if view is None or draws is None or not draws.sides:
        reason = why_empty(shown, asked)
        return Reply(nothing_to_pick(reason, request.scope["path"]))
    prepare, turn = lambda: api.prepared(shown, view, split, as_text), hash((key, view, split))
    draw = api.make_draw(wanted, draws, prepare, turn, as_list=query.n is not None)
    repeat = None if query.strategy == "hash" else draw
    mark_cacheable(request.scope, api.agent, cached, cache_control, repeat)
    media = TEXT_TYPE if as_text else JSON_TYPE
    return Reply(HttpReply(200, media, draw(), (*cache_headers(cached), *NO_STORE)))
