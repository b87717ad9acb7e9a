"""v1 beyond instances: services, health, operator, catalog, console; both roles. The rows go into the table of `v1`.

Source: nacos-http.md 2.10 to 2.17.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from nacos_proxy.model.calls import (
    Alive,
    Call,
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
    ServiceNames,
    ServicePage,
    SetHealth,
    Subscriber,
    Subscribers,
    Switches,
    UpdateService,
)
from nacos_proxy.model.errors import (
    BadCall,
    Malformed,
    Reason,
    Refused,
    Violation,
)
from nacos_proxy.model.services import (
    DEFAULT_CLUSTER,
    DEFAULT_GROUP,
    DEFAULT_NAMESPACE,
    GROUP_SEPARATOR,
    Checking,
    Instance,
    Snapshot,
)
from nacos_proxy.wire.http import HttpReply, HttpRequest, Pairs
from nacos_proxy.wire.nacos.base import Operation, ReadPage, ServiceView
from nacos_proxy.wire.nacos.forms import grouped, pairs, service_form
from nacos_proxy.wire.nacos.hosts import host_json
from nacos_proxy.wire.nacos.parameters import Parameters
from nacos_proxy.wire.nacos.refusals import read_refusal
from nacos_proxy.wire.nacos.services import (
    NO_SELECTOR,
    by_cluster,
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
    read_json,
)
from nacos_proxy.wire.nacos.table import ANY

R = TypeVar("R")

_SERVICE = "/v1/ns/service"
_CONSOLE = "/v1/console"
READINESS = "/v1/console/health/readiness"

# --- server role: requests ---------------------------------------------------------------------------------------


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


def _read_service_delete(request: HttpRequest) -> DeleteService:
    p, _ = _checked(request)
    p.request_param("serviceName")
    return DeleteService(p.key())


def _read_service_get(request: HttpRequest) -> GetService:
    p, _ = _checked(request)
    p.request_param("serviceName")
    return GetService(p.key())


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
    p.request_param("serviceName")
    p.request_param("clusterName")
    p.request_param("pageNo")
    p.request_param("pageSize")
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
    every = view.snapshot.instances
    if not every:
        raise Refused(Reason.SERVICE_NOT_FOUND, f"service {call.service.grouped} is not found!", status=404)
    found = [instance for instance in every if instance.cluster == call.clusters]
    if not found:
        raise Refused(Reason.CLUSTER_NOT_FOUND, f"cluster {call.clusters} is not found!", status=404)
    shown = [host_json(host, call.service) for host in page_of(call, found)]
    return as_json({"list": shown, "count": len(found)})


def _write_namespaces(_call: Namespaces, found: tuple[Mapping[str, Any], ...]) -> HttpReply:
    rows = [{**row, "namespace": "" if row["namespace"] == DEFAULT_NAMESPACE else row["namespace"]} for row in found]
    return as_json({"code": 200, "message": None, "data": rows})


def _write_up(_call: Any, _result: None) -> HttpReply:
    return as_text("OK")


# --- client role -------------------------------------------------------------------------------------------------


def answered(call: Call[Any], reply: HttpReply) -> bytes:
    """The body of a success. Raises `Refused`."""
    if reply.status != 200:
        raise read_refusal("v1", reply, type(call).__name__)
    return reply.body


def done(call: Call[Any], reply: HttpReply) -> None:
    """A write that answers `ok`; cluster members that hand a call on say the same as JSON (nacos-http.md 1.3)."""
    if answered(call, reply).strip().strip(b'"') != b"ok":
        raise Malformed(f"{type(call).__name__}: {reply.body[:200]!r} is not ok")


def value_of(call: Call[Any], reply: HttpReply) -> Any:
    return read_json(answered(call, reply))


def _mapping(call: Call[Any], reply: HttpReply) -> Mapping[str, Any]:
    return as_object(value_of(call, reply), type(call).__name__)


def _up(call: Alive | Ready, reply: HttpReply) -> None:
    answered(call, reply)


def _read_service_reply(call: GetService, reply: HttpReply) -> ServiceInfo:
    return read_service(call.service, value_of(call, reply))


def _deleted(call: DeleteService, reply: HttpReply) -> None:
    """r-nacos refuses with a 500 in words of its own; a client hears Nacos's."""
    try:
        done(call, reply)
    except Refused as refused:
        if refused.status != 500 or refused.reason is not Reason.SERVICE_NOT_EMPTY:
            raise
        said = f"Service {call.service.grouped} is not empty, can't be delete. Please unregister instance first"
        raise Refused(refused.reason, said, status=400) from refused


def _read_page(call: ListServices, reply: HttpReply) -> ServicePage:
    answer = as_object(value_of(call, reply), "page")
    return ServicePage(as_int(answer.get("count"), "count"), as_strings(answer.get("doms"), "doms"))


def _read_subscribed(call: Subscribers, reply: HttpReply) -> tuple[Subscriber, ...]:
    rows = as_list(as_object(value_of(call, reply), "subscribers").get("subscribers"), "subscribers")
    return tuple(read_subscriber(row, call.service) for row in rows)


