"""Webhooks to a real server on loopback; the time between attempts is the test's."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from nacos_proxy.background.webhooks import Webhook, Webhooks, WebhooksPolicy
from nacos_proxy.model.calls import Deregister, Register
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.wire.webhooks import WebhookTarget, signature
from tests.helpers.build import KEY, instance, key
from tests.helpers.live import free_port
from tests.helpers.world import World
from tests.unit.upstream.stub import Request, Say, ok, say, stub

STOCK = key("stock")


class Seen:
    """A request that a receiver got."""

    def __init__(self, request: Request) -> None:
        lines = request.head.decode().split("\r\n")
        self.line, self.raw = lines[0], request.body
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        self.event, self.id = self.headers["nacos-proxy-event"], self.headers["nacos-proxy-event-id"]
        self.data: dict[str, Any] = orjson.loads(request.body)
        self.name, self.ports = self.data["name"], [host["port"] for host in self.data["hosts"]]


class Receiver:
    """What it answers may be changed at any time."""

    def __init__(self) -> None:
        self.answer: Say = ok()
        self.got: list[Seen] = []

    def __call__(self, request: Request) -> Say:
        self.got.append(Seen(request))
        return self.answer


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@asynccontextmanager
async def hooked(
    world: World, *urls: str, keys: tuple[ServiceKey, ...] = (KEY,), **policy: Any
) -> AsyncIterator[list[Webhook]]:
    targets = tuple(WebhookTarget(url, frozenset(keys)) for url in urls)
    discovered: list[tuple[str, str]] = []
    hooks = Webhooks(
        world.agent,
        WebhooksPolicy(targets, **policy),
        discover=lambda *group: discovered.append(group),
        rng=itertools.repeat(1.0).__next__,
    )
    hooks.start()
    try:
        yield list(hooks)
    finally:
        await hooks.stop()


async def until(condition: Callable[[], object]) -> None:
    """A request over a socket needs turns of the loop, not time."""
    while not condition():
        await asyncio.sleep(0)


async def add(world: World, port: int, service: ServiceKey = KEY) -> None:
    await world.agent.write(Register(service, instance("10.0.0.9", port)))


async def drop(world: World, port: int, service: ServiceKey = KEY) -> None:
    await world.agent.write(Deregister(service, "10.0.0.9", port))


async def test_run_posts_the_snapshot_then_each_change_signed(world: World, receiver: Receiver) -> None:
    async with stub(receiver) as server, hooked(world, f"{server.url}/hook?to=x", secret="key") as (hook,):
        await until(lambda: receiver.got)
        await add(world, 1)
        await until(lambda: hook.outcomes["delivered"] == 2)
    first, second = receiver.got
    assert first.line == "POST /hook?to=x HTTP/1.1"
    assert first.headers["content-type"] == "application/json"
    assert (first.event, first.id, first.data["stale"], len(first.ports)) == ("snapshot", "e-1", False, 2)
    assert (second.event, second.id, second.data["source"]) == ("change", "e-2", "write")
    assert [host["port"] for host in second.data["added"]] == [1]
    for seen in receiver.got:
        stamp = seen.headers["nacos-proxy-timestamp"]
        assert seen.headers["nacos-proxy-signature"] == signature("key", stamp, seen.raw)
    assert (hook.state, dict(hook.outcomes)) == ("ok", {"delivered": 2})


async def test_run_posts_changes_of_its_services_only(world: World, receiver: Receiver) -> None:
    async with stub(receiver) as server, hooked(world, server.url):
        await until(lambda: receiver.got)
        await add(world, 1, STOCK)
        await add(world, 2)
        await until(lambda: len(receiver.got) == 2)
        assert {seen.name for seen in receiver.got} == {KEY.grouped}


async def test_run_does_not_post_what_readers_cannot_see(world: World, receiver: Receiver) -> None:
    async with stub(receiver) as server, hooked(world, server.url) as (hook,):
        await until(lambda: receiver.got)
        await world.agent.write(Register(KEY, instance("10.0.0.9", 1, enabled=False)))
        await until(lambda: not hook.pending)
        await add(world, 2)
        await until(lambda: hook.outcomes["delivered"] == 2)
    assert [2 in seen.ports for seen in receiver.got] == [False, True]


async def test_run_follows_all_services_of_a_group(world: World, receiver: Receiver) -> None:
    discovered: list[tuple[str, str]] = []
    async with stub(receiver) as server:
        target = WebhookTarget(server.url, everything=("public", "DEFAULT_GROUP"))
        hooks = Webhooks(world.agent, WebhooksPolicy((target,)), discover=lambda *group: discovered.append(group))
        hooks.start()
        await world.agent.read(STOCK)  # as the poller does when it discovers a service
        await add(world, 1, STOCK)
        await until(lambda: receiver.got)
        await hooks.stop()
    assert (receiver.got[0].name, discovered) == (STOCK.grouped, [("public", "DEFAULT_GROUP")])


@pytest.mark.parametrize(
    "answer",
    [
        say(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"),
        say(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"),
        say(then="close"),
        say(b"no http\r\n\r\n"),
    ],
)
async def test_run_tries_again_ever_more_rarely_and_newest_state_wins(
    world: World, receiver: Receiver, answer: Say, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answer = answer
    async with stub(receiver) as server, hooked(world, server.url) as (hook,):
        for attempts, pause in ((1, 1), (2, 2), (3, 4)):
            await until(lambda n=attempts: len(receiver.got) == n and hook.outcomes["failed"] == n)
            await add(world, attempts)
            await drop(world, attempts - 1)
            await world.clock.advance(pause - 0.3)
            assert (len(receiver.got), hook.pending) == (attempts, 1)
            receiver.answer = ok() if attempts == 3 else answer
            await world.clock.advance(0.4)
        await until(lambda: hook.state == "ok")
    last = receiver.got[-1]
    assert (last.event, 3 in last.ports, 2 in last.ports) == ("snapshot", True, False)
    assert [len(seen.ports) for seen in receiver.got] == [2, 3, 3, 3]
    fails = [record.message for record in caplog.records if "is tried again" in record.message]
    assert len(fails) == 1 and caplog.text.count("webhook 1 (127.0.0.1") == 2 and "works again" in caplog.text


async def test_run_sends_a_snapshot_if_what_may_have_arrived_is_no_longer_so(world: World, receiver: Receiver) -> None:
    """A disabled instance is hidden, so readers see no difference between the first state and the last."""
    async with stub(receiver) as server, hooked(world, server.url) as (hook,):
        await until(lambda: hook.outcomes["delivered"] == 1)
        receiver.answer = say(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")
        await add(world, 1)
        await until(lambda: hook.outcomes["failed"] == 1)
        await drop(world, 1)
        await world.agent.write(Register(KEY, instance("10.0.0.9", 2, enabled=False)))
        receiver.answer = ok()
        await world.clock.advance(1.1)
        await until(lambda: hook.outcomes["delivered"] == 2)
    assert [(seen.event, len(seen.ports)) for seen in receiver.got] == [("snapshot", 2), ("change", 3), ("snapshot", 2)]


async def test_run_gives_up_what_is_refused_and_goes_on(
    world: World, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answer = say(b"HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n")
    async with stub(receiver) as server, hooked(world, server.url) as (hook,):
        await until(lambda: hook.state == "failing")
        await add(world, 1)
        await until(lambda: hook.outcomes["refused"] == 2)
        assert (hook.error, hook.pending, len(receiver.got)) == ("it answered 302", 0, 2)
        receiver.answer = ok()
        await add(world, 2)
        await until(lambda: hook.state == "ok")
    assert caplog.text.count("is given up for this event: it answered 302") == 1
    assert (receiver.got[-1].event, {1, 2} <= set(receiver.got[-1].ports)) == ("change", True)


async def test_run_ends_when_the_webhook_is_gone(
    world: World, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answer = say(b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n")
    async with stub(receiver) as server, hooked(world, server.url) as (hook,):
        await until(lambda: hook.state == "ended")
        await add(world, 1)
        await world.clock.advance(100)
    assert (len(receiver.got), hook.pending) == (1, 0)
    assert "ends until the next start: it answered 410" in caplog.text
    assert world.agent.catalog.hub.readers == 0


async def test_run_waits_for_an_answer_only_so_long(world: World, receiver: Receiver) -> None:
    receiver.answer = say(b"HTTP/1.1 200 OK\r\nX: ", then="hang")
    async with stub(receiver) as server, hooked(world, server.url, timeout=0.05) as (hook,):
        await until(lambda: hook.state == "failing")
        assert hook.error == "no answer in 0.05 s"


async def test_run_reads_no_long_answer_to_its_end(world: World, receiver: Receiver) -> None:
    receiver.answer = say(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"x" * 20_000, then="hang")
    async with stub(receiver) as server, hooked(world, server.url) as (hook,):
        await until(lambda: hook.outcomes["delivered"] == 1)
        assert (hook.state, hook.pending) == ("ok", 0)


async def test_a_webhook_that_is_down_delays_no_other(world: World, receiver: Receiver) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}/s3cret"
    async with stub(receiver) as server, hooked(world, nowhere, server.url, keys=(KEY, STOCK)) as (down, up):
        await until(lambda: down.state == "failing")
        for port in range(1, 20):
            await add(world, port)
            await add(world, port, STOCK)
        await until(lambda: {seen.name for seen in receiver.got if 19 in seen.ports} == {KEY.grouped, STOCK.grouped})
        assert up.state == "ok"
        assert down.pending == 2, "one for each service"
        assert down.status()["host"] == nowhere.removeprefix("http://").removesuffix("/s3cret")
        assert "s3cret" not in str(down.status())


async def test_a_webhook_hears_of_a_service_that_could_not_be_read_at_first(world: World, receiver: Receiver) -> None:
    await world.lose()
    async with stub(receiver) as server, hooked(world, server.url):
        await world.clock.advance(3)
        world.heal()
        await world.agent.refresh(KEY)
        await until(lambda: receiver.got)
    assert (receiver.got[0].event, len(receiver.got[0].ports)) == ("change", 2)


def test_a_policy_hides_its_secret() -> None:
    assert "hush" not in repr(WebhooksPolicy(secret="hush"))
    assert logging.getLogger("httpx").getEffectiveLevel() >= logging.WARNING, "it logs URLs"
