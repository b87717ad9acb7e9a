"""Pages of services with their instances, from servers that have no such page; and all names from those without a call.

Not for: one service (`speech`). It costs a call for each service of the page.

    asked for    | where the dialect has no call for it
    -------------+----------------------------------------------------------------------------------------------------
    ListDetails  | v1, v2: all names, or where the server does not tell them (r-nacos) those of one group; then a fetch
                 | of each service that shows. v3 with `ignore_empty`: its pages with instances, the empty left out
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

AT_ONCE = 16
PAGE = 500  # the most that v2 gives at once
MOST_PAGES = 200


Ask = Callable[[ListDetails], Awaitable[DetailPage]]


class Sends(Protocol):
    """A server that takes calls in whatever dialect it has."""

    async def send(self, call: Call[R]) -> R: ...


async def details(line: Sends, call: ListDetails) -> DetailPage:
    """The page, where only names and single services can be asked for."""
    found = [key for key in await _keys(line, call) if call.name_part in key.name and call.group_part in key.group]
    if not call.ignore_empty:
        shown = _page(call, found)
        return DetailPage(len(found), tuple(await _described(line, shown, call.with_instances)))
    rows = [row for row in await _described(line, found, call.with_instances) if row.snapshot.instances]
    return DetailPage(len(rows), tuple(_page(call, rows)))


async def without_empty(ask: Ask, call: ListDetails) -> DetailPage:
    """The page, from a server whose own pages with instances cannot leave out the empty ones."""
    rows = [row for row in await _all_rows(ask, replace(call, ignore_empty=False)) if row.snapshot.instances]
    return DetailPage(len(rows), tuple(_page(call, rows)))


async def names(line: Sends, ask: Ask, call: ServiceNames) -> dict[str, tuple[str, ...]]:
    """Namespace -> names, from the pages of a server that has no call for them."""
    namespaces = [call.namespace]
    if not call.namespace:
        namespaces = [str(row["namespace"]) for row in await line.send(Namespaces())]
    found: dict[str, tuple[str, ...]] = {}
    for namespace in namespaces:
        rows = await _all_rows(ask, ListDetails(namespace))
        if rows:
            found[namespace] = tuple(row.info.key.grouped for row in rows)
    return found


async def _keys(line: Sends, call: ListDetails) -> list[ServiceKey]:
    """All services of the namespace, sorted, so that one page follows another."""
    try:
        told = await line.send(ServiceNames(call.namespace))
    except Refused as refused:
        if refused.reason is not Reason.GONE:
            raise
        return await _group(line, call.namespace, call.group_part or DEFAULT_GROUP)
    return sorted(ServiceKey.of(name, "", call.namespace) for name in told.get(call.namespace, ()))


async def _group(line: Sends, namespace: str, group: str) -> list[ServiceKey]:
    found: dict[str, None] = {}
    for number in range(1, MOST_PAGES + 1):
        page = await line.send(ListServices(namespace, group, number, PAGE))
        found.update(dict.fromkeys(page.names))
        if not page.names or len(found) >= page.count:
            break
    return sorted(ServiceKey(namespace, group, name) for name in found)


async def _all_rows(ask: Ask, call: ListDetails) -> list[ServiceDetail]:
    rows: dict[ServiceKey, ServiceDetail] = {}
    for number in range(1, MOST_PAGES + 1):
        page = await ask(replace(call, page=number, size=PAGE))
        rows.update((row.info.key, row) for row in page.rows)
        if not page.rows or len(rows) >= page.count:
            break
    return list(rows.values())


async def _described(line: Sends, keys: Sequence[ServiceKey], with_instances: bool) -> list[ServiceDetail]:
    rows: list[ServiceDetail] = []
    for start in range(0, len(keys), AT_ONCE):
        some = keys[start : start + AT_ONCE]
        rows += await asyncio.gather(*(_describe(line, key, with_instances) for key in some))
    return rows


async def _describe(line: Sends, key: ServiceKey, with_instances: bool) -> ServiceDetail:
    snapshot = await line.send(Fetch(key))
    info = ServiceInfo(key, snapshot.threshold)
    if with_instances:
        try:
            info = await line.send(GetService(key))
        except Refused:  # it went meanwhile, or the server does not tell
            pass
    return ServiceDetail(info, snapshot)


T = TypeVar("T")


def _page(call: ListDetails, rows: Sequence[T]) -> Sequence[T]:
    first = (max(1, call.page) - 1) * max(0, call.size)
    return rows[first : first + max(0, call.size)]
