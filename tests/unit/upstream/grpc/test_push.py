"""gRPC push: with a client of our own and a fake clock, then with the real SDK and r-nacos."""

from __future__ import annotations

import asyncio
import threading
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nacos_proxy.model.services import ServiceKey
from nacos_proxy.runtime import SystemClock, spawn
from nacos_proxy.upstream.contract import Watchable
from nacos_proxy.upstream.grpc import push as module
from nacos_proxy.upstream.grpc.push import GrpcPush, pushable
from nacos_proxy.upstream.grpc.sdk import PushPolicy, available
from tests.helpers.build import key
from tests.helpers.clock import FakeClock, settle
from tests.helpers.live import RNacos, rnacos_binary

POLICY = PushPolicy(("http://127.0.0.1:8848",))


class Panic(BaseException):
    """A panic in Rust, which is not an `Exception` in Python."""


class Sdk:
    """A client like the SDK's: calls wait while `up` is not set; `refuse` has the errors of subscriptions that fail."""

    def __init__(self) -> None:
        self.up = asyncio.Event()
        self.up.set()
        self.listeners: dict[str, list[Callable[[Any], None]]] = {}
        self.asked: list[str] = []
        self.refuse: dict[str, BaseException] = {}
        self.query: BaseException | None = None
        self.most_at_once = self.at_once = 0

    async def subscribe(self, service: str, group: str, clusters: Any, listener: Any, /) -> None:
        self.asked.append(service)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        await self.up.wait()
        self.at_once -= 1
        if service in self.refuse:
            raise self.refuse[service]
        self.listeners.setdefault(f"{group}@@{service}", []).append(listener)

    async def get_all_instances(self, service: str, group: str, clusters: Any, subscribe: bool, /) -> list[Any]:
        await self.up.wait()
        if self.query is not None:
            raise self.query
        return []

    def happen(self, service: ServiceKey, pushed: object = ()) -> None:
        """A change, reported as the SDK does it: in a thread of its own."""
        listeners = self.listeners.get(service.grouped, [])
        thread = threading.Thread(target=lambda: [listener(pushed) for listener in listeners])
        thread.start()
        thread.join()


@asynccontextmanager
async def pushing(
    sdk: Sdk, clock: FakeClock, policy: PushPolicy = POLICY, connect: Callable[..., Awaitable[Any]] | None = None
) -> AsyncIterator[tuple[GrpcPush, list[ServiceKey]]]:
    """Push, and the services that it reports, in order."""

    async def at_once(_policy: PushPolicy, _namespace: str) -> Sdk:
        return sdk

    push = GrpcPush(policy, clock, connect or at_once)
    reported: list[ServiceKey] = []

    async def listen() -> None:
        async for service in push.changes():
            reported.append(service)

    listening = spawn(listen(), name="listening")
    try:
        yield push, reported
    finally:
        await push.close()
        await listening  # it ends by itself


async def test_grpc_push_changes_yields_a_change_from_a_thread_of_the_sdk() -> None:
    sdk, clock = Sdk(), FakeClock()
    async with pushing(sdk, clock) as (push, reported):
        assert isinstance(push, Watchable)
        push.watch([key("a"), key("b")])
        await settle()
        reported.clear()
        sdk.happen(key("b"))
        await settle()
        assert reported == [key("b")]


async def test_grpc_push_hint_gets_the_clusters_of_a_push() -> None:
    sdk, clock, hints = Sdk(), FakeClock(), list[tuple[ServiceKey, set[str]]]()
    async with pushing(sdk, clock) as (push, reported):
        push.hint = lambda service, clusters: hints.append((service, set(clusters)))
        push.watch([key("a")])
        await settle()
        reported.clear()
        for heard in ([SimpleNamespace(cluster_name=name) for name in ("c1", "DEFAULT", "c1")], [], None):
            sdk.happen(key("a"), heard)
            await settle()
        assert hints == [(key("a"), {"c1", "DEFAULT"}), (key("a"), set()), (key("a"), set())]
        assert reported == [key("a")] * 3


