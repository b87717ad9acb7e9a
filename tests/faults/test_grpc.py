"""Faults of gRPC sessions, from the side of a client and of an upstream; and gRPC clients among others in an outage.

The clients are on grpcio. The events are those of nacos-grpc.md 7 and 9.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from loadtest.grpc_wire import connected, each, naming
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.runtime import SystemClock
from tests.faults.grpc_load import GrpcLoad
from tests.faults.load import INSTANCE, LIST, Load, addresses, until
from tests.faults.test_kill import QUICK as KILL_QUICK
from tests.faults.test_upstream_faults import QUICK, SILENT, EventLog
from tests.helpers.app import Served, heard, serving
from tests.helpers.clock import FakeClock
from tests.helpers.faces import FaceServer, clustered, facing
from tests.helpers.fault import Mode, fault_proxy
from tests.helpers.grpc_nacos import GrpcNacos
from tests.helpers.grpcio_client import GrpcClient, Lost, hosts_of
from tests.helpers.live import GRPC_OFFSET, ProxyProcess, RNacos, free_port

CLOCK = SystemClock()
ONE, TWO = ("10.0.0.1", 80), ("10.0.0.2", 80)


# gRPC clients among the others


@pytest.mark.parametrize("mode", ["refuse", "blackhole", "half_open", "status_500", "wrong_type"])
async def test_upstream_faults_lose_nothing_of_grpc_clients(mode: Mode, caplog: pytest.LogCaptureFixture) -> None:
    async with facing("v1+v2", listing_delay=0.1) as upstream:
        await check_nothing_is_lost(mode, upstream.url, caplog)


async def test_upstream_faults_lose_nothing_of_grpc_clients_with_r_nacos(
    rnacos: RNacos, caplog: pytest.LogCaptureFixture
) -> None:
    await check_nothing_is_lost("refuse", rnacos.url, caplog)


async def check_nothing_is_lost(mode: Mode, upstream: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(fault_proxy(urlsplit(upstream).port or 0))
        settings = {**QUICK, **SILENT.get(mode, {})}
        proxy = await stack.enter_async_context(serving(upstream=relay.url, with_grpc=True, **settings))
        load = Load(proxy.url, f"grpc-{mode.replace('_', '-')}")
        event_log = EventLog(proxy.components.agent, load.services)
        event_log.open()
        await stack.enter_async_context(load)
        sdks = await stack.enter_async_context(GrpcLoad(load, lambda: f"127.0.0.1:{proxy.grpc_port}"))
        await sdks.more(10)
        breaker = proxy.components.agent.catalog.breaker

        await relay.set(mode)
        await until(lambda: not breaker.up, f"the breaker opens: {breaker}")
        await load.more(10)
        await sdks.more(10)
        assert sdks.acknowledged.refused > 0, "registrations are refused meanwhile"
        assert [sdk.connects for sdk in (sdks.reader, sdks.subscriber, *sdks.writers)] == [1, 1, 1, 1]

        await relay.set("pass")
        await until(lambda: breaker.up, f"the breaker closes: {breaker}")
        await load.more(10)
        await sdks.more(10)
        await load.stop_writing()
        await sdks.stop_writing()
        await load.settled(upstream)
        await sdks.settled(upstream)

        assert load.violations() == []
        assert sdks.violations() == []
        assert [fault for follower in load.followers for fault in event_log.faults(follower)] == []
        # Who was refused something has to connect again, because some SDKs repeat it only then.
        assert [sdk.connects for sdk in (sdks.reader, sdks.subscriber, *sdks.writers)] == [1, 1, 2, 2]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.timeout(600)
async def test_sigkill_of_the_proxy_loses_nothing_of_grpc_clients(tmp_path: Path) -> None:
    """SDKs come back by themselves, and find what they published: it was never gone (nacos-grpc.md 9)."""
    port = free_port(and_offset=GRPC_OFFSET)
    async with facing("v1+v2", listing_delay=0.1) as server:
        proxy = ProxyProcess("--upstream", server.url, *KILL_QUICK, "--port", str(port), state_dir=tmp_path)
        await asyncio.to_thread(proxy.start)
        try:
            async with Load(proxy.url, "grpc-kill", pause=0.05) as load:
                async with GrpcLoad(load, lambda: f"127.0.0.1:{port + GRPC_OFFSET}") as sdks:
                    await sdks.more(3)
                    load.may_break = True
                    for number in range(4):
                        await CLOCK.sleep_until(CLOCK.now() + 0.3 * number)
                        await asyncio.to_thread(proxy.kill)
                        await asyncio.to_thread(proxy.start)
                    await sdks.more(5)
                    await load.stop_writing()
                    await sdks.stop_writing()
                    await load.settled(server.url)
                    await sdks.settled(server.url)
                    assert load.violations() == []
                    assert sdks.violations() == []
                    assert sdks.subscriber.connects >= 2
        finally:
            await asyncio.to_thread(proxy.close)
    assert "Traceback" not in proxy.log, proxy.log[-4000:]


# the client's side of a session


@dataclass
class Scene:
    """A proxy in front of a stand-in, and who looks on: another subscriber and the server's own list."""

    proxy: Served
    server: FaceServer
    other: GrpcClient
    stack: AsyncExitStack

    async def client(self, **connecting: Any) -> GrpcClient:
        client = await self.stack.enter_async_context(GrpcClient(f"127.0.0.1:{self.proxy.grpc_port}"))
        await client.connect(**{"abilities": {}, **connecting})
        return client

    async def listed(self) -> frozenset[str]:
        reply = await self.proxy.http.get(self.server.url + LIST, params={"serviceName": "s"})
        return addresses(reply.json()["hosts"])

    async def until_listed(self, *wanted: tuple[str, int]) -> None:
        """Until both the server and the other subscriber list exactly this."""
        await self.other.pushed("s", *wanted)
        end = CLOCK.now() + 30
        while (listed := await self.listed()) != {f"{ip}:{port}" for ip, port in wanted}:
            assert CLOCK.now() < end, listed

    async def server_over_grpc(self) -> int:
        """Starts the server's gRPC side on any port, so that the proxy does not find it; returns the port."""
        await self.server.speak_grpc(0)
        assert self.server.grpc is not None
        return self.server.grpc.port


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(facing("v1+v2", listing_delay=0.5))
        proxy = await stack.enter_async_context(serving(upstream=server.url, with_grpc=True, **QUICK))
        made = Scene(proxy, server, None, stack)  # type: ignore[arg-type]
        made.other = await made.client()
        await made.other.subscribe("s")
        yield made


