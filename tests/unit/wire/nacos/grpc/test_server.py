"""The server role: the recorded requests of SDKs, and the answers of real servers to them."""

from __future__ import annotations

import json
import random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.calls import Deregister, ListServices, Register, ServicePage
from nacos_proxy.model.errors import BadCall, ProxyError, Reason, Refused, Violation
from nacos_proxy.model.limits import LENIENT, NACOS, Rules
from nacos_proxy.model.services import Instance, Selection, ServiceKey
from nacos_proxy.wire.nacos.base import ReadService, ServiceView
from nacos_proxy.wire.nacos.grpc import client
from nacos_proxy.wire.nacos.grpc.payload import Payload
from nacos_proxy.wire.nacos.grpc.refusals import NoHandler, NotReadable, NotRegistered
from nacos_proxy.wire.nacos.grpc.server import (
    CLUSTER_TYPES,
    DEREGISTER,
    MAX_BATCH,
    MAX_CLUSTERS,
    REGISTER,
    REGISTER_BATCH,
    REQUEST_TYPES,
    HealthCheck,
    Publish,
    Query,
    ServerCheck,
    Subscribe,
    Withdraw,
    encode_info,
    find_type,
    read_request,
    service_info,
    write_answer,
    write_error,
)
from nacos_proxy.wire.nacos.hosts import LARGE
from tests.helpers.build import KEY, instance, snapshot
from tests.helpers.grpc_recordings import FILES, Exchange, exchanges

SDKS = {"java25": 3, "java3": 3, "go2": 4, "python3": 1, "rust": 2}  # each registers addresses of its own network
NAMES = {"namespace": KEY.namespace, "groupName": KEY.group, "serviceName": KEY.name}
GIVEN: dict[str, Any] = {"ip": "10.0.0.1", "port": 80}


def read(kind: str, body: Any, rules: Rules = NACOS) -> Any:
    payload = Payload(kind, body if isinstance(body, bytes) else json.dumps(body).encode())
    return read_request(find_type(payload), payload, rules)


def view(*instances: Instance, **fields: Any) -> ServiceView:
    shown = snapshot(*instances, **fields)
    return ServiceView(shown, shown.select())


# --- recorded conversations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["nacos-2.5.1", "nacos-3.0.3", "r-nacos-0.8.8"])
@pytest.mark.parametrize("sdk", SDKS)
def test_read_request_reads_what_sdks_send(server: str, sdk: str) -> None:
    """Every request of the scenario: its service, its instances, whatever the SDK leaves out or writes as null."""
    net = SDKS[sdk]
    seen: set[str] = set()
    for exchange in exchanges(f"{server}-{sdk}"):
        payload = exchange.request.payload
        request = read_request(find_type(payload), payload, NACOS)
        seen.add(type(request).__name__)
        key = getattr(request, "service", getattr(getattr(request, "read", None), "service", None))
        assert key is None or (key[:2] == ("public", "DEFAULT_GROUP") and key.name.rpartition("-")[0])
        match request:
            case Publish(_, (one,), "registerInstance"):
                expected = {
                    8001: Instance(f"10.{net}.0.1", 8001, "c1", 2.0, metadata={"zone": "a"}),
                    8002: Instance(f"10.{net}.0.1", 8002),
                    8005: Instance(f"10.{net}.0.5", 8005),
                }
                assert one == expected[one.port]
            case Publish(_, several, kind):
                assert kind == "batchRegisterInstance"
                assert several == tuple(Instance(f"10.{net}.0.2", i.port) for i in several)
                assert [i.port for i in several] in ([9000, 9001, 9002], [9000, 9001], [9001, 9002])
            case Register(_, one):
                assert one == Instance(f"10.{net}.0.9", 8009, ephemeral=False)
            case Deregister():
                assert (request.ip, request.port, request.ephemeral) == (f"10.{net}.0.9", 8009, False)
            case ListServices():
                assert request == ListServices("public", "DEFAULT_GROUP", 1, 10)
            case Query(asked) | Subscribe(asked, _):
                assert asked == ReadService(asked.service)
            case _:
                assert request in (ServerCheck(), HealthCheck()) or isinstance(request, Withdraw)
    assert {"ServerCheck", "HealthCheck", "Publish", "Subscribe", "Withdraw"} <= seen


