"""What stands on the stream of a connection (nacos-grpc.md 3, 6), in the server role.

An SDK opens the stream with its setup. From then on the server asks there, and the SDK acknowledges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import orjson

from nacos_proxy.model.errors import Malformed
from nacos_proxy.model.services import DEFAULT_NAMESPACE
from nacos_proxy.wire.nacos.base import ServiceView
from nacos_proxy.wire.nacos.grpc.payload import Payload
from nacos_proxy.wire.nacos.grpc.server import service_info
from nacos_proxy.wire.nacos.shapes import dumps, read_exactly

MAX_BODY = 64 << 10  # bytes
# What is kept of a setup: an SDK sends about five labels and five abilities.
MAX_TEXT = 256  # characters
MAX_ENTRIES = 32

NAMING = "naming"


@dataclass(frozen=True, slots=True)
class ConnectionSetup:
    """What an SDK says of itself. `labels` has its `module`, `AppName` and `source`.

    `abilities` is None if the SDK sent no `abilityTable`: then it expects no acknowledgement. Go's `clientAbilities`
    and Rust's `abilities` do not count.
    """

    client_version: str
    namespace: str
    labels: Mapping[str, str]
    abilities: Mapping[str, bool] | None

    @property
    def module(self) -> str:
        """`naming`, `config` and the like; '' if the SDK does not say."""
        return self.labels.get("module", "")

    @property
    def app(self) -> str:
        return self.labels.get("AppName", "")


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """An SDK's response to a request of ours. `kind` is its class; `request_id` is '' if the SDK sent none."""

    kind: str
    request_id: str


def read_stream(payload: Payload) -> ConnectionSetup | Acknowledgement | None:
    """None for anything else and for what cannot be read: real servers ignore both."""
    setup = payload.type == "ConnectionSetupRequest"
    if not (setup or payload.type.endswith("Response")) or len(payload.body) > MAX_BODY:
        return None
    try:
        body = read_exactly(payload.body)
    except Malformed:
        return None
    if not isinstance(body, dict):
        return None
    fields = cast("dict[str, Any]", body)
    return _read_setup(fields) if setup else Acknowledgement(payload.type[:MAX_TEXT], _text(fields.get("requestId")))


def _read_setup(fields: Mapping[str, Any]) -> ConnectionSetup:
    table = fields.get("abilityTable")
    return ConnectionSetup(
        _text(fields.get("clientVersion")),
        _text(fields.get("tenant")) or DEFAULT_NAMESPACE,
        {name: _text(value) for name, value in _entries(fields.get("labels")) if value is not None},
        None if table is None else {name: value is True for name, value in _entries(table)},
    )


def _entries(value: Any) -> list[tuple[str, Any]]:
    """The first entries of an object; none if it is not one."""
    if not isinstance(value, dict):
        return []
    given = cast("dict[str, Any]", value)
    return [(name[:MAX_TEXT], item) for name, item in list(given.items())[:MAX_ENTRIES]]


def _text(value: Any) -> str:
    return value[:MAX_TEXT] if isinstance(value, str) else str(value) if type(value) is int else ""


def write_setup_ack(abilities: Mapping[str, bool]) -> Payload:
    """Goes out if and only if the setup has `abilities`, even if they are empty."""
    return _request("SetupAckRequest", {"abilityTable": dict(abilities), "module": "internal"})


def write_notify(request_id: str, view: ServiceView, clusters: str) -> Payload:
    """A push of the whole list. `clusters` is that of the subscription."""
    return _notify(request_id, service_info(view, clusters))


def write_prepared_notify(request_id: str, info: orjson.Fragment) -> Payload:
    """As `write_notify`, from the JSON by `encode_info`: a list that goes to many SDKs is encoded once."""
    return _notify(request_id, info)


def _notify(request_id: str, info: Any) -> Payload:
    fields = {"requestId": request_id, "serviceInfo": info, "module": NAMING}
    return _request("NotifySubscriberRequest", fields)


def write_detection(request_id: str) -> Payload:
    """Asks a silent SDK whether it is still there."""
    return _request("ClientDetectionRequest", {"requestId": request_id, "module": "internal"})


def write_reset(request_id: str, ip: str = "", port: int = 0) -> Payload:
    """Asks an SDK to connect anew, to a given server if there is one. Python ignores it (nacos-grpc.md 9)."""
    address = {"serverIp": ip, "serverPort": str(port)} if ip else {}
    return _request("ConnectResetRequest", {"requestId": request_id, **address, "module": "internal"})


def _request(kind: str, fields: dict[str, Any]) -> Payload:
    return Payload(kind, dumps({"headers": {}, **fields}))
