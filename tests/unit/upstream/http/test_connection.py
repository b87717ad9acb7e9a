"""One connection without a socket, for cases that the pool cannot produce at will."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.runtime import spawn
from nacos_proxy.upstream.http.connection import HIGH_WATER, MAX_HEAD, MAX_HEADERS, Connection, ExchangeLimits
from tests.helpers.clock import settle

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Wire(asyncio.Transport):
    """Stands in for the socket. Like uvloop's, it raises after its end."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.ended = False
        self.reading = True

    def _alive(self) -> None:
        if self.ended:
            raise RuntimeError("the handler is closed")

    def write(self, data: Any) -> None:
        self._alive()
        self.sent += data

    def pause_reading(self) -> None:
        self._alive()
        self.reading = False

    def resume_reading(self) -> None:
        self._alive()
        self.reading = True

    def abort(self) -> None:
        self.ended = True


class Joined:
    """An open connection, its socket, and how often it was lost."""

    def __init__(self) -> None:
        self.lost = 0
        self.wire = Wire()
        self.connection = Connection(self._on_lost)
        self.connection.connection_made(self.wire)

    def _on_lost(self, connection: Connection) -> None:
        assert connection is self.connection
        self.lost += 1

    def ask(self, body: Any = b"", **options: Any) -> asyncio.Task[None]:
        async def exchange() -> None:
            self.connection.begin(HEAD, body, **options)
            await self.connection.head()

        return spawn(exchange(), name="exchange")

    def came(self, *pieces: bytes) -> None:
        for piece in filter(None, pieces):
            self.connection.data_received(piece)

    async def whole(self) -> bytes:
        body = b""
        while chunk := await self.connection.read():
            body += chunk
        return body


@pytest.fixture
async def joined() -> Joined:
    return Joined()


async def test_connection_exchange_is_complete_at_the_end_of_its_packet(joined: Joined) -> None:
    task = joined.ask()
    await settle()
    assert joined.wire.sent == HEAD
    joined.came(OK)
    await task
    connection = joined.connection
    assert (connection.status, connection.reason, connection.headers) == (200, b"OK", [(b"Content-Length", b"2")])
    assert (connection.complete, connection.take_body(), connection.reusable) == (True, b"ok", True)


async def test_connection_exchange_starts_without_leftovers(joined: Joined) -> None:
    for status, body in ((200, b"one"), (404, b"")):
        task = joined.ask()
        await settle()
        joined.came(b"HTTP/1.1 %d X\r\nX-%d: y\r\nContent-Length: %d\r\n\r\n" % (status, status, len(body)), body)
        await task
        assert (joined.connection.status, await joined.whole()) == (status, body)
        assert joined.connection.headers[0] == (b"X-%d" % status, b"y")
        assert joined.connection.reusable


async def test_connection_with_an_unread_body_is_not_reusable(joined: Joined) -> None:
    task = joined.ask()
    await settle()
    joined.came(OK)
    await task
    assert not joined.connection.reusable
    assert joined.connection.take_body() == b"ok"
    assert joined.connection.reusable


@given(st.lists(st.integers(1, 30), max_size=40), st.booleans())
def test_connection_reads_the_same_answer_from_any_packets(cuts: list[int], chunked: bool) -> None:
    body = bytes(range(200))
    if chunked:
        framed = b"".join(b"%x\r\n%b\r\n" % (20, body[n : n + 20]) for n in range(0, 200, 20)) + b"0\r\nT: x\r\n\r\n"
        head = b"HTTP/1.1 200 Fine\r\nA: 1\r\na: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
    else:
        framed, head = body, b"HTTP/1.1 200 Fine\r\nA: 1\r\na: 2\r\nContent-Length: 200\r\n\r\n"
    wire = b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + head + framed

    async def run() -> None:
        joined = Joined()
        task = joined.ask()
        await asyncio.sleep(0)
        rest = wire
        for cut in cuts:
            if rest[:cut]:
                joined.came(rest[:cut])
            rest = rest[cut:]
        if rest:
            joined.came(rest)
        await task
        assert (joined.connection.reason, await joined.whole()) == (b"Fine", body)
        assert joined.connection.headers[:2] == [(b"A", b"1"), (b"a", b"2")]
        assert joined.connection.reusable

    asyncio.run(run())


@given(st.binary(max_size=300), st.booleans())
def test_connection_turns_any_bytes_into_an_answer_or_an_httpx_error(data: bytes, begun: bool) -> None:
    async def run() -> None:
        joined = Joined()
        task = joined.ask()
        await asyncio.sleep(0)
        joined.came((b"HTTP/1.1 200 OK\r\n" if begun else b"") + data)
        joined.connection.connection_lost(None)
        try:
            await task
            await joined.whole()
        except httpx.TransportError:
            pass
        assert not joined.connection.reusable

    asyncio.run(run())