# We refuse these, because over HTTP, our way to the upstream, real servers refuse them.
STRICTER = {"register without ip", "register weight -1", "batch cluster with underscore"}
OTHER_WORDS = {"deregister without instance"}  # the server fails with an error of its own
NOT_OURS = ("Config", "NamingFuzzyWatch", "Lock", "QueryMcp")  # 3.x answers more of them than 2.5.1

RAW = [
    pytest.param(exchange, id=str(exchange))
    for file in FILES
    if file.startswith("nacos") and file.endswith("-cases")
    for exchange in exchanges(file)
    if not exchange.request.payload.type.startswith(NOT_OURS)
]


@pytest.mark.parametrize("exchange", RAW)
def test_raw_cases_are_answered_as_recorded(exchange: Exchange) -> None:
    payload, recorded = exchange.request.payload, exchange.answer
    kind = None
    try:
        kind = find_type(payload)
        request = read_request(kind, payload, NACOS)
        if recorded.body["errorCode"]:
            raise refused_elsewhere(recorded.body["message"])
    except ProxyError as error:
        answer = write_error(kind, error)
        if exchange.request.case in STRICTER:
            assert recorded.body["success"]
            assert (answer.type, json.loads(answer.body)["errorCode"]) == (recorded.payload.type, 400)
            return
        assert answer.type == recorded.payload.type
        if exchange.request.case not in OTHER_WORDS:
            assert {"count": 0, "serviceNames": [], **recorded.body} == {
                "count": 0,
                "serviceNames": [],
                **json.loads(answer.body),
            }
        return
    assert write_answer(kind, request, result_of(request, exchange)).type == recorded.payload.type
    assert shown(write_answer(kind, request, result_of(request, exchange)).body) == shown(recorded.payload.body)


def refused_elsewhere(message: str) -> ProxyError:
    if message == "Connection is unregistered.":
        return NotRegistered()
    text = message.removeprefix("errCode: 400, errMsg: ").rstrip()
    return Refused(Reason.WRONG_KIND, text)


@pytest.mark.parametrize("file", [name for name in FILES if not name.endswith("-cases")])
def test_write_answer_writes_what_servers_answered(file: str) -> None:
    for exchange in exchanges(file):
        if exchange.answer.body["resultCode"] != 200:
            continue
        kind = find_type(exchange.request.payload)
        request = read_request(kind, exchange.request.payload, NACOS)
        answer = write_answer(kind, request, result_of(request, exchange))
        assert answer.type == exchange.answer.payload.type
        assert shown(answer.body, loosely=not file.startswith("nacos")) == shown(
            exchange.answer.payload.body, loosely=not file.startswith("nacos")
        )


def result_of(request: Any, exchange: Exchange) -> Any:
    """What the recorded answer says, read in the client role."""
    body = exchange.answer.body
    match request:
        case ServerCheck():
            return client.read_server_check(exchange.answer.payload).connection_id
        case Query(asked) | Subscribe(asked, _):
            listing = client.read_info(asked.service, exchange.answer.payload)
            return ServiceView(listing.snapshot, Selection(listing.snapshot.instances, listing.protected))
        case ListServices():
            return ServicePage(body["count"], tuple(body["serviceNames"] or ()))
        case _:
            return None


