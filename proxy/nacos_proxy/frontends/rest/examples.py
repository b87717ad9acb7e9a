"""Examples in the OpenAPI document, built by the code that builds the answers."""

from __future__ import annotations

from typing import Any

from nacos_proxy.frontends import auth
from nacos_proxy.frontends.rest.routing import Responses, documented
from nacos_proxy.model.errors import (
    BadCall,
    Denied,
    NothingKnown,
    ProxyError,
    Reason,
    Refused,
    TooSlow,
    Unreachable,
    Violation,
)
from nacos_proxy.model.services import Instance, ServiceKey, Snapshot
from nacos_proxy.model.views import View
from nacos_proxy.wire.nacos.hosts import host_json
from nacos_proxy.wire.rest.bodies import UpdateBody, snapshot_json
from nacos_proxy.wire.rest.query import ServiceQuery, unknown

KEY = ServiceKey("public", "DEFAULT_GROUP", "orders")
_HOST = Instance("10.0.0.5", 8080, metadata={"zone": "a"})
AFTER = Snapshot.of(KEY, [_HOST, Instance("10.0.0.6", 8080, weight=2.0)], last_ref_time=1_760_000_005_000)
INSTANCE_JSON = host_json(_HOST, KEY)
PICKED_JSON = {"name": KEY.grouped, "namespaceId": KEY.namespace, "count": 1, "instances": [INSTANCE_JSON]}
DRAIN_JSON = {
    "name": KEY.grouped,
    "namespaceId": KEY.namespace,
    "address": _HOST.address,
    "state": "drained",
    "secondsLeft": 0.0,
    "error": "",
}
MAINTAINED_JSON = {**INSTANCE_JSON, "enabled": False, "maintenance": {"reason": "disk swap", "since": 1_760_000_000.0}}
SNAPSHOT_JSON = snapshot_json(AFTER, View())

BAD_NAME = BadCall(
    "service", Violation.ILLEGAL, "Param 'service' is illegal, illegal characters should not appear in the param."
)
BAD_FLAG = BadCall("healthy_only", Violation.ILLEGAL, "Param 'healthy_only' is illegal, it must be true or false.")
BAD_PORT = BadCall("port", Violation.ILLEGAL, "Param 'port' is illegal, the value should be between 0 and 65535.")
NO_PARAMETER = unknown("grup", [*ServiceQuery.model_fields])
NO_TOKEN = Denied(auth.NO_TOKEN, status=401)
NO_RIGHT = Denied(auth.NO_RIGHT.format("write", "read"))
DENIED = Refused(Reason.NO_RIGHT, "authorization failed!", status=403)
NOTHING = NothingKnown("nothing is known of this service and the upstream cannot be asked: connection refused")
NOT_FOUND = Refused(Reason.INSTANCE_NOT_FOUND, "no matched ip found!", status=404)
WRONG_KIND = Refused(Reason.WRONG_KIND, "Current service is persistent service, can't register ephemeral instance.")
TOO_MANY = BadCall("", Violation.OTHER, "this client may have at most 20000 open streams", status=429)

ANY_ERRORS = (NO_PARAMETER, NO_TOKEN, DENIED)
READ_ERRORS = (BAD_NAME, BAD_FLAG, *ANY_ERRORS, NOTHING)
WRITE_ERRORS = (
    *(BAD_NAME, NO_PARAMETER, NO_TOKEN, NO_RIGHT, DENIED),
    Unreachable("no server could be reached: connection refused", arrived=False),
    TooSlow("no answer within 5 s"),
)
BODY_ERRORS = (
    unknown("weigth", [*UpdateBody.model_fields], Violation.BODY),
    BadCall(
        "",
        Violation.BODY,
        "the body must be JSON and say so with 'Content-Type: application/json', not 'text/plain'",
        status=415,
    ),
    BadCall("", Violation.BODY, "the body is longer than 1048576 bytes", status=413),
)

UNCHANGED: Responses = {304: {"description": "Nothing changed since the `ETag` in `If-None-Match`"}}


def of_a_read(example: Any, model: Any, *more: ProxyError) -> Responses:
    """The `responses` of an operation that reads services."""
    return {**documented(example, model, *READ_ERRORS, *more), **UNCHANGED}


FRESHNESS = """

A fresh answer comes from memory. `Age` says how many seconds ago the upstream confirmed it, `Cache-Status` whether it
came from the cache. `Cache-Control: no-cache` or `max-age=SECONDS` on the request asks for a younger answer;
`If-None-Match` with the `ETag` gets a 304 while nothing has changed."""
WHO_ANSWERED = """

The header `Nacos-Proxy-Answer` says who answered: `upstream`, `healed` (the upstream had lost the instance, and the
proxy registered it again), `local` (the upstream is away) or `drained` (the instance is being drained)."""
