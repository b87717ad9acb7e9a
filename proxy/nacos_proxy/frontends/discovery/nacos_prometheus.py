"""Nacos's own paths for Prometheus, below its context path: `/nacos/prometheus…` (from Nacos 2.3 on, off by default).

They are served from the cache, whatever server is behind: `wire.discovery.prometheus` says what differs from Nacos.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from nacos_proxy.frontends.discovery.formats import FormatsApi, encoded_aside
from nacos_proxy.frontends.rest.reads import cache_control_of, oldest, tagged
from nacos_proxy.frontends.rest.routing import ApiRequest, ApiRoute, provided
from nacos_proxy.wire.discovery.base import Shown
from nacos_proxy.wire.discovery.prometheus import nacos_target_groups
from nacos_proxy.wire.rest.query import read_namespace

PATH = "/prometheus"

router = APIRouter(route_class=ApiRoute, default_response_class=Response, include_in_schema=False)
Api = Annotated[FormatsApi, Depends(provided(FormatsApi))]


def owns(below: str) -> bool:
    """Whether a path, without the context path, is one of these."""
    return below == PATH or below.startswith(f"{PATH}/")


@router.get(PATH)
async def everything(request: ApiRequest, api: Api) -> Response:
    return await _answer(request, api)


@router.get(PATH + "/namespaceId/{namespace}")
async def of_namespace(request: ApiRequest, namespace: str, api: Api) -> Response:
    return await _answer(request, api, namespace)


@router.get(PATH + "/namespaceId/{namespace}/service/{service}")
async def of_service(request: ApiRequest, namespace: str, service: str, api: Api) -> Response:
    """`service` is a name without its group, in any group."""
    return await _answer(request, api, namespace, service)


async def _answer(request: ApiRequest, api: FormatsApi, namespace: str = "", service: str = "") -> Response:
    keys = await api.all_services(read_namespace(namespace, request.rules) if namespace else "", service)
    results = await api.read(keys, cache_control_of(request))
    shown = [Shown(it.key, it.select().hosts) for result in results if (it := result.snapshot) is not None]
    body = await encoded_aside(lambda: nacos_target_groups(shown), sum(len(hosts) for _, hosts in shown))
    return tagged(request, body, oldest(results))