def shown(body: bytes, *, loosely: bool = False) -> dict[str, Any]:
    """An answer without what may differ: the order of hosts, hosts with the same key, `allIps`, an absent group.

    `loosely`: for r-nacos and a stand-in, which leave out or add fields. All fields that they have must agree.
    """
    answer: dict[str, Any] = json.loads(body)
    answer.pop("requestId", None)
    if not answer.get("message"):
        answer.pop("message", None)
    info = answer.get("serviceInfo")
    if info is not None:
        info.setdefault("groupName", "DEFAULT_GROUP")
        info["allIPs"] = info.pop("allIps", info.get("allIPs"))
        info["hosts"] = {(h["ip"], h["port"], h["clusterName"]): h for h in info["hosts"]}
    if loosely:
        for name in ("success", "type", "message", "supportAbilityNegotiation"):
            answer.pop(name, None)
        if answer["resultCode"] == 0:  # r-nacos, for an empty batch
            answer["resultCode"] = 200
        if answer.get("serviceNames") is None:
            answer.pop("serviceNames", None)
        elif not answer["serviceNames"]:
            answer.pop("serviceNames")
        if info is not None:
            info.pop("valid", None)
            for host in info["hosts"].values():
                for name in [name for name in host if "BeatTime" in name or "Delete" in name or "IdGen" in name]:
                    host.pop(name)
                for name in ("instanceId", "instanceHeartBeatInterval"):
                    host.pop(name, None)
    return answer


# --- requests --------------------------------------------------------------------------------------------------------


def test_find_type_refuses_an_unknown_type_and_one_of_a_cluster() -> None:
    with pytest.raises(NoHandler, match="RequestHandler Not Found"):
        find_type(Payload("NoSuchRequest"))
    for name in CLUSTER_TYPES:
        with pytest.raises(NoHandler, match=f" invoke {name} from sdk is forbidden"):
            find_type(Payload(name))


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"[]", b'"text"', b"{} x", b"\xff", b"[" * 100_000])
@pytest.mark.parametrize("kind", REQUEST_TYPES)
def test_read_request_refuses_a_body_that_is_no_object(kind: str, body: bytes) -> None:
    with pytest.raises(NotReadable):
        read(kind, body)


@pytest.mark.parametrize(
    "fields",
    [
        {"serviceName": {}},
        {"groupName": []},
        {"type": REGISTER, "instance": []},
        {"type": REGISTER, "instance": {**GIVEN, "port": "many"}},
        {"type": REGISTER, "instance": {**GIVEN, "port": "NaN"}},
        {"type": REGISTER, "instance": {**GIVEN, "port": "9" * 400}},
        {"type": REGISTER, "instance": {**GIVEN, "weight": "inf"}},
        {"type": REGISTER, "instance": {**GIVEN, "weight": {}}},
        {"type": REGISTER, "instance": {**GIVEN, "healthy": "yes"}},
        {"type": REGISTER, "instance": {**GIVEN, "metadata": []}},
        {"type": REGISTER, "instance": {**GIVEN, "metadata": {"a": {}}}},
    ],
)
def test_read_request_refuses_a_field_of_another_type(fields: dict[str, Any]) -> None:
    with pytest.raises(NotReadable):
        read("InstanceRequest", {**NAMES, **fields})


@pytest.mark.parametrize("missing", [{}, {"namespace": None, "groupName": None}, {"namespace": "", "groupName": ""}])
def test_read_request_takes_no_namespace_as_public_and_no_group_as_the_default(missing: dict[str, Any]) -> None:
    assert read("ServiceQueryRequest", {"serviceName": "orders", **missing}).read.service == KEY


def test_read_request_reads_a_grouped_name_only_without_the_parameter_check() -> None:
    body = {"serviceName": "other@@orders", "groupName": "DEFAULT_GROUP"}
    assert read("ServiceQueryRequest", body, LENIENT).read.service == ServiceKey("public", "other", "orders")
    with pytest.raises(BadCall, match="illegal characters"):
        read("ServiceQueryRequest", body, NACOS)


def test_read_request_keeps_the_clusters_of_a_query_as_sent() -> None:
    asked = read("ServiceQueryRequest", {**NAMES, "cluster": "b,a", "healthyOnly": True}).read
    assert (asked.clusters, asked.cluster_set, asked.healthy_only) == ("b,a", {"a", "b"}, True)
    with pytest.raises(BadCall) as caught:
        read("SubscribeServiceRequest", {**NAMES, "clusters": "a,b c"})
    assert caught.value.violation is Violation.ILLEGAL