@pytest.mark.parametrize("end", ["close", "reset", "half-close"])
async def test_a_client_that_goes_takes_its_instances_along_at_once(scene: Scene, end: str) -> None:
    client, stays = await scene.client(), await scene.client()
    await stays.register("s", *TWO)
    assert (await client.batch("s", ONE, ("10.0.0.1", 81))).code == 0
    await scene.until_listed(ONE, ("10.0.0.1", 81), TWO)
    begun = CLOCK.now()
    if end == "close":
        await client.close()
    elif end == "reset":
        client.reset()
    else:
        await client.half_close()
    await scene.until_listed(TWO)
    assert CLOCK.now() - begun < 5.0, "long before its heartbeats would have lapsed"
    assert len(scene.proxy.app.grpc.sessions) == 2


async def test_a_new_connection_keeps_what_the_old_one_published(scene: Scene) -> None:
    """The SDK is back before its lost connection is noticed."""
    old = await scene.client()
    await old.register("s", *ONE)
    await scene.until_listed(ONE)
    new = await scene.client()
    await new.register("s", *ONE)
    pushes = len(scene.other.pushes("s"))
    await old.close()
    await until(lambda: len(scene.proxy.app.grpc.sessions) == 2, "the old session has ended")
    await scene.other.subscribe("t")
    await scene.other.pushed("t")  # whatever was pushed before has arrived
    assert all(hosts_of(push.body["serviceInfo"]) == {ONE} for push in scene.other.pushes("s")[pushes:])
    assert await scene.listed() == {"10.0.0.1:80"}
    await new.close()
    await scene.until_listed()


async def test_an_instance_that_moved_to_http_outlives_its_connection(scene: Scene) -> None:
    client = await scene.client()
    await client.register("s", *ONE)
    await scene.until_listed(ONE)
    form = {"serviceName": "s", "ip": "10.0.0.1", "port": "80"}
    assert (await scene.proxy.http.post(INSTANCE, params=form)).text == "ok"
    await client.close()
    await until(lambda: len(scene.proxy.app.grpc.sessions) == 1, "its session has ended")
    await scene.other.subscribe("t")
    await scene.other.pushed("t")
    assert await scene.listed() == {"10.0.0.1:80"}