async def test_grpc_push_changes_yields_a_new_subscription_once() -> None:
    sdk, clock = Sdk(), FakeClock()
    async with pushing(sdk, clock) as (push, reported):
        push.watch([key("a")])
        push.watch([key("a")])
        await settle()
        assert (reported, sdk.asked) == ([key("a")], ["a"])


async def test_grpc_push_changes_collapses_changes_of_one_service() -> None:
    sdk, clock = Sdk(), FakeClock()
    async with pushing(sdk, clock) as (push, reported):
        push.watch([key("a")])
        await settle()
        reported.clear()
        for _ in range(5):
            sdk.happen(key("a"))
        await settle()
        assert reported == [key("a")]


async def test_grpc_push_watch_ignores_a_service_until_it_is_watched_again() -> None:
    sdk, clock = Sdk(), FakeClock()
    async with pushing(sdk, clock) as (push, reported):
        push.watch([key("a"), key("b")])
        await settle()
        reported.clear()
        push.watch([key("b")])
        sdk.happen(key("a"))
        await settle()
        assert reported == []
        push.watch([key("a"), key("b")])
        await settle()
        assert (reported, sorted(sdk.asked)) == ([key("a")], ["a", "b"])


async def test_grpc_push_alive_once_probes_have_been_answered_for_a_while() -> None:
    sdk, clock = Sdk(), FakeClock()
    async with pushing(sdk, clock) as (push, _):
        assert not push.alive  # nothing is watched
        push.watch([key("a")])
        await clock.advance(POLICY.settle - 1)
        assert not push.alive
        await clock.advance(1)
        assert push.alive


async def test_grpc_push_alive_ends_within_a_probe_and_returns() -> None:
    sdk, clock = Sdk(), FakeClock()
    async with pushing(sdk, clock) as (push, _):
        push.watch([key("a")])
        await clock.advance(60)
        assert push.alive
        sdk.up.clear()
        await clock.advance(POLICY.probe + POLICY.answer)
        assert not push.alive
        await clock.advance(600)
        assert not push.alive
        sdk.up.set()
        await clock.advance(POLICY.answer + POLICY.settle)
        assert push.alive


async def test_grpc_push_renews_every_subscription_after_a_loss_and_reports_once() -> None:
    sdk, clock = Sdk(), FakeClock()
    async with pushing(sdk, clock) as (push, reported):
        push.watch([key(f"s{n}") for n in range(300)])
        await clock.advance(60)
        reported.clear()
        sdk.asked.clear()
        sdk.up.clear()
        await clock.advance(10)
        sdk.up.set()
        await clock.advance(POLICY.answer)
        assert sorted(sdk.asked) == sorted(f"s{n}" for n in range(300))
        assert reported == []
        sdk.happen(key("s7"))
        await settle()
        assert reported == [key("s7")]


async def test_grpc_push_covers_no_service_whose_renewal_waits() -> None:
    sdk, clock = Sdk(), FakeClock()
    stuck = asyncio.Event()

    class Slow(Sdk):
        async def subscribe(self, service: str, group: str, clusters: Any, listener: Any, /) -> None:
            if service in self.asked:
                await stuck.wait()
            await super().subscribe(service, group, clusters, listener)

    sdk = Slow()
    async with pushing(sdk, clock) as (push, _):
        push.watch([key("a")])
        await clock.advance(60)
        sdk.up.clear()
        await clock.advance(10)
        sdk.up.set()
        await clock.advance(120)
        assert push.alive and not push.covers(key("a"))
        stuck.set()
        await clock.advance(1)
        assert push.covers(key("a"))


