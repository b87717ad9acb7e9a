"""Requests outside the naming API are forwarded and answered unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from starlette.types import Message, Receive, Scope, Send

from nacos_proxy.frontends.answers import send_reply
from nacos_proxy.frontends.nacos.passthrough import MAX_REQUESTS, MISSING_STATUSES, Passthrough
from nacos_proxy.model.errors import BadCall, TooSlow, Unreachable, Violation
from nacos_proxy.wire.http import HttpReply
from tests.helpers.asgi import Exchange, ask, scope, start

Headers = list[tuple[bytes, bytes]]


@dataclass
class Answer:
    status: int = 200
    chunks: tuple[bytes | Exception, ...] = (b"ok",)
    headers: Headers = field(default_factory=lambda: [(b"content-type", b"text/plain"), (b"x-one", b"1")])

    async def body(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk


@dataclass
class Upstream:
    """A forwarder that returns `answer` and records the requests."""

    answer: Callable[[str], Answer | Exception] = lambda path: Answer()
    asked: list[tuple[str, str, str, Headers, bytes]] = field(default_factory=list)
    open: int = 0

    @asynccontextmanager
    async def forward(
        self, method: str, path: str, query: str, headers: Headers, body: AsyncIterator[bytes]
    ) -> AsyncIterator[Answer]:
        self.asked.append((method, path, query, headers, b"".join([chunk async for chunk in body])))
        answer = self.answer(path)
        if isinstance(answer, Exception):
            raise answer
        self.open += 1
        try:
            yield answer
        finally:
            self.open -= 1

    @property
    def paths(self) -> list[str]:
        return [path for _, path, *_ in self.asked]


async def test_passthrough_forwards_request_and_response_unchanged() -> None:
    upstream = Upstream(lambda path: Answer(418, (b"a ", b"tea", b"pot")))
    target = "/nacos/v1/cs/configs?dataId=a%2Fb&x=%E4%B8%AD&x=2"
    reply = await ask(Passthrough(upstream), "PUT", target, headers={"X-My": "1"}, body=b"content=\xff")
    assert (reply.status, reply.body, reply.headers) == (
        418,
        b"a teapot",
        {"content-type": "text/plain", "x-one": "1"},
    )
    method, path, query, headers, body = upstream.asked[0]
    assert (method, path, query, body) == ("PUT", "/v1/cs/configs", "dataId=a%2Fb&x=%E4%B8%AD&x=2", b"content=\xff")
    assert (b"x-my", b"1") in headers
    assert upstream.open == 0


async def test_passthrough_forwards_the_path_as_it_was_encoded() -> None:
    upstream = Upstream()
    await ask(Passthrough(upstream), "GET", "/nacos/v1/cs/a%20b/%E4%B8%AD")
    assert upstream.paths == ["/v1/cs/a%20b/%E4%B8%AD"]


async def offered(passthrough: Passthrough, method: str, target: str, body: bytes = b"") -> tuple[bool, Exchange]:
    given: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        given.append(await passthrough.offer(scope, receive, send))
        if not given[0]:
            await send_reply(send, HttpReply(501, None, b"ours"))

    reply = await ask(app, method, target, body=body)
    return given[0], reply


@pytest.mark.parametrize("status", [200, 400, 403, 500])
async def test_offer_forwards_a_call_that_the_upstream_knows(status: int) -> None:
    upstream = Upstream(lambda path: Answer(status))
    given, reply = await offered(Passthrough(upstream), "PUT", "/nacos/v1/ns/cluster?clusterName=c", b"checkPort=1")
    assert (given, reply.status, upstream.asked[0][4]) == (True, status, b"checkPort=1")


@pytest.mark.parametrize(
    "answer", [Answer(404), Answer(405), Answer(410), Answer(501), BadCall("", Violation.OTHER, "no")]
)
async def test_offer_returns_false_if_the_upstream_does_not_know_the_call(answer: Answer | Exception) -> None:
    given, reply = await offered(Passthrough(Upstream(lambda path: answer)), "GET", "/nacos/v1/ns/nothing")
    assert (given, reply.status) == (False, 501)
    given, reply = await offered(Passthrough(None), "GET", "/nacos/v1/ns/nothing")
    assert (given, reply.status) == (False, 501)


async def test_offer_sends_the_error_if_the_upstream_is_unreachable() -> None:
    upstream = Upstream(lambda path: Unreachable("refused", arrived=False))
    given, reply = await offered(Passthrough(upstream), "GET", "/nacos/v1/ns/health/server")
    assert (given, reply.status, reply.body) == (True, 502, b"refused")


async def test_passthrough_removes_another_context_path() -> None:
    for context in ("/discovery", "/discovery/"):
        upstream = Upstream()
        await ask(Passthrough(upstream, context_path=context), "GET", "/discovery/v1/cs/configs")
        assert upstream.paths == ["/v1/cs/configs"]


async def test_passthrough_without_an_upstream_answers_404() -> None:
    reply = await ask(Passthrough(None), "GET", "/nacos/v1/cs/configs")
    assert (reply.status, reply.headers["content-type"]) == (404, "text/plain;charset=UTF-8")
    assert reply.body.startswith(b"/nacos/v1/cs/configs is not part of the naming API, and there is no upstream")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Unreachable("http://a:1: refused", arrived=False), 502),
        (TooSlow("http://a:1: no answer in time"), 504),
        (BadCall("path", Violation.OTHER, "this path is not passed on: it has a dot segment"), 400),
    ],
)
async def test_passthrough_sends_the_status_and_text_of_an_early_error(error: Exception, status: int) -> None:
    reply = await ask(Passthrough(Upstream(lambda path: error)), "GET", "/nacos/v1/cs/configs")
    assert (reply.status, reply.body.decode()) == (status, str(error))


async def test_passthrough_does_not_end_a_response_that_was_cut_short(caplog: pytest.LogCaptureFixture) -> None:
    """uvicorn closes the connection if the app returns early; an exception would fill the log with tracebacks."""
    upstream = Upstream(lambda path: Answer(200, (b"half", TooSlow("no more"))))
    exchange: Exchange = await start(Passthrough(upstream), scope("GET", "/nacos/v1/cs/configs"))
    await exchange.ended()
    assert "a forwarded response was cut short: no more" in caplog.text
    assert (exchange.body, exchange.complete, upstream.open) == (b"half", False, 0)


FORM = b"username=nacos&password=p%26w"


@pytest.mark.parametrize(
    ("asked", "other"),
    [
        ("/v1/auth/login", "/v3/auth/user/login"),
        ("/v1/auth/users/login", "/v3/auth/user/login"),
        ("/v3/auth/user/login", "/v1/auth/login"),
    ],
)
@pytest.mark.parametrize("status", MISSING_STATUSES)
async def test_login_goes_to_the_path_of_the_other_generation_if_the_server_lacks_it(
    asked: str, other: str, status: int
) -> None:
    upstream = Upstream(lambda path: Answer(status if path == asked else 200, (path.encode(),)))
    reply = await ask(Passthrough(upstream), "POST", f"/nacos{asked}?username=nacos", body=FORM)
    assert (reply.status, reply.body.decode()) == (200, other)
    assert [(path, query, body) for _, path, query, _, body in upstream.asked] == [
        (asked, "username=nacos", FORM),
        (other, "username=nacos", FORM),
    ]
    assert upstream.open == 0


async def test_login_that_is_refused_is_not_tried_again() -> None:
    upstream = Upstream(lambda path: Answer(403, (b"user not found!",)))
    reply = await ask(Passthrough(upstream), "POST", "/nacos/v1/auth/login", body=FORM)
    assert (reply.status, reply.body, upstream.paths) == (403, b"user not found!", ["/v1/auth/login"])


async def test_login_that_the_server_has_at_no_path_gets_its_answer() -> None:
    upstream = Upstream(lambda path: Answer(404, (path.encode(),)))
    reply = await ask(Passthrough(upstream), "POST", "/nacos/v1/auth/login", body=FORM)
    assert (reply.status, reply.body) == (404, b"/v3/auth/user/login")


async def test_passthrough_tries_other_paths_once() -> None:
    upstream = Upstream(lambda path: Answer(404, (b"",)))
    reply = await ask(Passthrough(upstream), "POST", "/nacos/v1/cs/configs", body=FORM)
    await ask(Passthrough(upstream), "GET", "/nacos/v1/auth/login")
    assert (reply.status, upstream.paths) == (404, ["/v1/cs/configs", "/v1/auth/login"])


async def test_login_with_an_endless_form_is_refused() -> None:
    upstream = Upstream()
    reply = await ask(Passthrough(upstream), "POST", "/nacos/v1/auth/login", body=b"x" * 70_000)
    assert (reply.status, upstream.asked) == (413, [])


@dataclass
class Slow(Answer):
    """A body that begins and never continues."""

    async def body(self) -> AsyncIterator[bytes]:
        yield b"begun"
        await asyncio.Event().wait()


@dataclass
class Silent(Upstream):
    """A long poll: the request is held. `ended` counts the requests that were released."""

    ended: int = 0

    @asynccontextmanager
    async def forward(
        self, method: str, path: str, query: str, headers: Headers, body: AsyncIterator[bytes]
    ) -> AsyncIterator[Answer]:
        self.asked.append((method, path, query, headers, b""))
        try:
            if method == "POST":
                async for _ in body:
                    pass
            await asyncio.Event().wait()
            yield Answer()
        finally:
            self.ended += 1


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_disconnect_ends_the_request_while_the_upstream_is_silent(method: str) -> None:
    upstream = Silent()
    headers = {"content-length": "2"} if method == "POST" else {}
    exchange = await start(Passthrough(upstream), scope(method, "/nacos/v1/cs/configs/listener", headers), b"ab")
    assert (len(upstream.asked), upstream.ended) == (1, 0)
    await exchange.leave()
    assert (exchange.status, upstream.ended) == (0, 1)


async def test_disconnect_ends_the_request_in_the_middle_of_its_body() -> None:
    upstream = Silent()
    request = scope("POST", "/nacos/v1/cs/configs", {"content-length": "9"})
    messages = iter([{"type": "http.request", "body": b"ab", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        raise AssertionError("there is nobody to answer")

    await Passthrough(upstream)(request, receive, send)
    assert upstream.ended == 1


async def test_disconnect_ends_the_request_in_the_middle_of_the_response() -> None:
    upstream = Upstream(lambda path: Slow())
    exchange = await start(Passthrough(upstream), scope("GET", "/nacos/v1/cs/configs"))
    await exchange.until("begun")
    await exchange.leave()
    assert (exchange.complete, upstream.open) == (False, 0)


async def test_passthrough_stays_cancelled_if_its_task_is_cancelled() -> None:
    """The proxy stops; the client has not disconnected."""
    upstream = Silent()
    exchange = await start(Passthrough(upstream), scope("GET", "/nacos/v1/cs/configs"))
    assert exchange._task is not None
    exchange._task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await exchange.ended()
    assert upstream.ended == 1


async def test_passthrough_logs_once_that_the_upstream_lacks_a_configuration_api(
    caplog: pytest.LogCaptureFixture,
) -> None:
    upstream = Upstream(lambda path: Answer(410, (b"gone",)))
    app = Passthrough(upstream)
    for _ in range(5):
        await ask(app, "GET", "/nacos/v1/cs/configs?dataId=a")
    await ask(app, "GET", "/nacos/v1/console/server/state")
    lines = [record.getMessage() for record in caplog.records if "configuration" in record.getMessage()]
    assert len(lines) == 1
    assert "/v1/cs" in lines[0] and "nacos.core.api.compatibility.client.enabled=true" in lines[0]
    upstream.answer = lambda path: Answer(200, (b"x",))
    await ask(app, "GET", "/nacos/v1/cs/configs?dataId=a")
    upstream.answer = lambda path: Answer(404, (b"config data not exist",))
    await ask(app, "GET", "/nacos/v1/cs/configs?dataId=a")
    assert len([r for r in caplog.records if "configuration" in r.getMessage()]) == 1, "there is no such configuration"
    upstream.answer = lambda path: Answer(410, (b"gone",))
    await ask(app, "GET", "/nacos/v1/cs/configs?dataId=a")
    assert len([r for r in caplog.records if "configuration" in r.getMessage()]) == 2


@pytest.mark.parametrize(
    ("path", "answer", "heard"),
    [
        ("/nacos/v1/auth/login", Answer(200, (b'{"accessToken":', b'"t1","tokenTtl":5}')), ["t1"]),
        ("/nacos/v3/auth/user/login", Answer(200, (b'{"accessToken":"t1"}',)), ["t1"]),
        ("/nacos/v1/auth/login", Answer(403, (b'{"accessToken":"t1"}',)), []),
        ("/nacos/v1/auth/login", Answer(200, (b'{"code":401,"message":"Login failed"}',)), []),
        ("/nacos/v1/auth/login", Answer(200, (b"<html>",)), []),
        ("/nacos/v1/auth/login", Answer(200, (b'{"accessToken":"t1","x":"%s"}' % (b"x" * 100_000),)), []),
        ("/nacos/v1/cs/configs", Answer(200, (b'{"accessToken":"t1"}',)), []),
    ],
)
async def test_on_login_gets_the_token_of_a_login_and_of_nothing_else(
    path: str, answer: Answer, heard: list[str]
) -> None:
    passthrough, told = Passthrough(Upstream(lambda _: answer)), list[str]()
    passthrough.on_login = told.append
    reply = await ask(passthrough, "POST", path, body=b"username=a&password=b")
    assert (reply.body, told) == (b"".join(c for c in answer.chunks if isinstance(c, bytes)), heard)


async def test_passthrough_refuses_an_address_more_than_its_share_until_requests_end() -> None:
    held, upstream = asyncio.Event(), Upstream()

    class Silent(Answer):
        async def body(self) -> AsyncIterator[bytes]:
            await held.wait()
            yield b"at last"

    upstream.answer = lambda path: Silent()
    passthrough = Passthrough(upstream)
    target = "/nacos/v1/cs/configs/listener"
    polls = [await start(passthrough, scope("GET", target)) for _ in range(MAX_REQUESTS // 2)]
    refused = await ask(passthrough, "GET", target)
    assert refused.status == 429 and b"wait for some to end" in refused.body
    given, refused = await offered(passthrough, "GET", "/nacos/v1/ns/nothing")
    assert given and refused.status == 429
    other = await start(passthrough, scope("GET", target, client="10.0.0.2"))
    assert upstream.open == MAX_REQUESTS // 2 + 1
    for poll in polls:
        await poll.leave()
    held.set()
    await other.ended()
    assert upstream.open == 0 and (await ask(passthrough, "GET", target)).status == 200
