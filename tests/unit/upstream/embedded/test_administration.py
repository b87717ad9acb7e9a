"""The administrative calls of the embedded registry, in each dialect, without a socket.

The bodies are those of nacos-http.md 2.10, 2.14 to 2.16, 3 and 4.2, which were read in 2.5.1's and 3.0.3's source.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode

import pytest

from nacos_proxy.model.calls import ListDetails, Metrics, Register
from nacos_proxy.model.errors import Refused
from nacos_proxy.upstream.embedded.administration import BATCH
from nacos_proxy.wire.nacos.administration import Clients, FindClient
from tests.helpers.asgi import ask
from tests.helpers.build import instance, key
from tests.helpers.clock import FakeClock, turns_during
from tests.helpers.faces import FaceServer

V1, V2, V3 = "/nacos/v1/ns", "/nacos/v2/ns", "/nacos/v3/admin/ns"
NONE = '{"type":"NONE"}'
CHECKERS = {
    "TCP": {"type": "TCP"},
    "HTTP": {"type": "HTTP", "path": "", "headers": "", "expectedResponseCode": 200},
    "MYSQL": {"type": "MYSQL", "user": None, "pwd": None, "cmd": None},
    "NONE": {"type": "NONE"},
}


class Server:
    """One registry behind the APIs of 2.5.1 and 3.0.3."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self._two = FaceServer("v1+v2", clock)
        self._three = FaceServer("3.0", clock)
        self._three.registry = self._two.registry
        self.registry = self._two.registry

    async def ask(self, method: str, path: str, **values: Any) -> tuple[int, Any]:
        """Status and body: JSON, or text."""
        face = self._three if "/v3/" in path else self._two
        reply = await ask(face, method, f"{path}?{urlencode(values)}" if values else path)
        text = reply.body.decode()
        return reply.status, json.loads(text) if text[:1] in ("{", "[") else text

    async def register(self, service: str = "orders", ip: str = "10.0.0.1", **values: Any) -> None:
        given = {"serviceName": service, "ip": ip, "port": 80, **values}
        assert await self.ask("POST", f"{V1}/instance", **given) == (200, "ok")


@pytest.fixture
async def server(clock: FakeClock) -> AsyncIterator[Server]:
    server = Server(clock)
    yield server
    await server.registry.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def test_administration_metrics_tell_the_health_and_the_number_of_services(server: Server) -> None:
    await server.register()
    text = "Hello! I am Nacos-Naming and healthy! total services: 1, local port:8848"
    assert await server.ask("GET", f"{V1}/health/server") == (200, {"msg": text})
    assert await server.ask("POST", f"{V1}/health/server/") == (200, {"msg": text})


async def test_administration_names_its_checkers_and_selectors(server: Server) -> None:
    assert await server.ask("GET", f"{V1}/health/checkers") == (200, CHECKERS)
    assert (await server.ask("GET", f"{V3}/health/checkers"))[1]["data"] == CHECKERS
    types = {"code": 200, "message": None, "data": ["none", "label"]}
    assert await server.ask("GET", f"{V1}/service/selector/types") == (200, types)
    shown = {"code": 0, "message": "success", "data": ["none", "label"]}
    assert await server.ask("GET", f"{V3}/service/selector/types") == (200, shown)


# --- clusters ----------------------------------------------------------------------------------------------------


def cluster(**more: Any) -> dict[str, Any]:
    given = {"serviceName": "orders", "clusterName": "DEFAULT", "checkPort": 81, "useInstancePort4Check": False}
    return {**given, "healthChecker": NONE, **more}


