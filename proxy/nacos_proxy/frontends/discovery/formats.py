"""Lists of instances in the formats of `wire.discovery`, one route for each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import AfterValidator, Field, WithJsonSchema, create_model
from starlette.responses import Response

from nacos_proxy.catalog.freshness import CacheControl, CacheResult
from nacos_proxy.core.agent import Agent
from nacos_proxy.frontends.discovery.group_names import MAX_SERVICES, GroupNames
from nacos_proxy.frontends.rest import examples
from nacos_proxy.frontends.rest.examples import READ_ERRORS
from nacos_proxy.frontends.rest.reads import Reads, cache_control_of, encoded, known_keys, oldest, tagged
from nacos_proxy.frontends.rest.routing import ApiRequest, ApiRoute, Reply, documented, provided
from nacos_proxy.model.calls import ServiceNames
from nacos_proxy.model.errors import BadCall, NothingKnown, Reason, Refused, UpstreamError, Violation, is_unavailable
from nacos_proxy.model.limits import Rules
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.wire.discovery.base import Format, Shown
from nacos_proxy.wire.discovery.formats import FORMATS
from nacos_proxy.wire.rest.problem import nothing_to_pick
from nacos_proxy.wire.rest.query import ALL, HealthyOnly, Names, ServicesQuery, illegal, read_namespace

_LARGE = 1_000  # instances
YAML_TYPE = "application/yaml"  # RFC 9512

router = APIRouter(route_class=ApiRoute, tags=["lookup"], default_response_class=Response)


class FormatsApi:
    """One answer shows at most `max_services`."""

    def __init__(self, agent: Agent, reads: Reads, groups: GroupNames, *, max_services: int = MAX_SERVICES) -> None:
        self.agent = agent
        self.reads = reads
        self._groups = groups
        self._max_services = max_services

    async def services(self, query: ServicesQuery, rules: Rules) -> list[ServiceKey]:
        """The services that a query names; `*` is every service of its group. Raises what a read raises."""
        if (keys := query.keys(self._max_services, rules)) is not None:
            return keys
        if query.group == ALL:
            return await self.all_services(read_namespace(query.namespace, rules))
        group = query.list_call(rules)
        names, _ = await self._groups.names(group)
        return self._bounded([ServiceKey(group.namespace, group.group, name) for name in sorted(names)])

    async def all_services(self, namespace: str = "", name: str = "") -> list[ServiceKey]:
        """The services of all groups, sorted; '' means all namespaces, and all names. Raises what a read raises."""
        try:
            found = await self.agent.ask(ServiceNames(namespace))
            keys = sorted(ServiceKey.of(text, "", space) for space, names in found.items() for text in names)
        except UpstreamError as error:
            if isinstance(error, Refused) and error.reason is Reason.GONE:  # r-nacos
                text = "the upstream cannot list the services of all groups: name one group"
                raise Refused(Reason.GONE, text, status=501) from error
            keys = [key for key in known_keys(self.agent) if namespace in ("", key.namespace)]
            if not is_unavailable(error):  # what is known here stands in for an upstream that is away only
                raise
            if not keys:
                raise NothingKnown(f"no services are known here and the upstream cannot be asked: {error}") from error
        return self._bounded([key for key in keys if namespace in ("", key.namespace) and name in ("", key.name)])

    def _bounded(self, keys: list[ServiceKey]) -> list[ServiceKey]:
        if len(keys) > self._max_services:
            text = f"these are more than {self._max_services} services: name the ones you want"
            raise BadCall("service", Violation.OTHER, text)
        return keys

    async def read(self, keys: Sequence[ServiceKey], cache_control: CacheControl) -> list[CacheResult]:
        """Reads several services at once. Raises what a read raises: with half of them missing, their readers would
        take the other half for all."""
        return await asyncio.gather(*(self.agent.read(key, cache_control) for key in keys))


async def encoded_aside(write: Callable[[], object], hosts: int) -> bytes:
    """The body; a long one is written in a thread, so that it does not block the event loop."""
    if hosts <= _LARGE:
        return encoded(write())
    return await asyncio.to_thread(lambda: encoded(write()))


Api = Annotated[FormatsApi, Depends(provided(FormatsApi))]


def _one(names: list[str]) -> list[str]:
    if len(names) > 1:
        raise illegal("service", "Param 'service' must be given once here.")
    if names == [ALL]:
        raise illegal("service", "Param 'service' must name one service here.")
    return names


def _parameters(shape: Format) -> type[ServicesQuery]:
    fields: dict[str, Any] = {"healthy_only": (HealthyOnly, shape.healthy_only)}
    if not shape.several:
        one = Annotated[Names, AfterValidator(_one), WithJsonSchema({"type": "string", "example": "orders"})]
        fields["service"] = (one, ...)
    if shape.yaml:
        text = "`yaml` gives the type `application/yaml`; so does `Accept: application/yaml`."
        fields["format"] = (Annotated[Literal["json", "yaml"] | None, _JSON_OR_YAML, Field(description=text)], None)
    return create_model(f"{shape.name.title()}Query", __base__=ServicesQuery, **fields)


_JSON_OR_YAML = WithJsonSchema({"type": "string", "enum": ["json", "yaml"]})


def _media(shape: Format, query: ServicesQuery, request: ApiRequest) -> str:
    if not shape.yaml:
        return shape.media
    wanted = getattr(query, "format", None)
    accept = request.headers.get("accept", "").lower()
    yaml = wanted == "yaml" or (wanted is None and "yaml" in accept and "json" not in accept)
    return YAML_TYPE if yaml else shape.media


def _endpoint(shape: Format) -> Callable[..., Awaitable[Response]]:
    async def answer(request: ApiRequest, query: ServicesQuery, api: Api) -> Response:
        view, media = query.view(request.rules), _media(shape, query, request)
        keys, cache_control = await api.services(query, request.rules), cache_control_of(request)
        if query.service != [ALL] and len(keys) == 1:
            kind, variant = f"sd_{shape.name}", (shape.name, *view.variant)
            reply = await api.reads.answer(
                request, keys[0], kind, variant, lambda it, _: shape.of([Shown(it.key, view.of(it).hosts)]), media
            )
        else:
            results = await api.read(keys, cache_control)
            shown = [Shown(it.key, view.of(it).hosts) for result in results if (it := result.snapshot) is not None]
            body = await encoded_aside(lambda: shape.of(shown), sum(len(hosts) for _, hosts in shown))
            reply = tagged(request, body, oldest(results), media)
        if reply.status_code == 200 and not reply.body and shape.needs_server:
            named = ", ".join(map(str, keys))
            reason = f"{named} has no instance that {shape.name} could use"
            return Reply(nothing_to_pick(reason, request.scope["path"]))
        return reply

    answer.__annotations__["query"] = Annotated[_parameters(shape), Query()]  # FastAPI reads the parameters from it
    return answer


_SEVERAL = (
    " `service` may be given many times; `service=*` is every service of the group, and with `group=*` every service "
    "of the namespace."
)
for _shape in FORMATS.values():
    router.add_api_route(
        f"/api/v1/sd/{_shape.name}",
        _endpoint(_shape),
        summary=_shape.summary,
        description=_shape.description + (_SEVERAL if _shape.several else ""),
        responses={**documented(_shape.example, _shape.model, *READ_ERRORS, media=_shape.media), **examples.UNCHANGED},
    )
