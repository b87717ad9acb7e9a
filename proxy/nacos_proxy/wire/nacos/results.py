"""What v2 and v3 share: forms with Spring's messages, and results `{code, message, data}` (shape V).

Sources: nacos-http.md 1.4, 1.5, 3, 4.2 and the recordings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from nacos_proxy.model.calls import (
    BatchMetadata,
    Call,
    CreateService,
    DeleteService,
    Deregister,
    GetService,
    Metrics,
    Register,
    ServiceInfo,
    SetHealth,
    Update,
    UpdateService,
)
from nacos_proxy.model.errors import BadCall, Malformed, Violation
from nacos_proxy.model.limits import check_weight
from nacos_proxy.model.services import DEFAULT_CLUSTER, Instance, ServiceKey
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos.base import Operation
from nacos_proxy.wire.nacos.forms import bare, created_service_form, read_batch, row, service_form, write_batch
from nacos_proxy.wire.nacos.parameters import Parameters, read_instances
from nacos_proxy.wire.nacos.refusals import read_refusal
from nacos_proxy.wire.nacos.services import read_service
from nacos_proxy.wire.nacos.shapes import as_object, as_strings, read_json, result

_TYPES = {"port": "Integer", "checkPort": "Integer", "healthy": "Boolean", "useInstancePort4Check": "Boolean"}


def form_required(p: Parameters, *names: str) -> None:
    """Requires parameters of a form, in this order. Blank counts as missing."""
    for name in names:
        if not p.text(name):
            message = f"Required parameter '{name}' type {_TYPES.get(name, 'String')} is not present"
            raise BadCall(name, Violation.MISSING, message)


def param_required(p: Parameters, name: str, kind: str = "String") -> str:
    """Requires a method parameter. Blank does not count as missing."""
    if p.raw(name) is None:
        message = f"Required request parameter '{name}' for method parameter type {kind} is not present"
        raise BadCall(name, Violation.MISSING, message)
    return p.text(name)


def named_key(p: Parameters) -> ServiceKey:
    """The service of a method parameter `serviceName`."""
    if not param_required(p, "serviceName"):
        message = "Param 'serviceName' is illegal, serviceName is blank"
        raise BadCall("serviceName", Violation.GROUPED_NAME, message)
    return p.key()


def read_instance(p: Parameters, *, weighed: bool = True) -> tuple[ServiceKey, Instance]:
    """Reads an `InstanceForm`. Errors come in this order: parameter check, binding, missing values, weight."""
    metadata = p.check()
    weight = p.double("weight")
    instance = Instance(
        p.text("ip"),
        0,
        p.text("clusterName", default=DEFAULT_CLUSTER),
        1.0 if weight is None else weight,
        p.flag("healthy", True),
        p.flag("enabled", True),
        p.flag("ephemeral", True),
        metadata,
    )
    form_required(p, "serviceName", "ip", "port")
    if weighed:
        check_weight(instance.weight)
    return p.key(), replace(instance, port=p.integer("port", 0))


def read_register(request: HttpRequest) -> Register:
    p = Parameters(request)
    service, instance = read_instance(p)
    p.rules.instance(instance)
    return Register(service, instance)


def read_deregister(p: Parameters, *, weighed: bool) -> Deregister:
    service, i = read_instance(p, weighed=weighed)
    return Deregister(service, i.ip, i.port, i.cluster, i.ephemeral)


def read_update(request: HttpRequest, *, partial: bool = False) -> Update:
    p = Parameters(request)
    service, i = read_instance(p)
    if not partial:
        p.rules.instance(i)
    weight = i.weight if p.text("weight") else None
    enabled = i.enabled if p.text("enabled") else None
    metadata = i.metadata if p.text("metadata") else None
    return Update(service, i.ip, i.port, i.cluster, weight, enabled, metadata, i.ephemeral, partial)


def read_batch_form(request: HttpRequest) -> BatchMetadata:
    p = Parameters(request)
    instances = read_instances(p.text("instances"))
    metadata = p.check()
    p.check_instances(instances)
    form_required(p, "serviceName", "metadata")
    return read_batch(p, instances, metadata, request.method)


def read_health(request: HttpRequest) -> SetHealth:
    p = Parameters(request)
    p.check()
    healthy = p.boolean("healthy")
    form_required(p, "healthy", "serviceName", "ip", "port")
    cluster = p.text("clusterName", default=DEFAULT_CLUSTER)
    return SetHealth(p.key(), p.text("ip"), p.integer("port", 0), cluster, healthy is True)


def read_create(request: HttpRequest) -> CreateService:
    p = Parameters(request)
    metadata = p.check()
    ephemeral, threshold = p.flag("ephemeral", False), p.finite("protectThreshold", 0.0)
    form_required(p, "serviceName")
    return CreateService(p.key(), threshold, metadata, p.selector(), ephemeral)


def read_service_update(request: HttpRequest) -> UpdateService:
    created = read_create(request)
    return UpdateService(created.service, created.threshold, created.metadata, created.selector)


def read_service_form(request: HttpRequest) -> ServiceKey:
    """The service of a form."""
    return read_create(request).service


def read_metrics(request: HttpRequest) -> Metrics:
    return Metrics(Parameters(request).flag("onlyStatus", True))


def write_ok(_call: Any, _result: Any) -> HttpReply:
    return result("ok")


def write_as_is(_call: Any, value: Mapping[str, Any]) -> HttpReply:
    return result(dict(value))


def write_updated(_call: BatchMetadata, updated: tuple[str, ...]) -> HttpReply:
    return result({"updated": list(updated)})


def data_of(dialect: str, call: Call[Any], reply: HttpReply) -> Any:
    """The data of a successful result. Raises `Malformed`, and `Refused` also for an error code in a 200."""
    asked = type(call).__name__
    if reply.status != 200:
        raise read_refusal(dialect, reply, asked)
    answer = as_object(read_json(reply.body), asked)
    code = answer.get("code")
    if type(code) is not int:
        raise Malformed(f"{asked}: an answer without a code")
    if code != 0:
        raise read_refusal(dialect, reply, asked)
    return answer.get("data")


def read_ok(dialect: str, call: Call[Any], reply: HttpReply) -> None:
    if data_of(dialect, call, reply) != "ok":
        raise Malformed(f"{type(call).__name__}: {reply.body[:200]!r} is not ok")


def read_updated(dialect: str, call: BatchMetadata, reply: HttpReply) -> tuple[str, ...]:
    return as_strings(as_object(data_of(dialect, call, reply), "batch").get("updated"), "updated")


def read_mapping(dialect: str, call: Call[Any], reply: HttpReply) -> Mapping[str, Any]:
    return as_object(data_of(dialect, call, reply), type(call).__name__)


def read_service_reply(dialect: str, call: GetService, reply: HttpReply) -> ServiceInfo:
    return read_service(call.service, data_of(dialect, call, reply))


def service_rows(
    dialect: str,
    path: str,
    read_key: Callable[[HttpRequest], ServiceKey],
    write_service: Callable[[GetService, ServiceInfo], HttpReply],
) -> tuple[Operation[Any, Any], ...]:
    """Create, change, delete and show a service. `read_key` reads the service of the last two."""
    ok, read_reply = partial(read_ok, dialect), partial(read_service_reply, dialect)

    def read_delete(request: HttpRequest) -> DeleteService:
        return DeleteService(read_key(request))

    def read_get(request: HttpRequest) -> GetService:
        return GetService(read_key(request))

    return (
        row("POST", path, CreateService, read_create, write_ok, ok, created_service_form, service=bare),
        row("PUT", path, UpdateService, read_service_update, write_ok, ok, service_form, service=bare),
        row("DELETE", path, DeleteService, read_delete, write_ok, ok, service=bare),
        row("GET", path, GetService, read_get, write_service, read_reply, service=bare),
    )


def batch_rows(dialect: str, path: str) -> tuple[Operation[Any, Any], ...]:
    """Add metadata to many instances, and remove it."""
    write, read = partial(write_batch, path, bare), partial(read_updated, dialect)
    return (
        Operation("PUT", path, BatchMetadata, read_batch_form, write_updated, write, read),
        Operation("DELETE", path, BatchMetadata, read_batch_form, write_updated),
    )
