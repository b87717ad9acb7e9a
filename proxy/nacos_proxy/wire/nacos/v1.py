"""Nacos v1 over HTTP, both roles. The server answers exactly as 2.5.1; the client works with 1.x, 2.x, 3.0 and r-nacos.

Errors are plain text (shape T), or without a content type from the parameter check (P), or a page from a filter (J).
Sources: nacos-http.md 2 and the recordings.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from nacos_proxy.model.calls import (
    Alive,
    BatchMetadata,
    Beat,
    BeatResult,
    Call,
    CreateService,
    DeleteService,
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
    ServiceNames,
    ServicePage,
    SetHealth,
    Subscriber,
    Subscribers,
    Switches,
    Update,
    UpdateService,
)
from nacos_proxy.model.errors import BadCall, Malformed, ProxyError, Reason, Refused, Violation
from nacos_proxy.model.limits import NACOS, check_weight
from nacos_proxy.model.services import (
    DEFAULT_CLUSTER,
    DEFAULT_GROUP,
    DEFAULT_NAMESPACE,
    GROUP_SEPARATOR,
    Checking,
    Instance,
    ServiceKey,
    Snapshot,
)
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos.base import ANY, Dialect, Operation, ReadInstance, ReadPage, ReadService, ServiceView
from nacos_proxy.wire.nacos.forms import (
    address_form,
    beat_form,
    deregister_form,
    group_form,
    grouped,
    health_form,
    metrics_form,
    names_form,
    page_form,
    pairs,
    patched_weight,
    push_address,
    read_any_beat,
    read_batch,
    register_form,
    row,
    service_form,
    status_key,
    update_form,
    write_batch,
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
from nacos_proxy.wire.nacos.parameters import Parameters, read_instances
from nacos_proxy.wire.nacos.refusals import read_refusal, write_text_error
from nacos_proxy.wire.nacos.services import (
    NO_SELECTOR,
    by_cluster,
    in_cluster,
    page_of,
    read_namespaces,
    read_service,
    read_subscriber,
    shown_checker,
    subscriber_json,
    view_json,
)
from nacos_proxy.wire.nacos.shapes import (
    as_int,
    as_json,
    as_list,
    as_object,
    as_strings,
    as_text,
    error_page,
    read_json,
)

_INSTANCE = "/v1/ns/instance"
_LIST = "/v1/ns/instance/list"
_BATCH = "/v1/ns/instance/metadata/batch"
_BEAT = "/v1/ns/instance/beat"
_SERVICE = "/v1/ns/service"
_SERVICES = "/v1/ns/service/list"
_SUBSCRIBERS = "/v1/ns/service/subscribers"
_NAMES = "/v1/ns/service/names"
_METRICS = "/v1/ns/operator/metrics"
_SWITCHES = "/v1/ns/operator/switches"
_HEALTH = "/v1/ns/health/instance"
_READINESS = "/v1/console/health/readiness"

# --- server role: requests ---------------------------------------------------------------------------------------


def _read_list(request: HttpRequest) -> ReadService:
    p = Parameters.filtered(request)
    p.check(address=False, clusters=True)
    service = p.required_key()
    push = push_address(request, p, p.text("clientIP"), p.integer("udpPort", 0))
    return ReadService(service, p.text("clusters"), p.exactly_true("healthyOnly"), push)


def _read_get(request: HttpRequest) -> ReadInstance:
    p = Parameters.filtered(request)
    p.check()
    service = p.required_key()
    return ReadInstance(service, *p.required_address(), p.text("clusterName", default=DEFAULT_CLUSTER))


def _instance(request: HttpRequest) -> tuple[Parameters, ServiceKey, Instance]:
    """Reads what register, deregister and update share, in the order of 2.5.1's checks."""
    p = Parameters.filtered(request)
    metadata = p.check()
    service = p.required_key()
    ip, port = p.required_address()
    weight = p.double("weight")
    instance = Instance(
        ip,
        port,
        p.text("clusterName", "cluster", default=DEFAULT_CLUSTER),
        1.0 if weight is None else check_weight(weight),
        p.yes("healthy", default=True),
        p.yes("enabled", "enable", default=True),
        p.yes("ephemeral", default=True),
        metadata,
    )
    generator = metadata.get("preserved.instance.id.generator", "simple")
    if p.rules is NACOS and generator not in ("simple", "snowflake"):
        message = "caused: The InstanceIdGenerator type is not found ;"
        raise BadCall("metadata", Violation.OTHER, message, status=500)
    return p, service, instance