async def test_one_connection_has_one_value_per_service(scene: Scene) -> None:
    client = await scene.client()
    for address in (ONE, TWO):
        assert (await client.register("s", *address)).code == 0
    await scene.until_listed(TWO)
    assert (await client.batch("s", ONE, TWO)).code == 0
    await scene.until_listed(ONE, TWO)
    assert (await client.deregister("s", "10.99.0.1", 1)).code == 0, "whatever address is named"
    await scene.until_listed()


async def test_requests_in_the_wrong_state_are_refused_and_the_session_goes_on(scene: Scene) -> None:
    client = await scene.stack.enter_async_context(GrpcClient(f"127.0.0.1:{scene.proxy.grpc_port}"))
    assert (await client.call("ServerCheckRequest")).body["connectionId"]
    for kind in ("HealthCheckRequest", "ServiceQueryRequest", "InstanceRequest"):
        refused = await client.call(kind, {"serviceName": "s", "groupName": "g", "namespace": "public"})
        assert (refused.type, refused.code) == ("ErrorResponse", 301)
    assert (await client.call("NoSuchRequest")).code == 302
    await client.connect(abilities={})
    assert client.heard[0].type == "SetupAckRequest"
    for odd in ("HealthCheckRequest", "NoSuchRequest", "ClientDetectionResponse"):
        await client.send(odd, {"requestId": "1"})
    for kind, code in (("NoSuchRequest", 302), ("PushAckRequest", 302), ("DistroDataRequest", 502)):
        assert (await client.call(kind)).code == code
    assert (await client.call("ServiceQueryRequest", b"{nonsense")).code == 502
    assert (await client.healthy()).code == 0
    assert not client.ended.done()


async def test_http_and_grpc_clients_hear_of_each_other_at_once(scene: Scene) -> None:
    """Through one proxy: neither waits for the server's list, which shows a change half a second later."""
    client = await scene.client()
    form = {"serviceName": "s", "ip": "10.0.0.1", "port": "80"}
    begun = CLOCK.now()
    assert (await scene.proxy.http.post(INSTANCE, params=form)).text == "ok"
    await scene.other.pushed("s", ONE)
    async with scene.proxy.http.stream("GET", "/api/v1/events", params={"service": "s"}) as stream:
        said = stream.aiter_text()
        await heard(said, "10.0.0.1")
        assert (await client.register("s", *TWO)).code == 0
        await heard(said, "10.0.0.2")
        assert (await scene.proxy.http.delete(INSTANCE, params=form)).text == "ok"
        await scene.other.pushed("s", TWO)
        await client.close()
        await heard(said, '"removed":[{')
        await heard(said, '"removed":[{')
    assert CLOCK.now() - begun < 5.0


async def test_an_address_that_the_server_lists_twice_is_one_instance_for_readers(scene: Scene) -> None:
    """The trap of a migration: one client registers directly over gRPC, and again through the proxy."""
    grpc_port = await scene.server_over_grpc()
    direct = await scene.stack.enter_async_context(GrpcClient(f"127.0.0.1:{grpc_port}"))
    await direct.connect()
    await direct.register("s", *ONE)
    await scene.other.pushed("s", ONE)
    client = await scene.client()
    assert (await client.register("s", *ONE)).code == 0
    reply = await scene.proxy.http.get(scene.server.url + LIST, params={"serviceName": "s"})
    assert len(reply.json()["hosts"]) == 2
    for answer in (await client.query("s"), await scene.other.pushed("s", ONE)):
        assert len(answer.body["serviceInfo"]["hosts"]) == 1
    await client.close()
    await until(lambda: len(scene.proxy.app.grpc.sessions) == 1, "its session has ended")
    await scene.other.pushed("s", ONE)


async def test_a_stop_of_the_proxy_ends_its_sessions_and_deregisters_nothing() -> None:
    async with facing("v1+v2") as server:
        async with AsyncExitStack() as stack:
            proxy = await stack.enter_async_context(serving(upstream=server.url, with_grpc=True, **QUICK))
            client = GrpcClient(f"127.0.0.1:{proxy.grpc_port}")
            await client.connect()
            await client.register("s", *ONE)
        assert await asyncio.wait_for(client.ended, 10)
        await client.close()
        async with httpx.AsyncClient() as http:
            reply = await http.get(server.url + LIST, params={"serviceName": "s"})
        assert addresses(reply.json()["hosts"]) == {"10.0.0.1:80"}


