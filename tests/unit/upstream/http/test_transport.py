from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from nacos_proxy.runtime import spawn
from nacos_proxy.upstream.http.transport import FastTransport, TransportPolicy
from tests.unit.upstream.stub import Request, Say, Stub, ok, say, stub


@asynccontextmanager
async def served(
    play: Callable[[Request], Say], policy: TransportPolicy | None = None
) -> AsyncIterator[tuple[Stub, FastTransport]]:
    transport = FastTransport(policy or TransportPolicy())
    async with stub(play) as server:
        try:
            yield server, transport
        finally:
            await transport.aclose()


async def ask(
    transport: FastTransport, url: str, method: str = "GET", *, timeout: Any = None, **options: Any
) -> httpx.Response:
    extensions = {"timeout": timeout or {}, **options.pop("extensions", {})}
    response = await transport.handle_async_request(httpx.Request(method, url, extensions=extensions, **options))
    try:
        await response.aread()
    finally:
        await response.aclose()
    return response


async def test_transport_sends_the_request_of_httpx_unchanged() -> None:
    async with served(lambda _: ok(b"hello", b"X-A: 1", b"x-a: 2")) as (server, transport):
        response = await ask(transport, f"{server.url}/a/b?c=d%20e", "POST", content=b"x=1", headers={"K": "v"})
        assert (response.status_code, response.content, response.reason_phrase) == (200, b"hello", "OK")
        assert response.headers.get_list("x-a") == ["1", "2"]
        [request] = server.requests
        assert request.line == b"POST /a/b?c=d%20e HTTP/1.1"
        assert request.body == b"x=1"
        assert b"\r\nK: v\r\n" in request.head
        assert b"\r\nHost: 127.0.0.1:" in request.head


async def test_transport_works_under_an_httpx_client() -> None:
    async with served(lambda _: ok(b"[1]")) as (server, transport), httpx.AsyncClient(transport=transport) as client:
        assert (await client.get(server.url)).json() == [1]


async def test_transport_reuses_a_connection() -> None:
    async with served(lambda _: ok()) as (server, transport):
        for _ in range(5):
            await ask(transport, server.url)
        assert server.connections == transport.connections == 1