def test_read_request_answers_a_query_without_a_name_but_no_subscription() -> None:
    assert read("ServiceQueryRequest", {**NAMES, "serviceName": ""}).read.service.name == ""
    with pytest.raises(BadCall, match="serviceName is blank"):
        read("SubscribeServiceRequest", {**NAMES, "serviceName": " ", "subscribe": True})


def test_read_request_reads_numbers_and_booleans_as_jackson_does() -> None:
    given = {"ip": "10.0.0.1", "port": "80", "weight": 2, "healthy": "true", "enabled": 0, "metadata": {"a": 1}}
    published = read("InstanceRequest", {**NAMES, "type": REGISTER, "instance": given})
    assert published.instances == (Instance("10.0.0.1", 80, weight=2.0, enabled=False, metadata={"a": "1"}),)
    cut = read("InstanceRequest", {**NAMES, "type": REGISTER, "instance": {**GIVEN, "port": 80.9}})
    assert cut.instances[0].port == 80


def test_read_request_keeps_nulls_in_metadata_only_for_servers_that_do() -> None:
    body = {**NAMES, "type": REGISTER, "instance": {**GIVEN, "metadata": {"a": None}}}
    assert read("InstanceRequest", body, NACOS).instances[0].metadata == {"a": None}
    assert read("InstanceRequest", body, LENIENT).instances[0].metadata == {}


def test_read_request_publishes_as_ephemeral_whatever_the_sdk_says() -> None:
    given = {**GIVEN, "ephemeral": False}
    assert read("InstanceRequest", {**NAMES, "type": REGISTER, "instance": given}).instances == (instance(),)
    batch = read("BatchInstanceRequest", {**NAMES, "type": REGISTER_BATCH, "instances": [given, {**given, "port": 81}]})
    assert batch == Publish(KEY, (instance(), instance(port=81)), REGISTER_BATCH)
    persistent = read(
        "PersistentInstanceRequest", {**NAMES, "type": REGISTER, "instance": {**given, "ephemeral": True}}
    )
    assert persistent == Register(KEY, instance(ephemeral=False))


def test_read_request_clears_with_an_empty_batch() -> None:
    assert read("BatchInstanceRequest", {**NAMES, "type": REGISTER_BATCH, "instances": []}).instances == ()
    assert read("BatchInstanceRequest", {**NAMES, "type": REGISTER_BATCH}).instances == ()


def test_read_request_deregisters_without_checking_weight_or_beats() -> None:
    given = {**GIVEN, "weight": -1, "metadata": {"preserved.heart.beat.timeout": "1"}}
    withdraw = read("InstanceRequest", {**NAMES, "type": DEREGISTER, "instance": given})
    assert withdraw == Withdraw(KEY, DEREGISTER, withdraw.named) and withdraw.named[0].address == "10.0.0.1:80"
    gone = read("PersistentInstanceRequest", {**NAMES, "type": DEREGISTER, "instance": given})
    assert gone == Deregister(KEY, "10.0.0.1", 80, ephemeral=False)


def refusal(kind: str, fields: dict[str, Any], rules: Rules = NACOS) -> tuple[str, int, int, str]:
    """Class, result code, error code and message of the answer to a request that is refused."""
    with pytest.raises(ProxyError) as caught:
        read(kind, {**NAMES, **fields}, rules)
    answer = write_error(REQUEST_TYPES[kind], caught.value)
    body = json.loads(answer.body)
    assert body["success"] is False
    return answer.type, body["resultCode"], body["errorCode"], body["message"]


