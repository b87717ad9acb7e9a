"""Corrects uvicorn's httptools protocol where it reads or answers HTTP/1 wrongly.

    input                                  | behaviour
    ---------------------------------------|--------------------------------------------------------------------------
    `Upgrade`, such as h2c by Java clients | ignored (RFC 9110 7.8); the body is read as an HTTP body
    CONNECT                                | 405, and the connection ends, because what follows is not HTTP
    HTTP/1.0                               | no chunks; the connection ends after a body of unknown length
    a request while one is unanswered      | waits; bytes after it are held unparsed
    a client that disconnects              | the app is notified, even if more requests are waiting
    trailer fields                         | ignored, they are not headers (RFC 9110 6.5.1)
    a refused request                      | earlier responses are sent in full; the refusal follows, or is left out

After a head with `Upgrade`, httptools stops, because it takes the body for another protocol. So a new parser parses the
head again, without the upgrade's fields.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from nacos_proxy.fastpath.asgi import App, Message, Receive, Scope, Send
from nacos_proxy.wire.http import HAS_LEFT

BETWEEN, HEAD, BODY = 0, 1, 2

MAX_PARSED = 8192  # bytes parsed at once, which bounds the requests that one chunk can create
MAX_HELD = 256 << 10  # bytes held behind a waiting request; with more, the connection ends after the waiting responses
GRACE = 2.0  # seconds to finish responses after the client closed its side

_NO_TRAILERS: deque[tuple[bytes, bytes]] = deque(maxlen=0)
_UPGRADE_FIELDS = frozenset({b"upgrade", b"http2-settings"})


class CoalescingTransport:
    """The transport that responses write to. It sends a head together with the body that follows in the same loop turn.

    uvicorn writes them separately, which costs two system calls and often two packets.
    """

    __slots__ = ("_close", "_head", "_loop", "_transport")

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, close: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._close = close
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 "):
            self._head = data
            self._loop.call_soon(self.flush)
            return
        self._transport.write(data)

    def flush(self) -> None:
        """Sends a held head now."""
        if self._head:
            head, self._head = self._head, b""
            if not self._transport.is_closing():
                self._transport.write(head)

    def close(self) -> None:
        self.flush()
        self._close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


class Http1Protocol(HttpToolsProtocol):
    """One connection that speaks HTTP/1 correctly. It sets no bounds (`LimitedProtocol`) and repeats nothing.

    It and its subclasses have slots, because CPython looks attributes up more slowly in a dict of more than 30.
    """

    __slots__ = ("_answering", "_held", "_phase", "_reading", "_refused", "_response_transport")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._phase = BETWEEN  # the parser's position
        self._reading: RequestResponseCycle | None = None  # the request whose body is arriving
        self._answering: RequestResponseCycle | None = None  # the request of the current or last response
        self._held = bytearray()  # unparsed bytes behind a waiting request
        self._refused = False  # all further input is ignored

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._response_transport = CoalescingTransport(transport, self.loop, self.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._held.clear()
        self.pipeline.clear()
        answering = self._answering
        if answering is not None and not answering.response_complete:
            answering.disconnected = True
            answering.message_event.set()
        super().connection_lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The client closed its side: it has gone, or it still reads responses, as `nc -N` does."""
        due = cast("RequestResponseCycle | None", self.cycle)
        if due is None or due.response_complete or not isinstance(cast(object, due), RequestResponseCycle):
            return None
        if self.scheme == "https" or self._reading is not None:  # a TLS connection cannot be half open
            return None
        due.keep_alive, self._refused = False, True
        self.loop.call_later(GRACE, self._end_half_open)
        return True

    def _end_half_open(self) -> None:
        """Lets a response of known length finish if it has begun; ends a stream, which would never finish."""
        answering = self._answering
        if answering is None or answering.response_complete or not answering.expected_content_length:
            self.close()
        else:
            self.pipeline.clear()
            answering.keep_alive = False

    def close(self) -> None:
        """Ends the connection when everything written is sent."""
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        if self.pipeline:
            self._hold(data)
        elif len(data) <= MAX_PARSED:
            self._feed(data)
        else:
            self._feed_pieces(memoryview(data))

    def _feed_pieces(self, data: memoryview) -> None:
        for start in range(0, len(data), MAX_PARSED):
            end = start + MAX_PARSED
            self._feed(data[start:end])
            if self._refused or self.transport.is_closing():
                return
            if self.pipeline:
                self._hold(data[end:])
                return

    def _hold(self, data: bytes | memoryview) -> None:
        self._held += data
        if len(self._held) > MAX_HELD:  # pausing reading instead would hide a disconnect
            self._held.clear()
            self.refuse(431)

    def _feed(self, data: bytes | memoryview) -> None:
        self._unset_keepalive_if_required()
        try:
            rest = self._parse(data)
            while rest and not self._refused:
                rest = self._parse(rest)
        except httptools.HttpParserError:
            message = "Invalid HTTP request received."
            self.logger.warning(message)
            self.send_400_response(message)

    def _parse(self, data: bytes | memoryview) -> memoryview | None:
        """Returns the bytes after the head of a request with an upgrade, which are not parsed yet."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self.parser.get_method() == b"CONNECT":
                self.refuse(405)
                return None
            head = self._without_upgrade()
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
            self.parser.feed_data(head)
            return memoryview(data)[upgrade.args[0] :]
        return None

    def _without_upgrade(self) -> bytes:
        """The current head, without the fields that ask for an upgrade."""
        parser: Any = self.parser
        lines = [b"%b %b HTTP/%b" % (parser.get_method(), self.url, parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                value = b", ".join(token for token in tokens if token.lower() not in _UPGRADE_FIELDS)
                if not value:
                    continue
            if name not in _UPGRADE_FIELDS:
                lines.append(name + b": " + value)
        return b"\r\n".join((*lines, b"", b""))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase, self._reading = HEAD, None

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # it is parsed again without the upgrade
        self._phase = BODY
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is before:
            return
        self._reading = self.cycle
        self.cycle.transport = cast(asyncio.Transport, self._response_transport)
        self.headers = _NO_TRAILERS  # type: ignore[assignment] - the scope has the headers
        if self.pipeline:
            self.flow.resume_reading()  # to notice a disconnect

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._phase, self._reading = BETWEEN, None
        super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Logs nothing: Java's client asks for h2c on each new connection, and continues in HTTP/1.1."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        cycle.scope[HAS_LEFT] = self._has_left  # type: ignore[typeddict-unknown-key]
        if cycle.scope["http_version"] != "1.1":
            cycle.keep_alive = cycle.waiting_for_100_continue = False
            app = _unchunked(app, cycle)
        super()._start_asgi_task(cycle, app)

    def _has_left(self) -> bool:
        return self._answering is not None and self._answering.disconnected

    def on_response_complete(self) -> None:
        self._response_transport.flush()  # a head without a body (HEAD) must precede the next response
        super().on_response_complete()
        if self._held and not self.pipeline and not self.transport.is_closing():
            held, self._held = bytes(self._held), bytearray()
            self.data_received(held)

    def send_400_response(self, msg: str) -> None:
        self._refuse_with(400, partial(super().send_400_response, msg))

    def refuse(self, status: int) -> None:
        """Ends the connection. The request being read gets this status, unless an earlier response is still due."""
        self._refuse_with(status, partial(self._write_empty, status))

    def refused(self, status: int) -> None:
        """A refusal was sent. For subclasses."""

    def _refuse_with(self, status: int, write_response: Callable[[], None]) -> None:
        if self._refused:
            return
        self._refused, due = True, self.cycle
        if self._reading is not None and self._reading is self._answering:
            due = None  # type: ignore[assignment]
            if self._reading.response_started:
                self.close()  # the client would take a second response for the body of the first
                return
        elif self._reading is not None:
            self.pipeline.popleft()  # the newest is on the left
            due = self.cycle = self.pipeline[0][0] if self.pipeline else cast(RequestResponseCycle, self._answering)
        if due is not None and not due.response_complete:
            due.keep_alive = False
        else:
            write_response()
            self.refused(status)
            self.close()

    def _write_empty(self, status: int) -> None:
        defaults = (b"%b: %b\r\n" % pair for pair in self.server_state.default_headers)
        end = b"content-length: 0\r\nconnection: close\r\n\r\n"
        self.transport.write(b"".join((STATUS_LINE[status], *defaults, end)))


def _unchunked(app: App, cycle: RequestResponseCycle) -> App:
    """The app for an HTTP/1.0 client, without chunks (RFC 9112 6.1): a body of unknown length ends the connection."""

    async def unchunked(scope: Scope, receive: Receive, send: Send) -> None:
        unknown_length = False

        async def send_unchunked(message: Message) -> None:
            nonlocal unknown_length
            if message["type"] == "http.response.start":
                unknown_length = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
                if unknown_length:
                    cycle.chunked_encoding = False
            elif unknown_length:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_unchunked)

    return unchunked
