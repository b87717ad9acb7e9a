"""The requests that SDKs send, and the answers to them (nacos-grpc.md 3, 4, 5): the server role.

`find_type` finds the row of a payload, `read_request` the request as a value, `write_answer` and `write_error` answer
it. What stands on the stream is in `stream`.

Real servers read the values of an SDK less strictly than over HTTP. Where these functions are not as loose, they say
so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, Literal, cast

import orjson

from nacos_proxy.model.calls import Deregister, ListServices, Register, ServicePage
from nacos_proxy.model.errors import BadCall, Malformed, ProxyError, Violation
from nacos_proxy.model.limits import BLANK, NACOS, Rules, check_weight
from nacos_proxy.model.services import (
    DEFAULT_CLUSTER,
    DEFAULT_GROUP,
    DEFAULT_NAMESPACE,
    EMPTY,
    Instance,
    Metadata,
    ServiceKey,
    without_nulls,
)
from nacos_proxy.wire.nacos.base import ReadService, ServiceView
from nacos_proxy.wire.nacos.grpc.payload import Payload
from nacos_proxy.wire.nacos.grpc.refusals import ERROR_RESPONSE, NoHandler, NotReadable, write_failure
from nacos_proxy.wire.nacos.hosts import list_json, read_metadata
from nacos_proxy.wire.nacos.shapes import dumps, read_exactly

# Real servers have no limit but that of a message, 10 MiB. Hostile JSON of this size takes a second to read.
MAX_BODY = 256 << 10  # bytes
MAX_BATCH_BODY = 2 << 20
MAX_BATCH = 1000  # instances; each is written by itself, and that takes longer the more there are
MAX_CLUSTERS = 4096  # characters; a subscription keeps them

REGISTER = "registerInstance"
DEREGISTER = "deregisterInstance"
REGISTER_BATCH = "batchRegisterInstance"


@dataclass(frozen=True, slots=True)
class ServerCheck:
    """Sent first by most SDKs, and answered in every state. Its result is the connection's id."""


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """Sent by an idle SDK."""


@dataclass(frozen=True, slots=True)
class Query:
    """The result is a `ServiceView`. A service with an empty name is answered as an unknown one: without hosts."""

    read: ReadService


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Subscribes, or with `subscribe` false ends the subscription. The result is a `ServiceView` in both cases.

    A connection has one subscription per service. Another one replaces it, and any end ends it, whatever their clusters
    (nacos-grpc.md 4).
    """

    read: ReadService
    subscribe: bool


@dataclass(frozen=True, slots=True)
class Publish:
    """Everything that the connection publishes for the service from now on; without instances: nothing.

    All instances are ephemeral, whatever the SDK says. `type` is repeated in the answer.
    """

    service: ServiceKey
    instances: tuple[Instance, ...]
    type: str


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Removes everything that the connection published for the service, whatever address the SDK names.

    `named`: what it names. That counts for what an earlier connection of it published before a restart of this proxy.
    """

    service: ServiceKey
    type: str
    named: tuple[Instance, ...] = ()


Request = ServerCheck | HealthCheck | Query | Subscribe | Publish | Withdraw | ListServices | Register | Deregister
Info = ServiceView | orjson.Fragment  # a service to show, or its JSON by `encode_info`
Result = str | Info | ServicePage | None  # the connection id for `ServerCheck`


@dataclass(frozen=True, slots=True)
class RequestType:
    """One row. `name` is the class of the request, `answer` the class of the response.

    `right` is the right that a client needs. `read` raises `BadCall` and `NotReadable`. `write` returns the fields of
    the response beside `resultCode`, `errorCode` and `success`. A refusal has the fields `always`, without which the
    Python SDK cannot read it.
    """

    name: str
    answer: str
    right: Literal["read", "write"] | None
    read: Callable[[Mapping[str, Any], Rules], Request]
    write: Callable[[Any, Any], dict[str, Any]]
    always: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    max_body: int = MAX_BODY