def _read_register(request: HttpRequest) -> Register:
    p, service, instance = _instance(request)
    p.rules.instance(instance)
    return Register(service, instance)


def _read_deregister(request: HttpRequest) -> Deregister:
    _, service, i = _instance(request)
    return Deregister(service, i.ip, i.port, i.cluster, i.ephemeral)


def _read_update(request: HttpRequest) -> Update:
    p, service, i = _instance(request)
    p.rules.instance(i)
    weight = i.weight if p.text("weight") else None
    enabled = i.enabled if p.text("enabled", "enable") else None
    metadata = i.metadata if p.text("metadata") else None
    return Update(service, i.ip, i.port, i.cluster, weight, enabled, metadata, i.ephemeral)


def _read_patch(request: HttpRequest) -> Update:
    p = Parameters.filtered(request)
    metadata = p.check()
    service = p.required_key()
    ip, port = p.required_address()
    cluster = p.text("clusterName", "cluster", default=DEFAULT_CLUSTER)
    named = metadata if p.text("metadata") else None
    weight = patched_weight(p.double("weight"))
    enabled = p.yes("enabled", default=True) if p.text("enabled") else None
    return Update(service, ip, port, cluster, weight, enabled, named, partial=True)


def _read_beat(request: HttpRequest) -> Beat:
    return read_any_beat(Parameters.filtered(request), group_needed=False)


def _read_batch(request: HttpRequest) -> BatchMetadata:
    p = Parameters.filtered(request)
    instances = read_instances(p.text("instances"))
    metadata = p.check()
    p.check_instances(instances)
    p.required_key()
    p.required("metadata")
    return read_batch(p, instances, metadata, request.method)


def _read_statuses(request: HttpRequest) -> ReadService:
    p = Parameters(request)
    return ReadService(status_key(p.request_param("key")), everything=True)


def _checked(request: HttpRequest) -> tuple[Parameters, Mapping[str, str | None]]:
    p = Parameters.filtered(request)
    return p, p.check()


def _read_create(request: HttpRequest) -> CreateService:
    p, metadata = _checked(request)
    p.request_param("serviceName")
    return CreateService(p.key(), p.finite("protectThreshold", 0.0), metadata, p.selector())


def _read_service_update(request: HttpRequest) -> UpdateService:
    p, metadata = _checked(request)
    service = p.required_key()
    p.required("protectThreshold")
    return UpdateService(service, p.lenient_double("protectThreshold"), metadata, p.selector())


def _read_key(request: HttpRequest) -> ServiceKey:
    p, _ = _checked(request)
    p.request_param("serviceName")
    return p.key()


def _read_services(request: HttpRequest) -> ListServices:
    p, _ = _checked(request)
    p.required("pageNo")
    p.required("pageSize")
    key = p.key()
    return ListServices(key.namespace, key.group, p.lenient_integer("pageNo"), p.lenient_integer("pageSize"))


def _read_subscribers(request: HttpRequest) -> Subscribers:
    p, _ = _checked(request)
    page, size = p.lenient_integer("pageNo", 1), p.lenient_integer("pageSize", 1000)
    return Subscribers(p.required_key(), page, size)


def _read_names(request: HttpRequest) -> ServiceNames:
    p, _ = _checked(request)
    return ServiceNames(p.text("namespaceId"))


def _read_health(request: HttpRequest) -> SetHealth:
    p, _ = _checked(request)
    if not p.text("healthy", "valid"):
        raise BadCall("healthy", Violation.MISSING, "Param 'healthy' is required.")
    service = p.required_key()
    ip, port = p.required_address()
    cluster = p.text("clusterName", default=DEFAULT_CLUSTER)
    return SetHealth(service, ip, port, cluster, p.yes("healthy", "valid", default=False))


def _read_metrics(request: HttpRequest) -> Metrics:
    return Metrics(Parameters(request).exactly_true("onlyStatus", default=True))


def _read_catalog(request: HttpRequest) -> ListDetails:
    p, _ = _checked(request)
    namespace = p.text("namespaceId", default=DEFAULT_NAMESPACE)
    name, group = p.text("serviceNameParam"), p.text("groupNameParam")
    page, size = p.lenient_integer("pageNo"), p.lenient_integer("pageSize")
    ignore_empty, with_instances = p.yes("hasIpCount", default=False), p.yes("withInstances", default=False)
    return ListDetails(namespace, name, group, page, size, ignore_empty, with_instances)


