"""`NACOS` and `LENIENT`, as the dialects and our own API apply them."""

from __future__ import annotations

import orjson
import pytest

from nacos_proxy.model.calls import BatchMetadata, Beat, Register
from nacos_proxy.model.errors import BadCall, Violation
from nacos_proxy.model.limits import LENIENT, MAX_LENGTH, NACOS, Rules
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.wire.http import HttpRequest
from nacos_proxy.wire.nacos.base import Dialect, ReadService
from nacos_proxy.wire.nacos.forms import status_key
from nacos_proxy.wire.nacos.v1 import V1
from nacos_proxy.wire.nacos.v2 import V2
from nacos_proxy.wire.nacos.v3 import V3
from nacos_proxy.wire.rest.bodies import RegisterBody, UpdateBody, read_register, read_update
from nacos_proxy.wire.rest.query import InstanceQuery, ViewQuery, read_address
from tests.helpers.build import KEY, instance

LONG = {"note": "x" * 5000}
TAKEN_BY_OLD_SERVERS = [
    {"serviceName": "用户服务"},
    {"serviceName": "a b"},
    {"groupName": "组"},
    {"namespaceId": "team.one"},
    {"clusterName": "机房"},
    {"ip": "主机"},
    {"port": "70000"},
    {"metadata": orjson.dumps(LONG).decode()},
    {"metadata": '{"preserved.heart.beat.interval":"60000"}'},
    {"metadata": '{"preserved.instance.id.generator":"own"}'},
]
NAMES = ["serviceName", "groupName", "namespaceId", "clusterName", "ip"]
BREAKING = ["a\nb", "a\rb", "b\x00a", "a\x1b[2J", "a\x7f", "a\x85b", "a\u2028b", "x" * (MAX_LENGTH + 1)]
REGISTRATIONS = [(V1, "/v1/ns/instance"), (V2, "/v2/ns/instance"), (V3, "/v3/client/ns/instance")]


def read(method: str, path: str, rules: Rules, dialect: Dialect = V1, /, **values: str) -> object:
    given = {"serviceName": "s", "ip": "10.0.0.1", "port": "80", **values}
    row = dialect.match(method, path)
    assert row is not None
    return row.read_request(HttpRequest(method, path, tuple(given.items()), rules=rules))


@pytest.mark.parametrize(("dialect", "path"), REGISTRATIONS, ids=["v1", "v2", "v3"])
@pytest.mark.parametrize("values", TAKEN_BY_OLD_SERVERS, ids=lambda values: next(iter(values)))
def test_lenient_accepts_values_that_only_old_servers_accept(
    dialect: Dialect, path: str, values: dict[str, str]
) -> None:
    if "own" not in values.get("metadata", "") or dialect is V1:
        with pytest.raises(BadCall):
            read("POST", path, NACOS, dialect, **values)
    call = read("POST", path, LENIENT, dialect, **values)
    assert isinstance(call, Register)
    key, i = call.service, call.instance
    shown = {
        "serviceName": key.name, "groupName": key.group, "namespaceId": key.namespace, "clusterName": i.cluster,
        "ip": i.ip, "port": str(i.port), "metadata": orjson.dumps(dict(i.metadata)).decode(),
    }  # fmt: skip
    assert values.items() <= shown.items()


@pytest.mark.parametrize("text", BREAKING, ids=ascii)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dialect", "path"), REGISTRATIONS, ids=["v1", "v2", "v3"])
def test_lenient_refuses_control_characters_and_endless_names(
    dialect: Dialect, path: str, name: str, text: str
) -> None:
    with pytest.raises(BadCall):
        read("POST", path, LENIENT, dialect, **{name: text})


@pytest.mark.parametrize(("service", "group"), [("g@@a@@b", ""), ("a", "g@@h"), ("a", "g@"), ("a@@b@@", "")], ids=ascii)
def test_lenient_refuses_a_name_that_is_read_back_as_another(service: str, group: str) -> None:
    with pytest.raises(BadCall):
        read("GET", "/v1/ns/instance/list", LENIENT, serviceName=service, groupName=group)