async def test_set_cluster_shows_in_every_dialect(server: Server) -> None:
    await server.register(ephemeral="false")
    http = '{"type":"HTTP","path":"/up"}'
    assert await server.ask("PUT", f"{V1}/cluster", **cluster(healthChecker=http, metadata="a=1")) == (200, "ok")
    checker = {"type": "HTTP", "path": "/up", "headers": "", "expectedResponseCode": 200}
    _, v1 = await server.ask("GET", f"{V1}/service", serviceName="orders")
    assert v1["clusters"] == [{"name": "DEFAULT", "healthChecker": checker, "metadata": {"a": "1"}}]
    _, v2 = await server.ask("GET", f"{V2}/service", serviceName="orders")
    shown = {"clusterName": "DEFAULT", "healthChecker": checker, "metadata": {"a": "1"}, "hosts": None}
    assert v2["data"]["clusterMap"] == {"DEFAULT": shown}
    _, v3 = await server.ask("GET", f"{V3}/service", serviceName="orders")
    ports = {"healthyCheckPort": 81, "useInstancePortForCheck": False}
    assert v3["data"]["clusterMap"] == {"DEFAULT": {**shown, **ports}}


async def test_catalog_service_shows_a_service_with_its_clusters(server: Server) -> None:
    await server.ask("POST", f"{V1}/service", serviceName="orders", protectThreshold=0.5, metadata="a=1")
    await server.register(ephemeral="false")
    mysql = '{"type":"MYSQL","user":"u"}'
    await server.ask("PUT", f"{V3}/cluster", **cluster(healthChecker=mysql))
    assert await server.ask("GET", f"{V1}/catalog/service", serviceName="DEFAULT_GROUP@@orders") == (
        200,
        {
            "service": {
                "name": "orders",
                "groupName": "DEFAULT_GROUP",
                "protectThreshold": 0.5,
                "selector": {"type": "none", "contextType": "NONE"},
                "metadata": {"a": "1"},
            },
            "clusters": [
                {
                    "serviceName": "DEFAULT_GROUP@@orders",
                    "name": "DEFAULT",
                    "healthChecker": {"type": "MYSQL", "user": "u"},
                    "defaultPort": 80,
                    "defaultCheckPort": 81,
                    "useIPPort4Check": False,
                    "metadata": {},
                }
            ],
        },
    )


async def test_administration_reports_missing_services_with_the_text_of_nacos(server: Server) -> None:
    said = await server.ask("GET", f"{V1}/catalog/service", serviceName="orders")
    assert said == (404, "service DEFAULT_GROUP@@orders is not found!")
    said = await server.ask("PUT", f"{V1}/cluster", **cluster())
    assert said == (400, "service not found:DEFAULT_GROUP@@orders")
    status, said = await server.ask("PUT", f"{V3}/cluster", **cluster())
    assert (status, said["code"]) == (400, 30000)


async def test_set_health_works_without_a_checker(server: Server) -> None:
    await server.register(ephemeral="false")
    sick = {"serviceName": "orders", "ip": "10.0.0.1", "port": 80, "healthy": "false"}
    working = (400, "health check is still working, service: DEFAULT_GROUP@@orders, cluster: DEFAULT")
    assert await server.ask("PUT", f"{V1}/health/instance", **sick) == working
    await server.ask("PUT", f"{V1}/cluster", **cluster(clusterName="c1"))
    assert await server.ask("PUT", f"{V1}/health", **sick) == working
    await server.ask("PUT", f"{V1}/cluster", **cluster())
    assert await server.ask("PUT", f"{V1}/health", **sick) == (200, "ok")
    assert await server.ask("PUT", f"{V1}/health", **{**sick, "ip": "10.0.0.9"}) == (200, "ok")
    _, found = await server.ask("GET", f"{V1}/instance", serviceName="orders", ip="10.0.0.1", port=80)
    assert found["healthy"] is False
    assert (await server.ask("PUT", f"{V2}/health", **{**sick, "healthy": "true"}))[1]["data"] == "ok"
    _, found = await server.ask("GET", f"{V1}/instance", serviceName="orders", ip="10.0.0.1", port=80)
    assert found["healthy"] is True


async def test_set_cluster_makes_the_service_explicit(server: Server) -> None:
    """From then on it is protected: if none is healthy, all are shown as healthy (nacos-http.md 5.5)."""
    await server.register(healthy="false")
    _, before = await server.ask("GET", f"{V1}/instance/list", serviceName="orders")
    assert (before["hosts"][0]["healthy"], before["reachProtectionThreshold"]) == (False, False)
    await server.ask("PUT", f"{V1}/cluster", **cluster())
    _, after = await server.ask("GET", f"{V1}/instance/list", serviceName="orders")
    assert (after["hosts"][0]["healthy"], after["reachProtectionThreshold"]) == (True, True)