def find_type(payload: Payload) -> RequestType:
    """Raises `NoHandler`. Real servers look for the type before they look for the session (nacos-grpc.md 5)."""
    found = REQUEST_TYPES.get(payload.type)
    if found is not None:
        return found
    if payload.type in CLUSTER_TYPES:
        raise NoHandler(f" invoke {payload.type} from sdk is forbidden", 502)
    raise NoHandler


def read_request(kind: RequestType, payload: Payload, rules: Rules) -> Request:
    """Raises `NotReadable` for a body that is not the JSON of its type, and `BadCall` for a value that `rules` refuse.

    Fields may be absent or null, and unknown fields are ignored. An empty namespace means `public` and an empty group
    `DEFAULT_GROUP`, as over HTTP; real servers take the empty text for a namespace and a group of its own.
    """
    if len(payload.body) > kind.max_body:
        raise BadCall("", Violation.BODY, f"a {kind.name} has at most {kind.max_body} bytes")
    try:
        body = read_exactly(payload.body)
    except Malformed as error:
        raise NotReadable from error
    return kind.read(_object(body), rules)


def write_answer(kind: RequestType, request: Request, result: Result) -> Payload:
    """The answer to a request that succeeded."""
    return Payload(kind.answer, dumps({"resultCode": 200, "errorCode": 0, **kind.write(request, result), **_SUCCESS}))


def write_error(kind: RequestType | None, error: ProxyError) -> Payload:
    """The answer to a request that failed; `kind` is None if its type is unknown."""
    return write_failure(ERROR_RESPONSE, error) if kind is None else write_failure(kind.answer, error, kind.always)


_SUCCESS = {"success": True}


# --- fields ----------------------------------------------------------------------------------------------------------


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise NotReadable
    return cast("dict[str, Any]", value)


def _text(fields: Mapping[str, Any], name: str) -> str:
    """A text, '' if there is none. Numbers and booleans become text, as in Jackson."""
    value = fields.get(name)
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return dumps(value).decode()
    raise NotReadable


def _number(fields: Mapping[str, Any], name: str, default: float) -> float:
    """A number, also as text, as in Jackson."""
    value = fields.get(name)
    if value is None or value == "":
        return default
    try:
        number = value if type(value) is int or type(value) is float else float(_text(fields, name))
    except ValueError as error:
        raise NotReadable from error
    if not isfinite(number):
        raise NotReadable
    return number


def _flag(fields: Mapping[str, Any], name: str, default: bool) -> bool:
    """A boolean, also as a whole number or as text, as in Jackson."""
    value = fields.get(name)
    if isinstance(value, bool):
        return value
    if value is None:
        return default
    if type(value) is int or value in ("true", "false"):
        return value not in (0, "false")
    raise NotReadable


def _key(fields: Mapping[str, Any], rules: Rules) -> ServiceKey:
    """The checked service. Without the parameter check `group@@name` is read as over HTTP; the check refuses it."""
    name, group, namespace = _text(fields, "serviceName"), _text(fields, "groupName"), _text(fields, "namespace")
    if rules is NACOS:
        key = ServiceKey(namespace or DEFAULT_NAMESPACE, group or DEFAULT_GROUP, name)
    else:
        key = ServiceKey.of(name, group, namespace)
    rules.service(key)
    return key


def _named(key: ServiceKey) -> None:
    if not key.name.strip(BLANK):
        raise BadCall("serviceName", Violation.MISSING, "Param 'serviceName' is illegal, serviceName is blank")


# --- requests --------------------------------------------------------------------------------------------------------


def _read_check(_fields: Mapping[str, Any], _rules: Rules) -> ServerCheck:
    return ServerCheck()


def _read_health(_fields: Mapping[str, Any], _rules: Rules) -> HealthCheck:
    return HealthCheck()


def _read_service(fields: Mapping[str, Any], rules: Rules, clusters: str) -> ReadService:
    key, shown = _key(fields, rules), _text(fields, clusters)
    if len(shown) > MAX_CLUSTERS:
        raise BadCall(clusters, Violation.OTHER, f"{clusters} has at most {MAX_CLUSTERS} characters")
    for cluster in dict.fromkeys(shown.split(",")):
        rules.cluster(cluster)
    return ReadService(key, shown, _flag(fields, "healthyOnly", False))