def _read_catalog_instances(request: HttpRequest) -> ReadPage:
    p, _ = _checked(request)
    for name in ("serviceName", "clusterName", "pageNo", "pageSize"):
        p.request_param(name)
    cluster, page, size = p.text("clusterName"), p.integer("pageNo", 1), p.integer("pageSize", 10)
    return ReadPage(p.key(), cluster, everything=True, page=page, size=size)


# --- server role: replies ----------------------------------------------------------------------------------------


def write_ok(_call: Any, _result: Any) -> HttpReply:
    return as_text("ok")


def _write_as_is(_call: Any, value: Mapping[str, Any]) -> HttpReply:
    return as_json(dict(value))


def _write_service(call: GetService, info: ServiceInfo) -> HttpReply:
    return as_json(
        {
            "namespaceId": call.service.namespace,
            "groupName": call.service.group,
            "name": call.service.name,
            "protectThreshold": info.threshold,
            "metadata": dict(info.metadata),
            "selector": dict(info.selector or NO_SELECTOR),
            "clusters": [_cluster(name, info.checks.get(name, Checking())) for name in info.clusters],
        }
    )


def _cluster(name: str, checking: Checking) -> dict[str, Any]:
    return {"name": name, "healthChecker": shown_checker(checking), "metadata": dict(checking.metadata)}


def _write_services(_call: ListServices, page: ServicePage) -> HttpReply:
    return as_json({"count": page.count, "doms": list(page.names)})


def _write_subscribers(call: Subscribers, found: tuple[Subscriber, ...]) -> HttpReply:
    return as_json({"subscribers": [subscriber_json(s, call.service) for s in found], "count": len(found)})


def _write_names(_call: ServiceNames, names: Mapping[str, tuple[str, ...]]) -> HttpReply:
    shown = {namespace: list(found) for namespace, found in names.items()}
    return as_json({"META-INF/services": shown, "count": sum(map(len, shown.values()))})


def _write_catalog(call: ListDetails, page: DetailPage) -> HttpReply:
    if not call.with_instances:
        return as_json({"count": page.count, "serviceList": [view_json(row) for row in page.rows]})
    return as_json([_detail(row.info, row.snapshot) for row in page.rows])


def _detail(info: ServiceInfo, snapshot: Snapshot) -> dict[str, Any]:
    nothing = {"clusterName": None, "healthChecker": None, "metadata": None}
    clusters = {
        name: {**nothing, "hosts": [_address_info(host) for host in hosts]}
        for name, hosts in by_cluster(snapshot.instances).items()
    }
    service = {"namespace": None, "serviceName": info.key.name, "groupName": info.key.group, "clusterMap": clusters}
    return {**service, "metadata": dict(info.metadata), "protectThreshold": 0.0, "selector": None, "ephemeral": None}


def _address_info(host: Instance) -> dict[str, Any]:
    shown = {"valid": host.healthy, "metadata": dict(host.metadata), "port": host.port, "ip": host.ip}
    return {**shown, "weight": host.weight, "enabled": host.enabled}


def _write_catalog_instances(call: ReadPage, view: ServiceView) -> HttpReply:
    found = in_cluster(call, view)
    shown = [host_json(host, call.service) for host in page_of(call, found)]
    return as_json({"list": shown, "count": len(found)})


def _write_namespaces(_call: Namespaces, found: tuple[Mapping[str, Any], ...]) -> HttpReply:
    rows = [{**row, "namespace": "" if row["namespace"] == DEFAULT_NAMESPACE else row["namespace"]} for row in found]
    return as_json({"code": 200, "message": None, "data": rows})


def _write_up(_call: Any, _result: None) -> HttpReply:
    return as_text("OK")


def _write_list(call: ReadService, view: ServiceView) -> HttpReply:
    return as_json(list_json(view, call.clusters))


def _write_instance(call: ReadInstance, instance: Instance) -> HttpReply:
    host = host_json(instance, call.service)
    shown = ("ip", "port", "clusterName", "weight", "healthy", "instanceId", "metadata")
    return as_json({"service": call.service.grouped, **{name: host[name] for name in shown}, **instance.extra})


def _write_updated(_call: BatchMetadata, updated: tuple[str, ...]) -> HttpReply:
    return as_json({"updated": list(updated)})


