"""What `/docs` says of each route of our own API: text, parameters, examples, errors. Not for: behaviour."""

from __future__ import annotations

from typing import Any

from nacos_proxy.frontends.rest import shapes
from nacos_proxy.frontends.rest.routes import Answer, Doc
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
from nacos_proxy.model.services import (
    Change,
    Instance,
    ServiceKey,
    Snapshot,
)
from nacos_proxy.wire.http import TEXT_TYPE
from nacos_proxy.wire.nacos.hosts import host_json
from nacos_proxy.wire.rest.bodies import (
    UPDATE_FIELDS,
    change_json,
    instances_json,
    snapshot_json,
)
from nacos_proxy.wire.rest.query import View, unknown

NOT_REGISTERED = "the registry does not know this instance: register it (POST …/instances), or send a beat with a body"

_KEY = ServiceKey("public", "DEFAULT_GROUP", "orders")
_HOST = Instance("10.0.0.5", 8080, metadata={"zone": "a"})
_OTHER = Instance("10.0.0.6", 8080, weight=2.0)
_BEFORE = Snapshot.of(_KEY, [_HOST], last_ref_time=1_760_000_000_000)
_AFTER = Snapshot.of(_KEY, [_HOST, _OTHER], last_ref_time=1_760_000_005_000)
_INSTANCE_JSON = host_json(_HOST, _KEY)
_SNAPSHOT_JSON = snapshot_json(_AFTER, View())
_CHANGE_JSON = change_json(Change(_BEFORE, _AFTER, "push"), View())

_BAD_NAME = BadCall(
    "service", Violation.ILLEGAL, "Param 'service' is illegal, illegal characters should not appear in it."
)
_BAD_FLAG = BadCall("healthy_only", Violation.ILLEGAL, "Param 'healthy_only' is illegal, it must be true or false.")
_BAD_PORT = BadCall("port", Violation.ILLEGAL, "Param 'port' is illegal, the value should be between 0 and 65535.")
_UNKNOWN_FIELD = unknown("weigth", UPDATE_FIELDS, Violation.BODY)
_NOT_JSON = BadCall(
    "", Violation.BODY, "the body must be JSON and say so with 'Content-Type: application/json'", status=415
)
_TOO_LARGE = BadCall("", Violation.BODY, "the body is longer than 1048576 bytes", status=413)
_TOO_MANY = BadCall("", Violation.OTHER, "this client has 1000 streams open already", status=429)
_NO_TOKEN = Denied("no API token: send it as 'Authorization: Bearer TOKEN'", status=401)
_NO_RIGHT = Denied("the API token has the right 'read', this needs 'write'")
_DENIED = Refused(Reason.NO_RIGHT, "authorization failed!", status=403)
_NOTHING = NothingKnown("nothing is known of this service and the upstream cannot be asked: connection refused")
_NOT_FOUND = Refused(Reason.INSTANCE_NOT_FOUND, "no matched ip found!", status=404)
_WRONG_KIND = Refused(Reason.WRONG_KIND, "Current service is persistent service, can't register ephemeral instance.")
_UNREACHABLE = Unreachable("no server could be reached: connection refused", arrived=False)
_TOO_SLOW = TooSlow("no answer within 5 s")

READ_ERRORS: tuple[ProxyError, ...] = (_BAD_NAME, _BAD_FLAG, _NO_TOKEN, _DENIED, _NOTHING)
WRITE_ERRORS: tuple[ProxyError, ...] = (_BAD_NAME, _NO_TOKEN, _NO_RIGHT, _DENIED, _UNREACHABLE, _TOO_SLOW)
_BODY_ERRORS: tuple[ProxyError, ...] = (_UNKNOWN_FIELD, _NOT_JSON, _TOO_LARGE)

