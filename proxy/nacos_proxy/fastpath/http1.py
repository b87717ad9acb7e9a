"""HTTP/1 where uvicorn's httptools protocol reads or answers it wrongly. Not for: bounds (`limits`), the fast path.

    what comes                                  | what is done
    --------------------------------------------|---------------------------------------------------------------------
    `Upgrade`, as Java's client asks for h2c    | ignored (RFC 9110 7.8): the body is read as what it is
    CONNECT                                     | 405, the connection ends: what follows would be no HTTP
    HTTP/1.0                                    | no chunks: the body as it is, ended by the end of the connection
    a request behind one that has no answer yet | waits; what comes behind it is kept as bytes, and not parsed
    a client that leaves                        | whoever makes its answer is told, also where other requests wait
    trailer fields                              | ignored: they are no headers (RFC 9110 6.5.1)
    what is refused                             | answers due before it are sent whole; it follows, or is left out

httptools takes the body of a request with `Upgrade` for another protocol's bytes and goes on behind its head. So such
a head is parsed once more without the fields of the upgrade, by a parser that never saw them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from nacos_proxy.fastpath.asgi import (
    App,
    Message,
    Receive,
    Scope,
    Send,
)

BETWEEN, HEAD, BODY = 0, 1, 2

PIECE = 8192  # bytes that are parsed at once: no more requests are made of what comes than these hold
MOST_HELD = 256 << 10  # bytes that wait behind a waiting request; with more the connection ends behind its answers
GRACE = 2.0  # seconds for the answers that are due, where their client has ended its side

_NO_TRAILERS: deque[tuple[bytes, bytes]] = deque(maxlen=0)
_OF_AN_UPGRADE = frozenset({b"upgrade", b"http2-settings"})


class Joined:
    """A connection's transport as responses see it: a head goes out with the body that follows in the same turn.

    uvicorn hands them over one after the other, and each would be a system call and, often, a packet of its own.
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
        """What is held goes out now."""
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
    """One connection.

    Slots, here and in the classes made of this one: beyond 30 attributes CPython looks each up in a slower way.
    """

    __slots__ = ("_answering", "_held", "_joined", "_phase", "_reading", "_refused")

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._phase = BETWEEN  # where the parser stands
        self._reading: RequestResponseCycle | None = None  # the request whose body is being read
        self._answering: RequestResponseCycle | None = None  # the request whose answer is written, or was at last
        self._held = bytearray()  # what came behind a request that waits
        self._refused = False  # nothing that comes is read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._joined = Joined(transport, self.loop, self.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._held.clear()
        self.pipeline.clear()  # nobody waits for these
        answering = self._answering
        if answering is not None and not answering.response_complete:
            answering.disconnected = True
            answering.message_event.set()
        super().connection_lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The client says no more: it is gone, or it waits for its answers, as `nc -N` does."""
        due = cast("RequestResponseCycle | None", self.cycle)
        if due is None or due.response_complete or not isinstance(cast(object, due), RequestResponseCycle):
            return None
        if self.scheme == "https" or self._reading is not None:  # a TLS connection cannot be half open
            return None
        due.keep_alive, self._refused = False, True  # it is the last
        self.loop.call_later(GRACE, self._left)
        return True

    def _left(self) -> None:
        """An answer of announced length that has begun is not cut; a stream, which has none, has lost its reader."""
        answering = self._answering
        if answering is None or answering.response_complete or not answering.expected_content_length:
            self.close()
        else:
            self.pipeline.clear()
            answering.keep_alive = False

    def close(self) -> None:
        """Ends the connection when all that was written is sent."""
        self.transport.close()

    # reading

    def data_received(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        if self.pipeline:
            self._hold(data)
        elif len(data) <= PIECE:
            self._feed(data)
        else:
            self._feed_pieces(memoryview(data))

    def _feed_pieces(self, data: memoryview) -> None:
        for at in range(0, len(data), PIECE):
            self._feed(data[at : at + PIECE])
            if self._refused or self.transport.is_closing():
                return
            if self.pipeline:
                self._hold(data[at + PIECE :])
                return

    def _hold(self, data: bytes | memoryview) -> None:
        self._held += data
        if len(self._held) > MOST_HELD:  # not to read would be not to notice that its client leaves
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
        """What is still to be parsed, behind the head of a request with an upgrade."""
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
        """The head that was just read, as it would be if its client had not asked for another protocol."""
        parser: Any = self.parser
        lines = [b"%b %b HTTP/%b" % (parser.get_method(), self.url, parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                value = b", ".join(token for token in tokens if token.lower() not in _OF_AN_UPGRADE)
                if not value:
                    continue
            if name not in _OF_AN_UPGRADE:
                lines.append(name + b": " + value)
        return b"\r\n".join((*lines, b"", b""))

    # what the parser tells

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase, self._reading = HEAD, None

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # it comes again without
        self._phase = BODY
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is before:
            return
        self._reading = self.cycle
        self.cycle.transport = cast(asyncio.Transport, self._joined)
        self.headers = _NO_TRAILERS  # type: ignore[assignment] - its own are the scope's
        if self.pipeline:
            self.flow.resume_reading()  # else nobody would notice that the client leaves

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._phase, self._reading = BETWEEN, None
        super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Java's client asks for h2c on each new connection, and goes on in HTTP/1.1: nothing to warn of."""

    # answering

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        if cycle.scope["http_version"] != "1.1":
            cycle.keep_alive = cycle.waiting_for_100_continue = False
            app = _unchunked(app, cycle)
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self._joined.flush()  # a head without a body, as HEAD gets, must not come behind the next answer
        super().on_response_complete()
        if self._held and not self.pipeline and not self.transport.is_closing():
            held, self._held = bytes(self._held), bytearray()
            self.data_received(held)

    def send_400_response(self, msg: str) -> None:
        """To what is no HTTP request."""
        self._refuse_with(partial(super().send_400_response, msg))

    def refuse(self, status: int) -> None:
        """No more is read, and the connection ends: with this answer to the request that is being read, or with the
        last of the answers that are due before it.
        """
        self._refuse_with(partial(self._say, status))

    def _refuse_with(self, say: Callable[[], None]) -> None:
        if self._refused:
            return
        self._refused, due = True, self.cycle
        if self._reading is not None and self._reading is self._answering:
            due = None  # type: ignore[assignment]
            if self._reading.response_started:
                self.close()  # in the middle of an answer a second one would be taken for its body
                return
        elif self._reading is not None:
            self.pipeline.popleft()  # it is the youngest
            due = self.cycle = self.pipeline[0][0] if self.pipeline else cast(RequestResponseCycle, self._answering)
        if due is not None and not due.response_complete:
            due.keep_alive = False
        else:
            say()
            self.close()

    def _say(self, status: int) -> None:
        defaults = (b"%b: %b\r\n" % pair for pair in self.server_state.default_headers)
        ours = b"content-length: 0\r\nconnection: close\r\n\r\n"
        self.transport.write(b"".join((STATUS_LINE[status], *defaults, ours)))


def _unchunked(app: App, cycle: RequestResponseCycle) -> App:
    """The app for a client that knows no chunks (RFC 9112 6.1): a body of unknown length ends with the connection."""

    async def plain(scope: Scope, receive: Receive, send: Send) -> None:
        unknown = False

        async def sent(message: Message) -> None:
            nonlocal unknown
            if message["type"] == "http.response.start":
                unknown = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
                if unknown:
                    cycle.chunked_encoding = False
            elif unknown:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, sent)

    return plain