async def test_a_client_that_does_not_read_delays_nobody_and_gets_the_newest_list() -> None:
    """It is sent no more than its connection holds, then the newest state, not each one that it has missed."""
    values = 80
    async with serving(with_grpc=True) as proxy, AsyncExitStack() as stack:
        heard: list[bytes] = []
        (slow,) = await connected("127.0.0.1", proxy.grpc_port, 1, lambda message, moment: heard.append(message))
        stack.callback(slow.close)
        many, other = [await stack.enter_async_context(GrpcClient(f"127.0.0.1:{proxy.grpc_port}")) for _ in range(2)]
        await many.connect()
        await other.connect()
        await many.batch("s", *((f"10.0.{n // 250}.{n % 250 + 1}", 80) for n in range(500)))
        await each([slow], naming("SubscribeServiceRequest", "s", subscribe=True, clusters=""))
        await other.subscribe("s")
        assert slow.transport is not None
        slow.transport.pause_reading()
        for number in range(values):
            assert (await other.register("s", "10.1.0.1", number + 1)).code == 0

        def newest(message: bytes) -> bool:
            return b'"port":%d,' % values in message and b'"port":%d,' % (values - 1) not in message

        await other.until(lambda asked: newest(asked.raw))
        slow.transport.resume_reading()
        await until(lambda: bool(heard) and newest(heard[-1]), "the newest list")
        assert len(heard) < len(other.pushes("s")) / 2, (len(heard), len(other.pushes("s")))


async def test_unacknowledged_pushes_come_again_with_what_is_current() -> None:
    clock = FakeClock()
    async with serving(clock, with_grpc=True) as proxy:
        target = f"127.0.0.1:{proxy.grpc_port}"
        async with GrpcClient(target, acknowledges=lambda asked: False) as deaf, GrpcClient(target) as other:
            await deaf.connect()
            await other.connect()
            await deaf.subscribe("s")
            await deaf.pushed("s")
            for _ in range(3):
                seen = len(deaf.pushes("s"))
                await passing(clock, 7, other)
                await deaf.until(lambda _, seen=seen: len(deaf.pushes("s")) > seen)
            await other.register("s", *ONE)
            await deaf.pushed("s", ONE)
            numbers = [push.body["requestId"] for push in deaf.pushes("s")]
            assert len(set(numbers)) == len(numbers)


async def test_a_silent_client_is_asked_and_stays_only_if_it_answers() -> None:
    clock = FakeClock()
    async with serving(clock, with_grpc=True) as proxy, AsyncExitStack() as stack:
        target = f"127.0.0.1:{proxy.grpc_port}"
        answers = await stack.enter_async_context(GrpcClient(target))
        mute = await stack.enter_async_context(GrpcClient(target, acknowledges=lambda asked: False))
        other = await stack.enter_async_context(GrpcClient(target))
        for client in (answers, mute, other):
            await client.connect()
        await answers.register("s", *ONE)
        await mute.register("s", *TWO)
        await other.subscribe("s")
        await other.pushed("s", ONE, TWO)
        for _ in range(4):
            await passing(clock, 5, other)
            await other.healthy()
        await passing(clock, 3, other)
        await mute.until(lambda asked: asked.type == "ClientDetectionRequest")
        await answers.until(lambda asked: asked.type == "ClientDetectionRequest")
        await passing(clock, 9, other)
        assert await asyncio.wait_for(asyncio.shield(mute.ended), 10)
        await other.pushed("s", ONE)
        assert (await answers.healthy()).code == 0
        assert not answers.ended.done()


async def passing(clock: FakeClock, seconds: float, observer: GrpcClient) -> None:
    """Lets time pass in steps, each as long as the network needs for a request and its answer."""
    end = clock.now() + seconds
    while clock.now() < end - 1e-6:
        await clock.advance(min(0.5, end - clock.now()))
        await observer.call("ServerCheckRequest")


# the upstream's side of a session


