"""What the dialects share of a call's parameters: as a client writes them, and as a server reads them.

Not for: names that only one dialect has, the order in which a controller checks (the dialects).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

from nacos_proxy.model.calls import (
    BatchMetadata,
    Beat,
    CreateService,
    Update,
    UpdateService,
)
from nacos_proxy.model.errors import BadCall, Violation
from nacos_proxy.model.limits import check_weight
from nacos_proxy.model.services import (
    DEFAULT_CLUSTER,
    GROUP_SEPARATOR,
    Instance,
    Metadata,
    ServiceKey,
)
from nacos_proxy.wire.http import HttpRequest, Pairs
from nacos_proxy.wire.nacos.base import PushAddress
from nacos_proxy.wire.nacos.parameters import Parameters, check_grouped, read_beat
from nacos_proxy.wire.nacos.rules import plain_service
from nacos_proxy.wire.nacos.shapes import dumps

# --- writing -----------------------------------------------------------------------------------------------------


def text(value: bool | float | str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def pairs(**values: bool | float | str | None) -> Pairs:
    """Named parameters; what is None is not named."""
    return tuple((name, text(value)) for name, value in values.items() if value is not None)


def bare(key: ServiceKey) -> Pairs:
    """A service as v2 and v3 want it: the name without its group."""
    return (("serviceName", key.name), ("groupName", key.group), ("namespaceId", key.namespace))


def grouped(key: ServiceKey) -> Pairs:
    """A service as v1 wants it; `groupName` as well, which r-nacos heeds more than the prefix."""
    return (("serviceName", key.grouped), ("groupName", key.group), ("namespaceId", key.namespace))


def metadata_text(metadata: Metadata) -> str:
    return dumps(dict(metadata)).decode()


def instance_form(instance: Instance) -> Pairs:
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
    return pairs(
        ip=call.ip,
        port=call.port,
        clusterName=call.cluster,
        weight=call.weight,
        enabled=call.enabled,
        ephemeral=call.ephemeral,
        metadata=None if call.metadata is None else metadata_text(call.metadata),
    )


def beat_form(call: Beat) -> Pairs:
    """A light beat, and the `beat` object beside it where the call has the whole instance."""
    form = pairs(ip=call.ip, port=call.port, clusterName=call.cluster, ephemeral=call.ephemeral)
    if call.full is None:
        return form
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
    return (*form, ("beat", dumps(beat).decode()))


def batch_form(call: BatchMetadata) -> Pairs:
    kind = "ephemeral" if call.ephemeral else "persist"
    named = [
        {"ip": i.ip, "port": i.port, "clusterName": i.cluster, "ephemeral": call.ephemeral} for i in call.instances
    ]
    return pairs(
        consistencyType=kind,
        metadata=metadata_text(call.metadata),
        instances=dumps(named).decode() if named else None,
    )


def service_form(call: CreateService | UpdateService) -> Pairs:
    return pairs(
        protectThreshold=call.threshold,
        metadata=metadata_text(call.metadata) if call.metadata else None,
        selector=call.selector or None,
    )


# --- reading -----------------------------------------------------------------------------------------------------


def push_address(request: HttpRequest, p: Parameters, ip: str, port: int) -> PushAddress | None:
    """Where a list's caller wants to be pushed to; the agent is the User-Agent, else the Client-Version."""
    if not ip or not 0 < port <= 65535:
        return None
    agent = request.headers.get("user-agent") or request.headers.get("client-version", "")
    return PushAddress(ip, port, agent, p.text("app"))


def patched_weight(weight: float | None) -> float | None:
    """A patch does not look at the range (nacos-http.md 1.7), but what is no number cannot be kept."""
    return weight if weight is None or isfinite(weight) else check_weight(float("nan"))


def read_any_beat(p: Parameters, *, group_needed: bool) -> Beat:
    """A beat of v1 or v2. The service is that of the parameters, whatever the object inside says (nacos-http.md 10.1, 3)."""
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
        said = missing if group_needed else "Param 'serviceName' is required."
        raise BadCall("serviceName", Violation.MISSING, said)
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
    """`[namespace##]group@@service` of a statuses call."""
    namespace, separator, name = key.partition("##")
    if not separator:
        namespace, name = "", key
    check_grouped(name, Violation.GROUPED_NAME)
    group, _, service = name.partition(GROUP_SEPARATOR)
    found = ServiceKey.of(service, group, namespace)
    plain_service(found)  # no version has a parameter check here
    return found