async def test_connection_ends_on_unexpected_bytes(joined: Joined) -> None:
    joined.came(OK)
    assert (joined.wire.ended, joined.connection.open) == (True, False)


async def test_connection_with_a_second_answer_is_not_reusable(joined: Joined) -> None:
    task = joined.ask()
    await settle()
    joined.came(OK + b"HTTP/1.1 500 Evil\r\nX: evil\r\nContent-Length: 4\r\n\r\nevil")
    await task
    connection = joined.connection
    assert (connection.status, connection.reason, connection.take_body()) == (200, b"OK", b"ok")
    assert len(connection.headers) == 1
    assert not connection.reusable


async def test_connection_exchange_on_a_lost_connection_sends_nothing(joined: Joined) -> None:
    joined.connection.connection_lost(None)
    joined.wire.ended = True
    with pytest.raises(httpx.ReadError, match="lost before the request"):
        await joined.ask()
    assert (joined.wire.sent, joined.connection.began, joined.lost) == (b"", False, 1)


@pytest.mark.parametrize(
    ("came", "error", "said"),
    [
        (b"", httpx.ReadError, "before the answer"),
        (b"HTTP/1.1 2", httpx.RemoteProtocolError, "during the answer"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", httpx.RemoteProtocolError, "during the answer"),
    ],
)
@pytest.mark.parametrize("cause", [None, ConnectionResetError("reset by peer")])
async def test_connection_lost_says_whether_an_answer_had_begun(
    joined: Joined, came: bytes, error: type[Exception], said: str, cause: Exception | None
) -> None:
    """The pool repeats a request only if no byte of an answer came."""
    task = joined.ask()
    await settle()
    if came:
        joined.came(came)
    joined.connection.connection_lost(cause)
    with pytest.raises(error, match=said) as raised:
        await task
    assert ("reset by peer" in str(raised.value)) is (cause is not None)


@pytest.mark.parametrize("cause", [None, ConnectionResetError("reset by peer")])
async def test_connection_lost_ends_an_unframed_body_unless_it_broke(joined: Joined, cause: Exception | None) -> None:
    task = joined.ask()
    await settle()
    joined.came(b"HTTP/1.1 200 OK\r\n\r\nwhole?")
    await task
    joined.connection.connection_lost(cause)
    if cause is None:
        assert await joined.whole() == b"whole?"
    else:
        assert await joined.connection.read() == b"whole?"
        with pytest.raises(httpx.RemoteProtocolError, match="reset by peer"):
            await joined.connection.read()
    assert not joined.connection.reusable


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nA: ", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;"]
)
async def test_connection_bounds_the_head(joined: Joined, head: bytes) -> None:
    """An endless header, an endless chunk extension."""
    task = joined.ask()
    await settle()
    joined.came(head)
    for _ in range(MAX_HEAD // 1000 + 1):
        if joined.connection.open:
            joined.came(b"x" * 1000)
    with pytest.raises(httpx.RemoteProtocolError):
        await task
        await joined.connection.read()
    assert joined.wire.ended


async def test_connection_bounds_informational_answers(joined: Joined) -> None:
    task = joined.ask()
    await settle()
    for _ in range(MAX_HEAD // 20):
        if joined.connection.open:
            joined.came(b"HTTP/1.1 102 Wait\r\n\r\n")
    with pytest.raises(httpx.RemoteProtocolError, match="too long"):
        await task


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"HTTP/1.1 000 X\r\n\r\n", "the invalid status 000"),
        (b"HTTP/1.1 099 X\r\n\r\n", "the invalid status 099"),
        (b"HTTP/1.1 600 X\r\n\r\n", "the invalid status 600"),
        (b"HTTP/1.1 999 X\r\nContent-Length: 2\r\n\r\nok", "the invalid status 999"),
        (b"HTTP/1.1 100 X\r\n\r\nHTTP/1.1 999 X\r\n\r\n", "the invalid status 999"),
        (b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", "switches to another protocol"),
        (b"HTTP/1.1 101 X\r\n\r\nwhatever", "switches to another protocol"),
        (b"HTTP/1.1 200 X\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "transfer coding 'gzip, chunked'"),
        (b"HTTP/1.1 200 X\r\nTransfer-Encoding: gzip\r\n\r\n", "transfer coding 'gzip'"),
        (b"HTTP/1.1 200 X\r\n" + b"a:b\r\n" * (MAX_HEADERS + 1) + b"\r\n", f"more than {MAX_HEADERS} headers"),
    ],
)
async def test_connection_refuses_invalid_answers_with_the_reason(joined: Joined, head: bytes, said: str) -> None:
    task = joined.ask()
    await settle()
    joined.came(head)
    with pytest.raises(httpx.RemoteProtocolError, match=said):
        await task
    assert joined.wire.ended
    assert len(joined.connection.headers) <= MAX_HEADERS + 1


@pytest.mark.parametrize("line", [b"HTTP/1.1 200", b"HTTP/1.1 200 ", b"HTTP/1.0 200 OK", b"HTTP/1.1 599 \xff"])
async def test_connection_accepts_a_status_line_without_a_reason(joined: Joined, line: bytes) -> None:
    task = joined.ask()
    await settle()
    joined.came(line + b"\r\nContent-Length: 2\r\n\r\nok")
    await task
    assert (joined.connection.complete, joined.connection.take_body()) == (True, b"ok")


async def test_connection_pauses_reading_while_the_body_is_not_read(joined: Joined) -> None:
    task = joined.ask()
    await settle()
    joined.came(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", b"x" * HIGH_WATER)
    await task
    assert joined.wire.reading
    joined.came(b"y")
    assert not joined.wire.reading
    assert len(await joined.connection.read()) == HIGH_WATER + 1
    assert joined.wire.reading


async def test_connection_read_after_the_end_of_a_paused_socket(joined: Joined) -> None:
    task = joined.ask()
    await settle()
    joined.came(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", b"x" * (HIGH_WATER + 1))
    await task
    joined.connection.abort()
    joined.connection.connection_lost(None)
    assert len(await joined.connection.read()) == HIGH_WATER + 1
    with pytest.raises(httpx.RemoteProtocolError):
        await joined.connection.read()


async def test_connection_exchange_limit_ends_the_connection(joined: Joined) -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(httpx.ReadTimeout):
        await joined.ask(limits=ExchangeLimits(until=loop.time() - 1.0))
    assert joined.wire.ended


async def test_connection_exchange_limit_ends_with_the_answer(joined: Joined) -> None:
    loop = asyncio.get_running_loop()
    task = joined.ask(limits=ExchangeLimits(read=0.5, until=loop.time() + 0.5))
    await asyncio.sleep(0)
    joined.came(OK)
    await task
    over = asyncio.Event()
    loop.call_later(0.55, over.set)
    await over.wait()
    assert joined.connection.take_body() == b"ok"
    assert joined.connection.reusable


async def test_connection_exchange_limit_is_its_own_whatever_the_limit_of_the_one_before(joined: Joined) -> None:
    loop = asyncio.get_running_loop()
    for until, next_until in ((0.01, 0.05), (60.0, 0.05)):
        joined = Joined()
        task = joined.ask(limits=ExchangeLimits(until=loop.time() + until))
        await settle(2)
        joined.came(OK)
        await task
        joined.connection.take_body()
        begun = loop.time()
        with pytest.raises(httpx.ReadTimeout):
            await joined.ask(limits=ExchangeLimits(until=begun + next_until))
        assert 0.045 < loop.time() - begun < 5.0


async def test_connection_exchange_write_limit_ends_a_blocked_upload(joined: Joined) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    joined.connection.pause_writing()
    with pytest.raises(httpx.WriteTimeout, match="stopped reading"):
        await joined.ask(body(), limits=ExchangeLimits(write=0.01))
    assert joined.wire.sent == HEAD + b"a"


async def test_connection_exchange_stream_waits_for_the_socket(joined: Joined) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    joined.connection.pause_writing()
    task = joined.ask(body())
    await settle()
    assert joined.wire.sent == HEAD + b"a"
    joined.connection.resume_writing()
    await settle()
    assert joined.wire.sent == HEAD + b"ab"
    joined.came(OK)
    await task
    assert joined.connection.take_body() == b"ok"
    assert joined.connection.reusable


async def endless_body(ended: asyncio.Event) -> AsyncIterator[bytes]:
    try:
        yield b"a"
        await asyncio.Event().wait()
    finally:
        ended.set()


async def test_connection_with_an_answer_before_the_end_of_the_stream_is_not_reusable(joined: Joined) -> None:
    ended = asyncio.Event()
    task = joined.ask(endless_body(ended))
    await settle()
    joined.came(OK)
    await task
    assert joined.connection.take_body() == b"ok"
    assert not joined.connection.reusable
    joined.connection.abort()
    await ended.wait()


async def test_connection_exchange_cancelled_ends_the_connection_and_the_stream(joined: Joined) -> None:
    ended = asyncio.Event()
    task = joined.ask(endless_body(ended))
    await settle()
    task.cancel()
    await asyncio.wait([task])
    await ended.wait()
    assert joined.wire.ended
    assert not joined.connection.reusable


async def test_connection_abort_may_be_repeated_and_is_reported_once(joined: Joined) -> None:
    joined.connection.abort()
    joined.connection.abort()
    joined.connection.connection_lost(None)
    joined.connection.abort()
    assert joined.lost == 1
