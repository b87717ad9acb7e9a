"""nacos-sdk-python 2.0.11, unmodified, at the proxy, in front of servers of each generation.

The SDK blocks, so it runs in a thread beside the event loop of the upstream. A user changes only the server address.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import nacos
import pytest
import pytest_asyncio
from nacos.exception import NacosException
from nacos.listener import SubscribeListener

from tests.e2e.conftest import PROMPT, UPSTREAMS, process
from tests.helpers.faces import FACES, facing
from tests.helpers.fault import fault_proxy
from tests.helpers.live import ProxyProcess

IP, PORT = "10.0.0.1", 8080


pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),  # one process for all tests of a generation
    pytest.mark.filterwarnings("ignore:ssl:DeprecationWarning"),  # the SDK creates its TLS contexts as for Python 3.5
]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=UPSTREAMS)
async def proxy(request: pytest.FixtureRequest) -> AsyncIterator[ProxyProcess]:
    async with AsyncExitStack() as stack:
        if request.param == "r-nacos":
            url = request.getfixturevalue("rnacos").url
        else:
            lag = 0.0 if request.param in PROMPT else 0.55
            url = (await stack.enter_async_context(facing(request.param, listing_delay=lag))).url
        yield await stack.enter_async_context(process("--upstream", url))


@pytest.fixture
def behind(request: pytest.FixtureRequest) -> str:
    """The kind of server behind the proxy."""
    return str(request.node.callspec.params["proxy"])


@pytest.fixture
def client(proxy: ProxyProcess, tmp_path: Path) -> nacos.NacosClient:
    return sdk(proxy, tmp_path)


def sdk(proxy: ProxyProcess, tmp_path: Path, **more: Any) -> nacos.NacosClient:
    return nacos.NacosClient(f"127.0.0.1:{proxy.port}", logDir=str(tmp_path), **more)


async def beside(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    return await asyncio.to_thread(function, *arguments, **named)


def addresses(listed: dict[str, Any]) -> list[tuple[str, int, str]]:
    return sorted((host["ip"], host["port"], host["clusterName"]) for host in listed["hosts"])


async def test_legacy_sdk_add_list_beat_and_remove_an_instance(client: nacos.NacosClient, service: str) -> None:
    def life() -> None:
        assert client.add_naming_instance(service, IP, PORT, "c1", 2.0, {"zone": "a"}, True, True, True) is True
        listed = client.list_naming_instance(service)
        assert addresses(listed) == [(IP, PORT, "c1")]
        assert (listed["name"], listed["groupName"], listed["clusters"]) == (
            f"DEFAULT_GROUP@@{service}",
            "DEFAULT_GROUP",
            "",
        )
        (host,) = listed["hosts"]
        assert (host["weight"], host["metadata"], host["ephemeral"]) == (2.0, {"zone": "a"}, True)
        got = client.get_naming_instance(service, IP, PORT, "c1")
        assert (got["ip"], got["port"], got["weight"], got["metadata"]) == (IP, PORT, 2.0, {"zone": "a"})
        assert client.modify_naming_instance(service, IP, PORT, "c1", 5.0, {"zone": "b"}, True) is True
        (host,) = client.list_naming_instance(service, healthy_only=True)["hosts"]
        assert (host["weight"], host["metadata"]["zone"]) == (5.0, "b")
        beat = client.send_heartbeat(service, IP, PORT, "c1", 5.0, {"zone": "b"})
        assert (beat["code"], beat["clientBeatInterval"], beat["lightBeatEnabled"]) == (10200, 5000, True)
        assert client.remove_naming_instance(service, IP, PORT, "c1") is True
        assert client.list_naming_instance(service)["hosts"] == []

    await beside(life)


async def test_legacy_sdk_lists_by_cluster_and_group(client: nacos.NacosClient, service: str) -> None:
    def life() -> None:
        for number, cluster in enumerate(("c1", "c2", "c3")):
            client.add_naming_instance(service, f"10.0.0.{number}", PORT, cluster, group_name="G")
        listed = client.list_naming_instance(service, "c1,c3", group_name="G")
        assert addresses(listed) == [("10.0.0.0", PORT, "c1"), ("10.0.0.2", PORT, "c3")]
        assert (listed["name"], listed["clusters"]) == (f"G@@{service}", "c1,c3")
        assert len(client.list_naming_instance(service, group_name="G")["hosts"]) == 3
        assert client.list_naming_instance(service)["hosts"] == []

    await beside(life)


async def test_legacy_sdk_sends_none_as_the_default_cluster(
    client: nacos.NacosClient, behind: str, service: str
) -> None:
    """The SDK sends None as text, which servers accept as a name; on 1.x it is part of the instance's key."""

    def life() -> None:
        client.add_naming_instance(service, IP, PORT)
        assert addresses(client.list_naming_instance(service)) == [(IP, PORT, "None")]
        (host,) = client.list_naming_instance(service)["hosts"]
        assert host["instanceId"] == f"{IP}#{PORT}#None#DEFAULT_GROUP@@{service}"
        cluster = "None" if behind == "1.x" else None
        assert client.remove_naming_instance(service, IP, PORT, cluster) is True
        assert client.list_naming_instance(service)["hosts"] == []

    await beside(life)


