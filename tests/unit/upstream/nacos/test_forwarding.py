"""Forwarded requests, on real sockets if bytes matter."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nacos_proxy.model.errors import BadCall, Busy, Garbled, ProxyError, Refused, TooSlow, Unreachable, UpstreamError
from nacos_proxy.runtime import spawn
from nacos_proxy.upstream.http.exchange import HttpClient, HttpPolicy, Timeouts
from nacos_proxy.upstream.http.transport import FastTransport, TransportPolicy
from nacos_proxy.upstream.nacos.forwarding import (
    ForwardedRequest,
    ForwardedResponse,
    body_length,
    data_id,
    end_to_end,
    forward_request,
    safe_target,
)
from nacos_proxy.upstream.nacos.servers import Server, parse_server
from tests.unit.upstream.stub import Request, Say, Stub, ok, say, stub

Fields = Iterable[tuple[bytes, bytes]]


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


class Upstream:
    """Servers, the way to them, and the outcomes that were reported."""

    def __init__(self, *urls: str, transport: TransportPolicy | None = None, times: Timeouts | None = None) -> None:
        self.servers = [parse_server(url) for url in urls]
        self.transport = FastTransport(transport or TransportPolicy())
        self.http = HttpClient(HttpPolicy(timeouts=times or Timeouts()), self.transport)
        self.outcomes: list[tuple[str, str]] = []

    def report(self, server: Server, error: UpstreamError | None) -> None:
        self.outcomes.append((server.origin, type(error).__name__ if error else "ok"))

    def forward(
        self, method: str, path: str, query: str = "", headers: Fields = (), body: AsyncIterator[bytes] | None = None
    ) -> Any:
        request = ForwardedRequest(method, path, query, list(headers), body or pieces())
        return forward_request(self.http, self.servers, self.report, request)

    async def ask(self, *call: Any, **options: Any) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        async with self.forward(*call, **options) as answer:
            return answer.status, answer.headers, b"".join([chunk async for chunk in answer.body()])


@asynccontextmanager
async def upstream(play: Callable[[Request], Say], **options: Any) -> AsyncIterator[tuple[Stub, Upstream]]:
    async with stub(play) as server:
        through = Upstream(server.url, **options)
        try:
            yield server, through
        finally:
            await through.transport.aclose()


# paths


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/", ""),
        ("/v1/cs/configs", "dataId=a%2Fb&group=..%2f..&content=%00%0d%0a//x;y"),
        ("/v3/auth/user/login", "x=/../&y"),
        ("/v1/console/", ""),
        ("/a;v=1/b", ""),
        ("/...", ""),
        ("/a..b/.c", ""),
        ("/100%25", ""),
        ("/%", ""),
        ("/~user:name@x,y!$&'()*+=", ""),
    ],
)
def test_safe_target_keeps_what_stays_below_the_context_path(path: str, query: str) -> None:
    assert safe_target(path, query) == (f"{path}?{query}" if query else path)


TRICKS = [
    *("/..", "/../admin", "/a/../../admin", "/./a", "/.", "/a/.", "/..;/admin", "/..;a=b/x", "/.;/x"),
    *("/%2e%2e/admin", "/%2E./x", "/.%2e/x", "/a/%2e", "/..%3b/x", "/%2e%2e%3bx/y"),
    *("/%252e%252e/x", "/%25252e%25252e/x", "/%25%32%65%25%32%65/x", "/%2525252e%2525252e/x"),
    *("//host/x", "//", "/a//b", "///", "/;/x", "/;x/y", "/a/;/b"),
    *("/a%2fb", "/a%2Fb", "/%2f%2fhost", "/a%252fb", "/..%2fx", "/..%252f..%252fx"),
    *("/a\\b", "/..\\x", "/a%5cb", "/..%5c..%5cx", "/a%255cb"),
    *("/a%00b", "/a%0ab", "/a%0d%0aHost:%20x", "/a%09b", "/a%7f", "/a%2500b"),
    *("/a?b", "/a#b", "/a%3fb", "/a%23b", "/a%253fb"),
    *("/%c0%ae%c0%ae/x", "/%c0%afx", "/%e0%80%ae", "/%ff"),
    *("", "a", "http://host/x", "http:/x", "host", "*", " /a", "/a b", "/a\tb", "/a\r\nb", "/\u00e9", "/a\x00"),
    "/a%20b",
    "/%" + "25" * 30_000,
]


@pytest.mark.parametrize("path", TRICKS)
def test_safe_target_refuses_what_could_leave_the_context_path(path: str) -> None:
    with pytest.raises(BadCall, match="this path is not forwarded: ") as raised:
        safe_target(path, "")
    assert raised.value.status == 400


@pytest.mark.parametrize("query", ["a b", "a\r\nb", "a#b", "\x00", "\u00e9"])
def test_safe_target_refuses_a_query_that_could_end_the_line(query: str) -> None:
    with pytest.raises(BadCall):
        safe_target("/a", query)


def readings(path: str) -> Iterable[str]:
    """The path as any server on the way might read it: decoded up to ten times, as UTF-8 or Latin-1."""
    for encoding in ("utf-8", "latin-1"):
        reading = path
        for _ in range(10):
            yield reading
            reading = unquote(reading, encoding)


def normalised(path: str) -> str:
    """As the laxest server would: backslashes become slashes, parameters go, dot segments and slashes are merged."""
    path = re.split("[?#\0\r\n]", path.replace("\\", "/"), maxsplit=1)[0]
    kept: list[str] = []
    for segment in path.split("/"):
        match segment.partition(";")[0].strip():
            case "..":
                kept = kept[:-1]
            case "" | ".":
                pass
            case name:
                kept.append(name)
    return "/" + "/".join(kept)


TRICKY = st.sampled_from(
    (
        "/ // .. . %2e %2E%2e %252e %2f %252F \\ %5c ; ;x=1 %3b %00 %0a \0 "
        "a admin %61 %25 2e %c0%ae %c0%af http: @host ? # %3f %23 %20 ~ %"
    ).split(" ")
)


@given(st.lists(TRICKY, max_size=12).map("".join), st.booleans())
@example("/a/..;/..;/admin", False)
@example("/%25%32%65%25%32%65/%25%32%65%25%32%65/x", False)
def test_safe_target_lets_no_path_leave_the_context_path_however_it_is_read(path: str, absolute: bool) -> None:
    path = path if not absolute else f"/{path}"
    try:
        target = safe_target(path, "")
    except BadCall:
        return
    assert target == path
    for reading in readings(f"/nacos{target}"):
        assert normalised(reading).startswith("/nacos")
        assert "//" not in reading
        assert "\\" not in reading


@given(st.text(st.characters(max_codepoint=255), max_size=40), st.text(st.characters(max_codepoint=255), max_size=40))
def test_safe_target_refuses_any_text_or_gives_one_word_of_a_request_line(path: str, query: str) -> None:
    try:
        target = safe_target(path, query)
    except BadCall:
        return
    assert target.isascii()
    assert not re.search(r"[\s\x00-\x20\x7f]", target)
    assert target.startswith("/")


@pytest.mark.parametrize("context", ["/nacos", "/a/b", ""])
async def test_forward_request_sends_the_bytes_that_were_checked(context: str) -> None:
    async with upstream(lambda _: ok()) as (server, through):
        through.servers = [Server(server.url, context)]
        for path in ("/a%7Eb/%41;x='\"{}|^`", "/v1/cs/configs"):
            await through.ask("GET", path, "q=%7e'\"{}|&&x")
        assert [request.line for request in server.requests] == [
            f"GET {context}/a%7Eb/%41;x='\"{{}}|^`?q=%7e'\"{{}}|&&x HTTP/1.1".encode(),
            f"GET {context}/v1/cs/configs?q=%7e'\"{{}}|&&x HTTP/1.1".encode(),
        ]


@pytest.mark.parametrize("path", ["/../x", "//host/x", "http://host/x", "/%2e%2e/x"])
async def test_forward_request_sends_nothing_for_a_refused_path(path: str) -> None:
    async with upstream(lambda _: ok()) as (server, through):
        with pytest.raises(BadCall):
            await through.ask("GET", path)
        assert (server.connections, through.outcomes) == (0, [])


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "get", "G T", "GET\r\n", "", "X" * 30])
async def test_forward_request_refuses_invalid_and_dangerous_methods(method: str) -> None:
    async with upstream(lambda _: ok()) as (server, through):
        with pytest.raises(BadCall, match="is not forwarded") as raised:
            await through.ask(method, "/a")
        assert (raised.value.status, server.connections) == (405, 0)


# headers


def test_end_to_end_drops_the_headers_of_one_connection() -> None:
    fields = [
        (b"Host", b"proxy"),
        (b"Connection", b"keep-alive, X-Mine"),
        (b"connection", b"X-Other"),
        (b"Keep-Alive", b"timeout=5"),
        (b"X-Mine", b"1"),
        (b"x-other", b"2"),
        (b"Proxy-Authorization", b"Basic x"),
        (b"TE", b"trailers"),
        (b"Trailer", b"x"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Upgrade", b"h2c"),
        (b"HTTP2-Settings", b"x"),
        (b"Expect", b"100-continue"),
        (b"Authorization", b"Bearer client"),
        (b"X-Kept", b"a"),
        (b"X-Kept", b"b"),
    ]
    assert end_to_end(fields) == [(b"Authorization", b"Bearer client"), (b"X-Kept", b"a"), (b"X-Kept", b"b")]


async def test_forward_request_sends_the_clients_headers_and_none_of_ours() -> None:
    async with stub(lambda _: ok(b"", b"X-B: 2", b"Set-Cookie: a", b"Set-Cookie: b", b"Keep-Alive: x")) as server:
        through = Upstream(server.url)
        identity = HttpPolicy("ours", ("serverIdentity", "secret"))
        through.http = HttpClient(identity, through.transport)
        headers = [(b"user-agent", b"Nacos-Java-Client:v1.4.6"), (b"x-a", b"1"), (b"x-a", b"2"), (b"host", b"evil")]
        _, answered, _ = await through.ask("GET", "/a", headers=headers)
        await through.transport.aclose()
    [request] = server.requests
    assert sorted(request.head.lower().split(b"\r\n")[1:-2]) == [
        b"host: " + server.url.removeprefix("http://").encode(),
        b"user-agent: nacos-java-client:v1.4.6",
        b"x-a: 1",
        b"x-a: 2",
        b"x-nacos-proxy-hops: " + through.http.hop.encode(),
    ]
    assert answered == [(b"Content-Length", b"0"), (b"X-B", b"2"), (b"Set-Cookie", b"a"), (b"Set-Cookie", b"b")]


@pytest.mark.parametrize("value", [b"a\r\nEvil: 1", b"a\nb", b"a\rb", b"a\0b"])
async def test_forward_request_blames_the_client_for_a_header_that_would_be_two(value: bytes) -> None:
    async with upstream(lambda _: ok()) as (server, through):
        with pytest.raises(BadCall, match="a header contains characters that are not allowed"):
            await through.ask("GET", "/a", headers=[(b"x-a", value)])
        assert (server.requests, through.outcomes) == ([], []), "the server has done nothing wrong"


# the end of a body


@pytest.mark.parametrize(
    "fields",
    [
        [(b"content-length", b"1"), (b"content-length", b"2")],
        [(b"content-length", b"1, 1")],
        [(b"content-length", b"+1")],
        [(b"content-length", b"-1")],
        [(b"content-length", b"0x1")],
        [(b"content-length", b"")],
        [(b"Content-Length", "\u0661".encode())],
        [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")],
        [(b"Transfer-Encoding", b"identity")],
        [(b"transfer-encoding", b"gzip, chunked")],
        [(b"transfer-encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")],
        [(b"transfer-encoding", b"xchunked")],
    ],
)
async def test_forward_request_refuses_a_body_with_two_ends(fields: list[tuple[bytes, bytes]]) -> None:
    async with upstream(lambda _: ok()) as (server, through):
        with pytest.raises(BadCall, match="Content-Length"):
            await through.ask("POST", "/a", headers=fields, body=pieces(b"12345"))
        assert server.connections == 0


def test_body_length() -> None:
    assert body_length([]) == 0
    assert body_length([(b"Content-Length", b" 12 "), (b"content-length", b"12")]) == 12
    assert body_length([(b"Transfer-Encoding", b"Chunked")]) is None


@pytest.mark.parametrize("chunks", [(b"12345GET /nacos/admin HTTP/1.1\r\n\r\n",), (b"123", b"456"), (b"123",), ()])
async def test_forward_request_fails_if_the_body_does_not_have_its_length(chunks: tuple[bytes, ...]) -> None:
    """More bytes would be taken for the next request on the connection; for less the server would wait."""
    async with upstream(lambda _: ok()) as (server, through):
        with pytest.raises(BadCall, match="does not have the 5 bytes"):
            await through.ask("POST", "/a", headers=[(b"content-length", b"5")], body=pieces(*chunks))
        assert (server.requests, through.outcomes) == ([], [])
        assert (await through.ask("GET", "/b"))[0] == 200
        assert [request.line for request in server.requests] == [b"GET /nacos/b HTTP/1.1"]


@pytest.mark.parametrize(
    "fields",
    [
        [(b"transfer-encoding", b"chunked")],
        [(b"content-length", b"6")],
        [(b"content-length", b"6"), (b"content-length", b"6")],
        [(b"content-length", b"6"), (b"connection", b"content-length")],
    ],
)
async def test_forward_request_sends_the_body_unchanged(fields: list[tuple[bytes, bytes]]) -> None:
    async with upstream(lambda _: ok()) as (server, through):
        await through.ask("POST", "/a", headers=fields, body=pieces(b"0\r\n", b"", b"\r\nx"))
        [request] = server.requests
        assert request.body == b"0\r\n\r\nx"
        assert request.head.lower().count(b"content-length") + request.head.lower().count(b"transfer-encoding") == 1


async def test_forward_request_announces_no_body_if_there_is_none() -> None:
    async with upstream(lambda _: ok()) as (server, through):
        await through.ask("GET", "/a", headers=[(b"content-length", b"0")])
        await through.ask("POST", "/a", headers=[(b"content-length", b"0")])
        assert [b"ontent-" in request.head for request in server.requests] == [False, True]


# streaming


@asynccontextmanager
async def by_hand(talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """A server of one connection, whose answers `talk` writes when it likes; gives its address."""
    talks: list[asyncio.Task[Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.append(asyncio.current_task())  # type: ignore[arg-type]
        await reader.readuntil(b"\r\n\r\n")
        await talk(reader, writer)
        await reader.read()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    await asyncio.wait(talks)
    server.close()


async def test_forward_request_streams_both_ways() -> None:
    """The client has the first part of the answer before the upstream has sent the last."""
    more = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readexactly(3)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n" + first + b"\r\n")
        rest = await reader.readexactly(3)
        writer.write(b"3\r\n" + rest + b"\r\n0\r\n\r\n")

    async def body() -> AsyncIterator[bytes]:
        yield b"abc"
        await more.wait()
        yield b"def"

    async with by_hand(talk) as address:
        through = Upstream(address)
        async with through.forward("POST", "/a", headers=[(b"content-length", b"6")], body=body()) as answer:
            chunks = answer.body()
            assert await anext(chunks) == b"abc"
            more.set()
            assert [chunk async for chunk in chunks] == [b"def"]
        await through.transport.aclose()


async def test_forward_request_does_not_apply_the_read_timeout_to_a_long_poll() -> None:
    """The configuration API is silent for 30 s. Here the read timeout is 20 ms, and the answer takes 60 ms."""
    late = asyncio.Event()
    asyncio.get_running_loop().call_later(0.06, late.set)

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await late.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnews")

    async with by_hand(talk) as address:
        through = Upstream(address, times=Timeouts(connect=5.0, reads=0.02, writes=0.02))
        assert (await through.ask("GET", "/v1/cs/configs/listener"))[2] == b"news"
        await through.transport.aclose()


async def test_forward_request_applies_its_own_timeout() -> None:
    times = Timeouts(forwarded=0.02)
    async with upstream(lambda _: say(then="hang"), times=times) as (server, through):
        with pytest.raises(TooSlow):
            await through.ask("POST", "/a")
        assert through.outcomes == [(server.url, "TooSlow")]


async def test_forward_request_closes_the_connection_if_the_client_goes_away() -> None:
    half = say(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", then="hang")
    async with upstream(lambda request: half if b"/half" in request.line else say(then="hang")) as (server, through):
        for path in ("/silent", "/half"):
            server.gone.clear()
            client = spawn(through.ask("GET", path), name="client")
            while not server.requests or path.encode() not in server.requests[-1].line:
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            client.cancel()
            await asyncio.wait([client])
            assert client.cancelled()
            await asyncio.wait_for(server.gone.wait(), 60)
        assert through.transport.connections == 0
        assert {outcome for _, outcome in through.outcomes} <= {"ok"}


async def test_forward_request_does_not_blame_the_server_for_a_broken_upload() -> None:
    class Left(OSError):
        """An error of the server framework."""

    async def body() -> AsyncIterator[bytes]:
        yield b"ab"
        raise Left("the client went away")

    async with upstream(lambda _: ok()) as (server, through):
        with pytest.raises(Left):
            await through.ask("POST", "/a", headers=[(b"content-length", b"9")], body=body())
        assert (server.requests, through.outcomes) == ([], [])
        await asyncio.wait_for(server.gone.wait(), 60)


@pytest.mark.parametrize(
    "answer",
    [
        say(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", then="close"),
        say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", then="close"),
        say(b"HTTP/1.1 200 OK\r\n\r\nhalf", then="abort"),
    ],
    ids=["length", "chunked", "reset"],
)
async def test_forwarded_response_body_reports_a_server_that_dies_in_the_middle(answer: Say) -> None:
    async with upstream(lambda _: answer) as (server, through):
        got = b""
        with pytest.raises(Garbled):
            async with through.forward("GET", "/a") as reply:
                assert reply.status == 200
                async for chunk in reply.body():
                    got += chunk
        assert got == b"half"
        assert through.outcomes == [(server.url, "ok"), (server.url, "Garbled")]


@pytest.mark.parametrize("status", [204, 304])
async def test_forwarded_response_drops_the_length_of_an_answer_without_a_body(status: int) -> None:
    answer = say(b"HTTP/1.1 %d X\r\nContent-Length: 9\r\nETag: x\r\n\r\n" % status)
    async with upstream(lambda _: answer) as (_, through):
        assert await through.ask("GET", "/a") == (status, [(b"ETag", b"x")], b"")


async def test_forwarded_response_keeps_the_length_of_a_head() -> None:
    async with upstream(lambda _: say(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")) as (_, through):
        assert await through.ask("HEAD", "/a") == (200, [(b"Content-Length", b"9")], b"")


async def test_forwarded_response_body_stays_encoded() -> None:
    async with upstream(lambda _: ok(b"\x1f\x8bnot gzip", b"Content-Encoding: gzip")) as (_, through):
        assert (await through.ask("GET", "/a"))[2] == b"\x1f\x8bnot gzip"


# the next server


@asynccontextmanager
async def two(play: Callable[[Request], Say]) -> AsyncIterator[tuple[Stub, Stub, Upstream]]:
    """Two servers. The first answers as `play` says; the second is healthy."""
    async with stub(play) as first, stub(lambda _: ok(b"second")) as second:
        through = Upstream(first.url, second.url)
        try:
            yield first, second, through
        finally:
            await through.transport.aclose()


async def test_forward_request_tries_the_next_server_if_nothing_arrived() -> None:
    async with two(lambda _: ok()) as (_, second, through):
        async with stub(lambda _: ok()) as closed:
            pass
        through.servers[0] = parse_server(closed.url)
        headers = [(b"content-length", b"2")]
        assert (await through.ask("POST", "/a", headers=headers, body=pieces(b"ab")))[2] == b"second"
        assert second.requests[0].body == b"ab"
        assert through.outcomes == [(closed.url, "Unreachable"), (second.url, "ok")]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_forward_request_does_not_repeat_a_write_that_may_have_arrived(method: str) -> None:
    async with two(lambda _: say(then="close")) as (first, second, through):
        with pytest.raises(Unreachable) as raised:
            await through.ask(method, "/a")
        assert raised.value.arrived
        assert (len(first.requests), second.requests) == (1, [])


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_forward_request_repeats_a_read_that_may_have_arrived(method: str) -> None:
    async with two(lambda _: say(then="close")) as (first, second, through):
        assert (await through.ask(method, "/a"))[0] == 200
        assert through.outcomes == [(first.url, "Unreachable"), (second.url, "ok")]


async def test_forward_request_repeats_a_read_on_a_connection_that_was_closed() -> None:
    answers = iter([ok(), say(then="close"), ok(b"again")])
    async with upstream(lambda _: next(answers)) as (server, through):
        await through.ask("GET", "/a")
        assert (await through.ask("GET", "/a"))[2] == b"again"
        assert through.outcomes == [(server.url, "ok")] * 2


@pytest.mark.parametrize("status", [500, 404, 403, 401, 302, 200])
async def test_forward_request_gives_an_answer_whatever_its_status(status: int) -> None:
    answer = say(b"HTTP/1.1 %d X\r\nContent-Length: 6\r\nLocation: /x\r\n\r\n<html>" % status)
    async with two(lambda _: answer) as (first, second, through):
        assert (await through.ask("GET", "/a"))[::2] == (status, b"<html>")
        assert (through.outcomes, second.requests) == ([(first.url, "ok")], [])


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_forward_request_gives_the_refusal_of_a_gateway_and_reports_it(status: int) -> None:
    answer = say(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)
    async with two(lambda _: answer) as (first, _, through):
        assert (await through.ask("GET", "/a"))[0] == status
        assert through.outcomes == [(first.url, Refused.__name__)]


async def test_forward_request_reports_nothing_if_no_connection_is_free() -> None:
    async with upstream(lambda _: say(then="hang"), transport=TransportPolicy(streams=1)) as (server, through):
        holder = spawn(through.ask("GET", "/a"), name="holder")
        while not server.requests:
            await asyncio.sleep(0)
        through.http = HttpClient(HttpPolicy(timeouts=Timeouts(connect=0.02)), through.transport)
        with pytest.raises(Busy, match="no connection became free") as raised:
            await through.ask("GET", "/b")
        assert raised.value.arrived is False
        assert through.outcomes == []
        holder.cancel()
        await asyncio.wait([holder])


async def test_forward_request_without_a_server_is_unreachable() -> None:
    with pytest.raises(Unreachable, match="no server is known"):
        await Upstream().ask("GET", "/a")


async def test_forward_request_works_with_any_transport() -> None:
    """Any transport of httpx: forwarding needs nothing beyond its interface."""
    through = Upstream("http://nacos")
    through.http = HttpClient(
        HttpPolicy(), httpx.MockTransport(lambda request: httpx.Response(200, text=request.method))
    )
    answer: ForwardedResponse
    async with through.forward("GET", "/a") as answer:
        assert [chunk async for chunk in answer.body()] == [b"GET"]


def test_bad_call_is_a_proxy_error() -> None:
    assert issubclass(BadCall, ProxyError)


# the first server

FORM = [(b"Content-Type", b"application/x-www-form-urlencoded; charset=UTF-8")]


def sized(*chunks: bytes) -> Fields:
    return [*FORM, (b"content-length", b"%d" % sum(map(len, chunks)))]


@pytest.mark.parametrize(
    ("query", "fields", "chunks", "about"),
    [
        ("group=g&dataId=a%2Fb&tenant=", [], (), "a/b"),
        ("show=all", sized(b"x"), (b"group=g&dataId=a%2Fb&content=", b"much"), "a/b"),
        ("", [*FORM, (b"transfer-encoding", b"chunked")], (b"dataId=a%2Fb",), "a/b"),
        ("", [(b"content-type", b"text/plain"), (b"content-length", b"8")], (b"dataId=a",), ""),
        ("", sized(b"x=1"), (b"x=1",), ""),
        ("dataId=", [], (), ""),
    ],
)
async def test_data_id_is_that_of_the_query_or_the_form_and_the_body_stays_whole(
    query: str, fields: Fields, chunks: tuple[bytes, ...], about: str
) -> None:
    found, request = await data_id(ForwardedRequest("POST", "/v1/cs/configs", query, list(fields), pieces(*chunks)))
    assert found == about
    assert b"".join([chunk async for chunk in request.body]) == b"".join(chunks)


async def test_data_id_does_not_wait_for_a_body_that_is_not_announced() -> None:
    """Old clients send the type of a form with a GET. Reading its body would wait until the client goes away."""

    async def never() -> AsyncIterator[bytes]:
        await asyncio.get_running_loop().create_future()
        yield b""

    assert (await data_id(ForwardedRequest("GET", "/v1/cs/configs", "x=1", FORM, never())))[0] == ""


async def test_forwarded_response_has_no_date() -> None:
    async with upstream(lambda request: ok(b"x", b"Date: Thu, 01 Jan 1970 00:00:00 GMT", b"X-A: 1")) as (_, through):
        _, headers, _ = await through.ask("GET", "/v1/x")
        assert [name.lower() for name, _ in headers] == [b"content-length", b"x-a"]
