"""Calls for a client's request carry its id, and tell its context how they end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

from nacos_proxy.model.errors import Unreachable
from nacos_proxy.request_context import RequestContext, UpstreamCall, work_for
from nacos_proxy.runtime import spawn
from nacos_proxy.upstream.http.exchange import HttpClient, HttpPolicy
from nacos_proxy.upstream.http.transport import FastTransport
from nacos_proxy.upstream.nacos.forwarding import ForwardedRequest, forward_request
from nacos_proxy.upstream.nacos.servers import parse_server
from nacos_proxy.wire.http import HttpRequest
from tests.unit.upstream.stub import Stub, ok, stub

LIST = HttpRequest("GET", "/v1/ns/instance/list", query=(("serviceName", "a"), ("accessToken", "secret")))


class Followed(RequestContext):
    """Keeps the calls of its request: method, URL and status, or the exception."""

    traced = True

    def __init__(self) -> None:
        super().__init__("it-1")
        self.calls: list[tuple[str, str, int, str]] = []

    def call(self, method: str, url: Callable[[], str]) -> UpstreamCall:
        calls = self.calls

        class Noted(UpstreamCall):
            def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
                calls.append((method, url(), self.status, type(error).__name__))

        return Noted((("X-Request-Id", self.id), ("traceparent", "00-a-b-01")))


@asynccontextmanager
async def served() -> AsyncIterator[tuple[Stub, HttpClient]]:
    async with stub(lambda _: ok(b"{}")) as server:
        http = HttpClient(HttpPolicy(), FastTransport())
        try:
            yield server, http
        finally:
            await http.transport.aclose()


async def forward(http: HttpClient, url: str) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b""

    request = ForwardedRequest("GET", "/v1/cs/configs", "dataId=a&token=b", [(b"x-request-id", b"theirs")], body())
    async with forward_request(http, [parse_server(url)], lambda server, error: None, request) as reply:
        assert reply.status == 200


async def test_http_client_sends_the_id_of_the_request_that_it_works_for() -> None:
    async with served() as (server, http):

        async def a_request() -> None:
            work_for(RequestContext("it-1"))
            await http.send(server.url, "/nacos", LIST, idempotent=True)
            await forward(http, server.url)

        await spawn(a_request(), name="request")
        await http.send(server.url, "/nacos", LIST, idempotent=True)
    called, forwarded, background = (request.head.lower() for request in server.requests)
    assert called.endswith(b"\r\nx-request-id: it-1\r\n\r\n")
    assert b"\r\nx-request-id: it-1\r\n" in forwarded and b"theirs" not in forwarded
    assert b"x-request-id" not in background


async def test_http_client_tells_the_request_how_its_calls_end() -> None:
    request = Followed()
    async with served() as (server, http):

        async def a_request() -> None:
            work_for(request)
            await http.send(server.url, "/nacos", LIST, idempotent=True)
            await forward(http, server.url)
            with pytest.raises(Unreachable):
                await http.send("http://127.0.0.1:1", "", LIST, idempotent=True)

        await spawn(a_request(), name="request")
        assert b"\r\ntraceparent: 00-a-b-01\r\n" in server.requests[0].head
    path = "/v1/ns/instance/list?serviceName=a&accessToken=********"
    assert request.calls == [
        ("GET", f"{server.url}/nacos{path}", 200, "NoneType"),
        ("GET", f"{server.url}/nacos/v1/cs/configs?dataId=a&token=********", 200, "NoneType"),
        ("GET", f"http://127.0.0.1:1{path}", 0, "ConnectError"),
    ]


async def test_http_client_shows_other_transports_the_id() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=b"{}")

    async def a_request() -> None:
        work_for(RequestContext("it-1"))
        await HttpClient(HttpPolicy(), httpx.MockTransport(answer)).send("http://n:1", "", LIST, idempotent=True)

    await spawn(a_request(), name="request")
    assert (seen[0].headers["x-request-id"], seen[0].headers["host"]) == ("it-1", "n:1")


async def test_http_client_names_the_proxies_that_a_request_has_passed() -> None:
    async with served() as (server, http):

        async def a_request() -> None:
            request = RequestContext("it-1")
            request.hops = ("a", "b")
            work_for(request)
            await http.send(server.url, "/nacos", LIST, idempotent=True)
            await forward(http, server.url)

        await spawn(a_request(), name="request")
        await http.send(server.url, "/nacos", LIST, idempotent=True)
    called, forwarded, background = (request.head.lower() for request in server.requests)
    own = http.hop.encode()
    assert b"\r\nx-nacos-proxy-hops: a, b, " + own + b"\r\n" in called
    assert b"\r\nx-nacos-proxy-hops: a, b, " + own + b"\r\n" in forwarded
    assert b"\r\nx-nacos-proxy-hops: " + own + b"\r\n" in background


async def test_http_client_sends_the_api_token_of_an_upper_proxy_with_every_request() -> None:
    async with stub(lambda _: ok(b"{}", b"Age: 3", b"X-Other: 1")) as server:
        http = HttpClient(HttpPolicy(api_token="12345678"), FastTransport())
        reply = await http.send(
            server.url,
            "",
            LIST,
            (("Authorization", "Bearer t"), ("accessToken", "t")),
            idempotent=True,
            wanted=("age",),
        )
        await forward(http, server.url)
        await http.transport.aclose()
    assert "12345678" not in repr(http.policy)
    called, forwarded = (request.head for request in server.requests)
    assert called.count(b"Authorization: ") == 1 and b"\r\nAuthorization: Bearer 12345678\r\n" in called
    assert b"\r\naccessToken: t\r\n" in called and b"\r\nAuthorization: Bearer 12345678\r\n" in forwarded
    assert reply.headers == (("age", "3"),)
