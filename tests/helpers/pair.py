"""Joins the client role of a dialect to its own server role, without a socket; and strategies for values to send."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlencode

from hypothesis import strategies as st

from nacos_proxy.model.calls import (
    Alive,
    BatchMetadata,
    Beat,
    Call,
    CreateService,
    DeleteService,
    Deregister,
    Fetch,
    GetInstance,
    GetService,
    ListDetails,
    ListServices,
    Metrics,
    Namespaces,
    Ready,
    Register,
    ServerState,
    ServiceNames,
    SetHealth,
    Subscribers,
    Switches,
    Update,
    UpdateService,
)
from nacos_proxy.model.errors import BadCall, Malformed, ProxyError, Refused
from nacos_proxy.model.limits import MAX_METADATA
from nacos_proxy.model.services import Instance, Selection, ServiceKey, Snapshot
from nacos_proxy.wire.http import FORM_TYPE, HttpReply, HttpRequest, Pairs
from nacos_proxy.wire.nacos.base import Dialect, Operation, ReadInstance, ReadService, ServiceView
from tests.helpers.recordings import Row

R = TypeVar("R")


class DialectPair:
    """Sends calls as bytes from one role to the other. `answer` returns the result, or the error, for a call.

    `seen`: the calls as the server role read them. `replies`: its answers.
    """

    def __init__(self, dialect: Dialect, answer: Callable[[Any], Any]) -> None:
        self.dialect = dialect
        self.answer = answer
        self.seen: list[Any] = []
        self.replies: list[HttpReply] = []

    def send(self, call: Call[R]) -> R:
        """Returns the result as the client role reads it. Raises what `read_reply` raises."""
        return self.dialect.read_reply(call, self.serve(self.dialect.write_request(call)))

    def serve(self, request: HttpRequest) -> HttpReply:
        headers = {"content-type": FORM_TYPE} if request.form else {}
        arrived = HttpRequest.parse(request.method, request.path, urlencode(request.query), request.body, headers)
        self.replies.append(self._answer(arrived))
        return self.replies[-1]

    def _answer(self, request: HttpRequest) -> HttpReply:
        operation = self.dialect.match(request.method, request.path)
        if operation is None:
            return self.dialect.unknown(request, 0)
        try:
            call = operation.read_request(request)
            self.seen.append(call)
            result = self.answer(call)
            if isinstance(result, ProxyError):
                raise result
            return operation.write_reply(call, result)
        except ProxyError as error:
            return self.dialect.write_error(request, error, 0)


def asked_by(call: Any) -> Call[Any]:
    """The client-side call for a call that a server role has read."""
    match call:
        case ReadService():
            return Fetch(call.service)
        case ReadInstance():
            return GetInstance(call.service, call.ip, call.port, call.cluster)
        case _:
            return call


def answer_again(dialect: Dialect, row: Row, read: Callable[[Any, HttpReply], Any] | None = None) -> HttpReply:
    """The dialect's own answer to a recorded request, if the registry returns what was recorded.

    The client role (or `read`) parses the recorded answer, and the server role writes the result again. The bytes are
    equal only if both understand it. Refusals lose the dialect that they came in.
    """
    operation = dialect.match(row.method, row.below)
    if operation is None:
        return dialect.unknown(row.request, row.now_ms)
    try:
        call = operation.read_request(row.request)
        result = read(call, row.reply) if read is not None else dialect.read_reply(asked_by(call), row.reply)
        return operation.write_reply(call, in_order(result, row.body) if isinstance(result, Snapshot) else result)
    except Refused as refused:
        foreign = Refused(refused.reason, refused.text, status=refused.status)
        return dialect.write_error(row.request, foreign, row.now_ms)
    except ProxyError as error:
        return dialect.write_error(row.request, error, row.now_ms)


def in_order(snapshot: Snapshot, body: Any) -> ServiceView:
    """A view of a whole snapshot with the hosts in the order of a recorded list."""
    shown = body.get("data", body)
    order = {(host["ip"], host["port"]): place for place, host in enumerate(shown["hosts"])}
    hosts = tuple(sorted(snapshot.instances, key=lambda i: order[(i.ip, i.port)]))
    return ServiceView(snapshot, Selection(hosts, shown.get("reachProtectionThreshold", False)))


# --- values that every dialect accepts -----------------------------------------------------------------------

# No blanks, no CJK, no '@', nothing that trimming removes; the rest of Unicode is legal (nacos-http.md 1.6).
_LEGAL = st.characters(exclude_categories=["C", "Z"], exclude_characters="@")
_WORDS = _LEGAL.filter(lambda c: not "\u4e00" <= c <= "\u9fa5" and not c.isspace())
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NAMES = st.text(_WORDS, min_size=1, max_size=40)
GROUPS = st.from_regex(r"[a-zA-Z0-9\-_:.]{1,40}", fullmatch=True)
NAMESPACES = st.from_regex(r"[a-zA-Z0-9_-]{1,40}", fullmatch=True)
CLUSTERS = st.from_regex(r"[0-9a-zA-Z-]{1,40}", fullmatch=True)
IPS = st.one_of(st.ip_addresses().map(str), NAMES)
PORTS = st.integers(0, 65535)
WEIGHTS = st.floats(0.0, 10_000.0)
KEYS = st.builds(ServiceKey, NAMESPACES, GROUPS, NAMES)
METADATA = st.dictionaries(TEXT, TEXT, max_size=4).filter(
    lambda m: sum(len(k) + len(v) for k, v in m.items()) <= MAX_METADATA
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
EXTRA = st.dictionaries(TEXT.map(lambda name: f"x-{name}"), _JSON, max_size=2)

REGISTERED = st.builds(Instance, IPS, PORTS, CLUSTERS, WEIGHTS, st.booleans(), st.booleans(), st.booleans(), METADATA)
LISTED = st.builds(
    Instance,
    IPS,
    PORTS,
    CLUSTERS,
    WEIGHTS,
    st.booleans(),
    st.just(True),
    st.booleans(),
    METADATA,
    st.sampled_from(["", "4711#DEFAULT#g@@s"]),
    EXTRA,
)
SNAPSHOTS = st.builds(
    lambda key, instances, extra, moment: Snapshot.of(key, instances, extra=extra, last_ref_time=moment),
    KEYS,
    st.lists(LISTED, max_size=5),
    EXTRA,
    st.integers(1, 2**53),
)

# --- values that must not break a dialect --------------------------------------------------------------------

_FIELDS = (
    "serviceName groupName namespaceId ip port clusterName cluster clusters weight enabled enable healthy healthyOnly "
    "ephemeral metadata beat instances consistencyType udpPort clientIP pageNo pageSize protectThreshold selector key "
    "heartBeat serviceNameParam withInstances onlyStatus valid checkPort"
).split()
_VALUES = ["", " ", "80", "-1", "true", "maybe", "NaN", "1e999", "g@@s", "@@", "a@@b@@c", "{oops", "[]", "{}", "[1]"]
_VALUES += ["null", "a=b", "10.0.0.1", '{"ip":"10.0.0.1","port":80}', '[{"ip":"x","port":[]}]', '{"a":"\\ud800"}']
ODD_PARAMETERS = st.dictionaries(st.sampled_from(_FIELDS), st.sampled_from(_VALUES) | TEXT, max_size=8).map(
    lambda values: tuple(values.items())
)

_NAMES = (
    "code message data hosts ip port weight metadata healthy name groupName serviceName clusters clusterMap count doms "
    "services pageItems totalCount updated subscribers accessToken lastRefTime cacheMillis instanceId clusterName"
).split()
_ODD_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["ok", "", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=6),
    max_leaves=12,
)
_ODD_DATA = st.builds(lambda data: {"code": 0, "data": data}, _ODD_JSON)
ODD_REPLIES = st.builds(
    HttpReply,
    st.sampled_from([200, 200, 200, 204, 302, 400, 403, 404, 410, 500, 501, 503]),
    st.sampled_from([None, "application/json", "text/html"]),
    st.binary(max_size=30) | (_ODD_JSON | _ODD_DATA).map(lambda value: json.dumps(value).encode()),
)

_HERE = ServiceKey("public", "DEFAULT_GROUP", "orders")
CALLS: list[Call[Any]] = [
    Fetch(_HERE),
    GetInstance(_HERE, "10.0.0.1", 80),
    Register(_HERE, Instance("10.0.0.1", 80)),
    Deregister(_HERE, "10.0.0.1", 80),
    Update(_HERE, "10.0.0.1", 80),
    Update(_HERE, "10.0.0.1", 80, partial=True),
    Beat(_HERE, "10.0.0.1", 80),
    Beat(_HERE, "10.0.0.1", 80, full=Instance("10.0.0.1", 80)),
    BatchMetadata(_HERE, (), {}),
    SetHealth(_HERE, "10.0.0.1", 80, "DEFAULT", True),
    CreateService(_HERE),
    UpdateService(_HERE),
    DeleteService(_HERE),
    GetService(_HERE),
    ListServices("public", "DEFAULT_GROUP"),
    ServiceNames(),
    ListDetails("public"),
    Subscribers(_HERE),
    Metrics(),
    Switches(),
    ServerState(),
    Namespaces(),
    Alive(),
    Ready(),
]


def survives_request(dialect: Dialect, operation: Operation[Any, Any], parameters: Pairs, in_form: bool) -> None:
    """Any request is a call, or `BadCall`, which has an answer."""
    path = operation.path.replace("{key}", "g@@s")
    method = "GET" if operation.method == "*" else operation.method
    request = HttpRequest(method, path, () if in_form else parameters, parameters if in_form else ())
    try:
        call = operation.read_request(request)
    except BadCall as error:
        assert 400 <= dialect.write_error(request, error, 0).status <= 599
    else:
        assert isinstance(call, Call)


def survives_reply(dialect: Dialect, call: Call[Any], reply: HttpReply) -> None:
    """Any reply is a result, `Refused` or `Malformed`."""
    try:
        dialect.read_reply(call, reply)
    except Malformed:
        pass
    except Refused as refused:
        assert refused.text
