"""Parameters that more than one dialect has: the client role writes them, the server role reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

from nacos_proxy.model.calls import (
    BatchMetadata,
    Beat,
    CreateService,
    Deregister,
    GetInstance,
    ListServices,
    Metrics,
    Register,
    ServiceNames,
    SetHealth,
    Subscribers,
    Update,
    UpdateService,
)
from nacos_proxy.model.errors import BadCall, Violation
from nacos_proxy.model.limits import check_plain_service, check_weight
from nacos_proxy.model.services import DEFAULT_CLUSTER, GROUP_SEPARATOR, Instance, Metadata, ServiceKey
from nacos_proxy.wire.http import HttpReply, HttpRequest, Pairs
from nacos_proxy.wire.nacos.base import ANY, Operation, PushAddress
from nacos_proxy.wire.nacos.parameters import Parameters, check_grouped, read_beat
from nacos_proxy.wire.nacos.shapes import dumps


def row(
    method: str,
    path: str,
    call: type,
    read_request: Callable[[HttpRequest], Any],
    write_reply: Callable[[Any, Any], HttpReply],
    read_reply: Callable[[Any, HttpReply], Any],
    *forms: Callable[[Any], Pairs],
    service: Callable[[ServiceKey], Pairs] | None = None,
    asks: tuple[type, ...] = (),
) -> Operation[Any, Any]:
    """An operation whose request has the names of the service (by `service`), then the parameters of each form."""

    def write_request(call: Any) -> HttpRequest:
        named = service(call.service) if service is not None else ()
        parameters = (*named, *(pair for form in forms for pair in form(call)))
        return HttpRequest("GET" if method == ANY else method, path, parameters)

    return Operation(method, path, call, read_request, write_reply, write_request, read_reply, asks)


def text(value: bool | float | str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def pairs(**values: bool | float | str | None) -> Pairs:
    """The parameters that are not None."""
    return tuple((name, text(value)) for name, value in values.items() if value is not None)


def bare(key: ServiceKey) -> Pairs:
    """A service as v2 and v3 name it: the name without its group."""
    return (("serviceName", key.name), ("groupName", key.group), ("namespaceId", key.namespace))


def grouped(key: ServiceKey) -> Pairs:
    """A service as v1 names it, plus `groupName`, which r-nacos prefers to the prefix."""
    return (("serviceName", key.grouped), ("groupName", key.group), ("namespaceId", key.namespace))


def metadata_text(metadata: Metadata) -> str:
    return dumps(dict(metadata)).decode()


def address_form(call: GetInstance | Deregister | SetHealth | Update | Beat) -> Pairs:
    return pairs(ip=call.ip, port=call.port, clusterName=call.cluster)


def deregister_form(call: Deregister | Beat) -> Pairs:
    return (*address_form(call), *pairs(ephemeral=call.ephemeral))


def register_form(call: Register) -> Pairs:
    instance = call.instance
    return pairs(
        ip=instance.ip,
        port=instance.port,
        clusterName=instance.cluster,
        weight=instance.weight,
        enabled=instance.enabled,
        healthy=instance.healthy,
        ephemeral=instance.ephemeral,
        metadata=metadata_text(instance.metadata) if instance.metadata else None,
    )


def update_form(call: Update) -> Pairs:
    return (
        *address_form(call),
        *pairs(
            weight=call.weight,
            enabled=call.enabled,
            ephemeral=call.ephemeral,
            metadata=None if call.metadata is None else metadata_text(call.metadata),
        ),
    )


def beat_form(call: Beat) -> Pairs:
    """A light beat, plus the `beat` object if the call has the whole instance."""
    if call.full is None:
        return deregister_form(call)
    beat = {
        "serviceName": call.service.grouped,
        "ip": call.ip,
        "port": call.port,
        "weight": call.full.weight,
        "cluster": call.cluster,
        "metadata": dict(call.full.metadata),
        "ephemeral": call.ephemeral,
        "scheduled": True,
    }
    return (*deregister_form(call), ("beat", dumps(beat).decode()))


def health_form(call: SetHealth) -> Pairs:
    return (*address_form(call), *pairs(healthy=call.healthy))


def batch_form(call: BatchMetadata) -> Pairs:
    kind = "ephemeral" if call.ephemeral else "persist"
    named = [
        {"ip": i.ip, "port": i.port, "clusterName": i.cluster, "ephemeral": call.ephemeral} for i in call.instances
    ]
    return pairs(
        consistencyType=kind, metadata=metadata_text(call.metadata), instances=dumps(named).decode() if named else None
    )


def write_batch(path: str, service: Callable[[ServiceKey], Pairs], call: BatchMetadata) -> HttpRequest:
    return HttpRequest("DELETE" if call.remove else "PUT", path, (*service(call.service), *batch_form(call)))


def service_form(call: CreateService | UpdateService) -> Pairs:
    return pairs(
        protectThreshold=call.threshold,
        metadata=metadata_text(call.metadata) if call.metadata else None,
        selector=call.selector or None,
    )


def created_service_form(call: CreateService) -> Pairs:
    """v2 and v3 can create both kinds of service; v1 has no `ephemeral`."""
    return (*service_form(call), *pairs(ephemeral=call.ephemeral))


def page_form(call: ListServices | Subscribers) -> Pairs:
    return pairs(pageNo=call.page, pageSize=call.size)


def group_form(call: ListServices) -> Pairs:
    return pairs(groupName=call.group, namespaceId=call.namespace)


def names_form(call: ServiceNames) -> Pairs:
    return pairs(namespaceId=call.namespace or None)


def metrics_form(call: Metrics) -> Pairs:
    return pairs(onlyStatus=call.only_status)


def push_address(request: HttpRequest, p: Parameters, ip: str, port: int) -> PushAddress | None:
    """The UDP push address that a list request names; None if it names none."""
    if not ip or not 0 < port <= 65535:
        return None
    agent = request.headers.get("user-agent") or request.headers.get("client-version", "")
    return PushAddress(ip, port, agent, p.text("app"))


def patched_weight(weight: float | None) -> float | None:
    """A PATCH accepts any finite weight (nacos-http.md 1.7). Raises `BadCall`."""
    return weight if weight is None or isfinite(weight) else check_weight(float("nan"))


def read_any_beat(p: Parameters, *, group_needed: bool) -> Beat:
    """A beat of v1 or v2. The parameters name the service; the `beat` object's name is ignored (nacos-http.md 10.1, 3).

    `group_needed`: v2 requires `group@@name`.
    """
    cluster = p.text("clusterName", default=DEFAULT_CLUSTER)
    full = read_beat(p.text("beat"), cluster)
    p.check(address=False)
    p.check_address()
    if full is not None:
        p.check_instances((full,))
        if (kept := p.rules.kept(full.metadata)) is not full.metadata:
            full = replace(full, metadata=kept)
    name = p.raw("serviceName")
    if name is None or not (name or group_needed):
        missing = "Required request parameter 'serviceName' for method parameter type String is not present"
        message = missing if group_needed else "Param 'serviceName' is required."
        raise BadCall("serviceName", Violation.MISSING, message)
    if group_needed or not name.strip():
        check_grouped(name, Violation.GROUPED_NAME)
    if full is None:
        return Beat(p.key(), p.text("ip"), p.integer("port", 0), cluster, p.yes("ephemeral", default=True))
    return Beat(p.key(), full.ip, full.port, full.cluster, full.ephemeral, full)


def read_batch(p: Parameters, instances: Sequence[Instance], metadata: Metadata, method: str) -> BatchMetadata:
    persistent = p.text("consistencyType") == "persist"
    ephemeral = all(i.ephemeral for i in instances) if instances else not persistent
    return BatchMetadata(p.key(), tuple(i.key for i in instances), metadata, method == "DELETE", ephemeral)


def status_key(key: str) -> ServiceKey:
    """Reads `[namespace##]group@@service`, the key of a statuses call."""
    namespace, separator, name = key.partition("##")
    if not separator:
        namespace, name = "", key
    check_grouped(name, Violation.GROUPED_NAME)
    group, _, service = name.partition(GROUP_SEPARATOR)
    found = ServiceKey.of(service, group, namespace)
    check_plain_service(found)  # no version of Nacos runs its parameter check on a statuses call
    return found
