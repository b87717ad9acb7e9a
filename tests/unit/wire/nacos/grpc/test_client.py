"""The client role: what real servers answered and pushed, and our requests read in the server role."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest

from nacos_proxy.model.errors import Malformed, Misplaced, ProxyError, Reason, Refused
from nacos_proxy.model.limits import NACOS
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.wire.nacos.base import ReadService, ServiceView
from nacos_proxy.wire.nacos.grpc.client import (
    Detection,
    Notify,
    ResetRequest,
    ServerChecked,
    SetupAck,
    read_health_check,
    read_info,
    read_notified,
    read_push,
    read_server_check,
    write_ack,
    write_health_check,
    write_query,
    write_server_check,
    write_setup,
    write_subscribe,
)
from nacos_proxy.wire.nacos.grpc.payload import Payload
from nacos_proxy.wire.nacos.grpc.refusals import NotRegistered
from nacos_proxy.wire.nacos.grpc.server import (
    REQUEST_TYPES,
    HealthCheck,
    Query,
    ServerCheck,
    Subscribe,
    find_type,
    read_request,
    write_answer,
)
from nacos_proxy.wire.nacos.grpc.stream import Acknowledgement, ConnectionSetup, read_stream
from nacos_proxy.wire.nacos.hosts import LARGE
from tests.helpers.build import KEY, instance, key, snapshot
from tests.helpers.grpc_recordings import FILES, exchanges, streamed


def payload(kind: str, **fields: Any) -> Payload:
    return Payload(kind, json.dumps(fields).encode())


def received(payload: Payload) -> Any:
    """One of our requests as a server reads it."""
    return read_request(find_type(payload), payload, NACOS)


# --- recorded conversations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_read_info_reads_every_recorded_list(file: str) -> None:
    for exchange in exchanges(file):
        asking = exchange.request.payload.type in ("ServiceQueryRequest", "SubscribeServiceRequest")
        if not asking or not exchange.request.is_object:
            continue
        asked, answer = exchange.request.body, exchange.answer
        service = ServiceKey(
            asked.get("namespace") or "public", asked.get("groupName") or "", str(asked["serviceName"])
        )
        service = service._replace(group=service.group or "DEFAULT_GROUP")
        if answer.body["resultCode"] != 200:
            with pytest.raises(Refused) as caught:
                read_info(service, answer.payload)
            assert isinstance(caught.value, NotRegistered) == (answer.body["errorCode"] == 301)
            continue
        hosts = answer.body["serviceInfo"]["hosts"]
        found = read_info(service, answer.payload).snapshot
        assert found.key == service
        keys = {(host["ip"], host["port"], host["clusterName"]) for host in hosts}
        readable = {key for key in keys if key[1] <= 65535}  # r-nacos accepts any port
        assert set(found.by_key) == readable
        assert not found.extra
        assert bool(found.unreadable) == (readable != keys)
        assert all(not host.extra for host in found.instances)


@pytest.mark.parametrize("file", FILES)
def test_read_server_check_reads_every_recorded_answer(file: str) -> None:
    """r-nacos does not promise to negotiate abilities."""
    for exchange in exchanges(file):
        if exchange.request.payload.type == "ServerCheckRequest":
            found = read_server_check(exchange.answer.payload)
            assert found == ServerChecked(exchange.answer.body["connectionId"], not file.startswith("r-nacos"))


@pytest.mark.parametrize("file", FILES)
def test_read_push_reads_everything_that_servers_ask(file: str) -> None:
    for message in streamed(file):
        if message.sender != "server":
            continue
        found, body = read_push(message.payload), message.body
        match message.payload.type:
            case "NotifySubscriberRequest":
                assert isinstance(found, Notify)
                info = body["serviceInfo"]
                names = (found.request_id, found.group, found.name, found.namespace)
                assert names == (body["requestId"], info["groupName"], info["name"], body.get("namespace"))
                assert (found.namespace is not None) == file.startswith("r-nacos")
                listing = read_notified(ServiceKey("public", found.group, found.name), found)
                assert len(listing.snapshot.instances) == len(info["hosts"])
                assert listing.snapshot.last_ref_time == info["lastRefTime"]
            case "ClientDetectionRequest":
                assert found == Detection(body.get("requestId", ""))
            case "ConnectResetRequest":
                address = (body["serverIp"], int(body["serverPort"])) if body["serverIp"] else ("", 0)
                assert found == ResetRequest("", *address)
            case "SetupAckRequest":
                assert found == SetupAck("", body["abilityTable"])
                assert found.abilities["supportPersistentInstanceByGrpc"]
            case _:
                assert found is None


@pytest.mark.parametrize("server", ["nacos-2.5.1", "nacos-3.0.3"])
def test_a_connection_has_one_subscription_per_service(server: str) -> None:
    """What two real servers pushed to one connection that subscribed to cluster x, then to y, and then ended x."""
    clusters: list[str] = []
    for message in streamed(f"{server}-more-cases"):
        found = read_push(message.payload) if message.sender == "server" else None
        if isinstance(found, Notify) and found.name.endswith("-s"):
            clusters.append(found.info["clusters"])
    assert clusters == ["x", "x", "y", "", "", ""]


# --- requests --------------------------------------------------------------------------------------------------------


def test_write_functions_write_what_the_server_role_reads() -> None:
    other = key("carts", "g", "dev")
    assert received(write_server_check()) == ServerCheck()
    assert received(write_health_check()) == HealthCheck()
    assert received(write_query(other, "a,b", True)) == Query(ReadService(other, "a,b", True))
    assert received(write_subscribe(other, True)) == Subscribe(ReadService(other), True)
    assert received(write_subscribe(other, False)) == Subscribe(ReadService(other), False)
    assert read_stream(write_ack("NotifySubscriberResponse", "7")) == Acknowledgement("NotifySubscriberResponse", "7")


@pytest.mark.parametrize("abilities", [None, {}, {"a": True}])
def test_write_setup_writes_what_the_server_role_reads(abilities: dict[str, bool] | None) -> None:
    labels = {"source": "sdk", "module": "naming", "AppName": "a"}
    found = read_stream(write_setup("Nacos-Java-Client:v2.5.1", "dev", labels, abilities))
    assert found == ConnectionSetup("Nacos-Java-Client:v2.5.1", "dev", labels, abilities)


def test_write_functions_write_the_fields_of_the_java_sdk() -> None:
    """Any order, and without `requestId`."""
    ours = {
        "ServerCheckRequest": write_server_check(),
        "HealthCheckRequest": write_health_check(),
        "ServiceQueryRequest": write_query(KEY),
        "SubscribeServiceRequest": write_subscribe(KEY, True),
    }
    for exchange in exchanges("nacos-2.5.1-java25"):
        if (mine := ours.get(exchange.request.payload.type)) is not None:
            assert json.loads(mine.body).keys() == exchange.request.body.keys()


def test_write_query_sends_the_headers() -> None:
    assert write_query(KEY, headers={"accessToken": "t"}).headers == {"accessToken": "t"}
    assert write_subscribe(KEY, True, {"app": "a"}).headers == {"app": "a"}


# --- answers ---------------------------------------------------------------------------------------------------------


def test_read_info_reads_what_the_server_role_writes() -> None:
    listed = snapshot(instance(), instance(port=81, healthy=False, metadata={"a": "b"}))
    for kind in ("ServiceQueryRequest", "SubscribeServiceRequest"):
        request = received(payload(kind, serviceName=KEY.name))
        answer = write_answer(REQUEST_TYPES[kind], request, ServiceView(listed, listed.select()))
        assert read_info(KEY, answer).snapshot == listed


def test_read_info_tells_that_protection_masks_health() -> None:
    info = {"name": KEY.name, "groupName": KEY.group, "hosts": [], "reachProtectionThreshold": True}
    assert read_info(KEY, payload("QueryServiceResponse", resultCode=200, serviceInfo=info)).protected


@pytest.mark.parametrize(
    "info",
    [
        {"name": "carts", "groupName": KEY.group, "hosts": []},
        {"name": KEY.name, "groupName": "other", "hosts": []},
        {"name": KEY.name, "hosts": [{"ip": "10.0.0.1", "port": 80, "serviceName": "DEFAULT_GROUP@@carts"}]},
    ],
)
def test_read_info_refuses_the_list_of_another_service(info: dict[str, Any]) -> None:
    with pytest.raises(Misplaced):
        read_info(KEY, payload("QueryServiceResponse", resultCode=200, serviceInfo=info))


@pytest.mark.parametrize(
    "answer",
    [
        Payload("QueryServiceResponse", b""),
        Payload("QueryServiceResponse", b"[]"),
        payload("QueryServiceResponse", resultCode=200),
        payload("QueryServiceResponse", resultCode=200, serviceInfo={"name": KEY.name}),
        payload("InstanceResponse", resultCode=200, serviceInfo={"name": KEY.name, "hosts": []}),
    ],
)
def test_read_info_refuses_what_is_no_list(answer: Payload) -> None:
    with pytest.raises(Malformed):
        read_info(KEY, answer)


def test_read_health_check_tells_that_the_session_is_gone() -> None:
    read_health_check(payload("HealthCheckResponse", resultCode=200, errorCode=0))
    with pytest.raises(NotRegistered):
        read_health_check(payload("ErrorResponse", resultCode=500, errorCode=301, success=False))


def test_read_info_gives_the_reason_of_a_refusal() -> None:
    with pytest.raises(Refused) as caught:
        read_info(KEY, payload("ErrorResponse", resultCode=500, errorCode=403, message="no right", success=False))
    assert caught.value.reason is Reason.NO_RIGHT


def test_read_push_takes_a_grouped_name_apart() -> None:
    info = {"name": "g@@carts", "groupName": "g", "hosts": []}
    found = read_push(payload("NotifySubscriberRequest", requestId=5, serviceInfo=info))
    assert isinstance(found, Notify)
    assert (found.request_id, found.group, found.name) == ("5", "g", "carts")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"serviceInfo":{"hosts":[]}}'])
def test_read_push_refuses_a_push_without_a_service(body: bytes) -> None:
    with pytest.raises(Malformed):
        read_push(Payload("NotifySubscriberRequest", body))


def test_read_push_ignores_an_unreadable_address_of_a_reset() -> None:
    for port in ("", "x", "1234567", None, {}):
        assert read_push(payload("ConnectResetRequest", serverIp="10.0.0.1", serverPort=port)) == ResetRequest(
            "", "", 0
        )


CASES = 30_000


def test_hostile_answers_and_pushes_are_read_or_refused() -> None:
    """Recorded answers with some of their parts replaced: a server, or what pretends to be one."""
    choose = random.Random(3)
    answers = [e.answer for file in FILES for e in exchanges(file) if "serviceInfo" in e.answer.body]
    pushes = [m for file in FILES for m in streamed(file) if m.sender == "server"]
    odd: list[Any] = [None, True, -1, 1e308, 2**63, "", "@@", "x" * 500, [], {}, [None], [[]], [{"ip": 1}], {"a": {}}]
    read = 0
    for _ in range(CASES):
        message = choose.choice(answers if choose.random() < 0.5 else pushes)
        body: Any = json.loads(message.payload.body)
        if body.get("serviceInfo") and choose.random() < 0.02:
            body["serviceInfo"]["hosts"] *= LARGE
        for _ in range(choose.randint(1, 3)):
            place: Any = body
            while place and choose.random() < 0.8:
                inner = [item for item in (place.values() if isinstance(place, dict) else place) if item]
                inner = [item for item in inner if isinstance(item, dict | list)]
                if not inner:
                    break
                place = choose.choice(inner)
            if isinstance(place, dict):
                place[choose.choice([*place, "name"])] = copy.deepcopy(choose.choice(odd))
            elif place:
                place[choose.randrange(len(place))] = copy.deepcopy(choose.choice(odd))
        damaged = Payload(message.payload.type, json.dumps(body).encode())
        try:
            found = read_push(damaged) if message.stream else read_info(KEY, damaged)
            if isinstance(found, Notify):
                read_notified(KEY._replace(group=found.group, name=found.name), found)
            read += 1
        except (Malformed, ProxyError):
            pass
    assert read > CASES / 20