def _read_query(fields: Mapping[str, Any], rules: Rules) -> Query:
    return Query(_read_service(fields, rules, "cluster"))


def _read_subscribe(fields: Mapping[str, Any], rules: Rules) -> Subscribe:
    read = _read_service(fields, rules, "clusters")
    _named(read.service)
    return Subscribe(read, _flag(fields, "subscribe", False))


def _read_list(fields: Mapping[str, Any], rules: Rules) -> ListServices:
    """`serviceName` is only checked and `selector` ignored, as by real servers."""
    key = _key(fields, rules)
    page, size = int(_number(fields, "pageNo", 0)), int(_number(fields, "pageSize", 0))
    return ListServices(key.namespace, key.group, max(1, page), max(0, size))


def _read_instance(fields: Mapping[str, Any], rules: Rules, *, ephemeral: bool) -> Instance:
    """A checked instance, in the order of the server's parameter check. Raises `BadCall` and `NotReadable`."""
    cluster, ip, port = _text(fields, "clusterName"), _text(fields, "ip"), _number(fields, "port", 0)
    metadata = _read_metadata(fields.get("metadata"))
    weight = _number(fields, "weight", 1.0)
    healthy, enabled = _flag(fields, "healthy", True), _flag(fields, "enabled", True)
    rules.cluster(cluster)
    rules.ip(ip)
    rules.port(int(port))
    rules.metadata(metadata)
    return Instance(
        ip,
        int(port),
        cluster or DEFAULT_CLUSTER,
        float(weight),
        healthy,
        enabled,
        ephemeral,
        rules.kept(metadata),
    )


def _read_metadata(value: Any) -> Metadata:
    try:
        return read_metadata(value) if value is not None else EMPTY
    except Malformed as error:
        raise NotReadable from error


def _registrable(instance: Instance, rules: Rules) -> Instance:
    """Real servers accept a missing ip and any weight here; over HTTP, our way to the upstream, they refuse both."""
    rules.instance(instance)
    if not instance.ip.strip(BLANK):
        raise BadCall("ip", Violation.MISSING, "Param 'ip' is required.")
    check_weight(instance.weight)
    return instance


def _registrable_in_batch(instance: Instance, rules: Rules) -> Instance:
    """Real servers accept any cluster in a batch, so they have no words for this. The SDK must not send it again."""
    try:
        return _registrable(instance, rules)
    except BadCall as error:
        raise BadCall(error.parameter, Violation.OTHER, error.text) from None


def _unsupported(kind: str) -> BadCall:
    return BadCall("type", Violation.INSTANCE, f"Unsupported request type {kind}")


def _read_named_instance(
    fields: Mapping[str, Any], rules: Rules, *, ephemeral: bool
) -> tuple[str, ServiceKey, Instance]:
    """Type, service and instance. A registration is checked further, a deregistration is not."""
    key, kind, given = _key(fields, rules), _text(fields, "type"), fields.get("instance")
    instance = None if given is None else _read_instance(_object(given), rules, ephemeral=ephemeral)
    _named(key)
    if kind not in (REGISTER, DEREGISTER):
        raise _unsupported(kind)
    if instance is None:
        raise BadCall("instance", Violation.INSTANCE, "Instance can not be null.")
    return kind, key, _registrable(instance, rules) if kind == REGISTER else instance


def _read_publication(fields: Mapping[str, Any], rules: Rules) -> Publish | Withdraw:
    kind, key, instance = _read_named_instance(fields, rules, ephemeral=True)
    return Publish(key, (instance,), kind) if kind == REGISTER else Withdraw(key, kind, (instance,))


def _read_persistent(fields: Mapping[str, Any], rules: Rules) -> Register | Deregister:
    kind, key, i = _read_named_instance(fields, rules, ephemeral=False)
    return Register(key, i) if kind == REGISTER else Deregister(key, i.ip, i.port, i.cluster, ephemeral=False)