def test_write_error_refuses_in_the_own_class_what_an_sdk_must_not_send_again() -> None:
    """Real servers accept a cluster with an underscore in a batch, so this is not one of their `ErrorResponse`s."""
    underscore = {**GIVEN, "clusterName": "a_b"}
    batch = {"type": REGISTER_BATCH, "instances": [underscore]}
    assert refusal("BatchInstanceRequest", batch)[:3] == ("BatchInstanceResponse", 500, 400)
    assert refusal("InstanceRequest", {"type": REGISTER, "instance": underscore})[:3] == ("ErrorResponse", 400, 400)
    no_ip = {"type": REGISTER, "instance": {"port": 80}}
    assert refusal("PersistentInstanceRequest", no_ip)[:3] == ("InstanceResponse", 500, 400)


def test_write_error_has_the_fields_that_the_python_sdk_requires() -> None:
    answer = write_error(REQUEST_TYPES["ServiceListRequest"], Refused(Reason.NO_RIGHT, "no"))
    body = json.loads(answer.body)
    assert (answer.type, body["errorCode"]) == ("ServiceListResponse", 403)
    assert (body["count"], body["serviceNames"]) == (0, [])


@pytest.mark.parametrize("kind", REQUEST_TYPES)
def test_read_request_bounds_a_body(kind: str) -> None:
    """It is refused before it is read."""
    body = {"x": "{" * REQUEST_TYPES[kind].max_body}
    assert refusal(kind, body)[:3] == (REQUEST_TYPES[kind].answer, 500, 400)


def test_read_request_bounds_a_batch() -> None:
    body = {"type": REGISTER_BATCH, "instances": [GIVEN] * (MAX_BATCH + 1)}
    assert refusal("BatchInstanceRequest", body)[:3] == ("BatchInstanceResponse", 500, 400)


@pytest.mark.parametrize(
    ("kind", "field"), [("ServiceQueryRequest", "cluster"), ("SubscribeServiceRequest", "clusters")]
)
def test_read_request_bounds_the_clusters_together(kind: str, field: str) -> None:
    most = "c," * (MAX_CLUSTERS // 2)
    assert read(kind, {**NAMES, field: most}).read.clusters == most
    assert refusal(kind, {**NAMES, field: most + "c"})[1:3] == (500, 400)


@pytest.mark.parametrize(("page", "size"), [(0, 10), (-5, 10), (None, 10)])
def test_read_request_takes_a_page_before_the_first_as_the_first(page: int | None, size: int) -> None:
    assert read("ServiceListRequest", {**NAMES, "pageNo": page, "pageSize": size}).page == 1


def test_read_request_lists_no_services_for_a_size_of_zero() -> None:
    assert read("ServiceListRequest", {**NAMES, "pageNo": 1, "pageSize": -3}).size == 0


# --- answers ---------------------------------------------------------------------------------------------------------


def test_every_row_needs_a_right_or_is_a_check() -> None:
    without = {row.name for row in REQUEST_TYPES.values() if row.right is None}
    assert without == {"ServerCheckRequest", "HealthCheckRequest"}


@pytest.mark.parametrize("hosts", [0, 1, LARGE + 1])
def test_write_answer_writes_a_prepared_list_as_an_unprepared_one(hosts: int) -> None:
    shown_view = view(*(instance(port=port + 1, metadata={"a": "b"}) for port in range(hosts)))
    for kind in ("ServiceQueryRequest", "SubscribeServiceRequest"):
        request = read(kind, {**NAMES, "clusters": "DEFAULT", "cluster": "DEFAULT"})
        prepared = write_answer(REQUEST_TYPES[kind], request, encode_info(shown_view, "DEFAULT"))
        assert prepared == write_answer(REQUEST_TYPES[kind], request, shown_view)
        assert len(json.loads(prepared.body)["serviceInfo"]["hosts"]) == hosts


def test_service_info_has_the_bare_name_and_the_clusters_as_sent() -> None:
    info = service_info(view(instance()), "b,a")
    assert (info["name"], info["groupName"], info["clusters"]) == (KEY.name, KEY.group, "b,a")


@pytest.mark.parametrize("hosts", [1, LARGE + 1])
def test_service_info_drops_nulls_in_metadata(hosts: int) -> None:
    found = view(*(instance(port=port + 1, metadata={"a": None, "b": "c"}) for port in range(hosts)))
    shown = json.loads(orjson.dumps(service_info(found, "")))
    assert [host["metadata"] for host in shown["hosts"]] == [{"b": "c"}] * hosts


@pytest.mark.parametrize("kind", REQUEST_TYPES)
def test_answers_have_no_null(kind: str) -> None:
    """The Python SDK refuses to connect on a null (nacos-grpc.md 2)."""
    bodies: dict[str, Any] = {"type": REGISTER_BATCH if kind.startswith("Batch") else REGISTER, "instance": GIVEN}
    request = read(kind, {**NAMES, **bodies})
    results: dict[str, Any] = {"ServerCheckRequest": "1_a_2", "ServiceListRequest": ServicePage(0, ())}
    answer = write_answer(REQUEST_TYPES[kind], request, results.get(kind, view(instance())))
    assert b"null" not in answer.body
    assert b"null" not in write_error(REQUEST_TYPES[kind], NotRegistered()).body


KEYS = st.sampled_from(
    "namespace serviceName groupName type instance instances ip port weight healthy enabled ephemeral clusterName "
    "metadata subscribe clusters cluster healthyOnly pageNo pageSize selector".split()
)
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([REGISTER, DEREGISTER, REGISTER_BATCH, "public", "orders", "10.0.0.1", "DEFAULT", "80", "NaN"])
)
OBJECTS = st.dictionaries(KEYS | st.text(max_size=5), PLAIN | st.dictionaries(st.text(max_size=5), PLAIN), max_size=8)
VALUES = PLAIN | OBJECTS | st.lists(PLAIN | OBJECTS, max_size=3)


