"""Drives one connection of uvicorn by hand: a transport that keeps what is written, a loop whose time stands still.

And an app whose responses are marked as cacheable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from nacos_proxy.fastpath.asgi import App, FastPath, Message, Receive, Scope, Send
from nacos_proxy.fastpath.limits import ConnectionLimits, make_limited
from nacos_proxy.fastpath.protocol import make_protocol
from nacos_proxy.fastpath.table import ResponseTable, ResponseTablePolicy
from nacos_proxy.fastpath.writes import KnownWrites
from nacos_proxy.request_context import Answered
from nacos_proxy.wire.http import CACHEABLE, Cacheable, RouteName

LISTS = RouteName("rest", "GET /list")
GET = b"GET /list?name=a HTTP/1.1\r\nHost: here\r\n\r\n"


class Service:
    """An app with one service, 'key'. Its marked reads: /list, and /draw, whose body differs each time.

    `asked` counts what reached it. What it answers with depends on `version`, and `change` makes that another.
    /held waits for `gate`; /early does not wait for the body of its request; /streamed and /endless do not say how long
    they are; /long ends when its client has left, and is in `left` then.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.confirmed_at = 998.5
        self.valid_until = 1010.25
        self.version = 1
        self.asked = 0
        self.drawn = 0
        self.gate = asyncio.Event()
        self.left: list[bytes] = []
        self.scopes: list[Scope] = []
        self.table = ResponseTable(ResponseTablePolicy())

    def clock(self) -> float:
        return self.now

    def change(self) -> None:
        self.version += 1
        self.confirmed_at, self.valid_until = self.now, self.now + 10.25
        self.table.forget("key")

    def draw(self) -> bytes:
        self.drawn += 1
        return b"x" * (self.drawn % 12)

    def app(self) -> FastPath:
        return FastPath(self, self.table, self.clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        self.scopes.append(scope)
        path, headers = scope["path"], dict(scope["headers"])
        if path == "/held":
            await self.gate.wait()
        if path == "/endless":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"one ", "more_body": True})
            await self.gate.wait()
            return
        if path == "/streamed":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for chunk in (b"one ", b"", b"two"):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body"})
            return
        sent = await self._body(receive) if path != "/early" else 0
        if path == "/long":
            assert (await receive())["type"] == "http.disconnect"
            self.left.append(scope["query_string"])
            return
        etag = b'"%d"' % self.version
        status, body = 200, b"%s?%s of %s, version %d, got %d" % (
            path.encode(), scope["query_string"], headers.get(b"host", b""), self.version, sent,
        )  # fmt: skip
        if headers.get(b"if-none-match") == etag:
            status, body = 304, b""
        drawing = path == "/draw" and scope["method"] == "GET"
        if path in ("/list", "/draw") and self.now < self.valid_until:
            draw = self.draw if drawing else None
            scope[CACHEABLE] = Cacheable("key", self.confirmed_at, self.valid_until, LISTS, draw)
        if drawing:
            status, body = 200, self.draw()
        await send({"type": "http.response.start", "status": status, "headers": self._headers(status, body, etag)})
        if path == "/slow":
            await self.gate.wait()
        await send({"type": "http.response.body", "body": body})

    async def _body(self, receive: Receive) -> int:
        length = 0
        while True:
            message = await receive()
            length += len(message.get("body", b""))
            if not message.get("more_body", False):
                return length

    def _headers(self, status: int, body: bytes, etag: bytes) -> list[tuple[bytes, bytes]]:
        status_of_cache = b"nacos-proxy; hit; ttl=%d" % int(self.valid_until - self.now)
        length = [] if status == 304 else [(b"Content-Length", b"%d" % len(body))]
        age = b"%d" % int(self.now - self.confirmed_at)
        return [(b"Age", age), *length, (b"Cache-Status", status_of_cache), (b"ETag", etag)]