async def test_grpc_push_waits_for_the_sdk_after_too_many_renewals() -> None:
    sdk, clock = Sdk(), FakeClock()
    async with pushing(sdk, clock) as (push, _):
        push.watch([key(f"s{n}") for n in range(400)])
        await clock.advance(20)
        for _ in range(module.MAX_RENEWALS + 1):
            sdk.up.clear()
            await clock.advance(POLICY.probe + POLICY.answer)
            sdk.up.set()
            await clock.advance(POLICY.answer + POLICY.probe)
        assert len(sdk.listeners[key("s1").grouped]) == module.MAX_RENEWALS + 1
        await clock.advance(POLICY.settle)
        assert not push.alive
        await clock.advance(module.SDK_RENEWAL * 400)
        assert push.alive


@pytest.mark.parametrize("error", [RuntimeError("denied"), Panic("in Rust")])
async def test_grpc_push_retries_a_failed_subscription_and_leaves_the_service_to_the_poller(
    error: BaseException,
) -> None:
    sdk, clock = Sdk(), FakeClock()
    sdk.refuse["a"] = error
    async with pushing(sdk, clock) as (push, reported):
        push.watch([key("a"), key("b")])
        await clock.advance(12)
        assert push.alive
        assert (push.covers(key("a")), push.covers(key("b")), push.covers(key("never"))) == (False, True, False)
        assert key("a") in reported, "it is polled now, and then at its usual interval"
        sdk.refuse.clear()
        await clock.advance(module.BACKOFF.maximum)
        assert push.covers(key("a"))
        reported.clear()
        sdk.happen(key("a"))
        await settle()
        assert reported == [key("a")]


@pytest.mark.parametrize("error", [RuntimeError("client unhealthy"), Panic("in Rust")])
async def test_grpc_push_alive_ends_when_a_probe_fails_and_probing_goes_on(error: BaseException) -> None:
    sdk, clock = Sdk(), FakeClock()
    async with pushing(sdk, clock) as (push, _):
        push.watch([key("a")])
        await clock.advance(20)
        sdk.query = error
        await clock.advance(POLICY.probe)
        assert not push.alive
        sdk.query = None
        await clock.advance(POLICY.probe + POLICY.settle)
        assert push.alive


async def test_grpc_push_subscribes_to_five_thousand_services_with_bounded_concurrency() -> None:
    sdk, clock = Sdk(), FakeClock()
    async with pushing(sdk, clock) as (push, _):
        push.watch([key(f"s{n}") for n in range(5000)])
        await clock.advance(POLICY.settle)
        for _ in range(100):
            await settle()
        assert sum(push.covers(key(f"s{n}")) for n in range(5000)) == len(sdk.asked) == 5000
        assert sdk.most_at_once == module.MAX_CONCURRENT
        assert push.alive


async def test_grpc_push_leaves_services_beyond_its_bound_to_the_poller() -> None:
    sdk, clock = Sdk(), FakeClock()
    async with pushing(sdk, clock, PushPolicy(POLICY.servers, max_services=3)) as (push, _):
        push.watch([key("a"), key("b")])
        await clock.advance(20)
        assert push.alive
        push.watch([key(name) for name in "abcd"])
        await clock.advance(20)
        assert (push.alive, len(sdk.asked)) == (True, 3)
        assert [name for name in "abcd" if not push.covers(key(name))] in (["c"], ["d"])


async def test_grpc_push_makes_a_client_for_each_namespace_one_at_a_time_up_to_a_bound() -> None:
    sdk, clock = Sdk(), FakeClock()
    asked: list[str] = []
    making = 0

    async def connect(_policy: PushPolicy, namespace: str) -> Sdk:
        nonlocal making
        assert making == 0
        making += 1
        await clock.sleep_until(clock.now() + 1)
        making -= 1
        asked.append(namespace)
        return sdk

    async with pushing(sdk, clock, PushPolicy(POLICY.servers, namespaces=2), connect) as (push, _):
        push.watch([key("a"), key("a", namespace="one")])
        await clock.advance(20)
        assert push.alive
        push.watch([key("a"), key("a", namespace="one"), key("a", namespace="two")])
        await clock.advance(20)
        assert (push.alive, sorted(asked)) == (True, ["one", "public"])
        assert not push.covers(key("a", namespace="two"))