@dataclass
class Asking:
    """A proxy that hears the pushes of a stand-in, and a subscriber behind it. `gave`: what `cause` left behind."""

    server: FaceServer
    proxy: Served
    reader: GrpcClient
    changes: int = 0

    @property
    def grpc(self) -> GrpcNacos:
        assert self.server.grpc is not None
        return self.server.grpc

    @property
    def covered(self) -> bool:
        push = self.proxy.components.push
        return push is not None and push.alive and push.covers(ServiceKey.of("s"))

    async def change(self) -> None:
        """A change at the server, over HTTP; it arrives at the reader."""
        self.changes += 1
        form = {"serviceName": "s", "ip": "10.0.0.1", "port": str(self.changes), "ephemeral": "false"}
        reply = await self.proxy.http.post(self.server.url + INSTANCE, params=form)
        assert reply.text == "ok"
        await self.reader.pushed("s", *(("10.0.0.1", n + 1) for n in range(self.changes)))

    async def cause(self, fault: str) -> None:
        """One fault of the server, as a client meets it."""
        grpc = self.grpc
        (session,) = grpc.known
        match fault:
            case "closes stream and connection":
                grpc.end(session)
            case "ends the stream only":
                grpc.end_stream(session)
            case "resets the connection":
                grpc.drop(session)
            case "forgets the session":
                grpc.forget(session)
            case "hangs":
                grpc.hold(session)
            case "asks to reconnect":
                grpc.reset(session)
            case "sends its client to itself":
                grpc.reset(session, "127.0.0.1", urlsplit(self.server.url).port)
            case "sends its client to a server that is not there":
                grpc.reset(session, "127.0.0.1", 1)
            case "restarts":
                await grpc.stop()
                await until(lambda: not self.covered, "the loss is noticed")
                await grpc.start()
            case "is starting":
                grpc.starting = True
                grpc.end(session)
                await until(lambda: "ServerCheckRequest" in grpc.asked[1:], "an attempt to connect")
                grpc.starting = False
            case "revokes the tokens":
                assert self.server.users is not None
                self.server.users.revoke()
                grpc.end(session)
            case _:
                raise AssertionError(fault)


@asynccontextmanager
async def asking(face: str = "v1+v2", **options: Any) -> AsyncIterator[Asking]:
    """Polls while there is no push, and not while there is: what arrives then was pushed."""
    passwords = options.pop("passwords", None)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(facing(face, grpc=True, passwords=passwords))
        account = {"username": "nacos", "password": "pw"} if passwords else {}
        settings = {**QUICK, "poll_safety": 3600.0, "push": "on", **account, **options}
        proxy = await stack.enter_async_context(serving(upstream=server.url, with_grpc=True, **settings))
        reader = await stack.enter_async_context(GrpcClient(f"127.0.0.1:{proxy.grpc_port}"))
        await reader.connect()
        await reader.subscribe("s")
        made = Asking(server, proxy, reader)
        await until(lambda: made.covered, "push")
        if passwords:
            assert server.users is not None
            proxy.http.params = {"accessToken": server.users.login("nacos")}
        yield made


FAULTS = (
    "closes stream and connection",
    "ends the stream only",
    "resets the connection",
    "forgets the session",
    "hangs",
    "asks to reconnect",
    "sends its client to itself",
    "sends its client to a server that is not there",
    "restarts",
    "is starting",
)


