"""Nacos v3 over HTTP, client and admin API, both roles. The server answers exactly as 3.0.3; the client works with 3.x.

Answers are `{code, message, data}` (shape V). A beat is a registration with `heartBeat=true`; code 21003 in a 200 means
that the instance is not registered. Only the admin API can change an instance, and it requires rights even if the
client API is open. Sources: nacos-http.md 4 and the recordings nacos-3.0.3, v3-only, protection, modify.

No single request shows a whole service to every account, so a registry combines several:
- `write_client_list`: the given clusters, health masked by protection, without disabled instances;
- `write_admin_list`: one cluster, with true health and disabled instances;
- `ListDetails` or `Fetch`, by `service/list?withInstances=true`: everything but the threshold, which 3.0.3 always shows
  as 0.0; `GetService` shows the real one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from nacos_proxy.model.calls import (
    BEAT_NOT_FOUND,
    BEAT_OK,
    Alive,
    Beat,
    BeatResult,
    Deregister,
    DetailPage,
    Fetch,
    GetInstance,
    GetService,
    ListDetails,
    ListServices,
    Metrics,
    Namespaces,
    Ready,
    Register,
    ServerState,
    ServiceInfo,
    ServicePage,
    SetHealth,
    Subscriber,
    Subscribers,
    Switches,
    Update,
)
from nacos_proxy.model.errors import BadCall, Malformed, Misplaced, ProxyError, Reason, Refused, Violation
from nacos_proxy.model.heartbeats import beat_interval
from nacos_proxy.model.services import (
    DEFAULT_CLUSTER,
    DEFAULT_NAMESPACE,
    EMPTY,
    GROUP_SEPARATOR,
    Instance,
    ServiceKey,
    Snapshot,
)
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos.base import Dialect, Operation, ReadInstance, ReadService, ServiceView
from nacos_proxy.wire.nacos.forms import (
    address_form,
    bare,
    deregister_form,
    health_form,
    metrics_form,
    page_form,
    pairs,
    register_form,
    row,
    update_form,
)
from nacos_proxy.wire.nacos.hosts import Hosts, host_json, hosts_json, read_each, read_requested
from nacos_proxy.wire.nacos.parameters import Parameters
from nacos_proxy.wire.nacos.refusals import write_result_error
from nacos_proxy.wire.nacos.results import (
    batch_rows,
    data_of,
    form_required,
    read_deregister,
    read_health,
    read_instance,
    read_mapping,
    read_metrics,
    read_ok,
    read_register,
    read_service_form,
    read_update,
    service_rows,
    write_as_is,
    write_ok,
)
from nacos_proxy.wire.nacos.services import (
    NO_SELECTOR,
    cluster_map,
    detail_json,
    in_cluster,
    read_detail,
    read_namespaces,
    read_subscriber,
    view_json,
)
from nacos_proxy.wire.nacos.shapes import as_int, as_list, as_object, error_page, failure, result

_CLIENT = "/v3/client/ns/instance"
_INSTANCE = "/v3/admin/ns/instance"
_INSTANCES = "/v3/admin/ns/instance/list"
_SERVICE = "/v3/admin/ns/service"
_SERVICES = "/v3/admin/ns/service/list"
_STATE = "/v3/admin/core/state"
_READINESS = "/v3/admin/core/state/readiness"
_NAMESPACES = "/v3/admin/core/namespace/list"

_FORBIDDEN = "Code: {code}, Message: {text}."
_PAGE = 500
_REGEX = re.compile(r"[\\^$|?*+()\[\]{}]+")
_OK = partial(read_ok, "v3")
_MAPPING = partial(read_mapping, "v3")

# --- server role: requests --------------------------------------------------------------------------------------------


def _read_register_or_beat(request: HttpRequest) -> Register | Beat:
    """A beat is always a light one: weight and metadata are ignored."""
    p = Parameters(request)
    if not p.flag("heartBeat", False):
        return read_register(request)
    service, i = read_instance(p, weighed=False)
    return Beat(service, i.ip, i.port, i.cluster)


def _read_deregister(request: HttpRequest) -> Deregister:
    return read_deregister(Parameters(request), weighed=False)


def _read_partial(request: HttpRequest) -> Update:
    """3.0.3 resets weight and enabled if they are not given, even at the path `partial` (recording "modify")."""
    call = read_update(request, partial=True)
    weight = 1.0 if call.weight is None else call.weight
    return replace(call, weight=weight, enabled=call.enabled is not False)


def _list_form(request: HttpRequest) -> tuple[ServiceKey, str, bool]:
    p = Parameters(request)
    p.check(address=False, clusters=True)
    healthy_only = p.flag("healthyOnly", False)
    form_required(p, "serviceName")
    return p.key(), p.text("clusterName", default=DEFAULT_CLUSTER), healthy_only


def _read_list(request: HttpRequest) -> ReadService:
    """healthyOnly is accepted but has no effect (recording "v3 list healthyOnly")."""
    service, clusters, _ = _list_form(request)
    return ReadService(service, clusters)


def _read_admin_list(request: HttpRequest) -> ReadService:
    service, cluster, healthy_only = _list_form(request)
    return ReadService(service, cluster, healthy_only, everything=True)


def _read_get(request: HttpRequest) -> ReadInstance:
    service, i = read_instance(Parameters(request), weighed=False)
    return ReadInstance(service, i.ip, i.port, i.cluster)


def _page(p: Parameters) -> tuple[int, int]:
    page, size = p.integer("pageNo", 1), p.integer("pageSize", 100)
    for name, value in (("pageNo", page), ("pageSize", size)):
        if value < 1:
            message = f"Required parameter '{name}' should be positive integer, current is {value}"
            raise BadCall(name, Violation.OTHER, message, value=str(value))
    return page, size


def _read_details(request: HttpRequest) -> ListDetails:
    p = Parameters(request)
    p.check()
    ignore_empty, with_instances = p.flag("ignoreEmptyService", False), p.flag("withInstances", False)
    page, size = _page(p)
    namespace = p.text("namespaceId", default=DEFAULT_NAMESPACE)
    name, group = p.text("serviceNameParam"), p.text("groupNameParam")
    # with instances, ignoreEmptyService is accepted but has no effect (recording "… with ignoreEmpty")
    return ListDetails(namespace, name, group, page, size, ignore_empty and not with_instances, with_instances)


def _read_subscribers(request: HttpRequest) -> Subscribers:
    return Subscribers(read_service_form(request), *_page(Parameters(request)))


# --- server role: replies ---------------------------------------------------------------------------------------------


def _write_registered(_call: Register | Beat, answer: BeatResult | None) -> HttpReply:
    if answer is not None and answer.code != BEAT_OK:
        return failure(200, 21003, None)
    return result("ok")


def _write_list(call: ReadService, view: ServiceView) -> HttpReply:
    return result(hosts_json(view.selection.hosts, call.service))


def _write_admin_list(call: ReadService, view: ServiceView) -> HttpReply:
    """One cluster with true health and disabled instances. Raises `Refused` as `in_cluster`."""
    found = in_cluster(call, view)
    return result([host_json(i, call.service) for i in found if i.healthy or not call.healthy_only])


def _write_instance(call: ReadInstance, instance: Instance) -> HttpReply:
    return result(host_json(instance, call.service))


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
    """If the count is a multiple of the size, Nacos shows one page too many, but none for 0 (nacos-http.md 4.2)."""
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


def _unknown(request: HttpRequest, now_ms: int) -> HttpReply:
    message = f"No endpoint {request.method} {request.context}{request.path}."
    return error_page(request, 404, message, now_ms)


def _write_error(request: HttpRequest, error: ProxyError, now_ms: int) -> HttpReply:
    if request.path == _READINESS:
        return failure(200, 30000, None, message=str(error))
    return write_result_error("v3", request, error, now_ms, _FORBIDDEN)


# --- client role ------------------------------------------------------------------------------------------------------


def write_client_list(key: ServiceKey, clusters: Iterable[str] = ()) -> HttpRequest:
    """Requests the list of the given clusters; without any, only of DEFAULT."""
    return HttpRequest("GET", f"{_CLIENT}/list", (*bare(key), *pairs(clusterName=",".join(clusters) or None)))


def write_admin_list(key: ServiceKey, cluster: str = DEFAULT_CLUSTER) -> HttpRequest:
    """Requests the admin list of one cluster. Servers refuse an unknown one with `Reason.CLUSTER_NOT_FOUND`."""
    return HttpRequest("GET", _INSTANCES, (*bare(key), *pairs(clusterName=cluster)))


def read_hosts(key: ServiceKey, reply: HttpReply) -> Hosts:
    """Reads the answer to either list. Raises `Malformed` and `Refused`."""
    hosts = as_list(data_of("v3", Fetch(key), reply), "list")
    return read_each(hosts, key)


def snapshot(key: ServiceKey, *lists: Hosts) -> Snapshot:
    """The service, from the lists of its clusters."""
    unreadable = tuple(text for hosts in lists for text in hosts.unreadable)
    return Snapshot.of(key, (host for hosts in lists for host in hosts.instances), unreadable=unreadable)


def _write_fetch(call: Fetch) -> HttpRequest:
    return write_details(details_of(call.service))


def _read_fetch(call: Fetch, reply: HttpReply) -> Snapshot:
    """Raises `Malformed` if a page without the service is not the only one: the service may be on another page."""
    page = read_details(details_of(call.service), reply)
    found = find(call.service, page)
    if found is None and page.count > len(page.rows):
        raise Malformed(f"{call.service} is not among the first {len(page.rows)} of {page.count} similar names")
    return found or Snapshot(call.service)


def _write_register(call: Register | Beat) -> HttpRequest:
    if isinstance(call, Register):
        return HttpRequest("POST", _CLIENT, (*bare(call.service), *register_form(call)))
    return HttpRequest("POST", _CLIENT, (*bare(call.service), *address_form(call), *pairs(heartBeat=True)))


def _read_registered(call: Register | Beat, reply: HttpReply) -> BeatResult | None:
    """v3 answers without an interval, so it is read from the metadata, if the call has it."""
    interval = beat_interval(call.full.metadata if isinstance(call, Beat) and call.full is not None else EMPTY)
    try:
        read_ok("v3", call, reply)
    except Refused as refused:
        if isinstance(call, Register) or reply.status != 200 or refused.reason is not Reason.INSTANCE_NOT_FOUND:
            raise
        return BeatResult(BEAT_NOT_FOUND, interval)
    return BeatResult(BEAT_OK, interval) if isinstance(call, Beat) else None


def _read_get_reply(call: GetInstance, reply: HttpReply) -> Instance:
    return read_requested(call, data_of("v3", call, reply))


def _write_update(call: Update) -> HttpRequest:
    """The server resets weight and enabled if they are not given, even at the path `partial`."""
    path = f"{_INSTANCE}/partial" if call.partial else _INSTANCE
    return HttpRequest("PUT", path, (*bare(call.service), *update_form(call)))


def details_of(key: ServiceKey, page: int = 1, size: int = _PAGE) -> ListDetails:
    """The call whose pages list a service among similar names.

    The server puts the text into a regular expression. So the call has only the longest part of the name that contains
    no special characters.
    """
    pieces = (piece.lstrip("@") for piece in _REGEX.split(key.name))
    return ListDetails(key.namespace, max(pieces, key=len), key.group, page, size)


def find(key: ServiceKey, page: DetailPage) -> Snapshot | None:
    """The service on such a page, or None. Raises `Misplaced` if the page has names that do not match."""
    part = details_of(key).name_part
    if others := [row.info.key.name for row in page.rows if part not in row.info.key.name]:
        raise Misplaced(f"asked for services named like {key.name!r}, but the answer is about {others[0]!r}")
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
    return HttpRequest("GET", _SERVICES, query)


def read_details(call: ListDetails, reply: HttpReply) -> DetailPage:
    answer = as_object(data_of("v3", call, reply), "page")
    rows = as_list(answer.get("pageItems"), "pageItems")
    return DetailPage(
        as_int(answer.get("totalCount"), "totalCount"), tuple(read_detail(call.namespace, row) for row in rows)
    )


def _write_services(call: ListServices) -> HttpRequest:
    """v3 refuses a page below 1, which v1 treats as the first one."""
    page, size = max(1, call.page), max(1, call.size)
    query = pairs(pageNo=page, pageSize=size, namespaceId=call.namespace, groupNameParam=call.group)
    return HttpRequest("GET", _SERVICES, query)


def _read_services(call: ListServices, reply: HttpReply) -> ServicePage:
    """Servers match parts of group names, too. So rows of other groups are removed from the page and from its count."""
    answer = as_object(data_of("v3", call, reply), "page")
    rows = [as_object(row, "row") for row in as_list(answer.get("pageItems"), "pageItems")]
    names = tuple(str(row["name"]) for row in rows if row.get("groupName") == call.group)
    return ServicePage(
        as_int(answer.get("totalCount"), "totalCount") - len(rows) + len(names), names[: max(0, call.size)]
    )


def _read_subscribers_reply(call: Subscribers, reply: HttpReply) -> tuple[Subscriber, ...]:
    rows = as_list(as_object(data_of("v3", call, reply), "page").get("pageItems"), "pageItems")
    return tuple(read_subscriber(row, call.service) for row in rows)


def _read_namespaces_reply(call: Namespaces, reply: HttpReply) -> tuple[Any, ...]:
    return read_namespaces(data_of("v3", call, reply))


# --- the table --------------------------------------------------------------------------------------------------------

_service_row = partial(row, service=bare)
_ROWS: tuple[Operation[Any, Any], ...] = (
    Operation(
        "POST",
        _CLIENT,
        Register,
        _read_register_or_beat,
        _write_registered,
        _write_register,
        _read_registered,
        (Register, Beat),
    ),
    _service_row("DELETE", _CLIENT, Deregister, _read_deregister, write_ok, _OK, deregister_form),
    Operation("GET", f"{_CLIENT}/list", ReadService, _read_list, _write_list),
    Operation("POST", _INSTANCE, Register, read_register, write_ok),
    Operation("DELETE", _INSTANCE, Deregister, _read_deregister, write_ok),
    Operation("PUT", _INSTANCE, Update, read_update, write_ok, _write_update, _OK),
    Operation("PUT", f"{_INSTANCE}/partial", Update, _read_partial, write_ok),
    *batch_rows("v3", f"{_INSTANCE}/metadata/batch"),
    _service_row(
        "GET", _INSTANCE, ReadInstance, _read_get, _write_instance, _read_get_reply, address_form, asks=(GetInstance,)
    ),
    Operation("GET", _INSTANCES, ReadService, _read_admin_list, _write_admin_list),
    *service_rows("v3", _SERVICE, read_service_form, _write_service),
    Operation("GET", _SERVICES, ListDetails, _read_details, _write_details, write_details, read_details),
    Operation("GET", _SERVICES, ListServices, _read_details, _write_details, _write_services, _read_services),
    _service_row(
        "GET",
        f"{_SERVICE}/subscribers",
        Subscribers,
        _read_subscribers,
        _write_subscribers,
        _read_subscribers_reply,
        page_form,
    ),
    _service_row("PUT", "/v3/admin/ns/health/instance", SetHealth, read_health, write_ok, _OK, health_form),
    row("GET", "/v3/admin/ns/ops/metrics", Metrics, read_metrics, write_as_is, _MAPPING, metrics_form),
    row("GET", "/v3/admin/ns/ops/switches", Switches, lambda _: Switches(), write_as_is, _MAPPING),
    row("GET", _STATE, ServerState, lambda _: ServerState(), write_as_is, _MAPPING),
    row("GET", f"{_STATE}/liveness", Alive, lambda _: Alive(), write_ok, _OK),
    row("GET", _READINESS, Ready, lambda _: Ready(), write_ok, _OK),
    row("GET", _NAMESPACES, Namespaces, lambda _: Namespaces(), _write_namespaces, _read_namespaces_reply),
    Operation("GET", _SERVICES, Fetch, _read_list, _write_list, _write_fetch, _read_fetch),
)

V3 = Dialect(
    "v3", ["/v3/client/ns", "/v3/admin/ns"], _ROWS, unknown=_unknown, write_error=_write_error, slash=False, head=True
)
