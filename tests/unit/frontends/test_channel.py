"""`AsgiChannel`: a stream written through ASGI."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from nacos_proxy.frontends.channel import AsgiChannel
from tests.helpers.asgi import scope, start
from tests.helpers.clock import settle


class App:
    """Streams what the test writes to its channel."""

    def __init__(self) -> None:
        self.channel = AsgiChannel()
        self.drained = self.closed = 0
        self.channel.on_drain(lambda: setattr(self, "drained", self.drained + 1))
        self.channel.on_close(lambda: setattr(self, "closed", self.closed + 1))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await self.channel.run(receive, send)


async def test_asgi_channel_joins_writes_while_the_reader_is_busy() -> None:
    app = App()
    stream = await start(app, scope("GET", "/"))
    stream.hold()
    assert app.channel.write(app.channel.frame(b"a")) is False
    await settle()
    app.channel.write(b"b")
    app.channel.write(b"c")
    assert app.drained == 0
    stream.release()
    await settle()
    assert (stream.body, app.drained) == (b"abc", 1)
    await stream.leave()
    assert app.closed == 1


async def test_asgi_channel_close_sends_the_rest_and_ends_the_body() -> None:
    app = App()
    stream = await start(app, scope("GET", "/"))
    app.channel.write(b"last words")
    app.channel.close()
    assert app.channel.write(b"too late") is False
    await stream.ended()
    assert (stream.body, stream.complete, app.closed) == (b"last words", True, 1)


async def test_asgi_channel_ends_quietly_if_the_reader_disconnects_during_a_write() -> None:
    app = App()

    async def broken(message: object) -> None:
        if message["type"] == "http.response.body":  # type: ignore[index]
            raise OSError("the reader has gone")

    async def receive() -> dict[str, str]:
        await settle(1000)
        return {"type": "http.disconnect"}

    app.channel.write(b"x")
    await app({}, receive, broken)  # type: ignore[arg-type]
    assert app.closed == 1


async def test_asgi_channel_ignores_an_empty_write() -> None:
    app = App()
    assert app.channel.write(b"") is True
    app.channel.farewell(b"unused")