@pytest.mark.parametrize(
    ("fault", "face"), [*((fault, "v1+v2") for fault in FAULTS), ("ends the stream only", "v1"), ("restarts", "v1")]
)
async def test_push_comes_back_after_each_fault_of_the_server(
    fault: str, face: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with asking(face) as s:
        await s.change()
        before = len(s.grpc.asked)
        await s.cause(fault)
        await s.change()
        await until(lambda: s.covered and len(s.grpc.subscribers(ServiceKey.of("s"))) >= 1, "push is back")
        acknowledged = len(s.grpc.acked)
        await s.change()
        await until(lambda: len(s.grpc.acked) > acknowledged, "it was pushed")
        attempts = s.grpc.asked[before:].count("ServerCheckRequest")
        assert 1 <= attempts <= 6, "it reconnects at once, and does not storm"
        assert (await s.proxy.http.get("/readyz")).json()["status"] == "ready"
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_push_renews_a_token_that_was_revoked() -> None:
    async with asking(passwords={"nacos": "pw"}) as s:
        assert s.server.users is not None
        due = CLOCK.now() + 5.5  # for 5 s after a login, a refusal does not lead to another one
        while CLOCK.now() < due:
            await s.change()
        await s.cause("revokes the tokens")
        s.proxy.http.params = {"accessToken": s.server.users.login("nacos")}
        await until(lambda: s.covered and len(s.grpc.subscribers(ServiceKey.of("s"))) == 1, "push is back")
        await s.change()


async def test_push_session_answers_detections_and_stays() -> None:
    async with asking() as s:
        (session,) = s.grpc.known
        s.grpc.detect(session)
        await until(lambda: "ClientDetectionResponse" in s.grpc.acked, "the answer")
        await s.change()
        assert s.grpc.known == [session]


async def test_lost_pushes_are_made_up_for_by_polls() -> None:
    async with asking(poll_safety=0.5) as s:
        s.grpc.losing = True
        await s.change()
        s.grpc.losing = False
        await s.change()


async def test_subscriptions_that_are_not_answered_leave_the_service_to_polls() -> None:
    async with asking() as s:
        s.grpc.silent.add("SubscribeServiceRequest")
        await s.reader.subscribe("t")
        form = {"serviceName": "t", "ip": "10.0.0.1", "port": "80"}
        assert (await s.proxy.http.post(s.server.url + INSTANCE, params=form)).text == "ok"
        await s.reader.pushed("t", ONE)


async def test_push_of_a_cluster_moves_to_another_node() -> None:
    async with clustered(grpc=True) as nodes, AsyncExitStack() as stack:
        urls = ",".join(node.url for node in nodes)
        settings = {**QUICK, "poll_safety": 3600.0, "push": "on"}
        proxy = await stack.enter_async_context(serving(upstream=urls, with_grpc=True, **settings))
        reader = await stack.enter_async_context(GrpcClient(f"127.0.0.1:{proxy.grpc_port}"))
        await reader.connect()
        await reader.subscribe("s")
        key = ServiceKey.of("s")

        def following() -> list[GrpcNacos]:
            return [node.grpc for node in nodes if node.grpc is not None and node.grpc.subscribers(key)]

        for number in range(1, 4):
            await until(lambda: len(following()) == 1, "one node is asked")
            (grpc,) = following()
            form = {"serviceName": "s", "ip": "10.0.0.1", "port": str(number), "ephemeral": "false"}
            assert (await proxy.http.post(nodes[0].url + INSTANCE, params=form)).text == "ok"
            await reader.pushed("s", *(("10.0.0.1", n + 1) for n in range(number)))
            if number == 1:
                await grpc.stop()
                await until(lambda grpc=grpc: following() not in ([], [grpc]), "another node is asked")
            elif number == 2:
                (other,) = (n for n in nodes if n.grpc is not None and n.grpc is not grpc and n.grpc.listening)
                grpc.reset(grpc.known[0], "127.0.0.1", urlsplit(other.url).port)
                await until(lambda other=other: following() == [other.grpc], "the node that the reset names")
        sizes = [len(hosts_of(push.body["serviceInfo"])) for push in reader.pushes("s")]
        assert sizes == sorted(sizes), "no node brings an older list back"


async def test_either_end_of_a_tunnel_takes_the_other_along() -> None:
    place = {"dataId": "d", "group": "g", "tenant": "", "module": "config"}
    listen = {"listen": True, "configListenContexts": [{**place, "md5": ""}]}
    async with asking() as s, AsyncExitStack() as stack:

        async def connected_for(module: str) -> GrpcClient:
            client = await stack.enter_async_context(GrpcClient(f"127.0.0.1:{s.proxy.grpc_port}"))
            await client.connect(module=module, abilities={})
            return client

        def tunnelled() -> list[Any]:
            return [session for session in s.grpc.known if session.setup["labels"].get("module") == "config"]

        one, two = await connected_for("config"), await connected_for("config")
        await one.call("ConfigBatchListenRequest", listen)
        assert (await two.call("ConfigPublishRequest", {**place, "content": "text", "additionMap": {}})).code == 0
        await one.until(lambda asked: asked.type == "ConfigChangeNotifyRequest")
        assert (await one.call("ConfigQueryRequest", place)).body["content"] == "text"

        await two.close()
        await until(lambda: len(tunnelled()) == 1, "the server's side of the closed one ends")
        s.grpc.hold(tunnelled()[0])
        with pytest.raises(Lost, match="DEADLINE_EXCEEDED"):
            await one.call("ConfigQueryRequest", place, timeout=0.5)
        await s.change()  # nobody else waits for it
        s.grpc.let_go(tunnelled()[0])
        s.grpc.drop(tunnelled()[0])
        assert await asyncio.wait_for(asyncio.shield(one.ended), 10)
        assert (await (await connected_for("config")).call("ConfigQueryRequest", place)).body["content"] == "text"