async def test_grpc_push_backs_off_while_no_port_answers() -> None:
    sdk, clock = Sdk(), FakeClock()
    tries: list[float] = []

    async def connect(_policy: PushPolicy, _namespace: str) -> Sdk:
        tries.append(clock.now() - 1000)
        if len(tries) < 8:
            raise (OSError if len(tries) % 2 else RuntimeError)("closed")
        return sdk

    async with pushing(sdk, clock, connect=connect) as (push, _):
        push.watch([key("a")])
        await clock.advance(200)
        assert tries == [0, 1, 3, 7, 15, 31, 61, 91]
        assert push.alive


async def test_grpc_push_follow_starts_when_the_first_server_is_known() -> None:
    sdk, clock = Sdk(), FakeClock()
    tries: list[tuple[str, ...]] = []

    async def connect(policy: PushPolicy, _namespace: str) -> Sdk:
        tries.append(policy.servers)
        if not policy.servers:
            raise OSError("no gRPC port answers")
        return sdk

    async with pushing(sdk, clock, PushPolicy(()), connect) as (push, reported):
        push.watch([key("a")])
        await clock.advance(100)
        assert (push.alive, reported, set(tries)) == (False, [], {()})
        push.follow(["http://a:8848"])
        await settle()
        assert (tries[-1], reported) == (("http://a:8848",), [key("a")])  # without waiting for the end of a pause
        await clock.advance(POLICY.settle + POLICY.probe)
        assert push.alive


async def test_grpc_push_follow_makes_a_new_client_only_if_a_server_left_the_list() -> None:
    clients: list[tuple[tuple[str, ...], Sdk]] = []
    clock = FakeClock()

    async def connect(policy: PushPolicy, _namespace: str) -> Sdk:
        clients.append((policy.servers, Sdk()))
        return clients[-1][1]

    async with pushing(Sdk(), clock, PushPolicy(("a",)), connect) as (push, reported):
        push.watch([key("s"), key("t")])
        await clock.advance(20)
        push.follow(["a", "b"])
        await clock.advance(1)
        assert (push.alive, len(clients)) == (True, 1)
        reported.clear()
        push.follow(["b"])
        assert not push.alive
        await clock.advance(20)
        assert push.alive
        assert [servers for servers, _ in clients] == [("a",), ("b",)]
        assert sorted(clients[-1][1].asked) == ["s", "t"]
        assert sorted(reported) == [key("s"), key("t")], "their changes were not reported meanwhile"
        reported.clear()
        clients[-1][1].happen(key("s"))
        await settle()
        assert reported == [key("s")]


async def test_grpc_push_follow_stops_after_too_many_changes() -> None:
    clock, made = FakeClock(), 0

    async def connect(_policy: PushPolicy, _namespace: str) -> Sdk:
        nonlocal made
        made += 1
        return Sdk()

    async with pushing(Sdk(), clock, PushPolicy(("a",)), connect) as (push, _):
        push.watch([key("s")])
        for number in range(50):
            await clock.advance(20)
            push.follow([f"b{number}"])
        await clock.advance(20)
        assert (made, push.alive) == (module.MAX_CLIENTS, False)


async def test_pushable_excludes_names_that_are_no_file_names_from_push() -> None:
    sdk, clock = Sdk(), FakeClock()
    odd = [key("../a"), key("a\\b"), key("x" * 201)]
    assert [pushable(service) for service in (*odd, key("a"))] == [False, False, False, True]
    async with pushing(sdk, clock) as (push, _):
        push.watch([*odd, key("a")])
        await clock.advance(POLICY.settle + 1)
        assert push.alive
        assert sdk.asked == ["a"]
        assert [name for name in odd if push.covers(name)] == []


