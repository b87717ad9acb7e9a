"""The proxy learns of changes by gRPC push, and by UDP from upstreams without it, such as Nacos 1.x."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from nacos_proxy.model.calls import CreateService, Deregister, Fetch, Register
from nacos_proxy.model.services import Instance
from nacos_proxy.runtime import spawn, stop
from nacos_proxy.upstream.nacos.registry import NacosRegistry
from nacos_proxy.upstream.nacos.udp_receiver import PushReceiver
from tests.helpers.app import Served, serving
from tests.helpers.build import KEY, instance
from tests.helpers.clock import FakeClock
from tests.helpers.faces import FaceServer, clustered, facing
from tests.helpers.grpc_nacos import GrpcNacos, Published, Session

INSTANCE = "/nacos/v1/ns/instance"
HERE = {"serviceName": "orders", "ip": "10.0.0.1", "port": "80"}


async def test_upstream_push_by_udp_brings_changes_without_a_poll() -> None:
    clock = FakeClock()
    async with (
        facing("1.x", clock) as server,
        serving(clock=clock, upstream=server.url, push="auto") as proxy,
        httpx.AsyncClient(base_url=server.url) as directly,
    ):
        await proxy.http.post(INSTANCE, params=HERE)
        await proxy.http.get(f"{INSTANCE}/list", params=HERE)
        first = await proxy.http.get(f"{INSTANCE}/list", params=HERE)
        for _ in range(30):
            if not server.subscribers:  # until the version is known
                await clock.advance(1.0)
        assert server.subscribers
        async with proxy.http.stream("GET", "/api/v1/events", params={"service": "orders"}) as stream:
            lines = (line async for line in stream.aiter_lines() if line.startswith("data:"))
            assert '"enabled":true' in await anext(lines)
            await clock.advance(1.0)  # pushes of earlier changes
            await directly.put(INSTANCE, params={**HERE, "weight": "7"})
            await clock.advance(1.0)
            assert '"weight":7.0' in await anext(lines)
        shown = [
            (await proxy.http.get(f"{INSTANCE}/list", params=HERE)).json()["cacheMillis"],
            first.json()["cacheMillis"],
        ]
        assert shown == [3000, 3000], "who gets no push of ours goes on as with a 1.x"
        told = (await proxy.http.get("/status", headers={"accept": "application/json"})).json()["push"]
        assert (told["state"], told["kind"]) == ("ok", "udp") and told["received"] > 0
        assert (await proxy.http.get("/readyz")).json()["reasons"] == []
        assert "nacos_proxy_push_up 1.0" in (await proxy.http.get("/metrics")).text


async def test_upstream_push_is_unavailable_and_ready_without_a_grpc_port(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    async with facing("v1+v2", clock) as server, serving(clock=clock, upstream=server.url, push="auto") as proxy:
        with caplog.at_level("WARNING", "nacos_proxy.push"):
            for _ in range(30):
                for namespace in ("", "dev"):
                    await proxy.http.post(INSTANCE, params={**HERE, "namespaceId": namespace})
                    await proxy.http.get(f"{INSTANCE}/list", params={**HERE, "namespaceId": namespace})
                await clock.advance(2.0)
        assert (await proxy.http.get("/readyz")).json() == {"status": "ready", "reasons": []}
        told = (await proxy.http.get("/status", headers={"accept": "application/json"})).json()["push"]
        assert told["state"] == "unavailable" and "gRPC port 127.0.0.1:" in told["reason"]
        assert len([r for r in caplog.records if "no gRPC push" in r.getMessage()]) == 1


@pytest.mark.parametrize(("face", "settings"), [("1.x", {"push": "off"}), ("v1", {"push": "auto"})])
async def test_upstream_push_by_udp_is_not_requested_if_off_or_unknown(face: str, settings: dict[str, str]) -> None:
    clock = FakeClock()
    async with facing(face, clock) as server, serving(clock=clock, upstream=server.url, **settings) as proxy:
        await proxy.http.get(f"{INSTANCE}/list", params=HERE)
        for _ in range(12):
            await clock.advance(1.0)
            await proxy.http.get(f"{INSTANCE}/list", params=HERE)
        assert server.asked.count("GET /v1/ns/instance/list") > 1
        assert not server.subscribers


@pytest.mark.parametrize(("face", "dialect"), [("v3", "auto"), ("3.0 closed", "auto"), ("3.0", "v3"), ("v1", "auto")])
async def test_upstream_push_is_off_if_no_list_can_request_it(face: str, dialect: str) -> None:
    clock = FakeClock()
    async with (
        facing(face, clock) as server,
        serving(clock=clock, upstream=server.url, upstream_dialect=dialect, push="off") as proxy,
    ):
        receiver, registry = PushReceiver(("1.", "2.", "3.")), proxy.components.registry
        assert isinstance(registry, NacosRegistry)
        registry.receiver = proxy.components.receiver = receiver
        for _ in range(12):
            await proxy.http.get(f"{INSTANCE}/list", params=HERE)
            await clock.advance(1.0)
        told = (await proxy.http.get("/status", headers={"accept": "application/json"})).json()["push"]
        assert (told, server.subscribers) == ({"state": "off"}, {})


# --- gRPC ----------------------------------------------------------------------------------------------------------

GRPC_FACES = ["v1+v2", "3.0", "v1"]  # the last one is r-nacos
A, B, C = (instance(f"10.0.0.{number}") for number in (1, 2, 3))


class Pushed:
    """A proxy with gRPC push in front of a server, and one event stream of `KEY`. `seen`: the lists of its events."""

    def __init__(self, server: FaceServer, grpc: GrpcNacos, proxy: Served, clock: FakeClock) -> None:
        self.server, self.grpc, self.proxy, self.clock = server, grpc, proxy, clock
        self.seen: list[list[tuple[str, bool]]] = []

    async def read(self) -> None:
        async with self.proxy.http.stream("GET", "/api/v1/events", params={"service": KEY.name}) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data:"):
                    shown = json.loads(line[5:])["hosts"]
                    self.seen.append([(host["ip"], host["healthy"]) for host in shown])

    async def until(self, condition: Callable[[], bool], at_most: float = 30.0) -> float:
        """Lets time go on until this is so. Returns how long it took, in seconds of the clock."""
        begun = self.clock.now()
        while not condition():
            assert self.clock.now() - begun < at_most, (self.seen, await self.push())
            await self.clock.advance(0.05)
            await self.proxy.http.get("/healthz")  # leaves real time to the sockets
        return self.clock.now() - begun

    async def push(self) -> dict[str, Any]:
        status = await self.proxy.http.get("/status", headers={"accept": "application/json"})
        told: dict[str, Any] = status.json()
        return {**told["push"], **told["counts"]["pushes"]}

    def known(self) -> tuple[Instance, ...]:
        entry = self.proxy.components.agent.catalog.cache.get(KEY)
        return () if entry is None or entry.visible is None else entry.visible.instances

    @property
    def alive(self) -> bool:
        push = self.proxy.components.push
        return push is not None and push.alive and push.covers(KEY)

    @property
    def session(self) -> Session:
        return self.grpc.subscribers(KEY)[0]

    def fetches(self) -> int:
        return sum(self.proxy.components.agent.counts.fetches.values())

    async def change(self, *instances: Instance) -> None:
        """Makes these the instances of the service, at the server itself."""
        before: Any = await self.server.registry.send(Fetch(KEY))
        for i in before.instances:
            if i.key not in {other.key for other in instances}:
                await self.server.registry.send(Deregister(KEY, i.ip, i.port, i.cluster))
        for i in instances:
            await self.server.registry.send(Register(KEY, i))

    async def sees(self, *ips: str, at_most: float = 30.0) -> float:
        return await self.until(lambda: bool(self.seen) and [ip for ip, _ in self.seen[-1]] == list(ips), at_most)


@asynccontextmanager
async def pushed(face: str = "v1+v2", **settings: Any) -> AsyncIterator[Pushed]:
    clock = FakeClock()
    passwords = {"nacos": "pw"} if settings.get("username") or settings.get("auth") else None
    async with facing(face, clock, grpc=True, passwords=passwords) as server:
        async with serving(clock=clock, upstream=server.url, push="auto", **settings) as proxy:
            assert server.grpc is not None
            world = Pushed(server, server.grpc, proxy, clock)
            reading = spawn(world.read(), name="reader")
            try:
                await world.until(lambda: bool(world.seen) and world.alive)
                await world.until(lambda: bool(world.grpc.acked))  # the push after the subscription
                yield world
            finally:
                await stop(reading)


@pytest.mark.parametrize("face", GRPC_FACES)
async def test_upstream_push_by_grpc_brings_changes_without_a_fetch(face: str) -> None:
    async with pushed(face) as world:
        fetches = world.fetches()
        for instances in ((A,), (A, B), (B,), ()):
            await world.change(*instances)
            delay = await world.sees(*(i.ip for i in instances))
            assert delay <= world.grpc.push_delay + 0.2
        assert world.fetches() == fetches
        told = await world.push()
        assert (told["state"], told["kind"], told["subscriptions"]) == ("ok", "grpc", 1)
        assert told["servers"] == [f"127.0.0.1:{world.grpc.port}"]
        seen = len(world.seen)
        await world.clock.advance(90)  # safety polls
        await world.proxy.http.get("/healthz")
        assert (world.fetches() > fetches, len(world.seen)) == (True, seen), "a fetch lists what was pushed"


@pytest.mark.parametrize("face", ["v3", "3.0 closed"])
async def test_upstream_push_by_grpc_where_fetches_list_disabled_instances(face: str) -> None:
    async with pushed(face) as world:
        for instances in ((A, B), (A,), ()):
            await world.change(*instances)
            await world.sees(*(i.ip for i in instances))
        told = await world.push()
        assert told["fetched"] >= 2, "what a push lacks may be disabled"


async def test_upstream_push_by_grpc_is_ready_from_the_start() -> None:
    clock = FakeClock()
    async with facing("v1+v2", clock, grpc=True) as server:
        async with serving(clock=clock, upstream=server.url, push="on") as proxy:
            assert server.grpc is not None
            server.grpc.silent.add("ServerCheckRequest")
            await proxy.http.post(INSTANCE, params=HERE)
            await proxy.http.get(f"{INSTANCE}/list", params=HERE)
            for _ in range(5):
                await clock.advance(0.1)
                assert (await proxy.http.get("/readyz")).json() == {"status": "ready", "reasons": []}
            told = (await proxy.http.get("/status", headers={"accept": "application/json"})).json()["push"]
            assert told == {"state": "connecting"}


async def test_upstream_push_by_grpc_shows_the_true_health_behind_protection() -> None:
    async with pushed() as world:
        await world.server.registry.send(CreateService(KEY, 0.8, ephemeral=True))
        for instances in ((A, B), (A, instance("10.0.0.2", healthy=False)), (A, B)):
            await world.change(*instances)
            await world.until(lambda: world.known() == instances)  # noqa: B023


async def test_upstream_push_by_grpc_of_an_address_that_the_server_lists_twice_shows_it_once() -> None:
    """Registered directly over gRPC and, through another proxy, over HTTP (nacos-grpc.md 7)."""
    async with pushed() as world:
        registry = world.server.registry
        assert isinstance(registry, Published)
        await registry.publish(world.session, KEY, [A], what="instance")
        await registry.send(Register(KEY, instance(A.ip, healthy=False)))
        listed: Any = await registry.send(Fetch(KEY))
        assert len(listed.instances) >= 1
        await world.until(lambda: world.seen[-1] == [(A.ip, True)])
        await world.clock.advance(90)
        assert world.seen[-1] == [(A.ip, True)]


@pytest.mark.parametrize("fault", ["end", "drop", "forget", "hold", "reset", "end_stream"])
async def test_upstream_push_by_grpc_comes_back_after_the_loss_of_a_session(fault: str) -> None:
    async with pushed() as world:
        await world.clock.advance(20)
        session = world.session
        getattr(world.grpc, fault)(session)
        await world.until(lambda: bool(world.grpc.subscribers(KEY)) and world.session is not session and world.alive)
        await world.change(A)
        assert await world.sees(A.ip) <= 0.8


@pytest.mark.parametrize("fault", ["forget", "hold"])
async def test_upstream_push_by_grpc_misses_no_change_while_a_session_is_silently_lost(fault: str) -> None:
    async with pushed() as world:
        await world.clock.advance(20)
        getattr(world.grpc, fault)(world.session)
        await world.change(A)
        assert await world.sees(A.ip, at_most=40) <= 15, "a health check finds out, and the subscription's answer tells"


async def test_upstream_push_by_grpc_answers_detection_and_is_not_dropped() -> None:
    async with pushed() as world:
        session = world.session
        number = world.grpc.detect(session)
        await world.until(lambda: "ClientDetectionResponse" in world.grpc.acked)
        await world.clock.advance(60)
        assert number and world.grpc.known == [session]


async def test_upstream_push_by_grpc_survives_an_outage_of_the_server() -> None:
    async with pushed() as world:
        port = world.grpc.port
        await world.grpc.stop()
        await world.until(lambda: not world.proxy.components.poller.push_alive)
        reasons = (await world.proxy.http.get("/readyz")).json()["reasons"]
        assert any(reason.startswith("push: unavailable") for reason in reasons)
        await world.change(A)
        assert await world.sees(A.ip) <= 6, "polling finds it"
        await world.grpc.start(port)
        await world.until(lambda: world.alive, at_most=60)
        await world.change(A, B)
        assert await world.sees(A.ip, B.ip) <= 0.8


async def test_upstream_push_by_grpc_waits_for_a_server_that_is_starting() -> None:
    async with pushed() as world:
        world.grpc.starting = True
        world.grpc.end(world.session)
        await world.until(lambda: not world.alive)
        await world.clock.advance(5)
        world.grpc.starting = False
        await world.until(lambda: world.alive, at_most=60)


async def test_upstream_push_by_grpc_renews_its_token() -> None:
    async with pushed(username="nacos", password="pw") as world:
        assert world.server.users is not None
        world.server.users.revoke()
        await world.clock.advance(20)
        world.grpc.drop(world.session)
        await world.until(lambda: not world.alive)
        await world.until(lambda: world.alive)
        await world.change(A)
        assert await world.sees(A.ip) <= 0.8


async def test_upstream_push_by_grpc_unsubscribes_what_nobody_watches() -> None:
    async with pushed(watch_idle=1.0) as world:
        await world.proxy.http.get(f"{INSTANCE}/list", params={"serviceName": "other"})
        await world.server.registry.send(Register(KEY._replace(name="other"), A))
        await world.proxy.http.get(f"{INSTANCE}/list", params={"serviceName": "other"})
        other = KEY._replace(name="other")
        await world.until(lambda: bool(world.grpc.subscribers(other)) or len(world.grpc.subscribers(KEY)) == 1)
        await world.until(lambda: not world.grpc.subscribers(other))
        assert world.alive


async def test_upstream_push_by_grpc_in_a_cluster_asks_no_node_that_lists_a_change_later() -> None:
    """The node that pushes lists a change after 0.6 s, the others after up to 1.7 s (nacos-http.md, fact 19)."""
    clock = FakeClock()
    async with clustered(clock, grpc=True) as nodes:
        urls = tuple(node.url for node in nodes)
        async with serving(clock=clock, upstream=urls, push="auto") as proxy:
            grpc = nodes[0].grpc
            assert grpc is not None
            world = Pushed(nodes[0], grpc, proxy, clock)
            reading = spawn(world.read(), name="reader")
            async with httpx.AsyncClient(base_url=nodes[0].url) as directly:
                await world.until(lambda: bool(world.seen) and world.alive)
                await clock.advance(10)
                fetches, expected = world.fetches(), list[str]()
                for number in range(1, 4):  # the first one turns unhealthy after 15 s
                    ip = f"10.0.0.{number}"
                    await directly.post(INSTANCE, params={"serviceName": KEY.name, "ip": ip, "port": 80})
                    expected.append(ip)
                    assert await world.sees(*expected) <= 2.0
                    await clock.advance(2.0)
                shown = [[ip for ip, _ in list_] for list_ in world.seen]
                assert sorted(shown, key=len) == shown, f"it never went back: {shown}"
                assert world.fetches() == fetches
            await stop(reading)


async def test_upstream_push_by_grpc_moves_to_another_node() -> None:
    clock = FakeClock()
    async with clustered(clock, grpc=True, lagging=False) as nodes:
        async with serving(clock=clock, upstream=tuple(node.url for node in nodes), push="auto") as proxy:
            sides = [node.grpc for node in nodes if node.grpc is not None]
            world = Pushed(nodes[0], sides[0], proxy, clock)
            reading = spawn(world.read(), name="reader")
            await world.until(lambda: bool(world.seen) and world.alive)
            for _ in range(2):
                (used,) = [side for side in sides if side.subscribers(KEY)]
                await used.stop()
                await world.until(lambda: not world.alive)
                await world.until(lambda: world.alive)
            await stop(reading)


async def test_upstream_push_by_grpc_with_the_account_of_a_client() -> None:
    clock = FakeClock()
    async with facing("v1+v2", clock, grpc=True, passwords={"nacos": "pw"}) as server:
        async with serving(clock=clock, upstream=server.url, push="auto", auth="client") as proxy:
            login = await proxy.http.post("/nacos/v1/auth/users/login", data={"username": "nacos", "password": "pw"})
            token = {"accessToken": login.json()["accessToken"]}
            assert server.grpc is not None
            for _ in range(200):
                await proxy.http.post(INSTANCE, params={**HERE, **token})
                await proxy.http.get(f"{INSTANCE}/list", params={**HERE, **token})
                await clock.advance(0.05)
                if server.grpc.subscribers(KEY):
                    break
            assert [len(server.grpc.subscribers(KEY)), len(server.grpc.known)] == [1, 1]
            status = await proxy.http.get("/status", params=token, headers={"accept": "application/json"})
            assert status.json()["push"]["state"] == "ok"
