import gc
import weakref
from typing import Any

import pytest

from nacos_proxy.fastpath.asgi import Receive, Scope, Send
from nacos_proxy.fastpath.stream import HIGH_WATER, LAST_CHUNK, Stream
from nacos_proxy.wire.http import STREAM, Channel
from tests.unit.fastpath.drive import GET, Connection, Service, settle

EVENTS = b"GET /events HTTP/1.1\r\nHost: here\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\n"


class Streaming:
    """An app that takes a channel for each /events and does nothing more; `others` go to a `Service`."""

    def __init__(self) -> None:
        self.service = Service()
        self.channels: list[Channel | None] = []
        self.seen: list[str] = []
        self.headers: list[tuple[bytes, bytes]] = [(b"content-type", b"text/event-stream")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/events":
            await self.service(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        channel: Channel | None = scope["extensions"][STREAM]()
        self.channels.append(channel)
        if channel is None:
            await send({"type": "http.response.body", "body": b"the ordinary way"})
            return
        channel.on_close(lambda: self.seen.append("closed"))
        channel.on_drain(lambda: self.seen.append("drained"))

    @property
    def channel(self) -> Channel:
        channel = self.channels[-1]
        assert channel is not None
        return channel


async def streaming() -> tuple[Streaming, Connection]:
    app = Streaming()
    connection = Connection(app.service, app)
    assert (await connection.say(EVENTS)).startswith(HEAD)
    return app, connection


async def test_stream_goes_on_after_the_app_has_returned() -> None:
    app, connection = await streaming()
    assert connection.state.tasks == set(), "no task is left"
    for text in (b"one", b"two"):
        assert app.channel.write(app.channel.frame(text))
        assert connection.transport.take() == b"3\r\n%b\r\n" % text
    assert app.seen == []


async def test_stream_holds_neither_its_request_nor_its_scope() -> None:
    kept: list[Any] = []

    class Marked(dict[str, Any]):
        """Can be looked at from afar."""

    class Watching(Streaming):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            marked = Marked()
            scope["state"] = marked
            kept.append(weakref.ref(marked))
            await super().__call__(scope, receive, send)

    app = Watching()
    connection = Connection(app.service, app)
    await connection.say(EVENTS)
    gc.collect()
    assert kept[0]() is None
    assert app.channel.write(b"1\r\nx\r\n")


def test_frame_of_nothing_is_nothing_because_an_empty_chunk_ends_the_body() -> None:
    assert (Stream.frame(b""), Stream.frame(b"x" * 300)) == (b"", b"12c\r\n" + b"x" * 300 + b"\r\n")


async def test_write_reports_a_slow_reader_until_it_has_caught_up() -> None:
    app, connection = await streaming()
    assert connection.transport.limits == [HIGH_WATER]
    connection.transport.fill()
    assert app.channel.write(b"1\r\nx\r\n") is False
    assert connection.transport.take() == b"1\r\nx\r\n", "handed over all the same"
    assert app.seen == []
    connection.transport.empty()
    assert app.seen == ["drained"]
    assert app.channel.write(b"1\r\ny\r\n")


async def test_close_ends_the_body_and_the_connection_carries_the_next_request() -> None:
    app, connection = await streaming()
    app.channel.close()
    assert connection.transport.take() == LAST_CHUNK
    assert app.seen == ["closed"]
    assert connection.transport.limits[-1] is None, "an ordinary connection again"
    assert connection.loop.armed == [5.0], "with its keep-alive time-out"
    app.channel.close()
    assert app.channel.write(b"late") is False
    assert connection.transport.take() == b""
    assert (await connection.say(GET)).startswith(HEAD)
    assert (await connection.say(EVENTS)).startswith(HEAD)
    assert app.channel.write(b"1\r\nx\r\n")


async def test_on_close_is_called_once_when_the_reader_disconnects() -> None:
    app, connection = await streaming()
    connection.protocol.connection_lost(ConnectionResetError())
    assert app.seen == ["closed"]
    assert app.channel.write(b"late") is False
    app.channel.close()
    assert app.seen == ["closed"]
    assert connection.transport.take() == b""
    assert connection.state.connections == set()


async def test_on_close_is_called_at_once_if_the_stream_has_ended() -> None:
    app, connection = await streaming()
    app.channel.close()
    app.channel.on_close(lambda: app.seen.append("told late"))
    assert app.seen == ["closed", "told late"]
    connection.protocol.connection_lost(None)


async def test_shutdown_writes_the_farewell_and_ends_the_stream() -> None:
    app, connection = await streaming()
    app.channel.farewell(app.channel.frame(b"bye"))
    connection.protocol.shutdown()
    assert connection.transport.take() == b"3\r\nbye\r\n" + LAST_CHUNK
    assert (app.seen, connection.transport.closing) == (["closed"], True)


async def test_close_ends_the_connection_if_the_request_asked_for_it() -> None:
    app = Streaming()
    connection = Connection(app.service, app)
    await connection.say(EVENTS.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    app.channel.close()
    assert connection.transport.closing


async def test_stream_is_not_timed_out_while_idle() -> None:
    app, connection = await streaming()
    connection.loop.advance(1000)
    assert not connection.transport.closing
    assert app.seen == []


async def test_stream_makes_later_requests_wait_for_its_end() -> None:
    app, connection = await streaming()
    assert await connection.say(GET) == b""
    assert app.service.asked == 0
    app.channel.close()
    said = await connection.rest()
    assert said.startswith(LAST_CHUNK + HEAD)
    assert app.service.asked == 1


@pytest.mark.parametrize(
    "head",
    [
        EVENTS.replace(b"1.1", b"1.0"),
        EVENTS.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 1\r\n\r\nx"),
        EVENTS + GET,
    ],
    ids=["HTTP/1.0", "POST", "with another request behind it"],
)
async def test_take_stream_returns_none_if_the_body_cannot_bypass_the_app(head: bytes) -> None:
    app = Streaming()
    connection = Connection(app.service, app)
    assert b"the ordinary way" in await connection.say(head)
    assert app.channels == [None]


async def test_take_stream_returns_none_for_a_body_of_known_length() -> None:
    app = Streaming()
    app.headers = [(b"content-length", b"16")]
    connection = Connection(app.service, app)
    assert (await connection.say(EVENTS)).endswith(b"the ordinary way")
    assert app.channels == [None]


async def test_take_stream_returns_none_if_the_client_has_disconnected() -> None:
    app = Streaming()
    held: list[Any] = []

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await app.service.gate.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        held.append(scope["extensions"][STREAM]())

    connection = Connection(app.service, late)
    await connection.say(EVENTS)
    connection.protocol.connection_lost(None)
    app.service.gate.set()
    await settle()
    assert held == [None]


@pytest.mark.parametrize("behind", [b"\0\0", b"GET / HT"])
async def test_stream_ends_with_its_connection_on_input_that_is_no_request(behind: bytes) -> None:
    app, connection = await streaming()
    await connection.say(behind)
    connection.loop.advance(20)
    assert app.channel.write(b"1\r\nx\r\n")
    assert connection.transport.take() == b"1\r\nx\r\n", "nothing came between"
    app.channel.close()
    assert connection.transport.take() == LAST_CHUNK and connection.transport.closing


async def test_stream_notices_a_disconnect_behind_a_waiting_request() -> None:
    app, connection = await streaming()
    await connection.say(GET)
    assert connection.transport.reading
    connection.protocol.connection_lost(None)
    assert app.seen == ["closed"]
