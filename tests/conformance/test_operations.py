"""Every operation of the naming API, through both APIs, on every registry."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.conformance.drivers import V1, Driver, Failed, Rest
from tests.helpers.app import serving

HOST_FIELDS = set(
    "instanceId ip port weight healthy enabled ephemeral clusterName serviceName metadata instanceHeartBeatInterval "
    "instanceHeartBeatTimeOut ipDeleteTimeout".split()
)
LIST_FIELDS = set(
    "name groupName clusters cacheMillis hosts lastRefTime checksum allIPs reachProtectionThreshold".split()
)


def addresses(body: dict) -> list[tuple[str, int]]:
    return sorted((host["ip"], host["port"]) for host in body["hosts"])


async def test_register_then_list_shows_every_field(driver: Driver, service: str) -> None:
    await driver.register(service, "10.0.0.1", 8080, weight=2.5, metadata={"zone": "北京", "v": "1"}, cluster="c1")
    body = await driver.list(service)
    assert LIST_FIELDS <= body.keys()
    assert (body["name"], body["groupName"]) == (f"DEFAULT_GROUP@@{service}", "DEFAULT_GROUP")
    (host,) = body["hosts"]
    assert HOST_FIELDS <= host.keys()
    assert (host["ip"], host["port"], host["weight"], host["clusterName"]) == ("10.0.0.1", 8080, 2.5, "c1")
    assert host["metadata"] == {"zone": "北京", "v": "1"}
    assert (host["healthy"], host["enabled"], host["ephemeral"]) == (True, True, True)
    assert host["instanceId"] == f"10.0.0.1#8080#c1#DEFAULT_GROUP@@{service}"


async def test_register_fills_in_defaults(driver: Driver, service: str) -> None:
    await driver.register(service, "10.0.0.1", 80)
    (host,) = (await driver.list(service))["hosts"]
    assert (host["weight"], host["clusterName"], host["metadata"], host["ephemeral"]) == (1.0, "DEFAULT", {}, True)


async def test_list_of_an_unknown_service_is_empty(driver: Driver, service: str) -> None:
    body = await driver.list(service)
    assert body["hosts"] == []
    assert body["name"] == f"DEFAULT_GROUP@@{service}"


async def test_register_again_replaces_the_instance(driver: Driver, service: str) -> None:
    await driver.register(service, "10.0.0.1", 80, weight=1)
    await driver.register(service, "10.0.0.1", 80, weight=3)
    assert [host["weight"] for host in (await driver.list(service))["hosts"]] == [3.0]


async def test_deregister_shows_in_the_next_list(driver: Driver, service: str) -> None:
    await driver.register(service, "10.0.0.1", 80)
    await driver.register(service, "10.0.0.2", 80)
    await driver.deregister(service, "10.0.0.1", 80)
    assert addresses(await driver.list(service)) == [("10.0.0.2", 80)]


async def test_deregister_of_an_unknown_instance_succeeds(driver: Driver, service: str) -> None:
    await driver.deregister(service, "10.0.0.1", 80)


async def test_modify_shows_in_the_next_list(driver: Driver, service: str) -> None:
    await driver.register(service, "10.0.0.1", 80, weight=1, metadata={"a": "1"})
    await driver.list(service)
    await driver.modify(service, "10.0.0.1", 80, weight=7, metadata={"a": "2"})
    (host,) = (await driver.list(service))["hosts"]
    assert (host["weight"], host["metadata"]["a"]) == (7.0, "2")


async def test_modify_enabled_hides_and_shows_an_instance(driver: Driver, service: str) -> None:
    await driver.register(service, "10.0.0.1", 80)
    await driver.list(service)
    await driver.modify(service, "10.0.0.1", 80, enabled=False)
    assert (await driver.list(service))["hosts"] == []
    await driver.modify(service, "10.0.0.1", 80, enabled=True)
    assert addresses(await driver.list(service)) == [("10.0.0.1", 80)]


async def test_list_filters_by_clusters(driver: Driver, service: str) -> None:
    for number, cluster in enumerate(["c1", "c2", "DEFAULT"], 1):
        await driver.register(service, f"10.0.0.{number}", 80, cluster=cluster)
    assert len((await driver.list(service))["hosts"]) == 3
    assert addresses(await driver.list(service, clusters=["c1"])) == [("10.0.0.1", 80)]
    body = await driver.list(service, clusters=["c1", "DEFAULT"])
    assert addresses(body) == [("10.0.0.1", 80), ("10.0.0.3", 80)]
    assert body["clusters"] == "c1,DEFAULT"
    assert (await driver.list(service, clusters=["none"]))["hosts"] == []


async def test_list_healthy_only_omits_unhealthy_instances(driver: Driver, service: str) -> None:
    await driver.register(service, "10.0.0.1", 80)
    await driver.register(service, "10.0.0.2", 80, healthy=False)
    assert addresses(await driver.list(service, healthy_only=True)) == [("10.0.0.1", 80)]
    assert len((await driver.list(service, healthy_only=False))["hosts"]) == 2


async def test_list_separates_groups_and_namespaces(driver: Driver, service: str) -> None:
    await driver.register(service, "10.0.0.1", 80, group="G1")
    await driver.register(service, "10.0.0.2", 80, group="G2")
    await driver.register(service, "10.0.0.3", 80, namespace="ns-1")
    assert addresses(await driver.list(service, group="G1")) == [("10.0.0.1", 80)]
    assert addresses(await driver.list(f"G2@@{service}")) == [("10.0.0.2", 80)]
    assert addresses(await driver.list(service, namespace="ns-1")) == [("10.0.0.3", 80)]
    assert (await driver.list(service))["hosts"] == []


async def test_list_default_namespace_has_three_spellings(driver: Driver, service: str) -> None:
    await driver.register(service, "10.0.0.1", 80, namespace="public")
    assert addresses(await driver.list(service, namespace="")) == [("10.0.0.1", 80)]
    assert addresses(await driver.list(service)) == [("10.0.0.1", 80)]


async def test_get_instance_returns_a_registered_instance(driver: Driver, service: str) -> None:
    await driver.register(service, "10.0.0.1", 80, weight=4, metadata={"a": "1"})
    got = await driver.get(service, "10.0.0.1", 80)
    assert (got["ip"], got["port"], got["weight"], got["metadata"]) == ("10.0.0.1", 80, 4.0, {"a": "1"})


async def test_get_instance_of_an_unknown_instance_fails(driver: Driver, service: str) -> None:
    await driver.register(service, "10.0.0.1", 80)
    with pytest.raises(Failed):
        await driver.get(service, "10.0.0.9", 80)


async def test_ipv6_instance_works_in_every_operation(driver: Driver, service: str) -> None:
    await driver.register(service, "2001:db8::1", 80)
    assert addresses(await driver.list(service)) == [("2001:db8::1", 80)]
    assert (await driver.get(service, "2001:db8::1", 80))["ip"] == "2001:db8::1"
    await driver.deregister(service, "2001:db8::1", 80)
    assert (await driver.list(service))["hosts"] == []


async def test_beat_answers_with_the_interval(driver: Driver, service: str) -> None:
    await driver.register(service, "10.0.0.1", 80)
    answer = await driver.beat(service, "10.0.0.1", 80)
    assert (answer["code"], answer["clientBeatInterval"], answer["lightBeatEnabled"]) == (10200, 5000, True)


async def test_beat_with_a_body_registers_an_unknown_instance(driver: Driver, service: str, registry: str) -> None:
    answer = await driver.beat(service, "10.0.0.1", 80, weight=2.0, metadata={"a": "1"})
    assert answer["code"] == 10200
    (host,) = (await driver.list(service))["hosts"]
    weight = 1.0 if registry == "r-nacos" else 2.0  # r-nacos 0.8.8 takes no weight from a beat
    assert (host["ip"], host["weight"], host["metadata"]) == ("10.0.0.1", weight, {"a": "1"})


async def test_register_list_and_deregister_a_persistent_instance(driver: Driver, service: str) -> None:
    await driver.register(service, "10.0.0.1", 80, ephemeral=False)
    (host,) = (await driver.list(service))["hosts"]
    assert host["ephemeral"] is False
    await driver.deregister(service, "10.0.0.1", 80, ephemeral=False)
    assert (await driver.list(service))["hosts"] == []


async def test_list_services_names_and_counts_them(driver: Driver, service: str) -> None:
    await driver.register(service, "10.0.0.1", 80, group=service)
    assert await driver.services(group=service) == (1, [service])


async def test_list_shows_each_of_200_writes_at_once(driver: Driver, service: str) -> None:
    for number in range(200):
        await driver.register(service, f"10.0.{number // 100}.{number % 100}", 80)
        assert len((await driver.list(service))["hosts"]) == number + 1


@pytest.mark.parametrize("field", ["metadata", "cluster", "group", "namespace"])
async def test_register_leaves_the_parameter_check_to_the_server(
    driver: Driver, registry: str, service: str, field: str
) -> None:
    """The check exists since Nacos 2.3. r-nacos has none; 1.x checks only cluster names."""
    if registry == "NACOS_TEST_URL":
        pytest.skip("that depends on its version")
    value = {"metadata": {"note": "x" * 2000}, "cluster": "机 房", "group": "组", "namespace": f"{service}.one"}[field]
    name = f"{service}-服务"
    where = {field: value} if field in ("group", "namespace") else {}
    if not (registry == "r-nacos" or (registry == "1.x" and field != "cluster")):
        with pytest.raises(Failed) as caught:
            await driver.register(name, "10.0.0.1", 80, **{field: value})
        assert caught.value.status == 400
        return
    await driver.register(name, "10.0.0.1", 80, **{field: value})
    (host,) = (await driver.list(name, **where))["hosts"]
    assert (host["ip"], host["clusterName"]) == ("10.0.0.1", value if field == "cluster" else "DEFAULT")
    assert host["metadata"] == (value if field == "metadata" else {})
    await driver.deregister(name, "10.0.0.1", 80, **({} if field == "metadata" else {field: value}))
    assert (await driver.list(name, **where))["hosts"] == []


async def test_register_keeps_null_metadata_if_the_server_does(
    upstream: str, registry: str, service: str, fast_path: bool
) -> None:
    """r-nacos loses all metadata over a null, so the proxy sends none; likewise to 1.x, which has no check either."""
    if registry == "NACOS_TEST_URL":
        pytest.skip("that depends on its version")
    checked = registry not in ("r-nacos", "1.x")
    async with serving(upstream=upstream, fast_path=fast_path, parameter_check="on" if checked else "off") as proxy:
        driver = V1(proxy.http)
        await driver.register(service, "10.0.0.1", 80, metadata={"a": "1", "b": None})
        await driver.beat(service, "10.0.0.2", 80, metadata={"a": "1", "b": None})
        wanted = {"a": "1", "b": None} if checked else {"a": "1"}
        assert [host["metadata"] for host in (await driver.list(service))["hosts"]] == [wanted, wanted]
        with pytest.raises(Failed):
            await Rest(proxy.http).register(service, "10.0.0.3", 80, metadata={"a": "1", "b": None})


async def test_beat_ignores_unknown_fields_and_text_after_the_object(http: httpx.AsyncClient, service: str) -> None:
    """As Jackson does, however deep the unknown fields are."""
    beat = json.dumps({"ip": "10.0.0.1", "port": 80, "metadata": {"a": "1"}})[:-1]
    beat += f', "own": {"[" * 400}{"]" * 400}}} behind'
    reply = await http.put("/nacos/v1/ns/instance/beat", params={"serviceName": service, "beat": beat})
    assert (reply.status_code, reply.json()["code"]) == (200, 10200)
    listed = (await http.get("/nacos/v1/ns/instance/list", params={"serviceName": service})).json()
    assert [(host["ip"], host["metadata"]) for host in listed["hosts"]] == [("10.0.0.1", {"a": "1"})]


@pytest.mark.parametrize(
    ("field", "value"),
    [("port", 70_000), ("weight", 10_001), ("weight", -1), ("cluster", "a b"), ("ip", ""), ("ip", "10 0 0 1")],
)
async def test_register_refuses_a_bad_parameter_and_forwards_nothing(
    driver: Driver, registry: str, service: str, field: str, value: object
) -> None:
    if registry != "embedded" and field in ("port", "cluster", "ip") and value:
        pytest.skip("that is for the server to say; r-nacos takes it")
    fields = {"ip": "10.0.0.1", "port": 80, field: value}
    with pytest.raises(Failed) as caught:
        await driver.register(service, **fields)  # type: ignore[arg-type]
    assert caught.value.status == 400
    assert (await driver.list(service))["hosts"] == []
