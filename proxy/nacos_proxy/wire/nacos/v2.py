"""Nacos v2 HTTP, both roles: as a server exactly what 2.5.1 answers; 3.0 has it switched off, 3.2 no more.

Answers are `{code, message, data}` (shape V) but for beats, statuses and PATCH, which stand bare. The list is v1's.
Source of a rule: nacos-http.md 3 and the recordings.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from urllib.parse import unquote

from nacos_proxy.model.calls import (
    BatchMetadata,
    Beat,
    BeatResult,
    CreateService,
    DeleteService,
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
    UpdateService,
)
from nacos_proxy.model.errors import Malformed, ProxyError, Violation
from nacos_proxy.model.limits import check_weight
from nacos_proxy.model.services import (
    DEFAULT_CLUSTER,
    Instance,
    ServiceKey,
    Snapshot,
)
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos.base import (
    Operation,
    ReadInstance,
    ReadPage,
    ReadService,
    ServiceView,
)
from nacos_proxy.wire.nacos.forms import (
    bare,
    batch_form,
    beat_form,
    grouped,
    instance_form,
    pairs,
    push_address,
    read_any_beat,
    service_form,
    status_key,
    update_form,
)
from nacos_proxy.wire.nacos.hosts import (
    Listing,
    beat_json,
    host_json,
    list_json,
    read_asked,
    read_beat_result,
    read_listing,
    statuses_json,
)
from nacos_proxy.wire.nacos.parameters import Parameters, check_grouped
from nacos_proxy.wire.nacos.refusals import read_refusal, write_result_error
from nacos_proxy.wire.nacos.results import (
    data_of,
    health_form,
    named_key,
    param_required,
    read_batch_form,
    read_create,
    read_deregister,
    read_health,
    read_mapping,
    read_metrics,
    read_ok,
    read_register,
    read_service_update,
    read_update,
    read_updated,
    write_as_is,
    write_ok,
    write_updated,
)
from nacos_proxy.wire.nacos.services import (
    NO_SELECTOR,
    cluster_map,
    page_of,
    read_service,
)
from nacos_proxy.wire.nacos.shapes import (
    as_int,
    as_json,
    as_object,
    as_strings,
    as_text,
    error_page,
    read_json,
    result,
)
from nacos_proxy.wire.nacos.table import ANY, KEY, Table

_INSTANCE = "/v2/ns/instance"
_LIST = "/v2/ns/instance/list"
_SERVICE = "/v2/ns/service"

# --- server role: requests ---------------------------------------------------------------------------------------


def _read_list(request: HttpRequest) -> ReadService:
    """`ip` and `port` are the address for UDP push here."""
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
    """All is required, the name with its group, and the cluster is called `cluster`."""
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


def _key(request: HttpRequest) -> ServiceKey:
    p = Parameters(request)
    p.check()
    return named_key(p)


def _read_catalog(request: HttpRequest) -> ReadPage:
    p = Parameters(request)
    p.check()
    healthy, enabled = p.boolean("healthyOnly"), p.boolean("enabledOnly")
    for name, kind in (("pageNo", "int"), ("pageSize", "int")):
        param_required(p, name, kind)
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


def _write_beat(_call: Beat, beat: BeatResult) -> HttpReply:
    return as_json(beat_json(beat))


def _write_statuses(_call: ReadService, view: ServiceView) -> HttpReply:
    return as_json(statuses_json(view.snapshot))


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
    """v2 says less than v1 here (nacos-http.md 3)."""
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
    """The list of a whole service. `healthy_only` shows what protection hides (nacos-http.md 5.5)."""
    return HttpRequest("GET", _LIST, (*bare(key), *pairs(healthyOnly=healthy_only)))


def read_list(key: ServiceKey, reply: HttpReply) -> Listing:
    """The snapshot and whether its health is masked. Raises `Malformed` and `Refused`."""
    return read_listing(key, data_of("v2", Fetch(key), reply))


def _read_fetch(call: Fetch, reply: HttpReply) -> Snapshot:
    return read_list(call.service, reply).snapshot


def _write_get(call: GetInstance) -> HttpRequest:
    address = pairs(ip=call.ip, port=call.port, clusterName=call.cluster)
    return HttpRequest("GET", _INSTANCE, (*bare(call.service), *address))


def _read_get_reply(call: GetInstance, reply: HttpReply) -> Instance:
    return read_asked(call, data_of("v2", call, reply))


def _write_register(call: Register) -> HttpRequest:
    return HttpRequest("POST", _INSTANCE, (*bare(call.service), *instance_form(call.instance)))


def _write_deregister(call: Deregister) -> HttpRequest:
    query = pairs(ip=call.ip, port=call.port, clusterName=call.cluster, ephemeral=call.ephemeral)
    return HttpRequest("DELETE", _INSTANCE, (*bare(call.service), *query))


def _write_update(call: Update) -> HttpRequest:
    """A partial one is refused by servers unless it names everything; it may be read, merged and put instead."""
    if not call.partial:
        return HttpRequest("PUT", _INSTANCE, (*bare(call.service), *update_form(call)))
    query = (*grouped(call.service), *update_form(call), ("cluster", call.cluster))
    return HttpRequest("PATCH", _INSTANCE, query)


def _read_updated_instance(call: Update, reply: HttpReply) -> None:
    if not call.partial:
        return read_ok("v2", call, reply)
    if reply.status != 200:
        raise read_refusal("v2", reply, "Update")
    if reply.body.strip() != b"ok":
        raise Malformed(f"Update: {reply.body[:200]!r} is not ok")
    return None


def _write_beat_request(call: Beat) -> HttpRequest:
    return HttpRequest("PUT", f"{_INSTANCE}/beat", (*grouped(call.service), *beat_form(call)))


def _read_beat_reply(call: Beat, reply: HttpReply) -> BeatResult:
    if reply.status != 200:
        raise read_refusal("v2", reply, "Beat")
    return read_beat_result(read_json(reply.body))


def _write_batch(call: BatchMetadata) -> HttpRequest:
    method = "DELETE" if call.remove else "PUT"
    return HttpRequest(method, f"{_INSTANCE}/metadata/batch", (*bare(call.service), *batch_form(call)))


def _write_service_form(call: CreateService | UpdateService) -> HttpRequest:
    create = isinstance(call, CreateService)
    kind = pairs(ephemeral=call.ephemeral) if create else ()
    query = (*bare(call.service), *service_form(call), *kind)
    return HttpRequest("POST" if create else "PUT", _SERVICE, query)


def _write_health(call: SetHealth) -> HttpRequest:
    return HttpRequest("PUT", "/v2/ns/health/instance", (*bare(call.service), *health_form(call)))


def _read_service_reply(call: GetService, reply: HttpReply) -> ServiceInfo:
    return read_service(call.service, data_of("v2", call, reply))


def _write_services_request(call: ListServices) -> HttpRequest:
    query = pairs(pageNo=call.page, pageSize=call.size, groupName=call.group, namespaceId=call.namespace)
    return HttpRequest("GET", f"{_SERVICE}/list", query)


def _read_page(call: ListServices, reply: HttpReply) -> ServicePage:
    answer = as_object(data_of("v2", call, reply), "page")
    return ServicePage(as_int(answer.get("count"), "count"), as_strings(answer.get("services"), "services"))


# --- the table ---------------------------------------------------------------------------------------------------

_BEAT = f"{_INSTANCE}/beat"
_BATCH = f"{_INSTANCE}/metadata/batch"
_METRICS = "/v2/ns/operator/metrics"
_SWITCHES = "/v2/ns/operator/switches"
_OK = partial(read_ok, "v2")
_MAPPING = partial(read_mapping, "v2")

_ROWS: tuple[Operation[Any, Any], ...] = (
    Operation("POST", _INSTANCE, Register, read_register, write_ok, _write_register, _OK),
    Operation("DELETE", _INSTANCE, Deregister, _read_deregister, write_ok, _write_deregister, _OK),
    Operation("PUT", _INSTANCE, Update, read_update, write_ok, _write_update, _read_updated_instance),
    Operation("PATCH", _INSTANCE, Update, _read_patch, _write_patched),
    Operation("GET", _INSTANCE, ReadInstance, _read_get, _write_instance, _write_get, _read_get_reply, (GetInstance,)),
    Operation(
        "GET", _LIST, ReadService, _read_list, _write_list, lambda c: write_list(c.service), _read_fetch, (Fetch,)
    ),
    Operation("PUT", _BEAT, Beat, _read_beat, _write_beat, _write_beat_request, _read_beat_reply),
    Operation("PUT", _BATCH, BatchMetadata, read_batch_form, write_updated, _write_batch, partial(read_updated, "v2")),
    Operation("DELETE", _BATCH, BatchMetadata, read_batch_form, write_updated),
    Operation(ANY, f"{_INSTANCE}/statuses{KEY}", ReadService, _read_statuses, _write_statuses),
    Operation("POST", _SERVICE, CreateService, read_create, write_ok, _write_service_form, _OK),
    Operation("PUT", _SERVICE, UpdateService, read_service_update, write_ok, _write_service_form, _OK),
    Operation(
        "DELETE",
        _SERVICE,
        DeleteService,
        lambda request: DeleteService(_key(request)),
        write_ok,
        lambda call: HttpRequest("DELETE", _SERVICE, bare(call.service)),
        _OK,
    ),
    Operation(
        "GET",
        _SERVICE,
        GetService,
        lambda request: GetService(_key(request)),
        _write_service,
        lambda call: HttpRequest("GET", _SERVICE, bare(call.service)),
        _read_service_reply,
    ),
    Operation(
        "GET", f"{_SERVICE}/list", ListServices, _read_services, _write_services, _write_services_request, _read_page
    ),
    Operation("PUT", "/v2/ns/health/instance", SetHealth, read_health, write_ok, _write_health, _OK),
    Operation("PUT", "/v2/ns/health", SetHealth, read_health, write_ok),
    Operation(
        "GET",
        _METRICS,
        Metrics,
        read_metrics,
        _write_metrics,
        lambda call: HttpRequest("GET", _METRICS, pairs(onlyStatus=call.only_status)),
        _MAPPING,
    ),
    Operation("GET", "/v2/ns/ops/metrics", Metrics, read_metrics, _write_metrics),
    Operation(
        "GET",
        _SWITCHES,
        Switches,
        lambda _: Switches(),
        write_as_is,
        lambda _: HttpRequest("GET", _SWITCHES),
        _MAPPING,
    ),
    Operation("GET", "/v2/ns/ops/switches", Switches, lambda _: Switches(), write_as_is),
    Operation(ANY, "/v2/ns/catalog/instances", ReadPage, _read_catalog, _write_catalog),
)

V2 = Table("v2", ["/v2/ns"], _ROWS, unknown=_unknown, write_error=_write_error, slash=True, head=True)
