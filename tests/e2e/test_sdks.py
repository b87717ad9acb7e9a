"""Unmodified SDKs of other languages that speak HTTP at the proxy, in front of servers of each generation.

A user changes only the server address. `tests/e2e/clients/` holds a small program for each SDK. Tests name the
peculiarities of an SDK (such as its cache) where they matter.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import pytest_asyncio

from nacos_proxy.runtime import SystemClock
from tests.e2e.clients import HTTP, PORT, Client, Sdks, addresses, by_another, of, required
from tests.e2e.conftest import UPSTREAMS, process
from tests.helpers.app import serving
from tests.helpers.faces import facing
from tests.helpers.fault import fault_proxy
from tests.helpers.live import RNacos, rnacos_binary

V1 = "/nacos/v1/ns"
MAINTAINS = ("java", "go")  # the Node SDK cannot update, select one instance, or list services
BEATING = 22.0  # seconds; a server marks an instance unhealthy after 15 without a beat
LONG = ("r-nacos", "v3")  # upstreams at which SDKs beat for that long
SILENT = "10.0.0.99"  # has no beats
# All in one cluster: the Node SDK subscribes to DEFAULT if no cluster is named.
ONE = [("10.0.0.1", "DEFAULT")]
TWO = [*ONE, ("10.0.0.2", "DEFAULT")]

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1000)]


@dataclass
class Stand:
    """Shared by all tests: a process of each SDK, and a proxy in front of each generation of servers.

    Only the proxies in front of r-nacos and 3.2 are processes, because the start of a process takes seconds.
    """

    sdks: Sdks
    stack: AsyncExitStack
    rnacos: RNacos | None
    proxies: dict[str, str] = field(default_factory=dict)
    servers: dict[str, str] = field(default_factory=dict)
    began: float = 0.0

    async def make(self) -> None:
        await asyncio.gather(*map(self.sdks.add, HTTP))
        if self.sdks.running:
            for upstream in ("embedded", "polled", *UPSTREAMS):
                await self._proxy(upstream)
            await asyncio.gather(*(self._join(s, upstream) for s in self.sdks.running for upstream in self.proxies))
            await self._begin()

    async def _begin(self) -> None:
        """Starts what takes long, so that it runs during the other tests."""
        for upstream in LONG:
            if upstream in self.proxies:
                await by_another(self.proxies[upstream], "POST", "beaten", SILENT)
                for number, language in enumerate(self.sdks.running):
                    mine = {"ip": f"10.0.0.{number + 1}", "port": PORT, "weight": 3.0, "metadata": {"sdk": language}}
                    await self.at(language, upstream)("register", service="beaten", **mine)
        await by_another(self.proxies["polled"], "POST", "polled", "10.0.0.1")
        for language in self.sdks.running:
            polled = self.at(language, "polled")
            await polled("subscribe", service="polled", name=f"polled-{language}")
            await polled.told(f"polled-{language}", ONE)
        await by_another(self.proxies["polled"], "POST", "polled", "10.0.0.2")
        self.began = SystemClock().now()

    async def _proxy(self, upstream: str) -> None:
        enter = self.stack.enter_async_context
        if upstream in ("embedded", "polled"):
            self.proxies[upstream] = (await enter(serving(udp_push=upstream == "embedded"))).url
        elif upstream == "r-nacos":
            if self.rnacos is not None:
                self.servers[upstream] = self.rnacos.url
                self.proxies[upstream] = (await enter(process("--upstream", self.rnacos.url))).url
        else:
            server = await enter(facing(upstream))
            self.servers[upstream] = server.url
            proxy = (
                process("--upstream", server.url) if upstream == "v3" else serving(upstream=server.url, udp_push=True)
            )
            self.proxies[upstream] = (await enter(proxy)).url

    async def _join(self, language: str, upstream: str) -> None:
        address = self.proxies[upstream].removeprefix("http://")
        await self.sdks.running[language].call("connect", client=upstream, server=address)

    def at(self, language: str, upstream: str) -> Client:
        sdk = self.sdks.get(language)
        if upstream not in self.proxies:
            pytest.skip("no r-nacos")
        return Client(sdk, upstream, self.proxies[upstream])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stand(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> AsyncIterator[Stand]:
    rnacos = request.getfixturevalue("rnacos") if rnacos_binary() else None
    async with AsyncExitStack() as stack:
        sdks = Sdks(tmp_path_factory.mktemp("sdks"))
        stack.push_async_callback(sdks.close)
        stand = Stand(sdks, stack, rnacos)
        await stand.make()
        yield stand


@pytest.fixture(params=HTTP)
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["embedded", *UPSTREAMS])
def client(stand: Stand, language: str, request: pytest.FixtureRequest) -> Client:
    return stand.at(language, request.param)


def changed(hosts: Any) -> Any:
    """Weight and zone: after an update servers keep other metadata, r-nacos does not."""
    return [(weight, metadata["zone"]) for weight, metadata in of("10.0.0.1", "weight", "metadata")(hosts)]


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


async def test_sdk_registers_lists_updates_and_deregisters(client: Client, service: str) -> None:
    await by_another(client.proxy, "POST", service, "10.0.0.9")
    mine = {"service": service, "ip": "10.0.0.1", "port": PORT, "cluster": "c1"}
    assert await client("register", **mine, weight=2.0, metadata={"zone": "a b", "ü": "北京"}) is True
    await client.seen("instances", [("10.0.0.1", "c1"), ("10.0.0.9", "DEFAULT")], addresses, service=service)
    fields = ("id", "service", "weight", "healthy", "enabled", "metadata")
    grouped = f"DEFAULT_GROUP@@{service}"
    shown = (f"10.0.0.1#{PORT}#c1#{grouped}", grouped, 2.0, True, True, {"zone": "a b", "ü": "北京"})
    await client.seen("select", [shown], of("10.0.0.1", *fields), service=service)
    if client.sdk.language in MAINTAINS:
        [one] = await client("one", service=service, clusters=["c1"])
        assert one["ip"] == "10.0.0.1"
        await client("update", **mine, weight=5.0, metadata={"zone": "b"})
        await client.seen("instances", [(5.0, "b")], changed, service=service)
    await client("deregister", **mine)
    await client.seen("instances", [("10.0.0.9", "DEFAULT")], addresses, service=service)


async def test_sdk_separates_groups_and_clusters(client: Client, service: str) -> None:
    for number in (1, 2, 3):
        mine = {"ip": f"10.0.0.{number}", "port": PORT, "cluster": f"c{number}"}
        await client("register", service=service, group=service, **mine)
    some = {"service": service, "group": service, "clusters": ["c1", "c3"]}
    await client.seen("instances", [("10.0.0.1", "c1"), ("10.0.0.3", "c3")], addresses, **some)
    await client.seen("instances", 3, len, service=service, group=service)
    if client.sdk.language in MAINTAINS:
        assert await client("services", group=service, size=10) == {"count": 1, "names": [service]}


async def test_sdk_registers_a_persistent_instance(client: Client, service: str) -> None:
    mine = {"service": service, "ip": "10.0.0.1", "port": PORT, "ephemeral": False}
    await client("register", **mine)
    await client.seen("instances", [("10.0.0.1", "DEFAULT")], addresses, service=service)
    await client("deregister", **mine)


@pytest.mark.parametrize("language", ["java", "node"])
async def test_sdk_reports_the_server_as_up(client: Client) -> None:
    assert await client("status") == "UP"


async def test_sdk_subscriber_gets_changes_by_push_alone(stand: Stand, client: Client, service: str) -> None:
    """A relay between SDK and proxy refuses connections after the first list: only datagrams get through."""
    sdk, proxy, name = client.sdk, client.proxy, f"pushed-{service}-{client.sdk.language}"
    await by_another(proxy, "POST", service, "10.0.0.1")
    async with fault_proxy(port_of(proxy)) as relay:
        await sdk.call("connect", client=name, server=f"127.0.0.1:{relay.port}")
        await sdk.call("subscribe", client=name, service=service, name=name)
        await client.told(name, ONE)
        await relay.set("refuse")
        await by_another(proxy, "POST", service, "10.0.0.2")
        await client.told(name, TWO)
        await by_another(proxy, "DELETE", service, "10.0.0.1")
        await client.told(name, TWO[1:])
        await relay.set("pass")
        await sdk.call("unsubscribe", client=name, service=service, name=name)


async def test_sdk_publishes_listens_to_and_removes_configuration(stand: Stand, language: str, service: str) -> None:
    client = stand.at(language, "r-nacos")
    text = "a: 1\nb: 北京 & co=%20+\n"
    assert await client("publish", dataId=service, content=text) is True
    await client.seen("config", text, str, dataId=service)
    name = f"config-{service}"
    await client("listen", dataId=service, name=name)
    form = {"dataId": service, "group": "DEFAULT_GROUP", "content": "c: 2"}
    async with httpx.AsyncClient(base_url=client.proxy, trust_env=False) as http:
        assert (await http.post("/nacos/v1/cs/configs", data=form)).text == "true"
    while await client.sdk.event(name) != "c: 2":
        pass
    assert await client("remove", dataId=service) in (True, "true")
    await client.seen("config", True, lambda found: not found, dataId=service)


async def test_sdk_subscriber_without_udp_gets_changes_by_its_poll(stand: Stand, language: str) -> None:
    """The change was made when the first test began. SDKs poll every ten seconds, as lists tell them."""
    await stand.at(language, "polled").told(f"polled-{language}", TWO)


async def health(server: str, upstream: str) -> dict[str, bool]:
    """The health of each instance of `beaten` at the server itself."""
    path = "/nacos/v3/client/ns/instance/list" if upstream == "v3" else f"{V1}/instance/list"
    async with httpx.AsyncClient(base_url=server, trust_env=False) as http:
        body = (await http.get(path, params={"serviceName": "beaten"})).json()
    return {host["ip"]: host["healthy"] for host in (body["data"] if upstream == "v3" else body["hosts"])}


@pytest.mark.parametrize("upstream", LONG)
async def test_sdk_beats_keep_an_instance_healthy_at_the_server(stand: Stand, upstream: str) -> None:
    """Lasts longer than the server's timeout: an instance without beats becomes unhealthy."""
    languages = [name for name in HTTP if name not in stand.sdks.missing or required(name)]
    clients = [stand.at(language, upstream) for language in languages] or [stand.at("go", upstream)]
    expected = {f"10.0.0.{number + 1}": True for number in range(len(clients))}
    while SystemClock().now() < stand.began + BEATING:
        assert expected.items() <= (await health(stand.servers[upstream], upstream)).items()
        await asyncio.sleep(0.25)
    found = await health(stand.servers[upstream], upstream)
    assert not found.pop(SILENT, False), "ill, or gone already"
    assert found == expected
    for client in clients:
        view = of("10.0.0.1", "healthy", "weight")
        await client.seen("select", [(True, 3.0)], view, service="beaten")
        await client.seen("select", [], of(SILENT, "ip"), service="beaten")


ACCOUNT = {"username": "nacos", "password": "pw"}


@pytest.mark.parametrize("generation", ["v1+v2", "v3"])
@pytest.mark.parametrize("auth", ["proxy", "client"])
@pytest.mark.parametrize("language", ["java", "go", "node"])
async def test_sdk_works_with_an_account(stand: Stand, language: str, auth: str, generation: str, service: str) -> None:
    """Java and Go log in through the proxy and send their token; Node sends name and password with each call."""
    sdk = stand.at(language, "embedded").sdk
    name = f"login-{service}"
    async with facing(generation, passwords={"nacos": "pw"}) as server:
        async with serving(upstream=server.url, auth=auth, **(ACCOUNT if auth == "proxy" else {})) as proxy:
            client = Client(sdk, name, proxy.url)
            await sdk.call("connect", client=name, server=proxy.url.removeprefix("http://"), **ACCOUNT)
            await client("register", service=service, ip="10.0.0.1", port=PORT)
            await client.seen("instances", ONE, addresses, service=service)
            await client("deregister", service=service, ip="10.0.0.1", port=PORT)