def _unknown(request: HttpRequest, now_ms: int) -> HttpReply:
    message = f"no such api:{request.method}:{request.context}{request.path}"
    return error_page(request, 501, message, now_ms)


def _write_error(request: HttpRequest, error: ProxyError, now_ms: int) -> HttpReply:
    if request.path.startswith(_READINESS):
        return as_text(str(error), 500)
    return write_text_error("v1", request, error, now_ms)


# --- client role -------------------------------------------------------------------------------------------------


def _body(call: Call[Any], reply: HttpReply) -> bytes:
    """The body of a success. Raises `Refused`."""
    if reply.status != 200:
        raise read_refusal("v1", reply, type(call).__name__)
    return reply.body


def _done(call: Call[Any], reply: HttpReply) -> None:
    """Reads the `ok` of a write. A cluster node that forwarded the call answers it as JSON (nacos-http.md 1.3)."""
    if _body(call, reply).strip().strip(b'"') != b"ok":
        raise Malformed(f"{type(call).__name__}: {reply.body[:200]!r} is not ok")


def _value(call: Call[Any], reply: HttpReply) -> Any:
    return read_json(_body(call, reply))


def write_list(key: ServiceKey, *, healthy_only: bool = False) -> HttpRequest:
    """Requests the list of a service. `healthy_only` shows true health during protection (nacos-http.md 5.5)."""
    return HttpRequest("GET", _LIST, (*grouped(key), *pairs(healthyOnly=healthy_only)))


def read_list(key: ServiceKey, reply: HttpReply) -> Listing:
    """The snapshot, and whether protection masks its health. Raises `Malformed` and `Refused`."""
    return read_listing(key, _value(Fetch(key), reply))


def _write_fetch(call: Fetch) -> HttpRequest:
    return write_list(call.service)


def _read_fetch(call: Fetch, reply: HttpReply) -> Snapshot:
    return read_list(call.service, reply).snapshot


def _read_get_reply(call: GetInstance, reply: HttpReply) -> Instance:
    """r-nacos answers 500 `error` for an unknown instance; clients get Nacos's own message."""
    if reply.status == 500 and reply.body == b"error":
        raise Refused(Reason.INSTANCE_NOT_FOUND, "no matched ip found!", status=404)
    return read_requested(call, _value(call, reply))


def _write_update(call: Update) -> HttpRequest:
    method = "PATCH" if call.partial else "PUT"
    return HttpRequest(method, _INSTANCE, (*grouped(call.service), *update_form(call)))


def _read_beat_reply(call: Beat, reply: HttpReply) -> BeatResult:
    return read_beat_result(_value(call, reply))


def _read_updated(call: BatchMetadata, reply: HttpReply) -> tuple[str, ...]:
    return as_strings(as_object(_value(call, reply), "batch").get("updated"), "updated")


def _mapping(call: Call[Any], reply: HttpReply) -> Mapping[str, Any]:
    return as_object(_value(call, reply), type(call).__name__)


def _read_up(call: Alive | Ready, reply: HttpReply) -> None:
    _body(call, reply)


def _read_service_reply(call: GetService, reply: HttpReply) -> ServiceInfo:
    return read_service(call.service, _value(call, reply))


def _read_deleted(call: DeleteService, reply: HttpReply) -> None:
    """r-nacos refuses with a 500 and its own message; clients get Nacos's."""
    try:
        _done(call, reply)
    except Refused as refused:
        if refused.status != 500 or refused.reason is not Reason.SERVICE_NOT_EMPTY:
            raise
        message = f"Service {call.service.grouped} is not empty, can't be delete. Please unregister instance first"
        raise Refused(refused.reason, message, status=400) from refused


def _read_page(call: ListServices, reply: HttpReply) -> ServicePage:
    answer = as_object(_value(call, reply), "page")
    return ServicePage(as_int(answer.get("count"), "count"), as_strings(answer.get("doms"), "doms"))


def _read_subscribers_reply(call: Subscribers, reply: HttpReply) -> tuple[Subscriber, ...]:
    rows = as_list(as_object(_value(call, reply), "subscribers").get("subscribers"), "subscribers")
    return tuple(read_subscriber(row, call.service) for row in rows)


