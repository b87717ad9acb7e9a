"""Unmodified SDKs that speak gRPC at the proxy, in front of the embedded registry, r-nacos and a stand-in for 2.5.1.

A user changes only the server address. What SDKs do differently is in nacos-grpc.md 9.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import pytest_asyncio

from nacos_proxy.runtime import SystemClock, spawn, stop
from tests.e2e.clients import GRPC, PATIENCE, PORT, Client, SdkError, Sdks, addresses, by_another, of
from tests.e2e.conftest import process
from tests.helpers.faces import facing
from tests.helpers.fault import FaultProxy, Mode, fault_proxy
from tests.helpers.live import GRPC_OFFSET, ProxyProcess, RNacos, free_port, rnacos_binary

CLOCK = SystemClock()
SERVERS = ("r-nacos", "2.5.1")
UPSTREAMS = ("embedded", *SERVERS)
LISTS = ("java25", "java3", "go2", "python3")  # the Rust SDK lists no services and never unsubscribes
ONE = [("10.0.0.1", "DEFAULT")]
LASTING = {"ephemeral": "false"}  # without beats an ephemeral instance would lapse
TWO = [*ONE, ("10.0.0.2", "DEFAULT")]

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1000)]


@dataclass
class Stand:
    """Shared by all tests: a process of each SDK, and a proxy (a process) in front of each upstream."""

    sdks: Sdks
    stack: AsyncExitStack
    servers: dict[str, str] = field(default_factory=dict)
    proxies: dict[str, ProxyProcess] = field(default_factory=dict)

    async def make(self, rnacos: RNacos | None) -> None:
        await asyncio.gather(*map(self.sdks.add, GRPC))
        if rnacos is not None:
            self.servers["r-nacos"] = rnacos.url
        self.servers["2.5.1"] = (await self.stack.enter_async_context(facing("v1+v2", grpc=True))).url
        for upstream in ("embedded", *self.servers):
            self.proxies[upstream] = await self.stack.enter_async_context(proxy(self.server(upstream)))
        await asyncio.gather(*(self.at(s, upstream) for s in self.sdks.running for upstream in self.proxies))

    def server(self, upstream: str) -> str:
        """The value of `--upstream`."""
        return self.servers.get(upstream, "embedded")

    def shown_at(self, upstream: str) -> str:
        """Where to ask what the server itself lists."""
        return self.servers.get(upstream, self.proxies[upstream].url)

    async def at(self, language: str, upstream: str) -> Client:
        if upstream not in self.proxies:
            pytest.skip("no r-nacos")
        client = Client(self.sdks.get(language), upstream, self.proxies[upstream].url)
        if (language, upstream) not in self._joined:
            self._joined.add((language, upstream))
            await join(client)
        return client

    _joined: set[tuple[str, str]] = field(default_factory=set)


@dataclass
class Relay:
    """Between a proxy and its upstream: HTTP, and gRPC on the port + 1000."""

    http: FaultProxy
    grpc: FaultProxy

    @property
    def url(self) -> str:
        return self.http.url

    async def set(self, mode: Mode) -> None:
        await asyncio.gather(self.http.set(mode), self.grpc.set(mode))


@asynccontextmanager
async def relays(server: str) -> AsyncIterator[Relay]:
    target, port = int(server.rpartition(":")[2]), free_port(and_offset=GRPC_OFFSET)
    async with fault_proxy(target, port) as http, fault_proxy(target + GRPC_OFFSET, port + GRPC_OFFSET) as grpc:
        yield Relay(http, grpc)


@asynccontextmanager
async def proxy(upstream: str, *arguments: str) -> AsyncIterator[ProxyProcess]:
    """The proxy on a port that has a free one for gRPC."""
    port = free_port(and_offset=GRPC_OFFSET)
    async with process("--port", str(port), "--upstream", upstream, *arguments) as started:
        yield started


async def join(client: Client) -> Client:
    await client("connect", server=client.proxy.removeprefix("http://"))
    return client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stand(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> AsyncIterator[Stand]:
    async with AsyncExitStack() as stack:
        sdks = Sdks(tmp_path_factory.mktemp("sdks"))
        made = Stand(sdks, stack)
        await made.make(request.getfixturevalue("rnacos") if rnacos_binary() else None)
        yield made
        await sdks.close()


@pytest.fixture(params=GRPC)
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=UPSTREAMS)
def upstream(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(loop_scope="module")
async def client(stand: Stand, language: str, upstream: str) -> Client:
    return await stand.at(language, upstream)


async def listed(server: str, service: str, group: str = "DEFAULT_GROUP") -> dict[str, bool]:
    """The health of each instance that this server lists."""
    query = {"serviceName": service, "groupName": group}
    async with httpx.AsyncClient(base_url=server, trust_env=False, timeout=PATIENCE) as http:
        reply = await http.get("/nacos/v1/ns/instance/list", params=query)
    return {host["ip"]: host["healthy"] for host in reply.json()["hosts"]}


async def status(proxy: str) -> Any:
    async with httpx.AsyncClient(base_url=proxy, trust_env=False, timeout=PATIENCE) as http:
        return (await http.get("/status", headers={"accept": "application/json"})).json()["grpc"]


async def until(condition: Callable[[], Any], *, seconds: float = PATIENCE) -> float:
    """Waits for an awaitable condition; returns how long it took."""
    began = CLOCK.now()
    while not await condition():
        assert CLOCK.now() - began < seconds, f"not within {seconds} s"
        await asyncio.sleep(0.01)
    return CLOCK.now() - began


async def test_grpc_sdk_registers_lists_batches_and_deregisters(stand: Stand, client: Client, service: str) -> None:
    """With an HTTP client beside it: each sees what the other has registered."""
    await by_another(client.proxy, "POST", service, "10.0.0.9")
    mine = {"service": service, "ip": "10.0.0.1", "port": PORT}
    assert await client("register", **mine, weight=2.0, metadata={"zone": "a b", "ü": "北京"}) is True
    await client.seen("instances", [*ONE, ("10.0.0.9", "DEFAULT")], addresses, service=service)
    grouped = f"DEFAULT_GROUP@@{service}"
    shown = (grouped, 2.0, True, True, {"zone": "a b", "ü": "北京"})
    fields = ("service", "weight", "healthy", "enabled", "metadata")
    await client.seen("select", [shown], of("10.0.0.1", *fields), service=service)
    assert await listed(client.proxy, service) == {"10.0.0.1": True, "10.0.0.9": True}
    server = stand.shown_at(client.name)
    await until(lambda: _lists(server, service, {"10.0.0.1", "10.0.0.9"}))
    batch = [{"ip": ip, "port": PORT, "cluster": "c1"} for ip in ("10.0.0.2", "10.0.0.3")]
    await client("batch", service=service, instances=batch)
    three = [("10.0.0.2", "c1"), ("10.0.0.3", "c1"), ("10.0.0.9", "DEFAULT")]
    await client.seen("instances", three, addresses, service=service)
    for one in batch:  # Nacos forgets both when one is named
        await client("deregister", service=service, **one)
    await client.seen("instances", three[2:], addresses, service=service)
    await until(lambda: _lists(server, service, {"10.0.0.9"}))


async def _lists(server: str, service: str, expected: Collection[str]) -> bool:
    return set(await listed(server, service)) == set(expected)


async def test_grpc_sdk_separates_groups_and_clusters(client: Client, service: str) -> None:
    batch = [{"ip": f"10.0.0.{n}", "port": PORT, "cluster": f"c{n}"} for n in (1, 2, 3)]
    await client("batch", service=service, group=service, instances=batch)
    some = {"service": service, "group": service, "clusters": ["c1", "c3"]}
    await client.seen("instances", [("10.0.0.1", "c1"), ("10.0.0.3", "c3")], addresses, **some)
    if client.sdk.language != "rust":  # Nacos keeps one subscription of a connection to a service; Rust lists by it
        await client.seen("instances", 3, len, service=service, group=service)
    if client.sdk.language in LISTS:
        await client.seen("services", {"count": 1, "names": [service]}, lambda found: found, group=service, size=10)
    await client("deregister", service=service, group=service, **batch[0])


async def test_grpc_sdk_registers_a_persistent_instance(stand: Stand, client: Client, service: str) -> None:
    mine = {"service": service, "ip": "10.0.0.1", "port": PORT, "ephemeral": False}
    await client("register", **mine)
    await client.seen("instances", ONE, addresses, service=service)
    await client("deregister", **mine)
    for server in (client.proxy, stand.shown_at(client.name)):
        await until(
            lambda server=server: _lists(server, service, ())
        )  # SDKs for Python and Rust do not accept an empty list


async def test_grpc_sdk_subscriber_hears_changes_until_it_unsubscribes(
    stand: Stand, client: Client, service: str
) -> None:
    """Changes through the proxy, and at the server itself."""
    name = f"{service}-{client.sdk.language}-{client.name}"
    await by_another(client.proxy, "POST", service, "10.0.0.1")
    before = await subscriptions(client)
    await client("subscribe", service=service, name=name)
    await client.told(name, ONE)
    await by_another(client.proxy, "POST", service, "10.0.0.2")
    await client.told(name, TWO)
    await by_another(client.proxy, "DELETE", service, "10.0.0.1")
    await client.told(name, TWO[1:])
    server = stand.shown_at(client.name)
    await by_another(server, "POST", service, "10.0.0.3")
    await client.told(name, [*TWO[1:], ("10.0.0.3", "DEFAULT")])
    if client.sdk.language in LISTS:
        await client("unsubscribe", service=service, name=name)
        assert await subscriptions(client) == before


async def subscriptions(client: Client) -> int:
    """Of all sessions of the proxy."""
    return sum(session["subscriptions"] for session in (await status(client.proxy))["sessions"])


async def test_grpc_sdk_hears_a_write_by_http_at_once_and_the_reverse(stand: Stand, language: str) -> None:
    """The proxy pushes what it knows without delay: Nacos and r-nacos do so 0.5 to 1 s later."""
    client = await stand.at(language, "embedded")
    service = name = f"mixed-{language}"
    await by_another(client.proxy, "POST", service, "10.0.0.9")
    await client("subscribe", service=service, name=name)
    await client.told(name, [("10.0.0.9", "DEFAULT")])
    heard = []
    for n in range(1, 6):
        await by_another(client.proxy, "POST", service, f"10.0.0.{n}")
        began = CLOCK.now()
        while len(await client.sdk.event(name)) != n + 1:
            pass
        heard.append(CLOCK.now() - began)
    assert min(heard) < 0.1
    async with httpx.AsyncClient(base_url=client.proxy, trust_env=False, timeout=PATIENCE) as http:
        async with http.stream("GET", "/api/v1/events", params={"service": f"{service}-2"}) as stream:
            lines = (line async for line in stream.aiter_lines() if line.startswith("data:"))
            await anext(lines)
            await client("register", service=f"{service}-2", ip="10.0.0.1", port=PORT)
            began = CLOCK.now()
            assert "10.0.0.1" in await anext(lines)
    assert CLOCK.now() - began < 0.5
    await client("deregister", service=f"{service}-2", ip="10.0.0.1", port=PORT)


@pytest.mark.parametrize("upstream", SERVERS)
async def test_grpc_sdk_publishes_listens_to_and_removes_configuration(client: Client, service: str) -> None:
    text = "a: 1\nb: 北京 & co=%20+\n"
    assert await client("publish", dataId=service, content=text) is True
    await client.seen("config", text, str, dataId=service)
    name = f"config-{service}"
    await client("listen", dataId=service, name=name)
    for n in range(20):  # SDKs return before the server knows that they listen
        await _publish(client, service, f"c: {n}")
        if await _hears(client, name, f"c: {n}"):
            break
    else:
        pytest.fail("no change was heard")
    assert await client("remove", dataId=service) is True


async def _publish(client: Client, data_id: str, content: str) -> None:
    if client.name == "2.5.1":  # the stand-in has no configuration by HTTP
        await client("publish", dataId=data_id, content=content)
        return
    form = {"dataId": data_id, "group": "DEFAULT_GROUP", "content": content}
    async with httpx.AsyncClient(base_url=client.proxy, trust_env=False, timeout=PATIENCE) as http:
        assert (await http.post("/nacos/v1/cs/configs", data=form)).text == "true"


async def _hears(client: Client, name: str, expected: str) -> bool:
    """Whether the SDK is told within 3 s; some ask every five seconds only."""
    heard = client.sdk.heard[name]
    try:
        while await asyncio.wait_for(heard.get(), 3.0) != expected:
            pass
    except asyncio.TimeoutError:
        return False
    return True


async def test_grpc_sdk_gets_no_configuration_from_the_embedded_registry(stand: Stand, service: str) -> None:
    """The request is refused; the connection stays."""
    client = await stand.at("go2", "embedded")
    with pytest.raises(SdkError, match="Not Found"):
        await client("publish", dataId=service, content="a")


async def test_grpc_sdk_killed_is_gone_within_a_second(stand: Stand, language: str, service: str) -> None:
    """Everywhere: at the proxy, at the server, and for subscribers."""
    sdk = await stand.sdks.another(language)
    watcher = "java3" if language == "java25" else "java25"
    for upstream, proxy in stand.proxies.items():
        mine = await join(Client(sdk, upstream, proxy.url))
        await mine("register", service=service, ip="10.0.0.1", port=PORT)
        await mine("register", service=f"{service}-2", ip="10.0.0.1", port=PORT)
        if watcher in stand.sdks.running:
            other = await stand.at(watcher, upstream)
            await other("subscribe", service=service, name=f"{service}-{upstream}")
            await other.told(f"{service}-{upstream}", ONE)
    sdk.process.kill()
    took = await asyncio.gather(*(_gone(stand, upstream, service) for upstream in stand.proxies))
    assert max(took) < 1.0, dict(zip(stand.proxies, took, strict=True))
    for upstream in stand.proxies:
        if watcher in stand.sdks.running:
            other = await stand.at(watcher, upstream)
            await other.told(f"{service}-{upstream}", [])


async def _gone(stand: Stand, upstream: str, service: str) -> float:
    """How long until neither the proxy nor the server lists it."""
    server, proxy = stand.shown_at(upstream), stand.proxies[upstream].url
    return max(
        await asyncio.gather(
            *(until(lambda a=a, s=s: _lists(a, s, ())) for a in (proxy, server) for s in (service, f"{service}-2"))
        )
    )


async def test_grpc_sdks_come_back_to_a_proxy_that_was_killed(stand: Stand, service: str) -> None:
    """Their instances stay listed and healthy throughout, at the proxy and at the server."""
    await asyncio.gather(*(_restart(stand, upstream, service) for upstream in stand.proxies))


async def _restart(stand: Stand, upstream: str, prefix: str) -> None:
    async with proxy(stand.server(upstream)) as restarted:
        clients = await _joined(stand, restarted.url, f"restarted-{upstream}")
        services = [f"{prefix}-{client.sdk.language}" for client in clients]
        for client, service in zip(clients, services, strict=True):
            await client("register", service=service, ip="10.0.0.1", port=PORT)
            await by_another(restarted.url, "POST", f"{service}-news", "10.0.0.1", **LASTING)
            await client("subscribe", service=f"{service}-news", name=client.name + service)
            await client.told(client.name + service, ONE)
        async with AsyncExitStack() as stack:
            if upstream in stand.servers:
                for service in services:
                    await until(lambda service=service: _lists(stand.servers[upstream], service, {"10.0.0.1"}))
                await stack.enter_async_context(steady(stand.servers[upstream], services))
            await asyncio.to_thread(restarted.kill)
            await asyncio.sleep(1.0)
            await asyncio.to_thread(restarted.start)
            await stack.enter_async_context(steady(restarted.url, services))
            await until(lambda: _published(restarted.url, len(clients)))
            for client, service in zip(clients, services, strict=True):
                await by_another(restarted.url, "POST", f"{service}-news", "10.0.0.2", **LASTING)
                await client.told(client.name + service, TWO)
        for client, service in zip(clients, services, strict=True):
            await client("deregister", service=service, ip="10.0.0.1", port=PORT)


async def _joined(stand: Stand, url: str, name: str) -> list[Client]:
    """All SDKs at one proxy. That for Rust gets a new process: if a push arrives while it connects, it can hang.

    Its binding holds Python's lock while it connects, and needs it to call a subscriber.
    """
    running = stand.sdks.running
    sdks = [await stand.sdks.another(one) if one == "rust" else running[one] for one in running]
    return list(await asyncio.gather(*(join(Client(sdk, name, url)) for sdk in sdks)))


async def _published(proxy: str, expected: int) -> bool:
    """Whether sessions publish that many instances."""
    return sum(session["published"] for session in (await status(proxy))["sessions"]) == expected


@asynccontextmanager
async def steady(server: str, services: Sequence[str]) -> AsyncIterator[None]:
    """Fails if the server once lists the instance of a service as unhealthy, or not at all."""
    began, seen = CLOCK.now(), dict[float, Any]()

    async def watch() -> None:
        while True:
            for service in services:
                if (found := await listed(server, service)) != {"10.0.0.1": True}:
                    seen[round(CLOCK.now() - began, 1)] = service, found
            await asyncio.sleep(0.1)

    watching = spawn(watch(), name="watching")
    try:
        yield
    finally:
        await stop(watching)
    assert not seen


async def test_grpc_sdks_outlive_an_outage_of_the_upstream(stand: Stand, service: str) -> None:
    """Sessions stay, lists are served, registrations are refused. Afterwards all that was asked for is done."""
    await asyncio.gather(*(_outage(stand, upstream, service) for upstream in stand.servers))


async def _outage(stand: Stand, upstream: str, prefix: str) -> None:
    server = stand.servers[upstream]
    async with relays(server) as relay, proxy(relay.url) as away:
        clients = await _joined(stand, away.url, f"away-{upstream}")
        for client in clients:
            mine = f"{prefix}-{client.sdk.language}"
            await client("register", service=mine, ip="10.0.0.1", port=PORT)
            await client("register", service=f"{mine}-left", ip="10.0.0.1", port=PORT)
            await by_another(server, "POST", f"{mine}-news", "10.0.0.1")
            await client("subscribe", service=f"{mine}-news", name=client.name + mine)
            await client.told(client.name + mine, ONE)
            await client.seen("instances", ONE, addresses, service=mine)
        youngest = _youngest(await status(away.url))
        await relay.set("refuse")
        await until(lambda: _lost(away))
        for client in clients:
            mine = f"{prefix}-{client.sdk.language}"
            late = {"service": f"{mine}-late", "ip": "10.0.0.1", "port": PORT}
            assert await _refused(client("register", **late))
            await client("deregister", service=f"{mine}-left", ip="10.0.0.1", port=PORT)
            await client.seen("instances", ONE, addresses, service=mine)
        assert _youngest(await status(away.url)) > youngest, "all sessions stay"
        await relay.set("pass")
        for client in clients:
            mine = f"{prefix}-{client.sdk.language}"
            await by_another(server, "POST", f"{mine}-news", "10.0.0.2")
            await client.told(client.name + mine, TWO)
            await until(lambda mine=mine: _lists(server, f"{mine}-left", ()))
            await until(lambda mine=mine: _lists(server, f"{mine}-late", {"10.0.0.1"}))  # its SDK repeats it
            assert await _lists(server, mine, {"10.0.0.1"})


async def _lost(proxy: ProxyProcess) -> bool:
    """Whether it knows of the outage; asks for something that it has to ask the server."""
    with pytest.raises(AssertionError):
        await by_another(proxy.url, "GET", "unknown", "10.0.0.1")
    return "upstream lost" in proxy.log


async def _refused(call: Awaitable[Any]) -> bool:
    """The SDK for Go returns false."""
    try:
        return await call is False
    except SdkError as error:
        return "no connection" in str(error)


def _youngest(shown: Any) -> float:
    return float(min(session["sinceSeconds"] for session in shown["sessions"]))
