"""Nacos v3 HTTP, client and admin API, both roles: as a server exactly what 3.0.3 answers, as a client what 3.x takes.

Answers are `{code, message, data}` (shape V). A beat is a registration with `heartBeat=true`; code 21003 in a 200 says
that the instance is not registered. Changing an instance is a matter of the admin API, which wants rights even where
the client API is open. Source of a rule: nacos-http.md 4 and the recordings nacos-3.0.3, v3-only, protection, modify.

No single call shows a whole service to everybody, so the parts are functions for a registry to combine:
`write_client_list` (the clusters named, health masked, no disabled ones), `write_admin_list` (one cluster, the truth),
and `ListDetails`, or `Fetch`, by `service/list?withInstances=true` (everything but the threshold, for which
`GetService` must be asked: 3.0.3 always shows 0.0 there).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from nacos_proxy.model.calls import (
    BEAT_NOT_FOUND,
    BEAT_OK,
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
    Malformed,
    ProxyError,
    Reason,
    Refused,
)
from nacos_proxy.model.heartbeats import beat_interval
from nacos_proxy.model.services import (
    DEFAULT_CLUSTER,
    EMPTY,
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
    bare,
    batch_form,
    instance_form,
    pairs,
    update_form,
)
from nacos_proxy.wire.nacos.hosts import (
    Hosts,
    host_json,
    hosts_json,
    read_asked,
    read_each,
)
from nacos_proxy.wire.nacos.login import Login, read_login, write_login
from nacos_proxy.wire.nacos.parameters import Parameters
from nacos_proxy.wire.nacos.refusals import write_result_error
from nacos_proxy.wire.nacos.results import (
    data_of,
    form_required,
    read_batch_form,
    read_deregister,
    read_instance,
    read_ok,
    read_register,
    read_update,
    read_updated,
    write_ok,
    write_updated,
)
from nacos_proxy.wire.nacos.shapes import (
    as_list,
    error_page,
    failure,
    result,
)
from nacos_proxy.wire.nacos.table import Table
from nacos_proxy.wire.nacos.v3_services import (
    READINESS,
    ROWS,
    SERVICES,
    details_of,
    find,
    read_details,
    write_details,
)

_CLIENT = "/v3/client/ns/instance"
_INSTANCE = "/v3/admin/ns/instance"
_FORBIDDEN = "Code: {code}, Message: {text}."

# --- server role: requests ---------------------------------------------------------------------------------------


def _read_register_or_beat(request: HttpRequest) -> Register | Beat:
    """A beat is always a light one: weight and metadata are not looked at."""
    p = Parameters(request)
    if not p.flag("heartBeat", False):
        return read_register(request)
    service, i = read_instance(p, weighed=False)
    return Beat(service, i.ip, i.port, i.cluster)


def _read_deregister(request: HttpRequest) -> Deregister:
    return read_deregister(Parameters(request), weighed=False)


def _read_partial(request: HttpRequest) -> Update:
    """Not really partial: 3.0.3 puts weight and enabled back where they are not named (recording "modify")."""
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
    """healthyOnly is accepted and without effect (recording "v3 list healthyOnly")."""
    service, clusters, _ = _list_form(request)
    return ReadService(service, clusters)


def _read_admin_list(request: HttpRequest) -> ReadService:
    service, cluster, healthy_only = _list_form(request)
    return ReadService(service, cluster, healthy_only, everything=True)


def _read_get(request: HttpRequest) -> ReadInstance:
    service, i = read_instance(Parameters(request), weighed=False)
    return ReadInstance(service, i.ip, i.port, i.cluster)


# --- server role: replies ----------------------------------------------------------------------------------------


def _write_registered(_call: Register | Beat, answer: BeatResult | None) -> HttpReply:
    if answer is not None and answer.code != BEAT_OK:
        return failure(200, 21003, None)
    return result("ok")


def _write_list(call: ReadService, view: ServiceView) -> HttpReply:
    return result(hosts_json(view.selection.hosts, call.service))


def _write_admin_list(call: ReadService, view: ServiceView) -> HttpReply:
    """The truth of one cluster, disabled ones too. Raises `Refused` for a service or a cluster that has nothing."""
    every = view.snapshot.instances
    if not every:
        raise Refused(Reason.SERVICE_NOT_FOUND, f"service {call.service.grouped} is not found!", status=404)
    found = [i for i in every if i.cluster == call.clusters]
    if not found:
        raise Refused(Reason.CLUSTER_NOT_FOUND, f"cluster {call.clusters} is not found!", status=404)
    return result([host_json(i, call.service) for i in found if i.healthy or not call.healthy_only])


def _write_instance(call: ReadInstance, instance: Instance) -> HttpReply:
    return result(host_json(instance, call.service))


def _unknown(request: HttpRequest, now_ms: int) -> HttpReply:
    message = f"No endpoint {request.method} {request.context}{request.path}."
    return error_page(request, 404, message, now_ms)


def _write_error(request: HttpRequest, error: ProxyError, now_ms: int) -> HttpReply:
    if request.path == READINESS:
        return failure(200, 30000, None, message=str(error))
    return write_result_error("v3", request, error, now_ms, _FORBIDDEN)


# --- client role -------------------------------------------------------------------------------------------------

_OK = partial(read_ok, "v3")


def write_client_list(key: ServiceKey, clusters: Iterable[str] = ()) -> HttpRequest:
    """The list of the clusters named; of none is DEFAULT alone."""
    return HttpRequest("GET", f"{_CLIENT}/list", (*bare(key), *pairs(clusterName=",".join(clusters) or None)))


def write_admin_list(key: ServiceKey, cluster: str = DEFAULT_CLUSTER) -> HttpRequest:
    """The list of one cluster as it is; refused with `Reason.CLUSTER_NOT_FOUND` where there is no such cluster."""
    return HttpRequest("GET", f"{_INSTANCE}/list", (*bare(key), *pairs(clusterName=cluster)))


def read_hosts(key: ServiceKey, reply: HttpReply) -> Hosts:
    """What both lists answer. Raises `Malformed` and `Refused`."""
    hosts = as_list(data_of("v3", Fetch(key), reply), "list")
    return read_each(hosts, key)


def snapshot(key: ServiceKey, *lists: Hosts) -> Snapshot:
    """A service of the lists of its clusters."""
    unreadable = tuple(said for some in lists for said in some.unreadable)
    return Snapshot.of(key, (host for some in lists for host in some.instances), unreadable=unreadable)


def _write_fetch(call: Fetch) -> HttpRequest:
    return write_details(details_of(call.service))


def _read_fetch(call: Fetch, reply: HttpReply) -> Snapshot:
    """Only where one page holds all that is named alike: to take a service for empty by mistake would be worse."""
    page = read_details(details_of(call.service), reply)
    found = find(call.service, page)
    if found is None and page.count > len(page.rows):
        raise Malformed(f"{call.service} is not among the first {len(page.rows)} of {page.count} that are named alike")
    return found or Snapshot(call.service)


def _write_register(call: Register | Beat) -> HttpRequest:
    if isinstance(call, Register):
        return HttpRequest("POST", _CLIENT, (*bare(call.service), *instance_form(call.instance)))
    query = pairs(ip=call.ip, port=call.port, clusterName=call.cluster, heartBeat=True)
    return HttpRequest("POST", _CLIENT, (*bare(call.service), *query))


def _read_registered(call: Register | Beat, reply: HttpReply) -> BeatResult | None:
    """A v3 server says no interval: it is read from the metadata where the call has it."""
    interval = beat_interval(call.full.metadata if isinstance(call, Beat) and call.full is not None else EMPTY)
    try:
        read_ok("v3", call, reply)
    except Refused as refused:
        if isinstance(call, Register) or reply.status != 200 or refused.reason is not Reason.INSTANCE_NOT_FOUND:
            raise
        return BeatResult(BEAT_NOT_FOUND, interval)
    return BeatResult(BEAT_OK, interval) if isinstance(call, Beat) else None


def _write_deregister(call: Deregister) -> HttpRequest:
    query = pairs(ip=call.ip, port=call.port, clusterName=call.cluster, ephemeral=call.ephemeral)
    return HttpRequest("DELETE", _CLIENT, (*bare(call.service), *query))


def _write_update(call: Update) -> HttpRequest:
    """Not even the partial one is partial: the server puts weight and enabled back where they are not named."""
    path = f"{_INSTANCE}/partial" if call.partial else _INSTANCE
    return HttpRequest("PUT", path, (*bare(call.service), *update_form(call)))


def _write_get(call: GetInstance) -> HttpRequest:
    address = pairs(ip=call.ip, port=call.port, clusterName=call.cluster)
    return HttpRequest("GET", _INSTANCE, (*bare(call.service), *address))


def _read_get_reply(call: GetInstance, reply: HttpReply) -> Instance:
    return read_asked(call, data_of("v3", call, reply))


def _write_batch(call: BatchMetadata) -> HttpRequest:
    method = "DELETE" if call.remove else "PUT"
    return HttpRequest(method, _BATCH, (*bare(call.service), *batch_form(call)))


def login_request(username: str, password: str) -> HttpRequest:
    return write_login("/v3/auth/user/login", username, password)


def login_reply(reply: HttpReply) -> Login:
    """Raises `Refused` and `Malformed` as `login.read_login` says."""
    return read_login("v3", reply)


# --- the table ---------------------------------------------------------------------------------------------------

_BATCH = f"{_INSTANCE}/metadata/batch"

_ROWS: tuple[Operation[Any, Any], ...] = (
    Operation(
        "POST",
        _CLIENT,
        Register,
        _read_register_or_beat,
        _write_registered,
        _write_register,
        _read_registered,
        asks=(Register, Beat),
    ),
    Operation("DELETE", _CLIENT, Deregister, _read_deregister, write_ok, _write_deregister, _OK),
    Operation("GET", f"{_CLIENT}/list", ReadService, _read_list, _write_list),
    Operation("POST", _INSTANCE, Register, read_register, write_ok),
    Operation("DELETE", _INSTANCE, Deregister, _read_deregister, write_ok),
    Operation("PUT", _INSTANCE, Update, read_update, write_ok, _write_update, _OK),
    Operation("PUT", f"{_INSTANCE}/partial", Update, _read_partial, write_ok),
    Operation("PUT", _BATCH, BatchMetadata, read_batch_form, write_updated, _write_batch, partial(read_updated, "v3")),
    Operation("DELETE", _BATCH, BatchMetadata, read_batch_form, write_updated),
    Operation("GET", _INSTANCE, ReadInstance, _read_get, _write_instance, _write_get, _read_get_reply, (GetInstance,)),
    Operation("GET", f"{_INSTANCE}/list", ReadService, _read_admin_list, _write_admin_list),
    *ROWS,
    Operation("GET", SERVICES, Fetch, _read_list, _write_list, _write_fetch, _read_fetch),
)

V3 = Table(
    "v3", ["/v3/client/ns", "/v3/admin/ns"], _ROWS, unknown=_unknown, write_error=_write_error, slash=False, head=True
)
