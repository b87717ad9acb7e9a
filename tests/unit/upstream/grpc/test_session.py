"""A session: set up, checked, and ended; with a server in this process and a fake clock."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nacos_proxy.model.errors import Garbled, Reason, Refused
from nacos_proxy.runtime import spawn
from nacos_proxy.upstream.grpc.session import Session, SessionPolicy, Target
from nacos_proxy.wire.nacos.grpc.client import Notify
from nacos_proxy.wire.nacos.grpc.payload import Payload
from nacos_proxy.wire.nacos.grpc.refusals import NotRegistered
from nacos_proxy.wire.nacos.grpc.stream import write_detection, write_reset, write_setup_ack
from tests.helpers.build import KEY, instance
from tests.helpers.clock import FakeClock, settle
from tests.unit.upstream.grpc.fake_server import FakeServer

A = instance("10.0.0.1")
TARGET = Target("127.0.0.1", 9848, 8848)
STARTING = Refused(Reason.OTHER, "server is starting", status=503)


class World:
    """A server, and a session with it once `open` was called."""

    def __init__(self) -> None:
        self.server, self.clock = FakeServer(), FakeClock()
        self.notified: list[Notify] = []

    async def open(self, target: Target = TARGET) -> Session:
        policy = SessionPolicy("nacos-proxy/1")
        opening = Session.open(self.server.connect, target, policy, self.clock, self.notified.append, "dev")
        task = spawn(opening, name="opening")
        while not task.done():
            await self.clock.advance(0.02)
        return task.result()


@pytest.fixture
async def world() -> World:
    return World()


async def test_session_open_sets_up_as_an_sdk_does(world: World) -> None:
    await world.open()
    setup = world.server.line.setup
    assert setup is not None and setup.abilities is None
    assert (setup.client_version, setup.namespace, setup.module) == ("nacos-proxy/1", "dev", "naming")
    assert [kind for kind, _ in world.server.calls] == ["ServerCheckRequest", "HealthCheckRequest"]


async def test_session_open_waits_until_the_server_knows_it(world: World) -> None:
    """A setup and the next call are handled at the same time (nacos-grpc.md 3)."""
    world.server.registers_late = 4
    await world.open()
    assert world.server.count("HealthCheckRequest") == 5


async def test_session_open_fails_if_the_server_never_knows_it(world: World) -> None:
    world.server.registers_late = 10_000
    with pytest.raises(NotRegistered):
        await world.open()
    assert world.server.line.closed


async def test_session_open_closes_the_connection_when_it_is_cancelled(world: World) -> None:
    world.server.up.clear()
    opening = spawn(
        Session.open(world.server.connect, TARGET, SessionPolicy(), world.clock, world.notified.append), name="opening"
    )
    await settle()
    assert not world.server.line.closed
    opening.cancel()
    await settle()
    assert world.server.line.closed


async def test_session_open_raises_what_the_connection_raises(world: World) -> None:
    world.server.unreachable[9848] = ConnectionRefusedError("refused")
    with pytest.raises(ConnectionRefusedError):
        await world.open()


async def test_session_subscribe_returns_the_list(world: World) -> None:
    world.server.lists[KEY] = (A,)
    session = await world.open()
    assert (await session.subscribe(KEY)).snapshot.instances == (A,)
    assert world.server.subscribed == {KEY}
    await session.unsubscribe(KEY)
    assert world.server.subscribed == set()


async def test_session_subscribe_raises_the_refusal(world: World) -> None:
    session = await world.open()
    world.server.refuse[KEY] = Refused(Reason.NO_RIGHT, "no right", status=403)
    with pytest.raises(Refused) as refused:
        await session.subscribe(KEY)
    assert refused.value.reason is Reason.NO_RIGHT


async def test_session_acknowledges_what_the_server_asks(world: World) -> None:
    session = await world.open()
    await session.subscribe(KEY)
    world.server.happen(KEY, A)
    world.server.line.push(write_detection("7"))
    world.server.line.push(write_setup_ack({}))
    world.server.line.push(Payload("FuzzyWatchRequest"))
    world.server.line.push(Payload("NotifySubscriberRequest", b'{"serviceInfo": 1}'))
    world.server.line.push(Payload("NotifySubscriberRequest", b"{"))
    assert world.server.line.acks == [("NotifySubscriberResponse", "1"), ("ClientDetectionResponse", "7")]
    assert [(n.name, n.group) for n in world.notified] == [(KEY.name, KEY.group)]


@pytest.mark.parametrize(("ip", "port", "to"), [("", 0, None), ("10.0.0.7", 8848, ("10.0.0.7", 8848))])
async def test_session_ends_when_the_server_resets_it(world: World, ip: str, port: int, to: Any) -> None:
    session = await world.open()
    world.server.line.push(write_reset("3", ip, port))
    assert world.server.line.acks == [("ConnectResetResponse", "3")]
    assert "connect anew" in await session.until_ended()
    assert (session.reset_to, world.server.line.closed, session.answers) == (to, True, False)


async def checked(world: World) -> tuple[Session, asyncio.Task[str]]:
    session = await world.open()
    return session, spawn(session.until_ended(), name="session")


async def test_session_until_ended_checks_the_server_while_it_is_quiet(world: World) -> None:
    session, ended = await checked(world)
    before = world.server.count("HealthCheckRequest")
    await world.clock.advance(20.5)
    assert (world.server.count("HealthCheckRequest") - before, ended.done()) == (4, False)
    session.end("over")
    assert await ended == "over"


async def test_session_ends_after_two_failed_checks(world: World) -> None:
    session, ended = await checked(world)
    world.server.healthy = STARTING
    await world.clock.advance(5.1)
    assert await ended == "server is starting"
    assert not session.answers and world.server.line.closed


async def test_session_does_not_answer_after_a_failed_check_until_one_succeeds(world: World) -> None:
    session, ended = await checked(world)
    answers: list[bool] = []

    def fail_once(*_: object) -> object:
        answers.append(session.answers)
        if len(answers) == 1:
            raise STARTING
        return None

    world.server.answer = fail_once  # type: ignore[method-assign,assignment]
    await world.clock.advance(5.1)
    assert (answers, session.answers, ended.done()) == ([True, False], True, False)
    session.end("over")
    await ended


async def test_session_ends_at_once_when_the_server_does_not_know_it_any_more(world: World) -> None:
    _, ended = await checked(world)
    world.server.healthy = NotRegistered()
    await world.clock.advance(5.1)
    assert await ended == "Connection is unregistered."


async def test_session_ends_when_the_connection_is_lost(world: World) -> None:
    session, ended = await checked(world)
    world.server.line.lose("reset by peer")
    assert await ended == "reset by peer"
    session.end("later")
    assert await session.until_ended() == "reset by peer"


async def test_session_refuses_an_answer_that_cannot_be_read(world: World) -> None:
    session = await world.open()

    async def nonsense(message: bytes, *, timeout: float) -> bytes:
        return b"\xff\xff"

    world.server.line.call = nonsense  # type: ignore[method-assign]
    with pytest.raises(Garbled) as garbled:
        await session.subscribe(KEY)
    assert garbled.value.answered


@pytest.mark.parametrize(
    ("target", "text"), [(TARGET, "127.0.0.1:9848"), (Target("::1", 9848), "[::1]:9848"), (Target("n", 1), "n:1")]
)
def test_target_is_shown_as_an_address(target: Target, text: str) -> None:
    assert str(target) == text
