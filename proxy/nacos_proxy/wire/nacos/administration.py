"""Operations that only the embedded registry answers: health checkers, switches, and lists of clients.

With a real upstream, these requests are passed through unchanged, so the operations have no client role.
Sources: nacos-http.md 2.10, 2.14 to 2.16, 3, 4.2, 5.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nacos_proxy.model.calls import Alive, Call, Metrics, ServiceInfo, Subscriber, Subscribers
from nacos_proxy.model.errors import BadCall, Malformed, Violation
from nacos_proxy.model.services import Checking, InstanceKey, ServiceKey
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos.base import ANY, Dialect, Operation
from nacos_proxy.wire.nacos.parameters import Parameters
from nacos_proxy.wire.nacos.results import form_required, named_key, param_required, read_service_form
from nacos_proxy.wire.nacos.results import write_ok as write_result_ok
from nacos_proxy.wire.nacos.services import NO_SELECTOR, shown_checker
from nacos_proxy.wire.nacos.shapes import as_json, as_object, read_exactly, result
from nacos_proxy.wire.nacos.v1 import V1, write_ok
from nacos_proxy.wire.nacos.v2 import V2
from nacos_proxy.wire.nacos.v3 import V3

CHECKERS: dict[str, dict[str, Any]] = {
    "TCP": {"type": "TCP"},
    "HTTP": {"type": "HTTP", "path": "", "headers": "", "expectedResponseCode": 200},
    "MYSQL": {"type": "MYSQL", "user": None, "pwd": None, "cmd": None},
    "NONE": {"type": "NONE"},
}
SELECTORS = ("none", "label")
_CHECKER_CLASS = "com.alibaba.nacos.api.naming.pojo.healthcheck.AbstractHealthChecker"


@dataclass(frozen=True, slots=True)
class SetCluster(Call[None]):
    """Sets how the persistent instances of a cluster are checked. Raises `Refused` for an unknown service."""

    service: ServiceKey
    cluster: str
    checking: Checking


@dataclass(frozen=True, slots=True)
class SetSwitch(Call[None]):
    """Sets a switch; an unknown one is ignored. Raises `BadCall` for a value that the switch does not accept."""

    entry: str
    value: str


@dataclass(frozen=True, slots=True)
class CatalogService(Call[ServiceInfo]):
    """As `GetService`, but with other error messages."""

    service: ServiceKey


@dataclass(frozen=True, slots=True)
class Client:
    """The instances at one ip:port, which Nacos shows as a client. `updated` is in ms since 1970."""

    ip: str
    port: int
    ephemeral: bool
    updated: int
    published: tuple[tuple[ServiceKey, InstanceKey], ...]

    @property
    def name(self) -> str:
        return f"{self.ip}:{self.port}#{str(self.ephemeral).lower()}"


@dataclass(frozen=True, slots=True)
class Clients(Call[tuple[Client, ...]]):
    """Lists all clients."""


@dataclass(frozen=True, slots=True)
class FindClient(Call[Client]):
    """Raises `Refused` for an unknown name."""

    name: str


@dataclass(frozen=True, slots=True)
class Publishers(Call[tuple[Client, ...]]):
    """Lists the clients of a service, optionally only those at `ip` and `port`."""

    service: ServiceKey
    ip: str | None = None
    port: int | None = None


def _read_checker(text: str) -> dict[str, Any]:
    """A checker with all its fields. An unknown type becomes NONE, as in Nacos."""
    try:
        given = as_object(read_exactly(text), "healthChecker")
    except Malformed as error:
        message = f"errCode: 101, errMsg: Nacos deserialize for class [{_CHECKER_CLASS}] failed. "
        raise BadCall("healthChecker", Violation.OTHER, message) from error
    fields = CHECKERS.get(str(given.get("type")), CHECKERS["NONE"])
    own = {
        name: given[name]
        for name, default in fields.items()
        if name != "type" and _has_type_of(default, given.get(name))
    }
    return {**fields, **own}


def _has_type_of(default: Any, value: Any) -> bool:
    return type(value) is int if isinstance(default, int) else isinstance(value, str)


def _read_cluster_v1(request: HttpRequest) -> SetCluster:
    p = Parameters.filtered(request)
    metadata = p.check()
    cluster = p.required("clusterName")
    p.required("serviceName")
    for name in ("checkPort", "useInstancePort4Check", "healthChecker"):
        p.required(name)
    port, by_instance = p.lenient_integer("checkPort"), p.yes("useInstancePort4Check", default=False)
    return SetCluster(p.key(), cluster, Checking(_read_checker(p.text("healthChecker")), port, by_instance, metadata))


def _read_cluster_v3(request: HttpRequest) -> SetCluster:
    p = Parameters(request)
    metadata = p.check()
    by_instance = p.flag("useInstancePort4Check", True)
    form_required(p, "serviceName", "clusterName", "checkPort", "useInstancePort4Check", "healthChecker")
    checker = _read_checker(p.text("healthChecker"))
    return SetCluster(
        p.key(), p.text("clusterName"), Checking(checker, p.integer("checkPort", 0), by_instance, metadata)
    )


def _read_switch_v1(request: HttpRequest) -> SetSwitch:
    p = Parameters(request)
    for name in ("entry", "value"):
        if p.raw(name) is None:
            p.request_param(name)
    return SetSwitch(p.raw("entry") or "", p.raw("value") or "")


def _read_switch(request: HttpRequest) -> SetSwitch:
    p = Parameters(request)
    form_required(p, "entry", "value")
    return SetSwitch(p.raw("entry") or "", p.raw("value") or "")


def _read_catalog_service(request: HttpRequest) -> CatalogService:
    p = Parameters.filtered(request)
    p.check()
    return CatalogService(p.key())


def _read_client(request: HttpRequest) -> FindClient:
    p = Parameters(request)
    p.check()
    return FindClient(param_required(p, "clientId"))


def _read_publishers(request: HttpRequest) -> Publishers:
    p = Parameters(request)
    p.check()
    service = named_key(p) if request.path.startswith("/v2/") else read_service_form(request)
    return Publishers(service, p.raw("ip"), p.integer("port", 0) if p.text("port") else None)


def _read_subscribers(request: HttpRequest) -> Subscribers:
    return Subscribers(_read_publishers(request).service)


def _write_server(_call: Metrics, metrics: Any) -> HttpReply:
    text = f"Hello! I am Nacos-Naming and healthy! total services: {metrics['serviceCount']}, local port:8848"
    return as_json({"msg": text})


def _write_catalog_service(call: CatalogService, info: ServiceInfo) -> HttpReply:
    key = call.service
    service = {
        "name": key.name,
        "groupName": key.group,
        "protectThreshold": info.threshold,
        "selector": dict(info.selector or NO_SELECTOR),
        "metadata": dict(info.metadata),
    }
    clusters = [_cluster(key, name, info.checks.get(name, Checking())) for name in info.clusters]
    return as_json({"service": service, "clusters": clusters})


def _cluster(key: ServiceKey, name: str, checking: Checking) -> dict[str, Any]:
    return {
        "serviceName": key.grouped,
        "name": name,
        "healthChecker": shown_checker(checking),
        "defaultPort": 80,
        "defaultCheckPort": checking.port,
        "useIPPort4Check": checking.by_instance_port,
        "metadata": dict(checking.metadata),
    }


def _write_clients(_call: Clients, clients: tuple[Client, ...]) -> HttpReply:
    return result([client.name for client in clients])


def _write_client_v2(_call: FindClient, client: Client) -> HttpReply:
    return result({**_summary(client), "clientIp": client.ip, "clientPort": str(client.port)})


def _write_client_v3(_call: FindClient, client: Client) -> HttpReply:
    """v3 shows only the addresses of gRPC clients."""
    nothing = dict.fromkeys(("connectType", "appName", "version", "clientIp"))
    return result({**_summary(client), **nothing, "clientPort": 0})


def _summary(client: Client) -> dict[str, Any]:
    known = {"clientId": client.name, "ephemeral": client.ephemeral, "lastUpdatedTime": client.updated}
    return {**known, "clientType": "ipPort"}


def _write_published_v2(_call: FindClient, client: Client) -> HttpReply:
    return result(
        [
            {
                "namespace": key.namespace,
                "group": key.group,
                "serviceName": key.name,
                "registeredInstance": {"ip": i.ip, "port": i.port, "cluster": i.cluster},
            }
            for key, i in client.published
        ]
    )


def _write_published_v3(_call: FindClient, client: Client) -> HttpReply:
    return result(
        [
            {
                "namespaceId": key.namespace,
                "groupName": key.group,
                "serviceName": key.name,
                "publisherInfo": {"clientId": None, "ip": i.ip, "port": i.port, "clusterName": i.cluster},
                "subscriberInfo": None,
            }
            for key, i in client.published
        ]
    )


def _publishers(call: Publishers, clients: tuple[Client, ...]) -> list[tuple[str, InstanceKey]]:
    return [(client.name, i) for client in clients for key, i in client.published if key == call.service]


def _write_publishers_v2(call: Publishers, clients: tuple[Client, ...]) -> HttpReply:
    """Without ip and port the list is empty (nacos-http.md 3)."""
    found = [(name, i) for name, i in _publishers(call, clients) if (i.ip, i.port) == (call.ip, call.port)]
    return result([{"ip": i.ip, "port": i.port, "cluster": i.cluster, "clientId": name} for name, i in found])


def _write_publishers_v3(call: Publishers, clients: tuple[Client, ...]) -> HttpReply:
    found = [
        (name, i) for name, i in _publishers(call, clients) if call.ip in (None, i.ip) and call.port in (None, i.port)
    ]
    return result([{"clientId": name, "ip": i.ip, "port": i.port, "clusterName": i.cluster} for name, i in found])


def _write_subscribers_v2(_call: Subscribers, found: tuple[Subscriber, ...]) -> HttpReply:
    return result([{"clientId": f"{s.address}#true", "ip": s.ip, "port": s.port} for s in found])


def _write_subscribers_v3(_call: Subscribers, found: tuple[Subscriber, ...]) -> HttpReply:
    rows = [(f"{s.address}#true", s.app, s.agent, s.address) for s in found]
    return result([dict(zip(("clientId", "appName", "agent", "address"), row, strict=True)) for row in rows])


def _constant(method: str, path: str, reply: HttpReply) -> Operation[Any, Any]:
    """An operation that always gives the same answer."""
    return Operation(method, path, Alive, lambda _: Alive(), lambda _call, _result: reply)


_ROWS_V1: tuple[Operation[Any, Any], ...] = (
    Operation("PUT", "/v1/ns/cluster", SetCluster, _read_cluster_v1, write_ok),
    Operation("PUT", "/v1/ns/operator/switches", SetSwitch, _read_switch_v1, write_ok),
    Operation("PUT", "/v1/ns/ops/switches", SetSwitch, _read_switch_v1, write_ok),
    Operation("GET", "/v1/ns/catalog/service", CatalogService, _read_catalog_service, _write_catalog_service),
    Operation(ANY, "/v1/ns/health/server", Metrics, lambda _: Metrics(only_status=False), _write_server),
    _constant("GET", "/v1/ns/health/checkers", as_json(CHECKERS)),
    _constant("GET", "/v1/ns/service/selector/types", as_json({"code": 200, "message": None, "data": list(SELECTORS)})),
)


def _clients(prefix: str, writers: tuple[Any, Any, Any, Any]) -> tuple[Operation[Any, Any], ...]:
    client, published, publishers, subscribers = writers
    return (
        Operation("GET", f"{prefix}/list", Clients, lambda _: Clients(), _write_clients),
        Operation("GET", prefix, FindClient, _read_client, client),
        Operation("GET", f"{prefix}/publish/list", FindClient, _read_client, published),
        Operation("GET", f"{prefix}/subscribe/list", FindClient, _read_client, lambda _call, _client: result([])),
        Operation("GET", f"{prefix}/service/publisher/list", Publishers, _read_publishers, publishers),
        Operation("GET", f"{prefix}/service/subscriber/list", Subscribers, _read_subscribers, subscribers),
    )


_ROWS_V2: tuple[Operation[Any, Any], ...] = (
    Operation("PUT", "/v2/ns/operator/switches", SetSwitch, _read_switch, write_result_ok),
    Operation("PUT", "/v2/ns/ops/switches", SetSwitch, _read_switch, write_result_ok),
    *_clients("/v2/ns/client", (_write_client_v2, _write_published_v2, _write_publishers_v2, _write_subscribers_v2)),
)

_ADMIN = "/v3/admin/ns"
_ROWS_V3: tuple[Operation[Any, Any], ...] = (
    Operation("PUT", f"{_ADMIN}/cluster", SetCluster, _read_cluster_v3, write_result_ok),
    Operation("PUT", f"{_ADMIN}/ops/switches", SetSwitch, _read_switch, write_result_ok),
    _constant("GET", f"{_ADMIN}/health/checkers", result(CHECKERS)),
    _constant("GET", f"{_ADMIN}/service/selector/types", result(list(SELECTORS))),
    *_clients(f"{_ADMIN}/client", (_write_client_v3, _write_published_v3, _write_publishers_v3, _write_subscribers_v3)),
)

V1_WHOLE = V1.with_operations(_ROWS_V1)
V2_WHOLE = V2.with_operations(_ROWS_V2)
V3_WHOLE = V3.with_operations(_ROWS_V3)
WHOLE: tuple[Dialect, ...] = (V1_WHOLE, V2_WHOLE, V3_WHOLE)
"""The dialects as the embedded registry serves them."""