_WHERE = ("service", "namespace", "group")
_VIEW = ("clusters", "healthy_only")
_FRESH = """

Answered from memory where it is fresh. `Age` says how many seconds ago the upstream confirmed it, `Cache-Status` how it
was answered. `Cache-Control: no-cache` or `max-age=SECONDS` on the request asks for a younger one; `If-None-Match` with
the `ETag` gets a 304 while nothing changed."""
_HOW = """

The header `Nacos-Proxy-Answer` says who answered: `upstream`, `healed` (the upstream had lost the instance and has it
again) or `local` (the upstream is away)."""
_UNCHANGED = Answer(description="Nothing changed since the `ETag` in `If-None-Match`")


def _example(summary: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"summary": summary, "value": value}


SERVICES = Doc(
    "The names of a group's services",
    "Asked of the upstream each time; while that is away, the names that this host knows, marked `stale`.",
    ("namespace", "group", "page", "size"),
    {
        200: Answer(
            {
                "namespaceId": "public",
                "groupName": "DEFAULT_GROUP",
                "count": 2,
                "page": 1,
                "size": 100,
                "services": ["orders", "stock"],
                "stale": False,
            },
            shapes.ServicePage,
        ),
        304: _UNCHANGED,
    },
    (
        BadCall("page", Violation.ILLEGAL, "Param 'page' is illegal, it must be a number from 1 to 999999999."),
        *(_NO_TOKEN, _DENIED, _NOTHING),
    ),
)
SNAPSHOT = Doc(
    "A service: its instances as a reader sees them",
    "Enabled instances of all clusters, filtered as Nacos does it. `revision` names this state; `stale` says that the "
    "upstream could not confirm it lately. An unknown service has no hosts." + _FRESH,
    (*_WHERE, *_VIEW),
    {200: Answer(_SNAPSHOT_JSON, shapes.Snapshot), 304: _UNCHANGED},
    READ_ERRORS,
)
INSTANCES = Doc(
    "All that is known of a service's instances",
    "With their true health, also where protection masks it for readers, and disabled ones where the upstream shows "
    "them." + _FRESH,
    (*_WHERE, *_VIEW),
    {200: Answer(instances_json(_AFTER, View()), shapes.Instances), 304: _UNCHANGED},
    READ_ERRORS,
)
INSTANCE = Doc(
    "One instance",
    "One that the list does not show, such as a disabled one, is asked of the upstream." + _FRESH,
    (*_WHERE, "address", "cluster"),
    {200: Answer(_INSTANCE_JSON, shapes.Instance), 304: _UNCHANGED},
    (*READ_ERRORS, _BAD_PORT, _NOT_FOUND),
)
REGISTER = Doc(
    "Register an instance",
    "An instance that is there already is replaced. The next read through this proxy shows it, subscribers hear of it "
    "at once. An ephemeral instance lives as long as its beats come." + _HOW,
    _WHERE,
    {201: Answer(_INSTANCE_JSON, shapes.Instance, "Registered; the instance as it will be shown")},
    (*WRITE_ERRORS, _BAD_PORT, *_BODY_ERRORS, _WRONG_KIND),
    {
        "least": _example("Only what is needed", {"ip": "10.0.0.5", "port": 8080}),
        "all": _example(
            "All fields, with their defaults",
            {
                "ip": "10.0.0.5",
                "port": 8080,
                "cluster": "DEFAULT",
                "weight": 1.0,
                "metadata": {"zone": "a"},
                "ephemeral": True,
                "enabled": True,
                "healthy": True,
            },
        ),
        "managed": _example(
            "The proxy checks the service and beats for it",
            {
                "ip": "127.0.0.1",
                "port": 8080,
                "managed": {"interval": "5s", "check": {"http": "http://127.0.0.1:8080/health"}},
            },
        ),
    },
)
UPDATE = Doc(
    "Change weight, enabled or metadata",
    "Only what the body names changes; metadata is merged key by key. A key cannot be taken away (Nacos keeps what was "
    "registered)." + _HOW,
    (*_WHERE, "address", "cluster"),
    {200: Answer(_INSTANCE_JSON, shapes.Instance, "Changed; the instance as it will be shown")},
    (*WRITE_ERRORS, *_BODY_ERRORS, _NOT_FOUND),
    {"drain": _example("Take it out of the choice", {"weight": 0}), "off": _example("Disable it", {"enabled": False})},
)
DEREGISTER = Doc(
    "Deregister an instance",
    "A success also where nobody knows the instance. A persistent one needs `ephemeral=false`." + _HOW,
    (*_WHERE, "address", "cluster", "ephemeral"),
    {204: Answer(description="Deregistered")},
    (*WRITE_ERRORS, _BAD_PORT),
)
BEAT = Doc(
    "Send a heartbeat",
    "Without a body a light beat: 404 where the registry does not know the instance. With a body a full beat, which "
    "registers it then. `clientBeatInterval` (ms) says when the next one is due." + _HOW,
    (*_WHERE, "address", "cluster", "ephemeral"),
    {200: Answer({"clientBeatInterval": 5000, "code": 10200, "lightBeatEnabled": True}, shapes.BeatAnswer, "Heard")},
    (*WRITE_ERRORS, *_BODY_ERRORS, Refused(Reason.INSTANCE_NOT_FOUND, NOT_REGISTERED, status=404)),
    {"full": _example("A full beat", {"weight": 1.0, "metadata": {"zone": "a"}, "ephemeral": True})},
    body_required=False,
)
PICK = Doc(
    "One instance for whoever sends a request now",
    "`weighted` honours weights, `random` does not, `round_robin` takes turns (per proxy process), `hash` keeps a "
    "`key` on its instance while others come and go. 503 where there is nothing to choose from, with the reason.",
    (*_WHERE, "strategy", "key", *_VIEW, "format"),
    {200: Answer(_INSTANCE_JSON, shapes.Instance, "As JSON, or as text", also={TEXT_TYPE: "10.0.0.5:8080"})},
    (*READ_ERRORS, BadCall("key", Violation.MISSING, "Param 'key' is required.")),
    overrides={"healthy_only": {"schema": {"type": "boolean", "default": True}}},
)
WATCH = Doc(
    "Wait for a change of a service",
    "Answers at once where the service's revision is not `index`, else at its first change that the filters show, or "
    "unchanged when `wait` is over. The header `Nacos-Proxy-Index` is the next `index`.",
    (*_WHERE, "index", "wait", *_VIEW),
    {200: Answer(_SNAPSHOT_JSON, shapes.Snapshot)},
    (
        *READ_ERRORS,
        BadCall("wait", Violation.ILLEGAL, "Param 'wait' is illegal, it must be a time like 30s."),
        _TOO_MANY,
    ),
)
_EVENTS_EXAMPLE = (
    'retry: 2000\n\nid: 1f0c9ab2-17\nevent: snapshot\ndata: {"name":"DEFAULT_GROUP@@orders","hosts":[],…}\n\n'
    'id: 1f0c9ab2-18\nevent: change\ndata: {…,"added":[…],"modified":[],"removed":[],"source":"push"}\n\n'
    'id: 1f0c9ab2-19\nevent: upstream\ndata: {"state":"down","reason":"connection refused"}\n\n:\n\n'
)
EVENTS = Doc(
    "Server-Sent Events of one or many services",
    "First a `snapshot` of each service, then a `change` for each change (the new snapshot with `added`, `modified`, "
    "`removed` and `source`), and `upstream` when the upstream is lost or back. A comment every 15 s keeps the stream "
    "alive. `Last-Event-ID` resumes without a gap; where that is no longer possible, new snapshots say "
    '`"reset": true`. A reader that is slow may miss a state that came and went, never the last one. `service` may be '
    "given many times; `service=*` is every service of the group.",
    ("service", "namespace", "group", *_VIEW, "lastEventId"),
    {200: Answer(_EVENTS_EXAMPLE, None, "The stream", "text/event-stream")},
    (*READ_ERRORS, _TOO_MANY),
    overrides={"service": {"required": True, "schema": {"type": "array", "items": {"type": "string"}}}},
)
SD_PROMETHEUS = Doc(
    "Targets for Prometheus (http_sd)",
    "One target group per instance, its data as `__meta_nacos_*` labels. `service` may be given many times; "
    "`service=*` is every service of the group.",
    ("service", "namespace", "group", *_VIEW),
    {
        200: Answer(
            [{"targets": ["10.0.0.5:8080"], "labels": {"__meta_nacos_service": "orders"}}], list[shapes.TargetGroup]
        ),
        304: _UNCHANGED,
    },
    READ_ERRORS,
    overrides={"service": {"required": True, "schema": {"type": "array", "items": {"type": "string"}}}},
)
SD_LIST = Doc(
    "Instances as plain lines, for load balancers",
    "`text` is `ip:port` on each line, `nginx` and `haproxy` are `server` lines with weights. Weight 0 is left out, so "
    "is what is no IP address, host name or port from 1 to 65535; each address stands once, however it was spelt. "
    "nginx resolves host names when it reads the file, and refuses all of it for one that does not resolve: register "
    "IP addresses where it reads. `nginx` and `haproxy` cannot do with no server at all: 503.",
    ("service", "namespace", "group", *_VIEW),
    {200: Answer("10.0.0.5:8080\n10.0.0.6:8080\n", None, "The lines", TEXT_TYPE), 304: _UNCHANGED},
    READ_ERRORS,
    overrides={
        "service": {"required": True},
        "healthy_only": {"schema": {"type": "boolean", "default": True}},
    },
)
HEALTH = Doc("Whether the process is alive", "Always 200.", (), {200: Answer({"status": "ok"})}, lenient=True)
READY = Doc(
    "Whether reads can be answered",
    "`degraded` with reasons where something is missing but reads are answered; 503 where they are not.",
    (),
    {
        200: Answer({"status": "degraded", "reasons": ["upstream: connection refused"]}),
        503: Answer({"status": "unready", "reasons": ["upstream: connection refused", "nothing is known"]}),
    },
    lenient=True,
)
_STATUS_EXAMPLE = {
    "version": "1.0.0",
    "uptimeSeconds": 86400.5,
    "upstream": {
        "state": "up",
        "forSeconds": 86400.5,
        "reason": "",
        "kind": "nacos",
        "login": {"enabled": False, "logins": 0, "error": ""},
        "servers": [
            {
                "url": "http://10.0.0.1:8848/nacos",
                "state": "up",
                "error": "",
                "latencyMs": 1.9,
                "version": "2.5.1",
                "dialects": ["v1", "v2"],
                "outcomes": {"ok": 4711},
            }
        ],
    },
    "push": {"state": "ok"},
    "disk": {"state": "ok"},
    "subscribers": {"streams": 1, "byClient": {"127.0.0.1": 1}},
    "registrations": 2,
    "lastEventId": "1f0c9ab2-17",
    "servicesTotal": 1,
    "offset": 0,
    "limit": 1000,
    "truncated": False,
    "services": [
        {
            "service": _KEY.grouped,
            "namespaceId": _KEY.namespace,
            "state": "fresh",
            "ageSeconds": 0.4,
            "instances": 2,
            "healthy": 2,
            "watched": True,
            "subscribers": 1,
            "registeredHere": 2,
            "pendingWrites": 0,
            "fromDisk": False,
            "error": None,
            "revision": _AFTER.revision,
        }
    ],
}
STATUS = Doc(
    "The proxy's state",
    "Upstream, push, services with their age, subscribers, counts, disk. Of the services, in the order of their names, "
    "`limit` (1000) are shown from `offset` (0) on; `truncated` says that there are others, `servicesTotal` how many.",
    ("limit", "offset"),
    {200: Answer(_STATUS_EXAMPLE)},
)
METRICS = Doc(
    "Prometheus metrics",
    "`nacos_proxy_*` and the process's own.",
    (),
    {200: Answer("…", None, "", TEXT_TYPE)},
    lenient=True,
)
