"""Pages of services from servers that have none, and names from those without a call for them."""

from __future__ import annotations

from typing import Any

import pytest

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
    ServicePage,
)
from nacos_proxy.model.errors import Reason, Refused, Unreachable
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.upstream.nacos import service_pages
from tests.helpers.build import instance, key
from tests.helpers.scripted import ScriptedRegistry

GONE = Refused(Reason.GONE, "no such call", status=404)
A, B, C, EMPTY = key("a"), key("b", "G2"), key("c"), key("empty")


class Server:
    """Has services, tells names or not, and knows a service's own data or not."""

    def __init__(self, *, names: bool = True, infos: bool = True, most: int = 2) -> None:
        self.names, self.infos, self.most = names, infos, most
        full = (Snapshot.of(k, [instance(f"10.0.0.{n}")]) for n, k in enumerate((C, A, B)))
        self.services = {s.key: s for s in (*full, Snapshot(EMPTY))}

    def __call__(self, call: Call[Any]) -> Any:
        match call:
            case ServiceNames():
                return {"public": tuple(k.grouped for k in self.services)} if self.names else GONE
            case ListServices():
                found = [k.name for k in self.services if k.group == call.group]
                first = (call.page - 1) * self.most  # a server that gives less at once than was asked
                return ServicePage(len(found), tuple(found[first : first + self.most]))
            case Fetch():
                return self.services[call.service]
            case GetService():
                return ServiceInfo(call.service, 0.5, {"owner": "x"}) if self.infos else GONE
            case Namespaces():
                return ({"namespace": "public"}, {"namespace": "ns-1"})
            case _:
                raise AssertionError(call)


async def shown(server: Server, **fields: Any) -> tuple[int, list[ServiceKey]]:
    call = ListDetails("public", **{"with_instances": False, **fields})
    page = await service_pages.list_details(ScriptedRegistry(server), call)
    return page.count, [row.info.key for row in page.rows]


async def test_a_page_is_made_of_the_names_and_a_fetch_of_each_service_that_shows() -> None:
    registry = ScriptedRegistry(Server())
    page = await service_pages.list_details(registry, ListDetails("public", page=2, size=2, with_instances=False))
    assert (page.count, [row.info.key for row in page.rows]) == (4, [EMPTY, B])
    assert [call.service for call in registry.sent(Fetch)] == [EMPTY, B]
    assert page.rows[1].snapshot.instances == (instance("10.0.0.2"),)


async def test_parts_of_name_and_group_choose() -> None:
    assert await shown(Server(), name_part="mpt") == (1, [EMPTY])
    assert await shown(Server(), group_part="2") == (1, [B])
    assert await shown(Server(), name_part="zzz") == (0, [])


async def test_empty_services_are_left_out_of_the_page_and_of_the_count() -> None:
    assert await shown(Server(), ignore_empty=True, size=2) == (3, [A, C])


async def test_where_no_names_are_told_one_group_is_shown_page_by_page() -> None:
    assert await shown(Server(names=False)) == (3, [A, C, EMPTY])
    assert await shown(Server(names=False), group_part="G2") == (1, [B])


async def test_a_page_with_instances_says_what_is_known_of_the_service_itself() -> None:
    for infos, metadata in ((True, {"owner": "x"}), (False, {})):
        registry = ScriptedRegistry(Server(infos=infos))
        page = await service_pages.list_details(registry, ListDetails("public", "a"))
        assert [row.info.metadata for row in page.rows] == [metadata]


async def test_a_server_that_cannot_be_reached_is_no_server_without_names() -> None:
    registry = ScriptedRegistry(lambda call: Unreachable("gone", arrived=False))
    with pytest.raises(Unreachable):
        await service_pages.list_details(registry, ListDetails("public"))
    registry = ScriptedRegistry(lambda call: Refused(Reason.NO_RIGHT, "no", status=403))
    with pytest.raises(Refused):
        await service_pages.list_details(registry, ListDetails("public"))


def v3_pages(call: ListDetails) -> DetailPage:
    rows = [ServiceDetail(ServiceInfo(s.key), s) for s in Server().services.values() if call.namespace == "public"]
    first = 2 * (call.page - 1)
    assert not call.ignore_empty
    return DetailPage(len(rows), tuple(rows[first : first + 2]))


async def get_page(call: ListDetails) -> DetailPage:
    return v3_pages(call)


async def test_v3_pages_without_the_empty_are_made_of_all_its_pages() -> None:
    page = await service_pages.without_empty(get_page, ListDetails("public", page=2, size=2, ignore_empty=True))
    assert (page.count, [row.info.key for row in page.rows]) == (3, [B])


async def test_names_are_those_on_all_pages_of_every_namespace() -> None:
    client = ScriptedRegistry(Server())
    names = tuple(k.grouped for k in (C, A, B, EMPTY))
    assert await service_pages.list_names(client, get_page, ServiceNames("public")) == {"public": names}
    assert await service_pages.list_names(client, get_page, ServiceNames()) == {"public": names}
    assert await service_pages.list_names(client, get_page, ServiceNames("ns-1")) == {}
