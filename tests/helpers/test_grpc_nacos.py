"""The gRPC side of a stand-in answers and pushes as the recorded servers, and fails as told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest

from nacos_proxy.runtime import Clock
from tests.helpers.clock import FakeClock
from tests.helpers.faces import FaceServer, clustered, facing
from tests.helpers.grpc_nacos import GrpcNacos
from tests.helpers.grpcio_client import GrpcClient, Lost, Packed, hosts_of
from tests.helpers.recordings import FOLDER

FACES = {"nacos-2.5.1": "v1+v2", "nacos-3.0.3": "3.0", "r-nacos-0.8.8": "v1"}
VOLATILE = ("lastRefTime", "connectionId", "lastModified", "requestId")
# Nacos 3 has handlers for these, which the stand-in lacks; and its first health check came before the setup was done.
ONLY_THREE = ("type NamingFuzzyWatch", "type LockOp", "type QueryMcp", "type ConfigFuzzy", "health")
# These list what else was registered on the recorded server.
WITH_OTHERS = ("services", "services page 0", "services far page", "services size 0", "services selector")
# What r-nacos says of broken JSON comes from its parser; it stores casMd5 requests without looking at them.
PARSERS = ("not json", "empty body")
# Nacos lists a change of a service that was read before only half a second later; the stand-in lists it at once.
LATE = ("list after scalars", "list healthyOnly is a number")
SILENT = ("victim", "silent", "silent-no-detection-answer")


def events(name: str) -> Iterator[dict[str, Any]]:
    for line in (FOLDER / "grpc" / f"{name}.jsonl").read_text("utf-8").splitlines():
        yield json.loads(line)


def comparable(value: Any) -> Any:
    """Without what differs in each run; hosts in order of their address."""
    if isinstance(value, list):
        items = [comparable(item) for item in value]
        return (
            sorted(items, key=lambda item: (item.get("ip") or "", item["port"]))
            if items and "ip" in items[0]
            else items
        )
    if isinstance(value, dict):
        return {name: comparable(item) for name, item in value.items() if name not in VOLATILE}
    return value


def loosely(result: dict[str, Any]) -> Any:
    """As much of an answer of r-nacos as the stand-in reproduces."""
    info = result.get("serviceInfo") or {}
    codes = {name: result[name] for name in ("resultCode", "errorCode")}
    return codes | {"hosts": hosts_of(info) if info else None, "fields": sorted({*result} - {"message"})}


@asynccontextmanager
async def standing_in(
    face: str, clock: Clock | None = None, **options: Any
) -> AsyncIterator[tuple[FaceServer, GrpcNacos]]:
    async with facing(face, clock, grpc=True, **options) as server:
        assert server.grpc is not None
        yield server, server.grpc


@asynccontextmanager
async def client_of(grpc: GrpcNacos, **options: Any) -> AsyncIterator[GrpcClient]:
    """A connected client."""
    connecting = options.pop("connecting", {})
    async with GrpcClient(f"127.0.0.1:{grpc.port}", **options) as client:
        await client.connect(**connecting)
        yield client


@pytest.mark.parametrize(
    ("server", "file"),
    [*((server, "raw-cases") for server in FACES), ("nacos-2.5.1", "more-cases"), ("nacos-3.0.3", "more-cases")],
)
async def test_grpc_nacos_answers_as_the_recorded_server(server: str, file: str) -> None:
    clock, now = FakeClock(), 0.0
    told: dict[str, list[tuple[str, Any]]] = {}
    async with standing_in(FACES[server], clock) as (_, grpc), AsyncExitStack() as stack:
        clients: dict[str, GrpcClient] = {}
        for event in events(f"{server}-{file}"):
            if (name := event["client"]) == "d-no-abilities":
                continue
            if name not in clients:
                clients[name] = await stack.enter_async_context(GrpcClient(f"127.0.0.1:{grpc.port}"))
                now = 0.0
            client = clients[name]
            if event["t"] > now:
                await clock.advance(event["t"] - now)
                now = event["t"]
            case = event.get("case", "")
            if case:
                sent = event["body"]
                answer = await client.call(event["type"], sent.encode() if isinstance(sent, str) else sent)
                if case in (*WITH_OTHERS, *LATE) or (server == "nacos-3.0.3" and case.startswith(ONLY_THREE)):
                    continue
                expected = event["result"]
                assert (case, answer.type) == (case, event["answer"])
                if server != "r-nacos-0.8.8":
                    assert (case, comparable(answer.body)) == (case, comparable(expected))
                elif case not in PARSERS:
                    assert (case, loosely(answer.body)) == (case, loosely(expected))
            elif event["event"] == "stream-sent" and not event["type"].endswith("Response"):
                if client.connection_id == "":
                    client.connection_id = "set up"
                    await client.open()
                await client.send(event["type"], event["body"])
                if event["type"] == "ConnectionSetupRequest":
                    while (await client.healthy()).code:
                        pass
            elif event["event"] == "stream-got":
                told.setdefault(name, []).append((event["type"], comparable(event["body"])))
        await clock.advance(1)
        for name, messages in told.items():
            client, count = clients[name], len(messages)
            await client.until(lambda _, client=client, count=count: len(client.heard) >= count)
            got = [(asked.type, comparable(asked.body)) for asked in client.heard]
            if server == "r-nacos-0.8.8":
                assert [kind for kind, _ in got] == [kind for kind, _ in messages]
            else:
                assert got == messages


async def rounds(clock: FakeClock, seconds: float, observer: GrpcClient) -> None:
    """Lets time pass in steps, each as long as the network needs for a request and its answer."""
    end = clock.now() + seconds
    while clock.now() < end - 1e-6:
        await clock.advance(min(0.1, end - clock.now()))
        await observer.call("ServerCheckRequest")


@pytest.mark.parametrize("server", ["nacos-2.5.1", "nacos-3.0.3"])
async def test_grpc_nacos_pushes_detects_and_ends_at_the_recorded_moments(server: str) -> None:
    clock, now = FakeClock(), 0.0
    start = clock.now()
    heard: dict[str, list[tuple[float, Packed]]] = {}
    ended: dict[str, float] = {}
    async with standing_in(FACES[server], clock) as (_, grpc), AsyncExitStack() as stack:
        observer = await stack.enter_async_context(GrpcClient(f"127.0.0.1:{grpc.port}"))
        clients: dict[str, GrpcClient] = {}

        def acknowledging(name: str) -> Any:
            def acknowledges(asked: Packed) -> bool:
                heard.setdefault(name, []).append((clock.now() - start, asked))
                return not (
                    (name == "noack" and asked.type == "NotifySubscriberRequest")
                    or (name.endswith("no-detection-answer") and asked.type == "ClientDetectionRequest")
                )

            return acknowledges

        recorded = list(events(f"{server}-raw-timing"))
        for event in recorded:
            name = event["client"]
            await rounds(clock, event["t"] - now, observer)
            if event["t"] // 5 > now // 5:  # the recorded clients checked their health, as SDKs do, but not these
                await asyncio.gather(*(clients[each].healthy() for each in clients if each not in SILENT))
            now = event["t"]
            for each, client in clients.items():
                if client.ended.done():
                    ended.setdefault(each, now)
            if event.get("type") == "ConnectionSetupRequest":
                clients[name] = client = GrpcClient(f"127.0.0.1:{grpc.port}", acknowledges=acknowledging(name))
                await stack.enter_async_context(client)
                await client.open()
                await client.send(event["type"], event["body"])
                while (await client.healthy()).code:
                    pass
            elif event.get("what") == "victim closes its connection":
                clients[name].reset()
            elif "case" in event:
                answer = await clients[name].call(event["type"], event["body"])
                assert (event["case"], answer.type) == (event["case"], event["answer"])
                assert answer.body["errorCode"] == event["result"]["errorCode"]
            if now > 47.3:
                break

        def told(name: str) -> list[tuple[float, set[tuple[str, int]]]]:
            notes = (e for e in recorded if e["client"] == name and e.get("event") == "stream-got")
            return [(e["t"], hosts_of(e["body"]["serviceInfo"])) for e in notes if "serviceInfo" in e["body"]]

        def got(name: str) -> list[tuple[float, set[tuple[str, int]]]]:
            notes = [(moment, asked.body) for moment, asked in heard[name]]
            return [(moment, hosts_of(body["serviceInfo"])) for moment, body in notes if "serviceInfo" in body]

        def lists(pushes: list[tuple[float, set[tuple[str, int]]]]) -> list[tuple[float, set[tuple[str, int]]]]:
            return [push for push, before in zip(pushes, [(0.0, None), *pushes], strict=False) if push[1] != before[1]]

        pairs = list(zip(lists(got("subscriber")), lists(told("subscriber")), strict=False))
        for (moment, hosts), (recorded_moment, recorded_hosts) in pairs[:5]:
            assert hosts == recorded_hosts
            assert abs(moment - recorded_moment) <= 0.6
        left = [moment for moment, _ in lists(got("subscriber"))[5:]]  # the two whose stream ended, in one go or two
        assert left and 26.3 <= left[0] <= 36.0 and left[-1] <= 36.0
        assert lists(got("subscriber"))[-1][1] == lists(told("subscriber"))[-1][1]
        # Unacknowledged pushes are repeated with new ids, with what is current.
        numbers = [asked.body["requestId"] for _, asked in heard["noack"]]
        assert len(numbers) == len(set(numbers)) >= 15
        detected = {name: at for name in heard for at, asked in heard[name] if asked.type == "ClientDetectionRequest"}
        assert 27.5 <= detected["silent"] <= 31.5 and 27.5 <= detected["silent-no-detection-answer"] <= 31.5
        assert 4.9 <= ended["silent-no-detection-answer"] - detected["silent-no-detection-answer"] <= 7.5
        assert clients["silent-no-detection-answer"].ended.result() == "OK"


@pytest.mark.parametrize(("face", "listed"), [("v1+v2", 2), ("3.0", 2), ("v1", 1)])
async def test_grpc_nacos_and_http_list_what_the_other_registered(face: str, listed: int) -> None:
    fields = {"serviceName": "s", "ip": "10.0.0.1", "port": "80"}
    async with standing_in(face) as (server, grpc), httpx.AsyncClient(base_url=f"{server.url}/nacos/v1/ns") as http:
        async with client_of(grpc) as one, client_of(grpc) as two:
            await one.register("s", "10.0.0.1", 80)
            assert len((await http.get("/instance/list", params=fields)).json()["hosts"]) == 1
            assert (await http.get("/service/list", params={"pageNo": "1", "pageSize": "9"})).json()["doms"] == ["s"]
            await http.post("/instance", params=fields)
            assert len((await http.get("/instance/list", params=fields)).json()["hosts"]) == listed
            assert len((await two.query("s")).body["serviceInfo"]["hosts"]) == listed
            await two.subscribe("s")
            await http.post("/instance", params={**fields, "port": "81"})
            await two.pushed("s", ("10.0.0.1", 80), ("10.0.0.1", 81))
            await one.close()
            await http.delete("/instance", params=fields)
            await two.pushed("s", ("10.0.0.1", 81))


async def test_grpc_nacos_pushes_what_expires() -> None:
    clock = FakeClock()
    fields = {"serviceName": "s", "ip": "10.0.0.1", "port": "80"}
    async with standing_in("v1+v2", clock) as (server, grpc), client_of(grpc) as client:
        await client.subscribe("s")
        async with httpx.AsyncClient(base_url=f"{server.url}/nacos/v1/ns") as http:
            await http.post("/instance", params=fields)
        await rounds(clock, 1, client)
        await client.pushed("s", ("10.0.0.1", 80))
        await rounds(clock, 35, client)
        await client.pushed("s")


async def test_grpc_nacos_requires_a_token() -> None:
    for face, kind in (("v1+v2", "QueryServiceResponse"), ("v1", "ErrorResponse")):
        async with standing_in(face, passwords={"nacos": "pw"}) as (server, grpc):
            assert server.users is not None
            async with client_of(grpc) as client:
                refused = await client.query("s")
                assert (refused.type, refused.code) == (kind, 403)
            async with client_of(grpc, token=server.users.login("nacos")) as client:
                assert (await client.query("s")).code == 0
                server.users.revoke()
                assert (await client.query("s")).code == 403


async def test_grpc_nacos_ends_sessions_in_each_way() -> None:
    async with standing_in("v1+v2") as (_, grpc):

        async def session(client: GrpcClient) -> Any:
            await client.register("s", "10.0.0.1", 80)
            (found,) = grpc.known
            return found

        async with client_of(grpc) as client:
            grpc.end(await session(client))
            assert await client.ended == "OK"
            assert (await client.healthy()).code == 301
        async with client_of(grpc) as client:
            grpc.drop(await session(client))
            assert await client.ended == "UNAVAILABLE"
        async with client_of(grpc) as client:
            grpc.end_stream(await session(client))
            assert await client.ended == "OK"
            assert (await client.healthy()).code == 0
        async with client_of(grpc) as client:
            grpc.forget(await session(client))
            assert (await client.healthy()).code == 301
            assert not client.ended.done()
        async with client_of(grpc) as client:
            grpc.hold(held := await session(client))
            with pytest.raises(Lost, match="DEADLINE_EXCEEDED"):
                await client.call("HealthCheckRequest", timeout=0.2)
            grpc.let_go(held)
            assert (await client.healthy()).code == 0


async def test_grpc_nacos_resets_and_detects_and_keeps_silent() -> None:
    async with standing_in("3.0") as (_, grpc), client_of(grpc, connecting={"abilities": {}}) as client:
        (session,) = grpc.known
        assert client.heard[0].body["abilityTable"] == grpc.server.abilities
        grpc.reset(session, "127.0.0.1", 1)
        asked = await client.until(lambda asked: asked.type == "ConnectResetRequest")
        assert (asked.body["serverIp"], asked.body["serverPort"]) == ("127.0.0.1", "1")
        grpc.detect(session)
        await client.until(lambda asked: asked.type == "ClientDetectionRequest")
        grpc.silent.add("ServiceQueryRequest")
        with pytest.raises(Lost, match="DEADLINE_EXCEEDED"):
            await client.call("ServiceQueryRequest", timeout=0.1)
        grpc.starting = True
        assert (await client.healthy()).code == 300


async def test_grpc_nacos_outage_forgets_sessions_and_keeps_the_port() -> None:
    async with standing_in("v1+v2") as (_, grpc):
        port = grpc.port
        async with client_of(grpc) as client:
            await client.register("s", "10.0.0.1", 80)
            await grpc.stop()
            assert await client.ended in ("UNAVAILABLE", "CANCELLED")
        await grpc.start()
        assert grpc.port == port
        async with client_of(grpc) as client:
            assert (await client.query("s")).body["serviceInfo"]["hosts"] == []


async def test_grpc_nacos_losing_pushes_and_a_changed_delay() -> None:
    clock = FakeClock()
    async with standing_in("v1+v2", clock) as (_, grpc), client_of(grpc) as client:
        await client.subscribe("s")
        await rounds(clock, 1, client)
        assert len(client.pushes("s")) == 1
        grpc.losing = True
        await client.register("s", "10.0.0.1", 80)
        await rounds(clock, 3, client)
        grpc.losing, grpc.push_delay = False, 2.0
        await client.register("s", "10.0.0.1", 81)
        await rounds(clock, 1.5, client)
        assert len(client.pushes("s")) == 1
        await rounds(clock, 1, client)
        await client.pushed("s", ("10.0.0.1", 81))


async def test_grpc_nacos_configuration_is_stored_and_announced() -> None:
    place = {"dataId": "d", "group": "g", "tenant": "", "module": "config"}
    async with standing_in("v1+v2") as (_, grpc):
        async with client_of(grpc, connecting={"module": "config"}) as one, client_of(grpc) as two:
            listen = {"listen": True, "configListenContexts": [{**place, "md5": ""}]}
            assert (await one.call("ConfigBatchListenRequest", listen)).body["changedConfigs"] == []
            await two.call("ConfigPublishRequest", {**place, "content": "text", "additionMap": {}})
            asked = await one.until(lambda asked: asked.type == "ConfigChangeNotifyRequest")
            assert asked.body["dataId"] == "d"
            assert (await one.call("ConfigQueryRequest", place)).body["content"] == "text"
            assert len((await one.call("ConfigBatchListenRequest", listen)).body["changedConfigs"]) == 1


async def test_clustered_nodes_push_what_they_list() -> None:
    clock = FakeClock()
    async with clustered(clock, grpc=True) as nodes, AsyncExitStack() as stack:
        clients: list[GrpcClient] = []
        for node in nodes:
            assert node.grpc is not None
            clients.append(await stack.enter_async_context(client_of(node.grpc)))
        for client in clients:
            await client.subscribe("s")
        await clients[0].register("s", "10.0.0.1", 80)
        lists = [(await client.query("s")).body["serviceInfo"]["hosts"] for client in clients]
        assert lists == [[], [], []]
        await rounds(clock, 5, clients[0])
        await asyncio.gather(*(client.pushed("s", ("10.0.0.1", 80)) for client in clients))