async def test_legacy_sdk_may_repeat_writes(client: nacos.NacosClient, service: str) -> None:
    def life() -> None:
        for _ in range(3):
            assert client.add_naming_instance(service, IP, PORT, "c1") is True
        assert addresses(client.list_naming_instance(service)) == [(IP, PORT, "c1")]
        for _ in range(3):
            assert client.modify_naming_instance(service, IP, PORT, "c1", weight=3) is True
        assert [host["weight"] for host in client.list_naming_instance(service)["hosts"]] == [3.0]
        for _ in range(3):
            assert client.remove_naming_instance(service, IP, PORT, "c1") is True
        assert client.list_naming_instance(service)["hosts"] == []

    await beside(life)


async def test_legacy_sdk_adds_and_removes_a_persistent_instance(client: nacos.NacosClient, service: str) -> None:
    def life() -> None:
        assert client.add_naming_instance(service, IP, PORT, "c1", ephemeral=False) is True
        assert [host["ephemeral"] for host in client.list_naming_instance(service)["hosts"]] == [False]
        assert client.remove_naming_instance(service, IP, PORT, "c1", ephemeral=False) is True
        assert client.list_naming_instance(service)["hosts"] == []

    await beside(life)


async def test_legacy_sdk_raises_for_an_unknown_instance(client: nacos.NacosClient, service: str) -> None:
    def life() -> None:
        client.add_naming_instance(service, IP, PORT, "c1")
        with pytest.raises(NacosException, match="404"):
            client.get_naming_instance(service, "10.0.0.9", PORT, "c1")
        with pytest.raises(NacosException, match="400"):
            client.add_naming_instance(service, IP, PORT, "c1", weight=10_001)

    await beside(life)


Heard = queue.SimpleQueue[tuple[str, str, float]]


def listening(name: str) -> tuple[Heard, SubscribeListener]:
    """The events, addresses and weights that a listener of the SDK gets."""
    heard: Heard = queue.SimpleQueue()

    def told(event: str, instance: Any) -> None:
        heard.put((event, instance.instance["ip"], instance.instance["weight"]))

    return heard, SubscribeListener(told, name)


async def test_legacy_sdk_subscriber_gets_changes_until_it_unsubscribes(
    client: nacos.NacosClient, service: str
) -> None:
    heard, first = listening("first")
    others, second = listening("second")

    def life() -> None:
        client.add_naming_instance(service, "10.0.0.1", PORT, "c1")
        client.subscribe([first, second], 0.05, service)  # the SDK does not report the first instance of the first list
        client.add_naming_instance(service, "10.0.0.2", PORT, "c1")
        assert heard.get(timeout=60) == ("ADDED", "10.0.0.2", 1.0)
        client.modify_naming_instance(service, "10.0.0.2", PORT, "c1", weight=4)
        assert heard.get(timeout=60) == ("MODIFIED", "10.0.0.2", 4.0)
        client.remove_naming_instance(service, "10.0.0.1", PORT, "c1")
        assert heard.get(timeout=60) == ("DELETED", "10.0.0.1", 1.0)
        client.unsubscribe(service, "first")
        client.add_naming_instance(service, "10.0.0.3", PORT, "c1")
        told = [others.get(timeout=60)[:2] for _ in range(4)]
        assert told[-1] == ("ADDED", "10.0.0.3")
        assert heard.empty()

    try:
        await beside(life)
    finally:
        await beside(client.stop_subscribe)


@pytest.mark.parametrize("generation", ["v1+v2", "v3"])
async def test_legacy_sdk_subscription_and_beats_survive_an_outage(
    generation: str, tmp_path: Path, service: str
) -> None:
    """A single failed poll would end the SDK's subscription, so lists are answered 200 during an outage.

    A registration during the outage shows at once here, and at the server after it.
    """
    heard, listener = listening("only")
    async with facing(generation) as server, fault_proxy(int(server.url.rpartition(":")[2])) as relay:
        async with process("--upstream", relay.url) as proxy:
            client = sdk(proxy, tmp_path)
            try:
                await beside(client.add_naming_instance, service, "10.0.0.1", PORT, "c1")
                await beside(client.subscribe, listener, 0.05, service)
                await relay.set("refuse")
                first = len(server.asked)
                for _ in range(20):
                    assert addresses(await beside(client.list_naming_instance, service)) == [("10.0.0.1", PORT, "c1")]
                    beat = await beside(client.send_heartbeat, service, "10.0.0.1", PORT, "c1")
                    assert beat["code"] == 10200
                assert await beside(client.add_naming_instance, service, "10.0.0.2", PORT, "c1") is True
                assert await beside(heard.get, timeout=60) == ("ADDED", "10.0.0.2", 1.0)
                await relay.set("pass")
                while not any(line.startswith("POST") for line in server.asked[first:]):
                    await beside(client.send_heartbeat, service, "10.0.0.2", PORT, "c1")
            finally:
                await beside(client.stop_subscribe)


@pytest.mark.parametrize("generation", FACES)
async def test_legacy_sdk_logs_in_and_uses_its_token(generation: str, tmp_path: Path, service: str) -> None:
    async with facing(generation, passwords={"nacos": "pw"}) as server:
        account = {"NACOS_PROXY_USERNAME": "nacos", "NACOS_PROXY_PASSWORD": "pw"}
        async with process("--upstream", server.url, **account) as proxy:
            client = await beside(sdk, proxy, tmp_path, username="nacos", password="pw")
            assert await beside(client.add_naming_instance, service, IP, PORT, "c1") is True
            assert addresses(await beside(client.list_naming_instance, service)) == [(IP, PORT, "c1")]