def test_lenient_controllers_refuse_other_values_with_the_message_of_1x() -> None:
    for values, text in [
        ({"port": "abc"}, 'For input string: "abc"'),
        ({"ip": ""}, "Param 'ip' is required."),
        ({"weight": "10001"}, "instance format invalid: The weights range from 0.0 to 10000.0"),
        ({"metadata": "{oops"}, "metadata format incorrect:{oops"),
    ]:
        with pytest.raises(BadCall) as caught:
            read("POST", "/v1/ns/instance", LENIENT, **values)
        assert (caught.value.text, caught.value.status) == (text, 400)
        reply = V1.write_error(HttpRequest("POST", "/v1/ns/instance"), caught.value, 0)
        assert (reply.status, reply.body.decode()) == (400, text)


def test_lenient_accepts_the_same_names_in_lists_beats_and_batches() -> None:
    names = {"serviceName": "服务", "groupName": "组"}
    listed = read("GET", "/v1/ns/instance/list", LENIENT, **names, clusters="甲,b c")
    assert isinstance(listed, ReadService) and listed.cluster_set == {"甲", "b c"}
    full = orjson.dumps({"ip": "主机", "port": 70000, "cluster": "甲", "metadata": LONG}).decode()
    beat = read("PUT", "/v1/ns/instance/beat", LENIENT, **names, beat=full)
    assert isinstance(beat, Beat) and beat.full == instance("主机", 70000, cluster="甲", weight=0.0, metadata=LONG)
    batch = read("PUT", "/v1/ns/instance/metadata/batch", LENIENT, **names, instances=f"[{full}]", metadata='{"a":"b"}')
    assert isinstance(batch, BatchMetadata) and batch.service == ServiceKey("public", "组", "服务")


@pytest.mark.parametrize("port", [2**31, -(2**31) - 1, 10**30])
def test_both_rules_refuse_a_json_port_beyond_an_int(port: int) -> None:
    full = orjson.dumps({"ip": "a"}).decode()[:-1] + f',"port":{port}}}'
    for rules in (NACOS, LENIENT):
        with pytest.raises(BadCall):
            read("PUT", "/v1/ns/instance/beat", rules, beat=full)


def test_status_key_is_checked_by_the_lenient_rules() -> None:
    assert status_key("team.one##组@@服务") == ServiceKey("team.one", "组", "服务")
    with pytest.raises(BadCall):
        status_key("g@@a\nb")


# our own API


def test_view_query_and_read_address_obey_the_rules() -> None:
    query = ViewQuery(group="组", namespace="team.one", clusters=["甲"])
    with pytest.raises(BadCall):
        query.service_key("服务")
    with pytest.raises(BadCall):
        query.view()
    with pytest.raises(BadCall):
        query.list_call()
    assert query.service_key("服务", LENIENT) == ServiceKey("team.one", "组", "服务")
    assert query.view(LENIENT).cluster_set == {"甲"}
    assert query.list_call(LENIENT).group == "组"
    assert read_address("主机:80", LENIENT) == ("主机", 80)
    with pytest.raises(BadCall, match="'service'"):
        query.service_key("a\nb", LENIENT)


def test_read_register_and_read_update_obey_the_rules() -> None:
    body = RegisterBody(ip="主机", port=80, cluster="甲_乙", metadata=LONG)
    with pytest.raises(BadCall):
        read_register(KEY, body)
    assert read_register(KEY, body, LENIENT).instance == instance("主机", 80, cluster="甲_乙", metadata=LONG)
    more = UpdateBody(metadata=LONG)
    address = read_address("10.0.0.1:80")
    with pytest.raises(BadCall, match="'metadata'"):
        read_update(KEY, address, InstanceQuery(), more)
    assert read_update(KEY, address, InstanceQuery(), more, LENIENT).metadata == LONG


def test_read_register_refuses_an_invalid_port_under_any_rules() -> None:
    for rules in (NACOS, LENIENT):
        with pytest.raises(BadCall) as caught:
            read_register(KEY, RegisterBody(ip="a", port=70000), rules)
        assert caught.value.violation is Violation.ILLEGAL
