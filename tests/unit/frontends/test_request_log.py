"""Each request has an id, and a line in the access log."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from nacos_proxy.fastpath.asgi import FastPath
from nacos_proxy.fastpath.table import ResponseTable, ResponseTablePolicy
from nacos_proxy.frontends.answers import send_reply
from nacos_proxy.frontends.request_log import RequestLog
from nacos_proxy.frontends.requests import RequestCounter, path_of, request_times, set_route
from nacos_proxy.request_context import Answered, RequestContext, current_request
from nacos_proxy.runtime import spawn, stop
from nacos_proxy.wire.http import CACHEABLE, HAS_LEFT, Cacheable, HttpReply, RouteName
from tests.helpers.asgi import ask, start
from tests.helpers.clock import FakeClock, settle

LIST = RouteName("v1", "GET /list")


class App:
    """Answers 200 with the id of the request that it works for, after a second."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.lines: list[Answered] = []
        self.headers: list[tuple[bytes, bytes]] = []

    def logged(self, **more: Any) -> RequestLog:
        return RequestLog(self, self.clock.now, lambda scope: scope["path"], log=self.lines.append, **more)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "seen"})
            return
        if scope["path"] == "/broken":
            raise RuntimeError("broken")
        if scope["path"] == "/left":
            return
        request = current_request()
        assert request is not None
        await self.clock.advance(1)
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        if scope["path"] == "/cut":
            raise RuntimeError("broken")
        await send({"type": "http.response.body", "body": request.id.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"."})


async def test_request_log_sends_the_client_s_id_back() -> None:
    answer = await ask(App().logged(), "GET", "/a", headers={"X-Request-Id": "it-1"})
    assert (answer.headers["x-request-id"], answer.body) == ("it-1", b"it-1.")


async def test_request_log_makes_an_id_instead_of_a_missing_or_harmful_one() -> None:
    app = App().logged()
    ids = [
        (await ask(app, "GET", "/a", headers=headers)).headers["x-request-id"]
        for headers in ({}, {"X-Request-Id": "a b"}, {"X-Request-Id": "x" * 129})
    ]
    assert len({*ids, "a b"}) == 4


async def test_request_log_replaces_the_id_in_the_answer_of_a_server() -> None:
    app = App()
    app.headers = [(b"X-Request-Id", b"server's"), (b"other", b"1")]
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = (await start(app.logged(), {**HTTP, "path": "/left"})).scope
    await app.logged()({**scope, "path": "/a"}, _nothing, send)
    assert sent[0]["headers"] == [(b"x-request-id", b"it-2"), (b"other", b"1")]


HTTP: dict[str, Any] = {
    "type": "http",
    "method": "GET",
    "scheme": "http",
    "path": "/a",
    "query_string": b"",
    "headers": [(b"x-request-id", b"it-2")],
}


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


async def test_request_log_logs_what_was_answered() -> None:
    app = App()
    await ask(app.logged(), "PUT", "/a%2Fb?c=d", headers={"X-Request-Id": "it-3"}, client="10.0.0.9")
    assert app.lines == [Answered("PUT", "/a%2Fb", "c=d", "/a/b", 200, 1.0, 5, "10.0.0.9", "it-3")]


async def test_request_log_names_the_route_of_a_repeated_answer() -> None:
    clock, lines, table, times = FakeClock(), list[Answered](), ResponseTable(ResponseTablePolicy()), request_times()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        clock.jump(1.0)
        set_route(scope, LIST)
        scope[CACHEABLE] = Cacheable("key", clock.now(), clock.now() + 9, LIST)
        await send_reply(send, HttpReply(200, None, b"12"))

    counted = FastPath(RequestCounter(app, times, clock.now), table, clock.now)
    logged = RequestLog(counted, clock.now, path_of, log=lines.append)
    for _ in range(3):
        await ask(logged, "GET", "/a", headers={"Connection": "close", "X-Request-Id": "it-6"})
    made = Answered("GET", "/a", "", "/list", 200, 1.0, 2, "127.0.0.1", "it-6")
    assert lines == [made, made, made._replace(seconds=0.0, repeated=True)]
    assert (times[LIST, 200].count, table.hit_counts[LIST, 200].target) == (2, 1), "each is counted once"


@pytest.mark.parametrize("name", [b"content-type", b"Content-Type"])
async def test_request_log_logs_an_event_stream_when_it_begins(name: bytes) -> None:
    app = App()
    app.headers = [(name, b"text/event-stream; charset=utf-8")]

    async def slow(message: Message) -> None:
        await app.clock.advance(60)

    await app.logged()(dict(HTTP), _nothing, slow)
    assert [(line.status, line.seconds, line.size) for line in app.lines] == [(200, 1.0, 0)]


@pytest.mark.parametrize(("path", "status"), [("/broken", 500), ("/cut", 200), ("/left", 499)])
async def test_request_log_logs_what_was_not_answered(path: str, status: int) -> None:
    app = App()
    try:
        await app.logged()({**HTTP, "path": path}, _nothing, _ignore)
    except RuntimeError:
        assert path != "/left"
    assert [line.status for line in app.lines] == [status]


async def test_request_log_logs_a_cancelled_request_as_one_whose_client_left() -> None:
    app = App()

    async def waiting(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    task = spawn(RequestLog(waiting, app.clock.now, str, log=app.lines.append)(dict(HTTP), _nothing, _ignore), name="a")
    await settle()
    await stop(task)
    assert [line.status for line in app.lines] == [499]


async def test_an_answer_to_a_client_that_has_left_is_logged_and_counted_as_499_and_sent_as_it_is() -> None:
    times, lines, clock = request_times(), list[Answered](), FakeClock()

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        set_route(scope, LIST)
        await send_reply(send, HttpReply(503, None, b""))

    logged = RequestLog(RequestCounter(late, times, clock.now), clock.now, path_of, log=lines.append)
    for left in (True, False):
        more: dict[str, Any] = {HAS_LEFT: lambda left=left: left}
        assert (await ask(logged, "GET", "/a", **more)).status == 503
    assert [line.status for line in lines] == [499, 503]
    assert list(times) == [(LIST, 499), (LIST, 503)]


async def _ignore(message: Message) -> None:
    pass


async def test_request_log_passes_other_scopes_on() -> None:
    app, sent = App(), list[Message]()

    async def send(message: Message) -> None:
        sent.append(message)

    await app.logged()({"type": "lifespan"}, _nothing, send)
    assert (sent, app.lines) == ([{"type": "seen"}], [])


async def test_request_log_without_a_log_measures_nothing() -> None:
    app = App()

    def no_clock() -> float:
        raise AssertionError

    answer = await ask(RequestLog(app, no_clock, str), "GET", "/a", headers={"X-Request-Id": "it-4"})
    assert answer.headers["x-request-id"] == "it-4"


async def test_request_log_tells_the_context_of_the_request_when_it_ends() -> None:
    ended: list[tuple[str, int]] = []

    class Context(RequestContext):
        def ended(self, answered: Answered) -> None:
            ended.append((self.id, answered.status))

    app = RequestLog(App(), FakeClock().now, str, begin=lambda incoming: Context(incoming.id))
    await ask(app, "GET", "/a", headers={"X-Request-Id": "it-5"})
    assert ended == [("it-5", 200)]