async def test_grpc_push_close_ends_every_task() -> None:
    sdk, clock = Sdk(), FakeClock()
    before = asyncio.all_tasks()
    sdk.refuse["b"] = RuntimeError("denied")

    async def connect(_policy: PushPolicy, namespace: str) -> Sdk:
        if namespace != "public":
            raise OSError("closed")
        return sdk

    async with pushing(sdk, clock, connect=connect) as (push, _):
        push.watch([key("a"), key("b"), key("c", namespace="other"), key("odd/name")])
        await settle()
        sdk.up.clear()
        push.watch([key("a"), key("b"), key("c", namespace="other"), key("odd/name"), key("d")])
        await settle()
    assert asyncio.all_tasks() == before
    assert not push.alive
    push.watch([key("e")])
    await settle()
    assert asyncio.all_tasks() == before


def test_grpc_push_ignores_calls_of_the_sdk_after_the_loop_has_ended() -> None:
    sdk = Sdk()
    reported: list[ServiceKey] = []

    async def run() -> None:
        async with pushing(sdk, FakeClock()) as (push, heard):
            push.watch([key("a")])
            await settle()
        heard.clear()
        sdk.happen(key("a"))
        await settle()
        reported.extend(heard)

    asyncio.run(run())
    errors: list[BaseException] = []

    def call() -> None:
        try:
            for listener in sdk.listeners[key("a").grouped]:
                listener([])
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert (reported, errors) == ([], [])


# --- the real SDK against r-nacos ----------------------------------------------------------------------------------

BINARY = rnacos_binary()


def register(server: RNacos, service: str, ip: str) -> None:
    """Registers directly at the server."""
    query = urllib.parse.urlencode({"serviceName": service, "ip": ip, "port": 80})
    request = urllib.request.Request(f"{server.url}/nacos/v1/ns/instance?{query}", method="POST")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


@pytest.mark.skipif(BINARY is None, reason="no r-nacos")
@pytest.mark.skipif(not available(), reason="without the extra push")
async def test_grpc_push_from_r_nacos_survives_its_restart_with_every_subscription(tmp_path: Path) -> None:
    assert BINARY is not None
    names = [f"pushed-{n}" for n in range(50)]
    with RNacos(BINARY) as server:
        policy = PushPolicy((server.url,), home=str(tmp_path), probe=0.2, answer=1.0, settle=1.0)
        hints: dict[ServiceKey, set[str]] = {}
        push = GrpcPush(policy, SystemClock(), hint=lambda service, clusters: hints.update({service: set(clusters)}))
        reported: asyncio.Queue[ServiceKey] = asyncio.Queue()

        async def listen() -> None:
            async for service in push.changes():
                reported.put_nowait(service)

        async def until(condition: Callable[[], bool]) -> None:
            for _ in range(600):
                if condition():
                    return
                await asyncio.sleep(0.05)
            raise AssertionError("it did not come to that in 30 s")

        async def hears(services: set[ServiceKey]) -> None:
            while services:
                services.discard(await asyncio.wait_for(reported.get(), 30))

        listening = spawn(listen(), name="listening")
        try:
            push.watch([key(name) for name in names])
            await until(lambda: push.alive)
            assert all(push.covers(key(name)) for name in names)
            await hears({key(name) for name in names})
            register(server, names[3], "10.0.0.1")
            await hears({key(names[3])})
            await until(lambda: hints.get(key(names[3])) == {"DEFAULT"})

            await asyncio.to_thread(server.terminate)
            await until(lambda: not push.alive)
            await asyncio.to_thread(server.start)
            await until(lambda: push.alive)
            for name in names:
                register(server, name, "10.0.0.2")
            await hears({key(name) for name in names})
        finally:
            await push.close()
            await listening
