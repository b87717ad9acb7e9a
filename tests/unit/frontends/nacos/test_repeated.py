"""`RepeatedWrite`: a write of the Nacos API that is begun again from its call."""

from __future__ import annotations

from typing import Any

import pytest

from nacos_proxy.catalog.drains import Drain
from nacos_proxy.frontends.nacos.repeated import FAILED
from nacos_proxy.model.calls import Beat, BeatResult, Register
from nacos_proxy.model.errors import BadCall, Reason, Refused, Unreachable, Violation
from nacos_proxy.model.limits import NACOS
from nacos_proxy.wire.http import REMEMBER, HttpReply, Repeatable
from tests.helpers import build
from tests.helpers.asgi import scope, start
from tests.helpers.clock import settle
from tests.unit.frontends.nacos.test_naming import World, world_of

BEAT = "/nacos/v1/ns/instance/beat?serviceName=orders&ip=10.0.0.1&port=80"
RESULT = BeatResult()


async def remembered(world: World, target: str = BEAT) -> tuple[Repeatable, HttpReply]:
    """What the API offers for a request, and its own reply."""
    offered: list[Repeatable] = []
    exchange = await start(world.api, {**scope("PUT", target), REMEMBER: offered.append})
    await exchange.ended()
    (it,) = offered
    return it, HttpReply(exchange.status, exchange.headers.get("content-type"), exchange.body)


async def replies(world: World, write: Repeatable, script: Any) -> HttpReply:
    world.registry.script = script
    answered: list[HttpReply] = []
    assert write.begin(answered.append)
    assert answered == [], "never before `begin` has returned"
    await settle()
    (reply,) = answered
    return reply


async def test_repeated_write_is_the_same_call_with_the_same_reply() -> None:
    world = world_of()
    write, reply = await remembered(world)
    assert (write.method, write.path, write.query) == ("PUT", *BEAT.split("?"))
    assert (write.rules, write.route.path) == (NACOS, "/v1/ns/instance/beat")
    again = await replies(world, write, lambda call: RESULT)
    assert again == reply
    assert await replies(world, write, lambda call: RESULT) is again, "so that its bytes are made once"
    first, *others = world.registry.sent(Beat)
    assert len(others) == 2 and all(other is first for other in others)
    assert len(world.heard) == 3


async def test_repeated_write_shows_a_new_result() -> None:
    world = world_of()
    write, reply = await remembered(world)
    other = await replies(world, write, lambda call: BeatResult(interval=9000))
    assert b"9000" in other.body and other != reply


@pytest.mark.parametrize(
    "error",
    [
        Unreachable("gone", arrived=False),
        Refused(Reason.NO_RIGHT, "no", status=403),
        BadCall("ip", Violation.OTHER, "odd", status=400),
    ],
)
async def test_repeated_write_answers_errors_as_the_api_does(error: Exception) -> None:
    world = world_of()
    world.registry.script = lambda call: error
    write, reply = await remembered(world)
    assert await replies(world, write, lambda call: error) == reply


async def test_repeated_write_says_who_answered_it() -> None:
    world = world_of()
    await world.agent.write(Register(build.KEY, build.instance()))
    write, _ = await remembered(world)
    reply = await replies(world, write, lambda call: Unreachable("gone", arrived=False))
    assert reply.headers == (("nacos-proxy-answer", "local"),)


async def test_repeated_write_leaves_a_drained_instance_to_the_api() -> None:
    world = world_of()
    write, _ = await remembered(world)
    now = world.clock.now()
    world.agent.catalog.drains.add(Drain(build.KEY, build.instance("10.0.0.1"), 20.0, now + 20.0), now)
    heard = len(world.heard)
    assert write.begin(lambda reply: None) is False
    assert len(world.heard) == heard, "the API hears it"


async def test_repeated_write_answers_a_failure_of_ours_with_500(caplog: pytest.LogCaptureFixture) -> None:
    world = world_of()
    write, _ = await remembered(world)

    def breaks(call: object) -> object:
        raise ValueError("a bug")

    assert await replies(world, write, breaks) == FAILED
    assert "a bug" in caplog.text


async def test_nacos_api_offers_no_reads_and_no_requests_that_it_refuses() -> None:
    world = world_of()
    offered: list[Repeatable] = []
    for method, target in (("GET", BEAT.replace("/beat", "/list")), ("PUT", BEAT.replace("&port=80", "&port=x"))):
        exchange = await start(world.api, {**scope(method, target), REMEMBER: offered.append})
        await exchange.ended()
    assert offered == []