# --- switches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "ok"), [(f"{V1}/operator/switches", False), (f"{V2}/ops/switches", True), (f"{V3}/ops/switches", True)]
)
async def test_set_switch_shows_in_the_switches(server: Server, path: str, ok: bool) -> None:
    said = await server.ask("PUT", path, entry="defaultCacheMillis", value="4000")
    assert said == (200, {"code": 0, "message": "success", "data": "ok"} if ok else "ok")
    _, shown = await server.ask("GET", path)
    assert (shown["data"] if ok else shown)["defaultCacheMillis"] == 4000
    assert (await server.ask("PUT", path, entry="nothing", value="x"))[0] == 200
    status, refused = await server.ask("PUT", path, entry="defaultCacheMillis", value="999")
    text = "min default cache time  is too small(<1000)"
    assert (status, refused) == ((500, {"code": 30000, "message": "server error", "data": text}) if ok else (400, text))


async def test_set_switch_of_beats_takes_effect(server: Server) -> None:
    await server.register()
    beat = {"serviceName": "orders", "ip": "10.0.0.1", "port": 80}
    await server.ask("PUT", f"{V1}/operator/switches", entry="clientBeatInterval", value="3000")
    await server.ask("PUT", f"{V1}/operator/switches", entry="lightBeatEnabled", value="false")
    for ip, code in (("10.0.0.1", 10200), ("10.0.0.2", 20404)):
        _, said = await server.ask("PUT", f"{V1}/instance/beat", **{**beat, "ip": ip})
        assert said == {"clientBeatInterval": 3000, "code": code, "lightBeatEnabled": False}


async def test_set_switch_check_off_stops_expiry(server: Server) -> None:
    await server.register()
    await server.ask("PUT", f"{V1}/operator/switches", entry="check", value="false")
    await server.clock.advance(100.0)
    _, listed = await server.ask("GET", f"{V1}/instance/list", serviceName="orders")
    assert [host["healthy"] for host in listed["hosts"]] == [True]
    await server.ask("PUT", f"{V1}/operator/switches", entry="check", value="true")
    await server.clock.advance(2.0)
    _, listed = await server.ask("GET", f"{V1}/instance/list", serviceName="orders")
    assert listed["hosts"] == []


# --- clients -----------------------------------------------------------------------------------------------------


async def test_clients_lists_who_registered_over_http(server: Server) -> None:
    await server.register()
    await server.register("stock")
    await server.register("fixed", ephemeral="false")
    names = ["10.0.0.1:80#true", "10.0.0.1:80#false"]
    for path in (f"{V2}/client/list", f"{V3}/client/list"):
        assert (await server.ask("GET", path))[1]["data"] == names
    _, metrics = await server.ask("GET", f"{V1}/operator/metrics", onlyStatus="false")
    assert [metrics[n] for n in ("instanceCount", "clientCount", "ephemeralIpPortClientCount")] == [3, 2, 1]


async def test_find_client_shows_what_it_registered(server: Server) -> None:
    await server.register(clusterName="c1")
    await server.clock.advance(2.0)
    await server.ask("PUT", f"{V1}/instance/beat", serviceName="orders", ip="10.0.0.1", port=80)
    heard, name = int(server.clock.wall() * 1000), "10.0.0.1:80#true"
    await server.clock.advance(3.0)
    summary = {"clientId": name, "ephemeral": True, "lastUpdatedTime": heard, "clientType": "ipPort"}
    _, v2 = await server.ask("GET", f"{V2}/client", clientId=name)
    assert v2["data"] == {**summary, "clientIp": "10.0.0.1", "clientPort": "80"}
    _, v3 = await server.ask("GET", f"{V3}/client", clientId=name)
    nothing = {"connectType": None, "appName": None, "version": None, "clientIp": None, "clientPort": 0}
    assert v3["data"] == {**summary, **nothing}
    _, v2 = await server.ask("GET", f"{V2}/client/publish/list", clientId=name)
    registered = {"ip": "10.0.0.1", "port": 80, "cluster": "c1"}
    service = {"namespace": "public", "group": "DEFAULT_GROUP", "serviceName": "orders"}
    assert v2["data"] == [{**service, "registeredInstance": registered}]
    _, v3 = await server.ask("GET", f"{V3}/client/publish/list", clientId=name)
    publisher = {"clientId": None, "ip": "10.0.0.1", "port": 80, "clusterName": "c1"}
    service = {"namespaceId": "public", "groupName": "DEFAULT_GROUP", "serviceName": "orders"}
    assert v3["data"] == [{**service, "publisherInfo": publisher, "subscriberInfo": None}]
    for path in (f"{V2}/client/subscribe/list", f"{V3}/client/subscribe/list"):
        assert (await server.ask("GET", path, clientId=name))[1]["data"] == []


