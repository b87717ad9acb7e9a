"""Pages of services with their instances, and lists of all names, for dialects that have no request for them.

call         | is composed of
-------------+----------------------------------------------------------------------------------------------------
ListDetails  | v1, v2: all names, or those of one group if the server does not list all (r-nacos); then a fetch of
             | each service on the page. v3 with `ignore_empty`: its pages with instances, without empty services
ServiceNames | v3: the names on all its pages
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from nacos_proxy.model.calls import (
    Call,
    DetailPage,
    Fetch,
    GetService,
    ListDetails,
    ListServices,
    Namespaces,
    ServiceDetail,
    ServiceInfo,
    ServiceNames,
)
from nacos_proxy.model.errors import Reason, Refused
from nacos_proxy.model.services import DEFAULT_GROUP, ServiceKey

R = TypeVar("R")
T = TypeVar("T")

MAX_CONCURRENT = 16  # services fetched at the same time
PAGE_SIZE = 500  # v2 gives no more at once
MAX_PAGES = 200

GetPage = Callable[[ListDetails], Awaitable[DetailPage]]


class Client(Protocol):
    """A server that executes calls in any dialect that it has."""

    async def send(self, call: Call[R]) -> R: ...


async def list_details(client: Client, call: ListDetails) -> DetailPage:
    """The page of services, from a server that lists names and shows single services."""
    keys = [key for key in await _all_keys(client, call) if call.name_part in key.name and call.group_part in key.group]
    if not call.ignore_empty:
        return DetailPage(len(keys), tuple(await _fetch_details(client, _slice_page(call, keys), call.with_instances)))
    rows = [row for row in await _fetch_details(client, keys, call.with_instances) if row.snapshot.instances]
    return DetailPage(len(rows), tuple(_slice_page(call, rows)))


async def without_empty(get_page: GetPage, call: ListDetails) -> DetailPage:
    """The page without empty services, from a server whose pages include them."""
    rows = [row for row in await _all_rows(get_page, replace(call, ignore_empty=False)) if row.snapshot.instances]
    return DetailPage(len(rows), tuple(_slice_page(call, rows)))


async def list_names(client: Client, get_page: GetPage, call: ServiceNames) -> dict[str, tuple[str, ...]]:
    """The names by namespace, from the pages of a server."""
    namespaces = [call.namespace]
    if not call.namespace:
        namespaces = [str(row["namespace"]) for row in await client.send(Namespaces())]
    names: dict[str, tuple[str, ...]] = {}
    for namespace in namespaces:
        rows = await _all_rows(get_page, ListDetails(namespace))
        if rows:
            names[namespace] = tuple(row.info.key.grouped for row in rows)
    return names


async def _all_keys(client: Client, call: ListDetails) -> list[ServiceKey]:
    """The services of the namespace, or of one group if the server does not list all. Sorted, so that pages agree."""
    try:
        names = await client.send(ServiceNames(call.namespace))
    except Refused as refused:
        if refused.reason is not Reason.GONE:
            raise
        return await _keys_of_group(client, call.namespace, call.group_part or DEFAULT_GROUP)
    return sorted(ServiceKey.of(name, "", call.namespace) for name in names.get(call.namespace, ()))


async def _keys_of_group(client: Client, namespace: str, group: str) -> list[ServiceKey]:
    names: set[str] = set()
    for number in range(1, MAX_PAGES + 1):
        page = await client.send(ListServices(namespace, group, number, PAGE_SIZE))
        names.update(page.names)
        if not page.names or len(names) >= page.count:
            break
    return sorted(ServiceKey(namespace, group, name) for name in names)


async def _all_rows(get_page: GetPage, call: ListDetails) -> list[ServiceDetail]:
    rows: dict[ServiceKey, ServiceDetail] = {}
    for number in range(1, MAX_PAGES + 1):
        page = await get_page(replace(call, page=number, size=PAGE_SIZE))
        rows.update((row.info.key, row) for row in page.rows)
        if not page.rows or len(rows) >= page.count:
            break
    return list(rows.values())


async def _fetch_details(client: Client, keys: Sequence[ServiceKey], with_instances: bool) -> list[ServiceDetail]:
    rows: list[ServiceDetail] = []
    for start in range(0, len(keys), MAX_CONCURRENT):
        batch = keys[start : start + MAX_CONCURRENT]
        rows += await asyncio.gather(*(_fetch_detail(client, key, with_instances) for key in batch))
    return rows


async def _fetch_detail(client: Client, key: ServiceKey, with_instances: bool) -> ServiceDetail:
    snapshot = await client.send(Fetch(key))
    info = ServiceInfo(key, snapshot.threshold)
    if with_instances:
        try:
            info = await client.send(GetService(key))
        except Refused:  # the service was deleted meanwhile, or the server does not show it
            pass
    return ServiceDetail(info, snapshot)


def _slice_page(call: ListDetails, rows: Sequence[T]) -> Sequence[T]:
    first = (max(1, call.page) - 1) * max(0, call.size)
    return rows[first : first + max(0, call.size)]