def _read_names_reply(call: ServiceNames, reply: HttpReply) -> Mapping[str, tuple[str, ...]]:
    """1.x has `services` with bare names. Since 2.2.3 it is `META-INF/services` by mistake (nacos-http.md 2.13)."""
    answer = as_object(_value(call, reply), "names")
    found = as_object(answer.get("META-INF/services", answer.get("services")), "services")
    return {namespace: tuple(map(_full, as_strings(names, "names"))) for namespace, names in found.items()}


def _full(name: str) -> str:
    return name if GROUP_SEPARATOR in name else f"{DEFAULT_GROUP}{GROUP_SEPARATOR}{name}"


def _read_namespaces_reply(call: Namespaces, reply: HttpReply) -> tuple[Mapping[str, Any], ...]:
    return read_namespaces(_mapping(call, reply).get("data"))


# --- the table ---------------------------------------------------------------------------------------------------

_service_row = partial(row, service=grouped)
_write_batch = partial(write_batch, _BATCH, grouped)
_ROWS: tuple[Operation[Any, Any], ...] = (
    _service_row("POST", _INSTANCE, Register, _read_register, write_ok, _done, register_form),
    _service_row("DELETE", _INSTANCE, Deregister, _read_deregister, write_ok, _done, deregister_form),
    Operation("PUT", _INSTANCE, Update, _read_update, write_ok, _write_update, _done),
    Operation("PATCH", _INSTANCE, Update, _read_patch, write_ok),
    _service_row(
        "GET", _INSTANCE, ReadInstance, _read_get, _write_instance, _read_get_reply, address_form, asks=(GetInstance,)
    ),
    Operation("GET", _LIST, ReadService, _read_list, _write_list, _write_fetch, _read_fetch, asks=(Fetch,)),
    _service_row("PUT", _BEAT, Beat, _read_beat, write_beat, _read_beat_reply, beat_form),
    Operation("PUT", _BATCH, BatchMetadata, _read_batch, _write_updated, _write_batch, _read_updated),
    Operation("DELETE", _BATCH, BatchMetadata, _read_batch, _write_updated),
    Operation(ANY, f"{_INSTANCE}/statuses", ReadService, _read_statuses, write_statuses),
    _service_row("POST", _SERVICE, CreateService, _read_create, write_ok, _done, service_form),
    _service_row("PUT", _SERVICE, UpdateService, _read_service_update, write_ok, _done, service_form),
    _service_row("DELETE", _SERVICE, DeleteService, lambda r: DeleteService(_read_key(r)), write_ok, _read_deleted),
    _service_row("GET", _SERVICE, GetService, lambda r: GetService(_read_key(r)), _write_service, _read_service_reply),
    row("GET", _SERVICES, ListServices, _read_services, _write_services, _read_page, page_form, group_form),
    _service_row(
        "GET", _SUBSCRIBERS, Subscribers, _read_subscribers, _write_subscribers, _read_subscribers_reply, page_form
    ),
    row(ANY, _NAMES, ServiceNames, _read_names, _write_names, _read_names_reply, names_form),
    _service_row("PUT", _HEALTH, SetHealth, _read_health, write_ok, _done, health_form),
    Operation("PUT", "/v1/ns/health", SetHealth, _read_health, write_ok),
    row("GET", _METRICS, Metrics, _read_metrics, _write_as_is, _mapping, metrics_form),
    Operation("GET", "/v1/ns/ops/metrics", Metrics, _read_metrics, _write_as_is),
    row("GET", _SWITCHES, Switches, lambda _: Switches(), _write_as_is, _mapping),
    Operation("GET", "/v1/ns/ops/switches", Switches, lambda _: Switches(), _write_as_is),
    Operation("GET", "/v1/ns/catalog/services", ListDetails, _read_catalog, _write_catalog),
    Operation(ANY, "/v1/ns/catalog/instances", ReadPage, _read_catalog_instances, _write_catalog_instances),
    row("GET", "/v1/console/health/liveness", Alive, lambda _: Alive(), _write_up, _read_up),
    row("GET", _READINESS, Ready, lambda _: Ready(), _write_up, _read_up),
    row("GET", "/v1/console/server/state", ServerState, lambda _: ServerState(), _write_as_is, _mapping),
    row("GET", "/v1/console/namespaces", Namespaces, lambda _: Namespaces(), _write_namespaces, _read_namespaces_reply),
)

V1 = Dialect("v1", ["/v1/ns"], _ROWS, unknown=_unknown, write_error=_write_error, slash=True, head=False)