async def test_transport_does_not_reuse_an_old_connection() -> None:
    async with served(lambda _: ok(), TransportPolicy(keep_alive=-1.0)) as (server, transport):
        await ask(transport, server.url)
        await ask(transport, server.url)
        assert server.connections == 2


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (ok(b""), b""),
        (ok(b"x" * 700_000), b"x" * 700_000),
        (say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n"), b"abcde"),
        (say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nTrailer: x\r\n\r\n"), b"a"),
        (say(b"HTTP/1.1 200 OK\r\n\r\nuntil ", b"the end", then="close"), b"until the end"),
        (say(b"HTTP/1.0 200 OK\r\n\r\nold", then="close"), b"old"),
        (say(b"HTTP/1.1 204 No Content\r\n\r\n"), b""),
        (say(b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n"), b""),
        (say(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"), b"x"),
        (say(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"), b"x"),
        (say(*[bytes([b]) for b in b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"]), b"hi"),
    ],
    ids=["empty", "long", "chunked", "trailer", "closed", "1.0", "204", "304", "100", "103", "byte by byte"],
)
async def test_transport_ends_a_body_by_its_framing(answer: Say, body: bytes) -> None:
    async with served(lambda _: answer) as (server, transport):
        response = await ask(transport, server.url)
        assert response.content == body
        assert "link" not in response.headers
        assert "trailer" not in response.headers


async def test_transport_head_has_no_body_and_ends_its_connection() -> None:
    async with served(lambda _: say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")) as (server, transport):
        response = await ask(transport, server.url, "HEAD")
        assert (response.content, response.headers["content-length"]) == (b"", "10")
        await asyncio.wait_for(server.gone.wait(), 60)


async def test_transport_does_not_reuse_a_connection_that_the_server_closes() -> None:
    answer = say(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", then="close")
    async with served(lambda _: answer) as (server, transport):
        await ask(transport, server.url)
        await ask(transport, server.url)
        assert server.connections == 2


async def test_transport_ends_a_connection_with_bytes_after_the_answer() -> None:
    smuggled = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    async with served(lambda _: say(smuggled)) as (server, transport):
        for _ in range(2):
            response = await ask(transport, server.url)
            assert (response.content, response.reason_phrase) == (b"ok", "OK")
        assert server.connections == 2


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (say(then="close"), httpx.ReadError),
        (say(then="abort"), httpx.ReadError),
        (say(b"no HTTP at all\r\n\r\n"), httpx.RemoteProtocolError),
        (say(bytes(range(256))), httpx.RemoteProtocolError),
        (say(b"HTTP/1.1 200 OK\r\nConte", then="close"), httpx.RemoteProtocolError),
        (say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", then="close"), httpx.RemoteProtocolError),
        (say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), httpx.RemoteProtocolError),
        (
            say(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            httpx.RemoteProtocolError,
        ),
        (say(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"), httpx.RemoteProtocolError),
        (
            say(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
            httpx.RemoteProtocolError,
        ),
        (say(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 100_000, then="hang"), httpx.RemoteProtocolError),
        (
            say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: " + b"b" * 600_000, then="hang"),
            httpx.RemoteProtocolError,
        ),
        (say(b"HTTP/1.1 200 OK\r\n\r\nhalf without a length", then="abort"), httpx.RemoteProtocolError),
    ],
    ids=[
        *("nothing", "reset", "text", "bytes", "half head", "half", "chunk", "both", "lengths", "101", "long head"),
        *("long trailer", "reset without length"),
    ],
)
async def test_transport_raises_for_invalid_answers(answer: Say, error: type[Exception]) -> None:
    async with served(lambda _: answer) as (server, transport):
        with pytest.raises(error):
            await ask(transport, server.url, "POST")
        assert len(server.requests) == 1


def closes_second(*, on: int = 2) -> Callable[[Request], Say]:
    """Keeps the connection after the first answer, and closes it on request number `on`."""
    count = 0

    def play(_: Request) -> Say:
        nonlocal count
        count += 1
        return say(then="close") if count == on else ok()

    return play


async def test_transport_repeats_a_safe_request_after_a_stale_connection() -> None:
    async with served(closes_second()) as (server, transport):
        await ask(transport, server.url)
        assert (await ask(transport, server.url)).content == b"ok"
        assert (server.connections, len(server.requests)) == (2, 3)


async def test_transport_does_not_repeat_a_write_after_a_stale_connection() -> None:
    async with served(closes_second()) as (server, transport):
        await ask(transport, server.url)
        with pytest.raises(httpx.ReadError):
            await ask(transport, server.url, "POST")
        assert len(server.requests) == 2


async def test_transport_repeats_a_write_that_is_marked_idempotent() -> None:
    async with served(closes_second()) as (server, transport):
        await ask(transport, server.url)
        assert (await ask(transport, server.url, "POST", extensions={"idempotent": True})).content == b"ok"


async def test_transport_does_not_repeat_a_read_that_is_marked_not_idempotent() -> None:
    async with served(closes_second()) as (server, transport):
        await ask(transport, server.url)
        with pytest.raises(httpx.ReadError):
            await ask(transport, server.url, "DELETE", extensions={"idempotent": False})
        assert len(server.requests) == 2


async def test_transport_does_not_repeat_a_streamed_body() -> None:
    async with served(closes_second()) as (server, transport):
        await ask(transport, server.url)
        with pytest.raises(httpx.ReadError):
            await ask(transport, server.url, "PUT", content=chunks(b"a"), extensions={"idempotent": True})
        assert len(server.requests) == 2


async def test_transport_does_not_repeat_after_half_an_answer() -> None:
    """The server may have carried out the request."""
    answers = iter([ok(), say(b"HTTP/1.1 2", then="close")])
    async with served(lambda _: next(answers)) as (server, transport):
        await ask(transport, server.url)
        with pytest.raises(httpx.RemoteProtocolError):
            await ask(transport, server.url)
        assert len(server.requests) == 2


async def test_transport_reports_the_first_failure_if_the_second_attempt_finds_no_server() -> None:
    """A server took a write and died: the write was sent, whatever the second attempt finds."""
    async with served(closes_second()) as (server, transport):
        await ask(transport, server.url)

        def last(_: Request) -> Say:
            server.stop()
            return say(then="close")

        server.play = last
        with pytest.raises(httpx.ReadError, match="before the answer"):
            await ask(transport, server.url, "PUT")
        assert len(server.requests) == 2


async def test_transport_does_not_repeat_on_a_fresh_connection() -> None:
    async with served(closes_second(on=1)) as (server, transport):
        with pytest.raises(httpx.ReadError):
            await ask(transport, server.url)
        assert len(server.requests) == 1


async def test_transport_raises_connect_error_without_a_server() -> None:
    async with served(lambda _: ok()) as (server, _):
        url = server.url
    with pytest.raises(httpx.ConnectError, match=r"^no connection: Connection refused$"):
        await ask(FastTransport(), url)


@pytest.mark.parametrize("host", ["a..b", "a" * 64, ".a"])
async def test_transport_raises_connect_error_for_an_invalid_name(host: str) -> None:
    with pytest.raises(httpx.ConnectError, match=r"^no connection: "):
        await ask(FastTransport(), f"http://{host}:80/")


@pytest.mark.parametrize("timeout", [{"timeout": {"read": 0.05}}, {"timeout": {}, "extensions": {"total": 0.05}}])
@pytest.mark.parametrize("pieces", [(), (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",)])
async def test_transport_read_timeout_ends_silence(timeout: Any, pieces: tuple[bytes, ...]) -> None:
    async with served(lambda _: ok()) as (server, transport):
        await ask(transport, server.url)
        server.play = lambda _: say(*pieces, then="hang")
        with pytest.raises(httpx.ReadTimeout):
            await ask(transport, server.url, **timeout)
        await asyncio.wait_for(server.gone.wait(), 60)


async def test_transport_total_limit_ends_a_trickling_answer() -> None:
    trickle = say(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n", *[b"x"] * 2000, then="hang")
    async with served(lambda _: ok()) as (server, transport):
        await ask(transport, server.url)
        server.play = lambda _: trickle
        with pytest.raises(httpx.ReadTimeout):
            await ask(transport, server.url, timeout={"read": 60.0}, extensions={"total": 0.05})


async def test_transport_pool_hands_a_connection_to_a_waiter() -> None:
    async with served(lambda _: ok(), TransportPolicy(connections=1)) as (server, transport):
        await asyncio.gather(*(ask(transport, server.url) for _ in range(10)))
        assert server.connections == 1


async def test_transport_pool_timeout_ends_the_wait() -> None:
    async with served(lambda _: say(then="hang"), TransportPolicy(connections=1)) as (server, transport):
        holder = spawn(ask(transport, server.url), name="call")
        while not server.requests:
            await asyncio.sleep(0)
        with pytest.raises(httpx.PoolTimeout):
            await ask(transport, server.url, timeout={"pool": 0.02})
        holder.cancel()
        await asyncio.wait([holder])


async def test_transport_pool_gives_the_room_of_a_lost_connection_to_a_waiter() -> None:
    async with served(closes_second(on=1), TransportPolicy(connections=1)) as (server, transport):
        lost, found = await asyncio.gather(
            ask(transport, server.url), ask(transport, server.url), return_exceptions=True
        )
        assert isinstance(lost, httpx.ReadError)
        assert isinstance(found, httpx.Response)


async def test_transport_cancelled_call_ends_its_connection() -> None:
    async with served(lambda _: say(then="hang")) as (server, transport):
        caller = spawn(ask(transport, server.url), name="call")
        while not server.requests:
            await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait([caller])
        await asyncio.wait_for(server.gone.wait(), 60)


async def test_transport_pool_serves_waiters_in_order() -> None:
    served_order: list[bytes] = []

    def play(request: Request) -> Say:
        served_order.append(request.line.split()[1])
        return ok()

    async with served(play, TransportPolicy(connections=1)) as (server, transport):
        first = [spawn(ask(transport, f"{server.url}/{n}"), name="call") for n in range(5)]
        while not served_order:
            await asyncio.sleep(0)
        late = [spawn(ask(transport, f"{server.url}/{n}"), name="call") for n in range(5, 9)]
        await asyncio.gather(*first, *late)
        assert served_order == [b"/%d" % n for n in range(9)]


@pytest.mark.parametrize("then", ["keep", "close", "abort"])
async def test_transport_pool_keeps_its_maximum(then: Any) -> None:
    """A lost, refused or used-up connection makes room for exactly one, whoever comes meanwhile."""
    most = 0

    def play(_: Request) -> Say:
        nonlocal most
        most = max(most, transport.connections)
        answer = ok(b"ok", b"Connection: close") if then == "close" else ok()
        return Say(answer.pieces if then != "abort" else (), then)

    async with served(play, TransportPolicy(connections=3)) as (server, transport):

        async def caller() -> None:
            for _ in range(5):
                with contextlib.suppress(httpx.TransportError):
                    await ask(transport, server.url, "POST")

        await asyncio.gather(*(caller() for _ in range(12)))
        assert most <= 3
        if then == "keep":
            assert server.connections == 3
        else:
            assert server.connections == 60


async def test_transport_pool_does_not_use_a_connection_lost_during_the_handover() -> None:
    """The server closes right after its answer, unannounced: the next waiter opens a connection of its own."""

    def play(_: Request) -> Say:
        return Say(ok().pieces, "close")

    async with served(play, TransportPolicy(connections=1)) as (server, transport):
        answers = await asyncio.gather(*(ask(transport, server.url) for _ in range(20)), return_exceptions=True)
        assert [answer for answer in answers if isinstance(answer, BaseException)] == []
        assert transport.connections <= 1


async def test_transport_streams_do_not_block_short_calls() -> None:
    def play(request: Request) -> Say:
        return say(then="hang") if b"/long" in request.line else ok()

    async with served(play, TransportPolicy(connections=1)) as (server, transport):
        extensions = {"stream": True}
        polls = [spawn(ask(transport, f"{server.url}/long", extensions=extensions), name="call") for _ in range(3)]
        while len(server.requests) < 3:
            await asyncio.sleep(0)
        assert (await ask(transport, server.url, timeout={"pool": 0.0})).content == b"ok"
        for poll in polls:
            poll.cancel()
        await asyncio.wait(polls)


async def test_transport_aclose_ends_connections_calls_and_waits() -> None:
    async with served(lambda _: say(then="hang"), TransportPolicy(connections=1)) as (server, transport):
        calls = [spawn(ask(transport, server.url), name="call") for _ in range(3)]
        while not server.requests:
            await asyncio.sleep(0)
        await transport.aclose()
        assert transport.connections == 0
        await asyncio.wait(calls)
        assert [type(call.exception()) for call in calls] == [httpx.ReadError, httpx.ConnectError, httpx.ConnectError]
        with pytest.raises(httpx.ConnectError, match="closed"):
            await ask(transport, server.url)
        assert server.connections == 1


async def test_transport_aclose_while_opening_leaves_no_connection() -> None:
    async with served(lambda _: ok()) as (server, transport):
        call = spawn(ask(transport, server.url), name="call")
        await asyncio.sleep(0)
        await transport.aclose()
        await asyncio.wait([call])
        assert isinstance(call.exception(), httpx.ConnectError)
        assert transport.connections == 0
        assert server.requests == []


async def test_transport_pool_survives_a_cancellation_at_any_moment() -> None:
    """Cancels one iteration of the loop later each time, until the call ends by itself: no room is lost."""
    async with served(lambda _: ok(b"x" * 500_000), TransportPolicy(connections=1)) as (server, transport):
        for turns in itertools.count():
            call = spawn(ask(transport, server.url), name="call")
            for _ in range(turns):
                await asyncio.sleep(0)
            ended = call.done()
            call.cancel()
            await asyncio.wait([call])
            assert call.cancelled() or ended
            assert len((await ask(transport, server.url)).content) == 500_000
            if ended or turns == 60:
                break
        assert transport.connections == 1


async def test_transport_pool_loses_no_connection_to_a_cancelled_waiter() -> None:
    async with served(lambda _: ok(), TransportPolicy(connections=1)) as (server, transport):
        callers = [spawn(ask(transport, server.url), name="call") for _ in range(3)]
        await asyncio.sleep(0)
        callers[1].cancel()
        await asyncio.wait(callers)
        assert callers[1].cancelled()
        assert callers[2].result().content == b"ok"


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_transport_sends_a_streamed_body_in_chunks() -> None:
    async with served(lambda _: ok()) as (server, transport):
        await ask(transport, server.url, "POST", content=chunks(b"ab", b"", b"c" * 300_000))
        await ask(transport, server.url, "POST", content=chunks(b"ab", b"cd"), headers={"Content-Length": "4"})
        assert [request.body for request in server.requests] == [b"ab" + b"c" * 300_000, b"abcd"]
        assert server.connections == 1


async def test_transport_returns_an_answer_before_the_end_of_the_body() -> None:
    gate = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"4\r\n"
        await gate.wait()

    early = say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    async with served(lambda _: early) as (server, transport):
        request = httpx.Request("POST", server.url, content=body(), headers={"Content-Length": "3"})
        response = await transport.handle_async_request(request)
        assert response.status_code == 413
        assert transport.connections == 1 or transport.connections == 0
        await asyncio.wait_for(server.gone.wait(), 60)


async def test_transport_raises_the_exception_of_a_streamed_body() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"ab"
        raise EOFError("the client went away")

    async with served(lambda _: ok()) as (server, transport):
        with pytest.raises(EOFError):
            await ask(transport, server.url, "POST", content=body())
        assert server.requests == []


async def test_transport_bounds_an_unread_answer() -> None:
    size = 30_000_000
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
    async with served(lambda _: say(head, *[b"x" * 100_000] * (size // 100_000))) as (server, transport):
        response = await transport.handle_async_request(httpx.Request("GET", server.url))
        first = await anext(response.aiter_raw())
        for _ in range(200):
            await asyncio.sleep(0)
        assert len(first) < 2_000_000
        await response.aclose()
        await asyncio.wait_for(server.gone.wait(), 60)


async def test_transport_streams_an_answer_and_takes_its_connection_back() -> None:
    pieces = (b"HTTP/1.1 200 OK\r\nContent-Length: 600000\r\n\r\n", *[b"x" * 60_000] * 10)
    async with served(lambda _: say(*pieces)) as (server, transport):
        for _ in range(2):
            response = await transport.handle_async_request(httpx.Request("GET", server.url))
            assert sum([len(chunk) async for chunk in response.aiter_raw()]) == 600_000
        assert server.connections == 1


async def test_transport_does_not_reuse_a_connection_with_an_unread_answer() -> None:
    pieces = (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab", b"cd")
    async with served(lambda _: say(*pieces)) as (server, transport):
        response = await transport.handle_async_request(httpx.Request("GET", server.url))
        for _ in range(200):  # the rest comes meanwhile
            await asyncio.sleep(0)
        await response.aclose()
        assert (await ask(transport, server.url)).content == b"abcd"


@pytest.mark.parametrize("headers", [{"X": "a\r\nEvil: 1"}, {"X": "a\nb"}, {"X": "a\0"}, {"X\r\nY": "a"}])
async def test_transport_refuses_a_header_with_a_line_break(headers: dict[str, str]) -> None:
    async with served(lambda _: ok()) as (server, transport):
        with pytest.raises(httpx.LocalProtocolError):
            await ask(transport, server.url, headers=headers)
        assert server.requests == []


async def test_transport_refuses_other_schemes() -> None:
    with pytest.raises(httpx.UnsupportedProtocol, match="'ftp'"):
        await ask(FastTransport(), "ftp://127.0.0.1/secret")


async def test_transport_reuses_and_closes_a_connection_over_tls() -> None:
    certificates = Path(__file__).parents[3] / "certificates"
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(certificates / "server.pem")
    ours = ssl.create_default_context(cafile=str(certificates / "ca.pem"))

    def play(request: Request) -> Say:
        return ok(b"x" * 300_000) if b"/short" in request.line else say(then="hang")

    transport = FastTransport(tls=ours)
    async with stub(play, theirs) as server:
        for _ in range(3):
            assert len((await ask(transport, f"{server.url}/short")).content) == 300_000
        assert server.connections == 1
        call = spawn(ask(transport, f"{server.url}/long"), name="call")
        while len(server.requests) < 4:
            await asyncio.sleep(0)
        await transport.aclose()
        assert transport.connections == 0
        await asyncio.wait([call])
        assert isinstance(call.exception(), httpx.ReadError)
        await asyncio.wait_for(server.gone.wait(), 60)


async def test_transport_connect_timeout_ends_an_unanswered_handshake() -> None:
    async with served(lambda _: say(then="hang")) as (server, _):
        transport = FastTransport(tls=ssl.create_default_context())
        url = server.url.replace("http", "https")
        with pytest.raises(httpx.ConnectTimeout, match="in time"):
            await ask(transport, url, timeout={"connect": 0.05})
        await asyncio.wait_for(server.gone.wait(), 60)
        await transport.aclose()
