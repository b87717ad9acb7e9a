"""v3 beyond instances: services, the catalog, health, operator, state; both roles. The rows go into the table of `v3`.

Source: nacos-http.md 4.2, 4.3 and the recordings nacos-3.0.3, v3-only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from nacos_proxy.model.calls import (
    Alive,
    CreateService,
    DeleteService,
    DetailPage,
    GetService,
    ListDetails,
    ListServices,
    Metrics,
    Namespaces,
    Ready,
    ServerState,
    ServiceInfo,
    ServicePage,
    SetHealth,
    Subscriber,
    Subscribers,
    Switches,
    UpdateService,
)
from nacos_proxy.model.errors import BadCall, Misplaced, Violation
from nacos_proxy.model.services import (
    DEFAULT_NAMESPACE,
    GROUP_SEPARATOR,
    ServiceKey,
    Snapshot,
)
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos.base import Operation
from nacos_proxy.wire.nacos.forms import bare, pairs, service_form
from nacos_proxy.wire.nacos.parameters import Parameters
from nacos_proxy.wire.nacos.results import (
    data_of,
    health_form,
    read_create,
    read_health,
    read_mapping,
    read_metrics,
    read_ok,
    read_service_form,
    read_service_update,
    write_as_is,
    write_ok,
)
from nacos_proxy.wire.nacos.services import (
    NO_SELECTOR,
    cluster_map,
    detail_json,
    read_detail,
    read_namespaces,
    read_service,
    read_subscriber,
    view_json,
)
from nacos_proxy.wire.nacos.shapes import (
    as_int,
    as_list,
    as_object,
    result,
)

_SERVICE = "/v3/admin/ns/service"
SERVICES = "/v3/admin/ns/service/list"
_STATE = "/v3/admin/core/state"
READINESS = "/v3/admin/core/state/readiness"

# --- server role: requests ---------------------------------------------------------------------------------------


def _page(p: Parameters) -> tuple[int, int]:
    page, size = p.integer("pageNo", 1), p.integer("pageSize", 100)
    for name, value in (("pageNo", page), ("pageSize", size)):
        if value < 1:
            said = f"Required parameter '{name}' should be positive integer, current is {value}"
            raise BadCall(name, Violation.OTHER, said, value=str(value))
    return page, size


def _read_details(request: HttpRequest) -> ListDetails:
    p = Parameters(request)
    p.check()
    ignore_empty, with_instances = p.flag("ignoreEmptyService", False), p.flag("withInstances", False)
    page, size = _page(p)
    namespace = p.text("namespaceId", default=DEFAULT_NAMESPACE)
    name, group = p.text("serviceNameParam"), p.text("groupNameParam")
    # with instances, ignoreEmptyService is accepted and without effect (recording "… with ignoreEmpty")
    return ListDetails(namespace, name, group, page, size, ignore_empty and not with_instances, with_instances)


def _read_subscribers(request: HttpRequest) -> Subscribers:
    return Subscribers(read_service_form(request), *_page(Parameters(request)))


# --- server role: replies ----------------------------------------------------------------------------------------


def _write_service(call: GetService, info: ServiceInfo) -> HttpReply:
    return result(
        {
            "namespaceId": call.service.namespace,
            "serviceName": call.service.name,
            "groupName": call.service.group,
            "clusterMap": cluster_map(info, ports=True),
            "metadata": dict(info.metadata),
            "protectThreshold": info.threshold,
            "selector": dict(info.selector or NO_SELECTOR),
            "ephemeral": info.ephemeral,
        }
    )


def _write_page(page: int, size: int, count: int, items: list[dict[str, Any]]) -> HttpReply:
    """One page too many where the count is a multiple of the size, and none of nothing (nacos-http.md 4.2)."""
    available = count // size + 1 if count else 0
    return result({"totalCount": count, "pageNumber": page, "pagesAvailable": available, "pageItems": items})


def _write_details(call: ListDetails, page: DetailPage) -> HttpReply:
    show = detail_json if call.with_instances else view_json
    return _write_page(call.page, call.size, page.count, [show(row) for row in page.rows])


def _write_subscribers(call: Subscribers, found: tuple[Subscriber, ...]) -> HttpReply:
    items: list[dict[str, Any]] = []
    for s in found:
        group, separator, name = s.service.partition(GROUP_SEPARATOR)
        items.append(
            {
                "namespaceId": s.namespace,
                "groupName": group if separator else call.service.group,
                "serviceName": name if separator else s.service,
                "ip": s.ip,
                "port": s.port,
                "agent": s.agent,
                "appName": s.app,
            }
        )
    return _write_page(call.page, call.size, len(items), items)


def _write_namespaces(_call: Namespaces, found: Iterable[Any]) -> HttpReply:
    return result([dict(row) for row in found])


# --- client role -------------------------------------------------------------------------------------------------

_PAGE = 500
_REGEX = re.compile(r"[\\^$|?*+()\[\]{}]+")


def details_of(key: ServiceKey, page: int = 1, size: int = _PAGE) -> ListDetails:
    """The call whose pages have a service among those named alike.

    The server puts the text into a regular expression: a name with signs of one is looked for by its longest piece.
    """
    pieces = (piece.lstrip("@") for piece in _REGEX.split(key.name))
    return ListDetails(key.namespace, max(pieces, key=len), key.group, page, size)


def find(key: ServiceKey, page: DetailPage) -> Snapshot | None:
    """The service itself on such a page; None where it is not there. Raises `Misplaced` for a page of other names."""
    if strange := [row.info.key.name for row in page.rows if details_of(key).name_part not in row.info.key.name]:
        raise Misplaced(f"asked for services named like {key.name!r}, and was told of {strange[0]!r}")
    return next((row.snapshot for row in page.rows if row.info.key == key), None)


def write_details(call: ListDetails) -> HttpRequest:
    query = pairs(
        pageNo=call.page,
        pageSize=call.size,
        namespaceId=call.namespace,
        serviceNameParam=call.name_part or None,
        groupNameParam=call.group_part or None,
        ignoreEmptyService=call.ignore_empty or None,
        withInstances=True,
    )
    return HttpRequest("GET", SERVICES, query)


def read_details(call: ListDetails, reply: HttpReply) -> DetailPage:
    answer = as_object(data_of("v3", call, reply), "page")
    rows = as_list(answer.get("pageItems"), "pageItems")
    return DetailPage(
        as_int(answer.get("totalCount"), "totalCount"), tuple(read_detail(call.namespace, row) for row in rows)
    )


def _write_services(call: ListServices) -> HttpRequest:
    """v3 refuses a page below 1, which v1 takes for the first one."""
    page, size = max(1, call.page), max(1, call.size)
    query = pairs(pageNo=page, pageSize=size, namespaceId=call.namespace, groupNameParam=call.group)
    return HttpRequest("GET", SERVICES, query)


def _read_services(call: ListServices, reply: HttpReply) -> ServicePage:
    """Groups are matched in part, too: what is of another group is left out of the page and of its count."""
    answer = as_object(data_of("v3", call, reply), "page")
    rows = [as_object(row, "row") for row in as_list(answer.get("pageItems"), "pageItems")]
    names = tuple(str(row["name"]) for row in rows if row.get("groupName") == call.group)
    return ServicePage(
        as_int(answer.get("totalCount"), "totalCount") - len(rows) + len(names), names[: max(0, call.size)]
    )


def _write_service_form(call: CreateService | UpdateService) -> HttpRequest:
    create = isinstance(call, CreateService)
    kind = pairs(ephemeral=call.ephemeral) if create else ()
    query = (*bare(call.service), *service_form(call), *kind)
    return HttpRequest("POST" if create else "PUT", _SERVICE, query)


def _read_service_reply(call: GetService, reply: HttpReply) -> ServiceInfo:
    return read_service(call.service, data_of("v3", call, reply))


def _write_subscribers_request(call: Subscribers) -> HttpRequest:
    return HttpRequest("GET", _SUBSCRIBERS, (*bare(call.service), *pairs(pageNo=call.page, pageSize=call.size)))


def _read_subscribed(call: Subscribers, reply: HttpReply) -> tuple[Subscriber, ...]:
    rows = as_list(as_object(data_of("v3", call, reply), "page").get("pageItems"), "pageItems")
    return tuple(read_subscriber(row, call.service) for row in rows)


def _write_health(call: SetHealth) -> HttpRequest:
    return HttpRequest("PUT", _HEALTH, (*bare(call.service), *health_form(call)))


def _read_namespaces_reply(call: Namespaces, reply: HttpReply) -> tuple[Any, ...]:
    return read_namespaces(data_of("v3", call, reply))


def _plain(path: str) -> Callable[[Any], HttpRequest]:
    return lambda _: HttpRequest("GET", path)


# --- the rows ----------------------------------------------------------------------------------------------------

_SUBSCRIBERS = f"{_SERVICE}/subscribers"
_HEALTH = "/v3/admin/ns/health/instance"
_METRICS = "/v3/admin/ns/ops/metrics"
_SWITCHES = "/v3/admin/ns/ops/switches"
_NAMESPACES = "/v3/admin/core/namespace/list"
_OK = partial(read_ok, "v3")
_MAPPING = partial(read_mapping, "v3")

ROWS: tuple[Operation[Any, Any], ...] = (
    Operation("POST", _SERVICE, CreateService, read_create, write_ok, _write_service_form, _OK),
    Operation("PUT", _SERVICE, UpdateService, read_service_update, write_ok, _write_service_form, _OK),
    Operation(
        "DELETE",
        _SERVICE,
        DeleteService,
        lambda request: DeleteService(read_service_form(request)),
        write_ok,
        lambda call: HttpRequest("DELETE", _SERVICE, bare(call.service)),
        _OK,
    ),
    Operation(
        "GET",
        _SERVICE,
        GetService,
        lambda request: GetService(read_service_form(request)),
        _write_service,
        lambda call: HttpRequest("GET", _SERVICE, bare(call.service)),
        _read_service_reply,
    ),
    Operation("GET", SERVICES, ListDetails, _read_details, _write_details, write_details, read_details),
    Operation("GET", SERVICES, ListServices, _read_details, _write_details, _write_services, _read_services),
    Operation(
        "GET",
        _SUBSCRIBERS,
        Subscribers,
        _read_subscribers,
        _write_subscribers,
        _write_subscribers_request,
        _read_subscribed,
    ),
    Operation("PUT", _HEALTH, SetHealth, read_health, write_ok, _write_health, _OK),
    Operation(
        "GET",
        _METRICS,
        Metrics,
        read_metrics,
        write_as_is,
        lambda call: HttpRequest("GET", _METRICS, pairs(onlyStatus=call.only_status)),
        _MAPPING,
    ),
    Operation("GET", _SWITCHES, Switches, lambda _: Switches(), write_as_is, _plain(_SWITCHES), _MAPPING),
    Operation("GET", _STATE, ServerState, lambda _: ServerState(), write_as_is, _plain(_STATE), _MAPPING),
    Operation("GET", f"{_STATE}/liveness", Alive, lambda _: Alive(), write_ok, _plain(f"{_STATE}/liveness"), _OK),
    Operation("GET", READINESS, Ready, lambda _: Ready(), write_ok, _plain(READINESS), _OK),
    Operation(
        "GET",
        _NAMESPACES,
        Namespaces,
        lambda _: Namespaces(),
        _write_namespaces,
        _plain(_NAMESPACES),
        _read_namespaces_reply,
    ),
)
