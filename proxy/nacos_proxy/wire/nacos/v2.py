"""Nacos v2 over HTTP, both roles. The server answers exactly as 2.5.1. Nacos 3.0 has v2 turned off, 3.2 removed it.

Answers are `{code, message, data}` (shape V), except for beats, statuses and PATCH. The list is v1's.
Sources: nacos-http.md 3 and the recordings.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from urllib.parse import unquote

from nacos_proxy.model.calls import (
    Beat,
    BeatResult,
    Deregister,
    Fetch,
    GetInstance,
    GetService,
    ListServices,
    Metrics,
    Register,
    ServiceInfo,
    ServicePage,
    SetHealth,
    Switches,
    Update,
)
from nacos_proxy.model.errors import Malformed, ProxyError, Violation
from nacos_proxy.model.limits import check_weight
from nacos_proxy.model.services import DEFAULT_CLUSTER, Instance, ServiceKey, Snapshot
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos.base import ANY, KEY, Dialect, Operation, ReadInstance, ReadPage, ReadService, ServiceView
from nacos_proxy.wire.nacos.forms import (
    address_form,
    bare,
    beat_form,
    deregister_form,
    group_form,
    grouped,
    health_form,
    metrics_form,
    page_form,
    pairs,
    push_address,
    read_any_beat,
    register_form,
    row,
    status_key,
    update_form,
)
from nacos_proxy.wire.nacos.hosts import (
    Listing,
    host_json,
    list_json,
    read_beat_result,
    read_listing,
    read_requested,
    write_beat,
    write_statuses,
)
from nacos_proxy.wire.nacos.parameters import Parameters, check_grouped
from nacos_proxy.wire.nacos.refusals import read_refusal, write_result_error
from nacos_proxy.wire.nacos.results import (
    batch_rows,
    data_of,
    named_key,
    param_required,
    read_deregister,
    read_health,
    read_mapping,
    read_metrics,
    read_ok,
    read_register,
    read_update,
    service_rows,
    write_as_is,
    write_ok,
)
from nacos_proxy.wire.nacos.services import NO_SELECTOR, cluster_map, page_of
from nacos_proxy.wire.nacos.shapes import as_int, as_object, as_strings, as_text, error_page, read_json, result

_INSTANCE = "/v2/ns/instance"
_LIST = "/v2/ns/instance/list"
_BEAT = "/v2/ns/instance/beat"
_OK = partial(read_ok, "v2")
_MAPPING = partial(read_mapping, "v2")

# --- server role: requests ---------------------------------------------------------------------------------------


def _read_list(request: HttpRequest) -> ReadService:
    """Here `ip` and `port` are the address for UDP push."""
    p = Parameters(request)
    p.check(address=False, clusters=True)
    healthy_only = p.flag("healthyOnly", False)
    port = p.integer("port", 0)
    service = named_key(p)
    return ReadService(service, p.text("clusterName"), healthy_only, push_address(request, p, p.text("ip"), port))


def _read_get(request: HttpRequest) -> ReadInstance:
    p = Parameters(request)
    p.check()
    param_required(p, "serviceName")
    ip = param_required(p, "ip")
    param_required(p, "port", "Integer")
    cluster = p.text("clusterName", default=DEFAULT_CLUSTER)
    return ReadInstance(named_key(p), ip, p.integer("port", 0), cluster)


def _read_deregister(request: HttpRequest) -> Deregister:
    return read_deregister(Parameters(request), weighed=True)


def _read_patch(request: HttpRequest) -> Update:
    """All parameters are required, the name with its group. The cluster is called `cluster`."""
    p = Parameters(request)
    metadata = p.check()
    name, ip = param_required(p, "serviceName"), param_required(p, "ip")
    for parameter, kind in (("port", "Integer"), ("weight", "Double"), ("enabled", "Boolean"), ("metadata", "String")):
        param_required(p, parameter, kind)
    weight, enabled = p.double("weight"), p.boolean("enabled")
    check_grouped(name, Violation.GROUPED_NAME)
    if weight is not None:
        check_weight(weight)
    named = metadata if p.text("metadata") else None
    cluster = p.text("cluster", default=DEFAULT_CLUSTER)
    return Update(p.key(), ip, p.integer("port", 0), cluster, weight, enabled, named, partial=True)


def _read_beat(request: HttpRequest) -> Beat:
    return read_any_beat(Parameters(request), group_needed=True)


def _read_statuses(request: HttpRequest) -> ReadService:
    key = unquote(request.path.rstrip("/").rpartition("/")[2])
    return ReadService(status_key(key), everything=True)


def _read_services(request: HttpRequest) -> ListServices:
    p = Parameters(request)
    p.check()
    page, size = p.integer("pageNo", 1), p.integer("pageSize", 20)
    key = p.key()
    return ListServices(key.namespace, key.group, page, min(500, size))


def _read_key(request: HttpRequest) -> ServiceKey:
    p = Parameters(request)
    p.check()
    return named_key(p)


def _read_catalog(request: HttpRequest) -> ReadPage:
    p = Parameters(request)
    p.check()
    healthy, enabled = p.boolean("healthyOnly"), p.boolean("enabledOnly")
    param_required(p, "pageNo", "int")
    param_required(p, "pageSize", "int")
    page, size = p.integer("pageNo", 1), p.integer("pageSize", 10)
    return ReadPage(named_key(p), everything=True, page=page, size=size, healthy=healthy, enabled=enabled)


# --- server role: replies ----------------------------------------------------------------------------------------


def _write_list(call: ReadService, view: ServiceView) -> HttpReply:
    return result(list_json(view, call.clusters))


def _write_instance(call: ReadInstance, instance: Instance) -> HttpReply:
    host = host_json(instance, call.service)
    shown = ("serviceName", "ip", "port", "clusterName", "weight", "healthy", "instanceId", "metadata")
    return result({**{name: host[name] for name in shown}, **instance.extra})


def _write_patched(_call: Update, _result: None) -> HttpReply:
    return as_text("ok")


def _write_service(call: GetService, info: ServiceInfo) -> HttpReply:
    return result(
        {
            "namespace": call.service.namespace,
            "serviceName": call.service.name,
            "groupName": call.service.group,
            "clusterMap": cluster_map(info, ports=False),
            "metadata": dict(info.metadata),
            "protectThreshold": info.threshold,
            "selector": dict(info.selector or NO_SELECTOR),
            "ephemeral": info.ephemeral,
        }
    )


def _write_services(_call: ListServices, page: ServicePage) -> HttpReply:
    return result({"count": page.count, "services": list(page.names)})


def _write_metrics(call: Metrics, value: Any) -> HttpReply:
    """v2 shows fewer metrics than v1 (nacos-http.md 3)."""
    return write_as_is(call, {n: v for n, v in value.items() if n != "responsibleInstanceCount" and v is not None})


def _write_catalog(call: ReadPage, view: ServiceView) -> HttpReply:
    wanted = [
        i for i in view.snapshot.instances if call.healthy in (None, i.healthy) and call.enabled in (None, i.enabled)
    ]
    shown = [host_json(host, call.service) for host in page_of(call, wanted)]
    return result({**({"instances": shown} if shown else {}), "count": len(wanted)})


def _unknown(request: HttpRequest, now_ms: int) -> HttpReply:
    return error_page(request, 404, "No message available", now_ms)


def _write_error(request: HttpRequest, error: ProxyError, now_ms: int) -> HttpReply:
    return write_result_error("v2", request, error, now_ms)


# --- client role -------------------------------------------------------------------------------------------------


def write_list(key: ServiceKey, *, healthy_only: bool = False) -> HttpRequest:
    """Requests the list of a service. `healthy_only` shows true health during protection (nacos-http.md 5.5)."""
    return HttpRequest("GET", _LIST, (*bare(key), *pairs(healthyOnly=healthy_only)))


def read_list(key: ServiceKey, reply: HttpReply) -> Listing:
    """The snapshot, and whether protection masks its health. Raises `Malformed` and `Refused`."""
    return read_listing(key, data_of("v2", Fetch(key), reply))


def _write_fetch(call: Fetch) -> HttpRequest:
    return write_list(call.service)


def _read_fetch(call: Fetch, reply: HttpReply) -> Snapshot:
    return read_list(call.service, reply).snapshot


def _read_get_reply(call: GetInstance, reply: HttpReply) -> Instance:
    return read_requested(call, data_of("v2", call, reply))


def _write_update(call: Update) -> HttpRequest:
    """Servers refuse a PATCH that does not give every value. Instead, callers can read, merge and PUT."""
    if not call.partial:
        return HttpRequest("PUT", _INSTANCE, (*bare(call.service), *update_form(call)))
    query = (*grouped(call.service), *update_form(call), ("cluster", call.cluster))
    return HttpRequest("PATCH", _INSTANCE, query)


def _read_update_reply(call: Update, reply: HttpReply) -> None:
    if not call.partial:
        return read_ok("v2", call, reply)
    if reply.status != 200:
        raise read_refusal("v2", reply, "Update")
    if reply.body.strip() != b"ok":
        raise Malformed(f"Update: {reply.body[:200]!r} is not ok")
    return None


def _read_beat_reply(call: Beat, reply: HttpReply) -> BeatResult:
    if reply.status != 200:
        raise read_refusal("v2", reply, "Beat")
    return read_beat_result(read_json(reply.body))


def _read_page(call: ListServices, reply: HttpReply) -> ServicePage:
    answer = as_object(data_of("v2", call, reply), "page")
    return ServicePage(as_int(answer.get("count"), "count"), as_strings(answer.get("services"), "services"))


# --- the table ---------------------------------------------------------------------------------------------------

_service_row = partial(row, service=bare)
_ROWS: tuple[Operation[Any, Any], ...] = (
    _service_row("POST", _INSTANCE, Register, read_register, write_ok, _OK, register_form),
    _service_row("DELETE", _INSTANCE, Deregister, _read_deregister, write_ok, _OK, deregister_form),
    Operation("PUT", _INSTANCE, Update, read_update, write_ok, _write_update, _read_update_reply),
    Operation("PATCH", _INSTANCE, Update, _read_patch, _write_patched),
    _service_row(
        "GET", _INSTANCE, ReadInstance, _read_get, _write_instance, _read_get_reply, address_form, asks=(GetInstance,)
    ),
    Operation("GET", _LIST, ReadService, _read_list, _write_list, _write_fetch, _read_fetch, asks=(Fetch,)),
    row("PUT", _BEAT, Beat, _read_beat, write_beat, _read_beat_reply, beat_form, service=grouped),
    *batch_rows("v2", f"{_INSTANCE}/metadata/batch"),
    Operation(ANY, f"{_INSTANCE}/statuses{KEY}", ReadService, _read_statuses, write_statuses),
    *service_rows("v2", "/v2/ns/service", _read_key, _write_service),
    row("GET", "/v2/ns/service/list", ListServices, _read_services, _write_services, _read_page, page_form, group_form),
    _service_row("PUT", "/v2/ns/health/instance", SetHealth, read_health, write_ok, _OK, health_form),
    Operation("PUT", "/v2/ns/health", SetHealth, read_health, write_ok),
    row("GET", "/v2/ns/operator/metrics", Metrics, read_metrics, _write_metrics, _MAPPING, metrics_form),
    Operation("GET", "/v2/ns/ops/metrics", Metrics, read_metrics, _write_metrics),
    row("GET", "/v2/ns/operator/switches", Switches, lambda _: Switches(), write_as_is, _MAPPING),
    Operation("GET", "/v2/ns/ops/switches", Switches, lambda _: Switches(), write_as_is),
    Operation(ANY, "/v2/ns/catalog/instances", ReadPage, _read_catalog, _write_catalog),
)

V2 = Dialect("v2", ["/v2/ns"], _ROWS, unknown=_unknown, write_error=_write_error, slash=True, head=True)