class StillLoop:
    """Time moves by `advance`; tasks run on the loop of the test."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []
        self.busy = False  # what is to be called soon is not called yet

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[..., None], *args: Any) -> Timer:
        timer = Timer(self.now + delay, callback, args)
        self.timers.append(timer)
        return timer

    def call_soon(self, callback: Callable[..., None], *args: Any) -> asyncio.Handle:
        loop = asyncio.get_running_loop()
        return asyncio.Handle(callback, args, loop) if self.busy else loop.call_soon(callback, *args)

    def create_task(self, coroutine: Coroutine[Any, Any, None], **options: Any) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(coroutine, **options)

    @property
    def armed(self) -> list[float]:
        return sorted(timer.due for timer in self.timers if not timer.done)

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self.armed and self.armed[0] <= end:
            timer = min((t for t in self.timers if not t.done), key=lambda t: t.due)
            self.now, timer.done = max(self.now, timer.due), True
            timer.callback(*timer.args)
        self.now = end

    def jump(self, seconds: float) -> None:
        """Time passes in which nothing ran; timers run late."""
        self.now += seconds


class Timer:
    def __init__(self, when: float, callback: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.due, self.callback, self.args, self.done = when, callback, args, False

    def when(self) -> float:
        return self.due

    def cancel(self) -> None:
        self.done = True


class KeptTransport(asyncio.Transport):
    """Keeps what is written. `fill` and `empty` play a peer that does not read, and reads again."""

    def __init__(self, **extra: Any) -> None:
        super().__init__({"peername": ("127.0.0.1", 4000), "sockname": ("127.0.0.1", 80), **extra})
        self.written = b""
        self.writes = 0
        self.closing = False
        self.reading = True
        self.aborted = False
        self.unsent = 0
        self.limits: list[int | None] = []
        self.protocol: asyncio.Protocol | None = None

    def take(self) -> bytes:
        written, self.written = self.written, b""
        return written

    def write(self, data: Any) -> None:
        self.written += bytes(data)
        self.writes += 1

    def close(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = self.aborted = True

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.limits.append(high)

    def fill(self, unsent: int = 100_000) -> None:
        assert self.protocol is not None
        self.unsent = unsent
        self.protocol.pause_writing()

    def empty(self) -> None:
        assert self.protocol is not None
        self.unsent = 0
        self.protocol.resume_writing()


class Connection:
    """A connection to an app: `say` hands bytes to the server and gives what it wrote when all has come to rest."""

    def __init__(
        self,
        service: Service,
        app: App | None = None,
        *,
        fast: bool = True,
        log: Callable[[Answered], None] | None = None,
        writes: KnownWrites | None = None,
        **settings: Any,
    ) -> None:
        options = {"proxy_headers": False, "log_config": None, "ws": "none", "lifespan": "off", **settings}
        config = Config(app if app is not None else service.app() if fast else service, **options)  # type: ignore[arg-type]
        config.load()
        fast_one = make_protocol(service.table, service.clock, log=log, writes=writes)
        made: type[HttpToolsProtocol] = fast_one if fast else HttpToolsProtocol
        self.service = service
        self.state = ServerState()
        self.state.default_headers = [(b"date", b"Thu, 01 Jan 1970 00:00:00 GMT"), *config.encoded_headers]
        self.loop = StillLoop()
        self._make = lambda: made(config, self.state, {}, self.loop)  # type: ignore[arg-type]
        self.protocol, self.transport = self.open()

    def open(self, **extra: Any) -> tuple[HttpToolsProtocol, KeptTransport]:
        """One more connection to the same server."""
        protocol, transport = self._make(), KeptTransport(**extra)
        transport.protocol = protocol
        protocol.connection_made(transport)
        return protocol, transport

    async def say(self, data: bytes) -> bytes:
        self.protocol.data_received(data)
        return await self.rest()

    async def rest(self) -> bytes:
        await settle()
        return self.transport.take()

    async def warm(self, head: bytes = GET) -> bytes:
        """Makes a head known: it is admitted the second time it is seen."""
        await self.say(head)
        return await self.say(head)


def limited(
    service: Service,
    limits: ConnectionLimits,
    *,
    fast: bool,
    log: Callable[[Answered], None] | None = None,
    **settings: Any,
) -> Connection:
    """A connection as our server has it, with the fast path or without."""
    connection = Connection(service, fast=fast, **settings)
    config, state = connection.protocol.config, connection.state
    fast_one = make_protocol(service.table, service.clock, limits=limits, log=log)
    made = fast_one if fast else make_limited(limits, log)
    state.connections.clear()
    connection._make = lambda: made(config, state, {}, connection.loop)  # type: ignore[arg-type]
    connection.protocol, connection.transport = connection.open()
    return connection


async def settle() -> None:
    """Let every task run until it waits for something that only the test can give."""
    for _ in range(20):
        await asyncio.sleep(0)


async def ask(
    app: App, target: str = "/list?name=a", headers: tuple[tuple[bytes, bytes], ...] = (), **scope: Any
) -> Any:
    """One GET by ASGI alone: status, headers and body."""
    path, _, query = target.partition("?")
    sent: list[Message] = []
    whole: dict[str, Any] = {
        "type": "http", "method": "GET", "http_version": "1.1", "scheme": "http", "path": path,
        "raw_path": path.encode(), "query_string": query.encode(), "headers": list(headers),
        "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 4000), **scope,
    }  # fmt: skip

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(whole, receive, send)
    start = sent[0]
    return start["status"], dict(start["headers"]), b"".join(message["body"] for message in sent[1:])