def _read_batch(fields: Mapping[str, Any], rules: Rules) -> Publish:
    key, kind, given = _key(fields, rules), _text(fields, "type"), fields.get("instances")
    if given is not None and not isinstance(given, list):
        raise NotReadable
    items = cast("list[Any]", given or [])
    if len(items) > MAX_BATCH:
        raise BadCall("instances", Violation.OTHER, f"a batch has at most {MAX_BATCH} instances")
    instances = tuple(_read_instance(_object(item), rules, ephemeral=True) for item in items)
    _named(key)
    if kind != REGISTER_BATCH:
        raise _unsupported(kind)
    return Publish(key, tuple(_registrable_in_batch(instance, rules) for instance in instances), kind)


# --- answers ---------------------------------------------------------------------------------------------------------


def service_info(view: ServiceView, clusters: str) -> dict[str, Any]:
    """A list as gRPC shows it: as over HTTP, but with the bare name. `clusters` is repeated as the SDK sent it.

    Nulls in metadata are dropped: to the Rust SDK, metadata is text, and it cannot read a list with a null. Large lists
    have JSON fragments, which only orjson can write.
    """
    hosts = view.selection.hosts
    if any(None in host.metadata.values() for host in hosts):
        shown = tuple(replace(host, metadata=without_nulls(host.metadata)) for host in hosts)
        view = ServiceView(view.snapshot, replace(view.selection, hosts=shown))
    return {**list_json(view, clusters), "name": view.snapshot.key.name}


def encode_info(view: ServiceView, clusters: str) -> orjson.Fragment:
    """`service_info` as JSON, to be written into many answers and pushes."""
    return orjson.Fragment(dumps(service_info(view, clusters)))


def _write_nothing(_request: Any, _result: Any) -> dict[str, Any]:
    return {}


def _write_check(_request: ServerCheck, connection_id: str) -> dict[str, Any]:
    return {"connectionId": connection_id, "supportAbilityNegotiation": True}


def _shown(read: ReadService, result: Info) -> Any:
    return result if isinstance(result, orjson.Fragment) else service_info(result, read.clusters)


def _write_query(request: Query, result: Info) -> dict[str, Any]:
    return {"serviceInfo": _shown(request.read, result)}


def _write_subscribe(request: Subscribe, result: Info) -> dict[str, Any]:
    return {"message": "success", "serviceInfo": _shown(request.read, result)}


def _write_list(_request: ListServices, page: ServicePage) -> dict[str, Any]:
    return {"count": page.count, "serviceNames": list(page.names)}


def _write_type(request: Publish | Withdraw, _result: None) -> dict[str, Any]:
    return {"type": request.type}


def _write_persistent(request: Register | Deregister, _result: None) -> dict[str, Any]:
    return {"type": REGISTER if isinstance(request, Register) else DEREGISTER}


_NO_SERVICES: Mapping[str, Any] = {"count": 0, "serviceNames": ()}

_ROWS = (
    RequestType("ServerCheckRequest", "ServerCheckResponse", None, _read_check, _write_check),
    RequestType("HealthCheckRequest", "HealthCheckResponse", None, _read_health, _write_nothing),
    RequestType("ServiceQueryRequest", "QueryServiceResponse", "read", _read_query, _write_query),
    RequestType("SubscribeServiceRequest", "SubscribeServiceResponse", "read", _read_subscribe, _write_subscribe),
    RequestType("ServiceListRequest", "ServiceListResponse", "read", _read_list, _write_list, _NO_SERVICES),
    RequestType("InstanceRequest", "InstanceResponse", "write", _read_publication, _write_type),
    RequestType(
        "BatchInstanceRequest", "BatchInstanceResponse", "write", _read_batch, _write_type, max_body=MAX_BATCH_BODY
    ),
    RequestType("PersistentInstanceRequest", "InstanceResponse", "write", _read_persistent, _write_persistent),
)
REQUEST_TYPES: Mapping[str, RequestType] = {row.name: row for row in _ROWS}

# Real servers answer these only to the nodes of their cluster.
CLUSTER_TYPES = frozenset(
    {
        "ConfigChangeClusterSyncRequest",
        "DistroDataRequest",
        "MemberReportRequest",
        "ServerLoaderInfoRequest",
        "ServerReloadRequest",
    }
)