@given(st.sampled_from(sorted(REQUEST_TYPES)), st.dictionaries(KEYS, VALUES), st.sampled_from([NACOS, LENIENT]))
def test_read_request_of_anything_is_a_request_or_a_refusal_that_can_be_written(
    kind: str, body: dict[str, Any], rules: Rules
) -> None:
    try:
        read(kind, body, rules)
    except ProxyError as error:
        answer = write_error(REQUEST_TYPES[kind], error)
        assert answer.type in ("ErrorResponse", REQUEST_TYPES[kind].answer)
        assert orjson.loads(answer.body)["errorCode"] in (400, 500, 502)


CASES = 30_000


@pytest.mark.parametrize("rules", [NACOS, LENIENT], ids=["nacos", "lenient"])
def test_hostile_bodies_are_requests_or_refusals(rules: Rules) -> None:
    """Recorded requests with some of their parts replaced."""
    choose = random.Random(2)
    known = [
        (exchange.request.payload.type, exchange.request.body)
        for file in FILES
        for exchange in exchanges(file)
        if exchange.request.payload.type in REQUEST_TYPES and exchange.request.is_object
    ]
    odd: list[Any] = [
        *(
            None,
            True,
            0,
            -1,
            1e308,
            2**63,
            2**64 - 1,
            70_000,
            "",
            " ",
            "\x00",
            "@@",
            "a@@b",
            "中",
            "x" * 2000,
            "NaN",
            "-inf",
        ),
        *([], {}, [None], [[]], {"": None}, [{}], {"a": {"b": {}}}, REGISTER, DEREGISTER, REGISTER_BATCH, "\u2028"),
    ]
    accepted = 0
    for _ in range(CASES // 2):
        kind, recorded = choose.choice(known)
        body: Any = {**recorded}
        for _ in range(choose.randint(1, 3)):
            place: Any = body
            while True:
                name = choose.choice([*place, "instance", "instances", "type"])
                if not isinstance(place.get(name), dict) or choose.random() < 0.3:
                    break
                place[name] = dict(place[name])
                place = place[name]
            place[name] = choose.choice(odd)
        try:
            read(kind, json.dumps(body).encode(), rules)
            accepted += 1
        except ProxyError as error:
            write_error(REQUEST_TYPES[kind], error)
    assert CASES / 20 < accepted