@pytest.mark.parametrize("path", ["client", "client/publish/list", "client/subscribe/list"])
@pytest.mark.parametrize("below", [V2, V3])
async def test_find_client_refuses_an_unknown_client(server: Server, below: str, path: str) -> None:
    said = {"code": 20004, "message": "resource not found", "data": "clientId [ x ] not exist"}
    assert await server.ask("GET", f"{below}/{path}", clientId="x") == (404, said)


async def test_publishers_are_filtered_on_v3_and_complete_on_v2(server: Server) -> None:
    await server.register()
    await server.register(ip="10.0.0.2")
    await server.register("stock", ip="10.0.0.3")
    path, service = "client/service/publisher/list", {"serviceName": "orders"}
    _, v3 = await server.ask("GET", f"{V3}/{path}", **service)
    assert [row["clientId"] for row in v3["data"]] == ["10.0.0.1:80#true", "10.0.0.2:80#true"]
    _, v3 = await server.ask("GET", f"{V3}/{path}", **service, ip="10.0.0.2")
    row = {"clientId": "10.0.0.2:80#true", "ip": "10.0.0.2", "port": 80, "clusterName": "DEFAULT"}
    assert v3["data"] == [row]
    assert (await server.ask("GET", f"{V2}/{path}", **service))[1]["data"] == []
    _, v2 = await server.ask("GET", f"{V2}/{path}", **service, ip="10.0.0.2", port=80)
    assert v2["data"] == [{"ip": "10.0.0.2", "port": 80, "cluster": "DEFAULT", "clientId": "10.0.0.2:80#true"}]
    assert (await server.ask("GET", f"{V2}/client/service/subscriber/list", **service))[1]["data"] == []


async def test_administration_lets_other_tasks_run_during_long_calls(server: Server) -> None:
    """With 10,000 services of 10 instances the list of clients blocked all others for 1.9 s."""
    for number in range(3 * BATCH):
        await server.registry.send(Register(key(f"s{number}"), instance()))

    for call in (Metrics(only_status=False), Clients(), ListDetails("public", size=3 * BATCH)):
        assert await turns_during(server.registry.send(call)) > 3
    assert await turns_during(server.registry.send(FindClient("10.0.0.1:80#true"))) == 1
    found = await server.registry.send(FindClient("10.0.0.1:80#true"))
    assert len(found.published) == 3 * BATCH


@pytest.mark.parametrize("name", ["10.0.0.1:80", "10.0.0.1:080#true", "10.0.0.1:80#false", "10.0.0.1:x#true", "", "#"])
async def test_find_client_needs_the_exact_name(server: Server, name: str) -> None:
    await server.register()
    with pytest.raises(Refused, match="not exist"):
        await server.registry.send(FindClient(name))


async def test_clients_answers_a_large_list_completely(server: Server) -> None:
    for number in range(150):
        await server.register(f"s{number}", f"10.0.1.{number}")
    _, clients = await server.ask("GET", f"{V2}/client/list")
    assert len(clients["data"]) == 150
    _, page = await server.ask("GET", f"{V1}/catalog/services", pageNo=1, pageSize=200, withInstances="false")
    assert (page["count"], len(page["serviceList"])) == (150, 150)
