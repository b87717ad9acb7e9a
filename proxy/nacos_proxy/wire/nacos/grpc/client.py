"""What this proxy asks a server, and what the server pushes (nacos-grpc.md 3 to 6): the client role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from nacos_proxy.model.errors import Malformed, Misplaced
from nacos_proxy.model.services import EMPTY, ServiceKey
from nacos_proxy.wire.nacos.grpc.payload import Payload
from nacos_proxy.wire.nacos.grpc.refusals import read_failure
from nacos_proxy.wire.nacos.hosts import Listing, read_listing
from nacos_proxy.wire.nacos.shapes import as_object, dumps, read_json

Headers = Mapping[str, str]  # of a payload: `accessToken`, `app`


# --- requests and their answers ---------------------------------------------------------------------------------------


def write_server_check() -> Payload:
    return _write("ServerCheckRequest", {"module": "internal"})


@dataclass(frozen=True, slots=True)
class ServerChecked:
    """`negotiates`: the server answers a setup that has abilities with a `SetupAck`. r-nacos does not."""

    connection_id: str
    negotiates: bool


def read_server_check(payload: Payload) -> ServerChecked:
    """Raises `Malformed` and `Refused`."""
    answer = _read_answer(payload, "ServerCheckResponse")
    return ServerChecked(_text(answer.get("connectionId")), answer.get("supportAbilityNegotiation") is True)


def write_setup(
    client_version: str, namespace: str, labels: Mapping[str, str], abilities: Mapping[str, bool] | None
) -> Payload:
    """The first message on the stream. With `abilities`, even empty ones, the server answers with a `SetupAck`."""
    table = {} if abilities is None else {"abilityTable": dict(abilities)}
    fields = {"clientVersion": client_version, "tenant": namespace, "labels": dict(labels), **table}
    return _write("ConnectionSetupRequest", {**fields, "module": "internal"})


def write_health_check() -> Payload:
    return _write("HealthCheckRequest", {"module": "internal"})


def read_health_check(payload: Payload) -> None:
    """Raises `Malformed`, `Refused`, and `NotRegistered` if the server knows no session of this connection."""
    _read_answer(payload, "HealthCheckResponse")


def write_subscribe(service: ServiceKey, subscribe: bool, headers: Headers = EMPTY) -> Payload:
    """Subscribes to all clusters of a service, or ends the subscription."""
    fields = {**_naming(service), "subscribe": subscribe, "clusters": ""}
    return _write("SubscribeServiceRequest", fields, headers)


def write_query(
    service: ServiceKey, clusters: str = "", healthy_only: bool = False, headers: Headers = EMPTY
) -> Payload:
    fields = {**_naming(service), "cluster": clusters, "healthyOnly": healthy_only, "udpPort": 0}
    return _write("ServiceQueryRequest", fields, headers)


def _naming(service: ServiceKey) -> dict[str, Any]:
    names = {"namespace": service.namespace, "serviceName": service.name, "groupName": service.group}
    return {**names, "module": "naming"}


def _write(kind: str, fields: dict[str, Any], headers: Headers = EMPTY) -> Payload:
    return Payload(kind, dumps({"headers": {}, **fields}), headers)


def read_info(key: ServiceKey, payload: Payload) -> Listing:
    """The list in the answer to a query or a subscription. Raises `Malformed`, `Refused` and `NotRegistered`."""
    answer = _read_answer(payload, "QueryServiceResponse", "SubscribeServiceResponse")
    return _read_list(key, as_object(answer.get("serviceInfo"), "serviceInfo"))


def _read_answer(payload: Payload, *kinds: str) -> dict[str, Any]:
    answer = as_object(read_json(payload.body), payload.type)
    if (error := read_failure(answer)) is not None:
        raise error
    if payload.type not in kinds:
        raise Malformed(f"expected {' or '.join(kinds)}, got {payload.type[:200]!r}")
    return answer


def _read_list(key: ServiceKey, info: Mapping[str, Any]) -> Listing:
    """Raises `Malformed`, and `Misplaced` for another service."""
    group = info.get("groupName")
    if isinstance(group, str) and group and group != key.group:
        raise Misplaced(f"asked for the group {key.group!r}, but the answer is about {group[:200]!r}")
    return read_listing(key, info)


def _text(value: Any) -> str:
    """A text or a whole number as text; '' for anything else."""
    return value if isinstance(value, str) else str(value) if type(value) is int else ""


# --- what the server asks on the stream -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Notify:
    """A pushed list; `read_notified` reads it. `namespace` is None if the push does not name it: only r-nacos does."""

    request_id: str
    group: str
    name: str
    namespace: str | None
    info: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Detection:
    """The server asks whether we are still there, because we were silent for 20 s."""

    request_id: str


@dataclass(frozen=True, slots=True)
class ResetRequest:
    """The server wants us to connect anew; to `ip` and `port` (of gRPC) unless `ip` is ''."""

    request_id: str
    ip: str
    port: int


@dataclass(frozen=True, slots=True)
class SetupAck:
    """The server's abilities, in answer to a setup with abilities."""

    request_id: str
    abilities: Mapping[str, bool]


def read_push(payload: Payload) -> Notify | Detection | ResetRequest | SetupAck | None:
    """None for a type that we do not know. Raises `Malformed`."""
    read = _PUSHES.get(payload.type)
    return read(as_object(read_json(payload.body), payload.type)) if read is not None else None


def _read_notify(fields: Mapping[str, Any]) -> Notify:
    info = as_object(fields.get("serviceInfo"), "serviceInfo")
    name, group = info.get("name"), info.get("groupName")
    if not isinstance(name, str) or not isinstance(group, str):
        raise Malformed("a push without the names of its service")
    bare = name.removeprefix(f"{group}@@")
    namespace = fields.get("namespace")
    return Notify(_text(fields.get("requestId")), group, bare, namespace if isinstance(namespace, str) else None, info)


def _read_detection(fields: Mapping[str, Any]) -> Detection:
    return Detection(_text(fields.get("requestId")))


def _read_reset(fields: Mapping[str, Any]) -> ResetRequest:
    port = _text(fields.get("serverPort"))
    number = int(port) if port.isascii() and port.isdecimal() and len(port) <= 5 else 0
    return ResetRequest(_text(fields.get("requestId")), _text(fields.get("serverIp")) if number else "", number)


def _read_setup_ack(fields: Mapping[str, Any]) -> SetupAck:
    given = fields.get("abilityTable")
    table = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    return SetupAck(_text(fields.get("requestId")), {name: value is True for name, value in table.items()})


_PUSHES = {
    "NotifySubscriberRequest": _read_notify,
    "ClientDetectionRequest": _read_detection,
    "ConnectResetRequest": _read_reset,
    "SetupAckRequest": _read_setup_ack,
}


def read_notified(key: ServiceKey, notify: Notify) -> Listing:
    """Raises `Malformed`, and `Misplaced` if the push is about another service than `key`."""
    return _read_list(key, notify.info)


def write_ack(kind: str, request_id: str) -> Payload:
    """`kind` is the class of the response, for example `NotifySubscriberResponse`."""
    return Payload(kind, dumps({"resultCode": 200, "errorCode": 0, "requestId": request_id, "success": True}))
