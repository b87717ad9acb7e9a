"""Nacos v1 HTTP, both roles: as a server exactly what 2.5.1 answers, as a client what 1.x, 2.x, 3.0 and r-nacos take.

Failures are plain text (shape T), the parameter check answers without a content type (P), filters with an error page
(J). Here stand the instances; all else of v1 is in `v1_services`. Source of a rule: nacos-http.md 2 and the recordings.
"""

from __future__ import annotations

from typing import Any

from nacos_proxy.model.calls import (
    BatchMetadata,
    Beat,
    BeatResult,
    Deregister,
    Fetch,
    GetInstance,
    Register,
    Update,
)
from nacos_proxy.model.errors import (
    BadCall,
    ProxyError,
    Reason,
    Refused,
    Violation,
)
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
    ReadService,
    ServiceView,
)
from nacos_proxy.wire.nacos.forms import (
    batch_form,
    beat_form,
    grouped,
    instance_form,
    pairs,
    patched_weight,
    push_address,
    read_any_beat,
    read_batch,
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
from nacos_proxy.wire.nacos.login import Login, read_login, write_login
from nacos_proxy.wire.nacos.parameters import Parameters, read_instances
from nacos_proxy.wire.nacos.refusals import write_text_error
from nacos_proxy.wire.nacos.rules import NACOS
from nacos_proxy.wire.nacos.shapes import (
    as_json,
    as_object,
    as_strings,
    as_text,
    error_page,
)
from nacos_proxy.wire.nacos.table import ANY, Table
from nacos_proxy.wire.nacos.v1_services import (
    READINESS,
    ROWS,
    done,
    value_of,
    write_ok,
)

_INSTANCE = "/v1/ns/instance"
_LIST = "/v1/ns/instance/list"

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
    """What register, deregister and update build alike, in the order in which 2.5.1 looks at it."""
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
        said = "caused: The InstanceIdGenerator type is not found ;"
        raise BadCall("metadata", Violation.OTHER, said, status=500)
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


# --- server role: replies ----------------------------------------------------------------------------------------


def _write_list(call: ReadService, view: ServiceView) -> HttpReply:
    return as_json(list_json(view, call.clusters))


def _write_instance(call: ReadInstance, instance: Instance) -> HttpReply:
    host = host_json(instance, call.service)
    shown = ("ip", "port", "clusterName", "weight", "healthy", "instanceId", "metadata")
    return as_json({"service": call.service.grouped, **{name: host[name] for name in shown}, **instance.extra})


def _write_beat(_call: Beat, beat: BeatResult) -> HttpReply:
    return as_json(beat_json(beat))


def _write_updated(_call: BatchMetadata, updated: tuple[str, ...]) -> HttpReply:
    return as_json({"updated": list(updated)})


def _write_statuses(_call: ReadService, view: ServiceView) -> HttpReply:
    return as_json(statuses_json(view.snapshot))


def _unknown(request: HttpRequest, now_ms: int) -> HttpReply:
    message = f"no such api:{request.method}:{request.context}{request.path}"
    return error_page(request, 501, message, now_ms)


def _write_error(request: HttpRequest, error: ProxyError, now_ms: int) -> HttpReply:
    if request.path.startswith(READINESS):
        return as_text(str(error), 500)
    return write_text_error("v1", request, error, now_ms)


# --- client role -------------------------------------------------------------------------------------------------


def write_list(key: ServiceKey, *, healthy_only: bool = False) -> HttpRequest:
    """The list of a whole service. `healthy_only` shows what protection hides (nacos-http.md 5.5)."""
    return HttpRequest("GET", _LIST, (*grouped(key), *pairs(healthyOnly=healthy_only)))


def read_list(key: ServiceKey, reply: HttpReply) -> Listing:
    """The snapshot and whether its health is masked. Raises `Malformed` and `Refused`."""
    return read_listing(key, value_of(Fetch(key), reply))


def _read_fetch(call: Fetch, reply: HttpReply) -> Snapshot:
    return read_list(call.service, reply).snapshot


def _write_get(call: GetInstance) -> HttpRequest:
    address = pairs(ip=call.ip, port=call.port, clusterName=call.cluster)
    return HttpRequest("GET", _INSTANCE, (*grouped(call.service), *address))


def _read_get_reply(call: GetInstance, reply: HttpReply) -> Instance:
    """r-nacos says `error` with a 500 for an instance that it does not know; a client hears Nacos's words."""
    if reply.status == 500 and reply.body == b"error":
        raise Refused(Reason.INSTANCE_NOT_FOUND, "no matched ip found!", status=404)
    return read_asked(call, value_of(call, reply))


def _write_register(call: Register) -> HttpRequest:
    return HttpRequest("POST", _INSTANCE, (*grouped(call.service), *instance_form(call.instance)))


def _write_deregister(call: Deregister) -> HttpRequest:
    query = pairs(ip=call.ip, port=call.port, clusterName=call.cluster, ephemeral=call.ephemeral)
    return HttpRequest("DELETE", _INSTANCE, (*grouped(call.service), *query))


def _write_update(call: Update) -> HttpRequest:
    method = "PATCH" if call.partial else "PUT"
    return HttpRequest(method, _INSTANCE, (*grouped(call.service), *update_form(call)))


def _write_beat_request(call: Beat) -> HttpRequest:
    return HttpRequest("PUT", f"{_INSTANCE}/beat", (*grouped(call.service), *beat_form(call)))


def _read_beat_reply(call: Beat, reply: HttpReply) -> BeatResult:
    return read_beat_result(value_of(call, reply))


def _write_batch(call: BatchMetadata) -> HttpRequest:
    method = "DELETE" if call.remove else "PUT"
    return HttpRequest(method, f"{_INSTANCE}/metadata/batch", (*grouped(call.service), *batch_form(call)))


def _read_updated(call: BatchMetadata, reply: HttpReply) -> tuple[str, ...]:
    return as_strings(as_object(value_of(call, reply), "batch").get("updated"), "updated")


def login_request(username: str, password: str) -> HttpRequest:
    return write_login("/v1/auth/login", username, password)


def login_reply(reply: HttpReply) -> Login:
    """Raises `Refused` and `Malformed` as `login.read_login` says."""
    return read_login("v1", reply)


# --- the table ---------------------------------------------------------------------------------------------------

_BATCH = f"{_INSTANCE}/metadata/batch"

_ROWS: tuple[Operation[Any, Any], ...] = (
    Operation("POST", _INSTANCE, Register, _read_register, write_ok, _write_register, done),
    Operation("DELETE", _INSTANCE, Deregister, _read_deregister, write_ok, _write_deregister, done),
    Operation("PUT", _INSTANCE, Update, _read_update, write_ok, _write_update, done),
    Operation("PATCH", _INSTANCE, Update, _read_patch, write_ok),
    Operation(
        "GET", _INSTANCE, ReadInstance, _read_get, _write_instance, _write_get, _read_get_reply, asks=(GetInstance,)
    ),
    Operation(
        "GET",
        _LIST,
        ReadService,
        _read_list,
        _write_list,
        lambda call: write_list(call.service),
        _read_fetch,
        asks=(Fetch,),
    ),
    Operation("PUT", f"{_INSTANCE}/beat", Beat, _read_beat, _write_beat, _write_beat_request, _read_beat_reply),
    Operation("PUT", _BATCH, BatchMetadata, _read_batch, _write_updated, _write_batch, _read_updated),
    Operation("DELETE", _BATCH, BatchMetadata, _read_batch, _write_updated),
    Operation(ANY, f"{_INSTANCE}/statuses", ReadService, _read_statuses, _write_statuses),
    *ROWS,
)

V1 = Table("v1", ["/v1/ns"], _ROWS, unknown=_unknown, write_error=_write_error, slash=True, head=False)
