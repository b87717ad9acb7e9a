"""Pages of services and lists of names, from dialects that have no request for them."""

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
    """Has services. `names`: it lists all names. `infos`: it shows a service's own data."""

    def __init__(self, *, names: bool = True, infos: bool = True, max_page: int = 2) -> None:
        self.names, self.infos, self.max_page = names, infos, max_page
        full = (Snapshot.of(k, [instance(f"10.0.0.{n}")]) for n, k in enumerate((C, A, B)))
        self.services = {s.key: s for s in (*full, Snapshot(EMPTY))}

    def __call__(self, call: Call[Any]) -> Any:
        match call:
            case ServiceNames():
                return {"public": tuple(k.grouped for k in self.services)} if self.names else GONE
            case ListServices():
                found = [k.name for k in self.services if k.group == call.group]
                first = (call.page - 1) * self.max_page  # a server whose pages are smaller than requested
                return ServicePage(len(found), tuple(found[first : first + self.max_page]))
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


async def test_list_details_fetches_each_service_that_shows() -> None:
    registry = ScriptedRegistry(Server())
    page = await service_pages.list_details(registry, ListDetails("public", page=2, size=2, with_instances=False))
    assert (page.count, [row.info.key for row in page.rows]) == (4, [EMPTY, B])
    assert [call.service for call in registry.sent(Fetch)] == [EMPTY, B]
    assert page.rows[1].snapshot.instances == (instance("10.0.0.2"),)


async def test_list_details_filters_by_parts_of_name_and_group() -> None:
    assert await shown(Server(), name_part="mpt") == (1, [EMPTY])
    assert await shown(Server(), group_part="2") == (1, [B])
    assert await shown(Server(), name_part="zzz") == (0, [])


async def test_list_details_leaves_empty_services_out_of_the_page_and_the_count() -> None:
    assert await shown(Server(), ignore_empty=True, size=2) == (3, [A, C])


async def test_list_details_shows_one_group_if_the_server_does_not_list_all_names() -> None:
    assert await shown(Server(names=False)) == (3, [A, C, EMPTY])
    assert await shown(Server(names=False), group_part="G2") == (1, [B])


async def test_list_details_with_instances_includes_the_service_info_if_there_is_one() -> None:
    for infos, metadata in ((True, {"owner": "x"}), (False, {})):
        registry = ScriptedRegistry(Server(infos=infos))
        page = await service_pages.list_details(registry, ListDetails("public", "a"))
        assert [row.info.metadata for row in page.rows] == [metadata]


async def test_list_details_raises_other_errors_than_gone() -> None:
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


async def test_without_empty_reads_all_pages() -> None:
    page = await service_pages.without_empty(get_page, ListDetails("public", page=2, size=2, ignore_empty=True))
    assert (page.count, [row.info.key for row in page.rows]) == (3, [B])


async def test_list_names_reads_all_pages_of_every_namespace() -> None:
    client = ScriptedRegistry(Server())
    names = tuple(k.grouped for k in (C, A, B, EMPTY))
    assert await service_pages.list_names(client, get_page, ServiceNames("public")) == {"public": names}
    assert await service_pages.list_names(client, get_page, ServiceNames()) == {"public": names}
    assert await service_pages.list_names(client, get_page, ServiceNames("ns-1")) == {}
