"""Counting requests by route and status."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Receive, Scope, Send

from nacos_proxy.frontends.answers import send_reply
from nacos_proxy.frontends.requests import RequestCounter, request_times, route_of, set_route
from nacos_proxy.runtime import spawn, stop
from nacos_proxy.wire.http import OTHER, HttpReply, RouteName
from tests.helpers.asgi import Exchange, ask, scope
from tests.helpers.clock import FakeClock, settle

PICK = RouteName("discovery", "GET /pick")


async def test_request_counter_measures_until_the_answer_begins() -> None:
    times, clock = request_times(), FakeClock()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        set_route({**scope}, PICK)  # a copy, as routers make them
        clock.jump(0.2)
        await send_reply(send, HttpReply(404, None, b""))
        clock.jump(60.0)

    await ask(RequestCounter(app, times, clock.now), "GET", "/pick")
    assert [(labels, durations.count) for labels, durations in times.items()] == [((PICK, 404), 1)]
    assert round(times[PICK, 404].seconds, 3) == 0.2


async def test_request_counter_counts_an_exception_as_500_and_a_client_that_left_as_499() -> None:
    times, clock = request_times(), FakeClock()

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError

    async def waiting(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    with pytest.raises(LookupError):
        await ask(RequestCounter(broken, times, clock.now), "GET", "/")
    answer = Exchange(scope("GET", "/")).send
    task = spawn(RequestCounter(waiting, times, clock.now)(scope("GET", "/"), asyncio.Event().wait, answer), name="one")
    await settle()
    await stop(task)
    assert {labels: durations.count for labels, durations in times.items()} == {(OTHER, 500): 1, (OTHER, 499): 1}


async def test_request_counter_counts_only_http() -> None:
    times, seen = request_times(), list[str]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    await RequestCounter(app, times, FakeClock().now)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert (seen, times) == (["lifespan"], {})


def test_route_of_an_uncounted_request_is_other() -> None:
    uncounted = scope("GET", "/")
    set_route(uncounted, PICK)
    assert route_of(uncounted) == OTHER
