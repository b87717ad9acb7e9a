"""One HTTP/1.1 connection to a server: an `asyncio.Protocol` that carries one exchange at a time.

- `begin` sends a request. `head` returns at the end of the packet that completes the head of its answer; a short answer
  is complete by then.
- An error ends the connection. The call that waits for the answer raises it.
- A connection is reused only if the last answer ended where its framing said, with no bytes after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from typing import NamedTuple, cast

import httptools
import httpx

from nacos_proxy.runtime import spawn

MAX_HEAD = 256 * 1024  # bytes that are not body: status line, headers, trailers, chunk framing
MAX_HEADERS = 500  # of one answer: each costs more memory than its bytes
HIGH_WATER = 256 * 1024  # bytes of body that wait for a reader until the socket is paused

RawHeaders = list[tuple[bytes, bytes]]


class ExchangeLimits(NamedTuple):
    """`read` and `write`: seconds of each wait; `until`: the loop's time of the body's end. None: no limit."""

    read: float | None = None
    write: float | None = None
    until: float | None = None


UNLIMITED = ExchangeLimits()


class Connection(asyncio.Protocol):
    """`open` until the socket is closed; `used` once an exchange has ended; the pool sets `idle_since`.

    `retired`: the connection is not reused after the exchange that is under way. `limits` are those of the last one.
    """

    def __init__(self, on_lost: Callable[[Connection], None]) -> None:
        self.open = False
        self.used = False
        self.retired = False
        self.idle_since = 0.0
        self.status = 0
        self.reason = b""
        self.headers: RawHeaders = []
        self.complete = True
        self.began = False  # a byte of the answer has arrived
        self.limits = UNLIMITED
        self._loop = asyncio.get_running_loop()
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._chunks: list[bytes] = []
        self._buffered = 0  # bytes in _chunks
        self._overhead = 0  # bytes since the last byte of body
        self._in_head = True
        self._framed = False
        self._reusable = True
        self._bodyless = False
        self._paused = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._on_head: Callable[[Connection], object] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._sender: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self.open = True

    def data_received(self, data: bytes) -> None:
        if self.complete or self._parser is None:  # no exchange is under way
            self.abort()
            return
        self.began = True
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail_protocol(f"the answer is not valid HTTP: {error}")
            return
        if self._overhead > MAX_HEAD and not self.complete:
            self._fail_protocol("the head of the answer is too long")
        elif not self._paused and self._buffered > HIGH_WATER and not self.complete and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        if not self._in_head:
            self._wake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if not self.complete:
            if self._in_head or self._framed or exc is not None:
                cause = f": {exc}" if exc is not None else ""
                if self.began:
                    self._fail_protocol(f"the connection was lost during the answer{cause}")
                else:
                    self._fail(httpx.ReadError(f"the connection was lost before the answer{cause}"))
            else:  # the end of the connection is the end of the body (RFC 9112 6.3)
                self._reusable = False
                self._finish()
        self._parser = None
        self._wake()
        self.resume_writing()
        self._on_lost(self)

    def pause_writing(self) -> None:
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    # httptools

    def on_message_begin(self) -> None:
        if self.complete:
            self._reusable = False  # bytes follow the answer
            return
        self.headers = []
        self.reason = b""
        self._framed = False

    def on_status(self, status: bytes) -> None:
        if not self.complete:
            self.reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head or self._error is not None:  # a trailer, or the rest of an invalid answer
            return
        self.headers.append((name, value))
        lower = name.lower()
        if lower in (b"content-length", b"transfer-encoding"):
            self._framed = True
        if lower == b"transfer-encoding" and value.strip().lower() != b"chunked":
            coding = value[:40].decode("latin-1")
            self._fail_protocol(f"the answer has the transfer coding {coding!r}, only chunked is supported")
        elif len(self.headers) > MAX_HEADERS:
            self._fail_protocol(f"the answer has more than {MAX_HEADERS} headers")

    def on_headers_complete(self) -> None:
        if self.complete or self._parser is None or self._error is not None:
            return
        self.status = self._parser.get_status_code()
        if self.status == 101:
            self._fail_protocol("the answer switches to another protocol, which was not requested")
        elif not 100 <= self.status <= 599:  # RFC 9110 15
            self._fail_protocol(f"the answer has the invalid status {self.status:03}")
        if self.status < 200 or self._error is not None:
            return
        self._in_head = False
        if self._bodyless:  # the parser would wait for the body, which an answer to HEAD does not have
            self._reusable = False
            self._finish()

    def on_body(self, body: bytes) -> None:
        self._overhead = 0
        if not self.complete:
            self._chunks.append(body)
            self._buffered += len(body)

    def on_message_complete(self) -> None:
        if self._in_head or self.complete:  # after 1xx the answer is still to come
            return
        if self._parser is None or not self._parser.should_keep_alive():
            self._reusable = False
        self._finish()

    # the exchange

    @property
    def failed(self) -> bool:
        return self._error is not None

    @property
    def body(self) -> bytes:
        """The bytes of the body that have arrived, and were not taken."""
        return b"".join(self._chunks) if len(self._chunks) != 1 else self._chunks[0]

    @property
    def reusable(self) -> bool:
        """Whether another exchange may follow: the last one is over, and the connection is in order."""
        ended = self.complete and not self._chunks and not self._paused and self._sender is None
        return self.open and ended and self._reusable and not self.retired and self._error is None

    def begin(
        self,
        head: bytes,
        body: bytes | AsyncIterable[bytes],
        *,
        bodyless: bool = False,
        limits: ExchangeLimits = UNLIMITED,
        on_head: Callable[[Connection], object] | None = None,
    ) -> None:
        """Sends a request, without waiting. Raises `ReadError` if the connection is closed.

        `bodyless` is for HEAD. A streamed body is sent concurrently, its chunks unchanged. `on_head` is called once, as
        soon as `head` would return or raise; it must not raise.
        """
        self.began = False
        if self._transport is None or not self.open:
            raise httpx.ReadError("the connection was lost before the request")
        self.complete = False
        self._in_head, self._bodyless, self._overhead, self.limits = True, bodyless, 0, limits
        self._reusable, self._on_head = True, on_head
        if limits.until is not None and (self._deadline is None or self._deadline.when() > limits.until):
            self._disarm()
            self._deadline = self._loop.call_at(limits.until, self._deadline_passed)
        if isinstance(body, bytes):
            self._transport.write(head + body if body else head)
        else:
            self._transport.write(head)
            self._sender = spawn(self._send(body), name="request body")

    async def head(self) -> None:
        """Waits for the head of the answer. Raises httpx's transport errors, and what the body's iterator raises."""
        try:
            while self._in_head and self._error is None:
                await self._wait()
        except BaseException:
            self.abort()
            raise
        if self._error is not None and self._in_head:
            raise self._error

    async def _send(self, body: AsyncIterable[bytes]) -> None:
        try:
            async for chunk in body:
                if self._transport is None or self.complete or not self.open:
                    return
                self._transport.write(chunk)
                if self._drained is not None:
                    await self._drain(self._drained)
        except Exception as error:  # the client's stream broke: `head` or `read` raises it
            self._fail(error)
        else:
            self._sender = None

    async def _drain(self, drained: asyncio.Future[None]) -> None:
        if self.limits.write is None:
            await drained
            return
        timer = self._loop.call_later(
            self.limits.write, self._fail, httpx.WriteTimeout("the server stopped reading the request")
        )
        try:
            await drained
        finally:
            timer.cancel()

    async def read(self) -> bytes:
        """Waits for the next bytes of the body; b"" at its end. Raises httpx's transport errors."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self.complete:
                return b""
            await self._wait()
        data = self.take_body()
        if self._paused and self._transport is not None:
            self._paused = False
            if self.open:  # uvloop raises if it is closed
                self._transport.resume_reading()
        return data

    def take_body(self) -> bytes:
        """The bytes of the body that have arrived: all of it if the answer is complete."""
        data = self.body
        self._chunks, self._buffered = [], 0
        return data

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        if self.limits.read is not None:
            self._read_timer = self._loop.call_later(self.limits.read, self._time_out)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if self._read_timer is not None:
                self._read_timer.cancel()
                self._read_timer = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        on_head, self._on_head = self._on_head, None
        if on_head is not None:
            on_head(self)

    def _finish(self) -> None:
        self.complete = self.used = True

    def _deadline_passed(self) -> None:
        """One timer serves many exchanges, because a timer for each would cost more than to parse its answer."""
        self._deadline, until = None, self.limits.until
        if self.complete or until is None:
            return
        if self._loop.time() < until:
            self._deadline = self._loop.call_at(until, self._deadline_passed)
        else:
            self._time_out()

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _fail_protocol(self, reason: str) -> None:
        self._fail(httpx.RemoteProtocolError(reason))

    def _time_out(self) -> None:
        self._fail(httpx.ReadTimeout("no answer in time"))

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self.abort()
        self._wake()

    def abort(self) -> None:
        """Ends the connection at once. May be called more than once."""
        self._disarm()
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.cancel()
        if self._transport is not None:
            self._transport.abort()
        self.open = False