def _read_names_reply(call: ServiceNames, reply: HttpReply) -> Mapping[str, tuple[str, ...]]:
    """1.x writes `services` with bare names, 2.2.3 and later the key that a build tool made of it (nacos-http.md 2.13)."""
    answer = as_object(value_of(call, reply), "names")
    found = as_object(answer.get("META-INF/services", answer.get("services")), "services")
    return {namespace: tuple(map(_full, as_strings(names, "names"))) for namespace, names in found.items()}


def _full(name: str) -> str:
    return name if GROUP_SEPARATOR in name else f"{DEFAULT_GROUP}{GROUP_SEPARATOR}{name}"


def _read_namespaces_reply(call: Namespaces, reply: HttpReply) -> tuple[Mapping[str, Any], ...]:
    return read_namespaces(_mapping(call, reply).get("data"))


def _get(path: str, parameters: Callable[[Any], Pairs] = lambda _: ()) -> Callable[[Any], HttpRequest]:
    return lambda call: HttpRequest("GET", path, parameters(call))


def _write(method: str, path: str, parameters: Callable[[Any], Pairs] = lambda _: ()) -> Callable[[Any], HttpRequest]:
    return lambda call: HttpRequest(method, path, (*grouped(call.service), *parameters(call)))


def _paged(call: ListServices) -> Pairs:
    return pairs(pageNo=call.page, pageSize=call.size, groupName=call.group, namespaceId=call.namespace)


def _subscribed(call: Subscribers) -> Pairs:
    return (*grouped(call.service), *pairs(pageNo=call.page, pageSize=call.size))


def _health(call: SetHealth) -> Pairs:
    return pairs(ip=call.ip, port=call.port, clusterName=call.cluster, healthy=call.healthy)


def _only_status(call: Metrics) -> Pairs:
    return pairs(onlyStatus=call.only_status)


# --- the rows ----------------------------------------------------------------------------------------------------

_METRICS = "/v1/ns/operator/metrics"
_SWITCHES = "/v1/ns/operator/switches"
_HEALTH = "/v1/ns/health/instance"
_LIVENESS = "/v1/console/health/liveness"

ROWS: tuple[Operation[Any, Any], ...] = (
    Operation("POST", _SERVICE, CreateService, _read_create, write_ok, _write("POST", _SERVICE, service_form), done),
    Operation(
        "PUT", _SERVICE, UpdateService, _read_service_update, write_ok, _write("PUT", _SERVICE, service_form), done
    ),
    Operation("DELETE", _SERVICE, DeleteService, _read_service_delete, write_ok, _write("DELETE", _SERVICE), _deleted),
    Operation(
        "GET",
        _SERVICE,
        GetService,
        _read_service_get,
        _write_service,
        _get(_SERVICE, lambda call: grouped(call.service)),
        _read_service_reply,
    ),
    Operation(
        "GET",
        f"{_SERVICE}/list",
        ListServices,
        _read_services,
        _write_services,
        _get(f"{_SERVICE}/list", _paged),
        _read_page,
    ),
    Operation(
        "GET",
        f"{_SERVICE}/subscribers",
        Subscribers,
        _read_subscribers,
        _write_subscribers,
        _get(f"{_SERVICE}/subscribers", _subscribed),
        _read_subscribed,
    ),
    Operation(
        ANY,
        f"{_SERVICE}/names",
        ServiceNames,
        _read_names,
        _write_names,
        _get(f"{_SERVICE}/names", lambda call: pairs(namespaceId=call.namespace or None)),
        _read_names_reply,
    ),
    Operation("PUT", _HEALTH, SetHealth, _read_health, write_ok, _write("PUT", _HEALTH, _health), done),
    Operation("PUT", "/v1/ns/health", SetHealth, _read_health, write_ok),
    Operation("GET", _METRICS, Metrics, _read_metrics, _write_as_is, _get(_METRICS, _only_status), _mapping),
    Operation("GET", "/v1/ns/ops/metrics", Metrics, _read_metrics, _write_as_is),
    Operation("GET", _SWITCHES, Switches, lambda _: Switches(), _write_as_is, _get(_SWITCHES), _mapping),
    Operation("GET", "/v1/ns/ops/switches", Switches, lambda _: Switches(), _write_as_is),
    Operation("GET", "/v1/ns/catalog/services", ListDetails, _read_catalog, _write_catalog),
    Operation(ANY, "/v1/ns/catalog/instances", ReadPage, _read_catalog_instances, _write_catalog_instances),
    Operation("GET", _LIVENESS, Alive, lambda _: Alive(), _write_up, _get(_LIVENESS), _up),
    Operation("GET", READINESS, Ready, lambda _: Ready(), _write_up, _get(READINESS), _up),
    Operation(
        "GET",
        f"{_CONSOLE}/server/state",
        ServerState,
        lambda _: ServerState(),
        _write_as_is,
        _get(f"{_CONSOLE}/server/state"),
        _mapping,
    ),
    Operation(
        "GET",
        f"{_CONSOLE}/namespaces",
        Namespaces,
        lambda _: Namespaces(),
        _write_namespaces,
        _get(f"{_CONSOLE}/namespaces"),
        _read_namespaces_reply,
    ),
)
